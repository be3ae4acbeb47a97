package cluster

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/pump"
)

func TestNewClientAddress(t *testing.T) {
	for raw, want := range map[string]string{
		"http://10.1.2.3:8091":                "http://10.1.2.3:8091",
		"http://10.1.2.3":                     "http://10.1.2.3:8091",
		"http://10.1.2.3/":                    "http://10.1.2.3:8091",
		"http://10.1.2.3:":                    "http://10.1.2.3:8091",
		"HTTP://db.example:9000//":            "http://db.example:9000",
		"http://db.example/pools/default/":    "http://db.example:8091",
		"http://db.example:8091/index.html":   "http://db.example:8091",
		"couchbase://db.example":              "http://db.example:8091",
		"couchbase://db.example:9000":         "http://db.example:9000",
		"db.example":                          "http://db.example:8091",
		"db.example:9000":                     "http://db.example:9000",
		"10.1.2.3:9000/":                      "http://10.1.2.3:9000",
		"[::1]":                               "http://[::1]:8091",
		"[::1]:9000":                          "http://[::1]:9000",
		"http://[fd00::7]:9000":               "http://[fd00::7]:9000",
		"http://[fd00::7]":                    "http://[fd00::7]:8091",
		"http://[fe80::1%25eth0]:8091":        "http://[fe80::1%25eth0]:8091",
		"http://u:p@db.example":               "http://db.example:8091",
		"https://db.example":                  "https://db.example:18091",
		"https://db.example:9000/":            "https://db.example:9000",
		"couchbases://db.example":             "https://db.example:18091",
		"u:" + url.PathEscape(planted) + "@h": "http://h:8091",
	} {
		c, err := NewClient(raw, Config{Role: "source"})
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if c.URL() != want {
			t.Errorf("%s: %s, want %s", raw, c.URL(), want)
		}
		noLeak(t, fmt.Sprintf("%v %+v %#v %s", c, c, c, c.URL()))
		c.Close()
	}
}

func TestNewClientRefuses(t *testing.T) {
	for raw, says := range map[string]string{
		"":                                      "host is missing",
		"http://":                               "host is missing",
		"http://:8091":                          "host is missing",
		"https://u:" + planted + "@h":           "percent-encoded",
		"ftp://h":                               "not ftp://",
		"memcached://h:11211":                   "not memcached://",
		"::1":                                   "brackets",
		"fd00::7":                               "brackets",
		"http://::1:8091":                       "",
		"http://[::1:8091":                      "no URL",
		"h:0":                                   "port 0 is not between",
		"h:65536":                               "port 65536 is not between",
		"h:http":                                "no URL",
		"http://h:8091/beer":                    `path "/beer"`,
		"http://h:8091/pools/default/buckets/b": "buckets are named with options",
		"http://h?bucket=" + planted:            "query or fragment",
		"http://h#x":                            "query or fragment",
		"couchbase://a,b,c":                     "give one node",
		"http://a b":                            "no URL",
		"http://h\x00":                          "no URL",
		"http://u:" + planted + "@h:8091":       "percent-encoded", // the / ends the host
		"http://u:12#" + planted + "@h":         "percent-encoded",
		"http://u:%zz" + planted + "@h":         "percent-encoded",
		"u:pl4nted@s3cret@:x@h:1:2":             "",
		"http://" + strings.Repeat("x/", 9000):  "",
	} {
		c, err := NewClient(raw, Config{Role: "source", Password: planted})
		if err == nil {
			t.Errorf("%q: accepted as %s", raw, c.URL())
			continue
		}
		want := wantError{class: pump.ClassUsage, code: "usage", says: []string{says, "source: cluster address"}}
		want.check(t, err)
	}
}

func TestCredentials(t *testing.T) {
	var got atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r.Header.Get("Authorization"))
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	basic := func(u, p string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(u+":"+p)) }
	for _, c := range []struct {
		url, user, password, want string
	}{
		{"http://" + host, "", "", ""},
		{"http://" + host, "u", planted, basic("u", planted)},
		{"http://a:b%2F%40c@" + host, "", "", basic("a", "b/@c")},
		{"a:b@" + host, "u", "p", basic("a", "b")},
		{"http://a@" + host, "", "p", basic("a", "p")},
		{"http://a:@" + host, "u", "p", basic("a", "")},
	} {
		cl, err := NewClient(c.url, Config{Username: c.user, Password: c.password})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cl.Do(t.Context(), "GET", "/", nil); err != nil {
			t.Fatal(err)
		}
		if got.Load() != c.want {
			t.Errorf("%s with %s: sent %q, want %q", c.url, c.user, got.Load(), c.want)
		}
		cl.Close()
	}
}

