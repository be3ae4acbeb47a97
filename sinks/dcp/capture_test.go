package dcp

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/mc"
)

func parse(t *testing.T, packets [][]byte) []mcbp.Frame {
	t.Helper()
	out := make([]mcbp.Frame, len(packets))
	for i, p := range packets {
		f, err := mcbp.NewReader(bytes.NewReader(p)).Next()
		if err != nil {
			t.Fatal(err)
		}
		f.Body = bytes.Clone(f.Body)
		out[i] = f
	}
	return out
}

func packet(f *mcbp.Frame) []byte { return append(f.Header.Append(nil), f.Body...) }

// recordedNode plays the node of a recording: what it asked, word for word, and its
// answers. It keeps what is pushed.
type recordedNode struct {
	t        *testing.T
	recorded []mcbp.Frame          // what it asked of the client
	answers  map[uint32]mcbp.Frame // the recorded client's answers
	refusal  []byte                // the answer to the item that it refuses, if any
	refuses  func(*mcbp.DcpMessage) bool
	prefixed bool

	mu     sync.Mutex
	high   map[uint16]uint64
	pushed [][]byte
}

func (n *recordedNode) serve(c net.Conn) {
	defer c.Close()
	rd := mcbp.NewReader(c)
	var add mcbp.Frame
	asked := 0
	say := func(f *mcbp.Frame, s mcbp.Status, extras, value []byte) {
		h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque, VBucket: uint16(s)}
		_, _ = c.Write(mcbp.AppendFrame(nil, h, extras, nil, value))
	}
	ask := func() {
		if asked < len(n.recorded) {
			_, _ = c.Write(packet(&n.recorded[asked]))
			asked++
			return
		}
		say(&add, mcbp.StatusOK, []byte{0, 0, 0, 1}, nil)
	}
	for {
		f, err := rd.Next()
		if err != nil {
			return
		}
		f.Body = bytes.Clone(f.Body)
		if f.Magic == mcbp.MagicResponse {
			want := n.answers[f.Opaque]
			if f.Opcode == mcbp.OpDcpStreamReq { // the history is ours to name
				if log, err := mcbp.ParseFailoverLog(f.Value()); err != nil || len(log) != 1 || log[0].UUID == 0 || log[0].Seqno != 0 {
					n.t.Errorf("STREAM_REQ is answered with %x", f.Value())
				}
				f.Body = want.Body
			}
			if !bytes.Equal(packet(&f), packet(&want)) {
				n.t.Errorf("%s is answered\n%x, recorded\n%x", mcbp.OpcodeName(f.Opcode), packet(&f), packet(&want))
			}
			ask()
			continue
		}
		switch f.Opcode {
		case mcbp.OpHello:
			say(&f, mcbp.StatusOK, nil, f.Value())
		case mcbp.OpDcpOpen:
			if !bytes.Equal(f.Extras(), []byte{0, 0, 0, 0, 0, 0, 0, 0x20}) {
				n.t.Errorf("DCP_OPEN has %x", f.Extras())
			}
			say(&f, mcbp.StatusOK, nil, nil)
		case mcbp.OpDcpAddStream:
			add = f
			if !bytes.Equal(f.Extras(), make([]byte, 4)) {
				n.t.Errorf("ADD_STREAM has %x", f.Extras())
			}
			ask()
		case mcbp.OpDcpNoop:
			say(&f, mcbp.StatusOK, nil, nil)
		case mcbp.OpGetAllVBSeqnos:
			var value []byte
			n.mu.Lock()
			for vb, high := range n.high {
				value = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint16(value, vb), high)
			}
			n.mu.Unlock()
			say(&f, mcbp.StatusOK, nil, value)
		case mcbp.OpStat:
			h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque}
			vb := strings.TrimPrefix(string(f.Key()), "vbucket-details ")
			out := mcbp.AppendFrame(nil, h, nil, []byte("vb_"+vb), []byte("replica"))
			out = mcbp.AppendFrame(out, h, nil, []byte("vb_"+vb+":num_items"), []byte("1000"))
			_, _ = c.Write(mcbp.AppendFrame(out, h, nil, nil, nil))
		default:
			n.mu.Lock()
			n.pushed = append(n.pushed, packet(&f))
			var m mcbp.DcpMessage
			if err := m.Parse(&f); err != nil {
				n.t.Error(err)
			}
			if n.refuses(&m) {
				_, _ = c.Write(n.refusal)
			} else if m.Opcode != mcbp.OpDcpSnapshotMarker {
				n.high[f.VBucket] = m.Seqno
			}
			n.mu.Unlock()
		}
	}
}

