package mc

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

var modern = []string{"6.0.4", "6.6.5", "7.0.5"}

// docs returns everything that the nodes hold, tombstones too, by node order.
func docs(c *simcluster.Cluster) map[string]simcluster.Doc {
	out := map[string]simcluster.Doc{}
	c.Bucket("default").Each(func(_ uint16, d simcluster.Doc) bool {
		out[string(d.Key)] = d
		return true
	})
	return out
}

func xattrs(body string) []byte {
	pair := []byte("\x00\x00\x00\x0a_sync\x00{}\x00")
	binary.BigEndian.PutUint32(pair, uint32(len(pair)-4))
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(pair))), pair...), body...)
}

// TestDatatypes: what 5.0 and later negotiate is kept bit for bit; what older ones
// cannot hold is refused by name, or unpacked where that was asked for.
func TestDatatypes(t *testing.T) {
	packed := snappy.Encode(nil, bytes.Repeat([]byte("value "), 50))
	typed := func(key string, value []byte, datatype uint8) pump.Item {
		it := meta(key, "", 1, 77)
		it.Value, it.Datatype, it.Seqno = value, datatype, 9
		return it
	}
	batch := func() []pump.Item {
		dead := typed("tombstone", xattrs(""), mcbp.DatatypeXattr)
		dead.Op, dead.Expiry = pump.Deletion, 1_600_000_000
		told, untold := typed("json told 0", []byte(`{"a":1}`), 0), typed("json untold", []byte(`{"a":1}`), 0)
		untold.Seqno = 0
		return []pump.Item{
			typed("json", []byte(`{"a":1}`), mcbp.DatatypeJSON), typed("packed", packed, mcbp.DatatypeSnappy),
			typed("xattr", xattrs(`{"a":1}`), mcbp.DatatypeXattr|mcbp.DatatypeJSON),
			typed("packed xattr", snappy.Encode(nil, xattrs("x")), mcbp.DatatypeXattr|mcbp.DatatypeSnappy),
			dead, told, untold, typed("text", []byte("just text"), 0), typed("strange", []byte("v"), 0x40),
		}
	}
	for _, v := range modern {
		t.Run(v, func(t *testing.T) {
			c := sinktest.Cluster(t, simcluster.Config{Version: v})
			l := sinktest.Lane(t, openCB(t, c, nil))
			want := batch()
			b := sinktest.Write(t, l, batch()...)
			sinktest.Verdicts(t, b, pump.Done, pump.Done, pump.Done, pump.Done, pump.Done, pump.Done, pump.Done, pump.Done, pump.Rejected)
			have := docs(c)
			for _, it := range want[:8] {
				datatype := it.Datatype
				if string(it.Key) == "json untold" {
					datatype = mcbp.DatatypeJSON
				}
				d := have[string(it.Key)]
				if !bytes.Equal(d.Value, it.Value) || d.Datatype != datatype || d.CAS != 77 || d.Deleted != (it.Op != pump.Mutation) {
					t.Errorf("%s: %+v", it.Key, d)
				}
			}
			// Plain requests carry no extended attributes; an item without metadata that
			// has some gets there all the same.
			plain := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Options.WithMeta = false }))
			b = sinktest.Write(t, plain, typed("p", xattrs("x"), mcbp.DatatypeXattr), typed("q", packed, mcbp.DatatypeSnappy))
			sinktest.Verdicts(t, b, pump.Rejected, pump.Done)
			if pump.CodeOf(b.Cause(0)) != "item-xattr" {
				t.Errorf("cause: %v", b.Cause(0))
			}
			bare := typed("bare", xattrs("x"), mcbp.DatatypeXattr)
			bare.CAS, bare.RevSeqno = 0, 0
			sinktest.Verdicts(t, sinktest.Write(t, l, bare), pump.Done)
			if d := docs(c)["bare"]; d.Datatype != mcbp.DatatypeXattr || d.CAS == 0 || d.Rev != 1 {
				t.Errorf("bare: %+v", d)
			}
		})
	}
	c := sinktest.Cluster(t, simcluster.Config{Version: "4.0"})
	b := sinktest.Write(t, sinktest.Lane(t, openCB(t, c, nil)), batch()...)
	sinktest.Verdicts(t, b, pump.Done, pump.Done, pump.Rejected, pump.Rejected, pump.Done, pump.Done, pump.Done, pump.Done, pump.Rejected)
	if pump.CodeOf(b.Cause(2)) != "item-xattr" || !strings.Contains(pump.HintOf(b.Cause(2)), "xattrs=no") || pump.CodeOf(b.Cause(8)) != "item-datatype" {
		t.Errorf("causes: %v, %v", b.Cause(2), b.Cause(8))
	}
	broken := typed("broken", []byte("\xff\xff\xff\xff\xff"), mcbp.DatatypeSnappy)
	short := typed("short", packed[:len(packed)-3], mcbp.DatatypeSnappy)
	b = sinktest.Write(t, sinktest.Lane(t, openCB(t, c, nil)), append(batch(), broken, short, meta("last", "v", 1, 5))...)
	sinktest.Verdicts(t, b, pump.Done, pump.Done, pump.Rejected, pump.Rejected, pump.Done, pump.Done, pump.Done, pump.Done, pump.Rejected, pump.Rejected, pump.Rejected, pump.Done)
	if d := docs(c)["packed"]; !bytes.Equal(d.Value, bytes.Repeat([]byte("value "), 50)) {
		t.Errorf("unpacked: %+v", d)
	}
}

