package backup

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

// nobody is a user that owns nothing.
const nobody = 65534

func TestFolderThatMayNotBeWrittenTo(t *testing.T) {
	dir := t.TempDir()
	existing := filepath.Join(dir, "existing")
	mustWrite(t, open(t, existing, nil), manyItems(1, "v"))
	for _, d := range []string{dir, existing} {
		if err := os.Chmod(d, 0o555); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(d, 0o777) })
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // the test's own, so that others may look into it
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			// Root is stopped by no permission: this thread is somebody else to the
			// file system, and ends with the goroutine.
			runtime.LockOSThread()
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0); errno != 0 {
				t.Error(errno)
			}
		}
		for _, path := range []string{filepath.Join(dir, "new"), existing} {
			s := open(t, path, nil)
			_, err := s.Lanes(t.Context(), 1)
			if pump.ExitCode(err, 0) != 1 || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "permission") {
				t.Errorf("exit code %d: %v", pump.ExitCode(err, 0), err)
			}
			if hint := pump.HintOf(err); !strings.Contains(hint, "No backup was begun") || strings.Contains(hint, "stays where it is") {
				t.Errorf("the hint is %q, but nothing was written", hint)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	<-done
}
