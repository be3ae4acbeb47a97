package jsonl_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	sink "github.com/cbpump/cbpump/sinks/file/jsonl"
)

// jq runs jq (make setup installs it) on a file.
func jq(t *testing.T, file string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "jq", append(args, file)...).Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("jq: %v: %s", err, exit.Stderr)
		}
		t.Fatalf("jq (make setup installs it): %v", err)
	}
	return string(out)
}

// TestJQ: what we write jq reads, and what jq makes of it we read, with nothing of
// any item lost on the way through another program.
func TestJQ(t *testing.T) {
	var items []pump.Item
	for i := range 300 {
		it := filetest.Item().Example(i)
		if it.Op != pump.Mutation && i%2 == 0 {
			it.Value = nil
		}
		items = append(items, it)
	}
	path := filepath.Join(t.TempDir(), "x.jsonl")
	write(t, path, items)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimPrefix(string(text), sink.Header), "\n")
	original, err := filetest.ReadAll(t, open(t, path), 64<<10)
	if err != nil || len(original) != len(items) {
		t.Fatalf("%d items, %v", len(original), err)
	}
	for name, args := range map[string][]string{
		"compact": {"-c", "."}, "sorted": {"-cS", "."}, "ASCII": {"-ca", "."},
	} {
		again, err := filetest.ReadAll(t, open(t, file(t, "x.jsonl", jq(t, path, args...))), 64<<10)
		if err != nil || len(again) != len(original) {
			t.Fatalf("%s: %d items of %d, %v", name, len(again), len(original), err)
		}
		for i := range again {
			if err := filetest.Same(&original[i], &again[i]); err != nil {
				t.Errorf("%s: %v\n%s", name, err, lines[i])
			}
		}
	}
	// 64-bit numbers come out to the last digit.
	var want strings.Builder
	for i := range original {
		for _, n := range []uint64{original[i].CAS, original[i].RevSeqno, original[i].Seqno} {
			want.WriteString(strconv.FormatUint(n, 10) + "\n")
		}
	}
	if got := jq(t, path, "-r", `select(.op) | (.cas // "0"), (.rev // "0"), (.seqno // "0")`); got != want.String() {
		t.Error("jq reads other numbers than were written")
	}
	if got := jq(t, path, "-c", `select(.format) | [.format, .version]`); got != "[\"cbpump-jsonl\",1]\n" {
		t.Errorf("the first line is %s to jq", got)
	}
}
