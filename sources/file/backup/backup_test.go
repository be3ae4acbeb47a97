package backup

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden is where the backups of the Python tools are.
const golden = "../../../testdata/backups"

func options(t testing.TB) Options {
	t.Helper()
	var o Options
	if err := pump.DecodeOptions("backup", nil, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func open(t testing.TB, dir string, change func(*Options)) *Source {
	t.Helper()
	o := options(t)
	if change != nil {
		change(&o)
	}
	s, err := New(dir, pump.Env{Bucket: "default"}, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// expected reads an expected.jsonl of the golden folders.
func expected(t *testing.T, path string) map[string]pump.Item {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]pump.Item{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var l struct {
			Op       string
			VB       uint16
			Key      string `json:"key_hex"`
			Value    string `json:"value_hex"`
			Flags    uint32
			Expiry   uint32
			CAS      string
			Rev      uint64
			Datatype uint8
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		it := pump.Item{VBucket: l.VB, Flags: l.Flags, Expiry: l.Expiry, RevSeqno: l.Rev, Datatype: l.Datatype}
		if l.Op != "mutation" {
			it.Op = pump.Deletion
		}
		for field, text := range map[*[]byte]string{&it.Key: l.Key, &it.Value: l.Value} {
			if *field, err = hex.DecodeString(text); err != nil {
				t.Fatal(err)
			}
		}
		if it.CAS, err = strconv.ParseUint(l.CAS, 10, 64); err != nil {
			t.Fatal(err)
		}
		out[string(it.Key)] = it
	}
	if err := lines.Err(); err != nil || len(out) == 0 {
		t.Fatal(len(out), err)
	}
	return out
}

var allFields = []string{"vbucket", "flags", "expiry", "cas", "rev", "datatype"}

// sameState compares the last state of each key.
func sameState(t *testing.T, want map[string]pump.Item, got []pump.Item, fields ...string) {
	t.Helper()
	last := map[string]pump.Item{}
	for _, it := range got {
		last[string(it.Key)] = it
	}
	bad := 0
	for _, k := range slices.Sorted(maps.Keys(want)) {
		w, g := want[k], last[k]
		if _, ok := last[k]; !ok {
			t.Errorf("key %q was not read", k)
			bad++
		} else if dw, dg := pumptest.Describe(&w, fields...), pumptest.Describe(&g, fields...); dw != dg {
			t.Errorf("read\n%s\nwant\n%s", dg, dw)
			bad++
		}
		if bad > 5 {
			t.FailNow()
		}
	}
	if len(last) != len(want) {
		t.Errorf("%d keys were read, want %d", len(last), len(want))
	}
}

func TestGoldenBackups(t *testing.T) {
	without := func(field string) []string {
		return slices.DeleteFunc(slices.Clone(allFields), func(f string) bool { return f == field })
	}
	for _, c := range []struct {
		dir, expected string
		rows          int
		fields        []string
	}{
		{"2.5.1/backup", "2.5.1/expected.jsonl", 162, without("datatype")}, // the 2.x files have no place for it
		{"2.5.1/backup-split", "2.5.1/expected.jsonl", 162, without("datatype")},
		{"3.0.3/backup", "3.0.3/expected.jsonl", 162 + 41, allFields},
		{"4.0/backup", "4.0/expected.jsonl", 162 + 41, allFields},
		{"3.0.3/backup/2026-11-22T140756Z", "3.0.3/expected.jsonl", 162 + 41, allFields}, // the run named
		{"3.0.3/backup/2026-11-22T140756Z/2026-11-22T140756Z-full", "3.0.3/expected-full.jsonl", 162, allFields},
		{"4.0/backup/2026-11-22T140804Z/2026-11-22T140804Z-full", "4.0/expected-full.jsonl", 162, allFields},
	} {
		for _, streams := range []int{1, 2, 16} {
			t.Run(fmt.Sprintf("%s, %d streams", c.dir, streams), func(t *testing.T) {
				items := pumptest.ReadAll(t, open(t, filepath.Join(golden, c.dir), func(o *Options) { o.Streams = streams }), 4<<10)
				if len(items) != c.rows {
					t.Errorf("%d rows, want %d", len(items), c.rows)
				}
				sameState(t, expected(t, filepath.Join(golden, c.expected)), items, c.fields...)
			})
		}
	}
}

func TestConformance(t *testing.T) {
	for _, dir := range []string{"2.5.1/backup-split", "3.0.3/backup", "4.0/backup"} {
		t.Run(dir, func(t *testing.T) {
			pumptest.TestSource(t, pumptest.SourceSuite{New: func(t *testing.T) pump.Source {
				return open(t, filepath.Join(golden, dir), nil)
			}})
		})
	}
}
