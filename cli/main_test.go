package cli_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/null"
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
		"panicking":  command(panicking, cli.Transfer),
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

// panicking is a registry whose only source panics with all that it was given at
// hand.
func panicking() (*pump.Registry, error) {
	r := &pump.Registry{}
	err := pump.RegisterSource(r, pump.SourcePlugin[struct{}]{
		Schemes: []string{"panic"},
		New: func(_ context.Context, t pump.Target, _ struct{}) (pump.Source, error) {
			var none *pump.Target
			if none.Password == t.Password { // dereferences nil
				return nil, nil
			}
			return nil, fmt.Errorf("not reached")
		},
	})
	return r, errors.Join(err, pump.RegisterSink(r, null.Plugin()))
}
