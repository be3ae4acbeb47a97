package tap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

func sim(t testing.TB, cfg simcluster.Config) *simcluster.Cluster {
	t.Helper()
	c, err := simcluster.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// at is a configuration for a simulated cluster and its bucket "default".
func at(c *simcluster.Cluster) Config {
	cfg := Config{URL: c.URL(), Options: DefaultOptions()}
	cfg.Username, cfg.Password = "Administrator", "password"
	cfg.Options.IdleTimeout = 20 * time.Second
	return cfg
}

// fill stores n documents of mixed kinds and returns what a dump must give.
func fill(t testing.TB, b *simcluster.Bucket, n int) []pump.Item {
	t.Helper()
	for i := range n {
		d := simcluster.Doc{Key: fmt.Appendf(nil, "doc-%d", i), Value: fmt.Appendf(nil, "value %d", i), Flags: uint32(i) * 0x01020304}
		switch i % 10 {
		case 3:
			d.Value = nil
		case 4:
			d.Expiry = 2_000_000_000
		case 5:
			d.Value = []byte(strings.Repeat("x", 100*i%5000))
		case 6:
			d.Key = append([]byte{0, 0xff, '\n'}, d.Key...)
		}
		if err := b.Store(d); err != nil {
			t.Fatal(err)
		}
		if i%10 == 7 {
			if err := b.Delete(d.Key); err != nil {
				t.Fatal(err)
			}
		}
	}
	return contents(b)
}

// contents is what a dump of a bucket without expired items gives.
func contents(b *simcluster.Bucket) (out []pump.Item) {
	live := map[uint16]bool{}
	b.Each(func(vb uint16, d simcluster.Doc) bool {
		live[vb] = live[vb] || !d.Deleted
		return true
	})
	b.Each(func(vb uint16, d simcluster.Doc) bool {
		switch {
		case d.Deleted && live[vb]:
			out = append(out, pump.Item{Op: pump.Deletion, VBucket: vb, Key: d.Key, CAS: d.CAS, RevSeqno: d.Rev})
		case !d.Deleted:
			out = append(out, pump.Item{VBucket: vb, Key: d.Key, Value: d.Value, Flags: d.Flags, Expiry: d.Expiry, CAS: d.CAS, RevSeqno: d.Rev})
		}
		return true
	})
	return out
}

// drain runs the engine from a source into memory.
func drain(t testing.TB, cfg Config, set func(*pump.Settings)) (*pumptest.MemSink, *pump.Report, []pump.Mark, error) {
	t.Helper()
	src, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	settings := pump.DefaultSettings()
	if set != nil {
		set(&settings)
	}
	sink := &pumptest.MemSink{LaneCount: 2}
	marks := make(chan pump.Mark, 4096)
	report, err := pump.Run(context.Background(), pump.Config{Source: src, Sink: sink, Settings: settings, Scribble: true,
		OnMarks: func(_ string, ms []pump.Mark) {
			for _, m := range ms {
				marks <- m
			}
		}})
	close(marks)
	var all []pump.Mark
	for m := range marks {
		all = append(all, m)
	}
	return sink, report, all, err
}

// holds compares what a destination has with what is due.
func holds(t testing.TB, sink *pumptest.MemSink, want []pump.Item) {
	t.Helper()
	got := sink.Items()
	if len(got) != len(want) {
		t.Errorf("%d items came, %d are due", len(got), len(want))
	}
	for i := range want {
		w := &want[i]
		fields := []string{"vbucket", "flags", "expiry", "cas", "rev"}
		it, ok := got[string(w.Key)]
		if due := pumptest.Describe(w, fields...); !ok || pumptest.Describe(&it, fields...) != due {
			t.Fatalf("an item is\n%s, due is\n%s", pumptest.Describe(&it, fields...), due)
		}
	}
}

func TestConformance(t *testing.T) {
	for _, version := range []string{"2.5.1", "3.0.3", "4.0"} {
		t.Run(version, func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 3, Version: version, TapAckInterval: 50, TapWindow: 100,
				Buckets: []simcluster.BucketConfig{{Name: "beer", Password: "hops", Replicas: 1}}})
			want := fill(t, c.Bucket("beer"), 1500)
			cfg := at(c)
			cfg.Bucket = "beer"
			pumptest.TestSource(t, pumptest.SourceSuite{
				New:  func(t *testing.T) pump.Source { return mustNew(t, cfg) },
				Want: want,
			})
			// The nodes one by one have all of it together.
			var parts []pump.Item
			for _, n := range c.Nodes() {
				one := Config{URL: "tap://" + n.KV()}
				one.Bucket, one.Password = "beer", "hops"
				parts = append(parts, pumptest.ReadAll(t, mustNew(t, one), 8<<10)...)
			}
			if len(parts) != len(want) {
				t.Errorf("the nodes one by one gave %d items, %d are due", len(parts), len(want))
			}
		})
	}
}

