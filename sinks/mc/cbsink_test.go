package mc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/couchbase/gomemcached/client"

	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

var versions = []string{"2.5.1", "3.0.3", "4.0", "4.6", "6.0.4", "6.6.5", "7.0.5", "7.6"}

func openCB(tb testing.TB, c *simcluster.Cluster, change func(*CBConfig)) *CBSink {
	tb.Helper()
	cfg := CBConfig{URL: c.URL(), Options: DefaultCBOptions()}
	cfg.Username, cfg.Password = "Administrator", "password"
	if change != nil {
		change(&cfg)
	}
	s, err := NewCB(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func meta(key, value string, rev, cas uint64) pump.Item {
	it := item(key, value)
	it.RevSeqno, it.CAS = rev, cas
	return it
}

func deletion(key string, rev, cas uint64) pump.Item {
	it := meta(key, "", rev, cas)
	it.Op = pump.Deletion
	return it
}

func held(b *simcluster.Bucket) map[string]pump.Item {
	out := map[string]pump.Item{}
	b.Each(func(vb uint16, d simcluster.Doc) bool {
		if !d.Deleted {
			out[string(d.Key)] = pump.Item{Key: d.Key, Value: d.Value, Flags: d.Flags, Expiry: d.Expiry, CAS: d.CAS, RevSeqno: d.Rev, VBucket: vb}
		}
		return true
	})
	return out
}

func TestCBSinkConformance(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			var c *simcluster.Cluster
			pumptest.TestSink(t, pumptest.SinkSuite{
				New: func(t *testing.T) pump.Sink {
					c = sinktest.Cluster(t, simcluster.Config{Version: v, Nodes: 3})
					return openCB(t, c, nil)
				},
				Read:    func(*testing.T) map[string]pump.Item { return held(c.Bucket("default")) },
				Compare: []string{"flags", "expiry", "cas", "rev"},
			})
		})
	}
}

// TestCBSinkAgain copies twice: the second run must report done, newer items of
// the destination stay and are skipped, older ones are replaced.
func TestCBSinkAgain(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			c := sinktest.Cluster(t, simcluster.Config{Version: v})
			l := sinktest.Lane(t, openCB(t, c, nil))
			batch := func() []pump.Item {
				it := meta("flags", "v", 3, 1<<40)
				it.Flags, it.Expiry = 0xdeadbeef, uint32(time.Now().Unix())+9999
				return []pump.Item{it, meta("a", "v", 1, 1<<40), deletion("gone", 4, 1<<41), deletion("never", 1, 1<<41)}
			}
			sinktest.Verdicts(t, sinktest.Write(t, l, batch()...), pump.Done, pump.Done, pump.Done, pump.Done)
			sinktest.Verdicts(t, sinktest.Write(t, l, batch()...), pump.Done, pump.Done, pump.Done, pump.Done)
			b := sinktest.Write(t, l, meta("a", "older", 1, 1<<39), meta("a", "newer", 2, 1<<39), deletion("a", 1, 5), deletion("flags", 4, 5))
			sinktest.Verdicts(t, b, pump.Skipped, pump.Done, pump.Skipped, pump.Done)
			if pump.CodeOf(b.Cause(0)) != "newer" {
				t.Errorf("cause: %v", b.Cause(0))
			}
			h := held(c.Bucket("default"))
			if len(h) != 1 || string(h["a"].Value) != "newer" || h["a"].RevSeqno != 2 || h["a"].CAS != 1<<39 {
				t.Errorf("the destination holds %v", h)
			}
		})
	}
}

