package cli_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"
)

// leakChecked fails the run when a test leaves a goroutine behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"cbtransfer": command(plugins.Transfer, cli.Transfer),
		"cbrecovery": command(plugins.Recovery, cli.Recovery),
		"showtitle":  showTitle,
	})
}

// command is the main function of a command.
func command(registry func() (*pump.Registry, error), run func(context.Context, *pump.Registry, *cli.Process) int) func() {
	return func() {
		r, err := registry()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(run(context.Background(), r, cli.OS()))
	}
}
