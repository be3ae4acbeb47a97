package compare_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/golang/snappy"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/compare"
	"github.com/cbpump/cbpump/pump/pumptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const now = 1_700_000_000

// mem is a side in memory.
func mem(parts ...[]pump.Item) compare.Side {
	return compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) {
		return &pumptest.MemSource{Parts: parts, BatchSize: 7}, nil
	}}
}

func config(t testing.TB, src, dst compare.Side) compare.Config {
	s := pump.DefaultSettings()
	s.RetryMax = time.Millisecond
	return compare.Config{Source: src, Sink: dst, Settings: s, Dir: t.TempDir(), Now: func() time.Time { return time.Unix(now, 0) }}
}

// diff is a difference that is kept.
type diff struct {
	compare.Difference
	Key  string
	Item *pump.Item
}

// run compares and returns the differences by collection and key.
func run(t testing.TB, cfg compare.Config) (*compare.Report, map[string]diff, error) {
	found := map[string]diff{}
	var mu sync.Mutex
	cfg.OnDifference = func(d *compare.Difference) error {
		if !mu.TryLock() {
			t.Error("two calls of OnDifference at a time")
			return nil
		}
		defer mu.Unlock()
		id := d.Collection.String() + "/" + string(d.Key)
		if _, twice := found[id]; twice {
			t.Errorf("%q is reported twice", id)
		}
		k := diff{Difference: *d, Key: string(d.Key)}
		if d.Item != nil {
			it := pumptest.CloneItem(d.Item)
			k.Item = &it
		}
		found[id] = k
		return nil
	}
	r, err := compare.Run(context.Background(), cfg)
	if left, lerr := os.ReadDir(cfg.Dir); lerr != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v, %v", left, lerr)
	}
	return r, found, err
}

func item(key, value string) pump.Item {
	return pump.Item{VBucket: uint16(len(key)) % 4, Key: []byte(key), Value: []byte(value), Flags: 5, Expiry: now + 1000, CAS: 77, RevSeqno: 3, Seqno: 9, Datatype: 1}
}

// TestEachField plants one difference of a single bit in each field.
func TestEachField(t *testing.T) {
	for _, c := range []struct {
		name   string
		plant  func(it *pump.Item)
		kind   compare.Kind
		fields pump.Fields
	}{
		{"nothing", func(*pump.Item) {}, compare.Same, 0},
		{"value", func(it *pump.Item) { it.Value[len(it.Value)-1] ^= 1 }, compare.Different, pump.FieldValue},
		{"length", func(it *pump.Item) { it.Value = it.Value[:len(it.Value)-1] }, compare.Different, pump.FieldValue},
		{"flags", func(it *pump.Item) { it.Flags ^= 1 << 31 }, compare.Different, pump.FieldFlags},
		{"expiry", func(it *pump.Item) { it.Expiry ^= 1 }, compare.Different, pump.FieldExpiry},
		{"cas", func(it *pump.Item) { it.CAS ^= 1 << 63 }, compare.Different, pump.FieldCAS},
		{"rev", func(it *pump.Item) { it.RevSeqno ^= 1 }, compare.Different, pump.FieldRev},
		{"datatype", func(it *pump.Item) { it.Datatype ^= 4 }, compare.Different, pump.FieldDatatype},
		{"json bit", func(it *pump.Item) { it.Datatype = 0 }, compare.Different, pump.FieldDatatype},
		{"seqno", func(it *pump.Item) { it.Seqno++ }, compare.Same, 0},
		{"deleted", func(it *pump.Item) { it.Op = pump.Deletion }, compare.Missing, pump.FieldDeleted},
		{"expired", func(it *pump.Item) { it.Expiry = now - 1 }, compare.Different, pump.FieldExpiry},
		{"key", func(it *pump.Item) { it.Key[0] ^= 1 }, compare.Missing, 0},
		{"collection", func(it *pump.Item) { it.Collection = &pump.Collection{Scope: "a", Name: "b"} }, compare.Missing, 0},
		{"compressed", func(it *pump.Item) {
			it.Value, it.Datatype = snappy.Encode(nil, it.Value), it.Datatype|2
		}, compare.Same, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var src, dst []pump.Item
			for i := range 40 {
				src = append(src, item(fmt.Sprintf("key-%d", i), fmt.Sprintf("value %d", i)))
				dst = append(dst, item(fmt.Sprintf("key-%d", i), fmt.Sprintf("value %d", i)))
			}
			const at = 17
			c.plant(&dst[at])
			cfg := config(t, mem(src), mem(dst))
			cfg.Items = true
			r, found, err := run(t, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if c.kind == compare.Same {
				if !r.Equal() || len(found) > 0 || r.Same != 40 {
					t.Errorf("%+v", r)
				}
			} else {
				d := found["_default._default/key-17"]
				if r.Equal() || d.Kind != c.kind || d.Fields != c.fields || d.VBucket != src[at].VBucket || d.Item == nil || !bytes.Equal(d.Item.Value, src[at].Value) || d.Item.Datatype != 1 {
					t.Errorf("%v %v, item %+v", d.Kind, d.Fields, d.Item)
				}
				if extra := len(found) - 1; extra != int(r.Extra) || extra > 1 {
					t.Errorf("%d differences, %+v", len(found), r)
				}
			}
			cfg.Mode = compare.Digest
			if r, _, err = run(t, cfg); err != nil || r.Equal() != (c.kind == compare.Same) {
				t.Errorf("digest: %+v, %v", r, err)
			}
			if c.kind != compare.Same && !slices.Contains(r.Differing(), src[at].VBucket) {
				t.Errorf("digest names %v", r.Differing())
			}
			cfg.Mode = compare.Count
			r, _, err = run(t, cfg)
			counted := c.name == "deleted" || c.name == "expired"
			if err != nil || r.Equal() == counted || r.Sides[0].Live != 40 {
				t.Errorf("count: %+v, %v", r, err)
			}
		})
	}
}

