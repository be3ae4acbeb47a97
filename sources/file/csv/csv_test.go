package csv_test

import (
	"bytes"
	stdcsv "encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	sink "github.com/cbpump/cbpump/sinks/file/csv"
	"github.com/cbpump/cbpump/sources/file/csv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const golden = "../../../testdata/backups/"

func open(t testing.TB, path, encoding string) pump.Source {
	t.Helper()
	s, err := csv.New(path, csv.Options{MaxRecord: 1 << 20, Encoding: encoding})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func file(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConformance(t *testing.T) {
	for name, encoding := range map[string]string{"x.csv": "text", "x.csv.zst": "base64", "x.csv.gz": "text"} {
		t.Run(name, func(t *testing.T) {
			var want []pump.Item
			for i := range 2000 {
				want = append(want, pump.Item{Key: fmt.Appendf(nil, "key, \"%d\"", i%500), Value: bytes.Repeat([]byte("a\r\n\"b\","), i%50),
					VBucket: uint16(i % 500), CAS: 1 << 63, RevSeqno: 1 << 40, Flags: uint32(i), Expiry: uint32(i), Datatype: 1})
			}
			path := filepath.Join(t.TempDir(), name)
			s, err := sink.New(path, sink.Options{Encoding: encoding})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := filetest.WriteAll(t, s, want); err != nil {
				t.Fatal(err)
			}
			pumptest.TestSource(t, pumptest.SourceSuite{New: func(t *testing.T) pump.Source { return open(t, path, encoding) }, Want: want})
		})
	}
}

// TestRoundTrip writes any items and reads them back; those that CSV cannot hold
// are rejected, and only those.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		items := rapid.SliceOfN(filetest.Item(), 0, 20).Draw(rt, "items")
		encoding := rapid.SampledFrom([]string{"text", "base64"}).Draw(rt, "encoding")
		path := filepath.Join(dir, "x.csv")
		s, err := sink.New(path, sink.Options{Overwrite: true, Encoding: encoding})
		if err != nil {
			rt.Fatal(err)
		}
		s.Lane = 1
		var want []pump.Item
		for _, it := range items {
			isText := func(p []byte) bool { return utf8.Valid(p) && !bytes.Contains(p, []byte{0}) }
			if it.Op == pump.Mutation && it.Collection == nil && (encoding == "base64" || isText(it.Key) && isText(it.Value)) {
				it.Seqno, it.Meta = 0, nil // docs/files.md: not in CSV
				want = append(want, it)
			}
		}
		report, err := filetest.WriteAll(t, s, items)
		if int(report.Done) != len(want) || int(report.Rejected) != len(items)-len(want) || (err != nil) != (len(want) < len(items)) {
			rt.Fatalf("%d done, %d rejected of %d: %v", report.Done, report.Rejected, len(items), err)
		}
		got, err := filetest.ReadAll(t, open(t, path, encoding), rapid.IntRange(0, 3000).Draw(rt, "arena"))
		if err != nil || len(got) != len(want) {
			rt.Fatalf("%d items of %d, %v", len(got), len(want), err)
		}
		for i := range want {
			if err := filetest.Same(&want[i], &got[i]); err != nil {
				rt.Fatal(err)
			}
		}
		// An independent reader sees the same table, but for line ends in cells,
		// which it normalizes.
		text, err := os.ReadFile(path)
		if err != nil {
			rt.Fatal(err)
		}
		rows, err := stdcsv.NewReader(bytes.NewReader(text)).ReadAll()
		if err != nil || len(rows) != len(want)+1 || !bytes.HasPrefix(text, []byte(sink.Header)) {
			rt.Fatalf("encoding/csv: %d rows, %v", len(rows), err)
		}
		if encoding == "text" {
			for i := range want {
				if plain := strings.ReplaceAll(string(want[i].Value), "\r\n", "\n"); rows[i+1][4] != plain {
					rt.Fatalf("encoding/csv reads %q, want %q", rows[i+1][4], plain)
				}
			}
		}
	})
}

