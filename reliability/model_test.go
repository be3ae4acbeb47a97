package reliability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/checkpoint"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// world is what outlives a crash, and the model that it is held against. Seqno
// numbers the items of a stream from 1, CAS the streams.
type world struct {
	mu      sync.Mutex
	held    map[string]uint64 // the destination: the Seqno of each key's state
	settled []map[uint64]bool // of each stream, the items with a final verdict
	saved   map[string]uint64 // the position of each stream that is durable
	crashed bool              // nothing reaches the disk or the destination any more
	wrong   error             // the first broken invariant
}

func (w *world) breaks(format string, args ...any) {
	if w.wrong == nil {
		w.wrong = fmt.Errorf(format, args...)
	}
}

var errCrashed = errors.New("crashed")

// keeper is the checkpoint of one run. It crashes the world at one of its saves.
type keeper struct {
	*checkpoint.Folder
	w       *world
	crashAt int // which save, from 1; 0 = never
	after   bool
	saves   int
}

func (k *keeper) Save(ctx context.Context, reached map[string][]pump.Mark, counts pump.Counts, finished bool) error {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	for id, marks := range reached {
		var stream int
		_, _ = fmt.Sscanf(id, "mem-%d", &stream)
		for _, m := range marks {
			for n := uint64(1); n <= m.Seqno; n++ { // invariant 2
				if !k.w.settled[stream][n] {
					k.w.breaks("stream %d is saved at %d, and item %d has no verdict", stream, m.Seqno, n)
				}
			}
		}
	}
	k.saves++
	if k.w.crashed || k.saves == k.crashAt && !k.after {
		k.w.crashed = true
		return errCrashed
	}
	if err := k.Folder.Save(ctx, reached, counts, finished); err != nil {
		return err
	}
	for id, marks := range reached {
		k.w.saved[id] = marks[len(marks)-1].Seqno
	}
	if k.saves == k.crashAt {
		k.w.crashed = true
		return errCrashed
	}
	return nil
}

// forgetful is a source whose streams are told what they may forget.
type forgetful struct {
	pumptest.MemSource
	w *world
}

func (f *forgetful) Streams(ctx context.Context) ([]pump.Stream, error) {
	streams, err := f.MemSource.Streams(ctx)
	for i, s := range streams {
		streams[i] = &forgetfulStream{s, f.w}
	}
	return streams, err
}

type forgetfulStream struct {
	pump.Stream
	w *world
}

func (s *forgetfulStream) Truncate(_ context.Context, durable []pump.Mark) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, m := range durable { // invariant 3
		if m.Seqno > s.w.saved[s.ID()] {
			s.w.breaks("%s may forget up to %d, and %d is durable", s.ID(), m.Seqno, s.w.saved[s.ID()])
		}
	}
	return nil
}

// store is the destination.
type store struct {
	w     *world
	lanes int
	crash int // the world crashes at this write, from 1; 0 = never
	n     int
}

func (s *store) Lanes(context.Context, int) (lanes []pump.Lane, _ error) {
	for range s.lanes {
		lanes = append(lanes, &storeLane{s})
	}
	return lanes, nil
}

func (s *store) Close() error { return nil }

type storeLane struct{ s *store }

func (l *storeLane) Close() error { return nil }

func (l *storeLane) Write(_ context.Context, b *pump.Batch) error {
	w := l.s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	l.s.n++
	for i := range b.Items {
		if w.crashed || l.s.n == l.s.crash && i == len(b.Items)/2 { // in the middle of a write
			w.crashed = true
			return errCrashed
		}
		w.held[string(b.Items[i].Key)] = b.Items[i].Seqno
		b.Done(i)
	}
	return nil
}

// notary sees the verdicts as the engine does, and only then counts an item as
// settled.
type notary struct {
	pump.Sink
	w *world
}

func (n *notary) Unwrap() any { return n.Sink }

func (n *notary) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	lanes, err := n.Sink.Lanes(ctx, want)
	for i := range lanes {
		lanes[i] = &notaryLane{lanes[i], n.w}
	}
	return lanes, err
}

type notaryLane struct {
	pump.Lane
	w *world
}

func (n *notaryLane) Write(ctx context.Context, b *pump.Batch) error {
	err := n.Lane.Write(ctx, b)
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for i := range b.Items {
		if v := b.Verdict(i); v == pump.Done || v == pump.Rejected || v == pump.Skipped {
			n.w.settled[b.Items[i].CAS][b.Items[i].Seqno] = true
		}
	}
	return err
}

