package simcluster

import (
	"encoding/binary"

	"github.com/cbpump/cbpump/mcbp"
)

// tapPush serves one message of a client that pushes; false closes the connection.
func (c *conn) tapPush(f *mcbp.Frame) bool {
	if c.role == roleProducer {
		c.abort("a TAP message on a connection that sent TAP_CONNECT", f)
		return false
	}
	nb := c.bucket.Load()
	if nb == nil || nb.gone.Load() {
		return false
	}
	if nb.b.memcached() {
		c.reply(f, mcbp.StatusNotSupported, 0, nil, nil, nil)
		return false
	}
	var t mcbp.TapMessage
	if t.Parse(f) != nil {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return false
	}
	c.role = roleConsumer
	if t.TTL == 0 {
		return true // it came to the end of its hops
	}
	status := mcbp.StatusOK
	switch t.Opcode {
	case mcbp.OpTapMutation, mcbp.OpTapDelete:
		if len(t.Engine) < 8 && c.n.c.family >= 3 {
			c.abort("a TAP message with fewer than 8 engine bytes", f)
			return false
		}
		status = c.pushItem(nb, f, &t)
	case mcbp.OpTapOpaque:
		if cmd, ok := t.OpaqueCommand(); ok && cmd == mcbp.TapOpaqueInitialStream {
			status = c.pushReset(nb, t.VBucket)
		}
	case mcbp.OpTapVBucketSet:
		status = c.pushState(nb, &t)
	}
	if status != mcbp.StatusOK || t.WantsAck() {
		c.reply(f, status, 0, nil, nil, nil)
	}
	return true
}

func (c *conn) pushItem(nb *nodeBucket, f *mcbp.Frame, t *mcbp.TapMessage) mcbp.Status {
	if badKey(t.Key) {
		return mcbp.StatusInvalid
	}
	if len(t.Value) > maxItem {
		return mcbp.StatusTooBig
	}
	if int(t.VBucket) >= len(nb.copies) {
		return mcbp.StatusNotMyVBucket
	}
	it := &item{key: string(t.Key), cas: t.CAS, rev: max(t.Rev, 1), deleted: t.Opcode == mcbp.OpTapDelete}
	if it.deleted {
		c.n.c.stampDeletion(it)
	} else {
		it.value, it.flags, it.expiry = bytesOf(t.Value), t.Flags, t.Expiry
		it.datatype = c.datatypeOf(f, it.value)
	}
	if it.cas == 0 && c.n.c.family >= 4 {
		it.cas = c.n.c.cas.next()
	}
	m := nb.b.vbs[t.VBucket]
	m.mu.Lock()
	defer m.mu.Unlock()
	v := &nb.copies[t.VBucket]
	switch v.state {
	case mcbp.VBAbsent:
		return mcbp.StatusNotMyVBucket
	case mcbp.VBDead:
		if it.deleted {
			return mcbp.StatusOK // said to be done, and not done
		}
		return mcbp.StatusNotMyVBucket
	}
	if it.deleted && c.n.c.family == 2 && v.get(t.Key) == nil {
		it.cas = c.n.c.cas.next() // 2.5.1, of keys it never had
	}
	// No conflict resolution: an older item overwrites a newer one.
	nb.write(m, t.VBucket, it)
	c.n.faults.writes.Add(1)
	return mcbp.StatusOK
}

// pushReset empties a vbucket, which is what OPAQUE 1 means to a receiver.
func (c *conn) pushReset(nb *nodeBucket, vb uint16) mcbp.Status {
	if int(vb) >= len(nb.copies) {
		return mcbp.StatusNotMyVBucket
	}
	m := nb.b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	if nb.copies[vb].state == mcbp.VBAbsent {
		return mcbp.StatusNotMyVBucket
	}
	nb.copies[vb].reset()
	return mcbp.StatusOK
}

func (c *conn) pushState(nb *nodeBucket, t *mcbp.TapMessage) mcbp.Status {
	if len(t.Value) != 4 || int(t.VBucket) >= len(nb.copies) {
		return mcbp.StatusInvalid
	}
	s := mcbp.VBState(binary.BigEndian.Uint32(t.Value))
	if s < mcbp.VBActive || s > mcbp.VBDead {
		return mcbp.StatusInvalid
	}
	m := nb.b.vbs[t.VBucket]
	m.mu.Lock()
	defer m.mu.Unlock()
	nb.setState(m, t.VBucket, s)
	return mcbp.StatusOK
}
