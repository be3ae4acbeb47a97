package recovery

import (
	"slices"

	"github.com/cbpump/cbpump/pump"
)

// State is how far a vbucket has come at the destination.
type State string

// The states of a vbucket, in the order in which it passes them.
const (
	StateMissing   State = "missing"   // no node of the destination holds it
	StateReplica   State = "replica"   // its owner holds it as replica or pending; clients do not see it
	StateActive    State = "active"    // active at its owner, but the cluster's map does not name it yet
	StateRecovered State = "recovered" // active, and the cluster's map names it
)

// Outcome is what became of one vbucket.
type Outcome struct {
	VBucket          uint16
	Source           string // KV address of the source node that holds it
	Destination      string // KV address of its owner at the destination
	SourceItems      uint64 // live items that the source proved, or counts
	DestinationItems uint64 // live items that the owner counts
	State            State
	Err              error // why it did not get further; nil: recovered, or nothing was tried

	proven bool // the transfer is complete and confirmed; SourceItems is its count
}

// Result is what a recovery did. It is never nil, whatever the error.
type Result struct {
	Plan     *Plan // nil when planning failed
	Replaced bool  // the new node is in the old one's place; leave out -a and -r from now on
	// Outcomes has every vbucket of the plan, sorted.
	Outcomes    []Outcome
	Transfer    *pump.Report // nil when nothing was transferred
	Interrupted bool
	// NotStopped: the destination could not be told to stop the recovery, which the
	// next run has to go on with (Options.Resume).
	NotStopped bool
	Spent      Spent
}

// Remaining lists the vbuckets that a further run has to do.
func (r *Result) Remaining() []uint16 {
	return r.with(func(o *Outcome) bool { return o.State != StateRecovered })
}

// Recovered lists the vbuckets that this run recovered.
func (r *Result) Recovered() []uint16 {
	return r.with(func(o *Outcome) bool { return o.State == StateRecovered })
}

func (r *Result) with(want func(*Outcome) bool) []uint16 {
	var out []uint16
	for i := range r.Outcomes {
		if want(&r.Outcomes[i]) {
			out = append(out, r.Outcomes[i].VBucket)
		}
	}
	slices.Sort(out)
	return out
}
