package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/cbpump/cbpump/internal/cbb"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	source "github.com/cbpump/cbpump/sources/file/backup"
)

// query returns the rows of a query on a data file, each as one text.
func query(t *testing.T, path, q string) []string {
	t.Helper()
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var out []string
	err = sqlitex.ExecuteTransient(conn, q, &sqlitex.ExecOptions{ResultFunc: func(s *sqlite.Stmt) error {
		var row []string
		for i := range s.ColumnCount() {
			row = append(row, s.ColumnText(i))
		}
		out = append(out, strings.Join(row, "|"))
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The Python tools read what they themselves write: so our files have the same
// tables, types and keys.
func TestDataFilesAreThoseOfTheTools(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	mustWrite(t, open(t, dir, nil), read(t, filepath.Join(golden, "4.0/backup"), 1))
	ours, err := filepath.Glob(filepath.Join(dir, "*/*/*/*/data-0000.cbb"))
	if err != nil || len(ours) != 1 {
		t.Fatal(ours, err)
	}
	theirs, err := filepath.Glob(filepath.Join(golden, "4.0/backup/*/*-full/*/node-localhost*/data-0000.cbb"))
	if err != nil || len(theirs) != 1 {
		t.Fatal(theirs, err)
	}
	for _, q := range []string{
		"PRAGMA user_version", "PRAGMA encoding", "PRAGMA journal_mode", "PRAGMA auto_vacuum", "PRAGMA application_id",
		"SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master ORDER BY rowid",
		"SELECT DISTINCT typeof(cmd), typeof(vbucket_id), typeof(key), typeof(flg), typeof(exp), typeof(cas), typeof(meta), typeof(val), typeof(seqno), typeof(dtype), typeof(meta_size), typeof(conf_res) FROM cbb_msg",
		"SELECT DISTINCT cmd, meta_size, conf_res FROM cbb_msg ORDER BY 1",
		"SELECT key, typeof(key), typeof(val) FROM cbb_meta WHERE key NOT LIKE 'cbpump.%' ORDER BY rowid",
		"SELECT length(val) FROM cbb_meta WHERE key = 'start.datetime'",
		"PRAGMA integrity_check",
	} {
		if got, want := query(t, ours[0], q), query(t, theirs[0], q); !slices.Equal(got, want) || len(want) == 0 {
			t.Errorf("%s\n%q, want\n%q", q, got, want)
		}
	}
}

// Every damage that is done to a backup of ours is seen, and named.
func TestDamageIsSeen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	items := manyItems(2000, strings.Repeat("v", 100))
	for i := range items {
		items[i].Value = fmt.Appendf(nil, "%d %s", i, items[i].Value)
	}
	mustWrite(t, open(t, dir, nil), items[:1500])
	mustWrite(t, open(t, dir, nil), items[1500:])
	attempt := func() error {
		src, err := source.New(dir, pump.Env{Bucket: "default"}, source.Options{Streams: 2})
		if err != nil {
			return err
		}
		_, err = pump.Run(t.Context(), pump.Config{Source: src, Sink: &pumptest.MemSink{}, Settings: pump.DefaultSettings()})
		return err
	}
	if err := attempt(); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for _, name := range tree(t, dir) {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			continue
		}
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damage := func(what string, data []byte) {
			t.Helper()
			if err := os.WriteFile(path, data, 0o666); err != nil {
				t.Fatal(err)
			}
			err := attempt()
			if err == nil {
				t.Errorf("%s, %s: nobody noticed", name, what)
			} else if !strings.Contains(err.Error(), filepath.Dir(path)) {
				t.Errorf("%s, %s: the error does not name it: %v", name, what, err)
			}
		}
		for range 8 {
			bit := rng.IntN(len(whole) * 8)
			flipped := slices.Clone(whole)
			flipped[bit/8] ^= 1 << (bit % 8)
			damage(fmt.Sprintf("bit %d of byte %d", bit%8, bit/8), flipped)
		}
		for size := 0; size < len(whole); size += 4096 {
			damage(fmt.Sprintf("cut at %d", size), whole[:size])
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := attempt(); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is missing: %v", name, err)
		}
		if err := os.WriteFile(path, whole, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := attempt(); err != nil {
		t.Fatal(err)
	}
}

// The sums are what says how many data files there were: without them half a
// backup would be read as a whole one.
func TestSumsAreLostWithADataFile(t *testing.T) {
	for name, items := range map[string][]pump.Item{"items": manyItems(1000, "v"), "no items": nil} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "backup")
			mustWrite(t, open(t, dir, nil), items)
			sums, err := filepath.Glob(filepath.Join(dir, "*/*/*/*/"+cbb.SumsFile))
			if err != nil || len(sums) != 1 {
				t.Fatal(sums, err)
			}
			if err := os.Remove(sums[0]); err != nil {
				t.Fatal(err)
			}
			if len(items) > 0 {
				if err := os.Remove(filepath.Join(filepath.Dir(sums[0]), cbb.DataName(1))); err != nil {
					t.Fatal(err)
				}
			}
			src, err := source.New(dir, pump.Env{Bucket: "default"}, source.Options{Streams: 2})
			if err != nil {
				t.Fatal(err)
			}
			if err := src.Check(t.Context()); pump.CodeOf(err) != "backup-missing" || !strings.Contains(err.Error(), sums[0]) {
				t.Errorf("%v", err)
			}
			// As the hint says, sums that somebody made anew do.
			data, err := filepath.Glob(filepath.Join(filepath.Dir(sums[0]), "data-*.cbb"))
			if err != nil {
				t.Fatal(err)
			}
			anew := cbb.Sums{}
			for _, path := range data {
				if anew[filepath.Base(path)], err = cbb.HashFile(t.Context(), path); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(sums[0], anew.Format(), 0o666); err != nil {
				t.Fatal(err)
			}
			if err := src.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFoldersThatAreNotOurs(t *testing.T) {
	for name, prepare := range map[string]func(dir string) error{
		"notes.txt":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o666) },
		".git":        func(dir string) error { return os.Mkdir(filepath.Join(dir, ".git"), 0o777) },
		"bucket-b":    func(dir string) error { return os.CopyFS(dir, os.DirFS(filepath.Join(golden, "2.5.1/backup"))) },
		"not-backups": func(dir string) error { return os.Mkdir(filepath.Join(dir, "not-backups"), 0o777) },
	} {
		dir := t.TempDir()
		if err := prepare(dir); err != nil {
			t.Fatal(err)
		}
		before := tree(t, dir)
		for _, err := range []error{open(t, dir, nil).Check(t.Context()), write(t, open(t, dir, nil), manyItems(1, "v"))} {
			if pump.ClassOf(err) != pump.ClassUsage || pump.CodeOf(err) != "backup-not-ours" || !strings.Contains(err.Error(), strings.TrimSuffix(name, "-b")) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if after := tree(t, dir); !slices.Equal(before, after) {
			t.Errorf("%s: the folder was changed: %q", name, after)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := open(t, file, nil).Check(t.Context()); pump.CodeOf(err) != "backup-not-ours" {
		t.Errorf("a file: %v", err)
	}
	deep := filepath.Join(t.TempDir(), "a", "b")
	if err := write(t, open(t, deep, nil), nil); err == nil || !strings.Contains(err.Error(), deep) {
		t.Errorf("a folder that is to be made in one that is not there: %v", err)
	}
}

// unfinished returns the folders of runs that did not come to their end.
func unfinished(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, cbb.Staging+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWhatIsNotCompleteHasNoFinalName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	items := manyItems(3000, "v")
	boom := errors.New("the source broke")
	broken := func() error {
		src := &pumptest.MemSource{Parts: [][]pump.Item{items}, BatchSize: 500, Fail: func(_, given int) error {
			if given >= 2000 {
				return boom
			}
			return nil
		}}
		var said bytes.Buffer
		s := open(t, dir, nil)
		s.log = hclog.New(&hclog.LoggerOptions{Output: &said})
		_, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: s, Settings: pump.DefaultSettings()})
		if !strings.Contains(said.String(), s.staging) {
			t.Errorf("nobody was told of %s: %s", s.staging, said.String())
		}
		return err
	}
	if err := broken(); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	left := unfinished(t, dir)
	if got := tree(t, dir); len(left) != 1 || slices.ContainsFunc(got, func(n string) bool { return !strings.HasPrefix(n, filepath.Base(left[0])) }) {
		t.Fatalf("the folder holds %q", got)
	}
	// It is in nobody's way: a full backup is made beside it, and diffs, and
	// what broken runs add does not show.
	mustWrite(t, open(t, dir, nil), items)
	if err := broken(); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	same(t, items, read(t, dir, 2))
	if left = unfinished(t, dir); len(left) != 2 {
		t.Errorf("%q", left)
	}
	mustWrite(t, open(t, dir, func(o *Options) { o.Clean = true }), items[:10])
	if left = unfinished(t, dir); len(left) != 0 {
		t.Errorf("after clean=true: %q", left)
	}
	same(t, append(slices.Clone(items), items[:10]...), read(t, dir, 2))
}

func TestCancelledRunLeavesNoBackup(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	ctx, cancel := context.WithCancel(t.Context())
	src := &pumptest.MemSource{Parts: [][]pump.Item{manyItems(3000, "v")}, BatchSize: 500, Fail: func(_, given int) error {
		if given >= 1000 {
			cancel()
		}
		return nil
	}}
	_, err := pump.Run(ctx, pump.Config{Source: src, Sink: open(t, dir, nil), Settings: pump.DefaultSettings()})
	if pump.ClassOf(err) != pump.ClassInterrupted {
		t.Errorf("%v", err)
	}
	if runs, _ := filepath.Glob(filepath.Join(dir, "2*")); len(runs) != 0 {
		t.Errorf("%q", runs)
	}
}

func TestTwoRunsIntoOneFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	first := open(t, dir, nil)
	if _, err := first.Lanes(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir, func(o *Options) { o.Clean = true })
	if _, err := second.Lanes(t.Context(), 1); pump.CodeOf(err) != "backup-busy" {
		t.Errorf("%v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if len(unfinished(t, dir)) != 1 {
		t.Error("the second run took away what the first writes")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("an unused sink left a folder")
	}
	mustWrite(t, open(t, dir, nil), manyItems(1, "v"))
}

func TestFolderThatVanishes(t *testing.T) {
	for _, what := range []string{"all", "staging", "run"} {
		t.Run(what, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "backup")
			mustWrite(t, open(t, dir, nil), manyItems(10, "v"))
			s := open(t, dir, nil)
			src := &pumptest.MemSource{Parts: [][]pump.Item{manyItems(100, "v")}, BatchSize: 50, Fail: func(_, given int) error {
				gone := map[string]string{"all": dir, "staging": s.staging, "run": filepath.Join(dir, s.ground.Run)}[what]
				return os.RemoveAll(gone)
			}}
			_, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: s, Settings: pump.DefaultSettings()})
			if pump.ExitCode(err, 0) != 1 || !strings.Contains(err.Error(), dir) {
				t.Errorf("exit code %d: %v", pump.ExitCode(err, 0), err)
			}
			if hint := pump.HintOf(err); strings.Contains(hint, "Something removed it") != (what != "run") {
				t.Errorf("%v: the hint is %s", err, hint)
			}
			if left := unfinished(t, dir); (len(left) == 1) != (what == "run") {
				t.Errorf("left is %q", left)
			}
		})
	}
}

