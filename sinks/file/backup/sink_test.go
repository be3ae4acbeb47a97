package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	source "github.com/cbpump/cbpump/sources/file/backup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const golden = "../../../testdata/backups"

func options(t testing.TB) Options {
	t.Helper()
	var o Options
	if err := pump.DecodeOptions("backup", nil, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func open(t testing.TB, dir string, change func(*Options)) *Sink {
	t.Helper()
	o := options(t)
	if change != nil {
		change(&o)
	}
	s, err := New(dir, pump.Env{Bucket: "beer-sample"}, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// read reads a backup folder with as many streams.
func read(t testing.TB, dir string, streams int) []pump.Item {
	t.Helper()
	var o source.Options
	if err := pump.DecodeOptions("backup", nil, &o); err != nil {
		t.Fatal(err)
	}
	o.Streams = streams
	s, err := source.New(dir, pump.Env{Bucket: "default"}, o)
	if err != nil {
		t.Fatal(err)
	}
	return pumptest.ReadAll(t, s, 64<<10)
}

// write writes items as a run of the pump does.
func write(t testing.TB, s pump.Sink, items []pump.Item) error {
	t.Helper()
	set := pump.DefaultSettings()
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items}}, Sink: s, Settings: set, Scribble: true, Threads: 2})
	if err == nil && report.Done != uint64(len(items)) {
		t.Errorf("%d items done, want %d", report.Done, len(items))
	}
	return err
}

func mustWrite(t testing.TB, s pump.Sink, items []pump.Item) {
	t.Helper()
	if err := write(t, s, items); err != nil {
		t.Fatal(err)
	}
}

// tree lists the files and folders below dir.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if rel, rerr := filepath.Rel(dir, path); rerr == nil && rel != "." {
			out = append(out, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestConformance(t *testing.T) {
	var dir string
	pumptest.TestSink(t, pumptest.SinkSuite{
		New: func(t *testing.T) pump.Sink {
			dir = filepath.Join(t.TempDir(), "backup")
			return open(t, dir, nil)
		},
		Read: func(t *testing.T) map[string]pump.Item {
			live := map[string]pump.Item{}
			if _, err := os.Stat(dir); err != nil {
				return live // nothing was committed
			}
			for _, it := range read(t, dir, 2) {
				if it.Op == pump.Mutation {
					live[string(it.Key)] = it
				} else {
					delete(live, string(it.Key))
				}
			}
			return live
		},
		Compare:  []string{"vbucket", "flags", "expiry", "cas", "rev", "datatype"},
		MaxValue: 1 << 20,
	})
}

// anyItem makes items of every kind that a backup can hold.
func anyItem(t *rapid.T) pump.Item {
	size := rapid.OneOf(rapid.Just(0), rapid.IntRange(1, 64), rapid.IntRange(4000, 4200), rapid.IntRange(16300, 16500)).Draw(t, "size")
	if rapid.IntRange(0, 99).Draw(t, "large") == 99 {
		size = 300 << 10 // goes in by a statement of its own
	}
	it := pump.Item{
		Op:       pump.Op(rapid.IntRange(0, 1).Draw(t, "op")),
		Key:      rapid.SliceOfN(rapid.Byte(), 1, 250).Draw(t, "key"),
		Value:    bytes.Repeat([]byte{rapid.Byte().Draw(t, "value")}, size),
		VBucket:  rapid.OneOf(rapid.SampledFrom([]uint16{0, 1, 1023, pump.NoVBucket}), rapid.Uint16()).Draw(t, "vbucket"),
		Flags:    rapid.Uint32().Draw(t, "flags"),
		Expiry:   rapid.Uint32().Draw(t, "expiry"),
		Datatype: rapid.Uint8().Draw(t, "datatype"),
		CAS:      rapid.OneOf(rapid.SampledFrom([]uint64{0, 1 << 63, math.MaxUint64}), rapid.Uint64()).Draw(t, "cas"),
		RevSeqno: rapid.OneOf(rapid.SampledFrom([]uint64{0, 1<<32 + 1, 12345678, 99999999, math.MaxUint64}), rapid.Uint64()).Draw(t, "rev"),
		Seqno:    rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64Range(1, math.MaxInt64)).Draw(t, "seqno"),
	}
	return it
}