// world makes two sides that have much in common.
type world struct {
	src, dst []pump.Item
}

func draw(rt *rapid.T) world {
	colls := []*pump.Collection{nil, {Scope: "s", Name: "a"}, {Scope: "s", Name: "b"}}
	key := rapid.Custom(func(rt *rapid.T) []byte {
		return fmt.Appendf(nil, "k%d%s", rapid.IntRange(0, 60).Draw(rt, "n"), rapid.SampledFrom([]string{"", "\xff\x00", "key that is long enough to fill a chunk"}).Draw(rt, "tail"))
	})
	state := rapid.Custom(func(rt *rapid.T) pump.Item {
		k := key.Draw(rt, "key")
		it := pump.Item{
			Op: rapid.SampledFrom([]pump.Op{pump.Mutation, pump.Mutation, pump.Mutation, pump.Deletion, pump.Expiration}).Draw(rt, "op"), VBucket: uint16(k[1]) % 3, Key: k,
			Value: rapid.SampledFrom([][]byte{nil, []byte("a"), []byte("b"), bytes.Repeat([]byte("z"), 3000)}).Draw(rt, "value"),
			Flags: rapid.Uint32Range(0, 1).Draw(rt, "flags"), Expiry: rapid.SampledFrom([]uint32{0, 0, now - 100, now + 100}).Draw(rt, "expiry"),
			CAS: rapid.Uint64Range(0, 2).Draw(rt, "cas"), RevSeqno: rapid.Uint64Range(0, 2).Draw(rt, "rev"), Seqno: 1,
			Datatype: rapid.SampledFrom([]uint8{0, 1}).Draw(rt, "datatype"), Collection: rapid.SampledFrom(colls).Draw(rt, "collection"),
		}
		if it.Op != pump.Mutation {
			it.Value = nil
		}
		return it
	})
	var w world
	w.src = rapid.SliceOfN(state, 0, 150).Draw(rt, "source")
	switch rapid.IntRange(0, 2).Draw(rt, "how") {
	case 0: // a copy with changes
		for _, it := range w.src {
			switch rapid.IntRange(0, 9).Draw(rt, "change") {
			case 0:
			case 1:
				w.dst = append(w.dst, it, state.Draw(rt, "more"))
			default:
				w.dst = append(w.dst, it)
			}
		}
	case 1:
		w.dst = slices.Clone(w.src)
	default:
		w.dst = rapid.SliceOfN(state, 0, 150).Draw(rt, "destination")
	}
	return w
}

