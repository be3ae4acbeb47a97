package dcp

import (
	"context"
	"errors"

	"github.com/cbpump/cbpump/pump"
)

// Fields: nodes up to 4.x find out by themselves what is JSON, so a datatype of
// theirs says nothing of what was written.
func (s *Source) Fields(ctx context.Context) (pump.Fields, error) {
	l, err := s.at.Locate(ctx, false)
	if err != nil {
		return 0, err
	}
	if l.Bucket != nil && !l.Bucket.MinVersion().AtLeast(5, 0) {
		return pump.AllFields &^ pump.FieldDatatype, nil
	}
	return pump.AllFields, nil
}

// LiveCounts are the nodes' own counts; of one collection there are none.
func (s *Source) LiveCounts(ctx context.Context) (map[uint16]uint64, error) {
	if s.cfg.Options.Collection != "" {
		return nil, errors.ErrUnsupported
	}
	return s.at.LiveCounts(ctx, s.cfg.VBuckets)
}
