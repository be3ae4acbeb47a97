package dcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// feed is one DCP connection and the vbuckets' streams on it.
type feed struct {
	addr       string
	op         string // for errors: "copy from 10.0.0.1:11210"
	conn       *cluster.Conn
	r          *mcbp.Reader
	idle       time.Duration
	flow       *flow
	names      *names // nil where collections were not negotiated
	filter     []byte // for STREAM_REQ
	uncompress bool
	warn       func(msg string, args ...any)

	parts   []*part // by vbucket; nil = not this stream's
	running int     // parts whose stream is asked for or open
	opaque  uint32  // of the last STREAM_REQ
	touched []*part // parts with items in the batch

	msg    mcbp.DcpMessage
	out    []byte        // requests and answers that are not sent yet
	waited time.Duration // spent in reads since the last sign of life
	piece  int           // bytes of the next packet that have come so far
	loose  uint32        // bytes of packets since the last batch was handed over
	failed error         // found behind items that had to be handed over first
}

// openFeed connects to a node. parts is by vbucket.
func openFeed(ctx context.Context, kv cluster.KVConfig, o *Options, fl *flow, parts []*part) (*feed, error) {
	conn, err := cluster.DialKV(ctx, kv)
	if err != nil {
		return nil, err
	}
	window := uint32(o.BufferSize)
	got, err := conn.OpenDcp(ctx, cluster.DcpConfig{
		Name:       connName(),
		BufferSize: window,
		// Servers up to 4.x close where a NOOP stays unanswered for one interval, and
		// a stream is not read while the destination is far behind.
		NoopInterval: min(max(o.IdleTimeout/3, time.Second), time.Minute),
	})
	if err != nil {
		_ = conn.Close()
		return nil, refusedOpen(kv.Addr, err)
	}
	d := &feed{
		addr: kv.Addr, op: "copy from " + kv.Addr, conn: conn, r: conn.Reader(), idle: o.IdleTimeout,
		flow: fl, uncompress: o.Uncompress, parts: parts,
	}
	if !got.FlowControl {
		window = 0
	}
	fl.start(conn.NetConn(), uint64(window))
	return d, nil
}

// refusedOpen gives a refused DCP_OPEN the code of this package.
func refusedOpen(addr string, err error) error {
	if pump.CodeOf(err) == "no-dcp" {
		return noDcp("copy from " + addr)
	}
	return err
}

func (d *feed) close() {
	d.flow.stop()
	_ = d.conn.Close()
}

// request asks for the stream of a part's next leg.
func (d *feed) request(p *part) {
	d.opaque++
	p.opaque = d.opaque
	p.streaming, p.closing, p.sealed, p.markerStart, p.markerEnd = true, false, false, 0, 0
	d.running++
	r := p.streamReq()
	r.Filter = d.filter
	d.out = r.Append(d.out)
}

// read fills b with at least one item, or returns an error, or returns with no
// stream running any more. Packets are read into b's arena and the items alias it.
func (d *feed) read(ctx context.Context, b *pump.Batch) error {
	if d.failed != nil {
		return d.failed
	}
	defer d.conn.Guard(ctx)()
	// The tail of the last packet that did not fit into the batch before.
	b.GrowArena(max(d.r.Need(), d.r.Buffered()))
	d.r.Attach(b.Arena())
	defer d.r.Detach()
	for {
		alive, err := d.decode(b)
		// A large item may take longer than the limit. NOOPs have no body, so they
		// are not mistaken for a piece of one.
		if have := d.r.Buffered(); alive || have > max(d.piece, mcbp.HeaderLen) {
			d.waited = 0
		}
		d.piece = d.r.Buffered()
		if serr := d.send(); serr != nil && err == nil {
			err = d.broken(ctx, serr)
		}
		switch {
		case err != nil && b.Len() > 0:
			d.failed = err
			return nil
		case err != nil:
			return err
		case b.Len() > 0 || d.running == 0:
			return nil
		}
		if err := d.consumed(); err != nil {
			return d.broken(ctx, err)
		}
		if d.r.Full() {
			d.r.Detach()
			b.GrowArena(max(d.r.Need(), d.r.Buffered()))
			d.r.Attach(b.Arena())
		}
		if err := d.fill(ctx); err != nil {
			return err
		}
	}
}

// consumed acknowledges packets that held no item: nobody else would.
func (d *feed) consumed() error {
	if d.loose == 0 {
		return nil
	}
	n := d.loose
	d.loose = 0
	return d.flow.consumed(n)
}

