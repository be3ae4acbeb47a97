package fileio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func there(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func create(t *testing.T, path string, replace bool) *Output {
	t.Helper()
	o, err := Create(path, replace)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOutputGetsItsNameWhenItIsComplete(t *testing.T) {
	for _, name := range []string{"x", "x.gz", "x.zst"} {
		path := filepath.Join(t.TempDir(), name)
		o := create(t, path, false)
		if err := o.Write(t.Context(), []byte("some text")); err != nil {
			t.Fatal(err)
		}
		if there(t, path) || !there(t, path+PartialEnding) || o.Partial() != path+PartialEnding {
			t.Errorf("%s: the name is there too early, or no partial file is", name)
		}
		if err := o.Commit(); err != nil {
			t.Fatal(err)
		}
		if !there(t, path) || there(t, path+PartialEnding) {
			t.Errorf("%s: the name is not there, or the partial file still is", name)
		}
		if err := o.Close(false); err != nil {
			t.Error(err)
		}
		in, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var text []byte
		for buf := make([]byte, 4); err == nil; {
			var n int
			n, err = in.Read(t.Context(), buf)
			text = append(text, buf[:n]...)
		}
		if err != io.EOF || string(text) != "some text" {
			t.Errorf("%s holds %q, %v", name, text, err)
		}
		if err := errors.Join(in.Close(), in.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestOutputThatIsNotCommitted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.zst")
	for _, keep := range []bool{true, false} {
		o := create(t, path, false)
		if err := o.Write(t.Context(), []byte("text")); err != nil {
			t.Fatal(err)
		}
		if err := o.Close(keep); err != nil {
			t.Fatal(err)
		}
		if there(t, path) || there(t, path+PartialEnding) != keep {
			t.Errorf("keep %t: there is %t, partial %t", keep, there(t, path), there(t, path+PartialEnding))
		}
	}
}

// TestLeftoverOfAnEarlierRun: what it held must not shine through.
func TestLeftoverOfAnEarlierRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path+PartialEnding, []byte("a longer text"), 0o666); err != nil {
		t.Fatal(err)
	}
	o := create(t, path, false)
	if err := errors.Join(o.Write(t.Context(), []byte("short")), o.Commit(), o.Close(false)); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "short" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestTwoRunsOnOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	first := create(t, path, false)
	if err := first.Write(t.Context(), []byte("first")); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, false); pump.CodeOf(err) != "file-busy" || pump.ExitCode(err, 0) != 1 {
		t.Errorf("a second run: %v", err)
	}
	if err := errors.Join(first.Commit(), first.Close(false)); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "first" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestNothingIsOverwrittenUnasked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	late := create(t, path, false)
	if err := os.WriteFile(path, []byte("old"), 0o666); err != nil { // appears while late is written
		t.Fatal(err)
	}
	if err := CheckOutput(path, false); pump.ClassOf(err) != pump.ClassUsage {
		t.Errorf("check: %v", err)
	}
	if _, err := Create(path, false); pump.CodeOf(err) != "file-exists" {
		t.Errorf("create: %v", err)
	}
	if err := late.Commit(); pump.CodeOf(err) != "file-exists" {
		t.Errorf("commit: %v", err)
	}
	if err := late.Close(true); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(path); string(text) != "old" {
		t.Errorf("the old file holds %q", text)
	}
	o := create(t, path, true)
	if err := errors.Join(o.Write(t.Context(), []byte("new")), o.Commit(), o.Close(false)); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(path); string(text) != "new" {
		t.Errorf("replaced: %q", text)
	}
}

func TestFullDisk(t *testing.T) {
	for _, name := range []string{"x", "x.gz", "x.zst"} {
		path := filepath.Join(t.TempDir(), name)
		o := create(t, path, false)
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		kept := o.f
		if _, err := kept.WriteString("what went well"); err != nil {
			t.Fatal(err)
		}
		o.f = full
		// What an encoder holds back fails at the latest on Commit.
		for i := 0; err == nil && i < 100; i++ {
			text := make([]byte, 64<<10)
			for j := range text {
				text[j] = byte(j * j >> 3 * i)
			}
			err = o.Write(t.Context(), text)
		}
		if err == nil {
			err = o.Commit()
		}
		if pump.CodeOf(err) != "disk-full" || pump.ExitCode(err, 0) != 1 || !strings.Contains(pump.HintOf(err), path+PartialEnding) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v (%s)", name, err, pump.HintOf(err))
		}
		o.f = kept // the disk has room again: what is missing in the middle is missing all the same
		if again := o.Commit(); again == nil {
			t.Errorf("%s: committed after a failed write", name)
		}
		if err := errors.Join(o.Close(true), full.Close()); err != nil {
			t.Error(err)
		}
		if there(t, path) {
			t.Errorf("%s has its final name", name)
		}
	}
}

