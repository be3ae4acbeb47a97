package simcluster

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/couchbase/gomemcached"
	memcached "github.com/couchbase/gomemcached/client"

	"github.com/cbpump/cbpump/mcbp"
)

// client is a plain KV connection of a test.
type client struct {
	t  *testing.T
	nc net.Conn
	r  *mcbp.Reader
}

func dial(t *testing.T, n *Node) *client {
	t.Helper()
	nc, err := net.Dial("tcp", n.KV())
	if err != nil {
		t.Fatal(err)
	}
	// Only so that a broken test ends; nothing is measured.
	if err := nc.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &client{t: t, nc: nc, r: mcbp.NewReader(nc)}
}

func (c *client) send(packets ...[]byte) {
	c.t.Helper()
	if _, err := c.nc.Write(bytes.Join(packets, nil)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) next() mcbp.Frame {
	c.t.Helper()
	f, err := c.r.Next()
	if err != nil {
		c.t.Fatal(err)
	}
	return f
}

func (c *client) do(packet []byte) mcbp.Frame {
	c.t.Helper()
	c.send(packet)
	return c.next()
}

func (c *client) status(packet []byte, want mcbp.Status) mcbp.Frame {
	c.t.Helper()
	f := c.do(packet)
	if f.Status() != want {
		c.t.Errorf("%s answers %s, not %s", mcbp.OpcodeName(f.Opcode), mcbp.StatusName(f.Status()), mcbp.StatusName(want))
	}
	return f
}

// closed waits for the server to close and fails if it sends anything more.
func (c *client) closed() {
	c.t.Helper()
	if f, err := c.r.Next(); err == nil {
		c.t.Errorf("%s %s came, not the end of the connection", mcbp.OpcodeName(f.Opcode), mcbp.StatusName(f.Status()))
	} else if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		c.t.Error("the server did not close")
	}
}

// fence proves that everything before was served without an answer.
func (c *client) fence() {
	c.t.Helper()
	if f := c.do(mcbp.AppendNoop(nil, 0xfe)); f.Opcode != mcbp.OpNoop || f.Opaque != 0xfe {
		c.t.Errorf("%s %s came, not the fence", mcbp.OpcodeName(f.Opcode), mcbp.StatusName(f.Status()))
	}
}

func packet(op mcbp.Opcode, vb uint16, cas uint64, datatype uint8, extras []byte, key, value string) []byte {
	return mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: op, VBucket: vb, CAS: cas, Datatype: datatype, Opaque: 7},
		extras, []byte(key), []byte(value))
}

func set(op mcbp.Opcode, vb uint16, cas uint64, exp uint32, key, value string) []byte {
	return mcbp.AppendStore(nil, op, 7, vb, cas, 5, exp, []byte(key), []byte(value))
}

func keyed(op mcbp.Opcode, vb uint16, key string) []byte {
	return mcbp.AppendKeyed(nil, op, 7, vb, 0, []byte(key))
}

func meta(op mcbp.Opcode, vb uint16, options int, m mcbp.Meta, key, value string) []byte {
	w := mcbp.WithMeta{Opcode: op, VBucket: vb, Opaque: 7, Meta: m, Key: []byte(key), Value: []byte(value)}
	if options >= 0 {
		w.HasOptions, w.Options = true, uint32(options)
	}
	return w.Append(nil)
}

func single(t *testing.T, version string) (*Cluster, *Node, *Bucket) {
	t.Helper()
	c := start(t, Config{Nodes: 1, Version: version})
	return c, c.Nodes()[0], c.Bucket("default")
}

var versions = []string{"2.5.1", "3.0.3", "4.0"}

