package plugins

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/couchbase/gomemcached/client"
	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

const (
	deleteTime = 1_700_000_000
	expiryTime = 2_000_000_000
)

// xattrs puts extended attributes in front of a body.
func xattrs(body string) []byte {
	pair := "\x00\x00\x00\x09_sync\x00{}\x00"
	return append([]byte{0, 0, 0, byte(len(pair))}, pair+body...)
}

// forms are documents in every form that a server from 5.5 on stores.
func forms() []simcluster.Doc {
	text := strings.Repeat("text ", 40)
	object := `{"a":"` + strings.Repeat("b", 200) + `"}`
	pack := func(v []byte) []byte { return snappy.Encode(nil, v) }
	return []simcluster.Doc{
		{Key: []byte("plain"), Value: []byte(text), Flags: 7, Expiry: expiryTime},
		{Key: []byte("json"), Value: []byte(object), Datatype: 1},
		{Key: []byte("packed"), Value: pack([]byte(text)), Datatype: 2, Flags: 9},
		{Key: []byte("packed-json"), Value: pack([]byte(object)), Datatype: 3},
		{Key: []byte("xattr"), Value: xattrs(object), Datatype: 5},
		{Key: []byte("packed-xattr"), Value: pack(xattrs(object)), Datatype: 7},
		{Key: []byte("gone"), Deleted: true, DeleteTime: deleteTime},
		{Key: []byte("gone-xattr"), Value: xattrs(""), Datatype: 4, Deleted: true, DeleteTime: deleteTime},
		{Key: []byte("expired"), Deleted: true, Expired: true, DeleteTime: deleteTime},
	}
}

