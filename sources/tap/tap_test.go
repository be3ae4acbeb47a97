package tap

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// read is an item with bytes of its own.
type read struct {
	pump.Item
	Key, Value string
}

// outcome is what reading a stream once, without opening it again, brought.
type outcome struct {
	items []read
	marks []pump.Mark
	err   error // never nil; io.EOF for a proven end
}

func (o *outcome) live(vb uint16) (n uint64) {
	for _, it := range o.items {
		if it.VBucket == vb && it.Op == pump.Mutation {
			n++
		}
	}
	return n
}

func (o *outcome) complete(vb uint16) bool {
	for _, m := range o.marks {
		if m.VBucket == vb && m.Complete {
			return true
		}
	}
	return false
}

// readOnce opens a stream and reads it to its first error.
func readOnce(t testing.TB, s pump.Stream, arena int) (o outcome) {
	t.Helper()
	ctx := context.Background()
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	if o.err = s.Open(ctx, nil); o.err != nil {
		return o
	}
	b := pump.NewBatch(arena)
	for o.err == nil {
		b.Reset()
		o.err = s.Read(ctx, b)
		if o.err == nil && len(b.Items)+len(b.Marks) == 0 {
			t.Fatal("Read returned neither items nor marks nor an error")
		}
		for _, it := range b.Items {
			o.items = append(o.items, read{it, string(it.Key), string(it.Value)})
		}
		o.marks = append(o.marks, b.Marks...)
		for i := range b.Arena() { // nobody may still need it
			b.Arena()[i] = 0xdb
		}
	}
	return o
}

// open returns the streams of a source.
func open(t testing.TB, cfg Config) []pump.Stream {
	t.Helper()
	src := source(t, cfg)
	streams, err := src.Streams(context.Background())
	if err != nil {
		t.Fatalf("streams: %v", err)
	}
	return streams
}

