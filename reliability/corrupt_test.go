package reliability

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/reliability/faultproxy"
)

// TestChangedByteIsFound: on its way to the destination one byte of one value is
// changed, which no protocol notices. The copy that verifies, and compare, end with 3
// and name that key and no other; what compare writes repairs it.
func TestChangedByteIsFound(t *testing.T) {
	const victim, value = "key-031", `{"n":"the value that suffers"}`
	var lines strings.Builder
	lines.WriteString(`{"format":"cbpump-jsonl","version":1}` + "\n")
	for i := range 60 {
		v := fmt.Sprintf(`{\"n\":%d}`, i)
		if k := fmt.Sprintf("key-%03d", i); k == victim {
			v = strings.ReplaceAll(value, `"`, `\"`)
		}
		fmt.Fprintf(&lines, `{"op":"mutation","key":"key-%03d","value":"%s"}`+"\n", i, v)
	}
	// strikes a connection that carries the value, once.
	fault := func() func(int) faultproxy.Fault {
		var once atomic.Bool
		return func(int) faultproxy.Fault {
			return faultproxy.Fault{Kind: faultproxy.Corrupt, ToServer: true, At: 12, After: func(chunk []byte) int {
				i := bytes.Index(chunk, []byte(value))
				if i < 0 || !once.CompareAndSwap(false, true) {
					return -1
				}
				return i
			}}
		}
	}
	for name, start := range map[string]func(t *testing.T) (p *faultproxy.Proxy, through, straight string, held func() (map[string]pump.Item, error)){
		"memcached": func(t *testing.T) (*faultproxy.Proxy, string, string, func() (map[string]pump.Item, error)) {
			s := realmc.Start(t)
			p, err := faultproxy.Start(s.Addr, fault())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = p.Close() })
			return p, "memcached://" + p.Addr(), "memcached://" + s.Addr, func() (map[string]pump.Item, error) { return MemcachedItems(s.Addr) }
		},
		"cluster": func(t *testing.T) (*faultproxy.Proxy, string, string, func() (map[string]pump.Item, error)) {
			c, f := front(t, fault())
			t.Cleanup(func() { f.Close(); c.Close() })
			return f.Proxy, f.URL + "?rehash=true", c.URL() + "?rehash=true", func() (map[string]pump.Item, error) { return ClusterItems(c), nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			from, diff := filepath.Join(dir, "a.jsonl"), filepath.Join(dir, "d.jsonl")
			if err := os.WriteFile(from, []byte(lines.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			p, through, straight, held := start(t)
			// wrong are the keys that are not as the source has them.
			wrong := func() (keys []string) {
				items, err := held()
				if err != nil || len(items) != 60 {
					t.Fatalf("%d items, %v", len(items), err)
				}
				for k, it := range items {
					var i int
					if _, err := fmt.Sscanf(k, "key-%d", &i); err != nil {
						t.Fatalf("key %q", k)
					}
					if v := string(it.Value); v != fmt.Sprintf(`{"n":%d}`, i) && (k != victim || v != value) {
						keys = append(keys, k)
					}
				}
				return keys
			}
			login := []string{"-U", "Administrator", "-P", "password"}
			if name == "memcached" { // it has no logins
				login = nil
			}
			e := runChild(t, orders{}, append(login, from, through, "--verify", "digest")...)
			if e.code != 3 || !strings.Contains(e.said, "digests") {
				t.Fatalf("--verify digest: exit code %d: %s", e.code, e.said)
			}
			if p.Struck() != 1 || !slices.Equal(wrong(), []string{victim}) {
				t.Fatalf("%d bytes were changed; wrong are %v", p.Struck(), wrong())
			}
			e = runChild(t, orders{}, append(login, "compare", from, straight, "--differences", diff)...)
			verify, _ := e.result["verify"].(map[string]any)
			if e.code != 3 || verify["different"] != 1.0 || verify["missing"] != 0.0 || verify["same"] != 59.0 {
				t.Errorf("compare: exit code %d, %v: %s", e.code, verify, e.said)
			}
			text, err := os.ReadFile(diff)
			if err != nil || bytes.Count(text, []byte(`"key"`)) != 1 || !bytes.Contains(text, []byte(`"key":"`+victim+`"`)) {
				t.Errorf("the differences are %s, %v", text, err)
			}
			repair := append(login, diff, straight)
			if name == "cluster" {
				repair = append(repair, "-x", "conflict-resolution=false")
			}
			if e = runChild(t, orders{}, repair...); e.code != 0 {
				t.Errorf("repair: exit code %d: %s", e.code, e.said)
			}
			if w := wrong(); len(w) > 0 {
				t.Errorf("after the repair wrong are %v", w)
			}
			if e = runChild(t, orders{}, append(login, "compare", from, straight)...); e.code != 0 {
				t.Errorf("compare after the repair: exit code %d: %s", e.code, e.said)
			}
		})
	}
}