func startSim(t *testing.T, version string, states mcbp.VBState) *simcluster.Cluster {
	t.Helper()
	c, err := simcluster.Start(simcluster.Config{Version: version, Nodes: 2, VBuckets: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for _, n := range c.Nodes() {
		for vb := range uint16(8) {
			if s, _ := n.VBucket("default", vb); s == mcbp.VBActive && states != mcbp.VBActive {
				n.SetVBucket("default", vb, states)
			}
		}
	}
	return c
}

// heldBy lists what the nodes of a cluster hold.
func heldBy(c *simcluster.Cluster) map[string]simcluster.Doc {
	out := map[string]simcluster.Doc{}
	for _, n := range c.Nodes() {
		for vb := range uint16(8) {
			n.EachDoc("default", vb, func(d simcluster.Doc) bool {
				d.Key, d.Value = bytes.Clone(d.Key), bytes.Clone(d.Value)
				out[string(d.Key)] = d
				return true
			})
		}
	}
	return out
}

// copyForms copies the forms out of a 7.0 cluster.
func copyForms(t *testing.T, to, password, options string) *pump.Report {
	t.Helper()
	from := startSim(t, "7.0.5", mcbp.VBActive)
	for _, d := range forms() {
		if err := from.Bucket("default").Store(d); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Transfer()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	source, err := r.Source(ctx, from.URL()+options, pump.Env{Username: "Administrator", Password: "password"})
	if err != nil {
		t.Fatal(err)
	}
	env := pump.Env{Password: password}
	if password != "" {
		env.Username = "Administrator"
	}
	sink, err := r.Sink(ctx, to, env)
	if err != nil {
		t.Fatal(err)
	}
	report, err := pump.Run(ctx, pump.Config{Source: source, Sink: sink, Settings: pump.DefaultSettings(), Scribble: true})
	if err != nil && pump.ClassOf(err) != pump.ClassPartial {
		t.Fatal(err)
	}
	return report
}

// plainForm is a value as a client sees it.
func plainForm(d simcluster.Doc) []byte {
	v := d.Value
	if d.Datatype&2 != 0 {
		v, _ = snappy.Decode(nil, v)
	}
	if d.Datatype&4 != 0 {
		v = v[4+int(v[3]):]
	}
	return v
}

// TestForms copies documents in every form to every kind of destination: each keeps
// what it can store, gets plain values where it cannot, and refuses by name what
// would lose something.
func TestForms(t *testing.T) {
	refused := []string{"packed-xattr", "xattr"}
	check := func(t *testing.T, report *pump.Report, rejected []string) {
		t.Helper()
		var have []string
		for _, r := range report.Rejections {
			have = append(have, string(r.Key))
			if text := r.Cause.Error(); !strings.Contains(text, "extended attributes") || !strings.Contains(pump.HintOf(r.Cause), "xattrs=no") {
				t.Errorf("%s is rejected for %v (%s)", r.Key, r.Cause, pump.HintOf(r.Cause))
			}
		}
		slices.Sort(have)
		if !slices.Equal(have, rejected) || int(report.Done) != len(forms())-len(rejected) || report.Read != uint64(len(forms())) {
			t.Errorf("rejected %q, %q are due: %+v", have, rejected, report.Snapshot)
		}
	}
	for name, state := range map[string]mcbp.VBState{"http": mcbp.VBActive, "dcp": mcbp.VBReplica} {
		t.Run(name+" 7.0", func(t *testing.T) {
			c := startSim(t, "7.0.5", state)
			to := c.URL()
			if name == "dcp" {
				to = "dcp" + strings.TrimPrefix(to, "http")
			}
			check(t, copyForms(t, to, "password", ""), nil)
			have := heldBy(c)
			for _, want := range forms() {
				d, ok := have[string(want.Key)]
				if !ok || d.Datatype != want.Datatype || !bytes.Equal(d.Value, want.Value) || d.Flags != want.Flags || d.Expiry != want.Expiry ||
					d.Deleted != want.Deleted || d.DeleteTime != want.DeleteTime || name == "dcp" && d.Expired != want.Expired {
					t.Errorf("is    %+v\nis due %+v", d, want)
				}
			}
		})
	}
	for name, state := range map[string]mcbp.VBState{"http": mcbp.VBActive, "tap": mcbp.VBReplica, "dcp": mcbp.VBReplica} {
		for _, options := range []string{"", "?xattrs=no"} {
			t.Run(name+" 4.0"+options, func(t *testing.T) {
				c := startSim(t, "4.0", state)
				rejected := refused
				if options != "" {
					rejected = nil
				}
				to := name + strings.TrimPrefix(c.URL(), "http")
				check(t, copyForms(t, to, "password", options), rejected)
				have := heldBy(c)
				for _, want := range forms() {
					d, ok := have[string(want.Key)]
					switch {
					case slices.Contains(rejected, string(want.Key)):
						if ok {
							t.Errorf("%s was rejected and is there", want.Key)
						}
					case want.Deleted:
						if ok && !d.Deleted {
							t.Errorf("%s is not deleted", want.Key)
						}
					case !ok || !bytes.Equal(d.Value, plainForm(want)) || d.Datatype&^1 != 0 || d.Flags != want.Flags || d.Expiry != want.Expiry:
						t.Errorf("is    %+v\nis due %+v", d, want)
					}
				}
			})
		}
	}
	t.Run("memcached", func(t *testing.T) {
		server := realmc.Start(t)
		check(t, copyForms(t, "memcached://"+server.Addr, "", ""), refused)
		mc, err := memcached.Connect("tcp", server.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer mc.Close()
		for _, want := range forms() {
			answer, err := mc.Get(0, string(want.Key))
			if due := !want.Deleted && !slices.Contains(refused, string(want.Key)); due != (err == nil) {
				t.Errorf("%s: %v", want.Key, err)
			} else if due && !bytes.Equal(answer.Body, plainForm(want)) {
				t.Errorf("%s is %q", want.Key, answer.Body)
			}
		}
	})
	t.Run("jsonl", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "forms.jsonl")
		check(t, copyForms(t, "jsonl:"+path, "", ""), nil)
		r, err := Transfer()
		if err != nil {
			t.Fatal(err)
		}
		source, err := r.Source(context.Background(), "jsonl:"+path, pump.Env{})
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]pump.Item{}
		for _, it := range pumptest.ReadAll(t, source, 64<<10) {
			have[string(it.Key)] = it
		}
		for _, want := range forms() {
			it, ok := have[string(want.Key)]
			op := pump.Mutation
			switch {
			case want.Expired:
				op = pump.Expiration
			case want.Deleted:
				op = pump.Deletion
			}
			if !ok || it.Op != op || it.Datatype != want.Datatype || !bytes.Equal(it.Value, want.Value) || it.Expiry != max(want.Expiry, want.DeleteTime) {
				t.Errorf("is    %+v\nis due %+v", it, want)
			}
		}
	})
	t.Run("documents", func(t *testing.T) {
		t.Chdir(t.TempDir())
		report := copyForms(t, "json:docs?not-json=write", "", "")
		for _, r := range report.Rejections {
			if due := strings.HasPrefix(string(r.Key), "gone") || string(r.Key) == "expired"; !due && !slices.Contains(refused, string(r.Key)) {
				t.Errorf("%s is rejected for %v", r.Key, r.Cause)
			}
		}
		for _, want := range forms()[:4] {
			if have, err := os.ReadFile("docs/docs/" + string(want.Key) + ".json"); err != nil || !bytes.Equal(have, plainForm(want)) {
				t.Errorf("%s is %q, %v", want.Key, have, err)
			}
		}
		for _, key := range refused {
			if !slices.ContainsFunc(report.Rejections, func(r pump.Rejection) bool { return string(r.Key) == key }) {
				t.Errorf("%s was not refused", key)
			}
		}
	})
}