func source(t testing.TB, cfg Config) *DumpSource {
	t.Helper()
	src, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

// one returns the only stream of a dump of vbs from a fake node.
func one(t testing.TB, f *fakeNode, change func(*Config), vbs ...uint16) pump.Stream {
	t.Helper()
	cfg := Config{URL: f.url(), Options: DefaultOptions()}
	cfg.Threads, cfg.VBuckets = 1, vbs
	cfg.Options.IdleTimeout = 10 * time.Second // a test that hangs says so
	if change != nil {
		change(&cfg)
	}
	streams := open(t, cfg)
	if len(streams) != 1 {
		t.Fatalf("%d streams", len(streams))
	}
	return streams[0]
}

// want reports an error that has not the code and the texts that are due.
func want(t testing.TB, err error, code string, texts ...string) {
	t.Helper()
	if pump.CodeOf(err) != code {
		t.Errorf("error %v has code %q, %q is due", err, pump.CodeOf(err), code)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func load(t testing.TB, name string) *capture.Capture {
	t.Helper()
	c, err := capture.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// captureNode plays a recorded dump. The counts are what the node must have
// held: the recorded items, or 10 live ones where the dump did not finish.
func captureNode(t testing.TB, c *capture.Capture, cut int) (*fakeNode, []uint16) {
	t.Helper()
	vbs := map[uint16]cluster.VBInfo{}
	var list []uint16
	packets, _ := c.Packets(capture.Client)
	r := mcbp.NewReader(strings.NewReader(string(packets[0])))
	p, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	req, err := mcbp.ParseTapConnect(p)
	if err != nil {
		t.Fatal(err)
	}
	whole, _ := c.Comment("complete")
	for _, vb := range req.VBuckets {
		var n uint64
		for _, it := range c.Items {
			if it.VB == vb && it.Op == "mutation" {
				n++
			}
		}
		if strings.HasPrefix(whole, "NO") {
			n = 10
		}
		info := active(n)
		what, _ := c.Comment("what")
		switch {
		case strings.Contains(what, fmt.Sprintf("%d is a REPLICA", vb)):
			info.State = mcbp.VBReplica
		case strings.Contains(what, "does not exist"):
			continue
		default:
			list = append(list, vb)
		}
		vbs[vb] = info
	}
	f := startFake(t, vbs, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		return playCapture(c, cut, conn, r)
	})
	return f, list
}

func dumps(t *testing.T) []*capture.Capture {
	t.Helper()
	all, err := capture.Select(func(name string) bool { return strings.Contains(name, "-tap-dump-") })
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 40 {
		t.Fatalf("only %d recorded dumps", len(all))
	}
	return all
}

// TestRecordedDumps reads every recorded dump of 2.5.1, 3.0.3 and 4.0: what is
// whole ends in io.EOF with every item, what is not in a named error.
func TestRecordedDumps(t *testing.T) {
	for _, c := range dumps(t) {
		t.Run(c.Name, func(t *testing.T) {
			f, list := captureNode(t, c, -1)
			if strings.HasSuffix(c.Name, "-only-missing") {
				cfg := Config{URL: f.url()}
				cfg.VBuckets = []uint16{116}
				_, err := source(t, cfg).Streams(context.Background())
				want(t, err, codeNotActive, "vbucket 116", "not on this node")
				return
			}
			got := readOnce(t, one(t, f, nil, list...), 2000)
			compare(t, c, got.items)
			switch {
			case strings.HasSuffix(c.Name, "-truncated-no-opaque8"):
				want(t, got.err, codeIncomplete, "vbucket 120", "10 live items came, the node counts 10", "end marker")
			case strings.HasSuffix(c.Name, "-noack-no-opaque8"):
				want(t, got.err, codeIncomplete, "vbucket 135", "end marker")
			case strings.HasSuffix(c.Name, "-kill9"), strings.HasSuffix(c.Name, "-between"):
				want(t, got.err, codeIncomplete, f.addr(), "the node counts 10")
			case strings.Contains(c.Name, "-truncated-"):
				want(t, got.err, codeCut, "vbucket 120", f.addr(), "cut inside a packet", "the node counts 10")
			default:
				if got.err != io.EOF {
					t.Fatalf("a complete dump ended with %v", got.err)
				}
				for _, vb := range list {
					if !got.complete(vb) {
						t.Errorf("vbucket %d has no mark", vb)
					}
				}
				for _, m := range got.marks {
					if m.Items != got.live(m.VBucket) {
						t.Errorf("the mark of vbucket %d says %d items, %d came", m.VBucket, m.Items, got.live(m.VBucket))
					}
				}
				return
			}
			if !pump.IsRetryable(got.err) {
				t.Errorf("%v is not retryable", got.err)
			}
			if len(got.marks) > 0 {
				t.Errorf("marks of an incomplete dump: %+v", got.marks)
			}
		})
	}
	capture.Replays(t, "sources/tap.TestRecordedDumps", capture.Names(dumps(t))...)
}

// compare checks items against the recorded ones, field by field.
func compare(t *testing.T, c *capture.Capture, got []read) {
	t.Helper()
	byKey := map[string]read{}
	for _, it := range got {
		byKey[fmt.Sprintf("%d %x", it.VBucket, it.Key)] = it
	}
	if len(byKey) != len(c.Items) || len(got) != len(c.Items) {
		t.Errorf("%d items with %d keys came, %d were recorded", len(got), len(byKey), len(c.Items))
	}
	for _, w := range c.Items {
		it, ok := byKey[fmt.Sprintf("%d %s", w.VB, hex.EncodeToString(w.Key))]
		if !ok {
			t.Errorf("key %q of vbucket %d did not come", w.Key, w.VB)
			continue
		}
		if it.Op.String() != w.Op || it.CAS != w.CAS || it.RevSeqno != w.Rev {
			t.Errorf("key %q: %s, CAS %d, rev %d; recorded %s, %d, %d", w.Key, it.Op, it.CAS, it.RevSeqno, w.Op, w.CAS, w.Rev)
		}
		if w.Op == "deletion" {
			if it.Value != "" {
				t.Errorf("key %q: a deletion with value %q", w.Key, it.Value)
			}
			continue
		}
		if it.Flags != w.Flags || it.Expiry != w.Expiry || it.Datatype != w.Datatype {
			t.Errorf("key %q: flags %#x, expiry %d, datatype %d; recorded %#x, %d, %d", w.Key, it.Flags, it.Expiry, it.Datatype, w.Flags, w.Expiry, w.Datatype)
		}
		if err := w.CheckValue([]byte(it.Value)); err != nil {
			t.Errorf("key %q: %v", w.Key, err)
		}
	}
}

// TestCutAtEveryByte cuts recorded dumps at every byte: none of them may end in
// io.EOF (invariant 4), and every item before the cut must have come.
func TestCutAtEveryByte(t *testing.T) {
	for name, every := range map[string]bool{
		"3.0.3-tap-dump-one-replica": true,
		"2.5.1-tap-dump-ack-fix":     false, "3.0.3-tap-dump-ack": false, "4.0-tap-dump-two-vb": false,
	} {
		t.Run(name, func(t *testing.T) {
			c := load(t, name)
			stream := c.Stream(capture.Server)
			offsets := interesting(stream, every)
			var cut int
			f, list := captureNode(t, c, 0)
			f.tap = func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
				return playCapture(c, cut, conn, r)
			}
			for _, cut = range offsets {
				got := readOnce(t, one(t, f, nil, list...), 4<<10)
				if code := pump.CodeOf(got.err); errors.Is(got.err, io.EOF) ||
					code != codeCut && code != codeIncomplete && code != codeRefused {
					t.Fatalf("a dump cut after %d of %d bytes ended with %v", cut, len(stream), got.err)
				}
				whole, _ := capture.Split(stream[:cut])
				due := 0
				for _, p := range whole {
					if p[1] == 0x41 || p[1] == 0x42 {
						due++
					}
				}
				if len(got.items) != due {
					t.Fatalf("%d items before the cut at %d, %d came", due, cut, len(got.items))
				}
			}
		})
	}
}

// interesting returns every offset of a stream, or of the inside of large
// values only a few.
func interesting(stream []byte, every bool) (out []int) {
	packets, _ := capture.Split(stream)
	at := 0
	for _, p := range packets {
		for i := range p {
			if every || i < 120 || len(p)-i < 10 || i%997 == 0 {
				out = append(out, at+i)
			}
		}
		at += len(p)
	}
	return out
}

func TestEndProofByCount(t *testing.T) {
	byCount := func(cfg *Config) { cfg.Options.EndProof = endProofCount }
	for name, code := range map[string]string{
		"2.5.1-tap-dump-truncated-no-opaque8": "", // all came, and the last message was acknowledged
		"4.0-tap-dump-truncated-no-opaque8":   "",
		"4.0-tap-dump-noack-no-opaque8":       codeIncomplete, // no acknowledgement was asked for
		"2.5.1-tap-dump-truncated-kill9":      codeIncomplete, // acknowledged, but 1 item is missing
		"2.5.1-tap-dump-truncated-body":       codeCut,
	} {
		c := load(t, name)
		f, list := captureNode(t, c, -1)
		got := readOnce(t, one(t, f, byCount, list...), 4<<10)
		if code == "" {
			if got.err != io.EOF {
				t.Errorf("%s: %v", name, got.err)
			}
			continue
		}
		want(t, got.err, code)
	}
}

func TestAsksForTheVBucketsByName(t *testing.T) {
	for version, fix := range map[string]bool{"2.5.1": true, "10.0.0": false, "1.8.1": false, "1.4.4_304": false, "unknown": false, "4.0.0-4051": true} {
		f := startFake(t, map[uint16]cluster.VBInfo{3: active(1), 9: active(0)}, func(_ int, _ mcbp.TapConnect, c net.Conn, r *mcbp.Reader) error {
			return new(script).begin(3).items(3, 1).finish(3).play(c, r)
		})
		f.version = version
		src := source(t, Config{URL: f.url()})
		streams, err := src.Streams(context.Background())
		if version == "10.0.0" {
			want(t, err, codeUnsupported, "removed in Couchbase Server 5.0")
			continue
		}
		if err != nil || len(streams) != 2 {
			t.Fatalf("%s: %d streams, %v", version, len(streams), err)
		}
		if got := readOnce(t, streams[0], 4096); got.err != io.EOF {
			t.Errorf("%s: %v", version, got.err)
		}
		req := f.requests()[0]
		due := mcbp.TapDump | mcbp.TapSupportAck | mcbp.TapListVBuckets
		if fix {
			due |= mcbp.TapFixFlagByteorder
		}
		if req.Flags != due || len(req.VBuckets) != 1 || req.VBuckets[0] != 3 || req.Name == "" {
			t.Errorf("%s: TAP_CONNECT was %+v, flags %#x are due", version, req, due)
		}
	}
}

// TestDumpsAgainWhatIsNotProven runs a stream as the engine does.
func TestDumpsAgainWhatIsNotProven(t *testing.T) {
	f := startFake(t, map[uint16]cluster.VBInfo{1: active(3), 2: active(4), 5: active(0)},
		func(n int, req mcbp.TapConnect, c net.Conn, r *mcbp.Reader) error {
			switch n {
			case 0: // 1 is whole, 2 has lost its end
				return new(script).begin(1, 2).items(1, 3).items(2, 3).finish(1).play(c, r)
			case 1: // closes at once
				return nil
			case 2: // has all items, but no end marker
				return new(script).begin(2).items(2, 4).play(c, r)
			}
			return new(script).begin(2).items(2, 4).finish(2).play(c, r)
		})
	s := one(t, f, nil, 1, 2, 5)
	got := readOnce(t, s, 4096)
	want(t, got.err, codeIncomplete, "vbucket 2: 3 live items came, the node counts 4")
	if !got.complete(1) || got.complete(2) || !got.complete(5) || s.(pump.Progresser).Progress() != 2 {
		t.Fatalf("marks %+v", got.marks)
	}
	want(t, readOnce(t, s, 4096).err, codeRefused, "closed the connection right after TAP_CONNECT")
	want(t, readOnce(t, s, 4096).err, codeIncomplete, "4 live items came, the node counts 4, the end marker did not come")
	got = readOnce(t, s, 4096)
	if got.err != io.EOF || !got.complete(2) || len(got.items) != 4 || s.(pump.Progresser).Progress() != 3 {
		t.Fatalf("%+v", got)
	}
	for i, due := range []string{"1-2,5", "2", "2", "2"} {
		if have := places.Ranges(f.requests()[i].VBuckets); have != due {
			t.Errorf("dump %d was of vbuckets %s, %s are due", i, have, due)
		}
	}
	// A run that begins behind the marks has nothing left to do.
	again := one(t, f, nil, 1, 2, 5)
	defer again.Close()
	if err := again.Open(context.Background(), []pump.Mark{{VBucket: 1, Complete: true}, {VBucket: 2, Complete: true}, {VBucket: 5, Complete: true}}); err != nil {
		t.Fatal(err)
	}
	if err := again.Read(context.Background(), pump.NewBatch(100)); err != io.EOF {
		t.Errorf("behind all marks: %v", err)
	}
	if n := len(f.requests()); n != 4 {
		t.Errorf("%d dumps", n)
	}
}

// TestCounts gives the counts before and after a dump and what came.
func TestCounts(t *testing.T) {
	deletion := func(s *script, cas uint64, value string) *script {
		return s.send(mcbp.TapMessage{Opcode: mcbp.OpTapDelete, VBucket: 7, CAS: cas, Rev: 2, Key: []byte("gone"), Value: []byte(value)})
	}
	for name, c := range map[string]struct {
		before, after uint64
		state         mcbp.VBState // after
		dump          func(s *script) *script
		whole         bool
	}{
		"quiet":                      {5, 5, 1, func(s *script) *script { return s.items(7, 5) }, true},
		"one is missing":             {5, 5, 1, func(s *script) *script { return s.items(7, 4) }, false},
		"one too many":               {5, 5, 1, func(s *script) *script { return s.items(7, 6) }, false},
		"grew":                       {5, 7, 1, func(s *script) *script { return s.items(7, 6) }, true},
		"shrank":                     {7, 5, 1, func(s *script) *script { return s.items(7, 6) }, true},
		"grew, less than before":     {5, 7, 1, func(s *script) *script { return s.items(7, 4) }, false},
		"expired, reaped (2.5.1)":    {6, 5, 1, func(s *script) *script { return deletion(s.items(7, 5), 0, "") }, true},
		"expired, reaped (3.0)":      {6, 5, 1, func(s *script) *script { return deletion(s.items(7, 5), 9, "old") }, true},
		"expired, one is missing":    {6, 5, 1, func(s *script) *script { return deletion(s.items(7, 4), 9, "old") }, false},
		"expired, reaped only later": {6, 6, 1, func(s *script) *script { return deletion(s.items(7, 5), 0, "") }, true},
		"old deletion":               {5, 5, 1, func(s *script) *script { return deletion(s.items(7, 5), 9, "") }, true},
		"taken away meanwhile":       {5, 5, 4, func(s *script) *script { return s.items(7, 5) }, false},
		"gone meanwhile":             {5, 0, 0, func(s *script) *script { return s.items(7, 5) }, false},
		"nothing, empty":             {0, 0, 1, nil, true},
		"nothing, not empty":         {5, 5, 1, nil, false},
		"nothing, emptied":           {5, 0, 1, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			var f *fakeNode
			f = startFake(t, map[uint16]cluster.VBInfo{7: active(c.before)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
				f.set(7, cluster.VBInfo{State: c.state, Items: c.after})
				if c.state == mcbp.VBAbsent {
					f.mu.Lock()
					delete(f.vbs, 7)
					f.mu.Unlock()
				}
				if c.dump == nil {
					return new(script).begin().play(conn, r)
				}
				return c.dump(new(script).begin(7)).finish(7).play(conn, r)
			})
			got := readOnce(t, one(t, f, nil, 7), 4096)
			if c.whole && (got.err != io.EOF || !got.complete(7)) {
				t.Errorf("not proven: %v", got.err)
			}
			if !c.whole {
				want(t, got.err, codeIncomplete, "vbucket 7", f.addr())
			}
		})
	}
}

// TestJudge holds each condition of the proof.
func TestJudge(t *testing.T) {
	whole := vbDump{vb: 7, before: 5, live: 5, opened: true}
	for name, c := range map[string]struct {
		change func(d *dump, v *vbDump, now *cluster.VBInfo)
		marker bool // proven with the end marker
		count  bool // proven without it, by count
	}{
		"whole":                    {nil, true, true},
		"not acknowledged":         {func(d *dump, _ *vbDump, _ *cluster.VBInfo) { d.acked = false }, true, false},
		"no acknowledgement asked": {func(d *dump, _ *vbDump, _ *cluster.VBInfo) { d.asked = false }, true, false},
		"cut behind it":            {func(d *dump, _ *vbDump, _ *cluster.VBInfo) { d.end = endCut }, true, false},
		"reset behind it":          {func(d *dump, _ *vbDump, _ *cluster.VBInfo) { d.end = endBroken }, true, false},
		"silence behind it":        {func(d *dump, _ *vbDump, _ *cluster.VBInfo) { d.end = endIdle }, true, false},
		"one is missing":           {func(_ *dump, v *vbDump, _ *cluster.VBInfo) { v.live-- }, false, false},
		"one too many":             {func(_ *dump, v *vbDump, _ *cluster.VBInfo) { v.live++ }, false, false},
		"replica by now":           {func(_ *dump, _ *vbDump, now *cluster.VBInfo) { now.State = mcbp.VBReplica }, false, false},
	} {
		d := &dump{end: endClosed, asked: true, acked: true}
		v, now := whole, active(5)
		if c.change != nil {
			c.change(d, &v, &now)
		}
		after := map[uint16]cluster.VBInfo{7: now}
		if proven, why := d.judge(&v, after, true); proven != c.count || proven == (why != "") {
			t.Errorf("%s, by count: %v, %q", name, proven, why)
		}
		if proven, why := d.judge(&v, after, false); proven || why == "" {
			t.Errorf("%s, without the marker: %v, %q", name, proven, why)
		}
		v.closed = true
		if proven, why := d.judge(&v, after, false); proven != c.marker || proven == (why != "") {
			t.Errorf("%s, with the marker: %v, %q", name, proven, why)
		}
	}
	for end, due := range map[ending]bool{endClosed: true, endQuiet: true, endCut: false, endBroken: false, endIdle: false} {
		d := &dump{end: end}
		if proven, _ := d.judge(&vbDump{vb: 7}, map[uint16]cluster.VBInfo{7: active(0)}, true); proven != due {
			t.Errorf("an empty vbucket after ending %d: proven %v", end, proven)
		}
	}
}

// TestSignsOfLife: what comes in time sets the clock back, a NOOP does not. A
// mistake shows as a test that waits for an hour.
func TestSignsOfLife(t *testing.T) {
	next := make(chan struct{})
	large := new(script).items(7, 1).out
	f := startFake(t, map[uint16]cluster.VBInfo{7: active(2)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		for _, piece := range [][]byte{large, large[:mcbp.HeaderLen+5], large[mcbp.HeaderLen+5:], new(script).noop().noop().out} {
			<-next
			if _, err := conn.Write(piece); err != nil {
				return err
			}
		}
		_, err := io.Copy(io.Discard, conn)
		return err
	})
	s := one(t, f, nil, 7).(*stream)
	ctx := context.Background()
	if err := s.Open(ctx, nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := s.cur
	d.idle = time.Hour
	b := pump.NewBatch(4096)
	nearly := func() {
		d.waited = d.idle - time.Minute
		b.Reset()
		next <- struct{}{}
	}
	nearly()
	if err := s.Read(ctx, b); err != nil || b.Len() != 1 || d.waited != 0 {
		t.Fatalf("%d items, %v; %v count as silence", b.Len(), err, d.waited)
	}
	nearly() // the first half of an item, and then the rest
	go func() { next <- struct{}{} }()
	if err := s.Read(ctx, b); err != nil || b.Len() != 1 || d.waited != 0 {
		t.Fatalf("%d items, %v; %v count as silence", b.Len(), err, d.waited)
	}
	go func() { next <- struct{}{} }()
	d.waited = d.idle - 50*time.Millisecond
	b.Reset()
	want(t, s.Read(ctx, b), codeIdle)
}

// TestStatisticsConnectionLost: the node closes the connection that lies idle
// while it dumps.
func TestStatisticsConnectionLost(t *testing.T) {
	var f *fakeNode
	f = startFake(t, map[uint16]cluster.VBInfo{7: active(1)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		f.mu.Lock()
		for c := range f.conns {
			if c != conn {
				_ = c.Close()
			}
		}
		f.mu.Unlock()
		return new(script).begin(7).items(7, 1).finish(7).play(conn, r)
	})
	if got := readOnce(t, one(t, f, nil, 7), 4096); got.err != io.EOF {
		t.Errorf("ended with %v", got.err)
	}
}

// TestStateChangesBriefly: the map is read anew before a vbucket is given up.
func TestStateChangesBriefly(t *testing.T) {
	f := startFake(t, map[uint16]cluster.VBInfo{7: active(1)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		return new(script).begin(7).items(7, 1).finish(7).play(conn, r)
	})
	f.onAsk = func(n int) { // 1: Streams, 2: before the dump, 3: the map anew
		f.vbs[7] = active(1)
		if n == 2 {
			f.vbs[7] = cluster.VBInfo{State: mcbp.VBPending}
		}
	}
	if got := readOnce(t, one(t, f, nil, 7), 4096); got.err != io.EOF {
		t.Errorf("ended with %v", got.err)
	}
}

// TestMessages sends what a dump may or may not hold.
func TestMessages(t *testing.T) {
	tapmsg := func(op mcbp.Opcode, vb uint16) mcbp.TapMessage {
		return mcbp.TapMessage{Opcode: op, VBucket: vb, MsgFlags: mcbp.TapMsgAck, Engine: make([]byte, 8)}
	}
	answer := func(status mcbp.Status) []byte {
		return mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpTapConnect, VBucket: uint16(status)}, nil, nil, nil)
	}
	good := func() *script { return new(script).begin(7).items(7, 2) }
	raw := func(b []byte) *script { return &script{out: b} }
	for name, c := range map[string]struct {
		dump  *script
		code  string // "" = complete
		retry bool
		items int
	}{
		"checkpoints, states, NOOPs": {dump: good().noop().send(tapmsg(mcbp.OpTapCheckpointStart, 7)).noop().
			send(tapmsg(mcbp.OpTapVBucketSet, 7)).send(tapmsg(mcbp.OpTapCheckpointEnd, 7)).noop().noop().finish(7), items: 2},
		"flush":                {dump: good().send(tapmsg(mcbp.OpTapFlush, 0)).finish(7), code: codeFlushed, items: 2},
		"item of another":      {dump: good().items(8, 1).finish(7), code: codeForeign, items: 2},
		"item of a far one":    {dump: good().items(60000, 1).finish(7), code: codeForeign, items: 2},
		"beginning of another": {dump: good().opaqueCmd(0, 1).finish(7), code: codeForeign, items: 2},
		"item without value": {dump: good().send(mcbp.TapMessage{Opcode: mcbp.OpTapMutation, VBucket: 7, MsgFlags: mcbp.TapMsgNoValue, Key: []byte("k")}),
			code: codeProtocol, items: 2},
		"no TAP":             {dump: raw(answer(mcbp.StatusNotSupported)), code: codeUnsupported},
		"unknown command":    {dump: raw(answer(mcbp.StatusUnknown)), code: codeUnsupported},
		"no access":          {dump: raw(answer(mcbp.StatusAccess)), code: codeRefused},
		"busy":               {dump: raw(answer(mcbp.StatusTmpFail)), code: codeRefused, retry: true},
		"invalid":            {dump: raw(answer(mcbp.StatusInvalid)), code: codeRefused},
		"another answer":     {dump: raw(mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpGet}, nil, nil, nil)), code: codeProtocol},
		"another protocol":   {dump: raw([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")), code: codeProtocol},
		"a request":          {dump: raw(mcbp.AppendKeyed(nil, mcbp.OpGet, 1, 7, 0, []byte("k"))), code: codeProtocol},
		"a lying length":     {dump: raw(append([]byte{0x80, 0x41, 0, 1, 16, 0, 0, 7, 0xff, 0xff, 0xff, 0xff}, make([]byte, 12)...)), code: codeProtocol},
		"nothing, then end":  {dump: raw(nil), code: codeRefused, retry: true},
		"one NOOP, then end": {dump: new(script).noop(), code: codeIncomplete, retry: true},
		"NOOPs, not empty":   {dump: new(script).noop().noop(), code: codeIncomplete, retry: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, map[uint16]cluster.VBInfo{7: active(2)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
				if len(c.dump.out) > 0 && c.dump.out[0] == 0x80 && c.dump.opaque > 0 {
					return c.dump.play(conn, r)
				}
				_, err := conn.Write(c.dump.out)
				return err
			})
			got := readOnce(t, one(t, f, nil, 7), 4096)
			if len(got.items) != c.items {
				t.Errorf("%d items came, %d are due", len(got.items), c.items)
			}
			if c.code == "" {
				if got.err != io.EOF {
					t.Errorf("ended with %v", got.err)
				}
				return
			}
			want(t, got.err, c.code, "vbucket 7 from "+f.addr())
			if pump.IsRetryable(got.err) != c.retry {
				t.Errorf("retryable: %v", !c.retry)
			}
		})
	}
}

