// Package null is the sink null:, which confirms every item and keeps only
// their number and size: for benchmarks and for reading a source to its proven
// end without writing anything.
package null

import (
	"context"
	"sync/atomic"

	"github.com/cbpump/cbpump/pump"
)

// Options of null:. There are none.
type Options struct{}

// defaultLanes is how many lanes there are when the user did not say.
const defaultLanes = 4

// Plugin returns the declaration of null: for a registry.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes: []string{"null"},
		Summary: "counts items and bytes and discards them",
		New: func(_ context.Context, t pump.Target, _ Options) (pump.Sink, error) {
			if t.Rest != "" {
				return nil, pump.Usagef("null: takes nothing behind the colon")
			}
			return New(), nil
		},
	}
}

// Sink counts and discards.
type Sink struct {
	mutations, deletions, bytes atomic.Uint64
}

// New returns a sink.
func New() *Sink { return &Sink{} }

// Mutations returns how many mutations were written.
func (s *Sink) Mutations() uint64 { return s.mutations.Load() }

// Deletions returns how many deletions and expirations were written.
func (s *Sink) Deletions() uint64 { return s.deletions.Load() }

// Bytes returns the bytes of key, value and meta of all items written.
func (s *Sink) Bytes() uint64 { return s.bytes.Load() }

// Lanes returns want lanes, or a few.
func (s *Sink) Lanes(_ context.Context, want int) ([]pump.Lane, error) {
	if want <= 0 {
		want = defaultLanes
	}
	lanes := make([]pump.Lane, want)
	for i := range lanes {
		lanes[i] = lane{s}
	}
	return lanes, nil
}

// Close has nothing to release.
func (s *Sink) Close() error { return nil }

type lane struct{ sink *Sink }

// Write counts the batch and confirms every item.
func (l lane) Write(ctx context.Context, b *pump.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var deletions, bytes uint64
	for i := range b.Items {
		it := &b.Items[i]
		if it.Op != pump.Mutation {
			deletions++
		}
		bytes += uint64(it.Size())
		b.Done(i)
	}
	l.sink.mutations.Add(uint64(len(b.Items)) - deletions)
	l.sink.deletions.Add(deletions)
	l.sink.bytes.Add(bytes)
	return nil
}

// Close has nothing to release.
func (l lane) Close() error { return nil }
