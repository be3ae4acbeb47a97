package capture

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// replayedTable, beside the recordings, lists which test replays which of them: on
// each line a recording's name and a test, "sources/dcp.TestRecordedStreams".
const replayedTable = "REPLAYED"

// Replayed reads the table of replayed recordings: the tests of each.
func Replayed() (map[string][]string, error) {
	dir, err := Dir()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, replayedTable))
	if err != nil {
		return nil, err
	}
	table := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if name, test, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			table[name] = append(table[name], test)
		}
	}
	return table, nil
}

// Replays fails a test that did not replay just the recordings that the table says
// it does, so that the table can be relied on.
func Replays(tb testing.TB, test string, names ...string) {
	tb.Helper()
	table, err := Replayed()
	if err != nil {
		tb.Fatal(err)
	}
	for name, tests := range table {
		if slices.Contains(tests, test) && !slices.Contains(names, name) {
			tb.Errorf("%s: %s does not replay it", name, test)
		}
	}
	for _, name := range names {
		if !slices.Contains(table[name], test) {
			tb.Errorf("the table %s lacks the line\n%s %s", replayedTable, name, test)
		}
	}
}

// Names returns the names of recordings.
func Names(all []*Capture) []string {
	names := make([]string, len(all))
	for i, c := range all {
		names[i] = c.Name
	}
	return names
}
