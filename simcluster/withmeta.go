package simcluster

import (
	"encoding/binary"

	"github.com/cbpump/cbpump/mcbp"
)

func (c *conn) getMeta(nb *nodeBucket, f *mcbp.Frame) bool {
	if f.ExtLen != 0 || badKey(f.Key()) {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return true
	}
	m, v := c.enter(nb, f, false)
	if v != serveIt {
		return v == refused
	}
	it := nb.copies[f.VBucket].get(f.Key())
	m.mu.Unlock()
	if it == nil {
		var cas uint64
		if c.n.c.family == 2 {
			cas = c.n.c.cas.next() // 2.5.1 gives even this answer a CAS
		}
		c.reply(f, mcbp.StatusNotFound, cas, nil, nil, nil)
		return true
	}
	var x [20]byte
	if it.deleted {
		x[3] = 1
		binary.BigEndian.PutUint32(x[8:], it.deletedAt)
	} else {
		binary.BigEndian.PutUint32(x[8:], it.expiry)
	}
	binary.BigEndian.PutUint32(x[4:], it.flags)
	binary.BigEndian.PutUint64(x[12:], it.rev)
	c.reply(f, mcbp.StatusOK, it.cas, x[:], nil, nil)
	return true
}

// wins is conflict resolution by revision: the item with more changes wins, and
// the later CAS, expiry and flags break the tie.
func wins(m *mcbp.Meta, old *item) bool {
	switch {
	case m.Rev != old.rev:
		return m.Rev > old.rev
	case m.CAS != old.cas:
		return m.CAS > old.cas
	case m.Expiry != old.expiry:
		return m.Expiry > old.expiry
	}
	return m.Flags > old.flags
}

// parseMeta checks what all *_WITH_META have in common; ok is false when the
// request was answered.
func (c *conn) parseMeta(f *mcbp.Frame) (w mcbp.WithMeta, ok bool) {
	if w.Parse(f) != nil || badKey(f.Key()) {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return w, false
	}
	if len(w.Value) > maxItem {
		c.reply(f, mcbp.StatusTooBig, 0, nil, nil, []byte("Too large."))
		return w, false
	}
	if c.n.c.family == 2 {
		w.Meta.Expiry = absoluteExpiry(w.Meta.Expiry)
	}
	return w, true
}

func forced(w *mcbp.WithMeta) bool { return w.HasOptions && w.Options&mcbp.MetaForce != 0 }

func (c *conn) setWithMeta(nb *nodeBucket, f *mcbp.Frame) bool {
	w, ok := c.parseMeta(f)
	if !ok {
		return true
	}
	m, v := c.enter(nb, f, forced(&w))
	if v != serveIt {
		return v == refused
	}
	old := nb.copies[f.VBucket].get(w.Key)
	status := mcbp.StatusOK
	switch {
	case c.n.c.family >= 4 && w.Meta.CAS == 0 && !forced(&w):
		status = mcbp.StatusExists
	case (f.Opcode == mcbp.OpAddWithMeta || f.Opcode == mcbp.OpAddQWithMeta) && old != nil && !old.deleted:
		status = mcbp.StatusExists // force or not
	case old != nil && !forced(&w) && !wins(&w.Meta, old):
		status = mcbp.StatusExists
	case w.HeaderCAS != 0:
		if old != nil && old.deleted {
			status = mcbp.StatusNotFound
		} else {
			status = casCheck(old, w.HeaderCAS)
		}
	}
	if status == mcbp.StatusOK {
		nb.write(m, f.VBucket, &item{
			key: string(w.Key), value: bytesOf(w.Value), datatype: c.datatypeOf(f, w.Value),
			flags: w.Meta.Flags, expiry: w.Meta.Expiry, rev: w.Meta.Rev, cas: w.Meta.CAS,
		})
	}
	m.mu.Unlock()
	c.written(f, status, w.Meta.CAS)
	return true
}

func (c *conn) deleteWithMeta(nb *nodeBucket, f *mcbp.Frame) bool {
	w, ok := c.parseMeta(f)
	if !ok {
		return true
	}
	m, v := c.enter(nb, f, forced(&w))
	if v != serveIt {
		return v == refused
	}
	state := nb.copies[f.VBucket].state
	old := nb.copies[f.VBucket].get(w.Key)
	tomb := &item{key: string(w.Key), rev: w.Meta.Rev, cas: w.Meta.CAS, flags: w.Meta.Flags, deleted: true}
	c.n.c.stampDeletion(tomb)
	status, stored := mcbp.StatusOK, true
	switch {
	case c.n.c.family >= 4 && w.Meta.CAS == 0 && !forced(&w):
		status, stored = mcbp.StatusExists, false
	case old != nil && !forced(&w) && !wins(&w.Meta, old):
		status, stored = mcbp.StatusExists, false
	case w.HeaderCAS != 0:
		if old != nil && old.deleted {
			old = nil
		}
		status = casCheck(old, w.HeaderCAS)
		stored = status == mcbp.StatusOK
	case old == nil && forced(&w) && c.n.c.family == 2:
		// 2.5.1 answers "not found" and yet leaves a tombstone, with a CAS of its
		// own, in a replica; in an active vbucket it leaves none.
		status = mcbp.StatusNotFound
		stored = state != mcbp.VBActive
		tomb.cas = c.n.c.cas.next()
	}
	if stored {
		nb.write(m, f.VBucket, tomb)
	}
	m.mu.Unlock()
	if stored && status != mcbp.StatusOK {
		c.n.faults.writes.Add(1)
	}
	var cas uint64
	if c.n.c.family >= 4 {
		cas = w.Meta.CAS
	}
	if status == mcbp.StatusNotFound {
		c.reply(f, status, 0, nil, nil, nil)
		return true
	}
	c.written(f, status, cas)
	return true
}
