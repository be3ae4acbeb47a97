package cli

import (
	"runtime/debug"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	was := debug.SetMemoryLimit(-1)
	for _, c := range []struct {
		name string
		own  bool
		want int64
	}{{"by the memory of the run", false, 3*(32<<20) + 64<<20 + 2*(8<<20)}, {"GOMEMLIMIT counts", true, was}} {
		p := &Process{LookupEnv: func(name string) (string, bool) { return "1GiB", c.own && name == "GOMEMLIMIT" }}
		restore := memoryLimit(p, 32<<20, 8<<20)
		if got := debug.SetMemoryLimit(-1); got != c.want {
			t.Errorf("%s: limit %d, want %d", c.name, got, c.want)
		}
		if restore(); debug.SetMemoryLimit(-1) != was {
			t.Errorf("%s: it was not taken back", c.name)
		}
	}
}
