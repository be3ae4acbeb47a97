package file

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	sinkbackup "github.com/cbpump/cbpump/sinks/file/backup"
	sinkcsv "github.com/cbpump/cbpump/sinks/file/csv"
	sinkdocs "github.com/cbpump/cbpump/sinks/file/docs"
	sinkjsonl "github.com/cbpump/cbpump/sinks/file/jsonl"
	sinktext "github.com/cbpump/cbpump/sinks/file/textproto"
	"github.com/cbpump/cbpump/sources/file/backup"
	"github.com/cbpump/cbpump/sources/file/csv"
	"github.com/cbpump/cbpump/sources/file/docs"
	"github.com/cbpump/cbpump/sources/file/jsonl"
	"github.com/cbpump/cbpump/sources/file/textproto"
)

// format is a way to write items and to read them back.
type format struct {
	name string
	sink func(path string) (pump.Sink, error)
	src  func(path string) (pump.Source, error)
}

// decoded returns a plugin's options as they are when the user says nothing but these.
func decoded[O any](t testing.TB, values map[string]string) (o O) {
	t.Helper()
	if err := pump.DecodeOptions("test", values, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func formats(t testing.TB) []format {
	t.Helper()
	var all []format
	for _, ending := range []string{"", ".gz", ".zst"} {
		all = append(all, format{"x.jsonl" + ending,
			func(p string) (pump.Sink, error) { return sinkjsonl.New(p, decoded[sinkjsonl.Options](t, nil)) },
			func(p string) (pump.Source, error) { return jsonl.New(p, decoded[jsonl.Options](t, nil)) }})
	}
	for _, encoding := range []string{"text", "base64"} {
		with := map[string]string{"encoding": encoding}
		all = append(all, format{encoding + ".csv",
			func(p string) (pump.Sink, error) { return sinkcsv.New(p, decoded[sinkcsv.Options](t, with)) },
			func(p string) (pump.Source, error) { return csv.New(p, decoded[csv.Options](t, with)) }})
	}
	for _, notJSON := range []string{"reject", "write"} {
		for _, ending := range []string{"", ".zip"} {
			with := map[string]string{"not-json": notJSON}
			all = append(all, format{"docs-" + notJSON + ending,
				func(p string) (pump.Sink, error) { return sinkdocs.New(p, decoded[sinkdocs.Options](t, with)) },
				func(p string) (pump.Source, error) { return docs.New(p, decoded[docs.Options](t, nil)) }})
		}
	}
	for _, keys := range []string{"plain", "any"} {
		with := map[string]string{"keys": keys}
		all = append(all, format{keys + ".txt",
			func(p string) (pump.Sink, error) { return sinktext.New(p, decoded[sinktext.Options](t, with)), nil },
			func(p string) (pump.Source, error) {
				return textproto.New(p, decoded[textproto.Options](t, with), time.Now)
			}})
	}
	env := pump.Env{Bucket: "b"}
	return append(all, format{"backup",
		func(p string) (pump.Sink, error) { return sinkbackup.New(p, env, decoded[sinkbackup.Options](t, nil)) },
		func(p string) (pump.Source, error) { return backup.New(p, env, decoded[backup.Options](t, nil)) }})
}

// trying are items that between them have everything that an item can have, each
// with a key of its own.
func trying() []pump.Item {
	doc, text, odd := []byte(`{"a":1}`), []byte("text, \"quoted\"\r\n"), []byte("\x00\xff\x01")
	changes := []func(*pump.Item){
		func(*pump.Item) {},
		func(it *pump.Item) { it.Flags = 1<<32 - 1 },
		func(it *pump.Item) { it.Expiry = 4000000000 },
		func(it *pump.Item) { it.Expiry = 5 },
		func(it *pump.Item) { it.CAS = 1<<63 + 1 },
		func(it *pump.Item) { it.RevSeqno = 1<<40 + 1 },
		func(it *pump.Item) { it.RevSeqno = 12345678 },
		func(it *pump.Item) { it.Seqno = 1<<62 + 1 },
		func(it *pump.Item) { it.Seqno = 1<<63 + 1 },
		func(it *pump.Item) { it.Datatype = 1 },
		func(it *pump.Item) { it.Datatype = 3 },
		func(it *pump.Item) { it.Datatype = 5 },
		func(it *pump.Item) { it.Meta = []byte("\x01meta") },
		func(it *pump.Item) { it.VBucket = 0 },
		func(it *pump.Item) { it.VBucket = 1023 },
		func(it *pump.Item) { it.Collection = &pump.Collection{Scope: "_default", Name: "_default"} },
		func(it *pump.Item) { it.Collection = &pump.Collection{Scope: "s", Name: "c"} },
		func(it *pump.Item) {
			it.Flags, it.Expiry, it.CAS, it.RevSeqno, it.Seqno, it.Datatype, it.Meta, it.VBucket = 1, 2000000000, 3, 4, 5, 1, []byte("m"), 7
		},
	}
	var all []pump.Item
	add := func(it pump.Item, beginning string) {
		it.Key = fmt.Appendf(nil, "%s%d", beginning, len(all))
		all = append(all, it)
	}
	for _, op := range []pump.Op{pump.Mutation, pump.Deletion, pump.Expiration} {
		for _, value := range [][]byte{nil, doc, text, odd} {
			for _, change := range changes {
				it := pump.Item{Op: op, Value: value, VBucket: pump.NoVBucket}
				change(&it)
				add(it, "key")
			}
		}
	}
	for _, beginning := range []string{"a b", "line\r\n", "\x00", "\xff", "é", "%", "../../", "CON.", "\r\nquit", strings.Repeat("k", 245), strings.Repeat("k", 300)} {
		add(pump.Item{Value: doc, VBucket: pump.NoVBucket}, beginning)
		add(pump.Item{Op: pump.Deletion, VBucket: pump.NoVBucket}, beginning)
	}
	return all
}

// copied runs a copy and returns the items that the sink took, by key.
func copied(t testing.TB, src pump.Source, sink pump.Sink) (map[string]pump.Item, *pump.Report) {
	t.Helper()
	var mu sync.Mutex
	refused := map[string]bool{}
	taken := map[string]pump.Item{}
	report, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: pump.DefaultSettings(), Scribble: true,
		Filter: func(it *pump.Item) bool {
			mu.Lock()
			defer mu.Unlock()
			taken[string(it.Key)] = pumptest.CloneItem(it)
			return true
		},
		OnVerdict: func(it *pump.Item, _ pump.Verdict, why error) {
			mu.Lock()
			defer mu.Unlock()
			refused[string(it.Key)] = true
			if why == nil {
				t.Errorf("%q is refused without a reason", it.Key)
			}
		}})
	if code := pump.ExitCode(err, 0); len(refused) > 0 && code != 3 || len(refused) == 0 && code != 0 {
		t.Fatalf("%d items are refused, exit code %d: %v", len(refused), code, err)
	}
	if int(report.Rejected+report.Skipped) != len(refused) {
		t.Fatalf("%d rejected, %d skipped, %d were named", report.Rejected, report.Skipped, len(refused))
	}
	for key := range refused {
		delete(taken, key)
	}
	if int(report.Done) != len(taken) {
		t.Fatalf("%d done, want %d", report.Done, len(taken))
	}
	return taken, report
}