func TestPlainOperations(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			_, n, _ := single(t, version)
			c := dial(t, n)
			a := c.status(set(mcbp.OpSet, 1, 0, 0, "k", "one"), mcbp.StatusOK)
			if a.CAS == 0 {
				t.Error("SET makes no CAS")
			}
			f := c.status(keyed(mcbp.OpGet, 1, "k"), mcbp.StatusOK)
			if string(f.Value()) != "one" || binary.BigEndian.Uint32(f.Extras()) != 5 || f.CAS != a.CAS || f.KeyLen != 0 {
				t.Errorf("GET: %+v", f)
			}
			if f = c.status(keyed(opGetK, 1, "k"), mcbp.StatusOK); string(f.Key()) != "k" || string(f.Value()) != "one" {
				t.Errorf("GETK: %+v", f)
			}
			c.status(set(mcbp.OpAdd, 1, 0, 0, "k", "x"), mcbp.StatusExists)
			c.status(set(mcbp.OpSet, 1, a.CAS+1, 0, "k", "x"), mcbp.StatusExists)
			c.status(set(mcbp.OpSet, 1, 9, 0, "none", "x"), mcbp.StatusNotFound)
			c.status(set(opReplace, 1, 0, 0, "none", "x"), mcbp.StatusNotFound)
			b := c.status(set(mcbp.OpSet, 1, a.CAS, 0, "k", "two"), mcbp.StatusOK)
			if b.CAS <= a.CAS {
				t.Errorf("CAS goes from %d to %d", a.CAS, b.CAS)
			}
			c.status(mcbp.AppendKeyed(nil, mcbp.OpDelete, 7, 1, a.CAS, []byte("k")), mcbp.StatusExists)
			c.status(keyed(mcbp.OpDelete, 1, "k"), mcbp.StatusOK)
			c.status(keyed(mcbp.OpDelete, 1, "k"), mcbp.StatusNotFound)
			c.status(keyed(mcbp.OpGet, 1, "k"), mcbp.StatusNotFound)
			if v := c.status(keyed(mcbp.OpVersion, 0, ""), mcbp.StatusOK); !strings.HasPrefix(string(v.Value()), version) {
				t.Errorf("VERSION %q", v.Value())
			}
			// Quiet forms speak of failures only, and GETQ of hits only.
			c.send(set(mcbp.OpSetQ, 1, 0, 0, "q", "x"), keyed(mcbp.OpGetQ, 1, "none"), keyed(mcbp.OpDeleteQ, 1, "q"), set(mcbp.OpAddQ, 1, 0, 0, "q", "x"), set(opReplaceQ, 1, 0, 0, "q", "y"))
			c.fence()
			c.status(set(mcbp.OpAddQ, 1, 0, 0, "q", "x"), mcbp.StatusExists)
			c.status(keyed(mcbp.OpDeleteQ, 1, "none"), mcbp.StatusNotFound)
			c.status(keyed(mcbp.OpGetQ, 1, "q"), mcbp.StatusOK)
			c.status(set(mcbp.OpSetQ, 200, 0, 0, "q", "x"), mcbp.StatusNotMyVBucket)
			// Malformed ones.
			c.status(packet(mcbp.OpSet, 1, 0, 0, []byte{1}, "k", "v"), mcbp.StatusInvalid)
			c.status(set(mcbp.OpSet, 1, 0, 0, strings.Repeat("k", 251), "v"), mcbp.StatusInvalid)
			c.status(keyed(mcbp.OpGet, 1, ""), mcbp.StatusInvalid)
			c.status(packet(0x77, 1, 0, 0, nil, "", ""), mcbp.StatusUnknown)
			c.status(set(mcbp.OpSet, 1, 0, 0, "big", strings.Repeat("x", maxItem+1)), mcbp.StatusTooBig)
			c.status(set(mcbp.OpSet, 1, 0, 0, "big", strings.Repeat("x", maxItem)), mcbp.StatusOK)
			c.send(keyed(mcbp.OpQuit, 0, ""))
			c.next()
			c.closed()
		})
	}
}

func TestForeignProtocolIsCut(t *testing.T) {
	_, n, _ := single(t, "2.5.1")
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00"} {
		c := dial(t, n)
		c.send([]byte(text))
		c.closed()
	}
}

