// Command cbtransfer copies items from any source to any destination. See
// docs/cbtransfer.md.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/plugins"
)

func main() {
	registry, err := plugins.Transfer()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cli.Transfer(context.Background(), registry, cli.OS()))
}
