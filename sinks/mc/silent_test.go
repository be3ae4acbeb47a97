package mc

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// TestSilentREST: lanes that find the map wrong, or need a collection, while the
// REST port is silent ask once together, stop when they are told to, and take what a
// node sends meanwhile.
func TestSilentREST(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "7.0.5", Nodes: 2, VBuckets: 8})
	to, err := url.Parse(c.URL())
	if err != nil {
		t.Fatal(err)
	}
	var silent atomic.Bool
	var asked atomic.Int32
	heard, speak := make(chan struct{}, 100), make(chan struct{})
	forward := httputil.NewSingleHostReverseProxy(to)
	port := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if silent.Load() && !strings.Contains(r.URL.Path, "nodeServices") {
			asked.Add(1)
			heard <- struct{}{}
			select {
			case <-speak:
			case <-r.Context().Done():
				return
			}
		}
		forward.ServeHTTP(w, r)
	}))
	defer port.Close()
	s := openCB(t, c, func(cfg *CBConfig) { cfg.URL = port.URL })
	defer s.Close()
	first, err := s.current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	silent.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	var lanes, stopped sync.WaitGroup
	for range 8 {
		lanes.Go(func() {
			if v, err := s.refresh(t.Context(), first); err != nil || v == first {
				t.Errorf("%v, %v", v, err)
			}
		})
	}
	<-heard
	for range 8 {
		stopped.Go(func() {
			if _, err := s.refresh(ctx, first); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
	}
	cancel()
	stopped.Wait() // while the port is still silent
	if s.adopt(first, &cluster.Map{}) {
		t.Error("took an empty map")
	}

	// A lane that asks for a collection meanwhile.
	ctx, cancel = context.WithCancel(t.Context())
	lanes.Go(func() {
		if _, err := s.collection(t.Context(), &pump.Collection{Scope: "a", Name: "b"}); pump.CodeOf(err) != "no-collection" {
			t.Errorf("%v", err)
		}
	})
	<-heard
	stopped.Go(func() {
		if _, err := s.collection(ctx, &pump.Collection{Scope: "a", Name: "b"}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	if where, err := s.collection(t.Context(), nil); err != nil || where.named {
		t.Errorf("the default collection: %v, %v", where, err)
	}
	if s.Manifest() != nil {
		t.Error("a manifest from nowhere")
	}
	cancel()
	stopped.Wait()
	n := asked.Load()
	close(speak)
	lanes.Wait()
	if n != 2 {
		t.Errorf("asked %d times", n)
	}
}
