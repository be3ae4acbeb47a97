package dcp

import (
	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// names tells what ids of collections stand for. Ids are never used again and
// names never change, so what was learned once stays true.
type names struct {
	scopes      map[uint32]string
	collections map[uint32]*pump.Collection // nil for the default collection

	lastID uint32 // the collection that was found last
	last   *pump.Collection
}

func newNames() *names {
	return &names{
		scopes:      map[uint32]string{0: cluster.DefaultName},
		collections: map[uint32]*pump.Collection{0: nil},
	}
}

// learn adds what a manifest lists.
func (n *names) learn(m *cluster.Manifest) {
	for i := range m.Scopes {
		s := &m.Scopes[i]
		n.scopes[s.ID] = s.Name
		for _, c := range s.Collections {
			n.add(s.Name, c.ID, c.Name)
		}
	}
}

func (n *names) add(scope string, id uint32, name string) {
	if _, known := n.collections[id]; !known {
		n.collections[id] = &pump.Collection{Scope: scope, Name: name}
	}
}

// find returns the collection of an item. Most follow one of the same.
func (n *names) find(id uint32) (c *pump.Collection, known bool) {
	if id == n.lastID {
		return n.last, true
	}
	if c, known = n.collections[id]; known {
		n.lastID, n.last = id, c
	}
	return c, known
}

// event adds what a system event creates.
func (n *names) event(e *mcbp.SystemEvent) {
	switch e.Event {
	case mcbp.EventCreateScope:
		n.scopes[e.Scope] = string(e.Name)
	case mcbp.EventCreateCollection:
		if scope, ok := n.scopes[e.Scope]; ok {
			n.add(scope, e.Collection, string(e.Name))
		}
	}
}

func knownEvent(id uint32) bool {
	return id == mcbp.EventCreateCollection || id == mcbp.EventDropCollection || id == mcbp.EventCreateScope || id == mcbp.EventDropScope
}

// dropped reports an event after which the node's counts may still hold what is
// gone.
func dropped(e *mcbp.SystemEvent) bool {
	return e.Event == mcbp.EventDropCollection || e.Event == mcbp.EventDropScope
}
