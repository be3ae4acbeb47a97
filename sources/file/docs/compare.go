package docs

import (
	"context"

	"github.com/cbpump/cbpump/pump"
)

// Fields: a document is its value and nothing else.
func (s *Source) Fields(context.Context) (pump.Fields, error) { return pump.FieldValue, nil }