// Revisions go on where the vbucket's newest deletion stopped.
func TestRevisions(t *testing.T) {
	_, n, b := single(t, "2.5.1")
	c := dial(t, n)
	rev := func(key string) uint64 { d, _ := n.Doc("default", 1, []byte(key)); return d.Rev }
	for i, step := range []struct {
		packet []byte
		key    string
		rev    uint64
	}{
		{set(mcbp.OpSet, 1, 0, 0, "a", ""), "a", 1},
		{set(mcbp.OpSet, 1, 0, 0, "a", ""), "a", 2},
		{keyed(mcbp.OpDelete, 1, "a"), "a", 3},
		{set(mcbp.OpSet, 1, 0, 0, "b", ""), "b", 4},
		{set(mcbp.OpSet, 1, 0, 0, "a", ""), "a", 4},
	} {
		c.status(step.packet, mcbp.StatusOK)
		if got := rev(step.key); got != step.rev {
			t.Errorf("step %d: rev %d, not %d", i, got, step.rev)
		}
	}
	if err := b.Store(Doc{Key: []byte("x"), Rev: 77, CAS: 88, Expiry: 99, Flags: 1, Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	if d, ok := b.Get([]byte("x")); !ok || d.Rev != 77 || d.CAS != 88 || d.Expiry != 99 || d.Flags != 1 {
		t.Errorf("stored as %+v", d)
	}
	if err := b.Delete([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if d, ok := b.Get([]byte("x")); ok || !d.Deleted || d.Rev != 78 || d.CAS == 0 {
		t.Errorf("deleted as %+v", d)
	}
}

func TestExpiry(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			_, n, _ := single(t, version)
			c := dial(t, n)
			now := uint32(time.Now().Unix())
			exp := func(key string) uint32 { d, _ := n.Doc("default", 1, []byte(key)); return d.Expiry }
			c.status(set(mcbp.OpSet, 1, 0, thirtyDays, "rel", ""), mcbp.StatusOK)
			if e := exp("rel"); e < now+thirtyDays || e > now+thirtyDays+60 {
				t.Errorf("30 days became %d", e)
			}
			c.status(set(mcbp.OpSet, 1, 0, thirtyDays+1, "abs", ""), mcbp.StatusOK)
			if e := exp("abs"); e != thirtyDays+1 {
				t.Errorf("an absolute time became %d", e)
			}
			// Gone at the first look, which leaves a tombstone.
			before, _ := n.Doc("default", 1, []byte("abs"))
			c.status(keyed(mcbp.OpGet, 1, "abs"), mcbp.StatusNotFound)
			after, _ := n.Doc("default", 1, []byte("abs"))
			if !after.Deleted || after.Rev != before.Rev+1 || after.CAS == before.CAS {
				t.Errorf("reaped from %+v to %+v", before, after)
			}
			// 2.5.1 takes small numbers for relative even with metadata.
			c.status(meta(mcbp.OpSetWithMeta, 1, -1, mcbp.Meta{Rev: 1, CAS: 1, Expiry: 100}, "meta", ""), mcbp.StatusOK)
			if e := exp("meta"); (version == "2.5.1") != (e >= now+100) || version != "2.5.1" && e != 100 {
				t.Errorf("with metadata 100 became %d", e)
			}
		})
	}
}

func TestStatesOfVBuckets(t *testing.T) {
	_, n, _ := single(t, "3.0.3")
	c := dial(t, n)
	c.status(set(mcbp.OpSet, 2, 0, 0, "k", "v"), mcbp.StatusOK)
	c.status(set(mcbp.OpSet, 3, 0, 0, "k", "v"), mcbp.StatusOK)
	c.status(keyed(mcbp.OpGetReplica, 2, "k"), mcbp.StatusNotMyVBucket)
	n.SetVBucket("default", 2, mcbp.VBReplica)
	if f := c.status(keyed(mcbp.OpGetReplica, 2, "k"), mcbp.StatusOK); string(f.Value()) != "v" {
		t.Errorf("GET_REPLICA: %+v", f)
	}
	c.status(keyed(mcbp.OpGetReplica, 2, "none"), mcbp.StatusNotFound)
	c.status(keyed(mcbp.OpGetReplica, 99, "none"), mcbp.StatusNotMyVBucket)
	n.SetVBucket("default", 3, mcbp.VBDead)
	n.SetVBucket("default", 4, mcbp.VBAbsent)
	for _, vb := range []uint16{2, 3, 4, 64} {
		for _, p := range [][]byte{
			keyed(mcbp.OpGet, vb, "k"), set(mcbp.OpSet, vb, 0, 0, "k", "v"), keyed(mcbp.OpDelete, vb, "k"), keyed(mcbp.OpGetMeta, vb, "k"),
			meta(mcbp.OpSetWithMeta, vb, -1, mcbp.Meta{Rev: 9, CAS: 9}, "k", ""), meta(mcbp.OpDeleteWithMeta, vb, 0, mcbp.Meta{Rev: 9, CAS: 9}, "k", ""),
		} {
			f := c.status(p, mcbp.StatusNotMyVBucket)
			var d terseDoc
			if err := json.Unmarshal(f.Value(), &d); err != nil || len(d.VBucketServerMap.VBucketMap) != 64 || d.Name != "default" {
				t.Errorf("%s: the body is no map: %q %v", mcbp.OpcodeName(f.Opcode), f.Value(), err)
			}
		}
	}
	for _, force := range []mcbp.Opcode{mcbp.OpSetWithMeta, mcbp.OpDeleteWithMeta} {
		c.status(meta(force, 2, 1, mcbp.Meta{Rev: 9, CAS: 9}, "k", ""), mcbp.StatusOK)
		c.status(meta(force, 3, 1, mcbp.Meta{Rev: 9, CAS: 9}, "k", ""), mcbp.StatusNotMyVBucket)
		c.status(meta(force, 4, 1, mcbp.Meta{Rev: 9, CAS: 9}, "k", ""), mcbp.StatusNotMyVBucket)
	}
	if f := c.status(packet(opGetConfig, 0, 0, 0, nil, "", ""), mcbp.StatusOK); !bytes.Contains(f.Value(), []byte("$HOST")) {
		t.Errorf("GET_CLUSTER_CONFIG: %q", f.Value())
	}
}

func TestPendingParks(t *testing.T) {
	_, n, _ := single(t, "3.0.3")
	for _, tt := range []struct {
		then   mcbp.VBState
		status mcbp.Status
	}{{mcbp.VBActive, mcbp.StatusOK}, {mcbp.VBReplica, mcbp.StatusNotMyVBucket}, {mcbp.VBDead, mcbp.StatusNotMyVBucket}} {
		for _, p := range [][]byte{set(mcbp.OpSet, 5, 0, 0, "k", "v"), meta(mcbp.OpSetWithMeta, 5, -1, mcbp.Meta{Rev: 1 << 40, CAS: 1}, fmt.Sprint(tt.then), "v")} {
			n.SetVBucket("default", 5, mcbp.VBPending)
			c, admin := dial(t, n), dial(t, n)
			// What is forced is written, and what came before is answered; then nothing.
			c.send(meta(mcbp.OpSetWithMeta, 5, 1, mcbp.Meta{Rev: 1, CAS: 1}, "forced", ""), mcbp.AppendNoop(nil, 1), p, mcbp.AppendNoop(nil, 2))
			if f := c.next(); f.Opcode != mcbp.OpSetWithMeta || f.Status() != mcbp.StatusOK {
				t.Errorf("forced: %+v", f.Header)
			}
			if f := c.next(); f.Opaque != 1 {
				t.Errorf("%+v before the parked request", f.Header)
			}
			admin.fence()
			admin.status(mcbp.AppendSetVBucket(nil, 3, 5, tt.then), mcbp.StatusOK)
			if f := c.next(); f.Opaque != 7 || f.Status() != tt.status {
				t.Errorf("after %s: %s", tt.then, mcbp.StatusName(f.Status()))
			}
			if f := c.next(); f.Opaque != 2 {
				t.Errorf("%+v behind the parked request", f.Header)
			}
		}
	}
	// A parked connection does not keep the node from ending.
	n.SetVBucket("default", 5, mcbp.VBPending)
	c := dial(t, n)
	c.send(keyed(mcbp.OpGet, 5, "k"))
	n.Kill()
	c.closed()
}

func TestSetVBucket(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			_, n, _ := single(t, version)
			c := dial(t, n)
			twice := 1
			if version == "2.5.1" {
				twice = 2
			}
			for _, tt := range []struct {
				packet []byte
				status mcbp.Status
			}{
				{mcbp.AppendSetVBucket(nil, 9, 1, 5), mcbp.StatusInvalid},
				{mcbp.AppendSetVBucket(nil, 9, 1, 0), mcbp.StatusInvalid},
				{mcbp.AppendSetVBucket(nil, 9, 64, mcbp.VBActive), mcbp.StatusRange},
				{packet(mcbp.OpSetVBucket, 1, 0, 0, []byte{1}, "", ""), mcbp.StatusInvalid},
				{packet(mcbp.OpSetVBucket, 1, 0, 0, nil, "", ""), mcbp.StatusInvalid},
			} {
				c.send(tt.packet)
				for range twice {
					if f := c.next(); f.Opcode != mcbp.OpSetVBucket || f.Status() != tt.status {
						t.Errorf("%+v, not %s", f.Header, mcbp.StatusName(tt.status))
					}
				}
				c.fence()
			}
			for _, s := range []mcbp.VBState{mcbp.VBReplica, mcbp.VBPending, mcbp.VBDead, mcbp.VBActive} {
				c.status(mcbp.AppendSetVBucket(nil, 9, 1, s), mcbp.StatusOK)
				f := c.status(keyed(mcbp.OpGetVBucket, 1, ""), mcbp.StatusOK)
				if got, err := mcbp.ParseVBucketState(&f); err != nil || got != s {
					t.Errorf("GET_VBUCKET after %s: %s %v", s, got, err)
				}
			}
			c.status(packet(mcbp.OpSetVBucket, 1, 0, 0, nil, "", "\x00\x00\x00\x02"), mcbp.StatusOK)
			c.status(keyed(mcbp.OpDelVBucket, 1, ""), mcbp.StatusInvalid)
			c.status(mcbp.AppendSetVBucket(nil, 9, 1, mcbp.VBDead), mcbp.StatusOK)
			c.status(keyed(mcbp.OpDelVBucket, 1, ""), mcbp.StatusOK)
			c.status(keyed(mcbp.OpDelVBucket, 1, ""), mcbp.StatusNotMyVBucket)
			if f := c.status(keyed(mcbp.OpGetVBucket, 1, ""), mcbp.StatusNotMyVBucket); len(f.Body) != 0 {
				t.Errorf("GET_VBUCKET of an absent one has the body %q", f.Body)
			}
			c.status(keyed(mcbp.OpGetVBucket, 64, ""), mcbp.StatusNotMyVBucket)
		})
	}
}

