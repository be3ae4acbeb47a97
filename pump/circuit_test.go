package pump_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

var errDown = &pump.Error{Class: pump.ClassUnreachable, Code: "destination-lost", Op: "write to node", Err: errors.New("connection refused"), Retry: true}

// nodes is a sink of several nodes: a vbucket is at node vb mod n. Items for the
// nodes that are down come back.
type nodes struct {
	*pumptest.MemSink
	n    int
	down [8]atomic.Bool
}

func newNodes(n, lanes int) *nodes {
	s := &nodes{MemSink: &pumptest.MemSink{LaneCount: lanes}, n: n}
	s.Verdict = func(_ int, it *pump.Item) (pump.Verdict, error) {
		if s.down[int(it.VBucket)%n].Load() {
			return pump.Retry, errDown
		}
		return pump.Done, nil
	}
	return s
}

func (s *nodes) Place(it *pump.Item) (string, int) {
	return fmt.Sprintf("node%d", int(it.VBucket)%s.n), s.n
}

// Route keeps the vbuckets of a node on lanes of their own where there are as many.
func (s *nodes) Route(it *pump.Item) int { return int(it.VBucket) % s.LaneCount }

// parts is a source of streams with the items of several vbuckets mixed, and a
// mark for each vbucket behind each batch.
type parts struct {
	streams, vbs, each int // each vbucket's items
	acked              atomic.Int64
	lostAcks           atomic.Int64
}

func (p *parts) Close() error { return nil }
func (p *parts) Streams(context.Context) (out []pump.Stream, _ error) {
	for i := range p.streams {
		out = append(out, &partStream{p: p, n: i})
	}
	return out, nil
}

type partStream struct {
	p       *parts
	n, next int
}

func (s *partStream) ID() string                              { return fmt.Sprint("parts-", s.n) }
func (s *partStream) Open(context.Context, []pump.Mark) error { return nil }
func (s *partStream) Close() error                            { return nil }
func (s *partStream) Read(_ context.Context, b *pump.Batch) error {
	for vb := s.n; vb < s.p.vbs; vb += s.p.streams {
		it := b.Append()
		it.VBucket, it.Key, it.Value = uint16(vb), b.Copy(fmt.Appendf(nil, "vb%d-%d", vb, s.next)), b.Copy(make([]byte, 100))
	}
	s.next++
	for vb := s.n; vb < s.p.vbs; vb += s.p.streams {
		b.Marks = append(b.Marks, pump.Mark{VBucket: uint16(vb), Seqno: uint64(s.next), Complete: s.next == s.p.each, Items: uint64(s.next)})
	}
	if s.next == s.p.each {
		return io.EOF
	}
	return nil
}

func (s *partStream) Acknowledge(_ context.Context, marks []pump.Mark) error {
	for _, m := range marks {
		s.p.acked.Add(1)
		if m.Lost {
			s.p.lostAcks.Add(1)
		}
	}
	return nil
}

// A node that stays down is given up; the vbuckets of the others are copied whole
// and marked, its own are neither, and the run says so.
func TestDeadNodeIsGivenUp(t *testing.T) {
	const streams, vbs, each = 4, 24, 500
	for _, lanes := range []int{1, 3, 5} {
		t.Run(fmt.Sprint(lanes, " lanes"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink, src := newNodes(3, lanes), &parts{streams: streams, vbs: vbs, each: each}
				set := pump.DefaultSettings()
				set.Memory = 1 << 20 // much less than what is for the dead node
				time.AfterFunc(0, func() { sink.down[1].Store(true) })
				var mu sync.Mutex
				marked := map[uint16]uint64{}
				report, err := pump.Run(t.Context(), pump.Config{
					Source: src, Sink: sink, Settings: set, KeepGoing: true, Scribble: true,
					OnMarks: func(_ string, marks []pump.Mark) {
						mu.Lock()
						defer mu.Unlock()
						for _, m := range marks {
							if m.Lost {
								t.Error("a lost mark was told as reached")
							}
							marked[m.VBucket] = m.Seqno
						}
					},
				})
				if pump.ExitCode(err, 0) != 4 || pump.CodeOf(err) != "place-given-up" || !errors.Is(err, errDown) || !strings.Contains(err.Error(), "node1 was given up") {
					t.Fatalf("error %v (%s)", err, pump.CodeOf(err))
				}
				held := map[uint16]uint64{}
				for _, it := range sink.Items() {
					held[it.VBucket]++
				}
				for vb := range uint16(vbs) {
					switch dead := vb%3 == 1; {
					case !dead && (held[vb] != each || marked[vb] != each):
						t.Errorf("vbucket %d of a living node: %d items, marked up to %d, want %d", vb, held[vb], marked[vb], each)
					case dead && marked[vb] > held[vb]:
						t.Errorf("vbucket %d of the dead node: %d items, but marked up to %d", vb, held[vb], marked[vb])
					case dead != (pump.ErrorOf(err, vb) != nil):
						t.Errorf("vbucket %d: the error says %v of it", vb, pump.ErrorOf(err, vb))
					}
				}
				if report.Read != vbs*each || report.Pending() == 0 || report.Done+report.Pending() != report.Read {
					t.Errorf("%+v", report.Snapshot)
				}
				if n := src.acked.Load(); n != vbs*each || src.lostAcks.Load() == 0 {
					t.Errorf("%d marks were acknowledged, %d of them lost; want all %d: flow control counts them", n, src.lostAcks.Load(), vbs*each)
				}
				if report.Elapsed > 2*time.Minute {
					t.Errorf("it took %s: a dead node is to be waited for once", report.Elapsed)
				}
				for _, s := range report.StreamReports {
					if s.Err == nil {
						t.Errorf("stream %s counts as complete", s.ID)
					}
				}
			})
		})
	}
}

func TestNodeThatComesBackIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newNodes(3, 3)
		sink.down[2].Store(true)
		time.AfterFunc(50*time.Second, func() { sink.down[2].Store(false) })
		report, err := pump.Run(t.Context(), pump.Config{
			Source: &parts{streams: 2, vbs: 12, each: 100}, Sink: sink, Settings: pump.DefaultSettings(), KeepGoing: true,
		})
		if err != nil || report.Done != 1200 {
			t.Fatalf("error %v, done %d", err, report.Done)
		}
	})
}

// Without a living place there is nothing to go on with, and without KeepGoing one
// dead place ends the run.
func TestRunEndsWhenNoPlaceIsLeft(t *testing.T) {
	for _, c := range []struct {
		name      string
		keepGoing bool
		down      []int
		code      string
	}{
		{"all are down", true, []int{0, 1, 2}, "retry-time"},
		{"one is down and that ends the run", false, []int{0}, "retry-time"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := newNodes(3, 3)
				for _, n := range c.down {
					sink.down[n].Store(true)
				}
				report, err := pump.Run(t.Context(), pump.Config{
					Source: &parts{streams: 2, vbs: 12, each: 100}, Sink: sink, Settings: pump.DefaultSettings(), KeepGoing: c.keepGoing,
				})
				if pump.ExitCode(err, 0) != 4 || !strings.Contains(err.Error(), "given up after 1m") || report.Elapsed > 90*time.Second {
					t.Fatalf("error %v after %s", err, report.Elapsed)
				}
			})
		})
	}
}

// A source without vbuckets has one mark for all: none passes an item that was not
// written.
func TestDeadNodeStopsMarksWithoutVBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newNodes(3, 1)
		sink.down[1].Store(true)
		var marked atomic.Uint64
		_, err := pump.Run(t.Context(), pump.Config{
			Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 300, 10)}, BatchSize: 10}, Sink: sink, Settings: pump.DefaultSettings(), KeepGoing: true,
			OnMarks: func(_ string, marks []pump.Mark) { marked.Store(marks[len(marks)-1].Seqno) },
		})
		if pump.CodeOf(err) != "place-given-up" || marked.Load() != 0 || len(sink.Items()) != 300-99 {
			t.Fatalf("error %v, marked %d, %d items", err, marked.Load(), len(sink.Items()))
		}
	})
}

var errLocked = &pump.Error{Code: "locked", Err: errors.New("the key is locked"), Retry: true}

// A few items that nobody takes do not hold up the others: they are rejected. If
// it is more than a few, the destination is at fault, and the run fails.
func TestItemThatComesBackAloneIsRejected(t *testing.T) {
	for _, c := range []struct {
		name   string
		stuck  int // of 1000 items
		retry  time.Duration
		why    error
		code   string
		exit   int
		within time.Duration
	}{
		{"one", 1, 30 * time.Second, errLocked, "rejected", 3, 35 * time.Second},
		{"ten", 10, 30 * time.Second, errLocked, "rejected", 3, 35 * time.Second},
		{"too many", 500, 30 * time.Second, errLocked, "retry-time", 1, 65 * time.Second},
		{"all", 1000, 30 * time.Second, errLocked, "retry-time", 1, 65 * time.Second},
		{"not wanted", 1, 0, errLocked, "retry-time", 1, 65 * time.Second},
		{"out of reach", 1, 30 * time.Second, errDown, "retry-time", 4, 65 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := items("k", 1000, 10)
				for i := range all {
					all[i].VBucket = 5
				}
				stuck := map[string]bool{}
				for i := range c.stuck {
					stuck[string(all[i*(1000/c.stuck)].Key)] = true
				}
				sink := &pumptest.MemSink{Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
					if stuck[string(it.Key)] {
						return pump.Retry, c.why
					}
					return pump.Done, nil
				}}
				set := pump.DefaultSettings()
				set.RetryItem = c.retry
				var kept atomic.Int64
				report, err := pump.Run(t.Context(), pump.Config{
					Source: &pumptest.MemSource{Parts: [][]pump.Item{all}}, Sink: sink, Settings: set, KeepGoing: true,
					OnRejected: func(_ *pump.Item, why error) error {
						kept.Add(1)
						if pump.CodeOf(why) != "retry-item" || !errors.Is(why, c.why) {
							t.Errorf("the reason is %v", why)
						}
						return nil
					},
				})
				if pump.CodeOf(err) != c.code || pump.ExitCode(err, 0) != c.exit || report.Elapsed > c.within {
					t.Fatalf("error %v after %s", err, report.Elapsed)
				}
				if c.exit == 3 && (int(report.Rejected) != c.stuck || int(kept.Load()) != c.stuck || int(report.Done) != 1000-c.stuck) {
					t.Fatalf("%+v, %d kept", report.Snapshot, kept.Load())
				}
			})
		})
	}
}

func TestRetryBudgetEndsTheRun(t *testing.T) {
	set := quick()
	set.RetryBudget = 50
	var n atomic.Int64
	sink := &pumptest.MemSink{Verdict: func(int, *pump.Item) (pump.Verdict, error) {
		if n.Add(1)%2 == 0 { // always some progress, so that no time is over
			return pump.Retry, errLocked
		}
		return pump.Done, nil
	}}
	src := &pumptest.MemSource{Parts: [][]pump.Item{items("k", 10000, 10)}, BatchSize: 10}
	report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: set})
	if pump.CodeOf(err) != "retry-budget" || pump.ExitCode(err, 0) != 1 || report.Retried < 50 || report.Done == 10000 {
		t.Fatalf("error %v, %d sent again", err, report.Retried)
	}
}
