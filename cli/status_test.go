package cli_test

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cbpump/cbpump/cli"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// buffer is a writer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// SIGUSR1 says what is going on, as often as one asks, and stops nothing.
func TestStatusSignal(t *testing.T) {
	g, signals := newGate(), make(chan os.Signal)
	var out, said buffer
	p := &cli.Process{Name: "cbtransfer", Args: []string{"--silent", "--limit-items", "1000000", "gen:?max-items=500&streams=2", "gate:"},
		Stdout: &out, Stderr: &said, Signals: signals}
	go func() {
		<-g.writing
		signals <- syscall.SIGUSR1
		signals <- syscall.SIGUSR1
		signals <- syscall.SIGUSR1 // taken only after the second was answered
		close(g.pass)
	}()
	code := cli.Transfer(context.Background(), g.registry(t), p)
	text := said.String()
	if n := strings.Count(text, "cbtransfer: status: after "); n < 2 {
		t.Errorf("%d answers, want 2 at least:\n%s", n, text)
	}
	for _, want := range []string{`\d+ read, [1-9]\d* without a final verdict; .* of \d\S* MB of memory in flight; at most 1,000,000 items/s`,
		`\n  streams: .*(reading|complete)`, `\n    gen:\S*: (reading|complete), \d+ batch(es)? not confirmed`, `\n  lane 0: \d+ queued, [1-9]\d* being written`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("the status lacks %s:\n%s", want, text)
		}
	}
	if code != 0 {
		t.Errorf("asking disturbed the run: exit code %d: %s", code, text)
	}
}

// A comparison says what it reads of either side.
func TestStatusSignalWhileComparing(t *testing.T) {
	g, signals := newGate(), make(chan os.Signal)
	registry := g.registry(t)
	items := []pump.Item{{Op: pump.Mutation, Key: []byte("a"), Value: []byte("1"), VBucket: 5}, {Op: pump.Mutation, Key: []byte("b"), Value: []byte("2"), VBucket: 5}}
	begun := make(chan struct{}, 4)
	if err := pump.RegisterSource(registry, pump.SourcePlugin[struct{}]{Schemes: []string{"gate"},
		New: func(context.Context, pump.Target, struct{}) (pump.Source, error) {
			return &pumptest.MemSource{Parts: [][]pump.Item{items}, BatchSize: 1, Fail: func(_, given int) error {
				if given == 1 { // one item was read, the other waits
					begun <- struct{}{}
					<-g.pass
				}
				return nil
			}}, nil
		}}); err != nil {
		t.Fatal(err)
	}
	var out, said buffer
	p := &cli.Process{Name: "cbtransfer", Args: []string{"--silent", "compare", "gate:", "gate:"}, Stdout: &out, Stderr: &said, Signals: signals}
	go func() {
		<-begun
		<-begun // both sides are being read
		signals <- syscall.SIGUSR1
		signals <- syscall.SIGUSR1 // taken only after the first was answered
		close(g.pass)
	}()
	code := cli.Transfer(context.Background(), registry, p)
	if code != 0 {
		t.Errorf("exit code %d: %s", code, said.String())
	}
	if want := `cbtransfer: status: comparing \(full\)\n  source after .*\n(    .*\n)+  destination after .*\n    1 read,.*\n    streams: 1 reading`; !regexp.MustCompile(want).MatchString(said.String()) {
		t.Errorf("the status lacks %s:\n%s", want, said.String())
	}
}
