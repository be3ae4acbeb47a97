package webhook_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/cbtransfer-webhook/webhook"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// receiver is the destination: it keeps what is posted.
type receiver struct {
	mu     sync.Mutex
	items  map[string]pump.Item
	answer func(call int) int // status of the nth request; nil = 200
	calls  int
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.answer != nil {
		if status := r.answer(r.calls); status != http.StatusOK {
			w.WriteHeader(status)
			return
		}
	}
	var items []webhook.Item
	if err := json.NewDecoder(req.Body).Decode(&items); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for _, it := range items {
		if it.Op != "mutation" {
			delete(r.items, string(it.Key))
			continue
		}
		r.items[string(it.Key)] = pump.Item{Key: it.Key, Value: it.Value, Flags: it.Flags}
	}
}

func start(t *testing.T, answer func(int) int) (*receiver, pump.Sink) {
	t.Helper()
	r := &receiver{items: map[string]pump.Item{}, answer: answer}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	var reg pump.Registry
	if err := pump.RegisterSink(&reg, webhook.Plugin()); err != nil {
		t.Fatal(err)
	}
	sink, err := reg.Sink(t.Context(), "webhook:"+strings.TrimPrefix(srv.URL, "http:")+"/in?token=hush", pump.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return r, sink
}

func TestConformance(t *testing.T) {
	var r *receiver
	pumptest.TestSink(t, pumptest.SinkSuite{
		New: func(t *testing.T) (s pump.Sink) { r, s = start(t, nil); return s },
		Read: func(*testing.T) map[string]pump.Item {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.items
		},
	})
}

func run(t *testing.T, sink pump.Sink) (*pump.Report, error) {
	set := pump.DefaultSettings()
	set.RetryMin, set.RetryMax = time.Microsecond, time.Millisecond
	items := []pump.Item{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("b"), Value: []byte("2")}}
	return pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items}}, Sink: sink, Settings: set})
}

func TestBusyServerIsAskedAgain(t *testing.T) {
	r, sink := start(t, func(call int) int {
		if call < 4 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	report, err := run(t, sink)
	if err != nil || report.Done != 2 || report.Retried == 0 || len(r.items) != 2 {
		t.Fatalf("error %v, %+v, %d held", err, report.Snapshot, len(r.items))
	}
}

func TestRefusals(t *testing.T) {
	_, sink := start(t, func(int) int { return http.StatusUnauthorized })
	if _, err := run(t, sink); pump.ExitCode(err, 0) != 4 || strings.Contains(err.Error(), "hush") {
		t.Fatalf("error %v", err)
	}
	_, sink = start(t, func(int) int { return http.StatusUnprocessableEntity })
	report, err := run(t, sink)
	var e *pump.Error
	if pump.ExitCode(err, 0) != 3 || !errors.As(err, &e) || report.Rejected != 2 {
		t.Fatalf("error %v", err)
	}
}
