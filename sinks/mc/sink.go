package mc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/internal/pipe"
)

// MaxKey is the longest key in bytes that memcached and Couchbase take.
const MaxKey = 250

// maxValue is the largest value in bytes that is sent at all, well above what any
// server takes: beyond it lengths would not be believed by the other side either.
const maxValue = mcbp.MaxBody - 1024

// relativeLimit is the largest expiry that memcached (and Couchbase up to 2.5)
// takes for a number of seconds from now instead of a time: 30 days.
const relativeLimit = 30 * 24 * 60 * 60

// Options of the memcached sink.
type Options struct {
	Operation string        `opt:"operation" default:"set" enum:"set,add,get" help:"set stores each item; add stores only keys that the destination does not have; get stores nothing and tells which keys are there"`
	Timeout   time.Duration `opt:"timeout" default:"30s" help:"silence of the server after which a connection is given up"`
}

// Config is what New needs.
type Config struct {
	Addr     string // host:port or host; the port is 11211 unless given
	Username string // SASL PLAIN if not empty
	Password string // a secret
	Options
	Log hclog.Logger // may be nil
}

// Plugin declares the memcached sink.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes: []string{"memcached"},
		Summary: "one memcached server, binary protocol: memcached://host[:11211]",
		Doc: "Keys, values, flags and expiry are stored; CAS and revisions cannot be. Deletions and expirations delete the key.\n\n" +
			"With operation=add nothing that the server holds is changed, so deletions are skipped. " +
			"An item whose time is over is stored with a time in the past: the server's own clock decides, and it never lives on. " +
			"Compressed values are unpacked on the way; values with extended attributes are rejected, since memcached's clients could not read them (-x xattrs=no has a source that is read over DCP leave them out).\n\n" +
			"With user and password given the sink logs in with SASL PLAIN. " +
			"A server that has vbuckets is refused: it is a node of Couchbase, whose address is http://host:8091.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Sink, error) {
			if strings.Contains(strings.TrimPrefix(t.Rest, "//"), "/") {
				return nil, pump.Usagef("sink %s: memcached has no buckets or paths; write memcached://host:port", t.Name())
			}
			return New(Config{Addr: t.Host(), Username: t.Username, Password: t.Password, Options: o, Log: t.Log})
		},
	}
}

// Sink writes to one memcached server.
type Sink struct {
	cfg   Config
	where string
	// password is a function so that no printed sink shows it (invariant 9).
	password func() string
	life     life
}

// New returns a sink for one memcached server. It does not connect.
func New(cfg Config) (*Sink, error) {
	addr, err := hostPort(cfg.Addr, "11211")
	if err != nil {
		return nil, pump.Usagef("sink memcached: %w", err)
	}
	cfg.Addr = addr
	if cfg.Operation == "" {
		cfg.Operation = "set"
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	password := cfg.Password
	cfg.Password = ""
	return &Sink{cfg: cfg, where: "memcached " + addr, password: func() string { return password }}, nil
}

func hostPort(s, port string) (string, error) {
	if s == "" {
		return "", errors.New("the host is missing")
	}
	if h, p, err := net.SplitHostPort(s); err == nil && h != "" && p != "" {
		return s, nil
	}
	h := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if strings.HasSuffix(h, ":") || (strings.Contains(h, ":") && net.ParseIP(h) == nil) {
		return "", fmt.Errorf("%q is not host:port", s)
	}
	return net.JoinHostPort(h, port), nil
}

// defaultLanes is the number of connections unless the user says otherwise: as many
// as there are processors, but no more than memcached has threads. Each has a second
// write under way behind the first, so that more of them wait no less.
func defaultLanes() int { return max(2, min(4, runtime.GOMAXPROCS(0))) }

// Lanes connects once, so that a closed port or a refused login is an error
// before anything is read, and returns want lanes (2 to 4 if want is 0).
func (s *Sink) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	if want <= 0 {
		want = defaultLanes()
	}
	first, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	lanes := make([]pump.Lane, want)
	for i := range lanes {
		lanes[i] = &lane{sink: s, rulings: NewRulings(s.where), op: s.cfg.Operation}
	}
	lanes[0].(*lane).pipe = first
	return lanes, nil
}

// Check connects, logs in and makes sure that there are no vbuckets.
func (s *Sink) Check(ctx context.Context) error {
	p, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer p.Close() // nothing was written
	return s.refuseVBuckets(ctx, p)
}