func describe(it *pump.Item) string {
	return fmt.Sprintf("%s seqno=%d", pumptest.Describe(it, "vbucket", "flags", "expiry", "cas", "rev", "datatype"), it.Seqno)
}

// perKey groups what happened to each key, in order.
func perKey(items []pump.Item) map[string][]string {
	out := map[string][]string{}
	for i := range items {
		out[string(items[i].Key)] = append(out[string(items[i].Key)], describe(&items[i]))
	}
	return out
}

func same(t interface{ Fatalf(string, ...any) }, want, got []pump.Item) {
	w, g := perKey(want), perKey(got)
	for k := range w {
		if !slices.Equal(w[k], g[k]) {
			t.Fatalf("key %q was written as\n%s\nand read as\n%s", k, strings.Join(w[k], "\n"), strings.Join(g[k], "\n"))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d items written, %d read", len(want), len(got))
	}
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	base := t.TempDir()
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		dir := filepath.Join(base, fmt.Sprint(run))
		var all []pump.Item
		for range rapid.IntRange(1, 3).Draw(rt, "runs") { // a full and diffs
			items := rapid.SliceOfN(rapid.Custom(anyItem), 0, 30).Draw(rt, "items")
			for i := range items { // keys that come again, in this run and the next
				if i%3 == 2 {
					items[i].Key = fmt.Appendf(nil, "key %d", i%9)
				}
			}
			all = append(all, items...)
			mustWrite(t, open(t, dir, nil), items)
		}
		same(rt, all, read(t, dir, rapid.SampledFrom([]int{1, 2, 16}).Draw(rt, "streams")))
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	})
}

func TestValuesOfTwentyMiB(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	var items []pump.Item
	for i := range 2 {
		value := make([]byte, 20<<20)
		rand.Read(value)
		items = append(items, pump.Item{Key: fmt.Appendf(nil, "large %d", i), Value: value, VBucket: uint16(i), CAS: 1 << 63})
	}
	mustWrite(t, open(t, dir, func(o *Options) { o.MaxMB = 15 }), items)
	same(t, items, read(t, dir, 2))
}

func manyItems(n int, value string) []pump.Item {
	items := make([]pump.Item, n)
	for i := range items {
		items[i] = pump.Item{Key: fmt.Appendf(nil, "key-%06d", i), Value: []byte(value), VBucket: uint16(i % 1024), CAS: uint64(i) + 1, RevSeqno: 1, Seqno: uint64(i) + 1}
	}
	return items
}

func TestDataFilesAreSplit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	items := manyItems(5000, strings.Repeat("v", 1000)) // 5 MB in two lanes
	mustWrite(t, open(t, dir, func(o *Options) { o.MaxMB = 1 }), items)
	files := 0
	for _, name := range tree(t, dir) {
		if strings.HasSuffix(name, ".cbb") {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Size() > 1<<20+256<<10 {
				t.Errorf("%s has %d bytes, %v", name, info.Size(), err)
			}
			files++
		}
	}
	if files < 5 {
		t.Errorf("%d data files", files)
	}
	for _, streams := range []int{1, 2, 4} {
		same(t, items, read(t, dir, streams))
	}
}

