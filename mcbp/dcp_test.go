package mcbp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

const dcpCaptures = 76

// dcpEnd says which captures hold messages that we never negotiate.
var dcpEnd = map[string]error{
	"7.0-dcp-stream-id":               mcbp.ErrMagic,
	"7.0-dcp-durable-sync":            mcbp.ErrMalformed,
	"7.0-dcp-durable-committed-sync":  mcbp.ErrMalformed,
	"7.0-dcp-oso":                     mcbp.ErrMalformed,
	"7.0-dcp-oso-no-end":              mcbp.ErrMalformed,
	"3.0.3-dcp-stream-truncated-body": mcbp.ErrTruncated,
	"4.0-dcp-stream-truncated-body":   mcbp.ErrTruncated,
}

// TestDcpCaptures replays every capture whose name has dcp through the codec.
func TestDcpCaptures(t *testing.T) {
	all, err := capture.Select(func(name string) bool { return strings.Contains(name, "-dcp-") })
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != dcpCaptures {
		t.Errorf("%d captures, there were %d", len(all), dcpCaptures)
	}
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) { replayDcp(t, c) })
	}
	capture.Replays(t, "mcbp.TestDcpCaptures", capture.Names(all)...)
}

// dcpItem is an #item as the codec yields it.
type dcpItem struct {
	op         string
	m          mcbp.DcpMessage
	event      mcbp.SystemEvent
	collection uint32
	key        []byte
}

func replayDcp(t *testing.T, c *capture.Capture) {
	collections, checked := false, false
	// The node is the consumer in some: then the client sends the stream.
	for _, side := range []capture.Side{capture.Server, capture.Client} {
		r := mcbp.NewReader(c.Reader(side))
		var items []dcpItem
		streams := 0
		for {
			f, err := r.Next()
			if err != nil {
				if want := dcpEnd[c.Name]; want != nil && side == capture.Server {
					if !errors.Is(err, want) && want != mcbp.ErrMalformed {
						t.Errorf("ends with %v, want %v", err, want)
					}
				} else if fmt.Sprint(err) != "EOF" {
					t.Fatalf("%s: %v", side, err)
				}
				break
			}
			f.Body = bytes.Clone(f.Body)
			if f.Magic == mcbp.MagicResponse {
				if f.Opcode == mcbp.OpHello && f.Status() == mcbp.StatusOK {
					granted, err := mcbp.ParseHello(f.Value())
					if err != nil {
						t.Error(err)
					}
					collections = slices.Contains(granted, mcbp.FeatureCollections)
				}
				checkDcpAnswer(t, &f)
				continue
			}
			if again := reencodeRequest(t, &f); again != nil && !bytes.Equal(again, raw(&f)) {
				t.Errorf("%s encodes to %x, recorded is %x", mcbp.OpcodeName(f.Opcode), again, raw(&f))
			}
			switch f.Opcode {
			case mcbp.OpDcpStreamEnd, mcbp.OpDcpSnapshotMarker, mcbp.OpDcpMutation, mcbp.OpDcpDeletion, mcbp.OpDcpExpiration,
				mcbp.OpDcpSystemEvent, mcbp.OpDcpSeqnoAdvanced, mcbp.OpDcpPrepare, mcbp.OpDcpCommit, mcbp.OpDcpAbort,
				mcbp.OpDcpOSOSnapshot, mcbp.OpDcpNoop, mcbp.OpDcpSetVBucketState:
			default:
				continue
			}
			it, err := dcpItemOf(&f, collections)
			if err != nil {
				if dcpEnd[c.Name] != mcbp.ErrMalformed || !errors.Is(err, mcbp.ErrMalformed) {
					t.Errorf("%s: %v", mcbp.OpcodeName(f.Opcode), err)
				}
				continue
			}
			streams++
			reencodeMessage(t, &f, &it.m)
			if it.op != "" {
				items = append(items, it)
			}
		}
		if streams > 0 && len(c.Items) > 0 && dcpEnd[c.Name] != mcbp.ErrMagic && len(items) > 0 {
			checkDcpItems(t, c, items, collections, side)
			checked = true
		}
	}
	if len(c.Items) > 0 && !checked && dcpEnd[c.Name] != mcbp.ErrMagic {
		t.Errorf("none of %d items was decoded", len(c.Items))
	}
}

