package mcbp_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// Every capture of these servers with one of these words in its name is
// replayed through the codec.
var (
	eras   = []string{"2.5.1-", "3.0.3-", "4.0-", "memcached"}
	topics = []string{"tap", "withmeta", "getmeta", "stats", "sasl", "setq"}
)

const coveredCaptures = 100

// replays says what is done with a capture by a part of its name. Each capture
// must fit exactly one.
var replays = []struct {
	part string
	run  func(*testing.T, *capture.Capture)
}{
	{"-tap-dump-", replayDump},
	{"-tap-push-", replayPush},
	{"withmeta-", replayWithMeta},
	{"-getmeta", replayGetMeta},
	{"-stats", replayStats},
	{"-sasl-", replaySASL},
	{"-setq", replaySetQ},
}

func TestCaptures(t *testing.T) {
	paths, err := filepath.Glob("../testdata/captures/*.capture")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var names []string
	for _, p := range paths {
		name := strings.TrimSuffix(filepath.Base(p), ".capture")
		if !slices.ContainsFunc(eras, func(s string) bool { return strings.HasPrefix(name, s) }) ||
			!slices.ContainsFunc(topics, func(s string) bool { return strings.Contains(name, s) }) {
			continue
		}
		n++
		names = append(names, name)
		t.Run(name, func(t *testing.T) {
			c, err := capture.Load(p)
			if err != nil {
				t.Fatal(err)
			}
			done := 0
			for _, r := range replays {
				if strings.Contains(name, r.part) {
					r.run(t, c)
					done++
				}
			}
			if done != 1 {
				t.Fatalf("%d replays fit this capture, exactly one must", done)
			}
		})
	}
	if n != coveredCaptures {
		t.Errorf("%d captures replayed, there are %d", n, coveredCaptures)
	}
	capture.Replays(t, "mcbp.TestCaptures", names...)
}

// frames decodes one side's whole packets; the stream must end between two.
func frames(t *testing.T, c *capture.Capture, side capture.Side) []mcbp.Frame {
	t.Helper()
	r := mcbp.NewReader(c.Reader(side))
	var out []mcbp.Frame
	for {
		f, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatalf("packet %d of the %s: %v", len(out), side, err)
		}
		f.Body = bytes.Clone(f.Body)
		out = append(out, f)
	}
}

func raw(f *mcbp.Frame) []byte { return append(f.Header.Append(nil), f.Body...) }

// checkReplies compares the server's packets with the #reply lines.
func checkReplies(t *testing.T, c *capture.Capture, got []mcbp.Frame) {
	t.Helper()
	if len(got) != len(c.Replies) {
		t.Fatalf("%d replies, %d were recorded", len(got), len(c.Replies))
	}
	for i, want := range c.Replies {
		f := got[i]
		if f.Magic != mcbp.MagicResponse || uint8(f.Opcode) != want.Opcode || f.Opaque != want.Opaque || uint16(f.Status()) != want.Status {
			t.Errorf("reply %d: %s opaque %d status %s, recorded is %+v", i, mcbp.OpcodeName(f.Opcode), f.Opaque, mcbp.StatusName(f.Status()), want)
		}
		if want.Has("cas") && f.CAS != want.CAS {
			t.Errorf("reply %d: CAS %d, %d was recorded", i, f.CAS, want.CAS)
		}
		if err := want.CheckValue(f.Value()); err != nil {
			t.Errorf("reply %d: %v", i, err)
		}
		if want.Has("body_hex") && !bytes.Equal(f.Body, want.Body) {
			t.Errorf("reply %d: body %q, %q was recorded", i, f.Body, want.Body)
		}
	}
}

// The items of a dump.

type itemKey struct {
	vb  uint16
	key string
}

type item struct {
	op            string
	flags, expiry uint32
	cas, rev      uint64
	datatype      uint8
	value         []byte
}