// differences names what of an item is not in the one that came of it, in the words
// of the report.
func differences(a *pump.Item, b pump.Item, there bool) []string {
	var out []string
	is := func(differs bool, part string) {
		if differs {
			out = append(out, part)
		}
	}
	if !there {
		return []string{"all of it"}
	}
	is(string(a.Value) != string(b.Value) && a.Op == pump.Mutation, "the value")
	is(a.Op == pump.Expiration && b.Op == pump.Deletion, "the expiration")
	is(a.Op != b.Op && !(a.Op == pump.Expiration && b.Op == pump.Deletion), "the kind")
	is(a.VBucket != b.VBucket, "the vbucket")
	is(a.CAS != b.CAS, "the CAS")
	is(a.RevSeqno != b.RevSeqno, "the revision")
	is(a.Seqno != b.Seqno, "the sequence number")
	is(string(a.Meta) != string(b.Meta), "the extended metadata")
	is(a.Collection.String() != b.Collection.String(), "the collection")
	if a.Op != pump.Mutation {
		is(string(a.Value) != string(b.Value) || a.Flags != b.Flags || a.Expiry != b.Expiry || a.Datatype != b.Datatype, "what deletions carry")
		return out
	}
	is(a.Flags != b.Flags, "the flags")
	is(a.Expiry != b.Expiry && b.Expiry != 0, "the time of expiry")
	is(a.Expiry != b.Expiry && b.Expiry == 0, "the expiry")
	// A document that is a file of its own is seen to be JSON.
	is(a.Datatype != b.Datatype && a.Datatype != 0, "the datatype")
	return out
}

// TestNothingIsLostInSilence converts from every format to every other. What came
// in is there afterwards, item by item and part by part; or the item was refused,
// with a reason; or the report says how many items lost that part.
func TestNothingIsLostInSilence(t *testing.T) {
	everything := formats(t)
	for _, from := range everything {
		dir := t.TempDir()
		first := filepath.Join(dir, from.name)
		convert(t, "memory to "+from.name, &pumptest.MemSource{Parts: [][]pump.Item{trying()}}, from, first)
		for _, to := range everything {
			src, err := from.src(first)
			if err != nil {
				t.Fatal(err)
			}
			convert(t, from.name+" to "+to.name, src, to, filepath.Join(dir, "to-"+to.name))
		}
	}
}

func convert(t *testing.T, what string, src pump.Source, to format, path string) {
	t.Helper()
	sink, err := to.sink(path)
	if err != nil {
		t.Fatal(err)
	}
	taken, report := copied(t, src, sink)
	back, err := to.src(path)
	if err != nil {
		t.Fatal(err)
	}
	items, err := filetest.ReadAll(t, back, 64<<10)
	if err != nil {
		t.Fatalf("%s: read back: %v", what, err)
	}
	there := map[string]pump.Item{}
	for _, it := range items {
		if _, twice := there[string(it.Key)]; twice {
			t.Errorf("%s: %q is there twice", what, it.Key)
		}
		there[string(it.Key)] = it
		if _, known := taken[string(it.Key)]; !known {
			t.Errorf("%s: %q is there, and was not taken", what, it.Key)
		}
	}
	said := map[string]uint64{}
	for _, l := range report.Losses {
		said[l.Part] = l.Items
	}
	lost := map[string]uint64{}
	for key, it := range taken {
		now, is := there[key]
		for _, part := range differences(&it, now, is) {
			if part == "all of it" && it.Op != pump.Mutation {
				part = "the deletion"
			}
			lost[part]++
		}
	}
	for part, n := range lost {
		if !slices.ContainsFunc(report.Losses, func(l pump.Loss) bool { return strings.HasPrefix(l.Part, part) && l.Items >= n }) {
			t.Errorf("%s: %d items lost %s; the report says %v", what, n, part, report.Losses)
		}
	}
	for part, n := range said {
		known := false
		for l, m := range lost {
			known = known || strings.HasPrefix(part, l) && (m == n || lost["the deletion"] > 0)
		}
		if !known {
			t.Errorf("%s: the report says that %d items lost %s, but what was lost is %v", what, n, part, lost)
		}
	}
}
