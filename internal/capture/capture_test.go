package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func all(t *testing.T) []*Capture {
	t.Helper()
	cs, err := Select(func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if len(cs) < 270 {
		t.Fatalf("%d captures, there are at least 270", len(cs))
	}
	return cs
}

func TestLoad(t *testing.T) {
	c, err := Open("2.5.1-tap-dump-ack")
	if err != nil {
		t.Fatal(err)
	}
	if what, _ := c.Comment("what"); what != "TAP dump of vbucket 101, complete" {
		t.Errorf("what: %q", what)
	}
	if len(c.Items) != 13 || len(c.Replies) != 0 {
		t.Fatalf("%d items, %d replies", len(c.Items), len(c.Replies))
	}
	it := c.Items[2]
	if it.Op != "mutation" || it.VB != 101 || string(it.Key) != "flags" || string(it.Value) != "item with odd flags" ||
		it.Flags != 0xdeadbeef || it.Expiry != 0 || it.CAS != 4581027752724 || it.Rev != 1 || !it.Has("datatype") || it.Has("seqno") {
		t.Errorf("third item: %+v", it)
	}
	big := c.Items[8]
	if string(big.Key) != "big" || big.Value != nil || big.CheckValue([]byte("x")) == nil || big.CheckValue(make([]byte, 9000)) == nil {
		t.Errorf("large item: %+v", big)
	}
	if n := len(c.Chunks); c.ServerClosed != n-2 || c.ClientClosed != n-1 {
		t.Errorf("closed at %d (server) and %d (client) of %d", c.ServerClosed, c.ClientClosed, n)
	}
	if c.Chunks[0].From != Client || c.Chunks[1].From != Server {
		t.Errorf("the first two chunks come from %s and %s", c.Chunks[0].From, c.Chunks[1].From)
	}
	r, err := Open("4.0-setwithmeta-refused")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Replies[4]; got.Opcode != 0xa2 || got.Opaque != 772 || got.Status != 0 || got.CAS != 21264993878021 {
		t.Errorf("fifth reply: %+v", got)
	}
}

func TestEveryCaptureIsWellFormed(t *testing.T) {
	for _, c := range all(t) {
		for _, side := range []Side{Client, Server} {
			r := c.Reader(side)
			got, err := io.ReadAll(iotest.OneByteReader(r))
			if err != nil || !bytes.Equal(got, c.Stream(side)) {
				t.Errorf("%s: the reader of the %s does not give its stream (%v)", c.Name, side, err)
			}
			packets, rest := c.Packets(side)
			if !bytes.Equal(bytes.Join(append(packets, rest), nil), c.Stream(side)) {
				t.Errorf("%s: the packets of the %s do not make its stream", c.Name, side)
			}
			if side == Client && rest != nil && !strings.Contains(c.Name, "refused") {
				t.Errorf("%s: the client ends inside a packet", c.Name)
			}
		}
	}
}

func TestReaderKeepsChunks(t *testing.T) {
	c, err := Open("2.5.1-tap-dump-ack")
	if err != nil {
		t.Fatal(err)
	}
	r, buf := c.Reader(Server), make([]byte, 1<<20)
	for _, ch := range c.Chunks {
		if ch.From != Server || ch.EOF {
			continue
		}
		if n, err := r.Read(buf); err != nil || !bytes.Equal(buf[:n], ch.Bytes) {
			t.Fatalf("read %d bytes (%v), the chunk has %d", n, err, len(ch.Bytes))
		}
	}
	if _, err := r.Read(buf); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
}

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"# a\n> 80zz", "2: a chunk"},
		{"< ", "1: a chunk"},
		{"?", "1: a line of an unknown kind"},
		{"#item {", "1: not a JSON object"},
		{`#item {"vb": 1}`, "1: an #item without op"},
		{`#item {"op": "mutation", "vb": 70000}`, "1: field vb"},
		{`#item {"op": "mutation", "key_hex": "0"}`, "1: field key_hex"},
		{`#reply {"opcode": "0x41", "opaque": 1}`, "1: a #reply without status"},
	} {
		if _, err := Parse("x", []byte(tc.text)); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %s", tc.text, err, tc.want)
		}
	}
}

