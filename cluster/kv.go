package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// KVConfig says how to reach a node's data port. It prints without its passwords,
// but only as itself or in exported fields: do not keep it in an unexported field
// of something that is printed.
type KVConfig struct {
	Addr     string
	Role     string
	Bucket   string // SASL user up to 4.x, selected after login from 5.0 on
	Password string // the bucket's password, up to 4.x

	Username     string // who logs in from 5.0 on
	UserPassword string

	// Features are asked for in HELLO from 5.0 on (mcbp.FeatureSnappy, …), besides
	// extended error codes, which are always. Conn.Has tells what was granted.
	Features []uint16
	// Version is the node's, as far as the topology told; zero = find out.
	Version Version
	// TLS is how to speak TLS, nil = not. The server's name is taken from Addr
	// unless it is set.
	TLS *tls.Config

	Timeout time.Duration
	Log     hclog.Logger

	view view
}

// KV returns how to reach a node of the bucket: with the user of the REST port
// from 5.0 on, with the bucket's own password up to 4.x, and with TLS where the
// cluster's address asks for it. Set Features before dialling.
func (c *Client) KV(b *Bucket, addr string) KVConfig {
	cfg := KVConfig{
		Addr: addr, Role: c.role, Bucket: b.Name, Password: b.password.reveal(),
		Username: c.user, UserPassword: c.password.reveal(),
		TLS: c.tls, Timeout: c.timeout, Log: c.log, view: c.view,
	}
	if n, ok := b.NodeByKV(addr); ok {
		cfg.Version = n.Version
	}
	return cfg
}

// Conn is a data connection to one node. One goroutine uses it; only what Guard
// starts runs beside it.
type Conn struct {
	nc      net.Conn
	sniff   *sniffConn
	r       *mcbp.Reader
	addr    string
	role    string
	timeout time.Duration
	log     hclog.Logger
	opaque  uint32
	buf     []byte
	broken  error // why the conversation cannot go on
	clock   clock

	tls     bool
	view    view
	version Version
	granted []uint16 // features
	dcp     bool     // DCP_OPEN was accepted
	errmap  ErrorMap // nil until asked for
	agent   string
	nonce   func() string

	mu    sync.Mutex
	fired int // guards whose context is done: deadlines stay in the past
}

// firstOpaque is where a connection's opaques begin. Its bytes are two line ends:
// a server that reads lines, such as a REST port that was taken for a data port,
// answers at once and can be told apart, instead of waiting for more.
const firstOpaque = 0x0d0a0d0a

// newConn is a connection that is not connected yet.
func newConn(cfg *KVConfig) *Conn {
	c := &Conn{
		addr: cfg.Addr, role: cfg.Role, timeout: cfg.Timeout, log: cfg.Log, opaque: firstOpaque, clock: realClock,
		view: cfg.view, agent: agent, nonce: newNonce,
	}
	if c.role == "" {
		c.role = "node"
	}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if c.log == nil {
		c.log = hclog.NewNullLogger()
	}
	return c
}

// DialKV connects, logs in and selects the bucket.
//
// Up to 4.x the login is CRAM-MD5, then PLAIN, as user Bucket. From 5.0 on it is
// HELLO with extended errors and cfg.Features, SCRAM-SHA512, -SHA256 or -SHA1 as
// user Username (PLAIN only inside TLS), then SELECT_BUCKET. Which one is decided
// by cfg.Version, else by what the node answers. Without a bucket and a user there
// is no login; nor is there one up to 4.x as "default" without a password.
// Connect and login together take at most cfg.Timeout.
//
// A refused login is an error of class denied and never retried otherwise: old
// servers leave the connection in the default bucket, where data would land.
func DialKV(ctx context.Context, cfg KVConfig) (*Conn, error) {
	c := newConn(&cfg)
	if _, err := cfg.checkFeatures(); err != nil {
		return nil, err
	}
	defer trace(ctx, WaitConnect)()
	dctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(dctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, c.Explain(ctx, "connect", err)
	}
	c.nc, c.sniff = nc, &sniffConn{Conn: nc}
	if err := c.connected(dctx, &cfg); err != nil {
		c.Close()
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			// The time for connecting was up, not the caller's.
			return nil, c.Explain(ctx, "connect and log in", os.ErrDeadlineExceeded)
		}
		return nil, err
	}
	return c, nil
}

