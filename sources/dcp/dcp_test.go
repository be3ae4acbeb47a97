package dcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
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

func (o *outcome) complete(vb uint16) *pump.Mark {
	for i := range o.marks {
		if o.marks[i].VBucket == vb && o.marks[i].Complete {
			return &o.marks[i]
		}
	}
	return nil
}

// readOnce opens a stream behind marks and reads it to its first error.
func readOnce(t testing.TB, s pump.Stream, arena int, from ...pump.Mark) (o outcome) {
	t.Helper()
	ctx := context.Background()
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	if o.err = s.Open(ctx, from); o.err != nil {
		return o
	}
	b := pump.NewBatch(arena)
	for o.err == nil {
		b.Reset()
		o.err = s.Read(ctx, b)
		if o.err == nil && (len(b.Marks) == 0) {
			t.Fatal("Read returned neither marks nor an error")
		}
		o.take(b)
		for i := range b.Arena() { // nobody may still need it
			b.Arena()[i] = 0xdb
		}
		if err := s.(pump.Acknowledger).Acknowledge(ctx, b.Marks); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Logf("acknowledge: %v", err)
		}
	}
	return o
}

func (o *outcome) take(b *pump.Batch) {
	for _, it := range b.Items {
		o.items = append(o.items, read{it, string(it.Key), string(it.Value)})
	}
	for _, m := range b.Marks {
		m.State = bytes.Clone(m.State)
		o.marks = append(o.marks, m)
	}
}

