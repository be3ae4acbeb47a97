package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/null"
)

// gate is a sink whose lane waits, with its first item, until it is let go. A
// test knows by it that a transfer is under way.
type gate struct {
	writing chan struct{} // closed when the first Write has begun
	pass    chan struct{} // closed to let Write go on
	once    sync.Once
}

func newGate() *gate { return &gate{writing: make(chan struct{}), pass: make(chan struct{})} }

func (g *gate) Lanes(context.Context, int) ([]pump.Lane, error) { return []pump.Lane{gateLane{g}}, nil }
func (g *gate) Close() error                                    { return nil }

type gateLane struct{ *gate }

func (g gateLane) Write(ctx context.Context, b *pump.Batch) error {
	g.once.Do(func() { close(g.writing) })
	select {
	case <-g.pass:
		b.SettleRest(pump.Done, nil)
	case <-ctx.Done():
		b.SettleRest(pump.Retry, ctx.Err())
	}
	return nil
}

// registry has the built-in plugins and the gate.
func (g *gate) registry(t *testing.T) *pump.Registry {
	t.Helper()
	r, err := plugins.Transfer()
	if err != nil {
		t.Fatal(err)
	}
	err = pump.RegisterSink(r, pump.SinkPlugin[struct{}]{
		Schemes: []string{"gate"},
		New:     func(context.Context, pump.Target, struct{}) (pump.Sink, error) { return g, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const endless = "gen:?max-items=0&streams=1"

func TestFirstSignalDrains(t *testing.T) {
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		t.Run(sig.String(), func(t *testing.T) {
			g, signals := newGate(), make(chan os.Signal)
			var out, said bytes.Buffer
			p := &cli.Process{Name: "cbtransfer", Args: []string{"--json", endless, "gate:"}, Stdout: &out, Stderr: &said, Signals: signals}
			go func() {
				<-g.writing
				signals <- sig
				close(g.pass)
			}()
			if got := cli.Transfer(context.Background(), g.registry(t), p); got != code {
				t.Errorf("exit code %d, want %d\n%s", got, code, said.String())
			}
			r := lastLine(t, &out)
			if r["type"] != "result" || r["pending"] != 0.0 || r["done"] == 0.0 || r["done"] != r["read"] {
				t.Errorf("what was read was not finished: %v", r)
			}
			if !strings.Contains(said.String(), "stopping; what was read is being finished") || !strings.Contains(said.String(), "hint: ") {
				t.Errorf("said: %s", said.String())
			}
		})
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	g, signals := newGate(), make(chan os.Signal)
	var out, said bytes.Buffer
	p := &cli.Process{Name: "cbtransfer", Args: []string{"--json", endless, "gate:"}, Stdout: &out, Stderr: &said, Signals: signals}
	go func() {
		<-g.writing
		signals <- syscall.SIGINT
		signals <- syscall.SIGTERM
	}()
	if got := cli.Transfer(context.Background(), g.registry(t), p); got != 130 {
		t.Errorf("exit code %d, want that of the first signal\n%s", got, said.String())
	}
	if r := lastLine(t, &out); r["pending"] == 0.0 {
		t.Errorf("nothing is left, so nothing was stopped: %v", r)
	}
	if !strings.Contains(said.String(), "SIGTERM again: stopping at once") {
		t.Errorf("said: %s", said.String())
	}
}

func lastLine(t *testing.T, out *bytes.Buffer) map[string]any {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var doc map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &doc); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return doc
}

// brokenPipe takes no line.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// When nobody reads the JSON lines any more, the transfer drains and ends quietly.
func TestClosedStdoutEndsQuietly(t *testing.T) {
	var said bytes.Buffer
	p := &cli.Process{Name: "cbtransfer", Args: []string{"--json", endless, "null:"}, Stdout: brokenPipe{}, Stderr: &said, Signals: make(chan os.Signal)}
	all, err := plugins.Transfer()
	if err != nil {
		t.Fatal(err)
	}
	if got := cli.Transfer(context.Background(), all, p); got != 141 {
		t.Errorf("exit code %d, want 128 + SIGPIPE", got)
	}
	if said.Len() > 0 {
		t.Errorf("said: %s", said.String())
	}
}

// fullDisk takes so many bytes.
type fullDisk struct{ room int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.room -= len(p); d.room < 0 {
		return 0, &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
	}
	return len(p), nil
}

// What is printed into a full disk is not a success, whatever is printed; the
// transfer itself goes on to its end.
func TestFullStdoutFails(t *testing.T) {
	all, err := plugins.Transfer()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		room int
		code int
	}{
		{[]string{"--json", "gen:?max-items=3", "null:"}, 0, 1},
		{[]string{"--json", "gen:?max-items=3", "null:"}, 400, 1},
		{[]string{"--json", "gen:?max-items=3", "null:"}, 1 << 20, 0},
		{[]string{"--json", "nosuch:", "null:"}, 0, 2},
		{[]string{"--list-plugins"}, 0, 1},
		{[]string{"--list-plugins", "--json"}, 0, 1},
		{[]string{"--help"}, 0, 1},
		{[]string{"--version"}, 0, 1},
	} {
		var said bytes.Buffer
		p := &cli.Process{Name: "cbtransfer", Args: c.args, Stdout: &fullDisk{c.room}, Stderr: &said, Signals: make(chan os.Signal)}
		if got := cli.Transfer(context.Background(), all, p); got != c.code {
			t.Errorf("%v with room for %d bytes: exit code %d, want %d", c.args, c.room, got, c.code)
		}
		if full := strings.Contains(said.String(), "cbtransfer: write to standard output: /dev/stdout: no space left on device"); full != (c.code != 0) {
			t.Errorf("%v said: %s", c.args, said.String())
		}
	}
}

// titleOptions are those of a source that only tells its process title.
type titleOptions struct {
	Token string `opt:"token" secret:"true" help:"a secret"`
	Open  string `opt:"open" help:"no secret"`
}

// showTitle is a main function that prints the process title from inside a
// transfer, and that the secrets arrived all the same.
func showTitle() {
	r := &pump.Registry{}
	err := pump.RegisterSource(r, pump.SourcePlugin[titleOptions]{
		Schemes: []string{"title"},
		New: func(_ context.Context, t pump.Target, o titleOptions) (pump.Source, error) {
			title, err := os.ReadFile("/proc/self/cmdline")
			if err != nil {
				return nil, err
			}
			fmt.Println("title:", strings.ReplaceAll(string(title), "\x00", " "))
			fmt.Println("arrived:", t.Username, len(t.Password), len(o.Token), o.Open)
			return nil, errors.New("this source cannot be opened")
		},
	})
	if err = errors.Join(err, pump.RegisterSink(r, null.Plugin())); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cli.Transfer(context.Background(), r, cli.OS()))
}
