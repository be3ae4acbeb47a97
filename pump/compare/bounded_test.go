package compare

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// many is a source of n items with long keys that watches the heap.
type many struct {
	n    int
	peak *atomic.Uint64
}

func (m many) Streams(context.Context) ([]pump.Stream, error) {
	return []pump.Stream{&manyStream{many: m}}, nil
}
func (m many) Close() error { return nil }

type manyStream struct {
	many
	next int
}

func (s *manyStream) ID() string                              { return "many" }
func (s *manyStream) Open(context.Context, []pump.Mark) error { return nil }
func (s *manyStream) Close() error                            { return nil }

func (s *manyStream) Read(_ context.Context, b *pump.Batch) error {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	for old := s.peak.Load(); m.HeapAlloc > old && !s.peak.CompareAndSwap(old, m.HeapAlloc); old = s.peak.Load() {
	}
	for ; s.next < s.n; s.next++ {
		if b.Len() > 0 && b.Free() < 256 {
			return nil
		}
		key := b.Alloc(240)
		clear(key)
		binary.BigEndian.PutUint64(key, uint64(s.next))
		it := b.Append()
		it.Key, it.Value, it.VBucket = key, key[:16], uint16(s.next%64)
	}
	return io.EOF
}

// TestMemoryIsBounded compares sides whose records take ten times the memory that
// is granted, and differ in nearly all of it (invariant 7).
func TestMemoryIsBounded(t *testing.T) {
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	side := func(n int) Side {
		return Side{Open: func(context.Context, []uint16) (pump.Source, error) { return many{n, &peak}, nil }}
	}
	const n, memory = 120_000, 8 << 20
	set := pump.DefaultSettings()
	set.Memory = 4 << 20
	reported := 0
	r, err := Run(context.Background(), Config{Source: side(n), Sink: side(n / 10), Settings: set, Memory: memory, Dir: t.TempDir(), Items: true,
		OnDifference: func(d *Difference) error {
			if reported++; reported%1000 == 0 {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapAlloc))
			}
			if !bytes.Equal(d.Item.Value, d.Key[:16]) {
				t.Fatalf("item %x has the value %x", d.Key, d.Item.Value)
			}
			return nil
		}})
	if err != nil || r.Missing != n-n/10 || reported != n-n/10 || r.Same != n/10 {
		t.Fatalf("%v, %v", r, err)
	}
	if r.Spilled < 3*memory {
		t.Errorf("only %d bytes went through files", r.Spilled)
	}
	// What the collector has not taken yet may double it.
	if grown := int64(peak.Load()) - int64(before.HeapAlloc); grown > 3*(memory+4<<20) {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// TestAllocs: no item costs an allocation once the chunks are there.
func TestAllocs(t *testing.T) {
	dir, err := newFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{seeds: newSeeds(), parallel: 1, dir: dir, fields: pump.AllFields, report: &Report{}, cfg: Config{Now: time.Now}}
	for _, width := range []int{digestWidth, fullWidth} {
		p, err := r.newPass([2]int{width, width}, nil, false, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		l := p.lanes[0][0]
		it := pump.Item{Key: make([]byte, 24), Value: make([]byte, 100), CAS: 1, VBucket: 3}
		n := uint64(0)
		fill := func() {
			for range 1000 {
				n++
				binary.BigEndian.PutUint64(it.Key, n)
				if err := l.record(l.store, 0, &it); err != nil {
					t.Fatal(err)
				}
			}
		}
		for slices.ContainsFunc(l.store.buckets, func(b bucket) bool { return b.file == nil }) {
			fill() // a file is made for each partition once
		}
		if got := testing.AllocsPerRun(20, fill); got > 1 {
			t.Errorf("width %d: %v allocations for 1000 items", width, got)
		}
		if l.store.spilled == 0 {
			t.Error("nothing was spilled")
		}
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}
	if err := dir.remove(); err != nil {
		t.Error(err)
	}
}
