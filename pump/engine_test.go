package pump_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func items(prefix string, n, size int) []pump.Item {
	out := make([]pump.Item, n)
	for i := range out {
		out[i] = pump.Item{Key: fmt.Appendf(nil, "%s%d", prefix, i), Value: bytes.Repeat([]byte{byte(i)}, size), VBucket: uint16(i % 64)}
	}
	return out
}

// quick are settings whose pauses do not slow the tests.
func quick() pump.Settings {
	s := pump.DefaultSettings()
	s.RetryMin, s.RetryMax = time.Microsecond, time.Millisecond
	return s
}

func TestConformanceOfMemory(t *testing.T) {
	parts := [][]pump.Item{items("a", 1000, 10), items("b", 500, 2000), nil}
	pumptest.TestSource(t, pumptest.SourceSuite{
		New:  func(*testing.T) pump.Source { return &pumptest.MemSource{Parts: parts} },
		Want: append(append([]pump.Item{}, parts[0]...), parts[1]...),
	})
	var sink *pumptest.MemSink
	pumptest.TestSink(t, pumptest.SinkSuite{
		New: func(*testing.T) pump.Sink { sink = &pumptest.MemSink{LaneCount: 3}; return sink },
		Read: func(*testing.T) map[string]pump.Item {
			live := sink.Items()
			for k, it := range live {
				if it.Op != pump.Mutation {
					delete(live, k)
				}
			}
			return live
		},
		Compare: []string{"flags", "cas", "rev"},
	})
}

func TestRunCountsAndReconciles(t *testing.T) {
	tooBig := errors.New("too big")
	sink := &pumptest.MemSink{LaneCount: 2, Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
		switch it.Key[len(it.Key)-1] {
		case '3':
			return pump.Rejected, tooBig
		case '7':
			return pump.Skipped, errors.New("newer there")
		}
		return pump.Done, nil
	}}
	var seen atomic.Int64
	report, err := pump.Run(t.Context(), pump.Config{
		Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 1000, 8)}}, Sink: sink, Settings: quick(),
		Filter:    func(it *pump.Item) bool { return !bytes.HasSuffix(it.Key, []byte("9")) },
		OnVerdict: func(*pump.Item, pump.Verdict, error) { seen.Add(1) },
	})
	if pump.ExitCode(err, 0) != 3 {
		t.Fatalf("error %v, want exit code 3", err)
	}
	if report.Read != 900 || report.Filtered != 100 || report.Rejected != 100 || report.Skipped != 100 || report.Done != 700 || seen.Load() != 200 {
		t.Fatalf("%+v, %d seen", report.Snapshot, seen.Load())
	}
	if len(report.Rejections) != 100 || !errors.Is(report.Rejections[0].Cause, tooBig) || len(report.Causes) != 2 {
		t.Fatalf("%d rejections, causes %v", len(report.Rejections), report.Causes)
	}
	if report.BytesDone == 0 || report.BytesDone >= report.BytesRead {
		t.Fatalf("bytes: %d read, %d done", report.BytesRead, report.BytesDone)
	}
}

func TestSinkThatForgetsToReport(t *testing.T) {
	sink := &pumptest.MemSink{Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
		if string(it.Key) == "k5" {
			return pump.Unconfirmed, nil
		}
		return pump.Done, nil
	}}
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 10, 8)}}, Sink: sink, Settings: quick()})
	if pump.CodeOf(err) != "no-verdict" || report.Done != 9 {
		t.Fatalf("error %v, done %d", err, report.Done)
	}
}

func TestRetryGivesUpAfterItsTime(t *testing.T) {
	set := quick()
	set.RetryTime = 20 * time.Millisecond
	down := &pump.Error{Class: pump.ClassUnreachable, Err: errors.New("connection refused")}
	sink := &pumptest.MemSink{Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
		if it.VBucket == 12 {
			return pump.Retry, down
		}
		return pump.Done, nil
	}}
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 64, 8)}}, Sink: sink, Settings: set})
	if pump.ExitCode(err, 0) != 4 || !errors.Is(err, down) || !strings.Contains(err.Error(), "vbucket 12") {
		t.Fatalf("error %v", err)
	}
	if report.Done != 63 || report.Pending() != 1 {
		t.Fatalf("done %d, pending %d", report.Done, report.Pending())
	}
}

