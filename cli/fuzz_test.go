package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzExtras: every -x that is taken stands there as name=value, and an error shows
// none of it.
func FuzzExtras(f *testing.F) {
	for _, s := range []string{"a=1", "a=1,b=2", "a=1,2,b=3", "a", "=1", "a=b=c", "source.seed=1, sink.x=2", "a=s3cret,=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, err := parseExtras([]string{text})
		if err != nil {
			if len(text) > 12 && strings.Contains(err.Error(), text) {
				t.Errorf("the error shows %q: %v", text, err)
			}
			return
		}
		for name, value := range values {
			if name == "" || name != strings.TrimSpace(name) || !strings.Contains(text, "="+value) {
				t.Errorf("%q gives %q=%q", text, name, value)
			}
		}
	})
}

// FuzzLimits: a file of limits with a mistake is refused; what no line speaks of stays.
func FuzzLimits(f *testing.F) {
	for _, s := range []string{"", "items=5", "bytes=1m\nitems=0\n", "# no\n\nitems = 7", "items", "items=-1", "bytes=1e9", "other=1"} {
		f.Add(s)
	}
	path := filepath.Join(f.TempDir(), "limits")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		was := speed{items: 11, bytes: 13}
		now, err := readLimits(path, was)
		if err != nil {
			return
		}
		if !strings.Contains(text, "items") && now.items != was.items || !strings.Contains(text, "bytes") && now.bytes != was.bytes {
			t.Errorf("%q changes %+v to %+v", text, was, now)
		}
	})
}
