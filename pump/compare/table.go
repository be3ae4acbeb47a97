package compare

import (
	"bytes"
	"encoding/binary"
)

// table joins the records of one partition: one entry for each key, with a state
// of each side.
//
//	hash u64, collection u16, length of the key u32, which states are there u8, states, key
type table struct {
	width, sides int
	arena        []byte
	slots        []int // offset in arena plus one, 0 = free
	n            int
}

const entryHead = headSize + 1

func (t *table) reset(width, sides int) {
	t.width, t.sides, t.n = width, sides, 0
	t.arena = t.arena[:0]
	if t.slots == nil {
		t.slots = make([]int, 1<<10)
	}
	clear(t.slots)
}

// cost is about how much memory an entry takes that comes of a record of size
// bytes and width.
func (t *table) cost() int { return entryHead + t.sides*t.width + 4*8 }

// find returns the offset of a key's entry; -1 if there is none and add is false.
func (t *table) find(hash uint64, collection uint16, key []byte, add bool) int {
	mask := len(t.slots) - 1
	i := int(hash) & mask
	for ; t.slots[i] != 0; i = (i + 1) & mask {
		at := t.slots[i] - 1
		e := t.arena[at:]
		if recordHash(e) == hash && recordCollection(e) == collection && bytes.Equal(t.key(at), key) {
			return at
		}
	}
	if !add {
		return -1
	}
	at := len(t.arena)
	size := entryHead + t.sides*t.width + len(key)
	if cap(t.arena)-at < size {
		grown := make([]byte, at, max(2*cap(t.arena), at+size, 1<<16))
		copy(grown, t.arena)
		t.arena = grown
	}
	t.arena = t.arena[:at+size]
	e := t.arena[at:]
	putHead(e, hash, collection, len(key))
	e[headSize] = 0
	copy(e[entryHead+t.sides*t.width:], key)
	t.slots[i] = at + 1
	if t.n++; 2*t.n > len(t.slots) {
		t.grow()
	}
	return at
}

func (t *table) grow() {
	t.slots = make([]int, 2*len(t.slots))
	mask := len(t.slots) - 1
	for at := 0; at < len(t.arena); at += t.size(at) {
		i := int(recordHash(t.arena[at:])) & mask
		for t.slots[i] != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = at + 1
	}
}

func (t *table) size(at int) int {
	return entryHead + t.sides*t.width + int(binary.LittleEndian.Uint32(t.arena[at+10:]))
}

func (t *table) key(at int) []byte {
	return t.arena[at+entryHead+t.sides*t.width : at+t.size(at)]
}

// set gives an entry the state of a side; a later one takes an earlier one's place.
func (t *table) set(at, side int, state []byte) {
	t.arena[at+headSize] |= 1 << side
	from := at + entryHead + side*t.width
	copy(t.arena[from:from+t.width], state)
}

// state returns the state of a side, nil if there is none.
func (t *table) state(at, side int) []byte {
	if t.arena[at+headSize]&(1<<side) == 0 {
		return nil
	}
	from := at + entryHead + side*t.width
	return t.arena[from : from+t.width]
}
