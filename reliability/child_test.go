package reliability

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	sinkfile "github.com/cbpump/cbpump/sinks/file"
	sinkjsonl "github.com/cbpump/cbpump/sinks/file/jsonl"
	"github.com/cbpump/cbpump/sinks/mc"
	"github.com/cbpump/cbpump/sources/auto"
	sourcefile "github.com/cbpump/cbpump/sources/file"
	sourcejsonl "github.com/cbpump/cbpump/sources/file/jsonl"
	"github.com/cbpump/cbpump/sources/gen"
)

// childEnv makes this test binary one of the commands, with orders in JSON.
const childEnv = "CBPUMP_RELIABILITY_CHILD"

// orders say what befalls a child.
type orders struct {
	Recovery bool             `json:",omitempty"` // be cbrecovery
	Strike   *pumptest.Strike `json:",omitempty"` // it is killed there
	After    time.Duration    `json:",omitempty"` // it is killed so long after it opens a stream, if not 0
	Die      time.Duration    `json:",omitempty"` // it is killed so long after it began, if not 0
	FileSize uint64           `json:",omitempty"` // no file may grow beyond that many bytes, if not 0
}

func TestMain(m *testing.M) {
	if text, is := os.LookupEnv(childEnv); is {
		os.Exit(child(text))
	}
	goleak.VerifyTestMain(m)
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func child(text string) int {
	var o orders
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	if o.FileSize > 0 {
		signal.Ignore(syscall.SIGXFSZ) // so that the write fails in its place
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: o.FileSize, Max: o.FileSize}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 99
		}
	}
	if o.Die > 0 {
		time.AfterFunc(o.Die, die)
	}
	p := cli.OS()
	if o.Recovery {
		p.Name = "cbrecovery"
		r, err := plugins.Recovery()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 99
		}
		return cli.Recovery(context.Background(), r, p)
	}
	p.Name = "cbtransfer"
	chaos := &pumptest.Chaos{OnStrike: func(pumptest.Strike) { die() }}
	if o.Strike != nil {
		chaos.Plan = pumptest.Exactly(*o.Strike)
	}
	if o.After > 0 {
		var once sync.Once
		chaos.Plan = func(c pumptest.Call, _, _ int) (none pumptest.Fault, _ bool) {
			if c == pumptest.CallOpen {
				once.Do(func() { time.AfterFunc(o.After, die) })
			}
			return none, false
		}
	}
	r := &pump.Registry{}
	err := errors.Join(
		pump.RegisterSource(r, wrapSource(auto.Plugin(), chaos)),
		pump.RegisterSource(r, wrapSource(gen.Plugin(), chaos)),
		pump.RegisterSource(r, wrapSource(sourcefile.Plugin(), chaos)),
		pump.RegisterSource(r, wrapSource(sourcejsonl.Plugin(), chaos)),
		pump.RegisterSink(r, wrapSink(mc.Plugin(), chaos)),
		pump.RegisterSink(r, wrapSink(mc.CBPlugin(), chaos)),
		pump.RegisterSink(r, wrapSink(sinkfile.Plugin(), chaos)),
		pump.RegisterSink(r, wrapSink(sinkjsonl.Plugin(), chaos)),
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	return cli.Transfer(context.Background(), r, p)
}

func wrapSource[O any](p pump.SourcePlugin[O], c *pumptest.Chaos) pump.SourcePlugin[O] {
	open := p.New
	p.New = func(ctx context.Context, t pump.Target, o O) (pump.Source, error) {
		s, err := open(ctx, t, o)
		if err != nil {
			return nil, err
		}
		return c.Source(s), nil
	}
	return p
}

func wrapSink[O any](p pump.SinkPlugin[O], c *pumptest.Chaos) pump.SinkPlugin[O] {
	open := p.New
	p.New = func(ctx context.Context, t pump.Target, o O) (pump.Sink, error) {
		s, err := open(ctx, t, o)
		if err != nil {
			return nil, err
		}
		return c.Sink(s), nil
	}
	return p
}

// ended is what became of a child.
type ended struct {
	killed bool
	code   int
	said   string
	result map[string]any // the last line of --json
}

func (e *ended) number(name string) int {
	n, _ := e.result[name].(float64)
	return int(n)
}

// command makes a child that is not started yet.
func command(t *testing.T, o orders, args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], append(args, "--json", "--silent")...)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	return cmd, &out, &said
}

// ending waits for a child that was started.
func ending(t *testing.T, cmd *exec.Cmd, out, said *bytes.Buffer) ended {
	t.Helper()
	_ = cmd.Wait() // the code tells
	e := ended{code: cmd.ProcessState.ExitCode(), said: said.String()}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		e.killed = status.Signal() == syscall.SIGKILL
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	_ = json.Unmarshal([]byte(lines[len(lines)-1]), &e.result) // a killed child leaves none
	return e
}

func runChild(t *testing.T, o orders, args ...string) ended {
	t.Helper()
	cmd, out, said := command(t, o, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return ending(t, cmd, out, said)
}