func mustNew(t testing.TB, cfg Config) *DumpSource {
	t.Helper()
	s, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMarksAndParallelism(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 2, VBuckets: 64})
	want := fill(t, c.Bucket("default"), 500)
	for threads, due := range map[int]int{0: 8, 1: 1, 2: 2, 7: 7, 500: 64} {
		cfg := at(c)
		cfg.Threads = threads
		cfg.Options.DumpVBuckets = 5
		if streams := open(t, cfg); len(streams) != due {
			t.Errorf("threads %d: %d streams, %d are due", threads, len(streams), due)
		}
		sink, report, marks, err := drain(t, cfg, nil)
		if err != nil {
			t.Fatalf("threads %d: %v", threads, err)
		}
		holds(t, sink, want)
		var live uint64
		seen := map[uint16]bool{}
		for _, m := range marks {
			if !m.Complete || seen[m.VBucket] {
				t.Errorf("threads %d: mark %+v", threads, m)
			}
			seen[m.VBucket] = true
			live += m.Items
		}
		if len(seen) != 64 || live != 450 || report.Reopened != 0 {
			t.Errorf("threads %d: %d vbuckets complete with %d items, reopened %d times", threads, len(seen), live, report.Reopened)
		}
	}
}

func TestVBucketLists(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 2, VBuckets: 64, Buckets: []simcluster.BucketConfig{
		{Name: "default"}, {Name: "cache", Type: "memcached"}}})
	all := fill(t, c.Bucket("default"), 800)
	for _, list := range [][]uint16{{0}, {63}, {5, 0, 5, 40}} {
		cfg := at(c)
		cfg.VBuckets = list
		var want []pump.Item
		for _, it := range all {
			if slices.Contains(list, it.VBucket) {
				want = append(want, it)
			}
		}
		sink, _, marks, err := drain(t, cfg, nil)
		if err != nil {
			t.Fatalf("%v: %v", list, err)
		}
		holds(t, sink, want)
		if len(marks) != len(slices.Compact(slices.Sorted(slices.Values(list)))) {
			t.Errorf("%v: marks %v", list, marks)
		}
		src := mustNew(t, cfg)
		var live uint64
		for _, it := range want {
			if it.Op == pump.Mutation {
				live++
			}
		}
		if e, err := src.Estimate(context.Background()); err != nil || e.Items != live {
			t.Errorf("%v: estimate %+v, %v; %d are due", list, e, err, live)
		}
		if err := src.Check(context.Background()); err != nil {
			t.Errorf("%v: check: %v", list, err)
		}
		src.Close()
	}
	for _, vb := range []uint16{64, 1024, 65535} {
		cfg := at(c)
		cfg.VBuckets = []uint16{0, vb}
		_, err := source(t, cfg).Streams(context.Background())
		want(t, err, "tap-no-vbucket", fmt.Sprintf("vbucket %d", vb), "64 vbuckets, 0 to 63")
		if pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%v is not of wrong use", err)
		}
	}
	cfg := at(c)
	cfg.VBuckets = []uint16{}
	if _, err := source(t, cfg).Streams(context.Background()); pump.ClassOf(err) != pump.ClassUsage {
		t.Errorf("an empty list: %v", err)
	}
	cfg = at(c)
	cfg.Bucket = "cache"
	err := source(t, cfg).Check(context.Background())
	want(t, err, "bucket-type", "memcached")
	if pump.ClassOf(err) != pump.ClassUsage {
		t.Errorf("%v is not of wrong use", err)
	}
	cfg = at(c)
	cfg.Password = "wrong"
	if err := source(t, cfg).Check(context.Background()); pump.ClassOf(err) != pump.ClassDenied {
		t.Errorf("a wrong password: %v", err)
	}
	cfg = at(c)
	cfg.Bucket = "nosuch"
	if err := source(t, cfg).Check(context.Background()); pump.ClassOf(err) != pump.ClassUsage {
		t.Errorf("no such bucket: %v", err)
	}
}

