package pumptest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quick() pump.Settings {
	s := pump.DefaultSettings()
	s.RetryMin, s.RetryMax = time.Microsecond, time.Millisecond
	return s
}

func some(n int) (out []pump.Item) {
	for i := range n {
		out = append(out, pump.Item{Key: fmt.Appendf(nil, "key-%d", i), Value: fmt.Appendf(nil, "value-%d", i), VBucket: pump.NoVBucket})
	}
	return out
}

// committing is a memory sink that wants a Commit.
type committing struct {
	pumptest.MemSink
	committed, closed bool
}

func (c *committing) Commit(context.Context) error { c.committed = true; return nil }
func (c *committing) Close() error                 { c.closed = true; return nil }

// TestEveryFault: what a fault at the second call of its kind (the first, where
// there is one only) does to a run, and what it leaves at the destination.
func TestEveryFault(t *testing.T) {
	mended := []pumptest.Fault{
		{Call: pumptest.CallOpen, How: pumptest.Again}, {Call: pumptest.CallOpen, How: pumptest.Again, After: true},
		{Call: pumptest.CallRead, How: pumptest.Again}, {Call: pumptest.CallRead, How: pumptest.Again, After: true},
		{Call: pumptest.CallWrite, How: pumptest.Again}, {Call: pumptest.CallWrite, How: pumptest.Again, After: true},
		{Call: pumptest.CallWrite, How: pumptest.Some}, {Call: pumptest.CallWrite, How: pumptest.Some, After: true},
	}
	for _, f := range append(pumptest.Faults(), pumptest.Fault{Call: pumptest.CallRead, How: pumptest.EarlyEOF}) {
		t.Run(f.String(), func(t *testing.T) {
			if f.Call == pumptest.CallAcknowledge {
				return // TestAcknowledge
			}
			nth := 0
			if f.Call == pumptest.CallRead || f.Call == pumptest.CallWrite {
				nth = 1
			}
			chaos := &pumptest.Chaos{Plan: pumptest.Exactly(pumptest.Strike{Fault: f, Nth: nth})}
			source := &pumptest.MemSource{Parts: [][]pump.Item{some(100)}, BatchSize: 30}
			sink := &committing{}
			set := quick()
			set.LaneItems = 10
			report, err := pump.Run(t.Context(), pump.Config{Source: chaos.Source(source), Sink: chaos.Sink(sink), Settings: set, Scribble: true})
			if struck := chaos.Struck(); len(struck) != 1 || struck[0].Fault != f || struck[0].Nth != nth {
				t.Fatalf("what struck: %v", struck)
			}
			held := len(sink.Items())
			switch {
			case slices.Contains(mended, f):
				if err != nil || report.Done != 100 || held != 100 || !sink.committed {
					t.Errorf("%v, done %d, held %d, committed %t", err, report.Done, held, sink.committed)
				}
			case f.How == pumptest.Reject:
				if pump.ExitCode(err, 0) != 3 || report.Rejected == 0 || report.Rejected+uint64(held) != 100 {
					t.Errorf("%v, rejected %d, held %d", err, report.Rejected, held)
				}
			default:
				if err == nil || pump.ClassOf(err) == pump.ClassPartial || held < int(report.Done) {
					t.Errorf("%v, done %d, held %d", err, report.Done, held)
				}
				if f.How == pumptest.Fail && !strings.Contains(err.Error(), "chaos: ") {
					t.Errorf("another error: %v", err)
				}
			}
			// What was done before the failure shows whether it struck before or after.
			switch f.Call {
			case pumptest.CallCommit:
				if sink.committed != f.After {
					t.Errorf("committed: %t", sink.committed)
				}
			case pumptest.CallCloseSink:
				if !sink.closed {
					t.Error("the sink leaks")
				}
			case pumptest.CallWrite:
				if n := uint64(held); f.How == pumptest.Fail && (n > report.Done) != f.After {
					t.Errorf("held %d, done %d", n, report.Done)
				}
			}
		})
	}
}

// patient is a source whose streams wait until something is acknowledged.
type patient struct{ pumptest.MemSource }

func (p *patient) Streams(ctx context.Context) ([]pump.Stream, error) {
	streams, err := p.MemSource.Streams(ctx)
	for i, s := range streams {
		streams[i] = &patientStream{Stream: s, acked: make(chan struct{}, 100)}
	}
	return streams, err
}

type patientStream struct {
	pump.Stream
	acked chan struct{}
	given bool
}

func (p *patientStream) Open(ctx context.Context, from []pump.Mark) error {
	p.given = false
	return p.Stream.Open(ctx, from)
}

