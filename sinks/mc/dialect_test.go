package mc

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

var (
	v25 = &Traits{Version: cluster.Version{Major: 2, Minor: 5, Patch: 1}}
	v40 = &Traits{Version: cluster.Version{Major: 4}}
	v66 = &Traits{Version: cluster.Version{Major: 6, Minor: 6}, Modern: true, JSON: true, Snappy: true, Xattr: true}
	lww = &Traits{Version: cluster.Version{Major: 6, Minor: 6}, Modern: true, JSON: true, Snappy: true, Xattr: true, LWW: true}
)

func frame(t testing.TB, packet []byte) mcbp.Frame {
	t.Helper()
	f, err := mcbp.NewReader(bytes.NewReader(packet)).Next()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestCapturedWithMeta encodes the items of the recorded requests again. They
// must mean what was recorded (but be quiet), and the recorded answers must rule
// as the recorded state shows.
func TestCapturedWithMeta(t *testing.T) {
	all, err := capture.Select(func(name string) bool {
		old := strings.HasPrefix(name, "2.5.1-") || strings.HasPrefix(name, "3.0.3-") || strings.HasPrefix(name, "4.0-")
		return old && strings.Contains(name, "withmeta")
	})
	if err != nil || len(all) != 15 {
		t.Fatalf("%d captures, %v", len(all), err)
	}
	quiet := map[mcbp.Opcode]mcbp.Opcode{mcbp.OpSetWithMeta: mcbp.OpSetQWithMeta, mcbp.OpDeleteWithMeta: mcbp.OpDeleteQWithMeta}
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) {
			held := map[string]capture.Item{}
			for _, it := range c.Items {
				held[string(it.Key)] = it
			}
			packets, _ := c.Packets(capture.Client)
			if len(packets) == 0 {
				t.Fatal("nothing was sent")
			}
			done := map[string]pump.Item{}
			for n, p := range packets {
				f := frame(t, p)
				var want, got mcbp.WithMeta
				if err := want.Parse(&f); err != nil {
					t.Fatal(err)
				}
				it := pump.Item{VBucket: want.VBucket, Flags: want.Meta.Flags, Expiry: want.Meta.Expiry, CAS: want.Meta.CAS,
					RevSeqno: want.Meta.Rev, Key: want.Key, Value: want.Value}
				if want.Opcode == mcbp.OpDeleteWithMeta {
					it.Op = pump.Deletion
				}
				o := DefaultCBOptions()
				o.ConflictResolution = want.Options != mcbp.MetaForce
				d := &metaDialect{o: o}
				f = frame(t, d.Append(nil, &it, Sending{Opaque: want.Opaque, Traits: v40}))
				if err := got.Parse(&f); err != nil {
					t.Fatal(err)
				}
				if got.Opcode != quiet[want.Opcode] || got.VBucket != want.VBucket || got.Opaque != want.Opaque || got.Datatype != 0 ||
					got.Options != want.Options || got.Meta != want.Meta || got.HeaderCAS != 0 ||
					!bytes.Equal(got.Key, want.Key) || !bytes.Equal(got.Value, want.Value) {
					t.Errorf("request %d is %+v, recorded %+v", n, got, want)
				}
				for _, r := range c.Replies {
					if r.Opaque != want.Opaque {
						continue
					}
					switch s, req := mcbp.Status(r.Status), d.Request(&it, v40); {
					case s == mcbp.StatusExists:
						if _, ruled := d.refused(&it, req, v40); ruled {
							t.Errorf("request %d: refused without a look at the destination", n)
						}
					case NewRulings("test").Of(req, s).Verdict == pump.Done:
						done[string(it.Key)] = it
					case s != mcbp.StatusNotMyVBucket:
						t.Errorf("request %d: %s is not done", n, mcbp.StatusName(s))
					}
				}
			}
			for key, it := range done {
				h, ok := held[key]
				// 2.5.1 gives the tombstone of an unknown key a CAS of its own.
				if !ok && it.Op == pump.Mutation || ok && (h.Rev != it.RevSeqno || h.CAS != it.CAS && it.Op == pump.Mutation) {
					t.Errorf("%q counts as done; the server held %+v", key, h)
				}
			}
		})
	}
	capture.Replays(t, "sinks/mc.TestCapturedWithMeta", capture.Names(all)...)
}

