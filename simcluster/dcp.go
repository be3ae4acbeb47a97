package simcluster

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/mcbp"
)

const (
	// dcpBatch is how many bytes of a stream are gathered before a write.
	dcpBatch = 256 << 10
	// dcpWarmth is the offset of the last byte of a mutation's extras, which says how
	// warm an item is.
	dcpWarmth = mcbp.HeaderLen + 30

	markerMemory = 1
	markerDisk   = 2
	markerCkpt   = 4

	flagNotifier = 0x02

	endOK           = 0
	endClosed       = 1
	endState        = 2
	endFilterEmpty  = 7
	noSeqno         = 1<<64 - 1
	ckptOpenDefault = 5 * time.Second
)

// wakeup is what a sender sleeps on.
type wakeup struct{ c chan struct{} }

func (w *wakeup) wake() {
	select {
	case w.c <- struct{}{}:
	default:
	}
}

// dcpProducer serves the streams of one connection. Requests are served by the
// connection's own goroutine, streams are sent by another one; mu is between them.
type dcpProducer struct {
	c      *conn
	nb     *nodeBucket
	name   string
	xattrs bool
	noVal  bool
	times  bool
	wakeup

	mu      sync.Mutex
	streams []*dcpStream
	window  int // connection_buffer_size, 0 = no flow control
	unacked int
	noop    bool
	every   time.Duration // between NOOPs
	expiry  bool          // expirations have an opcode of their own
	deflate bool          // force_value_compression
	// streamIDs were asked for, which are not played: STREAM_REQ refuses them.
	streamIDs bool
	endMsg    bool // CLOSE_STREAM is followed by a STREAM_END
	cutAt     int

	// Of the sending goroutine only.
	out      []byte
	key      []byte
	msg      mcbp.DcpMessage
	sent     int // bytes so far, for cutAt
	turn     int
	noopNum  uint32
	noopAt   time.Time
	awaiting bool // a NOOP is not answered; guarded by mu
}

// dcpStream is the stream of one vbucket.
type dcpStream struct {
	vb     uint16
	opaque uint32
	life   int // of the copy when it began
	end    uint64
	marker uint64 // start of the first snapshot marker
	first  bool
	filter *streamFilter // nil = everything

	pos   uint64  // everything up to here was sent
	items []*item // of the snapshot under way
	at    int
	upTo  uint64 // end of the snapshot under way
	last  uint64 // the last seqno that was sent
	open  bool   // a snapshot is under way
	disk  bool   // which comes from disk

	status  uint32 // to end with, when dropped
	dropped bool
	waiting bool
	// answering: the request is being answered, and nothing is sent before that.
	answering bool
}

// errStall keeps the connection open and silent.
var errStall = errors.New("stalled by a fault")

// dcpOpen serves DCP_OPEN; false closes the connection.
func (c *conn) dcpOpen(nb *nodeBucket, f *mcbp.Frame) bool {
	rel := c.n.c.rel
	keep := rel >= rel70 // older ones close after a refusal
	x := f.Extras()
	if len(x) != 8 || len(f.Key()) == 0 {
		c.refuse(f, mcbp.StatusInvalid, "Request must include key")
		return keep
	}
	flags := binary.BigEndian.Uint32(x[4:])
	known := uint32(mcbp.DcpOpenProducer | flagNotifier)
	if rel >= rel50 {
		known |= mcbp.DcpOpenXattrs | mcbp.DcpOpenNoValue | mcbp.DcpOpenDeleteTimes
	}
	if rel >= rel50 && rel < rel70 {
		known |= 0x10 // collections, before they had HELLO
	}
	if rel >= rel70 {
		known |= 0x40 | 0x80 // no value with the datatype's bits, PiTR
	}
	if flags&^known != 0 || flags&mcbp.DcpOpenProducer != 0 && flags&flagNotifier != 0 {
		c.refuse(f, mcbp.StatusInvalid, "Request contains invalid flags")
		return keep
	}
	if len(f.Value()) > 0 && f.Datatype&uint8(mcbp.DatatypeJSON) == 0 && rel >= rel70 {
		c.refuse(f, mcbp.StatusInvalid, "datatype should be set to JSON for non-empty value")
		return keep
	}
	if c.role != rolePlain {
		return false
	}
	if flags&mcbp.DcpOpenProducer == 0 && rel.hasUsers() && !c.user.may(privConsumer, nb.b.cfg.Name) {
		return c.without(f, privConsumer)
	}
	if c.flush() != nil {
		return false
	}
	name := string(f.Key())
	c.n.takeName(c, nb, name)
	if flags&mcbp.DcpOpenProducer == 0 {
		c.role = roleDCPConsumer
		c.consumer = newDCPConsumer(c, nb)
		c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
		return true
	}
	c.role = roleDCPProducer
	c.dcp = &dcpProducer{
		c: c, nb: nb, name: name, wakeup: wakeup{make(chan struct{}, 1)},
		xattrs: flags&mcbp.DcpOpenXattrs != 0 || rel < rel50, noVal: flags&mcbp.DcpOpenNoValue != 0,
		times: flags&mcbp.DcpOpenDeleteTimes != 0, every: 180 * time.Second,
	}
	c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
	if c.flush() != nil {
		return false
	}
	p := c.dcp
	c.producer.Store(p)
	c.workers.Go(func() {
		if err := p.run(); err != nil && !errors.Is(err, errStall) {
			c.n.c.log.Debug("streams ended early", "node", c.n.OTP(), "name", name, "why", err)
			c.close()
		}
		p.unwatch()
	})
	return true
}

