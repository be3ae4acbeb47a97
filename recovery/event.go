package recovery

import (
	"encoding/json"
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
	PhaseActivate Phase = "activate"
	PhasePublish  Phase = "publish"
)

// Event is something that happened: PhaseStarted, PhaseEnded, Planned, Replaced,
// VBucketEvent, Warning or Progress. String is its line for people; EventJSON
// its line for scripts.
type Event interface {
	fmt.Stringer
	// Kind names the event in JSON: "phase-started", "vbucket", …
	Kind() string
}

// PhaseStarted opens a phase; VBuckets is how many it is about.
type PhaseStarted struct {
	Phase    Phase `json:"phase"`
	VBuckets int   `json:"vbuckets"`
}

// PhaseEnded closes a phase. Done vbuckets go on to the next; Left ones do not.
type PhaseEnded struct {
	Phase   Phase         `json:"phase"`
	Done    int           `json:"done"`
	Left    int           `json:"left"`
	Elapsed time.Duration `json:"elapsed_ns"`
	Err     error         `json:"-"`
}

// Planned has the plan, before anything is changed.
type Planned struct {
	Plan *Plan `json:"plan"`
}

// Replaced says that the new node is in the place of the failed-over one.
type Replaced struct {
	Add    string `json:"add"`
	Remove string `json:"remove"`
	// Before: an earlier run had done so.
	Before bool `json:"before"`
}

// Step names of VBucketEvent.
const (
	StepTransferred = "transferred" // complete and confirmed
	StepVerified    = "verified"
	StepActivated   = "activated"
	StepRecovered   = "recovered" // the map names it
	StepFailed      = "failed"
)

// VBucketEvent is one vbucket that got further, or did not.
type VBucketEvent struct {
	Step    string  `json:"step"`
	Phase   Phase   `json:"phase"`
	Outcome Outcome `json:"outcome"`
}

// Warning is something that the operator should look at. Recovery goes on.
type Warning struct {
	Code string `json:"code"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// Progress is how far the transfer has come.
type Progress struct {
	Snapshot pump.Snapshot `json:"-"`
}

// The names of the events.
func (PhaseStarted) Kind() string { return "phase-started" }
func (PhaseEnded) Kind() string   { return "phase-ended" }
func (Planned) Kind() string      { return "plan" }
func (Replaced) Kind() string     { return "node-replaced" }
func (VBucketEvent) Kind() string { return "vbucket" }
func (Warning) Kind() string      { return "warning" }
func (Progress) Kind() string     { return "progress" }

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

// MarshalJSON adds the error as text and code.
func (e PhaseEnded) MarshalJSON() ([]byte, error) {
	type plain PhaseEnded
	doc := struct {
		plain
		Code  string `json:"code,omitempty"`
		Error string `json:"error,omitempty"`
	}{plain: plain(e)}
	if e.Err != nil {
		doc.Code, doc.Error = pump.CodeOf(e.Err), e.Err.Error()
	}
	return json.Marshal(doc)
}

// MarshalJSON writes the counters.
func (e Progress) MarshalJSON() ([]byte, error) {
	s := &e.Snapshot
	return json.Marshal(map[string]any{
		"elapsed_ns": s.Elapsed, "read": s.Read, "done": s.Done, "skipped": s.Skipped, "rejected": s.Rejected,
		"retried": s.Retried, "bytes_read": s.BytesRead, "bytes_done": s.BytesDone, "items_total": s.Estimate.Items,
	})
}

// EventJSON is an event as one line of JSON without the newline; its first key
// is "event".
func EventJSON(e Event) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("write event %s as JSON: %w", e.Kind(), err)
	}
	head := append([]byte(`{"event":"`), e.Kind()...)
	return append(append(head, `",`...), body[1:]...), nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
