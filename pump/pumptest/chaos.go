package pumptest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"sync"

	"github.com/cbpump/cbpump/pump"
)

// Call is a call of the contract at which a fault can strike.
type Call uint8

// The calls of a source, of its streams, of a sink and of its lanes.
const (
	CallCheckSource Call = iota
	CallStreams
	CallOpen
	CallRead
	CallAcknowledge
	CallCloseStream
	CallCloseSource
	CallCheckSink
	CallLanes
	CallWrite
	CallCloseLane
	CallCommit
	CallCloseSink
	calls // how many there are
)

var callNames = [calls]string{
	"Check of the source", "Streams", "Open", "Read", "Acknowledge", "Close of a stream", "Close of the source",
	"Check of the sink", "Lanes", "Write", "Close of a lane", "Commit", "Close of the sink",
}

func (c Call) String() string { return callNames[c] }

// How is the way in which a call fails.
type How uint8

// The ways to fail. Of a Write, Again, Some, Silent and Reject speak of verdicts
// and return no error.
const (
	// Fail is an error that no other try mends.
	Fail How = iota
	// Again is an error that another try may mend; of a Write, Retry for every item.
	Again
	// Some gives about half of a Write's items the verdict Retry: before the effect
	// they are not written, after it their answer was lost.
	Some
	// Silent leaves about half of a Write's items without a verdict, as a sink with a
	// defect does.
	Silent
	// Reject refuses about half of a Write's items for ever. Before the effect only.
	Reject
	// WrappedEOF is what a plugin returns that passes on the end of a connection for
	// the end of its stream, with words around it.
	WrappedEOF
	// EarlyEOF is io.EOF itself before its time: no error of the kind that a plugin
	// may make, since nothing in it can be told from the proven end. The engine sees
	// through it where the last marks are not of complete parts.
	EarlyEOF
	hows
)

var howNames = [hows]string{"fails for good", "fails, to be tried again", "some items to be sent again",
	"some items without verdict", "some items rejected", "an error around io.EOF", "io.EOF too early"}

func (h How) String() string { return howNames[h] }

// Fault is one way in which one kind of call fails.
type Fault struct {
	Call  Call
	After bool // the call has its effect before it fails
	How   How
}

func (f Fault) String() string {
	when := "before"
	if f.After {
		when = "after"
	}
	return fmt.Sprintf("%s, %s the effect: %s", f.Call, when, f.How)
}

// Strike is a fault at one call of a run.
type Strike struct {
	Fault
	Part int // which stream or lane, from 0; 0 for calls of the source or sink itself
	Nth  int // which call of that kind of that part, from 0
}

func (s Strike) String() string { return fmt.Sprintf("%s (part %d, call %d)", s.Fault, s.Part, s.Nth) }

// Error is what a call that a strike makes fail returns, or its items' cause.
func (s Strike) Error() string { return "chaos: " + s.String() }

// Faults returns every fault that Chaos can make, but EarlyEOF.
func Faults() []Fault {
	var out []Fault
	for c := range calls {
		for _, after := range []bool{false, true} {
			out = append(out, Fault{c, after, Fail})
			switch c {
			case CallOpen, CallRead, CallAcknowledge:
				out = append(out, Fault{c, after, Again})
			case CallWrite:
				out = append(out, Fault{c, after, Again}, Fault{c, after, Some}, Fault{c, after, Silent})
			}
		}
	}
	return append(out, Fault{CallRead, false, WrappedEOF}, Fault{CallWrite, false, Reject})
}

// Plan decides what happens at the nth call of a kind of one stream or lane. It
// depends on nothing else, so that a run can be played again: goroutines may
// interleave differently, but each meets the same faults.
type Plan func(c Call, part, nth int) (Fault, bool)

// Random returns a plan that lets about rate (0 to 1) of the calls fail that one of
// the faults is for. The same seed makes the same plan.
func Random(seed uint64, rate float64, faults ...Fault) Plan {
	byCall := map[Call][]Fault{}
	for _, f := range faults {
		byCall[f.Call] = append(byCall[f.Call], f)
	}
	return func(c Call, part, nth int) (Fault, bool) {
		own := byCall[c]
		r := rand.New(rand.NewPCG(seed, place(c, part, nth)))
		if len(own) == 0 || r.Float64() >= rate {
			return Fault{}, false
		}
		return own[r.IntN(len(own))], true
	}
}

// Exactly returns a plan of the given strikes: what Chaos.Struck said of another
// run, to play it again, or what a test wants to happen.
func Exactly(strikes ...Strike) Plan {
	type site struct {
		c         Call
		part, nth int
	}
	at := map[site]Fault{}
	for _, s := range strikes {
		at[site{s.Call, s.Part, s.Nth}] = s.Fault
	}
	return func(c Call, part, nth int) (Fault, bool) {
		f, ok := at[site{c, part, nth}]
		return f, ok
	}
}

