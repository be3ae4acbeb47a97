package cli

import (
	"runtime"
	"runtime/debug"
)

// How much garbage there may be, in per cent of what is in use.
const (
	firstGarbage = 400 // before the first collection; the runtime begins with 4 MiB, so it comes at 16 MiB
	usualGarbage = 25
)

// collectEarly has the garbage collected once there is a quarter as much of it as there
// is in use, not as much again. A run makes next to none, so that costs nothing,
// and what it makes while its batches grow does not double its memory. Only the
// first megabytes are not worth it: collecting each time that they grew by half took
// an eighth of a short run's time.
// The environment variable GOGC, as in every Go program, takes precedence.
func (p *Process) collectEarly() {
	if v, _ := p.env("GOGC"); v != "" {
		return
	}
	debug.SetGCPercent(firstGarbage)
	// It is unreachable at once, so the first collection finds it.
	runtime.AddCleanup(&struct{ _ [32]byte }{}, func(percent int) { debug.SetGCPercent(percent) }, usualGarbage)
}
