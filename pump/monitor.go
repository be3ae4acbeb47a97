package pump

import (
	"sync/atomic"
	"time"
)

// Monitor shows what a run is doing, at any time and without disturbing it. The
// zero Monitor is ready to be a Config.Monitor of one run at a time.
type Monitor struct{ run atomic.Pointer[engine] }

// Status is what a run is doing at one moment.
type Status struct {
	Snapshot
	StreamStatus []StreamStatus // in the order of the source
	LaneStatus   []LaneStatus
	Memory       int64  // bytes of batches in flight
	MemoryLimit  int64  // for the moment; Settings.Memory is the most
	LimitItems   uint64 // a second, 0 = no limit
	LimitBytes   uint64
	// SavedAgo is how long ago the checkpoint was saved; below 0: never in this run,
	// or there is none.
	SavedAgo time.Duration
}

// StreamState is how far the reading of a stream has come.
type StreamState int32

// The states of a stream.
const (
	StreamWaiting StreamState = iota // for others to end (Settings.StreamLimit)
	StreamReading
	StreamPausing  // it broke, and is opened again after a pause
	StreamComplete // proven
	StreamFailed
)

func (s StreamState) String() string {
	switch s {
	case StreamWaiting:
		return "waiting"
	case StreamReading:
		return "reading"
	case StreamPausing:
		return "to be opened again"
	case StreamComplete:
		return "complete"
	case StreamFailed:
		return "failed"
	}
	return "unknown"
}

// StreamStatus is what one stream is doing.
type StreamStatus struct {
	ID        string
	State     StreamState
	Unsettled int   // batches of which items have no final verdict
	Err       error // of a failed one
}

// LaneStatus is what one lane is doing.
type LaneStatus struct {
	Queued  int // items that wait for the lane
	Writing int // items of the write that is under way
	// Again is how many of these are being sent again, since when nothing of them
	// got through, and why.
	Again      int
	AgainSince time.Duration
	AgainCause error
}

// retrying is what a lane is sending again.
type retrying struct {
	items int
	since time.Time
	cause error
}

// Status returns what the run is doing; false if there is none that has begun.
func (m *Monitor) Status() (Status, bool) {
	e := m.run.Load()
	if e == nil {
		return Status{}, false
	}
	s := Status{Snapshot: e.snapshot(), SavedAgo: -1}
	if at := e.saved.Load(); at > 0 {
		s.SavedAgo = max(0, time.Since(time.Unix(0, at)))
	}
	if e.cfg.Limits != nil {
		s.LimitItems, s.LimitBytes = e.cfg.Limits.Rates()
	}
	e.budget.mu.Lock()
	s.Memory, s.MemoryLimit = e.budget.used, e.budget.limit
	e.budget.mu.Unlock()
	for _, r := range e.streams {
		st := StreamStatus{ID: r.id, State: StreamState(r.state.Load())}
		if st.State == StreamFailed {
			st.Err = r.err // set before the state
		}
		r.mu.Lock()
		st.Unsettled = len(r.window)
		r.mu.Unlock()
		s.StreamStatus = append(s.StreamStatus, st)
	}
	for _, l := range e.lanes {
		ls := LaneStatus{Writing: int(l.writing.Load())}
		l.mu.Lock()
		ls.Queued = l.queued
		l.mu.Unlock()
		if r := l.retrying.Load(); r != nil {
			ls.Again, ls.AgainSince, ls.AgainCause = r.items, time.Since(r.since), r.cause
		}
		s.LaneStatus = append(s.LaneStatus, ls)
	}
	return s, true
}
