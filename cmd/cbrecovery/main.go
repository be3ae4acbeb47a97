// Command cbrecovery gets back the vbuckets that a cluster lost, from another
// cluster that still holds them. See docs/cbrecovery.md and docs/recovery.md.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/plugins"
)

func main() {
	registry, err := plugins.Recovery()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cli.Recovery(context.Background(), registry, cli.OS()))
}
