package pump

import "time"

// What the tuner goes by.
const (
	tuneTick = 200 * time.Millisecond
	// leastFlight is what is in flight at first: enough for each lane to have something
	// while readers and lanes take turns on few processors, and not much more than their
	// caches hold, so that an item's bytes are still there when they are written.
	leastFlight = 6 << 20
	worthMore   = 1.15 // so much faster it must be to keep twice the memory …
	worthLess   = 0.95 // … and no slower than so with half of it
	steady      = 1.15 // as much may two rates in a row differ for a try to begin …
	unsteady    = 5    // … unless so many of them were waited for in vain
	tunePause   = time.Second
	tuneRest    = 30 * time.Second
	tuneKnown   = 10 * time.Second // for which less memory that was found slower is not tried
	muchLess    = 0.8              // a rate at which half the memory is given up at the first tick
)

// tuner finds how many bytes must be in flight. As much as Settings.Memory allows
// is needed where round trips are long; where they are short, more than the caches
// hold makes everything slower. It tries twice as much while readers wait for
// memory, and half as much after that, and keeps what pays. A try that does not pay
// is taken back, and the next one comes twice as late, so that it does not swing.
// Until one did not pay it tries three times as much: a far destination is to have
// what it needs within two seconds. It waits until the rate is steady, for a run that is
// only beginning becomes faster by itself.
type tuner struct {
	least, most int64 // bytes

	limit  int64
	tried  int64         // the limit before the try that is under way, 0 = none
	ticks  int           // since the try began
	before float64       // items a second before it
	last   float64       // items a second at the tick before
	wild   int           // ticks for which a try was put off since rates differed
	down   bool          // the next try is half as much
	known  bool          // a try did not pay
	slower int64         // a limit that was found slower …
	until  time.Duration // … which holds until then
	next   time.Duration
	pause  time.Duration
}

func newTuner(least, most int64) *tuner {
	least = min(least, most)
	return &tuner{least: least, most: most, limit: least, pause: tunePause}
}

// tick is told the time since the run began, the rate since the last tick and
// whether readers had to wait for memory. It returns the limit from now on.
func (t *tuner) tick(now time.Duration, rate float64, waited bool) int64 {
	last := t.last
	t.last = rate
	if t.tried != 0 {
		// The first tick still shows what was in flight before.
		less := t.limit < t.tried
		if t.ticks++; t.ticks < 2 && !(less && rate < muchLess*t.before) {
			return t.limit
		}
		worth := worthMore
		if less {
			worth = worthLess
		}
		pays := rate >= worth*t.before
		if pays != less {
			t.slower, t.until = min(t.limit, t.tried), now+tuneKnown
		}
		if pays {
			t.pause = tunePause
			t.next = now
		} else {
			t.limit = t.tried
			t.known = true
			t.down = !t.down
			t.next = now + t.pause
			t.pause = min(2*t.pause, tuneRest)
		}
		t.tried = 0
	}
	if now < t.next || rate == 0 {
		return t.limit
	}
	if max(rate, last) > steady*min(rate, last) && t.wild < unsteady {
		t.wild++
		return t.limit
	}
	t.wild = 0
	to := min(2*t.limit, t.most)
	if !t.known {
		to = min(3*t.limit, t.most)
	}
	if half := max(t.limit/2, t.least); t.down && half <= t.slower && now < t.until {
		t.down = false
	} else if t.down {
		to = half
	}
	switch {
	case to == t.limit:
		t.down = !t.down
	case t.down || waited:
		t.tried, t.ticks, t.before, t.limit = t.limit, 0, max(rate, last), to
	}
	return t.limit
}

// tune adapts the limit of the budget until finished.
func (e *engine) tune(finished <-chan struct{}) {
	t := newTuner(e.budget.limit, int64(e.cfg.Settings.Memory))
	tick := time.NewTicker(tuneTick)
	defer tick.Stop()
	last, settled := time.Now(), e.settled()
	for {
		select {
		case <-finished:
			return
		case <-tick.C:
		}
		now, count := time.Now(), e.settled()
		rate := float64(count-settled) / now.Sub(last).Seconds()
		was := t.limit
		limit := t.tick(now.Sub(e.began), rate, e.budget.waits())
		if limit != was {
			e.cfg.Log.Debug("another amount of memory in flight", "bytes", limit, "items a second", int64(rate))
			e.budget.setLimit(limit)
		}
		last, settled = now, count
	}
}

// settled is how many items have a final verdict.
func (e *engine) settled() uint64 { return e.done.Load() + e.skipped.Load() + e.rejected.Load() }
