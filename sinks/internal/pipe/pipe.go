// Package pipe is the one mechanism by which the memcached, cluster and TAP
// sinks keep a connection full: requests are encoded into one buffer and
// written in large chunks while a goroutine of the pipe reads the answers, so
// that neither side ever waits with full socket buffers. A fence behind the
// requests tells when all of them have been processed; what was not answered
// until then succeeded, because only failures are answered.
package pipe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

// Chunk is how many bytes are gathered before they are handed to the kernel.
const Chunk = 128 << 10

// What is kept of the values of refusals: the texts of some, for messages, and
// one vbucket map.
const (
	maxText  = 1 << 10
	maxTexts = 64 << 10
	maxMap   = 4 << 20
)

// ErrSilent means that the peer kept the connection open and said nothing, or
// took nothing, until the deadline.
var ErrSilent = errors.New("no answer in time")

// ErrClosed means that the peer closed the connection before the fence.
var ErrClosed = errors.New("the connection was closed before everything was confirmed")

// errOrder is an answer to a request behind the fence, before that of the fence.
var errOrder = errors.New("the answers came in another order than the requests")

// Answer is what the peer said about one request.
type Answer struct {
	Header mcbp.Header
	Index  int // of the request in the round
	lo, hi int
}

// Pipe is one connection in use by one goroutine. After an error from Wait it
// is dead and must be closed.
//
// Two rounds may be under way: Begin may be called again once End was, before Wait.
// Wait then waits for the older one. That is for peers that answer in order.
type Pipe struct {
	// Out gathers encoded requests: append to it, then call Sent.
	Out []byte
	// Each, when set before Begin, is given every answer in place of Answers, with
	// its whole value, which is valid until it returns. It is called from the pipe's
	// own goroutine, and not after Wait has returned.
	Each func(i int, f *mcbp.Frame)

	conn    net.Conn
	rd      *mcbp.Reader
	timeout time.Duration

	rounds        [2]round
	begun, waited int         // rounds so far
	flushed       atomic.Bool // nothing is being written
	deadline      sync.Mutex  // keeps flushed and the deadline of reads together

	start chan *round // has room for both rounds, as done has
	done  chan error
	gone  chan struct{}
	dead  bool
}

// round is requests up to a fence. The reader goroutine owns answers, bodies and
// where between the send on start and the receive from done.
type round struct {
	base    uint32
	n       int
	fence   int
	answers []Answer
	bodies  []byte
	where   []byte // the vbucket map of the last NOT_MY_VBUCKET
	werr    error
	ctx     context.Context
	unguard func() bool
}

// New takes over a connection that is logged in and has nothing under way. rd
// reads from conn. timeout is how long the peer may keep silent.
func New(conn net.Conn, rd *mcbp.Reader, timeout time.Duration) *Pipe {
	p := &Pipe{
		conn: conn, rd: rd, timeout: timeout,
		start: make(chan *round, 2), done: make(chan error, 2), gone: make(chan struct{}),
	}
	p.linger(0)
	go p.reader()
	return p
}

// linger says what becomes of bytes that the kernel has not sent when the connection
// is closed. With 0 they are dropped, also if the process is killed: else they would
// be sent for minutes after a network fault, and reach the peer behind what a later
// connection wrote (invariant 5). With -1 they are sent.
func (p *Pipe) linger(seconds int) {
	conn := p.conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(seconds)
	}
}

// Begin starts a round of requests with the indexes 0 to n-1. The round is over
// when the request with the index fence was answered; with fence == n that is a
// NOOP which End appends.
func (p *Pipe) Begin(ctx context.Context, n, fence int) {
	before := p.sending()
	p.begun++
	r := p.sending()
	// Opaques go on from round to round, so that a late second answer to an
	// earlier request (2.5.1 gives some) is never taken for one of this round.
	r.base = before.base + uint32(before.n) + 1
	r.n, r.fence, r.ctx = n, fence, ctx
	r.answers, r.bodies, r.where = r.answers[:0], r.bodies[:0], r.where[:0]
	r.werr, r.unguard = nil, nil
	if p.begun-p.waited > 1 {
		r.werr = before.werr
	}
	p.Out = p.Out[:0]
	if !p.dead {
		p.flushing(true)
		r.unguard = context.AfterFunc(ctx, func() { _ = p.conn.Close() })
		p.start <- r
	}
}

// sending is the round that is being written, or was last.
func (p *Pipe) sending() *round { return &p.rounds[p.begun%2] }

// answered is the round that was waited for last.
func (p *Pipe) answered() *round { return &p.rounds[p.waited%2] }

// flushing says that writing begins or has ended. The peer need not say anything
// while we write, and has the pipe's timeout after that.
func (p *Pipe) flushing(begins bool) {
	p.deadline.Lock()
	defer p.deadline.Unlock()
	p.flushed.Store(!begins)
	var until time.Time
	if !begins {
		until = time.Now().Add(p.timeout)
	}
	_ = p.conn.SetReadDeadline(until)
}

// Opaque returns the opaque of the request with index i in the round that is being
// written.
func (p *Pipe) Opaque(i int) uint32 { return p.sending().base + uint32(i) }

// Sent is called after each request that was appended to Out; it writes when
// enough has gathered. Errors are kept for Wait.
func (p *Pipe) Sent() {
	if len(p.Out) >= Chunk {
		p.flush()
	}
}

