package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// Names in the folder.
const (
	fileName = "checkpoint"
	newName  = "checkpoint.new" // what is being written; it never counts
	lockName = "lock"
)

// maxFile is the size up to which a checkpoint is read, in bytes: a hundred times
// what 1,024 vbuckets with long failover logs take.
const maxFile = 64 << 20

// Folder is a checkpoint in a folder. It implements pump.Checkpoint. One run uses
// it; Close ends that.
type Folder struct {
	dir  string
	lock *os.File
	rec  record
	at   progress
	now  func() time.Time
}

// Open opens the folder dir, locks it, and reads the checkpoint there. With resume
// there must be one, and it must belong to the same copy; without, there must be
// none of an unfinished run. The folder is made if it is missing.
func Open(dir string, belongs []Field, resume bool) (*Folder, error) {
	f := &Folder{dir: dir, at: newProgress(), now: time.Now}
	if err := f.openDir(resume); err != nil {
		return nil, err
	}
	if err := f.takeLock(); err != nil {
		return nil, err
	}
	if err := f.load(belongs, resume); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// There reports whether a folder has a checkpoint, of whatever copy.
func There(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, fileName))
	return err == nil
}

func (f *Folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f *Folder) op() string { return "checkpoint " + strconv.Quote(f.dir) }

// fails is an error that another folder or a mended one avoids.
func (f *Folder) fails(class pump.Class, code string, err error, hint string) error {
	return &pump.Error{Class: class, Code: "checkpoint-" + code, Op: f.op(), Err: err, Hint: hint}
}

const (
	hintOther = "Give another folder, or look at what is there and remove it if it is not needed."
	hintAnew  = "Nothing is gone on with from it. To begin anew, give another folder or remove this one; the copy is then made from the start."
)

func (f *Folder) openDir(resume bool) error {
	info, err := os.Lstat(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		if resume {
			return f.none()
		}
		if err := os.MkdirAll(f.dir, 0o700); err != nil {
			return f.fails(pump.ClassFailed, "folder", cause(err), "Make the folder, or give one that can be made.")
		}
		// Its name is made durable with it.
		if err := syncDir(filepath.Dir(f.dir)); err != nil {
			return f.fails(pump.ClassFailed, "folder", err, "")
		}
		info, err = os.Lstat(f.dir)
	}
	switch {
	case err != nil:
		return f.fails(pump.ClassFailed, "folder", cause(err), "")
	case info.Mode()&fs.ModeSymlink != 0:
		return f.fails(pump.ClassUsage, "link", errors.New("it is a symbolic link"), "Name the folder itself.")
	case !info.IsDir():
		return f.fails(pump.ClassUsage, "folder", errors.New("it is no folder"), hintOther)
	case !own(info):
		return f.fails(pump.ClassDenied, "owner", errors.New("the folder belongs to another user"), hintOther)
	}
	return nil
}

func (f *Folder) none() error {
	return f.fails(pump.ClassUsage, "none", errors.New("there is none to go on from"), "Leave --resume out to begin; or name the folder that the stopped run was given.")
}

func (f *Folder) takeLock() error {
	l, err := f.open(lockName, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	free, err := lock(l)
	if err == nil && free {
		// Whose it is helps a person only, so it may fail.
		if l.Truncate(0) == nil {
			_, _ = fmt.Fprintf(l, "%d\n", os.Getpid())
		}
		f.lock = l
		return nil
	}
	defer l.Close()
	if err != nil {
		return f.fails(pump.ClassFailed, "lock", cause(err), "Give a folder on a file system that has locks.")
	}
	by := "another run"
	if b, err := io.ReadAll(io.LimitReader(l, 20)); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			by = fmt.Sprintf("another run (process %d)", pid)
		}
	}
	return f.fails(pump.ClassUsage, "locked", fmt.Errorf("%s uses it", by), "Wait for its end, or give another folder.")
}

