// Package faultproxy is a TCP proxy on the loopback interface that breaks what it
// passes on at an exact byte: resets, half-closes, stalls, corrupts, and passes on
// slowly or byte by byte. Well-known proxies of that kind damage connections after a
// time or for a share of them, and none damages a byte; the proof needs each message
// boundary.
package faultproxy

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what befalls a connection.
type Kind uint8

// The kinds of faults.
const (
	Pass      Kind = iota // nothing
	Reset                 // both ends get a reset at the byte
	HalfClose             // the reader gets a FIN at the byte; the other direction goes on
	Stall                 // nothing more comes in this direction, and nothing closes
	Corrupt               // the byte comes with all bits flipped
	Bytewise              // each byte comes alone
	Latency               // each chunk comes after Fault.Delay
	kinds
)

var kindNames = [kinds]string{"pass", "reset", "half-close", "stall", "corrupted byte", "byte at a time", "latency"}

func (k Kind) String() string { return kindNames[k] }

// Kinds returns all kinds of faults but Pass.
func Kinds() []Kind { return []Kind{Reset, HalfClose, Stall, Corrupt, Bytewise, Latency} }

// Fault is what befalls one direction of a connection.
type Fault struct {
	Kind     Kind
	ToServer bool  // the bytes that the client sends; else those that the server sends
	At       int64 // the byte of that direction, from 0; not for Bytewise and Latency
	Delay    time.Duration
	// After, if not nil, finds in a chunk of what the client sends where the interesting
	// part begins, -1 if not there: At counts from then on, in both directions, and
	// what was before is not recorded.
	After func(chunk []byte) int
}

// Proxy passes connections on to one address.
type Proxy struct {
	to     string
	listen net.Listener
	fault  func(n int) Fault

	mu     sync.Mutex
	count  int
	struck int
	conns  map[net.Conn]struct{}
	closed bool
	heard  []*Conversation
	all    sync.WaitGroup
}

// Conversation is what one connection carried, as the ends sent it.
type Conversation struct {
	mu                 sync.Mutex
	toServer, toClient []byte
}

// Bytes returns what one side had sent so far.
func (c *Conversation) Bytes(toServer bool) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if toServer {
		return c.toServer
	}
	return c.toClient
}

func (c *Conversation) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.toServer, c.toClient = nil, nil
}

func (c *Conversation) hear(toServer bool, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if toServer {
		c.toServer = append(c.toServer, p...)
	} else {
		c.toClient = append(c.toClient, p...)
	}
}

// Record keeps what connections carry from now on; it returns them in their order
// when it is asked.
func (p *Proxy) Record() (heard func() []*Conversation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = []*Conversation{}
	return func() []*Conversation {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.heard
	}
}

// Start listens on a free loopback port for clients of the server at an address.
// fault is asked for the fate of each connection, by its number from 0; it is called
// one at a time.
func Start(to string, fault func(n int) Fault) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{to: to, listen: l, fault: fault, conns: map[net.Conn]struct{}{}}
	p.all.Go(p.accept)
	return p, nil
}

// Addr is host:port for clients.
func (p *Proxy) Addr() string { return p.listen.Addr().String() }

// Conns is how many connections there were.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// Struck is how many faults came to pass.
func (p *Proxy) Struck() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.struck
}

// Close ends all connections and waits for their goroutines.
func (p *Proxy) Close() error {
	err := p.listen.Close()
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.all.Wait()
	return err
}

// hold notes an open connection; it reports false when all are to be closed.
func (p *Proxy) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	_ = c.Close()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listen.Accept()
		if err != nil {
			return
		}
		if !p.hold(client) {
			return
		}
		p.mu.Lock()
		f := p.fault(p.count)
		p.count++
		var talk *Conversation
		if p.heard != nil {
			talk = &Conversation{}
			p.heard = append(p.heard, talk)
		}
		p.mu.Unlock()
		p.all.Go(func() { p.serve(client, f, talk) })
	}
}

func (p *Proxy) serve(client net.Conn, f Fault, talk *Conversation) {
	defer p.drop(client)
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	if !p.hold(server) {
		return
	}
	defer p.drop(server)
	l := &link{p: p, fault: f, talk: talk}
	l.begun.Store(f.After == nil)
	var both sync.WaitGroup
	both.Go(func() { l.pass(client.(*net.TCPConn), server.(*net.TCPConn), true) })
	both.Go(func() { l.pass(server.(*net.TCPConn), client.(*net.TCPConn), false) })
	both.Wait()
}

func (p *Proxy) strike() {
	p.mu.Lock()
	p.struck++
	p.mu.Unlock()
}

// link is one connection through the proxy.
type link struct {
	p     *Proxy
	fault Fault
	talk  *Conversation // nil: nothing is recorded
	begun atomic.Bool   // the interesting part
}

// pass passes on one direction. When it ends with an error both ends are closed,
// which ends the other direction; at the end of the stream only the reader's end is
// half-closed.
func (l *link) pass(from, to *net.TCPConn, toServer bool) {
	f := l.fault
	if f.ToServer != toServer {
		f.Kind = Pass
	}
	buf := make([]byte, 32<<10)
	var at int64
	for {
		n, err := from.Read(buf)
		chunk := buf[:n]
		if toServer && !l.begun.Load() {
			if i := f.After(chunk); i >= 0 {
				at = -int64(i)
				if l.talk != nil {
					l.talk.forget()
					l.talk.hear(true, chunk[i:])
				}
				l.begun.Store(true)
			}
		} else if l.talk != nil {
			l.talk.hear(toServer, chunk)
		}
		i := f.At - at
		at += int64(n)
		hit := f.Kind != Pass && f.Kind < Bytewise && l.begun.Load() && i >= 0 && i < int64(n)
		if !l.begun.Load() {
			at = 0
		}
		if hit {
			l.p.strike()
			if f.Kind == Corrupt {
				chunk[i] ^= 0xff
			} else {
				chunk = chunk[:i]
			}
		}
		if werr := write(to, chunk, f); werr != nil {
			_ = from.Close()
			_ = to.Close()
			return
		}
		if hit && f.Kind != Corrupt {
			end(from, to, f.Kind)
			return
		}
		if err == io.EOF {
			_ = to.CloseWrite()
			return
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

// end breaks a connection behind the last byte that was passed on.
func end(from, to *net.TCPConn, k Kind) {
	switch k {
	case Reset:
		_, _ = from.SetLinger(0), to.SetLinger(0)
		_, _ = from.Close(), to.Close()
	case HalfClose:
		_ = to.CloseWrite()
		fallthrough
	case Stall:
		// Once the sender has closed, nothing keeps the other direction alive.
		_, _ = io.Copy(io.Discard, from)
		_, _ = from.Close(), to.Close()
	}
}

func write(to net.Conn, chunk []byte, f Fault) error {
	switch f.Kind {
	case Bytewise:
		for i := range chunk {
			if _, err := to.Write(chunk[i : i+1]); err != nil {
				return err
			}
		}
		return nil
	case Latency:
		time.Sleep(f.Delay) // the latency itself
	}
	_, err := to.Write(chunk)
	return err
}
