package dcp

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var versions = []string{"3.0.3", "4.0", "6.0.4", "6.6.5", "7.0.5"}

// replicas starts a cluster whose vbuckets are all replicas at the node that the
// map names.
func replicas(tb testing.TB, cfg simcluster.Config) *simcluster.Cluster {
	tb.Helper()
	c, err := simcluster.Start(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	for _, n := range c.Nodes() {
		for vb := range c.Bucket("default").Map() {
			if s, _ := n.VBucket("default", uint16(vb)); s == mcbp.VBActive {
				n.SetVBucket("default", uint16(vb), mcbp.VBReplica)
			}
		}
	}
	return c
}

// held returns what the cluster holds where the map says.
func held(c *simcluster.Cluster) map[string]pump.Item {
	out := map[string]pump.Item{}
	b := c.Bucket("default")
	for vb := range b.Map() {
		for _, n := range c.Nodes() {
			if n.KV() != b.Servers()[b.Map()[vb][0]] {
				continue
			}
			n.EachDoc("default", uint16(vb), func(d simcluster.Doc) bool {
				if !d.Deleted {
					out[string(d.Key)] = pump.Item{Key: d.Key, Value: d.Value, Flags: d.Flags, Expiry: d.Expiry, CAS: d.CAS, RevSeqno: d.Rev, VBucket: uint16(vb), Datatype: d.Datatype}
				}
				return true
			})
		}
	}
	return out
}

func open(tb testing.TB, c *simcluster.Cluster, change func(*Config)) *Sink {
	tb.Helper()
	cfg := Config{URL: c.URL(), Options: DefaultOptions()}
	cfg.Username, cfg.Password = "Administrator", "password"
	if change != nil {
		change(&cfg)
	}
	s, err := New(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func openLane(tb testing.TB, s *Sink) pump.Lane {
	tb.Helper()
	lanes, err := s.Lanes(context.Background(), 1)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, l := range lanes {
			l.Close()
		}
		s.Close()
	})
	return lanes[0]
}

func batchOf(items ...pump.Item) *pump.Batch {
	b := pump.NewBatch(0)
	b.Items = items
	b.StartWrite()
	return b
}

func write(tb testing.TB, l pump.Lane, items ...pump.Item) *pump.Batch {
	tb.Helper()
	b := batchOf(items...)
	if err := l.Write(context.Background(), b); err != nil {
		tb.Fatalf("write: %v", err)
	}
	return b
}

func verdicts(tb testing.TB, b *pump.Batch, want ...pump.Verdict) {
	tb.Helper()
	for i, w := range want {
		if b.Verdict(i) != w {
			tb.Errorf("item %d (%q) is %s (%v), want %s", i, b.Items[i].Key, b.Verdict(i), b.Cause(i), w)
		}
	}
}

func item(key string, rev, cas uint64) pump.Item {
	return pump.Item{VBucket: pump.NoVBucket, Key: []byte(key), Value: fmt.Appendf(nil, "value %d", rev), Flags: 7, CAS: cas, RevSeqno: rev}
}

func TestConformance(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			var c *simcluster.Cluster
			pumptest.TestSink(t, pumptest.SinkSuite{
				New: func(t *testing.T) pump.Sink {
					c = replicas(t, simcluster.Config{Version: v, Nodes: 3})
					return open(t, c, nil)
				},
				Read:    func(*testing.T) map[string]pump.Item { return held(c) },
				Compare: []string{"flags", "expiry", "cas", "rev"},
			})
		})
	}
}

