package fileio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cbpump/cbpump/pump"
)

// Tree is a folder of files that is being written. It has a name of its own
// ending in ".partial" until Commit.
type Tree struct {
	path    string
	partial string
	// Fold says that the file system takes A and a for the same name.
	Fold bool
}

// CheckTree finds out, without changing anything, whether CreateTree is likely to
// succeed: the folder is not there yet, or empty.
func CheckTree(path string) error {
	op := "write " + path
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
	if err := os.Mkdir(partial, 0o777); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, &pump.Error{Code: "file-busy", Op: op, Err: fmt.Errorf("%s is there: another run is writing it, or one was broken off", partial),
				Hint: "Remove it when no run is at work on it."}
		}
		return nil, WriteError(op, "", err)
	}
	t.partial = partial
	const capital, small = "Cbpump-Case", "cbpump-case"
	err := os.WriteFile(filepath.Join(partial, capital), nil, 0o666)
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

// Partial returns the folder that is being written; "" once it is complete.
func (t *Tree) Partial() string { return t.partial }

// Write writes a file, in the place of an earlier one of that path.
func (t *Tree) Write(path []string, data []byte) error {
	full := filepath.Join(append([]string{t.partial}, path...)...)
	err := os.WriteFile(full, data, 0o666)
	if errors.Is(err, os.ErrNotExist) {
		// The first file of its folder; or the whole tree has vanished, and is
		// not to rise again without what was in it.
		if _, err = os.Lstat(t.partial); err == nil {
			if err = os.MkdirAll(filepath.Dir(full), 0o777); err == nil {
				err = os.WriteFile(full, data, 0o666)
			}
		}
	}
	if err != nil {
		return WriteError("write "+filepath.Join(append([]string{t.path}, path...)...), t.partial, err)
	}
	return nil
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
	if err := os.Remove(full); err != nil && !errors.Is(err, os.ErrNotExist) {
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

// Close ends the writing. What was not committed stays under its partial name,
// or is removed.
func (t *Tree) Close(keep bool) error {
	if t.partial == "" || keep {
		return nil
	}
	partial := t.partial
	t.partial = ""
	return os.RemoveAll(partial)
}
