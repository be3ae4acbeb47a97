//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package cbb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// In these variables the test's own program, run again, finds what it is to lock, and
// how.
const lockPath, lockType = "CBPUMP_TEST_LOCK", "CBPUMP_TEST_LOCK_TYPE"

// TestReadersAreNoWriters: another reader that is just beginning must not look like a
// tool that writes, or two copies of a backup could not be made at once.
func TestReadersAreNoWriters(t *testing.T) {
	if path := os.Getenv(lockPath); path != "" {
		kind, _ := strconv.Atoi(os.Getenv(lockType))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: int16(kind), Whence: io.SeekStart, Start: pendingByte, Len: 1})
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("\nready")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the other one closes it
		_ = f.Close()
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[int]bool{unix.F_RDLCK: false, unix.F_WRLCK: true} {
		cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestReadersAreNoWriters$")
		cmd.Env = append(os.Environ(), lockPath+"="+path, fmt.Sprintf("%s=%d", lockType, kind))
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hasWriter(f); got != want {
			t.Errorf("lock of kind %d: a writer: %t", kind, got)
		}
		if err := errors.Join(f.Close(), in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}
}
