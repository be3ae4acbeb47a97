package recovery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// spoken is a destination whose nodes are known; every call of a recovery API is
// answered with what the fuzzer gave.
type spoken struct {
	*cluster.Client
	status int
	body   []byte
}

func speak(f *testing.F) *spoken {
	f.Helper()
	s := &spoken{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/pools/default/buckets/beer sample":
			fmt.Fprint(w, modernBucket)
		case "/pools/default":
			fmt.Fprint(w, anyPool)
		case "/pools/default/nodeServices":
			w.WriteHeader(http.StatusNotFound)
		default:
			w.WriteHeader(s.status)
			_, _ = w.Write(s.body) // refused where the status has no body
		}
	}))
	f.Cleanup(srv.Close)
	client, err := cluster.NewClient(srv.URL, cluster.Config{Role: "destination", Username: "admin", Password: "pw"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(client.Close)
	s.Client = client
	return s
}

func (s *spoken) answer(status int, body []byte) {
	s.status, s.body = 200+int(uint(status-200)%400), body
}

// wellSaid checks an error that a server has caused: a user can read it.
func wellSaid(t *testing.T, err error) {
	t.Helper()
	var e *pump.Error
	said := fmt.Sprint(err, pump.HintOf(err))
	if !errors.As(err, &e) || e.Code == "" || len(said) > 5000 || strings.ContainsFunc(said, unicode.IsControl) {
		t.Errorf("%T %q", err, said)
	}
}

// FuzzController: startRecovery, recoveryStatus, commitVBucket, stopRecovery and
// the tasks answer anything. Owners are nodes of the cluster, and what is no
// success is said.
func FuzzController(f *testing.F) {
	s := speak(f)
	for _, text := range []string{
		`{"uuid":"8e02","code":"ok","recoveryMap":[{"node":"n_1@10.0.0.7","vbuckets":[1,3]}]}`,
		`{"uuid":"8e02","code":"ok","recoveryMap":[{"node":"n_1@10.0.0.7","vbuckets":[1]},{"node":"n_0@10.0.0.7","vbuckets":[1]}]}`,
		`{"uuid":"8e02","code":"ok","recoveryMap":[{"node":"nobody","vbuckets":[-1,65535]}]}`,
		`{"code":"ok"}`, `{"code":"ok","recoveryMap":[]}`, `{"code":"recovery_completed"}`,
		`[{"type":"rebalance","status":"notRunning"},{"type":"recovery","uuid":"8e02","bucket":"beer sample"}]`, `[]`, `null`, `<html>`,
	} {
		f.Add(200, []byte(text))
	}
	for code := range codeMeanings {
		f.Add(400, fmt.Appendf(nil, `{"code":%q}`, code))
	}
	f.Add(500, []byte(`{"code":"failed_nodes","failedNodes":["n_0@10.0.0.7","\u001b[2J"]}`))
	f.Add(404, []byte("Requested resource not found.\r\n"))
	f.Add(403, []byte(`{"message":"Forbidden","permissions":["cluster.admin!write"]}`))
	nodes := []string{"10.0.0.7:12000", "10.0.0.7:12002", "[fd00::9]:11210", "10.0.0.8:11210"}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		s.answer(status, body)
		c := &controller{client: s.Client, side: &side{role: "destination", client: s.Client, name: "beer sample"}, log: hclog.NewNullLogger()}
		ctx := context.Background()
		if r, err := c.Running(ctx); err != nil {
			wellSaid(t, err)
		} else if r != nil && s.status != http.StatusOK {
			t.Errorf("a recovery runs, by an answer with status %d", s.status)
		}
		owners, err := c.Begin(ctx, nil)
		if err != nil {
			wellSaid(t, err)
			c.uuid = "8e02"
		} else if s.status != http.StatusOK || !strings.Contains(string(body), "recoveryMap") {
			t.Errorf("it has begun, by %d %q", s.status, body)
		}
		for vb, addr := range owners {
			if !slices.Contains(nodes, addr) || vb == pump.NoVBucket {
				t.Errorf("vbucket %d is at %q", vb, addr)
			}
		}
		open, err := c.Uncommitted(ctx)
		if err != nil {
			wellSaid(t, err)
		} else if s.status != http.StatusOK || open[pump.NoVBucket] {
			t.Errorf("uncommitted: %v, by %d %q", open, s.status, body)
		}
		if err := c.Commit(ctx, 3); err != nil {
			wellSaid(t, err)
		} else if s.status != http.StatusOK {
			t.Errorf("committed by %d %q", s.status, body)
		}
		c.uuid = "8e02"
		if _, err := c.End(ctx); err != nil {
			wellSaid(t, err)
		}
	})
}

// FuzzProposal is FuzzController for the calls of the proposal.
func FuzzProposal(f *testing.F) {
	s := speak(f)
	for _, text := range []string{`[500,612]`, `[]`, `null`, `[-1]`, `[65535]`, `[1,1]`, `[1.5]`, `["a"]`, `{}`} {
		f.Add(200, []byte(text))
	}
	f.Add(202, []byte(""))
	f.Add(404, []byte("Requested resource not found.\r\n"))
	f.Add(503, []byte(`{"message":"\u001b[2J"}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		s.answer(status, body)
		p := &proposal{client: s.Client, bucket: "beer sample"}
		ctx := context.Background()
		if vbs, err := p.Missing(ctx); err != nil {
			wellSaid(t, err)
		} else if s.status != http.StatusOK || !slices.IsSorted(vbs) || len(slices.Compact(slices.Clone(vbs))) != len(vbs) || slices.Contains(vbs, pump.NoVBucket) || !strings.Contains(string(body), "[") {
			t.Errorf("missing %v, by %d %q", vbs, s.status, body)
		}
		for _, err := range []error{p.ReplaceNode(ctx, "a:8091", "b:8091"), p.changeStates(ctx, []uint16{1, 2}, "active"), p.Activate(ctx, []uint16{1})} {
			if err != nil {
				wellSaid(t, err)
			} else if s.status != http.StatusAccepted {
				t.Errorf("accepted with %d %q", s.status, body)
			}
		}
	})
}

// FuzzCondition: the state of the whole cluster.
func FuzzCondition(f *testing.F) {
	var body []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(body)
	}))
	f.Cleanup(srv.Close)
	client, err := cluster.NewClient(srv.URL, cluster.Config{Role: "destination"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(client.Close)
	f.Add([]byte(anyPool))
	f.Add([]byte(`{"rebalanceStatus":"running","nodes":[{"hostname":"10.0.0.7:9000","clusterMembership":"inactiveFailed"}]}`))
	f.Add([]byte(`{"nodes":[]}`))
	f.Add([]byte(`{"rebalanceStatus":7}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		body = text
		c, err := (&side{role: "destination", client: client, name: "b"}).condition(context.Background())
		if err != nil {
			wellSaid(t, err)
		} else if len(c.nodes) == 0 || len(c.failedOver()) > len(c.nodes) {
			t.Errorf("%+v", c)
		}
	})
}
