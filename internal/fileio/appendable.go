package fileio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cbpump/cbpump/pump"
)

// Appendable is a file of lines that grows while a program runs and outlives it,
// for this user only (mode 0600). One writer has it at a time. It is not safe for
// concurrent use.
type Appendable struct {
	path   string
	f      *os.File
	size   int64 // bytes of whole lines
	made   bool  // by this Appendable
	linked bool  // the folder was synced, so the name is durable
}

// OpenAppendable makes a file that begins with the line head. One that is there
// already must be empty or, with more, begin with head: then it is gone on with, and
// a last line without its end, as a killed program leaves it, is cut off.
//
// Links, pipes, devices and files that another run writes are refused.
func OpenAppendable(path string, head []byte, more bool) (*Appendable, error) {
	op := "write " + path
	a := &Appendable{path: path}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|noFollow, 0o600)
	if a.made = err == nil; errors.Is(err, os.ErrExist) {
		info, lerr := os.Lstat(path)
		if lerr == nil && !info.Mode().IsRegular() {
			return nil, &pump.Error{Class: pump.ClassUsage, Code: "not-a-file", Op: op, Err: errors.New("that is no ordinary file: a link, folder, pipe or device"),
				Hint: "Name a file that is not there yet."}
		}
		f, err = os.OpenFile(path, os.O_RDWR|noFollow, 0)
	}
	if err != nil {
		return nil, WriteError(op, "", err)
	}
	a.f = f
	if err := a.take(op, head, more); err != nil {
		_ = f.Close()
		if a.made {
			_ = os.Remove(path)
		}
		return nil, err
	}
	return a, nil
}

// take locks the file and finds where it goes on.
func (a *Appendable) take(op string, head []byte, more bool) error {
	got, err := lock(a.f)
	if err != nil {
		return WriteError(op, "", fmt.Errorf("lock it: %w", err))
	}
	if !got {
		return &pump.Error{Code: "file-busy", Op: op, Err: errors.New("another run is writing it"), Hint: "Name another file, or wait."}
	}
	info, err := a.f.Stat()
	if err != nil {
		return WriteError(op, "", err)
	}
	size := info.Size()
	switch {
	case !info.Mode().IsRegular():
		return &pump.Error{Class: pump.ClassUsage, Code: "not-a-file", Op: op, Err: errors.New("that is no ordinary file")}
	case size == 0:
		return nil
	case !more:
		return &pump.Error{Class: pump.ClassUsage, Code: "file-exists", Op: op, Err: errors.New("it exists already, and nothing is overwritten unasked"),
			Hint: "Choose another name, or remove it."}
	}
	begin := make([]byte, min(size, int64(len(head))))
	if _, err := a.f.ReadAt(begin, 0); err != nil {
		return WriteError(op, "", err)
	}
	if !bytes.HasPrefix(head, begin) {
		return &pump.Error{Class: pump.ClassUsage, Code: "not-ours", Op: op, Err: errors.New("it is another kind of file, and nothing is added to it"),
			Hint: "Choose another name."}
	}
	if a.size, err = lastLineEnd(a.f, size); err == nil && a.size < size {
		err = a.f.Truncate(a.size)
	}
	if err != nil {
		return WriteError(op, "", err)
	}
	return nil
}

// lastLineEnd returns the offset behind the last line end of a file, 0 if it has
// none.
func lastLineEnd(f io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for size > 0 {
		n := min(size, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], size-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return size - n + int64(i) + 1, nil
		}
		size -= n
	}
	return 0, nil
}

// Path returns the file's name.
func (a *Appendable) Path() string { return a.path }

// Empty says that the file holds nothing, not even its head.
func (a *Appendable) Empty() bool { return a.size == 0 }

// Write appends whole lines. After an error the file ends where it did before.
func (a *Appendable) Write(lines []byte) (int, error) {
	n, err := a.f.WriteAt(lines, a.size)
	if err != nil {
		_ = a.f.Truncate(a.size) // the write's own error matters
		return n, WriteError("write "+a.path, "", err)
	}
	a.size += int64(n)
	return n, nil
}

// Sync makes everything durable that was written, and the first time the name.
func (a *Appendable) Sync() error {
	err := a.f.Sync()
	if err == nil && !a.linked {
		if err = syncFolder(filepath.Dir(a.path)); err == nil {
			a.linked = true
		}
	}
	if err != nil {
		return WriteError("write "+a.path, "", err)
	}
	return nil
}

// Close closes the file, and removes it if it was made here and is empty.
func (a *Appendable) Close() error {
	if a.made && a.size == 0 {
		_ = os.Remove(a.path)
	}
	if err := a.f.Close(); err != nil {
		return WriteError("write "+a.path, "", err)
	}
	return nil
}
