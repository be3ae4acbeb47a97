package reliability

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// copyArgs are the arguments of a copy from src with a checkpoint.
func copyArgs(src *Source, to *Destination, keep string, more ...string) []string {
	args := append([]string{src.Spec, to.Spec, "--checkpoint", keep}, small...)
	return append(args, more...)
}

// held opens a destination that is closed with the test.
func held(t *testing.T, sink Sink) *Destination {
	t.Helper()
	to, err := sink.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(to.Close)
	return to
}

// place prepares a copy of a kind.
func place(t *testing.T, from, to string, n int) *killing {
	t.Helper()
	dir := t.TempDir()
	sources, release, err := Sources(t.Context(), dir, n, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	src, sink := pick(t, sources, dir, from, to)
	return &killing{src: src, sink: sink, dir: dir}
}

// TestDiskFull: no file may grow beyond a size. A destination that is full fails and
// leaves nothing that could be taken for whole; a checkpoint that cannot be written
// stops the run, and what it had saved before still holds.
func TestDiskFull(t *testing.T) {
	t.Run("destination", func(t *testing.T) {
		for _, kind := range []string{"jsonl", "backup"} {
			k := place(t, "gen", kind, 1000)
			to := held(t, k.sink)
			e := runChild(t, orders{FileSize: 64 << 10}, append([]string{k.src.Spec, to.Spec}, small...)...)
			if e.code != 1 || !strings.Contains(e.said, "file too large") && !strings.Contains(e.said, "the system refuses to write") {
				t.Errorf("%s: exit code %d: %s", kind, e.code, e.said)
			}
			if _, whole, err := to.Live(); whole || err != nil {
				t.Errorf("%s: something whole is there (%v)", kind, err)
			}
		}
	})
	t.Run("checkpoint", func(t *testing.T) {
		k := place(t, "dcp", "couchbase", 1000)
		to := held(t, k.sink)
		keep := filepath.Join(t.TempDir(), "c")
		// Positions in vbuckets make a checkpoint that grows beyond this while the
		// copy goes on, and so it is saved at first.
		e := runChild(t, orders{FileSize: 1 << 10}, copyArgs(k.src, to, keep)...)
		if e.code != 1 || !strings.Contains(e.said, "cannot be saved") {
			t.Fatalf("exit code %d: %s", e.code, e.said)
		}
		args := copyArgs(k.src, to, keep)
		if _, err := os.Stat(filepath.Join(keep, "checkpoint")); err == nil {
			args = append(args, "--resume")
		}
		if e = runChild(t, orders{}, args...); e.code != 0 && e.code != 3 {
			t.Fatalf("with room again: exit code %d: %s", e.code, e.said)
		}
		if err := k.same(to); err != nil {
			t.Error(err)
		}
	})
}

// TestTwoRuns: the folder of a checkpoint serves one run at a time, and the lock goes
// with the process.
func TestTwoRuns(t *testing.T) {
	k := place(t, "gen", "memcached", 2000)
	to := held(t, k.sink)
	keep := filepath.Join(t.TempDir(), "c")
	// The first run waits for the destination, which is stopped.
	cmd, out, said := command(t, orders{}, append(copyArgs(k.src, to, keep), "--limit-items", "50")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
		if _, err := os.Stat(filepath.Join(keep, "checkpoint")); err == nil {
			break
		}
	}
	e := runChild(t, orders{}, copyArgs(k.src, to, keep, "--resume")...)
	if e.code != 2 || !strings.Contains(e.said, "another run") {
		t.Errorf("a second run: exit code %d: %s", e.code, e.said)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if first := ending(t, cmd, out, said); !first.killed {
		t.Fatalf("the first run ended by itself with %d: %s", first.code, first.said)
	}
	if e = runChild(t, orders{}, copyArgs(k.src, to, keep, "--resume")...); e.code != 0 {
		t.Fatalf("after its end: exit code %d: %s", e.code, e.said)
	}
	if err := k.same(to); err != nil {
		t.Error(err)
	}
}

// TestReadOnlyCheckpoint: a folder that cannot be written to is refused before
// anything is read. Root may write everywhere, so the folder stands where nobody may.
func TestReadOnlyCheckpoint(t *testing.T) {
	k := place(t, "gen", "memcached", 100)
	to := held(t, k.sink)
	e := runChild(t, orders{}, copyArgs(k.src, to, "/proc/self/c")...)
	if e.code != 1 && e.code != 2 && e.code != 4 || !strings.Contains(e.said, "checkpoint") {
		t.Errorf("exit code %d: %s", e.code, e.said)
	}
	if items, _, err := to.Live(); len(items) != 0 || err != nil {
		t.Errorf("%d items were written (%v)", len(items), err)
	}
}
