package pumptest

import (
	"context"
	"fmt"
	"hash/crc32"
	"sync"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

func checksum(p []byte) uint32 { return crc32.ChecksumIEEE(p) }

// SinkSuite says how to test a sink.
type SinkSuite struct {
	// New opens the sink on an empty destination.
	New func(t *testing.T) pump.Sink
	// Read returns what the destination of the latest New holds: live items by
	// key. It is called after the sink was closed. Nil: the sink keeps nothing.
	Read func(t *testing.T) map[string]pump.Item
	// VBucket gives the vbucket of a key; nil sends pump.NoVBucket.
	VBucket func(key []byte) uint16
	// Compare lists the fields the sink keeps besides key and value (see
	// Describe). Nil: flags only.
	Compare []string
	// NoDeletions says that the sink takes mutations only.
	NoDeletions bool
	// MaxValue is the largest value in bytes to try; 0 = 64 KiB.
	MaxValue int
}

// TestSink checks what the engine relies on in a sink.
func TestSink(t *testing.T, s SinkSuite) {
	t.Run("lanes", func(t *testing.T) {
		for _, want := range []int{0, 1, 3} {
			sink := s.New(t)
			lanes, err := sink.Lanes(t.Context(), want)
			if err != nil {
				t.Fatalf("Lanes(%d): %v", want, err)
			}
			if len(lanes) == 0 || want > 0 && len(lanes) > want {
				t.Errorf("Lanes(%d) gave %d lanes", want, len(lanes))
			}
			for _, l := range lanes {
				for range 2 {
					if err := l.Close(); err != nil {
						t.Errorf("close an unused lane: %v", err)
					}
				}
			}
			if err := sink.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	t.Run("every item has a verdict and is there", func(t *testing.T) {
		sink := s.New(t)
		want := map[string]pump.Item{}
		s.drive(t, sink, [][]pump.Item{nil, s.items(0, 1), s.items(1, 2), s.items(3, 1000)}, want)
		s.compare(t, want)
	})
	t.Run("the last state of a key wins", func(t *testing.T) {
		sink := s.New(t)
		want := map[string]pump.Item{}
		var batch []pump.Item
		for i := range 300 {
			it := s.item(i % 7)
			it.Value = fmt.Appendf(nil, "state %d", i)
			it.CAS += uint64(i)
			it.RevSeqno += uint64(i)
			batch = append(batch, it)
		}
		s.drive(t, sink, [][]pump.Item{batch}, want)
		s.compare(t, want)
	})
	if !s.NoDeletions {
		t.Run("deletions", func(t *testing.T) {
			sink := s.New(t)
			want := map[string]pump.Item{}
			items := s.items(0, 100)
			gone := s.items(50, 100) // half of them were never there
			for i := range gone {
				gone[i].Op, gone[i].Value = pump.Deletion, nil
				gone[i].RevSeqno++
				gone[i].CAS += 100000
			}
			s.drive(t, sink, [][]pump.Item{items, gone}, want)
			s.compare(t, want)
		})
	}
	t.Run("odd items", func(t *testing.T) {
		sink := s.New(t)
		want := map[string]pump.Item{}
		size := s.MaxValue
		if size == 0 {
			size = 64 << 10
		}
		var batch []pump.Item
		for i, value := range [][]byte{{}, {0}, []byte("\x80\x41\r\n\x00"), make([]byte, size), []byte(`{"json":true}`)} {
			it := s.item(i)
			it.Value, it.Flags = value, 0xdeadbeef
			batch = append(batch, it)
		}
		for i, key := range []string{"k", "\x00bin\xff\xfe", "ключ", string(make250())} {
			it := s.item(100 + i)
			it.Key = []byte(key)
			if s.VBucket != nil {
				it.VBucket = s.VBucket(it.Key)
			}
			batch = append(batch, it)
		}
		s.drive(t, sink, [][]pump.Item{batch}, want)
		s.compare(t, want)
	})
	t.Run("a cancelled context confirms nothing that did not happen", func(t *testing.T) {
		sink := s.New(t)
		lanes, err := sink.Lanes(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		b := pump.NewBatch(0)
		b.Items = s.items(0, 10)
		b.StartWrite()
		werr := lanes[0].Write(ctx, b)
		done := map[string]bool{}
		for i := range b.Items {
			if b.Verdict(i) == pump.Done {
				done[string(b.Items[i].Key)] = true
			}
		}
		if werr == nil && len(done) == 0 && b.Verdict(0) == pump.Unconfirmed {
			t.Error("Write returned nil and left items without a verdict")
		}
		lanes[0].Close()
		sink.Close()
		if s.Read != nil {
			held := s.Read(t)
			for k := range done {
				if _, ok := held[k]; !ok {
					t.Errorf("key %q was confirmed and is not there", k)
				}
			}
		}
	})
	t.Run("through the engine", func(t *testing.T) {
		src := &MemSource{Parts: [][]pump.Item{s.items(0, 5000), s.items(5000, 5000), nil}, BatchSize: 700}
		report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: s.New(t), Settings: pump.DefaultSettings(), Scribble: true, Threads: 3})
		if err != nil {
			t.Fatalf("Run: %v", err)
		}
		if report.Read != 10000 || report.Done != 10000 {
			t.Fatalf("read %d, done %d, want 10000", report.Read, report.Done)
		}
		want := map[string]pump.Item{}
		for _, p := range src.Parts {
			for i := range p {
				want[string(p[i].Key)] = p[i]
			}
		}
		s.compare(t, want)
	})
}

func make250() []byte {
	k := make([]byte, 250)
	for i := range k {
		k[i] = 'a' + byte(i%26)
	}
	return k
}

func (s *SinkSuite) item(n int) pump.Item {
	it := pump.Item{
		Key:     fmt.Appendf(nil, "key-%d", n),
		Value:   fmt.Appendf(nil, "value %d of the suite", n),
		Flags:   uint32(n) * 7,
		VBucket: pump.NoVBucket,
		CAS:     1<<40 + uint64(n), RevSeqno: uint64(n%5) + 1,
	}
	if s.VBucket != nil {
		it.VBucket = s.VBucket(it.Key)
	}
	return it
}

func (s *SinkSuite) items(from, n int) []pump.Item {
	out := make([]pump.Item, n)
	for i := range out {
		out[i] = s.item(from + i)
	}
	return out
}

// drive writes batches through the lanes as the engine would: the same key to
// the same lane, lanes at the same time, arenas unchanged by Write and overwritten afterwards.
func (s *SinkSuite) drive(t *testing.T, sink pump.Sink, batches [][]pump.Item, want map[string]pump.Item) {
	t.Helper()
	lanes, err := sink.Lanes(t.Context(), 2)
	if err != nil {
		t.Fatalf("Lanes: %v", err)
	}
	router, _ := pump.As[pump.Router](sink)
	for _, items := range batches {
		parts := make([]*pump.Batch, len(lanes))
		for i := range parts {
			parts[i] = pump.NewBatch(1 << 20)
		}
		for i := range items {
			lane := int(checksum(items[i].Key)) % len(lanes)
			if s.VBucket != nil {
				lane = int(items[i].VBucket) % len(lanes)
			}
			if router != nil {
				lane = router.Route(&items[i])
			}
			it := parts[lane].Append()
			*it = items[i]
			it.Key, it.Value = parts[lane].Copy(it.Key), parts[lane].Copy(it.Value)
			if it.Op == pump.Mutation {
				want[string(items[i].Key)] = items[i]
			} else {
				delete(want, string(items[i].Key))
			}
		}
		var wg sync.WaitGroup
		for n, lane := range lanes {
			wg.Go(func() {
				b := parts[n]
				before := checksum(b.Arena())
				b.StartWrite()
				if err := lane.Write(t.Context(), b); err != nil {
					t.Errorf("Write: %v", err)
				}
				for i := range b.Items {
					if b.Verdict(i) != pump.Done {
						t.Errorf("item %q: %s (%v), want done", b.Items[i].Key, b.Verdict(i), b.Cause(i))
						break
					}
				}
				if checksum(b.Arena()) != before {
					t.Error("the lane changed bytes of items, which may have to be sent again")
				}
				for i := range b.Arena() {
					b.Arena()[i] = 0xdb
				}
			})
		}
		wg.Wait()
	}
	for _, l := range lanes {
		if err := l.Close(); err != nil {
			t.Errorf("close a lane: %v", err)
		}
	}
	if c, ok := pump.As[pump.Committer](sink); ok {
		if err := c.Commit(t.Context()); err != nil {
			t.Errorf("commit: %v", err)
		}
	}
	if err := sink.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func (s *SinkSuite) compare(t *testing.T, want map[string]pump.Item) {
	t.Helper()
	if s.Read == nil {
		return
	}
	fields := s.Compare
	if fields == nil {
		fields = []string{"flags"}
	}
	got := s.Read(t)
	bad := 0
	for k, w := range want {
		g, ok := got[k]
		switch {
		case bad >= 5:
		case !ok:
			t.Errorf("key %q is not at the destination", k)
			bad++
		case Describe(&g, fields...) != Describe(&w, fields...):
			t.Errorf("the destination holds\n%s\nwant\n%s", Describe(&g, fields...), Describe(&w, fields...))
			bad++
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok && bad < 5 {
			t.Errorf("key %q is at the destination and should not be", k)
			bad++
		}
	}
}
