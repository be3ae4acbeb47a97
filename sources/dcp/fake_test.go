package dcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// fakeNode is a node that answers HELLO, statistics, seqnos and the opening of
// DCP connections from its fields and hands each STREAM_REQ to stream.
type fakeNode struct {
	t       testing.TB
	l       net.Listener
	wg      sync.WaitGroup
	version cluster.Version
	grant   []uint16 // features that are granted if asked for

	mu       sync.Mutex
	conns    map[net.Conn]bool
	vbs      map[uint16]cluster.VBInfo
	high     map[uint16]uint64
	manifest string
	controls []string
	opens    []uint32 // flags
	requests []mcbp.StreamReq
	acked    uint64
	answered int // NOOPs
	refuse   map[mcbp.Opcode]mcbp.Status
	onAsk    func(n int) // called with mu held before the n-th answer to vbucket-details
	asked    int
	closed   int  // CLOSE_STREAMs
	growing  bool // every question for seqnos finds one more
	onAck    func(n uint32)
	onOpen   func(name string)
	onSeqnos func() // called with mu held before each answer to GET_ALL_VB_SEQNOS

	// stream plays a stream. n counts the requests of the node from 0. It returns
	// what is to be written; errAbrupt closes the connection behind it.
	stream func(n int, req mcbp.StreamReq, c net.Conn) ([]byte, error)
}

func startFake(t testing.TB, version cluster.Version, vbs map[uint16]cluster.VBInfo, high map[uint16]uint64,
	stream func(n int, req mcbp.StreamReq, c net.Conn) ([]byte, error)) *fakeNode {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeNode{t: t, l: l, version: version, conns: map[net.Conn]bool{}, vbs: vbs, high: high, stream: stream,
		refuse:   map[mcbp.Opcode]mcbp.Status{},
		manifest: `{"uid":"0","scopes":[{"uid":"0","name":"_default","collections":[{"uid":"0","name":"_default"}]}]}`,
		grant:    []uint16{mcbp.FeatureXattr, mcbp.FeatureXerror, mcbp.FeatureSelect, mcbp.FeatureSnappy, mcbp.FeatureJSON, mcbp.FeatureCollections}}
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns[c] = true
			f.mu.Unlock()
			f.wg.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(f.close)
	return f
}

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

// finish waits until the clients have gone by themselves.
func (f *fakeNode) finish() {
	_ = f.l.Close()
	f.wg.Wait()
}

// errAbrupt makes the node close the connection.
var errAbrupt = errors.New("close at once")

func (f *fakeNode) serve(c net.Conn) {
	defer c.Close()
	r := mcbp.NewReader(c)
	for {
		p, err := r.Next()
		if err != nil {
			return
		}
		out, err := f.answer(c, &p)
		if _, werr := c.Write(out); werr != nil {
			return
		}
		if err != nil {
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			return
		}
	}
}

func (f *fakeNode) answer(c net.Conn, p *mcbp.Frame) ([]byte, error) {
	f.mu.Lock()
	h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: p.Opcode, Opaque: p.Opaque}
	if status, ok := f.refuse[p.Opcode]; ok {
		defer f.mu.Unlock()
		h.VBucket = uint16(status)
		return mcbp.AppendFrame(nil, h, nil, nil, nil), nil
	}
	if p.Opcode == mcbp.OpDcpStreamReq {
		var req mcbp.StreamReq
		if err := req.Parse(p); err != nil {
			f.t.Errorf("STREAM_REQ: %v", err)
		}
		req.Filter = slices.Clone(req.Filter)
		if len(f.controls) == 0 {
			f.t.Error("STREAM_REQ came before enable_noop")
		}
		n := len(f.requests)
		f.requests = append(f.requests, req)
		f.mu.Unlock()
		return f.stream(n, req, c)
	}
	defer f.mu.Unlock()
	switch p.Opcode {
	case mcbp.OpHello:
		asked, err := mcbp.ParseHello(p.Value())
		if err != nil {
			f.t.Errorf("HELLO: %v", err)
		}
		var granted []byte
		for _, feature := range asked {
			if slices.Contains(f.grant, feature) {
				granted = binary.BigEndian.AppendUint16(granted, feature)
			}
		}
		return mcbp.AppendFrame(nil, h, nil, nil, granted), nil
	case mcbp.OpStat:
		return f.stats(h, string(p.Key())), nil
	case mcbp.OpGetAllVBSeqnos:
		if f.onSeqnos != nil {
			f.onSeqnos()
		}
		var v []byte
		for _, vb := range slices.Sorted(maps.Keys(f.high)) {
			v = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint16(v, vb), f.high[vb])
		}
		if f.growing {
			for vb := range f.high {
				f.high[vb]++
			}
		}
		return mcbp.AppendFrame(nil, h, nil, nil, v), nil
	case mcbp.OpGetManifest:
		return mcbp.AppendFrame(nil, h, nil, nil, []byte(f.manifest)), nil
	case mcbp.OpDcpOpen:
		f.opens = append(f.opens, binary.BigEndian.Uint32(p.Extras()[4:]))
		if f.onOpen != nil {
			f.onOpen(string(p.Key()))
		}
	case mcbp.OpDcpCloseStream:
		f.closed++
	case mcbp.OpDcpControl:
		f.controls = append(f.controls, string(p.Key())+"="+string(p.Value()))
	case mcbp.OpDcpBufferAck:
		n := binary.BigEndian.Uint32(p.Extras())
		f.acked += uint64(n)
		if f.onAck != nil {
			f.onAck(n)
		}
		return nil, nil
	case mcbp.OpDcpNoop:
		if p.Magic == mcbp.MagicResponse {
			f.answered++
		}
		return nil, nil
	default:
		h.VBucket = uint16(mcbp.StatusUnknown)
	}
	return mcbp.AppendFrame(nil, h, nil, nil, nil), nil
}

