//go:build unix

package checkpoint

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// noFollow opens no symbolic link.
const noFollow = syscall.O_NOFOLLOW

// lock takes an advisory lock that ends with the process, however it ends. It
// returns false if another one has it.
func lock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// own reports whether a file belongs to the user who runs this program.
func own(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// isLink reports whether an error of opening says that there is a symbolic link.
func isLink(err error) bool { return errors.Is(err, syscall.ELOOP) }