// dcpItemOf decodes a message of a stream; op is empty where it is no item.
func dcpItemOf(f *mcbp.Frame, collections bool) (it dcpItem, err error) {
	if err := it.m.Parse(f); err != nil {
		return it, err
	}
	it.key = it.m.Key
	switch f.Opcode {
	case mcbp.OpDcpMutation:
		it.op = "mutation"
	case mcbp.OpDcpDeletion:
		it.op = "deletion"
	case mcbp.OpDcpExpiration:
		it.op = "expiration"
	case mcbp.OpDcpSystemEvent:
		it.op = "system_event"
		it.event, err = it.m.ParseSystemEvent()
		if again := it.event.AppendValue(nil); err == nil && !bytes.Equal(again, it.m.Value) {
			err = fmt.Errorf("the event encodes to %x, recorded is %x", again, it.m.Value)
		}
		return it, err
	default:
		return it, nil
	}
	if collections {
		it.collection, it.key, err = mcbp.SplitCollectionKey(it.m.Key)
		if again := append(mcbp.AppendCollectionID(nil, it.collection), it.key...); err == nil && !bytes.Equal(again, it.m.Key) {
			err = fmt.Errorf("the key encodes to %x, recorded is %x", again, it.m.Key)
		}
	}
	return it, err
}

// reencodeMessage compares our encoding with the recorded message, but for what
// is not kept: the lock time, the nru byte, and markers of version 2.
func reencodeMessage(t *testing.T, f *mcbp.Frame, m *mcbp.DcpMessage) {
	t.Helper()
	want := raw(f)
	switch f.Opcode {
	case mcbp.OpDcpMutation:
		clear(want[mcbp.HeaderLen+24 : mcbp.HeaderLen+28])
		want[mcbp.HeaderLen+30] = 0
	case mcbp.OpDcpSnapshotMarker:
		if f.ExtLen == 1 {
			return
		}
	case mcbp.OpDcpNoop:
		return
	}
	if got := m.Append(nil, f.ExtLen == 20 || f.ExtLen == 21); !bytes.Equal(got, want) {
		t.Errorf("%s encodes to %x, recorded is %x", mcbp.OpcodeName(f.Opcode), got, want)
	}
}

// reencodeRequest is our encoding of what a client sends, nil for what we do not encode.
func reencodeRequest(t *testing.T, f *mcbp.Frame) []byte {
	t.Helper()
	switch f.Opcode {
	case mcbp.OpDcpOpen:
		if len(f.Value()) > 0 {
			return nil
		}
		return mcbp.AppendDcpOpen(nil, f.Opaque, string(f.Key()), binary.BigEndian.Uint32(f.Extras()[4:]))
	case mcbp.OpDcpControl:
		return mcbp.AppendDcpControl(nil, f.Opaque, string(f.Key()), string(f.Value()))
	case mcbp.OpDcpBufferAck:
		h := f.Header
		f.Opaque = 0 // ours has none
		defer func() { f.Header = h }()
		again := mcbp.AppendDcpBufferAck(nil, binary.BigEndian.Uint32(f.Extras()))
		binary.BigEndian.PutUint32(again[12:], h.Opaque)
		return again
	case mcbp.OpDcpStreamReq:
		var s mcbp.StreamReq
		if err := s.Parse(f); err != nil {
			t.Error(err)
			return nil
		}
		return s.Append(nil)
	case mcbp.OpHello:
		features, err := mcbp.ParseHello(f.Value())
		if err != nil {
			t.Error(err)
			return nil
		}
		return mcbp.AppendHello(nil, f.Opaque, string(f.Key()), features...)
	}
	return nil
}