// takeName closes an older DCP connection of the same name to the same bucket:
// names are unique, and the newcomer wins.
func (n *Node) takeName(c *conn, nb *nodeBucket, name string) {
	n.mu.Lock()
	key := dcpName{nb, name}
	old := n.dcpNames[key]
	if n.dcpNames == nil {
		n.dcpNames = make(map[dcpName]*conn)
	}
	n.dcpNames[key] = c
	c.dcpKey = key
	n.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// freeName takes a connection off the list of names.
func (n *Node) freeName(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.dcpKey.nb != nil && n.dcpNames[c.dcpKey] == c {
		delete(n.dcpNames, c.dcpKey)
	}
}

type dcpName struct {
	nb   *nodeBucket
	name string
}

// dcpRequest serves the requests that a producer's client may send; false closes
// the connection.
func (c *conn) dcpRequest(nb *nodeBucket, f *mcbp.Frame) bool {
	p := c.dcp
	switch f.Opcode {
	case mcbp.OpDcpOpen:
		return c.dcpOpen(nb, f)
	case mcbp.OpDcpFailoverLog:
		if c.role < roleDCPProducer && c.n.c.rel >= rel65 {
			c.refuse(f, mcbp.StatusInvalid, "The command can only be sent on a DCP connection")
			return c.n.c.rel >= rel70
		}
		c.failoverLog(nb, f)
		return true
	}
	if c.role == roleDCPConsumer {
		return c.consumer.request(f)
	}
	if p == nil {
		if c.n.c.rel >= rel70 {
			c.refuse(f, mcbp.StatusInvalid, "The command can only be sent on a DCP connection")
			return true
		}
		return false
	}
	switch f.Opcode {
	case mcbp.OpDcpControl:
		c.reply(f, p.control(string(f.Key()), string(f.Value())), 0, nil, nil, nil)
	case mcbp.OpDcpStreamReq:
		return p.streamReq(f)
	case mcbp.OpDcpCloseStream:
		p.closeStream(f)
	case mcbp.OpDcpBufferAck:
		if x := f.Extras(); len(x) == 4 {
			p.mu.Lock()
			p.unacked = max(0, p.unacked-int(binary.BigEndian.Uint32(x)))
			p.mu.Unlock()
			p.wake()
			return true
		}
		c.refuse(f, mcbp.StatusInvalid, "")
	case mcbp.OpDcpNoop:
		c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
	default:
		// A producer is not sent stream messages.
		return false
	}
	return true
}

func (c *conn) failoverLog(nb *nodeBucket, f *mcbp.Frame) {
	if int(f.VBucket) < len(nb.copies) {
		m := nb.b.vbs[f.VBucket]
		m.mu.Lock()
		v := &nb.copies[f.VBucket]
		state, body := v.state, mcbp.AppendFailoverLog(nil, v.flog)
		m.mu.Unlock()
		if state != mcbp.VBAbsent {
			c.reply(f, mcbp.StatusOK, 0, nil, nil, body)
			return
		}
	}
	c.fail(f, mcbp.StatusNotMyVBucket)
}

func (p *dcpProducer) control(key, value string) mcbp.Status {
	rel := p.c.n.c.rel
	on := value == "true"
	p.mu.Lock()
	defer p.mu.Unlock()
	switch key {
	case "connection_buffer_size":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return mcbp.StatusInvalid
		}
		p.window = int(n)
	case "enable_noop":
		p.noop, p.noopAt = on, time.Time{}
	case "set_noop_interval":
		n, err := strconv.ParseFloat(value, 64)
		if err != nil || n <= 0 {
			return mcbp.StatusInvalid
		}
		p.every, p.noopAt = time.Duration(n*float64(time.Second)), time.Time{}
	case "set_priority":
		if value != "high" && value != "medium" && value != "low" {
			return mcbp.StatusInvalid
		}
	case "stream_buffer_size":
		return mcbp.StatusNotSupported
	case "enable_ext_metadata":
		if rel >= rel70 || rel < rel46 && rel.major() < 4 {
			return mcbp.StatusInvalid
		}
	case "force_value_compression":
		if rel < rel55 || !p.c.has(mcbp.FeatureSnappy) {
			return mcbp.StatusInvalid
		}
		p.deflate = on
	case "supports_cursor_dropping", "supports_cursor_dropping_vulcan":
		if rel < rel46 {
			return mcbp.StatusInvalid
		}
	case "supports_hifi_MFU":
		if rel < rel50 {
			return mcbp.StatusInvalid
		}
	case "send_stream_end_on_client_close_stream":
		if rel < rel55 {
			return mcbp.StatusInvalid
		}
		p.endMsg = on
	case "enable_expiry_opcode":
		if rel < rel65 {
			return mcbp.StatusInvalid
		}
		p.expiry = on
	case "enable_sync_writes":
		return mcbp.StatusNotSupported // durable writes are not played
	case "enable_stream_id", "enable_out_of_order_snapshots", "consumer_name", "v7_dcp_status_codes":
		if rel < rel70 {
			return mcbp.StatusInvalid
		}
		p.streamIDs = p.streamIDs || key == "enable_stream_id" && on
	case "max_marker_version", "change_streams":
		if rel < rel76 {
			return mcbp.StatusInvalid
		}
	default:
		return mcbp.StatusInvalid
	}
	p.wake()
	return mcbp.StatusOK
}

