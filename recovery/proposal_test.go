package recovery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// serve answers every request with handler and returns the dialect that asks it.
func serve(t *testing.T, handler http.HandlerFunc) *proposal {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	client, err := cluster.NewClient(srv.URL, cluster.Config{Role: "destination", Username: "admin", Password: "s3cret-pw", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &proposal{client: client, bucket: "beer sample"}
}

// calls are the calls of the proposal with how the dialect makes them.
var calls = map[string]func(*proposal) error{
	callMissing: func(p *proposal) error { _, err := p.Missing(context.Background()); return err },
	callReplace: func(p *proposal) error { return p.ReplaceNode(context.Background(), "10.0.0.9:8091", "10.0.0.3:8091") },
	callStates:  func(p *proposal) error { return p.Activate(context.Background(), []uint16{0}) },
	callPublish: func(p *proposal) error { return p.Publish(context.Background()) },
}

// TestStatuses goes through the tables of the specification and the general
// statuses, for every call.
func TestStatuses(t *testing.T) {
	const html = "<html><head><title>Oops</title></head><body>secret page</body></html>"
	type want struct {
		class pump.Class
		code  string
		retry bool
		text  string // must be in the message
		hint  string // must be in the hint
	}
	general := []struct {
		status int
		header http.Header
		body   string
		want
	}{
		{400, nil, `{"errors":{"x":"no such thing"}}`, want{code: "bad-request", text: "no such thing"}},
		{401, http.Header{"Www-Authenticate": {`Basic realm="x"`}}, "", want{class: pump.ClassDenied, code: "rest-denied", hint: "-U, -P"}},
		{403, nil, `{"message":"Forbidden. User needs the following permissions","permissions":["cluster.admin!write"]}`,
			want{class: pump.ClassDenied, code: "no-permission", text: "cluster.admin!write", hint: "-U and -P"}},
		{500, http.Header{"Content-Type": {"text/html"}}, html, want{code: "server-error", retry: true, text: "500"}},
		{502, nil, html, want{code: "server-error", retry: true, text: "502"}},
		{503, http.Header{"Content-Type": {"text/html"}}, html, want{code: "busy", retry: true, text: "503", hint: "Wait"}},
		{418, nil, "", want{code: "unexpected-status", text: "418"}},
		{302, http.Header{"Location": {"/elsewhere"}}, "", want{}},
	}
	special := []struct {
		call   string
		status int
		want
	}{
		{callMissing, 404, want{code: codeNoAPI, text: "does not serve the recovery API", hint: "--recovery-api"}},
		{callMissing, 401, want{class: pump.ClassDenied, code: "login-refused", hint: "-U and -P"}},
		{callMissing, 403, want{class: pump.ClassDenied, code: "no-permission", hint: "-U and -P"}},
		{callMissing, 202, want{code: "unexpected-status"}},
		{callMissing, 410, want{code: "unexpected-status"}},
		{callReplace, 401, want{code: "node-not-found", text: "node is not found", hint: "-r"}},
		{callReplace, 402, want{code: "node-exists", text: "node exists already", hint: "leave out -a and -r"}},
		{callReplace, 403, want{code: "node-active", text: "still in active mode", hint: "Fail it over first"}},
		{callReplace, 404, want{code: codeNoAPI, text: "does not know this call"}},
		{callReplace, 410, want{code: "unexpected-status"}},
		{callReplace, 200, want{code: "unexpected-status"}},
		{callStates, 410, want{code: codeNoVBucket, text: "vbucket is not found", hint: "run again"}},
		{callStates, 411, want{code: "bad-state", text: "active, replica, pending or dead", hint: "version of the API"}},
		{callStates, 401, want{class: pump.ClassDenied, code: "login-refused"}},
		{callStates, 402, want{code: "unexpected-status"}},
		{callStates, 403, want{class: pump.ClassDenied, code: "no-permission"}},
		{callStates, 404, want{code: codeNoAPI}},
		{callStates, 200, want{code: "unexpected-status"}},
		{callPublish, 410, want{code: "map-update-failed", text: "update failure", hint: "only publishes"}},
		{callPublish, 411, want{code: "unexpected-status"}},
		{callPublish, 401, want{class: pump.ClassDenied, code: "login-refused"}},
		{callPublish, 404, want{code: codeNoAPI}},
		{callPublish, 200, want{code: "unexpected-status"}},
	}
	check := func(t *testing.T, call string, status int, header http.Header, body string, w want) {
		t.Helper()
		p := serve(t, func(rw http.ResponseWriter, _ *http.Request) {
			for k, v := range header {
				rw.Header()[k] = v
			}
			rw.WriteHeader(status)
			fmt.Fprint(rw, body)
		})
		err := calls[call](p)
		if err == nil {
			t.Fatalf("%s answered %d and was taken for good", call, status)
		}
		if w == (want{}) {
			return // any error will do
		}
		var e *pump.Error
		if !errors.As(err, &e) {
			t.Fatalf("%s %d: not an Error: %v", call, status, err)
		}
		if pump.ClassOf(err) != w.class || pump.CodeOf(err) != w.code || pump.IsRetryable(err) != w.retry {
			t.Errorf("%s %d: class %d code %q retry %v, want %d %q %v (%v)", call, status,
				pump.ClassOf(err), pump.CodeOf(err), pump.IsRetryable(err), w.class, w.code, w.retry, err)
		}
		if !strings.Contains(err.Error(), w.text) {
			t.Errorf("%s %d: %q does not say %q", call, status, err, w.text)
		}
		if h := pump.HintOf(err); h == "" || !strings.Contains(h, w.hint) {
			t.Errorf("%s %d: the hint %q does not say %q", call, status, h, w.hint)
		}
		if e.Op == "" || !strings.Contains(err.Error(), "beer sample") && w.code != "rest-denied" {
			t.Errorf("%s %d: %q does not say what was being done", call, status, err)
		}
		if s := err.Error() + pump.HintOf(err); strings.Contains(s, "s3cret") || strings.Contains(s, "<html") {
			t.Errorf("%s %d: a secret or markup in %q", call, status, s)
		}
	}
	for call := range calls {
		for _, g := range general {
			check(t, call, g.status, g.header, g.body, g.want)
		}
	}
	for _, s := range special {
		check(t, s.call, s.status, nil, "", s.want)
		check(t, s.call, s.status, http.Header{"Content-Type": {"text/html"}}, html, s.want)
	}
}

// TestRequests checks what is sent, to the letter of the specification.
func TestRequests(t *testing.T) {
	type request struct {
		method, path, contentType, login string
		form                             url.Values
	}
	var got request
	status := http.StatusAccepted
	body := ""
	p := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = request{method: r.Method, path: r.URL.EscapedPath(), contentType: r.Header.Get("Content-Type")}
		user, pass, _ := r.BasicAuth()
		got.login = user + "/" + pass
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		got.form = r.PostForm
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	})
	const base = "/pools/default/buckets/beer%20sample/"
	expect := func(what string, err error, method, path string, form url.Values) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got.method != method || got.path != base+path || got.login != "admin/s3cret-pw" {
			t.Errorf("%s: %s %s as %s", what, got.method, got.path, got.login)
		}
		if form != nil && (got.form.Encode() != form.Encode() || got.contentType != "application/x-www-form-urlencoded") {
			t.Errorf("%s: sent %s as %s, want %s", what, got.form.Encode(), got.contentType, form.Encode())
		}
	}
	ctx := context.Background()
	expect("replace", p.ReplaceNode(ctx, "[::1]:9000", "10.0.0.3:8091"), "POST", "replaceNode",
		url.Values{"add": {"[::1]:9000"}, "remove": {"10.0.0.3:8091"}})
	owners, err := p.Begin(ctx, []uint16{0, 612, 712})
	expect("begin", err, "POST", "changeVbucketStates", url.Values{"state": {"replica"}, "vbucket": {"0", "612", "712"}})
	if owners != nil {
		t.Errorf("the proposal names no owners, got %v", owners)
	}
	expect("activate", p.Activate(ctx, []uint16{0}), "POST", "changeVbucketStates", url.Values{"state": {"active"}, "vbucket": {"0"}})
	expect("publish", p.Publish(ctx), "POST", "updateVbucketMap", url.Values{})

	status, body = http.StatusOK, "[712, 0, 612,612]"
	vbs, err := p.Missing(ctx)
	expect("missing", err, "GET", "vbucketsMissing", nil)
	if !slices.Equal(vbs, []uint16{0, 612, 712}) {
		t.Errorf("missing: %v", vbs)
	}
	for _, bad := range []string{"", "null", "null,", `{"a":1}`, `["500"]`, "[1.5]", "[-1]", "[65535]", "[70000]", "<html>", "500"} {
		body = bad
		if vbs, err := p.Missing(ctx); err == nil || pump.CodeOf(err) != "bad-answer" {
			t.Errorf("the answer %q was read as %v, %v", bad, vbs, err)
		}
	}
	body = "[]"
	if vbs, err := p.Missing(ctx); err != nil || len(vbs) != 0 {
		t.Errorf("nothing missing: %v, %v", vbs, err)
	}
	got = request{}
	if err := p.Activate(ctx, nil); err != nil || got.method != "" {
		t.Errorf("nothing to activate: %v, sent %v", err, got)
	}
}