func identity(it *pump.Item) string { return it.Collection.String() + "/" + string(it.Key) }

func last(items []pump.Item) map[string]*pump.Item {
	m := map[string]*pump.Item{}
	for i := range items {
		m[identity(&items[i])] = &items[i]
	}
	return m
}

func visible(it *pump.Item) bool {
	return it != nil && it.Op == pump.Mutation && (it.Expiry == 0 || it.Expiry > now+5)
}

// expected is the comparison, written as plainly as can be.
func (w *world) expected() map[string]string {
	src, dst := last(w.src), last(w.dst)
	out := map[string]string{}
	for id := range maps.Keys(src) {
		s, d := src[id], dst[id]
		switch {
		case !visible(s) && !visible(d):
		case visible(s) && (d == nil || d.Op != pump.Mutation):
			out[id] = "missing"
		case visible(d) && s.Op != pump.Mutation:
			out[id] = "different [deleted]"
		default:
			var f []string
			for _, c := range []struct {
				name string
				same bool
			}{
				{"value", bytes.Equal(s.Value, d.Value)}, {"flags", s.Flags == d.Flags}, {"expiry", s.Expiry == d.Expiry},
				{"cas", s.CAS == 0 || s.CAS == d.CAS}, {"rev", s.RevSeqno == 0 || s.RevSeqno == d.RevSeqno}, {"datatype", s.Datatype == d.Datatype},
			} {
				if !c.same {
					f = append(f, c.name)
				}
			}
			if len(f) > 0 {
				out[id] = fmt.Sprintf("different %v", f)
			}
		}
	}
	for id, d := range dst {
		if src[id] == nil && visible(d) {
			out[id] = "extra"
		}
	}
	return out
}

// split deals items out to streams so that those of a key stay in one, in order.
func split(items []pump.Item) (parts [][]pump.Item) {
	parts = make([][]pump.Item, 3)
	for _, it := range items {
		n := len(it.Key) % 3
		parts[n] = append(parts[n], it)
	}
	return parts
}

