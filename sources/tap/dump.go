package tap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// dump is one TAP connection: the dump of one group of vbuckets of one node.
type dump struct {
	addr  string
	op    string // for errors: "dump vbuckets 0-31 from 10.0.0.1:11210"
	kv    cluster.KVConfig
	stats *cluster.Conn // idle while the dump runs, then asked for the counts
	conn  *cluster.Conn
	r     *mcbp.Reader
	idle  time.Duration

	vbs   []vbDump
	index []int32 // vbucket → position in vbs plus one; 0 = not asked for

	msg    mcbp.TapMessage
	out    []byte        // acknowledgements and answers to NOOP, not sent yet
	waited time.Duration // spent in reads since the last sign of life
	piece  int           // bytes of the next packet that have come so far
	any    bool          // the server sent anything at all
	begun  bool          // a message about one of the vbuckets came
	noops  int           // NOOPs in a row
	asked  bool          // the last message asked for an acknowledgement …
	acked  bool          // … and all that were asked for have been sent

	end    ending // how the dump ended; running while it has not
	cause  error  // of the end
	failed error  // found behind items that had to be handed over first
}

// vbDump is what one dump brought of one vbucket.
type vbDump struct {
	vb     uint16
	before uint64 // live items that the node counted before the dump
	live   uint64 // mutations received
	gone   uint64 // deletions received
	reaped uint64 // those of them that were expired items, reaped by the dump
	opened bool   // OPAQUE 1: the node has begun
	closed bool   // OPAQUE 8: the node has sent all it had
}

// ending is how a dump's connection ended.
type ending uint8

const (
	running   ending = iota
	endClosed        // closed between two packets
	endQuiet         // two NOOPs in a row and nothing else: how 1.8 ends an empty bucket
	endCut           // closed inside a packet
	endBroken        // reset, or another error of the connection
	endIdle          // silence
)

// clean reports an ending that a server whose dump is complete may bring about.
func (e ending) clean() bool { return e == endClosed || e == endQuiet }

// tapFlags are the flags of every dump. Never REGISTERED, which leaves a cursor
// behind, and never TAKEOVER, which kills the source's vbucket.
const tapFlags = mcbp.TapDump | mcbp.TapSupportAck | mcbp.TapListVBuckets

// newDump starts the dump of vbs. before holds the node's counts; the dump
// takes over stats, whatever the outcome.
func newDump(ctx context.Context, kv cluster.KVConfig, stats *cluster.Conn, vbs []uint16, before map[uint16]cluster.VBInfo, fix bool, idle time.Duration) (*dump, error) {
	d := &dump{
		addr: kv.Addr, op: fmt.Sprintf("dump %s from %s", places.List(vbs), kv.Addr),
		kv: kv, stats: stats, idle: idle,
		vbs: make([]vbDump, len(vbs)), index: make([]int32, int(vbs[len(vbs)-1])+1),
		acked: true,
	}
	for i, vb := range vbs {
		d.vbs[i] = vbDump{vb: vb, before: before[vb].Items}
		d.index[vb] = int32(i + 1)
	}
	var err error
	if d.conn, err = cluster.DialKV(ctx, kv); err != nil {
		d.close()
		return nil, places.Gone(err, kv.Addr)
	}
	d.r = d.conn.Reader()
	flags := tapFlags
	if fix {
		flags |= mcbp.TapFixFlagByteorder
	}
	// A server drops the older of two connections of the same name.
	c := mcbp.TapConnect{Name: fmt.Sprintf("cbpump-%016x", rand.Uint64()), Flags: flags, VBuckets: vbs}
	defer d.conn.Guard(ctx)()
	err = d.conn.SetIdle(idle)
	if err == nil {
		_, err = d.conn.NetConn().Write(c.Append(nil))
	}
	if err != nil {
		err = d.conn.Explain(ctx, "TAP_CONNECT", err)
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *dump) close() {
	if d.stats != nil {
		_ = d.stats.Close()
	}
	if d.conn != nil {
		_ = d.conn.Close()
	}
}

// read fills b with at least one item, or returns an error, or returns with
// d.end set. Packets are read into b's arena and the items alias it.
func (d *dump) read(ctx context.Context, b *pump.Batch) error {
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
		// Acknowledgements go out before anything waits: a server that has used up
		// its window sends nothing more.
		if aerr := d.answer(); aerr != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case err != nil && b.Len() > 0:
			d.failed = err
			return nil
		case err != nil:
			return err
		case b.Len() > 0 || d.end != running:
			return nil
		}
		if d.r.Full() {
			d.r.Detach()
			b.GrowArena(max(d.r.Need(), d.r.Buffered()))
			d.r.Attach(b.Arena())
		}
		if err := d.fill(ctx); err != nil || d.end != running {
			return err
		}
	}
}

