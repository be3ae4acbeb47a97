package simcluster

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

// producer opens a connection for DCP streams.
func (c *client) producer(name string) {
	c.t.Helper()
	c.status(mcbp.AppendDcpOpen(nil, 1, name, mcbp.DcpOpenProducer), mcbp.StatusOK)
}

func streamReq(vb uint16, start, end, uuid uint64) []byte {
	r := mcbp.StreamReq{VBucket: vb, Opaque: uint32(vb) + 1000, Start: start, End: end, UUID: uuid, SnapStart: start, SnapEnd: start}
	return r.Append(nil)
}

// dcpNext reads the next message of a stream.
func (c *client) dcpNext() (m mcbp.DcpMessage) {
	c.t.Helper()
	f := c.next()
	if f.Magic != mcbp.MagicRequest {
		c.t.Fatalf("%s %s came, not a message of a stream", mcbp.OpcodeName(f.Opcode), mcbp.StatusName(f.Status()))
	}
	if err := m.Parse(&f); err != nil {
		c.t.Fatal(err)
	}
	m.Key, m.Value = slices.Clone(m.Key), slices.Clone(m.Value)
	return m
}

// drain reads streams until as many have ended, and returns keys by vbucket in
// the order in which they came.
func (c *client) drain(streams int) (keys map[uint16][]string, ends []uint32) {
	c.t.Helper()
	keys = map[uint16][]string{}
	for len(ends) < streams {
		switch m := c.dcpNext(); m.Opcode {
		case mcbp.OpDcpStreamEnd:
			ends = append(ends, m.Flags)
		case mcbp.OpDcpMutation, mcbp.OpDcpDeletion:
			keys[m.VBucket] = append(keys[m.VBucket], string(m.Key))
		}
	}
	return keys, ends
}

func (c *client) expect(op mcbp.Opcode) mcbp.DcpMessage {
	c.t.Helper()
	m := c.dcpNext()
	if m.Opcode != op {
		c.t.Fatalf("%s came, not %s", mcbp.OpcodeName(m.Opcode), mcbp.OpcodeName(op))
	}
	return m
}

