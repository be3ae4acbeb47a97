package simcluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// The vbuckets of the recordings that were not plainly active (the captures'
// comments say so), and what was in them beforehand.
var recordedStates = map[string]map[uint16]mcbp.VBState{
	"getmeta":                       {161: mcbp.VBReplica, 162: mcbp.VBAbsent},
	"setwithmeta-force-replica":     {150: mcbp.VBReplica},
	"setwithmeta-pipelined-replica": {151: mcbp.VBReplica},
	"setwithmeta-refused":           {152: mcbp.VBReplica, 154: mcbp.VBDead, 155: mcbp.VBAbsent},
	"delwithmeta-force-replica":     {156: mcbp.VBReplica},
	"delwithmeta-refused":           {157: mcbp.VBReplica},
	"tap-push-replica":              {140: mcbp.VBReplica},
	"tap-push-pending":              {141: mcbp.VBPending},
	"tap-push-dead":                 {142: mcbp.VBDead},
	"tap-push-fail-in-the-middle":   {143: mcbp.VBReplica, 144: mcbp.VBAbsent},
	"tap-push-ack-each":             {145: mcbp.VBReplica},
	"tap-dump-one-replica":          {115: mcbp.VBReplica},
	"tap-dump-only-missing":         {116: mcbp.VBAbsent},
}

var recordedBefore = map[string]map[uint16][]Doc{
	"delwithmeta-force-replica": {156: {{Key: []byte("pushmeta1"), Rev: 1}, {Key: []byte("pushmeta2"), Rev: 1}}},
	"delwithmeta-refused":       {158: {{Key: []byte("pushmeta1"), Value: []byte("third revision"), Flags: 4, Rev: 3}}},
	"getmeta":                   {161: {{Key: []byte("pushmeta1")}}},
	"tap-dump-tombstones-only":  {117: {{Key: []byte("pusha"), Deleted: true}}},
	"tap-dump-one-replica":      {115: {{Key: []byte("plain")}, {Key: []byte("flags")}}},
	"stats":                     {5: {{Key: []byte("a")}, {Key: []byte("b")}, {Key: []byte("c")}}},
}