// checkDcpAnswer decodes what answers carry.
func checkDcpAnswer(t *testing.T, f *mcbp.Frame) {
	t.Helper()
	switch {
	case f.Status() == mcbp.StatusRollback:
		if _, err := mcbp.ParseRollback(f.Value()); err != nil {
			t.Error(err)
		}
	case f.Status() != mcbp.StatusOK:
	case f.Opcode == mcbp.OpDcpStreamReq || f.Opcode == mcbp.OpDcpFailoverLog:
		log, err := mcbp.ParseFailoverLog(f.Value())
		if err != nil || !bytes.Equal(mcbp.AppendFailoverLog(nil, log), f.Value()) {
			t.Errorf("failover log %x: %v, %v", f.Value(), log, err)
		}
	case f.Opcode == mcbp.OpGetAllVBSeqnos:
		if seqnos, err := mcbp.ParseAllVBSeqnos(f.Value()); err != nil || 10*len(seqnos) != len(f.Value()) {
			t.Errorf("%v, %v", seqnos, err)
		}
	}
}

// checkDcpItems finds for each decoded item the recorded one; each must be there once.
func checkDcpItems(t *testing.T, c *capture.Capture, got []dcpItem, collections bool, from capture.Side) {
	t.Helper()
	want := slices.Clone(c.Items)
	// Items that were never asked for are not decoded.
	want = slices.DeleteFunc(want, func(it capture.Item) bool { return it.Op == "prepare" || it.Op == "commit" || it.Op == "abort" })
	for i := range got {
		g := &got[i]
		var why error
		at := slices.IndexFunc(want, func(w capture.Item) bool {
			if w.Op != g.op || w.VB != g.m.VBucket || w.Op != "system_event" && !bytes.Equal(w.Key, g.key) ||
				w.Has("seqno") && w.Seqno != g.m.Seqno || w.Has("cas") && w.CAS != g.m.CAS {
				return false
			}
			if from == capture.Client && g.m.Datatype&mcbp.DatatypeXattr != 0 {
				return true // read back with GET, which strips extended attributes
			}
			why = sameDcpItem(&w, g, collections)
			return why == nil
		})
		if at < 0 && from == capture.Client {
			continue // what was pushed and cannot be read back, or was refused
		}
		if at < 0 {
			t.Errorf("%s %q seqno %d cas %d: not recorded so: %v", g.op, g.key, g.m.Seqno, g.m.CAS, why)
			continue
		}
		want = slices.Delete(want, at, at+1)
	}
	for _, w := range want {
		t.Errorf("%s %q seqno %d: missing", w.Op, w.Key, w.Seqno)
	}
}

