package dcp

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

// TestAcknowledgementsAreGathered: a packet goes out for a quarter of the window, and
// what is less goes out soon all the same, since a node may want it.
func TestAcknowledgementsAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		var mu sync.Mutex
		var acks []uint32
		var reading sync.WaitGroup
		reading.Go(func() {
			var p [mcbp.HeaderLen + 4]byte
			for {
				if _, err := io.ReadFull(theirs, p[:]); err != nil {
					return
				}
				mu.Lock()
				acks = append(acks, binary.BigEndian.Uint32(p[mcbp.HeaderLen:]))
				mu.Unlock()
			}
		})
		var f flow
		due := func(what string, want ...uint32) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(acks, want) {
				t.Errorf("%s: acknowledged %d, want %d", what, acks, want)
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		f.start(ours, 4000)
		for range 10 {
			f.hand(1, 300)
		}
		must(f.confirm(3))
		due("less than a quarter")
		if blocked, _ := f.blocked(); !blocked {
			t.Error("what is held back does not count as under way")
		}
		must(f.confirm(1))
		due("a quarter", 1200)
		must(f.consumed(50))
		must(f.confirm(2))
		due("less than a quarter again", 1200)
		time.Sleep(holdBack) // synctest's clock, on which it takes no time
		due("some time later", 1200, 650)
		must(f.confirm(1))
		f.stop()
		due("at the end", 1200, 650, 300)
		if f.open != 0 || f.due != 0 || f.flush != nil {
			t.Errorf("stopped with %+v", &f)
		}
		must(f.confirm(3))
		due("of a connection that is closed", 1200, 650, 300)
		must(ours.Close())
		must(theirs.Close())
		reading.Wait()
	})
}