// TestCapturedConsumers plays the nodes of the recordings: what they ask is answered
// as recorded, and the same items make the same packets.
func TestCapturedConsumers(t *testing.T) {
	capture.Replays(t, "sinks/dcp.TestCapturedConsumers", "6.0-dcp-consumer", "7.0-dcp-consumer-collections")
	for name, version := range map[string]cluster.Version{
		"6.0-dcp-consumer":             {Major: 6},
		"7.0-dcp-consumer-collections": {Major: 7},
	} {
		t.Run(name, func(t *testing.T) {
			rec, err := capture.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			client, _ := rec.Packets(capture.Client)
			server, _ := rec.Packets(capture.Server)
			collections := version.Major >= 7
			n := &recordedNode{t: t, answers: map[uint32]mcbp.Frame{}, prefixed: collections, high: map[uint16]uint64{}, refuses: func(m *mcbp.DcpMessage) bool {
				return m.Opcode == mcbp.OpDcpMutation && len(m.Key) > 0 && m.Key[0] == 0x55
			}}
			for i, f := range parse(t, server) {
				switch {
				case f.Magic == mcbp.MagicRequest:
					n.recorded = append(n.recorded, f)
				case f.Opcode == mcbp.OpDcpMutation:
					n.refusal = server[i]
				}
			}
			// What the recorded client pushed, and the items that this was.
			var want [][]byte
			var items []pump.Item
			for i, f := range parse(t, client) {
				if f.Magic == mcbp.MagicResponse {
					n.answers[f.Opaque] = f
					continue
				}
				if f.Opcode < mcbp.OpDcpSnapshotMarker || f.Opcode > mcbp.OpDcpSystemEvent || f.Opcode == mcbp.OpDcpSetVBucketState {
					continue
				}
				var m mcbp.DcpMessage
				if err := m.Parse(&f); err != nil {
					t.Fatal(err)
				}
				if f.Opcode == mcbp.OpDcpSnapshotMarker && m.Seqno == 0 {
					m.Seqno = 1 // one client began its snapshots before the first item, the other with it
					client[i] = m.Append(nil, false)
				}
				want = append(want, client[i])
				it := pump.Item{VBucket: m.VBucket, Datatype: m.Datatype, Flags: m.Flags, Expiry: m.Expiry, CAS: m.CAS, RevSeqno: m.Rev, Key: m.Key, Value: m.Value}
				switch f.Opcode {
				case mcbp.OpDcpMutation:
				case mcbp.OpDcpDeletion:
					it.Op = pump.Deletion
				case mcbp.OpDcpExpiration:
					it.Op = pump.Expiration
				default:
					continue
				}
				items = append(items, it)
			}

			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					wg.Go(func() { n.serve(c) })
				}
			})
			defer wg.Wait()
			defer ln.Close()
			d := &dialect{timeout: 10 * time.Second}
			cfg := cluster.KVConfig{Addr: ln.Addr().String(), Role: "destination", Version: version}
			conn, opened, err := d.open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Features = []uint16{mcbp.FeatureCollections}
			admin, err := cluster.DialKV(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			manifest := cluster.DefaultManifest()
			manifest.UID = 1
			manifest.Scopes = append(manifest.Scopes, cluster.Scope{ID: 8, Name: "shop", Collections: []cluster.Collection{{ID: 8, Name: "items"}}})
			l := newLink(d, func() *cluster.Manifest { return manifest }, conn, admin, opened.DeleteTimes, mc.TraitsOf(conn, &cluster.Bucket{}))
			defer l.Close()
			if l.traits.Collections != collections {
				t.Fatalf("collections: %v", l.traits.Collections)
			}
			round := func(items []pump.Item) []mc.Refusal {
				t.Helper()
				refused, err := l.Begin(t.Context(), []uint16{items[0].VBucket})
				if err != nil || refused != nil {
					t.Fatalf("begin: %v, %v", refused, err)
				}
				for i := range items {
					l.Append(i, &items[i])
				}
				refusals, err := l.Wait()
				if err != nil {
					t.Fatal(err)
				}
				return refusals
			}
			whole := items
			if collections {
				whole = items[:len(items)-1] // the last one is in a collection that is not there
			}
			if r := round(whole); len(r) != 0 {
				t.Errorf("refused: %+v", r)
			}
			if collections {
				// It is the only item of its round, and yet the answer names only the stream.
				again := round(items[len(items)-1:])
				if len(again) != 1 || again[0].Again == nil || again[0].Status != mcbp.StatusUnknownCollection {
					t.Errorf("the unknown collection: %+v", again)
				}
				if n.pushed = n.pushed[:len(want)]; !slices.EqualFunc(n.pushed, want, bytes.Equal) {
					t.Errorf("pushed\n%x, recorded\n%x", n.pushed, want)
				}
				found := round(items[len(items)-1:])
				if len(found) != 1 || found[0].Again != nil || found[0].Index != 0 || found[0].Status != mcbp.StatusUnknownCollection {
					t.Errorf("alone: %+v", found)
				}
				return
			}
			if !slices.EqualFunc(n.pushed, want, bytes.Equal) {
				t.Errorf("pushed\n%x, recorded\n%x", n.pushed, want)
			}
		})
	}
}
