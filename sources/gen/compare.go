package gen

import (
	"context"

	"github.com/cbpump/cbpump/pump"
)

// Fields: generated items have neither CAS nor revision, and whether a text happens
// to be JSON is found out by who stores it.
func (s *Source) Fields(context.Context) (pump.Fields, error) {
	return pump.FieldValue | pump.FieldFlags | pump.FieldExpiry | pump.FieldDeleted, nil
}
