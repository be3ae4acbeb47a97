package cluster

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// TestAgainstModernSimcluster goes the whole way with clusters from 5.0 on: REST,
// map, HELLO, SCRAM, bucket, collections, seqnos, DCP.
func TestAgainstModernSimcluster(t *testing.T) {
	for _, version := range []string{"6.0.4", "6.6.5", "7.0.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			sim, err := simcluster.Start(simcluster.Config{
				Nodes: 2, VBuckets: 16, Version: version, Password: planted,
				Buckets: []simcluster.BucketConfig{{Name: "beer", Replicas: 1}, {Name: "lww", ConflictResolution: "lww"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := sim.Close(); err != nil {
					t.Error(err)
				}
			})
			exerciseModern(t, sim, version)
		})
	}
}

func exerciseModern(t *testing.T, sim *simcluster.Cluster, version string) {
	ctx := t.Context()
	v, err := ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(sim.URL(), Config{Role: "source", Username: "Administrator", Password: planted, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := c.Bucket(ctx, "lww"); err != nil || !b.LastWriteWins() {
		t.Errorf("%+v, %v", b, err)
	}
	b, err := c.Bucket(ctx, "beer")
	if err != nil {
		t.Fatal(err)
	}
	if b.LastWriteWins() || b.MinVersion() != v || b.Map.Len() != 16 {
		t.Errorf("%+v", b)
	}
	for i := range 50 {
		if err := sim.Bucket("beer").Store(simcluster.Doc{Key: fmt.Appendf(nil, "key-%d", i), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	created := false
	if v.AtLeast(7, 0) {
		if created, err = c.EnsureCollection(ctx, b, "shop", "items", 60); err != nil || !created {
			t.Errorf("created %v, %v", created, err)
		}
		if again, err := c.EnsureCollection(ctx, b, "shop", "items", 60); err != nil || again {
			t.Errorf("created again %v, %v", again, err)
		}
	}
	for _, n := range b.Nodes {
		var mine []uint16
		for vb := range uint16(16) {
			if a, _ := b.Map.Active(vb); a == n.KV {
				mine = append(mine, vb)
			}
		}
		for _, unknown := range []bool{false, true} { // the version from the topology, or from the node
			cfg := c.KV(b, n.KV)
			cfg.Features = []uint16{mcbp.FeatureXattr, mcbp.FeatureSnappy, mcbp.FeatureJSON, mcbp.FeatureCollections}
			if unknown {
				cfg.Version = Version{}
			}
			conn := dial(t, cfg)
			if conn.Has(mcbp.FeatureCollections) != v.AtLeast(7, 0) || !conn.Has(mcbp.FeatureXattr) || conn.NodeVersion() != v {
				t.Errorf("granted %x, version %v", conn.granted, conn.NodeVersion())
			}
			m, err := conn.Manifest(ctx)
			if !v.AtLeast(7, 0) {
				wantError{class: pump.ClassUsage, code: "no-collections"}.check(t, err)
			} else if col, ok := m.Lookup("shop", "items"); err != nil || !ok || col.MaxTTL != 60 {
				t.Errorf("%+v, %v", m, err)
			}
			seqnos, err := conn.HighSeqnos(ctx, mine, mcbp.VBActive, time.Minute)
			if err != nil || len(seqnos) != len(mine) {
				t.Errorf("%v, %v", seqnos, err)
			}
			for vb, seqno := range seqnos {
				s, err := conn.VBucketSeqno(ctx, vb)
				if err != nil || s.High != seqno || seqno != sim.Bucket("beer").HighSeqno(vb) {
					t.Errorf("vbucket %d: %+v, %v; %d", vb, s, err, seqno)
				}
			}
			if m, err := conn.ErrorMap(ctx); err != nil || m[mcbp.StatusNotFound].Name == "" {
				t.Errorf("%d statuses, %v", len(m), err)
			}
			refusedWithMap(t, conn, b, mine)
			streamOne(t, conn, mine[0], seqnos[mine[0]], v)
			wantError{class: pump.ClassUsage, code: "no-bucket"}.check(t, dialError(t, cfg, func(k *KVConfig) { k.Bucket = "wine" }))
			wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{`user "Administrator"`}}.check(t, dialError(t, cfg, func(k *KVConfig) { k.UserPassword += "!" }))
		}
	}
}

func dialError(t *testing.T, cfg KVConfig, change func(*KVConfig)) error {
	t.Helper()
	change(&cfg)
	c, err := DialKV(t.Context(), cfg)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// refusedWithMap asks for a vbucket that is elsewhere and reads the map of the answer.
func refusedWithMap(t *testing.T, conn *Conn, b *Bucket, mine []uint16) {
	t.Helper()
	vb := uint16(slices.IndexFunc(b.Map.VBuckets, func([]int) bool { return true }))
	for slices.Contains(mine, vb) {
		vb++
	}
	f, err := conn.ask(t.Context(), mcbp.OpGet, vb, nil, []byte("\x00key"), nil)
	if err != nil || f.Status() != mcbp.StatusNotMyVBucket {
		t.Errorf("%v, %v", f.Status(), err)
		return
	}
	m, err := conn.MapFrom(f.Value())
	if err != nil || !slices.Equal(m.Servers, b.Map.Servers) || m.Len() != b.Map.Len() || m.Rev == 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err = conn.ClusterMap(t.Context()); err != nil || m.Len() != b.Map.Len() {
		t.Errorf("%+v, %v", m, err)
	}
}

// streamOne streams a vbucket to its end.
func streamOne(t *testing.T, conn *Conn, vb uint16, end uint64, v Version) {
	t.Helper()
	ctx := t.Context()
	opened, err := conn.OpenDcp(ctx, DcpConfig{Name: "cluster test " + conn.NetConn().LocalAddr().String(), BufferSize: 1 << 20})
	want := DcpOpened{Xattrs: true, DeleteTimes: true, Noop: true, FlowControl: true, Expirations: v.AtLeast(6, 5)}
	if err != nil || opened != want {
		t.Fatalf("%+v, %v", opened, err)
	}
	if log, err := conn.FailoverLog(ctx, vb); err != nil || len(log) == 0 {
		t.Errorf("%v, %v", log, err)
	}
	stop := conn.Guard(ctx)
	defer stop()
	req := mcbp.StreamReq{VBucket: vb, Opaque: 7, End: end}
	if _, err := conn.NetConn().Write(req.Append(nil)); err != nil {
		t.Fatal(err)
	}
	var last uint64
	for {
		f, err := conn.Reader().Next()
		if err != nil {
			t.Fatal(conn.Explain(ctx, "stream", err))
		}
		if f.Magic == mcbp.MagicResponse {
			if f.Status() != mcbp.StatusOK {
				t.Fatal(conn.Refused("stream", &f))
			}
			continue
		}
		var m mcbp.DcpMessage
		if err := m.Parse(&f); err != nil {
			t.Fatal(err)
		}
		switch m.Opcode {
		case mcbp.OpDcpStreamEnd:
			if m.Flags != mcbp.StreamEndOK || last != end {
				t.Errorf("vbucket %d ends with %d at %d of %d", vb, m.Flags, last, end)
			}
			return
		case mcbp.OpDcpSnapshotMarker, mcbp.OpDcpNoop:
		default:
			if m.Seqno <= last {
				t.Errorf("seqno %d after %d", m.Seqno, last)
			}
			last = m.Seqno
		}
	}
}

// TestSimclusterWarmUp: a node that loads its data is waited for.
func TestSimclusterWarmUp(t *testing.T) {
	sim, err := simcluster.Start(simcluster.Config{Nodes: 1, VBuckets: 4, Version: "7.0.5", Password: planted, WarmUp: true})
	if err != nil {
		t.Fatal(err)
	}
	defer sim.Close()
	conn := dial(t, KVConfig{Addr: sim.Nodes()[0].KV(), Role: "source", Bucket: "default", Username: "Administrator", UserPassword: planted})
	conn.clock = (&fakeClock{}).clock()
	_, err = conn.HighSeqnos(t.Context(), []uint16{0, 1, 2, 3}, mcbp.VBActive, time.Minute)
	wantError{code: "seqnos-missing", retry: true, says: []string{"after 1m0s", "4 of 4 vbuckets"}}.check(t, err)
	x := binary.BigEndian.AppendUint32(nil, 1)
	if f, err := conn.ask(t.Context(), mcbp.OpGetAllVBSeqnos, 0, x, nil, nil); err != nil || f.Status() != mcbp.StatusOK || len(f.Value()) != 0 {
		t.Errorf("%v, %x, %v", f.Status(), f.Value(), err)
	}
}