// TestNoopsEndAnEmptyBucket is how 1.8 servers end a dump of nothing: they leave
// the connection open.
func TestNoopsEndAnEmptyBucket(t *testing.T) {
	f := startFake(t, map[uint16]cluster.VBInfo{7: active(0)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		if _, err := conn.Write(new(script).noop().noop().out); err != nil {
			return err
		}
		for range 2 {
			p, err := r.Next()
			if err != nil || p.Opcode != mcbp.OpNoop || p.Magic != mcbp.MagicResponse {
				return fmt.Errorf("a NOOP was answered with %v, %w", p, err)
			}
		}
		_, err := r.Next() // until the client has had enough
		return err
	})
	if got := readOnce(t, one(t, f, nil, 7), 4096); got.err != io.EOF || !got.complete(7) {
		t.Errorf("ended with %v", got.err)
	}
}

// TestSilence: a node that sends NOOPs and nothing else is given up.
func TestSilence(t *testing.T) {
	f := startFake(t, map[uint16]cluster.VBInfo{7: active(2)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		if err := new(script).begin(7).items(7, 1).play(conn, r); err != nil {
			return err
		}
		for {
			if _, err := conn.Write(new(script).noop().out); err != nil {
				return err
			}
			if _, err := r.Next(); err != nil {
				return err
			}
		}
	})
	got := readOnce(t, one(t, f, func(cfg *Config) { cfg.Options.IdleTimeout = 300 * time.Millisecond }, 7), 4096)
	want(t, got.err, codeIdle, "fell silent", "1 live items came, the node counts 2")
	if len(got.items) != 1 || !pump.IsRetryable(got.err) {
		t.Errorf("%d items, retryable %v", len(got.items), pump.IsRetryable(got.err))
	}
}

