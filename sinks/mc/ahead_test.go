package mc

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

// both begins two writes before it finishes the first.
func both(t *testing.T, l pump.AheadLane, first, second *pump.Batch) {
	t.Helper()
	for _, b := range []*pump.Batch{first, second} {
		if err := l.Begin(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range []*pump.Batch{first, second} {
		if err := l.Finish(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTwoWritesAtANode: each write is settled by its own answers, and questions about
// what the destination holds do not mix with a write that is under way.
func TestTwoWritesAtANode(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			c := sinktest.Cluster(t, simcluster.Config{Version: v})
			b := c.Bucket("default")
			for _, d := range []simcluster.Doc{
				{Key: []byte("newer"), Value: []byte("dst"), Rev: 9, CAS: 77},
				{Key: []byte("newer2"), Value: []byte("dst"), Rev: 9, CAS: 77},
				{Key: []byte("older"), Value: []byte("dst"), Rev: 2, CAS: 77},
				{Key: []byte("alone"), Value: []byte("dst"), Rev: 2, CAS: 77},
				{Key: []byte("mixed"), Value: []byte("dst"), Rev: 2, CAS: 77},
			} {
				if err := b.Store(d); err != nil {
					t.Fatal(err)
				}
			}
			l := sinktest.Lane(t, openCB(t, c, nil)).(pump.AheadLane)
			first := sinktest.Batch(meta("x", "1", 1, 10), meta("newer", "src", 5, 70), meta("older", "src5", 5, 0), meta("alone", "src", 5, 0), meta("mixed", "src", 5, 0), meta("", "no key", 1, 1))
			second := sinktest.Batch(meta("x", "2", 2, 20), meta("newer2", "src", 5, 70), meta("older", "src6", 6, 0), meta("newer", "src12", 12, 120), item("mixed", "plain"), meta("y", "1", 1, 10))
			both(t, l, first, second)
			// A CAS of 0 has to be written with a new one, after the metadata was read:
			// not any more where a later state has gone out in the meantime.
			for _, i := range []int{2, 4} {
				if v := first.Verdict(i); v != pump.Retry && v != pump.Skipped && v != pump.Done {
					t.Errorf("%s: %s, %v", first.Items[i].Key, v, first.Cause(i))
				}
			}
			sinktest.Verdicts(t, first, pump.Done, pump.Skipped, first.Verdict(2), pump.Done, first.Verdict(4), pump.Rejected)
			sinktest.Verdicts(t, second, pump.Done, pump.Skipped, pump.Done, pump.Done, pump.Done, pump.Done)
			for key, want := range map[string]string{"x": "2", "newer": "src12", "newer2": "dst", "older": "src6", "alone": "src", "mixed": "plain", "y": "1"} {
				if d, _ := b.Get([]byte(key)); string(d.Value) != want {
					t.Errorf("%s holds %q, want %q", key, d.Value, want)
				}
			}
		})
	}
}

// TestLostWithTwoWrites: what was under way on a connection that breaks is unknown,
// in both writes, and the next write makes a new connection.
func TestLostWithTwoWrites(t *testing.T) {
	for _, v := range []string{"2.5.1", "7.0.5"} {
		c := sinktest.Cluster(t, simcluster.Config{Version: v, Nodes: 1})
		l := sinktest.Lane(t, openCB(t, c, nil)).(pump.AheadLane)
		sinktest.Verdicts(t, sinktest.Write(t, l, meta("a", "0", 1, 1)), pump.Done)
		c.Nodes()[0].Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpSetQWithMeta}, VBucket: -1, After: 1, Times: 1, Action: simcluster.Close})
		first, second := sinktest.Batch(meta("a", "1", 2, 2), meta("b", "1", 2, 2)), sinktest.Batch(meta("a", "2", 3, 3), meta("c", "1", 2, 2))
		both(t, l, first, second)
		sinktest.Verdicts(t, first, pump.Retry, pump.Retry)
		sinktest.Verdicts(t, second, pump.Retry, pump.Retry)
		if pump.CodeOf(second.Cause(0)) != "destination-lost" {
			t.Errorf("%s: cause %v", v, second.Cause(0))
		}
		again := append(append([]pump.Item{}, first.Items...), second.Items...)
		// The first state had been written before the connection broke.
		sinktest.Verdicts(t, sinktest.Write(t, l, again...), pump.Skipped, pump.Done, pump.Done, pump.Done)
		if d, _ := c.Bucket("default").Get([]byte("a")); string(d.Value) != "2" {
			t.Errorf("%s: a holds %q", v, d.Value)
		}
	}
}

