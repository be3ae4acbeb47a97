package cbb

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
	"zombiezen.com/go/sqlite"

	"github.com/cbpump/cbpump/pump"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const golden = "../../testdata/backups"

func TestRevisions(t *testing.T) {
	for _, c := range []struct {
		bytes string
		want  uint64
		fails bool
	}{
		{"", 0, false},
		{"\x00\x00\x00\x00\x00\x00\x00\x02", 2, false},
		{"\x00\x00\x00\x00\x00\x00\x00\x01\x01", 1, false},
		{"\xff\xff\xff\xff\xff\xff\xff\xff", math.MaxUint64, false},
		{"0", 0, false},
		{"12", 12, false},
		{"12345678", 12345678, false}, // text, not 0x3132…
		{"123456789", 123456789, false},
		{"1234567\x00", 0x3132333435363700, false},
		{"18446744073709551615", math.MaxUint64, false},
		{"18446744073709551616", 0, true},
		{"99999999999999999999", 0, true},
		{"-1", 0, true},
		{"\x00\x01", 0, true},
		{"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 0, true},
	} {
		got, err := parseRev([]byte(c.bytes))
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%q: %d, %v; want %d", c.bytes, got, err, c.want)
		}
	}
}

func TestQuote(t *testing.T) {
	for name, want := range map[string]string{
		"beer-sample": "beer-sample", "127.0.0.1:21380": "127.0.0.1%3A21380", "[::1]:8091": "%5B%3A%3A1%5D%3A8091",
		"a b": "a+b", "../x/y": "..%2Fx%2Fy", "~": "%7E", "ä": "%C3%A4", "a_b.c": "a_b.c", "%": "%25",
	} {
		if got := Quote(name); got != want {
			t.Errorf("%q is quoted %q, want %q", name, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.String().Draw(t, "name")
		if got := unquote(Quote(name)); got != name {
			t.Fatalf("%q comes back as %q", name, got)
		}
	})
	if got := unquote("100%"); got != "100%" {
		t.Errorf("a name that was not quoted comes back as %q", got)
	}
}

func TestDataNames(t *testing.T) {
	for n, want := range map[int]string{0: "data-0000.cbb", 42: "data-0042.cbb", 9999: "data-9999.cbb", 10000: "data-10000.cbb"} {
		if got := DataName(n); got != want || !dataName.MatchString(got) {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// The slot of a key is that of its vbucket in every bucket whose number of
// vbuckets is a multiple of the number of slots.
func TestSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 1, 250).Draw(t, "key")
		slot := Slot(key)
		if slot < 0 || slot >= Slots {
			t.Fatalf("slot %d", slot)
		}
	})
	for key, vb := range map[string]int{"beer_006": 0, "beer_082": 4, "beer_022": 11, `text,"133"`: 0} { // the golden backups
		if Slot([]byte(key)) != vb%Slots {
			t.Errorf("%q is in slot %d, its vbucket is %d", key, Slot([]byte(key)), vb)
		}
	}
}