func TestSingleNode(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 3, VBuckets: 64})
	all := fill(t, c.Bucket("default"), 300)
	total := 0
	var first []uint16
	for i, n := range c.Nodes() {
		cfg := at(c)
		cfg.URL, cfg.SingleNode = "http://"+n.REST(), true
		sink, _, marks, err := drain(t, cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		total += len(sink.Items())
		if i == 0 {
			for _, m := range marks {
				first = append(first, m.VBucket)
			}
		}
		for _, m := range marks {
			if state, _ := n.VBucket("default", m.VBucket); state != mcbp.VBActive {
				t.Errorf("vbucket %d came from a node where it is %s", m.VBucket, state)
			}
		}
	}
	if total != len(all) {
		t.Errorf("the nodes one by one gave %d items of %d", total, len(all))
	}
	cfg := at(c)
	cfg.URL, cfg.SingleNode, cfg.VBuckets = "http://"+c.Nodes()[1].REST(), true, first[:1]
	_, err := source(t, cfg).Streams(context.Background())
	want(t, err, codeNotActive, "is active on "+c.Nodes()[0].KV())
}

func TestSpecialVBuckets(t *testing.T) {
	for _, version := range []string{"2.5.1", "4.0"} {
		t.Run(version, func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 2, VBuckets: 16, Version: version})
			b := c.Bucket("default")
			key := func(vb uint16) []byte {
				for i := 0; ; i++ {
					if k := fmt.Appendf(nil, "k%d", i); b.VBucketOf(k) == vb {
						return k
					}
				}
			}
			past := uint32(time.Now().Unix() - 100)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(b.Delete(key(1)))                                                                    // tombstones only
			must(b.Store(simcluster.Doc{Key: key(2), Value: []byte("v"), Expiry: past}))              // expired only
			must(b.Store(simcluster.Doc{Key: key(3), Value: []byte("v"), Flags: 7, Expiry: 1 << 31})) // live
			must(b.Store(simcluster.Doc{Key: append(key(3), 0)[:len(key(3))], Value: []byte("w"), Flags: 7, Expiry: 1 << 31}))
			sink, _, marks, err := drain(t, at(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(marks) != 16 {
				t.Errorf("%d of 16 vbuckets are complete", len(marks))
			}
			for _, m := range marks {
				if due := map[uint16]uint64{3: 1}[m.VBucket]; m.Items != due {
					t.Errorf("vbucket %d has %d live items, %d are due", m.VBucket, m.Items, due)
				}
			}
			got := sink.Items()
			if it := got[string(key(2))]; it.Op != pump.Deletion || len(it.Value) > 0 {
				t.Errorf("the expired item came as %s", pumptest.Describe(&it))
			}
			if it := got[string(key(3))]; it.Op != pump.Mutation || it.Flags != 7 {
				t.Errorf("the live item came as %s", pumptest.Describe(&it))
			}
			if len(got) != 2 {
				t.Errorf("%d items", len(got))
			}

			// States that the map does not tell.
			for _, state := range []mcbp.VBState{mcbp.VBReplica, mcbp.VBPending, mcbp.VBDead, mcbp.VBAbsent} {
				owner := c.Nodes()[0]
				if s, _ := owner.VBucket("default", 3); s != mcbp.VBActive {
					owner = c.Nodes()[1]
				}
				owner.SetVBucket("default", 3, state)
				want(t, source(t, at(c)).Check(context.Background()), codeNotActive, "vbucket 3", owner.KV(), state.String())
				_, report, marks, err := drain(t, at(c), nil)
				want(t, err, codeNotActive, "vbucket 3", state.String())
				if len(marks) > 15 || report.Done > 1 {
					t.Errorf("%d vbuckets complete", len(marks))
				}
				owner.SetVBucket("default", 3, mcbp.VBActive)
			}
		})
	}
}

