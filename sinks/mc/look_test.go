package mc

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/pump"
)

// find asks for keys and returns what was found, by index.
func find(l pump.Lookup, keys ...string) (map[int]pump.Item, error) {
	items := make([]pump.Item, len(keys))
	for i, k := range keys {
		items[i].Key = []byte(k)
	}
	got := map[int]pump.Item{}
	err := l.Find(context.Background(), items, func(i int, have *pump.Item) {
		own := *have
		own.Value = bytes.Clone(have.Value)
		got[i] = own
	})
	return got, err
}

// TestLook: what a real memcached holds of keys, whatever keys are asked for; one
// that was started anew in between is an error.
func TestLook(t *testing.T) {
	s := startMemcached(t)
	sink, err := New(Config{Addr: s.addr})
	if err != nil {
		t.Fatal(err)
	}
	lane := sinktest.Lane(t, sink)
	big := bytes.Repeat([]byte("b"), 1<<20-200)
	b := sinktest.Write(t, lane, pump.Item{Key: []byte("a"), Value: []byte("1"), Flags: 0xdeadbeef}, pump.Item{Key: []byte("empty")},
		pump.Item{Key: []byte("big"), Value: big}, pump.Item{Key: []byte("\xff\x00 "), Value: []byte("x")})
	sinktest.Verdicts(t, b, pump.Done, pump.Done, pump.Done, pump.Done)
	look, err := sink.Look(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	got, err := find(look, "a", "none", "empty", strings.Repeat("k", 251), "", "big", "\xff\x00 ", "a")
	if err != nil || len(got) != 5 || string(got[0].Value) != "1" || got[0].Flags != 0xdeadbeef || len(got[2].Value) != 0 || !bytes.Equal(got[5].Value, big) || string(got[7].Value) != "1" {
		t.Errorf("%d found, %v", len(got), err)
	}
	// More answers than sockets hold while it is still asked.
	var keys []string
	for i := range 20000 {
		keys = append(keys, []string{"a", "big", "none"}[min(2, i%97)])
	}
	if got, err := find(look, keys...); err != nil || len(got) != 414 {
		t.Errorf("%d found, %v", len(got), err)
	}
	s.kill()
	if _, err := find(look, "a"); !pump.IsRetryable(err) {
		t.Errorf("killed: %v", err)
	}
	if _, err := find(look, "a"); !pump.IsRetryable(err) || pump.ClassOf(err) != pump.ClassUnreachable {
		t.Errorf("still dead: %v", err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	// What it said before is worth nothing any more.
	if got, err := find(look, "a"); err == nil || len(got) != 0 || pump.IsRetryable(err) {
		t.Errorf("started anew, and empty: %v, %v", got, err)
	}
	if err := look.Close(); err != nil {
		t.Error(err)
	}
}

// TestLookBadAnswers: what is no answer to the question is never taken for one.
func TestLookBadAnswers(t *testing.T) {
	for _, c := range []struct {
		answer    string
		retryable bool
	}{
		{"\x81\x09\x00\x00\x00\x00\x00\x86%s", true},  // try later
		{"\x81\x09\x00\x00\x00\x00\x00\x81%s", false}, // unknown command
		{"\x81\x09\x00\x00\x00\x00\x00\x00%s", false}, // found, and no flags
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			buf := make([]byte, 4096)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				var out bytes.Buffer
				for p := buf[:n]; len(p) >= 24; p = p[24+int(p[11]):] {
					if p[1] == 0x0a {
						out.WriteString("\x81\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + string(p[12:16]) + "\x00\x00\x00\x00\x00\x00\x00\x00")
						continue
					}
					fmt.Fprintf(&out, c.answer, "\x00\x00\x00\x00"+string(p[12:16])+"\x00\x00\x00\x00\x00\x00\x00\x00")
				}
				if _, err := conn.Write(out.Bytes()); err != nil {
					return
				}
			}
		}()
		sink, err := New(Config{Addr: l.Addr().String(), Options: Options{Timeout: 5 * time.Second}})
		if err != nil {
			t.Fatal(err)
		}
		look, err := sink.Look(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		got, err := find(look, "a")
		if err == nil || len(got) != 0 || pump.IsRetryable(err) != c.retryable {
			t.Errorf("%q: %v, %v", c.answer, got, err)
		}
		if err := look.Close(); err != nil {
			t.Error(err)
		}
		l.Close()
		<-done
	}
}