// streamReq serves STREAM_REQ; false closes the connection.
func (p *dcpProducer) streamReq(f *mcbp.Frame) bool {
	c := p.c
	var r mcbp.StreamReq
	if r.Parse(f) != nil {
		c.refuse(f, mcbp.StatusInvalid, "")
		return c.n.c.rel >= rel70
	}
	collections := c.has(mcbp.FeatureCollections)
	p.mu.Lock()
	noop := p.noop && !p.streamIDs
	twice := p.find(r.VBucket) != nil
	p.mu.Unlock()
	if p.streamIDs || !noop && (collections || p.xattrs && c.n.c.rel >= rel50) {
		c.reply(f, mcbp.StatusNotSupported, 0, nil, nil, nil)
		return true
	}
	if int(r.VBucket) >= len(p.nb.copies) {
		c.fail(f, mcbp.StatusNotMyVBucket)
		return true
	}
	m := p.nb.b.vbs[r.VBucket]
	m.mu.Lock()
	v := &p.nb.copies[r.VBucket]
	s := &dcpStream{
		vb: r.VBucket, opaque: r.Opaque, life: v.life, end: r.End, marker: r.SnapStart, first: true, pos: r.Start, last: r.Start,
	}
	status, why := v.admit(&r, c.n.c.rel)
	if status == mcbp.StatusOK && v.forced && r.End == noSeqno {
		m.mu.Unlock()
		c.abort("an endless stream of a vbucket that was written by force before it was ever active", f)
		return false
	}
	var body []byte
	switch {
	case status == mcbp.StatusOK && twice:
		status = mcbp.StatusExists
	case status == mcbp.StatusRollback:
		body = binary.BigEndian.AppendUint64(nil, why)
	case status == mcbp.StatusOK:
		var refusal *refusal
		if s.filter, refusal = c.streamFilter(v, f); refusal != nil {
			m.mu.Unlock()
			c.refuseWith(f, refusal)
			return true
		}
		body = mcbp.AppendFailoverLog(nil, v.flog)
	}
	m.mu.Unlock()
	if status == mcbp.StatusNotMyVBucket {
		c.fail(f, status)
		return true
	}
	if status == mcbp.StatusOK { // who has the answer finds the stream
		s.answering = true
		p.mu.Lock()
		p.streams = append(p.streams, s)
		p.mu.Unlock()
	}
	c.reply(f, status, 0, nil, nil, body)
	if status != mcbp.StatusOK {
		return true
	}
	if c.flush() != nil { // the answer goes before the stream
		return false
	}
	cutAt, _ := c.n.faults.strikeStream([]uint16{r.VBucket})
	p.mu.Lock()
	s.answering = false
	if cutAt > 0 {
		p.cutAt = cutAt
	}
	p.mu.Unlock()
	p.wake()
	return true
}