// TestCancel: a read that waits for a silent node ends with its context.
func TestCancel(t *testing.T) {
	waiting := make(chan struct{})
	f := startFake(t, map[uint16]cluster.VBInfo{7: active(2)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		close(waiting)
		_, err := r.Next()
		return err
	})
	s := one(t, f, nil, 7)
	ctx, cancel := context.WithCancelCause(context.Background())
	if err := s.Open(ctx, nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	why := errors.New("enough")
	go func() {
		<-waiting
		cancel(why)
	}()
	if err := s.Read(ctx, pump.NewBatch(100)); !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
	if err := s.Read(ctx, pump.NewBatch(100)); !errors.Is(err, why) {
		t.Errorf("and then with %v", err)
	}
}

// TestNodeDies: the counts cannot be read any more.
func TestNodeDies(t *testing.T) {
	var f *fakeNode
	f = startFake(t, map[uint16]cluster.VBInfo{7: active(2)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		if err := new(script).begin(7).items(7, 2).play(conn, r); err != nil {
			return err
		}
		_ = f.l.Close()
		f.mu.Lock()
		for c := range f.conns {
			_ = c.Close()
		}
		f.mu.Unlock()
		return errAbrupt
	})
	s := one(t, f, nil, 7)
	got := readOnce(t, s, 4096)
	want(t, got.err, codeCut, "vbucket 7", f.addr(), "item counts cannot be read")
	if len(got.items) != 2 || !pump.IsRetryable(got.err) {
		t.Errorf("%d items, retryable %v", len(got.items), pump.IsRetryable(got.err))
	}
	if err := readOnce(t, s, 4096).err; !pump.IsRetryable(err) || pump.ClassOf(err) != pump.ClassUnreachable {
		t.Errorf("opened again: %v", err)
	}
}

// TestLeavesNothingOpen: the node sees every connection close, also those of a
// stream that is closed in mid-dump. It would wait for ever otherwise.
func TestLeavesNothingOpen(t *testing.T) {
	f := startFake(t, map[uint16]cluster.VBInfo{1: active(2), 2: active(2), 3: active(2), 4: active(2)},
		func(n int, req mcbp.TapConnect, c net.Conn, r *mcbp.Reader) error {
			vb := req.VBuckets[0]
			if n == 3 {
				return new(script).begin(vb).items(vb, 1).play(c, r)
			}
			return new(script).begin(vb).items(vb, 2).finish(vb).play(c, r)
		})
	s := one(t, f, func(cfg *Config) { cfg.Options.DumpVBuckets = 1 }, 1, 2, 3, 4)
	want(t, readOnce(t, s, 4096).err, codeIncomplete, "vbucket 4")
	if err := s.Open(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.conversations.Wait()
}

func TestLogin(t *testing.T) {
	vbs := map[uint16]cluster.VBInfo{7: active(0)}
	f := startFake(t, vbs, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		return new(script).begin().play(conn, r)
	})
	f.login = "beer:secret"
	cfg := Config{URL: f.url()}
	cfg.Bucket, cfg.Password = "beer", "secret"
	if err := source(t, cfg).Check(context.Background()); err != nil {
		t.Errorf("with the bucket's password: %v", err)
	}
	// The REST port's user is not the bucket's login, whatever the environment says.
	cfg.Username = "Administrator"
	if err := source(t, cfg).Check(context.Background()); err != nil {
		t.Errorf("with the bucket's password beside another user: %v", err)
	}
	cfg.Password = "hunter2"
	err := source(t, cfg).Check(context.Background())
	if pump.ClassOf(err) != pump.ClassDenied || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("with a wrong password: %v", err)
	}
	for _, say := range []string{`"beer"`, `"Administrator"`, "CB_REST_USERNAME", "-u", "-b", "-p"} {
		if !strings.Contains(pump.HintOf(err), say) {
			t.Errorf("the hint does not name %s: %s", say, pump.HintOf(err))
		}
	}
	f.login = "beer:" // a bucket without a password refuses any
	if err := source(t, cfg).Check(context.Background()); err != nil {
		t.Errorf("without a bucket password, beside a REST login: %v", err)
	}
	cfg.Username = "beer"
	if err := source(t, cfg).Check(context.Background()); pump.ClassOf(err) != pump.ClassDenied {
		t.Errorf("with a password that the bucket has not: %v", err)
	}
}

