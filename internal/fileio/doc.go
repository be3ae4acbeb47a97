// Package fileio is what the file formats share: files that get their name only
// when they are complete (Output), compressed files (Input, by the ending of the
// name), readers with a limit (Window), and the two halves of every format that
// is one record after another: Source, which turns a Parser into a pump.Source
// with positions and resumption, and Sink, which turns an Encoder into a pump.Sink.
package fileio

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/cbpump/cbpump/pump"
)

// Stdio is the name that stands for standard input or output.
const Stdio = "-"

// Path returns the path that a target names. Behind a scheme it may follow two
// slashes: jsonl:FILE and jsonl://FILE are the same.
func Path(t pump.Target) string {
	if t.Scheme == "file" {
		return t.Rest
	}
	return strings.TrimPrefix(t.Rest, "//")
}

// cause is a system error under a file error. It hides that access was denied,
// which would make the exit code that of an endpoint (4): a file that cannot be
// read or written is a failure (1).
type cause struct{ err error }

func (c cause) Error() string { return c.err.Error() }

func (c cause) Is(target error) bool {
	return target != os.ErrPermission && errors.Is(c.err, target)
}

// bare takes the operation and the path out of a system error: messages name
// them already.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	var s *os.SyscallError
	if errors.As(err, &s) {
		return s.Err
	}
	return err
}

// WriteError returns the error of a failed write: class failed, whatever the
// cause. partial is the incomplete file or folder that is left, "" if none is.
func WriteError(op, partial string, err error) error {
	var known *pump.Error
	if errors.As(err, &known) {
		return err
	}
	e := &pump.Error{Code: "file-write", Op: op, Err: cause{bare(err)}}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Code, e.Hint = "disk-full", "Free some space and run the same command again."
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EROFS):
		e.Hint = "Make the folder writable, or write elsewhere."
	case errors.Is(err, os.ErrNotExist):
		e.Code, e.Hint = "folder-gone", "The folder is not there, or no longer. Make it and run the same command again."
	default:
		e.Hint = "Run the same command again once the file system takes files."
	}
	if holdsAnything(partial) {
		e.Hint += " What was written so far is incomplete and is in " + partial + "; it can be removed."
	}
	return e
}

// holdsAnything says whether a partial file or folder is still there, and is no
// empty file, which goes when the run ends.
func holdsAnything(partial string) bool {
	if partial == "" {
		return false
	}
	info, err := os.Lstat(partial)
	return err == nil && info.Size() > 0
}

// ReadError returns the error of a failed read or opening: class failed, but
// wrong use if nothing is there to be read.
func ReadError(op string, err error) error {
	var known *pump.Error
	if errors.As(err, &known) {
		return err
	}
	e := &pump.Error{Code: "file-read", Op: op, Err: cause{bare(err)}}
	switch {
	case errors.Is(err, os.ErrNotExist):
		e.Class, e.Code = pump.ClassUsage, "no-file"
		if p, ok := errors.AsType[*os.PathError](err); ok && holdsAnything(p.Path+PartialEnding) {
			e.Hint = p.Path + PartialEnding + " is there: the run that writes it has not come to its end. Wait for it, or run it again."
		}
	case errors.Is(err, os.ErrPermission):
		e.Hint = "Check the permissions of the file and of the folders above it, or run as a user who may read it."
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		// Its text is that of a connection, where it comes from otherwise; and an error
		// that is io.EOF would be taken for the proven end of a stream (invariant 4).
		e.Err, e.Hint = errors.New("it is cut off"), "Get the whole file."
	}
	return e
}
