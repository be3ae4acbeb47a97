package dcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/couchbase/gomemcached"
	memcached "github.com/couchbase/gomemcached/client"
	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

var versions = []string{"3.0.3", "4.0", "4.6", "6.0.4", "6.6.5", "7.0.5", "7.6"}

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

func mustNew(t testing.TB, cfg Config) *Source {
	t.Helper()
	s, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fill stores n documents of mixed kinds.
func fill(t testing.TB, b *simcluster.Bucket, n int) {
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
}

// contents is what a copy of a bucket gives.
func contents(b *simcluster.Bucket) (out []pump.Item) {
	b.Each(func(vb uint16, d simcluster.Doc) bool {
		it := pump.Item{VBucket: vb, Key: d.Key, Value: d.Value, Flags: d.Flags, Expiry: d.Expiry, CAS: d.CAS, RevSeqno: d.Rev, Datatype: d.Datatype}
		if d.Deleted {
			it.Op, it.Value, it.Flags, it.Expiry = pump.Deletion, nil, 0, 0
		}
		out = append(out, it)
		return true
	})
	return out
}

func drain(t testing.TB, cfg Config, set func(*pump.Settings)) (*pumptest.MemSink, *pump.Report, []pump.Mark, error) {
	t.Helper()
	settings := pump.DefaultSettings()
	if set != nil {
		set(&settings)
	}
	sink := &pumptest.MemSink{LaneCount: 2}
	var mu sync.Mutex
	var marks []pump.Mark
	report, err := pump.Run(context.Background(), pump.Config{Source: mustNew(t, cfg), Sink: sink, Settings: settings, Scribble: true,
		OnMarks: func(_ string, ms []pump.Mark) {
			mu.Lock()
			defer mu.Unlock()
			marks = append(marks, ms...)
		}})
	return sink, report, marks, err
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
		fields := []string{"vbucket", "flags", "cas", "rev"}
		if w.Op == pump.Mutation {
			fields = append(fields, "expiry", "datatype")
		}
		it, ok := got[string(w.Key)]
		if due := pumptest.Describe(w, fields...); !ok || pumptest.Describe(&it, fields...) != due {
			t.Fatalf("an item is\n%s, due is\n%s", pumptest.Describe(&it, fields...), due)
		}
	}
}

func completes(marks []pump.Mark) (vbs int, live uint64) {
	last := map[uint16]uint64{}
	for _, m := range marks {
		if m.Complete {
			last[m.VBucket] = m.Items
		}
	}
	for _, n := range last {
		live += n
	}
	return len(last), live
}

func TestConformance(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 3, VBuckets: 32, Version: version, DCPFromDisk: version == "4.0" || version == "6.6.5"})
			fill(t, c.Bucket("default"), 600)
			cfg := at(c)
			cfg.Options.BufferSize, cfg.Options.OpenVBuckets = 8<<10, 3
			pumptest.TestSource(t, pumptest.SourceSuite{
				New:  func(t *testing.T) pump.Source { return mustNew(t, cfg) },
				Want: contents(c.Bucket("default")), Compare: []string{"vbucket", "flags", "cas", "rev", "datatype"},
			})
			sink, report, marks, err := drain(t, cfg, nil)
			if err != nil || report.Reopened != 0 {
				t.Fatalf("%v, %+v", err, report.Snapshot)
			}
			holds(t, sink, contents(c.Bucket("default")))
			if n, live := completes(marks); n != 32 || live != 540 {
				t.Errorf("%d vbuckets complete with %d items", n, live)
			}
			src := mustNew(t, cfg)
			defer src.Close()
			if e, err := src.Estimate(context.Background()); err != nil || e.Items != 540 {
				t.Errorf("estimate %+v, %v", e, err)
			}
			// The nodes one by one have all of it together.
			total := 0
			for _, n := range c.Nodes() {
				one := at(c)
				one.URL = "dcp://" + n.KV()
				if version < "5" {
					one.Username, one.Password = "", ""
				}
				total += len(pumptest.ReadAll(t, mustNew(t, one), 8<<10))
			}
			if total != 600 {
				t.Errorf("the nodes one by one gave %d items", total)
			}
		})
	}
}

