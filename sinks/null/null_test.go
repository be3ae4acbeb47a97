package null

import (
	"context"
	"errors"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func batch(n int) *pump.Batch {
	b := pump.NewBatch(64 * n)
	for i := range n {
		it := b.Append()
		it.Key, it.Value = b.Copy([]byte("key")), b.Copy([]byte("value"))
		if i%4 == 3 {
			it.Op, it.Value = pump.Deletion, nil
		}
	}
	return b
}

func TestCountsAndConfirms(t *testing.T) {
	r := &pump.Registry{}
	if err := pump.RegisterSink(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	opened, err := r.Sink(context.Background(), "null:", pump.Env{})
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*Sink)
	lanes, err := s.Lanes(context.Background(), 3)
	if err != nil || len(lanes) != 3 {
		t.Fatalf("%d lanes, %v", len(lanes), err)
	}
	var wg sync.WaitGroup
	for _, l := range lanes {
		wg.Go(func() {
			b := batch(8)
			b.StartWrite()
			if err := l.Write(context.Background(), b); err != nil {
				t.Error(err)
			}
			for i := range b.Items {
				if b.Verdict(i) != pump.Done {
					t.Errorf("item %d is %s", i, b.Verdict(i))
				}
			}
		})
	}
	wg.Wait()
	if s.Mutations() != 18 || s.Deletions() != 6 || s.Bytes() != 18*8+6*3 {
		t.Errorf("counted %d mutations, %d deletions, %d bytes", s.Mutations(), s.Deletions(), s.Bytes())
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestConformance(t *testing.T) {
	pumptest.TestSink(t, pumptest.SinkSuite{New: func(*testing.T) pump.Sink { return New() }})
}

func TestCancelledWriteConfirmsNothing(t *testing.T) {
	lanes, _ := New().Lanes(context.Background(), 0)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := batch(2)
	b.StartWrite()
	if err := lanes[0].Write(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("Write returned %v", err)
	}
	if b.Verdict(0) != pump.Unconfirmed {
		t.Errorf("item 0 is %s", b.Verdict(0))
	}
}

func TestWrongUse(t *testing.T) {
	r := &pump.Registry{}
	if err := pump.RegisterSink(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{"null:x", "null:?a=b"} {
		if _, err := r.Sink(context.Background(), spec, pump.Env{}); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%s: %v, wrong use is due", spec, err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	lanes, _ := New().Lanes(context.Background(), 1)
	batch := batch(1024)
	b.ReportAllocs()
	for n := 0; n < b.N; n += batch.Len() {
		batch.StartWrite()
		if err := lanes[0].Write(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
	}
}
