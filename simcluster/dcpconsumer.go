package simcluster

import (
	"encoding/binary"
	"math/bits"

	"github.com/cbpump/cbpump/mcbp"
)

// dcpConsumer is a connection on which the client pushes, as another node's
// replication does. All of it runs in the connection's own goroutine.
type dcpConsumer struct {
	c      *conn
	nb     *nodeBucket
	opaque uint32 // of the node's own requests, counts up

	settled bool       // the CONTROLs were sent
	waiting int        // requests whose answers must come before STREAM_REQ
	queue   []addition // ADD_STREAMs that wait for that
	streams map[uint16]*inStream
	window  int
	unacked int // bytes taken and not yet acknowledged
}

// addition is an ADD_STREAM that is not answered yet.
type addition struct {
	vb     uint16
	opaque uint32 // of ADD_STREAM
}

// inStream is one vbucket's stream to the node.
type inStream struct {
	added   uint32 // opaque of ADD_STREAM
	opaque  uint32 // of the node's STREAM_REQ
	open    bool
	snapEnd uint64
}

func newDCPConsumer(c *conn, nb *nodeBucket) *dcpConsumer {
	return &dcpConsumer{c: c, nb: nb, streams: make(map[uint16]*inStream), window: 10 << 20}
}

// ask sends a request of the node's own, with an opaque that clients echo.
func (d *dcpConsumer) ask(op mcbp.Opcode, key, value string) {
	d.opaque++
	d.c.out = mcbp.AppendFrame(d.c.out, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: op, Opaque: bits.ReverseBytes32(d.opaque)}, nil, []byte(key), []byte(value))
	d.waiting++
}

// settle sends what a node settles before its first stream.
func (d *dcpConsumer) settle() {
	rel := d.c.n.c.rel
	buffer := "10485760"
	if rel.hasUsers() && rel < rel70 {
		d.window, buffer = 50<<20, "52428800"
	}
	d.opaque = 1 // 1 is the first stream's own
	d.ask(mcbp.OpDcpControl, "connection_buffer_size", buffer)
	if rel.hasUsers() {
		d.ask(mcbp.OpGetErrorMap, "", "\x00\x00")
	}
	d.ask(mcbp.OpDcpControl, "enable_noop", "true")
	d.ask(mcbp.OpDcpControl, "set_noop_interval", "1")
	if rel >= rel30 {
		d.ask(mcbp.OpDcpControl, "set_priority", "high")
	}
	if rel.major() >= 4 && rel < rel70 {
		d.ask(mcbp.OpDcpControl, "enable_ext_metadata", "true")
	}
	if rel.hasUsers() {
		d.ask(mcbp.OpDcpControl, "supports_cursor_dropping_vulcan", "true")
		d.ask(mcbp.OpDcpControl, "supports_hifi_MFU", "true")
		d.ask(mcbp.OpDcpControl, "send_stream_end_on_client_close_stream", "true")
	}
	if rel >= rel65 {
		d.ask(mcbp.OpDcpControl, "enable_expiry_opcode", "true")
	}
	if rel >= rel70 {
		d.ask(mcbp.OpDcpControl, "include_deleted_user_xattrs", "true")
		d.ask(mcbp.OpDcpControl, "v7_dcp_status_codes", "true")
	}
}