func (it item) check(want *capture.Item) error {
	var errs []error
	differ := func(field string, got, recorded any) {
		if got != recorded {
			errs = append(errs, fmt.Errorf("%s %v, %v was recorded", field, got, recorded))
		}
	}
	differ("op", it.op, want.Op)
	if want.Has("flags") {
		differ("flags", it.flags, want.Flags)
	}
	if want.Has("expiry") {
		differ("expiry", it.expiry, want.Expiry)
	}
	if want.Has("cas") {
		differ("CAS", it.cas, want.CAS)
	}
	if want.Has("rev") {
		differ("rev", it.rev, want.Rev)
	}
	if want.Has("datatype") {
		differ("datatype", it.datatype, want.Datatype)
	}
	switch {
	case want.Has("value_hex") || want.Has("value_len"):
		errs = append(errs, want.CheckValue(it.value))
	case want.Op == "deletion":
		differ("length of value", len(it.value), 0)
	default:
		errs = append(errs, errors.New("the recorded mutation has no value to compare with"))
	}
	return errors.Join(errs...)
}

func checkItems(t *testing.T, want []capture.Item, got map[itemKey]item) {
	t.Helper()
	left := maps.Clone(got)
	for i := range want {
		k := itemKey{want[i].VB, string(want[i].Key)}
		it, ok := left[k]
		if !ok {
			t.Errorf("vbucket %d key %q: missing", k.vb, k.key)
			continue
		}
		delete(left, k)
		if err := it.check(&want[i]); err != nil {
			t.Errorf("vbucket %d key %q: %v", k.vb, k.key, err)
		}
	}
	for k := range left {
		t.Errorf("vbucket %d key %q: not recorded", k.vb, k.key)
	}
}

// dump is what reading a dump yields.
type dump struct {
	messages []mcbp.TapMessage // copies
	items    map[itemKey]item
	opened   map[uint16]bool // OPAQUE 1 seen
	closed   map[uint16]bool // OPAQUE 8 seen
	end      error
}

func (d *dump) complete() bool { return maps.Equal(d.opened, d.closed) }

// add takes a message in and copies what it aliases.
func (d *dump) add(f *mcbp.Frame) error {
	var m mcbp.TapMessage
	if err := m.Parse(f); err != nil {
		return err
	}
	m.Engine, m.Key, m.Value = bytes.Clone(m.Engine), bytes.Clone(m.Key), bytes.Clone(m.Value)
	d.messages = append(d.messages, m)
	it := item{flags: m.Flags, expiry: m.Expiry, cas: m.CAS, rev: m.Rev, datatype: m.Datatype, value: m.Value}
	k := itemKey{m.VBucket, string(m.Key)}
	switch m.Opcode {
	case mcbp.OpTapMutation:
		it.op = "mutation"
	case mcbp.OpTapDelete:
		it.op = "deletion"
	case mcbp.OpTapOpaque:
		cmd, ok := m.OpaqueCommand()
		if !ok {
			return errors.New("an OPAQUE without a command")
		}
		switch cmd {
		case mcbp.TapOpaqueInitialStream:
			d.opened[m.VBucket] = true
		case mcbp.TapOpaqueCloseBackfill:
			d.closed[m.VBucket] = true
		}
		return nil
	default:
		return fmt.Errorf("unexpected %s", mcbp.OpcodeName(m.Opcode))
	}
	if _, twice := d.items[k]; twice {
		return fmt.Errorf("key %q came twice", m.Key)
	}
	d.items[k] = it
	return nil
}

func newDump() *dump {
	return &dump{items: map[itemKey]item{}, opened: map[uint16]bool{}, closed: map[uint16]bool{}}
}

// readDump reads with a buffer that the reader owns.
func readDump(src io.Reader) *dump {
	d, r := newDump(), mcbp.NewReader(src)
	for {
		f, err := r.Next()
		if err == nil {
			err = d.add(&f)
		}
		if err != nil {
			d.end = err
			return d
		}
	}
}

// readDumpInArenas reads as sources do: into small attached arenas, each as
// large as it must be, and overwrites an arena once it was given back.
func readDumpInArenas(src io.Reader, size int) *dump {
	d, r := newDump(), mcbp.NewReader(src)
	for {
		arena := make([]byte, max(size, r.Need()))
		r.Attach(arena)
		var err error
		for err == nil {
			var f mcbp.Frame
			if f, err = r.Decode(); err == nil {
				err = d.add(&f)
			} else if err == mcbp.ErrNeedMore && !r.Full() {
				err = r.Fill()
			}
		}
		r.Detach()
		for i := range arena {
			arena[i] = 0xee
		}
		if err != mcbp.ErrNeedMore {
			d.end = err
			return d
		}
	}
}

