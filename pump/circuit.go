package pump

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Placer is an optional ability of sinks that spread items over several places
// which fail one by one, such as the nodes of a cluster. When a place cannot be
// reached for Settings.RetryTime and Config.KeepGoing is set, the engine gives it
// up and goes on with the others: the items of that place end without a verdict,
// no mark passes them, and the run ends with an error that names the place.
type Placer interface {
	// Place names the place of an item, "" if that is not known, and says how many
	// places there are. It is called concurrently, and only while one is in trouble.
	Place(it *Item) (name string, of int)
}

// circuit knows the places that were given up in this run.
type circuit struct {
	broken atomic.Bool // some place was given up
	mu     sync.Mutex
	places map[string]*lostPlace
}

type lostPlace struct {
	cause error
	vbs   map[uint16]bool // of the source's items that were for it
	items uint64
}

// giveUp gives a place up unless it is the last one; now says that it had not been
// given up before.
func (c *circuit) giveUp(name string, of int, cause error) (now bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.places[name] != nil {
		return false
	}
	if name == "" || len(c.places)+1 >= of {
		return false
	}
	if c.places == nil {
		c.places = map[string]*lostPlace{}
	}
	c.places[name] = &lostPlace{cause: cause, vbs: map[uint16]bool{}}
	c.broken.Store(true)
	return true
}

// lose notes an item that is not written since its place was given up; false if
// it was not.
func (c *circuit) lose(name string, vb uint16) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.places[name]
	if p == nil {
		return false
	}
	p.items++
	p.vbs[vb] = true
	return true
}

// err is what the run ends with because of the places that were given up.
func (c *circuit) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []error
	for _, name := range slices.Sorted(maps.Keys(c.places)) {
		p := c.places[name]
		e := &Error{Class: ClassOf(p.cause), Code: "place-given-up", VBuckets: map[uint16]error{},
			Hint: "What is for the other nodes was written. Bring this one back, or fail it over, and run the same command again."}
		delete(p.vbs, NoVBucket)
		for vb := range p.vbs {
			e.VBuckets[vb] = p.cause
		}
		what := fmt.Sprintf("%s was given up and %s not written", name, itemsWere(p.items))
		if len(p.vbs) > 0 {
			what += ", of vbuckets " + FormatVBuckets(slices.Sorted(maps.Keys(p.vbs)))
		}
		e.Op, e.Err = what, p.cause
		all = append(all, e)
	}
	return errors.Join(all...)
}

// abandon takes items out of a batch whose place cannot be reached: those whose
// place was given up, and with expired those whose place is given up now. It says
// whether there were any.
func (l *laneRun) abandon(b *Batch, expired bool) bool {
	e, any := l.e, false
	if e.placer == nil || !e.cfg.KeepGoing {
		return false
	}
	for _, i := range l.origins {
		if b.verdicts[i] != Retry || ClassOf(b.causes[i]) != ClassUnreachable {
			continue
		}
		it := &b.Items[i]
		name, of := e.placer.Place(it)
		if expired {
			if first := e.circuit.giveUp(name, of, b.causes[i]); first {
				e.cfg.Log.Warn("a place of the destination is given up; the others go on", "place", name, "reason", b.causes[i])
			}
		}
		if e.circuit.lose(name, it.VBucket) {
			b.Settle(i, Unconfirmed, nil)
			l.abandoned = append(l.abandoned, i)
			any = true
		}
	}
	return any
}

// forsake makes sure that no mark passes the items that were abandoned, before
// the shares of their write are settled.
func (l *laneRun) forsake(w *writing) {
	at, end := -1, 0
	for _, i := range l.abandoned {
		for end <= i {
			at++
			end += len(w.shares[at].which)
		}
		w.shares[at].p.stream.lose(w.batch.Items[i].VBucket)
	}
	l.abandoned = l.abandoned[:0]
}

// dropped says whether an item is not to be queued since its place was given up.
func (s *streamRun) dropped(it *Item) bool {
	name, _ := s.e.placer.Place(it)
	if !s.e.circuit.lose(name, it.VBucket) {
		return false
	}
	s.lose(it.VBucket)
	return true
}

// lose has no mark of a vbucket pass from now on: one of its items is not written.
func (s *streamRun) lose(vb uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = map[uint16]bool{}
	}
	s.lost[vb] = true
	// The sink chose the vbucket, so it is not known whose marks are concerned.
	s.lostAll = s.lostAll || vb == NoVBucket || s.moved.Load()
}

// tellLost sets Lost in the marks of what was not written, and returns the others.
func (s *streamRun) tellLost(marks []Mark) (reached []Mark) {
	if s.lost == nil {
		return marks
	}
	for i := range marks {
		m := &marks[i]
		if m.Lost = s.lostAll || m.VBucket == NoVBucket || s.lost[m.VBucket]; !m.Lost {
			reached = append(reached, *m)
		}
	}
	return reached
}

// blame gives the streams of which items were not written the reason for it.
func (e *engine) blame() {
	if !e.circuit.broken.Load() {
		return
	}
	why := e.circuit.err()
	for _, s := range e.streams {
		s.mu.Lock()
		if s.err == nil && s.lost != nil {
			s.err = why
		}
		s.mu.Unlock()
	}
}

// rejectAlone rejects the few items of a batch that keep coming back while the
// others of their vbucket were taken, so that they do not hold up their lane. It
// says whether there were any.
func (l *laneRun) rejectAlone(b *Batch, waited time.Duration) bool {
	type kind struct {
		vb   uint16
		live bool
	}
	few := max(1, len(b.Items)/100)
	left, taken := 0, map[kind]bool{}
	for i, v := range b.verdicts {
		switch v {
		case Retry:
			left++
		case Done:
			taken[kind{b.Items[i].VBucket, b.Items[i].Op == Mutation}] = true
		}
	}
	any := false
	for i, v := range b.verdicts {
		it, cause := &b.Items[i], b.causes[i]
		if v != Retry || left > few || ClassOf(cause) == ClassUnreachable || !taken[kind{it.VBucket, it.Op == Mutation}] {
			continue
		}
		b.Settle(i, Rejected, &Error{Code: "retry-item", Err: fmt.Errorf("sent again for %s while others were taken: %w",
			waited.Round(time.Millisecond), orNoReason(cause))})
		any = true
	}
	return any
}
