package fileio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cbpump/cbpump/pump"
)

// PartialEnding is what the name of a file or folder ends with while it is
// being written.
const PartialEnding = ".partial"

// pipeChunk is written to a pipe at once: one that is ready takes at least this
// much without blocking (POSIX's PIPE_BUF).
const pipeChunk = 4096

// Output is a file that is being written. It has a name of its own ending in
// ".partial" until Commit has made its bytes durable; so what carries the final
// name is complete. Standard output, pipes and devices are written straight
// through; Commit does nothing to them.
//
// It is used by one goroutine at a time.
type Output struct {
	path    string
	partial string // "" when written straight through
	replace bool
	f       *os.File
	wake    *waker // of a pipe or terminal
	enc     io.WriteCloser
	broken  error // the first failed write: nothing may be committed after it
}

// CheckOutput finds out, without changing anything, whether Create is likely to
// succeed.
func CheckOutput(path string, replace bool) error {
	op := "write " + path
	if path == Stdio {
		if wasClosed(os.Stdout) {
			return &pump.Error{Class: pump.ClassUsage, Code: "stdout-closed", Op: "write to standard output", Err: errors.New("it is closed: everything would be lost"),
				Hint: "Redirect it to a file or a pipe; to /dev/null for writing only if the data is to be thrown away."}
		}
		return nil
	}
	if err := checkLink(op, path); err != nil {
		return err
	}
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return &pump.Error{Class: pump.ClassUsage, Code: "is-folder", Op: op, Err: errors.New("that is a folder, and a file is due"),
			Hint: "Name a file in it."}
	case err == nil && !info.Mode().IsRegular():
		return nil
	case err == nil && !replace:
		return exists(op)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return WriteError(op, "", err)
	}
	return checkFolder(op, filepath.Dir(path))
}

// checkLink refuses a link that leads nowhere: its name is taken, and what it
// stands for cannot be made by giving a complete file that name.
func checkLink(op, path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSymlink == 0 {
		return nil
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return &pump.Error{Class: pump.ClassUsage, Code: "dangling-link", Op: op, Err: errors.New("it is a symbolic link to something that is not there"),
		Hint: "Remove the link, or name what it is to lead to."}
}

// checkFolder checks that a folder is there and takes files.
func checkFolder(op, folder string) error {
	info, err := os.Stat(folder)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	if err == nil {
		err = writable(folder)
	}
	if err != nil {
		return WriteError(op+": folder "+folder, "", err)
	}
	return nil
}

func exists(op string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: "file-exists", Op: op, Err: errors.New("it exists already, and nothing is overwritten unasked"),
		Hint: "Choose another name, remove it, or say -x overwrite=yes."}
}

// Create begins a file. With replace one of that name gives way, on Commit, else
// that is an error. What is written is compressed as the name says.
func Create(path string, replace bool) (*Output, error) {
	if err := CheckOutput(path, replace); err != nil {
		return nil, err
	}
	o := &Output{path: path, replace: replace}
	if err := o.open(); err != nil {
		return nil, err
	}
	w := rawWriter{o}
	switch CompressionOf(path) {
	case Gzip:
		o.enc = gzip.NewWriter(w)
	case Zstd:
		enc, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), o.Close(false))
		}
		o.enc = enc
	}
	return o, nil
}

func (o *Output) open() error {
	if o.path == Stdio {
		return o.straight(os.Stdout)
	}
	op := "write " + o.path
	if info, err := os.Stat(o.path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(o.path, os.O_WRONLY, 0)
		if err != nil {
			return WriteError(op, "", err)
		}
		return o.straight(f)
	}
	o.partial = o.path + PartialEnding
	for {
		f, err := os.OpenFile(o.partial, os.O_WRONLY|os.O_CREATE, 0o666)
		if err != nil {
			return WriteError(op, "", err)
		}
		mine, err := o.take(f)
		if mine && err == nil {
			o.f = f
			return nil
		}
		cerr := f.Close()
		if err = errors.Join(err, cerr); err != nil {
			return WriteError(op, "", err)
		}
	}
}

