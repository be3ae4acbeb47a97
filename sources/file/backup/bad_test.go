package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/cbpump/cbpump/internal/cbb"
	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// readAll reads a folder to its end or to the first error.
func readAll(ctx context.Context, dir string, change func(*Options)) (items []pump.Item, err error) {
	o := Options{Streams: 1}
	if change != nil {
		change(&o)
	}
	s, err := New(dir, pump.Env{Bucket: "default"}, o)
	if err != nil {
		return nil, err
	}
	streams, err := s.Streams(ctx)
	if err != nil {
		return nil, err
	}
	for _, st := range streams {
		if err := st.Open(ctx, nil); err != nil {
			return items, err
		}
		b := pump.NewBatch(16 << 10)
		for err = nil; err == nil; {
			b.Reset()
			err = st.Read(ctx, b)
			for i := range b.Items {
				items = append(items, pumptest.CloneItem(&b.Items[i]))
			}
		}
		if cerr := st.Close(); cerr != nil {
			return items, cerr
		}
		if !errors.Is(err, io.EOF) {
			return items, err
		}
	}
	return items, nil
}

// wants that reading fails with an error of that code which names the path.
func wantError(t *testing.T, dir, code, names string) {
	t.Helper()
	items, err := readAll(t.Context(), dir, nil)
	switch {
	case err == nil:
		t.Errorf("%d items were read without an error; %s is due", len(items), code)
	case pump.CodeOf(err) != code:
		t.Errorf("%v: the code is %s, want %s", err, pump.CodeOf(err), code)
	case !strings.Contains(err.Error(), names):
		t.Errorf("%v: does not name %s", err, names)
	}
}

// oldFolder makes a folder of the layout up to 2.x around one data file.
func oldFolder(t testing.TB, data []byte) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	node := filepath.Join(dir, "bucket-b", "node-n")
	if err := os.MkdirAll(node, 0o777); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(node, "data-0000.cbb")
	if data != nil {
		replace(t, file, data)
	}
	return dir, file
}

func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const msg2004 = `CREATE TABLE cbb_msg (cmd integer, vbucket_id integer, key blob, flg integer, exp integer, cas text, meta blob, val blob)`
const msg2015 = `CREATE TABLE cbb_msg (cmd integer, vbucket_id integer, key blob, flg integer, exp integer, cas text, meta blob, val blob, seqno integer, dtype integer, meta_size integer, conf_res integer)`
const meta = `CREATE TABLE cbb_meta (key text, val blob)`