// TestRegenerate: an item whose CAS is none is written whichever way is asked for,
// and what is newer stays unless told otherwise.
func TestRegenerate(t *testing.T) {
	for _, v := range modern {
		for _, how := range []string{"resolve", "overwrite", "force"} {
			for _, resolution := range []string{"seqno", "lww"} {
				t.Run(fmt.Sprint(v, " ", how, " ", resolution), func(t *testing.T) {
					c := sinktest.Cluster(t, simcluster.Config{Version: v, Buckets: []simcluster.BucketConfig{{Name: "default", ConflictResolution: resolution}}})
					for _, d := range []simcluster.Doc{{Key: []byte("newer"), Value: []byte("dst"), Rev: 9, CAS: 1 << 50}, {Key: []byte("older"), Value: []byte("dst"), Rev: 1, CAS: 1 << 50}, {Key: []byte("doomed"), Value: []byte("dst"), Rev: 1, CAS: 1 << 50}} {
						if err := c.Bucket("default").Store(d); err != nil {
							t.Fatal(err)
						}
					}
					l := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) {
						cfg.Options.ConflictResolution = how == "resolve"
						cfg.Force = how == "force"
					}))
					ones := meta("ones", "src", 4, ^uint64(0))
					x := meta("xattr", "", 4, 0)
					x.Value, x.Datatype = xattrs("x"), mcbp.DatatypeXattr
					b := sinktest.Write(t, l, meta("newer", "src", 4, 0), meta("older", "src", 4, 0), meta("absent", "src", 4, 0), ones, x, deletion("doomed", 4, 0), meta("good", "src", 4, 123))
					older := pump.Done
					newer := pump.Done
					if how == "resolve" {
						newer = pump.Skipped
						if resolution == "lww" {
							older = pump.Skipped // no CAS loses against any
						}
					}
					sinktest.Verdicts(t, b, newer, older, pump.Done, pump.Done, pump.Done, older, pump.Done)
					have := docs(c)
					for key, want := range map[string]pump.Verdict{"newer": newer, "older": older, "absent": pump.Done, "ones": pump.Done} {
						d := have[key]
						if (string(d.Value) == "src") != (want == pump.Done) || want == pump.Done && (d.Rev != 4 || badCAS(d.CAS)) {
							t.Errorf("%s: %+v", key, d)
						}
					}
					if have["doomed"].Deleted != (older == pump.Done) || have["xattr"].Datatype != mcbp.DatatypeXattr || have["good"].CAS != 123 {
						t.Errorf("holds %+v", have)
					}
					if b.Verdict(0) == pump.Done {
						return
					}
					if pump.CodeOf(b.Cause(0)) != "newer" {
						t.Errorf("cause: %v", b.Cause(0))
					}
				})
			}
		}
	}
}

