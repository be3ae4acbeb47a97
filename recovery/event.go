package recovery

import (
	"fmt"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// Phase is a part of the recovery.
type Phase string

// The phases, in their order.
const (
	PhasePlan     Phase = "plan"
	PhasePrepare  Phase = "prepare"
	PhaseTransfer Phase = "transfer"
	PhaseVerify   Phase = "verify"
	PhaseActivate Phase = "activate" // proposal
	PhaseCommit   Phase = "commit"   // controller: what was not committed during the transfer
	PhasePublish  Phase = "publish"
)

// Event is something that happened: PhaseStarted, PhaseEnded, Planned, Replaced,
// VBucketEvent, Warning or Progress. String is its line for people.
type Event interface {
	fmt.Stringer
	event()
}

// PhaseStarted opens a phase; VBuckets is how many it is about.
type PhaseStarted struct {
	Phase    Phase
	VBuckets int
}

// PhaseEnded closes a phase. Done vbuckets go on to the next; Left ones do not.
type PhaseEnded struct {
	Phase   Phase
	Done    int
	Left    int
	Elapsed time.Duration
	Err     error
}

// Planned has the plan, before anything is changed.
type Planned struct {
	Plan *Plan
}

// Replaced says that the new node is in the place of the failed-over one.
type Replaced struct {
	Add    string
	Remove string
	// Before: an earlier run had done so.
	Before bool
}

// Step names of VBucketEvent.
const (
	StepTransferred = "transferred" // complete and confirmed
	StepVerified    = "verified"
	StepActivated   = "activated"
	StepCommitted   = "committed" // active; the destination says that the map names it
	StepRecovered   = "recovered" // the map names it
	StepFailed      = "failed"
)

// VBucketEvent is one vbucket that got further, or did not.
type VBucketEvent struct {
	Step    string
	Phase   Phase
	Outcome Outcome
}

// Warning is something that the operator should look at. Recovery goes on.
type Warning struct {
	Code string
	Text string
	Hint string
}

// Progress is how far the transfer has come.
type Progress struct {
	Snapshot pump.Snapshot
}

func (PhaseStarted) event() {}
func (PhaseEnded) event()   {}
func (Planned) event()      {}
func (Replaced) event()     {}
func (VBucketEvent) event() {}
func (Warning) event()      {}
func (Progress) event()     {}

func (e PhaseStarted) String() string {
	if e.Phase == PhasePlan {
		return "plan: reading both clusters"
	}
	return fmt.Sprintf("%s: %s", e.Phase, count(e.VBuckets, "vbucket"))
}

func (e PhaseEnded) String() string {
	s := fmt.Sprintf("%s: ended after %s", e.Phase, e.Elapsed.Round(time.Millisecond))
	if e.Done+e.Left > 0 {
		s += fmt.Sprintf(", %d good, %d left", e.Done, e.Left)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e Planned) String() string {
	p := e.Plan
	if p.Nothing() {
		return fmt.Sprintf("nothing to recover: none of the vbuckets asked for is missing in bucket %s at %s", p.DestinationBucket, p.Destination)
	}
	s := fmt.Sprintf("%s of bucket %s at %s missing", count(len(p.Missing), "vbucket"), p.DestinationBucket, p.Destination)
	for _, a := range []struct {
		action Action
		text   string
	}{
		{ActionCreate, "to create"},
		{ActionResume, "to fill again (replica from an earlier run)"},
		{ActionPublish, "only to publish (active from an earlier run)"},
		{ActionLeave, "that cannot be recovered now"},
	} {
		if vbs := p.With(a.action); len(vbs) > 0 {
			s += fmt.Sprintf("; %d %s: %s", len(vbs), a.text, pump.FormatVBuckets(vbs))
		}
	}
	return s + fmt.Sprintf("; %s at the source", count(int(p.Items()), "item"))
}

func (e Replaced) String() string {
	if e.Before {
		return fmt.Sprintf("node %s is in the place of %s already", e.Add, e.Remove)
	}
	return fmt.Sprintf("node %s is now in the place of %s", e.Add, e.Remove)
}

func (e VBucketEvent) String() string {
	o := e.Outcome
	switch {
	case o.Err != nil:
		return fmt.Sprintf("vbucket %d: %s, it stays %s: %v", o.VBucket, e.Step, o.State, o.Err)
	case e.Step == StepTransferred:
		return fmt.Sprintf("vbucket %d: transferred, %s from %s", o.VBucket, count(int(o.SourceItems), "item"), o.Source)
	case e.Step == StepVerified:
		return fmt.Sprintf("vbucket %d: verified, %s at %s", o.VBucket, count(int(o.DestinationItems), "item"), o.Destination)
	}
	return fmt.Sprintf("vbucket %d: %s", o.VBucket, e.Step)
}

func (e Warning) String() string {
	if e.Hint == "" {
		return e.Text
	}
	return e.Text + ". " + e.Hint
}

func (e Progress) String() string {
	return fmt.Sprintf("%d items read, %d written", e.Snapshot.Read, e.Snapshot.Done)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
