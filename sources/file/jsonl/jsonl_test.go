package jsonl_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	sink "github.com/cbpump/cbpump/sinks/file/jsonl"
	"github.com/cbpump/cbpump/sources/file/jsonl"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, path string) pump.Source {
	t.Helper()
	s, err := jsonl.New(path, jsonl.Options{MaxRecord: 1 << 20})
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

func write(t testing.TB, path string, items []pump.Item) {
	t.Helper()
	s, err := sink.New(path, sink.Options{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := filetest.WriteAll(t, s, items); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	for _, ending := range []string{"", ".gz", ".zst"} {
		t.Run("jsonl"+ending, func(t *testing.T) {
			var want []pump.Item
			for i := range 3000 {
				it := pump.Item{Key: fmt.Appendf(nil, "key %d", i%1000), Value: bytes.Repeat([]byte{byte(i)}, i%300), VBucket: uint16(i % 1000), CAS: uint64(i) << 40, RevSeqno: 1 << 63, Flags: uint32(i), Expiry: uint32(i), Datatype: 1}
				if i%10 == 9 {
					it.Op, it.Value = pump.Deletion, nil
				}
				want = append(want, it)
			}
			path := filepath.Join(t.TempDir(), "x.jsonl"+ending)
			write(t, path, want)
			pumptest.TestSource(t, pumptest.SourceSuite{
				New:  func(t *testing.T) pump.Source { return open(t, path) },
				Want: want,
			})
		})
	}
}

// TestWhatWeWriteWeRead is the round trip of any items through a file.
func TestWhatWeWriteWeRead(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		items := rapid.SliceOfN(filetest.Item(), 0, 20).Draw(rt, "items")
		path := filepath.Join(dir, "x.jsonl"+rapid.SampledFrom([]string{"", ".gz", ".zst"}).Draw(rt, "ending"))
		s, err := sink.New(path, sink.Options{Overwrite: true})
		if err != nil {
			rt.Fatal(err)
		}
		// One lane, so that the order is that of the items.
		s.Lane = 1
		if _, err := filetest.WriteAll(t, s, items); err != nil {
			rt.Fatal(err)
		}
		got, err := filetest.ReadAll(t, open(t, path), rapid.IntRange(0, 5000).Draw(rt, "arena"))
		if err != nil {
			rt.Fatal(err)
		}
		if len(got) != len(items) {
			rt.Fatalf("%d items were written, %d read", len(items), len(got))
		}
		for i := range items {
			if err := filetest.Same(&items[i], &got[i]); err != nil {
				rt.Fatalf("written and read: %v", err)
			}
		}
	})
}

// line is how encoding/json sees a line.
type line struct {
	Op         string  `json:"op"`
	VB         *uint16 `json:"vb,omitempty"`
	Collection string  `json:"collection,omitempty"`
	Key        *string `json:"key,omitempty"`
	KeyB64     *[]byte `json:"key_b64,omitempty"`
	Value      *string `json:"value,omitempty"`
	ValueB64   *[]byte `json:"value_b64,omitempty"`
	Flags      uint32  `json:"flags,omitempty"`
	Expiry     uint32  `json:"expiry,omitempty"`
	CAS        uint64  `json:"cas,omitempty,string"`
	Rev        uint64  `json:"rev,omitempty,string"`
	Seqno      uint64  `json:"seqno,omitempty,string"`
	Datatype   uint8   `json:"datatype,omitempty"`
	Meta       []byte  `json:"meta_b64,omitempty"`
}

func bytesOf(s *string, b *[]byte) []byte {
	switch {
	case s != nil:
		return []byte(*s)
	case b != nil:
		return *b
	}
	return nil
}

func (l *line) item() pump.Item {
	it := pump.Item{VBucket: pump.NoVBucket, Key: bytesOf(l.Key, l.KeyB64), Value: bytesOf(l.Value, l.ValueB64), Flags: l.Flags, Expiry: l.Expiry,
		CAS: l.CAS, RevSeqno: l.Rev, Seqno: l.Seqno, Datatype: l.Datatype, Meta: l.Meta}
	for op := pump.Mutation; op <= pump.Expiration; op++ {
		if op.String() == l.Op {
			it.Op = op
		}
	}
	if l.VB != nil {
		it.VBucket = *l.VB
	}
	if scope, name, ok := strings.Cut(l.Collection, "."); ok {
		it.Collection = &pump.Collection{Scope: scope, Name: name}
	}
	return it
}

// TestWriterAgainstEncodingJSON reads what we write with encoding/json.
func TestWriterAgainstEncodingJSON(t *testing.T) {
	order := []string{"op", "vb", "collection", "key", "key_b64", "value", "value_b64", "flags", "expiry", "cas", "rev", "seqno", "datatype", "meta_b64"}
	rapid.Check(t, func(rt *rapid.T) {
		it := filetest.Item().Draw(rt, "item")
		text, verdict, err := sink.Append(nil, &it)
		if verdict != pump.Done {
			rt.Fatalf("%s: %v", verdict, err)
		}
		var l line
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			rt.Fatalf("%v: %s", err, text)
		}
		got := l.item()
		if err := filetest.Same(&it, &got); err != nil {
			rt.Fatalf("%v\n%s", err, text)
		}
		if d.More() || bytes.Count(text, []byte("\n")) != 1 || text[len(text)-1] != '\n' {
			rt.Fatalf("not one line: %q", text)
		}
		// The keys come in the order of the schema.
		at := -1
		d = json.NewDecoder(bytes.NewReader(text))
		_, _ = d.Token()
		for d.More() {
			name, _ := d.Token()
			i := slices.Index(order, name.(string))
			if i <= at {
				rt.Fatalf("%q is out of order in %s", name, text)
			}
			at = i
			_, _ = d.Token()
		}
	})
}