// hand closes a batch: the position of each vbucket in it is marked, and its
// bytes wait for the engine's confirmation. marks counts those that are in b.
func (d *feed) hand(b *pump.Batch) {
	for _, p := range d.touched {
		p.touched = false
		b.Marks = append(b.Marks, p.mark(false, 0))
	}
	d.touched = d.touched[:0]
	d.flow.hand(len(b.Marks), d.loose)
	d.loose = 0
}

// fill waits for more bytes. Silence counts only while the node could send: not
// while it waits for the destination.
func (d *feed) fill(ctx context.Context) error {
	for {
		err := d.conn.SetIdle(max(d.idle-d.waited, time.Millisecond))
		began := time.Now()
		if err == nil {
			err = d.r.Fill()
		}
		blocked, since := d.flow.blocked()
		if since.After(began) {
			began = since
		}
		if !blocked {
			d.waited += time.Since(began)
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return d.broken(ctx, err)
		case !blocked && d.waited >= d.idle:
			return &pump.Error{Code: codeIdle, Op: d.op, Retry: true,
				Err:  fmt.Errorf("the node fell silent for %v in the middle of %s", d.idle, d.list()),
				Hint: "Is the node overloaded or its disk stuck? The option idle-timeout waits longer."}
		}
	}
}

// send writes what is due, all in one write: before anything waits, since the
// node may be waiting for it.
func (d *feed) send() error {
	if len(d.out) == 0 {
		return nil
	}
	err := d.conn.SetIdle(d.idle)
	if err == nil {
		_, err = d.conn.NetConn().Write(d.out)
	}
	d.out = d.out[:0]
	return err
}

// list names the vbuckets whose streams are open.
func (d *feed) list() string {
	var vbs []uint16
	for _, p := range d.parts {
		if p != nil && p.streaming {
			vbs = append(vbs, p.vb)
		}
	}
	if len(vbs) == 0 {
		return "no stream"
	}
	return places.List(vbs)
}

// broken is the error of a connection that ended while streams were open. Never
// io.EOF: a close is not the end of a stream (invariant 4).
func (d *feed) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e := &pump.Error{Code: codeCut, Op: d.op, Retry: true,
		Hint: "What came was passed on. Has the node died? After its failover the same command goes on with the node that took over."}
	switch {
	case errors.Is(err, io.EOF):
		e.Err = fmt.Errorf("the node closed the connection in the middle of %s", d.list())
	case errors.Is(err, mcbp.ErrTruncated):
		e.Err = fmt.Errorf("%w, in the middle of %s", err, d.list())
	default:
		e.Err = fmt.Errorf("the connection broke (%w) in the middle of %s", err, d.list())
	}
	return e
}

func (d *feed) protocol(err error) error {
	return &pump.Error{Code: codeProtocol, Op: d.op, Err: err,
		Hint: "The data port of a node is 11210; something between here and the node may also have altered the stream."}
}

// decode takes all whole packets out of the buffer. alive reports that one of
// them was not a NOOP.
func (d *feed) decode(b *pump.Batch) (alive bool, err error) {
	var f mcbp.Frame
	for {
		if n := d.r.NextDcp(&d.msg); n > 0 {
			alive = true
			d.loose += uint32(n)
			if err := d.part(b); err != nil {
				return alive, err
			}
			continue
		}
		err := d.r.DecodeTo(&f)
		if err == mcbp.ErrNeedMore {
			return alive, nil
		}
		if err != nil {
			return alive, d.protocol(err)
		}
		switch {
		case f.Magic == mcbp.MagicResponse:
			alive = true
			err = d.response(&f)
		case f.Opcode == mcbp.OpDcpNoop:
			// Servers do not count NOOPs among the bytes to acknowledge.
			h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpDcpNoop, Opaque: f.Opaque}
			d.out = h.Append(d.out)
		default:
			alive = true
			d.loose += mcbp.HeaderLen + f.BodyLen
			err = d.message(&f, b)
		}
		if err != nil {
			return alive, err
		}
	}
}

// partOf returns the part that a packet belongs to.
func (d *feed) partOf(vb uint16, opaque uint32) *part {
	if int(vb) >= len(d.parts) {
		return nil
	}
	if p := d.parts[vb]; p != nil && p.streaming && p.opaque == opaque {
		return p
	}
	return nil
}

// closeStream asks for the end of a stream that has brought what it was opened for. What
// is under way still comes.
func (d *feed) closeStream(p *part) {
	p.closing = true
	d.out = mcbp.AppendFrame(d.out, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpDcpCloseStream, VBucket: p.vb, Opaque: p.opaque}, nil, nil, nil)
}

