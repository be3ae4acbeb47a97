package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/realmc"
)

// own returns the CPU time that this process has used.
func own(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFiles moves b.N items of 256 bytes into files and out of them; one op is
// one item. Beside the time there is what it cost the processors, which does not
// depend on who else is using them.
func BenchmarkFiles(b *testing.B) {
	for _, kind := range []string{"backup", "x.jsonl", "x.jsonl.zst", "x.csv"} {
		path := filepath.Join(b.TempDir(), kind)
		measure := func(name string, source func(n int) string, sink func(b *testing.B) (string, int)) {
			b.Run(name, func(b *testing.B) {
				from := source(b.N)
				to, server := sink(b)
				var theirs float64
				if server != 0 {
					var err error
					if theirs, err = cpu(server); err != nil {
						b.Fatal(err)
					}
				}
				before := own(b)
				b.ReportAllocs()
				b.ResetTimer()
				r := transferHere(b, from, to)
				b.StopTimer()
				reportRate(b, r.Done)
				b.ReportMetric(float64((own(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
				if server != 0 {
					after, err := cpu(server)
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric((after-theirs)*1e9/float64(b.N), "memcached-cpu-ns/op")
				}
			})
		}
		target := func(b *testing.B) string { return filepath.Join(b.TempDir(), kind) }
		measure("gen to "+kind, gen256, func(b *testing.B) (string, int) { return target(b), 0 })
		fill := func(n int) string {
			into := fmt.Sprintf("%s/%d-%s", filepath.Dir(path), n, filepath.Base(path))
			if matches, _ := filepath.Glob(into); len(matches) == 0 {
				transferHere(b, genSpec(n, 256), into)
			}
			return into
		}
		measure(kind+" to null", fill, func(*testing.B) (string, int) { return "null:", 0 })
		measure(kind+" to memcached", fill, func(b *testing.B) (string, int) {
			mc := realmc.Start(b, "-m", "2048")
			return "memcached://" + mc.Addr, mc.PID()
		})
	}
}

// BenchmarkMemory runs the command with 5 million items, into each format and out of
// it, and fails if it ever has more than 256 MiB of memory.
func BenchmarkMemory(b *testing.B) {
	const items, most = 5_000_000, 256 << 20
	command := filepath.Join(b.TempDir(), "cbtransfer")
	if out, err := exec.CommandContext(b.Context(), "go", "build", "-o", command, "../cmd/cbtransfer").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, kind := range []string{"backup", "x.jsonl", "x.jsonl.zst", "x.jsonl.gz", "x.csv"} {
		b.Run(kind, func(b *testing.B) {
			for range b.N {
				path := filepath.Join(b.TempDir(), kind)
				for _, way := range [][2]string{{genSpec(items, 256), path}, {path, "null:"}} {
					p, err := transfer(b.Context(), command, way[0], way[1])
					if err != nil {
						b.Fatal(err)
					}
					if p.Done != items || p.Peak == 0 || p.Peak > most {
						b.Errorf("%s to %s: %d items done, at most %d MiB of memory", way[0], way[1], p.Done, p.Peak>>20)
					}
					name := "MiB-written"
					if way[0] == path {
						name = "MiB-read"
					}
					b.ReportMetric(float64(p.Peak)/(1<<20), name)
				}
			}
		})
	}
}

func gen256(items int) string { return genSpec(items, 256) }
