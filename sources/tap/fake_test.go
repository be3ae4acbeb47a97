package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// fakeNode is a node that answers logins, statistics and versions from its
// fields and hands each TAP connection to tap.
type fakeNode struct {
	t  testing.TB
	l  net.Listener
	wg sync.WaitGroup

	conversations sync.WaitGroup // one for each connection

	mu        sync.Mutex
	conns     map[net.Conn]bool
	vbs       map[uint16]cluster.VBInfo
	version   string
	queue     int    // ep_queue_size
	noDetails bool   // as a bucket of memcached type
	login     string // bucket and password joined by a colon; "" lets everyone in
	connects  []mcbp.TapConnect
	asked     int         // how often vbucket-details was asked
	onAsk     func(n int) // called with mu held before the n-th answer, from 1

	// tap plays a dump. n counts the dumps from 0. It may write to c and read from
	// r; when it returns, the node ends its direction and waits for the client to
	// close.
	tap func(n int, req mcbp.TapConnect, c net.Conn, r *mcbp.Reader) error
}

func startFake(t testing.TB, vbs map[uint16]cluster.VBInfo, tap func(n int, req mcbp.TapConnect, c net.Conn, r *mcbp.Reader) error) *fakeNode {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeNode{t: t, l: l, conns: map[net.Conn]bool{}, vbs: vbs, version: "2.5.1", tap: tap}
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns[c] = true
			f.mu.Unlock()
			f.conversations.Add(1)
			f.wg.Go(func() {
				defer f.conversations.Done()
				f.serve(c)
			})
		}
	})
	t.Cleanup(f.close)
	return f
}

func (f *fakeNode) addr() string { return f.l.Addr().String() }

func (f *fakeNode) url() string { return "tap://" + f.addr() }

// close cuts every connection, as a node that dies, and waits.
func (f *fakeNode) close() {
	_ = f.l.Close()
	f.mu.Lock()
	for c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

func (f *fakeNode) set(vb uint16, info cluster.VBInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.vbs[vb] = info
}

func (f *fakeNode) requests() []mcbp.TapConnect {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.connects)
}