// TestCBSinkForce: without conflict resolution the source's item always wins.
func TestCBSinkForce(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "4.0"})
	l := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Options.ConflictResolution = false }))
	sinktest.Verdicts(t, sinktest.Write(t, l, meta("a", "new", 9, 1<<40), meta("a", "old", 2, 1<<39)), pump.Done, pump.Done)
	if d, _ := c.Bucket("default").Get([]byte("a")); string(d.Value) != "old" || d.Rev != 2 {
		t.Errorf("holds %+v", d)
	}
	for _, n := range c.Nodes() {
		n.Inject(simcluster.Fault{Op: mcbp.OpSetQWithMeta, VBucket: -1, Status: mcbp.StatusExists})
	}
	b := sinktest.Write(t, l, meta("a", "v", 1, 1))
	sinktest.Verdicts(t, b, pump.Rejected)
	if pump.CodeOf(b.Cause(0)) != "item-cas" {
		t.Errorf("cause: %v", b.Cause(0))
	}
}

// TestCBSinkWithoutCAS: servers refuse CAS 0 (4.0 with the status that says
// "newer"), so such items are written plainly when nothing newer is there.
func TestCBSinkWithoutCAS(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			c := sinktest.Cluster(t, simcluster.Config{Version: v})
			b := c.Bucket("default")
			for _, d := range []simcluster.Doc{
				{Key: []byte("older"), Value: []byte("dst"), Rev: 2, CAS: 77},
				{Key: []byte("newer"), Value: []byte("dst"), Rev: 9, CAS: 77},
				{Key: []byte("dead"), Deleted: true, Rev: 3, CAS: 77},
				{Key: []byte("doomed"), Value: []byte("dst"), Rev: 3, CAS: 77},
			} {
				if err := b.Store(d); err != nil {
					t.Fatal(err)
				}
			}
			l := sinktest.Lane(t, openCB(t, c, nil))
			got := sinktest.Write(t, l, meta("older", "src", 5, 0), meta("newer", "src", 5, 0), meta("dead", "src", 5, 0),
				meta("absent", "src", 5, 0), deletion("doomed", 5, 0), deletion("nowhere", 5, 0), meta("newer", "src2", 6, 0))
			sinktest.Verdicts(t, got, pump.Done, pump.Skipped, pump.Done, pump.Done, pump.Done, pump.Done, pump.Skipped)
			h := held(b)
			for key, want := range map[string]string{"older": "src", "newer": "dst", "dead": "src", "absent": "src"} {
				if string(h[key].Value) != want {
					t.Errorf("%s is %q, want %q", key, h[key].Value, want)
				}
			}
			if len(h) != 4 {
				t.Errorf("the destination holds %d keys", len(h))
			}
			// Neither CAS nor revision: plain items.
			sinktest.Verdicts(t, sinktest.Write(t, l, item("plain", "1"), item("plain", "2"), deletion("absent", 0, 0)), pump.Done, pump.Done, pump.Done)
			if d, ok := b.Get([]byte("plain")); !ok || string(d.Value) != "2" || d.CAS == 0 {
				t.Errorf("plain: %+v", d)
			}
		})
	}
}

// TestCBSinkOrder: an item without CAS that must be written in a second round
// does not overtake later states of its key.
func TestCBSinkOrder(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "4.0"})
	l := sinktest.Lane(t, openCB(t, c, nil))
	sinktest.Verdicts(t, sinktest.Write(t, l, meta("k", "first", 9, 0), item("k", "second")), pump.Done, pump.Done)
	if d, _ := c.Bucket("default").Get([]byte("k")); string(d.Value) != "second" {
		t.Errorf("the key holds %q", d.Value)
	}
	sinktest.Verdicts(t, sinktest.Write(t, l, meta("m", "first", 9, 0), meta("m", "second", 9, 0)), pump.Done, pump.Done)
	if d, _ := c.Bucket("default").Get([]byte("m")); string(d.Value) != "second" {
		t.Errorf("the key holds %q", d.Value)
	}
}