func TestMissingVBuckets(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 3, VBuckets: 32, Buckets: []simcluster.BucketConfig{{Name: "default"}}})
	fill(t, c.Bucket("default"), 300)
	if err := c.Failover(c.Nodes()[2]); err != nil {
		t.Fatal(err)
	}
	missing := c.Bucket("default").Missing()
	if len(missing) == 0 {
		t.Fatal("nothing is missing")
	}
	cfg := at(c)
	_, err := source(t, cfg).Streams(context.Background())
	want(t, err, "tap-missing", fmt.Sprintf("vbucket %d", missing[0]))
	if !strings.Contains(pump.HintOf(err), "--vbucket-list") {
		t.Errorf("hint %q", pump.HintOf(err))
	}
	cfg.VBuckets = missing[:1]
	_, err = source(t, cfg).Streams(context.Background())
	want(t, err, "tap-missing")
	cfg.VBuckets = nil
	for vb := range uint16(32) {
		if !slices.Contains(missing, vb) {
			cfg.VBuckets = append(cfg.VBuckets, vb)
		}
	}
	sink, _, _, err := drain(t, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, sink, contents(c.Bucket("default")))
}

// TestUnflushedItems writes and dumps at once: 3.0 and later dump from disk.
func TestUnflushedItems(t *testing.T) {
	for _, version := range []string{"3.0.3", "4.0"} {
		never := sim(t, simcluster.Config{Nodes: 2, VBuckets: 8, Version: version, FlushDelay: time.Hour})
		fill(t, never.Bucket("default"), 200)
		cfg := at(never)
		cfg.Options.FlushTimeout = 0
		_, _, marks, err := drain(t, cfg, nil)
		want(t, err, codeIncomplete, "the node counts")
		cfg.Options.FlushTimeout = time.Millisecond
		_, _, more, err := drain(t, cfg, nil)
		want(t, err, codeUnflushed, "items queued")
		if len(marks)+len(more) > 0 {
			t.Errorf("%s: complete without the disk: %v, %v", version, marks, more)
		}

		soon := sim(t, simcluster.Config{Nodes: 2, VBuckets: 8, Version: version, FlushDelay: 100 * time.Millisecond})
		items := fill(t, soon.Bucket("default"), 200)
		sink, _, _, err := drain(t, at(soon), nil)
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		holds(t, sink, items)
	}
}

