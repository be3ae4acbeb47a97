package recovery

import (
	"context"
	"sync"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// Spent is where the time of a run went, on the clock.
type Spent struct {
	Total time.Duration
	// Moving is while at least one stream was being read, for the transfer or to
	// compare what had come with the source, or one lane of the destination had items
	// to take. Connecting is none of it, even where it is done in the midst of that.
	Moving time.Duration

	// Requests and Connects are how many REST requests and KV connections there were,
	// of both clusters; Requesting and Connecting the sums of how long each took. Most
	// of it goes on beside the moving, and beside each other.
	Requests, Connects     int
	Requesting, Connecting time.Duration
}

// Waiting is the time in which no items were moved or compared: planning, connecting,
// creating vbuckets, committing, and every pause.
func (s Spent) Waiting() time.Duration { return s.Total - s.Moving }

// meter measures Spent. Its clock is a field for tests.
type meter struct {
	now   func() time.Time
	mu    sync.Mutex
	began time.Time
	busy  int       // streams and lanes
	since time.Time // when busy was 0 the last time
	spent Spent
}

func newMeter(now func() time.Time) *meter { return &meter{now: now, began: now()} }

// move notes that a stream or a lane begins (1) or ends (-1) to move items.
func (m *meter) move(by int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy == 0 {
		m.since = m.now()
	}
	if m.busy += by; m.busy == 0 {
		m.spent.Moving += m.now().Sub(m.since)
	}
}

// wait is a cluster.Trace. Who waits for a connection moves nothing.
func (m *meter) wait(ctx context.Context, kind string) (over func()) {
	moving := ctx.Value(movingKey{}) != nil
	if moving {
		m.move(-1)
	}
	began := m.now()
	return func() {
		d := m.now().Sub(began)
		if moving {
			m.move(1)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if kind == cluster.WaitConnect {
			m.spent.Connects++
			m.spent.Connecting += d
		} else {
			m.spent.Requests++
			m.spent.Requesting += d
		}
	}
}

func (m *meter) read() Spent {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.spent
	s.Total = m.now().Sub(m.began)
	return s
}

// movingKey marks the context of a Read or a Write.
type movingKey struct{}

// during runs f as a part of the moving.
func (m *meter) during(ctx context.Context, f func(context.Context) error) error {
	m.move(1)
	defer m.move(-1)
	return f(context.WithValue(ctx, movingKey{}, true))
}

// meteredSource and meteredSink tell the meter when items are moved. They answer
// for what the run has found out already: that the source can be read and how much
// it holds (plan), and that the owners hold what is to be written (prepare).
type meteredSource struct {
	pump.Source
	meter *meter
	items uint64
}

func (s *meteredSource) Unwrap() any { return s.Source }

func (s *meteredSource) Check(context.Context) error { return nil }

func (s *meteredSource) Estimate(context.Context) (pump.Estimate, error) {
	return pump.Estimate{Items: s.items}, nil
}

func (s *meteredSource) Streams(ctx context.Context) ([]pump.Stream, error) {
	return s.meter.streams(s.Source.Streams(ctx))
}

// streams returns streams whose reading counts as moving.
func (m *meter) streams(streams []pump.Stream, err error) ([]pump.Stream, error) {
	for i, st := range streams {
		streams[i] = &meteredStream{st, m}
	}
	return streams, err
}

type meteredStream struct {
	pump.Stream
	meter *meter
}

func (s *meteredStream) Unwrap() any { return s.Stream }

func (s *meteredStream) Read(ctx context.Context, b *pump.Batch) error {
	return s.meter.during(ctx, func(ctx context.Context) error { return s.Stream.Read(ctx, b) })
}

type meteredSink struct {
	pump.Sink
	meter *meter
}

func (s *meteredSink) Unwrap() any { return s.Sink }

func (s *meteredSink) Check(context.Context) error { return nil }

func (s *meteredSink) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	lanes, err := s.Sink.Lanes(ctx, want)
	for i, l := range lanes {
		lanes[i] = &meteredLane{l, s.meter}
	}
	return lanes, err
}

type meteredLane struct {
	pump.Lane
	meter *meter
}

func (l *meteredLane) Unwrap() any { return l.Lane }

func (l *meteredLane) Write(ctx context.Context, b *pump.Batch) error {
	return l.meter.during(ctx, func(ctx context.Context) error { return l.Lane.Write(ctx, b) })
}