func TestCBSinkAdd(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "4.0"})
	l := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Options.Operation = "add" }))
	sinktest.Verdicts(t, sinktest.Write(t, l, meta("k", "1", 1, 5), item("p", "1"), meta("z", "1", 1, 0)), pump.Done, pump.Done, pump.Done)
	b := sinktest.Write(t, l, meta("k", "2", 9, 9), item("p", "2"), meta("z", "2", 9, 0), deletion("k", 99, 99))
	sinktest.Verdicts(t, b, pump.Skipped, pump.Skipped, pump.Skipped, pump.Skipped)
	for key, it := range held(c.Bucket("default")) {
		if string(it.Value) != "1" {
			t.Errorf("%s was overwritten", key)
		}
	}
}

func TestCBSinkPlain(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{})
	for _, n := range c.Nodes() {
		n.Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpSetQWithMeta, mcbp.OpDeleteQWithMeta}, VBucket: -1, Status: mcbp.StatusUnknown})
	}
	l := sinktest.Lane(t, openCB(t, c, nil))
	b := sinktest.Batch(meta("k", "v", 1, 5))
	err := l.Write(context.Background(), b)
	if pump.CodeOf(err) != "no-with-meta" || !strings.Contains(pump.HintOf(err), "with-meta=false") || b.Verdict(0) != pump.Unconfirmed {
		t.Errorf("got %v", err)
	}
	l = sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Options.WithMeta = false }))
	sinktest.Verdicts(t, sinktest.Write(t, l, meta("k", "v", 1, 5), meta("x", "v", 1, 5), deletion("x", 2, 6)), pump.Done, pump.Done, pump.Done)
	if h := held(c.Bucket("default")); len(h) != 1 || string(h["k"].Value) != "v" || h["k"].CAS == 5 {
		t.Errorf("holds %v", h)
	}
}

func TestCBSinkStates(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{})
	key := "k"
	vb := c.Bucket("default").VBucketOf([]byte(key))
	var owner *simcluster.Node
	for _, n := range c.Nodes() {
		if s, _ := n.VBucket("default", vb); s == mcbp.VBActive {
			owner = n
		}
	}
	s := openCB(t, c, nil)
	if err := s.Check(t.Context()); err != nil {
		t.Fatalf("check: %v", err)
	}
	for _, state := range []mcbp.VBState{mcbp.VBPending, mcbp.VBReplica, mcbp.VBDead, mcbp.VBAbsent} {
		l := sinktest.Lane(t, openCB(t, c, nil))
		sinktest.Verdicts(t, sinktest.Write(t, l, item(key, "before")), pump.Done)
		owner.SetVBucket("default", vb, state)
		// On a new connection the state is known before anything is sent: a pending
		// vbucket would park it.
		fresh := sinktest.Lane(t, openCB(t, c, nil))
		b := sinktest.Write(t, fresh, meta(key, "v", 9, 9), item("other", "v"))
		if b.Verdict(0) != pump.Retry || pump.CodeOf(b.Cause(0)) != "vbucket-state" || !strings.Contains(b.Cause(0).Error(), state.String()) {
			t.Errorf("%s: %s, %v", state, b.Verdict(0), b.Cause(0))
		}
		if b.Verdict(1) != pump.Done {
			t.Errorf("%s: the other item is %s", state, b.Verdict(1))
		}
		err := openCB(t, c, nil).Check(t.Context())
		if pump.CodeOf(err) != "vbucket-state" || !strings.Contains(err.Error(), fmt.Sprintf("vbucket %d is %s", vb, state)) {
			t.Errorf("%s: check says %v", state, err)
		}
		other := openCB(t, c, func(cfg *CBConfig) { cfg.VBuckets = []uint16{(vb + 1) % 64} })
		if err := other.Check(t.Context()); err != nil {
			t.Errorf("%s: check of another vbucket says %v", state, err)
		}
		other.Close()
		owner.SetVBucket("default", vb, mcbp.VBActive)
		sinktest.Verdicts(t, sinktest.Write(t, fresh, item(key, "v")), pump.Done)
	}
	s.Close()
}