func TestFolderOfTwoRuns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	at := time.Date(2026, 11, 22, 14, 8, 4, 0, time.UTC)
	run := func(items []pump.Item, change func(*Options)) {
		t.Helper()
		s := open(t, dir, change)
		s.now = func() time.Time { return at } // a clock that stands still: names must still go on
		mustWrite(t, s, items)
	}
	item := func(value string) []pump.Item {
		return []pump.Item{{Key: []byte("k"), Value: []byte(value), VBucket: 3, Seqno: 7, CAS: 5, RevSeqno: 2}}
	}
	node := func(o *Options) { o.Node = "127.0.0.1:21380" }
	run(item("one"), node)
	run(item("two"), node)
	run(item("three"), func(o *Options) { node(o); o.Mode = "accu" })
	const bucket = "/bucket-beer-sample"
	var want []string
	want = append(want, "2026-11-22T140804Z")
	for _, part := range []string{"2026-11-22T140804Z-full", "2026-11-22T140805Z-diff", "2026-11-22T140806Z-accu"} {
		p := "2026-11-22T140804Z/" + part
		n := p + bucket + "/node-127.0.0.1%3A21380"
		want = append(want, p, p+bucket, n)
		for _, f := range []string{"SHA256SUMS", "cbpump.json", "data-0000.cbb", "failover.json", "meta.json", "seqno.json", "snapshot_markers.json"} {
			want = append(want, n+"/"+f)
		}
	}
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("the folder holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for part, files := range map[string]map[string]string{
		"2026-11-22T140804Z-full": {"meta.json": `{"pred": []}`, "cbpump.json": `{"pred": []}`, "seqno.json": `{"3": 7}`, "failover.json": "{}", "snapshot_markers.json": "{}"},
		"2026-11-22T140805Z-diff": {"meta.json": `{"pred": []}`, "cbpump.json": `{"pred": ["2026-11-22T140804Z-full"]}`},
		"2026-11-22T140806Z-accu": {"meta.json": `{"pred": []}`, "cbpump.json": `{"pred": ["2026-11-22T140804Z-full"]}`},
	} {
		for name, text := range files {
			got, err := os.ReadFile(filepath.Join(dir, "2026-11-22T140804Z", part, "bucket-beer-sample", "node-127.0.0.1%3A21380", name))
			if err != nil || string(got) != text {
				t.Errorf("%s of %s is %q (%v), want %q", name, part, got, err, text)
			}
		}
	}
	var values []string
	for _, it := range read(t, dir, 2) {
		values = append(values, string(it.Value))
	}
	if !slices.Equal(values, []string{"one", "two", "three"}) {
		t.Errorf("read %q", values)
	}
	// A new run is what is read from then on.
	run(item("new"), func(o *Options) { o.Mode = "full" })
	if items := read(t, dir, 1); len(items) != 1 || string(items[0].Value) != "new" {
		t.Errorf("read %d items", len(items))
	}
}

func TestAppendsToBackupsOfThePythonTools(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(golden, "4.0/backup"))); err != nil {
		t.Fatal(err)
	}
	before := read(t, dir, 2)
	added := manyItems(10, "added")
	mustWrite(t, open(t, dir, nil), added)
	same(t, append(before, added...), read(t, dir, 2))
	runs, err := os.ReadDir(dir)
	if err != nil || len(runs) != 1 {
		t.Errorf("%v, %v", runs, err)
	}
}

// TestSeqnoJSONHasTheHighest: items need not come in the order of their numbers.
func TestSeqnoJSONHasTheHighest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	var items []pump.Item
	for i, seqno := range []uint64{5, 9, 7, 1, 0} {
		items = append(items, pump.Item{Key: fmt.Appendf(nil, "%d", i), VBucket: 3, Seqno: seqno}, pump.Item{Key: fmt.Appendf(nil, "n%d", i), VBucket: pump.NoVBucket, Seqno: seqno})
	}
	mustWrite(t, open(t, dir, nil), items)
	if text, err := os.ReadFile(glob(t, dir+"/*/*/*/*/seqno.json")[0]); err != nil || string(text) != `{"3": 9}` {
		t.Errorf("%s, %v", text, err)
	}
}

// TestPartsBetweenAreMissed: every part names those before it, in a file whose loss is
// noticed too.
func TestPartsBetweenAreMissed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	for range 3 {
		mustWrite(t, open(t, dir, nil), manyItems(5, "v"))
	}
	check := func() error {
		src, err := source.New(dir, pump.Env{Bucket: "default"}, source.Options{Streams: 1})
		if err != nil {
			t.Fatal(err)
		}
		return src.Check(t.Context())
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	diffs := glob(t, dir+"/*/*-diff")
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(diffs[0], away); err != nil {
		t.Fatal(err)
	}
	if err := check(); pump.CodeOf(err) != "backup-missing" || !strings.Contains(err.Error(), filepath.Base(diffs[0])) {
		t.Errorf("without the first diff: %v", err)
	}
	if err := os.Rename(away, diffs[0]); err != nil {
		t.Fatal(err)
	}
	chain := glob(t, diffs[1]+"/*/*/cbpump.json")[0]
	if err := os.Remove(chain); err != nil {
		t.Fatal(err)
	}
	if err := check(); pump.CodeOf(err) != "backup-missing" || !strings.Contains(err.Error(), chain) {
		t.Errorf("without %s: %v", chain, err)
	}
}