// TestMemcachedBucket: a bucket of memcached type cannot be dumped, and is told so.
func TestMemcachedBucket(t *testing.T) {
	f := startFake(t, nil, nil)
	f.noDetails = true
	err := source(t, Config{URL: f.url()}).Check(context.Background())
	want(t, err, "bucket-type", "memcached type")
	if pump.ExitCode(err, 0) != 2 || !strings.Contains(pump.HintOf(err), "memcached://") {
		t.Errorf("exit code %d, hint %s", pump.ExitCode(err, 0), pump.HintOf(err))
	}
}

func TestUnflushed(t *testing.T) {
	f := startFake(t, map[uint16]cluster.VBInfo{7: active(1)}, func(_ int, _ mcbp.TapConnect, conn net.Conn, r *mcbp.Reader) error {
		return new(script).begin(7).items(7, 1).finish(7).play(conn, r)
	})
	f.queue = 5
	impatient := func(cfg *Config) { cfg.Options.FlushTimeout = time.Millisecond }
	err := readOnce(t, one(t, f, impatient, 7), 4096).err
	want(t, err, codeUnflushed, "5 items queued")
	if pump.IsRetryable(err) || !strings.Contains(pump.HintOf(err), "flush-timeout") {
		t.Errorf("retryable, or without the hint: %v, %q", err, pump.HintOf(err))
	}
	never := func(cfg *Config) { cfg.Options.FlushTimeout = 0 }
	if err := readOnce(t, one(t, f, never, 7), 4096).err; err != io.EOF {
		t.Errorf("without waiting: %v", err)
	}
}

