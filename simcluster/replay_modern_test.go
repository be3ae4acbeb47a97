package simcluster

import (
	"bytes"
	"crypto/hmac"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// Recordings of 6.0 and later that are not played, and why. docs/simulator.md has
// the same list.
var notPlayed = map[string]string{
	"7.0-dcp-oso":                    "out-of-order snapshots are not played",
	"7.0-dcp-oso-no-end":             "out-of-order snapshots are not played",
	"7.0-dcp-stream-id":              "stream ids are not played",
	"7.0-dcp-durable-committed-sync": "durable writes are not played",
	"7.0-dcp-durable-open-prepare":   "durable writes are not played",
	"7.0-dcp-durable-plain":          "durable writes are not played",
	"7.0-dcp-durable-sync":           "durable writes are not played",
	"7.0-dcp-durable-committed":      "durable writes are not played",
	"7.0-dcp-durable-default-only":   "durable writes are not played",
	"7.0-durable-set":                "durable writes are not played",
}

// recordedStreams are the recordings that show all that a vbucket holds; the
// items of others that stream it are subsets.
var recordedStreams = map[string]string{
	"6.0/100": "6.0-dcp-stream-memory",
	"6.6/100": "6.6-dcp-stream-expiry-opcode",
	"7.0/20":  "7.0-dcp-collections-expiry-opcode",
}

// The states that the recordings' comments tell, beside active.
var modernStates = map[string]map[uint16]mcbp.VBState{
	"6.0": {1: mcbp.VBReplica, 11: mcbp.VBReplica, 12: mcbp.VBPending, 13: mcbp.VBDead, 99: mcbp.VBAbsent, 299: mcbp.VBAbsent, 104: mcbp.VBReplica},
	"6.6": {11: mcbp.VBReplica},
	"7.0": {31: mcbp.VBReplica, 62: mcbp.VBReplica, 33: mcbp.VBPending, 34: mcbp.VBDead, 99: mcbp.VBAbsent, 999: mcbp.VBAbsent,
		132: mcbp.VBReplica, 160: mcbp.VBReplica, 300: mcbp.VBAbsent},
}

// Each recording of a server with DCP is played against a node in the state that
// it describes, and the node must answer what the real server answered. One that
// is not played must be listed.
func TestRecordedModernExchanges(t *testing.T) {
	captures, err := capture.Select(func(name string) bool {
		return name[0] >= '5' && name[0] <= '9' || regexp.MustCompile(`^[34]\.0.*-dcp-`).MatchString(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	played := 0
	var names []string
	for _, rec := range captures {
		if notPlayed[rec.Name] != "" {
			continue
		}
		played++
		names = append(names, rec.Name)
		t.Run(rec.Name, func(t *testing.T) { newPlay(t, rec).run() })
	}
	capture.Replays(t, "simcluster.TestRecordedModernExchanges", names...)
	if played+len(notPlayed) != len(captures) || played < 160 {
		t.Errorf("%d of %d recordings are played, %d are listed as not played", played, len(captures), len(notPlayed))
	}
}

// play is one recording on its way.
type play struct {
	t             *testing.T
	rec           *capture.Capture
	version       string // "6.0"
	bucket        string
	n             *Node
	nc            net.Conn
	r             *mcbp.Reader
	live          bool
	dropped, gone []uint32 // collections, as recorded and as here
	marker        bool     // the first marker has come

	first, bare, server string // of the SCRAM login under way
	user                string
	signature           string
}

var recordedPasswords = map[string]string{
	"beer": "beerpw", "@admin": "password", "ro": "ropw", "jan,=x": "pw=,x", "lim": "limpw",
}

func newPlay(t *testing.T, rec *capture.Capture) *play {
	version := rec.Name[:3]
	bucket := "beer"
	if packets, _ := rec.Packets(capture.Client); true {
		for _, raw := range packets {
			if f, err := frameOf(raw); err == nil && f.Opcode == mcbp.OpSelectBucket && f.Magic == mcbp.MagicRequest && !strings.Contains(rec.Name, "select") {
				bucket = string(f.Key())
			}
		}
	}
	p := &play{t: t, rec: rec, version: version, bucket: bucket, live: strings.Contains(rec.Name, "-live")}
	cfg := Config{
		Nodes: 1, VBuckets: 1024, Version: version, Username: "Administrator", Password: "password",
		WithoutKVMap: version[0] < '6' || version == "6.6" || !strings.HasSuffix(rec.Name, "not-my-vbucket") && !strings.Contains(rec.Name, "-withmeta-") && !strings.Contains(rec.Name, "set-vbucket") && !strings.Contains(rec.Name, "req-refused"),
		Buckets:      []BucketConfig{{Name: "default"}, {Name: "beer", Password: "beerpw"}},
	}
	if version[0] >= '6' {
		cfg.Buckets = append(cfg.Buckets, BucketConfig{Name: "lww", ConflictResolution: "lww"})
		cfg.Users = []User{
			{Name: "ro", Password: "ropw", Roles: []string{"data_reader[beer]", "data_dcp_reader[beer]"}},
			{Name: "jan,=x", Password: "pw=,x", Roles: []string{"data_reader[beer]"}},
			{Name: "lim", Password: "limpw", Roles: []string{"data_reader[beer:shop:items]", "data_dcp_reader[beer:shop:items]", "replication_target[beer:shop:items]"}},
		}
		if version == "7.0" && (strings.Contains(rec.Name, "no-map") || strings.Contains(rec.Name, "set-vbucket") || strings.Contains(rec.Name, "tap")) {
			cfg.WithoutKVMap = true
		}
		if strings.Contains(rec.Name, "7.0-dcp-rollback") {
			cfg.WithoutKVMap = true
		}
	} else {
		p.bucket = "default"
	}
	packets, _ := rec.Packets(capture.Server)
	for _, raw := range packets {
		if f, err := frameOf(raw); err == nil && f.Opcode == mcbp.OpDcpSnapshotMarker {
			cfg.DCPFromDisk = f.Body[19]&markerDisk != 0
			break
		}
	}
	cfg.CheckpointOpen = -1
	if strings.HasSuffix(rec.Name, "late-end") {
		cfg.CheckpointOpen = time.Hour
	}
	c := start(t, cfg)
	p.n = c.Nodes()[0]
	p.prepare(c)
	return p
}

func (p *play) setManifest(c *Cluster, text string) {
	p.t.Helper()
	m, err := parseManifest([]byte(text))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := c.Bucket("beer").SetManifest(m); err != nil {
		p.t.Fatal(err)
	}
}

const (
	defaultScope = `{"name":"_default","uid":"0","collections":[{"name":"_default","uid":"0"}]}`
	manifest1    = `{"uid":"1","scopes":[` + defaultScope + `,{"name":"shop","uid":"8","collections":[{"name":"items","uid":"8"},{"name":"orders","uid":"9","maxTTL":3600},{"name":"big","uid":"1234"}]},{"name":"empty","uid":"9","collections":[]}]}`
	manifest2    = `{"uid":"2","scopes":[` + defaultScope + `,{"name":"shop","uid":"8","collections":[{"name":"items","uid":"8"},{"name":"orders","uid":"9","maxTTL":3600},{"name":"new","uid":"a"}]},{"name":"empty","uid":"9","collections":[]}]}`
	manifest3    = `{"uid":"3","scopes":[` + defaultScope + `,{"name":"shop","uid":"8","collections":[{"name":"orders","uid":"9","maxTTL":3600},{"name":"new","uid":"a"}]}]}`
	manifest4    = `{"uid":"4","scopes":[` + defaultScope + `,{"name":"shop","uid":"8","collections":[{"name":"orders","uid":"9","maxTTL":3600},{"name":"new","uid":"a"},{"name":"items","uid":"b"}]}]}`
	manifest5    = `{"uid":"5","scopes":[` + defaultScope + `]}`
	manifest6    = `{"uid":"6","scopes":[{"name":"_default","uid":"0","collections":[]}]}`
)

func (p *play) prepare(c *Cluster) {
	t := p.t
	t.Helper()
	name := p.rec.Name
	// What came and went before some recordings. Collections are learned while
	// active; those that were never active are made again afterwards.
	if p.version == "7.0" && name != "7.0-collections-manifest" {
		p.setManifest(c, manifest1)
		if strings.Contains(name, "after-drops") || strings.Contains(name, "default-collection-dropped") {
			for _, m := range []string{manifest2, manifest3, manifest4, manifest5, manifest6} {
				if m == manifest2 {
					for range 3 { // seqnos 6 to 8 were items
						p.put(21, &item{key: fmt.Sprint("x", m[8:9], time.Now()), coll: 8})
					}
				}
				p.setManifest(c, m)
				if m == manifest2 {
					for range 3 {
						p.put(21, &item{key: fmt.Sprint("y", time.Now()), coll: 8})
					}
				}
			}
		}
	}
	for vb, s := range modernStates[p.version] {
		p.n.SetVBucket(p.bucket, vb, s)
		if s == mcbp.VBReplica && (vb == 132 || vb == 160 || vb == 104) {
			p.n.SetVBucket(p.bucket, vb, mcbp.VBAbsent)
			p.n.SetVBucket(p.bucket, vb, s)
		}
	}
	p.n.SetVBucket("lww", 1, mcbp.VBReplica)
	p.fromSeqnos()
	p.fromReads()
	p.fromStreams()
	if strings.Contains(name, "truncated") {
		p.put(174, &item{key: "big", value: make([]byte, 120_000), rev: 3, seqno: 10, cas: 1})
		p.n.Inject(Fault{VBucket: -1, Action: CutMidFrame, CutAt: len(p.rec.Stream(capture.Server)) - 2*mcbp.HeaderLen - 16})
	}
	if name == "3.0.3-dcp-not-my-vbucket" || name == "4.0-dcp-not-my-vbucket" {
		p.n.SetVBucket("default", 173, mcbp.VBAbsent)
	}
	if strings.Contains(name, "default-collection-dropped") {
		for vb := range uint16(1024) {
			switch vb {
			case 31, 33, 62, 132, 160:
			default:
				continue
			}
			p.n.SetVBucket(p.bucket, vb, mcbp.VBAbsent)
			p.n.SetVBucket(p.bucket, vb, mcbp.VBReplica)
		}
	}
	if name == "7.0-durable-in-progress" {
		t.Cleanup(c.Bucket("beer").HoldKey(8, []byte("op")))
	}
}

func (p *play) copy(vb uint16) (*vbucket, *vcopy, func()) {
	nb, m, ok := p.n.at(p.bucket, vb)
	if !ok {
		p.t.Fatalf("no vbucket %d", vb)
	}
	return m, &nb.copies[vb], m.mu.Unlock
}

func (p *play) put(vb uint16, it *item) {
	_, v, unlock := p.copy(vb)
	defer unlock()
	if v.colls == nil && it.coll != 0 {
		v.colls = freshCollections()
	}
	it.at = time.Now().UnixNano()
	v.put(it)
}

// pairs calls f for each request of the recording that has an answer.
func (p *play) pairs(f func(q, a *mcbp.Frame)) {
	answers, _ := p.rec.Packets(capture.Server)
	requests, _ := p.rec.Packets(capture.Client)
	for _, raw := range requests {
		q, err := frameOf(raw)
		if err != nil || q.Magic != mcbp.MagicRequest {
			continue
		}
		for _, raw := range answers {
			if raw[0] == 0x18 {
				continue
			}
			if a, err := frameOf(raw); err == nil && a.Magic == mcbp.MagicResponse && a.Opaque == q.Opaque && a.Opcode == q.Opcode {
				f(&q, &a)
				break
			}
		}
	}
}

// fromSeqnos makes the vbuckets those that GET_ALL_VB_SEQNOS lists.
func (p *play) fromSeqnos() {
	p.pairs(func(q, a *mcbp.Frame) {
		if q.Opcode != mcbp.OpGetAllVBSeqnos || a.Status() != mcbp.StatusOK || strings.Contains(p.rec.Name, "set-vbucket") {
			return
		}
		if len(q.Extras()) != 0 && !strings.Contains(p.rec.Name, "access-one") {
			return
		}
		seqnos, err := mcbp.ParseAllVBSeqnos(a.Value())
		if err != nil {
			p.t.Fatal(err)
		}
		for vb := range uint16(1024) {
			if _, ok := seqnos[vb]; ok {
				if s, _ := p.n.VBucket(p.bucket, vb); s == mcbp.VBDead || s == mcbp.VBAbsent || strings.Contains(p.rec.Name, "all-vb-seqnos") {
					p.n.SetVBucket(p.bucket, vb, mcbp.VBActive)
				}
			} else {
				if strings.Contains(p.rec.Name, "default-collection-dropped") {
					continue
				}
				p.n.SetVBucket(p.bucket, vb, mcbp.VBAbsent)
			}
		}
	})
}

// fromReads stores what the recorded client reads without having written it.
func (p *play) fromReads() {
	written := map[string]bool{}
	p.pairs(func(q, a *mcbp.Frame) {
		key := q.Key()
		coll := uint32(0)
		if p.version == "7.0" && p.collections() && len(key) > 1 {
			coll, key, _ = leb128(key)
		}
		id := fmt.Sprint(q.VBucket, coll, string(key))
		switch q.Opcode {
		case mcbp.OpGet, mcbp.OpGetMeta:
			if a.Status() == mcbp.StatusOK && !written[id] {
				it := &item{key: string(key), coll: coll, rev: 1, cas: a.CAS, datatype: a.Datatype, value: bytesOf(a.Value())}
				if q.Opcode == mcbp.OpGet {
					it.flags = binary.BigEndian.Uint32(a.Extras())
				}
				p.put(q.VBucket, it)
				written[id] = true
			}
		case mcbp.OpSet, mcbp.OpSetWithMeta, mcbp.OpAddWithMeta, mcbp.OpDeleteWithMeta:
			written[id] = true
		}
	})
}

// collections reports that the recorded client negotiated collections: its HELLO is
// not in all recordings.
func (p *play) collections() bool {
	granted := false
	p.pairs(func(q, a *mcbp.Frame) {
		if q.Opcode == mcbp.OpHello {
			features, _ := mcbp.ParseHello(a.Value())
			granted = slices.Contains(features, mcbp.FeatureCollections)
		}
	})
	return granted
}

// fromStreams stores the items that the recording streams.
func (p *play) fromStreams() {
	name := p.rec.Name
	if p.live || strings.Contains(name, "after-drops") {
		return
	}
	byVB := map[uint16]*capture.Capture{}
	p.pairs(func(q, a *mcbp.Frame) {
		if q.Opcode == mcbp.OpDcpStreamReq && (a.Status() == mcbp.StatusOK || a.Status() == mcbp.StatusRollback || a.Status() == mcbp.StatusRange || a.Status() == mcbp.StatusNotSupported) {
			byVB[q.VBucket] = p.rec
		}
	})
	for vb := range byVB {
		if full := recordedStreams[fmt.Sprintf("%s/%d", p.version, vb)]; full != "" && name != "6.0-dcp-stream-snappy-tombstones" {
			rec, err := capture.Open(full)
			if err != nil {
				p.t.Fatal(err)
			}
			byVB[vb] = rec
		}
		p.load(vb, byVB[vb])
	}
}

// histories gives the copies the failover logs of the recording.
func (p *play) histories() {
	p.pairs(func(q, a *mcbp.Frame) {
		if (q.Opcode == mcbp.OpDcpStreamReq || q.Opcode == mcbp.OpDcpFailoverLog) && a.Status() == mcbp.StatusOK {
			log, err := mcbp.ParseFailoverLog(a.Value())
			if err != nil {
				p.t.Fatal(err)
			}
			_, v, unlock := p.copy(q.VBucket)
			v.flog, v.uuid = log, log[0].UUID
			unlock()
		}
	})
}

// load stores the items of a vbucket as a recording streams them.
func (p *play) load(vb uint16, rec *capture.Capture) {
	if p.version == "6.6" && vb == 11 {
		return // written by the recording itself
	}
	_, v, unlock := p.copy(vb)
	prefixed := strings.HasPrefix(rec.Name, "7.0") && !strings.Contains(rec.Name, "default-only")
	if !prefixed && p.version == "7.0" && !strings.Contains(rec.Name, "nothing") {
		v.colls.known[0].high = 0
	}
	packets, _ := rec.Packets(capture.Server)
	var end uint64
	for _, raw := range packets {
		f, err := frameOf(raw)
		if err != nil || f.Magic != mcbp.MagicRequest || f.VBucket != vb {
			continue
		}
		var m mcbp.DcpMessage
		if m.Parse(&f) != nil {
			continue
		}
		switch m.Opcode {
		case mcbp.OpDcpSnapshotMarker:
			end = max(end, m.SnapEnd)
		case mcbp.OpDcpMutation, mcbp.OpDcpDeletion, mcbp.OpDcpExpiration:
			it := &item{
				key: string(m.Key), value: bytesOf(m.Value), flags: m.Flags, expiry: m.Expiry, cas: m.CAS, rev: m.Rev,
				seqno: m.Seqno, datatype: m.Datatype, at: time.Now().UnixNano(),
			}
			if prefixed {
				var key []byte
				it.coll, key, _ = leb128(m.Key)
				it.key = string(key)
			}
			if m.Opcode != mcbp.OpDcpMutation {
				it.deleted, it.expiry, it.deletedAt, it.byExpiry = true, 0, m.Expiry, m.Opcode == mcbp.OpDcpExpiration
				if it.datatype&dtSnappy != 0 { // the disk compressed it
					it.value, _ = snappy.Decode(nil, it.value)
					it.datatype &^= dtSnappy
				}
			}
			v.put(it)
		}
	}
	v.high = max(v.high, end)
	switch {
	case strings.Contains(rec.Name, "default-only-") && vb == 22:
		v.high = 20
	case strings.Contains(rec.Name, "default-only") && vb == 20:
		v.high = 34
	}
	unlock()
}

func (p *play) run() {
	t := p.t
	nc, err := net.Dial("tcp", p.n.KV())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	p.nc, p.r = nc, mcbp.NewReader(nc)
	defer func() {
		slices.Sort(p.dropped)
		slices.Sort(p.gone)
		if !slices.Equal(p.dropped, p.gone) {
			t.Errorf("dropped collections %x, recorded %x", p.gone, p.dropped)
		}
	}()
	p.histories()
	if p.live && p.version == "7.0" {
		p.script(6, 8)
	}
	var clientBuf, serverBuf []byte
	for i, ch := range p.rec.Chunks {
		for _, text := range ch.Comments {
			p.act(text)
		}
		switch {
		case ch.EOF && ch.From == capture.Client:
			if p.rec.ServerClosed < 0 || p.rec.ServerClosed > i {
				p.nothingMore()
			}
			return
		case ch.EOF:
			if f, err := p.r.Next(); err == nil {
				t.Errorf("the recorded server closed, this one sends %+v", f.Header)
			}
			return
		case ch.From == capture.Client:
			var packets [][]byte
			packets, clientBuf = capture.Split(append(clientBuf, ch.Bytes...))
			for _, raw := range packets {
				if _, err := nc.Write(p.request(raw)); err != nil {
					return // a server that closed
				}
			}
		default:
			var packets [][]byte
			packets, serverBuf = capture.Split(append(serverBuf, ch.Bytes...))
			for _, raw := range packets {
				p.expect(raw)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// nothingMore checks that the server sends nothing beyond what was recorded: it
// answers a NOOP and before that nothing.
func (p *play) nothingMore() {
	if strings.Contains(p.rec.Name, "truncated") || strings.Contains(p.rec.Name, "consumer") || strings.Contains(p.rec.Name, "-noop") || strings.Contains(p.rec.Name, "hello-all") || strings.Contains(p.rec.Name, "tracing") {
		return
	}
	if _, err := p.nc.Write(mcbp.AppendNoop(nil, 0x7777)); err != nil {
		return
	}
	for {
		f, err := p.r.Next()
		switch {
		case err != nil:
			p.t.Errorf("at the end: %v", err)
			return
		case f.Opcode == mcbp.OpNoop && f.Opaque == 0x7777:
			return
		case f.Opcode == mcbp.OpDcpSnapshotMarker && p.live, f.Opcode == mcbp.OpDcpNoop:
		default:
			p.t.Errorf("more came than was recorded: %+v %x", f.Header, f.Body)
			return
		}
	}
}

// request is what is sent in place of a recorded request.
func (p *play) request(raw []byte) []byte {
	f, err := frameOf(raw)
	if err != nil {
		return raw
	}
	switch {
	case f.Magic == mcbp.MagicResponse && f.Opcode == mcbp.OpDcpNoop:
		return mcbp.AppendFrame(nil, f.Header, nil, nil, nil)
	case f.Opcode == mcbp.OpSASLAuth && strings.HasPrefix(string(f.Key()), "SCRAM-"):
		p.first = string(f.Value())
		p.bare = strings.TrimPrefix(p.first, "n,,")
		p.user = strings.NewReplacer("=2C", ",", "=3D", "=").Replace(attribute(p.bare, "n"))
	case f.Opcode == mcbp.OpSASLStep && p.bare != "":
		password := recordedPasswords[p.user]
		if p.refusedLogin(f.Opaque) {
			password = "wrong"
		}
		return mcbp.AppendFrame(nil, f.Header, nil, f.Key(), []byte(p.finalMessage(string(f.Key()), password)))
	}
	return raw
}

func (p *play) refusedLogin(opaque uint32) bool {
	refused := false
	p.pairs(func(q, a *mcbp.Frame) {
		if q.Opaque == opaque && q.Opcode == mcbp.OpSASLStep {
			refused = a.Status() != mcbp.StatusOK
		}
	})
	return refused
}

// finalMessage is the client's last SCRAM message, made here from the definition.
func (p *play) finalMessage(mech, password string) string {
	h := mechanisms[mech]
	salt, err := base64.StdEncoding.DecodeString(attribute(p.server, "s"))
	if err != nil || h == nil {
		p.t.Fatalf("%s: %q: %v", mech, p.server, err)
	}
	// Hi() by its definition in RFC 5802.
	mac := hmac.New(h, []byte(password))
	mac.Write(append(slices.Clone(salt), 0, 0, 0, 1))
	u := mac.Sum(nil)
	key := slices.Clone(u)
	for range scramRounds - 1 {
		mac.Reset()
		mac.Write(u)
		u = mac.Sum(u[:0])
		for i := range key {
			key[i] ^= u[i]
		}
	}
	client := sign(h, key, "Client Key")
	d := h()
	d.Write(client)
	without := "c=biws,r=" + attribute(p.server, "r")
	message := p.bare + "," + p.server + "," + without
	signature := sign(h, d.Sum(nil), message)
	for i := range client {
		client[i] ^= signature[i]
	}
	p.signature = "v=" + base64.StdEncoding.EncodeToString(sign(h, sign(h, key, "Server Key"), message))
	return without + ",p=" + base64.StdEncoding.EncodeToString(client)
}

var refText = regexp.MustCompile(`"ref":"[0-9a-f-]+"`)

// expect reads the next packet and compares it with the recorded one.
func (p *play) expect(raw []byte) {
	t := p.t
	t.Helper()
	if raw[0] == 0x18 {
		p.expectTraced(raw)
		return
	}
	w, err := frameOf(raw)
	if err != nil {
		t.Fatal(err)
	}
	if p.live && w.Opcode == mcbp.OpDcpSnapshotMarker && p.marker {
		return
	}
	p.happen(&w)
	var g mcbp.Frame
	for {
		if g, err = p.r.Next(); err != nil {
			t.Fatalf("recorded: %+v %q; here: %v", w.Header, w.Body, err)
		}
		if !(p.live && p.marker && g.Opcode == mcbp.OpDcpSnapshotMarker && w.Opcode != g.Opcode) &&
			!(p.live && g.Opcode == mcbp.OpDcpSeqnoAdvanced && w.Opcode != g.Opcode) {
			break
		}
	}
	if p.live && w.Opcode == mcbp.OpDcpSnapshotMarker {
		p.marker = true
		if w.Body[19]&markerDisk == 0 { // where a snapshot ends is a matter of time
			return
		}
	}
	want, got := slices.Clone(w.Body), slices.Clone(g.Body)
	wh, gh := w.Header, g.Header
	free := func() { want, got, wh.BodyLen, gh.BodyLen = nil, nil, 0, 0 }
	switch {
	case w.Opcode == mcbp.OpSASLAuth && w.Status() == mcbp.StatusAuthContinue:
		p.server = string(g.Value())
		free()
	case w.Opcode == mcbp.OpSASLStep && w.Status() == mcbp.StatusOK:
		if string(g.Value()) != p.signature || len(got) != len(want) {
			t.Errorf("the server's signature is %q, it has to be %q", g.Value(), p.signature)
		}
		free()
	case w.Opcode == mcbp.OpGetErrorMap && w.Status() == mcbp.StatusOK && w.Magic == mcbp.MagicResponse:
		var m struct{ Errors map[string]any }
		if json.Unmarshal(got, &m) != nil || len(m.Errors) < 20 {
			t.Errorf("error map: %s", got)
		}
		gh.Datatype = wh.Datatype
		free()
	case w.Status() == mcbp.StatusNotMyVBucket && len(want) > 100 && w.Magic == mcbp.MagicResponse, w.Opcode == opGetConfig && len(want) > 100:
		if !json.Valid(got) || len(got) < 100 {
			t.Errorf("the map is %q", got)
		}
		free()
	case w.Opcode == mcbp.OpGetManifest:
		want, got = sortedManifest(t, want), sortedManifest(t, got)
		wh.BodyLen, gh.BodyLen = 0, 0
	case w.Opcode == mcbp.OpGetAllVBSeqnos && len(want)%10 == 0:
		p.compareSeqnos(want, got)
		free()
	case w.Opcode == mcbp.OpDcpNoop:
		wh.Opaque = gh.Opaque
	case bytes.Contains(want, []byte(`"ref":`)):
		want, got = refText.ReplaceAll(want, nil), refText.ReplaceAll(got, nil)
	case w.Magic == mcbp.MagicResponse && (w.Opcode == mcbp.OpSet || w.Opcode == mcbp.OpGet || w.Opcode == mcbp.OpGetMeta) && w.CAS > 1<<50 && g.CAS > 1<<50:
		wh.CAS = gh.CAS // made by the server
		if w.Opcode == mcbp.OpSet && len(want) == 16 && len(got) == 16 {
			free()
		}
	case len(want) == 16 && wh.ExtLen == 16 && len(got) == 16: // uuid and seqno of a write
		free()
	case w.Opcode == mcbp.OpDcpStreamReq && w.Magic == mcbp.MagicRequest:
	case w.Magic == mcbp.MagicRequest && (w.Opcode == mcbp.OpDcpDeletion || w.Opcode == mcbp.OpDcpMutation) && w.Datatype&dtSnappy != 0 && len(w.Value()) > 0:
		wv, werr := snappy.Decode(nil, w.Value())
		gv, gerr := snappy.Decode(nil, g.Value())
		if werr != nil || gerr != nil || !bytes.Equal(wv, gv) {
			t.Errorf("compressed value %q (%v), recorded %q", gv, gerr, wv)
		}
		want, got, wh.BodyLen, gh.BodyLen = w.Body[:int(w.ExtLen)+int(w.KeyLen)], g.Body[:int(g.ExtLen)+int(g.KeyLen)], 0, 0
	}
	if w.Opcode == mcbp.OpGetMeta && len(want) == len(got) && strings.HasSuffix(p.rec.Name, "collection-keys") && len(want) == 21 && want[8] != 0 {
		copy(got[8:12], want[8:12]) // the collection's limit makes it
	}
	if w.Opcode == mcbp.OpDcpSystemEvent && len(want) == len(got) && len(want) == 29 && want[11] == eventDropCollection {
		// Servers drop the collections of a scope in an order of their own.
		p.dropped = append(p.dropped, binary.BigEndian.Uint32(want[25:]))
		p.gone = append(p.gone, binary.BigEndian.Uint32(got[25:]))
		copy(got[25:], want[25:])
	}
	if w.Opcode == mcbp.OpGetMeta && len(want) == len(got) && len(want) >= 20 && strings.Contains(p.rec.Name, "max-ttl") && binary.BigEndian.Uint32(want[8:]) != 0x6b03008a {
		if exp := int64(binary.BigEndian.Uint32(got[8:])) - time.Now().Unix(); exp < 3590 || exp > 3601 {
			t.Errorf("the expiry is %d s from now", exp)
		}
		copy(got[8:12], want[8:12])
	}
	if wh != gh || !bytes.Equal(want, got) {
		t.Errorf("here:     %+v %q\nrecorded: %+v %q", gh, got, wh, want)
	}
}

func (p *play) expectTraced(want []byte) {
	b := make([]byte, 0, len(want))
	for len(b) < 24 || len(b) < 24+int(binary.BigEndian.Uint32(b[8:])) {
		one := make([]byte, 1)
		if _, err := p.nc.Read(one); err != nil {
			p.t.Fatal(err)
		}
		b = append(b, one[0])
	}
	if mcbp.Opcode(b[1]) == mcbp.OpSASLAuth {
		p.server = string(b[27:])
		b = b[:len(want)]
	}
	if b[0] != 0x18 || b[2] != 3 || b[1] != want[1] || b[24] != 2 || b[6] != want[6] || b[7] != want[7] || (len(b) != len(want)) {
		p.t.Errorf("here %x, recorded %x", b, want)
	}
}

func sortedManifest(t *testing.T, text []byte) []byte {
	var m manifestJSON
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(m.Scopes, func(a, b scopeJSON) int { return strings.Compare(a.Name, b.Name) })
	return mustJSON(m)
}

// compareSeqnos compares which vbuckets are listed; how far they are is only known
// of those that the recording streams.
func (p *play) compareSeqnos(want, got []byte) {
	w, err := mcbp.ParseAllVBSeqnos(want)
	if err != nil {
		p.t.Fatal(err)
	}
	g, err := mcbp.ParseAllVBSeqnos(got)
	if err != nil {
		p.t.Fatal(err)
	}
	if strings.Contains(p.rec.Name, "set-vbucket") {
		for vb := uint16(200); vb < 204; vb++ {
			if _, ok := w[vb]; ok != (func() bool { _, ok := g[vb]; return ok })() {
				p.t.Errorf("vbucket %d: recorded %v", vb, ok)
			}
		}
		return
	}
	for vb := range w {
		if _, ok := g[vb]; !ok {
			p.t.Errorf("vbucket %d is not listed", vb)
		}
	}
	for vb := range g {
		if _, ok := w[vb]; !ok {
			p.t.Errorf("vbucket %d is listed", vb)
		}
		if p.version == "7.0" && strings.Contains(p.rec.Name, "all-vb-seqnos") && (w[vb] == 5 || w[vb] == 3) && g[vb] != w[vb] {
			p.t.Errorf("vbucket %d is at %d, recorded %d", vb, g[vb], w[vb])
		}
	}
}

// happen does what made the recorded server send a message.
func (p *play) happen(w *mcbp.Frame) {
	if !p.live || w.Magic != mcbp.MagicRequest || p.version != "6.0" {
		return
	}
	var m mcbp.DcpMessage
	if err := m.Parse(w); err != nil {
		p.t.Fatal(err)
	}
	switch m.Opcode {
	case mcbp.OpDcpSnapshotMarker: // the first one: its item comes next
		p.put(101, &item{key: "live1", value: []byte(`{"l":1}`), datatype: 1, cas: p.casOf("live1", mcbp.OpDcpMutation), rev: 1})
	case mcbp.OpDcpMutation, mcbp.OpDcpDeletion:
		_, v, unlock := p.copy(101)
		high := v.high
		unlock()
		if m.Seqno <= high {
			return
		}
		it := &item{key: string(m.Key), value: bytesOf(m.Value), datatype: m.Datatype, cas: m.CAS, rev: m.Rev, flags: m.Flags, expiry: m.Expiry}
		if m.Opcode == mcbp.OpDcpDeletion {
			it.deleted, it.deletedAt, it.expiry = true, m.Expiry, 0
		}
		p.put(101, it)
	case mcbp.OpDcpStreamEnd:
		p.n.SetVBucket(p.bucket, 101, mcbp.VBReplica)
	}
}

func (p *play) casOf(key string, op mcbp.Opcode) uint64 {
	packets, _ := p.rec.Packets(capture.Server)
	for _, raw := range packets {
		if f, err := frameOf(raw); err == nil && f.Opcode == op && string(f.Key()) == key {
			return f.CAS
		}
	}
	return 0
}

// act does what a comment between two packets tells.
func (p *play) act(text string) {
	c := p.n.c
	switch {
	case strings.Contains(text, "now the vbucket becomes active"):
		p.n.SetVBucket(p.bucket, 12, mcbp.VBActive)
	case strings.HasPrefix(text, "manifest 2:"):
		p.setManifest(c, manifest2)
	case strings.HasPrefix(text, "manifest 3:"):
		p.setManifest(c, manifest3)
	case strings.HasPrefix(text, "manifest 4:"):
		p.setManifest(c, manifest4)
	case strings.HasPrefix(text, "manifest 5:"):
		p.setManifest(c, manifest5)
	case strings.HasPrefix(text, "manifest 6:"):
		p.setManifest(c, manifest6)
	case strings.HasPrefix(text, "SET in 0xa"):
		p.script(11, 13)
	}
}

// script stores the items of the full live recording between two seqnos.
func (p *play) script(from, to uint64) {
	full, err := capture.Open("7.0-dcp-live-manifest")
	if err != nil {
		p.t.Fatal(err)
	}
	packets, _ := full.Packets(capture.Server)
	for _, raw := range packets {
		f, err := frameOf(raw)
		var m mcbp.DcpMessage
		if err != nil || f.Opcode != mcbp.OpDcpMutation || m.Parse(&f) != nil || m.Seqno < from || m.Seqno > to {
			continue
		}
		coll, key, _ := leb128(m.Key)
		p.put(21, &item{
			key: string(key), coll: coll, value: bytesOf(m.Value), datatype: m.Datatype, cas: m.CAS, rev: m.Rev,
			flags: m.Flags, expiry: m.Expiry, seqno: m.Seqno,
		})
	}
}
