package compare_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/compare"
)

// made is a source that makes n items in parts streams.
type made struct{ n, parts int }

func (m made) Streams(context.Context) ([]pump.Stream, error) {
	var out []pump.Stream
	for i := range m.parts {
		out = append(out, &madeStream{n: m.n, step: m.parts, next: i})
	}
	return out, nil
}
func (m made) Close() error { return nil }

type madeStream struct{ n, step, next int }

func (s *madeStream) ID() string                              { return fmt.Sprint(s.step, s.next) }
func (s *madeStream) Open(context.Context, []pump.Mark) error { return nil }
func (s *madeStream) Close() error                            { return nil }
func (s *madeStream) Read(_ context.Context, b *pump.Batch) error {
	for ; s.next < s.n; s.next += s.step {
		if b.Len() > 0 && b.Free() < 256 {
			return nil
		}
		key, value := b.Alloc(24), b.Alloc(200)
		copy(key, "document-0000000")
		binary.BigEndian.PutUint64(key[16:], uint64(s.next))
		for i := range value[:8] {
			value[i] = byte(s.next >> i)
		}
		clear(value[8:])
		it := b.Append()
		it.Key, it.Value, it.VBucket, it.CAS, it.RevSeqno, it.Seqno = key, value, uint16(s.next%1024), uint64(s.next+1), 1, uint64(s.next+1)
	}
	return io.EOF
}

// BenchmarkCompare: two equal sides of a million items.
func BenchmarkCompare(b *testing.B) {
	const n = 1_000_000
	side := compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) { return made{n, 4}, nil }}
	for _, mode := range []compare.Mode{compare.Digest, compare.Full} {
		for _, memory := range []int64{1 << 20, 64 << 20, 1 << 30} {
			b.Run(fmt.Sprintf("%s/%dMiB", mode, memory>>20), func(b *testing.B) {
				cfg := config(b, side, side)
				cfg.Mode, cfg.Memory = mode, memory
				for b.Loop() {
					r, err := compare.Run(context.Background(), cfg)
					if err != nil || !r.Equal() || r.Sides[0].Live != n {
						b.Fatalf("%+v, %v", r, err)
					}
					b.ReportMetric(float64(r.Spilled)/1e6, "MB-spilled")
				}
				b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "items/s")
			})
		}
	}
}