// TestCBSinkOwners: a recovery says where missing vbuckets are, and forces items
// into them while they are replica or pending.
func TestCBSinkOwners(t *testing.T) {
	for _, v := range versions {
		c := sinktest.Cluster(t, simcluster.Config{Version: v, Nodes: 3, Buckets: []simcluster.BucketConfig{{Name: "default"}}})
		if err := c.Failover(c.Nodes()[2]); err != nil {
			t.Fatal(err)
		}
		b := c.Bucket("default")
		vb, key := b.Missing()[0], ""
		for i := 0; key == "" || b.VBucketOf([]byte(key)) != vb; i++ {
			key = fmt.Sprint("k", i)
		}
		n := c.Nodes()[1]
		owned := func(cfg *CBConfig) { cfg.VBuckets, cfg.Owners = []uint16{vb}, map[uint16]string{vb: n.KV()} }
		forced := func(cfg *CBConfig) { owned(cfg); cfg.Force = true }
		for i, state := range []mcbp.VBState{mcbp.VBReplica, mcbp.VBPending, mcbp.VBActive} {
			n.SetVBucket("default", vb, state)
			if err := openCB(t, c, owned).Check(t.Context()); (err == nil) != (state == mcbp.VBActive) {
				t.Errorf("%s: check without force says %v", state, err)
			}
			s := openCB(t, c, forced)
			if err := s.Check(t.Context()); err != nil {
				t.Errorf("%s: check says %v", state, err)
			}
			cas := uint64(100 - i) // each older than what is there
			sinktest.Verdicts(t, sinktest.Write(t, sinktest.Lane(t, s), meta(key, "v", cas, cas)), pump.Done)
			if d, ok := n.Doc("default", vb, []byte(key)); !ok || d.CAS != cas {
				t.Errorf("%s: holds %+v", state, d)
			}
			// A plain request would be refused or, if pending, parked for ever.
			if b := sinktest.Write(t, sinktest.Lane(t, s), item(key, "plain")); b.Verdict(0) == pump.Retry || b.Verdict(0) == pump.Skipped {
				t.Errorf("%s: plain is %s: %v", state, b.Verdict(0), b.Cause(0))
			}
		}
	}
}

// TestCBSinkFailover fails a node over between two writes: the map is read
// again, and the promoted replicas get the items.
func TestCBSinkFailover(t *testing.T) {
	for _, v := range []string{"2.5.1", "6.6.5", "7.0.5"} {
		t.Run(v+" of the node that was named", func(t *testing.T) { failover(t, v, 0) })
		t.Run(v+" of another", func(t *testing.T) { failover(t, v, 2) })
	}
}

// TestCBSinkFailedOverAlive: a node that was failed over and lives on has the bucket
// no more; its items go to where the replicas were.
func TestCBSinkFailedOverAlive(t *testing.T) {
	for _, v := range []string{"2.5.1", "4.0", "6.6.5", "7.0.5"} {
		c := sinktest.Cluster(t, simcluster.Config{Version: v, Nodes: 3})
		l := sinktest.Lane(t, openCB(t, c, nil))
		if n := count(sinktest.Write(t, l, items("k", 100, 20)...), pump.Done); n != 100 {
			t.Fatalf("%s: %d done", v, n)
		}
		if err := c.Failover(c.Nodes()[1]); err != nil {
			t.Fatal(err)
		}
		done := 0
		for range 3 {
			done = count(sinktest.Write(t, l, items("k", 100, 20)...), pump.Done)
		}
		if done != 100 {
			t.Errorf("%s: %d done after the failover", v, done)
		}
	}
}