// Every recording of the three servers whose name has tap, withmeta, getmeta,
// stats or sasl: its client side is played against a node in the state that the
// recording describes, and the node must answer what the real server answered.
func TestRecordedExchanges(t *testing.T) {
	captures, err := capture.Select(func(name string) bool {
		return regexp.MustCompile(`^(2\.5\.1|3\.0\.3|4\.0)-.*(tap|withmeta|getmeta|stats|sasl|dcp-unknown)`).MatchString(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(captures) != 100 {
		t.Errorf("%d recordings are played, there are 100", len(captures))
	}
	for _, rec := range captures {
		t.Run(rec.Name, func(t *testing.T) { replay(t, rec) })
	}
	capture.Replays(t, "simcluster.TestRecordedExchanges", capture.Names(captures)...)
}

func replay(t *testing.T, rec *capture.Capture) {
	version, kind, _ := strings.Cut(rec.Name, "-")
	cfg := Config{
		Nodes: 1, VBuckets: 1024, Version: version, WithoutKVMap: true,
		Buckets: []BucketConfig{{Name: "default"}, {Name: "beer", Password: "beerpw"}},
	}
	if strings.Contains(kind, "kill9") {
		cfg.TapAckInterval, cfg.TapWindow = 3, 3
	}
	c := start(t, cfg)
	n := c.Nodes()[0]
	dump := strings.HasPrefix(kind, "tap-dump")
	prepare(t, n, rec, kind, dump)

	packets, rest := rec.Packets(capture.Server)
	cut := 0
	switch {
	case strings.Contains(kind, "kill9"):
		// TAP_CONNECT is the first that matches.
		n.Inject(Fault{VBucket: -1, After: 1 + len(packets), Action: Die})
	case strings.Contains(kind, "truncated"):
		cut = len(rec.Stream(capture.Server))
		n.Inject(Fault{VBucket: -1, Action: CutMidFrame, CutAt: cut})
		if strings.Contains(kind, "no-opaque8") {
			break // cut behind the last item
		}
		if err := n.StoreAt("default", 120, Doc{Key: []byte("cut"), Value: make([]byte, 8000)}); err != nil {
			t.Fatal(err)
		}
	case strings.Contains(kind, "no-opaque8"):
		n.Inject(Fault{VBucket: -1, Action: OmitCloseBackfill})
	}

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var res capture.Result
	if strings.Contains(kind, "cram-md5") {
		res = playCramMD5(t, n, rec)
	} else {
		var err error
		if res, err = capture.PlayAddr(ctx, n.KV(), rec, capture.PlayOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	switch {
	case dump && cut > 0:
		if got := len(bytes.Join(res.Packets, nil)) + len(res.Rest); got != cut {
			t.Errorf("%d bytes came, the cut is at %d", got, cut)
		}
		if version != "2.5.1" { // whose order is not defined
			compareDump(t, version, packets, res.Packets[:min(len(packets), len(res.Packets))])
			if len(rest) != len(res.Rest) {
				t.Errorf("a piece of %d bytes is left at the end, %d were recorded", len(res.Rest), len(rest))
			}
		}
	case dump:
		compareDump(t, version, packets, res.Packets)
	case kind == "stats":
		compareStats(t, packets, res.Packets)
	default:
		compareAnswers(t, rec, packets, res.Packets)
	}
	if !res.Closed && rec.ServerClosed >= 0 && rec.ServerClosed < rec.ClientClosed {
		t.Error("the recorded server closed first, this one did not close")
	}
	if !dump && kind != "stats" {
		compareHeld(t, n, version, kind, rec)
	}
}

func prepare(t *testing.T, n *Node, rec *capture.Capture, kind string, dump bool) {
	t.Helper()
	put := func(vb uint16, d Doc) {
		if err := n.StoreAt("default", vb, d); err != nil {
			t.Fatal(err)
		}
	}
	if kind == "stats" {
		for vb := range uint16(1024) {
			n.SetVBucket("default", vb, mcbp.VBAbsent)
		}
		for vb, s := range map[uint16]mcbp.VBState{5: mcbp.VBActive, 6: mcbp.VBReplica, 7: mcbp.VBPending, 8: mcbp.VBDead} {
			n.SetVBucket("default", vb, s)
		}
		if n.c.family == 2 {
			n.SetVBucket("default", 0, mcbp.VBActive)
		}
	}
	for vb, s := range recordedStates[kind] {
		n.SetVBucket("default", vb, s)
	}
	for vb, docs := range recordedBefore[kind] {
		for _, d := range docs {
			put(vb, d)
		}
	}
	if !dump && kind != "getmeta" {
		return // #item lines are what was held afterwards
	}
	items := slices.Clone(rec.Items)
	// What an earlier dump reaped is the newest of all.
	slices.SortStableFunc(items, func(a, b capture.Item) int {
		reaped := func(it capture.Item) int {
			if string(it.Key) == "expired" && it.Note == "" {
				return 1
			}
			return 0
		}
		return reaped(a) - reaped(b)
	})
	for _, it := range items {
		d := Doc{
			Key: it.Key, Value: it.Value, Flags: it.Flags, Expiry: it.Expiry, CAS: it.CAS, Rev: it.Rev,
			Datatype: it.Datatype, Deleted: it.Op == "deletion",
		}
		if it.Has("value_len") {
			d.Value = recordedValue(t, rec, it)
		}
		if strings.HasPrefix(it.Note, "already expired") {
			d.Deleted, d.Flags, d.Expiry = false, 3, 1_000_000_000
			if d.Value == nil {
				d.Value = []byte("gone, but not reaped")
			}
			if d.CAS == 0 {
				d.CAS = 4_580_000_000_000
			}
		}
		put(it.VB, d)
	}
}

// recordedValue finds a long value, whose #item line has only a checksum, among
// the recorded messages.
func recordedValue(t *testing.T, rec *capture.Capture, it capture.Item) []byte {
	t.Helper()
	packets, _ := rec.Packets(capture.Server)
	for _, p := range packets {
		m, ok := parseTap(p)
		if ok && bytes.Equal(m.Key, it.Key) && it.CheckValue(m.Value) == nil {
			return m.Value
		}
	}
	t.Fatalf("the value of %q is not in the recording", it.Key)
	return nil
}

func parseTap(packet []byte) (m mcbp.TapMessage, ok bool) {
	f, err := frameOf(packet)
	return m, err == nil && f.Magic == mcbp.MagicRequest && m.Parse(&f) == nil
}

func frameOf(packet []byte) (mcbp.Frame, error) {
	h, err := mcbp.ParseHeader(packet)
	if err != nil {
		return mcbp.Frame{}, err
	}
	return mcbp.Frame{Header: h, Body: packet[mcbp.HeaderLen:]}, nil
}

// playCramMD5 plays a login whose second message depends on the challenge.
func playCramMD5(t *testing.T, n *Node, rec *capture.Capture) capture.Result {
	t.Helper()
	nc, err := net.Dial("tcp", n.KV())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	r := mcbp.NewReader(nc)
	var res capture.Result
	var challenge []byte
	requests, _ := rec.Packets(capture.Client)
	for _, p := range requests {
		f, err := frameOf(p)
		if err != nil {
			t.Fatal(err)
		}
		if f.Opcode == mcbp.OpSASLStep {
			password := "beerpw"
			if strings.HasSuffix(rec.Name, "-bad") {
				password = "wrong"
			}
			p = mcbp.AppendFrame(nil, f.Header, nil, f.Key(), mcbp.SASLCramMD5("beer", password, challenge))
		}
		if _, err := nc.Write(p); err != nil {
			t.Fatal(err)
		}
		a, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if a.Status() == mcbp.StatusAuthContinue {
			challenge = bytes.Clone(a.Value())
		}
		res.Packets = append(res.Packets, mcbp.AppendFrame(nil, a.Header, a.Extras(), a.Key(), a.Value()))
	}
	res.Closed = true
	return res
}

// madeByServer are the answers and items whose CAS the server invented.
func madeByServer(version, kind, key string) bool {
	return version == "2.5.1" && (key == "pushnever" || key == "pushmetaabsent")
}

func compareAnswers(t *testing.T, rec *capture.Capture, want, got [][]byte) {
	t.Helper()
	if len(want) != len(got) {
		t.Fatalf("%d answers, %d were recorded", len(got), len(want))
	}
	for i := range want {
		w, err := frameOf(want[i])
		if err != nil {
			t.Fatal(err)
		}
		g, err := frameOf(got[i])
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case w.Opcode == mcbp.OpSASLAuth && w.Status() == mcbp.StatusAuthContinue:
			if len(w.Value()) == 16 && len(g.Value()) != 16 {
				t.Errorf("challenge %q, %q was recorded", g.Value(), w.Value())
			}
			w.Body, g.Body, w.BodyLen, g.BodyLen = nil, nil, 0, 0 // another challenge
		case w.Opcode == mcbp.OpGetMeta && w.Status() == mcbp.StatusNotFound && w.CAS != 0 && g.CAS != 0:
			g.CAS = w.CAS // one the server made
		case w.Opcode == mcbp.OpGetMeta && len(w.Body) == 20 && len(g.Body) == 20 && w.Body[8] != 0 && g.Body[8] != 0 && w.Body[3] == 1:
			copy(g.Body[8:12], w.Body[8:12]) // the time of the deletion
		}
		if w.Header != g.Header || !bytes.Equal(w.Body, g.Body) {
			t.Errorf("answer %d: %+v %x, recorded: %+v %x", i, g.Header, g.Body, w.Header, w.Body)
		}
	}
}

// compareHeld checks what the node holds afterwards against the #item lines.
func compareHeld(t *testing.T, n *Node, version, kind string, rec *capture.Capture) {
	t.Helper()
	for _, it := range rec.Items {
		d, _ := n.Doc("default", it.VB, it.Key)
		want := Doc{Key: it.Key, Value: d.Value, Flags: it.Flags, Expiry: it.Expiry, CAS: it.CAS, Rev: it.Rev, Deleted: it.Op == "deletion", Datatype: d.Datatype, Seqno: d.Seqno}
		if madeByServer(version, kind, string(it.Key)) && d.CAS != 0 {
			want.CAS = d.CAS
		}
		if kind == "delwithmeta-refused" && !want.Deleted {
			want.CAS = d.CAS // prepared without it
		}
		if fmt.Sprint(d) != fmt.Sprint(want) {
			t.Errorf("held: %+v, recorded: %+v", d, want)
		}
		if it.Op == "mutation" {
			if err := it.CheckValue(d.Value); err != nil {
				t.Errorf("%q: %v", it.Key, err)
			}
		}
	}
	if absent, ok := rec.Comment("absent afterwards"); ok {
		for _, h := range regexp.MustCompile(`[0-9a-f]{2,}`).FindAllString(absent, -1) {
			key, err := hex.DecodeString(h)
			if err != nil {
				t.Fatal(err)
			}
			for vb := range uint16(1024) {
				if d, ok := n.Doc("default", vb, key); ok {
					t.Errorf("%q is in vbucket %d: %+v", key, vb, d)
				}
			}
		}
	}
}

// compareDump compares two dumps message by message. The acknowledgements that
// the recorded server asked for only because its disk was slow are left out; so
// is the byte behind the revision, which says how warm an item is. Items of
// 2.5.1 have no defined order.
func compareDump(t *testing.T, version string, want, got [][]byte) {
	t.Helper()
	w, g := dumpLines(t, want), dumpLines(t, got)
	if version == "2.5.1" {
		slices.Sort(w.items)
		slices.Sort(g.items)
	}
	if !slices.Equal(w.items, g.items) {
		t.Errorf("items:\n%s\nrecorded:\n%s", strings.Join(g.items, "\n"), strings.Join(w.items, "\n"))
	}
	if !slices.Equal(w.order, g.order) {
		t.Errorf("messages: %v\nrecorded: %v", g.order, w.order)
	}
	for opaque := range w.asked {
		if !g.asked[opaque] && !w.early[opaque] {
			t.Errorf("message %d asks for no acknowledgement, the recorded one did", opaque)
		}
	}
}

type dumpText struct {
	items        []string
	order        []string
	asked, early map[uint32]bool
}

func dumpLines(t *testing.T, packets [][]byte) dumpText {
	t.Helper()
	d := dumpText{asked: map[uint32]bool{}, early: map[uint32]bool{}}
	for i, p := range packets {
		m, ok := parseTap(p)
		if !ok {
			t.Fatalf("%x is no TAP message", p)
		}
		if m.WantsAck() {
			d.asked[m.Opaque] = true
			// All but OPAQUEs and the last message before them ask for no other
			// reason than an empty queue, unless their number divides by three.
			next, last := mcbp.TapMessage{}, i+1 == len(packets)
			if !last {
				next, _ = parseTap(packets[i+1])
			}
			d.early[m.Opaque] = m.Opcode != mcbp.OpTapOpaque && !last && next.Opcode != mcbp.OpTapOpaque
		}
		if m.Opcode == mcbp.OpTapOpaque {
			cmd, _ := m.OpaqueCommand()
			d.order = append(d.order, fmt.Sprintf("opaque %d of vb %d as %d flags %d ttl %d", cmd, m.VBucket, m.Opaque, m.MsgFlags, m.TTL))
			continue
		}
		d.order = append(d.order, fmt.Sprintf("item as %d", m.Opaque))
		d.items = append(d.items, fmt.Sprintf("vb %d op 0x%02x key %q value %q (%x) flags %d exp %d cas %d rev %d engine %d msg %d ttl %d datatype %d",
			m.VBucket, uint8(m.Opcode), m.Key, m.Value[:min(40, len(m.Value))], sha256.Sum256(m.Value), m.Flags, m.Expiry, m.CAS, m.Rev, len(m.Engine), m.MsgFlags&^mcbp.TapMsgAck, m.TTL, m.Datatype))
	}
	return d
}

// compareStats compares the names of all statistics and the values that say
// what is where.
func compareStats(t *testing.T, want, got [][]byte) {
	t.Helper()
	type answers struct {
		values map[uint32]map[string]string
		order  map[uint32][]string
		other  []string
	}
	read := func(packets [][]byte) answers {
		a := answers{values: map[uint32]map[string]string{}, order: map[uint32][]string{}}
		for _, p := range packets {
			f, err := frameOf(p)
			if err != nil {
				t.Fatal(err)
			}
			if f.Opcode != mcbp.OpStat || f.Status() != mcbp.StatusOK {
				a.other = append(a.other, fmt.Sprintf("%+v %x", f.Header, f.Body))
				continue
			}
			if a.values[f.Opaque] == nil {
				a.values[f.Opaque] = map[string]string{}
			}
			name := regexp.MustCompile(`_port_\d+$`).ReplaceAllString(string(f.Key()), "_port")
			a.values[f.Opaque][name] = string(f.Value())
			a.order[f.Opaque] = append(a.order[f.Opaque], name)
		}
		return a
	}
	w, g := read(want), read(got)
	if !slices.Equal(w.other, g.other) {
		t.Errorf("answers %v, recorded %v", g.other, w.other)
	}
	told := regexp.MustCompile(`^vb_\d+$|:num_items$|:high_seqno$|:ops_|^ep_queue_size$|^ep_flusher_todo$|^curr_items|^vb_\w+_(num|curr_items)$|^ep_vb_total$`)
	for _, opaque := range slices.Sorted(maps.Keys(w.values)) {
		if !slices.Equal(w.order[opaque], g.order[opaque]) {
			t.Errorf("names %v\nrecorded %v", g.order[opaque], w.order[opaque])
		}
		for name, value := range w.values[opaque] {
			if told.MatchString(name) && g.values[opaque][name] != value {
				t.Errorf("%s is %s, recorded %s", name, g.values[opaque][name], value)
			}
		}
	}
}
