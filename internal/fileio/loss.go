package fileio

import (
	"sync/atomic"

	"github.com/cbpump/cbpump/pump"
)

// Part is a set of parts of an item that not every format has a place for. Keys
// and values are not among them: an item whose key or value does not fit is
// rejected.
type Part uint16

// The parts.
const (
	VBucket Part = 1 << iota
	Flags
	Expiry
	CAS
	Rev
	Seqno
	Datatype
	Meta
	Expired    // that a key expired, and was not deleted
	OfDeletion // a deletion's value, flags and time
	Gone       // that a key was deleted: there is no trace of it
	LongOver   // an expiry in January 1970
	parts      = iota
)

// partNames name the parts in messages, as in "the CAS of 7 items".
var partNames = [parts]string{
	"the vbucket", "the flags", "the expiry", "the CAS", "the revision", "the sequence number", "the datatype",
	"the extended metadata", "the expiration (written as a deletion)", "what deletions carry (a value, flags, a datatype, their time)",
	"the deletion (the key is gone, without a trace)", "the time of expiry (long over, and written as such)",
}

// januaryOf1970 is up to where the text protocol takes expiries for a time from now.
const januaryOf1970 = 30 * 24 * 60 * 60

// PartsOf returns the parts that an item has.
func PartsOf(it *pump.Item) Part {
	p := Part(0)
	if it.VBucket != pump.NoVBucket {
		p |= VBucket
	}
	if it.CAS != 0 {
		p |= CAS
	}
	if it.RevSeqno != 0 {
		p |= Rev
	}
	if it.Seqno != 0 {
		p |= Seqno
	}
	if len(it.Meta) != 0 {
		p |= Meta
	}
	if it.Op != pump.Mutation {
		p |= Gone
		if it.Op == pump.Expiration {
			p |= Expired
		}
		if len(it.Value) != 0 || it.Flags != 0 || it.Datatype != 0 || it.Expiry != 0 {
			p |= OfDeletion
		}
		return p
	}
	if it.Flags != 0 {
		p |= Flags
	}
	if it.Expiry != 0 {
		p |= Expiry
		if it.Expiry <= januaryOf1970 {
			p |= LongOver
		}
	}
	if it.Datatype != 0 {
		p |= Datatype
	}
	return p
}

// Losses counts the parts that items had and a format left out. Lanes share it.
// The zero value is ready to use.
type Losses struct{ items [parts]atomic.Uint64 }

// Note counts what an item that was written has of the parts that the format loses.
func (l *Losses) Note(it *pump.Item, loses Part) {
	if loses == 0 {
		return
	}
	lost := PartsOf(it) & loses
	for i := 0; lost != 0; i++ {
		if lost&1 != 0 {
			l.items[i].Add(1)
		}
		lost >>= 1
	}
}

// List returns what was lost.
func (l *Losses) List() []pump.Loss {
	var out []pump.Loss
	for i := range l.items {
		if n := l.items[i].Load(); n > 0 {
			out = append(out, pump.Loss{Part: partNames[i], Items: n})
		}
	}
	return out
}
