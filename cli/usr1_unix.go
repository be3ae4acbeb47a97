//go:build unix

package cli

import (
	"os"
	"syscall"
)

// statusSignals ask what the run is doing. They change nothing.
var statusSignals = []os.Signal{syscall.SIGUSR1}
