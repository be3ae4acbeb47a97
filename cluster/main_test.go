package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// planted is the password of every test; no error and no log line may hold it.
const planted = "pl4nted/s3cret&<x>"

// wantError checks class, code, text and retryability of an error, and that it
// leaks nothing.
type wantError struct {
	class pump.Class
	code  string
	retry bool
	says  []string // in the error or its hint
}

func (w wantError) check(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want code %s", w.code)
	}
	text := err.Error() + " | " + pump.HintOf(err)
	if got := pump.ClassOf(err); got != w.class {
		t.Errorf("class %d, want %d: %s", got, w.class, text)
	}
	if got := pump.CodeOf(err); got != w.code {
		t.Errorf("code %q, want %q: %s", got, w.code, text)
	}
	if got := pump.IsRetryable(err); got != w.retry {
		t.Errorf("retryable %v, want %v: %s", got, w.retry, text)
	}
	for _, s := range w.says {
		if !strings.Contains(text, s) {
			t.Errorf("%q does not say %q", text, s)
		}
	}
	if errors.Is(err, io.EOF) {
		t.Errorf("%q is io.EOF, which means complete", text)
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		noLeak(t, fmt.Sprintf("%v %+v %#v %s", e, e, e, pump.HintOf(e)))
	}
	for _, r := range text {
		if r < ' ' {
			t.Errorf("control characters in %q", text)
		}
	}
	if len(text) > 1000 {
		t.Errorf("%d bytes of error", len(text))
	}
}

func noLeak(t *testing.T, text string) {
	t.Helper()
	for _, s := range []string{planted, "pl4nted", "s3cret", "cGw0bnRlZ"} {
		if strings.Contains(text, s) {
			t.Errorf("leaks the password (%q): %s", s, text)
		}
	}
}

// testLog is a logger at its most talkative whose output is checked at the end.
func testLog(t *testing.T) hclog.Logger {
	var mu sync.Mutex
	var out bytes.Buffer
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		noLeak(t, out.String())
	})
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return out.Write(p)
	})})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// fakeClock is a clock that only pauses move.
type fakeClock struct {
	mu     sync.Mutex
	at     time.Time
	pauses []time.Duration
	each   func(n int) // called in the n-th pause, from 1
}

func (f *fakeClock) clock() clock {
	return clock{
		now: func() time.Time {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.at
		},
		pause: func(ctx context.Context, d time.Duration) error {
			f.mu.Lock()
			f.at = f.at.Add(d)
			f.pauses = append(f.pauses, d)
			n, each := len(f.pauses), f.each
			f.mu.Unlock()
			if each != nil {
				each(n)
			}
			return ctx.Err()
		},
	}
}

// serve listens on a free port and gives every connection to handle, which owns
// it. Everything is over when the test is.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, nc)
			mu.Unlock()
			wg.Go(func() {
				defer nc.Close()
				handle(nc)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, nc := range open {
			_ = nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// fakeKV is a data node that answers each request with what answer returns; nil
// closes the connection.
func fakeKV(t *testing.T, answer func(f mcbp.Frame) []byte) string {
	return serve(t, func(nc net.Conn) {
		r := mcbp.NewReader(nc)
		for {
			f, err := r.Next()
			if err != nil {
				return
			}
			reply := answer(f)
			if reply == nil {
				return
			}
			if _, err := nc.Write(reply); err != nil {
				return
			}
		}
	})
}

func reply(f mcbp.Frame, status mcbp.Status, extras, key, value string) []byte {
	return mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque, VBucket: uint16(status)},
		[]byte(extras), []byte(key), []byte(value))
}

// closedPort returns an address where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func mustBase(t *testing.T) *url.URL {
	t.Helper()
	base, _, err := parseAddress("http://127.0.0.1:8091")
	if err != nil {
		t.Fatal(err)
	}
	return base
}