// TestCapturedGetMeta: what was recorded of a key, asked for again, makes the
// same item Done, an older one Skipped.
func TestCapturedGetMeta(t *testing.T) {
	all, err := capture.Select(func(name string) bool { return strings.HasSuffix(name, "-getmeta") && name[0] < '6' })
	if err != nil || len(all) != 3 {
		t.Fatalf("%d captures, %v", len(all), err)
	}
	d := &metaDialect{o: DefaultCBOptions()}
	for _, c := range all {
		requests, _ := c.Packets(capture.Client)
		answers, _ := c.Packets(capture.Server)
		byKey := map[string]capture.Item{}
		for _, it := range c.Items {
			byKey[string(it.Key)] = it
		}
		for n, p := range requests {
			f := frame(t, p)
			if got := mcbp.AppendGetMeta(nil, f.Opaque, f.VBucket, f.Key()); !bytes.Equal(got, p) {
				t.Errorf("%s: request %d is %x, recorded %x", c.Name, n, got, p)
			}
			want, ok := byKey[string(f.Key())]
			a := frame(t, answers[n])
			if !ok || a.Status() != mcbp.StatusOK {
				continue
			}
			have, err := mcbp.ParseGetMeta(&a)
			if err != nil {
				t.Fatal(err)
			}
			it := pump.Item{Key: want.Key, Flags: want.Flags, Expiry: want.Expiry, CAS: want.CAS, RevSeqno: want.Rev}
			if want.Op == "deletion" {
				it.Op = pump.Deletion
			}
			if r, _ := d.compare(&it, v40, &have); r.Verdict != pump.Done {
				t.Errorf("%s: the same item is %s", c.Name, r.Verdict)
			}
			it.CAS--
			r, _ := d.compare(&it, v40, &have)
			if it.Op == pump.Mutation && r.Verdict != pump.Skipped || it.Op == pump.Deletion && r.Verdict != pump.Done {
				t.Errorf("%s: an older %s is %s", c.Name, it.Op, r.Verdict)
			}
		}
	}
	capture.Replays(t, "sinks/mc.TestCapturedGetMeta", capture.Names(all)...)
}

