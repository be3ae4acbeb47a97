package pump_test

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

func TestBatchArena(t *testing.T) {
	b := pump.NewBatch(10)
	one, two := b.Copy([]byte("abcd")), b.Copy([]byte("efgh"))
	if b.Free() != 2 || &b.Arena()[0] != &one[0] || &b.Arena()[4] != &two[0] {
		t.Errorf("free %d", b.Free())
	}
	// A slice cannot grow into its neighbour.
	if _ = append(one, 'x'); string(two) != "efgh" {
		t.Errorf("%q", two)
	}
	// What does not fit gets memory of its own, and what fits still does.
	big := b.Copy(bytes.Repeat([]byte{1}, 100))
	if len(big) != 100 || b.Free() != 2 || len(b.Alloc(2)) != 2 || b.Free() != 0 || len(b.Alloc(0)) != 0 {
		t.Errorf("%d bytes, free %d", len(big), b.Free())
	}
	b.Reset()
	if b.Free() != 10 {
		t.Errorf("free %d after Reset", b.Free())
	}
	b.GrowArena(5)
	if len(b.Arena()) != 10 {
		t.Errorf("a smaller arena took the place of a larger one")
	}
	b.GrowArena(50)
	if len(b.Arena()) != 50 || b.Free() != 50 {
		t.Errorf("arena %d, free %d", len(b.Arena()), b.Free())
	}
	var zero pump.Batch
	if zero.Free() != 0 || string(zero.Copy([]byte("x"))) != "x" || zero.Len() != 0 {
		t.Error("the zero batch is not ready to use")
	}
}

func TestBatchItemsComeClean(t *testing.T) {
	b := pump.NewBatch(0)
	for range 3 {
		it := b.Append()
		it.Key, it.Op, it.CAS = []byte("k"), pump.Deletion, 7
	}
	b.Marks = append(b.Marks, pump.Mark{Seqno: 1})
	b.StartWrite()
	b.Settle(2, pump.Rejected, errors.New("too big"))
	b.Reset()
	if b.Len() != 0 || len(b.Marks) != 0 {
		t.Fatalf("%d items, %d marks", b.Len(), len(b.Marks))
	}
	for range 4 {
		if it := b.Append(); it.Key != nil || it.Op != pump.Mutation || it.CAS != 0 {
			t.Fatalf("an item of before shows: %+v", it)
		}
	}
	b.StartWrite()
	for i := range b.Items {
		if b.Verdict(i) != pump.Unconfirmed || b.Cause(i) != nil {
			t.Errorf("item %d begins with %s, %v", i, b.Verdict(i), b.Cause(i))
		}
	}
}

func TestVerdictsLastWordCounts(t *testing.T) {
	b := pump.NewBatch(0)
	for range 4 {
		b.Append()
	}
	b.StartWrite()
	busy := errors.New("busy")
	b.Settle(0, pump.Retry, busy)
	b.Done(0)
	b.Settle(1, pump.Retry, busy)
	b.Settle(1, pump.Skipped, nil)
	b.Done(2)
	b.SettleRest(pump.Rejected, busy)
	for i, want := range []pump.Verdict{pump.Done, pump.Skipped, pump.Done, pump.Rejected} {
		var why error
		if want == pump.Rejected {
			why = busy
		}
		if b.Verdict(i) != want || b.Cause(i) != why {
			t.Errorf("item %d: %s because of %v, want %s", i, b.Verdict(i), b.Cause(i), want)
		}
	}
	// Another Write knows nothing of this one.
	b.StartWrite()
	b.SettleRest(pump.Retry, nil)
	for i := range b.Items {
		if b.Verdict(i) != pump.Retry || b.Cause(i) != nil {
			t.Errorf("item %d: %s because of %v", i, b.Verdict(i), b.Cause(i))
		}
	}
}

func TestBatchAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "items")
		b := pump.NewBatch(64)
		for range n {
			b.Append()
		}
		for range 3 {
			b.StartWrite()
			verdicts, causes := make([]pump.Verdict, n), make([]error, n)
			for range rapid.IntRange(0, 40).Draw(t, "settlements") {
				i := rapid.IntRange(0, n-1).Draw(t, "item")
				v := rapid.SampledFrom([]pump.Verdict{pump.Done, pump.Skipped, pump.Retry, pump.Rejected}).Draw(t, "verdict")
				var why error
				if v == pump.Done {
					b.Done(i)
				} else {
					if rapid.Bool().Draw(t, "with cause") {
						why = errors.New("why")
					}
					b.Settle(i, v, why)
				}
				verdicts[i], causes[i] = v, why
			}
			for i := range n {
				if b.Verdict(i) != verdicts[i] || b.Cause(i) != causes[i] {
					t.Fatalf("item %d: %s because of %v, want %s because of %v", i, b.Verdict(i), b.Cause(i), verdicts[i], causes[i])
				}
			}
		}
	})
}

func TestVerdictNames(t *testing.T) {
	for v, want := range map[pump.Verdict]string{
		pump.Unconfirmed: "unconfirmed", pump.Done: "done", pump.Skipped: "skipped", pump.Retry: "retry", pump.Rejected: "rejected", 99: "unknown",
	} {
		if v.String() != want {
			t.Errorf("%s, want %s", v, want)
		}
	}
}

// fillAndWrite is what happens to a batch in the steady state.
func fillAndWrite(b *pump.Batch, key, value []byte) {
	b.Reset()
	for b.Free() >= len(key)+len(value) {
		it := b.Append()
		it.Key, it.Value = b.Copy(key), b.Copy(value)
	}
	b.Marks = append(b.Marks, pump.Mark{VBucket: 1, Seqno: 2})
	b.StartWrite()
	for i := range b.Items {
		b.Done(i)
	}
	b.SettleRest(pump.Retry, nil)
}

func TestBatchDoesNotAllocate(t *testing.T) {
	b, key, value := pump.NewBatch(64<<10), []byte("doc:000001"), make([]byte, 256)
	fillAndWrite(b, key, value)
	if n := testing.AllocsPerRun(100, func() { fillAndWrite(b, key, value) }); n != 0 {
		t.Errorf("%v allocations for a batch of %d items", n, b.Len())
	}
	// Causes of before do not make later batches dearer.
	b.Settle(0, pump.Retry, errors.New("busy"))
	if n := testing.AllocsPerRun(100, func() { fillAndWrite(b, key, value) }); n != 0 {
		t.Errorf("%v allocations after a cause", n)
	}
}

func BenchmarkBatch(b *testing.B) {
	batch, key, value := pump.NewBatch(256<<10), []byte("doc:000001"), make([]byte, 256)
	b.ReportAllocs()
	items := 0
	for b.Loop() {
		fillAndWrite(batch, key, value)
		items += batch.Len()
	}
	b.ReportMetric(float64(items)/b.Elapsed().Seconds(), "items/s")
}
