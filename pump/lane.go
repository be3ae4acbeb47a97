package pump

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// laneRun writes what is queued for one lane. Whatever has queued up while a
// write was under way goes out together in the next one: throughput is items in
// flight over the round trip. Where the lane can, and where it is worth it, the next
// one goes out before the first is confirmed.
type laneRun struct {
	e        *engine
	lane     Lane
	ahead    AheadLane // the same, nil if it is none
	maxItems int       // of one write
	maxBytes int64
	wake     chan struct{}

	mu     sync.Mutex
	queue  []share // from head on
	head   int
	queued int   // items
	bytes  int64 // of these
	closed bool

	load     atomic.Int64             // bytes that are queued or being written
	writing  atomic.Int64             // items of the writes that are under way
	retrying atomic.Pointer[retrying] // nil: nothing is sent again

	// Only the lane's own goroutine uses these.
	now, next *writing // now is under way first
	quick     bool     // the last Write took less than quickWrite
	again     Batch
	origins   []int // index in the batch that is written of each item of again
	// abandoned are the items of that batch that are not written: see circuit.
	abandoned []int
	held      bool // one rejected item was too many: no mark may pass it
}

// writing is one write.
type writing struct {
	shares []share
	bytes  int64
	batch  Batch  // with the shares' items, which may be copies in items
	items  []Item // of the engine's copies
}

// copies are the arrays that items are put together in for a write. The lanes share them:
// one that was given back last is still in the caches, and there are as many as writes
// are under way, not two for each lane.
type copies struct {
	mu   sync.Mutex
	free [][]Item
}

// take returns an array with room for n items.
func (c *copies) take(n int) []Item {
	c.mu.Lock()
	var items []Item
	if last := len(c.free) - 1; last >= 0 {
		items, c.free = c.free[last], c.free[:last]
	}
	c.mu.Unlock()
	if n > cap(items) {
		items = make([]Item, 0, n+n/4) // growing by steps would copy them several times
	}
	return items[:0]
}

func (c *copies) give(items []Item) {
	if cap(items) == 0 {
		return
	}
	c.mu.Lock()
	c.free = append(c.free, items)
	c.mu.Unlock()
}

// worthAhead is how many bytes must be queued for a second write behind one that is
// under way, if one takes as many: fewer are not worth a fence of their own.
const worthAhead = 128 << 10

const (
	// quickWrite is how long a Write may take for larger ones to be of no use. What
	// takes longer may be a round trip.
	quickWrite = 500 * time.Microsecond
	// worthAlone is how many bytes are worth a Write of their own then.
	worthAlone = 64 << 10
)

func newLaneRun(e *engine, lane Lane, maxItems int, maxBytes int64) *laneRun {
	l := &laneRun{e: e, lane: lane, wake: make(chan struct{}, 1), maxItems: maxItems, maxBytes: maxBytes, now: &writing{}, next: &writing{}}
	if ahead, ok := lane.(AheadLane); ok {
		l.ahead, l.maxItems = ahead, (maxItems+1)/2
	}
	return l
}

// share is items of a parcel that wait for a lane.
type share struct {
	p     *parcel
	which []int32 // their indices
	bytes int64
	last  bool // with these the lane has had all its items of the parcel
}

// whole says that these are all items of the parcel, in its order.
func (s *share) whole() bool { return len(s.which) == len(s.p.batch.Items) }

// enqueue adds items of a parcel. Only their indices wait; the items themselves
// are copied together just before they are written.
func (l *laneRun) enqueue(p *parcel, which []int32, bytes int64) {
	l.load.Add(bytes)
	l.mu.Lock()
	if l.head == len(l.queue) {
		l.queue, l.head = l.queue[:0], 0
	}
	l.queue = append(l.queue, share{p, which, bytes, true})
	l.queued += len(which)
	l.bytes += bytes
	l.mu.Unlock()
	l.signal()
}