// TestSameAsGomemcached: gomemcached's feed sees the same items as ours.
func TestSameAsGomemcached(t *testing.T) {
	for _, version := range []string{"3.0.3", "4.0", "6.6.5", "7.0.5"} {
		t.Run(version, func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 1, VBuckets: 8, Version: version})
			b := c.Bucket("default")
			fill(t, b, 200)
			sink, _, _, err := drain(t, at(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			var ours []string
			for _, it := range sink.Log() {
				ours = append(ours, fmt.Sprintf("%d %s %q %q cas %d rev %d seqno %d flags %d", it.VBucket, it.Op, it.Key, it.Value, it.CAS, it.RevSeqno, it.Seqno, it.Flags))
			}
			theirs := uprItems(t, c, version, b)
			slices.Sort(ours)
			slices.Sort(theirs)
			if !slices.Equal(ours, theirs) {
				for i := range min(len(ours), len(theirs)) {
					if ours[i] != theirs[i] {
						t.Errorf("ours   %s\ntheirs %s", ours[i], theirs[i])
						break
					}
				}
				t.Errorf("%d items of ours, %d of theirs", len(ours), len(theirs))
			}
		})
	}
}

func uprItems(t *testing.T, c *simcluster.Cluster, version string, b *simcluster.Bucket) (out []string) {
	t.Helper()
	mc, err := memcached.Connect("tcp", c.Nodes()[0].KV())
	if err != nil {
		t.Fatal(err)
	}
	defer mc.Close()
	if version > "5" {
		if _, err := mc.AuthScramSha("Administrator", "password"); err != nil {
			t.Fatal(err)
		}
		if _, err := mc.SelectBucket("default"); err != nil {
			t.Fatal(err)
		}
	}
	feed, err := mc.NewUprFeed()
	if err != nil {
		t.Fatal(err)
	}
	if err := feed.UprOpen("theirs", 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := feed.StartFeed(); err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	open := 0
	for vb := range uint16(8) {
		if end := b.HighSeqno(vb); end > 0 {
			if err := feed.UprRequestStream(vb, vb, 0, 0, 0, end, 0, 0); err != nil {
				t.Fatal(err)
			}
			open++
		}
	}
	for open > 0 {
		select {
		case e, ok := <-feed.GetUprEventCh():
			if !ok {
				t.Fatalf("the feed ended with %d streams open: %v", open, feed.GetError())
			}
			switch e.Opcode {
			case gomemcached.UPR_MUTATION, gomemcached.UPR_DELETION:
				op := pump.Mutation
				if e.Opcode == gomemcached.UPR_DELETION {
					op = pump.Deletion
				}
				out = append(out, fmt.Sprintf("%d %s %q %q cas %d rev %d seqno %d flags %d", e.VBucket, op, e.Key, e.Value, e.Cas, e.RevSeqno, e.Seqno, e.Flags))
			case gomemcached.UPR_STREAMEND:
				open--
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("nothing comes any more, %d streams are open", open)
		}
	}
	return out
}

// TestFailover kills a node in mid-copy; its replicas take over.
func TestFailover(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 3, VBuckets: 24, Version: "6.6.5", Buckets: []simcluster.BucketConfig{{Name: "default", Replicas: 1}}})
	b := c.Bucket("default")
	fill(t, b, 2000)
	cfg := at(c)
	cfg.Threads, cfg.Options.OpenVBuckets = 3, 2
	cfg.Options.BufferSize = 4 << 10
	victim := c.Nodes()[1]
	var once sync.Once
	sink := &pumptest.MemSink{Before: func(context.Context, int, *pump.Batch) error {
		once.Do(func() {
			if err := c.Failover(victim); err != nil {
				t.Error(err)
			}
			victim.Kill()
		})
		return nil
	}}
	set := pump.DefaultSettings()
	set.RetryMax = 50 * time.Millisecond
	report, err := pump.Run(context.Background(), pump.Config{Source: mustNew(t, cfg), Sink: sink, Settings: set, Scribble: true})
	if err != nil {
		t.Fatalf("%v, %+v", err, report.Snapshot)
	}
	holds(t, sink, contents(b))
}

