package recovery_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
	"github.com/cbpump/cbpump/simcluster"
)

// midway calls f while the source is sending a vbucket: some of its items are out,
// others are not.
func (p *pair) midway(vb uint16, f func()) {
	sender(p.src, vb).Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpTapMutation, mcbp.OpDcpMutation}, VBucket: int(vb),
		After: 20, Times: 1, Do: f, Action: simcluster.Continue})
}

// TestSourceRebalances: vbuckets move to other nodes of the source while they are
// streamed. The run goes on where they are.
func TestSourceRebalances(t *testing.T) {
	for _, version := range []string{"4.6", "6.6.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			p := realPair(t, shape{version: version, docs: 2000})
			moved := false
			p.midway(p.missing[1], func() {
				moved = true
				nodes := p.src.Nodes()
				for _, vb := range p.missing {
					to := nodes[0]
					if sender(p.src, vb) == to {
						to = nodes[1]
					}
					if err := p.src.Bucket(bucket).Move(vb, to); err != nil {
						t.Error(err)
					}
				}
			})
			_, _, err := p.run(nil, nil)
			if err != nil || !moved {
				t.Fatalf("moved: %v, %v", moved, err)
			}
			p.whole()
			p.over()
		})
	}
}

// collected is a pair of 7.6 clusters with a collection shop.orders of the same
// documents, before the failover.
func collected(t *testing.T) (p *pair, ids map[*simcluster.Cluster]uint32) {
	t.Helper()
	p, ids = &pair{t: t}, make(map[*simcluster.Cluster]uint32)
	one := []simcluster.BucketConfig{{Name: bucket}}
	p.src = p.start(simcluster.Config{Nodes: 2, Version: "7.6", VBuckets: 16, Buckets: one}, nil)
	p.dst = p.start(simcluster.Config{Nodes: 3, Version: "7.6", VBuckets: 16, Buckets: one}, real)
	for _, c := range []*simcluster.Cluster{p.src, p.dst} {
		p.load(c, 1000)
		if _, err := c.Bucket(bucket).CreateScope("shop"); err != nil {
			t.Fatal(err)
		}
		var err error
		if ids[c], err = c.Bucket(bucket).CreateCollection("shop", "orders", 0); err != nil {
			t.Fatal(err)
		}
		orders(t, c, ids[c], 1000)
	}
	p.lost = p.dst.Nodes()[2]
	if err := p.dst.Failover(p.lost); err != nil {
		t.Fatal(err)
	}
	p.missing = p.dst.Bucket(bucket).Missing()
	return p, ids
}

func orders(t *testing.T, c *simcluster.Cluster, id uint32, n int) {
	t.Helper()
	for i := range n {
		d := simcluster.Doc{Key: fmt.Appendf(nil, "order-%d", i), Collection: id, Value: []byte(`{"n":1}`), CAS: 1<<50 + uint64(i), Rev: 2}
		if err := c.Bucket(bucket).Store(d); err != nil {
			t.Fatal(err)
		}
	}
}

// TestManifestChanges: collections come and go at the source while it is read.
func TestManifestChanges(t *testing.T) {
	during := func(t *testing.T, p *pair, create bool, f func()) (*recovery.Result, error) {
		t.Helper()
		changed := false
		p.midway(p.missing[1], func() { changed = true; f() })
		res, _, err := p.run(func(o *recovery.Options) { o.SinkOptions.CreateCollections = create }, nil)
		if !changed {
			t.Fatal("nothing was changed")
		}
		p.over()
		return res, err
	}
	t.Run("dropped", func(t *testing.T) {
		p, _ := collected(t)
		res, err := during(t, p, false, func() {
			if err := p.src.Bucket(bucket).DropCollection("shop", "orders"); err != nil {
				t.Error(err)
			}
		})
		// What is in the default collection must be whole; a vbucket that holds more than
		// the source may be left, by name, and is recovered by the next run.
		if err != nil {
			wants(t, err, pump.ClassFailed, "vbuckets-left")
			for _, o := range res.Outcomes {
				if o.Err != nil && !slices.Contains([]string{"count-higher", "count-differs", "digest-differs"}, pump.CodeOf(o.Err)) {
					t.Errorf("%d: %v", o.VBucket, o.Err)
				}
			}
			if _, _, err := p.run(nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, vb := range p.missing {
			p.sameDefault(vb)
		}
	})
	t.Run("created", func(t *testing.T) {
		p, _ := collected(t)
		var id uint32
		_, err := during(t, p, true, func() {
			var err error
			if id, err = p.src.Bucket(bucket).CreateCollection("shop", "late", 0); err != nil {
				t.Error(err)
				return
			}
			orders(t, p.src, id, 200)
		})
		if err != nil {
			// Items came while it was copied: the counts may differ, and a quieter run
			// recovers the rest.
			wants(t, err, pump.ClassFailed, "vbuckets-left")
			if _, _, err := p.run(func(o *recovery.Options) { o.SinkOptions.CreateCollections = true }, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, vb := range p.missing {
			p.sameDefault(vb)
		}
	})
}

// sameDefault compares the documents of the default collection of a vbucket.
func (p *pair) sameDefault(vb uint16) {
	p.t.Helper()
	held := func(c *simcluster.Cluster) map[string]string {
		out := make(map[string]string)
		for _, n := range c.Nodes() {
			if s, _ := n.VBucket(bucket, vb); s == mcbp.VBActive && n != p.lost {
				n.EachDoc(bucket, vb, func(d simcluster.Doc) bool {
					if d.Collection == 0 && !d.Deleted {
						out[string(d.Key)] = fmt.Sprint(d.Value, d.CAS, d.Rev, d.Flags, d.Expiry)
					}
					return true
				})
			}
		}
		return out
	}
	want, got := held(p.src), held(p.dst)
	if len(want) == 0 || len(want) != len(got) {
		p.t.Errorf("vbucket %d: %d documents at the source, %d at the destination", vb, len(want), len(got))
	}
	for k, w := range want {
		if got[k] != w {
			p.t.Errorf("vbucket %d, %q: %s at the source, %s at the destination", vb, k, w, got[k])
		}
	}
}