func (f *fakeNode) stats(h mcbp.Header, group string) (out []byte) {
	add := func(name, value string) { out = mcbp.AppendFrame(out, h, nil, []byte(name), []byte(value)) }
	if group == "vbucket-details" {
		if f.asked++; f.onAsk != nil {
			f.onAsk(f.asked)
		}
		for vb, info := range f.vbs {
			add(fmt.Sprintf("vb_%d", vb), info.State.String())
			add(fmt.Sprintf("vb_%d:num_items", vb), fmt.Sprint(info.Items))
		}
	}
	add("", "")
	return out
}

func (f *fakeNode) set(vb uint16, info cluster.VBInfo, high uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.vbs[vb], f.high[vb] = info, high
}

func (f *fakeNode) seen() []mcbp.StreamReq {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

// fakePlaces leads to fake nodes, without any login.
type fakePlaces struct {
	cfg    *Config
	mu     sync.Mutex
	nodes  map[string]*fakeNode
	active map[uint16]string
	asked  int
	onAsk  func(p *fakePlaces, n int)
}

func (p *fakePlaces) Locate(context.Context) (*places.Layout, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked++; p.onAsk != nil {
		p.onAsk(p, p.asked)
	}
	return &places.Layout{Kind: kind, Where: "fake", Active: maps.Clone(p.active), Not: map[uint16]string{}}, nil
}

func (p *fakePlaces) KV(_ *places.Layout, addr string) cluster.KVConfig {
	return cluster.KVConfig{Addr: addr, Role: places.Role, Features: p.cfg.features(), Version: p.nodes[addr].version}
}

func (p *fakePlaces) Close() {}

// script is a stream made up message by message.
type script struct {
	out  []byte
	vb   uint16
	oq   uint32
	keys string // in front of keys: a collection's id
}

// accept begins a script with the answer to a request.
func accept(req mcbp.StreamReq, log ...mcbp.FailoverEntry) *script {
	if log == nil {
		log = []mcbp.FailoverEntry{{UUID: 0xabc}}
	}
	s := &script{vb: req.VBucket, oq: req.Opaque}
	s.out = mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpDcpStreamReq, Opaque: req.Opaque}, nil, nil, mcbp.AppendFailoverLog(nil, log))
	return s
}

func answerReq(req mcbp.StreamReq, status mcbp.Status, value []byte) []byte {
	return mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpDcpStreamReq, Opaque: req.Opaque, VBucket: uint16(status)}, nil, nil, value)
}

func (s *script) send(m mcbp.DcpMessage) *script {
	m.VBucket, m.Opaque = s.vb, s.oq
	s.out = m.Append(s.out, true)
	return s
}

func (s *script) marker(start, end uint64) *script {
	return s.send(mcbp.DcpMessage{Opcode: mcbp.OpDcpSnapshotMarker, Seqno: start, SnapEnd: end, Flags: 2})
}

// items sends mutations with the seqnos from..to.
func (s *script) items(from, to uint64) *script {
	for n := from; n <= to; n++ {
		s.send(mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, Seqno: n, CAS: n, Rev: 1,
			Key: fmt.Appendf(nil, "%skey-%d-%d", s.keys, s.vb, n), Value: fmt.Appendf(nil, "value %d", n)})
	}
	return s
}

func (s *script) end(reason uint32) *script {
	return s.send(mcbp.DcpMessage{Opcode: mcbp.OpDcpStreamEnd, Flags: reason})
}

func activeVB(items uint64) cluster.VBInfo {
	return cluster.VBInfo{State: mcbp.VBActive, Items: items}
}

// whole answers every request with all that is asked, in one snapshot.
func whole(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
	s := accept(req)
	s.keys = "\x00"
	if req.End > req.Start {
		s.marker(req.Start, req.End).items(req.Start+1, req.End)
	}
	return s.end(mcbp.StreamEndOK).out, nil
}

// deletion sends a deletion with a delete time.
func (s *script) deletion(n uint64, key string) *script {
	return s.send(mcbp.DcpMessage{Opcode: mcbp.OpDcpDeletion, Seqno: n, CAS: n, Rev: 2, Expiry: 1_700_000_000, Key: []byte(s.keys + key)})
}

func (s *script) event(n uint64, e mcbp.SystemEvent) *script {
	return s.send(mcbp.DcpMessage{Opcode: mcbp.OpDcpSystemEvent, Seqno: n, Flags: e.Event, Version: e.Version, Key: e.Name, Value: e.AppendValue(nil)})
}