func TestCompare(t *testing.T) {
	live := func(rev, cas uint64, expiry, flags uint32) *mcbp.ItemMeta {
		return &mcbp.ItemMeta{Meta: mcbp.Meta{Rev: rev, CAS: cas, Expiry: expiry, Flags: flags}}
	}
	dead := func(rev, cas uint64) *mcbp.ItemMeta {
		return &mcbp.ItemMeta{Deleted: true, Meta: mcbp.Meta{Rev: rev, CAS: cas, Expiry: 1700000000}}
	}
	mut := func(rev, cas uint64, expiry, flags uint32) pump.Item {
		return pump.Item{RevSeqno: rev, CAS: cas, Expiry: expiry, Flags: flags}
	}
	del := func(rev, cas uint64) pump.Item { return pump.Item{Op: pump.Deletion, RevSeqno: rev, CAS: cas} }
	const none = pump.Unconfirmed
	for name, tc := range map[string]struct {
		it     pump.Item
		have   *mcbp.ItemMeta
		traits *Traits
		want   pump.Verdict
		req    Request
		guard  uint64
	}{
		"same":                        {mut(3, 9, 0, 1), live(3, 9, 0, 1), v40, pump.Done, 0, 0},
		"same, 1970 on 2.5":           {mut(3, 9, 5, 1), live(3, 9, relativeLimit+1, 1), v25, pump.Done, 0, 0},
		"later rev there":             {mut(3, 9, 0, 1), live(4, 1, 0, 1), v40, pump.Skipped, 0, 0},
		"later cas there":             {mut(3, 9, 0, 1), live(3, 10, 0, 1), v40, pump.Skipped, 0, 0},
		"later expiry there":          {mut(3, 9, 5000000, 1), live(3, 9, 6000000, 1), v40, pump.Skipped, 0, 0},
		"greater flags there":         {mut(3, 9, 0, 1), live(3, 9, 0, 2), v40, pump.Skipped, 0, 0},
		"older there":                 {mut(3, 9, 0, 1), live(2, 9, 0, 1), v40, pump.Retry, 0, 0},
		"gone in between":             {mut(3, 9, 0, 1), nil, v40, pump.Retry, 0, 0},
		"deleted later":               {mut(3, 9, 0, 1), dead(4, 9), v40, pump.Skipped, 0, 0},
		"deleted at the same time":    {mut(3, 9, 0, 1), dead(3, 9), v40, pump.Skipped, 0, 0},
		"deleted earlier":             {mut(3, 9, 0, 1), dead(2, 9), v40, pump.Retry, 0, 0},
		"no cas, older there":         {mut(3, 0, 0, 1), live(2, 9, 0, 1), v40, none, ReqSet, 9},
		"no cas, later there":         {mut(3, 0, 0, 1), live(4, 9, 0, 1), v40, pump.Skipped, 0, 0},
		"no cas, same rev there":      {mut(3, 0, 0, 1), live(3, 9, 0, 1), v40, pump.Skipped, 0, 0},
		"no cas, absent":              {mut(3, 0, 0, 1), nil, v40, none, ReqAdd, 0},
		"no cas, deleted earlier":     {mut(3, 0, 0, 1), dead(2, 9), v40, none, ReqAdd, 0},
		"no cas, deleted later":       {mut(3, 0, 0, 1), dead(4, 9), v40, pump.Skipped, 0, 0},
		"all ones":                    {mut(3, ^uint64(0), 0, 1), live(2, 9, 0, 1), v40, none, ReqSet, 9},
		"deletion, absent":            {del(3, 9), nil, v40, pump.Done, 0, 0},
		"deletion, deleted":           {del(3, 9), dead(8, 9), v40, pump.Done, 0, 0},
		"deletion, later there":       {del(3, 9), live(4, 9, 0, 0), v40, pump.Skipped, 0, 0},
		"deletion, same there":        {del(3, 9), live(3, 9, 0, 0), v40, pump.Skipped, 0, 0},
		"deletion, older there":       {del(3, 9), live(2, 9, 0, 0), v40, pump.Retry, 0, 0},
		"deletion no cas, older":      {del(3, 0), live(2, 9, 0, 0), v40, none, ReqDelete, 9},
		"deletion no cas, later":      {del(3, 0), live(4, 9, 0, 0), v40, pump.Skipped, 0, 0},
		"deletion no cas, same rev":   {del(3, 0), live(3, 9, 0, 0), v40, pump.Skipped, 0, 0},
		"6.6, same, limited expiry":   {mut(3, 9, 0, 1), live(3, 9, 1800000000, 1), v66, pump.Done, 0, 0},
		"6.6, no cas, older there":    {mut(3, 0, 0, 1), live(2, 9, 0, 1), v66, none, ReqSetMeta, 9},
		"6.6, no cas, absent":         {mut(3, 0, 0, 1), nil, v66, none, ReqAddMeta, 0},
		"6.6, deletion no cas, older": {del(3, 0), live(2, 9, 0, 0), v66, none, ReqDeleteMeta, 9},
		"lww, later cas there":        {mut(9, 3, 0, 1), live(1, 4, 0, 1), lww, pump.Skipped, 0, 0},
		"lww, earlier cas there":      {mut(1, 4, 0, 1), live(9, 3, 0, 1), lww, pump.Retry, 0, 0},
		"lww, same":                   {mut(1, 4, 0, 1), live(1, 4, 0, 1), lww, pump.Done, 0, 0},
		"lww, no cas, something":      {mut(9, 0, 0, 1), live(1, 4, 0, 1), lww, pump.Skipped, 0, 0},
		"lww, no cas, tombstone":      {mut(9, 0, 0, 1), dead(1, 4), lww, pump.Skipped, 0, 0},
		"lww, no cas, absent":         {mut(9, 0, 0, 1), nil, lww, none, ReqAddMeta, 0},
		"lww, deletion, later cas":    {del(9, 3), live(1, 4, 0, 0), lww, pump.Skipped, 0, 0},
		"deletion no cas, tombstoned": {del(3, 0), dead(3, 9), v25, pump.Done, 0, 0},
	} {
		d := &metaDialect{o: DefaultCBOptions()}
		r, w := d.compare(&tc.it, tc.traits, tc.have)
		if r.Verdict != tc.want || w.req != tc.req || w.guard != tc.guard || (r.Cause == nil) != (tc.want == pump.Done || tc.want == none) {
			t.Errorf("%s: %s (%v), then %+v", name, r.Verdict, r.Cause, w)
		}
	}
}

