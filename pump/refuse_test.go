package pump_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// rejecting is a sink that refuses the keys that end in a 3.
func rejecting(lanes int) *pumptest.MemSink {
	return &pumptest.MemSink{LaneCount: lanes, Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
		if it.Key[len(it.Key)-1] == '3' {
			return pump.Rejected, errors.New("never")
		}
		return pump.Done, nil
	}}
}

// Each rejected item is handed over whole, before it counts and before a mark
// passes it.
func TestRejectedItemsAreKeptBeforeMarksPass(t *testing.T) {
	parts := [][]pump.Item{items("a", 2000, 10), items("b", 2000, 10)}
	var mu sync.Mutex
	kept, want := map[string]pump.Item{}, map[string]bool{}
	for _, p := range parts {
		for i := range p {
			if p[i].Key[len(p[i].Key)-1] == '3' {
				want[string(p[i].Key)] = true
			}
		}
	}
	report, err := pump.Run(t.Context(), pump.Config{
		Source: &pumptest.MemSource{Parts: parts, BatchSize: 7}, Sink: rejecting(3), Settings: quick(), Scribble: true,
		OnRejected: func(it *pump.Item, why error) error {
			mu.Lock()
			defer mu.Unlock()
			kept[string(it.Key)] = pumptest.CloneItem(it)
			if why == nil {
				return errors.New("no reason")
			}
			return nil
		},
		OnMarks: func(stream string, marks []pump.Mark) {
			mu.Lock()
			defer mu.Unlock()
			part := parts[stream[len("mem-")]-'0']
			for i := range marks[len(marks)-1].Seqno {
				key := string(part[i].Key)
				if _, ok := kept[key]; want[key] && !ok {
					t.Errorf("a mark passed %s, which was not kept", key)
				}
			}
		},
	})
	if pump.ExitCode(err, 0) != 3 || int(report.Rejected) != len(want) || len(kept) != len(want) {
		t.Fatalf("error %v, %d rejected, %d kept, want %d", err, report.Rejected, len(kept), len(want))
	}
	for k, it := range kept {
		if len(it.Value) != 10 || string(it.Key) != k {
			t.Fatalf("%q was kept as %+v", k, it)
		}
	}
}

func TestFailureToKeepStopsTheRun(t *testing.T) {
	full := &pump.Error{Code: "disk-full", Err: errors.New("no space left")}
	var marked atomic.Uint64
	report, err := pump.Run(t.Context(), pump.Config{
		Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 5000, 10)}, BatchSize: 5}, Sink: rejecting(1), Settings: quick(),
		OnRejected: func(it *pump.Item, _ error) error {
			if string(it.Key) == "k1003" {
				return full
			}
			return nil
		},
		OnMarks: func(_ string, marks []pump.Mark) { marked.Store(marks[len(marks)-1].Seqno) },
	})
	if !errors.Is(err, full) || pump.ExitCode(err, 0) != 1 || marked.Load() > 1003 || report.Rejected != 100 {
		t.Fatalf("error %v, marked %d, rejected %d", err, marked.Load(), report.Rejected)
	}
}

func TestTooManyRejectedStopTheRun(t *testing.T) {
	for _, c := range []struct {
		limit    uint64
		code     string
		exit     int
		firstBad uint64 // no mark may reach beyond it
	}{{1, "too-many-rejected", 1, 3}, {50, "too-many-rejected", 1, 493}, {500, "too-many-rejected", 1, 4993}, {501, "rejected", 3, 5000}, {0, "rejected", 3, 5000}} {
		var marked, kept atomic.Uint64
		report, err := pump.Run(t.Context(), pump.Config{
			Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 5000, 10)}, BatchSize: 3}, Sink: rejecting(4), Settings: quick(),
			StopAtRejected: c.limit,
			OnRejected:     func(*pump.Item, error) error { kept.Add(1); return nil },
			OnMarks:        func(_ string, marks []pump.Mark) { marked.Store(marks[len(marks)-1].Seqno) },
		})
		if pump.CodeOf(err) != c.code || pump.ExitCode(err, 0) != c.exit {
			t.Errorf("limit %d: error %v (%s)", c.limit, err, pump.CodeOf(err))
		}
		// With several lanes it is not certain which items are the first to be
		// rejected, but each of these holds its own batch back.
		if report.Pending() != 0 || kept.Load() != report.Rejected || report.Rejected < c.limit-min(1, c.limit) {
			t.Errorf("limit %d: %+v, kept %d", c.limit, report.Snapshot, kept.Load())
		}
		if c.exit == 1 && c.limit == 1 && marked.Load() > c.firstBad {
			t.Errorf("limit %d: a mark reached %d, beyond an item that stopped the run", c.limit, marked.Load())
		}
		if c.exit == 3 && marked.Load() != 5000 {
			t.Errorf("limit %d: the marks reached %d only", c.limit, marked.Load())
		}
	}
}