// TestAgainstReference: any two sides, with so little memory that nearly all goes
// through files, and partitions are split.
func TestAgainstReference(t *testing.T) {
	spilled := int64(0)
	rapid.Check(t, func(rt *rapid.T) {
		w := draw(rt)
		cfg := config(t, mem(split(w.src)...), mem(split(w.dst)...))
		cfg.Items = true
		cfg.Memory = rapid.SampledFrom([]int64{1, 4 << 10, 1 << 20}).Draw(rt, "memory")
		cfg.Threads = rapid.IntRange(1, 3).Draw(rt, "threads")
		r, found, err := run(t, cfg)
		if err != nil {
			rt.Fatal(err)
		}
		spilled += r.Spilled
		want := w.expected()
		src, dst := last(w.src), last(w.dst)
		for id, text := range want {
			d, ok := found[id]
			got := d.Kind.String()
			if d.Kind == compare.Different {
				got += fmt.Sprintf(" %v", d.Fields.Names())
			}
			if !ok || got != text {
				rt.Errorf("%q: %q (reported %v), want %q", id, got, ok, text)
				continue
			}
			if s := src[id]; (s == nil) != (d.Item == nil) {
				rt.Errorf("%q: item %+v, the source has %+v", id, d.Item, s)
			} else if s != nil {
				a, b := *d.Item, *s
				if a.Collection.String() != b.Collection.String() {
					rt.Errorf("%q: collection %s", id, a.Collection)
				}
				a.Collection, b.Collection = nil, nil
				if pumptest.Describe(&a) != pumptest.Describe(&b) {
					rt.Errorf("%q: item %s, want %s", id, pumptest.Describe(&a), pumptest.Describe(&b))
				}
			}
		}
		if len(found) != len(want) {
			rt.Errorf("%d differences, want %d", len(found), len(want))
		}
		live := func(m map[string]*pump.Item) (n uint64) {
			for _, it := range m {
				if visible(it) {
					n++
				}
			}
			return n
		}
		if r.Sides[0].Live != live(src) || r.Sides[1].Live != live(dst) || r.Missing+r.Extra+r.Different != uint64(len(want)) || r.Equal() != (len(want) == 0) {
			rt.Errorf("%+v", r)
		}
		var byVB uint64
		for _, v := range r.VBuckets {
			byVB += v.Missing + v.Extra + v.Different
		}
		if byVB != uint64(len(want)) {
			rt.Errorf("%d differences by vbucket, want %d", byVB, len(want))
		}
		// Digests cannot excuse a CAS or revision that the source does not have.
		cfg.Mode = compare.Digest
		cfg.Source.Fields = pump.AllFields &^ (pump.FieldCAS | pump.FieldRev)
		if r, _, err = run(t, cfg); err != nil {
			rt.Fatal(err)
		}
		plain := w
		for _, items := range []*[]pump.Item{&plain.src, &plain.dst} {
			*items = slices.Clone(*items)
			for i := range *items {
				(*items)[i].CAS, (*items)[i].RevSeqno = 0, 0
			}
		}
		vbs := map[uint16]bool{}
		for id := range plain.expected() {
			for _, side := range []map[string]*pump.Item{last(plain.src), last(plain.dst)} {
				if it := side[id]; it != nil {
					vbs[it.VBucket] = true
				}
			}
		}
		if wantVBs := slices.Sorted(maps.Keys(vbs)); !slices.Equal(r.Differing(), wantVBs) {
			rt.Errorf("digest: vbuckets %v differ, want %v", r.Differing(), wantVBs)
		}
	})
	if spilled == 0 {
		t.Error("nothing was ever spilled")
	}
}

// TestLastStateCounts: a key that comes several times, on either side.
func TestLastStateCounts(t *testing.T) {
	old, newer := item("k", "old"), item("k", "new")
	r, found, err := run(t, config(t, mem([]pump.Item{newer, old, newer}), mem([]pump.Item{old, newer})))
	if err != nil || !r.Equal() || r.Same != 1 || r.Sides[0].Read != 3 {
		t.Errorf("%+v, %v, %v", r, found, err)
	}
}

// moving is a side whose readings differ.
func moving(readings ...[]pump.Item) compare.Side {
	n := 0
	return compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) {
		items := readings[min(n, len(readings)-1)]
		n++
		return &pumptest.MemSource{Parts: [][]pump.Item{items}}, nil
	}}
}

