package mc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

func TestSinkConformance(t *testing.T) {
	var srv *server
	pumptest.TestSink(t, pumptest.SinkSuite{
		New: func(t *testing.T) pump.Sink {
			srv = startMemcached(t, "-m", "256")
			return openSink(t, srv.addr, Options{})
		},
		Read: func(t *testing.T) map[string]pump.Item { return dump(t, srv) },
	})
}

// dump reads all that a memcached holds. Its list of keys is text protocol.
func dump(t *testing.T, s *server) map[string]pump.Item {
	t.Helper()
	out := map[string]pump.Item{}
	c := s.client(t)
	for _, key := range textKeys(t, s.addr) {
		if flags, value, ok := get(t, c, key); ok {
			out[key] = pump.Item{Key: []byte(key), Value: []byte(value), Flags: flags}
		}
	}
	return out
}

func TestSinkStores(t *testing.T) {
	srv := startMemcached(t)
	l := sinktest.Lane(t, openSink(t, srv.addr, Options{}))
	it := item("a\x00b", "value")
	it.Flags = 0xdeadbeef
	b := sinktest.Write(t, l, it, item("gone", "x"), item("empty", ""))
	sinktest.Verdicts(t, b, pump.Done, pump.Done, pump.Done)
	gone, never := item("gone", ""), item("never", "")
	gone.Op, never.Op = pump.Deletion, pump.Expiration
	sinktest.Verdicts(t, sinktest.Write(t, l, gone, never), pump.Done, pump.Done)
	c := srv.client(t)
	if flags, v, ok := get(t, c, "a\x00b"); !ok || v != "value" || flags != 0xdeadbeef {
		t.Errorf("got %q %x %v", v, flags, ok)
	}
	if _, v, ok := get(t, c, "empty"); !ok || v != "" {
		t.Errorf("empty: %q %v", v, ok)
	}
	if _, _, ok := get(t, c, "gone"); ok {
		t.Error("a deletion left its key")
	}
}

func TestSinkExpiry(t *testing.T) {
	srv := startMemcached(t)
	l := sinktest.Lane(t, openSink(t, srv.addr, Options{}))
	now := uint32(time.Now().Unix())
	for name, tc := range map[string]struct {
		expiry uint32
		lives  bool
	}{
		"never":         {0, true},
		"1970":          {100, false},
		"30 days":       {relativeLimit, false},
		"30 days and 1": {relativeLimit + 1, false},
		"last year":     {now - 365*86400, false},
		"next hour":     {now + 3600, true},
	} {
		it := item(name, "v")
		it.Expiry = tc.expiry
		sinktest.Verdicts(t, sinktest.Write(t, l, item(name, "before")), pump.Done)
		sinktest.Verdicts(t, sinktest.Write(t, l, it), pump.Done)
		if _, _, ok := get(t, srv.client(t), name); ok != tc.lives {
			t.Errorf("%s: lives = %v, want %v", name, ok, tc.lives)
		}
	}
}

func TestSinkAddAndGet(t *testing.T) {
	srv := startMemcached(t)
	add := sinktest.Lane(t, openSink(t, srv.addr, Options{Operation: "add"}))
	sinktest.Verdicts(t, sinktest.Write(t, add, item("k", "first")), pump.Done)
	del := item("k", "")
	del.Op = pump.Deletion
	b := sinktest.Write(t, add, item("k", "second"), item("new", "v"), del)
	sinktest.Verdicts(t, b, pump.Skipped, pump.Done, pump.Skipped)
	if pump.CodeOf(b.Cause(0)) != "exists" {
		t.Errorf("cause: %v", b.Cause(0))
	}
	if _, v, _ := get(t, srv.client(t), "k"); v != "first" {
		t.Errorf("add overwrote: %q", v)
	}
	absent := item("nowhere", "")
	absent.Op = pump.Deletion
	read := sinktest.Lane(t, openSink(t, srv.addr, Options{Operation: "get"}))
	sinktest.Verdicts(t, sinktest.Write(t, read, item("k", ""), item("none", ""), del, absent),
		pump.Done, pump.Skipped, pump.Skipped, pump.Done)
}

