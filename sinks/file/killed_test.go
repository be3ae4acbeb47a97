package file

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
)

// In these variables the test's own program, run again to be killed, finds what it
// is to write, and where.
const killedFormat, killedPath = "CBPUMP_TEST_FORMAT", "CBPUMP_TEST_PATH"

// endless gives items and then waits for more that never come.
type endless struct{ given int }

func (e *endless) Streams(context.Context) ([]pump.Stream, error) { return []pump.Stream{e}, nil }
func (e *endless) ID() string                                     { return "endless" }
func (e *endless) Open(context.Context, []pump.Mark) error        { return nil }
func (e *endless) Close() error                                   { return nil }

// enough items fill every buffer on the way to the disk.
const enough = 4000

func (e *endless) Read(ctx context.Context, b *pump.Batch) error {
	if e.given == enough {
		<-ctx.Done()
		return ctx.Err()
	}
	for range 500 {
		it := b.Append()
		// Compressors hold back what they can make small.
		it.Key, it.Value = fmt.Appendf(nil, "old-%d", e.given), fmt.Appendf(nil, `"%x"`, uint64(e.given)*0x9e3779b97f4a7c15)
		it.VBucket = pump.NoVBucket
		e.given++
	}
	return nil
}

// writeForEver is what the killed process does.
func writeForEver(t *testing.T, which int, path string) {
	sink, err := formats(t)[which].sink(path)
	if err != nil {
		t.Fatal(err)
	}
	ready := sync.OnceFunc(func() { fmt.Println("\nready") })
	_, err = pump.Run(t.Context(), pump.Config{Source: &endless{}, Sink: sink, Settings: pump.DefaultSettings(),
		ProgressEvery: time.Millisecond, Progress: func(s pump.Snapshot) {
			if s.Done == enough {
				ready()
			}
		}})
	t.Fatalf("it came to its end: %v", err)
}

// TestKilledInMidWrite kills a process that writes each format with SIGKILL. What it
// leaves has not the final name, is not read, and is in nobody's way.
func TestKilledInMidWrite(t *testing.T) {
	if which, err := strconv.Atoi(os.Getenv(killedFormat)); err == nil {
		writeForEver(t, which, os.Getenv(killedPath))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range formats(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, f.name)
			cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestKilledInMidWrite$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", killedFormat, i), killedPath+"="+path)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			lines := bufio.NewScanner(out)
			for lines.Scan() && lines.Text() != "ready" {
				fmt.Fprintln(&said, lines.Text())
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
				t.Fatalf("it was not killed: %v\n%s", err, said.String())
			}

			left, unread := path+".partial", path+".partial"
			if f.name == "backup" {
				all, err := filepath.Glob(filepath.Join(path, ".incomplete-*"))
				if err != nil || len(all) != 1 {
					t.Fatalf("%q, %v", all, err)
				}
				left, unread = all[0], path
			} else if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("what was killed has its final name: %v", err)
			}
			if _, err := os.Lstat(left); err != nil {
				t.Errorf("nothing is left: %v", err)
			}
			for _, name := range []string{path, unread, left} {
				src, err := f.src(name)
				if err == nil {
					_, err = filetest.ReadAll(t, src, 64<<10)
				}
				if code := pump.ExitCode(err, 0); code != 1 && code != 2 {
					t.Errorf("%s: reading it exits with %d: %v", name, code, err)
				}
			}

			sink, err := f.sink(path)
			if err != nil {
				t.Fatal(err)
			}
			items := []pump.Item{{Key: []byte("new"), Value: []byte("1"), VBucket: pump.NoVBucket}}
			if report, err := filetest.WriteAll(t, sink, items); err != nil || report.Done != 1 {
				t.Fatalf("the next run: %v", err)
			}
			src, err := f.src(path)
			if err != nil {
				t.Fatal(err)
			}
			again, err := filetest.ReadAll(t, src, 64<<10)
			if err != nil || len(again) != 1 || string(again[0].Key) != "new" {
				t.Errorf("the next run wrote %d items, %v", len(again), err)
			}
			if _, err := os.Lstat(left); (err == nil) != (f.name == "backup") {
				t.Errorf("what was left, after the next run: %v", err)
			}
		})
	}
}
