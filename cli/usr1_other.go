//go:build !unix

package cli

import "os"

// statusSignals are none where there is no SIGUSR1.
var statusSignals []os.Signal
