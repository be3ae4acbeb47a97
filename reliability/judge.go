package reliability

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// Ledger wraps a sink and keeps which items it confirmed, and which it refused or
// left out.
type Ledger struct {
	pump.Sink

	mu      sync.Mutex
	done    map[string]pump.Item // the last state of each key that is Done
	refused map[string]bool      // keys of which a state ended Rejected or Skipped
}

// Unwrap returns the sink.
func (l *Ledger) Unwrap() any { return l.Sink }

// Lanes implements pump.Sink.
func (l *Ledger) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	lanes, err := l.Sink.Lanes(ctx, want)
	for i := range lanes {
		lanes[i] = &ledgerLane{lanes[i], l}
	}
	return lanes, err
}

type ledgerLane struct {
	pump.Lane
	ledger *Ledger
}

func (l *ledgerLane) Unwrap() any { return l.Lane }

func (l *ledgerLane) Write(ctx context.Context, b *pump.Batch) error {
	err := l.Lane.Write(ctx, b)
	l.ledger.mu.Lock()
	defer l.ledger.mu.Unlock()
	if l.ledger.done == nil {
		l.ledger.done, l.ledger.refused = map[string]pump.Item{}, map[string]bool{}
	}
	for i := range b.Items {
		switch b.Verdict(i) {
		case pump.Done:
			l.ledger.done[string(b.Items[i].Key)] = pumptest.CloneItem(&b.Items[i])
		case pump.Skipped, pump.Rejected:
			l.ledger.refused[string(b.Items[i].Key)] = true
		}
	}
	return err
}

// Judge holds what a run said against what the source had and the destination has.
// The run is over and its sink closed. It returns nil when the run either reported
// complete and the destination holds the last state of every key, or reported an
// error and everything counted as Done is at the destination; and nothing is there
// that the source never gave.
func Judge(src *Source, to *Destination, ledger *Ledger, report *pump.Report, err error) error {
	if n := report.Done + report.Skipped + report.Rejected; report.Read < n {
		return fmt.Errorf("%d items read, %d have verdicts", report.Read, n)
	}
	complete := err == nil || pump.ClassOf(err) == pump.ClassPartial
	if complete && report.Pending() != 0 { // invariant 8
		return fmt.Errorf("complete, with %d items read, %d done, %d skipped, %d rejected", report.Read, report.Done, report.Skipped, report.Rejected)
	}
	if report.Done < uint64(len(ledger.done)) && complete {
		return fmt.Errorf("%d items counted as done, and %d keys are", report.Done, len(ledger.done))
	}
	if to.Live == nil {
		if complete && len(ledger.done)+len(ledger.refused) < len(src.History) {
			return fmt.Errorf("complete, and only %d keys of %d came", len(ledger.done), len(src.History))
		}
		return nil
	}
	live, ok, rerr := to.Live()
	switch {
	case rerr != nil:
		return fmt.Errorf("look at the destination: %w", rerr)
	case !ok && complete:
		return fmt.Errorf("complete, and the destination is not")
	case !ok:
		return nil // nothing there that could be taken for the whole
	case to.Whole:
		complete = true // what has the name of a whole one must be one, also when the run failed later
	}
	for k, it := range live { // nothing is invented
		if !slices.ContainsFunc(src.History[k], func(s pump.Item) bool {
			return s.Op == pump.Mutation && bytes.Equal(s.Value, it.Value)
		}) {
			return fmt.Errorf("the destination holds %s, which the source never gave", pumptest.Describe(&it))
		}
	}
	for k, states := range src.History {
		have, there := live[k]
		place := len(states) // of the first state that the destination may have: any, or nothing at all
		if last, is := ledger.done[k]; is {
			place = slices.IndexFunc(states, func(s pump.Item) bool { return s.Op == last.Op && bytes.Equal(s.Value, last.Value) })
		} else if !complete || ledger.refused[k] {
			continue
		}
		if complete && !ledger.refused[k] {
			place = len(states) - 1
		}
		fits := slices.ContainsFunc(states[min(place, len(states)):], func(s pump.Item) bool {
			return there == (s.Op == pump.Mutation) && (!there || bytes.Equal(s.Value, have.Value))
		})
		if !fits {
			return fmt.Errorf("complete %t: key %s has %d states, of which number %d or later must be there; it is there: %t %s",
				complete, k, len(states), place, there, have.Value)
		}
	}
	return nil
}
