package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
)

// showStatus sets what SIGUSR1 prints. It is called from another goroutine.
func (s *stopper) showStatus(status func() string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}

// tell prints the status on stderr, whatever --silent says: somebody asked.
func (s *stopper) tell() {
	s.mu.Lock()
	status := s.status
	s.mu.Unlock()
	text := "starting"
	if status != nil {
		text = status()
	}
	_, _ = io.WriteString(s.say, s.say.name+": status: "+text+"\n")
}

func (t *transfer) status() string {
	if j := t.comparing.Load(); j != nil {
		return j.status()
	}
	s, running := t.monitor.Status()
	if !running {
		return "both ends are being opened"
	}
	text := statusText(&s)
	switch dir := t.flags.checkpoint.dir; {
	case dir == "":
	case s.SavedAgo < 0:
		text += fmt.Sprintf("\n  checkpoint: nothing saved in %s yet", quoteText(dir))
	default:
		text += fmt.Sprintf("\n  checkpoint: saved in %s %s ago", quoteText(dir), s.SavedAgo.Round(100*time.Millisecond))
	}
	if t.dead != nil && t.dead.Len() > 0 {
		text += fmt.Sprintf("\n  %s rejected: %s", countOf(int(t.dead.Len()), "item"), quoteText(t.dead.Path()))
	}
	return text
}

// status says what the readings of the two sides are doing.
func (j *comparison) status() string {
	text := fmt.Sprintf("comparing (%s)", j.mode)
	running := false
	for side, name := range []string{"source", "destination"} {
		if s, ok := j.monitors[side].Status(); ok {
			running = true
			text += "\n  " + name + " " + strings.ReplaceAll(statusText(&s), "\n", "\n  ")
		}
	}
	if !running {
		text += ": no side is being read at the moment"
	}
	return text
}

func (j *recoveryJob) status(m *pump.Monitor) string {
	phase, begun := j.phase.Load().(recovery.Phase)
	if !begun {
		return "starting"
	}
	s, running := m.Status()
	if !running || phase != recovery.PhaseTransfer {
		return "phase " + string(phase)
	}
	return fmt.Sprintf("phase %s\n  %s", phase, statusText(&s))
}

// maxStatusParts is how many streams, and how many lanes, are shown.
const maxStatusParts = 64

// statusText is a few lines about what a run is doing: how far it is, then every
// part that has something to do.
func statusText(s *pump.Status) string {
	var m meter
	var b strings.Builder
	fmt.Fprintf(&b, "after %s: %s", s.Elapsed.Round(100*time.Millisecond), progressText(&s.Snapshot, m.feed(&s.Snapshot)))
	fmt.Fprintf(&b, "\n  %s read, %s without a final verdict; %s of %s of memory in flight", grouped(s.Read), grouped(s.Pending()),
		bytesText(float64(s.Memory)), bytesText(float64(s.MemoryLimit)))
	if s.LimitItems > 0 || s.LimitBytes > 0 {
		fmt.Fprintf(&b, "; at most %s", speed{s.LimitItems, s.LimitBytes})
	}
	var states [pump.StreamFailed + 1]int
	for _, st := range s.StreamStatus {
		states[st.State]++
	}
	b.WriteString("\n  streams:")
	sep := " "
	for st, n := range states {
		if n > 0 {
			fmt.Fprintf(&b, "%s%d %s", sep, n, pump.StreamState(st))
			sep = ", "
		}
	}
	if s.Reopened > 0 {
		fmt.Fprintf(&b, "; opened again %s times", grouped(s.Reopened))
	}
	shown := 0
	for _, st := range s.StreamStatus {
		busy := st.State == pump.StreamReading || st.State == pump.StreamPausing || st.State == pump.StreamFailed || st.Unsettled > 0
		if !busy {
			continue
		}
		if shown++; shown > maxStatusParts {
			continue
		}
		fmt.Fprintf(&b, "\n    %s: %s, %s not confirmed", plainText(st.ID), st.State, batches(st.Unsettled))
		if st.Err != nil {
			fmt.Fprintf(&b, ": %s", plain(st.Err))
		}
	}
	if shown > maxStatusParts {
		fmt.Fprintf(&b, "\n    and %d more", shown-maxStatusParts)
	}
	for i, l := range s.LaneStatus {
		if i == maxStatusParts {
			fmt.Fprintf(&b, "\n  and %d more lanes", len(s.LaneStatus)-i)
			break
		}
		fmt.Fprintf(&b, "\n  lane %d: %s queued, %s being written", i, grouped(uint64(l.Queued)), grouped(uint64(l.Writing)))
		if l.Again > 0 {
			fmt.Fprintf(&b, "; %s sent again for %s", countOf(l.Again, "item"), l.AgainSince.Round(100*time.Millisecond))
			if l.AgainCause != nil {
				fmt.Fprintf(&b, ": %s", plain(l.AgainCause))
			}
		}
	}
	return b.String()
}

func batches(n int) string {
	if n == 1 {
		return "1 batch"
	}
	return fmt.Sprintf("%d batches", n)
}
