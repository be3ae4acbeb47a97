package places

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var kind = &Kind{Scheme: "tap", Verb: "dump", Past: "dumped", Only: "Active ones only.", Accept: func(string, cluster.Version) error { return nil }}

// silent answers after 30 seconds that there is no answer.
type silent struct{ asked atomic.Int32 }

var errSilent = errors.New("no answer within 30s")

func (p *silent) Locate(context.Context) (*Layout, error) {
	p.asked.Add(1)
	time.Sleep(30 * time.Second)
	return nil, errSilent
}

func (p *silent) KV(*Layout, string) cluster.KVConfig { return cluster.KVConfig{} }
func (p *silent) Close()                              {}

// TestSilentCluster: many streams wait together for a cluster that is silent, and
// what is known already is not waited for.
func TestSilentCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock does not wait
		p := &silent{}
		f := Finder{Places: p}
		known := &Layout{}
		f.layout.Store(known)
		start := time.Now()
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if _, err := f.Locate(t.Context(), true); err != errSilent {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if l, err := f.Locate(t.Context(), false); l != known || err != nil {
			t.Errorf("%v, %v", l, err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("what is known came after %v", took)
		}
		wg.Wait()
		if n, took := p.asked.Load(), time.Since(start); n != 1 || took != 30*time.Second {
			t.Errorf("asked %d times, in %v", n, took)
		}
	})
}

// TestSplit: every vbucket is in one part, parts are about equally large, and
// nothing but the vbuckets and the number wanted decides (so that a copy that goes
// on finds its streams again whatever has moved).
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vbs := slices.Sorted(slices.Values(rapid.SliceOfNDistinct(rapid.Uint16(), 1, 200, rapid.ID).Draw(t, "vbuckets")))
		want := rapid.IntRange(0, 250).Draw(t, "threads")
		parts := Split(vbs, want)
		due := want
		if want == 0 {
			due = usualStreams
		}
		if due = min(due, len(vbs)); len(parts) != due {
			t.Fatalf("%d parts, %d are due", len(parts), due)
		}
		if all := slices.Concat(parts...); !slices.Equal(all, vbs) {
			t.Fatalf("the parts hold %v", all)
		}
		ids := map[string]bool{}
		for _, p := range parts {
			if n := len(vbs) / due; len(p) < n || len(p) > n+1 {
				t.Fatalf("a part of %d of %d vbuckets in %d parts", len(p), len(vbs), due)
			}
			ids[StreamID("dcp", "b", "", p)] = true
		}
		if len(ids) != due {
			t.Fatalf("%d names for %d parts", len(ids), due)
		}
		// Who appends to a part does not write into the next.
		_ = append(parts[0], 0xffff)
		if all := slices.Concat(parts...); !slices.Equal(all, vbs) {
			t.Fatal("parts share memory")
		}
	})
}

// TestFirst: a stream begins with some node that has something for it, and the
// streams of a cluster whose vbuckets are spread evenly begin with different ones.
func TestFirst(t *testing.T) {
	l := &Layout{Kind: kind, Active: map[uint16]string{}}
	var vbs []uint16
	for vb := range uint16(64) {
		vbs = append(vbs, vb)
		l.Active[vb] = fmt.Sprint("node", vb%4)
	}
	begun := map[string]int{}
	for turn, part := range Split(vbs, 16) {
		begun[l.First(part, turn, func(uint16) bool { return true })]++
	}
	if len(begun) != 4 || begun["node0"] != 4 {
		t.Errorf("streams begin with %v", begun)
	}
	delete(l.Active, 5)
	if at := l.First([]uint16{4, 5, 6}, 7, func(vb uint16) bool { return vb != 6 }); at != "node0" {
		t.Errorf("begins with %q", at)
	}
	if at := l.First([]uint16{5}, 7, func(uint16) bool { return true }); at != "" {
		t.Errorf("begins with %q", at)
	}
}

