package docs_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	sink "github.com/cbpump/cbpump/sinks/file/docs"
	"github.com/cbpump/cbpump/sources/file/docs"
)

func TestMain(m *testing.M) {
	// Each check has the file system make a folder durable.
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

const golden = "../../../testdata/backups/"

func options(t testing.TB) docs.Options {
	t.Helper()
	var o docs.Options
	if err := pump.DecodeOptions("json", nil, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func open(t testing.TB, path string) *docs.Source {
	t.Helper()
	s, err := docs.New(path, options(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tree writes files into a new folder.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// archive writes a zip of headers and texts.
func archive(t testing.TB, entries ...any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.zip")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	for i := 0; i < len(entries); i += 2 {
		h, ok := entries[i].(*zip.FileHeader)
		if !ok {
			h = &zip.FileHeader{Name: entries[i].(string), Method: zip.Deflate}
		}
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = w.Write([]byte(entries[i+1].(string)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestGolden compares with what the servers held after the older tool had loaded
// the same folder and zip.
func TestGolden(t *testing.T) {
	for path, folder := range map[string]string{"json-docs-dir/brewery-docs": "json-docs-dir", "json-docs-zip/brewery-docs.zip": "json-docs-zip"} {
		t.Run(folder, func(t *testing.T) {
			want := filetest.Golden(t, golden+folder+"/expected.jsonl")
			var items []pump.Item
			for _, it := range want {
				it.VBucket, it.CAS, it.RevSeqno = pump.NoVBucket, 0, 0 // made by the server
				items = append(items, it)
			}
			pumptest.TestSource(t, pumptest.SourceSuite{
				// The suite takes a partial result for a failure.
				New:  func(t *testing.T) pump.Source { return struct{ pump.Source }{open(t, golden+path)} },
				Want: items,
			})
			src, held := open(t, golden+path), &pumptest.MemSink{}
			report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: held, Settings: pump.DefaultSettings()})
			if pump.ClassOf(err) != pump.ClassPartial || !strings.Contains(err.Error(), "2 files were left out") ||
				!strings.Contains(err.Error(), "has_id.json</ud>: it has a field _id") || !strings.Contains(err.Error(), "not_json.json</ud>: it is not JSON") {
				t.Errorf("Run: %v", err)
			}
			if len(held.Items()) != len(want) {
				t.Errorf("%d documents, want %d", len(held.Items()), len(want))
			}
			if len(report.LeftOut) != 1 || !bytes.Contains(report.LeftOut[0].JSON, []byte(`{"doc":{"json":{"views":{"by_n":`)) ||
				!bytes.Contains(report.LeftOut[0].JSON, []byte(`"meta":{"id":"_design/by_n"}`)) {
				t.Errorf("definitions: %s", report.LeftOut)
			}
			o := options(t)
			o.Invalid = "load"
			all, err := docs.New(golden+path, o)
			if err != nil {
				t.Fatal(err)
			}
			if items, err := filetest.ReadAll(t, all, 1000); err != nil || len(items) != len(want)+2 || all.Omitted() != nil {
				t.Errorf("with invalid=load: %d documents, %v, %v", len(items), err, all.Omitted())
			}
		})
	}
}

// TestRoundTrip writes any keys and reads them back.
func TestRoundTrip(t *testing.T) {
	for _, ending := range []string{"", ".zip"} {
		t.Run("docs"+ending, func(t *testing.T) {
			root, n := t.TempDir(), 0
			rapid.Check(t, func(rt *rapid.T) {
				items := rapid.SliceOfN(filetest.Item(), 0, 10).Draw(rt, "items")
				path := filepath.Join(root, fmt.Sprint(n)+ending)
				n++
				want, rejected := map[string]pump.Item{}, 0
				notJSON := rapid.SampledFrom([]string{"reject", "write"}).Draw(rt, "not-json")
				for i := range items {
					it := &items[i]
					it.VBucket = uint16(crc(it.Key)) // as in a bucket: one for a key
					if rapid.Bool().Draw(rt, "json") {
						it.Value, _ = json.Marshal(map[string]string{"_id": string(it.Value)})
					}
					plain := pump.Batch{Items: []pump.Item{pumptest.CloneItem(it)}}
					plain.Unpack() // as on the way to this sink
					it = &plain.Items[0]
					isJSON := json.Valid(it.Value) && utf8.Valid(it.Value)
					switch {
					case it.Collection != nil, it.Op != pump.Mutation && ending != "",
						it.Op == pump.Mutation && (it.Datatype&^pump.DatatypeJSON != 0 || notJSON == "reject" && !isJSON):
						rejected++
					case it.Op != pump.Mutation:
						delete(want, string(it.Key))
					default:
						w := pump.Item{Key: it.Key, Value: it.Value, VBucket: pump.NoVBucket}
						if isJSON {
							w.Datatype = 1
						}
						want[string(it.Key)] = w
					}
				}
				s, err := sink.New(path, sink.Options{NotJSON: notJSON})
				if err != nil {
					rt.Fatal(err)
				}
				report, err := filetest.WriteAll(t, s, items)
				if int(report.Rejected) != rejected || int(report.Done) != len(items)-rejected || (err == nil) != (rejected == 0) {
					rt.Fatalf("%d done, %d rejected of %d, %d are due: %v", report.Done, report.Rejected, len(items), rejected, err)
				}
				src := open(t, path)
				got, err := filetest.ReadAll(t, src, rapid.IntRange(0, 3000).Draw(rt, "arena"))
				if err != nil || src.Omitted() != nil {
					rt.Fatalf("%v, %v", err, src.Omitted())
				}
				last := map[string]pump.Item{} // a zip may hold a key twice
				for _, it := range got {
					last[string(it.Key)] = it
				}
				if len(last) != len(want) {
					rt.Fatalf("%d documents, want %d", len(last), len(want))
				}
				for key, w := range want {
					g := last[key]
					if err := filetest.Same(&w, &g); err != nil {
						rt.Fatal(err)
					}
				}
			})
		})
	}
}

func crc(p []byte) (sum uint8) {
	for _, c := range p {
		sum = sum*31 + c
	}
	return sum
}

func TestDesignDocumentsTravel(t *testing.T) {
	for _, ending := range []string{"", ".zip"} {
		path := filepath.Join(t.TempDir(), "out"+ending)
		s, err := sink.New(path, sink.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = pump.Run(t.Context(), pump.Config{Source: open(t, golden+"json-docs-dir/brewery-docs"), Sink: s, Settings: pump.DefaultSettings()})
		if pump.CodeOf(err) != "documents-left-out" {
			t.Fatal(err)
		}
		first, err1 := open(t, golden+"json-docs-dir/brewery-docs").Definitions(t.Context())
		second, err2 := open(t, path).Definitions(t.Context())
		if err1 != nil || err2 != nil || len(second) != 1 || string(first[0].JSON) != string(second[0].JSON) {
			t.Errorf("%s became %s, %v, %v", first, second, err1, err2)
		}
	}
}

func TestNamesOfFiles(t *testing.T) {
	long := strings.Repeat("k%", 125)
	keys := []string{"plain", "sp ace.and.dots", ".hidden", "..", "a/b", "ключ", "\xff\x00", "100%", long, strings.Repeat("ü", 125)}
	path := filepath.Join(t.TempDir(), "out")
	s, err := sink.New(path, sink.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var items []pump.Item
	for _, k := range keys {
		items = append(items, pump.Item{Key: []byte(k), Value: []byte("{}")})
	}
	if _, err := filetest.WriteAll(t, s, items); err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			p, err = filepath.Rel(path, p)
			names = append(names, filepath.ToSlash(p))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cbpump-names", "docs/plain.json", "docs/sp ace.and.dots.json", "docs/%2ehidden.json", "docs/%2e..json", "docs/a%2fb.json",
		"docs/ключ.json", "docs/%ff%00.json", "docs/100%25.json", "docs/" + strings.Repeat("ü", 125) + ".json"} {
		if !slices.Contains(names, want) {
			t.Errorf("no file %q among %q", want, names)
		}
	}
	if len(names) != len(keys)+1 {
		t.Errorf("%d files", len(names))
	}
	if got, err := filetest.ReadAll(t, open(t, path), 1000); err != nil || len(got) != len(keys) {
		t.Errorf("%d read, %v", len(got), err)
	}
}

func TestBadFolders(t *testing.T) {
	link := func(from, to string) func(string) error {
		return func(root string) error { return os.Symlink(to, filepath.Join(root, filepath.FromSlash(from))) }
	}
	for name, c := range map[string]struct {
		files map[string]string
		more  func(root string) error
		want  string
	}{
		"no docs":             {map[string]string{"x.json": "{}"}, nil, "there is no folder docs/"},
		"docs is a file":      {map[string]string{"docs": "{}"}, nil, "docs: that is no folder"},
		"link to itself":      {map[string]string{"docs/a.json": "{}"}, link("docs/b.json", "b.json"), "b.json</ud>: too many levels of symbolic links"},
		"link to above":       {map[string]string{"docs/a.json": "{}", "docs/sub/c.json": "{}"}, link("docs/sub/up", ".."), "up: a symbolic link leads back"},
		"link to nowhere":     {map[string]string{"docs/a.json": "{}"}, link("docs/b.json", "nothing"), "b.json</ud>: no such file"},
		"too large":           {map[string]string{"docs/a.json": `"` + strings.Repeat("x", 2000) + `"`}, nil, "a.json</ud>: the document has 2002 bytes; at most 1k"},
		"no name":             {map[string]string{"docs/.json": "{}"}, nil, ".json</ud>: the name is nothing but .json"},
		"newer marker":        {map[string]string{"docs/a.json": "{}", "cbpump-names": "percent 2\n"}, nil, "cbpump-names: it does not say"},
		"bad escape":          {map[string]string{"docs/a%2.json": "{}", "cbpump-names": "percent 1\n"}, nil, "a%2.json</ud>: the name is not one that cbpump writes"},
		"subfolder of marked": {map[string]string{"docs/b/a.json": "{}", "cbpump-names": "percent 1\n"}, nil, "a.json</ud>: the name is not one that cbpump writes"},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, c.files)
			if c.more != nil {
				if err := c.more(root); err != nil {
					t.Fatal(err)
				}
			}
			o := options(t)
			o.MaxDocument = 1 << 10
			s, err := docs.New(root, o)
			if err != nil {
				t.Fatal(err)
			}
			items, err := filetest.ReadAll(t, s, 1000)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), root) {
				t.Errorf("%d items, %v; want %s", len(items), err, c.want)
			}
		})
	}
	for path, class := range map[string]pump.Class{
		filepath.Join(t.TempDir(), "nothing"):                                                pump.ClassUsage,
		filepath.Join(tree(t, map[string]string{"a.txt": ""}), "a.txt"):                      pump.ClassUsage,
		filepath.Dir(filepath.Join(tree(t, map[string]string{"a.zip/b": ""}), "a.zip", "b")): pump.ClassUsage,
	} {
		if err := open(t, path).Check(t.Context()); pump.ClassOf(err) != class || err == nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestLinksToFilesAndFoldersAreFollowed(t *testing.T) {
	other := tree(t, map[string]string{"d.json": "4", "b.json": "2"})
	root := tree(t, map[string]string{"docs/a.json": "1", "docs/notes.txt": "x", "README": "x"})
	if err := errors.Join(os.Symlink(filepath.Join(other, "b.json"), filepath.Join(root, "docs", "c.json")), os.Symlink(other, filepath.Join(root, "docs", "z"))); err != nil {
		t.Fatal(err)
	}
	items, err := filetest.ReadAll(t, open(t, root), 1000)
	var got []string
	for _, it := range items {
		got = append(got, string(it.Key)+"="+string(it.Value))
	}
	if err != nil || strings.Join(got, " ") != "a=1 c=2 b=2 d=4" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestBadZips(t *testing.T) {
	const kilo = 1 << 10
	zeros := strings.Repeat("0", 3<<20)
	link := &zip.FileHeader{Name: "docs/l.json"}
	link.SetMode(os.ModeSymlink | 0o777)
	locked := &zip.FileHeader{Name: "docs/e.json", Flags: 1}
	whole, err := os.ReadFile(archive(t, "docs/a.json", "1234567890", "docs/b.json", "{}"))
	if err != nil {
		t.Fatal(err)
	}
	raw := func(text []byte) string {
		path := filepath.Join(t.TempDir(), "x.zip")
		if err := os.WriteFile(path, text, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flipped := bytes.Clone(whole)
	flipped[bytes.Index(flipped, []byte("docs/a.json"))+len("docs/a.json")+3] ^= 1
	for name, c := range map[string]struct{ path, want string }{
		"bomb":           {archive(t, "docs/a.json", zeros), `bytes are to become 3145728, more than 200 times`},
		"no zip":         {raw([]byte("PK nothing")), "it is no zip file, or a damaged one"},
		"cut":            {raw(whole[:len(whole)-30]), "it is no zip file, or a damaged one"},
		"changed":        {raw(flipped), `<ud>docs/a.json</ud>: it is damaged`},
		"empty file":     {raw(nil), "it is no zip file"},
		"no documents":   {archive(t, "x/y/z.json", "{}"), "there are no documents in it"},
		"traversal":      {archive(t, "docs/../../a.json", "{}"), "the name leads out"},
		"absolute":       {archive(t, "/docs/a.json", "{}"), "the name leads out"},
		"backslash":      {archive(t, `docs\..\a.json`, "{}"), "backslash"},
		"drive":          {archive(t, `C:/docs/a.json`, "{}"), "drive letter"},
		"link":           {archive(t, link, "/etc/passwd"), "that is no file"},
		"encrypted":      {archive(t, locked, "{}"), "it is encrypted"},
		"traversal last": {archive(t, "docs/a.json", "{}", "docs/../b.json", "{}"), "the name leads out"},
	} {
		t.Run(name, func(t *testing.T) {
			items, err := filetest.ReadAll(t, open(t, c.path), 1000)
			if err == nil || len(items) > 0 || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
				t.Errorf("%d items, %v; want %s", len(items), err, c.want)
			}
		})
	}
	t.Run("many that are small alone", func(t *testing.T) {
		var entries []any
		for i := range 70 {
			entries = append(entries, fmt.Sprintf("docs/%d.json", i), strings.Repeat("1", 900*kilo))
		}
		path := archive(t, entries...)
		o := options(t)
		o.MaxTotal = 5 << 20
		s, err := docs.New(path, o)
		if err != nil {
			t.Fatal(err)
		}
		items, err := filetest.ReadAll(t, s, 1000)
		if pump.CodeOf(err) != "zip-bomb" || !strings.Contains(err.Error(), "more than 5m in all") || len(items) > 6 {
			t.Errorf("%d items, %v", len(items), err)
		}
		o.MaxTotal = 1 << 40
		if s, err = docs.New(path, o); err != nil {
			t.Fatal(err)
		}
		if _, err = filetest.ReadAll(t, s, 1000); pump.CodeOf(err) != "zip-bomb" || !strings.Contains(err.Error(), "times the bytes of the zip") {
			t.Error(err)
		}
	})
	t.Run("a huge directory", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "x.zip")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		z := zip.NewWriter(f)
		name := strings.Repeat("n", 60000)
		for i := range 600 {
			if _, err := z.CreateRaw(&zip.FileHeader{Name: fmt.Sprintf("docs/%d%s.json", i, name)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(z.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if err := open(t, path).Check(t.Context()); pump.CodeOf(err) != "zip-directory" {
			t.Error(err)
		}
	})
}

func TestZipTopLevel(t *testing.T) {
	path := archive(t, "a.json", "1", "docs/b.json", "2", "name/docs/sub/c.json", "3", "name/README.md", "x", "name/docs/", "")
	items, err := filetest.ReadAll(t, open(t, path), 1000)
	var got []string
	for _, it := range items {
		got = append(got, string(it.Key)+"="+string(it.Value))
	}
	if err != nil || strings.Join(got, " ") != "a=1 b=2 c=3" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestResume goes on in folders and zips from any mark.
func TestResume(t *testing.T) {
	files, entries := map[string]string{}, []any{}
	for i := range 60 {
		name := fmt.Sprintf("docs/%d/%d.json", i%5, i)
		files[name] = fmt.Sprintf("%0*d", i+2, 0)[:1]
		entries = append(entries, name, "1")
	}
	folder, zip := tree(t, files), archive(t, entries...)
	for _, path := range []string{folder, zip} {
		filetest.Resume(t, func() pump.Source { return open(t, path) })
	}
	filetest.ResumeChanged(t, zip, func() pump.Source { return open(t, zip) })
	for _, change := range []string{"docs/0/0.json", "docs/0/1.json", "docs/0.json"} { // changed, new in a folder, new beside it
		folder := tree(t, files)
		marks := filetest.Marks(t, open(t, folder), 0, 20)
		if err := os.WriteFile(filepath.Join(folder, "docs/4/99.json"), []byte("1"), 0o666); err != nil {
			t.Fatal(err)
		}
		if rest, _, err := filetest.ReadFrom(t, open(t, folder), 300, marks); err != nil || len(rest) != 41 {
			t.Errorf("behind the mark one was added: %d, %v", len(rest), err)
		}
		if err := os.WriteFile(filepath.Join(folder, change), []byte("[]"), 0o666); err != nil {
			t.Fatal(err)
		}
		filetest.Refused(t, open(t, folder), marks, "file-changed")
	}
	marks := filetest.Marks(t, open(t, folder), 0, 20)
	if err := os.RemoveAll(filepath.Join(folder, "docs")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, "docs"), 0o777); err != nil {
		t.Fatal(err)
	}
	filetest.Refused(t, open(t, folder), marks, "file-changed")
}

// TestResumedRunKnowsWhatWasLeftOut: that an earlier run left documents out makes
// the one that goes on from it partial too.
func TestResumedRunKnowsWhatWasLeftOut(t *testing.T) {
	folder := tree(t, map[string]string{"docs/a.json": "{", "docs/b.json": "1", "docs/c.json": "2"})
	marks := filetest.Marks(t, open(t, folder), 0, 1)
	src := open(t, folder)
	rest, _, err := filetest.ReadFrom(t, src, 0, marks)
	if err != nil || len(rest) != 1 {
		t.Fatalf("%d items, %v", len(rest), err)
	}
	if err := src.Omitted(); pump.ClassOf(err) != pump.ClassPartial || !strings.Contains(err.Error(), "1 files were left out: 1 before the place") {
		t.Errorf("%v", err)
	}
}

// TestDamagedZips cuts a zip and changes single bits of it: a cut is an error,
// and no key or value that is read is another than what was written.
func TestDamagedZips(t *testing.T) {
	var entries []any
	written := map[string]string{}
	for i := range 60 {
		key, value := fmt.Sprintf("key-%d", i), fmt.Sprintf(`{"n":%d,"text":%q}`, i, fmt.Sprintf("%x", sha512.Sum512([]byte{byte(i)})))
		written[key] = value
		var name any = "x/docs/" + key + ".json"
		if i%2 == 0 { // an extra field before the data, as most tools write
			name = &zip.FileHeader{Name: "x/docs/" + key + ".json", Method: zip.Deflate, Modified: time.Unix(1<<30, 0), Extra: make([]byte, i*10)}
		}
		entries = append(entries, name, value)
	}
	path := archive(t, entries...)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func(text []byte) ([]pump.Item, error) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o666); err != nil {
			t.Fatal(err)
		}
		return filetest.ReadAll(t, open(t, path), 16<<10)
	}
	if items, err := read(whole); err != nil || len(items) != len(written) {
		t.Fatalf("whole: %d items, %v", len(items), err)
	}
	for n := 0; n < len(whole); n += 4096 {
		for _, cut := range []int{n, n + 1, len(whole) - 1 - n/4096} {
			_, err := read(whole[:min(cut, len(whole)-1)])
			if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("cut to %d of %d bytes: %v", cut, len(whole), err)
			}
		}
	}
	flip := func(at int) {
		t.Helper()
		flipped := bytes.Clone(whole)
		flipped[at] ^= 1 << (at % 8)
		items, err := read(flipped)
		if err == nil && len(items) != len(written) {
			t.Errorf("byte %d changed: %d items and no error", at, len(items))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("byte %d changed: %v", at, err)
		}
		for _, it := range items {
			if written[string(it.Key)] != string(it.Value) {
				t.Errorf("byte %d changed: %q was read as %q", at, it.Key, it.Value)
			}
		}
	}
	for at := 0; at < len(whole); at += 13 {
		flip(at)
	}
	for _, name := range []string{"x/docs/key-7.json", "x/docs/key-58.json"} {
		for i := range len(name) {
			flip(bytes.Index(whole, []byte(name)) + i)
		}
		for i := range 46 + len(name) { // its header in the directory, too
			flip(bytes.LastIndex(whole, []byte(name)) - 46 + i)
		}
	}
}

// FuzzFolder reads a document of any name in a folder of ours, and in one that
// is not.
func FuzzFolder(f *testing.F) {
	for _, name := range []string{"a.json", "%2f.json", "%+/a.json", "a%+/%c3.json", "%.json", ".json", "x"} {
		f.Add(name, true)
		f.Add(name, false)
	}
	f.Fuzz(func(t *testing.T, name string, ours bool) {
		root := t.TempDir()
		docs := filepath.Join(root, "docs")
		full := filepath.Join(docs, name)
		if !strings.HasPrefix(full, docs+"/") || os.MkdirAll(filepath.Dir(full), 0o777) != nil || os.WriteFile(full, []byte("1"), 0o666) != nil {
			return // no name for a file
		}
		if ours {
			if err := os.WriteFile(filepath.Join(root, fileio.NamesMarker), []byte(fileio.NamesText), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		items, err := filetest.ReadAll(t, open(t, root), 500)
		if len(items) > 1 || err != nil && len(items) > 0 {
			t.Fatalf("%d items of one file, %v", len(items), err)
		}
		for _, it := range items {
			if len(it.Key) == 0 || string(it.Value) != "1" {
				t.Fatalf("key %q, value %q", it.Key, it.Value)
			}
			if !ours && string(it.Key) != strings.TrimSuffix(filepath.Base(full), filepath.Ext(full)) {
				t.Fatalf("the name %q is the key %q", name, it.Key)
			}
		}
	})
}

func FuzzZip(f *testing.F) {
	for _, path := range []string{archive(f, "docs/a.json", "1"), archive(f, "n/docs/b/c.json", "{}", "d.json", "[]", "n/design_docs/x.json", "{}")} {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(dir, "x.zip")
		if err := os.WriteFile(path, text, 0o666); err != nil {
			t.Fatal(err)
		}
		src := open(t, path)
		items, err := filetest.ReadAll(t, src, 500)
		for i := range items {
			if len(items[i].Key) == 0 || !json.Valid(items[i].Value) {
				t.Fatalf("item %q", items[i].Key)
			}
		}
		if err == nil {
			_, _ = src.Definitions(t.Context())
		}
	})
}
