//go:build !unix

package cli

// leaveNoCore does nothing where a process cannot forbid it.
func leaveNoCore() {}
