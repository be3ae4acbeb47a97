//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package cbb

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// SQLite's lock bytes: a connection that is about to write holds a lock on the
// pending or the reserved one, readers on others behind them.
const (
	pendingByte = 0x40000000
	writerBytes = 2
)

// hasWriter reports whether another process has begun to write the file. It only
// asks; where a file system knows no locks there are none.
func hasWriter(f *os.File) bool {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: pendingByte, Len: writerBytes}
	return unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}
