package dcp

import (
	"net"
	"sync"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

// flow accounts for the bytes that the node has sent ahead: those of a batch are
// acknowledged to it when the engine has settled the batch. The reader hands
// batches over, lanes confirm them, at the same time.
type flow struct {
	mu      sync.Mutex
	conn    net.Conn    // nil while there is none
	window  uint64      // bytes that the node may send ahead
	open    uint64      // bytes of conn that were handed over and not acknowledged
	due     uint64      // of these, bytes that can be acknowledged
	flush   *time.Timer // acknowledges what is due; nil if nothing is
	lastAck time.Time
	queue   []handed // batches in order
	marks   int      // confirmed of queue[0]
}

// handed is a batch on its way to the destination.
type handed struct {
	marks int
	bytes uint32
	conn  net.Conn // on which it came
}

// start makes conn the connection whose bytes count.
func (f *flow) start(conn net.Conn, window uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn, f.window, f.open, f.due, f.lastAck = conn, window, 0, 0, time.Time{}
}

// stop forgets the connection; batches that came on it may still be settled.
func (f *flow) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		_ = f.ack() // it may be of a connection that is broken
	}
	f.conn, f.open, f.due = nil, 0, 0
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
	return f.release(bytes)
}

// consumed acknowledges bytes that held no item.
func (f *flow) consumed(bytes uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		return nil
	}
	f.open += uint64(bytes)
	return f.release(uint64(bytes))
}

// holdBack is how long bytes that can be acknowledged may wait for more of them.
const holdBack = 10 * time.Millisecond

// release acknowledges bytes: at once if there are a quarter of the window with those
// that wait already, else soon. A packet for each batch would cost the node, and us, as
// much as many items. It is called with mu held.
func (f *flow) release(bytes uint64) error {
	f.due += bytes
	if f.due >= f.window/4 {
		return f.ack()
	}
	if f.flush == nil {
		conn := f.conn
		f.flush = time.AfterFunc(holdBack, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.conn == conn {
				_ = f.ack() // the reader finds out that the connection is broken
			}
		})
	}
	return nil
}

// ackTime is how long the writing of a BUFFER_ACK may take; it blocks only when
// the node reads nothing any more.
const ackTime = 10 * time.Second

// ack acknowledges what is due. It is called with mu held. It writes beside the
// reader's goroutine: each write is one whole packet. The deadline is its own, since
// the reader's may be over while nobody reads.
func (f *flow) ack() error {
	if f.flush != nil {
		f.flush.Stop()
		f.flush = nil
	}
	bytes := f.due
	if bytes == 0 {
		return nil
	}
	f.open, f.due = f.open-bytes, 0
	f.lastAck = time.Now()
	var b [2 * mcbp.HeaderLen]byte
	if err := f.conn.SetWriteDeadline(f.lastAck.Add(ackTime)); err != nil {
		return err
	}
	_, err := f.conn.Write(mcbp.AppendDcpBufferAck(b[:0], uint32(bytes)))
	return err
}

// blocked reports that the node may be silent because of us: so much is
// unacknowledged that it waits. since is when it last got an acknowledgement.
func (f *flow) blocked() (blocked bool, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open > 0 && f.open >= f.window/2, f.lastAck
}
