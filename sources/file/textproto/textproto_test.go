package textproto_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	sink "github.com/cbpump/cbpump/sinks/file/textproto"
	"github.com/cbpump/cbpump/sources/file/textproto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const golden = "../../../testdata/backups/"

// now is 2020-01-01.
func now() time.Time { return time.Unix(1577836800, 0) }

func open(t testing.TB, path, keys string) pump.Source {
	t.Helper()
	s, err := textproto.New(path, textproto.Options{MaxRecord: 1 << 20, Keys: keys}, now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func file(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConformance(t *testing.T) {
	var text strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&text, "set key-%d %d 0 %d\r\n%s\r\n", i%500, i, i%100, strings.Repeat("\n", i%100))
		if i%10 == 0 {
			fmt.Fprintf(&text, "delete key-%d\r\n", i%500)
		}
	}
	path := file(t, text.String())
	pumptest.TestSource(t, pumptest.SourceSuite{New: func(t *testing.T) pump.Source { return open(t, path, "plain") }})
}

func TestCommands(t *testing.T) {
	path := file(t, "set a 1 0 3\r\nb\r\n\r\nadd  b 4294967295 60 0 noreply\r\n\r\nset c 0 2592000 1\nx\nset d 0 2592001 1\r\nx\r\n"+
		"set e 0 -5 1\r\nx\r\ndelete a\r\ndelete b 0 noreply\r\ndelete c noreply\nset f 0 4294967295 2\r\n\xff\x00\r\nquit\r\nnonsense")
	got, err := filetest.ReadAll(t, open(t, path, "plain"), 1000)
	want := []pump.Item{
		{Key: []byte("a"), Value: []byte("b\r\n"), Flags: 1},
		{Key: []byte("b"), Flags: 4294967295, Expiry: 1577836860},
		{Key: []byte("c"), Value: []byte("x"), Expiry: 1577836800 + 2592000},
		{Key: []byte("d"), Value: []byte("x"), Expiry: 2592001},
		{Key: []byte("e"), Value: []byte("x"), Expiry: 1577836799},
		{Key: []byte("a"), Op: pump.Deletion}, {Key: []byte("b"), Op: pump.Deletion}, {Key: []byte("c"), Op: pump.Deletion},
		{Key: []byte("f"), Value: []byte("\xff\x00"), Expiry: 4294967295},
	}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d items, %v", len(got), err)
	}
	for i := range want {
		want[i].VBucket = pump.NoVBucket
		if err := filetest.Same(&want[i], &got[i]); err != nil {
			t.Error(err)
		}
	}
}

func TestBadInput(t *testing.T) {
	for text, want := range map[string]string{
		"\r\n":                                     ":1:1: the line is empty",
		"get a\r\n":                                ":1:1: the command is none of",
		"SET a 0 0 1\r\nx\r\n":                     ":1:1: the command is none of",
		"set\r\n":                                  ":1:5: a key is due",
		"set a 0 0\r\n":                            ":1:11: the line ends before",
		"set a x 0 1\r\nx\r\n":                     ":1:7: the flags",
		"set a -1 0 1\r\nx\r\n":                    ":1:7: the flags",
		"set a 4294967296 0 1\r\nx\r\n":            ":1:7: the flags",
		"set a 0 x 1\r\nx\r\n":                     ":1:9: the expiry",
		"set a 0 0 -1\r\nx\r\n":                    ":1:11: the number of bytes",
		"set a 0 0 9999999999\r\nx\r\n":            ":1:11: a data block of 9999999999 bytes",
		"set a 0 0 1 reply\r\nx\r\n":               ":1:13: nothing but noreply",
		"set a 0 0 1\r\nxy\r\n":                    ":2:2: the data block is longer",
		"set a 0 0 3\r\nx\r\nset b 0 0 1\r\ny\r\n": ":3:1: the data block is longer",
		"set a 0 0 1\r\nx\rset":                    ":2:2: the data block is longer",
		"set a 0 0 5\r\nx\r\n":                     ":3:1: the input ends within a data block",
		"set a 0 0 1":                              ":1:12: the input ends within a command line",
		"set a\x01 0 0 1\r\nx\r\n":                 ":1:6: the key holds a control character",
		"set " + strings.Repeat("k", 251) + " 0 0 1\r\nx\r\n": ":1:5: the key has 251 bytes",
		"delete a 5\r\n":                        ":1:10: nothing but noreply",
		"set a 0 0 4\r\n1\n2\n\r\ndelete\r\n":   ":5:8: a key is due",
		"quit now\r\n":                          ":1:6: nothing is due",
		"delete a" + strings.Repeat(" ", 2<<20): ":1:1: what begins here does not end within 1m",
	} {
		for _, keys := range []string{"plain", "any"} {
			if keys == "any" && strings.Contains(text, "\x01") {
				continue
			}
			path := file(t, text)
			_, err := filetest.ReadAll(t, open(t, path, keys), 1000)
			if err == nil || pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(err.Error(), path+want) {
				t.Errorf("%.40q with %s keys: got %v, want %s", text, keys, err, want)
			}
		}
	}
}

