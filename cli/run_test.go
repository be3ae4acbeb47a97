package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

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

// terminal opens a pseudo-terminal.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 40})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close(); slave.Close() })
	return master, slave
}

// shown collects what a terminal gets until its last writer is gone.
func shown(master *os.File) (text func() string) {
	var b bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&b, master) // ends with EIO when the other side is closed
	}()
	return func() string { <-done; return b.String() }
}

func TestProgressOnATerminal(t *testing.T) {
	master, slave := terminal(t)
	text := shown(master)
	p := &cli.Process{Name: "cbtransfer", Args: []string{"gen:?max-items=1000", "null:"}, Stdout: io.Discard, Stderr: slave, Signals: make(chan os.Signal)}
	all, err := plugins.Transfer()
	if err != nil {
		t.Fatal(err)
	}
	if code := cli.Transfer(context.Background(), all, p); code != 0 {
		t.Errorf("exit code %d", code)
	}
	slave.Close()
	got := text()
	live := strings.Index(got, "\r\x1b[K100 %  1,000 of 1,000 items")
	gone := strings.LastIndex(got, "\r\x1b[K")
	table := strings.Index(got, "  read ")
	if live < 0 || gone <= live || table < gone {
		t.Errorf("the live line is not shown and taken away before the table:\n%q", got)
	}
	for _, line := range strings.Split(got[live:gone], "\r") {
		if line = strings.TrimPrefix(line, "\x1b[K"); len(line) >= 40 {
			t.Errorf("the live line is wider than the terminal: %q", line)
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

// waitFor is a writer that closes a channel when a text was written.
type waitFor struct {
	text string
	seen chan struct{}
	once sync.Once
	all  bytes.Buffer
}

func (w *waitFor) Write(p []byte) (int, error) {
	w.all.Write(p)
	if strings.Contains(w.all.String(), w.text) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

func TestPasswordPrompt(t *testing.T) {
	for _, c := range []struct {
		name, keys string
		code       int
		says       string
	}{
		{"Enter", "s3cret\r", 1, "bob and 6 characters arrived"},
		{"line feed", "s3cret\n", 1, "bob and 6 characters arrived"},
		{"Ctrl-C", "s3c\x03", 130, "no password was entered"},
		{"Ctrl-D", "\x04", 130, "no password was entered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			master, slave := terminal(t)
			before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			r := &pump.Registry{}
			err = pump.RegisterSource(r, pump.SourcePlugin[struct{}]{
				Schemes: []string{"ask"},
				New: func(_ context.Context, t pump.Target, _ struct{}) (pump.Source, error) {
					return nil, fmt.Errorf("%s and %d characters arrived", t.Username, len(t.Password))
				},
			})
			if err = errors.Join(err, pump.RegisterSink(r, null.Plugin())); err != nil {
				t.Fatal(err)
			}
			said := &waitFor{text: "Password of bob at the source: ", seen: make(chan struct{})}
			go func() {
				<-said.seen
				_, _ = master.WriteString(c.keys)
			}()
			p := &cli.Process{Name: "cbtransfer", Args: []string{"ask:", "null:", "-u", "bob"}, Stdin: slave, Stdout: io.Discard, Stderr: said, Signals: make(chan os.Signal)}
			if code := cli.Transfer(context.Background(), r, p); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if text := said.all.String(); !strings.Contains(text, c.says) || strings.Contains(text, "s3c") {
				t.Errorf("said: %s", text)
			}
			after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			if err != nil || *after != *before {
				t.Errorf("the terminal is not as it was: %v", err)
			}
		})
	}
}
