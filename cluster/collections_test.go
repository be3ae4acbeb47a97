package cluster

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

func TestRecordedManifest(t *testing.T) {
	s := session(t, "7.0-collections-manifest")
	s.begin("@admin", "password")
	first, err := s.Manifest(t.Context())
	if err != nil || first.UID != 0 || len(first.Scopes) != 1 {
		t.Errorf("%+v, %v", first, err)
	}
	s.raw(5)
	m, err := s.Manifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct {
		scope, name string
		id, ttl     uint32
	}{{"shop", "items", 8, 0}, {"shop", "orders", 9, 3600}, {"shop", "big", 0x1234, 0}, {DefaultName, DefaultName, 0, 0}} {
		if c, ok := m.Lookup(q.scope, q.name); !ok || c.ID != q.id || c.MaxTTL != q.ttl {
			t.Errorf("%v: %+v", q, c)
		}
	}
	if s, ok := m.Scope("empty"); !ok || m.UID != 1 || s.ID != 9 || len(s.Collections) != 0 {
		t.Errorf("%+v", m)
	}
	s.raw(7)

	s = session(t, "7.0-collections-manifest-refused")
	s.begin("@admin", "password")
	for n := 4; n <= 8; n++ {
		f := s.raw(n)
		wantError{code: "kv-status", says: []string{mcbp.StatusName(f.Status())}}.check(t, s.Refused("set", &f))
	}
	if err := s.loginScram(t.Context(), "SCRAM-SHA512", s.account("beer", "beerpw")); err != nil {
		t.Error(err)
	}
	if err := s.selectBucket(t.Context(), "beer", account{}); err != nil {
		t.Error(err)
	}
	f := s.raw(len(s.client) - 1)
	wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"privilege BucketManagement"}}.check(t, s.Refused("set", &f))
}

func TestManifestRefused(t *testing.T) {
	for name, q := range map[string]struct {
		version Version
		status  mcbp.Status
		value   string
		want    wantError
	}{
		"old":     {Version{6, 6, 5}, 0, manifestDoc, wantError{class: pump.ClassUsage, code: "no-collections", says: []string{"6.6.5", "7.0"}}},
		"unknown": {Version{}, mcbp.StatusUnknown, "", wantError{class: pump.ClassUsage, code: "no-collections", says: []string{"0x81"}}},
		"denied":  {Version{7, 0, 0}, mcbp.StatusAccess, "", denied},
		"text":    {Version{7, 0, 0}, 0, "hello", wantError{code: "kv-protocol", says: []string{"manifest"}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, q.status, "", "", q.value) }), Role: "source"})
			c.version = q.version
			_, err := c.Manifest(t.Context())
			q.want.check(t, err)
		})
	}
}

func TestCreateCollections(t *testing.T) {
	ok := func(string, url.Values) (int, string) { return 200, `{"uid":"1b"}` }
	c, told := collectionsServer(t, ok)
	ctx := t.Context()
	if err := c.CreateScope(ctx, "be/er", "s"); err != nil {
		t.Error(err)
	}
	if err := c.CreateCollection(ctx, "beer", "s", "c", 0); err != nil {
		t.Error(err)
	}
	if err := c.CreateCollection(ctx, "beer", "s", "c", 60); err != nil {
		t.Error(err)
	}
	want := []string{"/pools/default/buckets/be/er/scopes name=s", "/pools/default/buckets/beer/scopes/s/collections name=c", "/pools/default/buckets/beer/scopes/s/collections maxTTL=60&name=c"}
	if !slices.Equal(*told, want) {
		t.Errorf("told %q", *told)
	}
	for _, scope := range []string{"", ".", ".."} {
		wantError{class: pump.ClassUsage, code: "usage"}.check(t, c.CreateCollection(ctx, "beer", scope, "c", 0))
	}
	for name, q := range map[string]struct {
		status int
		body   string
		want   *wantError
	}{
		"exists":    {400, `{"errors":{"_":"Collection with name \"c\" in scope \"s\" already exists"}}`, nil},
		"bad name":  {400, `{"errors":{"name":"Can only contain characters A-Z, a-z, 0-9 and the following symbols _ - %"}}`, &wantError{class: pump.ClassUsage, code: "rest-status", says: []string{"Can only contain", `"s.c"`}}},
		"no scope":  {404, `{"errors":{"_":"Scope with name \"s\" is not found"}}`, &wantError{class: pump.ClassUsage, code: "no-collections", says: []string{"not found", "7.0"}}},
		"forbidden": {403, `{"message":"Forbidden","permissions":["cluster.collection[beer:s:.].collections!write"]}`, &wantError{class: pump.ClassDenied, code: "rest-forbidden", says: []string{"collections!write"}}},
		"busy":      {503, ``, &wantError{code: "rest-server-error", retry: true}},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := collectionsServer(t, func(string, url.Values) (int, string) { return q.status, q.body })
			err := c.CreateCollection(t.Context(), "beer", "s", "c", 0)
			if q.want != nil {
				q.want.check(t, err)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	c = serveDocs(t, map[string]string{"/pools/default/buckets/x/scopes": "?"})
	_, err := c.Manifest(ctx, "beer")
	wantError{class: pump.ClassUsage, code: "no-collections", says: []string{`"beer"`}}.check(t, err)
	_, err = c.Manifest(ctx, "x")
	wantError{code: "bad-document", says: []string{"manifest"}}.check(t, err)
}

// TestEnsureCollection: a collection is there when every node knows it.
func TestEnsureCollection(t *testing.T) {
	later := strings.Replace(manifestDoc, `"uid":"1a"`, `"uid":"1b"`, 1)
	later = strings.Replace(later, `{"name":"empty","uid":"9","collections":[]}`, `{"name":"empty","uid":"9","collections":[{"name":"new","uid":"20"}]},{"name":"s2","uid":"a","collections":[{"name":"c2","uid":"21"}]}`, 1)
	node := func(t *testing.T, after int) string {
		asked := 0
		n := &fakeNode{features: []uint16{7, 8, 0x12}, mechs: scrams, user: "Administrator", password: planted, bucket: "beer", answer: func(f mcbp.Frame) []byte {
			if asked++; asked > after {
				return reply(f, 0, "", "", later)
			}
			return reply(f, 0, "", "", manifestDoc)
		}}
		return n.start(t)
	}
	c, told := collectionsServer(t, func(string, url.Values) (int, string) { return 200, `{}` })
	v := Version{7, 0, 5}
	b := &Bucket{Name: "beer", Nodes: []Node{{KV: node(t, 2), Version: v}, {Host: "query"}, {KV: node(t, 0), Version: v}}}
	for _, q := range []struct {
		scope, name string
		created     bool
		told        int
	}{{"shop", "items", false, 0}, {"empty", "new", true, 1}, {"s2", "c2", true, 2}} {
		*told = nil
		created, err := c.EnsureCollection(t.Context(), b, q.scope, q.name, 0)
		if err != nil || created != q.created || len(*told) != q.told {
			t.Errorf("%v: %v, %v, told %q", q, created, err, *told)
		}
	}
	_, err := c.EnsureCollection(t.Context(), b, "shop", "late", 0)
	wantError{code: "collections-wait", retry: true, says: []string{`"shop.late"`, "after 30s", "manifest 1b"}}.check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	c.clock = (&fakeClock{at: time.Now(), each: func(int) { cancel() }}).clock()
	_, err = c.EnsureCollection(ctx, b, "shop", "late", 0)
	wantError{class: pump.ClassInterrupted, code: "interrupted"}.check(t, err)
}