// response handles the answer to a STREAM_REQ or CLOSE_STREAM.
func (d *feed) response(f *mcbp.Frame) error {
	if f.Opcode == mcbp.OpDcpCloseStream {
		for _, p := range d.parts {
			// A stream that ended in the same moment is not there any more.
			if p != nil && p.streaming && p.closing && p.opaque == f.Opaque {
				d.drop(p)
			}
		}
		return nil
	}
	if f.Opcode != mcbp.OpDcpStreamReq {
		if f.Status() == mcbp.StatusOK {
			return nil
		}
		return d.protocol(fmt.Errorf("%s was answered with %s", mcbp.OpcodeName(f.Opcode), mcbp.StatusName(f.Status())))
	}
	var p *part
	for _, q := range d.parts {
		if q != nil && q.streaming && !q.accepted && q.opaque == f.Opaque {
			p = q
		}
	}
	if p == nil {
		return d.foreign(fmt.Errorf("the node answers a request for a stream that was not made"))
	}
	op := fmt.Sprintf("stream vbucket %d", p.vb)
	switch status := f.Status(); status {
	case mcbp.StatusOK:
		log, err := mcbp.ParseFailoverLog(f.Value())
		if err != nil {
			return d.protocol(fmt.Errorf("vbucket %d: %w", p.vb, err))
		}
		p.log, p.accepted = log, true
		return nil
	case mcbp.StatusRollback:
		to, err := mcbp.ParseRollback(f.Value())
		if err != nil {
			return d.protocol(fmt.Errorf("vbucket %d: %w", p.vb, err))
		}
		if p.seqno == 0 {
			return d.protocol(fmt.Errorf("vbucket %d: the node wants to go back to seqno %d from the very start", p.vb, to))
		}
		was := p.seqno
		p.rollback(to)
		d.warn("the vbucket's history at the source has another branch (a failover lost its last changes): it is copied from there on anew; "+
			"what had been copied of the lost branch may still be at the destination",
			"node", d.addr, "vbucket", p.vb, "copied up to seqno", was, "goes back to seqno", p.seqno)
		d.drop(p)
		d.request(p)
		return nil
	case mcbp.StatusNotMyVBucket:
		d.refuse(p, notActive(p.vb, d.addr, "not there"))
	case mcbp.StatusExists:
		// Names are unique, so nobody but this connection can have it.
		d.refuse(p, &pump.Error{Code: codeRefused, Op: d.conn.Addr() + ": " + op, Retry: true, Err: errors.New("the node says that the stream is open already")})
	case mcbp.StatusRange:
		d.refuse(p, &pump.Error{Code: codeRefused, Op: d.conn.Addr() + ": " + op,
			Err:  fmt.Errorf("the node refuses the position seqno %d in snapshot %d to %d, end %d: %s", p.seqno, p.snapStart, p.snapEnd, p.end, mcbp.StatusName(status)),
			Hint: "Start anew, without going on where an earlier run stopped."})
	default:
		err := places.Vanished(d.conn.Refused(op, f), d.addr)
		if pump.CodeOf(err) == "kv-status" {
			err = &pump.Error{Class: pump.ClassOf(err), Code: codeRefused, Err: err, Hint: pump.HintOf(err), Retry: pump.IsRetryable(err)}
		}
		d.refuse(p, err)
	}
	return nil
}

// drop takes a part's stream as ended.
func (d *feed) drop(p *part) {
	p.streaming, p.accepted = false, false
	d.running--
}

// refuse ends a part's stream with an error; the others go on.
func (d *feed) refuse(p *part, err error) {
	p.failed = err
	d.drop(p)
}

func (d *feed) foreign(err error) error {
	return &pump.Error{Code: codeForeign, Op: d.op, Err: err}
}

// message handles one message of a stream.
func (d *feed) message(f *mcbp.Frame, b *pump.Batch) error {
	if f.Opcode == mcbp.OpDcpFlush {
		return &pump.Error{Code: codeFlushed, Op: d.op,
			Err:  fmt.Errorf("vbucket %d was flushed while it was copied: all its items are gone at the source", f.VBucket),
			Hint: "Items that had been read before the flush may have been written to the destination."}
	}
	if err := d.msg.Parse(f); err != nil {
		return d.protocol(err)
	}
	return d.part(b)
}