// take takes the shares of the next write off the queue, if they have so many bytes.
// Where larger writes are of no use, a parcel that the lane gets as a whole goes alone,
// so that nothing has to be copied.
func (l *laneRun) take(w *writing, least int64) (any, closed bool) {
	w.shares, w.bytes = w.shares[:0], 0
	items := 0
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes < least {
		return false, l.closed
	}
	for l.head < len(l.queue) && items < l.maxItems && (items == 0 || w.bytes < l.maxBytes) {
		s := &l.queue[l.head]
		alone := l.quick && s.whole() && s.bytes >= worthAlone
		if alone && items > 0 {
			break
		}
		if room := l.maxItems - items; room < len(s.which) {
			part := share{p: s.p, which: s.which[:room]}
			for _, i := range part.which {
				part.bytes += int64(s.p.batch.Items[i].Size())
			}
			w.shares = append(w.shares, part)
			s.which, s.bytes = s.which[room:], s.bytes-part.bytes
			items, w.bytes = l.maxItems, w.bytes+part.bytes
			break
		}
		w.shares = append(w.shares, *s)
		items, w.bytes = items+len(s.which), w.bytes+s.bytes
		*s = share{}
		l.head++
		if alone {
			break
		}
	}
	l.queued -= items
	l.bytes -= w.bytes
	return items > 0, l.closed
}

func (l *laneRun) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.signal()
}