func sameDcpItem(w *capture.Item, g *dcpItem, collections bool) error {
	var errs []error
	number := func(field string) uint64 {
		n, err := strconv.ParseUint(strings.Trim(string(w.Fields[field]), `"`), 0, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		return n
	}
	differ := func(field string, got uint64) {
		if w.Has(field) && number(field) != got {
			errs = append(errs, fmt.Errorf("%s %d, %s was recorded", field, got, w.Fields[field]))
		}
	}
	if w.Op == "system_event" {
		e := &g.event
		names := map[uint32]string{mcbp.EventCreateCollection: "create_collection", mcbp.EventDropCollection: "drop_collection",
			mcbp.EventCreateScope: "create_scope", mcbp.EventDropScope: "drop_scope"}
		if names[e.Event] != w.Text("event") || string(e.Name) != w.Text("name") || strconv.FormatUint(e.ManifestUID, 16) != w.Text("manifest_uid") {
			errs = append(errs, fmt.Errorf("%+v", e))
		}
		differ("version", uint64(e.Version))
		differ("scope", uint64(e.Scope))
		differ("max_ttl", uint64(e.MaxTTL))
		if e.IsCollection != w.Has("collection") {
			errs = append(errs, errors.New("a scope for a collection"))
		}
		differ("collection", uint64(e.Collection))
		return errors.Join(errs...)
	}
	if collections != w.Has("collection") {
		errs = append(errs, errors.New("a collection more or less"))
	}
	differ("collection", uint64(g.collection))
	differ("rev", g.m.Rev)
	differ("flags", uint64(g.m.Flags))
	if g.op == "mutation" {
		differ("expiry", uint64(g.m.Expiry))
	} else {
		differ("delete_time", uint64(g.m.Expiry))
	}
	value, datatype := g.m.Value, g.m.Datatype
	if datatype&mcbp.DatatypeSnappy != 0 && len(value) > 0 { // streams without values name the stored form
		plain, err := inflate(value)
		if err != nil {
			errs = append(errs, err)
		}
		if w.Has("inflated_hex") {
			if fmt.Sprintf("%x", plain) != w.Text("inflated_hex") {
				errs = append(errs, fmt.Errorf("inflates to %x", plain))
			}
		} else {
			value, datatype = plain, datatype&^mcbp.DatatypeSnappy
		}
	}
	differ("datatype", uint64(datatype))
	return errors.Join(append(errs, w.CheckValue(value))...)
}

// inflate undoes snappy.
func inflate(p []byte) ([]byte, error) {
	bad := errors.New("not snappy")
	want, n := binary.Uvarint(p)
	if n <= 0 {
		return nil, bad
	}
	p = p[n:]
	var out []byte
	for len(p) > 0 {
		tag := p[0]
		if tag&3 == 0 {
			n, skip := int(tag>>2)+1, 1
			for extra := int(tag>>2) - 59; extra > 0; extra-- {
				if skip == 1 {
					n = 1
				}
				if skip >= len(p) {
					return nil, bad
				}
				n += int(p[skip]) << (8 * (skip - 1))
				skip++
			}
			if len(p) < skip+n {
				return nil, bad
			}
			out, p = append(out, p[skip:skip+n]...), p[skip+n:]
			continue
		}
		size := map[byte]int{1: 2, 2: 3, 3: 5}[tag&3]
		if len(p) < size {
			return nil, bad
		}
		n, back := int(tag>>2)+1, 0
		switch tag & 3 {
		case 1:
			n, back = int(tag>>2)&7+4, int(tag>>5)<<8|int(p[1])
		case 2:
			back = int(binary.LittleEndian.Uint16(p[1:]))
		case 3:
			back = int(binary.LittleEndian.Uint32(p[1:]))
		}
		if back == 0 || back > len(out) {
			return nil, bad
		}
		for range n {
			out = append(out, out[len(out)-back])
		}
		p = p[size:]
	}
	if uint64(len(out)) != want {
		return nil, bad
	}
	return out, nil
}

// TestDcpRoundTrip encodes and decodes whatever a message can hold.
func TestDcpRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		times := rapid.Bool().Draw(t, "times")
		m := mcbp.DcpMessage{
			Opcode: rapid.SampledFrom([]mcbp.Opcode{mcbp.OpDcpMutation, mcbp.OpDcpDeletion, mcbp.OpDcpExpiration, mcbp.OpDcpSnapshotMarker,
				mcbp.OpDcpStreamEnd, mcbp.OpDcpSystemEvent, mcbp.OpDcpSeqnoAdvanced, mcbp.OpDcpSetVBucketState}).Draw(t, "op"),
			VBucket: rapid.Uint16().Draw(t, "vb"), Opaque: rapid.Uint32().Draw(t, "opaque"), Datatype: rapid.Uint8().Draw(t, "datatype"),
			CAS: rapid.Uint64().Draw(t, "cas"), Seqno: rapid.Uint64().Draw(t, "seqno"), Flags: rapid.Uint32().Draw(t, "flags"),
			Key: []byte{}, Value: []byte{},
		}
		bytes := rapid.SliceOfN(rapid.Byte(), 0, 40)
		switch m.Opcode {
		case mcbp.OpDcpMutation:
			m.Rev, m.Expiry, m.Meta = rapid.Uint64().Draw(t, "rev"), rapid.Uint32().Draw(t, "expiry"), bytes.Draw(t, "meta")
		case mcbp.OpDcpDeletion, mcbp.OpDcpExpiration:
			m.Rev, m.Flags = rapid.Uint64().Draw(t, "rev"), 0
			if times {
				m.Expiry = rapid.Uint32().Draw(t, "time")
			} else {
				m.Meta = bytes.Draw(t, "meta")
			}
		case mcbp.OpDcpSnapshotMarker:
			m.SnapEnd = rapid.Uint64().Draw(t, "end")
		case mcbp.OpDcpStreamEnd:
			m.Seqno = 0
		case mcbp.OpDcpSystemEvent:
			m.Version = rapid.Uint8().Draw(t, "version")
		case mcbp.OpDcpSeqnoAdvanced:
			m.Flags = 0
		case mcbp.OpDcpSetVBucketState:
			m.Seqno, m.Flags = 0, m.Flags&0xff
		}
		m.Key, m.Value = bytes.Draw(t, "key"), bytes.Draw(t, "value")
		f := decodeOne(t, m.Append(nil, times))
		var back mcbp.DcpMessage
		if err := back.Parse(&f); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", m) {
			t.Fatalf("%+v\n%+v", back, m)
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		id, key := rapid.Uint32().Draw(t, "id"), rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		got, rest, err := mcbp.SplitCollectionKey(append(mcbp.AppendCollectionID(nil, id), key...))
		if err != nil || got != id || !bytes.Equal(rest, key) {
			t.Fatal(got, rest, err)
		}
	})
}