// from returns the stream of vbuckets of fake nodes.
func from(t testing.TB, change func(*Config), nodes map[uint16]*fakeNode, vbs ...uint16) *stream {
	t.Helper()
	cfg := Config{Options: DefaultOptions()}
	cfg.URL = "dcp://unused"
	cfg.Threads, cfg.VBuckets = 1, vbs
	cfg.Options.IdleTimeout = 10 * time.Second // a test that hangs says so
	cfg.Options.MapWait = 100 * time.Millisecond
	if change != nil {
		change(&cfg)
	}
	src, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &fakePlaces{cfg: &src.cfg, nodes: map[string]*fakeNode{}, active: map[uint16]string{}}
	for vb, f := range nodes {
		addr := f.l.Addr().String()
		p.nodes[addr], p.active[vb] = f, addr
	}
	src.at.Places = p
	streams, err := src.Streams(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(streams) != 1 {
		t.Fatalf("%d streams", len(streams))
	}
	return streams[0].(*stream)
}

// one returns the stream of vbuckets of one fake node.
func one(t testing.TB, f *fakeNode, change func(*Config), vbs ...uint16) *stream {
	t.Helper()
	nodes := map[uint16]*fakeNode{}
	for _, vb := range vbs {
		nodes[vb] = f
	}
	return from(t, change, nodes, vbs...)
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

var (
	v30 = cluster.Version{Major: 3}
	v40 = cluster.Version{Major: 4}
	v60 = cluster.Version{Major: 6}
	v66 = cluster.Version{Major: 6, Minor: 6}
	v70 = cluster.Version{Major: 7}
)

func versionOf(name string) cluster.Version {
	for prefix, v := range map[string]cluster.Version{"3.0.3": v30, "4.0": v40, "6.0": v60, "6.6": v66, "7.0": v70} {
		if strings.HasPrefix(name, prefix+"-") {
			return v
		}
	}
	return cluster.Version{}
}

// recorded is one recorded stream: the request that opened it and what the server
// sent from its answer on.
type recorded struct {
	req     mcbp.StreamReq
	answer  []byte // with the status that accepted it
	packets [][]byte
	counted int // bytes that are to be acknowledged
	rest    []byte
	granted []uint16
}

// recordedStream takes the last accepted stream out of a capture.
func recordedStream(t testing.TB, c *capture.Capture) (r recorded, ok bool) {
	t.Helper()
	parse := func(b []byte) mcbp.Frame {
		f, err := mcbp.NewReader(bytes.NewReader(b)).Next()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	reqs := map[uint32]mcbp.StreamReq{}
	sent, _ := c.Packets(capture.Client)
	for _, p := range sent {
		if p[0] != mcbp.MagicRequest {
			continue
		}
		if f := parse(p); f.Opcode == mcbp.OpDcpStreamReq {
			var req mcbp.StreamReq
			if err := req.Parse(&f); err != nil {
				t.Fatal(err)
			}
			reqs[f.Opaque] = req
		}
	}
	got, rest := c.Packets(capture.Server)
	for _, p := range got {
		if p[0] != mcbp.MagicRequest && p[0] != mcbp.MagicResponse { // framing extras, with which stream ids come
			r.packets = append(r.packets, p)
			continue
		}
		f := parse(p)
		switch {
		case f.Magic == mcbp.MagicResponse && f.Opcode == mcbp.OpHello:
			r.granted, _ = mcbp.ParseHello(f.Value())
		case f.Magic == mcbp.MagicResponse && f.Opcode == mcbp.OpDcpStreamReq && f.Status() == mcbp.StatusOK:
			r.req, r.answer, r.packets, r.counted, ok = reqs[f.Opaque], p, nil, 0, true
		case f.Magic == mcbp.MagicRequest && ok:
			r.packets = append(r.packets, p)
			if f.Opcode != mcbp.OpDcpNoop {
				r.counted += len(p)
			}
		}
	}
	r.rest = rest
	return r, ok
}

// bytes returns the stream as it was, for another opaque.
func (r *recorded) bytes(opaque uint32) []byte {
	out := bytes.Clone(r.answer)
	binary.BigEndian.PutUint32(out[12:], opaque)
	for _, p := range append(r.packets, r.rest) {
		at := len(out)
		out = append(out, p...)
		if len(p) >= mcbp.HeaderLen && mcbp.Opcode(p[1]) != mcbp.OpDcpNoop {
			binary.BigEndian.PutUint32(out[at+12:], opaque)
		}
	}
	return out
}

// captureNode plays a recorded stream up to cut bytes of it (all if negative),
// and then closes if it was cut.
func captureNode(t testing.TB, c *capture.Capture, r recorded, cut int) *fakeNode {
	t.Helper()
	var items uint64
	for _, it := range c.Items {
		if it.Op == "mutation" {
			items++
		}
	}
	if whole, _ := c.Comment("complete"); strings.HasPrefix(whole, "NO") {
		items = 10
	}
	if len(c.Items) == 0 {
		for _, p := range r.packets {
			if mcbp.Opcode(p[1]) == mcbp.OpDcpMutation {
				items++
			}
		}
	}
	high := r.req.End
	if high == 1<<64-1 { // we never ask for streams without an end
		high = 1 << 40
	}
	f := startFake(t, versionOf(c.Name), map[uint16]cluster.VBInfo{r.req.VBucket: activeVB(items)}, map[uint16]uint64{r.req.VBucket: high}, nil)
	f.stream = func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		all := r.bytes(req.Opaque)
		f.mu.Lock()
		defer f.mu.Unlock()
		if cut >= 0 && cut < len(all) {
			return all[:cut], errAbrupt
		}
		if r.rest != nil {
			return all, errAbrupt
		}
		return all, nil
	}
	if r.granted != nil {
		f.grant = r.granted
	}
	return f
}

// asks is why a recorded stream cannot come through whole: its client had asked
// for what we never ask for.
var asks = map[string]struct{ code, text string }{
	"3.0.3-dcp-stream-truncated-body":     {codeCut, "cut inside a packet"},
	"4.0-dcp-stream-truncated-body":       {codeCut, "cut inside a packet"},
	"6.0-dcp-live":                        {codeNotActive, "not active there any more"},
	"6.0-dcp-noop":                        {codeIdle, "fell silent"},
	"7.0-dcp-noop":                        {codeIdle, "fell silent"},
	"7.0-dcp-default-only-no-end":         {codeIdle, "fell silent"},
	"7.0-dcp-default-only-nothing-no-end": {codeIdle, "fell silent"},
	"7.0-dcp-durable-default-only":        {codeIdle, "fell silent"},
	"6.0-dcp-stream-req-refused":          {codeIdle, "fell silent"},
	"7.0-dcp-default-only-late-end":       {codeIncomplete, "ended the stream at seqno 17"}, // asked on a connection of another kind
	"7.0-dcp-live-manifest":               {codeIdle, "fell silent"},
	"7.0-dcp-durable-plain":               {codeIdle, "fell silent"},
	"7.0-dcp-live-manifest-collection":    {codeNoCollection, "dropped while it was copied"},
	"7.0-dcp-live-manifest-scope":         {codeNoCollection, "dropped while it was copied"},
	// Status 0, although the default collection was dropped: the seqno tells.
	"7.0-dcp-live-manifest-default-only": {codeIncomplete, "ended the stream at seqno"},
	"7.0-dcp-durable-sync":               {codeProtocol, "DCP_PREPARE"},
	"7.0-dcp-durable-committed-sync":     {codeProtocol, "DCP_PREPARE"},
	"7.0-dcp-oso":                        {codeProtocol, "DCP_OSO_SNAPSHOT"},
	"7.0-dcp-oso-no-end":                 {codeProtocol, "DCP_OSO_SNAPSHOT"},
	"7.0-dcp-stream-id":                  {codeProtocol, "0x08"},
}

// TestRecordedStreams reads every recorded stream of 3.0.3 to 7.0 through the
// source: what is whole ends in io.EOF with every item, what is not in a named
// error with all that came.
func TestRecordedStreams(t *testing.T) {
	all, err := capture.Select(func(name string) bool {
		return versionOf(name) != (cluster.Version{}) && !strings.Contains(name, "consumer")
	})
	if err != nil {
		t.Fatal(err)
	}
	var streams []*capture.Capture
	for _, c := range all {
		r, ok := recordedStream(t, c)
		if !ok {
			continue
		}
		streams = append(streams, c)
		t.Run(c.Name, func(t *testing.T) {
			f := captureNode(t, c, r, -1)
			due, bad := asks[c.Name]
			filter := len(r.req.Filter) > 0 && !strings.HasSuffix(c.Name, "-uid")
			s := one(t, f, func(cfg *Config) {
				if due.code == codeIdle {
					cfg.Options.IdleTimeout = 50 * time.Millisecond
				}
				if filter {
					cfg.Options.Collection = "shop.items" // it only has to be known
				}
			}, r.req.VBucket)
			f.manifest = manifest
			var marks []pump.Mark
			if r.req.Start > 0 {
				p := newPart(r.req.VBucket)
				p.seqno, p.snapStart, p.snapEnd = r.req.Start, r.req.SnapStart, r.req.SnapEnd
				p.log = []mcbp.FailoverEntry{{UUID: r.req.UUID}}
				p.counted = false // what came before is not known
				marks = append(marks, p.mark(false, 0))
			}
			got := readOnce(t, s, 2000, marks...)
			compare(t, c, got.items)
			if have := f.seen()[0]; have.Start != r.req.Start || have.SnapStart != r.req.SnapStart || have.SnapEnd != r.req.SnapEnd || have.UUID != r.req.UUID {
				t.Errorf("STREAM_REQ %+v, recorded %+v", have, r.req)
			}
			if bad {
				want(t, got.err, due.code, due.text)
				if got.complete(r.req.VBucket) != nil {
					t.Error("a mark says complete")
				}
				return
			}
			if got.err != io.EOF {
				t.Fatalf("a complete stream ended with %v", got.err)
			}
			m := got.complete(r.req.VBucket)
			if m == nil {
				t.Fatal("no mark says complete")
			}
			f.finish()
			if f.acked != uint64(r.counted) {
				t.Errorf("%d bytes were acknowledged, %d came", f.acked, r.counted)
			}
		})
	}
	capture.Replays(t, "sources/dcp.TestRecordedStreams", capture.Names(streams)...)
}

// manifest is that of the 7.0 captures, and of some that came later in them.
const manifest = `{"uid":"1","scopes":[{"uid":"0","name":"_default","collections":[{"uid":"0","name":"_default"}]},
{"uid":"8","name":"shop","collections":[{"uid":"8","name":"items"},{"uid":"9","name":"orders","maxTTL":3600},{"uid":"1234","name":"big"}]},
{"uid":"9","name":"empty","collections":[]}]}`

var pathOf = map[string]string{"0": "_default._default", "8": "shop.items", "9": "shop.orders", "4660": "shop.big", "10": "shop.new", "11": "shop.items"}

// compare checks items against the recorded ones, field by field.
func compare(t *testing.T, c *capture.Capture, got []read) {
	t.Helper()
	bySeqno, byKey := map[string]read{}, map[string]read{}
	for _, it := range got {
		bySeqno[fmt.Sprintf("%d %d", it.VBucket, it.Seqno)] = it
		byKey[fmt.Sprintf("%d %s %q", it.VBucket, it.Op, it.Key)] = it
	}
	due := 0
	for _, w := range c.Items {
		switch w.Op {
		case "mutation", "deletion", "expiration":
		default:
			continue
		}
		if strings.HasSuffix(c.Name, "-sync") || strings.Contains(c.Name, "-oso") || strings.Contains(c.Name, "-stream-id") {
			continue // they end before their first item, or soon behind it
		}
		due++
		it, ok := bySeqno[fmt.Sprintf("%d %d", w.VB, w.Seqno)]
		if !w.Has("seqno") {
			it, ok = byKey[fmt.Sprintf("%d %s %q", w.VB, w.Op, w.Key)]
		}
		if !ok {
			t.Errorf("seqno %d, key %q, did not come", w.Seqno, w.Key)
			continue
		}
		if it.Op.String() != w.Op || it.Key != string(w.Key) || it.CAS != w.CAS && w.Has("cas") || it.RevSeqno != w.Rev && w.Has("rev") {
			t.Errorf("seqno %d: %s %q, CAS %d, rev %d; recorded %s %q, %d, %d", w.Seqno, it.Op, it.Key, it.CAS, it.RevSeqno, w.Op, w.Key, w.CAS, w.Rev)
		}
		if w.Has("collection") {
			if due := pathOf[string(w.Fields["collection"])]; it.Collection.String() != due {
				t.Errorf("key %q: collection %s, %s is due", w.Key, it.Collection, due)
			}
		}
		value, datatype := []byte(it.Value), it.Datatype
		if strings.Contains(c.Name, "no-value") {
			continue
		}
		if datatype&mcbp.DatatypeSnappy != 0 && w.Datatype&mcbp.DatatypeSnappy == 0 {
			var err error
			if value, err = snappy.Decode(nil, value); err != nil {
				t.Errorf("key %q: %v", w.Key, err)
			}
			datatype &^= mcbp.DatatypeSnappy
		}
		if datatype != w.Datatype && w.Has("datatype") {
			t.Errorf("key %q: datatype %d, recorded %d", w.Key, it.Datatype, w.Datatype)
		}
		if w.Op == "mutation" && (it.Flags != w.Flags || it.Expiry != w.Expiry) {
			t.Errorf("key %q: flags %#x, expiry %d; recorded %#x, %d", w.Key, it.Flags, it.Expiry, w.Flags, w.Expiry)
		}
		if w.Op != "mutation" && it.Expiry != 0 && w.Has("delete_time") && string(w.Fields["delete_time"]) != fmt.Sprint(it.Expiry) {
			t.Errorf("key %q: delete time %d, recorded %s", w.Key, it.Expiry, w.Fields["delete_time"])
		}
		if err := w.CheckValue(value); err != nil {
			t.Errorf("key %q: %v", w.Key, err)
		}
	}
	if due > 0 && (due != len(got) || due != len(bySeqno)) {
		t.Errorf("%d items with %d seqnos came, %d were recorded", len(got), len(bySeqno), due)
	}
}
