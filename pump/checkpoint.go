package pump

import (
	"context"
	"sync"
	"time"
)

// Checkpoint keeps the progress of a run durable, so that a later run goes on where
// this one ended, however it ended. Package checkpoint has one that is a folder.
type Checkpoint interface {
	// Start returns the marks from which each stream goes on, by the stream's ID,
	// none for those that begin anew, and what earlier runs counted. streams are
	// all that the source has now; it fails when what was saved does not fit them.
	Start(streams []string) (from map[string][]Mark, earlier Counts, err error)
	// Save makes durable that these marks are reached, beside those saved before.
	// counts is what the earlier runs and this one have counted so far; it covers
	// at least everything before the marks. finished says that the run has come to
	// its proven end.
	Save(ctx context.Context, reached map[string][]Mark, counts Counts, finished bool) error
}

// Counts counts verdicts over several runs. Items that a run had written without
// getting as far as to save it are counted again by the run that repeats them.
type Counts struct {
	Done     uint64 `json:"done"`
	Skipped  uint64 `json:"skipped"`
	Rejected uint64 `json:"rejected"`
}

func (c Counts) plus(s *Snapshot) Counts {
	return Counts{c.Done + s.Done, c.Skipped + s.Skipped, c.Rejected + s.Rejected}
}

// Truncater is an optional ability of streams: it is told which marks a durable
// checkpoint covers, in order, and may forget what lies before them (invariant 3).
// Without a checkpoint it is never called. The call comes from another goroutine
// than Read's; one at a time.
type Truncater interface {
	Truncate(ctx context.Context, durable []Mark) error
}

// progress collects the marks that are reached and saves them now and then.
type progress struct {
	e       *engine
	keep    Checkpoint
	earlier Counts

	mu      sync.Mutex
	reached map[string]*markSet // since the last save
	err     error               // of a save: what is reached from then on is not durable

	saving sync.Mutex // one save at a time
}

// reach notes marks of a stream; everything before them has a final verdict.
func (p *progress) reach(stream string, marks []Mark) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := p.reached[stream]
	if set == nil {
		if p.reached == nil {
			p.reached = make(map[string]*markSet)
		}
		set = new(markSet)
		p.reached[stream] = set
	}
	for _, m := range marks {
		set.add(m)
	}
}

// markSet holds the newest mark of each part of a stream.
type markSet struct {
	marks []Mark
	at    map[uint16]int // index in marks by vbucket
}

func (s *markSet) add(m Mark) {
	if i, known := s.at[m.VBucket]; known {
		s.marks[i] = m
		return
	}
	if s.at == nil {
		s.at = make(map[uint16]int)
	}
	s.at[m.VBucket] = len(s.marks)
	s.marks = append(s.marks, m)
}

// save makes durable what was reached, then tells the streams (invariant 3). An
// error is remembered: nothing is saved after it.
func (p *progress) save(ctx context.Context, finished bool) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	taken, err := p.reached, p.err
	p.reached = nil
	p.mu.Unlock()
	if err != nil {
		return err
	}
	reached := make(map[string][]Mark, len(taken))
	for id, set := range taken {
		reached[id] = set.marks
	}
	if len(reached) == 0 && !finished {
		return nil
	}
	// The counters are read after the marks, so that they cover them.
	now := p.e.snapshot()
	if p.e.cfg.Sync != nil {
		err = p.e.cfg.Sync()
	}
	if err == nil {
		err = p.keep.Save(ctx, reached, p.earlier.plus(&now), finished)
	}
	if err != nil {
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		return err
	}
	p.e.saved.Store(time.Now().UnixNano())
	for _, s := range p.e.streams {
		marks := reached[s.id]
		if t, ok := As[Truncater](s.stream); ok && len(marks) > 0 {
			if err := t.Truncate(ctx, marks); err != nil {
				p.e.cfg.Log.Warn("the source could not be told what is durable", "stream", s.id, "reason", err)
			}
		}
	}
	return nil
}

// run saves every CheckpointEvery until finished is closed. When a save fails the
// reading ends: what could not be repeated must not be read.
func (p *progress) run(ctx context.Context, finished <-chan struct{}) {
	interval := p.e.cfg.Settings.CheckpointEvery
	if interval <= 0 {
		interval = DefaultSettings().CheckpointEvery
	}
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-finished:
			return
		case <-t.C:
			if err := p.save(ctx, false); err != nil {
				p.e.stopRead(err)
				return
			}
		}
	}
}