func place(c Call, part, nth int) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, c, part, nth)
	return h.Sum64()
}

// Chaos makes the calls of a source and of a sink fail, as its plan says. One value
// serves one run.
type Chaos struct {
	Plan Plan // nil: nothing fails
	// OnStrike, if not nil, is called at the moment of a fault: before the effect or
	// after it. A test that wants its process killed there does it here. It is called
	// concurrently.
	OnStrike func(Strike)

	mu     sync.Mutex
	struck []Strike
}

// Struck returns the faults that struck, in the order in which they did.
func (c *Chaos) Struck() []Strike {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Strike(nil), c.struck...)
}

// Source returns src with faults. Its other abilities are found as before.
func (c *Chaos) Source(src pump.Source) pump.Source { return &chaosSource{src, counter{chaos: c}} }

// Sink returns sink with faults. Its other abilities are found as before.
func (c *Chaos) Sink(sink pump.Sink) pump.Sink {
	wrapped := &chaosSink{sink, counter{chaos: c}}
	if committer, ok := pump.As[pump.Committer](sink); ok {
		return &chaosCommitter{wrapped, committer}
	}
	return wrapped
}

// counter counts the calls of one stream or lane. A stream's Acknowledge comes from
// another goroutine than its other calls.
type counter struct {
	chaos *Chaos
	part  int
	mu    sync.Mutex
	nth   [calls]int
}

func (n *counter) next(c Call) (Strike, bool) {
	n.mu.Lock()
	s := Strike{Part: n.part, Nth: n.nth[c]}
	n.nth[c]++
	n.mu.Unlock()
	if n.chaos.Plan == nil {
		return s, false
	}
	var strikes bool
	s.Fault, strikes = n.chaos.Plan(c, s.Part, s.Nth)
	return s, strikes
}

func (c *Chaos) strike(s Strike) {
	c.mu.Lock()
	c.struck = append(c.struck, s)
	c.mu.Unlock()
	if c.OnStrike != nil {
		c.OnStrike(s)
	}
}

// failure is the error of a strike, once it has struck.
func (s Strike) failure() error {
	switch s.How {
	case Again:
		return pump.Retryable(s)
	case WrappedEOF:
		return fmt.Errorf("%w: %w", s, io.EOF)
	case EarlyEOF:
		return io.EOF
	}
	return s
}

// around makes a call that returns nothing but an error.
func (n *counter) around(c Call, effect func() error) error {
	s, strikes := n.next(c)
	if strikes && !s.After {
		n.chaos.strike(s)
		switch c {
		case CallCloseStream, CallCloseSource, CallCloseLane, CallCloseSink:
			_ = effect() // a Close that fails lets go all the same
		}
		return s.failure()
	}
	if err := effect(); err != nil || !strikes {
		return err
	}
	n.chaos.strike(s)
	return s.failure()
}

type chaosSource struct {
	pump.Source
	counter
}

func (s *chaosSource) Unwrap() any { return s.Source }

func (s *chaosSource) Check(ctx context.Context) error {
	return s.around(CallCheckSource, func() error {
		if c, ok := pump.As[pump.Checker](s.Source); ok {
			return c.Check(ctx)
		}
		return nil
	})
}

