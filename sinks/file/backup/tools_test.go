package backup

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	source "github.com/cbpump/cbpump/sources/file/backup"
)

// lastChanged returns the folder in dir that was changed last, of those whose names
// hold a word; "" if there is none.
func lastChanged(t *testing.T, dir, word string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	newest, at := "", time.Time{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if e.IsDir() && strings.Contains(e.Name(), word) && (newest == "" || info.ModTime().After(at)) {
			newest, at = filepath.Join(dir, e.Name()), info.ModTime()
		}
	}
	return newest
}

// toolsRead returns the rows "cmd|key|value" that the Python tools read of a backup
// folder, of each node in their order; nil if they find no backup. They take the run
// that was changed last, hidden or not; in it the part with "full" in its name that
// was changed last; of that the bucket's nodes; and of each of these the data files
// in all folders of the run, in the order of their paths. Should meta.json name earlier
// parts, they would read the files that it leads to in place of those.
func toolsRead(t *testing.T, dir string) map[string][]string {
	t.Helper()
	run := lastChanged(t, dir, "")
	if run == "" {
		return nil
	}
	full := lastChanged(t, run, "full")
	if full == "" {
		return nil
	}
	nodes, err := filepath.Glob(filepath.Join(full, "bucket-beer-sample", "node-*"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for _, node := range nodes {
		folders := filepath.Join(run, "*", "bucket-beer-sample", filepath.Base(node))
		for _, meta := range glob(t, filepath.Join(folders, "meta.json")) {
			if text, err := os.ReadFile(meta); err != nil || string(text) != `{"pred": []}` {
				t.Fatalf("%s is %s, %v", meta, text, err)
			}
		}
		files := glob(t, filepath.Join(folders, "data-*.cbb"))
		slices.Sort(files)
		for _, f := range files {
			rows[node] = append(rows[node], query(t, f, "SELECT cmd, key, val FROM cbb_msg")...)
		}
	}
	return rows
}

// rowsOf are the rows of toolsRead for items.
func rowsOf(items []pump.Item) []string {
	var rows []string
	for i := range items {
		cmd := "87|"
		if items[i].Op != pump.Mutation {
			cmd = "88|"
		}
		rows = append(rows, cmd+string(items[i].Key)+"|"+string(items[i].Value))
	}
	return rows
}

// TestPythonToolsReadAllOfAChain: what is written is found by the rules of the tools,
// whatever was written before and beside it.
func TestPythonToolsReadAllOfAChain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	want := func(what string, items []pump.Item) {
		t.Helper()
		got := toolsRead(t, dir)
		if len(got) != 1 {
			t.Fatalf("%s: they see the nodes %v", what, slices.Collect(maps.Keys(got)))
		}
		for _, rows := range got {
			// Keys are written in the order of their lanes.
			perKey := func(rows []string) map[string][]string {
				m := map[string][]string{}
				for _, r := range rows {
					key := strings.Split(r, "|")[1]
					m[key] = append(m[key], r)
				}
				return m
			}
			if !maps.EqualFunc(perKey(rows), perKey(rowsOf(items)), slices.Equal) {
				t.Errorf("%s: they read %d rows, want %d", what, len(rows), len(items))
			}
		}
	}
	broken := func(change func(*Options)) {
		t.Helper()
		boom := errors.New("the source broke")
		src := &pumptest.MemSource{Parts: [][]pump.Item{manyItems(2000, strings.Repeat("v", 2000))}, BatchSize: 100, Fail: func(_, given int) error {
			if given >= 1900 {
				return boom
			}
			return nil
		}}
		_, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: open(t, dir, func(o *Options) { o.MaxMB = 1; change(o) }), Settings: pump.DefaultSettings()})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
	}
	broken(func(*Options) {})
	if got := toolsRead(t, dir); got != nil {
		t.Errorf("of a broken run they read %v", slices.Collect(maps.Keys(got)))
	}
	all := manyItems(300, "full")
	mustWrite(t, open(t, dir, nil), all)
	want("full", all)
	for _, mode := range []string{"diff", "diff", "accu"} {
		items := manyItems(40, mode)
		for i := range items {
			if i%3 == 0 {
				items[i].Op, items[i].Value = pump.Deletion, nil
			}
		}
		mustWrite(t, open(t, dir, func(o *Options) { o.Mode = mode }), items)
		all = append(all, items...)
		want(mode, all)
	}
	broken(func(*Options) {})
	want("after a broken diff", all)
	broken(func(o *Options) { o.Mode = "full" })
	want("after a broken full", all)

	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(lastChanged(t, dir, ""), hour, hour); err != nil {
		t.Fatal(err)
	}
	next := manyItems(50, "next")
	mustWrite(t, open(t, dir, func(o *Options) { o.Mode = "full" }), next)
	want("the next full", next)
}

// TestPythonToolsReadWhatIsAddedToTheirs: a part of ours has a node that theirs has.
func TestPythonToolsReadWhatIsAddedToTheirs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(golden, "4.0/backup"))); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		for _, rows := range toolsRead(t, dir) {
			n += len(rows)
		}
		return n
	}
	before := count()
	if before != 162+41 {
		t.Fatalf("of their own backup they read %d rows", before)
	}
	mustWrite(t, open(t, dir, nil), manyItems(10, "added"))
	if got := count(); got != before+10 {
		t.Errorf("they read %d rows, want %d", got, before+10)
	}
	var said bytes.Buffer
	s := open(t, dir, func(o *Options) { o.Node = "elsewhere" })
	s.log = hclog.New(&hclog.LoggerOptions{Output: &said})
	mustWrite(t, s, manyItems(10, "hidden"))
	if got := count(); got != before+10 || !strings.Contains(said.String(), "the Python tools will not") || !strings.Contains(said.String(), "elsewhere") {
		t.Errorf("they read %d rows; the user was told %q", got, said.String())
	}
}

// TestWhatThePythonToolsAddIsNotMixedUp: a diff of theirs for a backup of ours goes
// into our full part, as another node, whose rows would be read before the older ones.
func TestWhatThePythonToolsAddIsNotMixedUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	mustWrite(t, open(t, dir, nil), manyItems(10, "older"))
	bucket := glob(t, dir+"/*/*-full/bucket-beer-sample")[0]
	theirs := filepath.Join(bucket, "node-127.0.0.1%3A21380")
	if err := os.CopyFS(theirs, os.DirFS(filepath.Join(full40, "bucket-beer-sample", "node-127.0.0.1%3A21380"))); err != nil {
		t.Fatal(err)
	}
	src, err := source.New(dir, pump.Env{Bucket: "beer-sample"}, source.Options{Streams: 1})
	if err == nil {
		err = src.Check(t.Context())
	}
	if pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(err.Error(), theirs) || !strings.Contains(pump.HintOf(err), "NEW/bucket-beer-sample/node-127.0.0.1%3A21380") {
		t.Fatalf("%v (%s)", err, pump.HintOf(err))
	}
	moved := filepath.Join(t.TempDir(), "NEW")
	if err := errors.Join(os.MkdirAll(filepath.Join(moved, "bucket-beer-sample"), 0o777), os.Rename(theirs, filepath.Join(moved, "bucket-beer-sample", filepath.Base(theirs)))); err != nil {
		t.Fatal(err)
	}
	if ours, added := len(read(t, dir, 1)), len(read(t, moved, 1)); ours != 10 || added < 50 {
		t.Errorf("%d and %d items", ours, added)
	}
}
