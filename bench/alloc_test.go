package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestMain lets the test be the processes that the program starts: what a server
// allocates is not counted then.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == modeServe {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestNoAllocationPerItem compares two runs of each pair that differ only in the
// number of items: what the longer one allocates more, per item, is the steady
// state. What is left is by batch: some ten for each few hundred items.
func TestNoAllocationPerItem(t *testing.T) {
	const few, many, size, most = 20_000, 120_000, 256, 0.05
	dir := t.TempDir()
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			mallocs := func(items int) float64 {
				s := &stores{sources: map[string]*child{}, at: map[string]served{}, dir: dir}
				defer func() {
					if err := s.close(); err != nil {
						t.Error(err)
					}
				}()
				if p.source == "backup" || p.source == "jsonl" {
					transferHere(t, genSpec(items, size)+"&json=true", filepath.Join(dir, fmt.Sprintf("%d-%d.%s", items, size, p.source)))
				}
				st, err := s.prepareEnds(t.Context(), p, items, size)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := st.close(); err != nil {
						t.Error(err)
					}
				}()
				var least float64
				for try := range 2 {
					if err := st.before(); err != nil {
						t.Fatal(err)
					}
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					report := transferHere(t, st.sourceSpec, st.destination())
					runtime.ReadMemStats(&after)
					if report.Done != uint64(items) {
						t.Fatalf("done %d of %d", report.Done, items)
					}
					if err := st.count(); err != nil {
						t.Fatal(err)
					}
					if n := float64(after.Mallocs - before.Mallocs); try == 0 || n < least {
						least = n
					}
				}
				return least
			}
			perItem := (mallocs(many) - mallocs(few)) / (many - few)
			t.Logf("%.5f allocations per item", perItem)
			if perItem > most {
				t.Errorf("%.5f allocations per item", perItem)
			}
		})
	}
}

func TestTablesGoBetweenTheirLines(t *testing.T) {
	dir := t.TempDir()
	note := filepath.Join(dir, "performance.md")
	r := report{Machine: "a machine", Rows: []row{{Pair: "gen to memcached", Size: 256, Ratio: 0.93, Goal: 0.9}}, Control: []row{{Pair: "the same, twice"}}}
	if err := os.WriteFile(note, []byte("before\n"+tableBegin+"old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.write(dir); err == nil {
		t.Error("a note without the second line was rewritten")
	}
	if err := os.WriteFile(note, []byte("before\n"+tableBegin+"old\n"+tableEnd+"behind\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.write(dir); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	s := string(text)
	if !strings.HasPrefix(s, "before\n") || !strings.HasSuffix(s, "behind\n") || strings.Contains(s, "old") ||
		strings.Count(s, "| gen to memcached | 256 B |") != 1 || !strings.Contains(s, "**0.93**") {
		t.Errorf("%s", s)
	}
}