// refuseVBuckets asks for the states of vbuckets. A node of Couchbase would take
// every item into vbucket 0, where no client looks for it; memcached and buckets of
// memcached type know no such statistics.
func (s *Sink) refuseVBuckets(ctx context.Context, p *pipe.Pipe) error {
	p.Begin(ctx, 1, 1)
	p.Out = mcbp.AppendFrame(p.Out, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpStat, Opaque: p.Opaque(0)}, nil, []byte("vbucket"), nil)
	p.End()
	if err := p.Wait(); err != nil {
		return s.lostAsking("ask "+s.where+" for vbuckets", err)
	}
	for i := range p.Answers() {
		h := &p.Answers()[i].Header
		switch has := h.Status() == mcbp.StatusOK && h.KeyLen > 0; {
		case has, h.Status() == mcbp.StatusNotMyVBucket:
			return s.vbucketsThere("the server has vbuckets")
		case h.Status() == mcbp.StatusAccess, h.Status() == mcbp.StatusNoBucket: // only Couchbase has these
			return s.vbucketsThere("the server does not say whether it has vbuckets (" + mcbp.StatusName(h.Status()) + ")")
		}
	}
	return nil
}

func (s *Sink) vbucketsThere(why string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: "not-memcached", Op: "write to " + s.where, Err: errors.New(why),
		Hint: "this is a node of a Couchbase cluster: write to it with http:// or couchbase:// and its REST port (8091)"}
}

// Identity is the address. A user is the bucket of memcached type that it stands for.
func (s *Sink) Identity(context.Context) (pump.Identity, error) {
	return pump.Identity{Name: s.where, Bucket: s.cfg.Username, KV: []string{s.cfg.Addr}}, nil
}

// Close has nothing to release: lanes own the connections.
func (s *Sink) Close() error { return nil }

// Attest implements pump.Attester: is the server the one that confirmed what was
// written?
func (s *Sink) Attest(ctx context.Context) error {
	if s.life.name == "" {
		return nil
	}
	p, err := s.dial(ctx)
	if err != nil {
		return err
	}
	return p.Close()
}

// Datatypes: memcached keeps no datatypes, and its clients read plain values.
func (s *Sink) Datatypes(context.Context) (uint8, error) { return pump.DatatypeJSON, nil }

// dial connects and logs in. The NOOP behind proves that the peer speaks the
// protocol.
func (s *Sink) dial(ctx context.Context) (*pipe.Pipe, error) {
	op := "connect to " + s.where
	d := net.Dialer{Timeout: s.cfg.Timeout}
	conn, err := d.DialContext(ctx, "tcp", s.cfg.Addr)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &pump.Error{Class: pump.ClassUnreachable, Code: "unreachable", Op: op, Err: err, Retry: true,
			Hint: "check that memcached runs there and listens on that address"}
	}
	rd := mcbp.NewReader(conn)
	p := pipe.New(conn, rd, s.cfg.Timeout)
	p.Begin(ctx, 1, 1)
	if s.cfg.Username != "" {
		p.Out = mcbp.AppendFrame(p.Out, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpSASLAuth, Opaque: p.Opaque(0)},
			nil, []byte("PLAIN"), mcbp.SASLPlain(s.cfg.Username, s.password()))
	}
	p.End()
	err = p.Wait()
	// A server that refuses may close before the fence: its word counts first.
	for i := range p.Answers() {
		if a := &p.Answers()[i]; a.Header.Status() != mcbp.StatusOK {
			e := &pump.Error{Class: pump.ClassDenied, Code: "access-denied", Op: "log in to " + s.where,
				Err:  fmt.Errorf("the server refuses user and password (%s)", mcbp.StatusName(a.Header.Status())),
				Hint: "check the destination's user and password (-U and -P)"}
			if a.Header.Status() == mcbp.StatusUnknown {
				e.Err = fmt.Errorf("the server does not know logins (%s)", mcbp.StatusName(a.Header.Status()))
				e.Hint = "leave the destination's user and password out, or start memcached with -S"
			}
			err = e
		}
	}
	if err == nil {
		err = s.greet(conn, rd)
	}
	if err == nil {
		return p, nil
	}
	_ = p.Close()
	return nil, s.lost(op, err)
}