func TestSinkRejectsAlone(t *testing.T) {
	srv := startMemcached(t, "-m", "256")
	l := sinktest.Lane(t, openSink(t, srv.addr, Options{}))
	for _, size := range []int{1<<20 + 1, 2 << 20, 20 << 20, 40 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			batch := append(items("before", 100, 1000), item("large", strings.Repeat("x", size)))
			batch = append(batch, items("after", 100, 1000)...)
			b := sinktest.Write(t, l, batch...)
			for i := range b.Items {
				want := pump.Done
				if i == 100 {
					want = pump.Rejected
				}
				if b.Verdict(i) != want {
					t.Fatalf("item %d is %s (%v)", i, b.Verdict(i), b.Cause(i))
				}
			}
			if c := b.Cause(100); pump.CodeOf(c) != "item-too-large" || pump.HintOf(c) == "" {
				t.Errorf("cause: %v", c)
			}
		})
	}
	if n := srv.stat(t, "curr_items"); n != 200 {
		t.Errorf("memcached holds %d items, want 200", n)
	}
	packed := item("packed", "x")
	packed.Datatype = mcbp.DatatypeSnappy
	b := sinktest.Write(t, l, item("", "v"), item(strings.Repeat("k", 251), "v"), packed, item(strings.Repeat("k", 250), "v"))
	sinktest.Verdicts(t, b, pump.Rejected, pump.Rejected, pump.Rejected, pump.Done)
}

func TestSinkManyItems(t *testing.T) {
	srv := startMemcached(t, "-m", "512")
	s := openSink(t, srv.addr, Options{})
	lanes, err := s.Lanes(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	all := items("many", 100_000, 256)
	for i := 0; i < len(all); i += 25_000 {
		b := sinktest.Write(t, lanes[i/25_000%2], all[i:i+25_000]...)
		if n := count(b, pump.Done); n != 25_000 {
			t.Fatalf("%d done", n)
		}
	}
	for _, l := range lanes {
		l.Close()
	}
	if n := srv.stat(t, "curr_items"); n != 100_000 {
		t.Errorf("memcached holds %d items", n)
	}
	if n := srv.stat(t, "cmd_set"); n != 100_000 {
		t.Errorf("memcached counted %d sets", n)
	}
}

func TestSinkFull(t *testing.T) {
	srv := startMemcached(t, "-M", "-m", "64")
	l := sinktest.Lane(t, openSink(t, srv.addr, Options{}))
	b := sinktest.Write(t, l, items("full", 1000, 200_000)...)
	done, retry := count(b, pump.Done), count(b, pump.Retry)
	if done == 0 || retry == 0 || done+retry != 1000 {
		t.Fatalf("%d done, %d to retry", done, retry)
	}
	if n := srv.stat(t, "curr_items"); n != done {
		t.Errorf("memcached holds %d items, %d were confirmed", n, done)
	}
	for i := range b.Items {
		if c := b.Cause(i); c != nil {
			if pump.CodeOf(c) != "destination-full" || pump.ClassOf(c) != pump.ClassFailed || !strings.Contains(c.Error(), "out of memory") {
				t.Fatalf("cause: %v", c)
			}
		}
	}
}

func TestSinkServerDies(t *testing.T) {
	srv := startMemcached(t, "-m", "1024")
	l := sinktest.Lane(t, openSink(t, srv.addr, Options{}))
	sinktest.Verdicts(t, sinktest.Write(t, l, item("k", "v")), pump.Done)
	b := sinktest.Batch(items("dying", 200, 900_000)...)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		c, err := net.Dial("tcp", srv.addr)
		if err != nil {
			return
		}
		defer c.Close()
		// In mid-write: the first item of the batch has arrived.
		rd := mcbp.NewReader(c)
		for {
			_, _ = c.Write(mcbp.AppendKeyed(nil, mcbp.OpGet, 1, 0, 0, []byte("dying0")))
			f, err := rd.Next()
			if err != nil || f.Status() == mcbp.StatusOK {
				break
			}
		}
		srv.kill()
	}()
	if err := l.Write(context.Background(), b); err != nil {
		t.Fatalf("a lost connection must not end the run: %v", err)
	}
	<-killed
	if n := count(b, pump.Retry); n != 200 {
		t.Fatalf("%d to retry, %d done", n, count(b, pump.Done))
	}
	if c := b.Cause(0); pump.ClassOf(c) != pump.ClassUnreachable || !strings.Contains(c.Error(), srv.addr) {
		t.Errorf("cause: %v (class %d)", c, pump.ClassOf(c))
	}
	again := sinktest.Write(t, l, item("k", "v")) // nobody listens any more
	sinktest.Verdicts(t, again, pump.Retry)
	if pump.ClassOf(again.Cause(0)) != pump.ClassUnreachable {
		t.Errorf("cause: %v", again.Cause(0))
	}
}