func TestEmptyBackup(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	mustWrite(t, open(t, dir, nil), nil)
	if items := read(t, dir, 2); len(items) != 0 {
		t.Errorf("%d items", len(items))
	}
}

func TestWhatDoesNotFitIsRejected(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	items := manyItems(6, "v")
	items[0].Collection = &pump.Collection{Scope: "s", Name: "c"}
	items[2].Collection = &pump.Collection{Scope: "_default", Name: "_default"}
	items[3].Key = nil
	items[4].Seqno = 1 << 63
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items}}, Sink: open(t, dir, nil), Settings: pump.DefaultSettings()})
	if pump.ClassOf(err) != pump.ClassPartial || report.Done != 3 || report.Rejected != 3 {
		t.Fatalf("%d done, %d rejected, %v", report.Done, report.Rejected, err)
	}
	for _, r := range report.Rejections {
		if pump.CodeOf(r.Cause) == "failed" {
			t.Errorf("%q: the reason has no code: %v", r.Key, r.Cause)
		}
	}
	got := read(t, dir, 2)
	items[2].Collection = nil
	same(t, []pump.Item{items[1], items[2], items[5]}, got)
}

func TestDefinitionsAreKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	s := open(t, dir, nil)
	if _, err := s.Lanes(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	const design = `[{"doc": {"json": {"views": {}}, "meta": {"id": "_design/d"}}}]`
	left, err := s.TakeDefinitions(t.Context(), []pump.Definition{
		{Kind: pump.DesignDocuments, JSON: []byte(design)},
		{Kind: pump.Indexes, JSON: []byte(`[{"index": 1}]`)},
		{Kind: "something new", JSON: []byte(`[]`)},
	})
	if err != nil || len(left) != 1 || left[0].Kind != "something new" {
		t.Fatal(left, err)
	}
	if err := s.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	src, err := source.New(dir, pump.Env{Bucket: "default"}, source.Options{Streams: 1})
	if err != nil {
		t.Fatal(err)
	}
	defs, err := src.Definitions(t.Context())
	if err != nil || len(defs) != 2 || string(defs[0].JSON) != design {
		t.Errorf("%v, %v", defs, err)
	}
	if _, err := open(t, dir, nil).TakeDefinitions(t.Context(), []pump.Definition{{Kind: pump.Indexes, JSON: []byte(`[`)}}); err == nil {
		t.Error("a definition that is not JSON was taken")
	}
}

func TestGoldenBackupCopiedWithItsDesignDocuments(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "copy")
	from := filepath.Join(golden, "4.0/backup")
	src, err := source.New(from, pump.Env{Bucket: "beer-sample"}, source.Options{Streams: 2})
	if err != nil {
		t.Fatal(err)
	}
	report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: open(t, dir, nil), Settings: pump.DefaultSettings(), Scribble: true})
	if err != nil || len(report.LeftOut) != 0 {
		t.Fatal(err, report.LeftOut)
	}
	same(t, read(t, from, 1), read(t, dir, 1))
	designs, err := filepath.Glob(filepath.Join(dir, "*/*/bucket-beer-sample/design.json"))
	if err != nil || len(designs) != 1 {
		t.Fatal(designs, err)
	}
	got, _ := os.ReadFile(designs[0])
	want, _ := os.ReadFile(filepath.Join(from, "2026-11-22T140804Z/2026-11-22T140809Z-diff/bucket-beer-sample/design.json"))
	if !bytes.Equal(got, want) || len(got) == 0 {
		t.Errorf("design.json is %s, want %s", got, want)
	}
}

func TestSinkOptions(t *testing.T) {
	for _, change := range []func(*Options){
		func(o *Options) { o.MaxMB = 0 },
	} {
		o := options(t)
		change(&o)
		if _, err := New("x", pump.Env{}, o); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%+v: %v", o, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "backup")
	for _, mode := range []string{"diff", "accu"} {
		s := open(t, dir, func(o *Options) { o.Mode = mode })
		if err := s.Check(context.Background()); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("mode=%s on nothing: %v", mode, err)
		}
	}
}
