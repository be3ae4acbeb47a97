package dcp

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cbpump/cbpump/cluster"
)

// silentPlaces answers after 30 seconds that there is no answer.
type silentPlaces struct{ asked atomic.Int32 }

var errSilent = errors.New("no answer within 30s")

func (p *silentPlaces) locate(context.Context) (*layout, error) {
	p.asked.Add(1)
	time.Sleep(30 * time.Second)
	return nil, errSilent
}

func (p *silentPlaces) kv(*layout, string) cluster.KVConfig { return cluster.KVConfig{} }
func (p *silentPlaces) close()                              {}

// TestSilentCluster: many streams wait together for a cluster that is silent, and
// what is known already is not waited for.
func TestSilentCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock does not wait
		p := &silentPlaces{}
		s := &Source{places: p}
		known := &layout{}
		s.layout.Store(known)
		start := time.Now()
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if _, err := s.locate(t.Context(), true); err != errSilent {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if l, err := s.locate(t.Context(), false); l != known || err != nil {
			t.Errorf("%v, %v", l, err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("what is known came after %v", took)
		}
		wg.Wait()
		if n, took := p.asked.Load(), time.Since(start); n != 1 || took != 30*time.Second {
			t.Errorf("asked %d times, in %v", n, took)
		}
	})
}
