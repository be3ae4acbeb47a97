package checkpoint

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fields(dest string) []Field {
	return []Field{
		{Name: "the source", Value: "bucket uuid 1", Shown: "http://a (bucket b)"},
		{Name: "the destination", Value: dest, Shown: dest},
		{Name: "the source's option rehash", Value: "true"},
	}
}

func open(t *testing.T, dir string, resume bool) *Folder {
	t.Helper()
	f, err := Open(dir, fields("memcached:m"), resume)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func save(t *testing.T, f *Folder, finished bool, reached map[string][]pump.Mark) {
	t.Helper()
	if err := f.Save(t.Context(), reached, pump.Counts{Done: 7, Rejected: 1}, finished); err != nil {
		t.Fatal(err)
	}
}

func closed(t *testing.T, f *Folder) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// refused opens and wants an error with a code, a class and a hint that says what
// to do.
func refused(t *testing.T, dir string, resume bool, belongs []Field, code string, class pump.Class) error {
	t.Helper()
	f, err := Open(dir, belongs, resume)
	if err == nil {
		closed(t, f)
		t.Fatalf("%s was opened", dir)
	}
	if pump.CodeOf(err) != "checkpoint-"+code || pump.ClassOf(err) != class {
		t.Fatalf("code %s, class %d: %v", pump.CodeOf(err), pump.ClassOf(err), err)
	}
	if pump.HintOf(err) == "" || !strings.Contains(err.Error(), dir) {
		t.Fatalf("it does not say where and what to do: %v (%s)", err, pump.HintOf(err))
	}
	return err
}

var somewhere = map[string][]pump.Mark{
	"one": {{VBucket: 3, Seqno: 30, State: []byte{1, 2}}, {VBucket: 0, Seqno: 5, Complete: true, Items: 5}},
	"two": {{VBucket: pump.NoVBucket, Seqno: 99, State: []byte("row")}},
}

func TestGoOn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	f := open(t, dir, false)
	save(t, f, false, somewhere)
	save(t, f, false, map[string][]pump.Mark{"one": {{VBucket: 3, Seqno: 31, State: []byte{3}}}})
	closed(t, f)
	f = open(t, dir, true)
	from, counts, err := f.Start([]string{"two", "three"})
	if err != nil {
		t.Fatal(err)
	}
	vbuckets := []pump.Mark{{VBucket: 0, Seqno: 5, Complete: true, Items: 5}, {VBucket: 3, Seqno: 31, State: []byte{3}}}
	want := map[string][]pump.Mark{"two": append(vbuckets[:2:2], somewhere["two"][0]), "three": vbuckets}
	if !reflect.DeepEqual(from, want) || counts != (pump.Counts{Done: 7, Rejected: 1}) {
		t.Fatalf("from %v, counts %v", from, counts)
	}
	if _, finished := f.Finished(); finished {
		t.Fatal("it is finished")
	}
	if _, _, err := f.Start([]string{"three"}); pump.CodeOf(err) != "checkpoint-streams" || pump.ClassOf(err) != pump.ClassUsage {
		t.Fatalf("a stream is missing: %v", err)
	}
	save(t, f, true, nil)
	closed(t, f)

	f = open(t, dir, true)
	if counts, finished := f.Finished(); !finished || counts.Done != 7 {
		t.Fatalf("finished %v, %v", finished, counts)
	}
	closed(t, f)
	f = open(t, dir, false) // a new copy begins behind a finished one
	if from, _, err := f.Start([]string{"two"}); err != nil || len(from["two"]) != 0 {
		t.Fatalf("a new copy begins at %v (%v)", from, err)
	}
	closed(t, f)
}

// TestKilledBeforeAnything: a run that was killed before anything was confirmed can be
// gone on with like any other, and begun anew as well: there is nothing to lose.
func TestKilledBeforeAnything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	closed(t, open(t, dir, false))
	f := open(t, dir, true)
	if from, _, err := f.Start([]string{"s"}); err != nil || len(from["s"]) > 0 {
		t.Errorf("it begins at %v (%v)", from, err)
	}
	closed(t, f)
	f = open(t, dir, false)
	save(t, f, false, somewhere)
	closed(t, f)
	refused(t, dir, false, fields("memcached:m"), "unfinished", pump.ClassUsage)
}

func TestFilesAreOurs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	f := open(t, dir, false)
	defer closed(t, f)
	save(t, f, false, somewhere)
	for name, want := range map[string]fs.FileMode{".": 0o700 | fs.ModeDir, fileName: 0o600, lockName: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v (%v), want %v", name, info.Mode(), err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, newName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file that was written is still there: %v", err)
	}
}