// TestSettle: what was only written while it was compared is no difference; what
// stays is.
func TestSettle(t *testing.T) {
	a, b, c := item("k", "a"), item("k", "b"), item("k", "c")
	none := []pump.Item{}
	one := func(it pump.Item) []pump.Item { return []pump.Item{it} }
	for _, x := range []struct {
		name     string
		src, dst compare.Side
		equal    bool
	}{
		{"the destination was late", moving(one(b)), moving(one(a), one(b)), true},
		{"the destination was later", moving(one(b), one(c)), moving(one(a), one(b)), true},
		{"the source was read early", moving(one(a), one(b)), moving(one(b), one(c)), true},
		{"missing at first", moving(one(a)), moving(none, one(a)), true},
		{"the destination stays", moving(one(b), one(c)), moving(one(a)), false},
		{"both change and never meet", moving(one(a), one(b)), moving(one(c), none), false},
		{"the source stays", moving(one(a)), moving(one(b), one(c)), false},
	} {
		t.Run(x.name, func(t *testing.T) {
			r, found, err := run(t, config(t, x.src, x.dst))
			if err != nil || r.Equal() != x.equal || (len(found) == 0) != x.equal || (r.Changed == 1) != x.equal {
				t.Errorf("%+v, %v, %v", r, found, err)
			}
		})
	}
	t.Run("digest", func(t *testing.T) {
		cfg := config(t, moving(one(b)), moving(one(a), one(b)))
		cfg.Mode = compare.Digest
		if r, _, err := run(t, cfg); err != nil || !r.Equal() || len(r.VBuckets) != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("excuse", func(t *testing.T) {
		cfg := config(t, moving(one(b)), moving(one(a)))
		cfg.Excuse = func(d *compare.Difference) bool { return d.Source.CAS == 77 && d.Fields == pump.FieldValue }
		if r, _, err := run(t, cfg); err != nil || !r.Equal() || r.Changed != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestSecondReading: only the vbuckets of candidates are read again, and all where
// it is not known which.
func TestSecondReading(t *testing.T) {
	for _, known := range []bool{true, false} {
		var asked [][]uint16
		side := func(items []pump.Item) compare.Side {
			return compare.Side{Open: func(_ context.Context, vbs []uint16) (pump.Source, error) {
				asked = append(asked, vbs)
				return &pumptest.MemSource{Parts: [][]pump.Item{items}}, nil
			}}
		}
		var src, dst []pump.Item
		for vb := range uint16(5) {
			it := item(fmt.Sprintf("key-%d", vb), "v")
			it.VBucket = vb
			src = append(src, it)
			if !known {
				it.VBucket = pump.NoVBucket
			}
			if vb == 3 {
				it.Flags = 1
			}
			dst = append(dst, it)
		}
		if _, found, err := run(t, config(t, side(src), side(dst))); err != nil || len(found) != 1 {
			t.Fatal(found, err)
		}
		want := []uint16{3}
		if !known {
			want = nil
		}
		if len(asked) != 4 || asked[0] != nil || !slices.Equal(asked[2], want) || !slices.Equal(asked[3], want) {
			t.Errorf("known %v: asked for %v", known, asked)
		}
	}
}

// TestNotWhole: a side that breaks off is never equal, in any mode.
func TestNotWhole(t *testing.T) {
	items := []pump.Item{item("a", "1"), item("b", "2")}
	cut := compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) {
		return &pumptest.MemSource{Parts: [][]pump.Item{items}, BatchSize: 1, Fail: func(_, given int) error {
			if given == 1 {
				return &pump.Error{Code: "cut", Err: errors.New("the node closed the connection")}
			}
			return nil
		}}, nil
	}}
	refuses := compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) {
		return nil, &pump.Error{Class: pump.ClassPartial, Code: "no", Err: errors.New("no")}
	}}
	for _, mode := range compare.Modes() {
		for name, c := range map[string][2]compare.Side{
			"source": {cut, mem(items)}, "destination": {mem(items), cut}, "both": {cut, cut}, "not opened": {mem(items), refuses},
		} {
			cfg := config(t, c[0], c[1])
			cfg.Mode = mode
			r, _, err := run(t, cfg)
			if r != nil || pump.ClassOf(err) != pump.ClassFailed || pump.ExitCode(err, 0) != 1 {
				t.Errorf("%s, %s: %+v, %v", mode, name, r, err)
			}
		}
	}
}

// TestCutSecond: a side that breaks off when it is read again.
func TestCutSecond(t *testing.T) {
	n := 0
	cfg := config(t, mem([]pump.Item{item("a", "1")}), compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) {
		if n++; n > 1 {
			return nil, errors.New("gone")
		}
		return &pumptest.MemSource{Parts: [][]pump.Item{nil}}, nil
	}})
	if r, found, err := run(t, cfg); r != nil || err == nil || len(found) > 0 {
		t.Errorf("%+v, %v, %v", r, found, err)
	}
}

