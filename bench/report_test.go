package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReportKeeps: --add replaces what was measured again, in its place, and keeps the rest.
func TestReportKeeps(t *testing.T) {
	dir := t.TempDir()
	note := filepath.Join(dir, "performance.md")
	if err := os.WriteFile(note, []byte("before\n"+tableBegin+"old\n"+tableEnd+"behind\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := report{
		Rows:     []row{{Pair: "a", Size: 256, Ratio: 0.1}, {Pair: "b", Size: 256, Ratio: 0.2}, {Pair: "a", Size: 16, Ratio: 0.3}},
		Far:      []row{{Pair: "a, far", Ratio: 0.4}},
		Scale:    []scaled{{}},
		Profiles: []profile{{"a", "x"}, {"b", "y"}},
	}
	if err := first.save(&benchOptions{out: dir}); err != nil {
		t.Fatal(err)
	}
	second := report{Rows: []row{{Pair: "a", Size: 16, Ratio: 0.7}, {Pair: "c", Size: 16, Ratio: 0.8}}, Profiles: []profile{{"a", "z"}}}
	if err := second.save(&benchOptions{out: dir, add: true}); err != nil {
		t.Fatal(err)
	}
	numbers, err := os.ReadFile(filepath.Join(dir, "performance.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal(numbers, &got); err != nil {
		t.Fatal(err)
	}
	var ratios []float64
	for _, l := range got.Rows {
		ratios = append(ratios, l.Ratio)
	}
	if want := []float64{0.1, 0.2, 0.7, 0.8}; len(ratios) != 4 || [4]float64(ratios) != [4]float64(want) {
		t.Errorf("rows %v, want %v", ratios, want)
	}
	if len(got.Far) != 1 || len(got.Scale) != 1 || len(got.Profiles) != 2 || got.Profiles[0] != (profile{"a", "z"}) || got.Profiles[1] != (profile{"b", "y"}) {
		t.Errorf("%+v", got)
	}
	text, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); !strings.HasPrefix(s, "before\n") || !strings.HasSuffix(s, "behind\n") || strings.Contains(s, "old\n") || !strings.Contains(s, "| a, far |") {
		t.Errorf("%s", s)
	}
	if err := (&report{Rows: first.Rows}).save(&benchOptions{out: t.TempDir(), add: true}); err == nil {
		t.Error("nothing to keep, and no error")
	}
}
