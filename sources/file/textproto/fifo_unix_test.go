//go:build unix

package textproto_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

// TestItemsComeAsTheyArrive reads a pipe whose writer waits for each item to be
// seen before it sends the next.
func TestItemsComeAsTheyArrive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	w := make(chan *os.File, 1)
	go func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
		}
		w <- f
	}()
	streams, err := open(t, path, "plain").Streams(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st := streams[0]
	if err := st.Open(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	f := <-w
	for i, text := range []string{"set a 0 0 1\r\nx\r\n", "set b 0 0 600000\r\n" + strings.Repeat("\n", 600000) + "\r\n", "delete a\r\n"} {
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(f, text)
			sent <- err
		}()
		b := pump.NewBatch(64 << 10)
		if err := st.Read(t.Context(), b); err != nil || b.Len() != 1 {
			t.Fatalf("command %d: %d items, %v", i, b.Len(), err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	// A silent pipe does not hold up the end of the run.
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- st.Read(ctx, pump.NewBatch(1000)) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled reading of a silent pipe gives %v", err)
	}
	if err := errors.Join(st.Close(), f.Close()); err != nil {
		t.Error(err)
	}
}
