package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
)

// nobody is a user that owns nothing.
const nobody = 65534

// asNobody calls f as somebody to whom the file system's permissions apply, as they
// do not to root.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // it ends with the goroutine
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0); errno != 0 {
				done <- errno
				return
			}
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestUnreadable takes the permissions of everything that each format writes, one
// after the other: reading fails, is no success with less, names what could not be
// read, and says what to do.
func TestUnreadable(t *testing.T) {
	for _, f := range formats(t) {
		t.Run(f.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil { // the test's own, so that others may look into it
				t.Fatal(err)
			}
			path := filepath.Join(dir, f.name)
			sink, err := f.sink(path)
			if err != nil {
				t.Fatal(err)
			}
			items := []pump.Item{{Key: []byte("a"), Value: []byte("1"), VBucket: pump.NoVBucket}, {Key: []byte("b"), Value: []byte("2"), VBucket: pump.NoVBucket}}
			if report, err := filetest.WriteAll(t, sink, items); err != nil || report.Done != 2 {
				t.Fatal(report.Done, err)
			}
			var all []string
			if err := filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
				all = append(all, p)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			for _, p := range all {
				info, err := os.Stat(p)
				if err == nil {
					err = os.Chmod(p, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
				asNobody(t, func() {
					src, err := f.src(path)
					if err == nil {
						_, err = filetest.ReadAll(t, src, 64<<10)
					}
					said := strings.NewReplacer("<ud>", "", "</ud>", "").Replace(fmt.Sprint(err))
					if pump.ExitCode(err, 0) != 1 || !strings.Contains(said, p) || !strings.Contains(said, "permission denied") || !strings.Contains(pump.HintOf(err), "permissions") {
						t.Errorf("%s: exit code %d, %v (%s)", p, pump.ExitCode(err, 0), err, pump.HintOf(err))
					}
				})
				if err := os.Chmod(p, info.Mode().Perm()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