// TestCheck: active vbuckets take no stream.
func TestCheck(t *testing.T) {
	c := replicas(t, simcluster.Config{Version: "6.6.5"})
	s := open(t, c, nil)
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := openLane(t, s)
	verdicts(t, write(t, l, item("k", 1, 5)), pump.Done)
	vb := c.Bucket("default").VBucketOf([]byte("k"))
	for _, n := range c.Nodes() {
		if st, _ := n.VBucket("default", vb); st == mcbp.VBReplica {
			n.SetVBucket("default", vb, mcbp.VBActive)
		}
	}
	if err := s.Check(t.Context()); pump.CodeOf(err) != "vbucket-state" {
		t.Errorf("check: %v", err)
	}
	b := write(t, l, item("k", 2, 6))
	verdicts(t, b, pump.Retry)
	if code := pump.CodeOf(b.Cause(0)); code != "not-my-vbucket" && code != "vbucket-state" {
		t.Errorf("cause: %v", b.Cause(0))
	}
	if d, _ := c.Bucket("default").Get([]byte("k")); d.Rev != 1 {
		t.Errorf("an active vbucket was written: %+v", d)
	}
}

func vb(c *simcluster.Cluster, it *pump.Item) uint16 { return c.Bucket("default").VBucketOf(it.Key) }

// TestRefused: one refused item costs the others nothing but another round, and
// is found.
func TestRefused(t *testing.T) {
	for status, want := range map[mcbp.Status]pump.Verdict{mcbp.StatusTooBig: pump.Rejected, mcbp.StatusInvalid: pump.Rejected, mcbp.StatusTmpFail: pump.Done, mcbp.StatusRange: pump.Done} {
		t.Run(mcbp.StatusName(status), func(t *testing.T) {
			c := replicas(t, simcluster.Config{Version: "6.6.5", Nodes: 1, VBuckets: 2})
			l := openLane(t, open(t, c, nil))
			var batch []pump.Item
			bad := -1
			for i := range 20 {
				batch = append(batch, item(fmt.Sprint("k", i), 1, uint64(i)+1))
				if bad < 0 && i > 6 && vb(c, &batch[i]) == 1 {
					bad = i
				}
			}
			before := 0
			for i := range bad {
				if vb(c, &batch[i]) == 1 {
					before++
				}
			}
			fault := simcluster.Fault{Op: mcbp.OpDcpMutation, VBucket: 1, After: before, Times: 1, Status: status}
			c.Nodes()[0].Inject(fault)
			b := write(t, l, batch...)
			for i := range b.Items {
				lost := status == mcbp.StatusRange // the whole connection is replaced
				if w := b.Verdict(i); (w == pump.Retry) != (lost || vb(c, &batch[i]) == 1) || w != pump.Retry && w != pump.Done {
					t.Errorf("item %d of vbucket %d is %s (%v)", i, vb(c, &batch[i]), w, b.Cause(i))
				}
			}
			if want == pump.Rejected {
				c.Nodes()[0].Inject(fault)
			}
			b = write(t, l, batch...)
			for i := range b.Items {
				if w := b.Verdict(i); w != pump.Done && (i != bad || w != want) || i == bad && w != want {
					t.Errorf("again: item %d is %s (%v)", i, w, b.Cause(i))
				}
			}
			b = write(t, l, batch...)
			if h := held(c); len(h) != 20 {
				t.Errorf("%d items are there", len(h))
			}
			for i := range b.Items {
				verdicts(t, b, pump.Done)
				if b.Verdict(i) != pump.Done {
					t.Errorf("third time: item %d is %s", i, b.Verdict(i))
				}
			}
		})
	}
}

