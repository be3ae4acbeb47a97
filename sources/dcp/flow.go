package dcp

import (
	"sync"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
)

// flow accounts for the bytes that the node has sent ahead: those of a batch are
// acknowledged to it when the engine has settled the batch. The reader hands
// batches over, lanes confirm them, at the same time.
type flow struct {
	mu      sync.Mutex
	conn    *cluster.Conn // nil while there is none
	window  uint64        // bytes that the node may send ahead
	open    uint64        // bytes of conn that were handed over and not acknowledged
	lastAck time.Time
	queue   []handed // batches in order
	marks   int      // confirmed of queue[0]
}

// handed is a batch on its way to the destination.
type handed struct {
	marks int
	bytes uint32
	conn  *cluster.Conn // on which it came
}

// start makes conn the connection whose bytes count.
func (f *flow) start(conn *cluster.Conn, window uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn, f.window, f.open, f.lastAck = conn, window, 0, time.Time{}
}

// stop forgets the connection; batches that came on it may still be settled.
func (f *flow) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn, f.open = nil, 0
}

// hand notes a batch with so many marks, at least one, that took bytes of packets.
func (f *flow) hand(marks int, bytes uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, handed{marks, bytes, f.conn})
	f.open += uint64(bytes)
}

// confirm takes batches off the queue by the number of their marks that are
// confirmed, and acknowledges their bytes.
func (f *flow) confirm(marks int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.marks += marks
	n, bytes := 0, uint64(0)
	for n < len(f.queue) && f.marks >= f.queue[n].marks {
		h := f.queue[n]
		f.marks -= h.marks
		if h.conn != nil && h.conn == f.conn {
			bytes += uint64(h.bytes)
		}
		n++
	}
	f.queue = f.queue[:copy(f.queue, f.queue[n:])]
	if bytes == 0 {
		return nil
	}
	f.open -= bytes
	return f.ack(bytes)
}

// consumed acknowledges bytes that held no item.
func (f *flow) consumed(bytes uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		return nil
	}
	return f.ack(uint64(bytes))
}

// ackTime is how long the writing of a BUFFER_ACK may take; it blocks only when
// the node reads nothing any more.
const ackTime = 10 * time.Second

// ack is called with mu held. It writes beside the reader's goroutine: each write
// is one whole packet. The deadline is its own, since the reader's may be over
// while nobody reads.
func (f *flow) ack(bytes uint64) error {
	f.lastAck = time.Now()
	var b [2 * mcbp.HeaderLen]byte
	nc := f.conn.NetConn()
	if err := nc.SetWriteDeadline(f.lastAck.Add(ackTime)); err != nil {
		return err
	}
	_, err := nc.Write(mcbp.AppendDcpBufferAck(b[:0], uint32(bytes)))
	return err
}

// blocked reports that the node may be silent because of us: so much is
// unacknowledged that it waits. since is when it last got an acknowledgement.
func (f *flow) blocked() (blocked bool, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open > 0 && f.open >= f.window/2, f.lastAck
}