// TestCompareProperty: a copy of whatever is there is done, and of two different
// items exactly one is the newer.
func TestCompareProperty(t *testing.T) {
	gen := rapid.Custom(func(rt *rapid.T) mcbp.Meta {
		return mcbp.Meta{Rev: rapid.Uint64Range(1, 3).Draw(rt, "rev"), CAS: rapid.Uint64Range(1, 3).Draw(rt, "cas"),
			Expiry: rapid.Uint32Range(0, 1).Draw(rt, "expiry") * 2e9, Flags: rapid.Uint32Range(0, 2).Draw(rt, "flags")}
	})
	d := &metaDialect{o: DefaultCBOptions()}
	verdict := func(it, have mcbp.Meta) pump.Verdict {
		r, _ := d.compare(&pump.Item{RevSeqno: it.Rev, CAS: it.CAS, Expiry: it.Expiry, Flags: it.Flags}, v40, &mcbp.ItemMeta{Meta: have})
		return r.Verdict
	}
	rapid.Check(t, func(rt *rapid.T) {
		a, b := gen.Draw(rt, "a"), gen.Draw(rt, "b")
		ab, ba := verdict(a, b), verdict(b, a)
		if a == b && (ab != pump.Done || ba != pump.Done) || a != b && (ab == ba || ab == pump.Done || ba == pump.Done) {
			rt.Fatalf("%v over %v: %s, the other way %s", a, b, ab, ba)
		}
	})
}

// TestRulings is the status table of the design notes.
func TestRulings(t *testing.T) {
	const stop = pump.Unconfirmed
	all := []Request{ReqSet, ReqAdd, ReqDelete, ReqSetMeta, ReqAddMeta, ReqDeleteMeta, ReqTap, ReqDcp}
	for status, want := range map[mcbp.Status][]pump.Verdict{
		mcbp.StatusOK:                {pump.Done, pump.Done, pump.Done, pump.Done, pump.Done, pump.Done, pump.Done, pump.Done},
		mcbp.StatusNotFound:          {stop, stop, pump.Done, stop, stop, pump.Done, pump.Done, stop},
		mcbp.StatusExists:            {pump.Retry, pump.Skipped, pump.Retry, pump.Skipped, pump.Skipped, pump.Skipped, pump.Rejected, pump.Rejected},
		mcbp.StatusTooBig:            {pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected},
		mcbp.StatusInvalid:           {pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected},
		mcbp.StatusNotMyVBucket:      {pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry},
		mcbp.StatusNoMemory:          {pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry},
		mcbp.StatusBusy:              {pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry},
		mcbp.StatusTmpFail:           {pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry},
		mcbp.StatusAuthError:         {stop, stop, stop, stop, stop, stop, stop, stop},
		mcbp.StatusAccess:            {stop, stop, stop, stop, stop, stop, stop, stop},
		mcbp.StatusUnknown:           {stop, stop, stop, stop, stop, stop, stop, stop},
		mcbp.StatusXattrInvalid:      {pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected, pump.Rejected},
		mcbp.StatusSyncInProgress:    {pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry},
		mcbp.StatusUnknownCollection: {pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry, pump.Retry},
		mcbp.Status(0x7777):          {stop, stop, stop, stop, stop, stop, stop, stop},
	} {
		r := NewRulings("somewhere")
		for i, req := range all {
			got := r.Of(req, status)
			if got.Verdict != want[i] || got.Stop != (want[i] == stop) || (got.Cause == nil) != (want[i] == pump.Done) {
				t.Errorf("%s to request %d: %+v, want %s", mcbp.StatusName(status), req, got, want[i])
			}
			if got.Cause != nil && (!strings.Contains(got.Cause.Error(), "somewhere") || !strings.Contains(got.Cause.Error(), "0x")) {
				t.Errorf("%s: %v names neither place nor status", mcbp.StatusName(status), got.Cause)
			}
		}
	}
}