func failover(t *testing.T, version string, which int) {
	c := sinktest.Cluster(t, simcluster.Config{Version: version, Nodes: 3})
	l := sinktest.Lane(t, openCB(t, c, nil))
	all := func(rev uint64) []pump.Item {
		batch := items("k", 200, 20)
		for i := range batch {
			batch[i].CAS, batch[i].RevSeqno = 100*rev, rev
		}
		return batch
	}
	if n := count(sinktest.Write(t, l, all(1)...), pump.Done); n != 200 {
		t.Fatalf("%d done", n)
	}
	victim := c.Nodes()[which]
	victim.Kill()
	if err := c.Failover(victim); err != nil {
		t.Fatal(err)
	}
	b := sinktest.Write(t, l, all(2)...)
	if n := count(b, pump.Retry); n == 0 || n == 200 || n+count(b, pump.Done) != 200 {
		t.Fatalf("%d to retry, %d done", n, count(b, pump.Done))
	}
	for i := range b.Items {
		if b.Verdict(i) == pump.Retry && pump.ClassOf(b.Cause(i)) != pump.ClassUnreachable {
			t.Fatalf("cause: %v", b.Cause(i))
		}
	}
	if n := count(sinktest.Write(t, l, all(2)...), pump.Done); n != 200 {
		t.Errorf("%d done after the failover", n)
	}
	for key, it := range held(c.Bucket("default")) {
		if it.RevSeqno != 2 {
			t.Errorf("%s has rev %d", key, it.RevSeqno)
		}
	}
}

func TestCBSinkMissing(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Buckets: []simcluster.BucketConfig{{Name: "default"}}})
	if err := c.Failover(c.Nodes()[1]); err != nil {
		t.Fatal(err)
	}
	missing := c.Bucket("default").Missing()
	s := openCB(t, c, nil)
	if err := s.Check(t.Context()); pump.CodeOf(err) != "no-owner" || !strings.Contains(pump.HintOf(err), "cbrecovery") {
		t.Errorf("check: %v", err)
	}
	l := sinktest.Lane(t, s)
	for i := range 1000 {
		key := fmt.Sprint("k", i)
		if vb := c.Bucket("default").VBucketOf([]byte(key)); vb == missing[0] {
			err := l.Write(context.Background(), sinktest.Batch(item(key, "v")))
			if pump.CodeOf(err) != "no-owner" || !strings.Contains(err.Error(), fmt.Sprintf("vbucket %d", vb)) {
				t.Errorf("write: %v", err)
			}
			return
		}
	}
	t.Error("no key of a missing vbucket")
}

func TestCBSinkFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		fault simcluster.Fault
		class pump.Class
		code  string
	}{
		"tmpfail":   {simcluster.Fault{Status: mcbp.StatusTmpFail}, pump.ClassFailed, "destination-busy"},
		"enomem":    {simcluster.Fault{Status: mcbp.StatusNoMemory}, pump.ClassFailed, "destination-full"},
		"moved":     {simcluster.Fault{Status: mcbp.StatusNotMyVBucket}, pump.ClassFailed, "not-my-vbucket"},
		"gone":      {simcluster.Fault{Status: mcbp.StatusNoBucket}, pump.ClassFailed, "node-gone"},
		"cut":       {simcluster.Fault{Action: simcluster.CutMidFrame, Status: mcbp.StatusTmpFail}, pump.ClassUnreachable, "destination-lost"},
		"close":     {simcluster.Fault{Action: simcluster.Close}, pump.ClassUnreachable, "destination-lost"},
		"stall":     {simcluster.Fault{Action: simcluster.Stall}, pump.ClassUnreachable, "destination-lost"},
		"effect":    {simcluster.Fault{Action: simcluster.DropAfterEffect}, pump.ClassUnreachable, "destination-lost"},
		"fence cut": {simcluster.Fault{Op: mcbp.OpNoop, Action: simcluster.CutMidFrame}, pump.ClassUnreachable, "destination-lost"},
	} {
		t.Run(name, func(t *testing.T) {
			c := sinktest.Cluster(t, simcluster.Config{Nodes: 1})
			l := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Options.Timeout = 300 * time.Millisecond }))
			f := tc.fault
			f.VBucket, f.Times = -1, 1
			if f.Op == 0 {
				f.Op, f.After = mcbp.OpSetQWithMeta, 5
			}
			c.Nodes()[0].Inject(f)
			batch := make([]pump.Item, 20)
			for i := range batch {
				batch[i] = meta(fmt.Sprint("k", i), "v", 1, 1<<40)
			}
			b := sinktest.Write(t, l, batch...)
			if n := count(b, pump.Retry); n == 0 || n+count(b, pump.Done) != 20 || f.Action == 0 && n != 1 {
				t.Fatalf("%d to retry, %d done", n, count(b, pump.Done))
			}
			for i := range b.Items {
				if b.Verdict(i) == pump.Retry {
					if w := b.Cause(i); pump.ClassOf(w) != tc.class || pump.CodeOf(w) != tc.code || !strings.Contains(w.Error(), c.Nodes()[0].KV()) {
						t.Fatalf("cause: %v (%s)", w, pump.CodeOf(w))
					}
				}
			}
			if n := count(sinktest.Write(t, l, batch...), pump.Done); n != 20 {
				t.Errorf("%d done in the second write", n)
			}
			if h := held(c.Bucket("default")); len(h) != 20 {
				t.Errorf("%d keys", len(h))
			}
		})
	}
}

