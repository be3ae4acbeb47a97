package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

func TestLimitsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limits")
	var said bytes.Buffer
	say := &console{name: "cbtransfer", err: &said}
	w := &limitsWatch{path: path, now: speed{items: 100}}
	limits := pump.NewLimits(100, 0)
	for _, c := range []struct {
		name, text   string
		items, bytes uint64
		says         string // "" = nothing
	}{
		{"what is not there changes nothing", "-", 100, 0, "limits: no such file"},
		{"and is said once", "-", 100, 0, ""},
		{"it comes", "bytes = 2m\n", 100, 2 << 20, "limits are now 100 items/s, 2.1 MB/s"},
		{"nothing new", "bytes = 2m\n", 100, 2 << 20, ""},
		{"a comment, other items", "# slower\n\n items=7\nbytes=2m", 7, 2 << 20, "limits are now 7 items/s, 2.1 MB/s"},
		{"empty for a moment", "", 7, 2 << 20, ""},
		{"nonsense", "items=7\nspeed=1\n", 7, 2 << 20, "the limits stay as they are (7 items/s, 2.1 MB/s): " + path + ", line 2: items=NUMBER or bytes=SIZE is due"},
		{"negative", "items=-7\n", 7, 2 << 20, "line 1"},
		{"no number", "items\n", 7, 2 << 20, ""}, // the same complaint
		{"much too long", strings.Repeat("items=9\n", 1000), 7, 2 << 20, "too long"},
		{"lifted", "items=0\nbytes=0\n", 0, 0, "limits are now any number of items/s, any number of bytes/s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			said.Reset()
			var err error
			if c.text == "-" {
				if err = os.Remove(path); errors.Is(err, os.ErrNotExist) {
					err = nil
				}
			} else if was, rerr := os.ReadFile(path); rerr != nil || string(was) != c.text {
				// A new file each time, as an editor makes it: its time may be the same.
				err = errors.Join(os.WriteFile(path+".new", []byte(c.text), 0o600), os.Rename(path+".new", path))
			}
			if err != nil {
				t.Fatal(err)
			}
			w.follow(say, limits)
			if n, b := limits.Rates(); n != c.items || b != c.bytes {
				t.Errorf("limits %d, %d; want %d, %d", n, b, c.items, c.bytes)
			}
			if got := said.String(); !strings.Contains(got, c.says) || (c.says == "") != (got == "") {
				t.Errorf("said %q, want %q", got, c.says)
			}
		})
	}
}