// rest starts a REST server and a client of it.
func rest(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	c, err := NewClient(srv.URL, Config{Role: "source", Username: "Administrator", Password: planted, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	c.clock = (&fakeClock{}).clock()
	t.Cleanup(func() {
		c.Close()
		srv.Close()
	})
	return c
}

func TestDo(t *testing.T) {
	c := rest(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(202)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.RequestURI, r.Header.Get("Content-Type"), body)
	})
	for _, q := range []struct {
		method, path string
		form         url.Values
		want         string
	}{
		{"GET", "/pools", nil, "GET /pools  "},
		{"GET", "/p?a=1", url.Values{"b": {"2 3"}}, "GET /p?a=1&b=2+3  "},
		{"POST", "/p?uuid=7", url.Values{"vbucket": {"500", "612"}, "state": {"replica"}}, "POST /p?uuid=7 application/x-www-form-urlencoded state=replica&vbucket=500&vbucket=612"},
		{"POST", "/p/a%2Fb", nil, "POST /p/a%2Fb  "},
	} {
		r, err := c.Do(t.Context(), q.method, q.path, q.form)
		if err != nil || r.Status != 202 || string(r.Body) != q.want {
			t.Errorf("%s %s: %+v, %v, want %q", q.method, q.path, r, err, q.want)
		}
	}
	for _, path := range []string{"", "pools", "//evil.example/x", "http://evil.example/", "/%zz"} {
		if _, err := c.Do(t.Context(), "GET", path, nil); pump.CodeOf(err) != "rest-path" {
			t.Errorf("%q: %v", path, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Do(ctx, "GET", "/", nil)
	wantError{class: pump.ClassInterrupted, code: "interrupted", says: []string{"source GET http://127.0.0.1:"}}.check(t, err)
}

func TestDoReusesConnections(t *testing.T) {
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c, err := NewClient(srv.URL, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 5 {
		if _, err := c.Do(t.Context(), "POST", "/", url.Values{"a": {"b"}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for 5 requests", n)
	}
}

func TestAccessDenied(t *testing.T) {
	challenge := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="Couchbase Server Admin / REST"`)
		w.WriteHeader(401)
	}
	c := rest(t, challenge)
	_, err := c.Bucket(t.Context(), "beer")
	wantError{class: pump.ClassDenied, code: "rest-denied", says: []string{"source", c.URL(), `refuses user "Administrator"`, "-u, -p"}}.check(t, err)
	c.role, c.user, c.password = "destination", "", nil
	_, err = c.Do(t.Context(), "POST", "/x", nil)
	wantError{class: pump.ClassDenied, code: "rest-denied", says: []string{"destination", c.URL(), "none was given", "-U, -P"}}.check(t, err)

	// Without the header a 401 may be an answer of the API itself.
	c = rest(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) })
	if r, err := c.Do(t.Context(), "POST", "/x", nil); err != nil || r.Status != 401 {
		t.Errorf("%v, %v", r, err)
	}
	_, err = c.Bucket(t.Context(), "beer") // but not when a bucket was asked for
	wantError{class: pump.ClassDenied, code: "rest-denied", says: []string{"source", "beer"}}.check(t, err)
}

func TestServerErrors(t *testing.T) {
	page := "<!DOCTYPE html><html><head><title>Oops</title><style>body{color:red}</style>\n<script>var a = '<b>';</script></head>" +
		"<body><!-- hidden --><h1>Internal&nbsp;Error</h1>\n<p>you sent " + planted + " and " +
		strings.ReplaceAll(strings.ReplaceAll(planted, "<", "&lt;"), ">", "&gt;") + "</p></body></html>"
	for _, q := range []struct {
		status int
		body   string
		want   wantError
	}{
		{500, page, wantError{code: "rest-server-error", retry: true, says: []string{"500 Internal Server Error: Oops Internal Error you sent *** and ***", `read bucket "beer"`}}},
		{503, "", wantError{code: "rest-server-error", retry: true, says: []string{"503 Service Unavailable"}}},
		{503, page[:40], wantError{code: "rest-server-error", retry: true, says: []string{"503"}}},
		{502, strings.Repeat("x", 1<<20), wantError{code: "rest-server-error", retry: true, says: []string{"xxx…"}}},
		{500, "\xff\x00\x1b[31mred", wantError{code: "rest-server-error", retry: true, says: []string{"...[31mred"}}},
		{429, "slow down", wantError{code: "rest-server-error", retry: true, says: []string{"slow down"}}},
		{403, `{"message":"Forbidden. User needs one of the following permissions","permissions":["cluster.bucket[beer].settings!read"]}`,
			wantError{class: pump.ClassDenied, code: "rest-forbidden", says: []string{"cluster.bucket[beer].settings!read", `User "Administrator"`, "-u, -p"}}},
		{400, "no", wantError{code: "rest-status", says: []string{"400 Bad Request: no"}}},
		{302, "", wantError{code: "rest-status", says: []string{"302"}}},
		{204, "", wantError{code: "rest-status", says: []string{"204"}}},
	} {
		c := rest(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(q.status)
			_, _ = io.WriteString(w, q.body)
		})
		for what, ask := range map[string]func() error{
			"bucket":  func() error { _, err := c.Bucket(t.Context(), "beer"); return err },
			"buckets": func() error { _, err := c.Buckets(t.Context()); return err },
			"nodes":   func() error { _, err := c.Nodes(t.Context()); return err },
		} {
			want := q.want
			if what != "bucket" {
				want.says = want.says[:1]
			}
			t.Run(fmt.Sprint(q.status, what), func(t *testing.T) { want.check(t, ask()) })
		}
	}
}

func TestRedirects(t *testing.T) {
	var stolen atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { stolen.Add(1) }))
	defer other.Close()
	c := rest(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, strings.Replace(other.URL, "http://", "http://u:pl4nted@", 1)+"/x", http.StatusTemporaryRedirect)
		case "/tls":
			http.Redirect(w, r, "https://"+r.Host+"/x", http.StatusMovedPermanently)
		case "/here":
			http.Redirect(w, r, "/there", http.StatusFound)
		case "/there":
			_, _ = io.WriteString(w, r.Header.Get("Authorization"))
		default:
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}
	})
	for _, method := range []string{"GET", "POST"} {
		_, err := c.Do(t.Context(), method, "/away", nil)
		wantError{code: "rest-redirect", says: []string{other.URL, "where credentials do not go"}}.check(t, err)
		_, err = c.Do(t.Context(), method, "/tls", nil)
		wantError{code: "rest-redirect", says: []string{"https://127.0.0.1:"}}.check(t, err)
	}
	if stolen.Load() != 0 {
		t.Error("the other host was asked")
	}
	if r, err := c.Do(t.Context(), "GET", "/here", nil); err != nil || r.Status != 200 || len(r.Body) == 0 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := c.Do(t.Context(), "POST", "/here", nil); err != nil || r.Status != 302 {
		t.Errorf("a redirected POST: %v, %v", r, err)
	}
	if r, err := c.Do(t.Context(), "GET", "/loop", nil); err != nil || r.Status != 302 {
		t.Errorf("a loop: %v, %v", r, err)
	}
}

func TestUnreachable(t *testing.T) {
	addr := closedPort(t)
	c, err := NewClient("http://"+addr, Config{Role: "destination", Username: "u", Password: planted})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Bucket(t.Context(), "beer")
	wantError{class: pump.ClassUnreachable, code: "unreachable", retry: true, says: []string{"destination", addr, "nothing listens there"}}.check(t, err)
	if pump.ExitCode(err, 0) != 4 {
		t.Error("exit code", pump.ExitCode(err, 0))
	}
}

// TestOtherProtocols asks ports that are no REST ports.
func TestOtherProtocols(t *testing.T) {
	tlsServer := httptest.NewUnstartedServer(nil)
	tlsServer.Config.ErrorLog = log.New(io.Discard, "", 0)
	tlsServer.StartTLS()
	defer tlsServer.Close()
	raw := func(answer string) string {
		return serve(t, func(nc net.Conn) {
			buf := make([]byte, 4096)
			if _, err := nc.Read(buf); err == nil {
				_, _ = io.WriteString(nc, answer)
			}
		})
	}
	for _, q := range []struct {
		addr string
		want wantError
	}{
		{strings.TrimPrefix(tlsServer.URL, "https://"), wantError{class: pump.ClassUnreachable, code: "speaks-tls", says: []string{"speaks TLS", "8091"}}},
		{raw("\x15\x03\x01\x00\x02\x02\x46"), wantError{class: pump.ClassUnreachable, code: "speaks-tls", says: []string{"speaks TLS"}}},
		{raw("\x15\x03\x03\x00"), wantError{class: pump.ClassUnreachable, code: "speaks-tls"}},
		{raw(""), wantError{class: pump.ClassUnreachable, code: "rest-cut", retry: true, says: []string{"closed the connection", "8091", "TLS", "https://"}}},
		{raw("ERROR\r\n" + planted), wantError{class: pump.ClassUnreachable, code: "not-http", says: []string{"does not speak HTTP", "ERROR", "8091"}}},
		{raw("\x81\x00\x00\x00\x00\x00\x00\x81\n\n"), wantError{class: pump.ClassUnreachable, code: "not-http"}},
		{raw("SSH-2.0-x\r\n\r\n"), wantError{class: pump.ClassUnreachable, code: "not-http", says: []string{"SSH-2.0"}}},
		{raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), wantError{code: "rest-cut", retry: true}},
		{raw("HTTP/1.1 200 OK\r\nContent-Le"), wantError{code: "rest-failed", retry: true}},
		{raw("HTTP/1.1 banana\r\n\r\n"), wantError{code: "rest-failed", retry: true}},
		{raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n"), wantError{code: "rest-failed", retry: true}},
	} {
		c, err := NewClient(q.addr, Config{Role: "source", Username: "u", Password: planted})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Bucket(t.Context(), "beer")
		q.want.check(t, err)
		c.Close()
	}
}

func TestUnknownHost(t *testing.T) {
	e := &pump.Error{}
	if !dialFailure(&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "nowhere.invalid", IsNotFound: true}}, e) {
		t.Fatal("not recognised")
	}
	wantError{class: pump.ClassUnreachable, code: "unknown-host", says: []string{"nowhere.invalid"}}.check(t, e)
}

func TestSilentServer(t *testing.T) {
	asked := make(chan struct{}, 8)
	c := rest(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ready" {
			return
		}
		asked <- struct{}{}
		<-r.Context().Done() // until the client goes
	})
	for range 2 { // the connection is there before time is short
		if _, err := c.Do(t.Context(), "GET", "/ready", nil); err != nil {
			t.Fatal(err)
		}
	}
	c.timeout = 20 * time.Millisecond
	_, err := c.Buckets(t.Context())
	wantError{class: pump.ClassUnreachable, code: "rest-timeout", retry: true, says: []string{"no answer within 20ms"}}.check(t, err)
	<-asked

	c.timeout = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); <-asked; cancel() }()
	_, err = c.Buckets(ctx)
	wantError{class: pump.ClassInterrupted, code: "interrupted"}.check(t, err)
	<-done
}

func TestTooLargeAnswer(t *testing.T) {
	chunk := []byte(strings.Repeat(" ", 1<<20))
	c := rest(t, func(w http.ResponseWriter, r *http.Request) {
		for range maxDocument/len(chunk) + 2 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	_, err := c.Bucket(t.Context(), "beer")
	wantError{code: "rest-too-large", says: []string{"larger than 64 MiB"}}.check(t, err)
}

func TestTLSRecordIsRecognised(t *testing.T) {
	// What Go's own TLS server says to a memcached request.
	cert := httptest.NewTLSServer(nil)
	defer cert.Close()
	addr := serve(t, func(nc net.Conn) {
		_ = tls.Server(nc, &tls.Config{Certificates: cert.TLS.Certificates}).Handshake()
	})
	_, err := DialKV(t.Context(), KVConfig{Addr: addr, Role: "source", Bucket: "beer", Password: planted})
	wantError{class: pump.ClassUnreachable, code: "speaks-tls", says: []string{"speaks TLS", "11210", addr, "source"}}.check(t, err)
}

func TestPrintedWithoutSecrets(t *testing.T) {
	cfg := Config{Role: "source", Username: "u", Password: planted}
	kv := KVConfig{Addr: "h:1", Role: "source", Bucket: "b", Password: planted, Username: "u", UserPassword: planted}
	c, err := NewClient("http://u:"+url.PathEscape(planted)+"@h", cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &Bucket{Name: "b", password: newSecret(planted)}
	var out strings.Builder
	for _, v := range []any{cfg, &cfg, kv, &kv, c, b, *b, []Config{cfg}, map[string]KVConfig{"x": kv}, struct{ Inner KVConfig }{kv}, userAccount(&kv), newScram("SCRAM-SHA1", "u", newSecret(planted), "n")} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb, v)
		}
		if text, err := json.Marshal(v); err == nil {
			out.Write(text)
		}
	}
	for _, asJSON := range []bool{true, false} {
		logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &out, JSONFormat: asJSON})
		logger.Info("x", "cfg", cfg, "kv", kv, "kvp", &kv, "client", c, "bucket", b)
	}
	noLeak(t, out.String())
	if !strings.Contains(cfg.redacted(), `user "u"`) || !strings.Contains(kv.redacted(), `bucket "b"`) {
		t.Error("redaction says nothing useful")
	}
	if errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
