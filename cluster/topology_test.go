package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

func testdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// decode decodes a document as if host had answered with it.
func decode(body, host string) (*Bucket, error) {
	var d bucketDoc
	if err := decodeJSON([]byte(body), &d); err != nil {
		return nil, err
	}
	return d.bucket(host)
}

func TestShape18(t *testing.T) {
	b, err := decode(testdata(t, "1.8-default.json"), "10.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	if b.Name != "default" || b.Type != "membase" || b.UUID != "" || b.Replicas != 1 || b.password != nil {
		t.Errorf("%+v", b)
	}
	want := []Node{
		{Host: "10.0.0.1:8091", KV: "10.0.0.1:11210", Status: "healthy", Version: Version{1, 8, 0}},
		{Host: "10.0.0.2:8091", KV: "10.0.0.2:11210", Status: "unhealthy", Version: Version{1, 8, 0}},
	}
	if !slices.Equal(b.Nodes, want) {
		t.Errorf("%+v", b.Nodes)
	}
	if got := b.Map.Missing(); !slices.Equal(got, []uint16{3}) {
		t.Errorf("missing %v", got)
	}
	if a, ok := b.Map.Active(0); !ok || a != "10.0.0.1:11210" {
		t.Errorf("vbucket 0 is on %q", a)
	}
	for _, vb := range []uint16{3, 4, 65535} {
		if a, ok := b.Map.Active(vb); ok {
			t.Errorf("vbucket %d is on %q", vb, a)
		}
	}
	if b.Map.Forward != nil {
		t.Error("a forward map from nothing")
	}
	if a, ok := b.Map.ForwardActive(0); ok {
		t.Errorf("forward on %q", a)
	}
}

