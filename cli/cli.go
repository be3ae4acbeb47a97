// Package cli is the command line that cbtransfer, cbrecovery and anybody's own
// copy of them share: flags, credentials, progress, signals and exit codes.
//
// A command of one's own takes ten lines: take the built-in registry, add to it,
// and hand it to Transfer.
//
//	func main() {
//		registry, err := plugins.Transfer()
//		if err == nil {
//			err = pump.RegisterSink(registry, mySink)
//		}
//		if err != nil {
//			fmt.Fprintln(os.Stderr, err)
//			os.Exit(1)
//		}
//		os.Exit(cli.Transfer(context.Background(), registry, cli.OS()))
//	}
package cli

import (
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// Process is what a command uses of the world it runs in.
type Process struct {
	Name      string   // how the command is called, for messages: "cbtransfer"
	Args      []string // what follows the name
	Stdin     io.Reader
	Stdout    io.Writer // --json, --help, --version, --list-plugins; nothing else
	Stderr    io.Writer // everything that is said to a person
	LookupEnv func(name string) (string, bool)
	// Signals delivers SIGINT, SIGTERM and the like. Nil: the command asks the
	// operating system for them while it runs.
	Signals <-chan os.Signal
	// Hide is told the secrets that Args held, once they are read, so that it can
	// take them out of the process title. May be nil.
	Hide func(secrets []string)
}

// OS returns the process itself. It copies the arguments: secrets among them are
// overwritten where the process title shows them, and a crash leaves no core
// (invariant 9). It also has the process take less memory.
func OS() *Process {
	leaveNoCore()
	p := &Process{
		Name: "cbpump", Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		LookupEnv: os.LookupEnv, Hide: func(secrets []string) { hideArgs(secrets); hideEnv(secretEnv()) },
	}
	for i, a := range os.Args {
		if a = strings.Clone(a); i == 0 {
			p.Name = filepath.Base(a)
		} else {
			p.Args = append(p.Args, a)
		}
	}
	p.collectEarly()
	return p
}

func (p *Process) env(name string) (string, bool) {
	if p.LookupEnv == nil {
		return "", false
	}
	return p.LookupEnv(name)
}

func (p *Process) hide(secrets []string) {
	if p.Hide != nil {
		p.Hide(secrets)
	}
}

// version returns what --version prints: the version of the main module and the
// revision it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" {
		v = "(devel)"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && !strings.Contains(v, s.Value[:min(12, len(s.Value))]) {
			v += " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return v + " " + info.GoVersion
}
