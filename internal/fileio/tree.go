package fileio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/cbpump/cbpump/pump"
)

// Tree is a folder of files that is being written. It has a name of its own
// ending in ".partial" until Commit.
type Tree struct {
	path    string
	partial string
	// Fold says that the file system takes A and a for the same name.
	Fold bool
	held *os.File // the partial folder, locked; nil where there are no such locks

	files atomic.Int64 // that were written and not removed
}

// CheckTree finds out, without changing anything, whether CreateTree is likely to
// succeed: the folder is not there yet, or empty.
func CheckTree(path string) error {
	op := "write " + path
	if err := checkLink(op, filepath.Clean(path)); err != nil {
		return err
	}
	if info, err := os.Lstat(filepath.Clean(path)); err == nil && info.Mode()&os.ModeSymlink != 0 {
		return &pump.Error{Class: pump.ClassUsage, Code: "file-exists", Op: op, Err: errors.New("it is a symbolic link, and a new folder cannot take its place"),
			Hint: "Name the folder that it leads to, or a new one."}
	}
	f, err := os.Open(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return checkFolder(op, filepath.Dir(filepath.Clean(path)))
	case err != nil:
		return WriteError(op, "", err)
	}
	names, rerr := f.Readdirnames(1)
	if err := f.Close(); err != nil {
		return WriteError(op, "", err)
	}
	if len(names) > 0 || rerr != nil && !errors.Is(rerr, io.EOF) {
		return &pump.Error{Class: pump.ClassUsage, Code: "file-exists", Op: op, Err: errors.New("it exists already, and is no empty folder"),
			Hint: "Name a folder that is not there yet; a folder of documents is never added to."}
	}
	return nil
}

// CreateTree begins a folder.
func CreateTree(path string) (*Tree, error) {
	if err := CheckTree(path); err != nil {
		return nil, err
	}
	t := &Tree{path: filepath.Clean(path)}
	partial := t.path + PartialEnding
	op := "write " + path
	var err error
	if t.held, err = takeFolder(op, partial); err != nil {
		return nil, WriteError(op, "", err)
	}
	t.partial = partial
	err = os.WriteFile(filepath.Join(partial, capital), nil, 0o666)
	if err == nil {
		_, serr := os.Lstat(filepath.Join(partial, small))
		t.Fold = serr == nil
		err = os.Remove(filepath.Join(partial, capital))
	}
	if err != nil {
		return nil, errors.Join(WriteError(op, partial, err), t.Close(false))
	}
	return t, nil
}

// These names tell whether a file system takes A and a for the same.
const capital, small = "Cbpump-Case", "cbpump-case"

// takeFolder makes a partial folder, or empties the one that an earlier run has
// left. It is returned open and locked, so that no run takes it from another.
func takeFolder(op, partial string) (*os.File, error) {
	busy := func(what string) error {
		return &pump.Error{Code: "file-busy", Op: op, Err: fmt.Errorf("%s is there: %s", partial, what), Hint: "Remove it when no run is at work on it."}
	}
	for {
		made := os.Mkdir(partial, 0o777)
		if made != nil && !errors.Is(made, os.ErrExist) {
			return nil, made
		}
		if !canLock {
			if made != nil {
				return nil, busy("another run is writing it, or one was broken off")
			}
			return nil, nil
		}
		name, err := os.Lstat(partial)
		if errors.Is(err, os.ErrNotExist) {
			continue // the run that had it has just completed it
		}
		if err != nil {
			return nil, err
		}
		if !name.IsDir() {
			return nil, busy("it is no folder that an earlier run has left")
		}
		d, err := os.Open(partial)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		locked, err := lock(d)
		if err != nil && made == nil {
			return nil, d.Close() // some network file systems lock no folders; a new one is ours all the same
		}
		if err != nil || !locked {
			return nil, errors.Join(busy("another run is writing it, or one was broken off"), d.Close())
		}
		info, err := d.Stat()
		if err == nil {
			name, err = os.Lstat(partial)
		}
		if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(info, name) {
			if err := d.Close(); err != nil {
				return nil, err
			}
			continue
		}
		if err == nil {
			err = emptyLeftover(partial, busy)
		}
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		return d, nil
	}
}