// serveDocs serves documents by path, 404 elsewhere.
func serveDocs(t *testing.T, docs map[string]string) *Client {
	return rest(t, func(w http.ResponseWriter, r *http.Request) {
		body, ok := docs[r.URL.Path]
		if !ok {
			w.WriteHeader(404)
			body = `"Requested resource not found."`
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	})
}

func TestShape25(t *testing.T) {
	c := serveDocs(t, map[string]string{
		"/pools/default/buckets/beer": testdata(t, "2.5-beer.json"),
		"/pools/default":              testdata(t, "2.5-pools-default.json"),
	})
	b, err := c.Bucket(t.Context(), "beer")
	if err != nil {
		t.Fatal(err)
	}
	v := Version{2, 5, 1}
	want := []Node{
		{Host: "127.0.0.1:8091", OTP: "ns_1@10.0.0.1", KV: "127.0.0.1:11210", Version: v, Compat: Version{2, 5, 0}, Status: "healthy", Membership: "active", Self: true},
		{Host: "10.0.0.2:9001", OTP: "n_1@10.0.0.2", KV: "10.0.0.2:12002", Version: v, Status: "warmup", Membership: "active"},
	}
	if !slices.Equal(b.Nodes, want) {
		t.Errorf("%+v", b.Nodes)
	}
	if b.Replicas != 2 || b.UUID == "" || b.password.reveal() != planted {
		t.Errorf("%+v", b)
	}
	if got := b.Map.Missing(); !slices.Equal(got, []uint16{1}) {
		t.Errorf("missing %v", got)
	}
	if a, ok := b.Map.ForwardActive(1); !ok || a != "10.0.0.2:12002" {
		t.Errorf("forward of 1 is %q, %v", a, ok)
	}
	if a, ok := b.Map.Active(0); !ok || a != b.Nodes[0].KV {
		t.Errorf("vbucket 0 is on %q", a)
	}
	if n, ok := b.NodeByKV("10.0.0.2:12002"); !ok || n.OTP != "n_1@10.0.0.2" {
		t.Errorf("%+v, %v", n, ok)
	}
	if n, ok := b.NodeByOTP("n_1@10.0.0.2"); !ok || n.KV != "10.0.0.2:12002" {
		t.Errorf("%+v, %v", n, ok)
	}
	for _, nobody := range []string{"", "n_9@10.0.0.9"} {
		if n, ok := b.NodeByOTP(nobody); ok {
			t.Errorf("%q is %+v", nobody, n)
		}
	}
	if err := b.RequireVBuckets("source"); err != nil {
		t.Error(err)
	}
	kv := c.KV(b, "10.0.0.2:12002")
	if kv.Bucket != "beer" || kv.Password != planted || kv.Role != "source" || kv.Version != v || kv.Timeout != c.timeout {
		t.Errorf("%v %v", kv, kv.Version)
	}
	nodes, err := c.Nodes(t.Context())
	if err != nil || len(nodes) != 3 || nodes[2].Membership != "inactiveFailed" || nodes[2].KV != "10.0.0.3:11210" {
		t.Errorf("%+v, %v", nodes, err)
	}
}

func TestNodeNamesAreNotNeeded(t *testing.T) {
	c := serveDocs(t, map[string]string{"/pools/default/buckets/beer": testdata(t, "2.5-beer.json")})
	b, err := c.Bucket(t.Context(), "beer")
	if err != nil || b.Nodes[0].OTP != "" {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestShape40IPv6(t *testing.T) {
	b, err := decode(testdata(t, "4.0-beer.json"), "fd00::1")
	if err != nil {
		t.Fatal(err)
	}
	// The map writes the addresses differently; the node's own text is used.
	if want := []string{"[fd00::1]:11210", "[fd00::2]:11210"}; !slices.Equal(b.Map.Servers, want) {
		t.Errorf("%q", b.Map.Servers)
	}
	if b.Nodes[2].KV != "" || b.Nodes[2].Version != (Version{}) || b.Nodes[2].Version.String() != "unknown" {
		t.Errorf("%+v", b.Nodes[2])
	}
	if !b.Nodes[1].Version.AtLeast(2, 0) || b.Nodes[1].OTP != "ns_1@fd00::2" {
		t.Errorf("%+v", b.Nodes[1])
	}
	if n, ok := b.NodeByKV("[fd00::0:2]:11210"); !ok || n.Host != "[fd00::2]:8091" {
		t.Errorf("%+v", n)
	}
}

func TestMemcachedBucket(t *testing.T) {
	c := serveDocs(t, map[string]string{"/pools/default/buckets/cache": testdata(t, "2.5-memcached.json")})
	b, err := c.Bucket(t.Context(), "cache")
	if err != nil || b.Type != "memcached" || b.Map.Len() != 0 {
		t.Fatalf("%+v, %v", b, err)
	}
	want := wantError{class: pump.ClassUsage, code: "bucket-type", says: []string{`bucket "cache" is of type "memcached"`, "memcached://"}}
	want.check(t, b.RequireVBuckets("source"))
	want.says = append(want.says, "destination: ")
	want.check(t, b.RequireVBuckets("destination"))
}

func TestSeenFrom(t *testing.T) {
	for _, q := range []struct{ asked, in, want string }{
		{"10.0.0.1", "$HOST:11210", "10.0.0.1:11210"},
		{"fd00::1", "$HOST:11210", "[fd00::1]:11210"},
		{"127.0.0.1", "$HOST:11210", "127.0.0.1:11210"},
		{"10.0.0.1", "127.0.0.1:12000", "10.0.0.1:12000"},
		{"db.example", "localhost:12000", "db.example:12000"},
		{"db.example", "LOCALHOST:12000", "db.example:12000"},
		{"10.0.0.1", "[::1]:12000", "10.0.0.1:12000"},
		{"10.0.0.1", "127.0.0.9:12000", "10.0.0.1:12000"},
		{"127.0.0.1", "127.0.0.1:12000", "127.0.0.1:12000"},
		{"localhost", "127.0.0.1:12000", "127.0.0.1:12000"},
		{"::1", "127.0.0.1:12000", "127.0.0.1:12000"},
		{"127.0.0.1", "10.0.0.1:12000", "10.0.0.1:12000"},
		{"10.0.0.1", "10.0.0.2:12000", "10.0.0.2:12000"},
		{"10.0.0.1", ":12000", "10.0.0.1:12000"},
	} {
		doc := fmt.Sprintf(`{"name":"b","nodes":[{"hostname":%q}],"vBucketServerMap":{"serverList":[%q],"vBucketMap":[[0]]}}`,
			strings.NewReplacer("11210", "8091", "12000", "8091").Replace(q.in), q.in)
		b, err := decode(doc, q.asked)
		if err != nil {
			t.Errorf("%+v: %v", q, err)
			continue
		}
		if got, ok := b.Map.Active(0); !ok || got != q.want {
			t.Errorf("%+v: got %q", q, got)
		}
		if got, want := b.Nodes[0].Host, strings.NewReplacer("11210", "8091", "12000", "8091").Replace(q.want); got != want {
			t.Errorf("%+v: node %q, want %q", q, got, want)
		}
	}
	for host, want := range map[string]string{"": "10.0.0.1:8091", "db2": "db2:8091", "$HOST": "10.0.0.1:8091"} {
		n, err := (&nodeDoc{Hostname: host}).node("10.0.0.1")
		if err != nil || n.Host != want {
			t.Errorf("%q: %+v, %v", host, n, err)
		}
	}
}

func TestMapOfAnySize(t *testing.T) {
	for _, n := range []int{1, 16, 64, 128, 1024, 1000, maxVBuckets} {
		rows := strings.TrimSuffix(strings.Repeat("[0,1],", n), ",")
		b, err := decode(`{"name":"b","nodes":[],"vBucketServerMap":{"serverList":["a:1","b:2"],"vBucketMap":[`+rows+`]}}`, "h")
		if err != nil || b.Map.Len() != n || len(b.Map.Missing()) != 0 {
			t.Fatalf("%d: %v", n, err)
		}
		if _, ok := b.Map.Active(uint16(n - 1)); !ok {
			t.Errorf("%d: the last vbucket is not there", n)
		}
		if _, ok := b.Map.Active(uint16(n)); ok {
			t.Errorf("%d: there is one too many", n)
		}
	}
}

func TestVBucketOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 0, 250).Draw(t, "key")
		n := rapid.SampledFrom([]int{1, 16, 64, 128, 1000, 1024, 32768}).Draw(t, "n")
		want := ((crc32.ChecksumIEEE(key) >> 16) & 0x7fff) % uint32(n)
		if got := VBucketOf(key, n); uint32(got) != want {
			t.Fatalf("%d, want %d", got, want)
		}
	})
	// Worked out by hand: the check value of CRC-32 is 0xcbf43926 for these digits.
	if got := VBucketOf([]byte("123456789"), 1024); got != 0xcbf4&0x7fff%1024 {
		t.Errorf("got %d", got)
	}
	key := []byte("user::1234")
	if n := testing.AllocsPerRun(100, func() { VBucketOf(key, 1024) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkVBucketOf(b *testing.B) {
	b.ReportAllocs()
	key := []byte("user::1234567890")
	for b.Loop() {
		VBucketOf(key, 1024)
	}
}

func TestNoSuchBucket(t *testing.T) {
	many := make([]string, 30)
	for i := range many {
		many[i] = fmt.Sprintf(`{"name":"b%02d"}`, i)
	}
	for _, q := range []struct {
		list string
		want wantError
	}{
		{`[{"name":"travel"},{"name":"default"}]`, wantError{class: pump.ClassUsage, code: "no-bucket", says: []string{`read bucket "beer"`, `there are: "default", "travel"`, "source http://"}}},
		{`[]`, wantError{class: pump.ClassUsage, code: "no-bucket", says: []string{"no other either"}}},
		{`[{"name":"beer"}]`, wantError{code: "no-bucket", retry: true, says: []string{"did not find it"}}},
		{`[` + strings.Join(many, ",") + `]`, wantError{class: pump.ClassUsage, code: "no-bucket", says: []string{`"b19" and 10 more`}}},
		{`{}`, wantError{code: "bad-document"}},
	} {
		c := serveDocs(t, map[string]string{"/pools/default/buckets": q.list})
		_, err := c.Bucket(t.Context(), "beer")
		q.want.check(t, err)
	}
	c := serveDocs(t, map[string]string{"/pools/default/buckets": `[{"name":"b"},{"name":"a"}]`})
	if names, err := c.Buckets(t.Context()); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("%q, %v", names, err)
	}
	for _, name := range []string{"", ".", ".."} {
		_, err := c.Bucket(t.Context(), name)
		wantError{class: pump.ClassUsage, code: "usage", says: []string{"not the name of a bucket"}}.check(t, err)
	}
}

func TestBucketNameIsEscaped(t *testing.T) {
	var path atomic.Value
	c := rest(t, func(w http.ResponseWriter, r *http.Request) {
		path.CompareAndSwap(nil, r.RequestURI)
		w.WriteHeader(500)
	})
	_, err := c.Bucket(t.Context(), "a%2F../b?x#y")
	wantError{code: "rest-server-error", retry: true}.check(t, err)
	if got := path.Load(); got != "/pools/default/buckets/a%252F..%2Fb%3Fx%23y" {
		t.Errorf("asked for %v", got)
	}
}

func TestNotInitialised(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"empty pools": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/pools" {
				_, _ = io.WriteString(w, `{"pools":[],"isAdminCreds":true,"implementationVersion":"2.5.1"}`)
				return
			}
			w.WriteHeader(404)
			_, _ = io.WriteString(w, `"unknown pool"`)
		},
		"unknown pool everywhere": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(404)
			_, _ = io.WriteString(w, `"unknown pool"`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := rest(t, h)
			want := wantError{code: "not-initialised", says: []string{"not initialised", "source", c.URL()}}
			_, err := c.Bucket(t.Context(), "beer")
			want.check(t, err)
			_, err = c.Buckets(t.Context())
			want.check(t, err)
			_, err = c.Nodes(t.Context())
			want.check(t, err)
		})
	}
	c := serveDocs(t, map[string]string{"/": "It works!"})
	_, err := c.Bucket(t.Context(), "beer")
	wantError{class: pump.ClassUnreachable, code: "no-couchbase", says: []string{"not a Couchbase server", "404", "8091"}}.check(t, err)
	c = serveDocs(t, map[string]string{"/pools": `{"pools":[{"name":"default"}]}`})
	_, err = c.Bucket(t.Context(), "beer")
	wantError{code: "rest-not-found", says: []string{"404"}}.check(t, err)
}