func (f *fakeNode) serve(c net.Conn) {
	defer c.Close()
	r := mcbp.NewReader(c)
	for {
		p, err := r.Next()
		if err != nil {
			return
		}
		h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: p.Opcode, Opaque: p.Opaque}
		var out []byte
		switch p.Opcode {
		case mcbp.OpTapConnect:
			req, err := mcbp.ParseTapConnect(p)
			if err != nil {
				f.t.Errorf("TAP_CONNECT: %v", err)
				return
			}
			f.mu.Lock()
			n := len(f.connects)
			f.connects = append(f.connects, req)
			f.mu.Unlock()
			err = f.tap(n, req, c, r)
			if errors.Is(err, errAbrupt) {
				return
			}
			if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
				f.t.Logf("dump %d: %v", n, err)
			}
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			return
		case mcbp.OpSASLList:
			out = mcbp.AppendFrame(nil, h, nil, nil, []byte("PLAIN"))
		case mcbp.OpSASLAuth:
			want := slices.Index(p.Value()[1:], 0) + 1
			if f.login != "" && string(p.Value()[1:want])+":"+string(p.Value()[want+1:]) != f.login {
				h.VBucket = uint16(mcbp.StatusAuthError)
			}
			out = mcbp.AppendFrame(nil, h, nil, nil, nil)
		case mcbp.OpVersion:
			out = mcbp.AppendFrame(nil, h, nil, nil, []byte(f.version))
		case mcbp.OpStat:
			out = f.stats(h, string(p.Key()))
		default:
			h.VBucket = uint16(mcbp.StatusUnknown)
			out = mcbp.AppendFrame(nil, h, nil, nil, nil)
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// errAbrupt makes the node close without a FIN of its own first.
var errAbrupt = errors.New("close at once")

func (f *fakeNode) stats(h mcbp.Header, group string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []byte
	add := func(name, value string) { out = mcbp.AppendFrame(out, h, nil, []byte(name), []byte(value)) }
	if f.noDetails && group == "vbucket-details" {
		group = "unknown"
	}
	switch group {
	case "":
		add("ep_queue_size", fmt.Sprint(f.queue))
		add("ep_flusher_todo", "0")
	case "vbucket-details":
		if f.asked++; f.onAsk != nil {
			f.onAsk(f.asked)
		}
		for vb, info := range f.vbs {
			add(fmt.Sprintf("vb_%d", vb), info.State.String())
			add(fmt.Sprintf("vb_%d:num_items", vb), fmt.Sprint(info.Items))
		}
	default:
		h.VBucket = uint16(mcbp.StatusNotFound)
		return mcbp.AppendFrame(nil, h, nil, nil, nil)
	}
	add("", "")
	return out
}

// playCapture plays the server's side of a recorded dump, up to cut bytes of it
// (all if negative): where the recorded server had been answered before it went
// on, it waits until the last acknowledgement it asked for has come.
func playCapture(c *capture.Capture, cut int, w net.Conn, r *mcbp.Reader) error {
	var unanswered []byte // what was sent since the last wait
	var sent int
	await := false
	for i, ch := range c.Chunks {
		if ch.From == capture.Client {
			await = await || !ch.EOF && i > 0
			continue
		}
		if await {
			if err := awaitAck(unanswered, r); err != nil {
				return err
			}
			await, unanswered = false, nil
		}
		if ch.EOF {
			return nil
		}
		b := ch.Bytes
		if cut >= 0 && sent+len(b) >= cut {
			_, err := w.Write(b[:cut-sent])
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		sent += len(b)
		unanswered = append(unanswered, b...)
	}
	return nil
}

// awaitAck reads until the last message of stream that asked for an
// acknowledgement has it.
func awaitAck(stream []byte, r *mcbp.Reader) error {
	packets, _ := capture.Split(stream)
	asked := false
	var opaque uint32
	for _, p := range packets {
		if p[1] >= 0x41 && p[1] <= 0x47 && p[mcbp.HeaderLen+3]&mcbp.TapMsgAck != 0 {
			asked, opaque = true, binary.BigEndian.Uint32(p[12:])
		}
	}
	for asked {
		p, err := r.Next()
		if err != nil {
			return err
		}
		if p.Magic != mcbp.MagicResponse || p.Status() != mcbp.StatusOK {
			return fmt.Errorf("the client sent %s with magic %#x and status %v for an acknowledgement", mcbp.OpcodeName(p.Opcode), p.Magic, p.Status())
		}
		asked = p.Opaque != opaque
	}
	return nil
}

// script is a dump made up message by message.
type script struct {
	out    []byte
	opaque uint32
}

func (s *script) send(m mcbp.TapMessage) *script {
	s.opaque++
	m.Opaque, m.TTL = s.opaque, 0xff
	s.out = m.Append(s.out)
	return s
}

func (s *script) opaqueCmd(vb uint16, command uint32) *script {
	return s.send(mcbp.TapMessage{Opcode: mcbp.OpTapOpaque, VBucket: vb, MsgFlags: mcbp.TapMsgAck, Engine: binary.BigEndian.AppendUint32(nil, command)})
}

func (s *script) begin(vbs ...uint16) *script {
	s.opaqueCmd(0, 0)
	for _, vb := range vbs {
		s.opaqueCmd(vb, mcbp.TapOpaqueInitialStream)
	}
	return s
}

func (s *script) items(vb uint16, n int) *script {
	for i := range n {
		s.send(mcbp.TapMessage{Opcode: mcbp.OpTapMutation, VBucket: vb, MsgFlags: mcbp.TapMsgNetworkOrder, CAS: uint64(i + 1), Rev: 1,
			Key: fmt.Appendf(nil, "key-%d-%d", vb, i), Value: fmt.Appendf(nil, "value %d", i)})
	}
	return s
}

func (s *script) finish(vbs ...uint16) *script {
	for _, vb := range vbs {
		s.opaqueCmd(vb, mcbp.TapOpaqueCloseBackfill)
	}
	return s
}

func (s *script) noop() *script {
	s.opaque++
	s.out = mcbp.AppendNoop(s.out, s.opaque)
	return s
}

// play writes the script and waits for the last acknowledgement it asks for.
func (s *script) play(c net.Conn, r *mcbp.Reader) error {
	if _, err := c.Write(s.out); err != nil {
		return err
	}
	return awaitAck(s.out, r)
}

func active(items uint64) cluster.VBInfo {
	return cluster.VBInfo{State: mcbp.VBActive, Items: items}
}