func TestJSONFiles(t *testing.T) {
	if got := string(SeqnoJSON(map[uint16]uint64{10: 3, 2: 1 << 62, 0: 1})); got != `{"0": 1, "2": 4611686018427387904, "10": 3}` {
		t.Error(got)
	}
	if got := string(SeqnoJSON(nil)); got != "{}" {
		t.Error(got)
	}
	if got := string(MetaJSON([]string{"2026-01-01T000000Z-full", "b"})); got != `{"pred": ["2026-01-01T000000Z-full", "b"]}` {
		t.Error(got)
	}
	for text, want := range map[string]string{
		`{"pred": []}`: "[]",
		`{"pred": ["2026-01-01T000000Z-full", "/b/2026-01-01T000000Z/2026-01-01T000000Z-full/bucket-x/node-y", "C:\\b\\2026-01-01T000001Z-diff"]}`: "[2026-01-01T000000Z-full 2026-01-01T000001Z-diff]",
	} {
		if got, err := ParsePred([]byte(text)); fmt.Sprint(got) != want || err != nil {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "{}", `{"pred": null}`, `{"pred": "x"}`, `{"pred": ["x"]}`, `{"pred": [1]}`, `[]`, `{"pred": []} {}`} {
		if got, err := ParsePred([]byte(text)); err == nil {
			t.Errorf("%s: %v", text, got)
		}
	}
	for _, text := range []string{"", "[]", `{"a": 1}`, `{"01": 1}`, `{"65536": 1}`, `{"1": -1}`, `{"1": 1.5}`, `{"1": "1"}`} {
		if got, err := ParseSeqno([]byte(text)); err == nil {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestGoldenJSONFilesComeOutAsTheyWere(t *testing.T) {
	// In 3.0.3 the vbuckets stand in order, as ours do.
	files, err := filepath.Glob(filepath.Join(golden, "3.0.3/backup/*/*/*/*/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		switch filepath.Base(f) {
		case MetaFile:
			pred, err := ParsePred(text)
			if err != nil {
				t.Fatal(err)
			}
			got = MetaJSON(pred)
		case SeqnoFile:
			highest, err := ParseSeqno(text)
			if err != nil {
				t.Fatal(err)
			}
			got = SeqnoJSON(highest)
		default:
			continue
		}
		if !bytes.Equal(got, text) {
			t.Errorf("%s\n%s\ncomes out as\n%s", f, text, got)
		}
	}
}

func TestNextTimeIsLater(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)
	for newest, want := range map[string]string{
		"": "2026-03-04T050607Z", "2026-03-04T050606Z": "2026-03-04T050607Z",
		"2026-03-04T050607Z": "2026-03-04T050608Z", "2027-01-01T000000Z": "2027-01-01T000001Z", // the clock went back
	} {
		g := Ground{Newest: newest}
		if got := g.Next(now).Format(TimeFormat); got != want {
			t.Errorf("after %q: %s, want %s", newest, got, want)
		}
	}
}

// A statement that SQLite refuses for want of room is a full disk by name.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data-0000.cbb")
	w, err := Create(path, About("b", "n", time.Time{}))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abandon()
	if err := run(w.conn, "PRAGMA max_page_count=8", nil); err != nil {
		t.Fatal(err)
	}
	items := []pump.Item{{Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 20000)}, {Key: []byte("k"), Value: bytes.Repeat([]byte("v"), 300000)}}
	if n, err := w.Add(items); pump.CodeOf(err) != "disk-full" || n != 1 || !strings.Contains(err.Error(), path+", row 2") {
		t.Errorf("%d, %v", n, err)
	}
	_, first := w.Add(items)
	if _, again := w.Add(items); first == nil || !errors.Is(again, first) {
		t.Errorf("after a failure: %v", again)
	}
	if err := w.Finish(); err == nil {
		t.Error("a file that failed was finished")
	}
	if _, err := Create(path, nil); err == nil {
		t.Error("a file was overwritten")
	}
}

// An unfinished file is nothing that a reader would take for a data file.
func TestUnfinishedFileIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data-0000.cbb")
	w, err := Create(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 { // beyond the cache, so that pages are written
		if _, err := w.Add([]pump.Item{{Key: []byte("k"), Value: make([]byte, 100000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := OpenReader(path); err == nil {
		t.Error("it was opened while it was written")
		_ = r.Close()
	}
	w.Abandon()
	if r, err := OpenReader(path); err == nil {
		t.Error("it was opened after it was abandoned")
		_ = r.Close()
	}
}

// finished writes a data file with these items.
func finished(t *testing.T, items ...pump.Item) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data-0000.cbb")
	w, err := Create(path, nil)
	if err == nil {
		_, err = w.Add(items)
	}
	if err == nil {
		err = w.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNobodyWritesMeanwhile: a tool that wants to write a file that is read is told
// that it is locked.
func TestNobodyWritesMeanwhile(t *testing.T) {
	path := finished(t, pump.Item{Key: []byte("a")}, pump.Item{Key: []byte("b")})
	r, err := OpenReader(path)
	if err == nil {
		err = r.Begin(0, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	conn, err := connect(path, sqlite.OpenReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	const write = "INSERT INTO cbb_meta VALUES ('a', 'b')"
	if err := run(conn, write, nil); sqlite.ErrCode(err).ToPrimary() != sqlite.ResultBusy {
		t.Errorf("written while it is read: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := run(conn, write, nil); err != nil {
		t.Errorf("nobody reads it any more: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// TestWhatIsEmptyIsNotNull: the Python tools ask for the length of key, value and
// revision of every row, which NULL has not.
func TestWhatIsEmptyIsNotNull(t *testing.T) {
	path := finished(t, pump.Item{Key: []byte("a")}, pump.Item{Key: []byte("b"), Op: pump.Deletion})
	conn, err := connect(path, sqlite.OpenReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	if err := run(conn, "SELECT quote(cas), quote(meta), quote(val) FROM cbb_msg", func(s *sqlite.Stmt) {
		rows++
		if got := s.ColumnText(0) + s.ColumnText(1) + s.ColumnText(2); got != "'0'X''X''" {
			t.Errorf("row %d has %s", rows, got)
		}
	}); err != nil || rows != 2 {
		t.Error(rows, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzMeta(f *testing.F) {
	f.Add([]byte(`{"pred": ["2026-01-01T000000Z-full"]}`))
	f.Add([]byte(`{"0": 17, "1": 9}`))
	f.Add([]byte(strings.Repeat("0", 64) + "  data-0000.cbb\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if pred, err := ParsePred(text); err == nil {
			if again, err := ParsePred(MetaJSON(pred)); err != nil || fmt.Sprint(again) != fmt.Sprint(pred) {
				t.Errorf("%q comes back as %q, %v", pred, again, err)
			}
		}
		if highest, err := ParseSeqno(text); err == nil {
			if again, err := ParseSeqno(SeqnoJSON(highest)); err != nil || fmt.Sprint(again) != fmt.Sprint(highest) {
				t.Errorf("%v comes back as %v, %v", highest, again, err)
			}
		}
		if sums, err := ParseSums(text); err == nil {
			if again, err := ParseSums(sums.Format()); err != nil || fmt.Sprint(again) != fmt.Sprint(sums) {
				t.Errorf("%v comes back as %v, %v", sums, again, err)
			}
		}
	})
}

func FuzzNumbers(f *testing.F) {
	for _, s := range []string{"", "12345678", "\x00\x00\x00\x00\x00\x00\x00\x01\x01", "18446744073709551616"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if n, err := parseRev(p); err == nil && isDigits(p) {
			if want := strings.TrimLeft(string(p), "0"); fmt.Sprint(n) != want && (n != 0 || want != "") {
				t.Errorf("%q was read as %d", p, n)
			}
		}
		if n, err := parseCAS(p); err == nil && len(p) > 0 && !isDigits(p) {
			t.Errorf("%q was read as %d", p, n)
		}
	})
}

func FuzzHeader(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(golden, "*/backup/*/*/*.cbb"))
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[:headerLen], int64(len(data)))
	}
	f.Fuzz(func(t *testing.T, header []byte, size int64) {
		if size < 0 {
			return
		}
		header = header[:min(int64(len(header)), size, headerLen)]
		code, err := checkHeader(header, size)
		if (err == nil) != (code == "") {
			t.Errorf("code %q with %v", code, err)
		}
	})
}

// FuzzDataFile reads any bytes as a data file: what comes of it is an error or
// rows, and no row comes twice.
// goldenFiles are data files of backups that the older tools made.
func goldenFiles(f *testing.F) (all [][]byte) {
	f.Helper()
	for _, pattern := range []string{"2.5.1/backup/*/*/*.cbb", "4.0/backup/*/*-diff/*/*/*.cbb"} {
		files, err := filepath.Glob(filepath.Join(golden, pattern))
		if err != nil || len(files) == 0 {
			f.Fatal(files, err)
		}
		data, err := os.ReadFile(files[0])
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, data)
	}
	return all
}

func FuzzDataFile(f *testing.F) {
	for _, data := range goldenFiles(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "data-0000.cbb")
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := (&DataFile{Path: path}).Verify(t.Context(), false); err != nil {
			return
		}
		r, err := OpenReader(path)
		if err != nil {
			return
		}
		defer r.Close()
		if err := r.Begin(0, false); err != nil {
			return
		}
		for n := int64(1); ; n++ {
			more, err := r.Next()
			if err != nil || !more {
				return
			}
			if r.Row() != n {
				t.Fatalf("row %d is the %dth", r.Row(), n)
			}
			key, value, err := r.Sizes()
			if err != nil {
				return
			}
			if key+value > len(data) {
				t.Fatalf("a row of %d bytes in a file of %d", key+value, len(data))
			}
			mem := make([]byte, key+value)
			var it pump.Item
			if err := r.Item(&it, mem, key); err != nil {
				return
			}
		}
	})
}