func TestBadDocuments(t *testing.T) {
	ok := testdata(t, "2.5-beer.json")
	swap := func(old, new string) string {
		if !strings.Contains(ok, old) {
			t.Fatalf("the document has no %s", old)
		}
		return strings.Replace(ok, old, new, 1)
	}
	for name, q := range map[string]struct{ body, says string }{
		"empty":              {"", "0 bytes without any text"},
		"blank":              {" \n\x00", "it is not JSON"},
		"page":               {"<html><body><h1>Log in</h1> user:" + planted + "</body></html>", `it begins with "Log in user:***"`},
		"text":               {"Not a \x1b[31mdocument", `it begins with "Not a .[31mdocument"`},
		"binary":             {"\x00\x01\xff\xfe", "not JSON"},
		"cut":                {ok[:strings.Index(ok, "proxyPort")], "breaks off after"},
		"cut in password":    {ok[:strings.Index(ok, "s3cret")+3], "breaks off after"},
		"broken":             {swap(`"proxyPort":0`, `"proxyPort":0x`), "broken JSON at byte"},
		"null":               {"null", "no name"},
		"number":             {"12345678901234567890", "another shape (number)"},
		"array":              {"[]", "another shape (array)"},
		"empty object":       {"{}", "no name"},
		"no nodes":           {`{"name":"beer"}`, "lists no nodes"},
		"nodes null":         {`{"name":"beer","nodes":null}`, "lists no nodes"},
		"password a number":  {swap(`"pl4nted/s3cret&<x>"`, `98765`), `field "saslPassword" is a JSON number`},
		"password an object": {swap(`"pl4nted/s3cret&<x>"`, `{"x":"pl4nted"}`), `field "saslPassword" is a JSON object`},
		"port a text":        {swap(`"direct":12002`, `"direct":"12002"`), `field "nodes.ports.direct"`},
		"port too large":     {swap(`"direct":12002`, `"direct":123456`), "data port of 123456"},
		"port negative":      {swap(`"direct":12002`, `"direct":-1`), "data port of -1"},
		"bad hostname":       {swap(`10.0.0.2:9001`, `10.0.0.2:x`), `"10.0.0.2:x" has no port`},
		"evil hostname":      {swap(`10.0.0.2:9001`, `a@b/c`), `node name "a@b/c"`},
		"other bucket":       {swap(`"beer"`, `"wine"`), `describes another bucket, "wine"`},
		"hash":               {swap(`"CRC"`, `"MD5"`), `hashed with "MD5"`},
		"server no port":     {swap(`"10.0.0.2:12002"`, `"10.0.0.2"`), `"10.0.0.2" is not host:port`},
		"server port 0":      {swap(`"10.0.0.2:12002"`, `"10.0.0.2:0"`), "no port between"},
		"index too large":    {swap(`[1,-1,-1]`, `[2,-1,-1]`), "vBucketMap places vbucket 3 on server 2 of a list of 2"},
		"index too small":    {swap(`[1,-1,-1]`, `[-2,-1,-1]`), "places vbucket 3 on server -2"},
		"index a fraction":   {swap(`[1,-1,-1]`, `[0.5]`), `is a JSON number`},
		"index huge":         {swap(`[1,-1,-1]`, `[99999999999999999999]`), `is a JSON number`},
		"row empty":          {swap(`[1,-1,-1]`, `[]`), "no entry for vbucket 3"},
		"row null":           {swap(`[1,-1,-1]`, `null`), "no entry for vbucket 3"},
		"forward short":      {swap(`[0,1,-1]]}`, `[0]],"vBucketMapForward":[[0]]}`), "vBucketMapForward has 1 entries and vBucketMap 4"},
		"forward index":      {swap(`[0,1,-1]]}`, `[7]]}`), "vBucketMapForward places vbucket 3 on server 7"},
		"too many":           {`{"name":"beer","nodes":[],"vBucketServerMap":{"vBucketMap":[` + strings.Repeat("[-1],", maxVBuckets) + `[-1]]}}`, "has 65536 entries"},
		"deep":               {strings.Repeat("[", 20000), "JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			c := serveDocs(t, map[string]string{
				"/pools/default/buckets/beer": q.body, "/pools/default/buckets": "x" + q.body, "/pools/default": q.body[:len(q.body)/2],
			})
			_, err := c.Bucket(t.Context(), "beer")
			badDocument(err, q.says, `source http://127.0.0.1:`, "/pools/default/buckets/beer").check(t, err)
			_, err = c.Buckets(t.Context())
			badDocument(err).check(t, err)
			_, err = c.Nodes(t.Context())
			badDocument(err).check(t, err)
		})
	}
}

