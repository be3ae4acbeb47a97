package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/simcluster"
)

const (
	vbuckets = 64
	// What servers up to 4.x do by default.
	tapAckInterval = 1000
	tapAckWindow   = 10

	simUser, simPassword = "Administrator", "password"
)

// served is what a serve process says of itself: once when it begins, and in
// answer to each line "new" (a fresh, empty cluster) or "count".
type served struct {
	KV    string `json:"kv"`
	REST  string `json:"rest"`
	Items int    `json:"items"`
}

// serveMain is the process of a cluster: of one simulated node that takes what is
// written, or of a source whose dumps come from memory.
func serveMain(args []string, in io.Reader, out io.Writer) (err error) {
	f := pflag.NewFlagSet(modeServe, pflag.ContinueOnError)
	version := f.String("version", "2.5.1", "server version to play")
	items := f.Int("items", 0, "documents to hold")
	size := f.Int("size", 256, "bytes of a value")
	fill := f.Int("fill", 0, "documents that a cluster which is written to holds already")
	nodes := f.Int("nodes", 1, "nodes of it")
	vbs := f.Int("vbuckets", vbuckets, "vbuckets of it")
	if err := f.Parse(args); err != nil {
		return err
	}
	answer := json.NewEncoder(out)
	if *items > 0 {
		p, err := newPlayer(*version, *items, *size)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		if err := answer.Encode(served{KV: p.ln.Addr().String(), Items: *items}); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, in)
		return err
	}
	var c *simcluster.Cluster
	renew := func() (err error) {
		if c != nil {
			err = c.Close()
		}
		if err == nil {
			c, err = startCluster(*version, *nodes, *vbs)
		}
		return err
	}
	if err := renew(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for i := range *fill {
		if err := c.Bucket("default").Store(simcluster.Doc{Key: appendKey(nil, i), Value: valueOf(i, *size)}); err != nil {
			return err
		}
	}
	say := func() error {
		n := 0
		c.Bucket("default").Each(func(uint16, simcluster.Doc) bool { n++; return true })
		return answer.Encode(served{KV: c.Nodes()[0].KV(), REST: c.URL(), Items: n})
	}
	if err := say(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if lines.Text() == "new" {
			if err := renew(); err != nil {
				return err
			}
		}
		if err := say(); err != nil {
			return err
		}
	}
	return nil
}

func startCluster(version string, nodes, vbs int) (*simcluster.Cluster, error) {
	return simcluster.Start(simcluster.Config{
		Nodes: nodes, Version: version, VBuckets: vbs, Username: simUser, Password: simPassword,
		Buckets: []simcluster.BucketConfig{{Name: "default"}},
	})
}

