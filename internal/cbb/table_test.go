package cbb

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
	"zombiezen.com/go/sqlite"
)

// anyValue is a value of any type that SQLite has, as an argument to bind.
func anyValue() *rapid.Generator[any] {
	return rapid.Custom(func(t *rapid.T) any {
		switch rapid.IntRange(0, 5).Draw(t, "type") {
		case 0:
			return nil
		case 1:
			return rapid.Int64().Draw(t, "integer")
		case 2: // all widths
			return rapid.SampledFrom([]int64{0, 1, -1, 127, -128, 128, 32767, -32768, 1 << 23, -1 << 23, 1 << 31, -1 << 31, 1 << 47, -1 << 47, math.MaxInt64, math.MinInt64}).Draw(t, "edge")
		case 3:
			return rapid.Float64().Draw(t, "real")
		case 4:
			return rapid.String().Draw(t, "text")
		}
		n := rapid.SampledFrom([]int{0, 1, 30, 400, 481, 4061, 4096, 20000, 70000}).Draw(t, "bytes") + rapid.IntRange(0, 3).Draw(t, "more")
		return bytes.Repeat([]byte{byte(n), byte(n >> 8), 7}, n/3+1)[:n]
	})
}

// TestTableAgainstSQLite reads tables of all kinds of pages, rows and values as SQLite
// itself does, from the beginning and from behind any row.
func TestTableAgainstSQLite(t *testing.T) {
	dir, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, fmt.Sprint(n))
		conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
		if err != nil {
			t.Fatal(err)
		}
		closed := false
		defer func() {
			if !closed {
				_ = conn.Close()
			}
			_ = os.Remove(path)
		}()
		do := func(query string, args ...any) {
			stmt, err := conn.Prepare(query)
			if err != nil {
				t.Fatal(err)
			}
			for i, a := range args {
				switch a := a.(type) {
				case nil:
					stmt.BindNull(i + 1)
				case int64:
					stmt.BindInt64(i+1, a)
				case float64:
					stmt.BindFloat(i+1, a)
				case string:
					stmt.BindText(i+1, a)
				case []byte:
					stmt.BindBytes(i+1, a)
				}
			}
			if _, err := stmt.Step(); err != nil {
				t.Fatal(query, err)
			}
			if err := stmt.Reset(); err != nil {
				t.Fatal(err)
			}
		}
		do(fmt.Sprintf("PRAGMA page_size=%d", rapid.SampledFrom([]int{512, 1024, 4096, 16384, 65536}).Draw(t, "page")))
		do(fmt.Sprintf("PRAGMA auto_vacuum=%d", rapid.IntRange(0, 1).Draw(t, "vacuum")))
		do("PRAGMA synchronous=OFF")
		do("PRAGMA journal_mode=OFF")
		do("BEGIN")
		do("CREATE TABLE other (x)")
		do("CREATE TABLE " + msgTable + " (a, b, c)")
		kinds := rapid.SliceOfN(anyValue(), 3, 12).Draw(t, "values")
		rows := rapid.SampledFrom([]int{0, 1, 7, 60, 900}).Draw(t, "rows")
		step := rapid.SampledFrom([]int64{1, 1, 3, 1 << 20, 1 << 50}).Draw(t, "step")
		first := rapid.SampledFrom([]int64{1, 1, -5, math.MinInt64 + 1}).Draw(t, "first")
		for i := range rows {
			row := first + int64(i)*step
			if len(kinds) > 0 {
				do("INSERT INTO "+msgTable+" (rowid, a, b, c) VALUES (?, ?, ?, ?)", row, kinds[i%len(kinds)], kinds[(i*7+1)%len(kinds)], kinds[(i*3+2)%len(kinds)])
			}
			if i%5 == 0 {
				do("INSERT INTO other VALUES (zeroblob(300))")
			}
		}
		do("DELETE FROM " + msgTable + " WHERE rowid % " + fmt.Sprint(rapid.IntRange(2, 50).Draw(t, "deleted")) + " = 0")
		do("DELETE FROM other")
		do("COMMIT")

		after := rapid.SampledFrom([]int64{math.MinInt64, 0, first, first + int64(rows/2)*step, first + int64(rows)*step, math.MaxInt64}).Draw(t, "after")
		var want []string
		var root int64
		if err := run(conn, "SELECT rootpage FROM sqlite_master WHERE name = '"+msgTable+"'", func(s *sqlite.Stmt) { root = s.ColumnInt64(0) }); err != nil {
			t.Fatal(err)
		}
		err = run(conn, fmt.Sprintf("SELECT rowid, a, b, c FROM %s WHERE rowid > %d ORDER BY rowid", msgTable, after), func(s *sqlite.Stmt) {
			text := fmt.Sprint(s.ColumnInt64(0))
			for i := 1; i <= 3; i++ {
				switch s.ColumnType(i) {
				case sqlite.TypeNull:
					text += " null"
				case sqlite.TypeInteger:
					text += fmt.Sprintf(" int %d", s.ColumnInt64(i))
				case sqlite.TypeFloat:
					text += " real"
				default:
					p := make([]byte, s.ColumnLen(i))
					s.ColumnBytes(i, p)
					text += fmt.Sprintf(" bytes %x", p)
				}
			}
			want = append(want, text)
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		closed = true

		tab, err := openTable(path, 3)
		if err != nil {
			t.Fatal(err)
		}
		defer tab.close()
		if err := tab.begin(uint32(root), after); err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			more, err := tab.advance()
			if err != nil {
				t.Fatal(err)
			}
			if !more {
				if i != len(want) {
					t.Fatalf("%d rows, SQLite reads %d", i, len(want))
				}
				return
			}
			text := fmt.Sprint(tab.row)
			for c, col := range tab.columns {
				switch {
				case col.kind == kindNull:
					text += " null"
				case col.isInt():
					text += fmt.Sprintf(" int %d", tab.integer(c))
				case col.isBytes():
					text += fmt.Sprintf(" bytes %x", tab.bytes(c))
				default:
					text += " real"
				}
			}
			if i >= len(want) || text != want[i] {
				t.Fatalf("row %d is %.200s", i, text)
			}
		}
	})
}