func (s *chaosSource) Streams(ctx context.Context) (streams []pump.Stream, err error) {
	err = s.around(CallStreams, func() (err error) {
		streams, err = s.Source.Streams(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, st := range streams {
		streams[i] = &chaosStream{Stream: st, counter: counter{chaos: s.chaos, part: i}}
	}
	return streams, nil
}

func (s *chaosSource) Close() error { return s.around(CallCloseSource, s.Source.Close) }

type chaosStream struct {
	pump.Stream
	counter

	life context.Context // until the connection is broken, or closed
	cut  context.CancelCauseFunc
}

func (s *chaosStream) Unwrap() any { return s.Stream }

func (s *chaosStream) Open(ctx context.Context, from []pump.Mark) error {
	life, end := context.WithCancelCause(ctx)
	s.mu.Lock()
	s.life, s.cut = life, end
	s.mu.Unlock()
	return s.around(CallOpen, func() error { return s.Stream.Open(ctx, from) })
}

// Read fails before it has read, or with items in the batch, which count.
func (s *chaosStream) Read(ctx context.Context, b *pump.Batch) error {
	s.mu.Lock()
	life, end := s.life, s.cut
	s.mu.Unlock()
	// What breaks the stream from outside ends a Read that waits.
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	defer stop()
	k, strikes := s.next(CallRead)
	if strikes && !k.After {
		s.chaos.strike(k)
		return k.failure()
	}
	err := s.Stream.Read(life, b)
	var broken Strike
	switch {
	case errors.As(context.Cause(life), &broken):
		return broken.failure()
	case !strikes || err != nil && err != io.EOF:
		return err
	}
	s.chaos.strike(k)
	return k.failure()
}

// Acknowledge that fails breaks the stream, as the engine expects: its Read says so.
func (s *chaosStream) Acknowledge(ctx context.Context, confirmed []pump.Mark) error {
	a, ok := pump.As[pump.Acknowledger](s.Stream)
	if !ok {
		return nil
	}
	err := s.around(CallAcknowledge, func() error { return a.Acknowledge(ctx, confirmed) })
	if err != nil {
		s.mu.Lock()
		s.cut(err)
		s.mu.Unlock()
	}
	return err
}

func (s *chaosStream) Close() error {
	s.mu.Lock()
	if s.cut != nil {
		s.cut(nil)
	}
	s.mu.Unlock()
	return s.around(CallCloseStream, s.Stream.Close)
}

type chaosSink struct {
	pump.Sink
	counter
}

func (s *chaosSink) Unwrap() any { return s.Sink }

func (s *chaosSink) Check(ctx context.Context) error {
	return s.around(CallCheckSink, func() error {
		if c, ok := pump.As[pump.Checker](s.Sink); ok {
			return c.Check(ctx)
		}
		return nil
	})
}

// Lanes returns the lanes also with an error, since they are to be closed.
func (s *chaosSink) Lanes(ctx context.Context, want int) (lanes []pump.Lane, err error) {
	err = s.around(CallLanes, func() (err error) {
		lanes, err = s.Sink.Lanes(ctx, want)
		return err
	})
	for i, l := range lanes {
		lanes[i] = &chaosLane{Lane: l, counter: counter{chaos: s.chaos, part: i}}
	}
	return lanes, err
}

// chaosCommitter is a sink that counts only as a whole: the engine saves no progress
// of such a one, so others must not look like it.
type chaosCommitter struct {
	*chaosSink
	committer pump.Committer
}

func (s *chaosCommitter) Commit(ctx context.Context) error {
	return s.around(CallCommit, func() error { return s.committer.Commit(ctx) })
}

func (s *chaosSink) Close() error { return s.around(CallCloseSink, s.Sink.Close) }

type chaosLane struct {
	pump.Lane
	counter
	part pump.Batch // what of a batch is written
	orig []int      // index in the batch of each item of part
}

func (l *chaosLane) Unwrap() any { return l.Lane }

func (l *chaosLane) Close() error { return l.around(CallCloseLane, l.Lane.Close) }

func (l *chaosLane) Write(ctx context.Context, b *pump.Batch) error {
	k, strikes := l.next(CallWrite)
	switch {
	case !strikes:
		return l.Lane.Write(ctx, b)
	case k.After:
		if err := l.Lane.Write(ctx, b); err != nil {
			return err
		}
		l.chaos.strike(k)
		return l.lose(b, k)
	}
	l.chaos.strike(k)
	switch k.How {
	case Fail:
		return k
	case Again:
		b.SettleRest(pump.Retry, k)
		return nil
	}
	// The others are written; the last word on an item is the inner lane's or ours.
	chosen := k.choose(b)
	l.part.Items, l.orig = l.part.Items[:0], l.orig[:0]
	for i := range b.Items {
		switch {
		case !chosen[i]:
			l.part.Items = append(l.part.Items, b.Items[i])
			l.orig = append(l.orig, i)
		case k.How == Some:
			b.Settle(i, pump.Retry, k)
		case k.How == Reject:
			b.Settle(i, pump.Rejected, k)
		}
	}
	l.part.StartWrite()
	err := l.Lane.Write(ctx, &l.part)
	for j, i := range l.orig {
		if v := l.part.Verdict(j); v != pump.Unconfirmed {
			b.Settle(i, v, l.part.Cause(j))
		}
	}
	return err
}

// lose takes verdicts back that were given, as if the answers had not come.
func (l *chaosLane) lose(b *pump.Batch, k Strike) error {
	chosen := k.choose(b)
	type said struct {
		v   pump.Verdict
		why error
	}
	had := make([]said, len(b.Items))
	for i := range b.Items {
		had[i] = said{b.Verdict(i), b.Cause(i)}
	}
	b.StartWrite()
	for i, h := range had {
		switch {
		case k.How == Fail:
		case k.How == Again, k.How == Some && chosen[i]:
			if h.v == pump.Done {
				h = said{pump.Retry, k}
			}
			fallthrough
		case !chosen[i]:
			if h.v != pump.Unconfirmed {
				b.Settle(i, h.v, h.why)
			}
		}
	}
	if k.How == Fail {
		return k
	}
	return nil
}

// choose picks about half of a batch's items, at least one, and always the same
// ones.
func (s Strike) choose(b *pump.Batch) []bool {
	r := rand.New(rand.NewPCG(place(s.Call, s.Part, s.Nth), uint64(len(b.Items))))
	chosen := make([]bool, len(b.Items))
	for i := range chosen {
		chosen[i] = r.IntN(2) == 0
	}
	if len(chosen) > 0 {
		chosen[r.IntN(len(chosen))] = true
	}
	return chosen
}
