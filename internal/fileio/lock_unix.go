//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package fileio

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lock takes the open file for its owner; false says that another one has it.
// The lock ends with the descriptor, also when the process is killed.
func lock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// writable says whether the folder takes new files, without making one.
func writable(folder string) error { return unix.Access(folder, unix.W_OK|unix.X_OK) }

// noFollow opens a file only if its name is no symbolic link, and waits for no
// reader or writer of a pipe.
const noFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK

// canLock says that lock keeps others away.
const canLock = true

// wasClosed says whether the program was started with f closed. Go's runtime
// then opens /dev/null in its place, for reading and writing (checkfds in the
// runtime's fds_unix.go); a shell's > /dev/null opens it for writing only.
func wasClosed(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return errors.Is(err, unix.EBADF)
	}
	null, err := os.Stat(os.DevNull)
	if err != nil || !os.SameFile(info, null) {
		return false
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
}

// waker ends a wait for a file that may never become ready.
type waker struct{ r, w *os.File }

func newWaker() (*waker, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &waker{r, w}, nil
}

// wake ends all waits, the present ones and those to come.
func (k *waker) wake() { _, _ = k.w.Write([]byte{0}) }

func (k *waker) close() error { return errors.Join(k.r.Close(), k.w.Close()) }

// wait returns when f can be read from or written to, or when it was woken.
func (k *waker) wait(f *os.File, write bool) (woken bool, err error) {
	events := int16(unix.POLLIN)
	if write {
		events = unix.POLLOUT
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: events}, {Fd: int32(k.r.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return fds[1].Revents != 0, err
	}
}
