package simcluster

import (
	"fmt"
	"io"
	"math/bits"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

const dumpFlags = mcbp.TapDump | mcbp.TapSupportAck | mcbp.TapFixFlagByteorder

func tapConnect(flags mcbp.TapFlags, vbs ...uint16) []byte {
	if vbs != nil {
		flags |= mcbp.TapListVBuckets
	}
	return (&mcbp.TapConnect{Name: "test", Flags: flags, VBuckets: vbs}).Append(nil)
}

// tapNext reads one TAP message and acknowledges it if asked to and ack is set.
// ok is false at the end of the connection.
func (c *client) tapNext(ack bool) (m mcbp.TapMessage, ok bool) {
	c.t.Helper()
	f, err := c.r.Next()
	if err != nil {
		if ne, isNet := err.(net.Error); isNet && ne.Timeout() {
			c.t.Fatal("the server neither sends nor closes")
		}
		return m, false
	}
	if err := m.Parse(&f); err != nil {
		c.t.Fatal(err)
	}
	if ack && m.WantsAck() {
		c.send(mcbp.AppendTapAck(nil, m.Opcode, m.Opaque, mcbp.StatusOK))
	}
	// A frame is gone with the next one.
	m.Key, m.Value = slices.Clone(m.Key), slices.Clone(m.Value)
	return m, true
}

func (c *client) dumpAll(connect []byte) (all []mcbp.TapMessage) {
	c.t.Helper()
	c.send(connect)
	for {
		m, ok := c.tapNext(true)
		if !ok {
			return all
		}
		all = append(all, m)
	}
}

func itemKeys(all []mcbp.TapMessage) (keys []string) {
	for _, m := range all {
		if m.Opcode == mcbp.OpTapMutation || m.Opcode == mcbp.OpTapDelete {
			keys = append(keys, string(m.Key))
		}
	}
	return keys
}

func fill(t *testing.T, n *Node, vb uint16, count int) {
	t.Helper()
	for i := range count {
		if err := n.StoreAt("default", vb, Doc{Key: fmt.Appendf(nil, "k%04d", i), Value: fmt.Append(nil, i), Flags: 0x01020304}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDumpOfAllVBuckets(t *testing.T) {
	for _, version := range versions {
		_, n, _ := single(t, version)
		fill(t, n, 3, 20)
		fill(t, n, 9, 20)
		n.SetVBucket("default", 5, mcbp.VBReplica)
		all := dial(t, n).dumpAll(tapConnect(dumpFlags))
		if got := itemKeys(all); len(got) != 40 {
			t.Errorf("%s: %d items", version, len(got))
		}
		all = dial(t, n).dumpAll(tapConnect(dumpFlags, 9, 3, 3, 64, 5, 4))
		if len(itemKeys(all)) != 40 || len(all) != 1+2+40+2 {
			t.Errorf("%s: %d messages of a list with repeated, absent, replica and empty ones", version, len(all))
		}
		if all[1].VBucket != 3 || all[2].VBucket != 9 || all[3].VBucket != 3 || all[42].VBucket != 9 {
			t.Errorf("%s: the vbuckets do not come in order", version)
		}
	}
}

// 2.5.1's order changes from dump to dump; later servers send in order of writing.
func TestOrderOfDumps(t *testing.T) {
	for _, version := range versions {
		_, n, _ := single(t, version)
		fill(t, n, 3, 200)
		orders := map[string]bool{}
		for range 5 {
			keys := itemKeys(dial(t, n).dumpAll(tapConnect(dumpFlags, 3)))
			if len(keys) != 200 {
				t.Fatalf("%s: %d items", version, len(keys))
			}
			orders[strings.Join(keys, " ")] = true
			if version != "2.5.1" && !slices.IsSorted(keys) {
				t.Errorf("%s: not in order of writing", version)
			}
		}
		if (len(orders) > 1) != (version == "2.5.1") {
			t.Errorf("%s: %d orders in 5 dumps", version, len(orders))
		}
	}
}

// A client that never acknowledges gets the OPAQUEs and then nothing.
func TestSilenceWithoutAcknowledgements(t *testing.T) {
	_, n, _ := single(t, "2.5.1")
	fill(t, n, 3, 20)
	c := dial(t, n)
	c.send(tapConnect(dumpFlags, 3))
	for i, want := range []uint32{2, 4} {
		if m, _ := c.tapNext(false); m.Opcode != mcbp.OpTapOpaque || m.Opaque != want || !m.WantsAck() {
			t.Errorf("message %d: %+v", i, m)
		}
	}
	c.silent()
	// It waits as long as it takes, and goes on then.
	c.send(mcbp.AppendTapAck(nil, mcbp.OpTapOpaque, 4, mcbp.StatusOK))
	if m, _ := c.tapNext(true); m.Opcode != mcbp.OpTapMutation || m.Opaque != 5 {
		t.Errorf("after the acknowledgement: %+v", m)
	}
}

// silent proves with another request on the same connection that nothing is sent.
func (c *client) silent() {
	c.t.Helper()
	c.send(mcbp.AppendNoop(nil, 0xabc))
	if f := c.next(); f.Opcode != mcbp.OpNoop || f.Magic != mcbp.MagicResponse {
		c.t.Errorf("%s came, not silence", mcbp.OpcodeName(f.Opcode))
	}
}

func TestAcknowledgementWindow(t *testing.T) {
	c := start(t, Config{Nodes: 1, Version: "2.5.1", TapAckInterval: 10, TapWindow: 30})
	n := c.Nodes()[0]
	fill(t, n, 3, 100)
	k := dial(t, n)
	k.send(tapConnect(dumpFlags, 3))
	k.tapNext(true)
	k.tapNext(true)
	for want := uint32(5); want <= 34; want++ {
		m, _ := k.tapNext(false)
		if m.Opaque != want || m.WantsAck() != (want%10 == 0) {
			t.Errorf("message %d as %d, asks %v", want, m.Opaque, m.WantsAck())
		}
	}
	k.silent()
	// An acknowledgement covers all earlier ones.
	k.send(mcbp.AppendTapAck(nil, mcbp.OpTapMutation, 20, mcbp.StatusOK))
	for want := uint32(35); want <= 50; want++ {
		if m, _ := k.tapNext(false); m.Opaque != want {
			t.Errorf("message %d as %d", want, m.Opaque)
		}
	}
	k.silent()
}

func TestRefusedMessages(t *testing.T) {
	for _, status := range []mcbp.Status{mcbp.StatusTmpFail, mcbp.StatusBusy, mcbp.StatusNotMyVBucket} {
		c := start(t, Config{Nodes: 1, Version: "3.0.3", TapBackoff: time.Nanosecond})
		n := c.Nodes()[0]
		fill(t, n, 3, 20)
		k := dial(t, n)
		k.send(tapConnect(dumpFlags, 3))
		k.tapNext(true)
		// OPAQUE 1 is refused, and comes again under another number.
		first, _ := k.tapNext(false)
		k.send(mcbp.AppendTapAck(nil, first.Opcode, first.Opaque, status))
		if status == mcbp.StatusNotMyVBucket {
			k.closed()
			continue
		}
		if again, _ := k.tapNext(true); again.Opcode != mcbp.OpTapOpaque || again.VBucket != 3 || again.Opaque <= first.Opaque {
			t.Errorf("after %s: %+v", mcbp.StatusName(status), again)
		}
		var refused string
		var came []string
		for {
			m, ok := k.tapNext(false)
			if !ok {
				break
			}
			came = append(came, string(m.Key))
			if !m.WantsAck() {
				continue
			}
			answer := mcbp.StatusOK
			if refused == "" && m.Opcode == mcbp.OpTapMutation && len(came) > 1 {
				answer, refused = status, string(m.Key)
			}
			k.send(mcbp.AppendTapAck(nil, m.Opcode, m.Opaque, answer))
		}
		if n := len(slices.DeleteFunc(came, func(k string) bool { return k != refused })); refused == "" || n != 2 {
			t.Errorf("after %s: %q came %d times", mcbp.StatusName(status), refused, n)
		}
	}
}

func TestNoopOnIdleDumps(t *testing.T) {
	c := start(t, Config{Nodes: 1, TapNoop: time.Millisecond})
	n := c.Nodes()[0]
	fill(t, n, 3, 20)
	k := dial(t, n)
	k.send(tapConnect(dumpFlags, 3))
	k.tapNext(false)
	last, _ := k.tapNext(false)
	for range 3 {
		f := k.next()
		if f.Magic != mcbp.MagicRequest || f.Opcode != mcbp.OpNoop {
			t.Fatalf("%+v, not a NOOP", f.Header)
		}
		k.send(mcbp.AppendTapAck(nil, mcbp.OpNoop, f.Opaque, mcbp.StatusOK))
	}
	k.send(mcbp.AppendTapAck(nil, last.Opcode, last.Opaque, mcbp.StatusOK))
	for items := 0; items < 20; {
		if f := k.next(); f.Opcode == mcbp.OpTapMutation {
			items++
		}
	}
}

func TestKeysOnlyAndFlagOrder(t *testing.T) {
	_, n, _ := single(t, "4.0")
	fill(t, n, 3, 5)
	for _, m := range dial(t, n).dumpAll(tapConnect(dumpFlags|mcbp.TapKeysOnly, 3)) {
		if m.Opcode == mcbp.OpTapMutation && (len(m.Value) != 0 || m.MsgFlags&mcbp.TapMsgNoValue == 0 || m.Flags != 0x01020304) {
			t.Errorf("keys only: %+v", m)
		}
	}
	k := dial(t, n)
	k.send(tapConnect(mcbp.TapDump|mcbp.TapSupportAck, 3))
	k.tapNext(true)
	k.tapNext(true)
	f := k.next()
	if raw := be32(f.Extras()[8:]); bits.ReverseBytes32(raw) != 0x01020304 || f.Extras()[3]&mcbp.TapMsgNetworkOrder != 0 {
		t.Errorf("flags without FIX: %x", f.Extras())
	}
}

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// A dump reaps what has expired: the next one differs.
func TestDumpReaps(t *testing.T) {
	for _, version := range versions {
		_, n, _ := single(t, version)
		fill(t, n, 3, 3)
		if err := n.StoreAt("default", 3, Doc{Key: []byte("old"), Value: []byte("v"), Expiry: 1, CAS: 44, Rev: 6}); err != nil {
			t.Fatal(err)
		}
		find := func() (found mcbp.TapMessage) {
			for _, m := range dial(t, n).dumpAll(tapConnect(dumpFlags, 3)) {
				if string(m.Key) == "old" {
					found = m
				}
			}
			return found
		}
		cas, value := uint64(44), "v"
		if version == "2.5.1" {
			cas, value = 0, ""
		}
		if m := find(); m.Opcode != mcbp.OpTapDelete || m.CAS != cas || m.Rev != 6 || string(m.Value) != value {
			t.Errorf("%s, first: %+v", version, m)
		}
		if m := find(); m.Opcode != mcbp.OpTapDelete || m.CAS == cas || m.Rev != 7 || len(m.Value) != 0 {
			t.Errorf("%s, second: %+v", version, m)
		}
		if _, items := n.VBucket("default", 3); items != 3 {
			t.Errorf("%s: %d items are left", version, items)
		}
	}
}

// Dumps of 3.0 and later miss what is not flushed, and end cleanly all the same.
func TestUnflushedItemsAreMissing(t *testing.T) {
	for _, version := range versions {
		c := start(t, Config{Nodes: 1, Version: version, FlushDelay: time.Hour})
		n := c.Nodes()[0]
		fill(t, n, 3, 5) // straight to the disk
		k := dial(t, n)
		for i := range 7 {
			k.status(set(mcbp.OpSet, 3, 0, 0, fmt.Sprint("new", i), "v"), mcbp.StatusOK)
		}
		all := dial(t, n).dumpAll(tapConnect(dumpFlags, 3))
		want := 5
		if version == "2.5.1" {
			want = 12
		}
		if got := len(itemKeys(all)); got != want {
			t.Errorf("%s: %d items, not %d", version, got, want)
		}
		if last := all[len(all)-1]; last.Opcode != mcbp.OpTapOpaque {
			t.Errorf("%s: it ends with %+v", version, last)
		}
	}
}

func TestBadTapConnects(t *testing.T) {
	_, n, _ := single(t, "2.5.1")
	fill(t, n, 3, 5)
	for what, p := range map[string][]byte{
		"no extras":          packet(mcbp.OpTapConnect, 0, 0, 0, nil, "n", ""),
		"list without value": packet(mcbp.OpTapConnect, 0, 0, 0, []byte{0, 0, 0, 6}, "n", ""),
		"list cut short":     packet(mcbp.OpTapConnect, 0, 0, 0, []byte{0, 0, 0, 6}, "n", "\x00\x02\x00\x01"),
	} {
		t.Run(what, func(t *testing.T) {
			c := dial(t, n)
			c.send(p)
			c.closed()
		})
	}
	for _, flags := range []mcbp.TapFlags{mcbp.TapSupportAck, mcbp.TapDump | mcbp.TapTakeover} {
		c := dial(t, n)
		c.status(tapConnect(flags, 3), mcbp.StatusNotSupported)
		c.closed()
	}
	if n.Dead() {
		t.Error("the node is dead")
	}
}

func tapPush(op mcbp.Opcode, vb uint16, opaque uint32, flags uint16, ttl uint8, cas, rev uint64, key, value string) []byte {
	m := mcbp.TapMessage{Opcode: op, VBucket: vb, Opaque: opaque, MsgFlags: flags | mcbp.TapMsgNetworkOrder, TTL: ttl, CAS: cas, Rev: rev, Key: []byte(key), Value: []byte(value)}
	return m.Append(nil)
}

func push(key, value string) []byte {
	return tapPush(mcbp.OpTapMutation, 3, 7, mcbp.TapMsgAck, mcbp.TapTTL, 9, 9, key, value)
}

// What kills a real server kills this one.
func TestWhatAborts(t *testing.T) {
	short := packet(mcbp.OpTapMutation, 3, 9, 0, make([]byte, 16), "k", "v")
	short[24+4] = mcbp.TapTTL
	for _, version := range versions {
		for _, tt := range []struct {
			what    string
			packets [][]byte
			dies    bool
		}{
			{"TAP_CONNECT, then a mutation", [][]byte{tapConnect(dumpFlags, 3), push("k", "v")}, true},
			{"SET_VBUCKET after a push", [][]byte{push("k", "v"), mcbp.AppendSetVBucket(nil, 1, 3, mcbp.VBActive)}, true},
			{"SET_WITH_META after a push", [][]byte{push("k", "v"), meta(mcbp.OpSetWithMeta, 3, 1, mcbp.Meta{Rev: 1, CAS: 1}, "k", "v")}, true},
			{"DCP_OPEN after a push", [][]byte{push("k", "v"), packet(opDCPOpen, 0, 0, 0, make([]byte, 8), "n", "")}, true},
			{"too few engine bytes", [][]byte{short}, version != "2.5.1"},
			{"GET, SET and NOOP after a push", [][]byte{push("k", "v"), keyed(mcbp.OpGet, 3, "k"), set(mcbp.OpSet, 3, 0, 0, "k", "v"), mcbp.AppendNoop(nil, 1)}, false},
		} {
			t.Run(version+" "+tt.what, func(t *testing.T) {
				_, n, _ := single(t, version)
				fill(t, n, 3, 5)
				c := dial(t, n)
				c.send(tt.packets...)
				if tt.dies {
					io.Copy(io.Discard, c.nc)
				} else {
					c.send(mcbp.AppendNoop(nil, 0xfe))
					for c.next().Opaque != 0xfe {
						continue
					}
				}
				if n.Dead() != tt.dies {
					t.Errorf("dead: %v", n.Dead())
				}
			})
		}
	}
}

func TestPushes(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			_, n, _ := single(t, version)
			n.SetVBucket("default", 3, mcbp.VBReplica)
			n.SetVBucket("default", 4, mcbp.VBAbsent)
			n.SetVBucket("default", 5, mcbp.VBDead)
			c := dial(t, n)
			mut := mcbp.OpTapMutation
			// Success is silent unless an answer is asked for.
			c.send(tapPush(mut, 3, 1, 0, 255, 100, 5, "a", "v"))
			c.fence()
			if f := c.do(tapPush(mut, 3, 2, mcbp.TapMsgAck, 255, 90, 0, "a", "older")); f.Opaque != 2 || f.Status() != mcbp.StatusOK {
				t.Errorf("%+v", f.Header)
			}
			if d, _ := n.Doc("default", 3, []byte("a")); d.Rev != 1 || d.CAS != 90 || string(d.Value) != "older" {
				t.Errorf("an older item with rev 0 became %+v", d)
			}
			// Failures are always answered, with their own number.
			for vb, want := range map[uint16]mcbp.Status{4: mcbp.StatusNotMyVBucket, 5: mcbp.StatusNotMyVBucket, 64: mcbp.StatusNotMyVBucket} {
				if f := c.status(tapPush(mut, vb, 77, 0, 255, 1, 1, "k", "v"), want); f.Opaque != 77 {
					t.Errorf("%+v", f.Header)
				}
			}
			c.status(tapPush(mcbp.OpTapDelete, 4, 1, 0, 255, 1, 1, "k", ""), mcbp.StatusNotMyVBucket)
			c.status(tapPush(mcbp.OpTapDelete, 5, 1, mcbp.TapMsgAck, 255, 1, 1, "k", ""), mcbp.StatusOK)
			c.status(tapPush(mut, 3, 1, 0, 255, 1, 1, strings.Repeat("k", 251), "v"), mcbp.StatusInvalid)
			c.status(tapPush(mut, 3, 1, 0, 255, 1, 1, "big", strings.Repeat("x", maxItem+1)), mcbp.StatusTooBig)
			// ttl 0 is dropped.
			c.send(tapPush(mut, 3, 1, mcbp.TapMsgAck, 0, 1, 1, "ttl", "v"))
			c.fence()
			if _, ok := n.Doc("default", 3, []byte("ttl")); ok {
				t.Error("an item with ttl 0 is stored")
			}
			// CAS.
			c.send(tapPush(mut, 3, 1, 0, 255, 0, 1, "zero", "v"), tapPush(mcbp.OpTapDelete, 3, 1, 0, 255, 55, 6, "never", ""), tapPush(mcbp.OpTapDelete, 3, 1, 0, 255, 56, 6, "a", ""))
			c.fence()
			if d, _ := n.Doc("default", 3, []byte("zero")); (d.CAS == 0) != (version != "4.0") {
				t.Errorf("CAS 0 became %d", d.CAS)
			}
			if d, _ := n.Doc("default", 3, []byte("never")); !d.Deleted || d.Rev != 6 || (d.CAS == 55) == (version == "2.5.1") {
				t.Errorf("the deletion of an unknown key became %+v", d)
			}
			if d, _ := n.Doc("default", 3, []byte("a")); !d.Deleted || d.CAS != 56 {
				t.Errorf("the deletion of a known key became %+v", d)
			}
			// OPAQUE 1 empties the vbucket; others do nothing; VBUCKET_SET sets the state.
			opaque := func(cmd byte) []byte {
				return (&mcbp.TapMessage{Opcode: mcbp.OpTapOpaque, VBucket: 3, MsgFlags: mcbp.TapMsgAck, TTL: 255, Engine: []byte{0, 0, 0, cmd}}).Append(nil)
			}
			c.status(opaque(8), mcbp.StatusOK)
			if _, items := n.VBucket("default", 3); items != 1 {
				t.Errorf("%d items", items)
			}
			c.status(opaque(1), mcbp.StatusOK)
			if state, items := n.VBucket("default", 3); items != 0 || state != mcbp.VBReplica {
				t.Errorf("after OPAQUE 1: %s, %d items", state, items)
			}
			state := mcbp.TapMessage{Opcode: mcbp.OpTapVBucketSet, VBucket: 3, MsgFlags: mcbp.TapMsgAck, TTL: 255, Value: []byte{0, 0, 0, 3}}
			c.status(state.Append(nil), mcbp.StatusOK)
			if s, _ := n.VBucket("default", 3); s != mcbp.VBPending {
				t.Errorf("after VBUCKET_SET: %s", s)
			}
			state.Value = []byte{9}
			c.status(state.Append(nil), mcbp.StatusInvalid)
			for _, op := range []mcbp.Opcode{mcbp.OpTapCheckpointStart, mcbp.OpTapCheckpointEnd} {
				c.status((&mcbp.TapMessage{Opcode: op, VBucket: 3, MsgFlags: mcbp.TapMsgAck, TTL: 255}).Append(nil), mcbp.StatusOK)
			}
			// A datatype that was not negotiated ends the connection.
			bad := push("typed", "{}")
			bad[5] = 1
			c.send(bad)
			if f := c.next(); f.Status() != mcbp.StatusInvalid {
				t.Errorf("datatype: %s", mcbp.StatusName(f.Status()))
			}
			c.closed()
			c = dial(t, n)
			c.send(packet(mcbp.OpTapMutation, 3, 0, 0, []byte{1, 2}, "k", ""))
			if f := c.next(); f.Status() != mcbp.StatusInvalid {
				t.Errorf("malformed: %s", mcbp.StatusName(f.Status()))
			}
			c.closed()
		})
	}
}

// Pushes into an active vbucket reach its replicas; those into others do not.
func TestPushesReplicate(t *testing.T) {
	c := start(t, Config{Nodes: 2})
	b := c.Bucket("default")
	active, replica := c.Nodes()[b.Map()[3][0]], c.Nodes()[b.Map()[3][1]]
	dial(t, active).status(push("a", "v"), mcbp.StatusOK)
	dial(t, replica).status(push("r", "v"), mcbp.StatusOK)
	if _, ok := replica.Doc("default", 3, []byte("a")); !ok {
		t.Error("a push into the active copy is not in the replica")
	}
	if _, ok := active.Doc("default", 3, []byte("r")); ok {
		t.Error("a push into the replica is in the active copy")
	}
}

func TestDumpFaults(t *testing.T) {
	_, n, _ := single(t, "3.0.3")
	fill(t, n, 3, 50)
	whole := func() int {
		c := dial(t, n)
		c.send(tapConnect(mcbp.TapDump|mcbp.TapFixFlagByteorder, 3))
		b, err := io.ReadAll(c.nc)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	full := whole()
	for _, cut := range []int{1, 23, 24, 36, 37, 1000, full - 1} {
		remove := n.Inject(Fault{VBucket: 3, Action: CutMidFrame, CutAt: cut})
		if got := whole(); got != cut {
			t.Errorf("cut at %d of %d: %d bytes came", cut, full, got)
		}
		remove()
	}
	remove := n.Inject(Fault{VBucket: 4, Action: CutMidFrame, CutAt: 9})
	if got := whole(); got != full {
		t.Errorf("a fault of another vbucket cut at %d", got)
	}
	remove()
	const before = 36 + 10*(24+16+9+5+1) // OPAQUE 1 and ten items with one digit
	for _, tt := range []struct {
		f    Fault
		want int
	}{
		{Fault{Op: mcbp.OpTapMutation, VBucket: 3, After: 10, Times: 1, Action: Close}, before},
		{Fault{Op: mcbp.OpTapMutation, VBucket: 3, After: 10, Times: 1, Action: CutMidFrame}, before + (24+16+9+5+2)/2},
		{Fault{Op: mcbp.OpTapMutation, VBucket: 3, After: 10, Times: 1, Action: DropAfterEffect}, before + 24 + 16 + 9 + 5 + 2},
		{Fault{VBucket: -1, Action: OmitCloseBackfill}, full - 36},
	} {
		remove := n.Inject(tt.f)
		if got := whole(); got != tt.want {
			t.Errorf("%+v: %d bytes, not %d", tt.f, got, tt.want)
		}
		remove()
	}
	if got := whole(); got != full {
		t.Errorf("afterwards %d bytes of %d", got, full)
	}
	remove = n.Inject(Fault{Op: mcbp.OpTapConnect, VBucket: -1, Status: mcbp.StatusNotSupported})
	c := dial(t, n)
	c.status(tapConnect(dumpFlags, 3), mcbp.StatusNotSupported)
	c.closed()
	remove()
	// A stalled dump sends what came before and then nothing, on an open connection.
	n.Inject(Fault{Op: mcbp.OpTapMutation, VBucket: 3, After: 10, Times: 1, Action: Stall})
	c = dial(t, n)
	c.send(tapConnect(mcbp.TapDump|mcbp.TapFixFlagByteorder, 3))
	if _, err := io.ReadFull(c.nc, make([]byte, before)); err != nil {
		t.Fatal(err)
	}
	if err := c.nc.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.nc.Read(make([]byte, 1)); n != 0 || !os.IsTimeout(err) {
		t.Errorf("a stalled dump sends %d bytes, %v", n, err)
	}
	n.Inject(Fault{Op: mcbp.OpTapMutation, VBucket: 3, After: 10, Action: Die})
	if got := whole(); got != before || !n.Dead() {
		t.Errorf("a dying node sends %d bytes, dead %v", got, n.Dead())
	}
}

func TestDumpOfAKilledNodeEnds(t *testing.T) {
	_, n, _ := single(t, "2.5.1")
	fill(t, n, 3, 20)
	c := dial(t, n)
	c.send(tapConnect(dumpFlags, 3))
	c.tapNext(false)
	c.tapNext(false)
	n.Kill()
	if _, ok := c.tapNext(false); ok {
		t.Error("a killed node sends")
	}
	if _, err := net.Dial("tcp", n.KV()); err == nil {
		t.Error("a killed node accepts")
	}
}

// The dump of one node, from its memory to a socket's other end.
func BenchmarkDump(b *testing.B) {
	for _, version := range []string{"2.5.1", "4.0"} {
		b.Run(version, func(b *testing.B) {
			const items = 200_000
			c, err := Start(Config{Nodes: 1, Version: version})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			n := c.Nodes()[0]
			value := make([]byte, 256)
			for i := range items {
				if err := n.StoreAt("default", uint16(i%64), Doc{Key: fmt.Appendf(nil, "key-%08d", i), Value: value}); err != nil {
					b.Fatal(err)
				}
			}
			connect := tapConnect(mcbp.TapDump | mcbp.TapFixFlagByteorder)
			b.ReportAllocs()
			buf := make([]byte, 1<<20)
			for b.Loop() {
				nc, err := net.Dial("tcp", n.KV())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := nc.Write(connect); err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = nc.Read(buf)
				}
				nc.Close()
			}
			b.ReportMetric(float64(items)*float64(b.N)/b.Elapsed().Seconds(), "items/s")
		})
	}
}

// Encoding alone, without the socket.
func BenchmarkDumpEncode(b *testing.B) {
	c, err := Start(Config{Nodes: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	n := c.Nodes()[0]
	value := make([]byte, 256)
	for i := range 1000 {
		if err := n.StoreAt("default", 1, Doc{Key: fmt.Appendf(nil, "key-%08d", i), Value: value}); err != nil {
			b.Fatal(err)
		}
	}
	nb := n.bucket("default")
	all := nb.copies[1].snapshot()
	p := &producer{c: &conn{n: n}, nb: nb, netOrder: mcbp.TapMsgNetworkOrder}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		p.c.out = p.c.out[:0]
		if err := p.item(1, all[i%1000], false); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
