package recovery_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
	"github.com/cbpump/cbpump/simcluster"
)

// tamper puts a server in front of the destination's REST port that changes
// answers, or swallows requests.
func (p *pair) tamper(change func(path string, body []byte) []byte, swallow func(r *http.Request, form url.Values) bool) func(*recovery.Options) {
	p.t.Helper()
	target, err := url.Parse(p.dst.URL())
	if err != nil {
		p.t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(r *http.Response) error {
		if change == nil || r.StatusCode != http.StatusOK {
			return nil
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		body = change(r.Request.URL.Path, body)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Set("Content-Length", strconv.Itoa(len(body)))
		return nil
	}
	transport := &http.Transport{}
	proxy.Transport = transport
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if swallow != nil && r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				p.t.Error(err)
			}
			form, _ := url.ParseQuery(string(body))
			if swallow(r, form) {
				w.WriteHeader(http.StatusAccepted)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		proxy.ServeHTTP(w, r)
	}))
	p.t.Cleanup(func() {
		srv.Close()
		transport.CloseIdleConnections()
	})
	return func(o *recovery.Options) {
		o.Destination.URL = srv.URL
		o.Timing.Settle = 50e6
	}
}

// document changes a JSON object in place.
func document(t *testing.T, body []byte, change func(map[string]any)) []byte {
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Errorf("%s: %v", body, err)
		return body
	}
	change(doc)
	out, err := json.Marshal(doc)
	if err != nil {
		t.Error(err)
	}
	return out
}

const bucketPath = "/pools/default/buckets/default"

func TestRebalancingIsWarnedOf(t *testing.T) {
	p := newPair(t, shape{docs: 50})
	_, ev, err := p.run(p.tamper(func(path string, body []byte) []byte {
		if path != "/pools/default" {
			return body
		}
		return document(t, body, func(d map[string]any) { d["rebalanceStatus"] = "running" })
	}, nil), nil)
	if err != nil || !ev.warned("rebalancing") {
		t.Errorf("%v, warned %v", err, ev.warned("rebalancing"))
	}
	p.whole()
}

// forward changes the forward map of the bucket's document.
func forward(t *testing.T, change func(m map[string]any)) func(string, []byte) []byte {
	return func(path string, body []byte) []byte {
		if path != bucketPath {
			return body
		}
		return document(t, body, func(d map[string]any) { change(d["vBucketServerMap"].(map[string]any)) })
	}
}

