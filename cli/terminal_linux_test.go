package cli_test

import (
	"bytes"
	"context"
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
		{"Ctrl-D", "\x04", 2, "cbtransfer: no password was given\n"},
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

// Two passwords that arrive at once are one for each question.
func TestTwoPasswordsTypedAtOnce(t *testing.T) {
	master, slave := terminal(t)
	r := &pump.Registry{}
	err := pump.RegisterSource(r, pump.SourcePlugin[struct{}]{
		Schemes: []string{"ask"},
		New:     func(context.Context, pump.Target, struct{}) (pump.Source, error) { return empty{}, nil },
	})
	err = errors.Join(err, pump.RegisterSink(r, pump.SinkPlugin[struct{}]{
		Schemes: []string{"tell"},
		New: func(_ context.Context, t pump.Target, _ struct{}) (pump.Sink, error) {
			return nil, fmt.Errorf("%s and %d characters arrived", t.Username, len(t.Password))
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	said := &waitFor{text: "Password of bob at the source: ", seen: make(chan struct{})}
	go func() {
		<-said.seen
		_, _ = master.WriteString("s3cret\rs3cond!\r")
	}()
	p := &cli.Process{
		Name: "cbtransfer", Args: []string{"ask:", "tell:", "-u", "bob", "-U", "eve"},
		Stdin: slave, Stdout: io.Discard, Stderr: said, Signals: make(chan os.Signal),
	}
	if code := cli.Transfer(context.Background(), r, p); code != 1 || !strings.Contains(said.all.String(), "eve and 7 characters arrived") {
		t.Errorf("exit code %d, said: %s", code, said.all.String())
	}
}

// empty is a source without streams.
type empty struct{}

func (empty) Streams(context.Context) ([]pump.Stream, error) { return nil, nil }
func (empty) Close() error                                   { return nil }