// admit decides on a STREAM_REQ by the state and the history of the copy; with
// StatusRollback it gives the seqno to go back to. The vbucket's lock is held.
func (v *vcopy) admit(r *mcbp.StreamReq, rel release) (mcbp.Status, uint64) {
	switch {
	case v.state == mcbp.VBAbsent, v.state == mcbp.VBDead && rel >= rel50:
		return mcbp.StatusNotMyVBucket, 0
	case r.Start > r.End, r.SnapStart > r.Start, r.SnapEnd < r.Start:
		return mcbp.StatusRange, 0
	case !v.ready && rel >= rel50 && rel < rel65:
		return mcbp.StatusTmpFail, 0 // a replica that never got a snapshot
	case r.Start == 0:
		return mcbp.StatusOK, 0
	}
	snapStart, snapEnd := r.SnapStart, r.SnapEnd
	if r.Start == snapEnd {
		snapStart = r.Start
	}
	if r.Start == snapStart {
		snapEnd = r.Start
	}
	upper := v.high
	for _, e := range v.flog {
		if e.UUID != r.UUID {
			upper = e.Seqno
			continue
		}
		switch {
		case snapEnd <= upper:
			return mcbp.StatusOK, 0
		case snapStart > upper:
			return mcbp.StatusRollback, upper
		}
		return mcbp.StatusRollback, snapStart
	}
	return mcbp.StatusRollback, 0 // a branch that this server never had
}

func (p *dcpProducer) find(vb uint16) *dcpStream {
	i := slices.IndexFunc(p.streams, func(s *dcpStream) bool { return s.vb == vb && !s.dropped })
	if i < 0 {
		return nil
	}
	return p.streams[i]
}

func (p *dcpProducer) closeStream(f *mcbp.Frame) {
	p.mu.Lock()
	s := p.find(f.VBucket)
	end := p.endMsg
	if s != nil && !end {
		s.dropped, s.status = true, noEnd
	}
	p.mu.Unlock()
	status := mcbp.StatusOK
	if s == nil {
		status = mcbp.StatusNotFound
	}
	p.c.reply(f, status, 0, nil, nil, nil)
	if s == nil || !end {
		p.wake()
		return
	}
	p.c.flush()
	p.drop(s, endClosed)
}

// noEnd drops a stream without a STREAM_END.
const noEnd = 1<<32 - 1

func (p *dcpProducer) drop(s *dcpStream, status uint32) {
	p.mu.Lock()
	if !s.dropped {
		s.dropped, s.status = true, status
	}
	p.mu.Unlock()
	p.wake()
}

// answered is called with the client's answer to a request of ours.
func (p *dcpProducer) answered(f *mcbp.Frame) {
	if f.Opcode != mcbp.OpDcpNoop {
		return
	}
	p.mu.Lock()
	p.awaiting = false
	p.mu.Unlock()
}

