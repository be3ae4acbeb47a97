package simcluster

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

// tapBatch is how many bytes of a dump are gathered before a write.
const tapBatch = 128 << 10

const tapOpaqueAutoNack = 0 // the first message of a dump with acknowledgements

// Why a dump ends early. None of them is ever shown: the connection just closes.
var (
	errCut  = errors.New("cut by a fault")
	errNack = errors.New("refused by the client")
	errDied = errors.New("the node died")
)

// producer sends one dump.
type producer struct {
	c    *conn
	nb   *nodeBucket
	tc   mcbp.TapConnect
	ack  bool
	msg  mcbp.TapMessage
	key  []byte
	body [4]byte

	seq, acked uint32
	unacked    []sent // not acknowledged yet, oldest first
	head       int    // of unacked

	held    *item // the next message, kept back until it is known whether one follows
	heldVB  uint16
	anySent bool

	flushedUntil int64 // Unix nanoseconds, of the vbucket being sent
	bytes        int   // written so far
	cutAt        int
	omit8        bool
	nru          byte
	netOrder     uint16 // message flag of item flags in network order
}

// sent is one message that may have to go again. it is nil for TAP_OPAQUE.
type sent struct {
	seq     uint32
	vb      uint16
	command uint32
	it      *item
}

// tapConnect serves TAP_CONNECT: the connection is a dump from here to its end.
func (c *conn) tapConnect(nb *nodeBucket, f *mcbp.Frame) bool {
	if c.role == roleProducer {
		return false
	}
	tc, err := mcbp.ParseTapConnect(*f)
	if err != nil {
		return false
	}
	if tc.Flags&mcbp.TapDump == 0 || tc.Flags&mcbp.TapTakeover != 0 {
		// Streams that go on for ever and takeovers are not played.
		c.reply(f, mcbp.StatusNotSupported, 0, nil, nil, nil)
		return false
	}
	if c.flush() != nil {
		return false
	}
	c.role = roleProducer
	c.tap.Store(true)
	p := &producer{c: c, nb: nb, tc: tc, ack: tc.Flags&mcbp.TapSupportAck != 0, nru: 1}
	if c.n.c.family == 2 {
		p.nru = 2
	}
	if tc.Flags&mcbp.TapFixFlagByteorder != 0 {
		p.netOrder = mcbp.TapMsgNetworkOrder
	}
	if !p.ack {
		p.seq = 1
	}
	if err := p.run(); err != nil {
		c.n.c.log.Debug("dump ended early", "node", c.n.OTP(), "name", tc.Name, "why", err)
	}
	return false
}

// run sends the whole dump; the close that follows is its only end.
func (p *producer) run() error {
	vbs := p.vbuckets()
	p.cutAt, p.omit8 = p.c.n.faults.strikeStream(vbs)
	if p.ack {
		if err := p.opaque(0, tapOpaqueAutoNack); err != nil {
			return err
		}
	}
	for _, vb := range vbs {
		if err := p.opaque(vb, mcbp.TapOpaqueInitialStream); err != nil {
			return err
		}
	}
	if err := p.settle(); err != nil {
		return err
	}
	for _, vb := range vbs {
		if err := p.dump(vb); err != nil {
			return err
		}
	}
	if p.held != nil {
		if err := p.item(p.heldVB, p.held, true); err != nil {
			return err
		}
	}
	if err := p.settle(); err != nil {
		return err
	}
	if !p.omit8 {
		for _, vb := range vbs {
			if err := p.opaque(vb, mcbp.TapOpaqueCloseBackfill); err != nil {
				return err
			}
		}
	}
	return p.settle()
}

// vbuckets returns those that have something to send: active, with live items.
// All others are passed over without a word.
func (p *producer) vbuckets() []uint16 {
	asked := p.tc.VBuckets
	if p.tc.Flags&mcbp.TapListVBuckets == 0 {
		asked = nil
		for vb := range p.nb.copies {
			asked = append(asked, uint16(vb))
		}
	}
	var vbs []uint16
	for _, vb := range asked {
		if int(vb) >= len(p.nb.copies) {
			continue
		}
		m := p.nb.b.vbs[vb]
		m.mu.Lock()
		if v := &p.nb.copies[vb]; v.state == mcbp.VBActive && v.live > 0 {
			vbs = append(vbs, vb)
		}
		m.mu.Unlock()
	}
	slices.Sort(vbs)
	return slices.Compact(vbs)
}

