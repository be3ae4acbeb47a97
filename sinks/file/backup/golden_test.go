package backup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/pump"
	source "github.com/cbpump/cbpump/sources/file/backup"
)

// full40 is the full part of the backup of the tool of 4.0.
const full40 = golden + "/4.0/backup/2026-11-22T140804Z/2026-11-22T140804Z-full"

// rewritten copies that part, with all that belongs to it, into a backup of ours and
// returns the folders of both parts.
func rewritten(t *testing.T) (theirs, ours string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "backup")
	src, err := source.New(full40, pump.Env{Bucket: "beer-sample"}, source.Options{Streams: 1})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, nil)
	s.env.Bucket = "beer-sample"
	if _, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: s, Settings: pump.DefaultSettings(), Threads: 1}); err != nil {
		t.Fatal(err)
	}
	parts, err := filepath.Glob(filepath.Join(dir, "*Z", "*-full"))
	if err != nil || len(parts) != 1 {
		t.Fatal(parts, err)
	}
	return full40, parts[0]
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %q, %v", pattern, paths, err)
	}
	return paths
}

// TestRowsAreThoseOfTheTools: the same items make the same rows, in all columns and
// to the type of each value.
func TestRowsAreThoseOfTheTools(t *testing.T) {
	theirs, ours := rewritten(t)
	rows := func(part string) []string {
		var all []string
		for _, f := range glob(t, part+"/bucket-beer-sample/node-*/data-*.cbb") {
			all = append(all, query(t, f, `SELECT quote(cmd), quote(vbucket_id), quote(key), quote(flg), quote(exp), quote(cas), quote(meta), quote(val),
				quote(seqno), quote(dtype), quote(meta_size), quote(conf_res) FROM cbb_msg`)...)
		}
		slices.Sort(all)
		return all
	}
	want, got := rows(theirs), rows(ours)
	if len(want) != 162 || !slices.Equal(want, got) {
		t.Errorf("%d rows, want %d", len(got), len(want))
		for i := range min(len(want), len(got)) {
			if want[i] != got[i] {
				t.Fatalf("row %d is\n%s, want\n%s", i, got[i], want[i])
			}
		}
	}
}

// TestHeadersAreThoseOfTheTools compares the headers of the SQLite files byte by
// byte, but for what must differ.
func TestHeadersAreThoseOfTheTools(t *testing.T) {
	theirs, ours := rewritten(t)
	header := func(part string) []byte {
		data, err := os.ReadFile(glob(t, part+"/bucket-beer-sample/node-*/data-0000.cbb")[0])
		if err != nil {
			t.Fatal(err)
		}
		h := data[:100]
		for what, at := range map[string][2]int{
			"page size": {16, 18}, "number of changes": {24, 28}, "pages": {28, 32}, "schema cookie": {40, 44}, "change of the page count": {92, 96}, "version of SQLite": {96, 100},
		} {
			if slices.Equal(h[at[0]:at[1]], make([]byte, at[1]-at[0])) {
				t.Errorf("%s: no %s", part, what)
			}
			clear(h[at[0]:at[1]])
		}
		return h
	}
	if want, got := header(theirs), header(ours); !bytes.Equal(want, got) {
		t.Errorf("the header is\n%x, want\n%x", got, want)
	}
}

// shape is the structure of a JSON value: the kinds of its values, with what numbers
// and names stand for left out.
func shape(v any) string {
	switch v := v.(type) {
	case map[string]any:
		kinds := map[string]bool{}
		for name, inner := range v {
			if regexp.MustCompile(`^\d+$`).MatchString(name) {
				name = "VBUCKET"
			}
			kinds[name+": "+shape(inner)] = true
		}
		return "{" + strings.Join(slices.Sorted(maps.Keys(kinds)), ", ") + "}"
	case []any:
		kinds := map[string]bool{}
		for _, inner := range v {
			kinds[shape(inner)] = true
		}
		return "[" + strings.Join(slices.Sorted(maps.Keys(kinds)), ", ") + "]"
	}
	return fmt.Sprintf("%T", v)
}