// TestFaults cuts and stalls at messages of the stream; the engine mends it.
func TestFaults(t *testing.T) {
	for name, f := range map[string]simcluster.Fault{
		"cut in a mutation":        {Op: mcbp.OpDcpMutation, VBucket: -1, After: 40, Times: 3, Action: simcluster.CutMidFrame},
		"cut behind a mutation":    {Op: mcbp.OpDcpMutation, VBucket: -1, After: 40, Times: 3, Action: simcluster.DropAfterEffect},
		"cut before the end":       {Op: mcbp.OpDcpStreamEnd, VBucket: -1, After: 2, Times: 2, Action: simcluster.Close},
		"cut in the marker":        {Op: mcbp.OpDcpSnapshotMarker, VBucket: -1, After: 2, Times: 2, Action: simcluster.CutMidFrame},
		"the request is not heard": {Op: mcbp.OpDcpStreamReq, VBucket: -1, After: 2, Times: 1, Action: simcluster.Close},
		"try later":                {Op: mcbp.OpDcpStreamReq, VBucket: -1, After: 2, Times: 2, Action: simcluster.AnswerStatus, Status: mcbp.StatusTmpFail},
		"not here":                 {Op: mcbp.OpDcpStreamReq, VBucket: -1, After: 2, Times: 2, Action: simcluster.AnswerStatus, Status: mcbp.StatusNotMyVBucket},
		"stalled":                  {Op: mcbp.OpDcpMutation, VBucket: -1, After: 40, Times: 1, Action: simcluster.Stall},
	} {
		t.Run(name, func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 2, VBuckets: 16, Version: "7.0.5"})
			b := c.Bucket("default")
			fill(t, b, 400)
			for _, n := range c.Nodes() {
				n.Inject(f)
			}
			cfg := at(c)
			if name == "stalled" {
				cfg.Options.IdleTimeout = 200 * time.Millisecond
			}
			sink, report, marks, err := drain(t, cfg, func(s *pump.Settings) { s.RetryMax = 20 * time.Millisecond })
			if err != nil || report.Reopened == 0 {
				t.Fatalf("%v, %+v", err, report.Snapshot)
			}
			holds(t, sink, contents(b))
			if n, live := completes(marks); n != 16 || live != 360 {
				t.Errorf("%d vbuckets complete with %d items", n, live)
			}
		})
	}
}

// TestRollbackOfACluster: a copy is complete, then a failover loses its last
// changes, others are written in their place: a later run that is given the marks
// brings all of the new branch.
func TestRollbackOfACluster(t *testing.T) {
	for _, version := range []string{"3.0.3", "6.6.5", "7.0.5"} {
		t.Run(version, func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 1, VBuckets: 2, Version: version})
			b := c.Bucket("default")
			fill(t, b, 60)
			cfg := at(c)
			var log strings.Builder
			cfg.Log = hclog.New(&hclog.LoggerOptions{Output: &log})
			cfg.Threads = 1
			cfg.Options.Follow, cfg.Options.FollowInterval = true, 2*time.Millisecond
			sink := &pumptest.MemSink{}
			stop := make(chan struct{})
			var once, stopped sync.Once
			high := map[uint16]uint64{}
			report, err := pump.Run(context.Background(), pump.Config{Source: mustNew(t, cfg), Sink: sink, Settings: pump.DefaultSettings(), Stop: stop,
				OnMarks: func(_ string, marks []pump.Mark) {
					for _, m := range marks {
						if m.Complete {
							high[m.VBucket] = m.Seqno
						}
					}
					if len(high) == 2 {
						once.Do(func() {
							for vb := range uint16(2) {
								if err := b.Rollback(vb, b.HighSeqno(vb)-5); err != nil {
									t.Error(err)
								}
							}
							for i := range 30 {
								if err := b.Store(simcluster.Doc{Key: fmt.Appendf(nil, "new-%d", i), Value: []byte("branch")}); err != nil {
									t.Error(err)
								}
							}
						})
						if high[0] == b.HighSeqno(0) && high[1] == b.HighSeqno(1) {
							stopped.Do(func() { close(stop) })
						}
					}
				}})
			if pump.ClassOf(err) != pump.ClassInterrupted {
				t.Fatalf("%v, %+v", err, report.Snapshot)
			}
			got := sink.Items()
			for i := range 30 {
				if it, ok := got[fmt.Sprintf("new-%d", i)]; !ok || string(it.Value) != "branch" {
					t.Errorf("new-%d did not come", i)
				}
			}
			if !strings.Contains(log.String(), "another branch") {
				t.Errorf("the log says %q", log.String())
			}
		})
	}
}