func TestDcpRefuses(t *testing.T) {
	frame := func(op mcbp.Opcode, ext int, body int) mcbp.Frame {
		f := mcbp.Frame{Header: mcbp.Header{Magic: mcbp.MagicRequest, Opcode: op, ExtLen: uint8(ext), BodyLen: uint32(body)}}
		f.Body = make([]byte, body)
		return f
	}
	var m mcbp.DcpMessage
	for op, sizes := range map[mcbp.Opcode][]int{
		mcbp.OpDcpMutation: {31}, mcbp.OpDcpDeletion: {18, 20, 21}, mcbp.OpDcpExpiration: {18, 20, 21}, mcbp.OpDcpSnapshotMarker: {20},
		mcbp.OpDcpStreamEnd: {4}, mcbp.OpDcpSystemEvent: {13}, mcbp.OpDcpSeqnoAdvanced: {8}, mcbp.OpDcpSetVBucketState: {1},
		mcbp.OpDcpPrepare: nil, mcbp.OpDcpCommit: nil, mcbp.OpDcpAbort: nil, mcbp.OpDcpOSOSnapshot: nil, mcbp.OpDcpFlush: nil,
		mcbp.OpDcpStreamReq: nil, mcbp.OpDcpOpen: nil, mcbp.OpGet: nil,
	} {
		for n := range 40 {
			f := frame(op, n, 60)
			err := m.Parse(&f)
			if ok := slices.Contains(sizes, n) || op == mcbp.OpDcpSnapshotMarker && n == 1; ok != (err == nil) {
				t.Errorf("%s with %d bytes of extras: %v", mcbp.OpcodeName(op), n, err)
			} else if err != nil && !errors.Is(err, mcbp.ErrMalformed) {
				t.Error(err)
			}
		}
	}
	short := frame(mcbp.OpDcpSnapshotMarker, 1, 20)
	if err := m.Parse(&short); !errors.Is(err, mcbp.ErrMalformed) {
		t.Error(err)
	}
	lying := frame(mcbp.OpDcpMutation, 31, 40)
	lying.Body[29] = 10 // ten bytes of metadata in a value of nine
	if err := m.Parse(&lying); !errors.Is(err, mcbp.ErrLength) {
		t.Error(err)
	}
	for _, e := range []mcbp.DcpMessage{
		{Opcode: mcbp.OpDcpSystemEvent, Flags: 2, Value: make([]byte, 16)},
		{Opcode: mcbp.OpDcpSystemEvent, Flags: 5, Value: make([]byte, 20)},
		{Opcode: mcbp.OpDcpSystemEvent, Flags: mcbp.EventCreateCollection, Version: 2, Value: make([]byte, 40)},
		{Opcode: mcbp.OpDcpSystemEvent, Flags: mcbp.EventCreateCollection, Version: 1, Value: make([]byte, 16)},
		{Opcode: mcbp.OpDcpSystemEvent, Flags: mcbp.EventDropCollection, Value: make([]byte, 12)},
		{Opcode: mcbp.OpDcpSystemEvent, Flags: mcbp.EventDropScope, Value: make([]byte, 11)},
		{Opcode: mcbp.OpDcpMutation, Value: make([]byte, 16)},
	} {
		if got, err := e.ParseSystemEvent(); !errors.Is(err, mcbp.ErrMalformed) {
			t.Errorf("%+v: %+v, %v", e, got, err)
		}
	}
	for _, key := range []string{"", "\x80", "\x88\x00k", "\x80\x80\x80\x80\x00k", "\xff\xff\xff\xff\x1fk", "\xff\xff\xff\xff\xff\x01k"} {
		if id, _, err := mcbp.SplitCollectionKey([]byte(key)); !errors.Is(err, mcbp.ErrMalformed) {
			t.Errorf("%x: id %x, %v", key, id, err)
		}
	}
	if id, rest, err := mcbp.SplitCollectionKey([]byte("\xff\xff\xff\xff\x0fk")); err != nil || id != 1<<32-1 || string(rest) != "k" {
		t.Error(id, rest, err)
	}
	for _, n := range []int{0, 1, 15, 17} {
		if _, err := mcbp.ParseFailoverLog(make([]byte, n)); !errors.Is(err, mcbp.ErrMalformed) {
			t.Errorf("a failover log of %d bytes: %v", n, err)
		}
	}
	for _, p := range [][]byte{make([]byte, 9), make([]byte, 20)} { // the latter lists vbucket 0 twice
		if _, err := mcbp.ParseAllVBSeqnos(p); !errors.Is(err, mcbp.ErrMalformed) {
			t.Errorf("%x: %v", p, err)
		}
	}
	if got, err := mcbp.ParseAllVBSeqnos(nil); err != nil || len(got) != 0 {
		t.Error(got, err) // warming up
	}
	if _, err := mcbp.ParseHello([]byte{0}); !errors.Is(err, mcbp.ErrMalformed) {
		t.Error(err)
	}
	if _, err := mcbp.ParseRollback(make([]byte, 7)); !errors.Is(err, mcbp.ErrMalformed) {
		t.Error(err)
	}
	var s mcbp.StreamReq
	wrong := frame(mcbp.OpDcpStreamReq, 40, 48)
	if err := s.Parse(&wrong); !errors.Is(err, mcbp.ErrMalformed) {
		t.Error(err)
	}
	for op := mcbp.OpDcpOpen; op <= mcbp.OpDcpOSOSnapshot; op++ {
		if !mcbp.IsDcp(op) || strings.Contains(mcbp.OpcodeName(op), "UPR") {
			t.Errorf("0x%02x is %s", uint8(op), mcbp.OpcodeName(op))
		}
	}
	if mcbp.IsDcp(mcbp.OpGet) || mcbp.IsDcp(mcbp.OpTapMutation) {
		t.Error("not DCP")
	}
}

