//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package fileio

import "os"

// These systems have no advisory locks that this package knows of: two runs that
// write the same file at once are not told of each other.
func lock(*os.File) (bool, error) { return true, nil }

const canLock = false

const noFollow = 0

// A closed standard output is not put right behind a program's back here.
func wasClosed(*os.File) bool { return false }

func writable(string) error { return nil }

// waker does not wait here: a read from a silent pipe ends with its next byte.
type waker struct{}

func newWaker() (*waker, error) { return &waker{}, nil }

func (*waker) wake() {}

func (*waker) close() error { return nil }

func (*waker) wait(*os.File, bool) (bool, error) { return false, nil }
