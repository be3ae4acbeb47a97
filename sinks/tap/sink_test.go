package tap

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
	"github.com/cbpump/cbpump/sinks/internal/pipe"
	"github.com/cbpump/cbpump/sinks/mc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var versions = []string{"2.5.1", "3.0.3", "4.0"}

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
	return pump.Item{Key: []byte(key), Value: []byte("value of " + key), VBucket: pump.NoVBucket, RevSeqno: rev, CAS: cas}
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

func TestConformance(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			var c *simcluster.Cluster
			pumptest.TestSink(t, pumptest.SinkSuite{
				New: func(t *testing.T) pump.Sink {
					c = sinktest.Cluster(t, simcluster.Config{Version: v, Nodes: 3})
					return open(t, c, nil)
				},
				Read:    func(*testing.T) map[string]pump.Item { return held(c.Bucket("default")) },
				Compare: []string{"flags", "expiry", "cas", "rev"},
			})
		})
	}
}

// owner returns the node that has a vbucket as active.
func owner(tb testing.TB, c *simcluster.Cluster, vb uint16) *simcluster.Node {
	tb.Helper()
	for _, n := range c.Nodes() {
		if s, _ := n.VBucket("default", vb); s == mcbp.VBActive {
			return n
		}
	}
	tb.Fatalf("vbucket %d is active nowhere", vb)
	return nil
}

// TestStates: replica and pending are written besides active; dead and absent
// vbuckets are kept from, above all deletions, which a dead one swallows.
func TestStates(t *testing.T) {
	for _, v := range versions {
		c := sinktest.Cluster(t, simcluster.Config{Version: v})
		vb := c.Bucket("default").VBucketOf([]byte("k"))
		n := owner(t, c, vb)
		for _, state := range []mcbp.VBState{mcbp.VBReplica, mcbp.VBPending, mcbp.VBActive} {
			n.SetVBucket("default", vb, state)
			s := open(t, c, nil)
			if err := s.Check(t.Context()); err != nil {
				t.Errorf("%s %s: check: %v", v, state, err)
			}
			it := item("k", uint64(state)+1, 1<<40+uint64(state))
			it.Flags, it.Expiry = 0xdeadbeef, 2_000_000_000
			sinktest.Verdicts(t, sinktest.Write(t, sinktest.Lane(t, s), it), pump.Done)
			d, ok := n.Doc("default", vb, []byte("k"))
			if !ok || d.CAS != it.CAS || d.Rev != it.RevSeqno || d.Flags != it.Flags || d.Expiry != it.Expiry {
				t.Errorf("%s %s: holds %+v", v, state, d)
			}
		}
		del := item("k", 9, 1<<41)
		del.Op = pump.Deletion
		for _, state := range []mcbp.VBState{mcbp.VBDead, mcbp.VBAbsent} {
			n.SetVBucket("default", vb, state)
			s := open(t, c, nil)
			if err := s.Check(t.Context()); pump.CodeOf(err) != "vbucket-state" {
				t.Errorf("%s %s: check: %v", v, state, err)
			}
			b := sinktest.Write(t, sinktest.Lane(t, s), item("k", 9, 9), del, item("other", 1, 1))
			sinktest.Verdicts(t, b, pump.Retry, pump.Retry, pump.Done)
			if pump.CodeOf(b.Cause(1)) != "vbucket-state" || !strings.Contains(b.Cause(1).Error(), state.String()) {
				t.Errorf("%s %s: cause %v", v, state, b.Cause(1))
			}
		}
	}
}