// TestCollectionsOfACluster copies named collections, all or one.
func TestCollectionsOfACluster(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 2, VBuckets: 8, Version: "7.0.5"})
	b := c.Bucket("default")
	if _, err := b.CreateScope("shop"); err != nil {
		t.Fatal(err)
	}
	id := map[string]uint32{}
	for _, name := range []string{"items", "orders", "none"} {
		var err error
		if id[name], err = b.CreateCollection("shop", name, 0); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, b, 100)
	for i := range 50 {
		for _, name := range []string{"items", "orders"} {
			if err := b.Store(simcluster.Doc{Collection: id[name], Key: fmt.Appendf(nil, "k%d", i), Value: []byte(name)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	sink, _, _, err := drain(t, at(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, it := range sink.Log() {
		count[it.Collection.String()]++
		if it.Collection != nil && string(it.Value) != it.Collection.Name {
			t.Errorf("%q is in %s", it.Value, it.Collection)
		}
	}
	if fmt.Sprint(count) != "map[_default._default:100 shop.items:50 shop.orders:50]" {
		t.Errorf("%v", count)
	}
	for path, due := range map[string]int{"shop.items": 50, "_default._default": 100, "shop.none": 0} {
		cfg := at(c)
		cfg.Options.Collection = path
		sink, _, marks, err := drain(t, cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(sink.Log()); n != due {
			t.Errorf("%s: %d items", path, n)
		}
		if n, _ := completes(marks); n != 8 {
			t.Errorf("%s: %d vbuckets complete", path, n)
		}
	}
	cfg := at(c)
	cfg.Options.Collection = "shop.nosuch"
	want(t, mustNew(t, cfg).Check(context.Background()), codeNoCollection, "shop.nosuch")
	// Dropped and not purged: the counts still hold it.
	if err := b.DropCollection("shop", "orders"); err != nil {
		t.Fatal(err)
	}
	sink, _, _, err = drain(t, at(c), nil)
	if err != nil || len(sink.Log()) != 150 {
		t.Errorf("%d items, %v", len(sink.Log()), err)
	}
}

// TestAccess: wrong passwords, and users that lack the privilege, which is named.
func TestAccess(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 1, VBuckets: 4, Version: "7.0.5", Users: []simcluster.User{
		{Name: "reader", Password: "pw", Roles: []string{"data_reader[default]"}},
		{Name: "dcp", Password: "pw", Roles: []string{"data_dcp_reader[default]"}},
	}})
	fill(t, c.Bucket("default"), 10)
	for user, due := range map[string]string{"reader": "DcpProducer", "dcp": ""} {
		cfg := at(c)
		cfg.URL = "dcp://" + c.Nodes()[0].KV()
		cfg.Username, cfg.Password = user, "pw"
		err := mustNew(t, cfg).Check(context.Background())
		if due == "" {
			if err != nil {
				t.Errorf("%s: %v", user, err)
			}
			continue
		}
		if pump.ClassOf(err) != pump.ClassDenied || !strings.Contains(pump.HintOf(err), due) {
			t.Errorf("%s: %v, hint %q", user, err, pump.HintOf(err))
		}
	}
	cfg := at(c)
	cfg.Password = "wrong"
	if err := mustNew(t, cfg).Check(context.Background()); pump.ClassOf(err) != pump.ClassDenied {
		t.Errorf("%v", err)
	}
	cfg = at(sim(t, simcluster.Config{Nodes: 1, Version: "2.5.1"}))
	err := mustNew(t, cfg).Check(context.Background())
	want(t, err, codeUnsupported, "2.5.1")
}

// TestWritesMeanwhile copies a bucket that is written to: all that was there at
// the start is there in the end, in that state or a later one.
func TestWritesMeanwhile(t *testing.T) {
	const keys = 800
	for version, disk := range map[string]bool{"3.0.3": false, "6.0.4": true, "6.6.5": true, "7.0.5": false} {
		t.Run(version, func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 2, VBuckets: 8, Version: version, DCPFromDisk: disk})
			b := c.Bucket("default")
			for i := range keys {
				if err := b.Store(simcluster.Doc{Key: fmt.Appendf(nil, "k%d", i), Value: []byte("0")}); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(context.Background())
			var writing sync.WaitGroup
			writing.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if err := b.Store(simcluster.Doc{Key: fmt.Appendf(nil, "k%d", i%keys), Value: fmt.Appendf(nil, "%d", i)}); err != nil {
						t.Error(err)
						return
					}
				}
			})
			cfg := at(c)
			cfg.Options.BufferSize = 2 << 10
			sink, _, marks, err := drain(t, cfg, nil)
			cancel()
			writing.Wait()
			if err != nil {
				t.Fatal(err)
			}
			if n, _ := completes(marks); len(sink.Items()) != keys || n != 8 {
				t.Errorf("%d of %d keys came, %d vbuckets are complete", len(sink.Items()), keys, n)
			}
		})
	}
}