// run sends what the streams have until the connection ends.
func (p *dcpProducer) run() error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		// The write lock is taken first, so that an answer that is written later
		// never comes before messages that were gathered earlier.
		p.c.wmu.Lock()
		p.mu.Lock()
		err := p.gather()
		wait := p.keepAlive(&err)
		p.mu.Unlock()
		idle := len(p.out) == 0
		if werr := p.write(); werr != nil && err == nil {
			err = werr
		}
		p.c.wmu.Unlock()
		switch {
		case errors.Is(err, errStall):
			<-p.c.done
			return err
		case errors.Is(err, errDied):
			p.c.n.Kill()
			return err
		case err != nil:
			return err
		}
		if !idle {
			continue
		}
		timer.Reset(wait)
		select {
		case <-p.wakeup.c:
		case <-timer.C:
		case <-p.c.done:
			return nil
		}
	}
}

// keepAlive sends a NOOP when one is due and says how long to wait for the next.
// A client that has not answered the last one is let go. mu is held.
func (p *dcpProducer) keepAlive(err *error) time.Duration {
	if !p.noop || len(p.streams) == 0 || *err != nil {
		p.noopAt = time.Time{}
		return time.Hour
	}
	now := time.Now()
	if p.noopAt.IsZero() {
		p.noopAt = now.Add(p.every)
	}
	if wait := p.noopAt.Sub(now); wait > 0 {
		return wait
	}
	if p.awaiting {
		*err = errNack
		return time.Hour
	}
	p.awaiting = true
	p.noopAt = now.Add(p.every)
	p.noopNum++
	opaque := bits.ReverseBytes32(10_000_000 + p.noopNum)
	p.out = mcbp.AppendFrame(p.out, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpDcpNoop, Opaque: opaque}, nil, nil, nil)
	return p.every
}

// write sends what was gathered. The connection's write lock is held.
func (p *dcpProducer) write() error {
	if len(p.out) == 0 {
		return nil
	}
	var cut error
	p.mu.Lock()
	if p.cutAt > 0 && p.sent+len(p.out) >= p.cutAt {
		p.out, cut = p.out[:max(0, p.cutAt-p.sent)], errCut
	}
	p.mu.Unlock()
	p.sent += len(p.out)
	_, err := p.c.nc.Write(p.out)
	p.out = p.out[:0]
	return errors.Join(err, cut)
}

// gather fills the batch from all streams in turn. mu is held.
func (p *dcpProducer) gather() error {
	for i := range p.streams {
		p.streams[i].waiting = false
	}
	for busy := 0; len(p.out) < dcpBatch && busy < len(p.streams); {
		if p.turn >= len(p.streams) {
			p.turn = 0
		}
		s := p.streams[p.turn]
		more, err := p.serve(s)
		if err != nil {
			return err
		}
		if s.dropped && s.status == noEnd {
			p.streams = slices.Delete(p.streams, p.turn, p.turn+1)
			p.leave(s)
			busy = 0
			continue
		}
		if more {
			busy = 0
		} else {
			busy++
		}
		p.turn++
	}
	return nil
}

// full reports that the client must acknowledge before more is sent.
func (p *dcpProducer) full() bool { return p.window > 0 && p.unacked >= p.window }

// slice is how many bytes one stream may add before it is another one's turn.
const slice = 32 << 10