// cutEnds says how each kind of truncated capture ends: nil stands for a clean
// EOF between two packets.
var cutEnds = map[string]error{
	"truncated-body": mcbp.ErrTruncated, "truncated-extras": mcbp.ErrTruncated, "truncated-header": mcbp.ErrTruncated,
	"truncated-between": nil, "truncated-kill9": nil, "truncated-no-opaque8": nil,
}

func replayDump(t *testing.T, c *capture.Capture) {
	// The client's side.
	client := frames(t, c, capture.Client)
	connect, err := mcbp.ParseTapConnect(client[0])
	if err != nil {
		t.Fatal(err)
	}
	if said, _ := c.Comment("client"); !strings.HasPrefix(said, fmt.Sprintf("TAP_CONNECT flags 0x%03x", uint32(connect.Flags))) {
		t.Errorf("flags 0x%03x, the comment says %q", uint32(connect.Flags), said)
	}
	first := client[0]
	first.Opaque = 0 // ours has none
	if again := connect.Append(nil); !bytes.Equal(again, raw(&first)) {
		t.Errorf("TAP_CONNECT encodes to %x, recorded is %x", again, raw(&first))
	}

	// The server's side, whatever the pieces in which it arrives.
	d := readDump(c.Reader(capture.Server))
	for how, other := range map[string]*dump{
		"bytes":  readDump(iotest.OneByteReader(c.Reader(capture.Server))),
		"halves": readDump(iotest.HalfReader(c.Reader(capture.Server))),
		"arenas": readDumpInArenas(c.Reader(capture.Server), 300),
		"tiny":   readDumpInArenas(iotest.OneByteReader(c.Reader(capture.Server)), 1),
	} {
		if fmt.Sprint(other.messages) != fmt.Sprint(d.messages) || other.end.Error() != d.end.Error() {
			t.Errorf("read as %s, the dump differs: %d messages and %v, against %d and %v",
				how, len(other.messages), other.end, len(d.messages), d.end)
		}
	}
	checkItems(t, c.Items, d.items)
	for k := range d.items {
		if !slices.Contains(connect.VBuckets, k.vb) || !d.opened[k.vb] {
			t.Errorf("vbucket %d was not asked for, or its items came before OPAQUE 1", k.vb)
		}
	}

	// Item flags, acknowledgements and our own encoding of each message.
	var acks, recorded []byte
	for i := range d.messages {
		m := &d.messages[i]
		if m.Opcode == mcbp.OpTapMutation && (m.MsgFlags&mcbp.TapMsgNetworkOrder != 0) != (connect.Flags&mcbp.TapFixFlagByteorder != 0) {
			t.Errorf("message %d: flags %#x do not fit TAP_CONNECT", i, m.MsgFlags)
		}
		if m.WantsAck() {
			acks = mcbp.AppendTapAck(acks, m.Opcode, m.Opaque, mcbp.StatusOK)
		}
	}
	checkReencoded(t, frameList(c.Stream(capture.Server)))
	for _, f := range client[1:] {
		recorded = append(recorded, raw(&f)...)
	}

	// How it ends.
	done, _ := c.Comment("complete")
	_, cut, truncated := strings.Cut(c.Name, "truncated-")
	switch {
	case truncated:
		want, known := cutEnds["truncated-"+cut]
		if !known {
			t.Fatalf("a cut of an unknown kind")
		}
		if want == nil {
			want = io.EOF
		}
		if !errors.Is(d.end, want) {
			t.Errorf("it ends with %v, %v is due", d.end, want)
		}
		if d.complete() || !strings.HasPrefix(done, "NO") {
			t.Error("a cut dump looks complete")
		}
		if !bytes.HasPrefix(acks, recorded) {
			t.Error("the recorded acknowledgements do not begin as ours")
		}
	default:
		if d.end != io.EOF {
			t.Errorf("it ends with %v", d.end)
		}
		if connect.Flags&mcbp.TapSupportAck != 0 {
			if !d.complete() {
				t.Errorf("opened %v, closed %v", d.opened, d.closed)
			}
			if !bytes.Equal(acks, recorded) {
				t.Errorf("our acknowledgements %x, recorded are %x", acks, recorded)
			}
		} else if len(recorded) != 0 {
			t.Error("an acknowledgement that nobody asked for")
		}
		if strings.HasSuffix(c.Name, "-no-opaque8") == d.complete() {
			t.Errorf("complete by its OPAQUEs: %v", d.complete())
		}
		if strings.HasPrefix(done, "NO") {
			t.Errorf("the recording says %q", done)
		}
	}
}