func TestCBSinkThroughTheEngine(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Nodes: 3, Version: "3.0.3"})
	for _, n := range c.Nodes() {
		n.Inject(simcluster.Fault{Op: mcbp.OpSetQWithMeta, VBucket: -1, After: 100, Times: 50, Status: mcbp.StatusTmpFail})
		n.Inject(simcluster.Fault{Op: mcbp.OpSetQWithMeta, VBucket: -1, After: 1000, Times: 2, Action: simcluster.Close})
	}
	all := items("e", 10_000, 30)
	for i := range all {
		all[i].CAS, all[i].RevSeqno = uint64(i)+1, 7
	}
	src := &pumptest.MemSource{Parts: [][]pump.Item{all[:5000], all[5000:]}, BatchSize: 500}
	r, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: openCB(t, c, nil), Settings: pump.DefaultSettings(), Scribble: true})
	if err != nil || r.Done != 10_000 {
		t.Fatalf("done %d: %v", r.Done, err)
	}
	h := held(c.Bucket("default"))
	for i := range all {
		if got := h[string(all[i].Key)]; got.CAS != all[i].CAS || got.RevSeqno != 7 || got.Flags != all[i].Flags {
			t.Fatalf("%s: %+v", all[i].Key, got)
		}
	}
}

func TestCBSinkUsage(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{VBuckets: 16, Buckets: []simcluster.BucketConfig{
		{Name: "default"}, {Name: "mc", Type: "memcached"}, {Name: "locked", Password: "secret-word"}}})
	if _, err := openCB(t, c, func(cfg *CBConfig) { cfg.Bucket = "mc" }).Lanes(t.Context(), 1); pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(pump.HintOf(err), "memcached://") {
		t.Errorf("memcached bucket: %v", err)
	}
	if _, err := openCB(t, c, func(cfg *CBConfig) { cfg.Password = "wrong-word" }).Lanes(t.Context(), 1); pump.ClassOf(err) != pump.ClassDenied || strings.Contains(err.Error(), "wrong-word") {
		t.Errorf("wrong password: %v", err)
	}
	if err := openCB(t, c, func(cfg *CBConfig) { cfg.Bucket = "locked" }).Check(t.Context()); err != nil {
		t.Errorf("bucket with a password: %v", err)
	}
	if err := openCB(t, c, func(cfg *CBConfig) { cfg.VBuckets = []uint16{16} }).Check(t.Context()); pump.CodeOf(err) != "no-vbucket" {
		t.Errorf("vbucket 16 of 16: %v", err)
	}
	if text := fmt.Sprintf("%+v", openCB(t, c, func(cfg *CBConfig) { cfg.Password = "secret-word" })); strings.Contains(text, "secret-word") {
		t.Errorf("the sink prints its password: %s", text)
	}
	c.Nodes()[0].Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpSASLAuth, mcbp.OpSASLStep}, VBucket: -1, Status: mcbp.StatusAuthError})
	if err := openCB(t, c, func(cfg *CBConfig) { cfg.Bucket = "locked" }).Check(t.Context()); pump.ClassOf(err) != pump.ClassDenied {
		t.Errorf("refused login: %v", err)
	}

	l := sinktest.Lane(t, openCB(t, c, nil))
	wrong := item("k", "v")
	wrong.VBucket = (c.Bucket("default").VBucketOf([]byte("k")) + 1) % 16
	err := l.Write(context.Background(), sinktest.Batch(wrong))
	if pump.CodeOf(err) != "vbucket-mismatch" || pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(pump.HintOf(err), "rehash") {
		t.Errorf("an item of another vbucket: %v", err)
	}
	re := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Options.Rehash = true }))
	sinktest.Verdicts(t, sinktest.Write(t, re, wrong), pump.Done)
	packed := item("packed", "x")
	packed.Datatype = mcbp.DatatypeSnappy
	sinktest.Verdicts(t, sinktest.Write(t, l, packed, item("", ""), item(strings.Repeat("k", 251), "")), pump.Rejected, pump.Rejected, pump.Rejected)
}