func TestStatesOfOneNode(t *testing.T) {
	f := startFake(t, map[uint16]cluster.VBInfo{0: active(3), 5: active(4), 6: {State: mcbp.VBReplica, Items: 9}, 7: {State: mcbp.VBDead}}, nil)
	cfg := Config{URL: f.url()}
	src := source(t, cfg)
	if e, err := src.Estimate(context.Background()); err != nil || e.Items != 7 {
		t.Errorf("estimate %+v, %v", e, err)
	}
	streams, err := src.Streams(context.Background())
	if err != nil || len(streams) != 2 || streams[0].ID() == streams[1].ID() {
		t.Errorf("streams %v, %v", streams, err)
	}
	for vb, text := range map[uint16]string{6: "is replica on " + f.addr(), 7: "is dead", 8: "not on this node", 1024: "not on this node"} {
		cfg.VBuckets = []uint16{0, vb}
		_, err := source(t, cfg).Streams(context.Background())
		want(t, err, codeNotActive, fmt.Sprintf("vbucket %d", vb), text)
		want(t, source(t, cfg).Check(context.Background()), codeNotActive)
	}
	f.set(0, cluster.VBInfo{State: mcbp.VBPending})
	f.set(5, cluster.VBInfo{State: mcbp.VBDead})
	_, err = source(t, Config{URL: f.url()}).Streams(context.Background())
	want(t, err, "tap-nothing")
}
