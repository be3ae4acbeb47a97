package pump

import (
	"context"

	"github.com/golang/snappy"
)

// The bits of Item.Datatype that are known. A sink rejects an item with a bit that
// it does not know, by name: what its value is then cannot be told.
const (
	DatatypeJSON   uint8 = 1 // the value is JSON
	DatatypeSnappy uint8 = 2 // the value is compressed with snappy
	DatatypeXattr  uint8 = 4 // extended attributes are in front of the value
)

// Optional abilities that let both ends agree on the form of values.
type (
	// DatatypeTaker is a sink that does not store values in every form. Datatypes
	// returns the bits that it stores as they are. Values that are compressed and not
	// to be are unpacked on the way. What cannot be converted without a loss
	// (extended attributes, unknown bits) the sink rejects by name. A sink without
	// this ability takes all.
	DatatypeTaker interface {
		Datatypes(ctx context.Context) (taken uint8, err error)
	}
	// DatatypeChooser is a source that can give values in another form, such as a
	// server that unpacks them itself. It is told before Streams what the sink takes.
	DatatypeChooser interface {
		ChooseDatatypes(taken uint8)
	}
)

// agree settles the form of values between the two ends.
func (e *engine) agree(ctx context.Context) error {
	taker, ok := As[DatatypeTaker](e.cfg.Sink)
	if !ok {
		return nil
	}
	taken, err := taker.Datatypes(ctx)
	if err != nil {
		return err
	}
	if c, ok := As[DatatypeChooser](e.cfg.Source); ok {
		c.ChooseDatatypes(taken)
	}
	e.unpack = taken&DatatypeSnappy == 0
	return nil
}

// mostUnpacked bounds a value, and mostRatio what a compressed one may claim to
// hold: snappy does not get beyond about 21 to 1, so a greater claim is a lie that
// would cost memory.
const (
	mostUnpacked = 64 << 20
	mostRatio    = 32
)

// unpackedLen returns how long a compressed value says that it is.
func unpackedLen(it *Item) (n int, ok bool) {
	if it.Datatype&DatatypeSnappy == 0 {
		return 0, false
	}
	n, err := snappy.DecodedLen(it.Value)
	return n, err == nil && n <= mostUnpacked && n <= mostRatio*len(it.Value)
}

// Unpack undoes the compression of values. One that claims to be compressed and
// cannot be read stays as it is, for the sink to reject. The values lie in one new
// piece of memory that the batch owns.
func (b *Batch) Unpack() {
	total, any := 0, false
	for i := range b.Items {
		if n, ok := unpackedLen(&b.Items[i]); ok {
			total, any = total+n, true
		}
	}
	if !any {
		return
	}
	room := make([]byte, total)
	b.beyond += total
	for i := range b.Items {
		it := &b.Items[i]
		n, ok := unpackedLen(it)
		if !ok {
			continue
		}
		value, err := snappy.Decode(room[:n:n], it.Value)
		if err != nil {
			continue
		}
		room = room[n:]
		it.Value, it.Datatype = value, it.Datatype&^DatatypeSnappy
	}
}
