package tap

import (
	"context"

	"github.com/cbpump/cbpump/pump"
)

// Fields: TAP knows no datatypes.
func (s *DumpSource) Fields(context.Context) (pump.Fields, error) {
	return pump.AllFields &^ pump.FieldDatatype, nil
}

// LiveCounts are the nodes' own counts.
func (s *DumpSource) LiveCounts(ctx context.Context) (map[uint16]uint64, error) {
	return s.at.LiveCounts(ctx, s.cfg.VBuckets)
}
