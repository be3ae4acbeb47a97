package dcp

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var versions = []string{"3.0.3", "4.0", "4.6", "6.0.4", "6.6.5", "7.0.5", "7.6"}

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
	l := sinktest.Lane(t, s)
	sinktest.Verdicts(t, sinktest.Write(t, l, item("k", 1, 5)), pump.Done)
	vb := c.Bucket("default").VBucketOf([]byte("k"))
	for _, n := range c.Nodes() {
		if st, _ := n.VBucket("default", vb); st == mcbp.VBReplica {
			n.SetVBucket("default", vb, mcbp.VBActive)
		}
	}
	if err := s.Check(t.Context()); pump.CodeOf(err) != "vbucket-state" {
		t.Errorf("check: %v", err)
	}
	b := sinktest.Write(t, l, item("k", 2, 6))
	sinktest.Verdicts(t, b, pump.Retry)
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
			l := sinktest.Lane(t, open(t, c, nil))
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
			b := sinktest.Write(t, l, batch...)
			for i := range b.Items {
				lost := status == mcbp.StatusRange // the whole connection is replaced
				if w := b.Verdict(i); (w == pump.Retry) != (lost || vb(c, &batch[i]) == 1) || w != pump.Retry && w != pump.Done {
					t.Errorf("item %d of vbucket %d is %s (%v)", i, vb(c, &batch[i]), w, b.Cause(i))
				}
			}
			if want == pump.Rejected {
				c.Nodes()[0].Inject(fault)
			}
			b = sinktest.Write(t, l, batch...)
			for i := range b.Items {
				if w := b.Verdict(i); w != pump.Done && (i != bad || w != want) || i == bad && w != want {
					t.Errorf("again: item %d is %s (%v)", i, w, b.Cause(i))
				}
			}
			b = sinktest.Write(t, l, batch...)
			if h := held(c); len(h) != 20 {
				t.Errorf("%d items are there", len(h))
			}
			for i := range b.Items {
				sinktest.Verdicts(t, b, pump.Done)
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
				l := sinktest.Lane(t, open(t, c, func(cfg *Config) { cfg.Options.Timeout = time.Second }))
				f := f
				f.Op, f.VBucket, f.Times = op, -1, 1
				c.Nodes()[0].Inject(f)
				batch := func(rev uint64) (items []pump.Item) {
					for i := range 20 {
						items = append(items, item(fmt.Sprint("k", i), rev, rev))
					}
					return items
				}
				b := sinktest.Write(t, l, batch(1)...)
				for i := range b.Items {
					if b.Verdict(i) != pump.Retry || pump.ClassOf(b.Cause(i)) != pump.ClassUnreachable || !strings.Contains(b.Cause(i).Error(), c.Nodes()[0].KV()) {
						t.Fatalf("item %d is %s (%v)", i, b.Verdict(i), b.Cause(i))
					}
				}
				for rev := uint64(2); rev < 4; rev++ {
					b = sinktest.Write(t, l, batch(rev)...)
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
	l := sinktest.Lane(t, s)
	sinktest.Verdicts(t, sinktest.Write(t, l, in("shop", "items", "a", 1), item("a", 2, 2), in("shop", "orders", "a", 3), in("shop", "items", "b", 4)), pump.Done, pump.Done, pump.Done, pump.Done)
	if n := count(c); n != 4 {
		t.Errorf("%d documents are there", n)
	}
	err := l.Write(context.Background(), sinktest.Batch(in("shop", "nosuch", "a", 1)))
	if pump.CodeOf(err) != "no-collection" || pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(err.Error(), "shop.nosuch") {
		t.Errorf("missing: %v", err)
	}
	// A new process, and a manifest that has grown since.
	l = sinktest.Lane(t, open(t, c, func(cfg *Config) { cfg.Options.CreateCollections, cfg.Options.MapCollections = true, "x.y=shop.more" }))
	for range 5 {
		again := sinktest.Batch(in("x", "y", "c", 5), in("shop", "items", "a", 6))
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
	sinktest.Verdicts(t, sinktest.Write(t, l, long), pump.Rejected)
}

// TestOwners: a recovery names the nodes of missing vbuckets, which the map gives to
// nobody, and a fresh replica takes collections that it never heard of.
func TestOwners(t *testing.T) {
	for _, v := range versions {
		c, err := simcluster.Start(simcluster.Config{Version: v, Nodes: 3, Buckets: []simcluster.BucketConfig{{Name: "default"}}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b := c.Bucket("default")
		if err := c.Failover(c.Nodes()[2]); err != nil {
			t.Fatal(err)
		}
		vb, key := b.Missing()[0], ""
		for i := 0; key == "" || b.VBucketOf([]byte(key)) != vb; i++ {
			key = fmt.Sprint("k", i)
		}
		s := open(t, c, func(cfg *Config) { cfg.VBuckets = []uint16{vb} })
		if err := s.Check(t.Context()); pump.CodeOf(err) != "no-owner" {
			t.Errorf("%s: nobody has it: %v", v, err)
		}
		for _, n := range c.Nodes()[:2] {
			n.SetVBucket("default", vb, mcbp.VBReplica)
		}
		for i, n := range c.Nodes()[:2] {
			owned := open(t, c, func(cfg *Config) { cfg.VBuckets, cfg.Owners = []uint16{vb}, map[uint16]string{vb: n.KV()} })
			if err := owned.Check(t.Context()); err != nil {
				t.Errorf("%s: check: %v", v, err)
			}
			gone := item(key, 1, 9)
			gone.Op, gone.Expiry = pump.Expiration, 1_600_000_000
			sinktest.Verdicts(t, sinktest.Write(t, sinktest.Lane(t, owned), gone, item(key, uint64(5+i), 0)), pump.Done, pump.Done)
			if d, ok := n.Doc("default", vb, []byte(key)); !ok || d.Rev != uint64(5+i) || badCAS(d.CAS) {
				t.Errorf("%s: holds %+v", v, d)
			}
		}
	}
}

// TestDenied: whoever may not push is told which privilege is missing.
func TestDenied(t *testing.T) {
	for _, op := range []mcbp.Opcode{mcbp.OpDcpOpen, mcbp.OpDcpAddStream} {
		c := replicas(t, simcluster.Config{Version: "6.6.5", Nodes: 1})
		c.Nodes()[0].Inject(simcluster.Fault{Op: op, VBucket: -1, Status: mcbp.StatusAccess})
		err := sinktest.Lane(t, open(t, c, nil)).Write(context.Background(), sinktest.Batch(item("k", 1, 1)))
		if pump.ClassOf(err) != pump.ClassDenied || !strings.Contains(pump.HintOf(err), "DcpConsumer") {
			t.Errorf("%s: got %v (%s)", mcbp.OpcodeName(op), err, pump.HintOf(err))
		}
	}
	c := replicas(t, simcluster.Config{Version: "6.6.5"})
	s := open(t, c, func(cfg *Config) { cfg.Password = "a wrong secret" })
	if _, err := s.Lanes(t.Context(), 1); pump.ClassOf(err) != pump.ClassDenied || strings.Contains(fmt.Sprintf("%v %+v", err, s), "wrong secret") {
		t.Errorf("got %v", err)
	}
	s.Close()
}

// TestOldServers: before 3.0 there is no DCP.
func TestOldServers(t *testing.T) {
	c := replicas(t, simcluster.Config{Version: "2.5.1"})
	err := sinktest.Lane(t, open(t, c, nil)).Write(context.Background(), sinktest.Batch(item("k", 1, 1)))
	if pump.CodeOf(err) != "no-dcp" || pump.ClassOf(err) != pump.ClassUsage {
		t.Errorf("got %v", err)
	}
}

// TestDatatypes: values, extended attributes and tombstones arrive bit for bit.
func TestDatatypes(t *testing.T) {
	x := []byte("\x00\x00\x00\x0d\x00\x00\x00\x09_sync\x00{}\x00")
	for _, v := range []string{"6.0.4", "6.6.5", "7.0.5"} {
		c := replicas(t, simcluster.Config{Version: v})
		l := sinktest.Lane(t, open(t, c, nil))
		var batch []pump.Item
		for key, dt := range map[string]uint8{"json": 1, "packed": 2, "xattr": 4, "plain": 0} {
			it := item(key, 4, 44)
			it.Datatype, it.Seqno = dt, 1
			if dt == 2 {
				it.Value = snappy.Encode(nil, it.Value)
			}
			if dt == 4 {
				it.Value = x
			}
			batch = append(batch, it)
		}
		b := sinktest.Write(t, l, batch...)
		have := held(c)
		for i, it := range batch {
			h := have[string(it.Key)]
			if b.Verdict(i) != pump.Done || h.Datatype != it.Datatype || string(h.Value) != string(it.Value) || h.CAS != 44 {
				t.Errorf("%s: %s is %s (%v): %+v", v, it.Key, b.Verdict(i), b.Cause(i), h)
			}
		}
	}
	c := replicas(t, simcluster.Config{Version: "4.0"})
	it := item("packed", 4, 44)
	it.Value, it.Datatype = snappy.Encode(nil, []byte("text")), 2
	odd, x4 := item("odd", 4, 44), item("x", 4, 44)
	odd.Datatype, x4.Datatype, x4.Value = 0x40, 4, x
	b := sinktest.Write(t, sinktest.Lane(t, open(t, c, nil)), it, odd, x4)
	sinktest.Verdicts(t, b, pump.Done, pump.Rejected, pump.Rejected)
	if pump.CodeOf(b.Cause(1)) != "item-datatype" || pump.CodeOf(b.Cause(2)) != "item-xattr" {
		t.Errorf("causes: %v, %v", b.Cause(1), b.Cause(2))
	}
	if h := held(c)["packed"]; string(h.Value) != "text" {
		t.Errorf("holds %+v", h)
	}
}

// TestLarge: more than a node's window goes through in one write.
func TestLarge(t *testing.T) {
	c := replicas(t, simcluster.Config{Version: "7.0.5", Nodes: 1, VBuckets: 4})
	l := sinktest.Lane(t, open(t, c, nil))
	var batch []pump.Item
	for i := range 40 {
		it := item(fmt.Sprint("k", i), 1, 5)
		it.Value = make([]byte, 1<<20)
		batch = append(batch, it)
	}
	b := sinktest.Write(t, l, batch...)
	for i := range b.Items {
		if b.Verdict(i) != pump.Done {
			t.Fatalf("item %d is %s (%v)", i, b.Verdict(i), b.Cause(i))
		}
	}
}

// TestChanges: the events lead from any manifest to any other.
func TestChanges(t *testing.T) {
	draw := func(rt *rapid.T, uid uint64) *cluster.Manifest {
		m := &cluster.Manifest{UID: uid}
		for id := range uint32(4) {
			if !rapid.Bool().Draw(rt, "scope") {
				continue
			}
			s := cluster.Scope{ID: id, Name: fmt.Sprint("s", id)}
			for c := range uint32(3) {
				if rapid.Bool().Draw(rt, "collection") {
					s.Collections = append(s.Collections, cluster.Collection{ID: 10*id + c, Name: fmt.Sprint("c", c), MaxTTL: c})
				}
			}
			m.Scopes = append(m.Scopes, s)
		}
		return m
	}
	rapid.Check(t, func(rt *rapid.T) {
		from, to := draw(rt, 1), draw(rt, 2)
		scopes, collections := map[uint32]bool{}, map[uint32]uint32{}
		for _, s := range from.Scopes {
			scopes[s.ID] = true
			for _, c := range s.Collections {
				collections[c.ID] = s.ID
			}
		}
		for _, e := range changes(from, to) {
			if e.ManifestUID != 2 {
				rt.Fatalf("%+v", e)
			}
			switch e.Event {
			case mcbp.EventCreateScope:
				scopes[e.Scope] = true
			case mcbp.EventDropScope:
				delete(scopes, e.Scope)
				for id, s := range collections {
					if s == e.Scope {
						rt.Fatalf("scope %d is dropped before collection %d", s, id)
					}
				}
			case mcbp.EventCreateCollection:
				if !scopes[e.Scope] {
					rt.Fatalf("collection %d comes before its scope", e.Collection)
				}
				collections[e.Collection] = e.Scope
			case mcbp.EventDropCollection:
				delete(collections, e.Collection)
			}
		}
		want := map[uint32]uint32{}
		for _, s := range to.Scopes {
			if !scopes[s.ID] {
				rt.Fatalf("scope %d is missing", s.ID)
			}
			for _, c := range s.Collections {
				want[c.ID] = s.ID
			}
		}
		if len(scopes) != len(to.Scopes) || !maps.Equal(want, collections) {
			rt.Fatalf("got %v and %v, want %v and %v", scopes, collections, to.Scopes, want)
		}
	})
}

// TestPlugin: the declared defaults decode, the scheme resolves.
func TestPlugin(t *testing.T) {
	r := &pump.Registry{}
	if err := pump.RegisterSink(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	for spec, ok := range map[string]bool{"dcp://host": true, "dcp://host:8091?timeout=5s": true, "dcp://host?timeout=0s": false, "dcp://host?map-collections=x": false} {
		s, err := r.Sink(context.Background(), spec, pump.Env{})
		if (err == nil) != ok || err != nil && pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%s: %v", spec, err)
		}
		if err == nil {
			s.Close()
		}
	}
}

// BenchmarkAppend is what an item costs until it is in a vbucket's snapshot.
func BenchmarkAppend(b *testing.B) {
	s := &stream{vb: 1, opaque: 1 << 24}
	it := pump.Item{Key: []byte("a-key-of-some-bytes"), Value: make([]byte, 256), CAS: 5, RevSeqno: 5}
	s.buf = make([]byte, 0, 2*snapshotBytes)
	b.ReportAllocs()
	b.SetBytes(256)
	for b.Loop() {
		if s.add(&it, it.CAS, true, true); len(s.buf) >= snapshotBytes {
			s.begin()
		}
	}
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

// TestWithoutAllSeqnos: 3.0.0 and 3.0.1 do not know GET_ALL_VB_SEQNOS.
func TestWithoutAllSeqnos(t *testing.T) {
	c := replicas(t, simcluster.Config{Version: "3.0.1", Nodes: 1, VBuckets: 4})
	c.Nodes()[0].Inject(simcluster.Fault{Op: mcbp.OpGetAllVBSeqnos, VBucket: -1, Status: mcbp.StatusUnknown})
	b := sinktest.Write(t, sinktest.Lane(t, open(t, c, nil)), item("a", 1, 1), item("b", 1, 2), item("c", 1, 3))
	sinktest.Verdicts(t, b, pump.Done, pump.Done, pump.Done)
	if len(held(c)) != 3 {
		t.Errorf("holds %v", held(c))
	}
}
