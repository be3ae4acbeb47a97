package mc

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/couchbase/gomemcached/client"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// TestLateBytesComeFirst: what memcached has received over a connection that fell
// silent, and reads when it goes on, does not come behind the next connection's writes.
func TestLateBytesComeFirst(t *testing.T) {
	srv := realmc.Start(t, "-t", "4")
	c, err := memcached.Connect("tcp", srv.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sink, err := New(Config{Addr: srv.Addr, Options: Options{Timeout: 500 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	lane := sinktest.Lane(t, sink)
	early := make([]pump.Item, 3000)
	for i := range early {
		early[i] = item("k", "early")
	}
	for range 5 {
		sinktest.Verdicts(t, sinktest.Write(t, lane, item("k", "first")), pump.Done)
		if err := srv.Stop(); err != nil {
			t.Fatal(err)
		}
		b := sinktest.Write(t, lane, early...)
		if err := srv.Continue(); err != nil {
			t.Fatal(err)
		}
		sinktest.Verdicts(t, b, pump.Retry)
		sinktest.Verdicts(t, sinktest.Write(t, lane, item("k", "late")), pump.Done)
		// The thread that reads this one's connection may not be the one that reads the
		// early ones, so it is asked until those have had their time.
		for range 200 {
			if r, err := c.Get(0, "k"); err != nil || string(r.Body) != "late" {
				t.Fatalf("%v is there at last, %v", r, err)
			}
		}
	}
}

// TestServerThatStoodStill: a server that goes on after it stood still counts that time
// as idle, although it has not yet read what a connection brought before. Only one that
// is seen to be idle for some time, while the server answers, is over.
func TestServerThatStoodStill(t *testing.T) {
	const gone = -1
	for name, c := range map[string]struct {
		idle []int // seconds without a command on the old connection, look by look
		last bool  // it must not return before the last of these
	}{
		"it reads what had come":       {[]int{31, 31, 0, 0, gone}, true},
		"it reads, and is idle again":  {[]int{5, 0, 2, 0, 3, gone}, true},
		"it never learns of the close": {[]int{31}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			old := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
			next := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2}
			looks := make(chan int, 1)
			go func() {
				n := 0
				defer func() { looks <- n }()
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				for rd := bufio.NewReader(conn); ; n++ {
					for range 3 {
						if _, err := rd.ReadString('\n'); err != nil {
							return
						}
					}
					out := fmt.Sprintf("STAT 8:addr tcp:%s\r\nSTAT 8:secs_since_last_cmd 0\r\n", next)
					if idle := c.idle[min(n, len(c.idle)-1)]; idle != gone {
						out += fmt.Sprintf("STAT 7:addr tcp:%s\r\nSTAT 7:secs_since_last_cmd %d\r\n", old, idle)
					}
					if _, err := io.WriteString(conn, out+"END\r\nVERSION 1\r\nVERSION 1\r\n"); err != nil {
						return
					}
				}
			}()
			sink, err := New(Config{Addr: ln.Addr().String()})
			if err != nil {
				t.Fatal(err)
			}
			if err := sink.awaitEnd(t.Context(), old, next); err != nil {
				t.Fatal(err)
			}
			if n := <-looks; c.last && n != len(c.idle) || n < 2 {
				t.Errorf("it went on after %d looks", n)
			}
		})
	}
}

// TestEndThatNobodySees: behind a proxy the server knows our connections by other
// addresses, of which one that is busy may by chance be that of a connection that was
// given up.
func TestEndThatNobodySees(t *testing.T) {
	srv := realmc.Start(t)
	sink, err := New(Config{Addr: srv.Addr})
	if err != nil {
		t.Fatal(err)
	}
	busy, err := net.Dial("tcp", srv.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		rd := mcbp.NewReader(busy)
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			_, err := busy.Write(mcbp.AppendNoop(nil, 0))
			if err == nil {
				_, err = rd.Next()
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	elsewhere := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9), Port: 1}
	if err := sink.awaitEnd(t.Context(), busy.LocalAddr(), elsewhere); err != nil {
		t.Error(err)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