func TestRefused(t *testing.T) {
	started := func(t *testing.T) string {
		dir := t.TempDir()
		f := open(t, dir, false)
		save(t, f, false, somewhere)
		closed(t, f)
		return dir
	}
	here := fields("memcached:m")
	t.Run("unfinished without resume", func(t *testing.T) {
		refused(t, started(t), false, here, "unfinished", pump.ClassUsage)
	})
	t.Run("resume without one", func(t *testing.T) {
		refused(t, t.TempDir(), true, here, "none", pump.ClassUsage)
	})
	t.Run("resume without a folder", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "gone")
		refused(t, dir, true, here, "none", pump.ClassUsage)
		if _, err := os.Stat(dir); err == nil {
			t.Error("the folder was made")
		}
	})
	t.Run("another destination", func(t *testing.T) {
		err := refused(t, started(t), true, fields("memcached:other"), "mismatch", pump.ClassUsage)
		if want := "the destination was memcached:m and is memcached:other"; !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	})
	t.Run("a bucket made anew", func(t *testing.T) {
		other := fields("memcached:m")
		other[0].Value = "bucket uuid 2"
		err := refused(t, started(t), true, other, "mismatch", pump.ClassUsage)
		if !strings.Contains(err.Error(), "not the same any more") {
			t.Error(err)
		}
	})
	t.Run("other options", func(t *testing.T) {
		other := fields("memcached:m")
		other[2].Value = "s3cret"
		err := refused(t, started(t), true, other, "mismatch", pump.ClassUsage)
		if !strings.Contains(err.Error(), "option rehash differs") || strings.Contains(err.Error(), "s3cret") {
			t.Error(err)
		}
		err = refused(t, started(t), true, here[:2], "mismatch", pump.ClassUsage)
		if !strings.Contains(err.Error(), "option rehash was given then") {
			t.Error(err)
		}
		err = refused(t, started(t), true, append(fields("memcached:m"), Field{Name: "-k/--key", Value: "x"}), "mismatch", pump.ClassUsage)
		if !strings.Contains(err.Error(), "-k/--key is given now") {
			t.Error(err)
		}
	})
	t.Run("two runs at once", func(t *testing.T) {
		dir := started(t)
		f := open(t, dir, true)
		err := refused(t, dir, true, here, "locked", pump.ClassUsage)
		if !strings.Contains(err.Error(), "process ") {
			t.Errorf("%v does not say who", err)
		}
		closed(t, f)
		closed(t, open(t, dir, true))
	})
	t.Run("another version", func(t *testing.T) {
		dir := started(t)
		rewrite(t, dir, func(b []byte) []byte { return bytes.Replace(b, []byte(magic+" 1 "), []byte(magic+" 2 "), 1) })
		err := refused(t, dir, true, here, "version", pump.ClassUsage)
		if !strings.Contains(err.Error(), "format 2") {
			t.Error(err)
		}
	})
	t.Run("no checkpoint at all", func(t *testing.T) {
		dir := started(t)
		rewrite(t, dir, func([]byte) []byte { return []byte("{}\n") })
		refused(t, dir, true, here, "damaged", pump.ClassUsage)
		refused(t, dir, false, here, "damaged", pump.ClassUsage) // never overwritten unseen
	})
	t.Run("links", func(t *testing.T) {
		dir := started(t)
		link := filepath.Join(t.TempDir(), "link")
		must(t, os.Symlink(dir, link))
		refused(t, link, true, here, "link", pump.ClassUsage)
		for _, name := range []string{fileName, lockName} {
			dir := started(t)
			away := filepath.Join(t.TempDir(), "away")
			must(t, os.Rename(filepath.Join(dir, name), away))
			must(t, os.Symlink(away, filepath.Join(dir, name)))
			refused(t, dir, true, here, "link", pump.ClassUsage)
		}
	})
	t.Run("a link in the place of the next one", func(t *testing.T) {
		dir := started(t)
		victim := filepath.Join(t.TempDir(), "victim")
		must(t, os.WriteFile(victim, []byte("precious"), 0o600))
		must(t, os.Symlink(victim, filepath.Join(dir, newName)))
		f := open(t, dir, true)
		save(t, f, false, somewhere)
		closed(t, f)
		if b, err := os.ReadFile(victim); string(b) != "precious" {
			t.Errorf("the link was followed: %q, %v", b, err)
		}
	})
	t.Run("no folder, no file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		must(t, os.WriteFile(file, nil, 0o600))
		refused(t, file, false, here, "folder", pump.ClassUsage)
		dir := t.TempDir()
		must(t, syscall.Mkfifo(filepath.Join(dir, lockName), 0o600))
		refused(t, dir, false, here, "file", pump.ClassUsage)
		dir = t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, fileName), 0o700))
		refused(t, dir, true, here, "file", pump.ClassUsage)
	})
	t.Run("another user's", func(t *testing.T) {
		if os.Geteuid() != 0 {
			refused(t, "/", false, here, "owner", pump.ClassDenied)
			return
		}
		dir := started(t)
		must(t, os.Chown(filepath.Join(dir, fileName), 12345, -1))
		refused(t, dir, true, here, "owner", pump.ClassDenied)
		must(t, os.Chown(dir, 12345, -1))
		refused(t, dir, true, here, "owner", pump.ClassDenied)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func rewrite(t *testing.T, dir string, change func([]byte) []byte) {
	t.Helper()
	path := filepath.Join(dir, fileName)
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, change(b), 0o600))
}

