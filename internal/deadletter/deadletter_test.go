package deadletter

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/file/jsonl"
	source "github.com/cbpump/cbpump/sources/file/jsonl"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errTooBig = &pump.Error{Code: "item-too-large", Err: errors.New("the destination says \"no\"\n\xff")}

func read(t *testing.T, path string) []pump.Item {
	t.Helper()
	src, err := source.New(path, source.Options{MaxRecord: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	items, err := filetest.ReadAll(t, src, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	return items
}

func open(t *testing.T, path string, resume bool) *File {
	t.Helper()
	f, err := Open(path, resume)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What was written comes back whole, whatever the items hold, also over two runs.
func TestItemsComeBackWhole(t *testing.T) {
	dir, n := t.TempDir(), 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		path := filepath.Join(dir, strings.Repeat("x", n%200)+".jsonl")
		_ = os.Remove(path)
		items := rapid.SliceOfN(filetest.Item(), 1, 20).Draw(r, "items")
		cut := rapid.IntRange(0, len(items)).Draw(r, "cut")
		for i, part := range [][]pump.Item{items[:cut], items[cut:]} {
			f := open(t, path, i > 0)
			for i := range part {
				if err := f.Write(&part[i], errTooBig); err != nil {
					r.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				r.Fatal(err)
			}
		}
		got := read(t, path)
		if len(got) != len(items) {
			r.Fatalf("%d items came back, want %d", len(got), len(items))
		}
		for i := range items {
			if err := filetest.Same(&items[i], &got[i]); err != nil {
				r.Fatal(err)
			}
		}
	})
}

func TestReasonStandsBesideTheItem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.jsonl")
	f := open(t, path, false)
	if err := errors.Join(f.Write(&pump.Item{Key: []byte("k"), Value: []byte("v"), VBucket: 7}, errTooBig), f.Close()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	want := jsonl.Header + `{"op":"mutation","vb":7,"key":"k","value":"v","reason":"the destination says \"no\"\n?","reason_code":"item-too-large"}` + "\n"
	if err != nil || string(text) != want {
		t.Fatalf("%v, the file holds\n%s\nwant\n%s", err, text, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, mode %v", err, info.Mode())
	}
}

// A killed run leaves part of a line. No checkpoint had passed it, so it comes
// again.
func TestResumeCutsATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.jsonl")
	whole := jsonl.Header + `{"op":"mutation","key":"a","value":"1","reason":"x","reason_code":"y"}` + "\n"
	for torn := range len(whole) + 1 {
		if err := os.WriteFile(path, []byte(whole[:torn]), 0o600); err != nil {
			t.Fatal(err)
		}
		f := open(t, path, true)
		if err := errors.Join(f.Write(&pump.Item{Key: []byte("b"), VBucket: pump.NoVBucket}, nil), f.Close()); err != nil {
			t.Fatal(err)
		}
		want := 1
		if torn == len(whole) {
			want = 2
		}
		if got := read(t, path); len(got) != want || string(got[len(got)-1].Key) != "b" {
			t.Fatalf("torn after %d bytes: %d items came back, want %d", torn, len(got), want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	other := "id,flags\n1,2\n"
	err := errors.Join(os.WriteFile(at("csv"), []byte(other), 0o600), os.WriteFile(at("ours"), []byte(jsonl.Header), 0o600),
		os.Symlink(at("ours"), at("link")), os.Symlink(at("nothing"), at("dangling")), os.Mkdir(at("folder"), 0o700), syscall.Mkfifo(at("pipe"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	busy := open(t, at("busy"), false)
	defer busy.Close()
	for _, c := range []struct {
		name   string
		resume bool
		code   string
	}{
		{"csv", true, "not-ours"}, {"csv", false, "file-exists"}, {"ours", false, "file-exists"}, {"link", true, "not-a-file"},
		{"dangling", false, "not-a-file"}, {"folder", true, "not-a-file"}, {"pipe", true, "not-a-file"}, {"busy", true, "file-busy"},
		{"gone/x", false, "folder-gone"},
	} {
		f, err := Open(at(c.name), c.resume)
		if pump.CodeOf(err) != c.code {
			t.Errorf("%s, resume %t: error %v (%s), want %s", c.name, c.resume, err, pump.CodeOf(err), c.code)
		}
		if f != nil {
			f.Close()
		}
	}
	if text, err := os.ReadFile(at("csv")); err != nil || string(text) != other {
		t.Errorf("%v, the other file was changed: %q", err, text)
	}
	if _, err := os.Lstat(at("nothing")); err == nil {
		t.Error("a dangling link was followed")
	}
}

func TestEmptyFiles(t *testing.T) {
	dir := t.TempDir()
	made, given := filepath.Join(dir, "made"), filepath.Join(dir, "given")
	if err := os.WriteFile(given, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{made, given} {
		if err := open(t, path, false).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file without items stays: %v", err)
	}
	if _, err := os.Stat(given); err != nil {
		t.Errorf("a file that was there is gone: %v", err)
	}
}

func TestLaterTakesAFreeName(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(first, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	names := []string{first, second}
	f := Later(func() string { n := names[0]; names = names[1:]; return n })
	if f.Path() != "" || f.Sync() != nil {
		t.Fatal("there is a file before there is an item")
	}
	if err := errors.Join(f.Write(&pump.Item{Key: []byte("k")}, nil), f.Close()); err != nil {
		t.Fatal(err)
	}
	if f.Path() != second || f.Len() != 1 || len(read(t, second)) != 1 {
		t.Fatalf("path %s, %d items", f.Path(), f.Len())
	}
	none := Later(func() string { return filepath.Join(dir, "none", "x") })
	if err := none.Write(&pump.Item{Key: []byte("k")}, nil); pump.CodeOf(err) != "folder-gone" || !strings.Contains(pump.HintOf(err), "--dead-letters") {
		t.Fatalf("error %v, hint %q", err, pump.HintOf(err))
	}
	if err := none.Close(); pump.CodeOf(err) != "folder-gone" {
		t.Errorf("after a failure Close says %v", err)
	}
}

// failing is a file on a disk that is full, or whose fsync fails.
type failing struct{ write, sync error }

func (f *failing) Empty() bool { return false }
func (f *failing) Write(p []byte) (int, error) {
	if f.write != nil {
		return 0, f.write
	}
	return len(p), nil
}
func (f *failing) Sync() error  { err := f.sync; f.sync = nil; return err }
func (f *failing) Close() error { return nil }

func TestFailuresStay(t *testing.T) {
	full := errors.New("no space left on device")
	it := &pump.Item{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), bufferBytes)}
	f := &File{out: &failing{write: full}}
	for _, err := range []error{f.Write(it, nil), f.Write(it, nil), f.Sync(), f.Close()} {
		if !errors.Is(err, full) {
			t.Errorf("on a full disk: error %v", err)
		}
	}
	// A second fsync may succeed although what the first one lost is gone.
	f = &File{out: &failing{sync: full}}
	for _, err := range []error{f.Write(it, nil), f.Sync(), f.Sync(), f.Close()} {
		if (err == nil) == (f.err == nil) && !errors.Is(err, full) && err != nil {
			t.Errorf("error %v", err)
		}
	}
	if !errors.Is(f.err, full) {
		t.Error("a failed fsync was forgotten")
	}
	f = &File{out: &failing{}}
	if err := f.Write(&pump.Item{Value: []byte("an item without a key cannot stand in the file")}, nil); pump.CodeOf(err) != "dead-letter" || f.Sync() == nil {
		t.Errorf("error %v", err)
	}
}

func TestConcurrentWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.jsonl")
	f := open(t, path, false)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				if err := f.Write(&pump.Item{Key: []byte("key"), Value: bytes.Repeat([]byte("v"), i)}, nil); err != nil {
					t.Error(err)
				}
				if i%100 == 0 && f.Sync() != nil {
					t.Error("sync")
				}
			}
		})
	}
	wg.Wait()
	if err := f.Close(); err != nil || len(read(t, path)) != 4000 {
		t.Fatalf("%v, %d items", err, len(read(t, path)))
	}
}