// script makes a database by SQL statements.
func script(t testing.TB, path string, statements ...string) {
	t.Helper()
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, s := range statements {
		if err := sqlitex.ExecuteTransient(conn, s, nil); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

const cbb40 = golden + "/4.0/backup/2026-11-22T140804Z/2026-11-22T140804Z-full/bucket-beer-sample/node-localhost%3A21380/data-0000.cbb"

func TestTruncatedFiles(t *testing.T) {
	data := load(t, cbb40)
	dir, file := oldFolder(t, data)
	whole, err := readAll(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	old := slices.Clone(data) // as a SQLite of before 2010 writes it: no count of pages
	copy(old[28:32], make([]byte, 4))
	copy(old[92:96], make([]byte, 4))
	replace(t, file, old)
	if items, err := readAll(t.Context(), dir, nil); err != nil || len(items) != len(whole) {
		t.Fatalf("without a count of pages: %d items, %v", len(items), err)
	}
	for size := 0; size < len(data); size += 512 {
		for _, d := range [][]byte{data, old} {
			replace(t, file, d[:size])
			if items, err := readAll(t.Context(), dir, nil); err == nil {
				t.Errorf("cut at byte %d: %d items were read without an error", size, len(items))
			} else if !strings.Contains(err.Error(), file) {
				t.Errorf("cut at byte %d: the error does not name the file: %v", size, err)
			}
		}
	}
	replace(t, file, append(slices.Clone(data), make([]byte, 4096)...))
	wantError(t, dir, "backup-corrupt", file)
	replace(t, file, nil)
	wantError(t, dir, "backup-corrupt", "empty")
}

// Without a checksum a flip within a value cannot be seen. What is seen, always,
// is a row that is lost.
func TestBitFlipsNeverLoseRows(t *testing.T) {
	data := load(t, cbb40)
	dir, file := oldFolder(t, data)
	whole, err := readAll(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	errs := 0
	const flips = 600
	for n := range flips {
		at := rng.IntN(len(data) * 8)
		if n < flips/2 { // headers of the file and of pages, and the cell pointers behind them
			at = rng.IntN(len(data)/4096)*4096*8 + rng.IntN(300*8)
		}
		flipped := slices.Clone(data)
		flipped[at/8] ^= 1 << (at % 8)
		replace(t, file, flipped)
		items, err := readAll(t.Context(), dir, nil)
		if err != nil {
			errs++
		} else if len(items) != len(whole) {
			t.Fatalf("byte %d, bit %d: %d items were read without an error, of %d", at/8, at%8, len(items), len(whole))
		}
	}
	if errs < flips/10 {
		t.Errorf("%d of %d flips were seen", errs, flips)
	}
}

func TestForeignFiles(t *testing.T) {
	row := `INSERT INTO cbb_msg VALUES (87, 1, x'6b', 0, 0, '1', x'31', x'76', 1, 0, 5, 0)`
	for name, c := range map[string]struct {
		make []string
		code string
	}{
		"another database":        {[]string{"PRAGMA user_version=2015", "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"}, "backup-foreign"},
		"no version":              {[]string{msg2015, meta, row}, "backup-version"},
		"version 2016":            {[]string{"PRAGMA user_version=2016", msg2015, meta, row}, "backup-version"},
		"version -1":              {[]string{"PRAGMA user_version=-1", msg2015, meta, row}, "backup-version"},
		"columns of another":      {[]string{"PRAGMA user_version=2014", msg2015, meta, row}, "backup-foreign"},
		"columns of another, old": {[]string{"PRAGMA user_version=2015", msg2004, meta}, "backup-foreign"},
		"no cbb_meta":             {[]string{"PRAGMA user_version=2015", msg2015, row}, "backup-foreign"},
		"a view":                  {[]string{"PRAGMA user_version=2015", strings.Replace(msg2015, "cbb_msg", "x", 1), "CREATE VIEW cbb_msg AS SELECT * FROM x", meta}, "backup-foreign"},
		"a generated column":      {[]string{"PRAGMA user_version=2015", strings.Replace(msg2015, "dtype integer", "dtype integer AS (1)", 1), meta}, "backup-foreign"},
		"no rowids": {[]string{"PRAGMA user_version=2015", strings.Replace(msg2015, "conf_res integer)", "conf_res integer, PRIMARY KEY (key)) WITHOUT ROWID", 1), meta, row},
			"backup-corrupt"},
		"UTF-16":   {[]string{"PRAGMA encoding='UTF-16'", "PRAGMA user_version=2015", msg2015, meta, row}, "backup-foreign"},
		"WAL mode": {[]string{"PRAGMA user_version=2015", msg2015, meta, row, "PRAGMA journal_mode=WAL", row}, "backup-busy"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, file := oldFolder(t, nil)
			script(t, file, c.make...)
			wantError(t, dir, c.code, file)
		})
	}
	dir, file := oldFolder(t, []byte(strings.Repeat("this is no database\n", 100)))
	wantError(t, dir, "backup-foreign", file)
}

func TestRowsThatAreNone(t *testing.T) {
	const good = `87, 1, x'6b', 0, 0, '1', x'31', x'76', 1, 0, 5, 0`
	for column, values := range map[int][]string{
		0:  {"NULL", "0", "1", "64", "'x'", "300"},
		1:  {"-1", "65536", "'x'", "1.5"},
		2:  {"NULL", "x''", "5"},
		3:  {"-1", "4294967296", "'x'", "x'00'"},
		4:  {"-1", "4294967296"},
		5:  {"'-1'", "'18446744073709551616'", "'1e3'", "x'2031'", "'123456789012345678901234567890'"},
		6:  {"x'0102'", "x'01020304050607080900'", "'-1'", "1.5", "-1"},
		7:  {"5", "1.5"},
		8:  {"-1", "'x'"},
		9:  {"-1", "256"},
		10: nil, 11: nil, // not read
	} {
		for _, v := range values {
			fields := strings.Split(good, ", ")
			fields[column] = v
			dir, file := oldFolder(t, nil)
			script(t, file, "PRAGMA user_version=2015", msg2015, meta,
				"INSERT INTO cbb_msg VALUES ("+good+")", "INSERT INTO cbb_msg VALUES ("+strings.Join(fields, ", ")+")")
			items, err := readAll(t.Context(), dir, nil)
			if err == nil {
				t.Errorf("column %d = %s: read as %s", column, v, pumptest.Describe(&items[1], allFields...))
			} else if pump.CodeOf(err) != "backup-corrupt" || !strings.Contains(err.Error(), file+": row 2") {
				t.Errorf("column %d = %s: %v", column, v, err)
			}
		}
	}
}

func TestOddRowsOfOldTools(t *testing.T) {
	for name, c := range map[string]struct {
		row  string
		want pump.Item
	}{
		"NULL wherever it can be": {`87, NULL, x'6b', NULL, NULL, NULL, NULL, NULL`, pump.Item{VBucket: pump.NoVBucket}},
		"no vbucket":              {`65, 65535, x'6b', 0, 0, '', x'', x''`, pump.Item{VBucket: pump.NoVBucket}},
		"8 raw bytes":             {`66, 1023, x'6b', 0, 0, '5', x'0000000100000002', x''`, pump.Item{Op: pump.Deletion, VBucket: 1023, CAS: 5, RevSeqno: 1<<32 + 2}},
		"9 raw bytes":             {`65, 0, x'6b', 0, 0, '5', x'0000000000000007ff', x'76'`, pump.Item{Value: []byte("v"), CAS: 5, RevSeqno: 7}},
		"8 digits are text":       {`87, 0, x'6b', 0, 0, '5', x'3132333435363738', x'76'`, pump.Item{Value: []byte("v"), CAS: 5, RevSeqno: 12345678}},
		"9 digits are text":       {`87, 0, x'6b', 0, 0, '5', '123456789', x'76'`, pump.Item{Value: []byte("v"), CAS: 5, RevSeqno: 123456789}},
		"the largest":             {`88, 0, 'k', 4294967295, 4294967295, '18446744073709551615', '18446744073709551615', 'text'`, pump.Item{Op: pump.Deletion, Value: []byte("text"), Flags: math.MaxUint32, Expiry: math.MaxUint32, CAS: math.MaxUint64, RevSeqno: math.MaxUint64}},
		"a number for the rev":    {`87, 0, x'6b', 0, 0, 77, 12, x'76'`, pump.Item{Value: []byte("v"), CAS: 77, RevSeqno: 12}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, file := oldFolder(t, nil)
			script(t, file, "PRAGMA user_version=2004", msg2004, meta, "INSERT INTO cbb_msg VALUES ("+c.row+")")
			items, err := readAll(t.Context(), dir, nil)
			if err != nil || len(items) != 1 {
				t.Fatalf("%d items, %v", len(items), err)
			}
			c.want.Key = []byte("k")
			if got, want := pumptest.Describe(&items[0], allFields...), pumptest.Describe(&c.want, allFields...); got != want {
				t.Errorf("read\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestRowsWithGaps(t *testing.T) {
	dir, file := oldFolder(t, load(t, cbb40))
	script(t, file, "DELETE FROM cbb_msg WHERE rowid IN (1, 40)")
	wantError(t, dir, "backup-corrupt", file+": row 2 follows row 0")
	if items, err := readAll(t.Context(), dir, func(o *Options) { o.Gaps = true }); err != nil || len(items) != 82 {
		t.Errorf("%d items, %v", len(items), err)
	}
	script(t, file, "UPDATE cbb_msg SET rowid = -5 WHERE rowid = 84")
	wantError(t, dir, "backup-corrupt", file+": row -5")
}

func TestFilesInSomebodysHands(t *testing.T) {
	data := load(t, cbb40)
	t.Run("locked", func(t *testing.T) {
		dir, file := oldFolder(t, data)
		conn, err := sqlite.OpenConn(file, sqlite.OpenReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := sqlitex.ExecuteTransient(conn, "BEGIN EXCLUSIVE", nil); err != nil {
			t.Fatal(err)
		}
		wantError(t, dir, "backup-busy", file)
		if err := sqlitex.ExecuteTransient(conn, "COMMIT", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := readAll(t.Context(), dir, nil); err != nil {
			t.Errorf("after the lock was let go: %v", err)
		}
	})
	for _, suffix := range []string{"-journal", "-wal"} {
		t.Run(suffix, func(t *testing.T) {
			dir, file := oldFolder(t, data)
			replace(t, file+suffix, []byte("x"))
			wantError(t, dir, "backup-busy", file)
			if got := load(t, file+suffix); string(got) != "x" {
				t.Error("the reader touched it")
			}
		})
	}
	// SQLite takes an empty journal for none: nothing was changed, or all of it is
	// in the file.
	t.Run("an empty journal", func(t *testing.T) {
		dir, file := oldFolder(t, data)
		for _, suffix := range []string{"-journal", "-wal"} {
			replace(t, file+suffix, nil)
		}
		if items, err := readAll(t.Context(), dir, nil); err != nil || len(items) != 84 {
			t.Errorf("%d items, %v", len(items), err)
		}
	})
	t.Run("written while it is read", func(t *testing.T) {
		dir, file := oldFolder(t, data)
		st := streamsOf(t, open(t, dir, func(o *Options) { o.Streams = 1 }))[0]
		defer st.Close()
		b := pump.NewBatch(512)
		if err := st.Read(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		replace(t, file, append(slices.Clone(data), 0))
		var err error
		for err == nil {
			b.Reset()
			err = st.Read(t.Context(), b)
		}
		if pump.CodeOf(err) != "backup-busy" {
			t.Errorf("%v", err)
		}
	})
}

// In this variable the test's own program, run again, finds the file that it is to
// write while it is read.
const writtenEnv = "CBPUMP_TEST_WRITTEN"

// TestFileThatAnotherProcessWrites: also one that has begun and not committed yet.
func TestFileThatAnotherProcessWrites(t *testing.T) {
	if path := os.Getenv(writtenEnv); path != "" {
		conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, statement := range []string{"PRAGMA journal_mode=OFF", "BEGIN IMMEDIATE", "INSERT INTO cbb_meta VALUES ('a', 'b')"} {
			if err := sqlitex.ExecuteTransient(conn, statement, nil); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Println("\nready")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the other one closes it
		return
	}
	dir, file := oldFolder(t, load(t, cbb40))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestFileThatAnotherProcessWrites$")
	cmd.Env = append(os.Environ(), writtenEnv+"="+file)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
	}
	wantError(t, dir, "backup-busy", file)
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := readAll(t.Context(), dir, nil); err != nil {
		t.Errorf("after it has ended: %v", err)
	}
}

func streamsOf(t *testing.T, s *Source) []pump.Stream {
	t.Helper()
	streams, err := s.Streams(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range streams {
		if err := st.Open(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	return streams
}

func TestLinks(t *testing.T) {
	link := func(t *testing.T, to, at string) {
		t.Helper()
		if err := os.RemoveAll(at); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, at); err != nil {
			t.Fatal(err)
		}
	}
	outside, _ := oldFolder(t, load(t, cbb40))
	dir, file := oldFolder(t, load(t, cbb40))
	bucket := filepath.Join(dir, "bucket-b")
	for _, at := range []string{file, filepath.Dir(file), bucket} {
		rel, err := filepath.Rel(dir, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(rel, func(t *testing.T) {
			dir := t.TempDir()
			at := filepath.Join(dir, rel)
			if err := os.MkdirAll(filepath.Dir(at), 0o777); err != nil {
				t.Fatal(err)
			}
			link(t, filepath.Join(outside, rel), at)
			wantError(t, dir, "backup-link", at)
			if items, err := readAll(t.Context(), dir, func(o *Options) { o.FollowLinks = true }); err != nil || len(items) != 84 {
				t.Errorf("with follow-links: %d items, %v", len(items), err)
			}
			link(t, filepath.Base(at), at) // to itself
			wantError(t, dir, "backup-link", at)
			link(t, "nowhere", at)
			wantError(t, dir, "backup-link", at)
			link(t, dir, at) // up: a circle of folders
			if _, err := readAll(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), dir) {
				t.Errorf("a circle: %v", err)
			}
		})
	}
	t.Run("the folder itself", func(t *testing.T) {
		at := filepath.Join(t.TempDir(), "link")
		link(t, dir, at)
		if items, err := readAll(t.Context(), at, nil); err != nil || len(items) != 84 {
			t.Errorf("%d items, %v", len(items), err)
		}
	})
	t.Run("the files beside the data", func(t *testing.T) {
		dir, _, diff := copyGolden(t)
		secret := filepath.Join(t.TempDir(), "secret.json")
		replace(t, secret, []byte(`{"pred": [], "1": 1}`))
		node := filepath.Join(diff, "bucket-beer-sample/node-localhost%3A21380")
		for _, name := range []string{"meta.json", "seqno.json", "SHA256SUMS"} {
			at := filepath.Join(node, name)
			before, _ := os.ReadFile(at)
			link(t, secret, at)
			wantError(t, dir, "backup-link", at)
			remove(t, at)
			if before != nil {
				replace(t, at, before)
			}
		}
		link(t, secret, filepath.Join(diff, "bucket-beer-sample/design.json"))
		if defs, err := open(t, dir, nil).Definitions(t.Context()); pump.CodeOf(err) != "backup-link" {
			t.Errorf("design documents from elsewhere: %v, %v", defs, err)
		}
	})
	t.Run("within the folder", func(t *testing.T) {
		if err := os.Rename(file, filepath.Join(dir, "elsewhere")); err != nil {
			t.Fatal(err)
		}
		link(t, filepath.Join("..", "..", "elsewhere"), file)
		if items, err := readAll(t.Context(), dir, nil); err != nil || len(items) != 84 {
			t.Errorf("%d items, %v", len(items), err)
		}
	})
}

// copyGolden returns a copy of the golden backup of 4.0 and of its parts.
func copyGolden(t *testing.T) (dir, full, diff string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(dir, os.DirFS(golden+"/4.0/backup")); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "2026-11-22T140804Z")
	return dir, filepath.Join(run, "2026-11-22T140804Z-full"), filepath.Join(run, "2026-11-22T140809Z-diff")
}

func remove(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func TestFoldersThatAreNotWhole(t *testing.T) {
	const node = "bucket-beer-sample/node-localhost%3A21380"
	for name, c := range map[string]struct {
		break_ func(t *testing.T, dir, full, diff string)
		code   string
		names  string
	}{
		"the full part is missing": {func(t *testing.T, _, full, _ string) { remove(t, full) }, "backup-missing", "full part is missing"},
		"a data file is missing":   {func(t *testing.T, _, full, _ string) { remove(t, filepath.Join(full, node, "data-0000.cbb")) }, "backup-missing", "node-localhost%3A21380/data-0000.cbb"},
		"a data file between is missing": {func(t *testing.T, _, full, _ string) {
			data := load(t, filepath.Join(full, node, "data-0000.cbb"))
			replace(t, filepath.Join(full, node, "data-0002.cbb"), data)
		}, "backup-missing", "data-0001.cbb"},
		"no nodes": {func(t *testing.T, _, _, diff string) {
			remove(t, filepath.Join(diff, node))
			remove(t, filepath.Join(diff, "bucket-beer-sample/node-127.0.0.1%3A21380"))
		}, "backup-missing", "140809Z-diff"},
		"meta.json is missing": {func(t *testing.T, _, full, _ string) { remove(t, filepath.Join(full, node, "meta.json")) }, "backup-missing", "meta.json"},
		"meta.json is damaged": {func(t *testing.T, _, full, _ string) {
			replace(t, filepath.Join(full, node, "meta.json"), []byte(`{"pred": [`))
		}, "backup-corrupt", "meta.json"},
		"meta.json says nothing": {func(t *testing.T, _, full, _ string) {
			replace(t, filepath.Join(full, node, "meta.json"), []byte(`{}`))
		}, "backup-corrupt", "meta.json"},
		"an earlier part is missing": {func(t *testing.T, _, _, diff string) {
			replace(t, filepath.Join(diff, node, "meta.json"), []byte(`{"pred": ["2026-11-22T140804Z-full", "/b/2026-11-22T140804Z/2026-11-22T140807Z-diff/bucket-beer-sample/node-x"]}`))
		}, "backup-missing", "2026-11-22T140807Z-diff"},
		"seqno.json is missing": {func(t *testing.T, _, full, _ string) { remove(t, filepath.Join(full, node, "seqno.json")) }, "backup-missing", "seqno.json"},
		"seqno.json is damaged": {func(t *testing.T, _, full, _ string) {
			replace(t, filepath.Join(full, node, "seqno.json"), []byte(`{"x": 1}`))
		}, "backup-corrupt", "seqno.json"},
		"a folder in place of a data file": {func(t *testing.T, _, full, _ string) {
			file := filepath.Join(full, node, "data-0000.cbb")
			remove(t, file)
			if err := os.Mkdir(file, 0o777); err != nil {
				t.Fatal(err)
			}
		}, "backup-foreign", "data-0000.cbb: is a folder"},
		"a file in place of a folder": {func(t *testing.T, _, _, diff string) {
			at := filepath.Join(diff, node)
			remove(t, at)
			replace(t, at, nil)
		}, "backup-foreign", "node-localhost%3A21380"},
		"a file in place of a part": {func(t *testing.T, _, _, diff string) { remove(t, diff); replace(t, diff, nil) }, "backup-foreign", "140809Z-diff"},
		"a run without parts":       {func(t *testing.T, _, full, diff string) { remove(t, full); remove(t, diff) }, "backup-missing", "2026-11-22T140804Z"},
		"nothing in it":             {func(t *testing.T, dir, _, _ string) { remove(t, filepath.Join(dir, "2026-11-22T140804Z")) }, "backup-none", ""},
		"only what is unfinished": {func(t *testing.T, dir, _, _ string) {
			if err := os.Rename(filepath.Join(dir, "2026-11-22T140804Z"), filepath.Join(dir, cbb.Staging+"2026-11-22T140804Z")); err != nil {
				t.Fatal(err)
			}
		}, "backup-none", ""},
		"a sum that does not match": {func(t *testing.T, _, full, _ string) {
			replace(t, filepath.Join(full, node, "SHA256SUMS"), []byte(strings.Repeat("0", 64)+"  data-0000.cbb\n"))
		}, "backup-corrupt", "data-0000.cbb"},
		"sums that are damaged": {func(t *testing.T, _, full, _ string) {
			replace(t, filepath.Join(full, node, "SHA256SUMS"), []byte(strings.Repeat("0", 64)+"  data-0000.cbb"))
		}, "backup-corrupt", "SHA256SUMS"},
		"a file that the sums do not name": {func(t *testing.T, _, full, _ string) {
			replace(t, filepath.Join(full, node, "SHA256SUMS"), []byte(strings.Repeat("0", 64)+"  meta.json\n"))
		}, "backup-foreign", "data-0000.cbb"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, full, diff := copyGolden(t)
			c.break_(t, dir, full, diff)
			wantError(t, dir, c.code, c.names)
		})
	}
	t.Run("no folder", func(t *testing.T) {
		wantError(t, filepath.Join(t.TempDir(), "nothing"), "backup-unreadable", "nothing")
		wantError(t, cbb40, "backup-none", cbb40)
	})
}

// A node that only some parts have may have left the cluster, or its folder was
// lost: no tool says which, so there is a warning.
func TestNodesThatSomePartsLackAreNamed(t *testing.T) {
	const node = "bucket-beer-sample/node-localhost%3A21380"
	check := func(dir string) string {
		t.Helper()
		var out strings.Builder
		s, err := New(dir, pump.Env{Bucket: "default", Log: hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Warn})}, Options{Streams: 2})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // said once
			if err := s.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		return out.String()
	}
	dir, full, diff := copyGolden(t)
	if said := check(dir); said != "" {
		t.Errorf("the whole backup: %s", said)
	}
	for _, part := range []string{full, diff} {
		dir, first, diff := copyGolden(t)
		at := filepath.Join(filepath.Dir(first), filepath.Base(part))
		remove(t, filepath.Join(at, node))
		warnings := 1
		if part == full { // the diff part goes on with what is not there
			warnings = 2
		}
		if said := check(dir); strings.Count(said, "[WARN]") != warnings || !strings.Contains(said, "part "+filepath.Base(at)+" has no folder node-localhost%3A21380") {
			t.Errorf("without the node in %s: %s", filepath.Base(part), said)
		}
		if part == full {
			remove(t, filepath.Join(diff, node)) // the node was never there
			if said := check(dir); said != "" {
				t.Errorf("a node that no part has: %s", said)
			}
		}
	}
	// A part of ours has another node, and that is right.
	ours := filepath.Join(filepath.Dir(diff), "2026-11-23T000000Z-diff", "bucket-beer-sample", "node-cbpump")
	if err := os.CopyFS(ours, os.DirFS(filepath.Join(diff, node))); err != nil {
		t.Fatal(err)
	}
	sum, err := cbb.HashFile(t.Context(), filepath.Join(ours, "data-0000.cbb"))
	if err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(ours, "SHA256SUMS"), cbb.Sums{"data-0000.cbb": sum}.Format())
	if said := check(dir); said != "" {
		t.Errorf("with a part of ours: %s", said)
	}
	remove(t, filepath.Join(diff, node, "data-0000.cbb"))
	replace(t, filepath.Join(diff, node, "seqno.json"), []byte("{}"))
	if said := check(dir); strings.Count(said, "[WARN]") != 1 || !strings.Contains(said, filepath.Join(diff, node)+" has no data file") {
		t.Errorf("without a data file: %s", said)
	}
}

// The Python tools list no files, but they note how far each vbucket went: without a
// node's last data file that is not reached, and a part between two is missed.
func TestLastFilesThatAreMissing(t *testing.T) {
	for _, version := range []string{"3.0.3", "4.0"} {
		dir := filepath.Join(t.TempDir(), "backup")
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(golden, version, "backup"))); err != nil {
			t.Fatal(err)
		}
		nodes, err := filepath.Glob(dir + "/*/*/*/node-*")
		if err != nil || len(nodes) != 4 {
			t.Fatal(nodes, err)
		}
		whole, err := readAll(t.Context(), dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		// The tool would have made two files of each; nothing is missing then.
		for _, node := range nodes {
			first, second := filepath.Join(node, "data-0000.cbb"), filepath.Join(node, "data-0001.cbb")
			replace(t, second, load(t, first))
			script(t, first, "DELETE FROM cbb_msg WHERE rowid > (SELECT count(*) FROM cbb_msg) / 2")
			script(t, second, "DELETE FROM cbb_msg WHERE rowid <= (SELECT count(*) FROM cbb_msg) / 2",
				"UPDATE cbb_msg SET rowid = rowid - (SELECT min(rowid) FROM cbb_msg) + 1")
		}
		if again, err := readAll(t.Context(), dir, nil); err != nil || len(again) != len(whole) {
			t.Fatalf("in two files: %d items of %d, %v", len(again), len(whole), err)
		}
		for _, node := range nodes {
			last := filepath.Join(node, "data-0001.cbb")
			data := load(t, last)
			remove(t, last)
			wantError(t, dir, "backup-missing", filepath.Join(node, "data-0000.cbb"))
			_, err := readAll(t.Context(), dir, nil)
			if err == nil || !strings.Contains(err.Error(), filepath.Join(node, "seqno.json")) || !strings.Contains(pump.HintOf(err), "gaps=true") {
				t.Errorf("%v (%s)", err, pump.HintOf(err))
			}
			if items, err := readAll(t.Context(), dir, func(o *Options) { o.Gaps = true }); err != nil || len(items) >= len(whole) {
				t.Errorf("with gaps=true: %d items, %v", len(items), err)
			}
			replace(t, last, data)
		}
		if again, err := readAll(t.Context(), dir, nil); err != nil || len(again) != len(whole) {
			t.Fatalf("all put back: %d items of %d, %v", len(again), len(whole), err)
		}
	}
}

func TestPartsBetweenThatAreMissing(t *testing.T) {
	dir, _, diff := copyGolden(t)
	later := filepath.Join(filepath.Dir(diff), "2026-11-22T140900Z-diff")
	if err := os.CopyFS(later, os.DirFS(diff)); err != nil {
		t.Fatal(err)
	}
	warned := func() string {
		t.Helper()
		b, err := cbb.Find(dir, cbb.FindOptions{Bucket: "default"})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(b.Warnings, "\n")
	}
	markers := filepath.Join(later, "bucket-beer-sample/node-localhost%3A21380/snapshot_markers.json")
	replace(t, markers, []byte(`{"8": [18, 20], "11": [17, 30]}`))
	if said := warned(); said != "" {
		t.Errorf("a chain that is whole: %s", said)
	}
	remove(t, diff)
	replace(t, markers, []byte(`{"8": [18, 20], "11": [19, 30], "9": [14, 15]}`))
	if said := warned(); !strings.Contains(said, "part 2026-11-22T140900Z-diff goes on with vbucket 8 from sequence number 18, and the parts before it end at 17 (2 vbuckets are like this)") {
		t.Errorf("said %q", said)
	}
	if err := os.Mkdir(filepath.Join(dir, "bucket-old"), 0o777); err != nil {
		t.Fatal(err)
	}
	if said := warned(); !strings.Contains(said, "beside them bucket-old, which is of another layout") {
		t.Errorf("with another layout beside: %q", said)
	}
	remove(t, filepath.Join(dir, "bucket-old"))
	replace(t, markers, []byte(`["odd"]`))
	if said := warned(); said != "" {
		t.Errorf("markers of another form: %s", said)
	}
}

func TestUnreadableFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // the file below is Linux's
	}
	// Root may read every file that permissions forbid; nobody reads this one.
	if err := cbb.CheckFile("/proc/self/mem"); err == nil || !strings.Contains(err.Error(), "/proc/self/mem") {
		t.Errorf("%v", err)
	}
}

func TestBuckets(t *testing.T) {
	dir, full, diff := copyGolden(t)
	other := filepath.Join(full, "bucket-other+one%2F")
	if err := os.CopyFS(other, os.DirFS(filepath.Join(full, "bucket-beer-sample"))); err != nil {
		t.Fatal(err)
	}
	count := func(bucket string) (int, error) {
		s, err := New(dir, pump.Env{Bucket: bucket}, Options{Streams: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context()); err != nil {
			return 0, err
		}
		return len(pumptest.ReadAll(t, s, 16<<10)), nil
	}
	if n, err := count("beer-sample"); n != 203 || err != nil {
		t.Errorf("beer-sample: %d, %v", n, err)
	}
	if n, err := count("other one/"); n != 162 || err != nil { // it is not in the diff
		t.Errorf("other one/: %d, %v", n, err)
	}
	for _, name := range []string{"default", "nothing"} {
		if _, err := count(name); pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(pump.HintOf(err), "beer-sample, other one/") {
			t.Errorf("%s: %v (%s)", name, err, pump.HintOf(err))
		}
	}
	// A newer run that has only the one bucket does not hide the older of the other.
	run := filepath.Join(dir, "2026-11-23T000000Z", "2026-11-23T000000Z-full")
	if err := os.CopyFS(filepath.Join(run, "bucket-beer-sample"), os.DirFS(filepath.Join(full, "bucket-beer-sample"))); err != nil {
		t.Fatal(err)
	}
	if n, err := count("beer-sample"); n != 162 || err != nil {
		t.Errorf("beer-sample in the newer run: %d, %v", n, err)
	}
	if n, err := count("other one/"); n != 162 || err != nil {
		t.Errorf("other one/ in the older run: %d, %v", n, err)
	}
	items, err := readAll(t.Context(), diff, nil)
	if err != nil || len(items) != 41 {
		t.Errorf("a diff alone: %d items, %v", len(items), err)
	}
}

func TestOnlySomeVBuckets(t *testing.T) {
	s, err := New(golden+"/4.0/backup", pump.Env{Bucket: "default", VBuckets: []uint16{3, 11}}, Options{Streams: 2})
	if err != nil {
		t.Fatal(err)
	}
	items := pumptest.ReadAll(t, s, 4<<10)
	all := pumptest.ReadAll(t, open(t, golden+"/4.0/backup", nil), 4<<10)
	all = slices.DeleteFunc(all, func(it pump.Item) bool { return it.VBucket != 3 && it.VBucket != 11 })
	if len(items) != len(all) || len(all) == 0 {
		t.Errorf("%d items, want %d", len(items), len(all))
	}
}

// A reading that was cut anywhere goes on from any of its marks, and gives just
// the rows that come after it.
func TestResume(t *testing.T) {
	for _, dir := range []string{golden + "/2.5.1/backup-split", golden + "/4.0/backup"} {
		for _, streams := range []int{1, 2} {
			filetest.Resume(t, func() pump.Source { return open(t, dir, func(o *Options) { o.Streams = streams }) })
		}
	}
	for _, state := range []string{"x", strings.Repeat("\xff", stateLen), strings.Repeat("\x00", stateLen)} {
		filetest.Refused(t, open(t, golden+"/2.5.1/backup", nil), []pump.Mark{{State: []byte(state)}}, "backup-mark")
	}
}

// A mark holds for the files up to its own: a part that came behind is read too, any
// other change is refused.
func TestResumeOfChangedBackup(t *testing.T) {
	one := func(o *Options) { o.Streams = 1 }
	dir, full, diff := copyGolden(t)
	away := filepath.Join(t.TempDir(), "diff")
	if err := os.Rename(diff, away); err != nil {
		t.Fatal(err)
	}
	marks := filetest.Marks(t, open(t, dir, one), 2000, 4)
	before, _, err := filetest.ReadFrom(t, open(t, dir, one), 2000, marks)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, diff); err != nil {
		t.Fatal(err)
	}
	after, _, err := filetest.ReadFrom(t, open(t, dir, one), 2000, marks)
	if err != nil || len(after) != len(before)+203-162 {
		t.Errorf("%d items behind the mark, with another part %d, %v", len(before), len(after), err)
	}
	file := filepath.Join(full, "bucket-beer-sample/node-127.0.0.1%3A21380/data-0000.cbb")
	if err := os.Chtimes(file, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	filetest.Refused(t, open(t, dir, one), marks, "backup-mark")
	if err := os.RemoveAll(full); err != nil {
		t.Fatal(err)
	}
	filetest.Refused(t, open(t, diff, one), marks, "backup-mark")
}

// The order of a key holds across files and parts, whichever node had it.
func TestOrderOfAKeyThatMoves(t *testing.T) {
	dir := t.TempDir()
	value := 0
	for part, nodes := range []string{"ab", "ba", "b", "a"} {
		mode := "diff"
		if part == 0 {
			mode = "full"
		}
		for _, n := range slices.Sorted(slices.Values([]rune(nodes))) {
			folder := filepath.Join(dir, "2026-01-01T000000Z", fmt.Sprintf("2026-01-01T00000%dZ-%s", part, mode), "bucket-b", "node-"+string(n))
			if err := os.MkdirAll(folder, 0o777); err != nil {
				t.Fatal(err)
			}
			replace(t, filepath.Join(folder, "meta.json"), []byte(`{"pred": []}`))
			statements := []string{"PRAGMA user_version=2004", msg2004, meta}
			for key := range 40 {
				value++
				vb := []string{"1", "65535", "NULL"}[value%3] // not every source knows it
				statements = append(statements, fmt.Sprintf("INSERT INTO cbb_msg VALUES (65, %s, 'key %d', 0, 0, '%d', NULL, 'v')", vb, key, value))
			}
			script(t, filepath.Join(folder, "data-0000.cbb"), statements...)
		}
	}
	for _, streams := range []int{1, 2, 8} {
		src := open(t, dir, func(o *Options) { o.Streams = streams })
		sink := &pumptest.MemSink{LaneCount: 3}
		last := map[string]uint64{}
		if _, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: keyed{sink}, Settings: pump.DefaultSettings(), Scribble: true}); err != nil {
			t.Fatal(err)
		}
		log := sink.Log()
		for _, it := range log {
			if it.CAS <= last[string(it.Key)] {
				t.Fatalf("%d streams: key %q: state %d came after %d", streams, it.Key, it.CAS, last[string(it.Key)])
			}
			last[string(it.Key)] = it.CAS
		}
		if len(log) != value {
			t.Errorf("%d items, want %d", len(log), value)
		}
	}
}

// keyed is a sink that routes by key: the test's keys change their vbucket.
type keyed struct{ *pumptest.MemSink }

func (keyed) Route(it *pump.Item) int { return cbb.Slot(it.Key) % 3 }

func TestStreamsOption(t *testing.T) {
	for _, n := range []int{-1, 0, 3, 32} {
		if _, err := New("x", pump.Env{}, Options{Streams: n}); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("streams=%d: %v", n, err)
		}
	}
	s := open(t, golden+"/3.0.3/backup", func(o *Options) { o.Run = "2020-01-01T000000Z" })
	if err := s.Check(t.Context()); pump.ClassOf(err) != pump.ClassUsage {
		t.Errorf("a run that is not there: %v", err)
	}
}

func TestEstimateAndDefinitions(t *testing.T) {
	s := open(t, golden+"/4.0/backup", nil)
	e, err := s.Estimate(t.Context())
	if err != nil || e.Items != 203 || e.Bytes == 0 {
		t.Errorf("%+v, %v", e, err)
	}
	defs, err := s.Definitions(t.Context())
	if err != nil || len(defs) != 1 || defs[0].Kind != pump.DesignDocuments || !strings.Contains(string(defs[0].JSON), "by_kind") {
		t.Errorf("%v, %v", defs, err)
	}
	dir, _, diff := copyGolden(t)
	replace(t, filepath.Join(diff, "bucket-beer-sample", "design.json"), []byte("[{"))
	if _, err := open(t, dir, nil).Definitions(t.Context()); pump.CodeOf(err) != "backup-corrupt" {
		t.Errorf("damaged design documents: %v", err)
	}
}

// Errors never show what a data file says of its source: old ones hold passwords.
func TestSecretsOfOldFilesStayThere(t *testing.T) {
	dir, file := oldFolder(t, nil)
	script(t, file, "PRAGMA user_version=2004", msg2004, meta,
		`INSERT INTO cbb_meta VALUES ('source_map.json', '{"spec": "http://u:hunter2@h"}'), ('cbpump.slots', 'hunter2')`)
	_, err := readAll(t.Context(), dir, nil)
	if pump.CodeOf(err) != "backup-corrupt" || strings.Contains(fmt.Sprintf("%+v %s", err, pump.HintOf(err)), "hunter2") {
		t.Errorf("%v", err)
	}
}