// TestOneUnknownVBucket: a server that does not know one vbucket refuses the
// whole request; the others are carried out all the same.
func TestOneUnknownVBucket(t *testing.T) {
	done := map[string]bool{}
	handler := func(unknown ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			for _, vb := range r.PostForm["vbucket"] {
				if slices.Contains(unknown, vb) {
					w.WriteHeader(http.StatusGone)
					return
				}
			}
			for _, vb := range r.PostForm["vbucket"] {
				done[vb] = true
			}
			w.WriteHeader(http.StatusAccepted)
		}
	}
	p := serve(t, handler("612"))
	err := p.Activate(context.Background(), []uint16{500, 612, 712})
	var refused *refusedError
	if !errors.As(err, &refused) || !slices.Equal(refused.vbs, []uint16{612}) || pump.CodeOf(err) != codeNoVBucket {
		t.Fatalf("got %v", err)
	}
	if !done["500"] || !done["712"] || done["612"] {
		t.Fatalf("done: %v", done)
	}
	p = serve(t, handler("612"))
	err = p.Activate(context.Background(), []uint16{612})
	if !errors.As(err, &refused) || pump.HintOf(err) == "" {
		t.Fatalf("a single unknown vbucket: %v", err)
	}
}

func TestRepeat(t *testing.T) {
	again := repeater{tries: 4, min: time.Microsecond, max: time.Microsecond, log: hclog.NewNullLogger()}
	ctx := context.Background()
	lost := &pump.Error{Class: pump.ClassUnreachable, Code: "no-answer", Retry: true}
	final := &pump.Error{Code: "bad-state"}

	sent := 0
	err := again.call(ctx, func() error { sent++; return lost }, nil)
	if sent != 4 || !errors.Is(err, lost) {
		t.Errorf("%d sends, %v", sent, err)
	}
	sent = 0
	err = again.call(ctx, func() error { sent++; return final }, nil)
	if sent != 1 || !errors.Is(err, final) {
		t.Errorf("a final error was sent %d times: %v", sent, err)
	}
	// The answer was lost, but reading back shows the effect: no second send.
	sent = 0
	err = again.call(ctx, func() error { sent++; return lost }, func() (bool, error) { return true, nil })
	if sent != 1 || err != nil {
		t.Errorf("%d sends, %v", sent, err)
	}
	// The state cannot be read back for good: nothing is repeated blindly.
	sent = 0
	err = again.call(ctx, func() error { sent++; return lost }, func() (bool, error) { return false, final })
	if sent != 1 || !errors.Is(err, lost) {
		t.Errorf("%d sends, %v", sent, err)
	}
	// It cannot be read back for a while: it is read again, and nothing sent before.
	sent, read := 0, 0
	err = again.call(ctx, func() error { sent++; return lost }, func() (bool, error) {
		if read++; read < 3 {
			return false, lost
		}
		return true, nil
	})
	if sent != 1 || read != 3 || err != nil {
		t.Errorf("%d sends, %d reads, %v", sent, read, err)
	}
	sent = 0
	err = again.call(ctx, func() error {
		if sent++; sent < 3 {
			return lost
		}
		return nil
	}, func() (bool, error) { return false, nil })
	if sent != 3 || err != nil {
		t.Errorf("%d sends, %v", sent, err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	slow := repeater{tries: 2, min: time.Hour, max: time.Hour, log: hclog.NewNullLogger()}
	if err := slow.call(cancelled, func() error { return lost }, nil); pump.ClassOf(err) != pump.ClassInterrupted {
		t.Errorf("cancelled: %v", err)
	}

	n := 0
	ok, err := again.poll(ctx, time.Hour, func() (bool, error) { n++; return n == 3, nil })
	if !ok || err != nil || n != 3 {
		t.Errorf("poll: %v %v after %d", ok, err, n)
	}
	ok, err = again.poll(ctx, time.Nanosecond, func() (bool, error) { return false, final })
	if ok || !errors.Is(err, final) {
		t.Errorf("poll over its time: %v %v", ok, err)
	}
	if _, err := slow.poll(cancelled, time.Hour, func() (bool, error) { return false, nil }); pump.ClassOf(err) != pump.ClassInterrupted {
		t.Errorf("poll cancelled: %v", err)
	}
}

// TestDialects: which dialect is found, and what is said of the others.
func TestDialects(t *testing.T) {
	missing, asked := 200, 0
	p := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/"+callMissing):
			asked++
			w.WriteHeader(missing)
			fmt.Fprint(w, "[3]")
		case r.URL.Path == "/pools/default/buckets/b":
			fmt.Fprint(w, `{"name":"b","bucketType":"membase","nodes":[{"hostname":"127.0.0.1:8091","otpNode":"n_0@127.0.0.1","status":"healthy",
				"clusterMembership":"active","version":"6.6.5","ports":{"direct":11210}}],
				"vBucketServerMap":{"hashAlgorithm":"CRC","numReplicas":0,"serverList":["127.0.0.1:11210"],"vBucketMap":[[0],[-1],[0],[-1]]}}`)
		default:
			w.WriteHeader(404)
		}
	})
	open := func(api, version string) (Dialect, []uint16, error) {
		asked = 0
		v, err := cluster.ParseVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		client := p.client.(*cluster.Client)
		r := &run{opt: Options{API: api, Log: hclog.NewNullLogger()},
			again: repeater{tries: 2, min: time.Microsecond, max: time.Microsecond, log: hclog.NewNullLogger()},
			dst:   &side{role: "destination", client: client, name: "b", bucket: &cluster.Bucket{Nodes: []cluster.Node{{Version: v}}}}}
		return r.openDialect(context.Background())
	}
	for _, c := range []struct {
		status       int
		api, version string
		name, code   string
		missing      []uint16
		asked        int
	}{
		{200, APIAuto, "2.5.1", APIProposal, "", []uint16{3}, 1},
		{200, APIProposal, "2.5.1", APIProposal, "", []uint16{3}, 1},
		{200, APIController, "2.5.1", APIController, "", []uint16{1, 3}, 0},
		{404, APIAuto, "6.6.5", APIController, "", []uint16{1, 3}, 1},
		{404, APIAuto, "2.1.0", APIController, "", []uint16{1, 3}, 1},
		{404, APIAuto, "10.0", APIController, "", []uint16{1, 3}, 1},
		{404, APIAuto, "2.0.1", "", codeNoAPI, nil, 1},
		{404, APIProposal, "6.6.5", "", codeNoAPI, nil, 1},
		{503, APIAuto, "6.6.5", "", "busy", nil, 2},
	} {
		missing = c.status
		d, got, err := open(c.api, c.version)
		if c.code != "" {
			if pump.CodeOf(err) != c.code || asked != c.asked {
				t.Errorf("%+v: %v after %d requests", c, err, asked)
			}
			continue
		}
		if err != nil || d.Name() != c.name || !slices.Equal(got, c.missing) || asked != c.asked {
			t.Errorf("%+v: %v %v %v after %d requests", c, d, got, err, asked)
		}
	}
}