// TestReaderAgainstEncodingJSON reads what encoding/json writes, which escapes
// in ways that we do not.
func TestReaderAgainstEncodingJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.jsonl")
	rapid.Check(t, func(rt *rapid.T) {
		it := filetest.Item().Draw(rt, "item")
		l := line{Op: it.Op.String(), Flags: it.Flags, Expiry: it.Expiry, CAS: it.CAS, Rev: it.RevSeqno, Seqno: it.Seqno, Datatype: it.Datatype, Meta: it.Meta}
		if it.VBucket != pump.NoVBucket {
			l.VB = &it.VBucket
		}
		if it.Collection != nil {
			l.Collection = it.Collection.String()
		}
		put := func(p []byte, s **string, b *[]byte) *[]byte {
			if text := string(p); !strings.Contains(strconv.Quote(text), `\x`) && !strings.Contains(text, "\x7f") && json.Valid([]byte(strconv.Quote(text))) || utf8Text(text) {
				*s = &text
				return nil
			}
			return &p
		}
		l.KeyB64 = put(it.Key, &l.Key, nil)
		l.ValueB64 = put(it.Value, &l.Value, nil)
		var text bytes.Buffer
		text.WriteString(sink.Header)
		e := json.NewEncoder(&text)
		e.SetEscapeHTML(rapid.Bool().Draw(rt, "html"))
		if err := e.Encode(l); err != nil {
			rt.Fatal(err)
		}
		if err := os.WriteFile(path, text.Bytes(), 0o666); err != nil {
			rt.Fatal(err)
		}
		got, err := filetest.ReadAll(t, open(t, path), 4096)
		if err != nil || len(got) != 1 {
			rt.Fatalf("%d items, %v: %s", len(got), err, text.Bytes())
		}
		if err := filetest.Same(&it, &got[0]); err != nil {
			rt.Fatalf("%v\n%s", err, text.Bytes())
		}
	})
}

func utf8Text(s string) bool { return strings.ToValidUTF8(s, "") == s }