// take locks and empties the partial file, which an earlier run may have left.
// False without an error says that it was renamed meanwhile: by the run that had
// it, which completed.
func (o *Output) take(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("%s is no ordinary file", o.partial)
	}
	locked, err := lock(f)
	if err != nil {
		return false, err
	}
	if !locked {
		return false, &pump.Error{Code: "file-busy", Op: "write " + o.path, Err: fmt.Errorf("another run is writing %s", o.partial),
			Hint: "Wait for it to end, or choose another name."}
	}
	now, err := os.Stat(o.partial)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(info, now) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Truncate(0)
}

func (o *Output) straight(f *os.File) (err error) {
	o.f = f
	if info, serr := f.Stat(); serr == nil && info.Mode().IsRegular() {
		return nil
	}
	o.wake, err = newWaker()
	return err
}

// Partial returns the name of the file until Commit, "" when it has its final
// name from the beginning.
func (o *Output) Partial() string { return o.partial }

// Write appends p. When ctx ends it returns, also if nobody reads the pipe.
func (o *Output) Write(ctx context.Context, p []byte) (err error) {
	if o.broken != nil {
		return o.broken
	}
	defer func() {
		if err != nil {
			o.broken = err
		}
	}()
	if o.wake != nil {
		defer context.AfterFunc(ctx, o.wake.wake)()
	}
	if o.enc != nil {
		_, err = o.enc.Write(p)
	} else {
		_, err = rawWriter{o}.Write(p)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return o.wrap(err)
}

// rawWriter writes the file's own bytes.
type rawWriter struct{ o *Output }

func (w rawWriter) Write(p []byte) (n int, err error) {
	o := w.o
	if o.wake == nil {
		return o.f.Write(p)
	}
	for n < len(p) {
		woken, err := o.wake.wait(o.f, true)
		if err != nil {
			return n, err
		}
		if woken {
			return n, context.Canceled
		}
		m, err := o.f.Write(p[n:min(n+pipeChunk, len(p))])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (o *Output) wrap(err error) error {
	if err == nil {
		return nil
	}
	if o.partial == "" && errors.Is(err, syscall.EPIPE) {
		return &pump.Error{Class: pump.ClassInterrupted, Code: "closed-pipe", Op: "write " + o.path, Err: err}
	}
	return WriteError("write "+o.path, o.partial, err)
}

// Commit makes what was written durable and then gives it its final name. After
// an error there is no file of that name, or the old one.
func (o *Output) Commit() error {
	if o.broken != nil {
		return o.broken
	}
	if o.enc != nil {
		if err := o.enc.Close(); err != nil {
			o.broken = o.wrap(err)
			return o.broken
		}
		o.enc = nil
	}
	if o.partial == "" {
		return nil
	}
	// The name is given while the lock is held: see take.
	err := o.f.Sync()
	if err == nil {
		err = rename(o.partial, o.path, o.replace)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(o.path))
	}
	if err != nil {
		o.broken = WriteError("complete "+o.path, o.partial, err)
		return o.broken
	}
	o.partial = ""
	return nil
}

// Close lets go of the file. If it was not committed, keep leaves the partial
// file, else it is removed.
func (o *Output) Close(keep bool) error {
	var errs []error
	if o.enc != nil {
		// Only to end the encoder's own goroutines: nothing was committed.
		_ = o.enc.Close()
		o.enc = nil
	}
	if o.wake != nil {
		errs = append(errs, o.wake.close())
		o.wake = nil
	}
	if o.partial != "" && !keep {
		if err := os.Remove(o.partial); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	o.partial = ""
	if o.f != nil && o.f != os.Stdout {
		errs = append(errs, o.f.Close())
	}
	o.f = nil
	return errors.Join(errs...)
}

// rename gives a file or folder its final name. Without replace it does not
// take the place of another.
func rename(from, to string, replace bool) error {
	if !replace {
		// A link fails if the name is taken, where a rename would overwrite it.
		switch err := os.Link(from, to); {
		case err == nil:
			return os.Remove(from)
		case errors.Is(err, os.ErrExist):
			return exists("complete " + to)
		}
		// No links for folders and on some file systems.
		if _, err := os.Lstat(to); err == nil {
			return exists("complete " + to)
		}
	}
	return os.Rename(from, to)
}

// syncFolder makes names in a folder durable.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil // file systems that keep names by themselves
	}
	return errors.Join(err, d.Close())
}