func TestSinkReconnects(t *testing.T) {
	addr := fakeServer(t, func(n int, c net.Conn, rd *mcbp.Reader) {
		for sets := 0; ; {
			f, err := rd.Next()
			if err != nil {
				return
			}
			if f.Opcode == mcbp.OpNoop {
				reply(c, f, mcbp.StatusOK)
			}
			if f.Opcode == mcbp.OpSetQ {
				if sets++; n == 0 && sets == 2 {
					return
				}
			}
		}
	})
	l := sinktest.Lane(t, openSink(t, addr, Options{}))
	sinktest.Verdicts(t, sinktest.Write(t, l, item("a", ""), item("b", "")), pump.Retry, pump.Retry)
	sinktest.Verdicts(t, sinktest.Write(t, l, item("a", ""), item("b", "")), pump.Done, pump.Done)
}

func TestSinkSilence(t *testing.T) {
	addr := fakeServer(t, func(n int, c net.Conn, rd *mcbp.Reader) {
		for i := 0; ; i++ {
			f, err := rd.Next()
			if err != nil {
				return
			}
			// The first connection falls silent after login (0), and question (1, 2).
			if f.Opcode == mcbp.OpNoop && (n > 0 || i <= 2) {
				reply(c, f, mcbp.StatusOK)
			}
		}
	})
	l := sinktest.Lane(t, openSink(t, addr, Options{Timeout: 50 * time.Millisecond}))
	b := sinktest.Write(t, l, item("a", ""))
	sinktest.Verdicts(t, b, pump.Retry)
	if pump.ClassOf(b.Cause(0)) != pump.ClassUnreachable || !strings.Contains(b.Cause(0).Error(), "no answer in time") {
		t.Errorf("cause: %v", b.Cause(0))
	}
	sinktest.Verdicts(t, sinktest.Write(t, l, item("a", "")), pump.Done)
}

func TestSinkCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	addr := fakeServer(t, func(_ int, c net.Conn, rd *mcbp.Reader) {
		for range 3 { // the login's fence, the question and its fence
			f, _ := rd.Next()
			if f.Opcode == mcbp.OpNoop {
				reply(c, f, mcbp.StatusOK)
			}
		}
		_, _ = rd.Next() // the write has begun, and stalls here
		cancel()
		for {
			if _, err := rd.Next(); err != nil {
				return
			}
		}
	})
	l := sinktest.Lane(t, openSink(t, addr, Options{}))
	b := sinktest.Batch(items("k", 10, 10)...)
	if err := l.Write(ctx, b); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if n := count(b, pump.Unconfirmed); n != 10 {
		t.Errorf("%d unconfirmed", n)
	}
}

func TestSinkStatuses(t *testing.T) {
	for status, want := range map[mcbp.Status]struct {
		v    pump.Verdict
		code string // of the error that stops the run
	}{
		mcbp.StatusTooBig:       {pump.Rejected, ""},
		mcbp.StatusInvalid:      {pump.Rejected, ""},
		mcbp.StatusNoMemory:     {pump.Retry, ""},
		mcbp.StatusBusy:         {pump.Retry, ""},
		mcbp.StatusTmpFail:      {pump.Retry, ""},
		mcbp.StatusOK:           {pump.Done, ""},
		mcbp.StatusAuthError:    {pump.Unconfirmed, "access-denied"},
		mcbp.StatusAccess:       {pump.Unconfirmed, "access-denied"},
		mcbp.StatusNotMyVBucket: {pump.Unconfirmed, "not-memcached"},
		mcbp.StatusUnknown:      {pump.Unconfirmed, "not-supported"},
		mcbp.Status(0x7777):     {pump.Unconfirmed, "unknown-status"},
	} {
		t.Run(mcbp.StatusName(status), func(t *testing.T) {
			addr := fakeServer(t, func(_ int, c net.Conn, rd *mcbp.Reader) {
				for {
					f, err := rd.Next()
					if err != nil {
						return
					}
					switch {
					case f.Opcode == mcbp.OpNoop:
						reply(c, f, mcbp.StatusOK)
					case string(f.Key()) == "odd":
						reply(c, f, status)
					}
				}
			})
			l := sinktest.Lane(t, openSink(t, addr, Options{}))
			b := sinktest.Batch(item("before", "v"), item("odd", "v"), item("after", "v"))
			err := l.Write(context.Background(), b)
			if want.code == "" != (err == nil) || err != nil && pump.CodeOf(err) != want.code {
				t.Errorf("error %v, want code %q", err, want.code)
			}
			if b.Verdict(0) != pump.Done || b.Verdict(1) != want.v || b.Verdict(2) != pump.Done {
				t.Errorf("verdicts %s, %s, %s", b.Verdict(0), b.Verdict(1), b.Verdict(2))
			}
		})
	}
}

