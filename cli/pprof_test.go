package cli_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/cli"
)

// The profiles can be had while the run goes on, and not the command line, which
// may hold passwords (invariant 9).
func TestProfilesAreServedDuringTheRun(t *testing.T) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.Addr().String()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	g := newGate()
	var out, said buffer
	p := &cli.Process{Name: "cbtransfer", Args: []string{"--pprof", addr, "gen:?max-items=500", "gate:"}, Stdout: &out, Stderr: &said}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		r, err := client.Get("http://" + addr + path)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		return r.StatusCode, string(body)
	}
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		<-g.writing
		if code, body := get("/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "laneRun") {
			t.Errorf("goroutines: %d, %.200s", code, body)
		}
		if code, body := get("/debug/pprof/"); code != 200 || !strings.Contains(body, "heap") {
			t.Errorf("index: %d, %s", code, body)
		}
		if code, _ := get("/debug/pprof/cmdline"); code != 404 {
			t.Errorf("the command line is served: %d", code)
		}
		close(g.pass)
	}()
	if code := cli.Transfer(context.Background(), g.registry(t), p); code != 0 {
		t.Errorf("exit code %d: %s", code, said.String())
	}
	<-asked
	if _, err := client.Get("http://" + addr + "/debug/pprof/"); err == nil {
		t.Error("it is served after the run")
	}
}