// dcpStream is the server's side of a recorded stream, from the first marker on.
func dcpStream(tb testing.TB, name string) []byte {
	c, err := capture.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	packets, _ := c.Packets(capture.Server)
	var out []byte
	for _, p := range packets {
		if p[0] == mcbp.MagicRequest {
			out = append(out, p...)
		}
	}
	return out
}

// dcpDecoder returns a function that decodes as many messages as fill an arena.
func dcpDecoder(tb testing.TB, stream []byte) func() int {
	r := mcbp.NewReader(&loop{stream: stream})
	arena := make([]byte, 256<<10)
	var m mcbp.DcpMessage
	return func() int {
		r.Attach(arena)
		for n := 0; ; {
			f, err := r.Decode()
			switch {
			case err == nil:
				if err := m.Parse(&f); err != nil {
					tb.Fatal(err)
				}
				switch {
				case m.Opcode == mcbp.OpDcpSystemEvent:
					if _, err := m.ParseSystemEvent(); err != nil {
						tb.Fatal(err)
					}
				case len(m.Key) > 0:
					if _, _, err := mcbp.SplitCollectionKey(m.Key); err != nil {
						tb.Fatal(err)
					}
				}
				n++
			case err == mcbp.ErrNeedMore && !r.Full():
				if err := r.Fill(); err != nil {
					tb.Fatal(err)
				}
			case err == mcbp.ErrNeedMore:
				r.Detach()
				return n
			default:
				tb.Fatal(err)
			}
		}
	}
}