// flush writes what has gathered, in chunks with a deadline each: a slow peer
// is not a silent one.
func (p *Pipe) flush() {
	r, out := p.sending(), p.Out
	for len(out) > 0 && r.werr == nil && !p.dead {
		n := min(len(out), 2*Chunk)
		_ = p.conn.SetWriteDeadline(time.Now().Add(p.timeout))
		_, r.werr = p.conn.Write(out[:n])
		out = out[n:]
	}
	p.Out = p.Out[:0]
	if cap(p.Out) > 8*Chunk { // one huge value must not keep its size for ever
		p.Out = nil
	}
}

// End writes the rest of the round and its fence.
func (p *Pipe) End() {
	r := p.sending()
	if r.fence == r.n {
		p.Out = mcbp.AppendNoop(p.Out, p.Opaque(r.n))
	}
	p.flush()
	if p.dead {
		return
	}
	switch {
	case r.werr == nil:
		p.flushing(false)
	case errors.Is(r.werr, os.ErrDeadlineExceeded):
		_ = p.conn.Close()
	default:
		// The peer closed its side. What it said before is worth having: it may
		// name the request it did not like.
		_ = p.conn.SetReadDeadline(time.Now().Add(min(p.timeout, time.Second)))
	}
}

// Wait waits for the oldest round and returns nil when its fence was answered: every
// request of the round that Answers does not name has succeeded. After an error
// Answers still holds what was answered before; everything else is unknown.
func (p *Pipe) Wait() error {
	p.waited++
	r := p.answered()
	if r.unguard != nil {
		defer r.unguard()
	}
	if p.dead {
		return ErrClosed
	}
	err := <-p.done
	if err == nil && r.werr == nil {
		return nil
	}
	p.dead = true
	_ = p.conn.Close()
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	if r.werr != nil && !errors.Is(err, mcbp.ErrMagic) {
		err = r.werr
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w (%s)", ErrSilent, p.timeout)
	case errors.Is(err, mcbp.ErrMagic), errors.Is(err, mcbp.ErrLength), errors.Is(err, mcbp.ErrTooLarge):
		return err
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// Answers returns the answers of the round that was waited for in the order in which
// they came, without that of a NOOP fence. They are valid until the next Begin.
func (p *Pipe) Answers() []Answer { return p.answered().answers }

// Map returns the value of a NOT_MY_VBUCKET answer of the round, the map that the
// peer has, or nothing. It is valid until the next Begin.
func (p *Pipe) Map() []byte { return p.answered().where }

// Frame returns an answer as a frame, with its extras and, of a refusal, a short
// value. Other values are not kept.
func (p *Pipe) Frame(a *Answer) mcbp.Frame {
	f := mcbp.Frame{Header: a.Header, Body: p.answered().bodies[a.lo:a.hi]}
	f.BodyLen, f.KeyLen = uint32(a.hi-a.lo), 0
	return f
}

// LocalAddr returns our end of the connection.
func (p *Pipe) LocalAddr() net.Addr { return p.conn.LocalAddr() }

// Close closes the connection and waits for the reader to end.
func (p *Pipe) Close() error {
	if !p.dead && p.begun == p.waited {
		p.linger(-1) // all was answered: it ends in the usual way
	}
	err := p.conn.Close()
	if !p.dead {
		p.dead = true
		close(p.start)
	}
	<-p.gone
	return err
}

func (p *Pipe) reader() {
	defer close(p.gone)
	for r := range p.start {
		err := p.read(r)
		p.done <- err
		if err != nil {
			return
		}
	}
}

// talked gives a peer that has said something its time again.
func (p *Pipe) talked() {
	p.deadline.Lock()
	defer p.deadline.Unlock()
	if p.flushed.Load() {
		_ = p.conn.SetReadDeadline(time.Now().Add(p.timeout))
	}
}

// keep keeps what a refusal says.
func (r *round) keep(f *mcbp.Frame) {
	v := f.Value()
	switch {
	case f.Status() == mcbp.StatusOK || len(v) == 0:
	case f.Status() == mcbp.StatusNotMyVBucket:
		if len(v) <= maxMap {
			r.where = append(r.where[:0], v...)
		}
	case len(v) <= maxText && len(r.bodies) <= maxTexts:
		r.bodies = append(r.bodies, v...)
	}
}

// read reads the answers of a round.
func (p *Pipe) read(r *round) error {
	fence := r.base + uint32(r.fence)
	for {
		f, err := p.rd.Decode()
		if err == mcbp.ErrNeedMore {
			if err = p.rd.Fill(); err != nil {
				return err
			}
			if p.flushed.Load() {
				p.talked()
			}
			continue
		}
		if err != nil {
			return err
		}
		if f.Magic != mcbp.MagicResponse {
			continue // what the peer wants of us (a TAP NOOP) is no answer
		}
		i := f.Opaque - r.base
		switch {
		case i < uint32(r.n) && p.Each != nil:
			own := f // f itself stays off the heap
			p.Each(int(i), &own)
		case i < uint32(r.n):
			lo := len(r.bodies)
			r.bodies = append(r.bodies, f.Extras()...)
			r.keep(&f)
			r.answers = append(r.answers, Answer{Header: f.Header, Index: int(i), lo: lo, hi: len(r.bodies)})
		case i > uint32(r.n) && i < 1<<31:
			// Of the round behind this one: a refusal must not get lost.
			return errOrder
		}
		if f.Opaque == fence {
			return nil
		}
	}
}