// frameList decodes the whole packets of a stream.
func frameList(stream []byte) []mcbp.Frame {
	var out []mcbp.Frame
	packets, _ := capture.Split(stream)
	for _, p := range packets {
		h, err := mcbp.ParseHeader(p)
		if err != nil {
			return out
		}
		out = append(out, mcbp.Frame{Header: h, Body: p[mcbp.HeaderLen:]})
	}
	return out
}

// checkReencoded encodes TAP messages again. Where a packet has as many engine
// bytes as our encoder writes, the bytes must be the recorded ones but for the
// ninth, which receivers ignore; else they must mean the same.
func checkReencoded(t *testing.T, recorded []mcbp.Frame) {
	t.Helper()
	for i := range recorded {
		f := &recorded[i]
		var m, again mcbp.TapMessage
		if err := m.Parse(f); err != nil {
			t.Errorf("message %d: %v", i, err)
			continue
		}
		want, got := raw(f), m.Append(nil)
		g := frameList(got)
		if len(g) != 1 || again.Parse(&g[0]) != nil {
			t.Errorf("message %d: ours does not parse", i)
			continue
		}
		switch {
		case m.Opcode == mcbp.OpTapMutation && len(m.Engine) == 9:
			want[mcbp.HeaderLen+16+8] = 0
			fallthrough
		case m.Opcode != mcbp.OpTapMutation:
			if !bytes.Equal(got, want) {
				t.Errorf("message %d: encoded %x, recorded is %x", i, got, want)
			}
		default:
			m.Engine, again.Engine = nil, nil
			if fmt.Sprint(again) != fmt.Sprint(m) {
				t.Errorf("message %d: encoded %+v, recorded is %+v", i, again, m)
			}
		}
	}
}

// Pushes, applied to a model of the receiving server.

func replayPush(t *testing.T, c *capture.Capture) {
	sent := frames(t, c, capture.Client)
	checkReencoded(t, sent)
	received := frames(t, c, capture.Server)
	checkReplies(t, c, received)

	// Writable vbuckets are those that the recording is about; 142 is dead, 144
	// does not exist.
	refuses := map[uint16]bool{142: true, 144: true}
	held := map[itemKey]item{}
	type answer struct {
		opaque uint32
		status mcbp.Status
	}
	var due, got []answer
	for i := range sent {
		var m mcbp.TapMessage
		if err := m.Parse(&sent[i]); err != nil {
			t.Fatal(err)
		}
		if m.TTL != mcbp.TapTTL {
			t.Errorf("message %d: ttl %d", i, m.TTL)
		}
		switch {
		case refuses[m.VBucket] && m.Opcode == mcbp.OpTapMutation:
			due = append(due, answer{m.Opaque, mcbp.StatusNotMyVBucket})
			continue
		case m.Opcode == mcbp.OpTapMutation:
			held[itemKey{m.VBucket, string(m.Key)}] = item{op: "mutation", flags: m.Flags, expiry: m.Expiry, cas: m.CAS, rev: max(1, m.Rev), value: m.Value}
		case m.Opcode == mcbp.OpTapDelete && !refuses[m.VBucket]:
			if _, ok := held[itemKey{m.VBucket, string(m.Key)}]; !ok && strings.HasPrefix(c.Name, "2.5.1") {
				// This server gives the tombstone of a key that it did not hold a CAS
				// of its own, so that one is not on the wire.
				forgetCAS(c, m.VBucket, m.Key)
			}
			held[itemKey{m.VBucket, string(m.Key)}] = item{op: "deletion", cas: m.CAS, rev: max(1, m.Rev)}
		}
		if m.WantsAck() {
			due = append(due, answer{m.Opaque, mcbp.StatusOK})
		}
	}
	for _, f := range received {
		got = append(got, answer{f.Opaque, f.Status()})
	}
	if !slices.Equal(got, due) {
		t.Errorf("answers %v, the model gives %v", got, due)
	}
	checkItems(t, c.Items, held)
	for _, key := range absentAfterwards(t, c) {
		for k := range held {
			if k.key == key {
				t.Errorf("key %q is in the model", key)
			}
		}
	}
}