// put stores documents in one vbucket.
func putIn(t *testing.T, n *Node, vb uint16, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if err := n.StoreAt("default", vb, Doc{Key: []byte(k), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
}

// Many streams on one connection come whole, in order and with the newest
// version of each key only.
func TestDCPStreams(t *testing.T) {
	_, n, b := single(t, "3.0.3")
	for vb := range uint16(64) {
		for i := range 200 {
			putIn(t, n, vb, fmt.Sprint("k", i%150))
		}
	}
	k := dial(t, n)
	k.producer("many")
	for vb := range uint16(64) {
		k.send(streamReq(vb, 0, b.HighSeqno(vb), 0))
	}
	keys := map[uint16][]string{}
	for ended := 0; ended < 64; {
		f := k.next()
		if f.Magic == mcbp.MagicResponse {
			if f.Status() != mcbp.StatusOK || len(f.Value()) != 16 {
				t.Fatalf("STREAM_REQ answers %s", mcbp.StatusName(f.Status()))
			}
			continue
		}
		var m mcbp.DcpMessage
		if err := m.Parse(&f); err != nil {
			t.Fatal(err)
		}
		switch m.Opcode {
		case mcbp.OpDcpMutation:
			keys[m.VBucket] = append(keys[m.VBucket], string(m.Key))
		case mcbp.OpDcpStreamEnd:
			ended++
		}
	}
	var want []string
	for i := range 150 {
		want = append(want, fmt.Sprint("k", (i+50)%150))
	}
	for vb := range uint16(64) {
		if !slices.Equal(keys[vb], want) {
			t.Fatalf("vbucket %d: %v", vb, keys[vb])
		}
	}
	if n.Streams() != 0 {
		t.Errorf("%d streams are open", n.Streams())
	}
}

// A live stream goes on with each write and ends when the state changes, when it
// is told to, or when the client closes it.
func TestDCPLive(t *testing.T) {
	_, n, _ := single(t, "6.6.5")
	k := modern(t, n, "default")
	k.producer("live")
	k.status(streamReq(3, 0, noSeqno, 0), mcbp.StatusOK)
	for i := range 3 {
		key := fmt.Sprint("live", i)
		putIn(t, n, 3, key)
		k.expect(mcbp.OpDcpSnapshotMarker)
		if m := k.expect(mcbp.OpDcpMutation); string(m.Key) != key || m.Seqno != uint64(i+1) {
			t.Errorf("%q at %d", m.Key, m.Seqno)
		}
	}
	if k.status(streamReq(3, 0, noSeqno, 0), mcbp.StatusExists); n.Streams() != 1 {
		t.Errorf("%d streams are open", n.Streams())
	}
	n.SetVBucket("default", 3, mcbp.VBReplica)
	if m := k.expect(mcbp.OpDcpStreamEnd); m.Flags != endState {
		t.Errorf("it ends with %d", m.Flags)
	}
	k.status(streamReq(4, 0, noSeqno, 0), mcbp.StatusOK)
	if got := n.EndStreams("default", 4, 4); got != 1 {
		t.Errorf("%d streams are ended", got)
	}
	if m := k.expect(mcbp.OpDcpStreamEnd); m.Flags != 4 {
		t.Errorf("it ends with %d", m.Flags)
	}
	k.status(streamReq(5, 0, noSeqno, 0), mcbp.StatusOK)
	k.status(keyed(mcbp.OpDcpCloseStream, 5, ""), mcbp.StatusOK)
	k.status(keyed(mcbp.OpDcpCloseStream, 5, ""), mcbp.StatusNotFound)
	k.status(mcbp.AppendDcpControl(nil, 7, "send_stream_end_on_client_close_stream", "true"), mcbp.StatusOK)
	k.status(streamReq(5, 0, noSeqno, 0), mcbp.StatusOK)
	k.status(keyed(mcbp.OpDcpCloseStream, 5, ""), mcbp.StatusOK)
	if m := k.expect(mcbp.OpDcpStreamEnd); m.Flags != endClosed {
		t.Errorf("it ends with %d", m.Flags)
	}
}

// modern is dial for servers that need a login.
func modern(t *testing.T, n *Node, bucket string, features ...uint16) *client {
	t.Helper()
	k := dial(t, n)
	k.status(mcbp.AppendHello(nil, 1, "test", append(features, mcbp.FeatureXerror, mcbp.FeatureSelect)...), mcbp.StatusOK)
	k.status(packet(mcbp.OpSASLAuth, 0, 0, 0, nil, "PLAIN", string(mcbp.SASLPlain("Administrator", "password"))), mcbp.StatusOK)
	k.status(keyed(mcbp.OpSelectBucket, 0, bucket), mcbp.StatusOK)
	return k
}

// Without acknowledgements the server stops; each lets as much through again.
func TestDCPFlowControl(t *testing.T) {
	_, n, _ := single(t, "4.0")
	for i := range 100 {
		putIn(t, n, 2, fmt.Sprintf("key-%03d", i))
	}
	k := dial(t, n)
	k.producer("slow")
	k.status(mcbp.AppendDcpControl(nil, 2, "connection_buffer_size", "1000"), mcbp.StatusOK)
	k.status(streamReq(2, 0, 100, 0), mcbp.StatusOK)
	unacked, got := 0, 0
	for {
		f := k.next()
		unacked += mcbp.HeaderLen + len(f.Body)
		if f.Opcode == mcbp.OpDcpStreamEnd {
			break
		}
		if f.Opcode == mcbp.OpDcpMutation {
			got++
		}
		if unacked > 1000+mcbp.HeaderLen+60 {
			t.Fatalf("%d bytes come without an acknowledgement", unacked)
		}
		if unacked >= 1000 {
			// Everything that is allowed has come: the answer to a NOOP is next.
			k.send(mcbp.AppendNoop(nil, 9))
			if f := k.next(); f.Opcode != mcbp.OpNoop {
				t.Fatalf("%s comes beyond the window", mcbp.OpcodeName(f.Opcode))
			}
			k.send(mcbp.AppendDcpBufferAck(nil, uint32(unacked)))
			unacked = 0
		}
	}
	if got != 100 {
		t.Errorf("%d items came", got)
	}
}

// After a failover that lost writes, a client that had them must go back.
func TestDCPRollback(t *testing.T) {
	c := start(t, Config{Nodes: 2, Version: "4.6", Buckets: []BucketConfig{{Name: "default", Replicas: 1}}})
	b := c.Bucket("default")
	vb := b.VBucketOf([]byte("a"))
	for i := range 10 {
		if err := b.Store(Doc{Key: []byte("a"), Value: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	other := keyOf(b, vb, "x")
	if err := b.Store(Doc{Key: other, Value: []byte("lost")}); err != nil {
		t.Fatal(err)
	}
	uuid := b.FailoverLog(vb)[0].UUID
	home := c.Nodes()[0]
	if s, _ := home.VBucket("default", vb); s != mcbp.VBActive {
		home = c.Nodes()[1]
	}
	k := dial(t, home)
	k.producer("client")
	k.status(streamReq(vb, 11, noSeqno, uuid), mcbp.StatusOK)
	if err := b.Rollback(vb, 10); err != nil {
		t.Fatal(err)
	}
	if m := k.expect(mcbp.OpDcpStreamEnd); m.Flags != endState {
		t.Errorf("it ends with %d", m.Flags)
	}
	f := k.status(streamReq(vb, 11, noSeqno, uuid), mcbp.StatusRollback)
	if to := binary.BigEndian.Uint64(f.Value()); to != 10 {
		t.Errorf("back to %d", to)
	}
	log := b.FailoverLog(vb)
	if len(log) != 2 || log[0].Seqno != 10 || log[1].UUID != uuid || b.HighSeqno(vb) != 10 {
		t.Errorf("failover log %v at %d", log, b.HighSeqno(vb))
	}
	if _, ok := b.Get(other); ok {
		t.Error("what came after is still there")
	}
	if err := b.Store(Doc{Key: other, Value: []byte("again")}); err != nil {
		t.Fatal(err)
	}
	f = k.status(streamReq(vb, 10, 11, uuid), mcbp.StatusOK)
	if got, err := mcbp.ParseFailoverLog(f.Value()); err != nil || !slices.Equal(got, log) {
		t.Errorf("answered %v, %v", got, err)
	}
	keys, ends := k.drain(1)
	if !slices.Equal(keys[vb], []string{string(other)}) || ends[0] != endOK {
		t.Errorf("%v, %v", keys, ends)
	}
	// A failover begins a branch too.
	if err := c.Failover(home); err != nil {
		t.Fatal(err)
	}
	if got := b.FailoverLog(vb); len(got) != 3 || got[0].Seqno != 11 || got[1] != log[0] {
		t.Errorf("after a failover %v", got)
	}
}

func keyOf(b *Bucket, vb uint16, prefix string) []byte {
	for i := 0; ; i++ {
		if k := fmt.Append(nil, prefix, i); b.VBucketOf(k) == vb {
			return k
		}
	}
}

// A second connection of the same name takes the place of the first.
func TestDCPNameCollision(t *testing.T) {
	_, n, _ := single(t, "4.0")
	first := dial(t, n)
	first.producer("same")
	second := dial(t, n)
	second.producer("same")
	first.closed()
	second.status(streamReq(1, 0, 0, 0), mcbp.StatusOK)
	second.expect(mcbp.OpDcpStreamEnd)
}

// A client that does not answer a NOOP is let go.
func TestDCPNoop(t *testing.T) {
	_, n, _ := single(t, "4.6")
	k := dial(t, n)
	k.producer("noop")
	k.status(mcbp.AppendDcpControl(nil, 2, "enable_noop", "true"), mcbp.StatusOK)
	k.status(mcbp.AppendDcpControl(nil, 2, "set_noop_interval", "0.05"), mcbp.StatusOK)
	k.status(streamReq(1, 0, noSeqno, 0), mcbp.StatusOK)
	if f := k.next(); f.Opcode != mcbp.OpDcpNoop {
		t.Fatalf("%s came", mcbp.OpcodeName(f.Opcode))
	}
	k.closed()
}

// The faults of streams.
func TestDCPFaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault Fault
		whole int // items that come whole
	}{
		{"close", Fault{Op: mcbp.OpDcpMutation, VBucket: 7, After: 3, Action: Close}, 3},
		{"in the middle", Fault{Op: mcbp.OpDcpMutation, VBucket: 7, After: 4, Action: CutMidFrame}, 4},
		{"after", Fault{Op: mcbp.OpDcpMutation, VBucket: 7, After: 4, Action: DropAfterEffect}, 5},
		{"death", Fault{Op: mcbp.OpDcpMutation, VBucket: 7, After: 2, Action: Die}, 2},
		{"bytes", Fault{VBucket: 7, Action: CutMidFrame, CutAt: mcbp.HeaderLen + 20 + 2*(mcbp.HeaderLen+31+2+1) + 5}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, n, _ := single(t, "4.0")
			for i := range 9 {
				putIn(t, n, 7, fmt.Sprint("k", i))
			}
			n.Inject(tt.fault)
			k := dial(t, n)
			k.producer("cut")
			k.status(streamReq(7, 0, 9, 0), mcbp.StatusOK)
			items := 0
			for {
				f, err := k.r.Next()
				if err != nil {
					break
				}
				if f.Opcode == mcbp.OpDcpMutation {
					items++
				}
			}
			if items != tt.whole || n.Dead() != (tt.fault.Action == Die) {
				t.Errorf("%d items came, dead: %v", items, n.Dead())
			}
		})
	}
}

// What a fresh replica refuses, and a client that asks too early.
func TestDCPStates(t *testing.T) {
	_, n, _ := single(t, "6.0.4")
	k := modern(t, n, "default")
	k.producer("states")
	n.SetVBucket("default", 1, mcbp.VBAbsent)
	n.SetVBucket("default", 1, mcbp.VBReplica)
	k.status(streamReq(1, 0, 1, 0), mcbp.StatusTmpFail)
	n.SetVBucket("default", 2, mcbp.VBDead)
	k.status(streamReq(2, 0, 1, 0), mcbp.StatusNotMyVBucket)
	k.status(streamReq(900, 0, 1, 0), mcbp.StatusNotMyVBucket)
	k.status(streamReq(3, 5, 1, 0), mcbp.StatusRange)

	c := start(t, Config{Nodes: 1, Version: "7.0.5", WarmUp: true})
	k = modern(t, c.Nodes()[0], "default")
	if f := k.status(keyed(mcbp.OpGetAllVBSeqnos, 0, ""), mcbp.StatusOK); len(f.Value()) != 0 {
		t.Errorf("a node that warms up lists %d bytes", len(f.Value()))
	}
	k.status(keyed(mcbp.OpGet, 0, "k"), mcbp.StatusTmpFail)
}

// A node takes what a client pushes as a stream, and acknowledges it.
func TestDCPConsumer(t *testing.T) {
	for _, version := range []string{"4.6", "6.6.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			c := start(t, Config{Nodes: 1, Version: version})
			n := c.Nodes()[0]
			const vb = 9
			n.SetVBucket("default", vb, mcbp.VBAbsent)
			n.SetVBucket("default", vb, mcbp.VBReplica)
			var k *client
			if c.rel.hasUsers() {
				features := []uint16{mcbp.FeatureJSON, mcbp.FeatureSnappy, mcbp.FeatureXattr}
				if c.rel.hasCollections() {
					features = append(features, mcbp.FeatureCollections)
				}
				k = modern(t, n, "default", features...)
			} else {
				k = dial(t, n)
			}
			k.status(mcbp.AppendDcpOpen(nil, 1, "push", 0), mcbp.StatusOK)
			k.status(packet(mcbp.OpDcpAddStream, 8, 0, 0, make([]byte, 4), "", ""), mcbp.StatusNotMyVBucket)
			k.send(packet(mcbp.OpDcpAddStream, vb, 0, 0, make([]byte, 4), "", ""))
			opaque := uint32(0)
			for opaque == 0 {
				f := k.next()
				if f.Magic != mcbp.MagicRequest {
					t.Fatalf("%s %s came", mcbp.OpcodeName(f.Opcode), mcbp.StatusName(f.Status()))
				}
				var body []byte
				if f.Opcode == mcbp.OpDcpStreamReq {
					opaque = f.Opaque
					body = mcbp.AppendFailoverLog(nil, []mcbp.FailoverEntry{{UUID: 0xabcdef}})
				}
				k.send(mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque}, nil, nil, body))
			}
			if f := k.next(); f.Opcode != mcbp.OpDcpAddStream || f.Status() != mcbp.StatusOK {
				t.Fatalf("%s %s came", mcbp.OpcodeName(f.Opcode), mcbp.StatusName(f.Status()))
			}
			prefix := ""
			if c.rel.hasCollections() {
				prefix = "\x00"
			}
			const items = 3000
			big := make([]byte, 20_000)
			out := (&mcbp.DcpMessage{Opcode: mcbp.OpDcpSnapshotMarker, VBucket: vb, Opaque: opaque, SnapEnd: items, Flags: 1}).Append(nil, false)
			for i := range items {
				m := mcbp.DcpMessage{
					Opcode: mcbp.OpDcpMutation, VBucket: vb, Opaque: opaque, CAS: uint64(1000 + i), Seqno: uint64(i + 1), Rev: 7,
					Flags: 5, Key: fmt.Append(nil, prefix, "p", i), Value: big,
				}
				if i == items-1 {
					m.Opcode, m.Value, m.Flags = mcbp.OpDcpDeletion, nil, 0
				}
				out = m.Append(out, false)
			}
			bytes := len(out)
			k.send(out)
			acked := 0
			k.send(mcbp.AppendNoop(nil, 77))
			for {
				f := k.next()
				if f.Opcode == mcbp.OpNoop {
					break
				}
				if f.Opcode != mcbp.OpDcpBufferAck {
					t.Fatalf("%s %s came", mcbp.OpcodeName(f.Opcode), mcbp.StatusName(f.Status()))
				}
				acked += int(binary.BigEndian.Uint32(f.Extras()))
			}
			if acked > bytes || acked < bytes-11<<20 {
				t.Errorf("%d of %d bytes are acknowledged", acked, bytes)
			}
			if d, ok := n.Doc("default", vb, []byte("p5")); !ok || d.CAS != 1005 || d.Rev != 7 || d.Seqno != 6 || d.Flags != 5 || len(d.Value) != len(big) {
				t.Errorf("p5: %v CAS %d rev %d seqno %d", ok, d.CAS, d.Rev, d.Seqno)
			}
			if state, live := n.VBucket("default", vb); state != mcbp.VBReplica || live != items-1 || n.HighSeqno("default", vb) != items {
				t.Errorf("%s with %d items at %d", state, live, n.HighSeqno("default", vb))
			}
			// What is behind the history is refused, with the stream's opaque.
			late := mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, VBucket: vb, Opaque: opaque, CAS: 1, Seqno: 3, Rev: 1, Key: []byte(prefix + "late")}
			if f := k.do(late.Append(nil, false)); f.Status() != mcbp.StatusRange || f.Opaque != opaque {
				t.Errorf("a late item: %s", mcbp.StatusName(f.Status()))
			}
			k.status(mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpDcpSetVBucketState, VBucket: vb, Opaque: opaque}, []byte{1}, nil, nil), mcbp.StatusOK)
			if state, _ := n.VBucket("default", vb); state != mcbp.VBActive {
				t.Errorf("it is %s", state)
			}
		})
	}
}