func TestVarint(t *testing.T) {
	for text, want := range map[string]uint64{
		"\x00": 0, "\x7f": 127, "\x81\x00": 128, "\xff\x7f": 1<<14 - 1,
		"\xff\xff\xff\xff\xff\xff\xff\xff\xff": math.MaxUint64, "\x80\x80\x80\x80\x80\x80\x80\x80\x01": 1,
	} {
		if v, n := varint([]byte(text + "more")); v != want || n != len(text) {
			t.Errorf("%x: %d in %d bytes", text, v, n)
		}
		if _, n := varint([]byte(text[:len(text)-1])); n != 0 {
			t.Errorf("%x cut: %d bytes", text, n)
		}
	}
}

// FuzzTable reads any pages: what comes of it is rows or an error, in the end.
func FuzzTable(f *testing.F) {
	for _, data := range goldenFiles(f) {
		f.Add(data, uint32(2), int64(0))
	}
	f.Fuzz(func(t *testing.T, data []byte, root uint32, after int64) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		tab, err := openTable(path, 8)
		if err != nil {
			return
		}
		defer tab.close()
		if err := tab.begin(root, after); err != nil {
			return
		}
		last, begun := int64(0), false
		for {
			more, err := tab.advance()
			if err != nil || !more {
				return
			}
			if begun && tab.row <= last {
				return // Reader says that it is out of order
			}
			last, begun = tab.row, true
			for i, c := range tab.columns {
				if c.isBytes() && len(tab.bytes(i)) > len(data) {
					t.Fatalf("a value of %d bytes in a file of %d", len(tab.bytes(i)), len(data))
				}
				if c.isInt() {
					tab.integer(i)
				}
			}
		}
	})
}
