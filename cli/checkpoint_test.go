package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/mc"
)

// stopping is memcached with a signal that comes at the third write.
type stopping struct {
	pump.Sink
	writes  atomic.Int32
	signals chan os.Signal
}

func (s *stopping) Unwrap() any { return s.Sink }

func (s *stopping) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	lanes, err := s.Sink.Lanes(ctx, want)
	for i := range lanes {
		lanes[i] = stoppingLane{lanes[i], s}
	}
	return lanes, err
}

type stoppingLane struct {
	pump.Lane
	s *stopping
}

func (l stoppingLane) Write(ctx context.Context, b *pump.Batch) error {
	if l.s.writes.Add(1) == 3 {
		l.s.signals <- syscall.SIGINT
	}
	return l.Lane.Write(ctx, b)
}

// runUntil runs cbtransfer --json with a sink stopping://, and returns its exit
// code, last line and what it said.
func runUntil(t *testing.T, stop bool, args ...string) (int, map[string]any, string) {
	t.Helper()
	r, err := plugins.Transfer()
	if err != nil {
		t.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	err = pump.RegisterSink(r, pump.SinkPlugin[mc.Options]{
		Schemes: []string{"stopping"},
		New: func(_ context.Context, t pump.Target, o mc.Options) (pump.Sink, error) {
			s, err := mc.New(mc.Config{Addr: t.Host(), Options: o})
			if err != nil || !stop {
				return s, err
			}
			return &stopping{Sink: s, signals: signals}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var out, said bytes.Buffer
	p := &cli.Process{Name: "cbtransfer", Args: append([]string{"--json"}, args...), Stdout: &out, Stderr: &said, Signals: signals}
	code := cli.Transfer(t.Context(), r, p)
	return code, lastLine(t, &out), said.String()
}

func numberAt(t *testing.T, line map[string]any, path ...string) uint64 {
	t.Helper()
	var at any = line
	for _, name := range path {
		at = at.(map[string]any)[name]
	}
	n, ok := at.(float64)
	if !ok {
		t.Fatalf("%v is %v", path, at)
	}
	return uint64(n)
}

// TestResume: a run that was stopped is gone on with, without doing again what was
// confirmed, and nothing is missing at the end.
func TestResume(t *testing.T) {
	const items = 200000
	srv := realmc.Start(t, "-m", "256")
	dir := filepath.Join(t.TempDir(), "c")
	args := []string{"gen:?max-items=200000&streams=2&max-value-size=64", "stopping://" + srv.Addr, "--checkpoint", dir, "-x", "memory=1m"}
	code, first, said := runUntil(t, true, args...)
	if code != 130 || !strings.Contains(said, "with --resume, and it goes on from there") {
		t.Fatalf("exit code %d: %s", code, said)
	}
	done := numberAt(t, first, "done")
	if done == 0 || done >= items {
		t.Fatalf("%d done before the stop", done)
	}

	code, _, said = runUntil(t, false, args...)
	if code != 2 || !strings.Contains(said, "did not come to its end") || !strings.Contains(said, "--resume") {
		t.Errorf("without --resume: exit code %d: %s", code, said)
	}
	other := realmc.Start(t)
	code, _, said = runUntil(t, false, "gen:?max-items=200000&streams=2&max-value-size=64", "stopping://"+other.Addr, "--checkpoint", dir, "--resume")
	if code != 2 || !strings.Contains(said, "belongs to another copy") || !strings.Contains(said, other.Addr) {
		t.Errorf("another destination: exit code %d: %s", code, said)
	}

	args = append(args, "--resume")
	code, last, said := runUntil(t, false, args...)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, said)
	}
	if got := numberAt(t, last, "done"); got != items-done || numberAt(t, last, "earlier_runs", "done") != done {
		t.Errorf("%d done before, %v after, of %d", done, got, items)
	}
	if n, err := srv.Stat("curr_items"); n != "200000" || err != nil {
		t.Errorf("memcached holds %s items (%v)", n, err)
	}
	code, last, said = runUntil(t, false, args...)
	if code != 0 || numberAt(t, last, "read") != 0 || !strings.Contains(said, "nothing is left to do") {
		t.Errorf("once more: exit code %d, %v: %s", code, last, said)
	}
}

// TestResumeIntoNewLife: a memcached that was started anew has forgotten what the
// checkpoint counts as done.
func TestResumeIntoNewLife(t *testing.T) {
	srv := realmc.Start(t)
	dir := filepath.Join(t.TempDir(), "c")
	args := []string{"gen:?max-items=200000&streams=1", "stopping://" + srv.Addr, "--checkpoint", dir, "-x", "memory=1m"}
	if code, _, said := runUntil(t, true, args...); code != 130 {
		t.Fatalf("exit code %d: %s", code, said)
	}
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	code, _, said := runUntil(t, false, append(args, "--resume")...)
	if code != 2 || !strings.Contains(said, "the destination's history") || !strings.Contains(said, "from the start") {
		t.Errorf("exit code %d: %s", code, said)
	}
}

// TestCheckpointMisuse: what cannot be gone on with is said before anything is read.
func TestCheckpointMisuse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"gen:", "null:", "--resume"}, "give its folder with --checkpoint"},
		{[]string{"gen:", "null:", "--checkpoint="}, "needs the name of a folder"},
		{[]string{"stdin:", "null:", "--checkpoint", dir}, "standard input cannot be read again"},
		{[]string{"jsonl:-", "null:", "--checkpoint", dir}, "standard input cannot be read again"},
		{[]string{"gen:", "null:", "--checkpoint", dir, "--resume"}, "there is none to go on from"},
	} {
		code, _, said := runUntil(t, false, c.args...)
		if code != 2 || !strings.Contains(said, c.want) {
			t.Errorf("%v: exit code %d: %s", c.args, code, said)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder was made all the same")
	}
}

// TestCheckpointHoldsNoSecret: neither user nor password nor secret options are
// written to disk (invariant 9).
func TestCheckpointHoldsNoSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	code, _, said := runUntil(t, false, "gen:?max-items=5", "null:", "--checkpoint", dir, "-p", "pl4nted", "-P", "pl4nted2", "-u", "us3r")
	if code != 0 {
		t.Fatal(said)
	}
	b, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "pl4nted") || strings.Contains(string(b), "us3r") {
		t.Errorf("%s", b)
	}
	_, body, _ := strings.Cut(string(b), "\n")
	if !json.Valid([]byte(body)) {
		t.Errorf("behind its first line it is no JSON: %s", body)
	}
}
