package cli

import (
	"runtime/debug"

	"github.com/cbpump/cbpump/pump"
)

// memoryLimit has the garbage collector work harder before the process becomes much
// larger than what the run keeps in flight: documents of many megabytes leave
// garbage as large. It is a soft limit, and GOMEMLIMIT in the environment overrules
// it. restore takes it back.
func memoryLimit(p *Process, inFlight pump.Size, beside int64) (restore func()) {
	if _, own := p.env("GOMEMLIMIT"); own {
		return func() {}
	}
	const copies, base = 3, 64 << 20 // an item's bytes, what is sent of it, and garbage
	was := debug.SetMemoryLimit(copies*int64(inFlight) + base + 2*beside)
	return func() { debug.SetMemoryLimit(was) }
}