// TestDamage: no truncation and no flipped bit is taken for a checkpoint.
func TestDamage(t *testing.T) {
	at := newProgress()
	for id, marks := range somewhere {
		for _, m := range marks {
			at.add(id, m)
		}
	}
	good, err := encode(record{Belongs: fields("x"), Runs: 1, Written: time.Unix(0, 0).UTC()}, &at)
	must(t, err)
	if _, _, err := decode(good); err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, _, err := decode(good[:n]); err == nil {
			t.Fatalf("%d of %d bytes were taken", n, len(good))
		}
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[n] ^= 1 << bit
			if _, _, err := decode(bad); err == nil {
				t.Fatalf("bit %d of byte %d flipped was taken", bit, n)
			}
		}
	}
	if _, _, err := decode(append(bytes.Clone(good), 'x')); err == nil {
		t.Fatal("a tail was taken")
	}
}

// TestSaveFails: what cannot be saved is an error, and the old one still holds.
func TestSaveFails(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, false)
	save(t, f, false, somewhere)
	must(t, os.Mkdir(filepath.Join(dir, newName), 0o700)) // cannot be replaced: it is not empty
	must(t, os.WriteFile(filepath.Join(dir, newName, "x"), nil, 0o600))
	err := f.Save(t.Context(), map[string][]pump.Mark{"one": {{VBucket: 3, Seqno: 77}}}, pump.Counts{}, false)
	if pump.CodeOf(err) != "checkpoint-save" || pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(pump.HintOf(err), "--resume") {
		t.Fatalf("%v (%s)", err, pump.HintOf(err))
	}
	closed(t, f)
	must(t, os.RemoveAll(filepath.Join(dir, newName)))
	f = open(t, dir, true)
	from, _, err := f.Start([]string{"two"})
	if err != nil || from["two"][1].Seqno != 30 {
		t.Fatalf("%v, %v", from, err)
	}
	closed(t, f)
}

// TestClockBackwards: nothing depends on the time that a checkpoint tells.
func TestClockBackwards(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, false)
	save(t, f, false, somewhere)
	f.now = func() time.Time { return time.Unix(0, 0) }
	save(t, f, false, map[string][]pump.Mark{"one": {{VBucket: 3, Seqno: 31}}})
	closed(t, f)
	f = open(t, dir, true)
	from, _, err := f.Start([]string{"two"})
	if err != nil || from["two"][1].Seqno != 31 {
		t.Fatalf("%v, %v", from, err)
	}
	closed(t, f)
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := newProgress()
		for range rapid.IntRange(0, 20).Draw(t, "marks") {
			m := pump.Mark{
				VBucket: rapid.Uint16().Draw(t, "vbucket"), Seqno: rapid.Uint64().Draw(t, "seqno"),
				Complete: rapid.Bool().Draw(t, "complete"), Items: rapid.Uint64().Draw(t, "items"),
			}
			if s := rapid.SliceOf(rapid.Byte()).Draw(t, "state"); len(s) > 0 {
				m.State = s
			}
			id := string(rapid.SliceOf(rapid.Byte()).Draw(t, "id"))
			if rapid.Bool().Draw(t, "whole stream") {
				m.VBucket = pump.NoVBucket
			}
			at.add(id, m)
		}
		rec := record{Written: time.Unix(rapid.Int64Range(0, 1<<32).Draw(t, "time"), 0).UTC(), Runs: 3, Finished: rapid.Bool().Draw(t, "finished"),
			Counts: pump.Counts{Done: rapid.Uint64().Draw(t, "done")}, Belongs: fields("d")}
		data, err := encode(rec, &at)
		if err != nil {
			t.Fatal(err)
		}
		gotRec, gotAt, err := decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(gotRec, rec) || !reflect.DeepEqual(gotAt, at) {
			t.Fatalf("%+v %+v\n%+v %+v", gotRec, gotAt, rec, at)
		}
	})
}

func FuzzDecode(f *testing.F) {
	at := newProgress()
	at.add("s", pump.Mark{VBucket: pump.NoVBucket, Seqno: 4, State: []byte{1}})
	at.add("", pump.Mark{VBucket: 500, Seqno: 4, Complete: true})
	good, err := encode(record{Runs: 1}, &at)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(magic + " 1 00000000 0\n"))
	f.Add([]byte(magic + " 9 "))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, at, err := decode(data)
		if err != nil {
			return
		}
		again, err := encode(rec, &at)
		if err != nil {
			t.Fatal(err)
		}
		if rec2, at2, err := decode(again); err != nil || !reflect.DeepEqual(rec, rec2) || !reflect.DeepEqual(at, at2) {
			t.Fatalf("it does not survive being written again: %v", err)
		}
	})
}