func TestSinkUnreachableAndForeign(t *testing.T) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := probe.Addr().String()
	probe.Close()
	if _, err := openSink(t, closed, Options{}).Lanes(t.Context(), 1); pump.ClassOf(err) != pump.ClassUnreachable || pump.ExitCode(err, 0) != 4 {
		t.Errorf("closed port: %v", err)
	}
	web := fakeServer(t, func(_ int, c net.Conn, rd *mcbp.Reader) {
		_, _ = rd.Next()
		_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	})
	if _, err := openSink(t, web, Options{}).Lanes(t.Context(), 1); pump.CodeOf(err) != "not-memcached" || pump.HintOf(err) == "" {
		t.Errorf("a web server: %v", err)
	}
	for _, bad := range []string{"", "host:", ":11211", "a:b:c"} {
		if _, err := New(Config{Addr: bad}); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for in, want := range map[string]string{"h": "h:11211", "h:1": "h:1", "::1": "[::1]:11211", "[::1]": "[::1]:11211", "[::1]:5": "[::1]:5"} {
		s, err := New(Config{Addr: in})
		if err != nil || s.cfg.Addr != want {
			t.Errorf("%q: %v, %v", in, s, err)
		}
	}
}

func TestSinkLogin(t *testing.T) {
	for status, code := range map[mcbp.Status]string{mcbp.StatusOK: "", mcbp.StatusAuthError: "access-denied", mcbp.StatusUnknown: "access-denied"} {
		addr := fakeServer(t, func(_ int, c net.Conn, rd *mcbp.Reader) {
			f, _ := rd.Next()
			if f.Opcode != mcbp.OpSASLAuth || string(f.Key()) != "PLAIN" || string(f.Value()) != "\x00user\x00secret-word" {
				t.Errorf("login %q %q", f.Key(), f.Value())
			}
			reply(c, f, status)
			for status == mcbp.StatusOK {
				f, err := rd.Next()
				if err != nil {
					return
				}
				reply(c, f, mcbp.StatusOK)
			}
		})
		s, err := New(Config{Addr: addr, Username: "user", Password: "secret-word"})
		if err != nil {
			t.Fatal(err)
		}
		if text := fmt.Sprintf("%+v", s); strings.Contains(text, "secret-word") {
			t.Errorf("the sink prints its password: %s", text)
		}
		err = s.Check(t.Context())
		if code == "" && err != nil || code != "" && (pump.CodeOf(err) != code || pump.ExitCode(err, 0) != 4 || strings.Contains(err.Error(), "secret-word")) {
			t.Errorf("%s: %v", mcbp.StatusName(status), err)
		}
	}
}

