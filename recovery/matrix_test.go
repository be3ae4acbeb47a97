package recovery_test

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/simcluster"
)

// TestMatrix recovers 64 vbuckets from every version to every version through
// both recovery interfaces, and compares every document.
func TestMatrix(t *testing.T) {
	versions := []string{"2.5.1", "3.0.3", "4.0", "4.6", "6.0.4", "6.6.5", "7.0.5", "7.6"}
	for _, api := range []struct {
		name  string
		start func(*testing.T, shape) *pair
	}{{"proposal", newPair}, {"controller", realPair}} {
		for _, src := range versions {
			for _, dst := range versions {
				t.Run(fmt.Sprintf("%s/%s to %s", api.name, src, dst), func(t *testing.T) {
					p := api.start(t, shape{version: dst, vbuckets: 192, docs: 600, src: func(c *simcluster.Config) { c.Version = src }})
					if len(p.missing) != 64 {
						t.Fatalf("%d vbuckets are missing, want 64", len(p.missing))
					}
					if modern(src) && modern(dst) {
						p.loadModern()
					}
					if _, _, err := p.run(nil, nil); err != nil {
						t.Fatal(err)
					}
					p.compareAll(src, dst)
				})
			}
		}
	}
}

func modern(version string) bool { return version[0] >= '5' }

// loadModern stores in the source what only servers from 5.0 on have: datatypes,
// compressed values, extended attributes also of tombstones, and expirations. In
// the vbuckets that are not missing the destination has them too.
func (p *pair) loadModern() {
	p.t.Helper()
	pair := []byte("_sync\x00{\"rev\":1}\x00")
	xattrs := append(binary.BigEndian.AppendUint32(nil, uint32(len(pair))+4), binary.BigEndian.AppendUint32(nil, uint32(len(pair)))...)
	xattrs = append(xattrs, pair...)
	body := []byte(`{"answer":42,"pad":"` + strings.Repeat("y", 100) + `"}`)
	for i := range 600 {
		d := simcluster.Doc{Key: fmt.Appendf(nil, "modern-%04d", i), Value: body, Datatype: mcbp.DatatypeJSON, Flags: 0x2000006,
			CAS: 0x1500_0000_0000_0000 + uint64(i)<<16, Rev: uint64(1 + i%3)}
		switch i % 6 {
		case 1:
			d.Value, d.Datatype = snappy.Encode(nil, body), mcbp.DatatypeJSON|mcbp.DatatypeSnappy
		case 2:
			d.Value, d.Datatype = slices.Concat(xattrs, body), mcbp.DatatypeJSON|mcbp.DatatypeXattr
		case 3:
			d.Value, d.Datatype = snappy.Encode(nil, slices.Concat(xattrs, body)), mcbp.DatatypeJSON|mcbp.DatatypeXattr|mcbp.DatatypeSnappy
		case 4:
			d.Value, d.Datatype, d.Flags, d.Deleted, d.DeleteTime = xattrs, mcbp.DatatypeXattr, 0, true, 1_800_000_000+uint32(i)
		case 5:
			d.Value, d.Datatype, d.Flags, d.Deleted, d.Expired, d.DeleteTime = nil, 0, 0, true, true, 1_800_000_000+uint32(i)
		}
		for _, c := range []*simcluster.Cluster{p.src, p.dst} {
			if c == p.dst && slices.Contains(p.missing, c.Bucket(bucket).VBucketOf(d.Key)) {
				continue
			}
			if err := c.Bucket(bucket).Store(d); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

// compareAll compares every document and every tombstone of both clusters: bytes and
// all metadata that the two versions can hold and the protocols between them carry.
func (p *pair) compareAll(src, dst string) {
	p.t.Helper()
	p.whole()
	differ, compared := 0, 0
	for _, deleted := range []bool{false, true} {
		want, got := p.held(p.src, deleted), p.held(p.dst, deleted)
		for id, w := range want {
			var vb uint16
			if _, err := fmt.Sscanf(id, "%d/", &vb); err != nil {
				p.t.Fatal(err)
			}
			if !slices.Contains(p.missing, vb) {
				continue // nothing was brought there
			}
			compared++
			g, ok := got[id]
			w.Seqno, g.Seqno = 0, 0 // of its own
			if deleted && dst == "2.5.1" {
				w.CAS, g.CAS = 0, 0 // TAP deletions get a new one there
			}
			if !modern(src) || !modern(dst) {
				// Servers before 5.0 keep no time of deletions, and find JSON by themselves.
				w.DeleteTime, g.DeleteTime, w.Datatype, g.Datatype = 0, 0, 0, 0
			}
			if src == "6.0.4" || dst == "6.0.4" {
				w.Expired, g.Expired = false, false // an expiration is a deletion to it
			}
			if len(w.Value) == 0 && len(g.Value) == 0 {
				w.Value, g.Value = nil, nil
			}
			if ok && reflect.DeepEqual(w, g) {
				continue
			}
			if differ++; differ <= 3 {
				p.t.Errorf("%s: %+v at the source, %+v (%v) at the destination", id, w, g, ok)
			}
		}
	}
	if compared < 150 {
		p.t.Errorf("only %d documents and tombstones were compared", compared)
	}
}