// TestModel: engine and checkpoint against a reference, with random streams, lanes,
// faults and crashes, each followed by a resumed run: invariants 1, 2, 3, 5 and 8.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "model-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := &world{held: map[string]uint64{}, saved: map[string]uint64{}}
		var parts [][]pump.Item
		last := map[string]uint64{}
		for s := range rapid.IntRange(1, 3).Draw(t, "streams") {
			var items []pump.Item
			keys := rapid.IntRange(1, 12).Draw(t, "keys")
			for n := range rapid.IntRange(0, 60).Draw(t, "items") {
				k := fmt.Sprintf("%d-%d", s, rapid.IntRange(0, keys-1).Draw(t, "key"))
				items = append(items, pump.Item{Key: []byte(k), Value: []byte("v"), VBucket: pump.NoVBucket, CAS: uint64(s), Seqno: uint64(n + 1)})
				last[k] = uint64(n + 1)
			}
			parts = append(parts, items)
			w.settled = append(w.settled, map[uint64]bool{})
		}
		var mended, fatal []pumptest.Fault
		for _, f := range pumptest.Faults() {
			switch f.How {
			case pumptest.Again, pumptest.Some:
				mended = append(mended, f)
			case pumptest.Fail, pumptest.WrappedEOF, pumptest.Silent:
				fatal = append(fatal, f)
			}
		}
		belongs := []checkpoint.Field{{Name: "this", Value: "test"}}
		const tries = 8
		for try := range tries {
			set := pump.DefaultSettings()
			set.CheckpointEvery, set.RetryMin, set.RetryMax = 50*time.Microsecond, time.Microsecond, 10*time.Microsecond
			set.LaneItems = rapid.IntRange(1, 10).Draw(t, "lane items")
			w.crashed = false
			_, serr := os.Stat(filepath.Join(dir, "checkpoint"))
			folder, err := checkpoint.Open(dir, belongs, serr == nil)
			if err != nil {
				t.Fatal(err)
			}
			keep, to := &keeper{Folder: folder, w: w}, &store{w: w, lanes: rapid.IntRange(1, 3).Draw(t, "lanes")}
			chaos := &pumptest.Chaos{}
			if try < tries-1 { // the last one is left in peace
				keep.crashAt, keep.after = rapid.IntRange(0, 4).Draw(t, "crash at save"), rapid.Bool().Draw(t, "after it")
				to.crash = rapid.IntRange(0, 20).Draw(t, "crash at write")
				seed := rapid.Uint64().Draw(t, "seed")
				heal, end := pumptest.Random(seed, 0.3, mended...), pumptest.Random(seed+1, rapid.Float64Range(0, 0.05).Draw(t, "fatal"), fatal...)
				chaos.Plan = func(c pumptest.Call, part, nth int) (pumptest.Fault, bool) {
					if f, ok := end(c, part, nth); ok {
						return f, ok
					}
					return heal(c, part, nth)
				}
			}
			source := &forgetful{pumptest.MemSource{Parts: parts, BatchSize: rapid.IntRange(1, 9).Draw(t, "batch")}, w}
			report, err := pump.Run(context.Background(), pump.Config{Source: chaos.Source(source), Sink: &notary{chaos.Sink(to), w}, Settings: set, Checkpoint: keep, Scribble: true})
			if cerr := folder.Close(); cerr != nil {
				t.Fatal(cerr)
			}
			if w.wrong != nil {
				t.Fatalf("%v\nwhat struck: %v", w.wrong, chaos.Struck())
			}
			if report.Done > report.Read { // invariant 1
				t.Fatalf("%+v", report.Snapshot)
			}
			if err != nil {
				continue
			}
			if w.crashed || report.Pending() != 0 { // invariant 8
				t.Fatalf("success, crashed %t, %+v", w.crashed, report.Snapshot)
			}
			for k, n := range last { // invariant 5: the last state, and nothing lost
				if w.held[k] != n {
					t.Fatalf("key %s ends with state %d of %d\nwhat struck: %v", k, w.held[k], n, chaos.Struck())
				}
			}
			if len(w.held) != len(last) {
				t.Fatalf("%d keys for %d", len(w.held), len(last))
			}
			return
		}
		t.Fatal("no run came to its end, not even the undisturbed one")
	})
}