// forgetCAS leaves the CAS of an item out of the comparison.
func forgetCAS(c *capture.Capture, vb uint16, key []byte) {
	for i := range c.Items {
		if c.Items[i].VB == vb && bytes.Equal(c.Items[i].Key, key) {
			delete(c.Items[i].Fields, "cas")
		}
	}
}

func absentAfterwards(t *testing.T, c *capture.Capture) []string {
	t.Helper()
	text, ok := c.Comment("absent afterwards")
	if !ok {
		return nil
	}
	var keys []string
	if err := json.Unmarshal([]byte(text), &keys); err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		b, err := hex.DecodeString(k)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = string(b)
	}
	return keys
}

func replayWithMeta(t *testing.T, c *capture.Capture) {
	sent, received := frames(t, c, capture.Client), frames(t, c, capture.Server)
	checkReplies(t, c, received)
	answers := map[uint32]mcbp.Frame{}
	for _, f := range received {
		if _, twice := answers[f.Opaque]; twice {
			t.Fatalf("two answers with opaque %d", f.Opaque)
		}
		answers[f.Opaque] = f
	}
	held := map[itemKey]item{}
	for i := range sent {
		var w mcbp.WithMeta
		if err := w.Parse(&sent[i]); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if got, want := w.Append(nil), raw(&sent[i]); !bytes.Equal(got, want) {
			t.Errorf("request %d: encoded %x, recorded is %x", i, got, want)
		}
		a, ok := answers[w.Opaque]
		if !ok || a.Opcode != w.Opcode {
			t.Errorf("request %d has no answer", i)
		}
		it := item{op: "mutation", flags: w.Meta.Flags, expiry: w.Meta.Expiry, cas: w.Meta.CAS, rev: w.Meta.Rev, value: w.Value}
		k := itemKey{w.VBucket, string(w.Key)}
		ok = a.Status() == mcbp.StatusOK
		if ok && a.CAS != w.Meta.CAS && (w.Opcode != mcbp.OpDeleteWithMeta || a.CAS != 0) {
			// A deletion is answered without a CAS before 4.0.
			t.Errorf("request %d: CAS %d answered, %d was sent", i, a.CAS, w.Meta.CAS)
		}
		if w.Opcode == mcbp.OpDeleteWithMeta {
			it.op = "deletion"
			if a.Status() == mcbp.StatusNotFound {
				// 2.5.1 says so and makes the tombstone all the same, with a CAS of its own.
				ok = true
				forgetCAS(c, w.VBucket, w.Key)
			}
		}
		if ok {
			held[k] = it
		}
	}
	// Items that no request of this capture wrote were there before.
	var written []capture.Item
	for _, it := range c.Items {
		if _, ok := held[itemKey{it.VB, string(it.Key)}]; ok {
			written = append(written, it)
		} else if !strings.Contains(c.Name, "refused") {
			t.Errorf("key %q: nothing wrote it", it.Key)
		}
	}
	if len(written) == 0 {
		t.Fatal("no item to compare")
	}
	checkItems(t, written, held)
}

func replayGetMeta(t *testing.T, c *capture.Capture) {
	sent, received := frames(t, c, capture.Client), frames(t, c, capture.Server)
	checkReplies(t, c, received)
	if len(sent) != len(received) {
		t.Fatalf("%d requests, %d answers", len(sent), len(received))
	}
	got := map[itemKey]mcbp.ItemMeta{}
	for i, f := range sent {
		if again := mcbp.AppendGetMeta(nil, f.Opaque, f.VBucket, f.Key()); !bytes.Equal(again, raw(&f)) {
			t.Errorf("request %d: encoded %x, recorded is %x", i, again, raw(&f))
		}
		a := received[i]
		meta, err := mcbp.ParseGetMeta(&a)
		if (err == nil) != (a.Status() == mcbp.StatusOK) {
			t.Errorf("answer %d has status %s and decodes with %v", i, mcbp.StatusName(a.Status()), err)
		}
		if err == nil {
			got[itemKey{f.VBucket, string(f.Key())}] = meta
		} else if !errors.Is(err, mcbp.ErrMalformed) {
			t.Errorf("answer %d: %v", i, err)
		}
	}
	if len(got) != len(c.Items) {
		t.Errorf("%d metas, %d items", len(got), len(c.Items))
	}
	for _, want := range c.Items {
		m, ok := got[itemKey{want.VB, string(want.Key)}]
		if !ok || m.Deleted != (want.Op == "deletion") || m.CAS != want.CAS || m.Rev != want.Rev {
			t.Errorf("key %q: %+v", want.Key, m)
		}
		if want.Has("flags") && (m.Flags != want.Flags || m.Expiry != want.Expiry) {
			t.Errorf("key %q: flags %d, expiry %d", want.Key, m.Flags, m.Expiry)
		}
	}
}