func TestWithMeta(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			_, n, _ := single(t, version)
			c := dial(t, n)
			at := func(rev, cas uint64, exp, flags uint32) mcbp.Meta {
				return mcbp.Meta{Rev: rev, CAS: cas, Expiry: exp, Flags: flags}
			}
			const far = 2_000_000_000
			for i, tt := range []struct {
				m    mcbp.Meta
				wins bool
			}{
				{at(5, 100, far, 3), true},
				{at(5, 100, far, 3), false}, // the same again
				{at(4, 999, far+9, 9), false},
				{at(5, 99, far+9, 9), false},
				{at(5, 100, far-1, 9), false},
				{at(5, 100, far, 2), false},
				{at(5, 100, far, 4), true},
				{at(5, 100, far+1, 0), true},
				{at(5, 101, 0, 0), true},
				{at(6, 1, 0, 0), true},
			} {
				want := mcbp.StatusExists
				if tt.wins {
					want = mcbp.StatusOK
				}
				f := c.status(meta(mcbp.OpSetWithMeta, 1, -1, tt.m, "k", "v"), want)
				if tt.wins && f.CAS != tt.m.CAS {
					t.Errorf("%d: answered with CAS %d", i, f.CAS)
				}
			}
			c.status(meta(mcbp.OpAddWithMeta, 1, 1, at(9, 9, 0, 0), "k", "v"), mcbp.StatusExists)
			c.status(meta(mcbp.OpSetWithMeta, 1, 1, at(1, 1, 0, 0), "k", "older"), mcbp.StatusOK)
			c.status(meta(mcbp.OpDeleteWithMeta, 1, -1, at(1, 1, 0, 0), "k", ""), mcbp.StatusExists)
			f := c.status(meta(mcbp.OpDeleteWithMeta, 1, -1, at(2, 5, 0, 0), "k", ""), mcbp.StatusOK)
			if want := uint64(5); version == "4.0" && f.CAS != want || version != "4.0" && f.CAS != 0 {
				t.Errorf("DELETE answers CAS %d", f.CAS)
			}
			// A tombstone resolves conflicts too; ADD over it is allowed.
			c.status(meta(mcbp.OpSetWithMeta, 1, -1, at(2, 4, 0, 0), "k", "v"), mcbp.StatusExists)
			c.status(meta(mcbp.OpAddWithMeta, 1, -1, at(3, 4, 0, 0), "k", "v"), mcbp.StatusOK)
			// CAS 0.
			zero := mcbp.StatusOK
			if version == "4.0" {
				zero = mcbp.StatusExists
			}
			c.status(meta(mcbp.OpSetWithMeta, 1, -1, at(9, 0, 0, 0), "zero", "v"), zero)
			c.status(meta(mcbp.OpSetWithMeta, 1, 1, at(9, 0, 0, 0), "zero", "v"), mcbp.StatusOK)
			// Forced deletion of a key that is not there, in an active vbucket.
			gone := mcbp.StatusOK
			if version == "2.5.1" {
				gone = mcbp.StatusNotFound
			}
			c.status(meta(mcbp.OpDeleteWithMeta, 1, 1, at(9, 9, 0, 0), "never", ""), gone)
			if d, _ := n.Doc("default", 1, []byte("never")); d.Deleted == (version == "2.5.1") {
				t.Errorf("left behind: %+v", d)
			}
			// Compare-and-swap against the destination.
			w := mcbp.WithMeta{Opcode: mcbp.OpSetWithMeta, VBucket: 1, Meta: at(50, 50, 0, 0), HeaderCAS: 999, Key: []byte("k"), Value: []byte("v")}
			c.status(w.Append(nil), mcbp.StatusExists)
			w.HeaderCAS = 4
			c.status(w.Append(nil), mcbp.StatusOK)
			w.Key = []byte("absent")
			c.status(w.Append(nil), mcbp.StatusNotFound)
			// Quiet forms, and what is malformed.
			c.send(meta(mcbp.OpSetQWithMeta, 1, -1, at(1, 1, 0, 0), "q", ""), meta(mcbp.OpDeleteQWithMeta, 1, -1, at(2, 1, 0, 0), "q", ""), meta(mcbp.OpAddQWithMeta, 1, -1, at(3, 1, 0, 0), "q", ""))
			c.fence()
			if f := c.status(meta(mcbp.OpSetQWithMeta, 1, -1, at(1, 1, 0, 0), "q", ""), mcbp.StatusExists); f.Opcode != mcbp.OpSetQWithMeta {
				t.Errorf("a quiet one answers as %s", mcbp.OpcodeName(f.Opcode))
			}
			c.status(packet(mcbp.OpSetWithMeta, 1, 0, 0, make([]byte, 25), "k", "v"), mcbp.StatusInvalid)
			c.status(meta(mcbp.OpSetWithMeta, 1, -1, at(1, 1, 0, 0), "", ""), mcbp.StatusInvalid)
			c.status(meta(mcbp.OpSetWithMeta, 1, -1, at(1, 1, 0, 0), "big", strings.Repeat("x", maxItem+1)), mcbp.StatusTooBig)
		})
	}
}