// lost says how the loss of a connection is reported: wrong protocol and refused
// logins stop, everything else may be tried again.
func (s *Sink) lost(op string, err error) error {
	var e *pump.Error
	switch {
	case errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, mcbp.ErrMagic), errors.Is(err, mcbp.ErrLength), errors.Is(err, mcbp.ErrTooLarge):
		return &pump.Error{Class: pump.ClassUnreachable, Code: "not-memcached", Op: op, Err: err,
			Hint: "the port does not speak memcached's binary protocol: check the address, that it is not a TLS or HTTP port, and that memcached does not run with -B ascii"}
	}
	return &pump.Error{Class: pump.ClassUnreachable, Code: "destination-lost", Op: op, Err: err, Retry: true}
}

// lostAsking is lost, at a question that only some servers answer.
func (s *Sink) lostAsking(op string, err error) error {
	err = s.lost(op, err)
	var e *pump.Error
	if errors.As(err, &e) && e.Code == "destination-lost" {
		e.Hint = "is this a node of a Couchbase cluster? From 5.0 on they hang up on who is not logged in; write to it with http:// or couchbase://"
	}
	return err
}

// lane is one connection. It is a pump.AheadLane.
type lane struct {
	sink    *Sink
	op      string
	pipe    *pipe.Pipe   // nil when not connected
	under   []*pipe.Pipe // of the writes that are under way, the oldest first; nil: it could not connect
	rulings *Rulings
	gaveUp  net.Addr // our end of the connection before, if not all was answered there
}

// Write sends the batch and waits until all of it is answered.
func (l *lane) Write(ctx context.Context, b *pump.Batch) error {
	if err := l.Begin(ctx, b); err != nil {
		return err
	}
	return l.Finish(ctx, b)
}

// Begin sends the batch behind one fence. Order per key is the batch's order
// (invariant 5): one connection, one stream of requests.
func (l *lane) Begin(ctx context.Context, b *pump.Batch) error {
	if l.pipe == nil {
		p, err := l.sink.dial(ctx)
		if err == nil && l.gaveUp != nil {
			if err = l.sink.awaitEnd(ctx, l.gaveUp, p.LocalAddr()); err != nil {
				_ = p.Close()
			}
		}
		if err != nil {
			l.under = append(l.under, nil)
			return settleLost(b, err)
		}
		l.pipe, l.gaveUp = p, nil
	}
	p := l.pipe
	l.under = append(l.under, p)
	p.Begin(ctx, b.Len(), b.Len())
	for i := range b.Items {
		it := &b.Items[i]
		if why := l.rejects(it); why != nil {
			b.Settle(i, pump.Rejected, why)
			continue
		}
		deletes := it.Op != pump.Mutation
		switch {
		case l.op == "get":
			p.Out = mcbp.AppendKeyed(p.Out, mcbp.OpGetQ, p.Opaque(i), 0, 0, it.Key)
		case deletes && l.op == "add":
			b.Settle(i, pump.Skipped, errAddDeletes)
		case deletes:
			p.Out = mcbp.AppendKeyed(p.Out, mcbp.OpDeleteQ, p.Opaque(i), 0, 0, it.Key)
		case l.op == "add":
			p.Out = mcbp.AppendStore(p.Out, mcbp.OpAddQ, p.Opaque(i), 0, 0, it.Flags, AbsoluteExpiry(it.Expiry), it.Key, it.Value)
		default:
			p.Out = mcbp.AppendStore(p.Out, mcbp.OpSetQ, p.Opaque(i), 0, 0, it.Flags, AbsoluteExpiry(it.Expiry), it.Key, it.Value)
		}
		p.Sent()
	}
	p.End()
	return nil
}

// Finish waits for the answers to the batch that was begun first.
func (l *lane) Finish(_ context.Context, b *pump.Batch) error {
	p := l.under[0]
	l.under = l.under[:copy(l.under, l.under[1:])]
	if p == nil {
		return nil // settled when it was begun
	}
	err := p.Wait()
	var stop error
	answers := p.Answers()
	for i := range answers {
		a := &answers[i]
		r := l.rulings.Of(l.request(&b.Items[a.Index]), a.Header.Status())
		switch {
		case a.Header.Status() == mcbp.StatusNotMyVBucket:
			stop = l.sink.vbucketsThere("the server has vbuckets (" + mcbp.StatusName(a.Header.Status()) + ")")
		case r.Stop:
			stop = r.Cause
		case l.op == "get" && r.Verdict == pump.Done && b.Items[a.Index].Op != pump.Mutation:
			b.Settle(a.Index, pump.Skipped, errStillThere)
		default:
			settle(b, a.Index, r)
		}
	}
	if err != nil {
		if l.pipe == p {
			l.pipe, l.gaveUp = nil, p.LocalAddr()
		}
		_ = p.Close()
		if stop != nil {
			return stop
		}
		return settleLost(b, l.sink.lost("write to "+l.sink.where, err))
	}
	switch {
	case stop != nil: // the refused items stay unconfirmed
		l.settleUnanswered(b, answers)
		return stop
	case l.op == "get":
		l.settleGet(b)
	default:
		b.SettleRest(pump.Done, nil)
	}
	return nil
}

