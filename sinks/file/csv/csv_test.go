package csv_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/sinks/file/csv"
	"github.com/cbpump/cbpump/sinks/null"
	source "github.com/cbpump/cbpump/sources/file/csv"
	"github.com/cbpump/cbpump/sources/gen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	var path string
	pumptest.TestSink(t, pumptest.SinkSuite{
		New: func(t *testing.T) pump.Sink {
			path = filepath.Join(t.TempDir(), "x.csv")
			s, err := csv.New(path, csv.Options{Encoding: "base64"})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Read: func(t *testing.T) map[string]pump.Item {
			held := map[string]pump.Item{}
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return held // it was not committed
			}
			s, err := source.New(path, source.Options{Encoding: "base64", MaxRecord: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			items, err := filetest.ReadAll(t, s, 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range items {
				held[string(it.Key)] = it
			}
			return held
		},
		Compare:     []string{"vbucket", "flags", "expiry", "cas", "rev", "datatype"},
		NoDeletions: true,
	})
}

// TestWhatCSVDoesNotHold has a verdict for each, and the others are written.
func TestWhatCSVDoesNotHold(t *testing.T) {
	items := []pump.Item{
		{Key: []byte("plain"), Value: []byte("a,b"), VBucket: pump.NoVBucket},
		{Key: []byte("gone"), Op: pump.Deletion},
		{Key: []byte("over"), Op: pump.Expiration},
		{Key: []byte("binary"), Value: []byte{0xff}},
		{Key: []byte("nul"), Value: []byte{0}},
		{Key: []byte("key\xff")},
		{Key: []byte("elsewhere"), Collection: &pump.Collection{Scope: "s", Name: "c"}},
		{Key: []byte(" space "), Value: []byte("say \"hi\"\r\n"), VBucket: 3, CAS: 1 << 63, RevSeqno: 2, Flags: 4, Expiry: 5, Datatype: 1},
	}
	for _, c := range []struct {
		deletions         string
		rejected, skipped uint64
	}{{"reject", 6, 0}, {"skip", 4, 2}} {
		path := filepath.Join(t.TempDir(), "x.csv")
		s, err := csv.New(path, csv.Options{Deletions: c.deletions})
		if err != nil {
			t.Fatal(err)
		}
		report, err := filetest.WriteAll(t, s, items)
		if pump.ExitCode(err, 0) != 3 || report.Rejected != c.rejected || report.Skipped != c.skipped || report.Done != 2 {
			t.Errorf("%d done, %d rejected, %d skipped, %v", report.Done, report.Rejected, report.Skipped, err)
		}
		for _, r := range report.Rejections {
			if r.Cause == nil {
				t.Errorf("%q is rejected without a reason", r.Key)
			}
		}
		text, err := os.ReadFile(path)
		want := csv.Header + "plain,0,0,0,\"a,b\",0,,0\r\n" + "\" space \",4,5,9223372036854775808,\"say \"\"hi\"\"\r\n\",2,3,1\r\n"
		other := csv.Header + "\" space \",4,5,9223372036854775808,\"say \"\"hi\"\"\r\n\",2,3,1\r\n" + "plain,0,0,0,\"a,b\",0,,0\r\n"
		if err != nil || string(text) != want && string(text) != other { // two lanes
			t.Errorf("%q, %v", text, err)
		}
	}
}

// BenchmarkThroughTheEngine moves b.N generated items of 256 bytes into a file,
// and back; one op is one item.
func BenchmarkThroughTheEngine(b *testing.B) {
	path := filepath.Join(b.TempDir(), "x.csv")
	write := func(b *testing.B) (*pump.Report, error) {
		from, err := gen.New(gen.Options{MaxItems: uint64(b.N), MinValueSize: 256, JSON: true, RatioSets: 1, Streams: 2, Prefix: "gen-"})
		if err != nil {
			b.Fatal(err)
		}
		to, err := csv.New(path, csv.Options{Overwrite: true})
		if err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		return pump.Run(context.Background(), pump.Config{Source: from, Sink: to, Settings: pump.DefaultSettings()})
	}
	b.Run("gen to csv", func(b *testing.B) {
		b.ReportAllocs()
		report, err := write(b)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(report.Done)/b.Elapsed().Seconds(), "items/s")
	})
	b.Run("csv to null", func(b *testing.B) {
		if _, err := write(b); err != nil {
			b.Fatal(err)
		}
		from, err := source.New(path, source.Options{Encoding: "text", MaxRecord: 1 << 20})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		b.ResetTimer()
		report, err := pump.Run(context.Background(), pump.Config{Source: from, Sink: null.New(), Settings: pump.DefaultSettings()})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(report.Done)/b.Elapsed().Seconds(), "items/s")
	})
}