// How far a vbucket is on disk.
func TestObserveSeqno(t *testing.T) {
	c := start(t, Config{Nodes: 1, Version: "4.6", FlushDelay: time.Hour})
	n := c.Nodes()[0]
	putIn(t, n, 1, "a")
	k := dial(t, n)
	k.status(set(mcbp.OpSet, 1, 0, 0, "b", "v"), mcbp.StatusOK)
	uuid := binary.BigEndian.AppendUint64(nil, c.Bucket("default").FailoverLog(1)[0].UUID)
	f := k.status(packet(opObserveSeqno, 1, 0, 0, nil, "", string(uuid)), mcbp.StatusOK)
	if v := f.Value(); len(v) != 27 || v[0] != 0 || binary.BigEndian.Uint64(v[11:]) != 1 || binary.BigEndian.Uint64(v[19:]) != 2 {
		t.Errorf("%x", v)
	}
	k.status(packet(opObserveSeqno, 1, 0, 0, nil, "", "8 bytes!"), mcbp.StatusNotFound)
	if err := c.Bucket("default").Rollback(1, 1); err != nil {
		t.Fatal(err)
	}
	f = k.status(packet(opObserveSeqno, 1, 0, 0, nil, "", string(uuid)), mcbp.StatusOK)
	if v := f.Value(); len(v) != 43 || v[0] != 1 || binary.BigEndian.Uint64(v[35:]) != 1 {
		t.Errorf("after a failover %x", v)
	}
}

