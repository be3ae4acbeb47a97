package dcp

import (
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// snapshotLive marks a snapshot as one from memory, as recorded.
const snapshotLive = 1

// The last byte of a mutation's extras says how much it is used: as little as a new
// item.
const (
	nruAt  = mcbp.HeaderLen + 30
	nruNew = 2
)

// stream is one vbucket's stream to the node.
type stream struct {
	vb uint16

	// Guarded by link.mu, written by the reader.
	opaque  uint32 // that the node gave the stream
	seqno   uint64 // where the node began; from then on of the last message, the writer's
	uuid    uint64
	fresh   bool // the vbucket was empty
	open    bool
	refusal mcbp.Status // of ADD_STREAM or of a message; 0 = none
	text    []byte

	// manifest is what the vbucket has been told of collections; nil where it is not
	// known, which is taken for enough until the node refuses a collection.
	manifest *cluster.Manifest
	ignorant bool // the node refused a collection
	suspect  bool // items are pushed one at a time, to find the one that is refused

	// floor is how many live items the vbucket must hold by what was confirmed.
	floor uint64

	// The round.
	live  int    // keys that it leaves with a value
	gone  uint64 // deletions
	items []int  // indexes that were appended
	buf   []byte // messages of the snapshot that is gathered
	first uint64 // seqno of the first of them
	goal  uint64 // seqno of the last message that should have been taken, 0 = none
}

// begin prepares the stream for a round.
func (s *stream) begin() {
	s.items, s.buf, s.first, s.goal, s.live, s.gone = s.items[:0], s.buf[:0], 0, 0, 0, 0
}

// least returns how many live items the vbucket must hold behind the round: the keys
// that it left with a value, and what was there before but for what it deleted. More
// is not known: a mutation may replace another.
func (s *stream) least() uint64 { return max(uint64(s.live), s.floor-min(s.floor, s.gone)) }

// next counts a message.
func (s *stream) next() uint64 {
	s.seqno++
	if s.first == 0 {
		s.first = s.seqno
	}
	return s.seqno
}

// add appends an item to the snapshot.
func (s *stream) add(it *pump.Item, cas uint64, deleteTimes, expirations bool) {
	m := mcbp.DcpMessage{
		Opcode: mcbp.OpDcpMutation, VBucket: s.vb, Opaque: s.opaque, Datatype: it.Datatype, CAS: cas,
		Seqno: s.next(), Rev: max(it.RevSeqno, 1), Flags: it.Flags, Expiry: it.Expiry, Key: it.Key, Value: it.Value,
	}
	switch {
	case it.Op == pump.Expiration && expirations:
		m.Opcode = mcbp.OpDcpExpiration
	case it.Op != pump.Mutation:
		m.Opcode = mcbp.OpDcpDeletion
	}
	at := len(s.buf)
	s.buf = m.Append(s.buf, deleteTimes)
	if m.Opcode == mcbp.OpDcpMutation {
		s.buf[at+nruAt] = nruNew
	}
}

// event appends a change of the manifest.
func (s *stream) event(e *mcbp.SystemEvent) {
	if e.Event == mcbp.EventCreateCollection && e.MaxTTL > 0 {
		e.Version = 1
	}
	m := mcbp.DcpMessage{
		Opcode: mcbp.OpDcpSystemEvent, VBucket: s.vb, Opaque: s.opaque, Seqno: s.next(), Flags: e.Event, Version: e.Version,
		Key: e.Name, Value: e.AppendValue(nil),
	}
	s.buf = m.Append(s.buf, false)
}

// changes lists the events that lead from one manifest to another. All carry the
// uid of the second: whoever has been told all of them has that manifest. That is why
// all of it is told, not only what has items: a vbucket that says it has a manifest
// is not given it again once it is active.
func changes(from, to *cluster.Manifest) []mcbp.SystemEvent {
	var out []mcbp.SystemEvent
	add := func(event, scope, collection, maxTTL uint32, name string) {
		e := mcbp.SystemEvent{Event: event, ManifestUID: to.UID, Scope: scope, Collection: collection, MaxTTL: maxTTL, Name: []byte(name)}
		out = append(out, e)
	}
	scopes := func(m *cluster.Manifest) map[uint32]bool {
		ids := map[uint32]bool{}
		for i := range m.Scopes {
			ids[m.Scopes[i].ID] = true
		}
		return ids
	}
	had, has := scopes(from), scopes(to)
	for i := range from.Scopes {
		s := &from.Scopes[i]
		for _, c := range s.Collections {
			if _, _, kept := to.ByID(c.ID); !kept {
				add(mcbp.EventDropCollection, s.ID, c.ID, 0, "")
			}
		}
		if !has[s.ID] {
			add(mcbp.EventDropScope, s.ID, 0, 0, "")
		}
	}
	for i := range to.Scopes {
		s := &to.Scopes[i]
		if !had[s.ID] {
			add(mcbp.EventCreateScope, s.ID, 0, 0, s.Name)
		}
		for _, c := range s.Collections {
			if _, _, known := from.ByID(c.ID); !known {
				add(mcbp.EventCreateCollection, s.ID, c.ID, c.MaxTTL, c.Name)
			}
		}
	}
	return out
}

// badCAS reports a CAS that servers take for none.
func badCAS(cas uint64) bool { return cas == 0 || cas == ^uint64(0) }

// newCAS returns a CAS for an item that has none: a time, as servers make them, and
// greater than the last.
func newCAS(last uint64) uint64 { return max(uint64(time.Now().UnixNano())&^0xffff, last+1) }