func TestFolderThatVanishes(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "folder")
	path := filepath.Join(folder, "x")
	if err := os.Mkdir(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	o := create(t, path, false)
	if err := errors.Join(o.Write(t.Context(), []byte("text")), os.RemoveAll(folder)); err != nil {
		t.Fatal(err)
	}
	err := o.Commit()
	if pump.CodeOf(err) != "folder-gone" || pump.ExitCode(err, 0) != 1 || !strings.Contains(err.Error(), path) {
		t.Errorf("commit: %v", err)
	}
	if err := o.Close(true); err != nil {
		t.Error(err)
	}
	if _, err := Create(path, false); pump.CodeOf(err) != "folder-gone" || pump.ExitCode(err, 0) != 1 {
		t.Errorf("create: %v", err)
	}
}

// TestWriteErrorsAreFailures: denied access to a file is no endpoint that denies
// access (exit code 4).
func TestWriteErrorsAreFailures(t *testing.T) {
	for _, cause := range []error{syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.ENOENT, syscall.EIO} {
		partial := filepath.Join(t.TempDir(), "x.partial")
		err := WriteError("write x", partial, &fs.PathError{Op: "open", Path: partial, Err: cause})
		if strings.Contains(pump.HintOf(err), partial) {
			t.Errorf("a partial file that is gone is named: %s", pump.HintOf(err))
		}
		for _, text := range []string{"", "text"} { // an empty one is removed in the end, and not to be looked for
			if werr := os.WriteFile(partial, []byte(text), 0o666); werr != nil {
				t.Fatal(werr)
			}
			if hint := pump.HintOf(WriteError("write x", partial, cause)); strings.Contains(hint, partial) != (text != "") {
				t.Errorf("%q written: %s", text, hint)
			}
		}
		err = WriteError("write x", partial, &fs.PathError{Op: "open", Path: partial, Err: cause})
		if pump.ExitCode(err, 0) != 1 || !strings.Contains(pump.HintOf(err), partial) || err.Error() != "write x: "+cause.Error() {
			t.Errorf("%v: exit %d, %v (%s)", cause, pump.ExitCode(err, 0), err, pump.HintOf(err))
		}
	}
	// /sys is read-only for root too.
	if _, err := Create("/sys/kernel/cbpump-test", false); pump.ExitCode(err, 0) != 1 {
		t.Errorf("in a folder that takes no files: %v", err)
	}
	if err := CheckOutput(t.TempDir(), true); pump.CodeOf(err) != "is-folder" {
		t.Errorf("a folder: %v", err)
	}
}

func TestUnreadable(t *testing.T) {
	err := ReadError("read x", &fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES})
	if pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(pump.HintOf(err), "permissions of the file") || err.Error() != "read x: permission denied" {
		t.Errorf("class %d, %v (%s)", pump.ClassOf(err), err, pump.HintOf(err))
	}
	path := filepath.Join(t.TempDir(), "x.jsonl")
	if err := os.WriteFile(path+PartialEnding, []byte("text"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(pump.HintOf(err), path+PartialEnding) {
		t.Errorf("%v (%s)", err, pump.HintOf(err))
	}
	// What network code says of a cut connection is not to be said of a file.
	for _, err := range []error{ReadError("read x", io.ErrUnexpectedEOF), ReadError("read x", io.EOF), unpackError("read x", io.ErrUnexpectedEOF), unpackError("read x", io.EOF)} {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "cut off") || pump.ClassOf(err) != pump.ClassFailed {
			t.Errorf("%v", err)
		}
	}
}