// TestGolden replays what the older tools wrote: it must end at what the server
// held. Some of their keys hold NUL and line ends.
func TestGolden(t *testing.T) {
	for _, version := range []string{"2.5.1", "3.0.3", "4.0"} {
		path := filepath.Join(golden, version, "stdout.txt")
		want := filetest.Golden(t, filepath.Join(golden, version, "expected.jsonl"))
		if _, err := filetest.ReadAll(t, open(t, path, "plain"), 1000); err == nil || !strings.Contains(err.Error(), "the key holds a control character (0x00)") {
			t.Errorf("%s with plain keys: %v", version, err)
		}
		items, err := filetest.ReadAll(t, open(t, path, "any"), 1000)
		if err != nil {
			t.Errorf("%s: %v", version, err)
			continue
		}
		state := map[string]pump.Item{}
		for _, it := range items {
			state[string(it.Key)] = it
		}
		if len(state) != len(want) {
			t.Errorf("%s: %d keys, want %d", version, len(state), len(want))
		}
		for key, w := range want {
			got := state[key]
			w.VBucket, w.CAS, w.RevSeqno, w.Datatype = pump.NoVBucket, 0, 0, 0 // not in the protocol
			if w.Op != pump.Mutation {
				w.Flags, w.Expiry = 0, 0
			}
			if err := filetest.Same(&w, &got); err != nil {
				t.Errorf("%s: %v", version, err)
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	rapid.Check(t, func(rt *rapid.T) {
		items := rapid.SliceOfN(filetest.Item(), 0, 20).Draw(rt, "items")
		o := sink.Options{Operation: rapid.SampledFrom([]string{"set", "add"}).Draw(rt, "operation"), Keys: rapid.SampledFrom([]string{"plain", "any"}).Draw(rt, "keys")}
		var want []pump.Item
		for i := range items {
			it := &items[i]
			it.Datatype &= 3
			it.Expiry |= 1 << 30 // small ones are over, see TestExpiredIsWrittenAsExpired
			unpacked := pump.Batch{Items: []pump.Item{pumptest.CloneItem(it)}}
			unpacked.Unpack() // as on the way to this sink
			it = &unpacked.Items[0]
			plain := !bytes.ContainsFunc(it.Key, func(r rune) bool { return r < ' ' || r == 0x7f })
			if it.Collection != nil || bytes.IndexByte(it.Key, ' ') >= 0 || o.Keys == "plain" && !plain || it.Op == pump.Mutation && it.Datatype&2 != 0 {
				continue
			}
			w := pump.Item{Op: it.Op, Key: it.Key, VBucket: pump.NoVBucket}
			if it.Op == pump.Mutation {
				w.Value, w.Flags, w.Expiry = it.Value, it.Flags, it.Expiry
			} else {
				w.Op = pump.Deletion
			}
			want = append(want, w)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			rt.Fatal(err)
		}
		report, _ := filetest.WriteAll(t, sink.New(path, o), items)
		if int(report.Done) != len(want) || int(report.Rejected) != len(items)-len(want) {
			rt.Fatalf("%d done, %d rejected; %d of %d are due", report.Done, report.Rejected, len(want), len(items))
		}
		got, err := filetest.ReadAll(t, open(t, path, o.Keys), rapid.IntRange(0, 3000).Draw(rt, "arena"))
		if err != nil || len(got) != len(want) {
			rt.Fatalf("%d items of %d, %v", len(got), len(want), err)
		}
		for i := range want {
			if err := filetest.Same(&want[i], &got[i]); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

func TestExpiredIsWrittenAsExpired(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	if _, err := filetest.WriteAll(t, sink.New(path, sink.Options{}), []pump.Item{{Key: []byte("a"), Expiry: 2592000}, {Key: []byte("b"), Expiry: 2592001}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "set a 0 -1 0\r\n\r\nset b 0 2592001 0\r\n\r\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestResume(t *testing.T) {
	path := file(t, strings.Repeat("set a 0 0 5\r\nx\r\n y\r\ndelete b\r\nset c 0 2000000000 1\r\nx\r\n", 50))
	filetest.Resume(t, func() pump.Source { return open(t, path, "plain") })
	filetest.ResumeChanged(t, path, func() pump.Source { return open(t, path, "plain") })
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("set a 1 2 3\r\nabc\r\nadd b 0 -1 0 noreply\n\ndelete c\r\nquit\r\n"), false)
	f.Add([]byte("set bin\x00\r\n 1 0 1\r\nx\r\ndelete bin\x00\r\n\r\n"), true)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte, anyKey bool) {
		path, keys := filepath.Join(dir, "in"), "plain"
		if anyKey {
			keys = "any"
		}
		if err := os.WriteFile(path, text, 0o666); err != nil {
			t.Fatal(err)
		}
		items, err := filetest.ReadAll(t, open(t, path, keys), 200)
		if err != nil {
			return
		}
		out := filepath.Join(dir, "out")
		if err := os.Remove(out); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		report, _ := filetest.WriteAll(t, sink.New(out, sink.Options{Keys: keys}), items)
		if report.Done+report.Rejected != uint64(len(items)) || report.Rejected > 0 && !anyKey {
			t.Fatalf("%d done, %d rejected of %d", report.Done, report.Rejected, len(items))
		}
		if report.Rejected > 0 {
			return
		}
		again, err := filetest.ReadAll(t, open(t, out, keys), 200)
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