func TestBrokenStreamIsOpenedAgain(t *testing.T) {
	var fails atomic.Int64
	src := &pumptest.MemSource{Parts: [][]pump.Item{items("k", 1000, 8)}, BatchSize: 100}
	src.Fail = func(_, given int) error {
		if given == 500 && fails.Add(1) <= 3 {
			return pump.Retryable(errors.New("the connection was cut"))
		}
		return nil
	}
	sink := &pumptest.MemSink{}
	report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: quick()})
	if err != nil || report.Done != 1000 || report.Reopened != 3 {
		t.Fatalf("error %v, done %d, reopened %d", err, report.Done, report.Reopened)
	}
}

// TestUnreachableSourceIsWaitedFor: a node that is down does not use up the
// attempts, since a failover or restart takes its time; but it has an end.
func TestUnreachableSourceIsWaitedFor(t *testing.T) {
	down := pump.Retryable(&pump.Error{Class: pump.ClassUnreachable, Err: errors.New("connection refused")})
	for _, c := range []struct {
		name  string
		fails int64
		limit time.Duration
		exit  int
	}{
		{"comes back", 50, time.Hour, 0},
		{"for ever", 1 << 40, 30 * time.Millisecond, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			var fails atomic.Int64
			src := &pumptest.MemSource{Parts: [][]pump.Item{items("k", 1000, 8)}, BatchSize: 100}
			src.Fail = func(_, given int) error {
				if given == 500 && fails.Add(1) <= c.fails {
					return down
				}
				return nil
			}
			set := quick()
			set.RetryTime = c.limit
			report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: &pumptest.MemSink{}, Settings: set})
			if pump.ExitCode(err, 0) != c.exit || c.exit == 0 && report.Done != 1000 {
				t.Fatalf("error %v, done %d", err, report.Done)
			}
		})
	}
}

func TestStreamFailures(t *testing.T) {
	cut := errors.New("cut")
	for _, c := range []struct {
		name      string
		err       error
		keepGoing bool
		text      string
	}{
		{"for ever", pump.Retryable(cut), false, "given up after 5 attempts: cut"},
		{"at once", cut, false, "cut"},
		{"one of two", cut, true, "cut"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := &pumptest.MemSource{Parts: [][]pump.Item{items("a", 1000, 8), items("b", 1000, 8)}, BatchSize: 10}
			src.Fail = func(stream, given int) error {
				if stream == 0 && given == 100 {
					return c.err
				}
				return nil
			}
			sink := &pumptest.MemSink{}
			report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: quick(), KeepGoing: c.keepGoing})
			if err == nil || pump.ExitCode(err, 0) != 1 || !errors.Is(err, cut) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v", err)
			}
			if report.Read != report.Done || len(sink.Items()) != int(report.Done) {
				t.Fatalf("read %d, done %d, held %d: what was read must be finished", report.Read, report.Done, len(sink.Items()))
			}
			if c.keepGoing && (report.Done != 1100 || report.StreamReports[1].Err != nil || report.StreamReports[0].Err == nil) {
				t.Fatalf("done %d, streams %v", report.Done, report.StreamReports)
			}
		})
	}
}

func TestStopDrains(t *testing.T) {
	stop := make(chan struct{})
	var once sync.Once
	src := &pumptest.MemSource{Parts: [][]pump.Item{items("k", 100000, 100)}, BatchSize: 10}
	sink := &pumptest.MemSink{Verdict: func(int, *pump.Item) (pump.Verdict, error) {
		once.Do(func() { close(stop) })
		return pump.Done, nil
	}}
	report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: quick(), Stop: stop})
	if pump.ClassOf(err) != pump.ClassInterrupted || pump.ExitCode(err, 15) != 143 {
		t.Fatalf("error %v", err)
	}
	if report.Pending() != 0 || report.Done == 0 || report.Done == 100000 || len(sink.Items()) != int(report.Done) {
		t.Fatalf("done %d, pending %d, held %d", report.Done, report.Pending(), len(sink.Items()))
	}
}

func TestDrainHasALimit(t *testing.T) {
	set := quick()
	set.DrainTime = time.Millisecond
	stop := make(chan struct{})
	var once sync.Once
	sink := &pumptest.MemSink{Before: func(ctx context.Context, _ int, b *pump.Batch) error {
		once.Do(func() { close(stop) })
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 100, 8)}}, Sink: sink, Settings: set, Stop: stop})
	if pump.CodeOf(err) != "drain-time" || pump.ClassOf(err) != pump.ClassInterrupted || report.Done != 0 {
		t.Fatalf("error %v, done %d", err, report.Done)
	}
}

func TestCancelStopsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	sink := &pumptest.MemSink{Before: func(ctx context.Context, _ int, b *pump.Batch) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}}
	report, err := pump.Run(ctx, pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 100, 8)}}, Sink: sink, Settings: quick()})
	if pump.ClassOf(err) != pump.ClassInterrupted || report.Done != 0 {
		t.Fatalf("error %v, done %d", err, report.Done)
	}
}

// TestMemoryIsBounded runs a source of 64 MiB through 1 MiB of memory into a
// sink that is blocked, and looks at what has been read when nothing moves.
func TestMemoryIsBounded(t *testing.T) {
	set := quick()
	set.Memory, set.BatchBytes = 1<<20, 64<<10
	src := &pumptest.MemSource{Parts: [][]pump.Item{items("a", 32<<10, 1024), items("b", 32<<10, 1024)}}
	var most, inFlight atomic.Int64
	src.Fail = func(int, int) error { return nil }
	sink := &pumptest.MemSink{LaneCount: 2, Before: func(_ context.Context, _ int, b *pump.Batch) error {
		var n int64
		for i := range b.Items {
			n += int64(b.Items[i].Size())
		}
		if m := inFlight.Add(n); m > most.Load() {
			most.Store(m)
		}
		inFlight.Add(-n)
		return nil
	}}
	report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: set, Scribble: true})
	if err != nil || report.Done != 64<<10 {
		t.Fatalf("error %v, done %d", err, report.Done)
	}
	if most.Load() > int64(set.Memory) {
		t.Fatalf("%d bytes were in the lanes' hands, the limit is %d", most.Load(), set.Memory)
	}
}

func TestItemLargerThanMemory(t *testing.T) {
	set := quick()
	set.Memory, set.BatchBytes = 64<<10, 16<<10
	parts := [][]pump.Item{items("a", 20, 200<<10), items("b", 20, 300<<10), items("c", 1000, 10)}
	sink := &pumptest.MemSink{LaneCount: 3}
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: parts}, Sink: sink, Settings: set, Scribble: true})
	if err != nil || report.Done != 1040 {
		t.Fatalf("error %v, done %d", err, report.Done)
	}
	for _, p := range parts {
		for i := range p {
			if got := sink.Items()[string(p[i].Key)]; !bytes.Equal(got.Value, p[i].Value) {
				t.Fatalf("item %s came out different", p[i].Key)
			}
		}
	}
}

type badRouter struct{ pumptest.MemSink }

func (*badRouter) Route(*pump.Item) int { return 99 }

func TestRouterOutOfRange(t *testing.T) {
	_, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 10, 8)}}, Sink: &badRouter{}, Settings: quick()})
	if pump.CodeOf(err) != "route" {
		t.Fatalf("error %v", err)
	}
}

type refusing struct {
	pumptest.MemSource
	err error
}

func (r *refusing) Check(context.Context) error { return r.err }

func TestCheckComesFirst(t *testing.T) {
	denied := &pump.Error{Class: pump.ClassDenied, Err: errors.New("wrong password")}
	sink := &pumptest.MemSink{Before: func(context.Context, int, *pump.Batch) error { t.Error("written"); return nil }}
	report, err := pump.Run(t.Context(), pump.Config{Source: &refusing{err: denied}, Sink: sink, Settings: quick()})
	if pump.ExitCode(err, 0) != 4 || report == nil {
		t.Fatalf("error %v", err)
	}
}

// slow answers its check only when it is told to stop.
type slow struct{ pumptest.MemSource }

func (*slow) Check(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestStopEndsACheck(t *testing.T) {
	stop := make(chan struct{})
	close(stop)
	report, err := pump.Run(t.Context(), pump.Config{Source: &slow{}, Sink: &pumptest.MemSink{}, Settings: quick(), Stop: stop})
	if pump.ClassOf(err) != pump.ClassInterrupted || report == nil {
		t.Fatalf("error %v", err)
	}
}

type closing struct {
	pumptest.MemSink
	err error
}

func (c *closing) Close() error { return c.err }

func TestErrorOfCloseIsNotLost(t *testing.T) {
	full := errors.New("disk full")
	_, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 10, 8)}}, Sink: &closing{err: full}, Settings: quick()})
	if !errors.Is(err, full) {
		t.Fatalf("error %v", err)
	}
}

