package recovery

import (
	"context"
	"testing"
	"time"

	"github.com/cbpump/cbpump/cluster"
)

// TestMeter: what overlaps counts once, and a connection that is made in the midst
// of a write is no moving.
func TestMeter(t *testing.T) {
	at := time.Unix(0, 0)
	pass := func(n int) { at = at.Add(time.Duration(n) * time.Second) }
	m := newMeter(func() time.Time { return at })
	ctx := context.Background()
	pass(1) // 1: nothing
	_ = m.during(ctx, func(one context.Context) error {
		pass(2) // 3: one writes
		_ = m.during(ctx, func(two context.Context) error {
			pass(4) // 7: two write
			connected := m.wait(two, cluster.WaitConnect)
			pass(8) // 15: one writes, the other connects
			again := m.wait(one, cluster.WaitConnect)
			pass(16) // 31: both connect
			connected()
			pass(32) // 63: one writes, the other connects
			again()
			return nil
		})
		answered := m.wait(ctx, cluster.WaitRequest)
		pass(64) // 127: one writes beside a request
		answered()
		return nil
	})
	answered := m.wait(ctx, cluster.WaitRequest)
	pass(128) // 255: a request alone
	answered()
	s := m.read()
	want := Spent{Total: 255 * time.Second, Moving: (2 + 4 + 8 + 32 + 64) * time.Second,
		Requests: 2, Requesting: (64 + 128) * time.Second, Connects: 2, Connecting: (8 + 16 + 16 + 32) * time.Second}
	if s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	if s.Waiting() != (1+16+128)*time.Second {
		t.Errorf("waited %s", s.Waiting())
	}
}