// part handles the message in msg by the part that it belongs to.
func (d *feed) part(b *pump.Batch) error {
	m := &d.msg
	p := d.partOf(m.VBucket, m.Opaque)
	if p == nil && int(m.VBucket) < len(d.parts) {
		if q := d.parts[m.VBucket]; q != nil && q.closing && q.opaque == m.Opaque {
			return nil // behind the answer to CLOSE_STREAM: the next leg brings it
		}
	}
	if p == nil || !p.accepted {
		return d.foreign(fmt.Errorf("the node sends %s of vbucket %d, whose stream was not asked for", mcbp.OpcodeName(m.Opcode), m.VBucket))
	}
	switch m.Opcode {
	case mcbp.OpDcpSnapshotMarker:
		return d.check(p, p.marker(m.Seqno, m.SnapEnd))
	case mcbp.OpDcpStreamEnd:
		p.reason = m.Flags
		d.drop(p)
		p.failed = p.ended(d.addr)
		return nil
	case mcbp.OpDcpSeqnoAdvanced:
		err := p.pass(m.Seqno)
		d.caughtUp(p)
		return d.check(p, err)
	case mcbp.OpDcpSystemEvent:
		if err := p.follows(m.Seqno); err != nil {
			return d.check(p, err)
		}
		if d.names == nil {
			return d.protocol(fmt.Errorf("vbucket %d: a system event on a connection without collections", p.vb))
		}
		if !knownEvent(m.Flags) {
			p.move(m.Seqno)
			// Of a newer server; it holds no item, and changes no name.
			d.warn("a system event of an unknown kind was passed over", "node", d.addr, "vbucket", p.vb, "event", m.Flags)
			return nil
		}
		e, err := m.ParseSystemEvent()
		if err != nil {
			return d.protocol(fmt.Errorf("vbucket %d: %w", p.vb, err))
		}
		d.names.event(&e)
		p.drops = p.drops || dropped(&e)
		p.move(m.Seqno)
		d.caughtUp(p)
		return nil
	case mcbp.OpDcpMutation, mcbp.OpDcpDeletion, mcbp.OpDcpExpiration:
		if err := p.follows(m.Seqno); err != nil {
			return d.check(p, err)
		}
		if err := d.item(p, m, b); err != nil {
			return err
		}
		p.move(m.Seqno)
		d.caughtUp(p)
		return nil
	}
	return d.protocol(fmt.Errorf("the node sends %s of vbucket %d, which was never asked for", mcbp.OpcodeName(m.Opcode), m.VBucket))
}

// caughtUp ends a chase.
func (d *feed) caughtUp(p *part) {
	if p.chase && p.sealed && !p.closing {
		d.closeStream(p)
	}
}

func (d *feed) check(p *part, err error) error {
	if err != nil {
		return d.protocol(fmt.Errorf("vbucket %d: %w", p.vb, err))
	}
	return nil
}

// item puts an item into the batch.
func (d *feed) item(p *part, m *mcbp.DcpMessage, b *pump.Batch) error {
	key, value, datatype := m.Key, m.Value, m.Datatype
	var collection *pump.Collection
	if d.names != nil {
		id, bare, err := mcbp.SplitCollectionKey(key)
		if err != nil {
			return d.protocol(fmt.Errorf("vbucket %d: %w", p.vb, err))
		}
		known := false
		if collection, known = d.names.find(id); !known {
			// Creation comes before what is created, and the manifest was read before
			// the stream was opened: only what has been dropped since is unknown.
			p.orphans++
			p.drops = true
			return nil
		}
		key = bare
	}
	if d.uncompress && datatype&mcbp.DatatypeSnappy != 0 {
		var err error
		if value, err = inflate(value); err != nil {
			return d.protocol(fmt.Errorf("vbucket %d, seqno %d: %w", p.vb, m.Seqno, err))
		}
		datatype &^= mcbp.DatatypeSnappy
	}
	it := b.Append()
	switch m.Opcode {
	case mcbp.OpDcpMutation:
		p.live++
	case mcbp.OpDcpDeletion:
		p.gone++
		it.Op = pump.Deletion
	default:
		p.gone++
		it.Op = pump.Expiration
	}
	it.Datatype, it.VBucket = datatype, m.VBucket
	it.Flags, it.Expiry, it.CAS, it.RevSeqno, it.Seqno = m.Flags, m.Expiry, m.CAS, m.Rev, m.Seqno
	it.Key, it.Value, it.Meta, it.Collection = key, value, m.Meta, collection
	if !p.touched {
		p.touched = true
		d.touched = append(d.touched, p)
	}
	return nil
}

// inflate undoes snappy. It is for servers that compress although it was not
// negotiated, so it may allocate.
func inflate(value []byte) ([]byte, error) {
	n, err := snappy.DecodedLen(value)
	if err == nil && n > mcbp.MaxBody {
		err = mcbp.ErrTooLarge
	}
	if err != nil {
		return nil, fmt.Errorf("the compressed value cannot be read: %w", err)
	}
	out, err := snappy.Decode(make([]byte, 0, n), value)
	if err != nil {
		return nil, fmt.Errorf("the compressed value cannot be read: %w", err)
	}
	return out, nil
}