func TestBadInput(t *testing.T) {
	const h = sink.Header
	long := `{"op":"mutation","key":"` + strings.Repeat("k", 2<<20)
	for name, c := range map[string]struct{ text, want string }{
		"empty":               {"", ":1:1: the file is empty"},
		"foreign":             {"SQLite format 3\x00", ":1:1: the first line is not"},
		"byte order mark":     {"\xef\xbb\xbf" + h, ":1:1: the file begins with a byte order mark"},
		"other object":        {"{}\n", ":1:1: the first line is not"},
		"other format":        {`{"format":"x","version":1}` + "\n", ":1:12: the first line is not"},
		"version 2":           {`{"format":"cbpump-jsonl","version":2}` + "\n", ":1:36: this is version 2"},
		"version is text":     {`{"format":"cbpump-jsonl","version":"1"}` + "\n", `:1:36: "version" is not a whole number`},
		"header has more":     {`{"format":"cbpump-jsonl","version":1,"x":1}` + "\n", `:1:39: there is no field "x"`},
		"header twice":        {`{"format":"cbpump-jsonl","version":1,"version":1}` + "\n", `:1:39: the field "version", or its twin, is there twice`},
		"header without end":  {strings.TrimSuffix(h, "\n"), ":1:38: the last line has no line end"},
		"no object":           {h + "[]\n", ":2:1: a line is an object"},
		"empty line":          {h + "\n", ":2:1: the line is empty"},
		"reason twice":        {h + `{"op":"mutation","key":"a","reason":"x","reason":"x"}` + "\n", `:2:42: the field "reason", or its twin, is there twice`},
		"reason no text":      {h + `{"op":"mutation","key":"a","reason_code":5}` + "\n", ":2:42:"},
		"reason in header":    {`{"format":"cbpump-jsonl","version":1,"reason":"x"}` + "\n", `:1:39: there is no field "reason"`},
		"unknown field":       {h + `{"op":"mutation","key":"a","x":1}` + "\n", `:2:29: there is no field "x"`},
		"twice":               {h + `{"op":"mutation","key":"a","key":"b"}` + "\n", ":2:29:"},
		"twins":               {h + `{"op":"mutation","key":"a","key_b64":"YQ=="}` + "\n", ":2:29:"},
		"no op":               {h + `{"key":"a"}` + "\n", `:2:12: the field "op" is missing`},
		"no key":              {h + `{"op":"mutation"}` + "\n", `:2:18: the field "key"`},
		"empty key":           {h + `{"op":"mutation","key":""}` + "\n", ":2:25: the key is empty"},
		"unknown op":          {h + `{"op":"add","key":"a"}` + "\n", `:2:8: "op" is none of`},
		"cas is a number":     {h + `{"op":"mutation","key":"a","cas":12}` + "\n", `:2:34: "cas" is not a string`},
		"cas is negative":     {h + `{"op":"mutation","key":"a","cas":"-1"}` + "\n", `:2:35: "cas" is not a string with`},
		"cas has 65 bits":     {h + `{"op":"mutation","key":"a","cas":"18446744073709551616"}` + "\n", `:2:35: "cas"`},
		"flags is text":       {h + `{"op":"mutation","key":"a","flags":"1"}` + "\n", `:2:36: "flags"`},
		"flags is a fraction": {h + `{"op":"mutation","key":"a","flags":1.0}` + "\n", `:2:36: "flags"`},
		"flags has 33 bits":   {h + `{"op":"mutation","key":"a","flags":4294967296}` + "\n", `:2:36: "flags"`},
		"leading zero":        {h + `{"op":"mutation","key":"a","flags":01}` + "\n", `:2:36: "flags"`},
		"null":                {h + `{"op":"mutation","key":"a","value":null}` + "\n", `:2:36: "value" is not a string`},
		"vb 65535":            {h + `{"op":"mutation","key":"a","vb":65535}` + "\n", `:2:33: "vb"`},
		"bad escape":          {h + `{"op":"mutation","key":"a\x"}` + "\n", ":2:26: this escape"},
		"half a pair":         {h + `{"op":"mutation","key":"\ud800"}` + "\n", ":2:25: this escape"},
		"pair turned round":   {h + `{"op":"mutation","key":"\udc00\ud800"}` + "\n", ":2:25: this escape"},
		"control character":   {h + "{\"op\":\"mutation\",\"key\":\"a\x01\"}\n", ":2:26: a control character"},
		"not UTF-8":           {h + "{\"op\":\"mutation\",\"key\":\"ab\xff\"}\n", ":2:27: this is not UTF-8"},
		"surrogate as UTF-8":  {h + "{\"op\":\"mutation\",\"key\":\"\xed\xa0\x80\"}\n", ":2:25: this is not UTF-8"},
		"not base64":          {h + `{"op":"mutation","key_b64":"YQ="}` + "\n", ":2:32: this is not base64"},
		"base64 of the web":   {h + `{"op":"mutation","key_b64":"_-8="}` + "\n", ":2:29: this is not base64"},
		"base64 line end":     {h + `{"op":"mutation","key_b64":"YWFh\nYWFh"}` + "\n", ":2:29: this is not base64"},
		"loose base64 bits":   {h + `{"op":"mutation","key_b64":"YR=="}` + "\n", ": this is not base64"},
		"collection":          {h + `{"op":"mutation","key":"a","collection":"a.b.c"}` + "\n", `:2:42: "collection"`},
		"garbage behind":      {h + `{"op":"mutation","key":"a"} {}` + "\n", ":2:29: something comes after"},
		"no comma":            {h + `{"op":"mutation" "key":"a"}` + "\n", ":2:18: a comma"},
		"comma at the end":    {h + `{"op":"mutation","key":"a",}` + "\n", ":2:28: the name of a field"},
		"no colon":            {h + `{"op" "mutation"}` + "\n", ":2:7: a colon"},
		"cut in a string":     {h + `{"op":"mutation","key":"a` + "\n", ":2:26: the string that begins at column 24 has no end"},
		"cut line":            {h + `{"op":"mutation","key":"a"}`, ":2:28: the last line has no line end"},
		"two files in one":    {h + `{"op":"mutation","key":"a"}` + "\n" + h, `:3:3: there is no field "format"`},
		"bad third line":      {h + `{"op":"mutation","key":"a"}` + "\n" + "x\n", ":3:1: a line is an object"},
		"line without end":    {h + long, ":2:1: what begins here does not end within 1m"},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, "x.jsonl", c.text)
			items, err := filetest.ReadAll(t, open(t, path), 64<<10)
			if err == nil {
				t.Fatalf("no error, %d items", len(items))
			}
			if pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(err.Error(), path+c.want) && !strings.HasPrefix(c.want, ": this") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %s%s", err, path, c.want)
			}
		})
	}
}