// TestFoldersAreThoseOfTheTools compares names of folders and files, and the JSON
// files: their structure, their spacing, and what they say.
func TestFoldersAreThoseOfTheTools(t *testing.T) {
	theirs, ours := rewritten(t)
	part := regexp.MustCompile(`/(\d{4}-\d{2}-\d{2}T\d{6}Z)/(\d{4}-\d{2}-\d{2}T\d{6}Z)-full$`)
	for _, dir := range []string{theirs, ours} {
		if m := part.FindStringSubmatch(filepath.ToSlash(dir)); m == nil || m[1] != m[2] {
			t.Errorf("a part is called %s", dir)
		}
	}
	names := func(pattern string) []string {
		set := map[string]bool{}
		for _, p := range glob(t, pattern) {
			name := filepath.Base(p)
			if strings.HasPrefix(name, "node-") {
				name = "node-…"
			}
			set[name] = true
		}
		return slices.Sorted(maps.Keys(set))
	}
	for _, pattern := range []string{"/*", "/*/*", "/*/node-*/*"} {
		want := names(theirs + pattern)
		got := slices.DeleteFunc(names(ours+pattern), func(n string) bool { return n == "SHA256SUMS" || n == "cbpump.json" })
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", pattern, got, want)
		}
	}
	read := func(path string) (text []byte, value any) {
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &value)
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return text, value
	}
	spacing := regexp.MustCompile(`[^ ]:[^ ]|,[^ ]|[\n\t]| $`)
	seqnos := map[string]any{}
	for _, node := range glob(t, theirs+"/*/node-*") {
		for _, name := range []string{"meta.json", "seqno.json", "failover.json", "snapshot_markers.json"} {
			text, want := read(filepath.Join(node, name))
			our, got := read(glob(t, ours+"/*/node-*/"+name)[0])
			if spacing.Match(text) || spacing.Match(our) {
				t.Errorf("%s is spaced\n%s, want\n%s", name, our, text)
			}
			// What a server said of its history is not known to every source.
			if shape(got) != shape(want) && !(string(our) == "{}" && (name == "failover.json" || name == "snapshot_markers.json")) {
				t.Errorf("%s is %s, want %s", name, shape(got), shape(want))
			}
			if name == "seqno.json" {
				maps.Copy(seqnos, want.(map[string]any))
			}
		}
	}
	if _, got := read(glob(t, ours+"/*/node-*/seqno.json")[0]); fmt.Sprint(got) != fmt.Sprint(seqnos) {
		t.Errorf("seqno.json is %v, want that of all nodes, %v", got, seqnos)
	}
	want, _ := read(theirs + "/bucket-beer-sample/design.json")
	if got, _ := read(ours + "/bucket-beer-sample/design.json"); !bytes.Equal(got, want) {
		t.Errorf("design.json is %s, want %s", got, want)
	}
	// cbb_meta: ours says less, under the same names.
	const q = "SELECT key, val FROM cbb_meta WHERE key LIKE '%.json' ORDER BY rowid"
	their := query(t, glob(t, theirs+"/*/node-*/data-0000.cbb")[0], q)
	our := query(t, glob(t, ours+"/*/node-*/data-0000.cbb")[0], q)
	if len(their) != len(our) {
		t.Fatalf("%d entries of cbb_meta, want %d", len(our), len(their))
	}
	for i := range our {
		key, text, _ := strings.Cut(our[i], "|")
		theirKey, theirText, _ := strings.Cut(their[i], "|")
		var got, want map[string]any
		if err := json.Unmarshal([]byte(text), &got); err != nil || json.Unmarshal([]byte(theirText), &want) != nil || key != theirKey {
			t.Fatalf("%s, %s: %v", key, theirKey, err)
		}
		for name, value := range got {
			theirs, known := want[name]
			if !known || fmt.Sprintf("%T", value) != fmt.Sprintf("%T", theirs) {
				t.Errorf("%s has %q, %T; theirs has %T", key, name, value, theirs)
			}
		}
	}
}