// request serves what the client sends as a request; false closes.
func (d *dcpConsumer) request(f *mcbp.Frame) bool {
	switch f.Opcode {
	case mcbp.OpDcpAddStream:
		d.add(f)
		return true
	case mcbp.OpDcpNoop:
		d.c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
		return true
	case mcbp.OpDcpControl:
		d.c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
		return true
	case mcbp.OpDcpCloseStream:
		status := mcbp.StatusNotFound
		if d.streams[f.VBucket] != nil {
			delete(d.streams, f.VBucket)
			status = mcbp.StatusOK
		}
		d.c.reply(f, status, 0, nil, nil, nil)
		return true
	}
	var m mcbp.DcpMessage
	if m.Parse(f) != nil {
		d.c.refuse(f, mcbp.StatusInvalid, "")
		return d.c.n.c.rel >= rel65
	}
	s := d.streams[f.VBucket]
	if s == nil || !s.open || s.opaque != f.Opaque {
		d.c.reply(f, mcbp.StatusNotFound, 0, nil, nil, nil)
		return true
	}
	status := mcbp.StatusOK
	switch f.Opcode {
	case mcbp.OpDcpSnapshotMarker:
		s.snapEnd = m.SnapEnd
		d.ready(f.VBucket)
	case mcbp.OpDcpMutation, mcbp.OpDcpDeletion, mcbp.OpDcpExpiration, mcbp.OpDcpSystemEvent:
		var r *refusal
		if r = d.take(s, &m); r != nil {
			status = r.status
			d.c.refuseWith(f, r)
		}
	case mcbp.OpDcpStreamEnd:
		delete(d.streams, f.VBucket)
	case mcbp.OpDcpSetVBucketState:
		d.setState(f)
	case mcbp.OpDcpSeqnoAdvanced:
	default:
		return false
	}
	if status == mcbp.StatusOK && f.Opcode == mcbp.OpDcpSetVBucketState {
		d.c.reply(f, status, 0, nil, nil, nil)
	}
	d.took(mcbp.HeaderLen + len(f.Body))
	return true
}

// took counts a message and acknowledges when a fifth of the window is taken.
func (d *dcpConsumer) took(n int) {
	d.unacked += n
	if d.unacked < d.window/5 {
		return
	}
	d.acknowledge()
}

func (d *dcpConsumer) acknowledge() {
	if d.unacked == 0 {
		return
	}
	d.c.out = mcbp.AppendDcpBufferAck(d.c.out, uint32(d.unacked))
	d.unacked = 0
}

// add serves ADD_STREAM: its answer comes when the client has answered STREAM_REQ.
func (d *dcpConsumer) add(f *mcbp.Frame) {
	if int(f.VBucket) >= len(d.nb.copies) {
		d.c.fail(f, mcbp.StatusNotMyVBucket)
		return
	}
	m := d.nb.b.vbs[f.VBucket]
	m.mu.Lock()
	state := d.nb.copies[f.VBucket].state
	m.mu.Unlock()
	switch {
	case state != mcbp.VBReplica && state != mcbp.VBPending:
		d.c.fail(f, mcbp.StatusNotMyVBucket)
		return
	case d.streams[f.VBucket] != nil:
		d.c.reply(f, mcbp.StatusExists, 0, nil, nil, nil)
		return
	}
	first := !d.settled
	d.streams[f.VBucket] = &inStream{added: f.Opaque}
	if first {
		// The stream's own number is given before those of the CONTROLs.
		d.settled = true
		d.streams[f.VBucket].opaque = bits.ReverseBytes32(1)
		d.settle()
	}
	d.queue = append(d.queue, addition{f.VBucket, f.Opaque})
	d.begin()
}

// begin sends STREAM_REQ for what was added, once everything is settled.
func (d *dcpConsumer) begin() {
	if d.waiting > 0 {
		return
	}
	for _, a := range d.queue {
		s := d.streams[a.vb]
		if s == nil {
			continue
		}
		if s.opaque == 0 {
			d.opaque++
			s.opaque = bits.ReverseBytes32(d.opaque)
		}
		m := d.nb.b.vbs[a.vb]
		m.mu.Lock()
		v := &d.nb.copies[a.vb]
		r := mcbp.StreamReq{VBucket: a.vb, Opaque: s.opaque, End: noSeqno}
		if v.high > 0 {
			r.Start, r.SnapStart, r.SnapEnd, r.UUID = v.high, v.high, v.high, v.uuid
		}
		m.mu.Unlock()
		d.c.out = r.Append(d.c.out)
	}
	d.queue = d.queue[:0]
}

// answered serves an answer of the client; false closes.
func (d *dcpConsumer) answered(f *mcbp.Frame) bool {
	if f.Opcode != mcbp.OpDcpStreamReq {
		if f.Opcode != mcbp.OpDcpNoop && d.waiting > 0 {
			d.waiting--
			d.begin()
		}
		return true
	}
	for vb, s := range d.streams {
		if s.opaque == f.Opaque && !s.open {
			return d.opened(vb, s, f)
		}
	}
	return true
}