func TestBadInput(t *testing.T) {
	const h = "id,value,cas\r\n"
	for name, c := range map[string]struct{ text, want string }{
		"empty":                   {"", ":1:1: the file is empty"},
		"foreign":                 {"SQLite format 3\x00\n", ":1:16: a NUL byte"},
		"UTF-16":                  {"\xff\xfei\x00d\x00,\x00\n", ":1:1: it is UTF-16"},
		"no id":                   {"value,cas\n", `:1:1: the column "id" is missing`},
		"no value":                {"id,cas\n", `:1:1: the column "value" is missing`},
		"unknown column":          {"id,value,name\n", `:1:10: there is no column "name"`},
		"column in capitals":      {"ID,value\n", `:1:1: there is no column "ID"`},
		"column twice":            {"id,value,id\n", `:1:10: the column "id" is there twice`},
		"short row":               {h + "a,b\r\n", ":2:3: the row has 2 cells"},
		"long row":                {h + "a,b,1,d\r\n", ":2:7: the row has 4 cells"},
		"empty row":               {h + "\r\n", ":2:1: the line is empty"},
		"ragged after a long one": {h + "a,\"1\n2\n3\",1\r\nb\r\n", ":5:1: the row has 1 cells"},
		"empty id":                {h + ",b,1\r\n", ":2:1: the id is empty"},
		"not UTF-8":               {h + "a,b\xffc,1\r\n", ":2:4: this is not UTF-8"},
		"not UTF-8 in line 4":     {h + "a,\"x\ny\nz\xff\",1\r\n", ":4:2: this is not UTF-8"},
		"NUL":                     {h + "a,b\x00,1\r\n", ":2:4: a NUL byte"},
		"cas is text":             {h + "a,b,x\r\n", ":2:5: cas is not a whole number"},
		"cas is signed":           {h + "a,b,+1\r\n", ":2:5: cas"},
		"cas has a space":         {h + "a,b, 1\r\n", ":2:5: cas"},
		"cas is a float":          {h + "a,b,1e3\r\n", ":2:5: cas"},
		"vbid above 65535":        {"id,value,vbid\na,b,65536\n", ":2:5: vbid is not a whole number from 0 to 65535"},
		"cas has 65 bits":         {h + "a,b,18446744073709551616\r\n", ":2:5: cas"},
		"quote within":            {h + "a,b\"c,1\r\n", ":2:4: a quote within"},
		"text behind the quote":   {h + "a,\"b\"c,1\r\n", ":2:6: something comes between"},
		"quote not closed":        {h + "a,\"b,1\r\nc,d,2\r\n", ":2:3: the quote that opens here"},
		"lone CR":                 {h + "a,b\rc,1\r\n", ":2:4: a carriage return"},
		"cut in a number":         {h + "a,b,12", ":2:7: the last row has no line end"},
		"cut behind CR":           {h + "a,b,12\r", ":2:7: a carriage return"},
		"endless quote":           {h + "a,\"" + strings.Repeat("b\n", 1<<20), ":2:1: what begins here does not end within 1m"},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, "x.csv", c.text)
			items, err := filetest.ReadAll(t, open(t, path, "text"), 64<<10)
			if err == nil {
				t.Fatalf("no error, %d items", len(items))
			}
			if pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(err.Error(), path+c.want) {
				t.Errorf("got %v\nwant %s%s", err, path, c.want)
			}
		})
	}
	for text, want := range map[string]string{ // what spreadsheets make of it, and what to do about that
		"id;value\n":                   "separated by commas",
		"id\tvalue\n":                  "separated by commas",
		"sep=,\nid,value\n":            "separated by commas",
		"ID,value\n":                   "small letters",
		"id, value\n":                  "without spaces",
		"id,value,,\n":                 "Remove the empty column",
		"id,value,name\n":              "a column for each field",
		h + "a,b,1.79E+18\r\n":         "A spreadsheet has rounded it",
		h + "a,b,x\r\n":                "",
		"\xfe\xff\x00i\x00d":           "iconv",
		"PK\x03\x04\x14\x00\x06":       "Save the table as CSV",
		"\x1f\x8b\x08\x00\x00\x00\x00": "a name that ends in .gz",
		"\x28\xb5\x2f\xfd\x04\x58":     "a name that ends in .zst",
	} {
		_, err := filetest.ReadAll(t, open(t, file(t, "x.csv", text), "text"), 64<<10)
		if err == nil || !strings.Contains(pump.HintOf(err), want) || want == "" && pump.HintOf(err) != "" {
			t.Errorf("%q: %v, hint %q, want %q", text, err, pump.HintOf(err), want)
		}
	}
	for text, want := range map[string]string{"YQ=,YQ==,1\r\n": ":2:4: this is not base64", "\"YWFh\r\nYWFh\",YQ==,1\r\n": ":2:6: a line end within"} {
		path := file(t, "x.csv", h+text)
		if _, err := filetest.ReadAll(t, open(t, path, "base64"), 1000); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestNothingIsTakenForANumber(t *testing.T) {
	path := file(t, "x.csv", "\xef\xbb\xbfdtype,value,vbid,\"id\"\n,007,, 1 \n1,1e5,0,=A1\n,\"\",65535,\"-0\"")
	path2 := file(t, "y.csv", "value,id\r\n\r\r\n")
	got, err := filetest.ReadAll(t, open(t, path, "text"), 1000)
	if err != nil || len(got) != 3 {
		t.Fatalf("%d items, %v", len(got), err)
	}
	for i, want := range []pump.Item{
		{Key: []byte(" 1 "), Value: []byte("007"), VBucket: pump.NoVBucket},
		{Key: []byte("=A1"), Value: []byte("1e5"), Datatype: 1},
		{Key: []byte("-0"), VBucket: pump.NoVBucket},
	} {
		if err := filetest.Same(&want, &got[i]); err != nil {
			t.Error(err)
		}
	}
	if _, err := filetest.ReadAll(t, open(t, path2, "text"), 1000); err == nil {
		t.Error("a lone carriage return was read")
	}
}

// TestGoldenExports reads what the older tools wrote. Where their rows are not
// UTF-8, text says so and raw reads them; each row is what the server held, up
// to the NUL at which those tools cut.
func TestGoldenExports(t *testing.T) {
	for _, c := range []struct {
		folder, file string
		rows, cut    int
	}{
		{"2.5.1", "export.csv", 77, 0},
		{"3.0.3", "export_beer-sample_127.0.0.1%3A21380.csv", 0, 0},
		{"3.0.3", "export_beer-sample_localhost%3A21380.csv", 0, 0},
		{"4.0", "export_beer-sample_127.0.0.1%3A21380.csv", 0, 0},
		{"4.0", "export_beer-sample_localhost%3A21380.csv", 0, 0},
	} {
		path := filepath.Join(golden, c.folder, c.file)
		held := filetest.Golden(t, filepath.Join(golden, c.folder, "expected.jsonl"))
		if c.folder != "2.5.1" {
			for k, it := range filetest.Golden(t, filepath.Join(golden, c.folder, "expected-full.jsonl")) {
				held[fmt.Sprintf("%s %d", k, it.CAS)] = it // what a later change overwrote
			}
		}
		byCAS := map[uint64]pump.Item{}
		for _, it := range held {
			byCAS[it.CAS] = it
		}
		before, err := filetest.ReadAll(t, open(t, path, "text"), 1000)
		if err == nil || !strings.Contains(err.Error(), "this is not UTF-8") {
			t.Errorf("%s as text: %v", path, err)
		}
		items, err := filetest.ReadAll(t, open(t, path, "raw"), 1000)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if c.rows > 0 && len(items) != c.rows || len(items) < 70 || len(before) >= len(items) {
			t.Errorf("%s has %d rows", path, len(items))
		}
		whole := 0
		for i := range items {
			got, want := items[i], byCAS[items[i].CAS]
			if _, found := byCAS[got.CAS]; !found {
				t.Errorf("%s: no item has the CAS of %q", path, got.Key)
				continue
			}
			if bytes.IndexByte(want.Key, 0) >= 0 || bytes.IndexByte(want.Value, 0) >= 0 {
				want.Key, _, _ = bytes.Cut(want.Key, []byte{0})
				want.Value, _, _ = bytes.Cut(want.Value, []byte{0})
			} else {
				whole++
			}
			if c.folder == "2.5.1" { // that tool wrote five columns
				want.VBucket, want.RevSeqno, want.Datatype = pump.NoVBucket, 0, 0
			}
			if err := filetest.Same(&want, &got); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
		if whole < 50 {
			t.Errorf("%s: only %d rows are whole", path, whole)
		}
	}
}

func TestGoldenTablesOfFieldsAreRefused(t *testing.T) {
	for _, name := range []string{"2.5.1/export-json.csv", "4.0/export-json_beer-sample_127.0.0.1%3A21380.csv"} {
		_, err := filetest.ReadAll(t, open(t, golden+name, "text"), 1000)
		if err == nil || !strings.Contains(err.Error(), `:1:4: there is no column "name"`) || pump.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestResume goes on from any mark: behind the header, and between lines of a cell.
func TestResume(t *testing.T) {
	var text strings.Builder
	text.WriteString("value,id\n")
	for i := range 400 {
		fmt.Fprintf(&text, "\"%s\",%d\r\n", strings.Repeat("line\n", i%20), i)
	}
	path := file(t, "x.csv", text.String())
	filetest.Resume(t, func() pump.Source { return open(t, path, "text") })
	filetest.ResumeChanged(t, path, func() pump.Source { return open(t, path, "text") })
}

// TestDamagedFiles cuts a file and changes single bits of it.
func TestDamagedFiles(t *testing.T) {
	var want []pump.Item
	for i := range 400 {
		want = append(want, pump.Item{Key: fmt.Appendf(nil, "key-%d", i), Value: fmt.Appendf(nil, `J*j, "text" of %d and so on, ü`, i*i), VBucket: uint16(i), CAS: 1 << 60, RevSeqno: 3, Flags: 7, Datatype: 1})
		if i%5 == 0 {
			want[i].Value = []byte("J*j: no quotes are needed for this")
		}
	}
	out := filepath.Join(t.TempDir(), "whole.csv")
	s, err := sink.New(out, sink.Options{Encoding: "text"})
	if err != nil {
		t.Fatal(err)
	}
	s.Lane = 1
	if _, err := filetest.WriteAll(t, s, want); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	whole := string(text)
	path := file(t, "x.csv", whole)
	read := func(text string) ([]pump.Item, error) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		return filetest.ReadAll(t, open(t, path, "text"), 16<<10)
	}
	filetest.Damaged(t, whole, want, read)
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("id,value,cas\r\na,\"b\"\"c\r\n\",1\r\nd,,\n"), uint8(0))
	f.Add([]byte("value,id\r\nYQ==,\"YWI=\"\r\n"), uint8(1))
	f.Add([]byte("\xef\xbb\xbfdtype,vbid,rev,value,expiration,flags,id\r\n1,2,3,\xff,4,5,6\r\n"), uint8(2))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte, how uint8) {
		encoding := []string{"text", "base64", "raw"}[how%3]
		path := filepath.Join(dir, "x.csv")
		if err := os.WriteFile(path, text, 0o666); err != nil {
			t.Fatal(err)
		}
		items, err := filetest.ReadAll(t, open(t, path, encoding), 200)
		if err != nil || encoding == "raw" {
			return
		}
		// What was read whole, encoding/csv reads too.
		r := stdcsv.NewReader(bytes.NewReader(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))))
		r.FieldsPerRecord = -1
		rows, rerr := r.ReadAll()
		if rerr != nil || len(rows) != len(items)+1 {
			t.Fatalf("%d items; encoding/csv: %d rows, %v", len(items), len(rows), rerr)
		}
		// And writing and reading again changes nothing.
		s, err := sink.New(path, sink.Options{Overwrite: true, Encoding: encoding})
		if err != nil {
			t.Fatal(err)
		}
		s.Lane = 1
		if _, err := filetest.WriteAll(t, s, items); err != nil {
			t.Fatal(err)
		}
		again, err := filetest.ReadAll(t, open(t, path, encoding), 200)
		if err != nil || len(again) != len(items) {
			t.Fatalf("%d items of %d, %v", len(again), len(items), err)
		}
		for i := range items {
			if err := filetest.Same(&items[i], &again[i]); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// BenchmarkRead reads items of 256 bytes; one op is one item.
func BenchmarkRead(b *testing.B) {
	for name, value := range map[string]string{
		"text": strings.Repeat("abcdefgh", 32),
		"json": `"{""name"":""somebody"",""n"":123456,""body"":""` + strings.Repeat("x", 205) + `""}"`,
	} {
		b.Run(name, func(b *testing.B) {
			const n = 20000
			text := []byte(sink.Header)
			for i := range n {
				text = fmt.Appendf(text, "gen-%010d,0,0,1234567890123,%s,1,7,1\r\n", i, value)
			}
			path := file(b, "x.csv", string(text))
			streams, err := open(b, path, "text").Streams(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			batch := pump.NewBatch(256 << 10)
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; {
				if err := streams[0].Open(b.Context(), nil); err != nil {
					b.Fatal(err)
				}
				for err = nil; err == nil; {
					batch.Reset()
					err = streams[0].Read(b.Context(), batch)
					done += batch.Len()
				}
			}
			b.StopTimer()
			if err := streams[0].Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
