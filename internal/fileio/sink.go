package fileio

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/pump"
)

// flushSize is how much a lane collects before it writes.
const flushSize = 256 << 10

// maxLanes bounds how many goroutines encode; beyond it they wait for the file.
const maxLanes = 4

// Encoder appends an item to dst. A verdict other than pump.Done says why the
// item is not to be written; then dst comes back as it was. It is called
// concurrently.
type Encoder func(dst []byte, it *pump.Item) ([]byte, pump.Verdict, error)

// Sink is a file, or standard output, written by an Encoder. Several lanes
// encode, one at a time writes; the items of a key stay in their order
// (invariant 5) because they share a lane.
type Sink struct {
	Path    string
	Replace bool
	Head    []byte // what comes before the first item
	Lane    int    // most lanes; 0 leaves it open
	Encode  Encoder
	Loses   Part // what the format has no place for in items that it takes
	Plain   bool // it has no place for datatypes: compressed values are unpacked before
	Log     hclog.Logger

	mu        sync.Mutex // guards the output while lanes are at work
	out       *Output
	items     uint64
	committed bool
	losses    Losses
}

// Losses implements pump.Loser.
func (s *Sink) Losses() []pump.Loss { return s.losses.List() }

// Check implements pump.Checker.
func (s *Sink) Check(context.Context) error { return CheckOutput(s.Path, s.Replace) }

// Datatypes implements pump.DatatypeTaker.
func (s *Sink) Datatypes(context.Context) (uint8, error) {
	if s.Plain {
		return pump.DatatypeJSON, nil
	}
	return 0xff, nil
}

// Lanes creates the file.
func (s *Sink) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	out, err := Create(s.Path, s.Replace)
	if err != nil {
		return nil, err
	}
	s.out = out
	if len(s.Head) > 0 {
		if err := out.Write(ctx, s.Head); err != nil {
			return nil, err
		}
	}
	n := min(runtime.GOMAXPROCS(0), maxLanes)
	if want > 0 {
		n = min(want, maxLanes)
	}
	if s.Lane > 0 {
		n = min(n, s.Lane)
	}
	lanes := make([]pump.Lane, n)
	for i := range lanes {
		lanes[i] = &lane{sink: s}
	}
	return lanes, nil
}

// Commit implements pump.Committer: only now the file gets its name.
func (s *Sink) Commit(context.Context) error {
	if s.out == nil {
		return nil
	}
	if err := s.out.Commit(); err != nil {
		return err
	}
	s.committed = true
	return nil
}

// Close lets go of the file. One that was not committed keeps its name ending
// in ".partial", or goes if no item is in it.
func (s *Sink) Close() error {
	if s.out == nil {
		return nil
	}
	partial := s.out.Partial()
	keep := partial != "" && s.items > 0
	if keep && s.Log != nil && holdsAnything(partial) {
		s.Log.Warn("the file is incomplete and has not got its name", "file", partial, "items", s.items)
	}
	err := s.out.Close(keep)
	s.out = nil
	if err != nil {
		return WriteError("close "+s.Path, partial, err)
	}
	return nil
}

type lane struct {
	sink *Sink
	buf  []byte
}

// Write encodes the batch and hands it to the operating system.
func (l *lane) Write(ctx context.Context, b *pump.Batch) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	from := 0
	for i := range b.Items {
		dst, verdict, why := l.sink.Encode(l.buf, &b.Items[i])
		l.buf = dst
		if verdict != pump.Done {
			b.Settle(i, verdict, why)
		}
		if len(l.buf) >= flushSize {
			if err := l.flush(ctx, b, from, i+1); err != nil {
				return err
			}
			from = i + 1
		}
	}
	return l.flush(ctx, b, from, len(b.Items))
}

// flush writes the items of b from one index to another and confirms them. What
// a file confirms becomes durable with Commit.
func (l *lane) flush(ctx context.Context, b *pump.Batch, from, to int) error {
	buf := l.buf
	l.buf = l.buf[:0]
	if cap(l.buf) > 16*flushSize {
		l.buf = nil // grown for one large item: the memory goes back
	}
	n := uint64(0)
	for i := from; i < to; i++ {
		if b.Verdict(i) == pump.Unconfirmed {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	l.sink.mu.Lock()
	err := errors.New("the file is closed")
	if l.sink.out != nil {
		l.sink.items += n
		err = l.sink.out.Write(ctx, buf)
	}
	l.sink.mu.Unlock()
	if err != nil {
		return err
	}
	for i := from; i < to; i++ {
		if b.Verdict(i) == pump.Unconfirmed {
			l.sink.losses.Note(&b.Items[i], l.sink.Loses)
			b.Done(i)
		}
	}
	return nil
}

// Close has nothing of its own to release.
func (l *lane) Close() error { return nil }