// TestModel compares the engine with what it must amount to: whatever the
// destination does to single writes (retries, rejections, skips) and whatever
// breaks in the streams, the destination ends with the last accepted state of
// each key, every item has one verdict, states of one key never go backwards
// for good, and marks come in order and never before their items.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		streams := rapid.IntRange(1, 4).Draw(rt, "streams")
		lanes := rapid.IntRange(1, 4).Draw(rt, "lanes")
		var parts [][]pump.Item
		want := map[string]string{}
		n := 0
		for s := range streams {
			var part []pump.Item
			for range rapid.IntRange(0, 200).Draw(rt, "items") {
				n++
				key := fmt.Sprintf("s%d-k%d", s, rapid.IntRange(0, 20).Draw(rt, "key"))
				it := pump.Item{Key: []byte(key), Value: fmt.Appendf(nil, "%d", n), VBucket: pump.NoVBucket, RevSeqno: uint64(n)}
				part = append(part, it)
				want[key] = string(it.Value)
			}
			parts = append(parts, part)
		}
		retryOf := rapid.IntRange(2, 10).Draw(rt, "one in n is retried")
		breakOf := rapid.IntRange(2, 20).Draw(rt, "one read in n breaks")
		var mu sync.Mutex
		reads := 0
		dice := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "dice"), 1))
		src := &pumptest.MemSource{Parts: parts, BatchSize: rapid.IntRange(1, 50).Draw(rt, "batch")}
		src.Fail = func(int, int) error {
			mu.Lock()
			defer mu.Unlock()
			if reads++; reads%breakOf == 0 {
				return pump.Retryable(io.ErrUnexpectedEOF)
			}
			return nil
		}
		confirmed := map[string]int{}
		sink := &pumptest.MemSink{LaneCount: lanes, Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
			mu.Lock()
			defer mu.Unlock()
			if dice.IntN(retryOf) == 0 {
				return pump.Retry, errors.New("busy")
			}
			return pump.Done, nil
		}}
		last := map[string]uint64{}
		set := quick()
		set.StreamAttempts = 1 << 20
		set.LaneItems = rapid.IntRange(1, 100).Draw(rt, "lane items")
		var to pump.Sink = sink
		if rapid.Bool().Draw(rt, "a second write goes behind the first") {
			to = &aheadSink{MemSink: sink}
			set.LaneBytes = pump.Size(rapid.IntRange(1, 400).Draw(rt, "lane bytes"))
		}
		report, err := pump.Run(context.Background(), pump.Config{Source: src, Sink: to, Settings: set, Scribble: true,
			OnMarks: func(stream string, marks []pump.Mark) {
				held := len(sink.Log())
				mu.Lock()
				defer mu.Unlock()
				for _, m := range marks {
					if m.Seqno < last[stream] {
						rt.Errorf("stream %s: mark %d after %d", stream, m.Seqno, last[stream])
					}
					last[stream] = m.Seqno
				}
				confirmed[stream] = held
			}})
		if err != nil {
			rt.Fatalf("Run: %v", err)
		}
		if report.Read != uint64(n) || report.Done != uint64(n) {
			rt.Fatalf("read %d, done %d, want %d", report.Read, report.Done, n)
		}
		got := sink.Items()
		if len(got) != len(want) {
			rt.Fatalf("%d keys at the destination, want %d", len(got), len(want))
		}
		for k, v := range want {
			if string(got[k].Value) != v {
				rt.Fatalf("key %s holds %s, want %s", k, got[k].Value, v)
			}
		}
		for s, part := range parts {
			if id := fmt.Sprintf("mem-%d", s); last[id] != uint64(len(part)) || confirmed[id] < len(part) {
				rt.Fatalf("stream %s: last mark %d, want %d", id, last[id], len(part))
			}
		}
	})
}