// emptyLeftover removes what an earlier run has left in its partial folder, if
// nothing but that is there: its marker, and what a folder of documents holds.
func emptyLeftover(partial string, busy func(string) error) error {
	entries, err := os.ReadDir(partial)
	if err != nil {
		return err
	}
	marked := len(entries) == 0
	for _, e := range entries {
		full := filepath.Join(partial, e.Name())
		switch name := e.Name(); {
		case name == capital && e.Type().IsRegular():
			marked = marked || len(entries) == 1
		case name == NamesMarker && e.Type().IsRegular():
			info, err := e.Info()
			if err != nil {
				return err
			}
			if info.Size() > int64(len(NamesText)) {
				return busy(NamesMarker + " in it is not ours")
			}
			text, err := os.ReadFile(full)
			if err != nil {
				return err
			}
			// A run that was broken off may not have brought it to the disk whole.
			if marked = strings.HasPrefix(NamesText, string(text)); !marked {
				return busy(NamesMarker + " in it is not ours")
			}
		case (name == Docs || name == DesignDocs) && e.IsDir():
		default:
			return busy(name + " in it is not of an earlier run")
		}
	}
	if !marked {
		return busy("it has no " + NamesMarker + ", so it is not of an earlier run")
	}
	// The marker goes last: should this be broken off, the rest is still known.
	for _, name := range []string{Docs, DesignDocs, capital, NamesMarker} {
		if err := os.RemoveAll(filepath.Join(partial, name)); err != nil {
			return err
		}
	}
	return nil
}

// Partial returns the folder that is being written; "" once it is complete.
func (t *Tree) Partial() string { return t.partial }

// Write writes a file, in the place of an earlier one of that path.
func (t *Tree) Write(path []string, data []byte) error {
	full := filepath.Join(append([]string{t.partial}, path...)...)
	err := t.write(full, data)
	if errors.Is(err, os.ErrNotExist) {
		// The first file of its folder; or the whole tree has vanished, and is
		// not to rise again without what was in it.
		if _, err = os.Lstat(t.partial); err == nil {
			if err = os.MkdirAll(filepath.Dir(full), 0o777); err == nil {
				err = t.write(full, data)
			}
		}
	}
	if err != nil {
		return WriteError("write "+filepath.Join(append([]string{t.path}, path...)...), t.partial, err)
	}
	return nil
}

func (t *Tree) write(full string, data []byte) error {
	f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, os.ErrExist) {
		return os.WriteFile(full, data, 0o666)
	}
	if err != nil {
		return err
	}
	t.files.Add(1)
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Folder makes a folder in it.
func (t *Tree) Folder(name string) error {
	if err := os.Mkdir(filepath.Join(t.partial, name), 0o777); err != nil {
		return WriteError("write "+filepath.Join(t.path, name), t.partial, err)
	}
	return nil
}

// Remove removes a file, if it is there.
func (t *Tree) Remove(path []string) error {
	full := filepath.Join(append([]string{t.partial}, path...)...)
	switch err := os.Remove(full); {
	case err == nil:
		t.files.Add(-1)
	case !errors.Is(err, os.ErrNotExist):
		return WriteError("remove "+strings.Join(path, "/"), t.partial, err)
	}
	return nil
}

// Commit makes all files durable and gives the folder its name.
func (t *Tree) Commit() error {
	if t.partial == "" {
		return nil
	}
	if err := t.commit(); err != nil {
		return WriteError("complete "+t.path, t.partial, err)
	}
	t.partial = ""
	return nil
}

func (t *Tree) commit() error {
	d, err := os.Open(t.partial)
	if err != nil {
		return err
	}
	if err := errors.Join(syncAll(d), d.Close()); err != nil {
		return err
	}
	if err := t.complete(); err != nil {
		return err
	}
	// An empty folder of that name gives way; one that is not empty fails here.
	if info, err := os.Lstat(t.path); err == nil {
		if !info.IsDir() {
			return exists("complete " + t.path)
		}
		if err := os.Remove(t.path); err != nil {
			return err
		}
	}
	if err := os.Rename(t.partial, t.path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(t.path))
}

// complete finds out whether all files that were written are there. What clears
// old files away, as in /tmp, takes no notice of who is still at work.
func (t *Tree) complete() error {
	there, err := countFiles(t.partial)
	if err != nil {
		return err
	}
	if gone := t.files.Load() - there; gone > 0 {
		return &pump.Error{Code: "files-gone", Op: "complete " + t.path, Err: fmt.Errorf("%d of the %d files written into %s are not there any more", gone, t.files.Load(), t.partial),
			Hint: "Something removed them meanwhile. Write the folder where nothing does, or see to it that nothing does, and run the same command again."}
	}
	return nil
}

// countFiles counts the files below a folder, some names at a time: a folder may
// have more than memory should hold.
func countFiles(dir string) (n int64, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	for {
		entries, err := d.ReadDir(1024)
		for _, e := range entries {
			if !e.IsDir() {
				n++
				continue
			}
			in, err := countFiles(filepath.Join(dir, e.Name()))
			if err != nil {
				return 0, errors.Join(err, d.Close())
			}
			n += in
		}
		if err == io.EOF {
			return n, d.Close()
		}
		if err != nil {
			return 0, errors.Join(err, d.Close())
		}
	}
}

// Close ends the writing. What was not committed stays under its partial name,
// or is removed.
func (t *Tree) Close(keep bool) error {
	var err error
	if t.partial != "" && !keep {
		err = os.RemoveAll(t.partial)
		t.partial = ""
	}
	if t.held != nil {
		err = errors.Join(err, t.held.Close())
		t.held = nil
	}
	return err
}
