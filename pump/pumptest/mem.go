package pumptest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/cbpump/cbpump/pump"
)

// CloneItem returns a copy of an item that shares no bytes with a batch.
func CloneItem(it *pump.Item) pump.Item {
	c := *it
	c.Key, c.Value, c.Meta = bytes.Clone(it.Key), bytes.Clone(it.Value), bytes.Clone(it.Meta)
	return c
}

// MemSource is a source of items in memory: one stream for each element of Parts.
type MemSource struct {
	Parts     [][]pump.Item
	BatchSize int // most items in a batch; 0 = as many as the arena holds
	// Fail, when set, is asked before each Read of a stream, with the number of
	// items it has given so far; an error is returned in place of items.
	Fail func(stream, given int) error
}

// Streams implements pump.Source.
func (s *MemSource) Streams(context.Context) ([]pump.Stream, error) {
	var out []pump.Stream
	for i := range s.Parts {
		out = append(out, &memStream{src: s, part: i})
	}
	return out, nil
}

// Close implements pump.Source.
func (s *MemSource) Close() error { return nil }

// Estimate implements pump.Estimator.
func (s *MemSource) Estimate(context.Context) (pump.Estimate, error) {
	var e pump.Estimate
	for _, p := range s.Parts {
		e.Items += uint64(len(p))
		for i := range p {
			e.Bytes += uint64(p[i].Size())
		}
	}
	return e, nil
}

type memStream struct {
	src  *MemSource
	part int
	next int
}

func (s *memStream) ID() string { return fmt.Sprintf("mem-%d", s.part) }

// Open goes on behind the mark of an earlier attempt.
func (s *memStream) Open(_ context.Context, from []pump.Mark) error {
	s.next = 0
	for _, m := range from {
		s.next = int(m.Seqno)
	}
	return nil
}

func (s *memStream) Read(ctx context.Context, b *pump.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.src.Fail != nil {
		if err := s.src.Fail(s.part, s.next); err != nil {
			return err
		}
	}
	items := s.src.Parts[s.part]
	for s.next < len(items) {
		in := &items[s.next]
		if b.Len() > 0 && (in.Size() > b.Free() || s.src.BatchSize > 0 && b.Len() >= s.src.BatchSize) {
			break
		}
		it := b.Append()
		*it = *in
		it.Key, it.Value, it.Meta = b.Copy(in.Key), b.Copy(in.Value), nil
		if in.Meta != nil {
			it.Meta = b.Copy(in.Meta)
		}
		s.next++
	}
	done := s.next == len(items)
	b.Marks = append(b.Marks, pump.Mark{VBucket: pump.NoVBucket, Seqno: uint64(s.next), Complete: done, Items: uint64(s.next)})
	if done {
		return io.EOF
	}
	return nil
}

func (s *memStream) Close() error { return nil }

// MemSink keeps what is written to it in memory.
type MemSink struct {
	LaneCount int // 0 = one
	// Verdict, when set, decides each item's fate before it is stored: anything
	// but pump.Done leaves the item out.
	Verdict func(lane int, it *pump.Item) (pump.Verdict, error)
	// Before, when set, is called at the start of each Write.
	Before func(ctx context.Context, lane int, b *pump.Batch) error

	mu    sync.Mutex
	items map[string]pump.Item
	log   []pump.Item
}

// Lanes implements pump.Sink.
func (s *MemSink) Lanes(_ context.Context, want int) ([]pump.Lane, error) {
	n := max(1, s.LaneCount)
	if want > 0 {
		n = min(n, want)
	}
	out := make([]pump.Lane, n)
	for i := range out {
		out[i] = &memLane{sink: s, n: i}
	}
	return out, nil
}

// Close implements pump.Sink.
func (s *MemSink) Close() error { return nil }

// Items returns what the sink holds: the last state of each key; deleted keys
// are there with their Op.
func (s *MemSink) Items() map[string]pump.Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]pump.Item, len(s.items))
	for k, v := range s.items {
		out[k] = v
	}
	return out
}

// Log returns every stored item in the order of storing.
func (s *MemSink) Log() []pump.Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]pump.Item(nil), s.log...)
}

type memLane struct {
	sink *MemSink
	n    int
}

func (l *memLane) Write(ctx context.Context, b *pump.Batch) error {
	if l.sink.Before != nil {
		if err := l.sink.Before(ctx, l.n, b); err != nil {
			return err
		}
	}
	for i := range b.Items {
		it := &b.Items[i]
		v, why := pump.Done, error(nil)
		if l.sink.Verdict != nil {
			v, why = l.sink.Verdict(l.n, it)
		}
		if v == pump.Done {
			l.sink.mu.Lock()
			if l.sink.items == nil {
				l.sink.items = make(map[string]pump.Item)
			}
			c := CloneItem(it)
			l.sink.items[string(it.Key)] = c
			l.sink.log = append(l.sink.log, c)
			l.sink.mu.Unlock()
		}
		if v != pump.Unconfirmed {
			b.Settle(i, v, why)
		}
	}
	return nil
}

func (l *memLane) Close() error { return nil }