// open opens a file of the folder, which must be a regular file of this user.
func (f *Folder) open(name string, flag int) (*os.File, error) {
	file, err := os.OpenFile(f.path(name), flag|noFollow, 0o600)
	if isLink(err) {
		return nil, f.fails(pump.ClassUsage, "link", fmt.Errorf("%s there is a symbolic link", name), hintOther)
	}
	if err != nil {
		return nil, f.fails(pump.ClassFailed, "file", fmt.Errorf("%s: %w", name, cause(err)), "Make the folder readable and writable, or give another one.")
	}
	info, err := file.Stat()
	switch {
	case err != nil:
		err = f.fails(pump.ClassFailed, "file", fmt.Errorf("%s: %w", name, cause(err)), "")
	case !info.Mode().IsRegular():
		err = f.fails(pump.ClassUsage, "file", fmt.Errorf("%s there is no regular file", name), hintOther)
	case !own(info):
		err = f.fails(pump.ClassDenied, "owner", fmt.Errorf("%s there belongs to another user", name), hintOther)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// load reads the checkpoint, if there is one.
func (f *Folder) load(belongs []Field, resume bool) error {
	if _, err := os.Lstat(f.path(fileName)); errors.Is(err, fs.ErrNotExist) {
		if resume {
			return f.none()
		}
		return f.begin(belongs)
	}
	file, err := f.open(fileName, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return f.fails(pump.ClassFailed, "file", cause(err), "")
	}
	if len(data) > maxFile {
		return f.fails(pump.ClassUsage, "damaged", errForeign, hintAnew)
	}
	rec, at, err := decode(data)
	var version versionError
	switch {
	case errors.As(err, &version):
		return f.fails(pump.ClassUsage, "version", err, "Go on with the program that wrote it. "+hintAnew)
	case err != nil:
		return f.fails(pump.ClassUsage, "damaged", err, hintAnew)
	case !resume && !rec.Finished && at.any():
		return f.fails(pump.ClassUsage, "unfinished", errors.New("it holds the progress of a copy that did not come to its end"),
			"Add --resume to go on with it. To begin anew, give another folder or remove this one.")
	case !resume:
		return f.begin(belongs)
	}
	if other := differences(rec.Belongs, belongs); len(other) > 0 {
		return f.fails(pump.ClassUsage, "mismatch", fmt.Errorf("it belongs to another copy: %s", strings.Join(other, "; ")),
			"Give the source, destination and options of the run that it belongs to. "+hintAnew)
	}
	f.rec, f.at = rec, at
	f.rec.Runs++
	return nil
}

// begin saves that a copy has begun, so that a run that is killed before anything
// is confirmed can be gone on with like any other.
func (f *Folder) begin(belongs []Field) error {
	f.rec = record{Belongs: belongs, Runs: 1}
	return f.Save(context.Background(), nil, pump.Counts{}, false)
}

// differences names the fields that are not the same.
func differences(was, is []Field) []string {
	var out []string
	find := func(in []Field, name string) (Field, bool) {
		i := slices.IndexFunc(in, func(f Field) bool { return f.Name == name })
		if i < 0 {
			return Field{}, false
		}
		return in[i], true
	}
	for _, w := range was {
		now, ok := find(is, w.Name)
		switch {
		case !ok:
			out = append(out, w.Name+" was given then and is not now")
		case now.Value == w.Value:
		case now.Shown == "" || w.Shown == "":
			out = append(out, w.Name+" differs")
		case now.Shown == w.Shown: // such as a bucket that was deleted and made anew
			out = append(out, fmt.Sprintf("%s is %s, as it was then, but not the same any more (%s then, %s now)", w.Name, now.Shown, w.Value, now.Value))
		default:
			out = append(out, fmt.Sprintf("%s was %s and is %s", w.Name, w.Shown, now.Shown))
		}
	}
	for _, now := range is {
		if _, ok := find(was, now.Name); !ok {
			out = append(out, now.Name+" is given now and was not then")
		}
	}
	return out
}

// Finished reports whether the copy has come to its proven end, and what was
// counted then.
func (f *Folder) Finished() (pump.Counts, bool) { return f.rec.Counts, f.rec.Finished }

// Start implements pump.Checkpoint. Positions in vbuckets go to every stream: each
// takes those of the vbuckets that it has.
func (f *Folder) Start(streams []string) (map[string][]pump.Mark, pump.Counts, error) {
	for id := range f.at.streams {
		if !slices.Contains(streams, id) {
			return nil, pump.Counts{}, f.fails(pump.ClassUsage, "streams", fmt.Errorf("the source has no part %q any more, of which some was copied", id),
				"Give the same source, and the same -t and options as then. "+hintAnew)
		}
	}
	from := make(map[string][]pump.Mark, len(streams))
	for _, id := range streams {
		var marks []pump.Mark
		for _, m := range f.at.vbuckets {
			marks = append(marks, m)
		}
		slices.SortFunc(marks, func(a, b pump.Mark) int { return int(a.VBucket) - int(b.VBucket) })
		if m, ok := f.at.streams[id]; ok {
			marks = append(marks, m)
		}
		from[id] = marks
	}
	return from, f.rec.Counts, nil
}

// Save implements pump.Checkpoint.
func (f *Folder) Save(_ context.Context, reached map[string][]pump.Mark, counts pump.Counts, finished bool) error {
	for id, marks := range reached {
		for _, m := range marks {
			f.at.add(id, m)
		}
	}
	f.rec.Counts, f.rec.Finished, f.rec.Written = counts, finished, f.now().UTC()
	data, err := encode(f.rec, &f.at)
	if err == nil {
		err = f.replace(data)
	}
	if err != nil {
		return f.fails(pump.ClassFailed, "save", fmt.Errorf("the progress cannot be saved: %w", cause(err)),
			"What was saved before still holds. Make room or give the folder back, then run the same command again with --resume.")
	}
	return nil
}

// replace makes data the checkpoint: durable before it has the name.
func (f *Folder) replace(data []byte) error {
	// A leftover of a killed run is not written into: it may be a link.
	if err := os.Remove(f.path(newName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(f.path(newName), os.O_WRONLY|os.O_CREATE|os.O_EXCL|noFollow, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.path(newName), f.path(fileName)); err != nil {
		return err
	}
	return syncDir(f.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// Close gives the folder free. What was saved stays.
func (f *Folder) Close() error { return f.lock.Close() }

// cause is an error without the path, which the message has.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}
