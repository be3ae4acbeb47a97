package cluster

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

func TestShape76(t *testing.T) {
	b, err := decode(testdata(t, "7.6-beer.json"), "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if !b.LastWriteWins() || b.StorageBackend != "magma" || b.ManifestUID != 0x1f || !b.HasCapability("collections") || b.HasCapability("tap") ||
		b.UUID != "b6d38cd1d4b6e2ad2f4e3e1f2a9a1c55" || b.password != nil {
		t.Errorf("%+v", b)
	}
	n := b.Nodes[0]
	if n.Version != (Version{7, 6, 2}) || n.Compat != (Version{7, 6, 0}) || b.Nodes[1].Version != (Version{7, 0, 5}) || b.MinVersion() != (Version{7, 0, 5}) {
		t.Errorf("%+v, at least %v", b.Nodes, b.MinVersion())
	}
	for body, says := range map[string]string{
		strings.Replace(testdata(t, "7.6-beer.json"), `"1f"`, `"0x1f"`, 1): `collectionsManifestUid is "0x1f"`,
		strings.Replace(testdata(t, "7.6-beer.json"), `"1f"`, `31`, 1):     "does not fit",
	} {
		var d bucketDoc
		err := decodeJSON([]byte(body), &d)
		if err == nil {
			_, err = d.bucket("h")
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %s", err, says)
		}
	}
	for kind, doc := range map[string]string{"ephemeral": "ephemeral", "couchbase": "couchbase"} {
		b, err := decode(strings.Replace(testdata(t, "7.6-beer.json"), `"membase"`, `"`+doc+`"`, 1), "h")
		if err != nil || b.Type != kind || b.RequireVBuckets("source") != nil {
			t.Errorf("%s: %+v, %v", kind, b, err)
		}
	}
	seqno, err := decode(testdata(t, "4.0-beer.json"), "fd00::1")
	if err != nil || seqno.LastWriteWins() || seqno.Capabilities != nil || seqno.ManifestUID != 0 {
		t.Errorf("%+v, %v", seqno, err)
	}
	// A node whose version is unknown leaves the least version unknown.
	if v := seqno.MinVersion(); v != (Version{}) {
		t.Error(v)
	}
	if v := (&Bucket{}).MinVersion(); v != (Version{}) {
		t.Error(v)
	}
}

// TestNetworks reads the 7.6 bucket from the address base in every way.
func TestNetworks(t *testing.T) {
	docs := map[string]string{
		"/pools/default/buckets/beer": testdata(t, "7.6-beer.json"),
		"/pools/default/nodeServices": testdata(t, "7.6-nodeServices.json"),
		"/pools/default": `{"nodes":[{"hostname":"10.0.0.1:8091","otpNode":"a","version":"7.6.2","ports":{"direct":11210}},
			{"hostname":"10.0.0.9:8091","otpNode":"b","clusterMembership":"inactiveFailed","version":"7.6.2","ports":{"direct":11210}}]}`,
	}
	inside, insideTLS := "10.0.0.1:11210 10.0.0.2:11210", "10.0.0.1:11207 10.0.0.2:11207"
	outside, outsideTLS := "db1.example:31210 db2.example:11210", "db1.example:31207 db2.example:11207"
	for _, q := range []struct {
		base, network string
		tls           bool
		want          string
	}{
		{"10.0.0.1:8091", "", false, inside},
		{"10.0.0.1:18091", "auto", true, insideTLS},
		{"db1.example:38091", "auto", false, outside},
		{"db1.example:38191", "auto", true, outsideTLS},
		{"db2.example:12345", "auto", false, outside}, // a port that is forwarded
		{"DB2.example:8091", "auto", true, outsideTLS},
		{"elsewhere:8091", "auto", false, inside},
		{"elsewhere:8091", "auto", true, insideTLS},
		{"10.0.0.3:8091", "auto", false, inside},
		{"10.0.0.1:8091", "external", false, outside},
		{"10.0.0.1:8091", "external", true, outsideTLS},
		{"db1.example:38091", "default", false, inside},
		{"db1.example:38191", "default", true, insideTLS},
	} {
		t.Run(fmt.Sprint(q), func(t *testing.T) {
			c := serveDocs(t, docs)
			network := q.network
			if network == "" {
				network = NetworkAuto
			}
			c.view = view{base: q.base, tls: q.tls, network: network}
			b, err := c.Bucket(t.Context(), "beer")
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(b.Map.Servers, " "); got != q.want {
				t.Errorf("map: %s, want %s", got, q.want)
			}
			var nodes []string
			for _, n := range b.Nodes {
				nodes = append(nodes, n.KV)
				if _, ok := b.NodeByKV(n.KV); !ok || c.KV(b, n.KV).Version != n.Version {
					t.Errorf("%s is not found again", n.KV)
				}
			}
			if got := strings.Join(nodes, " "); got != q.want {
				t.Errorf("nodes: %s, want %s", got, q.want)
			}
			all, err := c.Nodes(t.Context())
			if err != nil || all[0].KV != nodes[0] {
				t.Errorf("%+v, %v", all, err)
			}
			// A failed over node has no other address any more.
			if want := map[bool]string{true: "10.0.0.9:11210"}[q.want == inside]; all[1].KV != want {
				t.Errorf("%+v", all[1])
			}
		})
	}

	// Networks that the cluster does not have.
	for name, q := range map[string]struct {
		view     view
		services string
		want     wantError
	}{
		"not told":  {view{tls: true, network: NetworkAuto}, "", wantError{class: pump.ClassUsage, code: "no-node-services", says: []string{"how nodes are reached"}}},
		"no ports":  {view{tls: true, network: NetworkAuto}, strings.ReplaceAll(docs["/pools/default/nodeServices"], "kvSSL", "x"), wantError{class: pump.ClassUsage, code: "no-data-port", says: []string{"kvSSL", `read bucket "beer"`}}},
		"no nodes":  {view{tls: true, network: NetworkAuto}, `{}`, wantError{code: "unknown-node"}},
		"not JSON":  {view{network: NetworkExternal}, `<html>`, wantError{class: pump.ClassUnreachable, code: "bad-document"}},
		"no others": {view{network: NetworkExternal}, strings.ReplaceAll(docs["/pools/default/nodeServices"], "external", "x"), wantError{class: pump.ClassUsage, code: "no-external-address", says: []string{"10.0.0.1:11210", "--network default"}}},
	} {
		t.Run(name, func(t *testing.T) {
			less := map[string]string{"/pools/default/buckets/beer": docs["/pools/default/buckets/beer"]}
			if q.services != "" {
				less["/pools/default/nodeServices"] = q.services
			}
			c := serveDocs(t, less)
			q.view.base = "10.0.0.1:8091"
			c.view = q.view
			_, err := c.Bucket(t.Context(), "beer")
			q.want.check(t, err)
			if name == "not told" {
				c.view.tls = false // then it does not matter
				if b, err := c.Bucket(t.Context(), "beer"); err != nil || strings.Join(b.Map.Servers, " ") != inside {
					t.Errorf("%+v, %v", b, err)
				}
			}
		})
	}
	// A cluster that allows TLS only does not list the other ports.
	only := strings.ReplaceAll(docs["/pools/default/nodeServices"], `"kv":11210,`, "")
	c := serveDocs(t, map[string]string{"/pools/default/buckets/beer": docs["/pools/default/buckets/beer"], "/pools/default/nodeServices": only})
	c.view = view{tls: true, network: NetworkAuto, base: "10.0.0.1:18091"}
	if b, err := c.Bucket(t.Context(), "beer"); err != nil || strings.Join(b.Map.Servers, " ") != insideTLS {
		t.Errorf("%+v, %v", b, err)
	}
	_, err := NewClient("h", Config{Role: "source", Network: "outer"})
	wantError{class: pump.ClassUsage, code: "usage", says: []string{`"outer"`, "auto, default or external"}}.check(t, err)
}

// TestOldClustersAreAskedLess: what came with 5.5 is not asked of older ones.
func TestOldClustersAreAskedLess(t *testing.T) {
	var asked []string
	c := rest(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		_, _ = w.Write([]byte(strings.ReplaceAll(testdata(t, "4.0-beer.json"), "10.0.0-1-enterprise", "5.1.0")))
	})
	if _, err := c.Bucket(t.Context(), "beer"); err != nil || slices.ContainsFunc(asked, func(p string) bool { return strings.Contains(p, "nodeServices") }) {
		t.Errorf("%v after %q", err, asked)
	}
}