// TestLastStateStays: keys that change often, through the engine, with writes that
// follow each other and some that the node puts off: what is there in the end is the
// last state of each key (invariant 5).
func TestLastStateStays(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "6.6.5", Nodes: 1, VBuckets: 4})
	bucket := c.Bucket("default")
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		resolve := rapid.Bool().Draw(rt, "conflict resolution")
		last := map[string]string{}
		var part []pump.Item
		for i := range rapid.IntRange(1, 300).Draw(rt, "items") {
			key := fmt.Sprintf("%d-%d", run, rapid.IntRange(0, 20).Draw(rt, "key"))
			part = append(part, meta(key, fmt.Sprint(i), uint64(i)+1, uint64(rapid.IntRange(0, 1).Draw(rt, "cas"))*uint64(i+1)))
			last[key] = fmt.Sprint(i)
		}
		for range rapid.IntRange(0, 3).Draw(rt, "faults") {
			f := simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpSetQWithMeta}, VBucket: -1, After: rapid.IntRange(0, len(part)).Draw(rt, "after"),
				Times: rapid.IntRange(1, 3).Draw(rt, "times"), Status: mcbp.StatusTmpFail}
			if rapid.Bool().Draw(rt, "the connection breaks") {
				f.Times = 1
				f.Action = rapid.SampledFrom([]simcluster.FaultAction{simcluster.Close, simcluster.DropAfterEffect}).Draw(rt, "how")
			}
			defer c.Nodes()[0].Inject(f)()
		}
		set := pump.DefaultSettings()
		set.RetryMin, set.RetryMax = time.Microsecond, time.Millisecond
		set.LaneItems = rapid.IntRange(2, 60).Draw(rt, "lane items")
		set.LaneBytes = 1
		src := &pumptest.MemSource{Parts: [][]pump.Item{part}, BatchSize: rapid.IntRange(1, 40).Draw(rt, "batch")}
		sink := openCB(t, c, func(cfg *CBConfig) { cfg.Options.ConflictResolution = resolve })
		report, err := pump.Run(context.Background(), pump.Config{Source: src, Sink: sink, Settings: set, Scribble: true})
		// An early state that is sent again may find the later one there.
		if err != nil && report.Skipped == 0 || report.Done+report.Skipped != uint64(len(part)) {
			rt.Fatalf("error %v, %+v", err, report)
		}
		for key, want := range last {
			if d, _ := bucket.Get([]byte(key)); string(d.Value) != want {
				rt.Errorf("%s holds %q, want %q", key, d.Value, want)
			}
		}
	})
}

// TestCollectionBehindRejected: an item that cannot be sent does not lend its collection
// to the one behind it, nor that of the one before.
func TestCollectionBehindRejected(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "7.0.5", Nodes: 1})
	bucket := c.Bucket("default")
	if _, err := bucket.CreateScope("shop"); err != nil {
		t.Fatal(err)
	}
	id, err := bucket.CreateCollection("shop", "items", 0)
	if err != nil {
		t.Fatal(err)
	}
	empty, named := meta("", "no key", 1, 1), meta("a", "named", 1, 1)
	empty.Collection = &pump.Collection{Scope: "shop", Name: "items"}
	named.Collection = empty.Collection
	l := sinktest.Lane(t, openCB(t, c, nil))
	sinktest.Verdicts(t, sinktest.Write(t, l, meta("x", "default", 1, 1), empty, named), pump.Done, pump.Rejected, pump.Done)
	if d, ok := bucket.GetIn(id, []byte("a")); !ok || string(d.Value) != "named" {
		t.Errorf("the collection holds %q", d.Value)
	}
	if d, ok := bucket.Get([]byte("a")); ok {
		t.Errorf("the default collection holds %q", d.Value)
	}
}