// TestFaults lets each fault strike once, which must not matter, and for ever,
// which must end in its named error and never as success (invariant 4).
func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault simcluster.Fault
		code  string
		once  bool // a single strike is mended
	}{
		"cut in a mutation":  {simcluster.Fault{Op: mcbp.OpTapMutation, After: 20, Action: simcluster.CutMidFrame}, codeCut, true},
		"closed in mid-dump": {simcluster.Fault{Op: mcbp.OpTapMutation, After: 20, Action: simcluster.Close}, codeIncomplete, true},
		"stalled":            {simcluster.Fault{Op: mcbp.OpTapMutation, After: 20, Action: simcluster.Stall}, codeIdle, true},
		"no end marker":      {simcluster.Fault{Op: mcbp.OpTapConnect, Action: simcluster.OmitCloseBackfill}, codeIncomplete, true},
		"refused dump":       {simcluster.Fault{Op: mcbp.OpTapConnect, Action: simcluster.Close}, codeRefused, true},
		"no TAP":             {simcluster.Fault{Op: mcbp.OpTapConnect, Action: simcluster.AnswerStatus, Status: mcbp.StatusNotSupported}, codeUnsupported, false},
		"busy":               {simcluster.Fault{Op: mcbp.OpTapConnect, Action: simcluster.AnswerStatus, Status: mcbp.StatusTmpFail}, codeRefused, true},
		"refused login":      {simcluster.Fault{Op: mcbp.OpSASLAuth, Action: simcluster.AnswerStatus, Status: mcbp.StatusAuthError, After: 4}, "kv-denied", false},
		"cut statistics":     {simcluster.Fault{Op: mcbp.OpStat, Action: simcluster.CutMidFrame, After: 4}, "kv-cut", true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, times := range []int{1, 0} {
				if times == 1 && !c.once {
					continue
				}
				s := sim(t, simcluster.Config{Nodes: 2, VBuckets: 16, Buckets: []simcluster.BucketConfig{{Name: "default", Password: "pw"}}})
				items := fill(t, s.Bucket("default"), 400)
				f := c.fault
				f.VBucket, f.Times = -1, times
				if strings.HasPrefix(name, "refused login") {
					f.Ops = []mcbp.Opcode{mcbp.OpSASLAuth, mcbp.OpSASLStep}
				}
				s.Nodes()[0].Inject(f)
				cfg := at(s)
				if c.code == codeIdle {
					cfg.Options.IdleTimeout = 250 * time.Millisecond
				}
				sink, report, marks, err := drain(t, cfg, nil)
				if times == 1 {
					if err != nil {
						t.Fatalf("once: %v", err)
					}
					holds(t, sink, items)
					if len(marks) != 16 {
						t.Errorf("once: %d vbuckets are complete", len(marks))
					}
					continue
				}
				want(t, err, c.code)
				if len(marks) == 16 || pump.ExitCode(err, 0) == 0 {
					t.Errorf("%d times: %d vbuckets are complete, report %+v, %v", times, len(marks), report.Snapshot, err)
				}
			}
		})
	}
}

// TestNodeFails kills a node in mid-dump and fails it over: the vbuckets that
// were not complete are dumped from the nodes that took over, and only they.
func TestNodeFails(t *testing.T) {
	for _, which := range []int{0, 2} { // the node of the URL, and another one
		t.Run(fmt.Sprint(which), func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 3, VBuckets: 48, Buckets: []simcluster.BucketConfig{{Name: "default", Replicas: 1}}})
			items := fill(t, c.Bucket("default"), 1000)
			victim := c.Nodes()[which]
			victim.Inject(simcluster.Fault{Op: mcbp.OpTapMutation, VBucket: -1, After: 150, Times: 1, Action: simcluster.Die})
			cfg := at(c)
			cfg.Threads, cfg.Options.DumpVBuckets = 3, 4
			complete := map[uint16]uint64{}
			var again []pump.Stream
			got := map[string]bool{}
			take := func(o outcome) {
				for _, it := range o.items {
					got[it.Key] = true
				}
				for _, m := range o.marks {
					if _, twice := complete[m.VBucket]; twice {
						t.Errorf("vbucket %d is complete twice", m.VBucket)
					}
					complete[m.VBucket] = m.Items
				}
			}
			for _, s := range open(t, cfg) {
				o := readOnce(t, s, 4096)
				take(o)
				if o.err == io.EOF {
					continue
				}
				again = append(again, s)
				if !pump.IsRetryable(o.err) {
					t.Fatalf("%v is not retryable", o.err)
				}
				// Whether the node still answers the question for its counts is a
				// race with its death; that the dump is not complete is not.
				if pump.CodeOf(o.err) == codeIncomplete {
					want(t, o.err, codeIncomplete, victim.KV(), "not proven")
				} else {
					want(t, o.err, codeCut, victim.KV(), "item counts cannot be read")
				}
			}
			if len(again) != 1 || len(complete) < 33 || len(complete) > 47 {
				t.Fatalf("%d streams to open again, %d vbuckets complete", len(again), len(complete))
			}
			o := readOnce(t, again[0], 4096) // not failed over yet
			take(o)
			if pump.ClassOf(o.err) != pump.ClassUnreachable || !pump.IsRetryable(o.err) {
				t.Errorf("before the failover: %v", o.err)
			}
			if err := c.Failover(victim); err != nil {
				t.Fatal(err)
			}
			before := len(complete)
			o = readOnce(t, again[0], 4096)
			take(o)
			if o.err != io.EOF || len(complete) != 48 || before == 48 {
				t.Errorf("after the failover: %d vbuckets complete, before %d, %v", len(complete), before, o.err)
			}
			if len(got) != len(items) {
				t.Errorf("%d keys came, %d are due", len(got), len(items))
			}
		})
	}
}

