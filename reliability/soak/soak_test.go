package soak

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/reliability"
	"github.com/cbpump/cbpump/reliability/faultproxy"
)

var (
	lasts = flag.Duration("soak", 8*time.Second, "how long to copy")
	seed  = flag.Uint64("soak-seed", 1, "another seed makes other faults")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSoak runs two things side by side until its time is over: one copy that never
// ends, over a network that breaks all the time, and short copies between all pairs of
// built-in sources and sinks under chaos, each judged.
func TestSoak(t *testing.T) {
	dir := t.TempDir()
	sources, release, err := reliability.Sources(t.Context(), dir, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	sinks, releaseSinks, err := reliability.Sinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer releaseSinks()

	var w watch
	stop := make(chan struct{})
	var endless sync.WaitGroup
	var long *pump.Report
	var cut int
	endless.Go(func() { long, cut = copyForEver(t, stop) })

	r := rand.New(rand.NewPCG(*seed, 0))
	began, runs, failed, struck := time.Now(), 0, 0, 0
	var items uint64
	for time.Since(began) < *lasts && !t.Failed() {
		src, sink := sources[r.IntN(len(sources))], sinks[r.IntN(len(sinks))]
		report, hits, err := short(t, src, sink, r.Uint64())
		runs++
		struck += hits
		items += report.Read
		if err != nil && pump.ClassOf(err) != pump.ClassPartial {
			failed++
		}
		w.look(time.Since(began))
	}
	close(stop)
	endless.Wait()
	if long == nil {
		return
	}
	t.Logf("%s: %d short copies of %d items with %d faults, of which %d failed and said so; one long copy of %d items, %d sent again, over %d broken connections; %s",
		time.Since(began).Round(time.Second), runs, items, struck, failed, long.Done, long.Retried, cut, &w)
	w.judge(t)
}

// short copies once under chaos and judges.
func short(t *testing.T, src *reliability.Source, sink reliability.Sink, seed uint64) (*pump.Report, int, error) {
	t.Helper()
	to, err := sink.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, err := reliability.OpenSource(t.Context(), src.Spec)
	if err != nil {
		t.Fatal(err)
	}
	into, err := reliability.OpenSink(t.Context(), to.Spec)
	if err != nil {
		t.Fatal(err)
	}
	chaos := &pumptest.Chaos{Plan: pumptest.Random(seed, 0.05, pumptest.Faults()...)}
	ledger := &reliability.Ledger{Sink: chaos.Sink(into)}
	report, err := pump.Run(t.Context(), pump.Config{Source: chaos.Source(from), Sink: ledger, Settings: settings(), Scribble: true})
	if verdict := reliability.Judge(src, to, ledger, report, err); verdict != nil {
		t.Errorf("%s to %s, seed %d: %v\nwhat struck: %v\nthe run said: %v", src.Name, sink.Name, seed, verdict, chaos.Struck(), err)
	}
	return report, len(chaos.Struck()), err
}

func settings() pump.Settings {
	s := pump.DefaultSettings()
	s.Memory, s.BatchBytes, s.LaneItems = 1<<20, 16<<10, 64
	s.RetryMin, s.RetryMax = time.Millisecond, 20*time.Millisecond
	return s
}

// copyForEver copies made-up items into memcached, over connections that break after
// a random number of bytes, until stop is closed.
func copyForEver(t *testing.T, stop <-chan struct{}) (*pump.Report, int) {
	s, err := realmc.Launch("-m", "32", "-t", "1")
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	defer s.Close()
	r := rand.New(rand.NewPCG(*seed, 1))
	p, err := faultproxy.Start(s.Addr, func(n int) faultproxy.Fault {
		if n < 2 { // the run asks whether it can begin at all
			return faultproxy.Fault{}
		}
		kinds := []faultproxy.Kind{faultproxy.Reset, faultproxy.HalfClose, faultproxy.Stall}
		f := faultproxy.Fault{Kind: kinds[r.IntN(len(kinds))], ToServer: r.IntN(4) > 0, At: r.Int64N(2 << 20)}
		if !f.ToServer { // it says little, so that little is enough
			f.At = r.Int64N(2 << 10)
		}
		return f
	})
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	defer p.Close()
	from, err := reliability.OpenSource(t.Context(), "gen:?max-items=0&min-value-size=10&max-value-size=2000")
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	into, err := reliability.OpenSink(t.Context(), "memcached://"+p.Addr()+"?timeout=500ms")
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	report, err := pump.Run(context.WithoutCancel(t.Context()), pump.Config{Source: from, Sink: into, Settings: settings(), Stop: stop, Scribble: true,
		Limits: pump.NewLimits(5000, 0)})
	if pump.ClassOf(err) != pump.ClassInterrupted || report.Pending() != 0 || report.Done == 0 {
		t.Errorf("the long copy: %v, %+v", err, report.Snapshot)
	}
	return report, p.Struck()
}

// watch keeps heap and goroutines over time.
type watch struct {
	next       time.Duration
	heap       []uint64 // bytes that are in use after a collection
	goroutines []int
}

func (w *watch) look(now time.Duration) {
	if now < w.next {
		return
	}
	w.next = now + max(*lasts/100, 100*time.Millisecond)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	w.heap = append(w.heap, m.HeapAlloc)
	w.goroutines = append(w.goroutines, runtime.NumGoroutine())
}

// halves returns the most of the first half, when everything was warm, and of the
// second.
func halves[T uint64 | int](v []T) (first, second T) {
	warm := v[len(v)/10:]
	return slices.Max(warm[:max(1, len(warm)/2)]), slices.Max(warm[len(warm)/2:])
}

func (w *watch) String() string {
	h1, h2 := halves(w.heap)
	g1, g2 := halves(w.goroutines)
	return fmt.Sprintf("most heap in use in the first half %.1f MiB, in the second %.1f MiB; most goroutines %d and %d (%d samples)",
		float64(h1)/(1<<20), float64(h2)/(1<<20), g1, g2, len(w.heap))
}

func (w *watch) judge(t *testing.T) {
	t.Helper()
	h1, h2 := halves(w.heap)
	g1, g2 := halves(w.goroutines)
	if h2 > h1+h1/4+2<<20 || g2 > g1+10 {
		t.Errorf("it grows: %s", w)
	}
}
