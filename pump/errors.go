package pump

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Class groups errors by what the user can do about them. It decides the exit
// code (invariant 10).
type Class uint8

// The classes, and what they exit with.
const (
	ClassFailed      Class = iota // 1: failed, can be run again
	ClassUsage                    // 2: wrong use; nothing was done
	ClassPartial                  // 3: complete, but items were rejected or skipped
	ClassUnreachable              // 4: an endpoint cannot be reached
	ClassDenied                   // 4: an endpoint refuses access
	ClassInterrupted              // 130 or 143: stopped by a signal after a clean drain
)

// Error is an error with a class, a stable code and a hint. Op says what was
// being done to which node, bucket or vbucket. It never holds a secret
// (invariant 9).
type Error struct {
	Class Class
	Code  string // stable, for scripts and documentation: "tap-cut"
	Op    string // "dump vbucket 500 from 127.0.0.1:11210"
	Err   error  // the cause, may be nil
	Hint  string // what to do, a sentence, may be empty
	Retry bool   // another try may succeed
	// VBuckets holds, in an error about several vbuckets, what is the matter with
	// each of them; see ErrorOf.
	VBuckets map[uint16]error
	begun    bool // see Begun
}

func (e *Error) Error() string {
	switch {
	case e.Op == "" && e.Err == nil:
		return e.Code
	case e.Op == "":
		return e.Err.Error()
	case e.Err == nil:
		return e.Op
	}
	return e.Op + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Usagef returns an error of wrong use (exit code 2).
func Usagef(format string, args ...any) error {
	return &Error{Class: ClassUsage, Code: "usage", Err: fmt.Errorf(format, args...)}
}

// Begun marks err as one that came to light while items were moved. Wrong use
// (exit code 2) says that nothing was done: found so late it is a failure.
func Begun(err error) error { return &Error{Err: err, begun: true} }

// Retryable marks err as one that another try may mend.
func Retryable(err error) error {
	if err == nil {
		return nil
	}
	if IsRetryable(err) {
		return err
	}
	return &Error{Class: ClassOf(err), Code: CodeOf(err), Err: err, Hint: HintOf(err), Retry: true}
}

// IsRetryable reports whether another try may mend err.
func IsRetryable(err error) bool {
	var e *Error
	for errors.As(err, &e) {
		if e.Retry {
			return true
		}
		err = e.Err
	}
	return false
}

// ClassOf returns the class of err: that of the outermost Error whose class was
// set, else what the system error underneath says. Of several joined errors the
// first class that says more than "failed" counts, but they are partial only if
// all of them are: a failure beside a partial success is a failure.
func ClassOf(err error) Class {
	for at := err; at != nil; {
		if e, ok := at.(*Error); ok {
			if e.Class != ClassFailed {
				return e.Class
			}
			if e.begun && ClassOf(e.Err) == ClassUsage {
				return ClassFailed
			}
		}
		switch u := at.(type) {
		case interface{ Unwrap() error }:
			at = u.Unwrap()
		case interface{ Unwrap() []error }:
			return joinedClass(u.Unwrap())
		default:
			at = nil
		}
	}
	return systemClass(err)
}

func joinedClass(parts []error) Class {
	partial := 0
	for _, p := range parts {
		switch c := ClassOf(p); c {
		case ClassFailed:
		case ClassPartial:
			partial++
		default:
			return c
		}
	}
	if partial > 0 && partial == len(parts) {
		return ClassPartial
	}
	return ClassFailed
}

func systemClass(err error) Class {
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return ClassInterrupted
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.As(err, &dns):
		return ClassUnreachable
	case errors.Is(err, os.ErrPermission):
		return ClassDenied
	}
	return ClassFailed
}

// CodeOf returns the first code found in err's chain, or "failed".
func CodeOf(err error) string {
	var e *Error
	for inner := err; errors.As(inner, &e); inner = e.Err {
		if e.Code != "" {
			return e.Code
		}
	}
	return "failed"
}

// HintOf returns the first hint found in err's chain, or "".
func HintOf(err error) string {
	var e *Error
	for inner := err; errors.As(inner, &e); inner = e.Err {
		if e.Hint != "" {
			return e.Hint
		}
	}
	return ""
}

// ExitCode is the one classifier of exit codes (invariant 10). sig is the
// signal that stopped the run, 0 if none.
func ExitCode(err error, sig syscall.Signal) int {
	if err == nil {
		return 0
	}
	switch ClassOf(err) {
	case ClassUsage:
		return 2
	case ClassPartial:
		return 3
	case ClassUnreachable, ClassDenied:
		return 4
	case ClassInterrupted:
		if sig != 0 {
			return 128 + int(sig)
		}
		return 128 + int(syscall.SIGINT)
	}
	return 1
}

// ErrorOf returns what err says of one vbucket: the entry of the first error in
// its tree that has one for it, or nil.
func ErrorOf(err error, vb uint16) error {
	if e, ok := err.(*Error); ok {
		if own := e.VBuckets[vb]; own != nil {
			return own
		}
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		if inner := u.Unwrap(); inner != nil {
			return ErrorOf(inner, vb)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range u.Unwrap() {
			if own := ErrorOf(inner, vb); own != nil {
				return own
			}
		}
	}
	return nil
}
