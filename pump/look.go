package pump

import (
	"context"
	"strings"
)

// Fields is a set of the things that an item says about its key.
type Fields uint8

// The fields.
const (
	FieldValue    Fields = 1 << iota
	FieldFlags           // client flags
	FieldExpiry          // absolute time
	FieldCAS             //
	FieldRev             // revision
	FieldDatatype        // bits for JSON and extended attributes; whether a value is compressed is no difference
	FieldDeleted         // that a key was deleted, which is more than that it is not there

	AllFields Fields = 1<<iota - 1
)

// The names of the fields, in the order of their bits; nothing changes the table.
var fieldNames = [...]string{"value", "flags", "expiry", "cas", "rev", "datatype", "deleted"}

// Has reports whether all of f are in the set.
func (s Fields) Has(f Fields) bool { return s&f == f }

// Names lists the fields.
func (s Fields) Names() []string {
	names := []string{}
	for i, name := range fieldNames {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

func (s Fields) String() string { return strings.Join(s.Names(), ", ") }

// Optional abilities for comparing what a source has with what a destination
// holds (package compare), found with As.
type (
	// FieldTeller is a source whose items do not tell every field, or not in every
	// case. Of a source without this ability all fields are believed; a CAS or
	// revision of 0 says of itself that there is none.
	FieldTeller interface {
		Fields(ctx context.Context) (Fields, error)
	}
	// LiveCounter is a source that knows how many live items each of its vbuckets
	// has without being read. The counts are those of the servers: documents whose
	// time is over count until they are removed. errors.ErrUnsupported says that it
	// does not know after all.
	LiveCounter interface {
		LiveCounts(ctx context.Context) (map[uint16]uint64, error)
	}
	// Looker is a sink that can be asked what it holds of given keys, for
	// destinations that cannot be read whole.
	Looker interface {
		// Look connects. Each Lookup is used by one goroutine.
		Look(ctx context.Context) (Lookup, error)
		// LookFields are the fields that the answers tell.
		LookFields() Fields
	}
	// Lookup asks for keys.
	Lookup interface {
		// Find calls found for each item whose key the destination has, in any order:
		// i is its index in items, have what is there. have's bytes are valid until
		// found returns; vbucket, key and collection are not filled in. An error that
		// another try may mend is marked with Retryable; Find connects again then.
		Find(ctx context.Context, items []Item, found func(i int, have *Item)) error
		Close() error
	}
)
