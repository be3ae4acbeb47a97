package auto

import (
	"context"
	"errors"

	"github.com/cbpump/cbpump/pump"
)

// Fields asks the source that was chosen.
func (s *Source) Fields(ctx context.Context) (pump.Fields, error) {
	src, err := s.choose(ctx)
	if err != nil {
		return 0, err
	}
	if t, ok := pump.As[pump.FieldTeller](src); ok {
		return t.Fields(ctx)
	}
	return pump.AllFields, nil
}

// LiveCounts asks the source that was chosen.
func (s *Source) LiveCounts(ctx context.Context) (map[uint16]uint64, error) {
	src, err := s.choose(ctx)
	if err != nil {
		return nil, err
	}
	if c, ok := pump.As[pump.LiveCounter](src); ok {
		return c.LiveCounts(ctx)
	}
	return nil, errors.ErrUnsupported
}