func TestClosedStandardOutput(t *testing.T) {
	for flag, want := range map[int]bool{os.O_RDWR: true, os.O_WRONLY: false} {
		f, err := os.OpenFile(os.DevNull, flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		if wasClosed(f) != want {
			t.Errorf("/dev/null opened with %d: %t", flag, !want)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "x"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	if wasClosed(f) {
		t.Error("a file that is open for reading too")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestLinkToNowhere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), path); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"file": CheckOutput(path, false), "replaced": CheckOutput(path, true), "folder": CheckTree(path)} {
		if pump.CodeOf(err) != "dangling-link" || pump.ExitCode(err, 0) != 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "nowhere"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := CheckTree(path); pump.CodeOf(err) != "file-exists" {
		t.Errorf("a link to an empty folder: %v", err)
	}
}

// TestLeftoverTree: the partial folder of a run that was killed is begun anew,
// and one that may be somebody's own is not touched.
func TestLeftoverTree(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		ours  bool
	}{
		"ours":             {map[string]string{NamesMarker: NamesText, "docs/a.json": "1", "docs/x%+/b.json": "2", "design_docs/v.json": "{}"}, true},
		"nothing yet":      {nil, true},
		"case test":        {map[string]string{capital: ""}, true},
		"marker cut":       {map[string]string{NamesMarker: "perc", "docs/a.json": "1"}, true},
		"marker empty":     {map[string]string{NamesMarker: ""}, true},
		"no marker":        {map[string]string{"docs/a.json": "1"}, false},
		"other marker":     {map[string]string{NamesMarker: "percent 2\n"}, false},
		"something else":   {map[string]string{NamesMarker: NamesText, "thesis.txt": "1"}, false},
		"docs is a file":   {map[string]string{NamesMarker: NamesText, "docs": "1"}, false},
		"marker is folder": {map[string]string{NamesMarker + "/x": "1"}, false},
	} {
		path := filepath.Join(t.TempDir(), "kd")
		if err := os.Mkdir(path+PartialEnding, 0o777); err != nil {
			t.Fatal(err)
		}
		for file, text := range c.files {
			full := filepath.Join(path+PartialEnding, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o777), os.WriteFile(full, []byte(text), 0o666)); err != nil {
				t.Fatal(err)
			}
		}
		tree, err := CreateTree(path)
		if !c.ours {
			if pump.CodeOf(err) != "file-busy" {
				t.Errorf("%s: %v", name, err)
			}
			for file := range c.files {
				if !there(t, filepath.Join(path+PartialEnding, file)) {
					t.Errorf("%s: %s was removed", name, file)
				}
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if left, err := os.ReadDir(path + PartialEnding); err != nil || len(left) > 0 {
			t.Errorf("%s: %v is left, %v", name, left, err)
		}
		if err := errors.Join(tree.Commit(), tree.Close(true)); err != nil {
			t.Error(err)
		}
	}
	// A link in the place of the partial folder leads to what is not ours.
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "own"), 0o777), os.Symlink(filepath.Join(dir, "own"), filepath.Join(dir, "kd"+PartialEnding))); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateTree(filepath.Join(dir, "kd")); pump.CodeOf(err) != "file-busy" {
		t.Errorf("a link: %v", err)
	}
}

// FuzzUnescapeName: what is read as a name of ours is a key, and the key's own
// name is read as the same key.
func FuzzUnescapeName(f *testing.F) {
	for _, name := range []string{"a.json", "%2f%25.json", "%+/x.json", "a%+/b%c3%bc.json", "%.json", "%4", "/", ""} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		key, err := UnescapeName(strings.Split(name, "/"))
		if err != nil {
			return
		}
		for _, fold := range []bool{false, true} {
			if again, err := UnescapeName(SpreadName(EscapeName(key, fold))); err != nil || !bytes.Equal(again, key) {
				t.Fatalf("%q is %q, and then %q, %v", name, key, again, err)
			}
		}
	})
}

// lines parses lines.
type lines struct{}

func (lines) Head([]byte, bool) (int, error) { return 0, nil }

func (lines) Next(p []byte, _ bool, _ *pump.Batch) (int, error) {
	if i := bytes.IndexByte(p, '\n'); i >= 0 {
		return i + 1, nil
	}
	return 0, ErrMore
}