// player is the data port of a node whose TAP dumps and DCP streams were encoded
// beforehand. Everything else it leaves to a simulated node behind it, so that
// logins, statistics and sequence numbers are right.
type player struct {
	cluster *simcluster.Cluster
	node    string // data port of the simulated node
	ln      net.Listener
	tap     [vbuckets]recording
	dcp     [vbuckets]recording
	wg      sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// recording is one vbucket's part of a stream.
type recording struct {
	data []byte
	acks []int // of TAP: where messages end that ask for an acknowledgement

	// Of DCP:
	answer []byte // the answer to STREAM_REQ
	opaque uint32 // in data
	end    uint64 // seqno that was asked for
}

func newPlayer(version string, items, size int) (p *player, err error) {
	p = &player{conns: map[net.Conn]struct{}{}}
	if p.cluster, err = startCluster(version, 1, vbuckets); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	p.node = p.cluster.Nodes()[0].KV()
	b := p.cluster.Bucket("default")
	for i := range items {
		// The node behind counts them; their values come with the recordings.
		if err := b.Store(simcluster.Doc{Key: appendKey(nil, i)}); err != nil {
			return nil, err
		}
	}
	if version == tapVersion {
		p.recordTap(b, size)
	} else if err := p.recordDcp(size); err != nil {
		return nil, err
	}
	if p.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	p.wg.Go(p.accept)
	return p, nil
}

// The versions that the two kinds of source play.
const (
	tapVersion = "2.5.1"
	dcpVersion = "7.0.5"
)

func appendKey(dst []byte, i int) []byte { return fmt.Appendf(dst, "doc-%010d", i) }

func valueOf(i, size int) []byte {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	v := make([]byte, size)
	r := uint64(i)*0x9e3779b97f4a7c15 + 1
	for j := range v {
		r ^= r << 13
		r ^= r >> 7
		r ^= r << 17
		v[j] = letters[r&63]
	}
	return v
}

func (p *player) Close() error {
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	if p.ln != nil {
		_ = p.ln.Close()
	}
	p.wg.Wait()
	return p.cluster.Close()
}

func (p *player) recordTap(b *simcluster.Bucket, size int) {
	var n [vbuckets]uint32
	b.Each(func(vb uint16, d simcluster.Doc) bool {
		r := &p.tap[vb]
		n[vb]++
		m := mcbp.TapMessage{
			Opcode: mcbp.OpTapMutation, VBucket: vb, TTL: mcbp.TapTTL, CAS: d.CAS, Rev: d.Rev, Flags: d.Flags, Expiry: d.Expiry,
			MsgFlags: mcbp.TapMsgNetworkOrder, Key: d.Key, Value: valueOf(int(d.CAS), size), Opaque: n[vb],
		}
		if n[vb]%tapAckInterval == 0 {
			m.MsgFlags |= mcbp.TapMsgAck
		}
		r.data = m.Append(r.data)
		if n[vb]%tapAckInterval == 0 {
			r.acks = append(r.acks, len(r.data))
		}
		return true
	})
}

// recordDcp takes the streams as the simulated node sends them to such a client.
func (p *player) recordDcp(size int) error {
	ctx := context.Background()
	s, err := dialDcp(ctx, p.node)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	if err := s.request(); err != nil {
		return err
	}
	for open := vbuckets; open > 0; {
		f, err := s.conn.Reader().Next()
		if err != nil {
			return err
		}
		if f.Opcode == mcbp.OpDcpNoop {
			continue
		}
		vb := uint16(f.Opaque - 1) // streams are numbered in the order of vbuckets, of which it has them all
		r := &p.dcp[vb]
		packet := append(f.Header.Append(nil), f.Body...)
		if f.Opcode == mcbp.OpDcpMutation {
			var m mcbp.DcpMessage
			if err := m.Parse(&f); err != nil {
				return err
			}
			m.Value = valueOf(int(m.CAS), size)
			packet = m.Append(packet[:0], true)
		}
		switch {
		case f.Opcode == mcbp.OpDcpStreamReq:
			if f.Status() != mcbp.StatusOK {
				return fmt.Errorf("STREAM_REQ of vbucket %d: %s", vb, mcbp.StatusName(f.Status()))
			}
			r.opaque, r.end, r.answer = f.Opaque, s.end[vb], packet
		default:
			r.data = append(r.data, packet...)
			if f.Opcode == mcbp.OpDcpStreamEnd {
				open--
			}
		}
	}
	return nil
}

// dcpSession is the client's side of a DCP connection that wants some vbuckets.
type dcpSession struct {
	conn *cluster.Conn
	vbs  []uint16
	end  map[uint16]uint64
}

const dcpWindow = 4 << 20 // as the pump asks for

// dialDcp connects as the pump's source does. Without vbs it wants them all, and
// asks for no flow control.
func dialDcp(ctx context.Context, addr string, vbs ...uint16) (*dcpSession, error) {
	conn, err := cluster.DialKV(ctx, cluster.KVConfig{
		Addr: addr, Bucket: "default", Username: simUser, UserPassword: simPassword,
		Features: []uint16{mcbp.FeatureXattr, mcbp.FeatureJSON, mcbp.FeatureCollections, mcbp.FeatureSnappy},
	})
	if err != nil {
		return nil, err
	}
	s := &dcpSession{conn: conn, vbs: vbs}
	cfg := cluster.DcpConfig{Name: fmt.Sprintf("bench-%d", time.Now().UnixNano()), BufferSize: dcpWindow, NoopInterval: time.Minute}
	if len(vbs) == 0 {
		cfg.BufferSize = 0
		for vb := range uint16(vbuckets) {
			s.vbs = append(s.vbs, vb)
		}
	}
	if s.end, err = conn.HighSeqnos(ctx, s.vbs, mcbp.VBActive, time.Minute); err == nil {
		_, err = conn.OpenDcp(ctx, cfg)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

func (s *dcpSession) request() error {
	var out []byte
	for i, vb := range s.vbs {
		// The pump numbers its streams so. A player that gets other numbers has to change
		// every packet of the stream, which would count against whoever comes next.
		r := mcbp.StreamReq{VBucket: vb, Opaque: uint32(i) + 1, End: s.end[vb], SnapEnd: 0}
		out = r.Append(out)
	}
	_, err := s.conn.NetConn().Write(out)
	return err
}

func (p *player) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			_ = c.Close()
			return
		}
		p.conns[c] = struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() {
			// The client sees its connection close; that is all a server ever says.
			_ = p.serve(c)
			_ = c.Close()
			p.mu.Lock()
			delete(p.conns, c)
			p.mu.Unlock()
		})
	}
}

// playing is one connection.
type playing struct {
	p      *player
	client net.Conn
	out    sync.Mutex // of writes to client

	mu     sync.Mutex
	freed  *sync.Cond
	dead   bool
	acks   int    // of TAP, outstanding
	window uint64 // of DCP: bytes that may be unacknowledged, 0 = any
	ahead  uint64 // … and are
	queue  []*mcbp.StreamReq
}