// TestStateAfterReconnect: a vbucket that died with its connection gets no
// deletion through the next one.
func TestStateAfterReconnect(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Nodes: 1})
	vb := c.Bucket("default").VBucketOf([]byte("k"))
	n := c.Nodes()[0]
	l := sinktest.Lane(t, open(t, c, nil))
	sinktest.Verdicts(t, sinktest.Write(t, l, item("k", 1, 5)), pump.Done)
	n.Inject(simcluster.Fault{Op: mcbp.OpTapMutation, VBucket: -1, Times: 1, Action: simcluster.Close})
	b := sinktest.Write(t, l, item("k", 2, 6))
	sinktest.Verdicts(t, b, pump.Retry)
	if pump.ClassOf(b.Cause(0)) != pump.ClassUnreachable {
		t.Errorf("cause: %v", b.Cause(0))
	}
	n.SetVBucket("default", vb, mcbp.VBDead)
	del := item("k", 3, 7)
	del.Op = pump.Deletion
	sinktest.Verdicts(t, sinktest.Write(t, l, del), pump.Retry)
	n.SetVBucket("default", vb, mcbp.VBReplica)
	sinktest.Verdicts(t, sinktest.Write(t, l, del), pump.Done)
	if d, ok := n.Doc("default", vb, []byte("k")); ok {
		t.Errorf("still there: %+v", d)
	}
}

// missing returns a cluster that lost a node, and a key of a missing vbucket.
func missing(t *testing.T) (c *simcluster.Cluster, key string, vb uint16) {
	c = sinktest.Cluster(t, simcluster.Config{Nodes: 3, Buckets: []simcluster.BucketConfig{{Name: "default"}}})
	if err := c.Failover(c.Nodes()[2]); err != nil {
		t.Fatal(err)
	}
	vb = c.Bucket("default").Missing()[0]
	for i := 0; ; i++ {
		if key = fmt.Sprint("k", i); c.Bucket("default").VBucketOf([]byte(key)) == vb {
			return c, key, vb
		}
	}
}

func TestOwnerOfMissing(t *testing.T) {
	c, key, vb := missing(t)
	s := open(t, c, nil)
	if err := s.Check(t.Context()); pump.CodeOf(err) != "no-owner" {
		t.Errorf("check: %v", err)
	}
	l := sinktest.Lane(t, s)
	if err := l.Write(context.Background(), sinktest.Batch(item(key, 1, 1))); pump.CodeOf(err) != "no-owner" || !strings.Contains(err.Error(), fmt.Sprint(vb)) {
		t.Errorf("nobody has it: %v", err)
	}
	for _, state := range []mcbp.VBState{mcbp.VBReplica, mcbp.VBPending} {
		c.Nodes()[1].SetVBucket("default", vb, state)
		only := open(t, c, func(cfg *Config) { cfg.VBuckets = []uint16{vb} })
		if err := only.Check(t.Context()); err != nil {
			t.Errorf("check %s: %v", state, err)
		}
		sinktest.Verdicts(t, sinktest.Write(t, sinktest.Lane(t, only), item(key, 2, uint64(state))), pump.Done)
		if d, ok := c.Nodes()[1].Doc("default", vb, []byte(key)); !ok || d.CAS != uint64(state) {
			t.Errorf("%s: holds %+v", state, d)
		}
	}
	c.Nodes()[0].SetVBucket("default", vb, mcbp.VBReplica)
	err := sinktest.Lane(t, open(t, c, nil)).Write(context.Background(), sinktest.Batch(item(key, 1, 1)))
	if pump.CodeOf(err) != "several-owners" || !strings.Contains(err.Error(), c.Nodes()[0].KV()) {
		t.Errorf("two have it: %v", err)
	}
}

// TestOwners: what the caller knows goes before the map and the nodes.
func TestOwners(t *testing.T) {
	c, key, vb := missing(t)
	for _, n := range c.Nodes()[:2] {
		n.SetVBucket("default", vb, mcbp.VBReplica) // without Owners: several-owners
	}
	for i, n := range c.Nodes()[:2] {
		s := open(t, c, func(cfg *Config) { cfg.VBuckets, cfg.Owners = []uint16{vb}, map[uint16]string{vb: n.KV()} })
		if err := s.Check(t.Context()); err != nil {
			t.Errorf("check: %v", err)
		}
		sinktest.Verdicts(t, sinktest.Write(t, sinktest.Lane(t, s), item(key, 2, uint64(100+i))), pump.Done)
		if d, ok := n.Doc("default", vb, []byte(key)); !ok || d.CAS != uint64(100+i) {
			t.Errorf("node %d holds %+v", i, d)
		}
	}
}

