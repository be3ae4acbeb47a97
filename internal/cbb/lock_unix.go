//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package cbb

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// SQLite's lock bytes: a connection that is about to write holds a write lock on the
// pending or the reserved one. Readers hold read locks on others behind them, and one
// on the pending byte for the moment in which they begin.
const (
	pendingByte = 0x40000000
	writerBytes = 2
)

// hasWriter reports whether another process has begun to write the file. It only
// asks, for a read lock, which only write locks are in the way of; where a file system knows no locks there are none.
func hasWriter(f *os.File) bool {
	lock := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: pendingByte, Len: writerBytes}
	return unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}
