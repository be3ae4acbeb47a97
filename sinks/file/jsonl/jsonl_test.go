package jsonl_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/sinks/file/jsonl"
	"github.com/cbpump/cbpump/sinks/null"
	source "github.com/cbpump/cbpump/sources/file/jsonl"
	"github.com/cbpump/cbpump/sources/gen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	for _, ending := range []string{"", ".gz", ".zst"} {
		t.Run("jsonl"+ending, func(t *testing.T) {
			var path string
			pumptest.TestSink(t, pumptest.SinkSuite{
				New: func(t *testing.T) pump.Sink {
					path = filepath.Join(t.TempDir(), "x.jsonl"+ending)
					s, err := jsonl.New(path, jsonl.Options{})
					if err != nil {
						t.Fatal(err)
					}
					return s
				},
				Read:    func(t *testing.T) map[string]pump.Item { return state(t, path) },
				Compare: []string{"vbucket", "flags", "expiry", "cas", "rev", "datatype"},
			})
		})
	}
}

// state applies the items of a file in their order.
func state(t *testing.T, path string) map[string]pump.Item {
	held := map[string]pump.Item{}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return held // it was not committed
	}
	s, err := source.New(path, source.Options{MaxRecord: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	items, err := filetest.ReadAll(t, s, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		held[string(it.Key)] = it
		if it.Op != pump.Mutation {
			delete(held, string(it.Key))
		}
	}
	return held
}

// TestFailedRunLeavesNoFile: a sink that is closed after a cut source must not
// pass for complete.
func TestFailedRunLeavesNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.jsonl")
	s, err := jsonl.New(path, jsonl.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cut := errors.New("cut")
	src := &pumptest.MemSource{Parts: [][]pump.Item{{{Key: []byte("a")}, {Key: []byte("b")}}}, BatchSize: 1, Fail: func(_, given int) error {
		if given == 1 {
			return cut
		}
		return nil
	}}
	if _, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: s, Settings: pump.DefaultSettings()}); !errors.Is(err, cut) {
		t.Fatalf("Run: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file has its final name (%v)", err)
	}
	if text, err := os.ReadFile(path + ".partial"); err != nil || string(text) != jsonl.Header+`{"op":"mutation","vb":0,"key":"a","value":""}`+"\n" {
		t.Errorf("the partial file holds %q, %v", text, err)
	}
}

func TestWhatNoFileHolds(t *testing.T) {
	for name, it := range map[string]pump.Item{
		"no key":            {},
		"unknown op":        {Op: 9, Key: []byte("a")},
		"dot in a name":     {Key: []byte("a"), Collection: &pump.Collection{Scope: "a.b", Name: "c"}},
		"collection's name": {Key: []byte("a"), Collection: &pump.Collection{Scope: "a"}},
	} {
		if dst, verdict, why := jsonl.Append([]byte("before"), &it); verdict != pump.Rejected || why == nil || string(dst) != "before" {
			t.Errorf("%s: %q, %s, %v", name, dst, verdict, why)
		}
	}
}

// TestLargeItems: 20 MiB of anything come back, the worst case of escaping too.
func TestLargeItems(t *testing.T) {
	const size = 20 << 20
	for name, fill := range map[string]byte{"text": 'x', "control characters": 1, "binary": 0xff} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.jsonl.zst")
			value := make([]byte, size)
			for i := range value {
				value[i] = fill
			}
			s, err := jsonl.New(path, jsonl.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := filetest.WriteAll(t, s, []pump.Item{{Key: []byte("a"), Value: value}, {Key: []byte("b")}}); err != nil {
				t.Fatal(err)
			}
			var o source.Options
			if err := pump.DecodeOptions("jsonl", nil, &o); err != nil {
				t.Fatal(err)
			}
			src, err := source.New(path, o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := filetest.ReadAll(t, src, 64<<10)
			if err != nil || len(got) != 2 || string(got[0].Value) != string(value) {
				t.Errorf("%d items, %v", len(got), err)
			}
		})
	}
}

func ExampleAppend() {
	line, _, _ := jsonl.Append(nil, &pump.Item{
		VBucket: 7, Key: []byte("beer_1"), Value: []byte(`{"abv":4.1}`), Flags: 33554438, CAS: 1795356482941222912, RevSeqno: 3, Datatype: 1,
	})
	fmt.Print(string(line))
	// Output: {"op":"mutation","vb":7,"key":"beer_1","value":"{\"abv\":4.1}","flags":33554438,"cas":"1795356482941222912","rev":"3","datatype":1}
}

// BenchmarkAppend encodes items of 256 bytes; one op is one item.
func BenchmarkAppend(b *testing.B) {
	it := pump.Item{VBucket: 7, Key: []byte("gen-0000000042"), Value: []byte(`{"i":42,"body":"` + fmt.Sprintf("%0238d", 7) + `"}`), CAS: 1 << 60, RevSeqno: 3, Datatype: 1}
	var dst []byte
	b.SetBytes(int64(len(it.Value)))
	b.ReportAllocs()
	for b.Loop() {
		dst, _, _ = jsonl.Append(dst[:0], &it)
	}
}

// BenchmarkThroughTheEngine moves b.N generated items of 256 bytes into a file,
// and back; one op is one item.
func BenchmarkThroughTheEngine(b *testing.B) {
	for _, ending := range []string{".jsonl", ".jsonl.zst", ".jsonl.gz"} {
		path := filepath.Join(b.TempDir(), "x"+ending)
		run := func(b *testing.B, from pump.Source, to pump.Sink) {
			b.Helper()
			b.ReportAllocs()
			b.ResetTimer()
			report, err := pump.Run(context.Background(), pump.Config{Source: from, Sink: to, Settings: pump.DefaultSettings()})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(report.Done)/b.Elapsed().Seconds(), "items/s")
		}
		b.Run("gen to "+ending, func(b *testing.B) {
			from, err := gen.New(gen.Options{MaxItems: uint64(b.N), MinValueSize: 256, JSON: true, RatioSets: 1, Streams: 2, Prefix: "gen-"})
			if err != nil {
				b.Fatal(err)
			}
			to, err := jsonl.New(path, jsonl.Options{Overwrite: true})
			if err != nil {
				b.Fatal(err)
			}
			run(b, from, to)
		})
		b.Run(ending+" to null", func(b *testing.B) {
			from, err := gen.New(gen.Options{MaxItems: uint64(b.N), MinValueSize: 256, JSON: true, RatioSets: 1, Streams: 2, Prefix: "gen-"})
			if err != nil {
				b.Fatal(err)
			}
			to, err := jsonl.New(path, jsonl.Options{Overwrite: true})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := pump.Run(context.Background(), pump.Config{Source: from, Sink: to, Settings: pump.DefaultSettings()}); err != nil {
				b.Fatal(err)
			}
			back, err := source.New(path, source.Options{MaxRecord: 1 << 20})
			if err != nil {
				b.Fatal(err)
			}
			run(b, back, null.New())
		})
	}
}