// TestVBucketMoves: the map that the stream has is old by the time it dumps.
func TestVBucketMoves(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 3, VBuckets: 48, Buckets: []simcluster.BucketConfig{{Name: "default", Replicas: 1}}})
	items := fill(t, c.Bucket("default"), 600)
	cfg := at(c)
	cfg.Threads = 1
	streams := open(t, cfg)
	victim := c.Nodes()[1]
	if err := c.Failover(victim); err != nil { // it still runs, and is active nowhere
		t.Fatal(err)
	}
	var o outcome
	for range 3 {
		next := readOnce(t, streams[0], 4096)
		o.items, o.marks, o.err = append(o.items, next.items...), append(o.marks, next.marks...), next.err
		if o.err == io.EOF {
			break
		}
		if !pump.IsRetryable(o.err) {
			t.Fatal(o.err)
		}
	}
	keys := map[string]bool{}
	for _, it := range o.items {
		keys[it.Key] = true
	}
	if o.err != io.EOF || len(keys) != len(items) || len(o.marks) != 48 {
		t.Errorf("%d of %d keys, %d of 48 vbuckets, %v", len(keys), len(items), len(o.marks), o.err)
	}
}

// TestOtherEndpoints gives addresses that are no source.
func TestOtherEndpoints(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 1})
	for url, class := range map[string]pump.Class{
		"tap://":                       pump.ClassUsage,
		"tap://a:b@host":               pump.ClassUsage,
		"tap://host:0":                 pump.ClassUsage,
		"tap://host:99999":             pump.ClassUsage,
		"tap://host/path":              pump.ClassUsage,
		"tap://one,two":                pump.ClassUsage,
		"tap://::1":                    pump.ClassUsage,
		"http://":                      pump.ClassUsage,
		"tap://" + c.Nodes()[0].REST(): pump.ClassUnreachable, // HTTP
	} {
		s, err := New(context.Background(), Config{URL: url})
		if err == nil {
			err = s.Check(context.Background())
			s.Close()
		}
		if err == nil || pump.ClassOf(err) != class || strings.Contains(err.Error(), "a:b") {
			t.Errorf("%s: %v, class %d", url, err, pump.ClassOf(err))
		}
	}
	for _, o := range []Options{
		{FlushTimeout: -1, IdleTimeout: 1, DumpVBuckets: 1}, {IdleTimeout: 0, DumpVBuckets: 1}, {IdleTimeout: 1, DumpVBuckets: 0, EndProof: "marker"},
		{IdleTimeout: 1, DumpVBuckets: 1, EndProof: "hope"},
	} {
		if _, err := New(context.Background(), Config{URL: "tap://h", Options: o}); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if o := DefaultOptions(); o.FlushTimeout != time.Minute || o.IdleTimeout != 3*time.Minute || o.DumpVBuckets != 64 || o.EndProof != "marker" {
		t.Errorf("defaults %+v", o)
	}
}

func TestPlugin(t *testing.T) {
	r := &pump.Registry{}
	if err := pump.RegisterSource(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{"http://h:8091", "couchbase://h", "tap://h:11210?idle-timeout=5s&end-proof=count"} {
		s, err := r.Source(context.Background(), spec, pump.Env{})
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		s.Close()
	}
	for _, spec := range []string{"tap://h?end-proof=hope", "tap://h?idle=1", "tap://h?idle-timeout=0s"} {
		if _, err := r.Source(context.Background(), spec, pump.Env{}); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%s: %v", spec, err)
		}
	}
	var e *pump.Error
	if err := noTap("x"); !errors.As(err, &e) || e.Hint == "" {
		t.Error("no hint")
	}
}