func (c *Conn) connected(ctx context.Context, cfg *KVConfig) error {
	if cfg.TLS != nil {
		c.tls = true
		tc := tls.Client(c.sniff, forHost(cfg.TLS, cfg.Addr))
		if err := tc.HandshakeContext(ctx); err != nil {
			return c.first(c.Explain(ctx, "connect with TLS", err))
		}
		c.nc = tc
		c.r = mcbp.NewReader(tc)
	} else {
		c.r = mcbp.NewReader(c.sniff)
	}
	return c.prepare(ctx, cfg)
}

// Addr returns host:port of the node.
func (c *Conn) Addr() string { return c.addr }

// Close closes the connection. It may be called more than once.
func (c *Conn) Close() error {
	if err := c.nc.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// NetConn returns the connection for hot paths, which write to it and read with
// Reader. They set deadlines with SetIdle, and explain errors with Explain.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Reader returns the reader of the node's packets, for hot paths.
func (c *Conn) Reader() *mcbp.Reader { return c.r }

// Guard makes blocked reads and writes return when ctx is done, until stop is
// called. Guards nest. stop waits for what Guard started and may be called more
// than once.
func (c *Conn) Guard(ctx context.Context) (stop func()) {
	done := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(done)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.fired++
		// An error means that the connection is closed: nothing blocks on it.
		_ = c.nc.SetDeadline(time.Unix(1, 0))
	})
	return sync.OnceFunc(func() {
		if unhook() {
			return
		}
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		c.fired--
		if c.fired == 0 {
			_ = c.nc.SetDeadline(time.Time{})
		}
	})
}

// SetIdle makes reads and writes fail that are not through after d from now; 0
// takes the limit away. A guard whose context is done wins over it.
func (c *Conn) SetIdle(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.fired > 0:
		return nil
	case d <= 0:
		return c.nc.SetDeadline(time.Time{})
	}
	return c.nc.SetDeadline(time.Now().Add(d))
}

// NextOpaque returns an opaque that no request of this connection has used.
func (c *Conn) NextOpaque() uint32 {
	c.opaque++
	return c.opaque
}

// RoundTrip sends one encoded request and returns the answer with its opaque;
// others are dropped: 2.5.1 answers a bad SET_VBUCKET twice. The answer's status
// is the caller's to judge. The frame is valid until the next use of c. It takes
// at most the configured timeout; after an error the connection is of no more use.
func (c *Conn) RoundTrip(ctx context.Context, request []byte, opaque uint32) (mcbp.Frame, error) {
	var answer mcbp.Frame
	err := c.converse(ctx, request, opaque, func(f mcbp.Frame) (last bool) {
		answer = f
		return true
	})
	return answer, err
}

// converse sends a request and gives every answer with its opcode and opaque to
// each, until that says that it was the last.
func (c *Conn) converse(ctx context.Context, request []byte, opaque uint32, each func(mcbp.Frame) (last bool)) error {
	h, err := mcbp.ParseHeader(request)
	if err != nil {
		return c.Explain(ctx, "send a request", fmt.Errorf("the request is malformed: %w", err))
	}
	op := mcbp.OpcodeName(h.Opcode)
	if err := ctx.Err(); err != nil {
		return c.Explain(ctx, op, err)
	}
	if c.broken != nil {
		return pump.Retryable(c.broken)
	}
	stop := c.Guard(ctx)
	defer stop()
	if err := c.talk(request, h.Opcode, opaque, each); err != nil {
		c.broken = c.first(c.Explain(ctx, op, err))
		return c.broken
	}
	return nil
}