// fill waits for more bytes. How the connection ends is no error here: what it
// means is decided by the counts (invariant 4).
func (d *dump) fill(ctx context.Context) error {
	limit := d.idle - d.waited
	if limit <= 0 {
		d.end = endIdle
		return nil
	}
	err := d.conn.SetIdle(limit)
	if err == nil {
		began := time.Now()
		err = d.r.Fill()
		d.waited += time.Since(began)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch d.cause = err; {
	case errors.Is(err, io.EOF):
		d.end = endClosed
	case errors.Is(err, mcbp.ErrTruncated):
		d.end = endCut
	case errors.Is(err, os.ErrDeadlineExceeded):
		d.end = endIdle
	default:
		d.end = endBroken
	}
	return nil
}

// answer sends the acknowledgements that are due, all in one write. When that
// fails the connection has ended, and reading will tell how; what was not
// acknowledged then proves nothing.
func (d *dump) answer() error {
	if len(d.out) == 0 {
		return nil
	}
	err := d.conn.SetIdle(d.idle)
	if err == nil {
		_, err = d.conn.NetConn().Write(d.out)
	}
	d.out = d.out[:0]
	if err != nil {
		d.acked = false
	}
	return err
}

// decode takes all whole packets out of the buffer. alive reports that one of
// them was not a NOOP.
func (d *dump) decode(b *pump.Batch) (alive bool, err error) {
	var f mcbp.Frame
	for {
		if d.r.NextTap(&d.msg) {
			d.any, alive, d.noops = true, true, 0
			if err := d.message(b); err != nil {
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
		d.any = true
		if f.Opcode == mcbp.OpNoop && f.Magic == mcbp.MagicRequest {
			d.noop(&f)
			if d.end != running {
				return alive, nil
			}
			continue
		}
		alive, d.noops = true, 0
		if f.Magic == mcbp.MagicResponse {
			if err := d.response(&f); err != nil {
				return alive, err
			}
			continue
		}
		if err := d.msg.Parse(&f); err != nil {
			return alive, d.protocol(err)
		}
		if err := d.message(b); err != nil {
			return alive, err
		}
	}
}

// noop answers a NOOP. Servers send it on idle streams, every 200 s or so; 1.8
// ends a dump that has nothing to send with two of them.
func (d *dump) noop(f *mcbp.Frame) {
	h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpNoop, Opaque: f.Opaque}
	d.out = h.Append(d.out)
	if d.noops++; d.noops >= 2 && !d.begun {
		d.end = endQuiet
	}
}

// response handles what a good dump never gets: an answer to TAP_CONNECT.
func (d *dump) response(f *mcbp.Frame) error {
	if f.Opcode != mcbp.OpTapConnect {
		return d.protocol(fmt.Errorf("an answer to %s came, which was not asked", mcbp.OpcodeName(f.Opcode)))
	}
	switch f.Status() {
	case mcbp.StatusOK:
		return nil
	case mcbp.StatusNotSupported, mcbp.StatusUnknown:
		return noTap(d.op)
	case mcbp.StatusAuthError, mcbp.StatusAccess:
		return &pump.Error{Class: pump.ClassDenied, Code: codeRefused, Op: d.op,
			Err:  fmt.Errorf("TAP_CONNECT was answered with %s", mcbp.StatusName(f.Status())),
			Hint: "The bucket's credentials do not allow a dump."}
	case mcbp.StatusBusy, mcbp.StatusTmpFail, mcbp.StatusNoMemory:
		return &pump.Error{Code: codeRefused, Op: d.op, Retry: true,
			Err: fmt.Errorf("TAP_CONNECT was answered with %s", mcbp.StatusName(f.Status()))}
	}
	return &pump.Error{Code: codeRefused, Op: d.op, Err: fmt.Errorf("TAP_CONNECT was answered with %s", mcbp.StatusName(f.Status()))}
}

func (d *dump) protocol(err error) error {
	return &pump.Error{Code: codeProtocol, Op: d.op, Err: err,
		Hint: "The data port of a node is 11210; something between here and the node may also have altered the stream."}
}

// message handles the TAP message in msg.
func (d *dump) message(b *pump.Batch) error {
	m := &d.msg
	if d.asked = m.WantsAck(); d.asked {
		d.out = mcbp.AppendTapAck(d.out, m.Opcode, m.Opaque, mcbp.StatusOK)
	}
	command, isOpaque := m.OpaqueCommand()
	if isOpaque && command != mcbp.TapOpaqueInitialStream && command != mcbp.TapOpaqueCloseBackfill {
		return nil // about the connection as a whole; its vbucket is always 0
	}
	if m.Opcode == mcbp.OpTapFlush {
		return &pump.Error{Code: codeFlushed, Op: d.op, Err: errors.New("the bucket was flushed while it was dumped: all its items are gone at the source"),
			Hint: "Items that had been read before the flush may have been written to the destination."}
	}
	var v *vbDump
	if int(m.VBucket) < len(d.index) {
		if i := d.index[m.VBucket]; i > 0 {
			v = &d.vbs[i-1]
		}
	}
	if v == nil {
		return &pump.Error{Code: codeForeign, Op: d.op,
			Err: fmt.Errorf("the node sends %s of vbucket %d, which was not asked for", mcbp.OpcodeName(m.Opcode), m.VBucket)}
	}
	d.begun = true
	switch m.Opcode {
	case mcbp.OpTapMutation:
		if m.MsgFlags&mcbp.TapMsgNoValue != 0 {
			return d.protocol(fmt.Errorf("an item of vbucket %d came without its value", m.VBucket))
		}
		v.live++
		it := b.Append()
		it.VBucket, it.Datatype = m.VBucket, m.Datatype
		it.Flags, it.Expiry, it.CAS, it.RevSeqno = m.Flags, m.Expiry, m.CAS, m.Rev
		it.Key, it.Value = m.Key, m.Value
	case mcbp.OpTapDelete:
		v.gone++
		if m.CAS == 0 || len(m.Value) > 0 { // 2.5.1 sends expired items so, 3.0 and 4.0 so
			v.reaped++
		}
		it := b.Append()
		it.Op, it.VBucket = pump.Deletion, m.VBucket
		it.CAS, it.RevSeqno = m.CAS, m.Rev
		it.Key = m.Key
	case mcbp.OpTapOpaque:
		if command == mcbp.TapOpaqueInitialStream {
			v.opened = true
		} else {
			v.closed = true
		}
	}
	return nil
}
