package compare

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"

	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/pump"
)

// A record is what is kept of one item: a head, the state, the key.
//
//	hash u64, collection u16, length of the key u32, state, key
//
// Digests have no key: the hash stands for it.
const headSize = 8 + 2 + 4

// The widths of states. A record that passes no other process is in the byte
// order of all.
const (
	digestWidth = 8 + 2 + 1                     // sum, vbucket, live
	fullWidth   = 4*8 + 2*4 + 2 + 1 + 1         // value, cas, rev, seqno, flags, expiry, vbucket, datatype, op
	itemWidth   = fullWidth + 8 + 4 + 4 + 2 + 1 // and where the value is: offset, its length, that of the meta, file, its datatype
)

// State is what one side says of a key. The value stands for itself by a hash.
type State struct {
	Op       pump.Op
	Datatype uint8 // without the bit of compressed values
	VBucket  uint16
	Flags    uint32
	Expiry   uint32
	CAS, Rev uint64
	Seqno    uint64
	value    uint64
}

func (s *State) put(p []byte) {
	le := binary.LittleEndian
	le.PutUint64(p, s.value)
	le.PutUint64(p[8:], s.CAS)
	le.PutUint64(p[16:], s.Rev)
	le.PutUint64(p[24:], s.Seqno)
	le.PutUint32(p[32:], s.Flags)
	le.PutUint32(p[36:], s.Expiry)
	le.PutUint16(p[40:], s.VBucket)
	p[42], p[43] = s.Datatype, byte(s.Op)
}

func (s *State) get(p []byte) {
	le := binary.LittleEndian
	*s = State{
		value: le.Uint64(p), CAS: le.Uint64(p[8:]), Rev: le.Uint64(p[16:]), Seqno: le.Uint64(p[24:]),
		Flags: le.Uint32(p[32:]), Expiry: le.Uint32(p[36:]), VBucket: le.Uint16(p[40:]), Datatype: p[42], Op: pump.Op(p[43]),
	}
}

// place is where a value lies in the files of values.
type place struct {
	offset      uint64
	value, meta uint32
	file        uint16
	datatype    uint8 // of the value as it lies there, which may be compressed
}

func (a *place) put(p []byte) {
	le := binary.LittleEndian
	le.PutUint64(p, a.offset)
	le.PutUint32(p[8:], a.value)
	le.PutUint32(p[12:], a.meta)
	le.PutUint16(p[16:], a.file)
	p[18] = a.datatype
}

func (a *place) get(p []byte) {
	le := binary.LittleEndian
	*a = place{offset: le.Uint64(p), value: le.Uint32(p[8:]), meta: le.Uint32(p[12:]), file: le.Uint16(p[16:]), datatype: p[18]}
}

// seeds make hashes. Both sides of a comparison share them.
type seeds struct{ key, value maphash.Seed }

func newSeeds() seeds { return seeds{maphash.MakeSeed(), maphash.MakeSeed()} }

// mix spreads what is in x over all bits (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hash is the identity of a key in its collection.
func (s *seeds) hash(key []byte, c *pump.Collection) uint64 {
	h := maphash.Bytes(s.key, key)
	if c != nil && (c.Scope != "_default" || c.Name != "_default") {
		h = mix(h + bits.RotateLeft64(maphash.String(s.key, c.Scope), 17) + maphash.String(s.key, c.Name))
	}
	return h
}

const snappyBit = 2

// valueHash hashes the value that clients would see: compressed ones unpacked.
// scratch is used for that and returned grown. What cannot be unpacked is hashed as
// it is, and stays marked.
func (s *seeds) valueHash(it *pump.Item, scratch []byte) (h uint64, datatype uint8, grown []byte) {
	value, datatype := it.Value, it.Datatype
	if datatype&snappyBit != 0 {
		const most = 128 << 20
		if n, err := snappy.DecodedLen(value); err == nil && n <= most {
			if cap(scratch) < n {
				scratch = make([]byte, n)
			}
			if plain, err := snappy.Decode(scratch[:cap(scratch)], value); err == nil {
				value, datatype = plain, datatype&^snappyBit
			}
		}
	}
	return maphash.Bytes(s.value, value), datatype, scratch
}

// stateOf makes an item's state.
func (s *seeds) stateOf(it *pump.Item, into *State, scratch []byte) []byte {
	*into = State{
		Op: it.Op, VBucket: it.VBucket, Flags: it.Flags, Expiry: it.Expiry, CAS: it.CAS, Rev: it.RevSeqno, Seqno: it.Seqno,
	}
	if it.Op == pump.Mutation {
		into.value, into.Datatype, scratch = s.valueHash(it, scratch)
	}
	return scratch
}

// digest is the sum of one key and its state over the fields; any order of keys
// gives the same total.
func digest(hash uint64, s *State, fields pump.Fields) uint64 {
	d := hash
	for _, f := range [...]struct {
		field pump.Fields
		v     uint64
	}{
		{pump.FieldValue, s.value}, {pump.FieldFlags, uint64(s.Flags)}, {pump.FieldExpiry, uint64(s.Expiry)},
		{pump.FieldCAS, s.CAS}, {pump.FieldRev, s.Rev}, {pump.FieldDatatype, uint64(s.Datatype)},
	} {
		if fields&f.field != 0 {
			d = mix(d+uint64(f.field)*0x9e3779b97f4a7c15) ^ f.v
		}
	}
	return mix(d)
}