// settleUnanswered confirms what the fence confirms in a write in which some
// answers stop the run.
func (l *lane) settleUnanswered(b *pump.Batch, answers []pipe.Answer) {
	if l.op == "get" {
		return
	}
	answered := make(map[int]bool, len(answers))
	for i := range answers {
		answered[answers[i].Index] = true
	}
	for i := range b.Items {
		if !answered[i] && b.Verdict(i) == pump.Unconfirmed {
			b.Done(i)
		}
	}
}

// settleGet settles what a GETQ did not answer: the key is not there. That is
// as it should be for a deletion.
func (l *lane) settleGet(b *pump.Batch) {
	for i := range b.Items {
		if b.Verdict(i) != pump.Unconfirmed {
			continue
		}
		if b.Items[i].Op == pump.Mutation {
			b.Settle(i, pump.Skipped, errNotThere)
		} else {
			b.Done(i)
		}
	}
}

func (l *lane) request(it *pump.Item) Request {
	switch {
	case l.op == "get":
		return ReqGet
	case it.Op != pump.Mutation:
		return ReqDelete
	case l.op == "add":
		return ReqAdd
	}
	return ReqSet
}

// rejects returns why an item cannot be sent at all: memcached closes the
// connection on a key that is too long.
func (l *lane) rejects(it *pump.Item) error {
	switch {
	case len(it.Key) == 0 || len(it.Key) > MaxKey:
		return errKey
	case l.op != "get" && it.Op == pump.Mutation && it.Datatype&^mcbp.DatatypeJSON != 0:
		return errDatatype
	case len(it.Value) > maxValue:
		return errHuge
	}
	return nil
}

// Close closes the connection.
func (l *lane) Close() error {
	if l.pipe == nil {
		return nil
	}
	p := l.pipe
	l.pipe = nil
	return p.Close()
}

// Causes that need no more than a name.
var (
	errKey           = &pump.Error{Code: "item-key", Err: fmt.Errorf("a key must have 1 to %d bytes", MaxKey)}
	errCollectionKey = &pump.Error{Code: "item-key", Err: fmt.Errorf("in a named collection a key must have 1 to %d bytes", MaxCollectionKey)}
	errHuge          = &pump.Error{Code: "item-too-large", Err: errors.New("no server takes a value of more than 63 MiB")}
	errDatatype      = &pump.Error{Code: "item-datatype", Err: errors.New("the value has extended attributes, is compressed or of an unknown datatype, which the destination cannot store"),
		Hint: "a source that is read over DCP leaves extended attributes out with -x xattrs=no"}
	errAddDeletes = &pump.Error{Code: "add-deletes", Err: errors.New("operation add leaves alone what the destination has, so it deletes nothing")}
	errStillThere = &pump.Error{Code: "still-there", Err: errors.New("the source deleted the key, the destination has it")}
	errNotThere   = &pump.Error{Code: "not-found", Err: errors.New("the destination does not have the key")}
)

// AbsoluteExpiry returns an expiry that a server cannot take for a number of
// seconds from now: a time in January 1970 becomes one that is later, and over
// all the same. Whether any other time is over is left to the server's clock.
func AbsoluteExpiry(e uint32) uint32 {
	if e != 0 && e <= relativeLimit {
		return relativeLimit + 1
	}
	return e
}

// settle settles an item that was answered. A success never takes back what an
// earlier answer about the same item said.
func settle(b *pump.Batch, i int, r Ruling) {
	switch {
	case r.Cause != nil:
		b.Settle(i, r.Verdict, r.Cause)
	case b.Verdict(i) == pump.Unconfirmed:
		b.Done(i)
	}
}

// settleLost gives everything unconfirmed another try when err allows one, and
// returns err when it does not.
func settleLost(b *pump.Batch, err error) error {
	if !pump.IsRetryable(err) {
		return err
	}
	b.SettleRest(pump.Retry, err)
	return nil
}