// TestRetryKeepsOrder puts a retried item before a later state of the same key:
// the later state must be there in the end, and other keys are not sent twice.
func TestRetryKeepsOrder(t *testing.T) {
	part := []pump.Item{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("b"), Value: []byte("1")}, {Key: []byte("a"), Value: []byte("2")}}
	first := true
	sink := &pumptest.MemSink{Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
		if first {
			first = false
			return pump.Retry, errors.New("busy")
		}
		return pump.Done, nil
	}}
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{part}}, Sink: sink, Settings: quick()})
	if err != nil || report.Done != 3 || report.Retried != 2 {
		t.Fatalf("error %v, done %d, retried %d", err, report.Done, report.Retried)
	}
	var order []string
	for _, it := range sink.Log() {
		order = append(order, string(it.Key)+string(it.Value))
	}
	if got := strings.Join(order, " "); got != "b1 a2 a1 a2" {
		t.Fatalf("written in the order %s", got)
	}
}

// aheadSink has lanes that take a second batch while the first is not confirmed.
// Batches take effect when they are begun, as at a server.
type aheadSink struct {
	*pumptest.MemSink
	most atomic.Int32 // batches that were under way at once
}

func (s *aheadSink) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	lanes, err := s.MemSink.Lanes(ctx, want)
	for i := range lanes {
		lanes[i] = &aheadLane{Lane: lanes[i], sink: s}
	}
	return lanes, err
}

type aheadLane struct {
	pump.Lane
	sink  *aheadSink
	under []*pump.Batch
}

var errAhead = errors.New("the engine does not keep to the rules of AheadLane")

func (l *aheadLane) Write(ctx context.Context, b *pump.Batch) error {
	if len(l.under) > 0 {
		return errAhead
	}
	return l.Lane.Write(ctx, b)
}

func (l *aheadLane) Begin(ctx context.Context, b *pump.Batch) error {
	l.under = append(l.under, b)
	if n := len(l.under); n > 2 || n == 2 && l.under[0] == b {
		return errAhead
	}
	l.sink.most.Store(max(l.sink.most.Load(), int32(len(l.under))))
	return l.Lane.Write(ctx, b)
}

func (l *aheadLane) Finish(_ context.Context, b *pump.Batch) error {
	if len(l.under) == 0 || l.under[0] != b {
		return errAhead
	}
	l.under = l.under[1:]
	return nil
}

// TestRetryKeepsOrderOverTwoWrites: an early state of a key comes back from the first
// write, while a later one is in the second, which is under way already. The later one
// must be there in the end, and what has nothing to do with it is not sent twice.
func TestRetryKeepsOrderOverTwoWrites(t *testing.T) {
	part := []pump.Item{
		{Key: []byte("x"), Value: []byte("1")}, // is under way until the others have been queued
		{Key: []byte("b"), Value: []byte("1")}, {Key: []byte("a"), Value: []byte("1")},
		{Key: []byte("a"), Value: []byte("2")}, {Key: []byte("c"), Value: []byte("1")},
	}
	for _, lost := range []string{"a1", "b1", "a2", "c1", ""} {
		t.Run(lost, func(t *testing.T) {
			var mu sync.Mutex
			again := lost
			read := make(chan struct{})
			sink := &aheadSink{MemSink: &pumptest.MemSink{Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
				mu.Lock()
				defer mu.Unlock()
				if name := string(it.Key) + string(it.Value); name == again {
					again = ""
					return pump.Retry, errors.New("busy")
				}
				return pump.Done, nil
			}}}
			sink.Before = func(_ context.Context, _ int, b *pump.Batch) error {
				if string(b.Items[0].Key) == "x" {
					<-read // all the others are queued
				}
				return nil
			}
			set := quick()
			set.LaneBytes, set.BatchBytes = 1, 16<<10 // each item is a write of its own
			src := &pumptest.MemSource{Parts: [][]pump.Item{part}, BatchSize: 1}
			src.Fail = func(_, given int) error {
				if given == len(part)-1 {
					// The last but one is queued when the last one is asked for.
					close(read)
				}
				return nil
			}
			report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: set, Scribble: true})
			if err != nil || report.Done != uint64(len(part)) {
				t.Fatalf("error %v, done %d", err, report.Done)
			}
			if sink.most.Load() != 2 {
				t.Error("no second write went behind the first")
			}
			var order []string
			for _, it := range sink.Log() {
				order = append(order, string(it.Key)+string(it.Value))
			}
			if got := string(sink.Items()["a"].Value); got != "2" {
				t.Errorf("a holds %s, written in the order %s", got, strings.Join(order, " "))
			}
			wantRetried := map[string]uint64{"a1": 2, "": 0}
			if want, ok := wantRetried[lost]; !ok && report.Retried != 1 || ok && report.Retried != want {
				t.Errorf("%d items were sent again, in the order %s", report.Retried, strings.Join(order, " "))
			}
		})
	}
}