func TestReplication(t *testing.T) {
	c := start(t, Config{Nodes: 3, Buckets: []BucketConfig{{Name: "default", Replicas: 2}}})
	b := c.Bucket("default")
	servers := map[string]*Node{}
	for _, n := range c.Nodes() {
		servers[n.KV()] = n
	}
	key := keyIn(b, 0)
	chain := b.Map()[0]
	k := dial(t, servers[b.Servers()[chain[0]]])
	k.status(mcbp.AppendStore(nil, mcbp.OpSet, 1, 0, 0, 1, 0, key, []byte("v")), mcbp.StatusOK)
	for i, at := range chain {
		n := servers[b.Servers()[at]]
		state, items := n.VBucket("default", 0)
		if d, ok := n.Doc("default", 0, key); !ok || string(d.Value) != "v" || items != 1 || (state == mcbp.VBActive) != (i == 0) {
			t.Errorf("copy %d: %s %d %+v", i, state, items, d)
		}
	}
	if w := servers[b.Servers()[chain[1]]].Writes(); w != 0 {
		t.Errorf("replication counts as %d writes of clients", w)
	}
	if w := servers[b.Servers()[chain[0]]].Writes(); w != 1 {
		t.Errorf("%d writes of clients", w)
	}
	seen := 0
	b.Each(func(vb uint16, d Doc) bool { seen++; return vb == 0 && string(d.Key) == string(key) })
	if seen != 1 {
		t.Errorf("Each sees %d", seen)
	}
}