// TestLost: a connection that ends or falls silent leaves everything unknown, and
// the next write goes on where the vbuckets stand.
func TestLost(t *testing.T) {
	for name, f := range map[string]simcluster.Fault{
		"close":   {Action: simcluster.Close},
		"stall":   {Action: simcluster.Stall},
		"dropped": {Action: simcluster.DropAfterEffect},
	} {
		for _, op := range []mcbp.Opcode{mcbp.OpDcpMutation, mcbp.OpDcpAddStream, mcbp.OpDcpNoop, mcbp.OpGetAllVBSeqnos} {
			t.Run(name+" at "+mcbp.OpcodeName(op), func(t *testing.T) {
				c := replicas(t, simcluster.Config{Version: "7.0.5", Nodes: 1, VBuckets: 4})
				l := openLane(t, open(t, c, func(cfg *Config) { cfg.Options.Timeout = time.Second }))
				f := f
				f.Op, f.VBucket, f.Times = op, -1, 1
				c.Nodes()[0].Inject(f)
				batch := func(rev uint64) (items []pump.Item) {
					for i := range 20 {
						items = append(items, item(fmt.Sprint("k", i), rev, rev))
					}
					return items
				}
				b := write(t, l, batch(1)...)
				for i := range b.Items {
					if b.Verdict(i) != pump.Retry || pump.ClassOf(b.Cause(i)) != pump.ClassUnreachable || !strings.Contains(b.Cause(i).Error(), c.Nodes()[0].KV()) {
						t.Fatalf("item %d is %s (%v)", i, b.Verdict(i), b.Cause(i))
					}
				}
				for rev := uint64(2); rev < 4; rev++ {
					b = write(t, l, batch(rev)...)
					for i := range b.Items {
						if b.Verdict(i) != pump.Done {
							t.Fatalf("item %d is %s (%v)", i, b.Verdict(i), b.Cause(i))
						}
					}
				}
				for k, it := range held(c) {
					if it.RevSeqno != 3 {
						t.Errorf("%s has rev %d", k, it.RevSeqno)
					}
				}
			})
		}
	}
}

// TestCollections: a fresh vbucket is told the whole manifest before the first item
// of a named collection, once, and of changes later.
func TestCollections(t *testing.T) {
	c := replicas(t, simcluster.Config{Version: "7.0.5", Nodes: 1, VBuckets: 2})
	b := c.Bucket("default")
	if _, err := b.CreateScope("shop"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"items", "orders"} {
		if _, err := b.CreateCollection("shop", name, 0); err != nil {
			t.Fatal(err)
		}
	}
	in := func(scope, name, key string, rev uint64) pump.Item {
		it := item(key, rev, rev)
		it.Collection = &pump.Collection{Scope: scope, Name: name}
		return it
	}
	s := open(t, c, nil)
	l := openLane(t, s)
	verdicts(t, write(t, l, in("shop", "items", "a", 1), item("a", 2, 2), in("shop", "orders", "a", 3), in("shop", "items", "b", 4)), pump.Done, pump.Done, pump.Done, pump.Done)
	if n := count(c); n != 4 {
		t.Errorf("%d documents are there", n)
	}
	err := l.Write(context.Background(), batchOf(in("shop", "nosuch", "a", 1)))
	if pump.CodeOf(err) != "no-collection" || pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(err.Error(), "shop.nosuch") {
		t.Errorf("missing: %v", err)
	}
	// A new process, and a manifest that has grown since.
	l = openLane(t, open(t, c, func(cfg *Config) { cfg.Options.CreateCollections, cfg.Options.MapCollections = true, "x.y=shop.more" }))
	for range 5 {
		again := batchOf(in("x", "y", "c", 5), in("shop", "items", "a", 6))
		if err := l.Write(context.Background(), again); err != nil {
			t.Fatal(err)
		}
		if again.Verdict(0) == pump.Done && again.Verdict(1) == pump.Done {
			break
		}
	}
	if n := count(c); n != 5 {
		t.Errorf("%d documents are there", n)
	}
	long := in("shop", "items", strings.Repeat("k", 247), 1)
	verdicts(t, write(t, l, long), pump.Rejected)
}

func count(c *simcluster.Cluster) (n int) {
	for vb := range c.Bucket("default").Map() {
		for _, node := range c.Nodes() {
			node.EachDoc("default", uint16(vb), func(d simcluster.Doc) bool {
				if !d.Deleted {
					n++
				}
				return true
			})
		}
	}
	return n
}