func TestOtherSpellings(t *testing.T) {
	path := file(t, "x.jsonl", ` {"version" : 1 , "format" : "cbpump-jsonl"} `+"\r\n"+
		`{"k\u0065y_b64":"YS8\/","\u006fp":"expir\u0061tion","cas":"\u0030","vb":0,"collection":"_default._default","value":"\ud83d\ude00\/\b\f"}`+"\r\n"+
		`{"op":"deletion","collection":"s.c","key":"\u0000"}`+"\n")
	got, err := filetest.ReadAll(t, open(t, path), 64<<10)
	if err != nil || len(got) != 2 {
		t.Fatalf("%d items, %v", len(got), err)
	}
	for i, want := range []pump.Item{
		{Op: pump.Expiration, Key: []byte("a/?"), Value: []byte("😀/\b\f")},
		{Op: pump.Deletion, Key: []byte{0}, VBucket: pump.NoVBucket, Collection: &pump.Collection{Scope: "s", Name: "c"}},
	} {
		if err := filetest.Same(&want, &got[i]); err != nil {
			t.Error(err)
		}
	}
}

// TestResume goes on from any mark, in files of every kind.
func TestResume(t *testing.T) {
	items := []pump.Item{{Key: []byte("first")}}
	for i := range 300 {
		items = append(items, pump.Item{Op: pump.Op(i % 3), Key: fmt.Appendf(nil, "%d", i), Value: bytes.Repeat([]byte("v\n\xff"), i), VBucket: pump.NoVBucket})
	}
	for _, ending := range []string{"", ".gz", ".zst"} {
		path := filepath.Join(t.TempDir(), "x.jsonl"+ending)
		write(t, path, items)
		filetest.Resume(t, func() pump.Source { return open(t, path) })
		filetest.ResumeChanged(t, path, func() pump.Source { return open(t, path) })
	}
}

func TestCutCompressedFiles(t *testing.T) {
	for _, ending := range []string{".gz", ".zst"} {
		path := filepath.Join(t.TempDir(), "x.jsonl"+ending)
		write(t, path, []pump.Item{{Key: []byte("a")}, {Key: []byte("b")}})
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(whole) {
			if _, err := filetest.ReadAll(t, open(t, file(t, "x.jsonl"+ending, string(whole[:n]))), 1000); err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s cut to %d of %d bytes: %v", ending, n, len(whole), err)
			}
			flipped := bytes.Clone(whole)
			flipped[n] ^= 0x10
			items, err := filetest.ReadAll(t, open(t, file(t, "x.jsonl"+ending, string(flipped))), 1000)
			if err == nil && (len(items) != 2 || string(items[0].Key) != "a") {
				t.Errorf("%s with byte %d changed gives other items and no error", ending, n)
			}
		}
	}
}

