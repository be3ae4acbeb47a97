package gen

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// options decodes the declared defaults and then what the test sets.
func options(t testing.TB, values map[string]string) Options {
	t.Helper()
	var o Options
	if err := pump.DecodeOptions("gen", values, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

type made struct {
	Op       pump.Op
	Datatype uint8
	Value    string
	CAS, Rev uint64
}

// readAll reads every stream to its end and returns the items by key.
func readAll(t testing.TB, o Options, arena int) map[string]made {
	t.Helper()
	src, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	streams, err := src.Streams(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]made{}
	for _, s := range streams {
		if err := s.Open(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		var live uint64
		var last pump.Mark
		for {
			b := pump.NewBatch(arena)
			err := s.Read(context.Background(), b)
			for _, it := range b.Items {
				key := string(it.Key)
				if _, twice := out[key]; twice {
					t.Fatalf("key %q came twice", key)
				}
				if it.Op == pump.Mutation {
					live++
				}
				out[key] = made{it.Op, it.Datatype, string(it.Value), it.CAS, it.RevSeqno}
			}
			for _, m := range b.Marks {
				last = m
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if b.Len() == 0 {
				t.Fatal("Read returned neither item nor error")
			}
		}
		if live > 0 && (!last.Complete || last.Items != live) {
			t.Errorf("stream %s made %d mutations, its last mark says %+v", s.ID(), live, last)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	return out
}

func TestSameItemsWhateverTheStreams(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lo := rapid.IntRange(0, 300).Draw(rt, "min")
		o := Options{
			MaxItems:     rapid.Uint64Range(0, 300).Draw(rt, "items") + 1,
			MinValueSize: pump.Size(lo),
			MaxValueSize: pump.Size(rapid.IntRange(max(lo, 1), 400).Draw(rt, "max")),
			Prefix:       rapid.StringN(0, 20, maxPrefix).Draw(rt, "prefix"),
			JSON:         rapid.Bool().Draw(rt, "json"),
			Meta:         rapid.Bool().Draw(rt, "meta"),
			RatioSets:    rapid.Float64Range(0, 1).Draw(rt, "sets"),
			Seed:         rapid.Uint64().Draw(rt, "seed"),
			Streams:      1,
		}
		want := readAll(t, o, 64<<10)
		o.Streams = rapid.IntRange(2, 9).Draw(rt, "streams")
		got := readAll(t, o, rapid.IntRange(0, 2000).Draw(rt, "arena"))
		if uint64(len(want)) != o.MaxItems || len(got) != len(want) {
			rt.Fatalf("%d items from one stream, %d from %d, want %d", len(want), len(got), o.Streams, o.MaxItems)
		}
		for k, w := range want {
			if got[k] != w {
				rt.Fatalf("item %q is %v from one stream and %v from %d", k, w, got[k], o.Streams)
			}
		}
	})
}

func TestItems(t *testing.T) {
	all := readAll(t, options(t, map[string]string{
		"max-items": "5000", "min-value-size": "100", "max-value-size": "200", "ratio-sets": "0.8", "json": "true", "prefix": "p:",
	}), 4096)
	var sets, small, large int
	for i := range 5000 {
		key := fmt.Sprintf("p:%010d", i)
		it, ok := all[key]
		if !ok {
			t.Fatalf("no item %q", key)
		}
		if it.Op == pump.Deletion {
			if it.Value != "" {
				t.Fatalf("deletion %q has a value", key)
			}
			continue
		}
		sets++
		var doc struct {
			I    int
			Body string
		}
		if err := json.Unmarshal([]byte(it.Value), &doc); err != nil || doc.I != i || it.Datatype != 1 {
			t.Fatalf("item %q is %q (datatype %d): %v", key, it.Value, it.Datatype, err)
		}
		if len(it.Value) < 100 || len(it.Value) > 200 {
			t.Fatalf("item %q has %d bytes", key, len(it.Value))
		}
		if len(it.Value) < 120 {
			small++
		}
		if len(it.Value) > 180 {
			large++
		}
	}
	if sets < 3800 || sets > 4200 {
		t.Errorf("%d of 5000 are mutations, about 4000 are due", sets)
	}
	if small < 500 || large < 500 {
		t.Errorf("sizes are not spread: %d small, %d large of %d", small, large, sets)
	}
}

// TestMeta: revision and CAS are there when asked for, and differ from item to item.
func TestMeta(t *testing.T) {
	values := map[string]string{"max-items": "3", "ratio-sets": "0.5"}
	for key, it := range readAll(t, options(t, values), 4096) {
		if it.CAS != 0 || it.Rev != 0 {
			t.Errorf("item %q has CAS %d and revision %d, which nobody asked for", key, it.CAS, it.Rev)
		}
	}
	values["meta"] = "true"
	all := readAll(t, options(t, values), 4096)
	for i := range 3 {
		if it := all[fmt.Sprintf("gen-%010d", i)]; it.CAS != 1_500_000_000_000_000_000+uint64(i) || it.Rev != 1 {
			t.Errorf("item %d has CAS %d and revision %d", i, it.CAS, it.Rev)
		}
	}
}

func TestSeeds(t *testing.T) {
	o := options(t, map[string]string{"max-items": "50", "max-value-size": "64"})
	one, again := readAll(t, o, 4096), readAll(t, o, 999)
	o.Seed = 2
	other := readAll(t, o, 4096)
	same := 0
	for k, v := range one {
		if again[k] != v {
			t.Errorf("item %q differs under the same seed", k)
		}
		if other[k] == v {
			same++
		}
	}
	if same == len(one) {
		t.Error("another seed gave the same items")
	}
}

func TestResume(t *testing.T) {
	open := func(values map[string]string) pump.Source {
		src, err := New(options(t, values))
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	before := map[string]string{"max-items": "500", "ratio-sets": "0.5", "streams": "3"}
	filetest.Resume(t, func() pump.Source { return open(before) })
	marks := filetest.Marks(t, open(before), 1000, 2)
	for name, value := range map[string]string{"prefix": "x", "max-items": "501", "seed": "2", "json": "true", "meta": "true", "min-value-size": "11", "streams": "1", "ratio-sets": "0.6"} {
		other := maps.Clone(before)
		other[name] = value
		filetest.Refused(t, open(other), marks, "gen-mark")
	}
	streams, _ := open(before).Streams(t.Context())
	if err := streams[1].Open(t.Context(), marks); pump.CodeOf(err) != "gen-mark" {
		t.Errorf("a stream took the mark of another one: %v", err)
	}
}

func TestWrongUse(t *testing.T) {
	r := &pump.Registry{}
	if err := pump.RegisterSource(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{
		"gen:?max-value-size=5&min-value-size=6", "gen:?ratio-sets=1.5", "gen:?ratio-sets=-1", "gen:?ratio-sets=NaN",
		"gen:?streams=0", "gen:?streams=99999", "gen:?max-items=x", "gen:?max-itms=1", "gen:100", "gen:?max-value-size=1g",
		"gen:?prefix=" + string(bytes.Repeat([]byte("x"), 231)),
	} {
		if _, err := r.Source(context.Background(), spec, pump.Env{}); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%s: %v, wrong use is due", spec, err)
		}
	}
	src, err := r.Source(context.Background(), "gen:?max-items=7&max-value-size=20", pump.Env{})
	if err != nil {
		t.Fatal(err)
	}
	e, ok := pump.As[pump.Estimator](src)
	if !ok {
		t.Fatal("gen: gives no estimate")
	}
	if est, err := e.Estimate(context.Background()); err != nil || est.Items != 7 || est.Bytes != 7*(14+15) {
		t.Errorf("estimate %+v, %v", est, err)
	}
}

func TestCancelled(t *testing.T) {
	src, err := New(options(t, map[string]string{"max-items": "0"}))
	if err != nil {
		t.Fatal(err)
	}
	streams, _ := src.Streams(context.Background())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := streams[0].Open(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := streams[0].Read(ctx, pump.NewBatch(100)); !errors.Is(err, context.Canceled) {
		t.Errorf("an endless stream ended with %v", err)
	}
}

func TestNoAllocations(t *testing.T) {
	for _, values := range []map[string]string{
		{"max-items": "0", "min-value-size": "256"},
		{"max-items": "0", "min-value-size": "40", "max-value-size": "400", "json": "true", "ratio-sets": "0.9"},
	} {
		s, b := endless(t, values)
		if n := testing.AllocsPerRun(50, func() { fill(t, s, b) }); n != 0 {
			t.Errorf("%v: %v allocations per batch of %d items", values, n, b.Len())
		}
	}
}

func endless(t testing.TB, values map[string]string) (pump.Stream, *pump.Batch) {
	src, err := New(options(t, values))
	if err != nil {
		t.Fatal(err)
	}
	streams, _ := src.Streams(context.Background())
	if err := streams[0].Open(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	b := pump.NewBatch(256 << 10)
	fill(t, streams[0], b)
	return streams[0], b
}

func fill(t testing.TB, s pump.Stream, b *pump.Batch) {
	b.Reset()
	if err := s.Read(context.Background(), b); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkRead(b *testing.B) {
	s, batch := endless(b, map[string]string{"max-items": "0", "min-value-size": "256"})
	b.ReportAllocs()
	b.SetBytes(256 + 14)
	for n := 0; n < b.N; n += batch.Len() {
		fill(b, s, batch)
	}
}