// TestOwnerInForwardMap: changeVbucketStates names the owner in the map to come.
func TestOwnerInForwardMap(t *testing.T) {
	c, key, vb := missing(t)
	s := open(t, c, nil)
	r, err := s.Client().Do(t.Context(), "POST", "/pools/default/buckets/default/changeVbucketStates",
		map[string][]string{"vbucket": {fmt.Sprint(vb)}, "state": {"replica"}})
	if err != nil || r.Status != 202 {
		t.Fatalf("%v %v", r, err)
	}
	sinktest.Verdicts(t, sinktest.Write(t, sinktest.Lane(t, s), item(key, 2, 77)), pump.Done)
	found := 0
	for _, n := range c.Nodes() {
		if d, ok := n.Doc("default", vb, []byte(key)); ok && d.CAS == 77 {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d nodes hold it", found)
	}
}

func TestFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		fault simcluster.Fault
		want  pump.Verdict
		class pump.Class
		code  string
		stop  bool
	}{
		"tmpfail": {simcluster.Fault{Status: mcbp.StatusTmpFail}, pump.Retry, pump.ClassFailed, "destination-busy", false},
		"enomem":  {simcluster.Fault{Status: mcbp.StatusNoMemory}, pump.Retry, pump.ClassFailed, "destination-full", false},
		"busy":    {simcluster.Fault{Status: mcbp.StatusBusy}, pump.Retry, pump.ClassFailed, "destination-busy", false},
		"moved":   {simcluster.Fault{Status: mcbp.StatusNotMyVBucket}, pump.Retry, pump.ClassFailed, "not-my-vbucket", false},
		"too big": {simcluster.Fault{Status: mcbp.StatusTooBig}, pump.Rejected, pump.ClassFailed, "item-too-large", false},
		"invalid": {simcluster.Fault{Status: mcbp.StatusInvalid}, pump.Rejected, pump.ClassFailed, "item-invalid", false},
		"denied":  {simcluster.Fault{Status: mcbp.StatusAccess}, pump.Unconfirmed, pump.ClassDenied, "access-denied", true},
		"no tap":  {simcluster.Fault{Status: mcbp.StatusUnknown}, pump.Unconfirmed, pump.ClassFailed, "no-tap", true},
		"close":   {simcluster.Fault{Action: simcluster.Close}, pump.Retry, pump.ClassUnreachable, "destination-lost", false},
		"stall":   {simcluster.Fault{Action: simcluster.Stall}, pump.Retry, pump.ClassUnreachable, "destination-lost", false},
		"die":     {simcluster.Fault{Action: simcluster.Die}, pump.Retry, pump.ClassUnreachable, "destination-lost", false},
	} {
		for _, at := range []int{0, 5, 9} { // the first, one in the middle, and the one that is the fence
			t.Run(fmt.Sprint(name, " at ", at), func(t *testing.T) {
				c := sinktest.Cluster(t, simcluster.Config{Nodes: 1})
				l := sinktest.Lane(t, open(t, c, func(cfg *Config) { cfg.Options.Timeout = 200 * time.Millisecond }))
				f := tc.fault
				f.Op, f.VBucket, f.After, f.Times = mcbp.OpTapMutation, -1, at, 1
				c.Nodes()[0].Inject(f)
				batch := make([]pump.Item, 10)
				for i := range batch {
					batch[i] = item(fmt.Sprint("k", i), 1, uint64(i)+1)
				}
				b := sinktest.Batch(batch...)
				err := l.Write(context.Background(), b)
				if tc.stop != (err != nil) {
					t.Fatalf("write: %v", err)
				}
				if b.Verdict(at) != tc.want {
					t.Errorf("the item is %s", b.Verdict(at))
				}
				if cause := b.Cause(at); err == nil {
					err = cause
				}
				if pump.ClassOf(err) != tc.class || pump.CodeOf(err) != tc.code || !strings.Contains(err.Error(), c.Nodes()[0].KV()) {
					t.Errorf("cause: %v (%s)", err, pump.CodeOf(err))
				}
				for i := range b.Items {
					if f.Action == simcluster.AnswerStatus && i != at && b.Verdict(i) != pump.Done {
						t.Errorf("item %d is %s", i, b.Verdict(i))
					}
					if f.Action != simcluster.AnswerStatus && b.Verdict(i) != pump.Retry {
						t.Errorf("item %d is %s", i, b.Verdict(i))
					}
				}
			})
		}
	}
}