// TestNoForwardMap: where the map names no owner, the nodes are asked.
func TestNoForwardMap(t *testing.T) {
	p := newPair(t, shape{})
	res, _, err := p.run(p.tamper(forward(t, func(m map[string]any) { delete(m, "vBucketMapForward") }), nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	p.whole()
	if !slices.Equal(res.Recovered(), p.missing) {
		t.Errorf("recovered %v", res.Recovered())
	}
}

// TestForwardMapNamesAnother: the node that is to own the vbucket does not hold it.
func TestForwardMapNamesAnother(t *testing.T) {
	p := newPair(t, shape{})
	bad := p.missing[1]
	change := p.tamper(forward(t, func(m map[string]any) {
		rows, ok := m["vBucketMapForward"].([]any)
		if !ok {
			return
		}
		row := rows[bad].([]any)
		row[0] = 1 - row[0].(float64) // the other one of the two nodes
	}), nil)
	res, _, err := p.run(change, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if o := outcome(t, res, bad); pump.CodeOf(o.Err) != "owner-not-ready" || !slices.Equal(res.Remaining(), []uint16{bad}) {
		t.Errorf("outcome %+v, remaining %v", o, res.Remaining())
	}
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

// TestTwoHolders: no forward map, and two nodes hold the same vbucket.
func TestTwoHolders(t *testing.T) {
	p := newPair(t, shape{})
	bad := p.missing[0]
	for _, n := range p.dst.Nodes()[:2] {
		n.SetVBucket(bucket, bad, mcbp.VBReplica)
	}
	res, _, err := p.run(p.tamper(forward(t, func(m map[string]any) { delete(m, "vBucketMapForward") }), nil), nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if o := outcome(t, res, bad); pump.CodeOf(o.Err) != "several-owners" || !slices.Equal(res.Remaining(), []uint16{bad}) {
		t.Errorf("outcome %+v, remaining %v", o, res.Remaining())
	}
}

// TestAcceptedButNotDone: 202 means accepted; what was not done is found out.
func TestAcceptedButNotDone(t *testing.T) {
	for _, c := range []struct {
		name, call, state, code string
		left                    recovery.State
	}{
		{"replica", "changeVbucketStates", "replica", "no-owner", recovery.StateMissing},
		{"active", "changeVbucketStates", "active", "not-activated", recovery.StateReplica},
		{"publish", "updateVbucketMap", "", "not-published", recovery.StateActive},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, shape{docs: 100})
			res, _, err := p.run(p.tamper(nil, func(r *http.Request, form url.Values) bool {
				return strings.HasSuffix(r.URL.Path, c.call) && form.Get("state") == c.state
			}), nil)
			wants(t, err, pump.ClassFailed, "vbuckets-left")
			for _, o := range res.Outcomes {
				if o.State != c.left || pump.CodeOf(o.Err) != c.code || pump.HintOf(o.Err) == "" {
					t.Errorf("outcome %+v, want %s and %s", o, c.left, c.code)
				}
			}
			if _, _, err := p.run(nil, nil); err != nil {
				t.Fatal(err)
			}
			p.whole()
		})
	}
	t.Run("node", func(t *testing.T) {
		p := newPair(t, shape{docs: 100})
		fresh, err := p.dst.NewNode()
		if err != nil {
			t.Fatal(err)
		}
		change := p.tamper(nil, func(r *http.Request, _ url.Values) bool { return strings.HasSuffix(r.URL.Path, "replaceNode") })
		_, _, err = p.run(func(o *recovery.Options) {
			change(o)
			o.AddNode, o.RemoveNode = fresh.REST(), p.lost.REST()
		}, nil)
		wants(t, err, pump.ClassFailed, "node-not-there")
		if len(p.posts()) != 0 {
			t.Errorf("sent %v", p.posts())
		}
	})
}

// TestMapReadBack: the map that is read back decides, not the 202.
func TestMapReadBack(t *testing.T) {
	for _, c := range []struct {
		name   string
		says   string
		change func(path string, body []byte, bad uint16) []byte
	}{
		{"still missing", "still lists it", func(path string, body []byte, bad uint16) []byte {
			if strings.HasSuffix(path, "vbucketsMissing") {
				return []byte("[" + strconv.Itoa(int(bad)) + "]")
			}
			return body
		}},
		{"other node", "its data is at", func(path string, body []byte, bad uint16) []byte {
			if path != bucketPath {
				return body
			}
			return document(t, body, func(d map[string]any) {
				row := d["vBucketServerMap"].(map[string]any)["vBucketMap"].([]any)[bad].([]any)
				row[0] = 1 - row[0].(float64)
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, shape{docs: 100})
			bad := p.missing[0]
			var published atomic.Bool
			change := p.tamper(func(path string, body []byte) []byte {
				if !published.Load() {
					return body
				}
				return c.change(path, body, bad)
			}, func(r *http.Request, _ url.Values) bool {
				published.Store(strings.HasSuffix(r.URL.Path, "updateVbucketMap"))
				return false
			})
			res, _, err := p.run(change, nil)
			wants(t, err, pump.ClassFailed, "vbuckets-left")
			o := outcome(t, res, bad)
			if o.State != recovery.StateActive || pump.CodeOf(o.Err) != "not-published" || !strings.Contains(o.Err.Error(), c.says) {
				t.Errorf("outcome %+v", o)
			}
			if !slices.Equal(res.Remaining(), []uint16{bad}) {
				t.Errorf("remaining %v", res.Remaining())
			}
		})
	}
}

// TestOtherAnswers: an old or foreign server at the destination's address.
func TestOtherAnswers(t *testing.T) {
	p := newPair(t, shape{docs: 50})
	for body, code := range map[string]string{"<html>hello</html>": "bad-answer", "null": "bad-answer", "[16]": "bad-answer", "[99999]": "bad-answer"} {
		_, _, err := p.run(p.tamper(func(path string, old []byte) []byte {
			if strings.HasSuffix(path, "vbucketsMissing") {
				return []byte(body)
			}
			return old
		}, nil), nil)
		wants(t, err, pump.ClassFailed, code)
	}
	p.dst.Nodes()[0].InjectREST(simcluster.RESTFault{Method: http.MethodGet, Path: bucketPath, Status: 503, Body: "<html>starting</html>", Times: 2})
	if _, _, err := p.run(nil, nil); err != nil {
		t.Errorf("a short 503: %v", err)
	}
	p.whole()
}
