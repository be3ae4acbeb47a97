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
	for _, want := range []string{`\d+ read, [1-9]\d* without a final verdict; .* of 6.3 MB of memory in flight; at most 1,000,000 items/s`,
		`\n  streams: .*(reading|complete)`, `\n    gen:\S*: (reading|complete), \d+ batch(es)? not confirmed`, `\n  lane 0: \d+ queued, [1-9]\d* being written`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("the status lacks %s:\n%s", want, text)
		}
	}
	if code != 0 {
		t.Errorf("asking disturbed the run: exit code %d: %s", code, text)
	}
}