func TestNameThatIsTaken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backup")
	s := open(t, dir, nil)
	if _, err := s.Lanes(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, s.began.Format(cbb.TimeFormat)), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context()); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("%v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// fillEnv names the folder into which the test's own program, run again with a
// limit on the size of files, writes a backup.
const fillEnv = "CBPUMP_TEST_FILL"

// TestDiskFull runs itself again under a limit: the system then refuses to write
// beyond it, as a full disk does.
func TestDiskFull(t *testing.T) {
	if dir := os.Getenv(fillEnv); dir != "" {
		err := write(t, open(t, dir, nil), manyItems(12000, strings.Repeat("v", 200)))
		fmt.Printf("code %s, exit %d: %v\n", pump.CodeOf(err), pump.ExitCode(err, 0), err)
		return
	}
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, blocks := range []int{1, 40, 2000} { // of 512 or 1024 bytes: the table, the rows, the end
		dir := filepath.Join(t.TempDir(), "backup")
		cmd := exec.CommandContext(t.Context(), shell, "-c", fmt.Sprintf(`trap "" XFSZ; ulimit -f %d; exec "$0" -test.run '^TestDiskFull$' -test.v`, blocks), self)
		cmd.Env = append(os.Environ(), fillEnv+"="+dir)
		out, _ := cmd.CombinedOutput()
		said := string(out)
		if !strings.Contains(said, "exit 1: ") || !strings.Contains(said, dir) || strings.Contains(said, "panic") {
			t.Errorf("limit %d: %s", blocks, said)
		}
		if runs, _ := filepath.Glob(filepath.Join(dir, "2*")); len(runs) != 0 {
			t.Errorf("limit %d: %q has the name of a backup", blocks, runs)
		}
	}
}