// A key with an open durable write.
func TestHeldKey(t *testing.T) {
	c := start(t, Config{Nodes: 1, Version: "7.0.5"})
	k := modern(t, c.Nodes()[0], "default")
	release := c.Bucket("default").HoldKey(0, []byte("k"))
	m := mcbp.Meta{CAS: 7, Rev: 3}
	k.status(meta(mcbp.OpSetWithMeta, 1, 1, m, "k", "v"), mcbp.StatusSyncInProgress)
	k.status(set(mcbp.OpSet, 1, 0, 0, "k", "v"), mcbp.StatusSyncInProgress)
	k.status(meta(mcbp.OpSetWithMeta, 1, 1, m, "other", "v"), mcbp.StatusOK)
	release()
	k.status(meta(mcbp.OpSetWithMeta, 1, 1, m, "k", "v"), mcbp.StatusOK)
}

// What kills real servers kills the node.
func TestStreamsThatKill(t *testing.T) {
	c := start(t, Config{Nodes: 1, Version: "6.0.4"})
	n := c.Nodes()[0]
	n.SetVBucket("default", 3, mcbp.VBAbsent)
	n.SetVBucket("default", 3, mcbp.VBReplica)
	k := modern(t, n, "default")
	k.status(meta(mcbp.OpSetWithMeta, 3, 1, mcbp.Meta{CAS: 7, Rev: 3}, "k", "v"), mcbp.StatusOK)
	n.SetVBucket("default", 3, mcbp.VBActive)
	k.producer("bounded")
	k.status(streamReq(3, 0, 1, 0), mcbp.StatusOK)
	if _, ends := k.drain(1); ends[0] != endOK || n.Dead() {
		t.Fatalf("a stream with an end: %v, dead: %v", ends, n.Dead())
	}
	k.send(streamReq(3, 0, noSeqno, 0))
	k.closed()
	if !n.Dead() {
		t.Error("6.0 survives an endless stream")
	}

	c = start(t, Config{Nodes: 1, Version: "6.6.5"})
	n = c.Nodes()[0]
	if err := n.StoreAt("default", 1, Doc{Key: []byte("x"), Value: []byte("\x00\x00\x00\x00v"), Datatype: dtXattr}); err != nil {
		t.Fatal(err)
	}
	k = modern(t, n, "default")
	k.status(mcbp.AppendDcpOpen(nil, 1, "no values", mcbp.DcpOpenProducer|mcbp.DcpOpenNoValue), mcbp.StatusOK)
	k.status(streamReq(1, 0, 1, 0), mcbp.StatusOK)
	for {
		if _, err := k.r.Next(); err != nil {
			break
		}
	}
	if !n.Dead() {
		t.Error("6.6 survives a stream without values")
	}
}

// Malformed requests: 6.0 answers and hangs up, later ones only answer.
func TestMalformed(t *testing.T) {
	for version, stays := range map[string]bool{"4.6": true, "6.0.4": false, "7.0.5": true} {
		t.Run(version, func(t *testing.T) {
			c := start(t, Config{Nodes: 1, Version: version})
			for _, bad := range [][]byte{
				packet(mcbp.OpGet, 1, 0, 0, []byte{1}, "k", ""),
				packet(mcbp.OpSet, 1, 0, 0, nil, "k", "v"),
				packet(mcbp.OpDelete, 1, 0, 0, []byte{1}, "k", ""),
				packet(mcbp.OpSetWithMeta, 1, 0, 0, make([]byte, 25), "k", "v"),
			} {
				k := dial(t, c.Nodes()[0])
				if c.rel.hasUsers() {
					k = modern(t, c.Nodes()[0], "default")
				}
				k.status(bad, mcbp.StatusInvalid)
				if stays {
					k.fence()
				} else {
					k.closed()
				}
			}
		})
	}
}