// TestNeverSkipped: there is no conflict resolution, an older item replaces a
// newer one.
func TestNeverSkipped(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "4.0"})
	l := sinktest.Lane(t, open(t, c, nil))
	sinktest.Verdicts(t, sinktest.Write(t, l, item("k", 9, 99)), pump.Done)
	sinktest.Verdicts(t, sinktest.Write(t, l, item("k", 2, 22)), pump.Done)
	if d, _ := c.Bucket("default").Get([]byte("k")); d.Rev != 2 || d.CAS != 22 {
		t.Errorf("holds %+v", d)
	}
	packed := item("packed", 1, 1)
	packed.Datatype = mcbp.DatatypeSnappy
	sinktest.Verdicts(t, sinktest.Write(t, l, packed, item(strings.Repeat("k", 251), 1, 1)), pump.Rejected, pump.Rejected)
}

// TestCapturedPushes sends the items of the recorded pushes. What goes out must
// mean what the recorded client sent, and the recorded answers must give the
// verdicts that the recorded server's state shows.
func TestCapturedPushes(t *testing.T) {
	all, err := capture.Select(func(name string) bool {
		return strings.Contains(name, "-tap-push-") && !strings.Contains(name, "ack-each")
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 12 {
		t.Fatalf("%d recorded pushes", len(all))
	}
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) { replay(t, c) })
	}
	capture.Replays(t, "sinks/tap.TestCapturedPushes", capture.Names(all)...)
}

