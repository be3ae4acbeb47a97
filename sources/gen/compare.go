package gen

import (
	"context"

	"github.com/cbpump/cbpump/pump"
)

// Fields: generated items have CAS and revision only with Meta, and whether a text
// happens to be JSON is found out by who stores it.
func (s *Source) Fields(context.Context) (pump.Fields, error) {
	f := pump.FieldValue | pump.FieldFlags | pump.FieldExpiry | pump.FieldDeleted
	if s.o.Meta {
		f |= pump.FieldCAS | pump.FieldRev
	}
	return f, nil
}
