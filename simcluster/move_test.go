package simcluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/cbpump/cbpump/mcbp"
)

// A vbucket that moves takes items, collections and history with it: clients go on
// where they were, at the node that the map names.
func TestMove(t *testing.T) {
	for _, replicas := range []int{0, 1} {
		for _, version := range []string{"2.5.1", "6.6.5", "7.6"} {
			t.Run(fmt.Sprint(version, " ", replicas), func(t *testing.T) {
				c := start(t, Config{Nodes: 2, VBuckets: 4, Version: version, Buckets: []BucketConfig{{Name: "default", Replicas: replicas}}})
				b := c.Bucket("default")
				coll := uint32(0)
				if c.rel.hasCollections() {
					var err error
					if coll, err = b.CreateCollection("_default", "orders", 0); err != nil {
						t.Fatal(err)
					}
				}
				from, to := c.Nodes()[0], c.Nodes()[1]
				for i := range 50 {
					if err := from.StoreAt("default", 0, Doc{Key: fmt.Appendf(nil, "k%d", i), Collection: coll, Value: []byte("v"), Deleted: i%5 == 0}); err != nil {
						t.Fatal(err)
					}
				}
				held := func(n *Node) map[string]string {
					m := map[string]string{}
					n.EachDoc("default", 0, func(d Doc) bool {
						m[string(d.Key)] = fmt.Sprint(d.Collection, string(d.Value), d.CAS, d.Rev, d.Seqno, d.Deleted)
						return true
					})
					return m
				}
				before, flog, high := held(from), b.FailoverLog(0), b.HighSeqno(0)
				var k *client
				if version[0] >= '3' {
					k = modern(t, from, "default", mcbp.FeatureCollections)
					k.producer("p")
					k.status(mcbp.AppendDcpControl(nil, 2, "enable_noop", "true"), mcbp.StatusOK)
					k.status(streamReq(0, 0, 1<<40, 0), mcbp.StatusOK)
				}
				if err := b.Move(0, to); err != nil {
					t.Fatal(err)
				}
				if version[0] >= '3' {
					for m := (mcbp.DcpMessage{}); m.Opcode != mcbp.OpDcpStreamEnd; {
						if m = k.dcpNext(); m.Opcode == mcbp.OpDcpStreamEnd && m.Flags != mcbp.StreamEndState {
							t.Errorf("the stream ends with %d", m.Flags)
						}
					}
				}
				if after := held(to); !maps.Equal(after, before) || len(after) != 50 {
					t.Errorf("%d documents after the move, %d before", len(after), len(before))
				}
				if got := b.FailoverLog(0); !slices.Equal(got, flog) || b.HighSeqno(0) < high {
					t.Errorf("history %v up to %d, was %v up to %d", got, b.HighSeqno(0), flog, high)
				}
				at := b.Map()[0]
				if s, _ := to.VBucket("default", 0); s != mcbp.VBActive || b.Servers()[at[0]] != to.KV() {
					t.Errorf("it is %s there, the map %v", s, at)
				}
				want := mcbp.VBAbsent
				if replicas > 0 {
					want = mcbp.VBReplica
					if after := held(from); !maps.Equal(after, before) {
						t.Errorf("the replica has %d documents", len(after))
					}
				}
				if s, _ := from.VBucket("default", 0); s != want {
					t.Errorf("it is %s at the old node", s)
				}
				if err := b.Move(0, from); err != nil || b.Map()[0][0] != 0 {
					t.Errorf("back again: %v, map %v", err, b.Map()[0])
				}
			})
		}
	}
	c := start(t, Config{Nodes: 2, VBuckets: 4, Buckets: []BucketConfig{{Name: "default"}}})
	fresh, err := c.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	b := c.Bucket("default")
	if err := b.Move(0, fresh); !errors.Is(err, ErrNotMember) {
		t.Error(err)
	}
	if err := b.Move(4, c.Nodes()[0]); !errors.Is(err, ErrNoActive) {
		t.Error(err)
	}
	c.Nodes()[1].Kill()
	if err := b.Move(0, c.Nodes()[1]); !errors.Is(err, ErrNodeDown) {
		t.Error(err)
	}
}