// TestLineOfTwoGiB: it ends in an error when the limit is reached, and is never
// written anywhere.
func TestLineOfTwoGiB(t *testing.T) {
	rest := &io.LimitedReader{R: xs{}, N: 2 << 30}
	s := &Source{Format: "jsonl", Path: "x.jsonl", New: func() Parser { return lines{} },
		OpenInput: func(path string) (*Input, error) { return &Input{name: path, r: rest}, nil }}
	streams, err := s.Streams(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := streams[0].Open(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	err = streams[0].Read(t.Context(), pump.NewBatch(1000))
	if pump.CodeOf(err) != "record-too-long" || pump.ExitCode(err, 0) != 1 || !strings.Contains(err.Error(), "x.jsonl:1:1") {
		t.Errorf("%v", err)
	}
	if read := 2<<30 - rest.N; read > MaxRecord {
		t.Errorf("%d bytes were read before", read)
	}
	if err := streams[0].Close(); err != nil {
		t.Error(err)
	}
}

// counted counts what is read.
type counted struct {
	r io.Reader
	n *int
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	*c.n += n
	return n, err
}

// TestPlainFilesGoOnAtOnce: what was read before is not read again.
func TestPlainFilesGoOnAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, bytes.Repeat([]byte("a line of text\n"), 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	read := 0
	s := &Source{Format: "x", Path: path, New: func() Parser { return lines{} }, OpenInput: func(path string) (*Input, error) {
		in, err := Open(path)
		if err == nil {
			in.r = counted{in.r, &read}
		}
		return in, err
	}}
	streams, err := s.Streams(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st := streams[0]
	b := pump.NewBatch(1000)
	if err := errors.Join(st.Open(t.Context(), nil), st.Read(t.Context(), b)); !errors.Is(err, io.EOF) || read < 15<<20 {
		t.Fatalf("%d bytes, %v", read, err)
	}
	read = 0
	if err := errors.Join(st.Open(t.Context(), b.Marks), st.Read(t.Context(), b), st.Close()); !errors.Is(err, io.EOF) || read > 1<<20 {
		t.Errorf("behind the mark %d bytes were read, %v", read, err)
	}
}

// TestPipesAreNotGoneOnWith: no mark is one of a pipe, and nothing of it is lost by
// asking.
func TestPipesAreNotGoneOnWith(t *testing.T) {
	for _, path := range []string{os.DevNull, "/dev/zero"} {
		s := &Source{Format: "x", Path: path, New: func() Parser { return lines{} }}
		streams, err := s.Streams(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = streams[0].Open(t.Context(), []pump.Mark{Place{At: 1}.Mark(Stamp{}, nil)})
		if pump.CodeOf(err) != "not-resumable" || pump.ExitCode(err, 0) != 2 || pump.HintOf(err) == "" {
			t.Errorf("%s: %v", path, err)
		}
		if err := streams[0].Close(); err != nil {
			t.Error(err)
		}
	}
}

// xs is text without an end.
type xs struct{}

func (xs) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestTree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	tree, err := CreateTree(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateTree(path); pump.CodeOf(err) != "file-busy" {
		t.Errorf("a second run: %v", err)
	}
	if err := errors.Join(tree.Write([]string{"a", "b", "c"}, []byte("1")), tree.Write([]string{"d"}, []byte("2")), tree.Write([]string{"d"}, []byte("3")),
		tree.Remove([]string{"a", "b", "c"}), tree.Remove([]string{"never"})); err != nil {
		t.Fatal(err)
	}
	if there(t, path) {
		t.Error("the name is there too early")
	}
	if err := os.Mkdir(path, 0o777); err != nil { // an empty folder gives way
		t.Fatal(err)
	}
	if err := errors.Join(tree.Commit(), tree.Close(false)); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(path, "d")); err != nil || string(text) != "3" || there(t, filepath.Join(path, "a", "b", "c")) {
		t.Errorf("%q, %v", text, err)
	}
	if err := CheckTree(path); pump.CodeOf(err) != "file-exists" {
		t.Errorf("a folder that is not empty: %v", err)
	}
}

// TestTreeThatIsThinnedOut: what somebody else removed of a folder that is being
// written is missed before the folder gets its name.
func TestTreeThatIsThinnedOut(t *testing.T) {
	for what, remove := range map[string]string{"a file": "docs/sub/b", "a folder": "docs/sub", "all documents": "docs", "something else": ""} {
		path := filepath.Join(t.TempDir(), "tree")
		tree, err := CreateTree(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tree.Write([]string{"docs", "a"}, nil), tree.Write([]string{"docs", "sub", "b"}, nil), tree.Write([]string{"docs", "sub", "c"}, nil),
			tree.Write([]string{"docs", "a"}, nil), tree.Remove([]string{"docs", "sub", "c"})); err != nil {
			t.Fatal(err)
		}
		partial := path + PartialEnding
		if remove != "" {
			err = os.RemoveAll(filepath.Join(partial, remove))
		} else { // what somebody added is not ours to judge
			err = os.WriteFile(filepath.Join(partial, ".DS_Store"), nil, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
		if remove == "docs" { // the next document makes its folder anew
			if err := tree.Write([]string{"docs", "d"}, nil); err != nil {
				t.Fatal(err)
			}
		}
		err = tree.Commit()
		if remove == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		} else if pump.CodeOf(err) != "files-gone" || pump.ExitCode(err, 0) != 1 || there(t, path) || !strings.Contains(err.Error(), partial) {
			t.Errorf("%s: %v", what, err)
		}
		if err := tree.Close(false); err != nil {
			t.Error(err)
		}
	}
}

func TestTreeThatVanishes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	tree, err := CreateTree(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path + PartialEnding); err != nil {
		t.Fatal(err)
	}
	if err := tree.Write([]string{"docs", "x"}, nil); pump.CodeOf(err) != "folder-gone" || there(t, path+PartialEnding) {
		t.Errorf("write: %v", err)
	}
	if err := tree.Commit(); pump.CodeOf(err) != "folder-gone" || there(t, path) {
		t.Errorf("commit: %v", err)
	}
}

func TestNames(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SliceOfNDistinct(rapid.OneOf(
			rapid.SliceOfN(rapid.Byte(), 1, 250),
			rapid.Map(rapid.StringN(1, -1, 250), func(s string) []byte { return []byte(s) }),
			rapid.Map(rapid.StringMatching(`[aA%+/.]{1,250}`), func(s string) []byte { return []byte(s) }),
		), 2, 2, func(k []byte) string { return string(k) }).Draw(rt, "keys")
		fold := rapid.Bool().Draw(rt, "fold")
		var paths []string
		for _, key := range keys {
			path := SpreadName(EscapeName(key, fold))
			for _, name := range path {
				if len(name) > maxName || name == "." || name == ".." || strings.ContainsAny(name, "/\x00\\") || fold && name != strings.ToLower(name) {
					rt.Fatalf("%q is no name for a file", name)
				}
			}
			if back, err := UnescapeName(path); err != nil || !bytes.Equal(back, key) {
				rt.Fatalf("%q came back as %q, %v", key, back, err)
			}
			paths = append(paths, strings.Join(path, "/"))
		}
		if paths[0] == paths[1] || strings.HasPrefix(paths[0], paths[1]+"/") || fold && strings.EqualFold(paths[0], paths[1]) {
			rt.Fatalf("%q and %q collide: %q, %q", keys[0], keys[1], paths[0], paths[1])
		}
	})
}

// endless is an input without a line end, and without an end.
type endless struct{ given int }

func (e *endless) Read(ctx context.Context, p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	e.given += len(p)
	return len(p), ctx.Err()
}

// TestWindowIsBounded: a line of any length ends in an error before more than the
// limit was read.
func TestWindowIsBounded(t *testing.T) {
	in := &endless{}
	w := NewWindow(in, 0, MaxRecord)
	var err error
	for err == nil {
		_, err = w.More(t.Context())
	}
	if !errors.Is(err, errTooLong) || in.given != MaxRecord || cap(w.buf) > MaxRecord {
		t.Errorf("%v after %d bytes, with a buffer of %d", err, in.given, cap(w.buf))
	}
	w.Pass(MaxRecord - 10)
	if _, err := w.More(t.Context()); err != nil || cap(w.buf) > 2*windowSize || w.At() != MaxRecord-10 {
		t.Errorf("%v; the buffer of %d bytes is kept", err, cap(w.buf))
	}
}

func TestUint(t *testing.T) {
	for text, want := range map[string]bool{"0": true, "1": true, "18446744073709551615": true, "18446744073709551616": false, "99999999999999999999": false,
		"": false, "01": false, "+1": false, "-1": false, "1 ": false, "1.0": false, "1e3": false, "٣": false, "111111111111111111111": false} {
		n, ok := Uint([]byte(text), 1<<64-1)
		if ok != want || ok && fmt.Sprint(n) != text {
			t.Errorf("%q: %d, %t", text, n, ok)
		}
	}
	if _, ok := Uint([]byte("256"), 255); ok {
		t.Error("256 passes for at most 255")
	}
}

func TestPath(t *testing.T) {
	for _, c := range []struct{ scheme, rest, want string }{
		{"file", "//a/b", "//a/b"}, {"jsonl", "a", "a"}, {"jsonl", "//a", "a"}, {"jsonl", "///a", "/a"}, {"jsonl", "/a", "/a"}, {"csv", "-", "-"},
	} {
		if got := Path(pump.Target{Scheme: c.scheme, Rest: c.rest}); got != c.want {
			t.Errorf("%s:%s is %q, want %q", c.scheme, c.rest, got, c.want)
		}
	}
}
