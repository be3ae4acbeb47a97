package cluster

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// TestAgainstSimcluster goes the whole way over real sockets: REST, map, login,
// statistics, states, failover.
func TestAgainstSimcluster(t *testing.T) {
	for _, q := range []struct{ version, host, advertise string }{
		{"2.5.1", "127.0.0.1", ""},
		{"2.5.1", "127.0.0.1", "$HOST"},
		{"3.0.3", "127.0.0.1", "localhost"},
		{"4.0", "::1", ""},
	} {
		if l, err := net.Listen("tcp", net.JoinHostPort(q.host, "0")); err == nil {
			_ = l.Close()
		} else { // a machine without IPv6
			t.Logf("%v: 127.0.0.1 takes its place", err)
			q.host = "127.0.0.1"
		}
		t.Run(q.version+" "+q.host+" "+q.advertise, func(t *testing.T) {
			sim, err := simcluster.Start(simcluster.Config{
				Nodes: 3, VBuckets: 16, Version: q.version, Host: q.host, AdvertiseHost: q.advertise, Password: planted,
				Buckets: []simcluster.BucketConfig{{Name: "default"}, {Name: "beer", Password: planted + "b"}, {Name: "cache", Type: "memcached"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := sim.Close(); err != nil {
					t.Error(err)
				}
			})
			exercise(t, sim)
		})
	}
}

func exercise(t *testing.T, sim *simcluster.Cluster) {
	ctx := t.Context()
	c, err := NewClient(sim.URL(), Config{Role: "source", Username: "Administrator", Password: planted, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if names, err := c.Buckets(ctx); err != nil || !slices.Equal(names, []string{"beer", "cache", "default"}) {
		t.Errorf("%q, %v", names, err)
	}
	items := map[uint16]uint64{}
	sb := sim.Bucket("beer")
	for i := range 100 {
		key := fmt.Appendf(nil, "key-%d", i)
		if err := sb.Store(simcluster.Doc{Key: key, Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
		items[VBucketOf(key, 16)]++
		if VBucketOf(key, 16) != sb.VBucketOf(key) {
			t.Errorf("%s: vbucket %d here, %d there", key, VBucketOf(key, 16), sb.VBucketOf(key))
		}
	}
	b, err := c.Bucket(ctx, "beer")
	if err != nil {
		t.Fatal(err)
	}
	if b.Map.Len() != 16 || len(b.Nodes) != 3 || len(b.Map.Missing()) != 0 || b.RequireVBuckets("source") != nil {
		t.Fatalf("%+v", b)
	}
	for vb := range uint16(16) {
		addr, ok := b.Map.Active(vb)
		n, known := b.NodeByKV(addr)
		if !ok || !known || n.OTP == "" || n.Membership != "active" || !n.Version.AtLeast(2, 5) {
			t.Fatalf("vbucket %d: %q, %+v", vb, addr, n)
		}
	}
	found := map[uint16]uint64{}
	for _, n := range b.Nodes {
		conn := dial(t, c.KV(b, n.KV))
		if err := conn.WaitFlushed(ctx, time.Minute); err != nil {
			t.Error(err)
		}
		infos, err := conn.VBucketDetails(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for vb, info := range infos {
			if s, err := conn.VBucketState(ctx, vb); err != nil || s != info.State {
				t.Errorf("vbucket %d: %v, %v, want %v", vb, s, err, info.State)
			}
			if info.State == mcbp.VBActive && info.Items > 0 {
				found[vb] += info.Items
			}
		}
	}
	if fmt.Sprint(found) != fmt.Sprint(items) {
		t.Errorf("counted %v, stored %v", found, items)
	}

	// The wrong password of either kind, and the bucket without a map.
	kv := c.KV(b, b.Nodes[0].KV)
	kv.Password = planted
	_, err = DialKV(ctx, kv)
	wantError{class: pump.ClassDenied, code: "kv-denied"}.check(t, err)
	wrong, err := NewClient(sim.URL(), Config{Role: "destination", Username: "Administrator", Password: planted + "!"})
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	_, err = wrong.Bucket(ctx, "beer")
	wantError{class: pump.ClassDenied, code: "rest-denied", says: []string{"-U, -P"}}.check(t, err)
	_, err = c.Bucket(ctx, "wine")
	wantError{class: pump.ClassUsage, code: "no-bucket", says: []string{`"beer", "cache", "default"`}}.check(t, err)
	cache, err := c.Bucket(ctx, "cache")
	if err != nil {
		t.Fatal(err)
	}
	wantError{class: pump.ClassUsage, code: "bucket-type"}.check(t, cache.RequireVBuckets("source"))

	// A failed-over node leaves the map and stays among the cluster's nodes.
	victim := sim.Nodes()[2]
	otp := victim.OTP()
	lost, _ := b.NodeByOTP(otp)
	if err := sim.Failover(victim); err != nil {
		t.Fatal(err)
	}
	after, err := c.Bucket(ctx, "beer")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(after.Map.Missing(), sb.Missing()) || len(sb.Missing()) == 0 {
		t.Errorf("missing %v, want %v", after.Map.Missing(), sb.Missing())
	}
	for _, vb := range after.Map.Missing() {
		if was, ok := b.Map.Active(vb); !ok || was != lost.KV {
			t.Errorf("vbucket %d was on %q, the lost node is %q", vb, was, lost.KV)
		}
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := find(nodes, func(n Node) bool { return n.OTP == otp }); !ok || n.Membership != "inactiveFailed" {
		t.Errorf("%+v", nodes)
	}

	// States are set on the owner; a cut conversation can be tried again.
	conn := dial(t, c.KV(after, after.Nodes[0].KV))
	vb := after.Map.Missing()[0]
	if err := conn.SetVBucketState(ctx, vb, mcbp.VBReplica); err != nil {
		t.Error(err)
	}
	if s, err := conn.VBucketState(ctx, vb); err != nil || s != mcbp.VBReplica {
		t.Errorf("%v, %v", s, err)
	}
	for _, n := range sim.Nodes() {
		n.Inject(simcluster.Fault{Op: mcbp.OpStat, VBucket: -1, Action: simcluster.CutMidFrame, Times: 1})
	}
	_, err = conn.VBucketDetails(ctx)
	wantError{code: "kv-cut", retry: true}.check(t, err)
}