func BenchmarkEngine(b *testing.B) {
	// One stream hands out the same batch over and over into a sink that only
	// confirms: what is left is the engine's own work for an item.
	src := &loopSource{n: b.N, batch: items("key-", 512, 256)}
	b.ReportAllocs()
	b.ResetTimer()
	report, err := pump.Run(context.Background(), pump.Config{Source: src, Sink: &confirmSink{lanes: 2}, Settings: pump.DefaultSettings()})
	if err != nil || report.Done != uint64(b.N) {
		b.Fatalf("error %v, done %d of %d", err, report.Done, b.N)
	}
}

type loopSource struct {
	n     int
	batch []pump.Item
}

func (s *loopSource) Streams(context.Context) ([]pump.Stream, error) { return []pump.Stream{s}, nil }
func (s *loopSource) Close() error                                   { return nil }
func (s *loopSource) ID() string                                     { return "loop" }
func (s *loopSource) Open(context.Context, []pump.Mark) error        { return nil }
func (s *loopSource) Read(_ context.Context, b *pump.Batch) error {
	n := min(s.n, len(s.batch))
	b.Items = append(b.Items, s.batch[:n]...)
	if s.n -= n; s.n == 0 {
		return io.EOF
	}
	return nil
}

type confirmSink struct{ lanes int }

func (s *confirmSink) Lanes(context.Context, int) ([]pump.Lane, error) {
	out := make([]pump.Lane, s.lanes)
	for i := range out {
		out[i] = confirmLane{}
	}
	return out, nil
}
func (s *confirmSink) Close() error { return nil }

type confirmLane struct{}

func (confirmLane) Write(_ context.Context, b *pump.Batch) error {
	b.SettleRest(pump.Done, nil)
	return nil
}
func (confirmLane) Close() error { return nil }

// TestOnlyEOFItselfIsTheEnd: an error that wraps io.EOF says that something ended too
// early.
func TestOnlyEOFItselfIsTheEnd(t *testing.T) {
	src := &pumptest.MemSource{Parts: [][]pump.Item{items("k", 100, 8)}, Fail: func(_, given int) error {
		return fmt.Errorf("read the header: %w", io.EOF)
	}}
	report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: &pumptest.MemSink{}, Settings: quick()})
	if err == nil || report.StreamReports[0].Err == nil {
		t.Errorf("%v, %+v", err, report.StreamReports)
	}
}

// TestSpread: streams that go through equal parts of the vbuckets side by side keep
// all lanes busy.
func TestSpread(t *testing.T) {
	for _, lanes := range []int{1, 2, 3, 4, 8} {
		for _, vbs := range []int{64, 1024} {
			for _, streams := range []int{2, 4, 8} {
				total := 0
				for at := range vbs / streams {
					used := map[int]bool{}
					for s := range streams {
						lane := pump.Spread(s*vbs/streams+at, lanes)
						if lane < 0 || lane >= lanes {
							t.Fatalf("vbucket %d has lane %d of %d", s*vbs/streams+at, lane, lanes)
						}
						used[lane] = true
					}
					total += len(used)
				}
				// Not all of them everywhere: lanes that are no power of two.
				if mean := float64(total) / float64(vbs/streams); mean < 0.6*float64(min(lanes, streams)) {
					t.Errorf("%d lanes, %d vbuckets, %d streams: %.1f lanes are busy", lanes, vbs, streams, mean)
				}
			}
		}
	}
}

// TestVBucketsChangeLanes: a vbucket may get another lane, but never while a lane has
// items of it, nor after an item of it was rejected, nor at a sink that commits as a
// whole (invariant 5).
func TestVBucketsChangeLanes(t *testing.T) {
	t.Run("as it comes", func(t *testing.T) {
		sink := &pumptest.MemSink{}
		if changeLanes(t, sink, sink) == 0 {
			t.Error("no vbucket had a second lane")
		}
	})
	t.Run("committed", func(t *testing.T) {
		sink := &pumptest.MemSink{}
		if n := changeLanes(t, sink, committed{sink}); n > 0 {
			t.Errorf("%d vbuckets had a second lane", n)
		}
	})
}