// TestSinkExitCodes runs the engine against a memcached that is full, and one
// that is killed, and one that is fine.
func TestSinkExitCodes(t *testing.T) {
	settings := pump.DefaultSettings()
	settings.RetryTime, settings.RetryMax = 200*time.Millisecond, 20*time.Millisecond
	for name, tc := range map[string]struct {
		args []string
		kill bool
		size int
		exit int
		text string
	}{
		"fine":   {nil, false, 1000, 0, ""},
		"large":  {nil, false, 1<<20 + 1, 3, ""},
		"full":   {[]string{"-M", "-m", "64"}, false, 100_000, 1, "out of memory"},
		"killed": {nil, true, 1000, 4, "memcached 127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := startMemcached(t, tc.args...)
			src := &pumptest.MemSource{Parts: [][]pump.Item{items("small", 1000, 10), items("x", 1000, tc.size)}, BatchSize: 100}
			if tc.size > 1<<20 {
				src.Parts[1] = src.Parts[1][:3]
			}
			var sink pump.Sink = openSink(t, srv.addr, Options{})
			if tc.kill {
				sink = dying{openSink(t, srv.addr, Options{}), srv}
			}
			r, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: settings})
			if got := pump.ExitCode(err, 0); got != tc.exit || err != nil && !strings.Contains(err.Error(), tc.text) {
				t.Errorf("exit %d, %v", got, err)
			}
			if tc.exit == 3 && (r.Rejected != 3 || r.Done != 1000) {
				t.Errorf("rejected %d, done %d", r.Rejected, r.Done)
			}
		})
	}
}

// dying is a sink whose server is killed once Lanes has found it alive.
type dying struct {
	*Sink
	srv *server
}

func (d dying) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	lanes, err := d.Sink.Lanes(ctx, want)
	d.srv.kill()
	return lanes, err
}

// TestSinkCapture plays the recorded memcached: what the sink sends must mean
// what the recorded client sent, and the one refused item is found.
func TestSinkCapture(t *testing.T) {
	c, err := capture.Open("memcached-1.6-setq")
	capture.Replays(t, "sinks/mc.TestSinkCapture", "memcached-1.6-setq")
	if err != nil {
		t.Fatal(err)
	}
	packets, _ := c.Packets(capture.Client)
	var batch []pump.Item
	for _, p := range packets {
		rd := mcbp.NewReader(bytes.NewReader(p))
		f, err := rd.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Opcode == mcbp.OpSetQ {
			batch = append(batch, pump.Item{Key: bytes.Clone(f.Key()), Value: bytes.Clone(f.Value()),
				Flags: be32(f.Extras()), Expiry: be32(f.Extras()[4:]), VBucket: pump.NoVBucket})
		}
	}
	srv := startMemcached(t, "-I", "128k", "-o", "slab_chunk_max=65536")
	l := sinktest.Lane(t, openSink(t, srv.addr, Options{}))
	b := sinktest.Write(t, l, batch...)
	refused := map[int]bool{}
	for _, r := range c.Replies {
		if r.Status != 0 {
			refused[int(r.Opaque-0x800)] = true
		}
	}
	client := srv.client(t)
	for i := range b.Items {
		want := pump.Done
		if refused[i] {
			want = pump.Rejected
		}
		if b.Verdict(i) != want {
			t.Errorf("item %d is %s, the recording says %s", i, b.Verdict(i), want)
		}
	}
	for _, it := range c.Items {
		flags, value, ok := get(t, client, string(it.Key))
		if !ok || flags != it.Flags || it.CheckValue([]byte(value)) != nil {
			t.Errorf("%q: %v %x", it.Key, ok, flags)
		}
	}
}

// TestSinkRefusesVBuckets: memcached:// with the data port of a Couchbase node would
// put everything into vbucket 0. Memcached and buckets of its type are let through.
func TestSinkRefusesVBuckets(t *testing.T) {
	for version, code := range map[string]string{"2.5.1": "not-memcached", "3.0.3": "not-memcached", "4.0": "not-memcached", "7.6": "destination-lost"} {
		c, err := simcluster.Start(simcluster.Config{Version: version, Nodes: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		n := c.Nodes()[0]
		err = openSink(t, n.KV(), Options{}).Check(t.Context())
		if pump.CodeOf(err) != code || (code == "not-memcached") != (pump.ExitCode(err, 0) == 2) || !strings.Contains(pump.HintOf(err), "http://") {
			t.Errorf("%s: %v (%s)", version, err, pump.HintOf(err))
		}
		if n.Writes() != 0 {
			t.Errorf("%s: %d writes", version, n.Writes())
		}
	}
	c, err := simcluster.Start(simcluster.Config{Nodes: 1, Buckets: []simcluster.BucketConfig{{Name: "default", Type: "memcached"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	for name, addr := range map[string]string{"memcached bucket": c.Nodes()[0].KV(), "memcached": startMemcached(t).addr} {
		if err := openSink(t, addr, Options{}).Check(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