// TestOptions is the table of *_WITH_META options of the design notes, on every
// combination of bucket, node and wish.
func TestOptions(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		o := DefaultCBOptions()
		o.ConflictResolution = rapid.Bool().Draw(rt, "resolve")
		o.WithMeta = rapid.Bool().Draw(rt, "with-meta")
		force := rapid.Bool().Draw(rt, "force")
		if force {
			o.ConflictResolution = false
		}
		tr := rapid.SampledFrom([]*Traits{v25, v40, v66, lww, {Version: cluster.Version{Major: 4, Minor: 6}, LWW: true}}).Draw(rt, "traits")
		it := pump.Item{
			CAS: rapid.SampledFrom([]uint64{0, 1, 1 << 60, ^uint64(0)}).Draw(rt, "cas"), RevSeqno: rapid.Uint64Range(0, 2).Draw(rt, "rev"),
			Datatype: rapid.SampledFrom([]uint8{0, 1, 4, 5}).Draw(rt, "datatype"), Value: []byte("v"),
		}
		d := &metaDialect{o: o, replicas: force}
		got := d.options(&it, tr)
		plain := !d.Request(&it, tr).withMeta()
		has := func(bit uint32) bool { return got&bit != 0 }
		rule := func(ok bool, what string) {
			if !ok {
				rt.Fatalf("%s: options %#x, plain %v, for %+v at %+v", what, got, plain, it, tr)
			}
		}
		rule(!force || has(mcbp.MetaForce) && !plain, "replicas take only forced requests with metadata")
		rule(force || !has(mcbp.MetaForce) || !tr.Modern, "from 5.0 on only a recovery writes into replicas")
		rule(!has(mcbp.MetaForce) || !has(mcbp.MetaSkipConflict), "one of force and skip")
		rule(tr.Modern || !has(mcbp.MetaSkipConflict|mcbp.MetaRegenerateCAS), "older nodes do not know them")
		rule(!has(mcbp.MetaRegenerateCAS) || has(mcbp.MetaForce|mcbp.MetaSkipConflict), "a new CAS needs force or skip")
		rule(!has(mcbp.MetaRegenerateCAS) || badCAS(it.CAS), "a good CAS is kept")
		rule(has(mcbp.MetaLWW) == (tr.LWW && !has(mcbp.MetaRegenerateCAS)), "last-write-wins buckets are told, others never")
		if tr.Modern && badCAS(it.CAS) && !plain && !o.ConflictResolution {
			rule(has(mcbp.MetaRegenerateCAS), "without conflict resolution a CAS that is none would never be stored")
		}
		if o.ConflictResolution && !plain && it.Datatype&4 == 0 {
			rule(got&^mcbp.MetaLWW == 0, "conflict resolution stays on")
		}
		rule(o.ConflictResolution || got != 0, "without conflict resolution there is an option")
	})
}