// TestDamagedFiles cuts a file and changes single bits of it.
func TestDamagedFiles(t *testing.T) {
	var want []pump.Item
	text := []byte(sink.Header)
	for i := range 400 {
		it := pump.Item{Key: fmt.Appendf(nil, "key %d", i), Value: fmt.Appendf(nil, `{"n":%d,"text":"J*j and \\ or ü"}`, i), VBucket: uint16(i), CAS: 1 << 60, RevSeqno: 3, Flags: 7, Datatype: 1}
		if i%5 == 0 {
			it.Value = bytes.Repeat([]byte{0xff, byte(i)}, 20)
		}
		want = append(want, it)
		text, _, _ = sink.Append(text, &it)
	}
	whole := string(text)
	path := file(t, "x.jsonl", whole)
	read := func(text string) ([]pump.Item, error) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		return filetest.ReadAll(t, open(t, path), 16<<10)
	}
	filetest.Damaged(t, whole, want, read)
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(sink.Header + `{"op":"mutation","vb":1,"collection":"a.b","key":"a\u00e9","value_b64":"YQ==","flags":1,"expiry":2,"cas":"3","rev":"4","seqno":"5","datatype":6,"meta_b64":"YQ=="}` + "\n"))
	f.Add([]byte(sink.Header + `{"op":"deletion","key_b64":"/w=="}` + "\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(dir, "x.jsonl")
		if err := os.WriteFile(path, text, 0o666); err != nil {
			t.Fatal(err)
		}
		items, err := filetest.ReadAll(t, open(t, path), 200)
		// Whatever is read must be what encoding/json reads.
		for i, l := range bytes.Split(text, []byte("\n")) {
			if i == 0 || i > len(items) {
				continue
			}
			var want line
			if jerr := json.Unmarshal(l, &want); jerr != nil {
				t.Fatalf("line %d was read and is not JSON: %v", i+1, jerr)
			}
			it := want.item()
			if c := it.Collection; c != nil && c.Scope == "_default" && c.Name == "_default" {
				it.Collection = nil
			}
			if serr := filetest.Same(&it, &items[i-1]); serr != nil {
				t.Fatalf("line %d: %v", i+1, serr)
			}
		}
		if err != nil {
			return
		}
		// And what was read whole can be written and read again.
		var again []byte
		again = append(again, sink.Header...)
		for i := range items {
			var verdict pump.Verdict
			if again, verdict, err = sink.Append(again, &items[i]); verdict != pump.Done {
				t.Fatalf("%s: %v", verdict, err)
			}
		}
		if err := os.WriteFile(path, again, 0o666); err != nil {
			t.Fatal(err)
		}
		second, err := filetest.ReadAll(t, open(t, path), 1<<20)
		if err != nil || len(second) != len(items) {
			t.Fatalf("%d items, then %d, %v", len(items), len(second), err)
		}
		for i := range items {
			if err := filetest.Same(&items[i], &second[i]); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// BenchmarkRead reads items of 256 bytes from a file in memory; one op is one item.
func BenchmarkRead(b *testing.B) {
	for name, value := range map[string][]byte{
		"text":   bytes.Repeat([]byte("abcdefgh"), 32),
		"json":   []byte(`{"name":"somebody","tags":["a","b","c"],"n":123456,"body":"` + strings.Repeat("x", 190) + `"}`),
		"binary": bytes.Repeat([]byte{0xff, 0, 1, 2}, 64),
	} {
		b.Run(name, func(b *testing.B) {
			const n = 20000
			var text []byte
			text = append(text, sink.Header...)
			for i := range n {
				it := pump.Item{Key: fmt.Appendf(nil, "gen-%010d", i), Value: value, CAS: 1 << 60, RevSeqno: 1, VBucket: 7, Datatype: 1}
				text, _, _ = sink.Append(text, &it)
			}
			path := file(b, "x.jsonl", string(text))
			streams, err := open(b, path).Streams(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			batch := pump.NewBatch(256 << 10)
			b.SetBytes(int64(len(text) / n))
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
