package pump

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Snapshot is how far a run has come. Counters count verdicts, not sends
// (invariant 1).
type Snapshot struct {
	Elapsed     time.Duration
	Read        uint64 // items that the source gave and the filter let pass
	Done        uint64
	Skipped     uint64
	Rejected    uint64
	Filtered    uint64 // items that the filter left out; not in Read
	Retried     uint64 // sends beyond the first
	BytesRead   uint64 // key, value and meta of Read
	BytesDone   uint64 // key, value and meta of Done
	Streams     int
	StreamsDone int
	Reopened    uint64 // how often a broken stream was opened again; its items may have been read twice
	Estimate    Estimate
}

// Pending returns the items that were read and have no final verdict.
func (s *Snapshot) Pending() uint64 { return s.Read - s.Done - s.Skipped - s.Rejected }

// Report is what a run did.
type Report struct {
	Snapshot
	StreamReports []StreamReport
	// Rejections are the first rejected items; Rejected counts them all.
	Rejections []Rejection
	// Causes count why items were skipped or rejected, most frequent first.
	Causes []CauseCount
	// LeftOut are the source's definitions that the sink had no place for.
	LeftOut []Definition
	// Losses are the parts of done items that the sink had no place for.
	Losses []Loss
	// Earlier is what the runs counted that this one went on from.
	Earlier Counts
}

// StreamReport is what became of one stream.
type StreamReport struct {
	ID  string
	Err error // nil: proven complete
}

// Rejection is an item that the destination refused.
type Rejection struct {
	Op      Op
	VBucket uint16
	Key     []byte
	Cause   error
}

// CauseCount counts one reason for not writing items.
type CauseCount struct {
	Verdict Verdict
	Text    string
	N       uint64
}

const (
	maxRejections = 100 // kept whole in the report
	maxCauses     = 64  // different texts; what comes later counts as "other"
)

// ledger collects what Report says of single items. Lanes share it; it is
// touched only for items that are not Done.
type ledger struct {
	mu         sync.Mutex
	rejections []Rejection
	causes     map[CauseCount]uint64 // keys have N = 0
}

func (l *ledger) note(it *Item, v Verdict, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v == Rejected && len(l.rejections) < maxRejections {
		l.rejections = append(l.rejections, Rejection{Op: it.Op, VBucket: it.VBucket, Key: slices.Clone(it.Key), Cause: why})
	}
	text := "no reason given"
	if why != nil {
		text = why.Error()
	}
	c := CauseCount{Verdict: v, Text: text}
	if l.causes == nil {
		l.causes = make(map[CauseCount]uint64)
	}
	if _, known := l.causes[c]; !known && len(l.causes) >= maxCauses {
		c.Text = "other"
	}
	l.causes[c]++
}

func (l *ledger) fill(r *Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Rejections = l.rejections
	for c, n := range l.causes {
		c.N = n
		r.Causes = append(r.Causes, c)
	}
	slices.SortFunc(r.Causes, func(a, b CauseCount) int {
		if a.N != b.N {
			if a.N > b.N {
				return -1
			}
			return 1
		}
		if a.Text < b.Text {
			return -1
		}
		return 1
	})
}

// Result is the error of a run that came to its end: nil when every item is Done,
// in the earlier runs too. It enforces invariant 8.
func (r *Report) Result() error {
	if r.Read != r.Done+r.Skipped+r.Rejected {
		return &Error{Class: ClassFailed, Code: "unreconciled",
			Err:  fmt.Errorf("%d items were read, but %d done + %d skipped + %d rejected do not add up to that", r.Read, r.Done, r.Skipped, r.Rejected),
			Hint: "This is a defect of the sink or of the pump. Nothing beyond the items counted as done is known to be at the destination."}
	}
	// What an earlier run could not write is not at the destination either.
	rejected, skipped := r.Rejected+r.Earlier.Rejected, r.Skipped+r.Earlier.Skipped
	e := &Error{Class: ClassPartial}
	switch {
	case rejected > 0 && skipped > 0:
		e.Code, e.Err = "partial", fmt.Errorf("%s rejected by the destination and %s skipped", itemsWere(rejected), itemsWere(skipped))
	case rejected > 0:
		e.Code, e.Err = "rejected", fmt.Errorf("%s rejected by the destination", itemsWere(rejected))
	case skipped > 0:
		e.Code, e.Err = "skipped", fmt.Errorf("%s skipped", itemsWere(skipped))
	default:
		return nil
	}
	if n := r.Earlier.Rejected + r.Earlier.Skipped; n > 0 {
		e.Err = fmt.Errorf("%w; %d of them in earlier runs", e.Err, n)
	}
	return e
}

func itemsWere(n uint64) string {
	if n == 1 {
		return "1 item was"
	}
	return fmt.Sprintf("%d items were", n)
}
