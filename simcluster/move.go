package simcluster

import (
	"fmt"
	"slices"

	"github.com/cbpump/cbpump/mcbp"
)

// Move gives the active copy of a vbucket to another node, as a rebalance does at
// the end of each move: the node takes over items and history, without a branch of
// its own; the old one's streams end with a change of state, it answers
// NOT_MY_VBUCKET from then on, and the map names the new one. A node that held a
// replica gives the old one its place in the chain.
func (b *Bucket) Move(vb uint16, to *Node) error {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	op := func(err error) error { return fmt.Errorf("move vbucket %d to %s: %w", vb, to.OTP(), err) }
	if int(vb) >= len(b.vbs) {
		return op(ErrNoActive)
	}
	i := slices.IndexFunc(b.nodes, func(nb *nodeBucket) bool { return nb.node == to })
	switch {
	case i < 0:
		return op(ErrNotMember)
	case to.Dead():
		return op(ErrNodeDown)
	}
	next, m := b.nodes[i], b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.chain) == 0 || m.chain[0] == nil {
		return op(ErrNoActive)
	}
	old := m.chain[0]
	if old == next {
		return nil
	}
	next.setState(m, vb, mcbp.VBAbsent)
	next.setState(m, vb, mcbp.VBPending)
	next.copies[vb].copyOf(&old.copies[vb])
	flog, uuid := next.copies[vb].flog, next.copies[vb].uuid
	old.setState(m, vb, mcbp.VBDead)
	next.setState(m, vb, mcbp.VBActive)
	next.copies[vb].flog, next.copies[vb].uuid = flog, uuid
	if at := slices.Index(m.chain, next); at > 0 {
		m.chain[at] = old
		replica := &next.copies[vb]
		old.setState(m, vb, mcbp.VBAbsent)
		old.setState(m, vb, mcbp.VBReplica)
		old.copies[vb].copyOf(replica)
	} else {
		old.setState(m, vb, mcbp.VBAbsent)
	}
	m.chain[0] = next
	b.c.touch()
	return nil
}
