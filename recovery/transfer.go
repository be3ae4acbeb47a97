package recovery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/cbpump/cbpump/pump"
)

// tally is what the transfer's callbacks report, by vbucket.
type tally struct {
	mu       sync.Mutex
	complete map[uint16]uint64 // proven whole, with so many live items
	reached  map[uint16]uint64 // up to which seqno that was; 0: the source does not number items
	refused  map[uint16]*refusals
	arrived  []uint16      // complete since the last call of arrivals
	wake     chan struct{} // has one when arrived is not empty
	wanted   []atomic.Bool // by vbucket: not complete yet
}

func newTally(vbs []uint16) *tally {
	t := &tally{
		complete: make(map[uint16]uint64), reached: make(map[uint16]uint64), refused: make(map[uint16]*refusals), wake: make(chan struct{}, 1),
		wanted: make([]atomic.Bool, int(pump.NoVBucket)+1),
	}
	for _, vb := range vbs {
		t.wanted[vb].Store(true)
	}
	return t
}

// wants lets nothing but the wanted vbuckets pass, and these until they are
// complete. The source was asked for no others; should it send some all the same,
// they would overwrite live data.
func (t *tally) wants(it *pump.Item) bool { return t.wanted[it.VBucket].Load() }

// arrivals returns the vbuckets that have become complete since the last call,
// with their live items. Those of which an item was refused are not among them:
// all verdicts come before the mark.
func (t *tally) arrivals() map[uint16]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[uint16]uint64, len(t.arrived))
	for _, vb := range t.arrived {
		if t.refused[vb] == nil {
			out[vb] = t.complete[vb]
		}
	}
	t.arrived = t.arrived[:0]
	return out
}

// refusals are the items of one vbucket that were not written.
type refusals struct {
	rejected, skipped uint64
	first             error
}

func (t *tally) marks(marks []pump.Mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range marks {
		if m.Complete && m.VBucket != pump.NoVBucket {
			if _, had := t.complete[m.VBucket]; !had {
				t.arrived = append(t.arrived, m.VBucket)
				t.wanted[m.VBucket].Store(false)
			}
			t.complete[m.VBucket], t.reached[m.VBucket] = m.Items, m.Seqno
		}
	}
	if len(t.arrived) > 0 {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

func (t *tally) wasRefused(vb uint16) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refused[vb] != nil
}

func (t *tally) verdict(it *pump.Item, v pump.Verdict, why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.refused[it.VBucket]
	if x == nil {
		if why == nil {
			why = errors.New("no reason given")
		}
		x = &refusals{first: fmt.Errorf("key %s: %w", pump.UserData(it.Key), why)}
		t.refused[it.VBucket] = x
	}
	if v == pump.Rejected {
		x.rejected++
	} else {
		x.skipped++
	}
}

// transfer pumps the vbuckets of r.todo. A vbucket is proven only if the source
// said that it was complete, everything before that was settled at the
// destination (invariants 1 and 4), and not one of its items was refused.
func (r *run) transfer(ctx context.Context) error {
	source, err := r.openSource(ctx, r.todo)
	if err != nil {
		return err
	}
	sink, err := r.openSink(ctx, r.todo)
	if err != nil {
		return errors.Join(err, source.Close())
	}
	r.tally = newTally(r.todo)
	var items uint64
	for _, vb := range r.todo {
		items += r.out[vb].SourceItems
	}
	cut, cancel := context.WithCancel(ctx)
	defer cancel()
	over, early := make(chan struct{}), errgroup.Group{}
	if r.committer != nil {
		early.Go(func() error {
			err := r.commitEarly(cut, over)
			if err != nil {
				cancel() // the destination deletes what is being transferred
			}
			return err
		})
	}
	report, err := pump.Run(cut, pump.Config{
		Source: &meteredSource{source, r.meter, items}, Sink: &meteredSink{sink, r.meter}, Settings: r.opt.Settings, Threads: r.opt.Threads,
		Filter:        r.tally.wants,
		Log:           r.opt.Log,
		Stop:          r.opt.Stop,
		KeepGoing:     true,
		Limits:        r.opt.Limits,
		Monitor:       r.opt.Monitor,
		OnVerdict:     r.tally.verdict,
		Checkpoint:    r.keep(),
		OnMarks:       func(_ string, marks []pump.Mark) { r.tally.marks(marks) },
		Progress:      func(s pump.Snapshot) { r.emit(Progress{s}) },
		ProgressEvery: r.opt.Timing.ProgressBy,
	})
	close(over)
	earlyErr := early.Wait()
	r.res.Transfer = report
	if report.Filtered > 0 {
		r.warn("foreign-items", fmt.Sprintf("the source sent %d items of vbuckets that it was not asked for, that were complete or that somebody else has committed; they were left out", report.Filtered), "")
	}
	if ctx.Err() != nil {
		return r.interrupted()
	}
	if earlyErr == nil && err != nil {
		earlyErr = r.checkForgotten(ctx)
	}
	if earlyErr != nil {
		return earlyErr
	}
	stopped := r.stopped()
	for _, vb := range r.todo {
		o := r.out[vb]
		items, complete := r.tally.complete[vb]
		refused := r.tally.refused[vb]
		switch {
		case o.proven, o.Err != nil:
			// Settled while others were still transferred.
		case refused != nil:
			r.fail(PhaseTransfer, vb, &pump.Error{Code: "items-refused", Op: fmt.Sprintf("vbucket %d", vb),
				Err: fmt.Errorf("%s rejected and %d skipped by %s; the first: %w",
					count(int(refused.rejected), "item"), refused.skipped, o.Destination, plain(refused.first)),
				Hint: "The vbucket would not be whole and is not activated. Mend or remove these documents at the source, then run the command again."})
		case complete:
			o.SourceItems, o.proven = items, true
			r.step(PhaseTransfer, vb, StepTransferred)
		case stopped:
			// Left open: it is only not done yet.
		default:
			r.fail(PhaseTransfer, vb, r.incomplete(o, report, err))
		}
	}
	return nil
}

// incomplete is why a vbucket's transfer did not come to its proven end.
func (r *run) incomplete(o *Outcome, report *pump.Report, err error) error {
	cause := err
	for _, s := range report.StreamReports {
		if own := pump.ErrorOf(s.Err, o.VBucket); own != nil {
			cause = own
		}
	}
	e := &pump.Error{Code: "incomplete", Op: fmt.Sprintf("transfer vbucket %d from %s to %s", o.VBucket, o.Source, o.Destination),
		Hint: "It is not activated. Run the command again: it is transferred anew."}
	if cause == nil || pump.ClassOf(cause) == pump.ClassPartial {
		e.Err = errors.New("the source ended without the proof that it is complete")
		return e
	}
	e.Class, e.Err = pump.ClassOf(cause), cause
	if code := pump.CodeOf(cause); code != "failed" {
		e.Code = code
	}
	if hint := pump.HintOf(cause); hint != "" {
		e.Hint = hint + " " + e.Hint
	}
	return e
}

// plain is an error's text without its class: that an item was refused is not
// the vbucket's access being denied.
func plain(err error) error { return errors.New(err.Error()) }
