package pump

import (
	"context"
	"sync"
	"time"
)

// Limits bound how fast a run reads: items and bytes (key, value and meta) a
// second, over all streams, those that the filter leaves out among them. They may
// be changed while the run goes on. Get one from NewLimits; it is safe for
// concurrent use.
type Limits struct {
	mu           sync.Mutex
	items, bytes bucket
	changed      chan struct{} // closed when the rates change
}

// NewLimits returns limits of so many items and bytes a second; 0 is no limit.
func NewLimits(items, bytes uint64) *Limits {
	return &Limits{items: bucket{rate: items}, bytes: bucket{rate: bytes}, changed: make(chan struct{})}
}

// Set changes the limits, also for those that wait.
func (l *Limits) Set(items, bytes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.items, l.bytes = bucket{rate: items}, bucket{rate: bytes}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Rates returns the limits.
func (l *Limits) Rates() (items, bytes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.items.rate, l.bytes.rate
}

// bucket is a token bucket that may go into debt: what is taken is let through as
// soon as what was taken before is paid for. So an item larger than the rate
// passes, and is paid for afterwards.
type bucket struct {
	rate uint64    // tokens a second, 0 = no limit
	paid time.Time // when the debt is paid
}

// slice is how long at most what is let through at once takes to pay, but for
// the one item that must go.
const slice = 100 * time.Millisecond

// fits returns how many tokens may be taken at once.
func (b *bucket) fits() uint64 { return uint64(float64(b.rate) * slice.Seconds()) }

func (b *bucket) take(n uint64, now time.Time) {
	if b.rate == 0 {
		return
	}
	if b.paid.Before(now) {
		b.paid = now
	}
	b.paid = b.paid.Add(time.Duration(float64(n) / float64(b.rate) * float64(time.Second)))
}

// wait returns how many of the items may go now, one at least, once there are
// some. Without limits these are all.
func (l *Limits) wait(ctx context.Context, items []Item) (int, error) {
	if l == nil {
		return len(items), nil
	}
	for {
		l.mu.Lock()
		now := time.Now()
		pause := max(l.items.paid.Sub(now), l.bytes.paid.Sub(now))
		if pause <= 0 {
			n := l.take(items, now)
			l.mu.Unlock()
			return n, nil
		}
		changed := l.changed
		l.mu.Unlock()
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return 0, context.Cause(ctx)
		case <-changed:
			t.Stop()
		case <-t.C:
		}
	}
}

// second returns how many bytes of small items a second brings: while a batch
// waits nobody answers the source's NOOPs, so a batch is to be gone soon.
func (l *Limits) second() int64 {
	const most, smallItem = 1 << 40, 64
	if l == nil {
		return most
	}
	items, bytes := l.Rates()
	n := uint64(most)
	if items > 0 {
		n = min(n, items*smallItem)
	}
	if bytes > 0 {
		n = min(n, bytes)
	}
	return int64(n)
}

func (l *Limits) take(items []Item, now time.Time) int {
	n, bytes := len(items), uint64(0)
	if l.items.rate > 0 {
		n = min(n, int(max(1, l.items.fits())))
	}
	if l.bytes.rate > 0 {
		most, at := l.bytes.fits(), 0
		for ; at < n; at++ {
			size := uint64(items[at].Size())
			if at > 0 && bytes+size > most {
				break
			}
			bytes += size
		}
		n = at
	}
	l.items.take(uint64(n), now)
	l.bytes.take(bytes, now)
	return n
}