func TestStreamID(t *testing.T) {
	for due, got := range map[string]string{
		"dcp:b:vb0-2,7:d66cc179":        StreamID("dcp", "b", "", []uint16{0, 1, 2, 7}),
		"tap:b.s.c:vb7:0a768cc8":        StreamID("tap", "b", "s.c", []uint16{7}),
		"tap:b:vb519:5a7b87e6":          StreamID("tap", "b", "", []uint16{519}),
		"vbucket 5":                     List([]uint16{5}),
		"vbuckets 5,7-8":                List([]uint16{5, 7, 8}),
		"0,2,4,6,8,10,12,14 and 2 more": Ranges([]uint16{0, 2, 4, 6, 8, 10, 12, 14, 16, 17}),
	} {
		if got != due {
			t.Errorf("%s, %s is due", got, due)
		}
	}
	// Lists that are cut short in the same place are told apart.
	odd := func(last uint16) []uint16 { return []uint16{0, 2, 4, 6, 8, 10, 12, 14, 16, last} }
	if StreamID("dcp", "b", "", odd(18)) == StreamID("dcp", "b", "", odd(20)) {
		t.Error("one name for two lists")
	}
}

func TestNodeAddr(t *testing.T) {
	for in, due := range map[string]string{
		"tap://host": "host:11210", "TAP://host": "host:11210", "tap://[::1]:5/": "[::1]:5", "tap://[::1]": "[::1]:11210", "tap://h:12000/": "h:12000",
	} {
		if got, mine, err := NodeAddr("tap", in); err != nil || !mine || got != due {
			t.Errorf("%s: %s, %v, %v", in, got, mine, err)
		}
	}
	for _, in := range []string{"tap://", "tap://a:secret@b", "tap://host:0", "tap://host:99999", "tap://a,b", "tap://h/path", "tap://::1"} {
		if _, mine, err := NodeAddr("tap", in); !mine || pump.ClassOf(err) != pump.ClassUsage || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", in, mine, err)
		}
	}
	for _, in := range []string{"http://host", "host", "dcp://host"} {
		if _, mine, err := NodeAddr("tap", in); mine || err != nil {
			t.Errorf("%s: %v, %v", in, mine, err)
		}
	}
}

// TestPick: what is listed and cannot be read is named, with the reason.
func TestPick(t *testing.T) {
	b := &cluster.Bucket{Name: "beer"}
	whole := &Layout{Kind: kind, Where: "h", Bucket: b, Count: 4, Active: map[uint16]string{0: "a", 1: "a", 2: "b"}, Not: map[uint16]string{}}
	single := &Layout{Kind: kind, Where: "h", Bucket: b, Count: 4, Active: map[uint16]string{0: "a", 1: "a"}, Not: map[uint16]string{2: "is active on b", 3: "is active on b"}}
	node := OfNode(kind, "n:1", map[uint16]cluster.VBInfo{7: {State: mcbp.VBActive}, 8: {State: mcbp.VBReplica}})
	for _, c := range []struct {
		l    *Layout
		list []uint16
		due  []uint16
		code string
		text string
	}{
		{whole, nil, nil, "tap-missing", "vbucket 3 has no active copy"},
		{whole, []uint16{2, 0, 2}, []uint16{0, 2}, "", ""},
		{whole, []uint16{3}, nil, "tap-missing", "vbucket 3"},
		{whole, []uint16{4}, nil, "tap-no-vbucket", "0 to 3"},
		{whole, []uint16{}, nil, "usage", "empty"},
		{single, nil, []uint16{0, 1}, "", ""},
		{single, []uint16{2}, nil, "tap-not-active", "is active on b"},
		{node, nil, []uint16{7}, "", ""},
		{node, []uint16{8}, nil, "tap-not-active", "is replica on n:1"},
		{node, []uint16{9}, nil, "tap-not-active", "not on this node"},
		{OfNode(kind, "n:1", nil), nil, nil, "tap-nothing", "nothing to dump"},
	} {
		got, err := c.l.Pick(c.list)
		if c.code == "" {
			if err != nil || !slices.Equal(got, c.due) {
				t.Errorf("%v: %v, %v", c.list, got, err)
			}
		} else if pump.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v: %v (%s)", c.list, err, pump.CodeOf(err))
		}
	}
}
