package mc

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/couchbase/gomemcached"
	"github.com/couchbase/gomemcached/client"
	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a real memcached.
type server struct {
	*realmc.Server
	addr string
}

func startMemcached(tb testing.TB, args ...string) *server {
	tb.Helper()
	s := realmc.Start(tb, args...)
	return &server{s, s.Addr}
}

func (s *server) kill() { s.Kill() }

func (s *server) client(tb testing.TB) *memcached.Client {
	tb.Helper()
	c, err := memcached.Connect("tcp", s.addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func (s *server) stat(tb testing.TB, name string) int {
	tb.Helper()
	stats, err := s.client(tb).StatsMap("")
	if err != nil {
		tb.Fatal(err)
	}
	n, err := strconv.Atoi(stats[name])
	if err != nil {
		tb.Fatalf("stat %s: %v", name, err)
	}
	return n
}

// get returns flags and value of a key, and whether it is there.
func get(tb testing.TB, c *memcached.Client, key string) (uint32, string, bool) {
	tb.Helper()
	res, err := c.Get(0, key)
	if res != nil && res.Status == gomemcached.KEY_ENOENT {
		return 0, "", false
	}
	if err != nil {
		tb.Fatalf("get %q: %v", key, err)
	}
	return binary.BigEndian.Uint32(res.Extras), string(res.Body), true
}

func openSink(tb testing.TB, addr string, o Options) *Sink {
	tb.Helper()
	s, err := New(Config{Addr: addr, Options: o})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func item(key, value string) pump.Item {
	return pump.Item{Key: []byte(key), Value: []byte(value), VBucket: pump.NoVBucket}
}

func items(prefix string, n, size int) []pump.Item {
	out := make([]pump.Item, n)
	value := make([]byte, size)
	for i := range out {
		out[i] = pump.Item{Key: fmt.Appendf(nil, "%s%d", prefix, i), Value: value, Flags: uint32(i), VBucket: pump.NoVBucket}
	}
	return out
}

func count(b *pump.Batch, v pump.Verdict) int {
	n := 0
	for i := range b.Items {
		if b.Verdict(i) == v {
			n++
		}
	}
	return n
}

// fakeServer hands each connection to serve, with its number.
func fakeServer(tb testing.TB, serve func(n int, c net.Conn, rd *mcbp.Reader)) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		defer wg.Wait()
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(n, c, mcbp.NewReader(c))
			})
		}
	}()
	tb.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func reply(c net.Conn, f mcbp.Frame, s mcbp.Status) {
	h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque, VBucket: uint16(s)}
	_, _ = c.Write(h.Append(nil))
}

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// textKeys lists the keys that a memcached holds, which only its text protocol
// can.
func textKeys(tb testing.TB, addr string) []string {
	tb.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	for {
		fmt.Fprint(c, "lru_crawler metadump all\r\n")
		var keys []string
		scan := bufio.NewScanner(c)
		for scan.Scan() {
			line := scan.Text()
			if line == "END" {
				return keys
			}
			if strings.HasPrefix(line, "BUSY") {
				break
			}
			enc, ok := strings.CutPrefix(strings.Fields(line)[0], "key=")
			if !ok {
				tb.Fatalf("metadump says %q", line)
			}
			key, err := url.PathUnescape(enc)
			if err != nil {
				tb.Fatal(err)
			}
			keys = append(keys, key)
		}
		if scan.Err() != nil {
			tb.Fatal(scan.Err())
		}
	}
}
