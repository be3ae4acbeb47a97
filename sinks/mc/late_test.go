package mc

import (
	"testing"
	"time"

	"github.com/couchbase/gomemcached/client"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/internal/sinktest"
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