func TestCBSinkCancelled(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Nodes: 1})
	c.Nodes()[0].Inject(simcluster.Fault{Op: mcbp.OpNoop, VBucket: -1, Action: simcluster.Stall})
	l := sinktest.Lane(t, openCB(t, c, nil))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for c.Nodes()[0].Writes() == 0 { // the write has arrived
			if ctx.Err() != nil {
				return
			}
			runtime.Gosched()
		}
		cancel()
	}()
	b := sinktest.Batch(meta("k", "v", 1, 1))
	if err := l.Write(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if b.Verdict(0) != pump.Unconfirmed {
		t.Errorf("the item is %s", b.Verdict(0))
	}
	cancel()
}

func TestCBSinkLanes(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Nodes: 3})
	for _, want := range []int{0, 1, 2, 3, 5, 8, 64, 1000} {
		s := openCB(t, c, nil)
		lanes, err := s.Lanes(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		if want == 0 && len(lanes) != 9 || want > 0 && len(lanes) != min(want, 64) {
			t.Errorf("want %d: %d lanes", want, len(lanes))
		}
		v := s.view.Load()
		nodeOf, used := map[int]int{}, map[int]bool{}
		for vb := range uint16(64) {
			lane := s.laneOf[vb]
			if lane < 0 || lane >= len(lanes) {
				t.Fatalf("want %d: vbucket %d has lane %d", want, vb, lane)
			}
			used[lane] = true
			if have, ok := nodeOf[lane]; ok && have != v.owner[vb] && len(lanes) >= 3 {
				t.Errorf("want %d: lane %d talks to two nodes", want, lane)
			}
			nodeOf[lane] = v.owner[vb]
		}
		if len(used) != len(lanes) && len(lanes) < 64 {
			t.Errorf("want %d: %d of %d lanes are used", want, len(used), len(lanes))
		}
		s.Close()
	}
}

// TestCBSinkReadBack reads what was written with somebody else's client.
func TestCBSinkReadBack(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Nodes: 1, VBuckets: 4})
	l := sinktest.Lane(t, openCB(t, c, nil))
	it := meta("key", "value", 3, 1234567)
	it.Flags = 0xcafe
	sinktest.Verdicts(t, sinktest.Write(t, l, it), pump.Done)
	client, err := memcached.Connect("tcp", c.Nodes()[0].KV())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	res, err := client.Get(c.Bucket("default").VBucketOf([]byte("key")), "key")
	if err != nil || string(res.Body) != "value" || res.Cas != 1234567 || binary.BigEndian.Uint32(res.Extras) != 0xcafe {
		t.Errorf("%v, %v", res, err)
	}
}