const manifestDoc = `{"uid":"1a","scopes":[{"name":"_default","uid":"0","collections":[{"name":"_default","uid":"0"},{"name":"x","uid":"b","maxTTL":-1}]},
	{"name":"shop","uid":"8","collections":[{"name":"items","uid":"8","maxTTL":0},{"name":"big","uid":"1234","maxTTL":60,"history":true}]},{"name":"empty","uid":"9","collections":[]}]}`

func TestManifest(t *testing.T) {
	m, err := ParseManifest([]byte(manifestDoc))
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := m.Lookup("shop", "big"); m.UID != 0x1a || !ok || c != (Collection{0x1234, "big", 60}) {
		t.Errorf("%+v", m)
	}
	if c, ok := m.Lookup(DefaultName, "x"); !ok || c != (Collection{0xb, "x", 0}) {
		t.Errorf("%+v", c)
	}
	for _, p := range [][2]string{{"shop", "x"}, {"nosuch", "items"}, {"empty", "items"}} {
		if c, ok := m.Lookup(p[0], p[1]); ok {
			t.Errorf("%v: %+v", p, c)
		}
	}
	if s, c, ok := m.ByID(8); !ok || Path(s.Name, c.Name) != "shop.items" {
		t.Error(s, c)
	}
	if _, _, ok := m.ByID(9); ok {
		t.Error("a scope's id is no collection's")
	}
	if s, ok := m.Scope("empty"); !ok || s.ID != 9 {
		t.Error(s)
	}
	if _, ok := m.Scope("x"); ok {
		t.Error("no scope")
	}
	if c, ok := DefaultManifest().Lookup(DefaultName, DefaultName); !ok || c.ID != 0 {
		t.Error("no default collection")
	}
	for body, says := range map[string]string{
		``:                          "not JSON",
		`[]`:                        "another shape",
		`{}`:                        "no scopes",
		`{"scopes":[]}`:             `its uid is ""`,
		`{"uid":"0x1","scopes":[]}`: `its uid is "0x1"`,
		`{"uid":"+1","scopes":[]}`:  "its uid",
		`{"uid":"12345678123456781","scopes":[]}`:                                                                                                            "64 bits",
		`{"uid":1,"scopes":[]}`:                                                                                                                              "does not fit",
		`{"uid":"1","scopes":[{"name":"a","uid":"123456789"}]}`:                                                                                              `id of scope "a"`,
		`{"uid":"1","scopes":[{"name":"","uid":"1"}]}`:                                                                                                       "no name or is there twice",
		`{"uid":"1","scopes":[{"name":"a","uid":"1"},{"name":"b","uid":"1"}]}`:                                                                               "twice",
		`{"uid":"1","scopes":[{"name":"a","uid":"1"},{"name":"a","uid":"2"}]}`:                                                                               "twice",
		`{"uid":"1","scopes":[{"name":"a","uid":"1","collections":[{"name":"b","uid":"z"}]}]}`:                                                               `"a.b"`,
		`{"uid":"1","scopes":[{"name":"a","uid":"1","collections":[{"name":"b","uid":"1"},{"name":"c","uid":"1"}]}]}`:                                        "twice",
		`{"uid":"1","scopes":[{"name":"a","uid":"1","collections":[{"name":"b","uid":"1"},{"name":"b","uid":"2"}]}]}`:                                        "twice",
		`{"uid":"1","scopes":[{"name":"a","uid":"1","collections":[{"name":"b","uid":"1"}]},{"name":"c","uid":"2","collections":[{"name":"b","uid":"1"}]}]}`: "twice",
	} {
		if m, err := ParseManifest([]byte(body)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %+v, %v", body, m, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(manifestDoc))
	f.Add([]byte(`{"uid":"1","scopes":[{"name":"a","uid":"1","collections":[{"name":"b","uid":"1"},{"name":"b","uid":"2"}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := ParseManifest(body)
		if err != nil {
			return
		}
		for _, s := range m.Scopes {
			for _, c := range s.Collections {
				back, one, ok := m.ByID(c.ID)
				if !ok || back.ID != s.ID || one != c {
					t.Fatalf("%+v is found as %+v", c, one)
				}
				if named, ok := m.Lookup(s.Name, c.Name); !ok || named != c {
					t.Fatalf("%+v is found as %+v", c, named)
				}
			}
		}
	})
}

// collectionsServer is a REST port whose collections can be changed, and what it
// was told.
func collectionsServer(t *testing.T, answer func(path string, form url.Values) (int, string)) (*Client, *[]string) {
	var told []string
	c := rest(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte(manifestDoc))
			return
		}
		_ = r.ParseForm()
		told = append(told, r.URL.Path+" "+r.PostForm.Encode())
		status, body := answer(r.URL.Path, r.PostForm)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	})
	return c, &told
}