func TestDatatypes(t *testing.T) {
	hello := func(features ...uint16) []byte {
		var v []byte
		for _, f := range features {
			v = binary.BigEndian.AppendUint16(v, f)
		}
		return packet(mcbp.OpHello, 0, 0, 0, nil, "agent", string(v))
	}
	for _, version := range versions {
		_, n, _ := single(t, version)
		c := dial(t, n)
		c.send(packet(mcbp.OpSet, 1, 0, 1, make([]byte, 8), "k", "{}"))
		if f := c.next(); f.Status() != mcbp.StatusInvalid {
			t.Errorf("%s: datatype 1 without HELLO: %s", version, mcbp.StatusName(f.Status()))
		}
		c.closed()
		if version == "2.5.1" {
			dial(t, n).status(hello(1), mcbp.StatusUnknown)
			continue
		}
		plain, able := dial(t, n), dial(t, n)
		if f := able.status(hello(1, 3, 77), mcbp.StatusOK); !bytes.Equal(f.Value(), []byte{0, 1, 0, 3}) {
			t.Errorf("HELLO grants %x", f.Value())
		}
		able.status(packet(mcbp.OpHello, 0, 0, 0, nil, "agent", "\x00"), mcbp.StatusInvalid)
		plain.status(set(mcbp.OpSet, 1, 0, 0, "json", ` {"a":1}`), mcbp.StatusOK)
		plain.status(set(mcbp.OpSet, 1, 0, 0, "number", `12`), mcbp.StatusOK)
		able.status(set(mcbp.OpSet, 1, 0, 0, "claimed", `{"a":1}`), mcbp.StatusOK)
		able.status(packet(mcbp.OpSet, 1, 0, 1, make([]byte, 8), "lie", "no json"), mcbp.StatusOK)
		for key, want := range map[string]uint8{"json": 1, "number": 0, "claimed": 0, "lie": 1} {
			if f := able.status(keyed(mcbp.OpGet, 1, key), mcbp.StatusOK); f.Datatype != want {
				t.Errorf("%s %q has datatype %d", version, key, f.Datatype)
			}
			if f := plain.status(keyed(mcbp.OpGet, 1, key), mcbp.StatusOK); f.Datatype != 0 {
				t.Errorf("%s %q shows datatype %d without HELLO", version, key, f.Datatype)
			}
		}
	}
}

func TestLogin(t *testing.T) {
	c := start(t, Config{Nodes: 1, Buckets: []BucketConfig{{Name: "default"}, {Name: "beer", Password: "beerpw"}}})
	n := c.Nodes()[0]
	auth := func(user, password string) []byte {
		return packet(mcbp.OpSASLAuth, 0, 0, 0, nil, "PLAIN", string(mcbp.SASLPlain(user, password)))
	}
	k := dial(t, n)
	k.status(set(mcbp.OpSet, 1, 0, 0, "where", "default"), mcbp.StatusOK)
	k.status(auth("beer", "wrong"), mcbp.StatusAuthError)
	// A refused login leaves the connection in the default bucket.
	if f := k.status(keyed(mcbp.OpGet, 1, "where"), mcbp.StatusOK); string(f.Value()) != "default" {
		t.Errorf("GET after a refused login: %q", f.Value())
	}
	k.status(auth("beer", "beerpw"), mcbp.StatusOK)
	k.status(keyed(mcbp.OpGet, 1, "where"), mcbp.StatusNotFound)
	k.status(auth("nosuch", ""), mcbp.StatusAuthError)
	k.status(packet(mcbp.OpSASLAuth, 0, 0, 0, nil, "PLAIN", "garbage"), mcbp.StatusAuthError)
	k.status(packet(mcbp.OpSASLAuth, 0, 0, 0, nil, "SCRAM-SHA1", ""), mcbp.StatusAuthError)
	k.status(packet(mcbp.OpSASLStep, 0, 0, 0, nil, "CRAM-MD5", "beer 00"), mcbp.StatusAuthError)
	k.status(packet(mcbp.OpSASLAuth, 0, 0, 0, nil, "CRAM-MD5", ""), mcbp.StatusAuthContinue)
	k.status(packet(mcbp.OpSASLStep, 0, 0, 0, nil, "CRAM-MD5", "nosuch 00"), mcbp.StatusAuthError)

	// Where there is no default bucket, only what needs none is answered.
	c = start(t, Config{Nodes: 1, Buckets: []BucketConfig{{Name: "beer", Password: "beerpw"}}})
	k = dial(t, c.Nodes()[0])
	k.fence()
	k.send(keyed(mcbp.OpGet, 1, "where"))
	k.closed()
}