func (p *patientStream) Read(ctx context.Context, b *pump.Batch) error {
	if p.given {
		select {
		case <-p.acked:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	p.given = true
	return p.Stream.Read(ctx, b)
}

func (p *patientStream) Acknowledge(context.Context, []pump.Mark) error {
	p.acked <- struct{}{}
	return nil
}

// TestAcknowledge: a failed acknowledgement breaks the stream, also one whose Read
// waits for it.
func TestAcknowledge(t *testing.T) {
	for _, after := range []bool{false, true} {
		for how, ok := range map[pumptest.How]bool{pumptest.Again: true, pumptest.Fail: false} {
			f := pumptest.Fault{Call: pumptest.CallAcknowledge, How: how, After: after}
			t.Run(f.String(), func(t *testing.T) {
				source := &patient{pumptest.MemSource{Parts: [][]pump.Item{some(100)}, BatchSize: 10}}
				chaos := &pumptest.Chaos{Plan: pumptest.Exactly(pumptest.Strike{Fault: f, Nth: 3})}
				sink := &pumptest.MemSink{}
				report, err := pump.Run(t.Context(), pump.Config{Source: chaos.Source(source), Sink: sink, Settings: quick()})
				if (err == nil) != ok || ok && (report.Reopened == 0 || len(sink.Items()) != 100) {
					t.Errorf("%v, opened again %d times, %d items", err, report.Reopened, len(sink.Items()))
				}
				if len(chaos.Struck()) != 1 {
					t.Errorf("what struck: %v", chaos.Struck())
				}
			})
		}
	}
}

// TestReplay: the same seed does the same, and so do the strikes that it made.
func TestReplay(t *testing.T) {
	run := func(plan pumptest.Plan) ([]pumptest.Strike, string) {
		chaos := &pumptest.Chaos{Plan: plan}
		set := quick()
		set.LaneItems = 7
		report, err := pump.Run(t.Context(), pump.Config{Settings: set,
			Source: chaos.Source(&pumptest.MemSource{Parts: [][]pump.Item{some(50)}, BatchSize: 10}), Sink: chaos.Sink(&pumptest.MemSink{})})
		return chaos.Struck(), fmt.Sprint(report.Done, err)
	}
	different := map[string]bool{}
	for seed := range uint64(50) {
		plan := pumptest.Random(seed, 0.1, pumptest.Faults()...)
		for c := pumptest.CallStreams; c <= pumptest.CallCloseSink; c++ {
			for part := range 3 {
				for nth := range 20 {
					f, ok := plan(c, part, nth)
					if g, again := pumptest.Random(seed, 0.1, pumptest.Faults()...)(c, part, nth); f != g || ok != again {
						t.Fatalf("seed %d, %s %d %d: %v, then %v", seed, c, part, nth, f, g)
					}
					if ok && f.Call != c {
						t.Fatalf("%s at %s", f, c)
					}
				}
			}
		}
		// How items fall into writes depends on timing; the other calls do not.
		var timeless []pumptest.Fault
		for _, f := range pumptest.Faults() {
			if f.Call != pumptest.CallWrite && f.Call != pumptest.CallAcknowledge {
				timeless = append(timeless, f)
			}
		}
		struck, end := run(pumptest.Random(seed, 0.1, timeless...))
		again, sameEnd := run(pumptest.Exactly(struck...))
		if !slices.Equal(struck, again) || end != sameEnd {
			t.Errorf("seed %d: %v, %s; played again: %v, %s", seed, struck, end, again, sameEnd)
		}
		different[fmt.Sprint(struck)] = true
	}
	if len(different) < 20 {
		t.Errorf("50 seeds gave %d different runs", len(different))
	}
}

// TestChoiceOfItems: half of a batch fails, never none.
func TestChoiceOfItems(t *testing.T) {
	for _, how := range []pumptest.How{pumptest.Some, pumptest.Silent, pumptest.Reject} {
		for _, after := range []bool{false, true} {
			if how == pumptest.Reject && after {
				continue
			}
			for _, n := range []int{1, 2, 50} {
				sink := &pumptest.MemSink{}
				chaos := &pumptest.Chaos{Plan: pumptest.Exactly(pumptest.Strike{Fault: pumptest.Fault{Call: pumptest.CallWrite, How: how, After: after}})}
				lanes, err := chaos.Sink(sink).Lanes(t.Context(), 1)
				if err != nil {
					t.Fatal(err)
				}
				b := &pump.Batch{Items: some(n)}
				b.StartWrite()
				if err := lanes[0].Write(t.Context(), b); err != nil {
					t.Fatal(err)
				}
				done := 0
				for i := range n {
					_, there := sink.Items()[string(b.Items[i].Key)]
					if b.Verdict(i) == pump.Done {
						done++
					} else if struck := (pumptest.Strike{}); how != pumptest.Silent && !errors.As(b.Cause(i), &struck) {
						t.Errorf("%s: item %d is %s for %v", how, i, b.Verdict(i), b.Cause(i))
					}
					if there != (after || b.Verdict(i) == pump.Done) {
						t.Errorf("%s, after %t: item %d is %s and there: %t", how, after, i, b.Verdict(i), there)
					}
				}
				if done == n || n == 50 && (done < 10 || done > 40) {
					t.Errorf("%s: %d of %d done", how, done, n)
				}
			}
		}
	}
}

// TestAbilitiesStay: a sink that counts item by item is not taken for one that counts
// as a whole.
func TestAbilitiesStay(t *testing.T) {
	chaos := &pumptest.Chaos{}
	if _, ok := pump.As[pump.Committer](chaos.Sink(&pumptest.MemSink{})); ok {
		t.Error("a sink without Commit got one")
	}
	if _, ok := pump.As[pump.Committer](chaos.Sink(&committing{})); !ok {
		t.Error("a sink lost its Commit")
	}
}
