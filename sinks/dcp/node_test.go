package dcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/mc"
)

// greedyNode is a node that acknowledges nothing as long as more keeps coming, and
// that may lose items without a word.
type greedyNode struct {
	t      *testing.T
	ln     net.Listener
	wg     sync.WaitGroup
	window int
	lose   func(key string) bool

	mu    sync.Mutex
	most  int // bytes that were unacknowledged at once
	acks  int
	total int
	high  uint64
	docs  map[string]bool
}

func startGreedy(t *testing.T, window int, lose func(key string) bool) *greedyNode {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &greedyNode{t: t, ln: ln, window: window, lose: lose, docs: map[string]bool{}}
	n.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n.wg.Go(func() { n.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); n.wg.Wait() })
	return n
}

func (n *greedyNode) serve(c net.Conn) {
	defer c.Close()
	rd := mcbp.NewReader(c)
	unacked := 0
	for {
		f, err := rd.Decode()
		if err == mcbp.ErrNeedMore {
			// Nothing more comes although it could: the client waits for its window.
			_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			err = rd.Fill()
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				if unacked > 0 {
					_, _ = c.Write(mcbp.AppendDcpBufferAck(nil, uint32(unacked)))
					unacked = 0
					n.mu.Lock()
					n.acks++
					n.mu.Unlock()
				}
			case err != nil:
				return
			}
			continue
		}
		if err != nil {
			n.t.Error(err)
			return
		}
		if f.Magic == mcbp.MagicResponse {
			continue
		}
		h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque}
		n.mu.Lock()
		switch f.Opcode {
		case mcbp.OpHello:
			_, _ = c.Write(mcbp.AppendFrame(nil, h, nil, nil, f.Value()))
		case mcbp.OpDcpAddStream:
			out := mcbp.AppendDcpControl(nil, 1, "connection_buffer_size", fmt.Sprint(n.window))
			req := mcbp.StreamReq{VBucket: f.VBucket, Opaque: 7, End: ^uint64(0)}
			out = req.Append(out)
			_, _ = c.Write(mcbp.AppendFrame(out, h, []byte{0, 0, 0, 7}, nil, nil))
		case mcbp.OpGetAllVBSeqnos:
			v := binary.BigEndian.AppendUint64([]byte{0, 5}, n.high)
			_, _ = c.Write(mcbp.AppendFrame(nil, h, nil, nil, v))
		case mcbp.OpStat:
			out := mcbp.AppendFrame(nil, h, nil, []byte("vb_5"), []byte("replica"))
			out = mcbp.AppendFrame(out, h, nil, []byte("vb_5:num_items"), fmt.Append(nil, len(n.docs)))
			_, _ = c.Write(mcbp.AppendFrame(out, h, nil, nil, nil))
		case mcbp.OpDcpNoop, mcbp.OpDcpOpen:
			_, _ = c.Write(mcbp.AppendFrame(nil, h, nil, nil, nil))
		default:
			unacked += mcbp.HeaderLen + int(f.BodyLen)
			n.total += mcbp.HeaderLen + int(f.BodyLen)
			n.most = max(n.most, unacked)
			var m mcbp.DcpMessage
			if err := m.Parse(&f); err != nil {
				n.t.Error(err)
			}
			switch key := string(m.Key); {
			case m.Opcode == mcbp.OpDcpSnapshotMarker:
			case m.Opcode == mcbp.OpDcpDeletion:
				delete(n.docs, key)
				n.high = m.Seqno
			default:
				if n.high = m.Seqno; n.lose == nil || !n.lose(key) {
					n.docs[key] = true
				}
			}
		}
		n.mu.Unlock()
	}
}

func (n *greedyNode) link(timeout time.Duration) *link {
	n.t.Helper()
	d := &dialect{timeout: timeout}
	cfg := cluster.KVConfig{Addr: n.ln.Addr().String(), Role: "destination", Version: cluster.Version{Major: 6, Minor: 6}}
	conn, opened, err := d.open(n.t.Context(), cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	admin, err := cluster.DialKV(n.t.Context(), cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	l := newLink(d, func() *cluster.Manifest { return nil }, conn, admin, opened.DeleteTimes, mc.TraitsOf(conn, &cluster.Bucket{}))
	n.t.Cleanup(func() { l.Close() })
	return l
}

// round pushes items into vbucket 5.
func round(t *testing.T, l *link, items ...pump.Item) error {
	t.Helper()
	refused, err := l.Begin(t.Context(), []uint16{5})
	if err != nil || refused != nil {
		t.Fatalf("begin: %v, %v", refused, err)
	}
	for i := range items {
		items[i].VBucket = 5
		l.Append(i, &items[i])
	}
	refusals, err := l.Wait()
	if len(refusals) > 0 {
		t.Fatalf("refused: %+v", refusals)
	}
	return err
}

// TestWindow: a node that is slow to acknowledge gets no more than its window, and
// everything in the end.
func TestWindow(t *testing.T) {
	const window, size = 256 << 10, 10 << 10
	n := startGreedy(t, window, nil)
	l := n.link(20 * time.Second)
	var items []pump.Item
	for i := range 200 {
		it := item(fmt.Sprint("k", i), 1, 5)
		it.Value = make([]byte, size)
		items = append(items, it)
	}
	if err := round(t, l, items...); err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.most > window || n.total < 200*size || n.acks < n.total/window {
		t.Errorf("%d bytes were under way with a window of %d, of %d in all; %d acknowledgements", n.most, window, n.total, n.acks)
	}
}

// TestCount: a node that says that it took everything and counts too few items has
// not confirmed anything.
func TestCount(t *testing.T) {
	n := startGreedy(t, 1<<20, func(key string) bool { return key == "lost" })
	l := n.link(100 * time.Millisecond)
	gone := item("b", 2, 9)
	gone.Op = pump.Deletion
	for _, items := range [][]pump.Item{
		{item("a", 1, 1), item("b", 1, 2), item("a", 2, 3)}, // 2 keys
		{item("a", 3, 4)},       // nothing new
		{gone, item("c", 1, 5)}, // one goes, one comes
		{item("d", 1, 6), {Op: pump.Deletion, Key: []byte("d"), CAS: 7, RevSeqno: 2}},
	} {
		if err := round(t, l, items...); err != nil {
			t.Fatal(err)
		}
	}
	if s := l.streams[5]; s.floor != 0 || len(n.docs) != 2 { // a and c; d may have been there before
		t.Errorf("at least %d live items are taken for sure, there are %d", s.floor, len(n.docs))
	}
	err := round(t, l, item("x", 1, 1), item("lost", 1, 2), item("y", 1, 3), item("lost2", 1, 4), item("a", 9, 9))
	if err != nil {
		t.Fatalf("5 keys of 6: %v", err) // 6 are there, 5 are certain
	}
	n.docs = map[string]bool{}
	err = round(t, l, item("x", 2, 1), item("lost", 2, 2))
	if pump.CodeOf(err) != "items-missing" || !pump.IsRetryable(err) || !strings.Contains(err.Error(), "vbucket 5") || !strings.Contains(err.Error(), "counts 1 live items, while there must be 5") {
		t.Errorf("got %v", err)
	}
}