func replay(t *testing.T, c *capture.Capture) {
	packets, _ := c.Packets(capture.Client)
	recorded := make([]mcbp.TapMessage, len(packets))
	batch := make([]pump.Item, len(packets))
	for i, p := range packets {
		f, err := mcbp.NewReader(bytes.NewReader(p)).Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := recorded[i].Parse(&f); err != nil {
			t.Fatal(err)
		}
		m := &recorded[i]
		batch[i] = pump.Item{VBucket: m.VBucket, Flags: m.Flags, Expiry: m.Expiry, CAS: m.CAS, RevSeqno: m.Rev,
			Key: bytes.Clone(m.Key), Value: bytes.Clone(m.Value)}
		if m.Opcode == mcbp.OpTapDelete {
			batch[i].Op = pump.Deletion
		}
	}
	status := map[int]mcbp.Status{}
	for _, r := range c.Replies {
		for i := range recorded {
			if recorded[i].Opaque == r.Opaque {
				status[i] = mcbp.Status(r.Status)
			}
		}
	}

	client, server := net.Pipe()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		rd := mcbp.NewReader(server)
		for i := range recorded {
			f, err := rd.Next()
			if err != nil {
				t.Errorf("message %d: %v", i, err)
				return
			}
			var m mcbp.TapMessage
			if err := m.Parse(&f); err != nil {
				t.Errorf("message %d: %v", i, err)
			}
			w := &recorded[i]
			if m.Opcode != w.Opcode || m.VBucket != w.VBucket || m.MsgFlags != w.MsgFlags || m.TTL != w.TTL || m.Datatype != w.Datatype ||
				m.CAS != w.CAS || m.Flags != w.Flags || m.Expiry != w.Expiry || m.Rev != w.Rev ||
				!bytes.Equal(m.Key, w.Key) || !bytes.Equal(m.Value, w.Value) || len(m.Engine) < 8 || len(m.Engine) > 9 {
				t.Errorf("message %d is %+v, recorded %+v", i, m, *w)
			}
			if s, ok := status[i]; ok {
				h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque, VBucket: uint16(s)}
				if _, err := server.Write(h.Append(nil)); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	d := &dialect{}
	p := pipe.New(client, mcbp.NewReader(client), 10*time.Second)
	p.Begin(t.Context(), len(batch), len(batch)-1)
	for i := range batch {
		p.Out = d.Append(p.Out, &batch[i], mc.Sending{Opaque: p.Opaque(i), Last: i == len(batch)-1})
		p.Sent()
	}
	p.End()
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	refused := map[string]bool{}
	rulings := mc.NewRulings("test")
	for i := range p.Answers() {
		a := &p.Answers()[i]
		if rulings.Of(mc.ReqTap, a.Header.Status()).Verdict != pump.Done {
			refused[fmt.Sprint(batch[a.Index].VBucket, string(batch[a.Index].Key))] = true
		}
	}
	<-answered
	p.Close()
	server.Close()
	for _, it := range c.Items { // what the server held afterwards
		if refused[fmt.Sprint(it.VB, string(it.Key))] {
			t.Errorf("%q counts as refused, and the server held it", it.Key)
		}
	}
	if strings.Contains(c.Name, "fail-in-the-middle") && len(refused) != 1 || strings.Contains(c.Name, "dead") && len(refused) != 3 {
		t.Errorf("%d refused", len(refused))
	}
}

// TestTapConnect: by option the specification's request goes first, once on each
// connection.
func TestTapConnect(t *testing.T) {
	for _, on := range []bool{false, true} {
		client, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		first := make(chan mcbp.Frame, 1)
		go func() {
			defer close(first)
			c, err := client.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			if f, err := mcbp.NewReader(c).Next(); err == nil {
				f.Body = bytes.Clone(f.Body)
				first <- f
			}
		}()
		d := &dialect{connect: on}
		c, err := d.FindConn(t.Context(), kvOf(client.Addr().String()), version(t, "2.5.1"))
		if err != nil {
			t.Fatal(err)
		}
		if !on {
			if _, err := c.NetConn().Write(mcbp.AppendNoop(nil, 1)); err != nil {
				t.Fatal(err)
			}
		}
		f, ok := <-first
		c.Close()
		client.Close()
		if !ok {
			t.Fatal("nothing came")
		}
		if !on {
			if f.Opcode != mcbp.OpNoop {
				t.Errorf("%s came first", mcbp.OpcodeName(f.Opcode))
			}
			continue
		}
		tc, err := mcbp.ParseTapConnect(f)
		if err != nil || tc.Flags != mcbp.TapSupportAck|mcbp.TapFixFlagByteorder || tc.Name == "" {
			t.Errorf("%+v, %v", tc, err)
		}
	}
}

func kvOf(addr string) cluster.KVConfig {
	return cluster.KVConfig{Addr: addr, Role: "destination", Timeout: 5 * time.Second}
}

func version(t *testing.T, s string) cluster.Version {
	v, err := cluster.ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestPlugin: the declared defaults decode, and TAP_CONNECT is off.
func TestPlugin(t *testing.T) {
	r := &pump.Registry{}
	if err := pump.RegisterSink(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	if o := DefaultOptions(); o.TapConnect || o.Rehash || o.Timeout <= 0 {
		t.Errorf("defaults %+v", o)
	}
	for spec, ok := range map[string]bool{"tap://host": true, "tap://host:8091?tap_connect=true": true, "tap://host?timeout=0s": false, "tap://": false} {
		s, err := r.Sink(t.Context(), spec, pump.Env{})
		if (err == nil) != ok || err != nil && pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%s: %v", spec, err)
		}
		if err == nil {
			s.Close()
		}
	}
}

// TestAppendCostsNothing: no allocation per item.
func TestAppendCostsNothing(t *testing.T) {
	d := mc.Dialect(&dialect{})
	it := item("key", 1, 1)
	out := make([]byte, 0, 1<<10)
	if n := testing.AllocsPerRun(100, func() { out = d.Append(out[:0], &it, mc.Sending{}) }); n != 0 {
		t.Errorf("%v allocations for an item", n)
	}
}

// TestNewServers: servers from 5.0 on take no TAP, which is said before anything is
// read.
func TestNewServers(t *testing.T) {
	s := open(t, sinktest.Cluster(t, simcluster.Config{Version: "6.6.5"}), nil)
	defer s.Close()
	if err := s.Check(t.Context()); pump.CodeOf(err) != "no-tap" || pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(pump.HintOf(err), "dcp://") {
		t.Errorf("%v (%s)", err, pump.HintOf(err))
	}
}
