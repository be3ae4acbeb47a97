package pump

import (
	"testing"
	"time"
)

// tunedRun lets a tuner run against a destination of so many bytes a second behind
// a round trip, and returns the mean limit and rate of the last quarter and how
// often the limit was changed.
func tunedRun(t *tuner, from time.Duration, ticks int, capacity float64, trip time.Duration) (limit, rate float64, changes int) {
	for i := range ticks {
		was := t.limit
		now := from + time.Duration(i)*tuneTick
		r := min(capacity, float64(t.limit)/trip.Seconds())
		if t.tick(now, r, true) != was {
			changes++
		}
		if i >= ticks*3/4 {
			n := float64(ticks - ticks*3/4)
			limit, rate = limit+float64(t.limit)/n, rate+r/n
		}
	}
	return limit, rate, changes
}

func TestTunerFindsWhatPays(t *testing.T) {
	const least, most = leastFlight, 32 << 20
	for _, c := range []struct {
		name        string
		capacity    float64
		trip        time.Duration
		atMost      float64 // mean limit, as a share of most
		shareOfBest float64 // of the rate that most would give
	}{
		{"a near destination needs no more than the least", 300e6, 100 * time.Microsecond, 0.25, 0.99},
		{"a far one needs all there is", 1e9, 50 * time.Millisecond, 1, 0.97},
		{"one in between needs something in between", 300e6, 40 * time.Millisecond, 0.6, 0.95},
	} {
		t.Run(c.name, func(t *testing.T) {
			const ticks = 600 // two minutes
			tn := newTuner(least, most)
			limit, rate, changes := tunedRun(tn, 0, ticks, c.capacity, c.trip)
			if limit > c.atMost*most {
				t.Errorf("%.1f MiB in flight", limit/(1<<20))
			}
			if best := min(c.capacity, most/c.trip.Seconds()); rate < c.shareOfBest*best {
				t.Errorf("%.0f MB/s, %.0f were to be had", rate/1e6, best/1e6)
			}
			if changes > 30 {
				t.Errorf("it swings: %d changes", changes)
			}
		})
	}
}

func TestTunerFollowsTheDestination(t *testing.T) {
	tn := newTuner(leastFlight, 32<<20)
	const ticks = 900 // three minutes each
	for i, c := range []struct {
		trip         time.Duration
		least, above float64
	}{
		{100 * time.Microsecond, 0, 10 << 20},
		{50 * time.Millisecond, 20 << 20, 33 << 20}, // it moved away …
		{100 * time.Microsecond, 0, 12 << 20},       // … and came back
	} {
		limit, _, _ := tunedRun(tn, time.Duration(i)*ticks*tuneTick, ticks, 1e9, c.trip)
		if limit < c.least || limit > c.above {
			t.Errorf("%s: %.1f MiB in flight", c.trip, limit/(1<<20))
		}
	}
}

func TestTunerStaysWithinMemory(t *testing.T) {
	tn := newTuner(leastFlight, 1<<20)
	if limit, _, _ := tunedRun(tn, 0, 100, 1e9, time.Second); limit > 1<<20+1 {
		t.Errorf("%.0f bytes", limit)
	}
	idle := newTuner(leastFlight, 32<<20)
	for i := range 100 {
		if got := idle.tick(time.Duration(i)*tuneTick, 1e6, false); got != leastFlight {
			t.Fatalf("nobody waits for memory, and yet %d bytes", got)
		}
	}
}

// TestTunerKnowsWhatWasSlower: in the seconds after more memory paid, a far destination is
// not slowed down to see whether less would do.
func TestTunerKnowsWhatWasSlower(t *testing.T) {
	const most = 24 << 20
	tn := newTuner(leastFlight, most)
	rate := func() float64 { return float64(tn.limit) / 0.05 }
	tick, slow := 0, 0
	next := func() {
		tn.tick(time.Duration(tick)*tuneTick, rate(), true)
		tick++
	}
	for tn.limit < most {
		if next(); tick > 50 {
			t.Fatalf("%d bytes in flight after ten seconds", tn.limit)
		}
	}
	next() // the try is over
	next()
	for range int(tuneKnown/tuneTick) - 10 {
		if next(); tn.limit < most {
			slow++
		}
	}
	if slow > 0 {
		t.Errorf("%d of the ticks after that had less in flight", slow)
	}
	for range 600 {
		was := tn.limit
		if next(); tn.limit < was {
			slow++
			if next(); tn.limit < was {
				t.Fatalf("half of it was half as fast and is kept for longer than a tick")
			}
		}
	}
	if slow == 0 {
		t.Error("it never looks whether less would do")
	}
}
