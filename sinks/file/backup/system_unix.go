//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package backup

import (
	"errors"
	"os"
	"syscall"

	"github.com/cbpump/cbpump/internal/cbb"
	"github.com/cbpump/cbpump/pump"
)

// lock keeps other runs out of a backup folder. The system lets go of it when
// the process ends, however it ends, and nothing of it is in the folder.
type lock struct {
	dir    *os.File
	proven bool // nobody else can have it
}

func acquire(path string) (*lock, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, cbb.PrepareError(path, err)
	}
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		_ = d.Close()
		return nil, &pump.Error{Code: "backup-busy", Op: "write a backup into " + path, Err: errors.New("another run is writing into it"),
			Hint: "Wait until it has finished."}
	}
	// Some network file systems have no such locks; then nothing is proven.
	return &lock{dir: d, proven: err == nil}, nil
}

func (l *lock) release() error {
	if l == nil || l.dir == nil {
		return nil
	}
	d := l.dir
	l.dir = nil
	return d.Close()
}

// syncDir makes the names in a folder durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return cbb.WriteError(path, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return cbb.WriteError(path, err)
	}
	return nil
}