// dcpEncoders are the encoders that run per item or per acknowledgement.
func dcpEncoders() map[string]func(dst []byte) []byte {
	m := mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, VBucket: 5, Seqno: 6, Rev: 7, Key: []byte("\x08doc:0000000001"), Value: make([]byte, 256)}
	d := mcbp.DcpMessage{Opcode: mcbp.OpDcpDeletion, VBucket: 5, Seqno: 6, Rev: 7, Key: []byte("\x08doc:0000000001")}
	return map[string]func([]byte) []byte{
		"mutation":   func(dst []byte) []byte { return m.Append(dst, true) },
		"deletion":   func(dst []byte) []byte { return d.Append(dst, true) },
		"buffer ack": func(dst []byte) []byte { return mcbp.AppendDcpBufferAck(dst, 1000) },
		"collection": func(dst []byte) []byte { return mcbp.AppendCollectionID(dst, 0x1234) },
	}
}

func TestDcpDoesNotAllocate(t *testing.T) {
	decode := dcpDecoder(t, dcpStream(t, "7.0-dcp-collections"))
	decode() // the carry between two arenas gets its memory once
	if n := testing.AllocsPerRun(20, func() { decode() }); n != 0 {
		t.Errorf("decoding: %v allocations for an arena of messages", n)
	}
	buf := make([]byte, 0, 4096)
	for name, encode := range dcpEncoders() {
		if n := testing.AllocsPerRun(100, func() { buf = encode(buf[:0]) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkDcpDecode decodes mutations of 256 bytes with collections.
func BenchmarkDcpDecode(b *testing.B) {
	var stream []byte
	for i := range 1000 {
		m := mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, VBucket: 5, Seqno: uint64(i), Rev: 1, CAS: 9, Key: fmt.Appendf(nil, "\x08doc:%010d", i), Value: make([]byte, 256)}
		stream = m.Append(stream, true)
	}
	decode := dcpDecoder(b, stream)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n += decode()
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "items/s")
}

func BenchmarkDcpEncode(b *testing.B) {
	for _, name := range slices.Sorted(maps.Keys(dcpEncoders())) {
		encode := dcpEncoders()[name]
		b.Run(name, func(b *testing.B) {
			buf := encode(nil)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				buf = encode(buf[:0])
			}
		})
	}
}

// seedDcp adds every kind of message that was recorded.
func seedDcp(f *testing.F) {
	f.Helper()
	for _, name := range []string{"7.0-dcp-collections", "6.0-dcp-stream", "4.0-dcp-stream", "6.6-dcp-stream-expiry-opcode", "7.0-dcp-durable-sync", "7.0-dcp-filter-collection"} {
		for _, p := range splitPackets(dcpStream(f, name)) {
			if len(p) <= 300 {
				f.Add(p)
			}
		}
	}
	f.Add(header(0x80, 0xffff, 0xff, 10))
}

func splitPackets(stream []byte) [][]byte {
	packets, _ := capture.Split(stream)
	return packets
}

func FuzzDcpMessage(f *testing.F) {
	seedDcp(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		frame, ok := oneFrame(p)
		var m mcbp.DcpMessage
		var err error
		if ok {
			err = m.Parse(&frame)
		}
		// What an earlier message left behind must not show.
		quick := mcbp.DcpMessage{SnapEnd: 1, Version: 1, Meta: []byte{1}, Key: []byte{1}, Value: []byte{1}}
		r := holding(p)
		n := r.NextDcp(&quick)
		if due := ok && err == nil && m.Opcode == mcbp.OpDcpMutation && frame.Magic == mcbp.MagicRequest; n > 0 != due {
			t.Fatalf("a mutation in one pass: %d bytes, by steps: %v", n, due)
		}
		switch {
		case n > 0 && (!reflect.DeepEqual(quick, m) || n != mcbp.HeaderLen+len(frame.Body) || r.Buffered() != len(p)-n):
			t.Fatalf("%+v in one pass, by steps %+v; %d bytes are left", quick, m, r.Buffered())
		case n == 0 && r.Buffered() != len(p):
			t.Fatal("what was not decoded was taken")
		case !ok:
			return
		case err != nil:
			if !named(err) {
				t.Fatal(err)
			}
			return
		}
		if frame.Opcode == mcbp.OpDcpSnapshotMarker && frame.ExtLen == 1 || frame.Opcode == mcbp.OpDcpNoop {
			return
		}
		if len(m.Key)+len(m.Value)+len(m.Meta)+int(frame.ExtLen) != len(frame.Body) {
			t.Fatalf("%d, %d, %d and %d bytes of %d", len(m.Key), len(m.Value), len(m.Meta), frame.ExtLen, len(frame.Body))
		}
		// An expiration of 21 bytes is written with 20.
		if frame.Opcode == mcbp.OpDcpExpiration && frame.ExtLen == 21 || frame.Opcode == mcbp.OpDcpDeletion && frame.ExtLen == 20 {
			return
		}
		again := decodeOne(t, m.Append(nil, frame.ExtLen == 20 || frame.ExtLen == 21))
		var back mcbp.DcpMessage
		if err := back.Parse(&again); err != nil || fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", m) {
			t.Fatalf("%+v\n%+v\n%v", m, back, err)
		}
		if e, err := m.ParseSystemEvent(); err == nil && !bytes.Equal(e.AppendValue(nil), m.Value) {
			t.Fatalf("%+v", e)
		}
	})
}