// serve sends what one stream has; more says that there is something left, or
// that it ended. mu is held.
func (p *dcpProducer) serve(s *dcpStream) (more bool, err error) {
	if s.answering || s.waiting || p.full() {
		return false, nil
	}
	until := len(p.out) + slice
	for len(p.out) < until && !p.full() {
		if s.dropped {
			if s.status != noEnd {
				err = p.send(s, &mcbp.DcpMessage{Opcode: mcbp.OpDcpStreamEnd, Flags: s.status})
				s.status = noEnd
			}
			return true, err
		}
		switch {
		case s.open && s.at < len(s.items):
			it := s.items[s.at]
			s.at++
			if s.filter.wants(it) {
				s.last = it.seqno
				err = p.item(s, it)
			}
			if it.event != nil && s.filter.emptied(it) {
				s.dropped, s.status = true, s.filter.endStatus()
			}
		case s.open:
			s.open = false
			s.pos = s.upTo
			if s.filter.advances() && s.last < s.upTo {
				err = p.send(s, &mcbp.DcpMessage{Opcode: mcbp.OpDcpSeqnoAdvanced, Seqno: s.upTo})
				s.last = s.upTo
			}
		default:
			var ok bool
			if ok, err = p.snapshot(s); !ok && err == nil {
				s.waiting = true
				return false, nil
			}
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// snapshot begins the next snapshot of a stream, or ends the stream; false means
// that there is nothing to do. mu is held.
func (p *dcpProducer) snapshot(s *dcpStream) (bool, error) {
	m := p.nb.b.vbs[s.vb]
	m.mu.Lock()
	v := &p.nb.copies[s.vb]
	if v.life != s.life {
		m.mu.Unlock()
		s.dropped, s.status = true, endState
		return true, nil
	}
	if s.pos >= s.end {
		m.mu.Unlock()
		s.dropped, s.status = true, endOK
		return true, nil
	}
	high := v.high
	if s.filter.legacy() {
		high = v.defHigh
		if !v.knows(0) {
			m.mu.Unlock()
			s.dropped, s.status = true, endOK // the default collection was dropped
			return true, nil
		}
		if high <= s.pos && s.end <= v.high && p.checkpointOpen(v) {
			m.mu.Unlock()
			s.dropped, s.status = true, endOK
			return true, nil
		}
	}
	if high <= s.pos {
		if !slices.Contains(v.watch, &p.wakeup) {
			v.watch = append(v.watch, &p.wakeup)
		}
		m.mu.Unlock()
		return false, nil
	}
	s.disk = false
	disk := s.first && p.c.n.c.cfg.DCPFromDisk
	s.upTo = high
	if !disk || p.c.n.c.rel >= rel65 {
		s.upTo = min(high, s.end) // 6.0 sends the whole of a backfill
	}
	s.items, s.at, s.open = v.since(s.items[:0], s.pos, s.upTo), 0, true
	m.mu.Unlock()
	mk := mcbp.DcpMessage{Opcode: mcbp.OpDcpSnapshotMarker, Seqno: s.pos + 1, SnapEnd: s.upTo, Flags: markerMemory}
	if s.first {
		mk.Seqno = s.marker
		mk.Flags |= markerCkpt
		if disk {
			s.disk = true
			mk.Flags = markerDisk
			if p.c.n.c.rel >= rel65 {
				mk.Flags |= markerCkpt
			}
		}
		s.first = false
	}
	return true, p.send(s, &mk)
}

// checkpointOpen is whether a stream that asks for more than its own collection
// has is ended: only as long as the checkpoint of the last write is open.
func (p *dcpProducer) checkpointOpen(v *vcopy) bool {
	open := p.c.n.c.cfg.CheckpointOpen
	if open == 0 {
		open = ckptOpenDefault
	}
	return v.defHigh > 0 && open > 0 && time.Since(time.Unix(0, v.lastWrite)) < open
}

// item sends one item in the form that the client negotiated. mu is held.
func (p *dcpProducer) item(s *dcpStream, it *item) error {
	m := &p.msg
	if it.event != nil {
		*m = it.event.message(it.seqno)
		return p.send(s, m)
	}
	*m = mcbp.DcpMessage{
		Opcode: mcbp.OpDcpMutation, Datatype: it.datatype, CAS: it.cas, Seqno: it.seqno, Rev: it.rev,
		Flags: it.flags, Expiry: it.expiry, Value: it.value,
	}
	times := p.times
	if it.deleted {
		m.Opcode, m.Flags, m.Expiry = mcbp.OpDcpDeletion, 0, it.deletedAt
		if it.byExpiry && p.expiry {
			m.Opcode, times = mcbp.OpDcpExpiration, true
		}
	}
	if p.noVal && it.datatype&dtXattr != 0 && p.c.n.c.rel >= rel65 && p.c.n.c.rel < rel70 {
		p.c.n.c.log.Warn("the server aborts", "node", p.c.n.OTP(), "why", "a stream without values meets extended attributes")
		return errDied
	}
	if it.datatype != 0 || p.noVal || p.deflate || it.deleted {
		p.convert(s, m, it)
	}
	p.key = p.key[:0]
	if s.filter.prefixed() {
		p.key = mcbp.AppendCollectionID(p.key, it.coll)
	}
	p.key = append(p.key, it.key...)
	m.Key = p.key
	return p.sendAs(s, m, times)
}

// convert takes from a value what the client did not negotiate.
func (p *dcpProducer) convert(s *dcpStream, m *mcbp.DcpMessage, it *item) {
	const snap, xattr = uint8(mcbp.DatatypeSnappy), uint8(mcbp.DatatypeXattr)
	if p.noVal {
		m.Value = nil
		if it.deleted {
			m.Datatype = 0
		}
		return
	}
	strip := m.Datatype&xattr != 0 && !p.xattrs
	if m.Datatype&snap != 0 && (strip || !p.c.has(mcbp.FeatureSnappy)) {
		if v, err := snappy.Decode(nil, m.Value); err == nil {
			m.Value, m.Datatype = v, m.Datatype&^snap
		}
	}
	if strip {
		m.Value, m.Datatype = withoutXattrs(m.Value), m.Datatype&^xattr
		if it.deleted {
			m.Value = nil
		}
	}
	if it.deleted && s.disk && p.c.n.c.rel < rel65 && m.Datatype&snap == 0 && len(m.Value) > 0 && p.c.has(mcbp.FeatureSnappy) {
		// 6.0 keeps the values of deletions compressed on disk, and sends them so.
		m.Value, m.Datatype = snappy.Encode(nil, m.Value), m.Datatype|snap
	}
	if p.deflate && m.Datatype&snap == 0 && len(m.Value) > 0 {
		if v := snappy.Encode(nil, m.Value); len(v) < len(m.Value) {
			m.Value, m.Datatype = v, m.Datatype|snap
		}
	}
}

// withoutXattrs is the body behind the extended attributes.
func withoutXattrs(v []byte) []byte {
	if len(v) < 4 {
		return v
	}
	n := binary.BigEndian.Uint32(v)
	if uint64(n)+4 > uint64(len(v)) {
		return v
	}
	return v[4+n:]
}

func (p *dcpProducer) send(s *dcpStream, m *mcbp.DcpMessage) error { return p.sendAs(s, m, p.times) }

// sendAs appends a message to the batch, with the faults that are armed. mu is held.
func (p *dcpProducer) sendAs(s *dcpStream, m *mcbp.DcpMessage, times bool) error {
	m.VBucket, m.Opaque = s.vb, s.opaque
	start := len(p.out)
	p.out = m.Append(p.out, times)
	if m.Opcode == mcbp.OpDcpMutation {
		p.out[start+dcpWarmth] = 2
	}
	p.unacked += len(p.out) - start
	f := p.c.n.faults.strike(m.Opcode, m.VBucket)
	if f == nil {
		return nil
	}
	switch f.Action {
	case CutMidFrame:
		p.out = p.out[:start+(len(p.out)-start)/2]
	case DropAfterEffect:
	default:
		p.out = p.out[:start]
	}
	switch f.Action {
	case Stall:
		return errStall
	case Die:
		return errDied
	}
	return errCut
}

// leave takes the sender off the list of those that a copy wakes. mu is held.
func (p *dcpProducer) leave(s *dcpStream) {
	m := p.nb.b.vbs[s.vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	v := &p.nb.copies[s.vb]
	v.watch = slices.DeleteFunc(v.watch, func(w *wakeup) bool { return w == &p.wakeup })
}

func (p *dcpProducer) unwatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.streams {
		p.leave(s)
	}
	p.streams = nil
}

// allVBSeqnos serves GET_ALL_VB_SEQNOS: extras u32 state [u32 collection].
func (c *conn) allVBSeqnos(nb *nodeBucket, f *mcbp.Frame) {
	x := f.Extras()
	var state mcbp.VBState
	coll, byColl := uint32(0), false
	if len(x) != 0 && len(x) != 4 && (len(x) != 8 || !c.n.c.rel.hasCollections()) {
		c.refuse(f, mcbp.StatusInvalid, "")
		return
	}
	if len(x) >= 4 {
		state = mcbp.VBState(binary.BigEndian.Uint32(x))
	}
	withCollections := c.has(mcbp.FeatureCollections)
	if len(x) == 8 && withCollections {
		coll, byColl = binary.BigEndian.Uint32(x[4:]), true
		if !nb.b.knows(coll) {
			c.unknownCollection(f, nb.b.manifestUID())
			return
		}
	}
	legacy := c.n.c.rel.hasCollections() && !withCollections
	var body []byte
	if !c.n.c.cfg.WarmUp {
		nb.eachCopy(func(vb uint16, v *vcopy) {
			if state != 0 && v.state != state || state == 0 && v.state == mcbp.VBDead {
				return
			}
			high := v.high
			switch {
			case byColl || legacy:
				var ok bool
				if high, ok = v.collHigh(coll); !ok {
					return
				}
			}
			body = binary.BigEndian.AppendUint16(body, vb)
			body = binary.BigEndian.AppendUint64(body, high)
		})
	}
	c.reply(f, mcbp.StatusOK, 0, nil, nil, body)
}

// Rollback makes the published copies of a vbucket lose what came after a seqno
// and begin a new branch, as a failover to a replica that lagged behind does.
// Streams of it end. A key whose kept version is among the lost is gone.
func (b *Bucket) Rollback(vb uint16, to uint64) error {
	if int(vb) >= len(b.vbs) {
		return ErrNoActive
	}
	m := b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.chain) == 0 || m.chain[0] == nil {
		return ErrNoActive
	}
	var flog []mcbp.FailoverEntry
	for i, nb := range m.chain {
		if nb == nil || nb.copies[vb].state == mcbp.VBAbsent {
			continue
		}
		v := &nb.copies[vb]
		kept := slices.DeleteFunc(slices.Clone(v.log), func(it *item) bool { return it == nil || it.seqno > to })
		uuid := v.flog
		w := vcopy{state: v.state, uuid: v.uuid, flog: uuid, ready: v.ready, watch: v.watch, life: v.life + 1, colls: v.colls}
		for _, it := range kept {
			w.put(it)
		}
		w.high = min(to, v.high)
		*v = w
		if i == 0 {
			// Branches that began later are no part of the history any more.
			v.flog = slices.DeleteFunc(slices.Clone(v.flog), func(e mcbp.FailoverEntry) bool { return e.Seqno > v.high })
			nb.branch(v)
			flog = v.flog
		}
		v.flog, v.uuid = flog, flog[0].UUID
		v.wake()
	}
	return nil
}

// FailoverLog returns the history of the active copy, newest branch first.
func (b *Bucket) FailoverLog(vb uint16) []mcbp.FailoverEntry {
	if int(vb) >= len(b.vbs) {
		return nil
	}
	m := b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.chain) == 0 || m.chain[0] == nil {
		return nil
	}
	return slices.Clone(m.chain[0].copies[vb].flog)
}

// HighSeqno is the high seqno of the active copy of a vbucket.
func (b *Bucket) HighSeqno(vb uint16) uint64 {
	if int(vb) >= len(b.vbs) {
		return 0
	}
	m := b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.chain) == 0 || m.chain[0] == nil {
		return 0
	}
	return m.chain[0].copies[vb].high
}

// EndStreams ends the node's DCP streams of a vbucket with a status (2 state
// changed, 4 too slow, 5 backfill failed …) and returns how many there were.
func (n *Node) EndStreams(bucket string, vb uint16, status uint32) int {
	nb := n.bucket(bucket)
	ended := 0
	n.mu.Lock()
	conns := make([]*conn, 0, len(n.conns))
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	for _, c := range conns {
		p := c.producer.Load()
		if p == nil || p.nb != nb {
			continue
		}
		p.mu.Lock()
		if s := p.find(vb); s != nil {
			s.dropped, s.status = true, status
			ended++
		}
		p.mu.Unlock()
		p.wake()
	}
	return ended
}

// Streams is the number of DCP streams that are open on the node.
func (n *Node) Streams() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	open := 0
	for c := range n.conns {
		if p := c.producer.Load(); p != nil {
			p.mu.Lock()
			open += len(p.streams)
			p.mu.Unlock()
		}
	}
	return open
}
