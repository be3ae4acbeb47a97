package cli

import "runtime/debug"

// collectEarly has the garbage collected once there is half as much of it as there
// is in use, not as much again. A run makes next to none, so that costs nothing,
// and what it makes while its batches grow does not double its memory.
// The environment variable GOGC, as in every Go program, takes precedence.
func (p *Process) collectEarly() {
	if v, _ := p.env("GOGC"); v == "" {
		debug.SetGCPercent(50)
	}
}