// dump sends the items of one vbucket.
func (p *producer) dump(vb uint16) error {
	m := p.nb.b.vbs[vb]
	m.mu.Lock()
	v := &p.nb.copies[vb]
	if v.state != mcbp.VBActive {
		m.mu.Unlock()
		return nil
	}
	all := v.snapshot()
	m.mu.Unlock()
	p.flushedUntil = time.Now().Add(-p.c.n.c.cfg.FlushDelay).UnixNano()
	if p.c.n.c.family == 2 {
		return p.dumpMemory(vb, all)
	}
	// From disk, in order of writing.
	for _, it := range all {
		if !p.flushed(it) {
			continue
		}
		if err := p.push(vb, it); err != nil {
			return err
		}
	}
	return nil
}

// dumpMemory sends live items in the order of a hash table, which is another
// one in each dump, and somewhere among them the tombstones, which come from disk.
func (p *producer) dumpMemory(vb uint16, all []*item) error {
	n := len(all)
	if n == 0 {
		return nil
	}
	start, step := rand.IntN(n), 1+rand.IntN(n)
	for gcd(step, n) != 1 {
		step++
	}
	tombsAt := rand.IntN(n + 1)
	for i := range n + 1 {
		if i == tombsAt {
			for _, it := range all {
				if !it.deleted || !p.flushed(it) {
					continue
				}
				if err := p.push(vb, it); err != nil {
					return err
				}
			}
		}
		if i == n {
			break
		}
		if it := all[(start+i*step)%n]; !it.deleted {
			if err := p.push(vb, it); err != nil {
				return err
			}
		}
	}
	return nil
}