func replayStats(t *testing.T, c *capture.Capture) {
	received := frames(t, c, capture.Server)
	type details struct {
		state mcbp.VBState
		items uint64
	}
	old := strings.HasPrefix(c.Name, "2.5.1")
	want := map[uint16]details{5: {mcbp.VBActive, 3}, 6: {mcbp.VBReplica, 0}, 7: {mcbp.VBPending, 0}, 8: {mcbp.VBDead, 0}}
	if old {
		want[0] = details{mcbp.VBActive, 0}
	}
	next := 0
	for _, f := range frames(t, c, capture.Client) {
		if again := mcbp.AppendKeyed(nil, f.Opcode, f.Opaque, f.VBucket, 0, f.Key()); !bytes.Equal(again, raw(&f)) {
			t.Errorf("request %d: encoded %x, recorded is %x", f.Opaque, again, raw(&f))
		}
		if f.Opcode == mcbp.OpGetVBucket {
			a := received[next]
			next++
			state, err := mcbp.ParseVBucketState(&a)
			switch wanted, exists := want[f.VBucket]; {
			case exists && (err != nil || state != wanted.state || a.Status() != mcbp.StatusOK):
				t.Errorf("vbucket %d: %s, %v", f.VBucket, state, err)
			case !exists && (!errors.Is(err, mcbp.ErrMalformed) || a.Status() != mcbp.StatusNotMyVBucket):
				t.Errorf("vbucket %d does not exist: %s, %v", f.VBucket, mcbp.StatusName(a.Status()), err)
			}
			continue
		}
		values := map[string]string{}
		status := mcbp.StatusOK
		for {
			a := received[next]
			next++
			if a.Opcode != mcbp.OpStat || a.Opaque != f.Opaque {
				t.Fatalf("%s opaque %d answers opaque %d", mcbp.OpcodeName(a.Opcode), a.Opaque, f.Opaque)
			}
			if status = a.Status(); status != mcbp.StatusOK || len(a.Body) == 0 {
				break
			}
			values[string(a.Key())] = string(a.Value())
		}
		group := string(f.Key())
		if unknown := old && strings.Contains(group, " "); (status == mcbp.StatusNotFound) != unknown {
			t.Errorf("STAT %q: %s", group, mcbp.StatusName(status))
		} else if unknown {
			continue
		}
		got := map[uint16]details{}
		for name, value := range values {
			vb, field, _ := strings.Cut(strings.TrimPrefix(name, "vb_"), ":")
			n, err := strconv.ParseUint(vb, 10, 16)
			if err != nil {
				continue
			}
			d := got[uint16(n)]
			switch field {
			case "":
				state, ok := mcbp.ParseVBState(value)
				if !ok {
					t.Errorf("STAT %q: %s is %q", group, name, value)
				}
				d.state = state
			case "num_items":
				if d.items, err = strconv.ParseUint(value, 10, 64); err != nil {
					t.Error(err)
				}
			}
			got[uint16(n)] = d
		}
		switch group {
		case "":
			if values["ep_queue_size"] != "0" || values["ep_flusher_todo"] != "0" {
				t.Errorf("queue %q, flusher %q", values["ep_queue_size"], values["ep_flusher_todo"])
			}
		case "vbucket":
			for vb, d := range want {
				if got[vb].state != d.state {
					t.Errorf("vbucket %d is %s", vb, got[vb].state)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d vbuckets, there are %d", len(got), len(want))
			}
		case "vbucket-details":
			if !maps.Equal(got, want) {
				t.Errorf("details %v, %v are due", got, want)
			}
		case "vbucket-details 5":
			if len(got) != 1 || got[5] != want[5] {
				t.Errorf("details of 5: %v", got)
			}
		case "vbucket-seqno 5":
			if values["vb_5:high_seqno"] != "3" || values["vb_5:uuid"] == "" {
				t.Errorf("seqnos of 5: %v", values)
			}
		default:
			t.Errorf("STAT %q is not looked at", group)
		}
	}
	if next != len(received) {
		t.Errorf("%d of %d answers looked at", next, len(received))
	}
}

func replaySASL(t *testing.T, c *capture.Capture) {
	const user, password = "beer", "beerpw" // made up for the recording
	sent, received := frames(t, c, capture.Client), frames(t, c, capture.Server)
	checkReplies(t, c, received)
	good := strings.HasSuffix(c.Name, "-good")
	looked := false
	for i, f := range sent {
		var want []byte
		switch {
		case f.Opcode == mcbp.OpSASLAuth && string(f.Key()) == "PLAIN":
			want = mcbp.SASLPlain(user, password)
		case f.Opcode == mcbp.OpSASLStep && string(f.Key()) == "CRAM-MD5":
			if received[i-1].Status() != mcbp.StatusAuthContinue {
				t.Errorf("the challenge comes with %s", mcbp.StatusName(received[i-1].Status()))
			}
			want = mcbp.SASLCramMD5(user, password, received[i-1].Value())
		default:
			continue
		}
		looked = true
		if bytes.Equal(f.Value(), want) != good {
			t.Errorf("the answer is %q, recorded is %q", want, f.Value())
		}
		again := mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: f.Opcode, Opaque: f.Opaque}, nil, f.Key(), f.Value())
		if !bytes.Equal(again, raw(&f)) {
			t.Errorf("encoded %x, recorded is %x", again, raw(&f))
		}
		status := mcbp.StatusAuthError
		if good {
			status = mcbp.StatusOK
		}
		if received[i].Status() != status {
			t.Errorf("the login is answered with %s", mcbp.StatusName(received[i].Status()))
		}
	}
	if !looked {
		t.Error("no login in this capture")
	}
}

