package cli

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
)

func TestStatusText(t *testing.T) {
	s := &pump.Status{
		Snapshot: pump.Snapshot{Elapsed: 12340 * time.Millisecond, Read: 2000, Done: 1500, Rejected: 1, Streams: 70, StreamsDone: 1, Reopened: 3},
		Memory:   1 << 20, MemoryLimit: 32 << 20, LimitBytes: 5000000, SavedAgo: -1,
		StreamStatus: []pump.StreamStatus{
			{ID: "tap:vb1", State: pump.StreamReading, Unsettled: 2}, {ID: "tap:vb2", State: pump.StreamComplete},
			{ID: "tap:vb3", State: pump.StreamFailed, Err: errors.New("cut\nshort")}, {ID: "tap:vb4", State: pump.StreamPausing, Unsettled: 1},
		},
		LaneStatus: []pump.LaneStatus{{Queued: 1234, Writing: 100}, {Writing: 9, Again: 7, AgainSince: 3 * time.Second, AgainCause: errors.New("it is full")}},
	}
	for range 66 {
		s.StreamStatus = append(s.StreamStatus, pump.StreamStatus{ID: "more", State: pump.StreamReading})
	}
	got := statusText(s)
	for _, want := range []string{
		"after 12.3s: 1,501 items  ", "  rejected 1\n", "\n  2,000 read, 499 without a final verdict; 1.0 MB of 33.6 MB of memory in flight; at most any number of items/s, 5.0 MB/s",
		"\n  streams: 67 reading, 1 to be opened again, 1 complete, 1 failed; opened again 3 times", "\n    tap:vb1: reading, 2 batches not confirmed\n",
		"\n    tap:vb3: failed, 0 batches not confirmed: cut; short\n", "\n    tap:vb4: to be opened again, 1 batch not confirmed\n", "\n    and 5 more\n",
		"\n  lane 0: 1,234 queued, 100 being written\n", "\n  lane 1: 0 queued, 9 being written; 7 items sent again for 3s: it is full",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the status lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "tap:vb2") {
		t.Errorf("a stream that has nothing to do is listed:\n%s", got)
	}
}

func TestStatusOfARecovery(t *testing.T) {
	j, m := &recoveryJob{}, &pump.Monitor{}
	if got := j.status(m); got != "starting" {
		t.Errorf("before the first phase: %q", got)
	}
	for _, p := range []recovery.Phase{recovery.PhasePlan, recovery.PhaseTransfer, recovery.PhasePublish} {
		j.phase.Store(p)
		if got := j.status(m); got != "phase "+string(p) {
			t.Errorf("in phase %s: %q", p, got)
		}
	}
}