// TestCollections: items go by the names of scope and collection; the manifest is
// read again when a node does not know a collection any more.
func TestCollections(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "7.0.5", Nodes: 2})
	bucket := c.Bucket("default")
	if _, err := bucket.CreateScope("shop"); err != nil {
		t.Fatal(err)
	}
	for name, ttl := range map[string]uint32{"items": 0, "brief": 60} {
		if _, err := bucket.CreateCollection("shop", name, ttl); err != nil {
			t.Fatal(err)
		}
	}
	items, brief := &pump.Collection{Scope: "shop", Name: "items"}, &pump.Collection{Scope: "shop", Name: "brief"}
	in := func(coll *pump.Collection, key, value string, rev uint64) pump.Item {
		it := meta(key, value, rev, 1<<40+rev)
		it.Collection = coll
		return it
	}
	count := func() (n int) {
		bucket.Each(func(_ uint16, d simcluster.Doc) bool {
			if !d.Deleted {
				n++
			}
			return true
		})
		return n
	}
	s := openCB(t, c, nil)
	l := sinktest.Lane(t, s)
	first := func() []pump.Item {
		return []pump.Item{in(items, "k", "v", 1), in(nil, "k", "v", 2), in(brief, "k", "v", 3), in(items, strings.Repeat("k", 246), "v", 1), in(items, strings.Repeat("k", 247), "v", 1), in(nil, strings.Repeat("k", 250), "v", 1)}
	}
	for range 2 { // again: the same items are done, also where the maximum time to live changed one
		sinktest.Verdicts(t, sinktest.Write(t, l, first()...), pump.Done, pump.Done, pump.Done, pump.Done, pump.Rejected, pump.Done)
	}
	if n := count(); n != 5 {
		t.Errorf("%d documents", n)
	}
	// Items without a CAS take the second round, each in its own collection.
	sinktest.Verdicts(t, sinktest.Write(t, l, in(items, "z", "items", 1), in(nil, "z", "default", 1)), pump.Done, pump.Done)
	a, b := in(items, "z", "items 2", 5), in(nil, "z", "default 2", 5)
	a.CAS, b.CAS = 0, 0
	sinktest.Verdicts(t, sinktest.Write(t, l, a, b), pump.Done, pump.Done)
	if n := count(); n != 7 {
		t.Errorf("%d documents", n)
	}

	err := l.Write(context.Background(), sinktest.Batch(in(&pump.Collection{Scope: "no", Name: "such"}, "k", "v", 1)))
	if pump.CodeOf(err) != "no-collection" || pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(err.Error(), "no.such") || !strings.Contains(pump.HintOf(err), "create-collections") {
		t.Errorf("missing: %v", err)
	}

	// Dropped and made again under another id: one round is lost, nothing else.
	if err := bucket.DropCollection("shop", "items"); err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.CreateCollection("shop", "items", 0); err != nil {
		t.Fatal(err)
	}
	got := sinktest.Write(t, l, in(items, "k", "v", 1), in(nil, "k", "v", 9))
	sinktest.Verdicts(t, got, pump.Retry, pump.Done)
	if pump.CodeOf(got.Cause(0)) != "unknown-collection" {
		t.Errorf("cause: %v", got.Cause(0))
	}
	sinktest.Verdicts(t, sinktest.Write(t, l, in(items, "k", "v", 1)), pump.Done)
	if err := bucket.DropCollection("shop", "items"); err != nil {
		t.Fatal(err)
	}
	sinktest.Verdicts(t, sinktest.Write(t, l, in(items, "k", "v", 1)), pump.Retry)
	if err := l.Write(context.Background(), sinktest.Batch(in(items, "k", "v", 1))); pump.CodeOf(err) != "no-collection" {
		t.Errorf("dropped for good: %v", err)
	}

	made := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) {
		cfg.Options.CreateCollections, cfg.Options.MapCollections = true, "shop.items=new.things, _default._default=shop.brief"
	}))
	before := count()
	sinktest.Verdicts(t, sinktest.Write(t, made, in(items, "m", "v", 1), in(nil, "m", "v", 1)), pump.Done, pump.Done)
	if n := count(); n != before+2 {
		t.Errorf("%d documents, before %d", n, before)
	}
	m := bucket.Manifest()
	if !slices.ContainsFunc(m.Scopes, func(s simcluster.Scope) bool { return s.Name == "new" }) {
		t.Errorf("manifest %+v", m)
	}
}