// flushed reports that an item is on disk; what is not there a dump misses.
func (p *producer) flushed(it *item) bool {
	return p.c.n.c.cfg.FlushDelay == 0 || it.at <= p.flushedUntil
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// push sends the message held back so far and holds this one.
func (p *producer) push(vb uint16, it *item) error {
	prev, prevVB := p.held, p.heldVB
	p.held, p.heldVB = it, vb
	if prev == nil {
		return nil
	}
	return p.item(prevVB, prev, false)
}

// item sends one item; queueEmpty says that nothing else waits to be sent.
func (p *producer) item(vb uint16, it *item, queueEmpty bool) error {
	for p.ack && int(p.seq-p.acked) >= p.c.n.c.cfg.TapWindow {
		if err := p.read(); err != nil {
			return err
		}
	}
	m := &p.msg
	*m = mcbp.TapMessage{Opcode: mcbp.OpTapMutation, VBucket: vb, TTL: mcbp.TapTTL, CAS: it.cas, Rev: it.rev}
	expired := it.expired(time.Now().Unix())
	switch {
	case it.deleted:
		m.Opcode = mcbp.OpTapDelete
	case expired:
		m.Opcode = mcbp.OpTapDelete
		if p.c.n.c.family == 2 {
			m.CAS = 0
		} else {
			m.Value = it.value
		}
		p.reap(vb, it)
	default:
		m.MsgFlags = p.netOrder
		m.Flags, m.Expiry, m.Value = it.flags, it.expiry, it.value
		if p.c.datatype {
			m.Datatype = it.datatype
		}
	}
	if p.tc.Flags&mcbp.TapKeysOnly != 0 {
		m.MsgFlags |= mcbp.TapMsgNoValue
		m.Value = nil
	}
	p.key = append(p.key[:0], it.key...)
	m.Key = p.key
	if p.ack {
		p.seq++
		// 3.0 and later read from disk so slowly at first that the queue is empty
		// after the first message.
		early := !p.anySent && p.c.n.c.family >= 3
		if queueEmpty || early || int(p.seq)%p.c.n.c.cfg.TapAckInterval == 0 {
			m.MsgFlags |= mcbp.TapMsgAck
		}
		p.remember(sent{seq: p.seq, vb: vb, it: it})
	}
	p.anySent = true
	return p.send()
}

// reap turns an expired item into a tombstone, as the dump of a real server does.
func (p *producer) reap(vb uint16, it *item) {
	m := p.nb.b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := &p.nb.copies[vb]; v.state == mcbp.VBActive {
		if i, ok := v.index[it.key]; ok && v.log[i] == it {
			p.nb.tombstone(m, vb, it).byExpiry = true
		}
	}
}

func (p *producer) opaque(vb uint16, command uint32) error {
	binary.BigEndian.PutUint32(p.body[:], command)
	p.msg = mcbp.TapMessage{Opcode: mcbp.OpTapOpaque, VBucket: vb, TTL: mcbp.TapTTL, Engine: p.body[:]}
	p.seq++
	if p.ack {
		p.seq++
		p.msg.MsgFlags = mcbp.TapMsgAck
		p.remember(sent{seq: p.seq, vb: vb, command: command})
	}
	return p.send()
}

func (p *producer) remember(s sent) {
	if p.head > 1024 && p.head > len(p.unacked)/2 {
		p.unacked = p.unacked[:copy(p.unacked, p.unacked[p.head:])]
		p.head = 0
	}
	p.unacked = append(p.unacked, s)
}

// send appends the message to the batch, with the faults that are armed.
func (p *producer) send() error {
	p.msg.Opaque = p.seq
	start := len(p.c.out)
	p.c.out = p.msg.Append(p.c.out)
	// The nru byte of a mutation is not part of mcbp's message.
	if p.msg.Opcode == mcbp.OpTapMutation {
		p.c.out[len(p.c.out)-len(p.msg.Value)-len(p.msg.Key)-1] = p.nru
	}
	if f := p.c.n.faults.strike(p.msg.Opcode, p.msg.VBucket); f != nil {
		return p.fault(f, start)
	}
	if len(p.c.out) >= tapBatch {
		return p.flush()
	}
	return nil
}

// fault ends the dump at the message that begins at start in the batch.
func (p *producer) fault(f *Fault, start int) error {
	switch f.Action {
	case CutMidFrame:
		p.c.out = p.c.out[:start+(len(p.c.out)-start)/2]
	case DropAfterEffect:
	default:
		p.c.out = p.c.out[:start]
	}
	if err := p.flush(); err != nil {
		return err
	}
	switch f.Action {
	case Stall:
		p.c.stall()
	case Die:
		p.c.n.Kill()
		return errDied
	}
	return errCut
}

func (p *producer) flush() error {
	if p.cutAt > 0 && p.bytes+len(p.c.out) >= p.cutAt {
		p.c.out = p.c.out[:p.cutAt-p.bytes]
		if err := p.c.flush(); err != nil {
			return err
		}
		return errCut
	}
	p.bytes += len(p.c.out)
	return p.c.flush()
}

// settle waits until everything sent so far is acknowledged.
func (p *producer) settle() error {
	for p.ack && p.acked < p.seq {
		if err := p.read(); err != nil {
			return err
		}
	}
	return p.flush()
}

// read sends what is gathered and serves one packet of the client. Idle time is
// filled with NOOPs.
func (p *producer) read() error {
	if err := p.flush(); err != nil {
		return err
	}
	for {
		f, err := p.c.r.Decode()
		if err == nil {
			return p.incoming(&f)
		}
		if !errors.Is(err, mcbp.ErrNeedMore) {
			return err
		}
		if err := p.c.nc.SetReadDeadline(time.Now().Add(p.c.n.c.cfg.TapNoop)); err != nil {
			return err
		}
		err = p.c.r.Fill()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.c.out = mcbp.AppendNoop(p.c.out, p.seq)
			err = p.flush()
		}
		if err != nil {
			return err
		}
	}
}

func (p *producer) incoming(f *mcbp.Frame) error {
	if f.Magic == mcbp.MagicRequest {
		// A mutation on a dump's connection is what real servers do not survive.
		if !p.c.request(f) {
			return errDied
		}
		return nil
	}
	if !mcbp.IsTap(f.Opcode) {
		return nil // the answer to a NOOP
	}
	status := f.Status()
	if f.Opaque > p.seq {
		return nil
	}
	for p.head < len(p.unacked) && p.unacked[p.head].seq < f.Opaque {
		p.head++
	}
	var this sent
	if p.head < len(p.unacked) && p.unacked[p.head].seq == f.Opaque {
		this = p.unacked[p.head]
		p.head++
	}
	p.acked = max(p.acked, f.Opaque)
	switch status {
	case mcbp.StatusOK:
		return nil
	case mcbp.StatusTmpFail, mcbp.StatusBusy:
	default:
		return errNack
	}
	timer := time.NewTimer(p.c.n.c.cfg.TapBackoff)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.c.done:
		return errDied
	}
	if this.seq == 0 {
		return nil
	}
	if this.it == nil {
		return p.opaque(this.vb, this.command)
	}
	return p.again(this)
}

// again sends a refused item once more, as a message of its own number.
func (p *producer) again(s sent) error {
	held, vb := p.held, p.heldVB
	p.held = nil
	err := p.item(s.vb, s.it, true)
	p.held, p.heldVB = held, vb
	return err
}