func (c *Conn) talk(request []byte, opcode mcbp.Opcode, opaque uint32, each func(mcbp.Frame) (last bool)) error {
	if err := c.SetIdle(c.timeout); err != nil {
		return err
	}
	if _, err := c.nc.Write(request); err != nil {
		return err
	}
	for {
		f, err := c.r.Next()
		if err != nil {
			return err
		}
		if f.Magic != mcbp.MagicResponse || f.Opaque != opaque || f.Opcode != opcode {
			continue // bounded by the idle limit, which only answers to this request renew
		}
		if each(f) {
			return c.SetIdle(0)
		}
		if err := c.SetIdle(c.timeout); err != nil {
			return err
		}
	}
}

func quote(name string) string { return fmt.Sprintf("%q", clip(name, 100)) }

// name is how errors call the node.
func (c *Conn) name() string { return c.role + " node " + c.addr }

// ErrClosed means that the node closed the connection in the middle of a
// conversation. It is not io.EOF, which in a stream means "complete" (invariant 4).
var ErrClosed = errors.New("the node closed the connection")

// Explain turns an error of reading from or writing to the node into one that
// names the node, its role and what was asked (op), with a class and whether
// another try may help. Errors that already are explained come back as they are.
func (c *Conn) Explain(ctx context.Context, op string, err error) error {
	var have *pump.Error
	if err == nil || errors.As(err, &have) {
		return err
	}
	e := &pump.Error{Code: "kv-failed", Op: c.name() + ": " + op, Err: err}
	begin := ""
	if c.sniff != nil {
		begin = c.sniff.begin()
	}
	switch {
	case ctx.Err() != nil:
		return stopped(e.Op, ctx.Err())
	case tlsFailure(err, e, c.tls, begin, kvPorts):
	case dialFailure(err, e):
	case isTimeout(err):
		e.Class, e.Code, e.Retry = pump.ClassUnreachable, "kv-timeout", true
		e.Err = fmt.Errorf("no answer within %v", c.timeout)
		e.Hint = c.silenceHint(begin)
	case errors.Is(err, mcbp.ErrMagic):
		e.Code = "not-memcached"
		if begin != "" && begin[0] != mcbp.MagicResponse && begin[0] != mcbp.MagicRequest {
			e.Class = pump.ClassUnreachable
			e.Err = fmt.Errorf("this port does not speak the memcached binary protocol; its answer begins with %q", clip(begin, sniffLen))
		}
		e.Hint = "The data port of a node is 11210; 8091 is the REST port."
	case errors.Is(err, mcbp.ErrTruncated):
		e.Code, e.Retry = "kv-cut", true
	case isCut(err):
		e.Code, e.Err, e.Retry = "kv-cut", ErrClosed, true
		e.Hint = c.silenceHint(begin)
	case errors.Is(err, net.ErrClosed):
		e.Code, e.Err = "kv-closed", errors.New("the connection was closed on our side")
	case errors.Is(err, mcbp.ErrLength), errors.Is(err, mcbp.ErrTooLarge), errors.Is(err, mcbp.ErrMalformed):
		e.Code = "kv-protocol"
	}
	return e
}

// first makes the error of a connection that was closed before the node said
// anything one of class unreachable: a port of another kind may do that. Streams
// are not asked: a node may refuse one by closing its connection.
func (c *Conn) first(err error) error {
	if e, ok := err.(*pump.Error); ok && e.Code == "kv-cut" && c.sniff.begin() == "" {
		e.Class = pump.ClassUnreachable
	}
	return err
}

// silenceHint says what a port that never said anything may be.
func (c *Conn) silenceHint(begin string) string {
	switch {
	case begin != "":
		return ""
	case c.tls:
		return "Is this the data port with TLS of a node (11207)?"
	}
	return "Is this the data port of a node (11210)? One that speaks TLS (11207) does not answer either: for TLS give the cluster's address as https:// or couchbases://."
}

// StatusError is a request that the node answered with a status other than 0.
type StatusError struct {
	Status mcbp.Status
	Text   string // what the server added, made printable; may be empty
	Name   string // the server's own name of the status, where it was asked for one
}

func (e *StatusError) Error() string {
	s := "answered " + mcbp.StatusName(e.Status)
	if e.Name != "" && !strings.Contains(s, e.Name) {
		s += " " + e.Name
	}
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}