func TestCollectionsOfOldServers(t *testing.T) {
	for _, v := range []string{"4.0", "6.6.5"} {
		c := sinktest.Cluster(t, simcluster.Config{Version: v})
		it := meta("k", "v", 1, 5)
		it.Collection = &pump.Collection{Scope: "shop", Name: "items"}
		err := sinktest.Lane(t, openCB(t, c, nil)).Write(context.Background(), sinktest.Batch(it))
		if pump.CodeOf(err) != "no-collection" || pump.ClassOf(err) != pump.ClassFailed {
			t.Errorf("%s: %v", v, err)
		}
		l := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Options.MapCollections = "shop.items=_default._default" }))
		sinktest.Verdicts(t, sinktest.Write(t, l, it), pump.Done)
	}
}

// TestReplicaWithoutCollection: a fresh replica refuses a named collection even under
// force; the run stops and says what does it instead.
func TestReplicaWithoutCollection(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "7.0.5", Nodes: 1})
	vb := c.Bucket("default").VBucketOf([]byte("k"))
	n := c.Nodes()[0]
	n.SetVBucket("default", vb, mcbp.VBAbsent)
	if _, err := c.Bucket("default").CreateCollection("_default", "c", 0); err != nil {
		t.Fatal(err)
	}
	n.SetVBucket("default", vb, mcbp.VBReplica)
	it := meta("k", "v", 1, 5)
	it.Collection = &pump.Collection{Scope: "_default", Name: "c"}
	l := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Force = true }))
	sinktest.Verdicts(t, sinktest.Write(t, l, meta("k", "v", 1, 5)), pump.Done)
	if err := l.Write(context.Background(), sinktest.Batch(it)); pump.CodeOf(err) != "replica-collection" || !strings.Contains(pump.HintOf(err), "dcp://") {
		t.Errorf("got %v", err)
	}
}

// TestMapInRefusal: the map that comes with NOT_MY_VBUCKET is used; the REST port
// is not asked again.
func TestMapInRefusal(t *testing.T) {
	for _, v := range []string{"4.0", "6.6.5", "7.0.5"} {
		c := sinktest.Cluster(t, simcluster.Config{Version: v, Nodes: 3})
		l := sinktest.Lane(t, openCB(t, c, nil))
		batch := func(rev uint64) []pump.Item {
			items := items("k", 100, 20)
			for i := range items {
				items[i].CAS, items[i].RevSeqno = 100*rev, rev
			}
			return items
		}
		if n := count(sinktest.Write(t, l, batch(1)...), pump.Done); n != 100 {
			t.Fatalf("%d done", n)
		}
		// A map that is wrong about everything, and connections that were made when it
		// was right.
		lane := l.(cbAhead).cbLane
		old := lane.sink.view.Load()
		wrong := &view{bucket: old.bucket, addrs: old.addrs}
		for _, o := range old.owner {
			wrong.owner = append(wrong.owner, (o+1)%len(old.addrs))
		}
		lane.sink.view.Store(wrong)
		for _, n := range lane.nodes {
			for vb := range n.states {
				n.states[vb] = mcbp.VBActive
			}
		}
		for _, n := range c.Nodes() {
			if v != "4.0" { // up to 4.x the map does not come
				n.InjectREST(simcluster.RESTFault{Method: "GET"})
			}
		}
		if b := sinktest.Write(t, l, batch(2)...); count(b, pump.Retry) != 100 || pump.CodeOf(b.Cause(0)) != "not-my-vbucket" {
			t.Errorf("%s: with the wrong map: %s, %v", v, b.Verdict(0), b.Cause(0))
		}
		if n := count(sinktest.Write(t, l, batch(2)...), pump.Done); n != 100 {
			t.Errorf("%s: %d done with the new map", v, n)
		}
	}
}

