package simcluster

import (
	"encoding/binary"
	"sync"

	"github.com/cbpump/cbpump/mcbp"
)

func (c *conn) getMeta(nb *nodeBucket, f *mcbp.Frame) bool {
	typed := f.ExtLen == 1 && c.n.c.rel.hasUsers() // asks for the datatype too
	want := uint8(0)
	if typed {
		want = 1
	}
	coll, key, ok := c.plainRequest(f, want)
	if !ok {
		return c.forgives()
	}
	typed = typed && f.Extras()[0] == 2
	m, v := c.enter(nb, f, false, coll)
	if v != serveIt {
		return v == refused
	}
	it := nb.copies[f.VBucket].find(coll, key)
	m.mu.Unlock()
	if it == nil {
		var cas uint64
		if c.n.c.family == 2 {
			cas = c.n.c.cas.next() // 2.5.1 gives even this answer a CAS
		}
		c.reply(f, mcbp.StatusNotFound, cas, nil, nil, nil)
		return true
	}
	var x [21]byte
	if it.deleted {
		x[3] = 1
		binary.BigEndian.PutUint32(x[8:], it.deletedAt)
	} else {
		binary.BigEndian.PutUint32(x[8:], it.expiry)
	}
	binary.BigEndian.PutUint32(x[4:], it.flags)
	binary.BigEndian.PutUint64(x[12:], it.rev)
	x[20] = it.datatype
	extras := x[:20]
	if typed {
		extras = x[:]
	}
	c.reply(f, mcbp.StatusOK, it.cas, extras, nil, nil)
	return true
}

// wins is conflict resolution by revision: the item with more changes wins, and
// the later CAS, expiry and flags break the tie. With lww the later CAS wins first.
func wins(m *mcbp.Meta, old *item, lww bool) bool {
	switch {
	case lww && m.CAS != old.cas:
		return m.CAS > old.cas
	case m.Rev != old.rev:
		return m.Rev > old.rev
	case m.CAS != old.cas:
		return m.CAS > old.cas
	case m.Expiry != old.expiry:
		return m.Expiry > old.expiry
	}
	return m.Flags > old.flags
}

// metaRequest is a *_WITH_META request after all checks.
type metaRequest struct {
	mcbp.WithMeta
	coll     uint32
	key      []byte
	datatype uint8
	forced   bool // writes also to replica and pending vbuckets
	blind    bool // no conflict resolution
	newCAS   bool
	expired  bool // the deletion is an expiration
}

// optExpiration marks a deletion as an expiration, from 6.5 on.
const optExpiration = 0x10

// parseMeta checks what all *_WITH_META have in common; ok is false when the
// request was answered, and then more says whether the connection stays.
func (c *conn) parseMeta(nb *nodeBucket, f *mcbp.Frame) (w metaRequest, ok, more bool) {
	rel := c.n.c.rel
	if err := w.Parse(f); err != nil && (f.ExtLen == 26 || f.ExtLen == 30) && rel >= rel46 {
		err = w.parseLong(f)
		if err != nil {
			c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
			return w, false, true
		}
	} else if err != nil {
		c.refuse(f, mcbp.StatusInvalid, "Request extras invalid")
		return w, false, c.forgives()
	}
	if !rel.hasUsers() || rel < rel65 {
		if badKey(f.Key()) {
			if len(f.Key()) > 0 && rel.hasUsers() {
				c.replyTyped(f, mcbp.StatusInvalid, dtJSON, contextBody("Key length exceed 250"))
			} else {
				c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
			}
			return w, false, !rel.hasUsers()
		}
	}
	if w.coll, w.key, ok = c.key(f); !ok {
		return w, false, true
	}
	if len(w.Value) > maxItem {
		c.reply(f, mcbp.StatusTooBig, 0, nil, nil, []byte("Too large."))
		return w, false, true
	}
	if c.n.c.family == 2 {
		w.Meta.Expiry = absoluteExpiry(w.Meta.Expiry)
	}
	opts := uint32(0)
	if w.HasOptions {
		opts = w.Options
	}
	w.forced = opts&mcbp.MetaForce != 0
	w.blind = w.forced
	if !rel.hasUsers() {
		if lww := nb.b.lww(); lww != (opts&mcbp.MetaLWW != 0) && rel >= rel46 {
			c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
			return w, false, true
		}
		w.datatype = c.datatypeOf(f, w.Value)
		return w, true, true
	}
	w.blind = w.blind || opts&mcbp.MetaSkipConflict != 0
	w.newCAS = opts&mcbp.MetaRegenerateCAS != 0
	w.expired = opts&optExpiration != 0 && rel >= rel65
	lww := opts&mcbp.MetaLWW != 0
	bad := false
	switch {
	case w.newCAS:
		bad = !w.blind || lww
	case nb.b.lww():
		bad = !lww
	default:
		bad = lww
	}
	if bad {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return w, false, true
	}
	w.datatype, ok, more = c.checkValue(f, w.Value, true)
	return w, ok, more
}

// parseLong decodes the forms with extended metadata, u16 length at the end of the
// extras: the metadata are let go.
func (w *metaRequest) parseLong(f *mcbp.Frame) error {
	x := f.Extras()
	n := int(x[len(x)-2])<<8 | int(x[len(x)-1])
	v := f.Value()
	if n > len(v) {
		return mcbp.ErrMalformed
	}
	short := *f
	short.ExtLen -= 2
	short.Body = append(append(append([]byte(nil), x[:len(x)-2]...), f.Key()...), v[:len(v)-n]...)
	return w.Parse(&short)
}

// lww reports that the bucket resolves conflicts by time.
func (b *Bucket) lww() bool { return b.cfg.ConflictResolution == "lww" }