func FuzzCollectionKey(f *testing.F) {
	f.Add([]byte("\x08key"))
	f.Add([]byte("\xb4\x24key"))
	f.Add([]byte("\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, p []byte) {
		id, key, err := mcbp.SplitCollectionKey(p)
		if err != nil {
			if !errors.Is(err, mcbp.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := append(mcbp.AppendCollectionID(nil, id), key...); !bytes.Equal(again, p) {
			t.Fatalf("%x becomes %x", p, again)
		}
	})
}

// FuzzDcpLists decodes the values of answers.
func FuzzDcpLists(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add(make([]byte, 10))
	f.Fuzz(func(t *testing.T, p []byte) {
		if log, err := mcbp.ParseFailoverLog(p); err == nil && !bytes.Equal(mcbp.AppendFailoverLog(nil, log), p) {
			t.Fatalf("%x: %v", p, log)
		}
		if seqnos, err := mcbp.ParseAllVBSeqnos(p); err == nil && 10*len(seqnos) != len(p) {
			t.Fatalf("%x: %v", p, seqnos)
		}
		if features, err := mcbp.ParseHello(p); err == nil && 2*len(features) != len(p) {
			t.Fatalf("%x: %v", p, features)
		}
		if seqno, err := mcbp.ParseRollback(p); err == nil && binary.BigEndian.Uint64(p) != seqno {
			t.Fatalf("%x: %d", p, seqno)
		}
	})
}