type distinct struct {
	*pumptest.MemSource
	is bool
}

func (d distinct) DistinctKeys() bool { return d.is }

// Where no key comes twice a batch goes to a lane as a whole.
func TestDistinctKeys(t *testing.T) {
	for _, is := range []bool{true, false} {
		const batch = 50
		source := &pumptest.MemSource{Parts: make([][]pump.Item, 2), BatchSize: batch}
		for p := range source.Parts {
			for i := range 100 * batch {
				source.Parts[p] = append(source.Parts[p], pump.Item{Key: fmt.Appendf(nil, "%d/%d/%d", p, i/batch, i), VBucket: pump.NoVBucket})
			}
		}
		var mu sync.Mutex
		lanes := map[string]int{} // of a batch's first item that came
		divided := 0
		sink := &pumptest.MemSink{LaneCount: 3}
		sink.Verdict = func(lane int, it *pump.Item) (pump.Verdict, error) {
			mu.Lock()
			defer mu.Unlock()
			name, _, _ := strings.Cut(string(bytes.Replace(it.Key, []byte("/"), []byte("-"), 1)), "/")
			if at, ok := lanes[name]; !ok {
				lanes[name] = lane
			} else if at != lane {
				divided++
			}
			return pump.Done, nil
		}
		report, err := pump.Run(t.Context(), pump.Config{Source: distinct{source, is}, Sink: sink, Settings: quick()})
		if err != nil || report.Done != 2*100*batch || len(lanes) != 200 {
			t.Fatalf("%+v, %d batches, %v", report.Snapshot, len(lanes), err)
		}
		if is != (divided == 0) {
			t.Errorf("distinct %t: %d items in another lane than their batch", is, divided)
		}
	}
}

type committed struct{ *pumptest.MemSink }

func (committed) Commit(context.Context) error { return nil }

// changeLanes writes vbuckets to several lanes, watches them and returns how many
// had more than one. whole is the sink itself, or is made of it.
func changeLanes(t *testing.T, sink *pumptest.MemSink, whole pump.Sink) (moved int) {
	const lanes, vbs = 3, 16
	parts := make([][]pump.Item, 6)
	for p := range parts {
		for i := range 6000 {
			vb := uint16(p*vbs + i/50%vbs)
			parts[p] = append(parts[p], pump.Item{Key: fmt.Appendf(nil, "%d-%d", p, i), Value: make([]byte, 100), VBucket: vb})
		}
	}
	var mu sync.Mutex
	var under [lanes]map[uint16]int // items of a vbucket that a lane has
	for i := range under {
		under[i] = map[uint16]int{}
	}
	bound := map[uint16]int{}             // to the lane that rejected an item
	used := map[uint16]map[int]struct{}{} // lanes of each vbucket
	sink.LaneCount = lanes
	sink.Before = func(_ context.Context, lane int, b *pump.Batch) error {
		mu.Lock()
		defer mu.Unlock()
		for i := range b.Items {
			vb := b.Items[i].VBucket
			under[lane][vb]++
			if used[vb] == nil {
				used[vb] = map[int]struct{}{}
			}
			used[vb][lane] = struct{}{}
			if at, ok := bound[vb]; ok && at != lane {
				return fmt.Errorf("vbucket %d went on in lane %d after lane %d had rejected an item", vb, lane, at)
			}
			for other := range under {
				if other != lane && under[other][vb] > 0 {
					return fmt.Errorf("lanes %d and %d have items of vbucket %d", lane, other, vb)
				}
			}
		}
		return nil
	}
	sink.Verdict = func(lane int, it *pump.Item) (pump.Verdict, error) {
		mu.Lock()
		defer mu.Unlock()
		under[lane][it.VBucket]--
		if it.VBucket%2 == 0 && bytes.HasSuffix(it.Key, []byte("7")) {
			bound[it.VBucket] = lane
			return pump.Rejected, errors.New("not this one")
		}
		return pump.Done, nil
	}
	set := quick()
	set.BatchBytes, set.LaneItems = 16<<10, 64
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: parts, BatchSize: 50}, Sink: whole, Settings: set})
	if pump.ClassOf(err) != pump.ClassPartial || report.Rejected == 0 {
		t.Fatalf("%+v, %v", report.Snapshot, err)
	}
	for _, lanes := range used {
		if len(lanes) > 1 {
			moved++
		}
	}
	return moved
}