func TestDurable(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			t.Parallel() // each waits for a disk most of its time
			c := sinktest.Cluster(t, simcluster.Config{Version: v, FlushDelay: 50 * time.Millisecond})
			l := sinktest.Lane(t, openCB(t, c, func(cfg *CBConfig) { cfg.Options.Durable = true }))
			sinktest.Verdicts(t, sinktest.Write(t, l, meta("a", "v", 1, 5), meta("b", "v", 1, 5), deletion("c", 1, 5)), pump.Done, pump.Done, pump.Done)
			slow := sinktest.Cluster(t, simcluster.Config{Version: v, FlushDelay: time.Hour})
			l = sinktest.Lane(t, openCB(t, slow, func(cfg *CBConfig) { cfg.Options.Durable, cfg.Options.Timeout = true, 3*time.Second }))
			b := sinktest.Write(t, l, meta("a", "v", 1, 5))
			sinktest.Verdicts(t, b, pump.Retry)
			if code := pump.CodeOf(b.Cause(0)); code != "not-flushed" && code != "not-persistent" {
				t.Errorf("cause: %v", b.Cause(0))
			}
		})
	}
}

func TestObserved(t *testing.T) {
	p := []byte{0, 0, 7}
	for _, n := range []uint64{99, 41, 42} {
		p = binary.BigEndian.AppendUint64(p, n)
	}
	if on, err := parseObserved(p, 7, 99); on != 41 || err != nil {
		t.Errorf("%d, %v", on, err)
	}
	for name, bad := range map[string][]byte{"short": p[:26], "another vbucket": append([]byte{0, 0, 8}, p[3:]...), "failed over": append([]byte{1, 0, 7}, p[3:]...)} {
		if _, err := parseObserved(bad, 7, 99); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := parseObserved(p, 7, 98); err == nil {
		t.Error("another branch is taken")
	}
}

// TestLocked: a key with a durable write under way is to be retried.
func TestLocked(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "7.0.5"})
	release := c.Bucket("default").HoldKey(0, []byte("k"))
	l := sinktest.Lane(t, openCB(t, c, nil))
	b := sinktest.Write(t, l, meta("k", "v", 1, 5), meta("other", "v", 1, 5))
	sinktest.Verdicts(t, b, pump.Retry, pump.Done)
	if pump.CodeOf(b.Cause(0)) != "locked" {
		t.Errorf("cause: %v", b.Cause(0))
	}
	release()
	sinktest.Verdicts(t, sinktest.Write(t, l, meta("k", "v", 1, 5)), pump.Done)
}

// TestTLS: REST and data connections are encrypted, and an unknown authority is
// refused before anything is sent.
func TestTLS(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "7.0.5", TLS: &simcluster.TLSConfig{}})
	secure := func(cfg *CBConfig) { cfg.URL, cfg.TLS.CACertPEM = "https://"+c.Nodes()[0].RESTTLS(), c.CACert() }
	sinktest.Verdicts(t, sinktest.Write(t, sinktest.Lane(t, openCB(t, c, secure)), meta("k", "v", 1, 5), meta("l", "v", 1, 5)), pump.Done, pump.Done)
	if len(docs(c)) != 2 {
		t.Errorf("holds %v", docs(c))
	}
	s := openCB(t, c, func(cfg *CBConfig) { cfg.URL = "https://" + c.Nodes()[0].RESTTLS() })
	defer s.Close()
	if _, err := s.Lanes(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
}

func TestMapping(t *testing.T) {
	for text, ok := range map[string]bool{"": true, "a.b=c.d": true, "a.b=c.d,e.f=g.h": true, " a.b=c.d , e.f=g.h ": true,
		"a.b": false, "a=b": false, "a.b=c": false, "a.b=c.d,a.b=e.f": false, "a.b=c.d=e.f": false, "a.b=c.d,": false, ".b=c.d": false, "a.=c.d": false} {
		c := CBConfig{URL: "http://127.0.0.1:1", Options: DefaultCBOptions()}
		c.Options.MapCollections = text
		if _, err := NewCB(t.Context(), c); (err == nil) != ok || err != nil && pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%q: %v", text, err)
		}
	}
}
