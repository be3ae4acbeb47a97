package mc

import (
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