// opened serves the answer to STREAM_REQ: the failover log that becomes the
// copy's, or a refusal. A rollback is followed.
func (d *dcpConsumer) opened(vb uint16, s *inStream, f *mcbp.Frame) bool {
	answer := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpDcpAddStream, Opaque: s.added, VBucket: uint16(f.Status())}
	var x [4]byte
	binary.BigEndian.PutUint32(x[:], bits.ReverseBytes32(s.opaque)) // in another byte order than headers
	switch f.Status() {
	case mcbp.StatusOK:
		log, err := mcbp.ParseFailoverLog(f.Value())
		if err != nil {
			return false
		}
		m := d.nb.b.vbs[vb]
		m.mu.Lock()
		v := &d.nb.copies[vb]
		v.flog, v.uuid = log, log[0].UUID
		m.mu.Unlock()
		s.open = true
		d.c.out = mcbp.AppendFrame(d.c.out, answer, x[:], nil, nil)
	case mcbp.StatusRollback:
		m := d.nb.b.vbs[vb]
		m.mu.Lock()
		d.nb.copies[vb].reset()
		m.mu.Unlock()
		d.queue = append(d.queue, addition{vb, s.added})
		d.begin()
	default:
		delete(d.streams, vb)
		d.c.out = mcbp.AppendFrame(d.c.out, answer, x[:], nil, nil)
	}
	return true
}

// ready marks the copy as one that got a snapshot.
func (d *dcpConsumer) ready(vb uint16) {
	m := d.nb.b.vbs[vb]
	m.mu.Lock()
	d.nb.copies[vb].ready = true
	m.mu.Unlock()
}

// take stores one pushed item or event as it is.
func (d *dcpConsumer) take(s *inStream, t *mcbp.DcpMessage) *refusal {
	vb := t.VBucket
	m := d.nb.b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	v := &d.nb.copies[vb]
	switch {
	case v.state != mcbp.VBReplica && v.state != mcbp.VBPending:
		return &refusal{status: mcbp.StatusNotMyVBucket, body: nil}
	case t.Seqno <= v.high, t.Seqno > s.snapEnd:
		return &refusal{status: mcbp.StatusRange, body: nil}
	}
	if t.Opcode == mcbp.OpDcpSystemEvent {
		e, ok := parseEvent(t)
		if !ok || !d.c.n.c.rel.hasCollections() {
			return &refusal{status: mcbp.StatusInvalid, body: nil}
		}
		v.event(e, t.Seqno)
		return nil
	}
	coll, key := uint32(0), t.Key
	if d.c.has(mcbp.FeatureCollections) {
		var n int
		if coll, key, n = leb128(t.Key); n == 0 {
			return &refusal{status: mcbp.StatusInvalid, body: nil}
		}
		if !v.knows(coll) {
			return unknownCollection(mcbp.StatusUnknownCollection, v.manifestUID())
		}
	}
	if badKey(key) {
		return &refusal{status: mcbp.StatusInvalid, body: nil}
	}
	it := &item{
		key: string(key), coll: coll, value: bytesOf(t.Value), cas: t.CAS, rev: t.Rev, seqno: t.Seqno, datatype: t.Datatype,
		flags: t.Flags, expiry: t.Expiry,
	}
	if t.Opcode != mcbp.OpDcpMutation {
		it.deleted, it.expiry, it.deletedAt, it.byExpiry = true, 0, t.Expiry, t.Opcode == mcbp.OpDcpExpiration
		it.told = d.c.n.c.rel.hasUsers()
		if t.Expiry == 0 {
			d.c.n.c.stampDeletion(it)
		}
	}
	d.nb.write(m, vb, it)
	d.c.n.faults.writes.Add(1)
	return nil
}

func (d *dcpConsumer) setState(f *mcbp.Frame) {
	x := f.Extras()
	if len(x) != 1 || x[0] < 1 || x[0] > 4 {
		return
	}
	m := d.nb.b.vbs[f.VBucket]
	m.mu.Lock()
	d.nb.setState(m, f.VBucket, mcbp.VBState(x[0]))
	m.mu.Unlock()
}
