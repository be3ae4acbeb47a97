package pump_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// memCheckpoint keeps what was saved in memory.
type memCheckpoint struct {
	from    map[string][]pump.Mark
	earlier pump.Counts
	fail    error  // of Save
	onSave  func() // called by each Save

	mu       sync.Mutex
	marks    map[string][]pump.Mark
	counts   pump.Counts
	saves    int
	finished bool
}

func (c *memCheckpoint) Start([]string) (map[string][]pump.Mark, pump.Counts, error) {
	return c.from, c.earlier, nil
}

func (c *memCheckpoint) Save(_ context.Context, reached map[string][]pump.Mark, counts pump.Counts, finished bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.onSave != nil {
		c.onSave()
	}
	if c.fail != nil {
		return c.fail
	}
	if c.marks == nil {
		c.marks = make(map[string][]pump.Mark)
	}
	for id, marks := range reached {
		c.marks[id] = marks
	}
	c.counts, c.finished = counts, finished
	c.saves++
	return nil
}

func part(n int) []pump.Item {
	items := make([]pump.Item, n)
	for i := range items {
		items[i] = pump.Item{VBucket: pump.NoVBucket, Key: fmt.Appendf(nil, "key-%04d", i), Value: []byte("v")}
	}
	return items
}

// often saves as often as the clock can tell.
func often() pump.Settings {
	s := pump.DefaultSettings()
	s.CheckpointEvery = 1
	return s
}

func TestGoOnFromCheckpoint(t *testing.T) {
	keep := &memCheckpoint{from: map[string][]pump.Mark{"mem-0": {{VBucket: pump.NoVBucket, Seqno: 7}}}, earlier: pump.Counts{Done: 7}}
	sink := &pumptest.MemSink{}
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{part(10)}}, Sink: sink, Settings: often(), Checkpoint: keep})
	if err != nil {
		t.Fatal(err)
	}
	if report.Done != 3 || report.Earlier.Done != 7 || string(sink.Log()[0].Key) != "key-0007" {
		t.Errorf("done %d and %d before, the first is %s", report.Done, report.Earlier.Done, sink.Log()[0].Key)
	}
	if !keep.finished || keep.counts.Done != 10 || keep.marks["mem-0"][0].Seqno != 10 {
		t.Errorf("finished %v, counts %v, marks %v", keep.finished, keep.counts, keep.marks)
	}
}

// TestEarlierRejectionsAreNotForgotten: a run that goes on is not complete because
// its own part went well.
func TestEarlierRejectionsAreNotForgotten(t *testing.T) {
	keep := &memCheckpoint{earlier: pump.Counts{Rejected: 2}}
	_, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{part(3)}}, Sink: &pumptest.MemSink{}, Settings: often(), Checkpoint: keep})
	if pump.ExitCode(err, 0) != 3 || !keep.finished || keep.counts != (pump.Counts{Done: 3, Rejected: 2}) {
		t.Errorf("exit code %d (%v), finished %v, counts %v", pump.ExitCode(err, 0), err, keep.finished, keep.counts)
	}
}

// TestFailedSaveEndsTheRun: no progress is lost in silence.
func TestFailedSaveEndsTheRun(t *testing.T) {
	broken := errors.New("no space left")
	saves := make(chan struct{})
	keep := &memCheckpoint{fail: broken, onSave: sync.OnceFunc(func() { close(saves) })}
	src := &pumptest.MemSource{Parts: [][]pump.Item{part(1000)}, BatchSize: 1, Fail: func(_, given int) error {
		if given == 500 {
			<-saves
		}
		return nil
	}}
	report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: &pumptest.MemSink{}, Settings: often(), Checkpoint: keep})
	if !errors.Is(err, broken) || report.Pending() != 0 {
		t.Errorf("%v, %d unfinished", err, report.Pending())
	}
	keep = &memCheckpoint{fail: broken}
	_, err = pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{part(1)}}, Sink: &pumptest.MemSink{}, Checkpoint: keep, Settings: pump.DefaultSettings()})
	if !errors.Is(err, broken) {
		t.Errorf("the last save failed, and the run says %v", err)
	}
}

// wholeSink is a destination that counts only as a whole.
type wholeSink struct {
	pumptest.MemSink
	committed bool
	fail      error
}

func (s *wholeSink) Commit(context.Context) error {
	s.committed = s.fail == nil
	return s.fail
}