func replaySetQ(t *testing.T, c *capture.Capture) {
	sent, received := frames(t, c, capture.Client), frames(t, c, capture.Server)
	checkReplies(t, c, received)
	refused := map[uint32]bool{}
	for _, f := range received {
		refused[f.Opaque] = f.Status() != mcbp.StatusOK
	}
	held := map[itemKey]item{}
	var again, recorded []byte
	for _, f := range sent {
		recorded = append(recorded, raw(&f)...)
		if f.Opcode == mcbp.OpNoop {
			again = mcbp.AppendNoop(again, f.Opaque)
			continue
		}
		x := f.Extras()
		flags := uint32(x[0])<<24 | uint32(x[1])<<16 | uint32(x[2])<<8 | uint32(x[3])
		again = mcbp.AppendStore(again, f.Opcode, f.Opaque, f.VBucket, f.CAS, flags, 0, f.Key(), f.Value())
		if !refused[f.Opaque] {
			held[itemKey{f.VBucket, string(f.Key())}] = item{op: "mutation", flags: flags, value: f.Value()}
		}
	}
	if !bytes.Equal(again, recorded) {
		t.Error("our requests are not the recorded ones")
	}
	for i := range c.Items {
		delete(c.Items[i].Fields, "cas") // the server makes it
	}
	checkItems(t, c.Items, held)
}

// A dump that is cut at any byte is never taken for a complete one, and inside
// a packet the cut has a name (invariant 4).
func TestDumpCutAtEveryByte(t *testing.T) {
	for _, name := range []string{"2.5.1-tap-dump-two-vb", "3.0.3-tap-dump-ack", "4.0-tap-dump-ack"} {
		c, err := capture.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		stream := c.Stream(capture.Server)
		whole := readDump(bytes.NewReader(stream))
		for n := range len(stream) {
			d := readDump(bytes.NewReader(stream[:n]))
			_, rest := capture.Split(stream[:n])
			switch {
			case rest != nil && !errors.Is(d.end, mcbp.ErrTruncated):
				t.Fatalf("%s cut at %d: %v", name, n, d.end)
			case rest == nil && d.end != io.EOF:
				t.Fatalf("%s cut at %d, between two packets: %v", name, n, d.end)
			case d.end == io.EOF && d.complete() && len(d.closed) == len(whole.closed):
				t.Fatalf("%s cut at %d looks complete", name, n)
			}
		}
	}
}
