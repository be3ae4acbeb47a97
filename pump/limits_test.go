package pump_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// In a synctest bubble time passes only while everything waits, so a run takes
// exactly as long as its limits make it.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		name         string
		items, bytes uint64
		n, size      int
		streams      int
		want         time.Duration // the last slice is not paid for
	}{
		{"none", 0, 0, 1000, 100, 1, 0},
		{"items", 100, 0, 1000, 100, 1, 10 * time.Second},
		{"items of several streams", 100, 0, 1000, 100, 4, 40 * time.Second},
		{"one item a second", 1, 0, 5, 100, 1, 5 * time.Second},
		{"bytes", 0, 10000, 1000, 97, 1, 10 * time.Second},
		{"bytes of items larger than a second brings", 0, 1000, 5, 9998, 1, 50 * time.Second},
		{"both, items are fewer", 50, 1 << 30, 1000, 100, 1, 20 * time.Second},
		{"both, bytes are fewer", 1 << 20, 5000, 100, 498, 1, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := &pumptest.MemSource{}
				for range c.streams {
					src.Parts = append(src.Parts, items("k", c.n, c.size))
				}
				report, err := pump.Run(t.Context(), pump.Config{
					Source: src, Sink: &pumptest.MemSink{}, Settings: quick(), Limits: pump.NewLimits(c.items, c.bytes),
				})
				if err != nil || report.Done != uint64(c.n*c.streams) {
					t.Fatalf("error %v, done %d", err, report.Done)
				}
				// Keys are 2 to 4 bytes long.
				slack := max(200*time.Millisecond, c.want/5)
				if got := report.Elapsed; got > c.want+slack || got < c.want-slack {
					t.Fatalf("it took %s, want %s", got, c.want)
				}
			})
		})
	}
}

func TestLimitsChangeInMidRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := pump.NewLimits(1, 0)
		var setting sync.WaitGroup
		setting.Go(func() {
			time.Sleep(10 * time.Second) // synctest's clock, on which it takes no time
			limits.Set(0, 0)
		})
		report, err := pump.Run(t.Context(), pump.Config{
			Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 1000, 10)}}, Sink: &pumptest.MemSink{}, Settings: quick(), Limits: limits,
		})
		if err != nil || report.Elapsed != 10*time.Second {
			t.Fatalf("error %v after %s, want 10 s at one item a second and the rest at once", err, report.Elapsed)
		}
		setting.Wait()
		limits.Set(7, 8)
		if n, b := limits.Rates(); n != 7 || b != 8 {
			t.Fatalf("limits %d, %d", n, b)
		}
	})
}

// A stopped run does not wait for its limits: what has not passed them was not
// read, and no mark passes it.
func TestStopEndsAWaitForLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		var marked atomic.Uint64
		time.AfterFunc(2500*time.Millisecond, func() { close(stop) })
		src := &pumptest.MemSource{Parts: [][]pump.Item{items("k", 1000, 10)}, BatchSize: 2}
		report, err := pump.Run(t.Context(), pump.Config{
			Source: src, Sink: &pumptest.MemSink{}, Settings: quick(), Limits: pump.NewLimits(1, 0), Stop: stop,
			OnMarks: func(_ string, marks []pump.Mark) { marked.Store(marks[len(marks)-1].Seqno) },
		})
		if pump.ClassOf(err) != pump.ClassInterrupted || report.Elapsed != 2500*time.Millisecond {
			t.Fatalf("error %v after %s", err, report.Elapsed)
		}
		if report.Read != 3 || report.Done != 3 || marked.Load() != 2 {
			t.Fatalf("read %d, done %d, marked %d; want 3, 3 and the first batch of two", report.Read, report.Done, marked.Load())
		}
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("over"))
	if _, err := pump.Run(ctx, pump.Config{
		Source: &pumptest.MemSource{Parts: [][]pump.Item{items("k", 10, 10)}}, Sink: &pumptest.MemSink{}, Settings: quick(), Limits: pump.NewLimits(1, 1),
	}); pump.CodeOf(err) != "cancelled" {
		t.Fatalf("error %v", err)
	}
}