// Both players against each other: each side must come out as it was recorded.
func TestPlayAgainstServe(t *testing.T) {
	for _, c := range all(t) {
		t.Run(c.Name, func(t *testing.T) {
			seen := 0
			srv, err := Listen(ServeOptions{Compare: func(n int, recorded, got []byte) error {
				seen++
				if n+1 != seen || !bytes.Equal(recorded, got) {
					return fmt.Errorf("packet %d is not the recorded one", n)
				}
				return nil
			}}, c)
			if err != nil {
				t.Fatal(err)
			}
			res, err := PlayAddr(t.Context(), srv.Addr(), c, PlayOptions{})
			if e := srv.Close(); e != nil || err != nil {
				t.Fatal(err, e)
			}
			want, rest := c.Packets(Server)
			if !bytes.Equal(bytes.Join(res.Packets, nil), bytes.Join(want, nil)) || !bytes.Equal(res.Rest, rest) {
				t.Errorf("%d packets and %d bytes, %d and %d were recorded", len(res.Packets), len(res.Rest), len(want), len(rest))
			}
		})
	}
}

// serveOne plays the server of c to a player of the client of another capture.
func serveOne(t *testing.T, c *Capture, o ServeOptions, client *Capture) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = ServeConn(t.Context(), conn, c, o)
		}
		served <- err
	}()
	if _, err := PlayAddr(t.Context(), l.Addr().String(), client, PlayOptions{}); err != nil {
		t.Fatal(err)
	}
	return <-served
}

func TestServeReportsWhatTheClientDoesWrong(t *testing.T) {
	c, err := Open("2.5.1-tap-dump-ack")
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open("2.5.1-sasl-plain-good")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("closes early", func(t *testing.T) {
		short := &Capture{Chunks: c.Chunks[:1]}
		if err := serveOne(t, c, ServeOptions{}, short); !errors.Is(err, errClientClosed) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("says something else", func(t *testing.T) {
		refused := errors.New("refused")
		o := ServeOptions{Compare: func(int, []byte, []byte) error { return refused }}
		if err := serveOne(t, c, o, other); !errors.Is(err, refused) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("intercepted", func(t *testing.T) {
		srv, err := Listen(ServeOptions{Intercept: AcceptLogin}, c)
		if err != nil {
			t.Fatal(err)
		}
		defer srv.Close()
		login := &Capture{Name: "login", Chunks: other.Chunks, ServerClosed: -1, ClientClosed: -1}
		res, err := PlayAddr(t.Context(), srv.Addr(), login, PlayOptions{})
		if err != nil || len(res.Packets) != 3 || string(res.Packets[0][headerLen:]) != "PLAIN" {
			t.Fatalf("%+v, %v", res, err)
		}
	})
}

func TestContextEndsBothPlayers(t *testing.T) {
	c, err := Open("2.5.1-tap-dump-ack")
	if err != nil {
		t.Fatal(err)
	}
	mute := &Capture{Name: "mute", Chunks: []Chunk{{From: Client, Bytes: make([]byte, headerLen)}, {From: Server, Bytes: make([]byte, headerLen)}}}
	srv, err := Listen(ServeOptions{Intercept: func([]byte) ([]byte, bool) { return nil, true }}, mute)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	enough := func(recorded, got [][]byte) bool {
		if len(recorded) > 0 {
			cancel() // the player is about to wait for a server that says nothing
		}
		return len(recorded) == 0
	}
	if _, err := PlayAddr(ctx, srv.Addr(), c, PlayOptions{Enough: enough}); !errors.Is(err, context.Canceled) {
		t.Errorf("play: %v", err)
	}
	if err := srv.Close(); err != nil && !errors.Is(err, errClientClosed) {
		t.Errorf("serve: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("# a: b\n#item {\"op\":\"mutation\",\"vb\":1}\n> 80\n< 81\n<EOF\n>EOF\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("x", text)
		if err != nil {
			return
		}
		c.Packets(Client)
		c.Packets(Server)
	})
}
