// Command bench measures how near transfers come to what the destination can
// take, and writes docs/performance.md. See "How it is measured" there.
//
// Every pair of source and sink runs alternately with its limit: a process that
// moves the same bytes, encoded beforehand, and does nothing else. Servers, the
// limit and the pump (the real cbtransfer) are processes of their own, so that
// the CPU time of each is known.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
)

// Exit codes: 0 measured; 1 failed; 2 wrong use.
func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	var err error
	switch {
	case len(args) > 0 && args[0] == modeRaw:
		err = rawMain(ctx, args[1:], in, out)
	case len(args) > 0 && args[0] == modeServe:
		err = serveMain(args[1:], in, out)
	case len(args) > 0 && args[0] == modeDelay:
		err = delayMain(args[1:], in, out)
	default:
		err = benchMain(ctx, args, out, errOut)
	}
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(errOut, "bench:", err)
		return 1
	}
	return 0
}

// How the program calls itself.
const (
	modeRaw   = "raw"   // a limit
	modeServe = "serve" // a source or destination cluster
	modeDelay = "delay" // a proxy that is far away
)