// TestStopped: signals.
func TestStopped(t *testing.T) {
	stop := make(chan struct{})
	close(stop)
	cfg := config(t, mem([]pump.Item{item("a", "1")}), mem([]pump.Item{item("a", "1")}))
	cfg.Stop = stop
	if r, _, err := run(t, cfg); r != nil || pump.ClassOf(err) != pump.ClassInterrupted {
		t.Errorf("%+v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	cfg.Stop = nil
	if r, err := compare.Run(ctx, cfg); r != nil || pump.ClassOf(err) != pump.ClassInterrupted {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestErrorEndsIt: who is told of differences can end the comparison; and a folder
// for temporary files that cannot be used is named.
func TestErrorEndsIt(t *testing.T) {
	cfg := config(t, mem([]pump.Item{item("a", "1")}), mem(nil))
	full := errors.New("disk full")
	cfg.OnDifference = func(*compare.Difference) error { return full }
	if _, err := compare.Run(context.Background(), cfg); !errors.Is(err, full) {
		t.Error(err)
	}
	cfg.Dir += "/nowhere"
	if _, err := compare.Run(context.Background(), cfg); pump.CodeOf(err) != "temporary-files" || pump.HintOf(err) == "" {
		t.Error(err)
	}
}

// telling is a source that does not tell every field.
type telling struct {
	pump.Source
	fields pump.Fields
	counts map[uint16]uint64
}

func (s *telling) Fields(context.Context) (pump.Fields, error) { return s.fields, nil }
func (s *telling) LiveCounts(context.Context) (map[uint16]uint64, error) {
	if s.counts == nil {
		return nil, errors.New("no counts")
	}
	return s.counts, nil
}

// TestFields: what one side does not tell is not compared, and that is said.
func TestFields(t *testing.T) {
	a, b := item("k", "v"), item("k", "v")
	b.CAS, b.RevSeqno, b.Flags = 1, 9, 6
	side := func(it pump.Item, f pump.Fields) compare.Side {
		return compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) {
			return &telling{Source: &pumptest.MemSource{Parts: [][]pump.Item{{it}}}, fields: f}, nil
		}}
	}
	cfg := config(t, side(a, pump.AllFields), side(b, pump.FieldValue|pump.FieldFlags))
	r, found, err := run(t, cfg)
	if err != nil || len(found) != 1 || found["_default._default/k"].Fields != pump.FieldFlags || r.Fields != pump.FieldValue|pump.FieldFlags {
		t.Errorf("%+v, %v, %v", r, found, err)
	}
	var not pump.Fields
	for _, s := range r.Skipped {
		not |= s.Field
		if s.Why != "the destination does not keep or tell it" {
			t.Errorf("%+v", s)
		}
	}
	if not != pump.FieldExpiry|pump.FieldCAS|pump.FieldRev|pump.FieldDatatype {
		t.Errorf("not compared: %s", not)
	}
	// A source without CAS: of these items it is not compared.
	a.CAS, a.Flags = 0, 6
	a.RevSeqno = 9
	r, found, err = run(t, config(t, mem([]pump.Item{a}), mem([]pump.Item{b})))
	if err != nil || len(found) != 0 || len(r.Skipped) != 1 || r.Skipped[0].Field != pump.FieldCAS || r.Skipped[0].Items != 1 {
		t.Errorf("%+v, %v, %v", r, found, err)
	}
}

// numbered is a source that knows how many vbuckets there are.
type numbered struct {
	pump.Source
	n int
}

func (s *numbered) VBucketCount(context.Context) (int, error) { return s.n, nil }

// TestWrongVBucket: where both sides have the same number of vbuckets, an item in
// another one is not where clients look for it.
func TestWrongVBucket(t *testing.T) {
	side := func(n int, vb uint16) compare.Side {
		return compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) {
			it := item("k", "v")
			it.VBucket = vb
			return &numbered{&pumptest.MemSource{Parts: [][]pump.Item{{it}}}, n}, nil
		}}
	}
	for _, c := range []struct {
		src, dst compare.Side
		equal    bool
	}{
		{side(8, 3), side(8, 3), true},
		{side(8, 3), side(8, 4), false},
		{side(8, 3), side(16, 11), true},
		{side(0, 3), side(0, 4), true},
	} {
		for _, mode := range compare.Modes() {
			cfg := config(t, c.src, c.dst)
			cfg.Mode = mode
			r, err := compare.Run(context.Background(), cfg)
			if err != nil || r.Equal() != c.equal {
				t.Errorf("%s: %v, %v, want equal %v", mode, r, err, c.equal)
			}
			if mode == compare.Full && !c.equal && (r.Missing != 1 || r.Extra != 1) {
				t.Errorf("%v", r)
			}
		}
	}
}

