package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// answers is the network of a client: each path has its answer.
type answers map[string]answer

type answer struct {
	status int
	body   string
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	said, ok := a[r.URL.Path]
	if !ok {
		said = answer{http.StatusNotFound, "Not found."}
	}
	return &http.Response{StatusCode: said.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(said.body)), Request: r}, nil
}

// restPaths are the documents of the REST port that are read, and one that is sent to.
var restPaths = []string{
	"/pools", "/pools/default", "/pools/default/buckets", "/pools/default/buckets/beer",
	"/pools/default/nodeServices", "/pools/default/buckets/beer/scopes", "/pools/default/buckets/beer/scopes/s/collections",
}

// wellSaid checks an error that a server has caused: it is one that a user can
// read, however long and whatever the answer was.
func wellSaid(t *testing.T, err error) {
	t.Helper()
	var e *pump.Error
	if !errors.As(err, &e) || e.Code == "" || len(err.Error()) > 2000 || strings.ContainsFunc(err.Error(), unicode.IsControl) {
		t.Errorf("%T %q", err, err)
	}
}

// FuzzDocuments: one of the documents of a REST port is whatever it is, the others
// are those of a real server. What is understood of it holds together, and what
// is not is said.
func FuzzDocuments(f *testing.F) {
	usual := answers{
		"/pools":                 {200, `{"pools":[{"name":"default"}]}`},
		"/pools/default":         {200, testdata(f, "2.5-pools-default.json")},
		"/pools/default/buckets": {200, `[{"name":"beer"},{"name":"other"}]`},
		"/pools/default/buckets/beer": {200, `{"name":"beer","bucketType":"membase","uuid":"1","nodes":[
			{"hostname":"10.0.0.9:8091","otpNode":"ns_1@10.0.0.9","clusterMembership":"active","version":"7.6.0","ports":{"direct":11210}}],
			"vBucketServerMap":{"hashAlgorithm":"CRC","numReplicas":0,"serverList":["10.0.0.9:11210"],"vBucketMap":[[0],[-1]]}}`}, // small, so that many are tried
		"/pools/default/nodeServices":    {200, testdata(f, "7.6-nodeServices.json")},
		restPaths[len(restPaths)-2]:      {200, `{"uid":"1","scopes":[{"uid":"0","name":"_default","collections":[{"uid":"0","name":"_default","maxTTL":0}]}]}`},
		restPaths[len(restPaths)-1]:      {202, `{"uid":"2"}`},
		"/pools/default/buckets/missing": {404, "Requested resource not found.\r\n"},
	}
	for i, path := range restPaths {
		f.Add(i, usual[path].status, []byte(usual[path].body))
		f.Add(i, 404, []byte(`"unknown pool"`))
		f.Add(i, 400, []byte(`{"errors":{"name":"Scope with this name already exists"}}`))
		f.Add(i, 403, []byte(`{"message":"Forbidden. User needs the following permissions","permissions":["cluster.admin!write"]}`))
	}
	for _, name := range []string{"1.8-default.json", "2.5-beer.json", "2.5-memcached.json", "4.0-beer.json", "7.6-beer.json"} {
		f.Add(3, 200, []byte(testdata(f, name)))
	}
	f.Fuzz(func(t *testing.T, which, status int, body []byte) {
		said := answers{}
		for path, a := range usual {
			said[path] = a
		}
		said[restPaths[uint(which)%uint(len(restPaths))]] = answer{200 + int(uint(status-200)%400), string(body)}
		c, err := NewClient("http://10.0.0.9:8091", Config{Role: "source", Username: "beer", Password: "beerpw", Network: NetworkExternal})
		if err != nil {
			t.Fatal(err)
		}
		c.http.Transport, c.mapWait = said, 0
		ctx := context.Background()
		for _, name := range []string{"beer", "missing"} {
			b, err := c.Bucket(ctx, name)
			if err != nil {
				wellSaid(t, err)
				continue
			}
			if b.Name != name || b.Map.Len() > maxVBuckets || b.Map.Len() == 0 && b.Type != typeMemcached {
				t.Errorf("%q: %q with %d vbuckets", name, b.Name, b.Map.Len())
			}
			for vb := range b.Map.Len() {
				addr, ok := b.Map.Active(uint16(vb))
				if _, _, err := splitAddr(addr); ok && err != nil {
					t.Errorf("vbucket %d is at %q: %v", vb, addr, err)
				}
			}
		}
		if nodes, err := c.Nodes(ctx); err != nil {
			wellSaid(t, err)
		} else if len(nodes) == 0 {
			t.Error("a cluster of no nodes")
		}
		if _, err := c.Buckets(ctx); err != nil {
			wellSaid(t, err)
		}
		if m, err := c.Manifest(ctx, "beer"); err != nil {
			wellSaid(t, err)
		} else if len(m.Scopes) > len(said[restPaths[len(restPaths)-2]].body) {
			t.Errorf("%d scopes", len(m.Scopes))
		}
		if err := c.CreateCollection(ctx, "beer", "s", "c", 0); err != nil {
			wellSaid(t, err)
		}
	})
}

// FuzzRefused: whatever a data node answers a request with, what is said of it is
// text of one line, also in the hint.
func FuzzRefused(f *testing.F) {
	for _, name := range []string{"2.5.1-setwithmeta-refused", "6.0-sasl-plain-bad", "6.0-access-read-only", "7.0-access-one-collection", "7.0-dcp-filter-refused"} {
		c, err := capture.Open(name)
		if err != nil {
			f.Fatal(err)
		}
		packets, _ := c.Packets(capture.Server)
		for _, p := range packets {
			f.Add(p)
		}
	}
	f.Add(mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpSetWithMeta, VBucket: uint16(mcbp.StatusAccess)}, nil, nil,
		[]byte("{\"error\":{\"context\":\"a key without the \\u001b[2J privilege\"}}")))
	f.Fuzz(func(t *testing.T, packet []byte) {
		answer, err := mcbp.NewReader(bytes.NewReader(packet)).Decode()
		if err != nil {
			return
		}
		c := &Conn{role: "source", addr: "10.0.0.9:11210"}
		err = c.Refused("stream vbucket 5", &answer)
		wellSaid(t, err)
		if hint := pump.HintOf(err); strings.ContainsFunc(hint, unicode.IsControl) || len(hint) > 500 {
			t.Errorf("the hint is %q", hint)
		}
	})
}