func TestWholeDestinationIsSavedAtItsEnd(t *testing.T) {
	sink := &wholeSink{}
	keep := &memCheckpoint{onSave: func() {
		if !sink.committed {
			t.Error("saved before the destination was complete")
		}
	}}
	if _, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{part(1000)}, BatchSize: 1}, Sink: sink, Settings: often(), Checkpoint: keep}); err != nil {
		t.Fatal(err)
	}
	if keep.saves != 1 || !keep.finished {
		t.Errorf("%d saves, finished %v", keep.saves, keep.finished)
	}
	sink, keep = &wholeSink{fail: errors.New("disk full")}, &memCheckpoint{}
	if _, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{part(10)}}, Sink: sink, Settings: often(), Checkpoint: keep}); err == nil || keep.saves != 0 {
		t.Errorf("%v, %d saves of a destination that did not become complete", err, keep.saves)
	}
}

// closeSink cannot be closed: what it confirmed may be lost.
type closeSink struct{ pumptest.MemSink }

func (*closeSink) Close() error { return errors.New("it did not keep it") }

func TestDestinationThatCannotBeClosedIsNotFinished(t *testing.T) {
	keep := &memCheckpoint{}
	_, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{part(10)}}, Sink: &closeSink{}, Settings: often(), Checkpoint: keep})
	if err == nil || keep.finished {
		t.Errorf("%v, finished %v", err, keep.finished)
	}
}

// TestSyncBeforeSave: what OnVerdict recorded is durable before the checkpoint
// passes it.
func TestSyncBeforeSave(t *testing.T) {
	var mu sync.Mutex
	var rejected, synced int
	keep := &memCheckpoint{}
	keep.onSave = func() {
		mu.Lock()
		defer mu.Unlock()
		if synced < int(keep.counts.Rejected) {
			t.Errorf("the checkpoint covers %d rejections, %d are durable", keep.counts.Rejected, synced)
		}
	}
	cfg := pump.Config{
		Source: &pumptest.MemSource{Parts: [][]pump.Item{part(500)}, BatchSize: 3}, Settings: often(), Checkpoint: keep,
		Sink: &pumptest.MemSink{Verdict: func(int, *pump.Item) (pump.Verdict, error) { return pump.Rejected, errors.New("no") }},
		OnVerdict: func(*pump.Item, pump.Verdict, error) {
			mu.Lock()
			defer mu.Unlock()
			rejected++
		},
		Sync: func() error {
			mu.Lock()
			defer mu.Unlock()
			synced = rejected
			return nil
		},
	}
	if _, err := pump.Run(t.Context(), cfg); pump.ExitCode(err, 0) != 3 {
		t.Fatal(err)
	}
	keep = &memCheckpoint{}
	cfg.Checkpoint, cfg.Sync = keep, func() error { return io.ErrShortWrite }
	cfg.Source = &pumptest.MemSource{Parts: [][]pump.Item{part(5)}}
	if _, err := pump.Run(t.Context(), cfg); !errors.Is(err, io.ErrShortWrite) || keep.saves != 0 {
		t.Errorf("%v, %d saves", err, keep.saves)
	}
}

// truncSource's stream wants to know what it may forget.
type truncSource struct {
	pumptest.MemSource
	keep *memCheckpoint
	t    *testing.T
	told []uint64
}

func (s *truncSource) Streams(ctx context.Context) ([]pump.Stream, error) {
	streams, err := s.MemSource.Streams(ctx)
	for i := range streams {
		streams[i] = &truncStream{streams[i], s}
	}
	return streams, err
}

type truncStream struct {
	pump.Stream
	src *truncSource
}

func (s *truncStream) Truncate(_ context.Context, durable []pump.Mark) error {
	k := s.src.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.EqualFunc(k.marks[s.ID()], durable, func(a, b pump.Mark) bool { return a.Seqno == b.Seqno }) {
		s.src.t.Errorf("told %v, durable is %v", durable, k.marks[s.ID()])
	}
	s.src.told = append(s.src.told, durable[0].Seqno)
	return nil
}

// TestDurableFirst: a source hears only of what was saved (invariant 3), in order.
func TestDurableFirst(t *testing.T) {
	keep := &memCheckpoint{}
	src := &truncSource{MemSource: pumptest.MemSource{Parts: [][]pump.Item{part(2000)}, BatchSize: 1}, keep: keep, t: t}
	if _, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: &pumptest.MemSink{}, Settings: often(), Checkpoint: keep}); err != nil {
		t.Fatal(err)
	}
	if len(src.told) == 0 || !slices.IsSorted(src.told) || src.told[len(src.told)-1] != 2000 {
		t.Errorf("told %v", src.told)
	}
	src = &truncSource{MemSource: pumptest.MemSource{Parts: [][]pump.Item{part(20)}}, keep: keep, t: t}
	if _, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: &pumptest.MemSink{}, Settings: often()}); err != nil || len(src.told) > 0 {
		t.Errorf("without a checkpoint: %v, told %v", err, src.told)
	}
}