// TestLists restricts by vbucket list and node.
func TestLists(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 3, VBuckets: 32, Version: "7.0.5"})
	b := c.Bucket("default")
	fill(t, b, 300)
	cfg := at(c)
	cfg.VBuckets = []uint16{31, 0, 5}
	sink, _, marks, err := drain(t, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	var due []pump.Item
	for _, it := range contents(b) {
		if slices.Contains(cfg.VBuckets, it.VBucket) {
			due = append(due, it)
		}
	}
	holds(t, sink, due)
	if n, _ := completes(marks); n != 3 {
		t.Errorf("%d vbuckets", n)
	}
	cfg.VBuckets = []uint16{32}
	_, err = mustNew(t, cfg).Streams(context.Background())
	want(t, err, "dcp-no-vbucket", "vbucket 32", "0 to 31")
	total := 0
	for _, n := range c.Nodes() {
		cfg := at(c)
		cfg.URL, cfg.SingleNode = "http://"+n.REST(), true
		sink, _, _, err := drain(t, cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		total += len(sink.Items())
	}
	if total != 300 {
		t.Errorf("the nodes one by one gave %d items", total)
	}
}

func TestStopsAtOnce(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 1, VBuckets: 4, Version: "7.0.5"})
	fill(t, c.Bucket("default"), 100)
	cfg := at(c)
	cfg.Threads, cfg.Options.Follow = 1, true
	s := mustNew(t, cfg)
	defer s.Close()
	streams, err := s.Streams(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	st := streams[0].(*stream)
	defer st.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	if err := st.Open(ctx, nil); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	time.AfterFunc(50*time.Millisecond, func() { cancel(stop) })
	b := pump.NewBatch(64 << 10)
	for err == nil {
		b.Reset()
		err = st.Read(ctx, b)
		_ = st.Acknowledge(ctx, b.Marks)
	}
	if !errors.Is(err, stop) || errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

// TestWithoutAllSeqnos: 3.0.0 and 3.0.1 do not know GET_ALL_VB_SEQNOS.
func TestWithoutAllSeqnos(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 2, VBuckets: 16, Version: "3.0.1"})
	b := c.Bucket("default")
	fill(t, b, 200)
	for _, n := range c.Nodes() {
		n.Inject(simcluster.Fault{Op: mcbp.OpGetAllVBSeqnos, VBucket: -1, Status: mcbp.StatusUnknown})
	}
	sink, _, marks, err := drain(t, at(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, sink, contents(b))
	if n, _ := completes(marks); n != 16 {
		t.Errorf("%d vbuckets are complete", n)
	}
	modern := sim(t, simcluster.Config{Nodes: 1, VBuckets: 4, Version: "6.6.5"})
	modern.Nodes()[0].Inject(simcluster.Fault{Op: mcbp.OpGetAllVBSeqnos, VBucket: -1, Status: mcbp.StatusUnknown})
	_, _, _, err = drain(t, at(modern), nil)
	want(t, err, "kv-status", "high seqnos")
}