// TestCapturedModernWithMeta: what was recorded of 6.0, 6.6 and 7.0 is what goes
// out for the same items, wherever the recorded options are ones that we choose.
func TestCapturedModernWithMeta(t *testing.T) {
	all, err := capture.Select(func(name string) bool { return name[0] >= '6' && strings.Contains(name, "withmeta") })
	if err != nil || len(all) < 30 {
		t.Fatalf("%d captures, %v", len(all), err)
	}
	checked, replayed := map[uint32]int{}, map[string]bool{}
	for _, c := range all {
		status := map[uint32]mcbp.Status{}
		for _, r := range c.Replies {
			status[r.Opaque] = mcbp.Status(r.Status)
		}
		packets, _ := c.Packets(capture.Client)
		for _, p := range packets {
			f := frame(t, p)
			var want mcbp.WithMeta
			switch f.Opcode {
			case mcbp.OpSetWithMeta, mcbp.OpAddWithMeta, mcbp.OpDeleteWithMeta:
			default:
				continue
			}
			s, answered := status[f.Opaque]
			if want.Parse(&f) != nil || !answered || s != mcbp.StatusOK || want.HasOptions && want.Options == 0 {
				continue
			}
			o := DefaultCBOptions()
			if f.Opcode == mcbp.OpAddWithMeta {
				o.Operation = "add"
			}
			tr := v66
			tr.LWW = strings.Contains(c.Name, "lww")
			o.ConflictResolution = want.Options&^mcbp.MetaLWW == 0
			d := &metaDialect{o: o, replicas: want.Options&mcbp.MetaForce != 0}
			it := pump.Item{VBucket: want.VBucket, Datatype: want.Datatype, Flags: want.Meta.Flags, Expiry: want.Meta.Expiry, CAS: want.Meta.CAS,
				RevSeqno: want.Meta.Rev, Key: want.Key, Value: want.Value}
			if f.Opcode == mcbp.OpDeleteWithMeta {
				it.Op = pump.Deletion
			}
			if want.Options&mcbp.MetaRegenerateCAS != 0 {
				it.CAS = 0 // recorded with a good one, which we would keep
			}
			want.Opcode++ // quiet
			want.Meta.CAS = it.CAS
			got := d.Append(nil, &it, Sending{Opaque: want.Opaque, Traits: tr})
			if !bytes.Equal(got, want.Append(nil)) {
				t.Errorf("%s: %s sends\n%x, recorded\n%x", c.Name, mcbp.OpcodeName(f.Opcode), got, want.Append(nil))
			}
			checked[want.Options]++
			replayed[c.Name] = true
		}
	}
	capture.Replays(t, "sinks/mc.TestCapturedModernWithMeta", slices.Collect(maps.Keys(replayed))...)
	for _, o := range []uint32{0, 1, 2, 3, 5, 8, 10} {
		if checked[o] == 0 {
			t.Errorf("no recording with options %d was compared: %v", o, checked)
		}
	}
}

func TestAppendCostsNothing(t *testing.T) {
	d := Dialect(&metaDialect{o: DefaultCBOptions()})
	it := pump.Item{Key: []byte("key"), Value: make([]byte, 100), CAS: 5, RevSeqno: 5}
	out := make([]byte, 0, 1<<10)
	if n := testing.AllocsPerRun(100, func() { out = d.Append(out[:0], &it, Sending{Traits: v25}) }); n != 0 {
		t.Errorf("%v allocations for an item", n)
	}
}

// TestPlugins: the declared defaults decode, the schemes resolve.
func TestPlugins(t *testing.T) {
	r := &pump.Registry{}
	if err := pump.RegisterSink(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	if err := pump.RegisterSink(r, CBPlugin()); err != nil {
		t.Fatal(err)
	}
	if o := DefaultCBOptions(); !o.ConflictResolution || !o.WithMeta || o.Rehash || o.Operation != "set" || o.Timeout <= 0 {
		t.Errorf("defaults %+v", o)
	}
	for spec, ok := range map[string]bool{
		"memcached://host": true,
		"memcached://user:secret@host:1?operation=add": true,
		"memcached://host/bucket":                      false,
		"memcached:":                                   false,
		"memcached://host?operation=none":              false,
		"http://host:8091":                             true,
		"couchbase://host?conflict-resolution=no":      true,
		"http://host?timeout=0s":                       false,
	} {
		s, err := r.Sink(context.Background(), spec, pump.Env{})
		if (err == nil) != ok || err != nil && (pump.ClassOf(err) != pump.ClassUsage || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v", spec, err)
		}
		if err == nil {
			s.Close()
		}
	}
}
