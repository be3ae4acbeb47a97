package pump_test

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// heavy is a source of many streams whose items are all larger than an arena.
type heavy struct {
	streams, each, size int
	alloc               bool // by Alloc, else by GrowArena
	held, most          atomic.Int64
}

func (h *heavy) Close() error { return nil }
func (h *heavy) Streams(context.Context) (out []pump.Stream, _ error) {
	for i := range h.streams {
		out = append(out, &heavyStream{h: h, n: i})
	}
	return out, nil
}

type heavyStream struct {
	h       *heavy
	n, next int
}

func (s *heavyStream) ID() string                              { return fmt.Sprint("heavy-", s.n) }
func (s *heavyStream) Open(context.Context, []pump.Mark) error { return nil }
func (s *heavyStream) Close() error                            { return nil }
func (s *heavyStream) Read(_ context.Context, b *pump.Batch) error {
	value := []byte(nil)
	if s.h.alloc {
		value = b.Alloc(s.h.size)
	} else {
		b.GrowArena(s.h.size)
		value = b.Arena()[:s.h.size]
	}
	if held := s.h.held.Add(int64(s.h.size)); held > s.h.most.Load() {
		s.h.most.Store(held)
	}
	it := b.Append()
	it.VBucket, it.Value, it.Key = pump.NoVBucket, value, fmt.Appendf(nil, "%d-%d", s.n, s.next)
	b.Marks = append(b.Marks, pump.Mark{VBucket: pump.NoVBucket, Seqno: uint64(s.next + 1), Complete: s.next+1 == s.h.each})
	if s.next++; s.next == s.h.each {
		return io.EOF
	}
	return nil
}

// Items larger than the arena wait for their memory before they are read: not each
// stream holds one, however little memory there is.
func TestLargeItemsShareTheMemory(t *testing.T) {
	const size = 1 << 20
	for _, alloc := range []bool{false, true} {
		for memory, items := range map[pump.Size]int64{size / 2: 1, 5 * size / 2: 2, 6 * size: 6} {
			src := &heavy{streams: 8, each: 20, size: size, alloc: alloc}
			set := quick()
			set.Memory = memory
			sink := &pumptest.MemSink{LaneCount: 4, Verdict: func(_ int, it *pump.Item) (pump.Verdict, error) {
				src.held.Add(-int64(len(it.Value)))
				it.Value = nil // the sink is not to keep it all
				return pump.Done, nil
			}}
			report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: set})
			if err != nil || report.Done != 160 {
				t.Fatalf("error %v, done %d", err, report.Done)
			}
			if most := src.most.Load(); most > items*size {
				t.Errorf("alloc %t, memory %s: %d bytes were held at once, want %d items of %d at most", alloc, memory, most, items, size)
			}
		}
	}
}
