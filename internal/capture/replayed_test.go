package capture

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// notOurs are recordings of requests that none of our clients makes.
var notOurs = map[string]string{"7.0-durable-set": "writes with a durability requirement"}

// TestEveryCaptureIsReplayed: each recording is decoded, and each that says which
// items it holds is replayed by a client or server of ours that compares them.
func TestEveryCaptureIsReplayed(t *testing.T) {
	table, err := Replayed()
	if err != nil {
		t.Fatal(err)
	}
	const decoded = "mcbp.TestRecordedReplies"
	sources := map[string]string{}
	for _, c := range all(t) {
		tests := table[c.Name]
		byItem := false
		for _, test := range tests {
			folder, name, _ := strings.Cut(test, ".")
			if _, read := sources[folder]; !read {
				files, err := filepath.Glob(filepath.Join("../..", folder, "*_test.go"))
				if err != nil {
					t.Fatal(err)
				}
				for _, file := range files {
					text, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					sources[folder] += string(text)
				}
			}
			if !strings.Contains(sources[folder], "func "+name+"(t *testing.T)") || !strings.Contains(sources[folder], `capture.Replays(t, "`+test+`"`) {
				t.Errorf("%s: there is no test %s, or it does not say what it replays", c.Name, test)
			}
			byItem = byItem || test != decoded
		}
		switch {
		case len(tests) == 0:
			t.Errorf("%s is replayed by no test", c.Name)
		case len(c.Items) > 0 && !byItem && notOurs[c.Name] == "":
			t.Errorf("%s has %d items, which no test compares", c.Name, len(c.Items))
		}
		delete(table, c.Name)
	}
	for name := range table {
		t.Errorf("the table names %s, which is no recording", name)
	}
}