func (p *player) serve(client net.Conn) error {
	behind, err := net.Dial("tcp", p.node)
	if err != nil {
		return err
	}
	s := &playing{p: p, client: client}
	s.freed = sync.NewCond(&s.mu)
	var wg sync.WaitGroup
	defer wg.Wait()
	end := func() {
		s.mu.Lock()
		s.dead = true
		s.freed.Broadcast()
		s.mu.Unlock()
		_ = behind.Close()
		_ = client.Close()
	}
	defer end()
	wg.Go(func() {
		defer end()
		buf := make([]byte, 64<<10)
		for {
			n, err := behind.Read(buf)
			if err != nil || s.write(buf[:n]) != nil {
				return
			}
		}
	})
	var streams sync.Once
	r := mcbp.NewReader(client)
	for {
		f, err := r.Next()
		if err != nil {
			return err
		}
		switch {
		case f.Opcode == mcbp.OpTapConnect:
			c, err := mcbp.ParseTapConnect(f)
			if err != nil {
				return err
			}
			wg.Go(func() {
				defer end()
				_ = s.dump(c.VBuckets)
			})
			continue
		case mcbp.IsTap(f.Opcode):
			s.add(func() { s.acks-- })
			continue
		case f.Opcode == mcbp.OpDcpBufferAck:
			n := uint64(binary.BigEndian.Uint32(f.Extras()))
			s.add(func() { s.ahead -= min(n, s.ahead) })
			continue
		case f.Opcode == mcbp.OpDcpControl && string(f.Key()) == "connection_buffer_size":
			if _, err := fmt.Sscan(string(f.Value()), &s.window); err != nil {
				return err
			}
		case f.Opcode == mcbp.OpDcpStreamReq:
			var q mcbp.StreamReq
			if err := q.Parse(&f); err != nil {
				return err
			}
			if int(q.VBucket) < vbuckets && q.Start == 0 && q.End == p.dcp[q.VBucket].end {
				s.add(func() { s.queue = append(s.queue, &q) })
				streams.Do(func() {
					wg.Go(func() {
						defer end()
						_ = s.stream()
					})
				})
				continue
			}
		}
		if _, err := behind.Write(append(f.Header.Append(nil), f.Body...)); err != nil {
			return err
		}
	}
}

func (s *playing) add(f func()) {
	s.mu.Lock()
	f()
	s.freed.Broadcast()
	s.mu.Unlock()
}

// wait waits until ok, or until the connection has ended.
func (s *playing) wait(ok func() bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok() && !s.dead {
		s.freed.Wait()
	}
	if s.dead {
		return net.ErrClosed
	}
	return nil
}

func (s *playing) write(b []byte) error {
	s.out.Lock()
	defer s.out.Unlock()
	_, err := s.client.Write(b)
	return err
}

// dump sends a TAP dump, as servers do: it stops while too many
// acknowledgements are due, and its end is a close when none is.
func (s *playing) dump(vbs []uint16) error {
	mark := func(command uint32) error {
		var out []byte
		for _, vb := range vbs {
			m := mcbp.TapMessage{Opcode: mcbp.OpTapOpaque, VBucket: vb, TTL: mcbp.TapTTL, MsgFlags: mcbp.TapMsgAck, Engine: binary.BigEndian.AppendUint32(nil, command)}
			out = m.Append(out)
		}
		s.add(func() { s.acks += len(vbs) })
		if err := s.write(out); err != nil {
			return err
		}
		return s.wait(func() bool { return s.acks == 0 })
	}
	if err := mark(mcbp.TapOpaqueInitialStream); err != nil {
		return err
	}
	for _, vb := range vbs {
		r, from := &s.p.tap[vb], 0
		for _, to := range r.acks {
			if err := s.wait(func() bool { return s.acks < tapAckWindow }); err != nil {
				return err
			}
			s.add(func() { s.acks++ })
			if err := s.write(r.data[from:to]); err != nil {
				return err
			}
			from = to
		}
		if err := s.write(r.data[from:]); err != nil {
			return err
		}
	}
	return mark(mcbp.TapOpaqueCloseBackfill)
}

// stream sends the DCP streams that were asked for, one after the other, within
// the window that the client gave.
func (s *playing) stream() error {
	const chunk = 256 << 10
	for {
		if err := s.wait(func() bool { return len(s.queue) > 0 }); err != nil {
			return err
		}
		s.mu.Lock()
		q := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		r := &s.p.dcp[q.VBucket]
		r.number(q.Opaque)
		if err := s.write(r.answer); err != nil {
			return err
		}
		for rest := r.data; len(rest) > 0; {
			var n int
			err := s.wait(func() bool {
				n = min(len(rest), chunk)
				if s.window > 0 {
					n = int(min(uint64(n), s.window-min(s.window, s.ahead)))
				}
				s.ahead += uint64(n)
				return n > 0
			})
			if err == nil {
				err = s.write(rest[:n])
			}
			if err != nil {
				return err
			}
			rest = rest[n:]
		}
	}
}

// number puts the client's opaque into every packet of a stream.
func (r *recording) number(opaque uint32) {
	if r.opaque == opaque {
		return
	}
	r.opaque = opaque
	for _, p := range [][]byte{r.answer, r.data} {
		for len(p) > 0 {
			binary.BigEndian.PutUint32(p[12:], opaque)
			p = p[mcbp.HeaderLen+int(binary.BigEndian.Uint32(p[8:])):]
		}
	}
}