// TestEveryCutOfADocument cuts a document at every byte: never a bucket, never a
// leak.
func TestEveryCutOfADocument(t *testing.T) {
	ok := testdata(t, "2.5-beer.json")
	c := &Client{base: mustBase(t), role: "source", password: newSecret("another")}
	for i := range len(strings.TrimSpace(ok)) {
		var d bucketDoc
		err := c.decode("x", "/x", &Response{Body: []byte(ok[:i])}, &d)
		badDocument(err).check(t, err)
	}
}

// badDocument is what err must be: something else than a node answers where it is
// not JSON at all.
func badDocument(err error, says ...string) wantError {
	w := wantError{code: "bad-document", says: says}
	if err != nil && strings.Contains(err.Error(), "it is not JSON") {
		w.class = pump.ClassUnreachable
	}
	return w
}

func TestWaitsForTheMap(t *testing.T) {
	empty := `{"name":"beer","bucketType":"membase","nodes":[{"otpNode":"n","hostname":"h:8091"}],"vBucketServerMap":{"serverList":[],"vBucketMap":[]}}`
	none := `{"name":"beer","bucketType":"membase","nodes":[]}`
	full := strings.Replace(testdata(t, "1.8-default.json"), `"default"`, `"beer"`, 1)
	var asked atomic.Int32
	c := rest(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/pools/default/buckets/beer" {
			w.WriteHeader(403)
			return
		}
		switch asked.Add(1) {
		case 1:
			_, _ = io.WriteString(w, none)
		case 2, 3:
			_, _ = io.WriteString(w, empty)
		default:
			_, _ = io.WriteString(w, full)
		}
	})
	fake := &fakeClock{}
	c.clock = fake.clock()
	b, err := c.Bucket(t.Context(), "beer")
	if err != nil || b.Map.Len() != 4 {
		t.Fatalf("%+v, %v", b, err)
	}
	if want := []time.Duration{20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond}; !slices.Equal(fake.pauses, want) {
		t.Errorf("paused %v", fake.pauses)
	}

	c = rest(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, empty) })
	c.clock, c.mapWait = (&fakeClock{}).clock(), 5*time.Second
	_, err = c.Bucket(t.Context(), "beer")
	wantError{code: "no-map", retry: true, says: []string{"no vbucket map after 5s", `read bucket "beer"`}}.check(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	c.clock = (&fakeClock{each: func(int) { cancel() }}).clock()
	_, err = c.Bucket(ctx, "beer")
	wantError{class: pump.ClassInterrupted, code: "interrupted"}.check(t, err)

	ctx, cancel = context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if err := pause(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := pause(t.Context(), 1); err != nil {
		t.Error(err)
	}
	_, err = c.Bucket(ctx, "beer")
	wantError{code: "time-limit"}.check(t, err)
}

func TestVersions(t *testing.T) {
	for s, want := range map[string]Version{
		"2.5.1-1083-rel-enterprise":     {2, 5, 1},
		"10.0":                          {10, 0, 0},
		"10":                            {10, 0, 0},
		"1.8.0r-55-g80f24f2-enterprise": {1, 8, 0},
		"v2.5.1_MP1_A_1_gb812600d":      {2, 5, 1},
		"4.0.0-4051-enterprise":         {4, 0, 0},
		"1.4.4_568_g8f":                 {1, 4, 4},
		" 7.1.4\n":                      {7, 1, 4},
		"3.0-beta":                      {3, 0, 0},
		"5.":                            {5, 0, 0},
		"6-x":                           {6, 0, 0},
	} {
		if got, err := ParseVersion(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "unknown", "-1.2", ".5", "2x", "99999999999.1", "1.99999999999", "v"} {
		if got, err := ParseVersion(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	for _, q := range []struct {
		v            Version
		major, minor int
		want         bool
	}{
		{Version{10, 0, 0}, 2, 0, true},
		{Version{2, 0, 0}, 10, 0, false},
		{Version{2, 5, 1}, 2, 5, true},
		{Version{2, 5, 1}, 2, 6, false},
		{Version{3, 0, 0}, 2, 9, true},
		{Version{2, 10, 0}, 2, 9, true},
		{Version{}, 1, 0, false},
	} {
		if q.v.AtLeast(q.major, q.minor) != q.want {
			t.Errorf("%+v", q)
		}
	}
	if (Version{2, 5, 1}).String() != "2.5.1" {
		t.Error(Version{2, 5, 1})
	}
}

func FuzzBucketDocument(f *testing.F) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) == 0 {
		f.Fatal(err)
	}
	for _, n := range names {
		f.Add([]byte(testdata(f, filepath.Base(n))), "10.0.0.9")
	}
	f.Add([]byte(`{"name":"b","nodes":[],"vBucketServerMap":{"vBucketMap":[[-1]],"vBucketMapForward":[[0]]}}`), "::1")
	f.Fuzz(func(t *testing.T, body []byte, host string) {
		var d bucketDoc
		if decodeJSON(body, &d) != nil {
			return
		}
		b, err := d.bucket(host)
		if err != nil {
			if len(err.Error()) > 500 {
				t.Fatalf("%d bytes of error", len(err.Error()))
			}
			return
		}
		if b.Map.Len() > maxVBuckets {
			t.Fatal(b.Map.Len())
		}
		missing := map[uint16]bool{}
		for _, vb := range b.Map.Missing() {
			missing[vb] = true
		}
		for vb := range b.Map.Len() {
			addr, ok := b.Map.Active(uint16(vb))
			if ok == missing[uint16(vb)] {
				t.Fatalf("vbucket %d is on %q and missing", vb, addr)
			}
			if _, _, err := splitAddr(addr); ok && err != nil {
				t.Fatalf("vbucket %d: %v", vb, err)
			}
			b.Map.ForwardActive(uint16(vb))
		}
		for _, n := range b.Nodes {
			b.NodeByKV(n.KV)
		}
	})
}