func (l *laneRun) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run writes until the queue is closed and empty. Once it returns an error the
// whole run ends, and what it holds stays without a verdict.
func (l *laneRun) run(ctx context.Context) error {
	under := false // now was begun
	for {
		if !under {
			any, closed := l.take(l.now, 0)
			if !any {
				if closed {
					return nil
				}
				select {
				case <-l.wake:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				continue
			}
			if err := l.begin(ctx, l.now); err != nil {
				return err
			}
		}
		under = false
		if l.ahead != nil {
			if under, _ = l.take(l.next, min(worthAhead, l.maxBytes)); under {
				if err := l.begin(ctx, l.next); err != nil {
					return err
				}
			}
		}
		w := l.now
		err := l.finish(ctx, w)
		if under && err == nil && slices.Contains(w.batch.verdicts, Retry) {
			under = false
			err = l.finish(ctx, l.next)
			w.join(l.next)
		}
		if err = l.complete(ctx, w, err); err != nil {
			return err
		}
		l.forsake(w)
		for _, s := range w.shares {
			if s.last && !l.held {
				s.p.stream.settle(s.p)
			}
		}
		if len(w.items) <= l.maxItems { // else they were those of two writes
			l.e.copies.give(w.items)
		}
		w.items = nil
		l.now, l.next = l.next, l.now
	}
}

// collect puts the items of the shares together. A parcel that is written as a whole
// and alone lends its own.
func (w *writing) collect(c *copies) {
	if one := &w.shares[0]; len(w.shares) == 1 && one.whole() {
		w.batch.Items = one.p.batch.Items
		return
	}
	n := 0
	for i := range w.shares {
		n += len(w.shares[i].which)
	}
	items := c.take(n)
	for i := range w.shares {
		s := &w.shares[i]
		if s.whole() {
			items = append(items, s.p.batch.Items...)
			continue
		}
		for _, j := range s.which {
			items = append(items, s.p.batch.Items[j])
		}
	}
	w.items, w.batch.Items = items, items
}

// join makes one write of two, so that items that are sent again keep their order to
// those of the second one (invariant 5).
func (w *writing) join(second *writing) {
	n := len(w.batch.Items)
	w.items = append(append(make([]Item, 0, n+len(second.batch.Items)), w.batch.Items...), second.batch.Items...)
	w.batch.Items = w.items
	w.batch.join(&second.batch, n)
	w.shares = append(w.shares, second.shares...)
	w.bytes += second.bytes
}

// begin begins a write of what was taken.
func (l *laneRun) begin(ctx context.Context, w *writing) error {
	w.collect(&l.e.copies)
	w.batch.StartWrite()
	l.writing.Add(int64(len(w.batch.Items)))
	if l.ahead == nil {
		return nil // Write does it all
	}
	return l.ahead.Begin(ctx, &w.batch)
}

func (l *laneRun) finish(ctx context.Context, w *writing) error {
	if l.ahead != nil {
		return l.ahead.Finish(ctx, &w.batch)
	}
	began := time.Now()
	err := l.lane.Write(ctx, &w.batch)
	l.quick = time.Since(began) < quickWrite
	return err
}

// complete has every item of a write that ended with err get a final verdict, and
// counts.
func (l *laneRun) complete(ctx context.Context, w *writing, err error) error {
	b := &w.batch
	defer l.writing.Add(-int64(len(b.Items)))
	defer l.load.Add(-w.bytes)
	retry := false
	var done, bytes uint64
	for i, v := range b.verdicts {
		switch v {
		case Done:
			done++
		case Skipped, Rejected:
		case Retry:
			retry = true
		default:
			if err == nil {
				err = &Error{Code: "no-verdict", Err: fmt.Errorf("the sink returned without a verdict on an item of vbucket %d", int16(b.Items[i].VBucket)),
					Hint: "This is a defect of the sink."}
			}
		}
	}
	if err == nil && retry {
		err = l.resend(ctx, b)
	}
	if int(done) == len(b.Items) {
		bytes = uint64(w.bytes)
	} else {
		done = 0
		for i, v := range b.verdicts {
			if v == Done {
				done++
				bytes += uint64(b.Items[i].Size())
			}
		}
	}
	l.e.done.Add(done)
	l.e.bytesDone.Add(bytes)
	if int(done) != len(b.Items) {
		if terr := l.tell(b); err == nil {
			err = terr
		}
	}
	return err
}

// tell reports the items that ended Skipped or Rejected.
func (l *laneRun) tell(b *Batch) error {
	for i, v := range b.verdicts {
		why := b.causes[i]
		switch v {
		case Skipped:
			l.e.skipped.Add(1)
		case Rejected:
			l.e.homes.fix(b.Items[i].VBucket)
			if l.e.cfg.OnRejected != nil {
				if err := l.e.cfg.OnRejected(&b.Items[i], why); err != nil {
					return err
				}
			}
			n, limit := l.e.rejected.Add(1), l.e.cfg.StopAtRejected
			if limit > 0 && n >= limit {
				l.held = true
				l.e.stopRead(tooManyRejected(n, why))
			}
		default:
			continue
		}
		l.e.ledger.note(&b.Items[i], v, why)
		if l.e.cfg.OnVerdict != nil {
			l.e.cfg.OnVerdict(&b.Items[i], v, why)
		}
	}
	return nil
}

func tooManyRejected(n uint64, why error) error {
	return &Error{Code: "too-many-rejected", Op: fmt.Sprintf("stopped at the rejected item number %d", n),
		Err:  errors.New(orNoReason(why).Error()), // its class is the item's, not the run's
		Hint: "Mend what makes the destination refuse items, or allow more of them with --max-rejected."}
}

func orNoReason(why error) error {
	if why == nil {
		return errors.New("the sink gave no reason")
	}
	return why
}

// A destination that takes nothing is worth a line after firstWarning, and again
// after each laterWarnings.
const (
	firstWarning  = time.Second
	laterWarnings = 15 * time.Second
)

// resend sends again what came back with Retry. With an item go all later items
// of the same key, in order, whatever their verdict was: else an early value
// that comes late would overwrite a later one (invariant 5). It gives up when
// nothing has got through for RetryTime.
func (l *laneRun) resend(ctx context.Context, b *Batch) error {
	set := &l.e.cfg.Settings
	pause := backoff{min: set.RetryMin, max: set.RetryMax}
	lastProgress := time.Now()
	defer l.retrying.Store(nil)
	nextWarning := lastProgress.Add(firstWarning)
	for {
		l.gather(b)
		if len(l.origins) == 0 {
			return nil
		}
		first := l.origins[0]
		cause := b.causes[first]
		waited := time.Since(lastProgress)
		expired := waited >= set.RetryTime
		switch {
		case set.RetryBudget > 0 && l.e.retried.Load() >= uint64(set.RetryBudget):
			return overBudget(set.RetryBudget, cause)
		case (expired || l.e.circuit.broken.Load()) && l.abandon(b, expired),
			set.RetryItem > 0 && waited >= set.RetryItem && l.rejectAlone(b, waited):
			lastProgress = time.Now()
			continue
		case expired:
			return giveUp(&b.Items[first], len(l.origins), waited, cause)
		}
		l.retrying.Store(&retrying{items: len(l.origins), since: lastProgress, cause: cause})
		if err := pause.wait(ctx); err != nil {
			return err
		}
		l.e.retried.Add(uint64(len(l.origins)))
		if now := time.Now(); now.After(nextWarning) {
			nextWarning = now.Add(laterWarnings)
			l.e.cfg.Log.Warn("the destination takes nothing; items are sent again", "items", len(l.origins),
				"since", now.Sub(lastProgress).Round(time.Second), "until", set.RetryTime, "reason", cause)
		}
		l.again.StartWrite()
		if err := l.lane.Write(ctx, &l.again); err != nil {
			return err
		}
		for j, i := range l.origins {
			v, why := l.again.verdicts[j], l.again.causes[j]
			switch {
			case v == Unconfirmed:
				return &Error{Code: "no-verdict", Err: errors.New("the sink returned without a verdict on an item that was sent again"),
					Hint: "This is a defect of the sink."}
			case v == Skipped && b.verdicts[i] == Done:
				continue // it had been written; a resend that finds it there changes nothing
			case v != Retry && b.verdicts[i] == Retry:
				lastProgress = time.Now()
				pause.reset()
			}
			b.Settle(i, v, why)
		}
	}
}

// gather collects in again the items to be sent again, in order.
func (l *laneRun) gather(b *Batch) {
	l.again.Items, l.origins = l.again.Items[:0], l.origins[:0]
	var keys map[string]struct{}
	for i, v := range b.verdicts {
		it := &b.Items[i]
		if v == Retry {
			if keys == nil {
				keys = make(map[string]struct{})
			}
			keys[string(it.Key)] = struct{}{}
		} else if _, after := keys[string(it.Key)]; !after {
			continue
		}
		l.again.Items = append(l.again.Items, *it)
		l.origins = append(l.origins, i)
	}
}

func overBudget(n int, cause error) error {
	return &Error{Class: ClassOf(cause), Code: "retry-budget", Op: fmt.Sprintf("%d items were sent again, which is all that -x retry-budget allows", n),
		Err: orNoReason(cause), Hint: "Mend what makes the destination refuse items for the moment, or leave retry-budget out."}
}

func giveUp(it *Item, n int, waited time.Duration, cause error) error {
	where := "an item with key " + UserData(it.Key)
	if it.VBucket != NoVBucket {
		where += fmt.Sprintf(" of vbucket %d", it.VBucket)
	}
	if n > 1 {
		where = fmt.Sprintf("%d items, the first of them %s", n, strings.TrimPrefix(where, "an item "))
	}
	cause = orNoReason(cause)
	hint := HintOf(cause)
	if hint == "" {
		hint = "Nothing got through to the destination in that time. Mend its cause and run the same command again; -x retry-time=5m waits longer."
	}
	return &Error{Class: ClassOf(cause), Code: "retry-time", Hint: hint,
		Op: fmt.Sprintf("write %s, given up after %s of retries", where, waited.Round(time.Millisecond)), Err: cause}
}