// TestCounts: counts of the servers need no reading; one side without any makes
// both be read.
func TestCounts(t *testing.T) {
	side := func(counts map[uint16]uint64) compare.Side {
		return compare.Side{Open: func(context.Context, []uint16) (pump.Source, error) {
			return &telling{Source: &pumptest.MemSource{Parts: [][]pump.Item{{item("k", "v")}}}, counts: counts, fields: pump.AllFields}, nil
		}}
	}
	for _, c := range []struct {
		a, b   compare.Side
		differ []uint16
		fails  bool
	}{
		{side(map[uint16]uint64{0: 3, 1: 0}), side(map[uint16]uint64{0: 3}), nil, false},
		{side(map[uint16]uint64{0: 3, 1: 2}), side(map[uint16]uint64{0: 3, 1: 1, 2: 4}), []uint16{1, 2}, false},
		{side(map[uint16]uint64{0: 3}), side(nil), nil, true},
	} {
		cfg := config(t, c.a, c.b)
		cfg.Mode = compare.Count
		r, _, err := run(t, cfg)
		if c.fails {
			if err == nil {
				t.Error("no error")
			}
			continue
		}
		if err != nil || !r.Counted || !slices.Equal(r.Differing(), c.differ) {
			t.Errorf("%+v, %v", r, err)
		}
	}
	cfg := config(t, side(map[uint16]uint64{1: 1}), mem([]pump.Item{item("k", "v")}))
	cfg.Mode = compare.Count
	if r, _, err := run(t, cfg); err != nil || r.Counted || !r.Equal() || r.Sides[1].Live != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// looker is a destination that can only be asked for keys.
type looker struct {
	pumptest.MemSink
	have  map[string]pump.Item
	fails int // how often Find fails first
	mu    sync.Mutex
}

func (l *looker) LookFields() pump.Fields {
	return pump.FieldValue | pump.FieldFlags | pump.FieldDeleted
}
func (l *looker) Look(context.Context) (pump.Lookup, error) {
	return &lookup{l}, nil
}

type lookup struct{ l *looker }

func (k *lookup) Find(_ context.Context, items []pump.Item, found func(int, *pump.Item)) error {
	k.l.mu.Lock()
	defer k.l.mu.Unlock()
	for i := range items {
		if it, ok := k.l.have[string(items[i].Key)]; ok {
			found(i, &it)
		}
		if k.l.fails > 0 && i == len(items)/2 {
			k.l.fails--
			return pump.Retryable(errors.New("lost"))
		}
	}
	return nil
}

func (k *lookup) Close() error { return nil }

// TestLooker: missing and different keys are found, extra ones cannot be, and that
// is said.
func TestLooker(t *testing.T) {
	l := &looker{have: map[string]pump.Item{}, fails: 2}
	var src []pump.Item
	for i := range 50 {
		it := item(fmt.Sprintf("key-%d", i), "v")
		src = append(src, it)
		switch i {
		case 3:
			continue
		case 4:
			it.Value = []byte("w")
		case 5:
			it.CAS, it.Expiry = 1, 0
		case 6:
			src[i].Op = pump.Deletion
		}
		l.have[string(it.Key)] = it
	}
	l.have["more"] = item("more", "v")
	cfg := config(t, mem(src), compare.Side{Look: func(context.Context) (pump.Sink, error) { return l, nil }})
	cfg.Memory = 1
	r, found, err := run(t, cfg)
	if err != nil || !r.ExtraUnknown || r.Missing != 1 || r.Different != 2 || r.Extra != 0 || r.Same != 47 {
		t.Fatalf("%+v, %v", r, err)
	}
	if d := found["_default._default/key-6"]; d.Fields != pump.FieldDeleted {
		t.Errorf("%+v", d)
	}
	cfg.Mode = compare.Digest
	if r, _, err := run(t, cfg); err != nil || r.Equal() {
		t.Errorf("%+v, %v", r, err)
	}
}