// refusedCAS are the CAS values that no item has: without a request for a new one
// they are refused, force or not.
func refusedCAS(cas uint64) bool { return cas == 0 || cas == 1<<64-1 }

// conflict decides whether a *_WITH_META request is stored. The vbucket's lock is held.
func (c *conn) conflict(nb *nodeBucket, w *metaRequest, old *item, add bool) mcbp.Status {
	rel := c.n.c.rel
	switch {
	case rel.hasUsers() && !w.newCAS && refusedCAS(w.Meta.CAS),
		rel >= 400 && !rel.hasUsers() && w.Meta.CAS == 0 && !w.forced:
		return mcbp.StatusExists
	case nb.b.inProgress(w.coll, w.key):
		return mcbp.StatusSyncInProgress
	case add && old != nil && !old.deleted:
		return mcbp.StatusExists // force or not
	case old != nil && !w.blind && !wins(&w.Meta, old, nb.b.lww()):
		return mcbp.StatusExists
	}
	return mcbp.StatusOK
}

func (c *conn) setWithMeta(nb *nodeBucket, f *mcbp.Frame) bool {
	w, ok, more := c.parseMeta(nb, f)
	if !ok {
		return more
	}
	m, v := c.enter(nb, f, w.forced, w.coll)
	if v != serveIt {
		return v == refused
	}
	copy := &nb.copies[f.VBucket]
	old := copy.find(w.coll, w.key)
	status := c.conflict(nb, &w, old, f.Opcode == mcbp.OpAddWithMeta || f.Opcode == mcbp.OpAddQWithMeta)
	if status == mcbp.StatusOK && w.HeaderCAS != 0 {
		if old != nil && old.deleted {
			status = mcbp.StatusNotFound
		} else {
			status = casCheck(old, w.HeaderCAS)
		}
	}
	it := &item{
		key: string(w.key), coll: w.coll, value: bytesOf(w.Value), datatype: w.datatype,
		flags: w.Meta.Flags, expiry: copy.limitTTL(w.coll, w.Meta.Expiry), rev: w.Meta.Rev, cas: w.Meta.CAS,
	}
	if status == mcbp.StatusOK {
		if w.newCAS {
			it.cas = c.n.c.cas.next()
		}
		copy.force(c.n.c.rel)
		nb.write(m, f.VBucket, it)
	}
	uuid := copy.uuid
	m.mu.Unlock()
	c.written(f, status, w.Meta.CAS, uuid, it.seqno)
	return true
}

func (c *conn) deleteWithMeta(nb *nodeBucket, f *mcbp.Frame) bool {
	w, ok, more := c.parseMeta(nb, f)
	if !ok {
		return more
	}
	m, v := c.enter(nb, f, w.forced, w.coll)
	if v != serveIt {
		return v == refused
	}
	copy := &nb.copies[f.VBucket]
	old := copy.find(w.coll, w.key)
	tomb := &item{key: string(w.key), coll: w.coll, rev: w.Meta.Rev, cas: w.Meta.CAS, flags: w.Meta.Flags, deleted: true, byExpiry: w.expired}
	if c.n.c.rel.hasUsers() {
		// The expiry is the time of the deletion, and a deletion may carry a value.
		tomb.told = true
		tomb.deletedAt, tomb.value, tomb.datatype = w.Meta.Expiry, bytesOf(w.Value), w.datatype
	} else {
		c.n.c.stampDeletion(tomb)
	}
	status := c.conflict(nb, &w, old, false)
	stored := status == mcbp.StatusOK
	switch {
	case !stored:
	case w.HeaderCAS != 0:
		if old != nil && old.deleted {
			old = nil
		}
		status = casCheck(old, w.HeaderCAS)
		stored = status == mcbp.StatusOK
	case old == nil && w.forced && c.n.c.family == 2:
		// 2.5.1 answers "not found" and yet leaves a tombstone, with a CAS of its
		// own, in a replica; in an active vbucket it leaves none.
		status = mcbp.StatusNotFound
		stored = copy.state != mcbp.VBActive
		tomb.cas = c.n.c.cas.next()
	}
	if stored {
		if w.newCAS {
			tomb.cas = c.n.c.cas.next()
		}
		copy.force(c.n.c.rel)
		nb.write(m, f.VBucket, tomb)
	}
	uuid := copy.uuid
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
	c.written(f, status, cas, uuid, tomb.seqno)
	return true
}

// HoldKey makes a key answer 0xa2 to writes, as one with an open durable write
// does, until release is called.
func (b *Bucket) HoldKey(coll uint32, key []byte) (release func()) {
	b.heldMu.Lock()
	defer b.heldMu.Unlock()
	if b.held == nil {
		b.held = make(map[collKey]int)
	}
	k := collKey{coll, string(key)}
	b.held[k]++
	b.heldAny.Add(1)
	return sync.OnceFunc(func() {
		b.heldMu.Lock()
		defer b.heldMu.Unlock()
		if b.held[k]--; b.held[k] == 0 {
			delete(b.held, k)
		}
		b.heldAny.Add(-1)
	})
}

func (b *Bucket) inProgress(coll uint32, key []byte) bool {
	if b.heldAny.Load() == 0 {
		return false
	}
	b.heldMu.Lock()
	defer b.heldMu.Unlock()
	return b.held[collKey{coll, string(key)}] > 0
}

// force takes note of a write that 6.0 does not survive in the end: into a copy
// that was never active and never got a snapshot.
func (v *vcopy) force(rel release) {
	if !v.ready && rel >= rel50 && rel < rel65 {
		v.forced = true
	}
}
