// Command cbtransfer-webhook is cbtransfer with one more sink.
package main

import (
	"context"
	"log"
	"os"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"

	"example.com/cbtransfer-webhook/webhook"
)

func main() {
	registry, err := plugins.Transfer()
	if err == nil {
		err = pump.RegisterSink(registry, webhook.Plugin())
	}
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(cli.Transfer(context.Background(), registry, cli.OS()))
}
