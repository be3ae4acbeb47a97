package recovery

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump"
)

func TestTally(t *testing.T) {
	y := newTally([]uint16{0, 3, 4})
	y.marks([]pump.Mark{
		{VBucket: 0, Complete: true, Items: 7},
		{VBucket: 3, Items: 9}, // only a position
		{VBucket: pump.NoVBucket, Complete: true},
	})
	if !maps.Equal(y.complete, map[uint16]uint64{0: 7}) {
		t.Errorf("complete: %v", y.complete)
	}
	<-y.wake
	if got := y.arrivals(); !maps.Equal(got, map[uint16]uint64{0: 7}) || len(y.arrivals()) != 0 {
		t.Errorf("arrived: %v", got)
	}
	key := []byte("k\x00ey")
	it := &pump.Item{VBucket: 3, Key: key}
	y.verdict(it, pump.Rejected, errors.New("too big"))
	copy(key, "XXXX") // the arena is used again
	y.verdict(it, pump.Skipped, nil)
	y.verdict(it, pump.Rejected, errors.New("other"))
	if x := y.refused[3]; x.rejected != 2 || x.skipped != 1 || x.first.Error() != `key <ud>k\x00ey</ud>: too big` {
		t.Errorf("refused: %+v, %v", x, x.first)
	}
	y.marks([]pump.Mark{{VBucket: 0, Complete: true, Items: 8}, {VBucket: 3, Complete: true, Items: 9}})
	if got := y.arrivals(); len(got) != 0 {
		t.Errorf("arrived again, or refused: %v", got)
	}
	y.verdict(&pump.Item{VBucket: 4, Key: []byte(strings.Repeat("x", 250))}, pump.Skipped, nil)
	if s := y.refused[4].first.Error(); len(s) > 300 || !strings.Contains(s, "no reason given") {
		t.Errorf("first: %s", s)
	}
}

// TestWants: nothing passes that was not asked for, and nothing after the end.
func TestWants(t *testing.T) {
	y := newTally([]uint16{0, 612, 700})
	y.marks([]pump.Mark{{VBucket: 700, Complete: true}})
	for vb, want := range map[uint16]bool{0: true, 612: true, 1: false, 700: false, 1023: false, pump.NoVBucket: false} {
		if y.wants(&pump.Item{VBucket: vb}) != want {
			t.Errorf("vbucket %d: %v", vb, !want)
		}
	}
}

func TestIncomplete(t *testing.T) {
	a, c := errors.New("a"), errors.New("c")
	err := fmt.Errorf("given up: %w", &pump.Error{Code: "x", Hint: "Wait.", Err: errors.New("cut"), VBuckets: map[uint16]error{1: a, 12: c}})
	r := &run{}
	report := &pump.Report{StreamReports: []pump.StreamReport{{ID: "1", Err: err}, {ID: "2"}}}
	if got := r.incomplete(&Outcome{VBucket: 12}, report, err); !errors.Is(got, c) || errors.Is(got, a) {
		t.Errorf("vbucket 12: %v", got)
	}
	partial := &pump.Error{Class: pump.ClassPartial, Code: "rejected"}
	if got := r.incomplete(&Outcome{VBucket: 5}, &pump.Report{}, partial); pump.CodeOf(got) != "incomplete" || pump.ClassOf(got) != pump.ClassFailed {
		t.Errorf("vbucket 5: %v", got)
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"10.0.0.1:8091", "10.0.0.1:8091", true},
		{"10.0.0.1:8091", "10.0.0.1", true},
		{"10.0.0.1:8091", "10.0.0.1:8092", false},
		{"localhost:8091", "127.0.0.1:8091", true},
		{"[::1]:8091", "127.0.0.1:8091", true},
		{"[fe80::1]:8091", "[fe80:0::1]:8091", true},
		{"Node.Example:8091", "node.example.:8091", true},
		{"a:8091", "b:8091", false},
	} {
		if sameAddr(c.a, c.b) != c.same || sameAddr(c.b, c.a) != c.same {
			t.Errorf("%s and %s: %v", c.a, c.b, !c.same)
		}
	}
	for _, bad := range []string{"http://a:8091", "u:geheim@a:8091", "a b", "a/b"} {
		if err := checkNode(bad); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, good := range []string{"", "a", "a:8091", "[::1]:8091"} {
		if err := checkNode(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

// TestEvents fixes what people read.
func TestEvents(t *testing.T) {
	plan := &Plan{Destination: "http://d:8091", DestinationBucket: "b", VBuckets: 1024, Missing: []uint16{0, 1, 2, 7}, Steps: []Step{
		{VBucket: 0, Action: ActionCreate, SourceItems: 5}, {VBucket: 1, Action: ActionResume, SourceItems: 6},
		{VBucket: 2, Action: ActionPublish, SourceItems: 100}, {VBucket: 7, Action: ActionLeave, Reason: "no"}}}
	failed := Outcome{VBucket: 0, State: StateReplica, Source: "s:1", Destination: "d:2", SourceItems: 5, DestinationItems: 4,
		Err: &pump.Error{Code: "count-differs", Op: "verify", Err: errors.New("it differs"), Hint: "Again."}}
	for _, c := range []struct {
		e    Event
		text string
	}{
		{PhaseStarted{PhasePlan, 0}, "plan: reading both clusters"},
		{PhaseStarted{PhaseVerify, 1}, "verify: 1 vbucket"},
		{PhaseEnded{Phase: PhaseVerify, Done: 2, Left: 1, Elapsed: 1500 * time.Microsecond}, "verify: ended after 2ms, 2 good, 1 left"},
		{PhaseEnded{Phase: PhasePlan, Err: &pump.Error{Code: "x", Op: "y"}}, "plan: ended after 0s: y"},
		{Planned{plan}, "4 vbuckets of bucket b at http://d:8091 missing; 1 to create: 0; 1 to fill again (replica from an earlier run): 1; " +
			"1 only to publish (active from an earlier run): 2; 1 that cannot be recovered now: 7; 11 items at the source"},
		{Planned{&Plan{DestinationBucket: "b", Destination: "u", VBuckets: 64}}, "nothing to recover: none of the vbuckets asked for is missing in bucket b at u"},
		{Replaced{"a", "b", false}, "node a is now in the place of b"},
		{Replaced{"a", "b", true}, "node a is in the place of b already"},
		{VBucketEvent{StepFailed, PhaseVerify, failed}, "vbucket 0: failed, it stays replica: verify: it differs"},
		{VBucketEvent{StepTransferred, PhaseTransfer, Outcome{VBucket: 3, Source: "s", SourceItems: 1, State: StateReplica}}, "vbucket 3: transferred, 1 item from s"},
		{VBucketEvent{StepVerified, PhaseVerify, Outcome{VBucket: 3, Destination: "d", DestinationItems: 2}}, "vbucket 3: verified, 2 items at d"},
		{VBucketEvent{StepRecovered, PhasePublish, Outcome{VBucket: 3}}, "vbucket 3: recovered"},
		{Warning{"c", "t", ""}, "t"},
		{Warning{"c", "t", "Do it."}, "t. Do it."},
		{Progress{pump.Snapshot{Read: 3, Done: 2}}, "3 items read, 2 written"},
	} {
		if got := c.e.String(); got != c.text {
			t.Errorf("%T: %q, want %q", c.e, got, c.text)
		}
	}
}