func TestMemcachedBucket(t *testing.T) {
	c := start(t, Config{Buckets: []BucketConfig{{Name: "default", Type: "memcached"}}})
	b := c.Bucket("default")
	for i := range 100 {
		if err := b.Store(Doc{Key: fmt.Appendf(nil, "k%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	total := 0
	for _, n := range c.Nodes() {
		_, items := n.VBucket("default", 0)
		total += items
		k := dial(t, n)
		k.status(set(mcbp.OpSet, 77, 0, 0, "k", "v"), mcbp.StatusOK)
		k.status(keyed(mcbp.OpGet, 3, "k"), mcbp.StatusOK)
		k.status(keyed(mcbp.OpDelete, 9, "k"), mcbp.StatusOK)
		k.status(keyed(mcbp.OpGetVBucket, 0, ""), mcbp.StatusUnknown)
		k.status(meta(mcbp.OpSetWithMeta, 0, -1, mcbp.Meta{Rev: 1, CAS: 1}, "k", ""), mcbp.StatusUnknown)
		k.status(packet(mcbp.OpStat, 0, 0, 0, nil, "vbucket", ""), mcbp.StatusNotFound)
	}
	if total != 100 || b.Map() != nil || len(b.Missing()) != 0 {
		t.Errorf("%d of 100 items, map %v", total, b.Map())
	}
	seen := 0
	b.Each(func(uint16, Doc) bool { seen++; return true })
	if seen != 102 {
		t.Errorf("Each sees %d, 100 documents and 2 tombstones are there", seen)
	}
	if _, ok := b.Get([]byte("k5")); !ok {
		t.Error("k5 is gone")
	}
}

func TestStatArguments(t *testing.T) {
	c := start(t, Config{Nodes: 1, Version: "3.0.3", FlushDelay: time.Hour})
	n := c.Nodes()[0]
	k := dial(t, n)
	for i := range 10 {
		k.status(set(mcbp.OpSet, 5, 0, 0, fmt.Sprint(i), "v"), mcbp.StatusOK)
	}
	n.SetVBucket("default", 6, mcbp.VBAbsent)
	stats := func(group string) (map[string]string, mcbp.Status) {
		k.send(packet(mcbp.OpStat, 0, 0, 0, nil, group, ""))
		all := map[string]string{}
		for {
			f := k.next()
			if f.Status() != mcbp.StatusOK || len(f.Body) == 0 {
				return all, f.Status()
			}
			all[string(f.Key())] = string(f.Value())
		}
	}
	for group, want := range map[string]mcbp.Status{
		"vbucket-details 6": mcbp.StatusNotMyVBucket, "vbucket-details 64": mcbp.StatusNotMyVBucket, "vbucket-details x": mcbp.StatusInvalid,
		"vbucket-seqno 6": mcbp.StatusNotMyVBucket, "nosuch": mcbp.StatusNotFound, "vbucket 5": mcbp.StatusNotFound,
	} {
		if _, got := stats(group); got != want {
			t.Errorf("%q answers %s", group, mcbp.StatusName(got))
		}
	}
	if all, _ := stats(""); all["ep_queue_size"] != "10" || all["ep_flusher_todo"] != "0" || all["curr_items"] != "10" || all["ep_max_vbuckets"] != "64" {
		t.Errorf("queue %s, todo %s, items %s", all["ep_queue_size"], all["ep_flusher_todo"], all["curr_items"])
	}
	if all, _ := stats("vbucket-details 5"); all["vb_5:num_items"] != "10" || all["vb_5:queue_size"] != "10" || all["vb_5:high_seqno"] != "10" {
		t.Errorf("details: %v", all)
	}
	if all, _ := stats("vbucket-seqno"); len(all) != 63*4 {
		t.Errorf("%d numbers of 63 vbuckets", len(all))
	}
	if all, _ := stats("tap"); all["ep_tap_count"] != "0" {
		t.Errorf("tap: %v", all)
	}
}

func TestKVFaults(t *testing.T) {
	_, n, _ := single(t, "2.5.1")
	put := set(mcbp.OpSet, 1, 0, 0, "k", "v")
	k := dial(t, n)
	remove := n.Inject(Fault{Op: mcbp.OpSet, VBucket: 1, After: 1, Times: 2, Status: mcbp.StatusTmpFail})
	for i, want := range []mcbp.Status{0, mcbp.StatusTmpFail, mcbp.StatusTmpFail, 0} {
		if f := k.do(put); f.Status() != want {
			t.Errorf("%d: %s", i, mcbp.StatusName(f.Status()))
		}
		k.status(set(mcbp.OpSet, 2, 0, 0, "k", "v"), mcbp.StatusOK) // another vbucket
	}
	remove()
	remove()
	remove = n.Inject(Fault{Ops: []mcbp.Opcode{mcbp.OpGet}, VBucket: -1, Status: mcbp.StatusNoMemory})
	k.status(keyed(mcbp.OpGet, 1, "k"), mcbp.StatusNoMemory)
	k.status(put, mcbp.StatusOK)
	remove()
	k.status(keyed(mcbp.OpGet, 1, "k"), mcbp.StatusOK)

	for _, tt := range []struct {
		action FaultAction
		bytes  int
		stored bool
	}{{Close, 0, false}, {CutMidFrame, 12, true}, {DropAfterEffect, 0, true}} {
		key := fmt.Sprint("action", tt.action)
		remove := n.Inject(Fault{Op: mcbp.OpSet, VBucket: -1, Action: tt.action})
		k := dial(t, n)
		k.send(mcbp.AppendNoop(nil, 1), set(mcbp.OpSet, 3, 0, 0, key, "v"))
		if k.next().Opcode != mcbp.OpNoop {
			t.Error("the answer before the fault is lost")
		}
		rest, _ := io.ReadAll(k.nc)
		if got := k.r.Buffered() + len(rest); got != tt.bytes {
			t.Errorf("action %d: %d bytes of an answer, not %d", tt.action, got, tt.bytes)
		}
		remove()
		if _, ok := n.Doc("default", 3, []byte(key)); ok != tt.stored {
			t.Errorf("action %d: stored %v", tt.action, ok)
		}
	}
	remove = n.Inject(Fault{Op: mcbp.OpSASLAuth, VBucket: -1, Status: mcbp.StatusAuthError})
	dial(t, n).status(packet(mcbp.OpSASLAuth, 0, 0, 0, nil, "PLAIN", "\x00default\x00"), mcbp.StatusAuthError)
	remove()

	remove = n.Inject(Fault{Op: mcbp.OpSet, VBucket: -1, Action: Stall})
	stalled := dial(t, n)
	stalled.send(mcbp.AppendNoop(nil, 1), put, mcbp.AppendNoop(nil, 2))
	stalled.next()
	dial(t, n).fence() // the others are served
	remove()
	n.Inject(Fault{Op: mcbp.OpSet, VBucket: -1, Action: Die})
	dying := dial(t, n)
	dying.send(put)
	dying.closed()
	stalled.closed()
	if !n.Dead() {
		t.Error("the node lives")
	}
}

// An independent client works against it.
func TestGomemcachedClient(t *testing.T) {
	c := start(t, Config{Nodes: 1, Buckets: []BucketConfig{{Name: "beer", Password: "beerpw"}}})
	mc, err := memcached.Connect("tcp", c.Nodes()[0].KV())
	if err != nil {
		t.Fatal(err)
	}
	defer mc.Close()
	if _, err := mc.Auth("beer", "wrong"); err == nil {
		t.Error("a wrong password is accepted")
	}
	if _, err := mc.Auth("beer", "beerpw"); err != nil {
		t.Fatal(err)
	}
	if _, err := mc.Set(3, "key", 77, 0, []byte("value")); err != nil {
		t.Fatal(err)
	}
	got, err := mc.Get(3, "key")
	if err != nil || string(got.Body) != "value" || binary.BigEndian.Uint32(got.Extras) != 77 {
		t.Errorf("get: %v %v", got, err)
	}
	if _, err := mc.Add(3, "key", 0, 0, nil); err == nil || err.(*gomemcached.MCResponse).Status != gomemcached.KEY_EEXISTS {
		t.Errorf("add over it: %v", err)
	}
	if _, err := mc.Del(3, "key"); err != nil {
		t.Fatal(err)
	}
	if _, err := mc.Get(3, "key"); !gomemcached.IsNotFound(err) {
		t.Errorf("get after the deletion: %v", err)
	}
	if _, err := mc.Get(99, "key"); err == nil || err.(*gomemcached.MCResponse).Status != gomemcached.NOT_MY_VBUCKET {
		t.Errorf("get from an absent vbucket: %v", err)
	}
	all, err := mc.StatsMap("")
	if err != nil || all["ep_flusher_todo"] != "0" || all["ep_version"] != "2.5.1" {
		t.Errorf("stats: %d names, %v", len(all), err)
	}
	if d, err := mc.StatsMap("vbucket-details"); err != nil || d["vb_3:num_items"] != "0" || d["vb_3"] != "active" {
		t.Errorf("vbucket-details: %v %v", d["vb_3"], err)
	}
}

func TestGomemcachedTapFeed(t *testing.T) {
	for _, version := range versions {
		for _, ack := range []bool{true, false} {
			t.Run(fmt.Sprint(version, ack), func(t *testing.T) {
				c, n, b := single(t, version)
				want := map[string]bool{}
				for i := range 5000 {
					key := fmt.Sprintf("k%d", i)
					want[key] = true
					if err := b.Store(Doc{Key: []byte(key), Value: []byte(key)}); err != nil {
						t.Fatal(err)
					}
				}
				mc, err := memcached.Connect("tcp", n.KV())
				if err != nil {
					t.Fatal(err)
				}
				defer mc.Close()
				args := memcached.DefaultTapArguments()
				args.Dump, args.SupportAck = true, ack
				feed, err := mc.StartTapFeed(args)
				if err != nil {
					t.Fatal(err)
				}
				begun, ended := 0, 0
				for e := range feed.C {
					switch e.Opcode {
					case memcached.TapBeginBackfill:
						begun++
					case memcached.TapEndBackfill:
						ended++
					case memcached.TapMutation:
						if !want[string(e.Key)] || string(e.Value) != string(e.Key) {
							t.Fatalf("%s came twice or wrong", e.Key)
						}
						delete(want, string(e.Key))
					}
				}
				if len(want) != 0 {
					t.Errorf("%d items did not come", len(want))
				}
				if begun != ended {
					t.Errorf("%d vbuckets begun, %d ended", begun, ended)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
