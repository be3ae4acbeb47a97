package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Opcodes that this file must know to play a side.
const (
	magicRequest  = 0x80
	magicResponse = 0x81
	opNoop        = 0x0a
	opStat        = 0x10
	opHello       = 0x1f
	opSASLList    = 0x20
	opSASLAuth    = 0x21
)

// ServeOptions say how the server's side is played. The zero value is fine.
type ServeOptions struct {
	// Compare is called with each packet of the client that counts and with the
	// recorded one in its place (nil when more come than were recorded). An
	// error ends the playing.
	Compare func(n int, recorded, got []byte) error
	// Intercept answers packets that the recording does not have; those that it
	// handles do not count. A nil reply with handled swallows the packet.
	Intercept func(packet []byte) (reply []byte, handled bool)
}

// AcceptLogin is an Intercept that answers SASL_LIST_MECHS with PLAIN and any
// SASL_AUTH, HELLO and NOOP with success.
func AcceptLogin(packet []byte) (reply []byte, handled bool) {
	if packet[0] != magicRequest {
		return nil, false
	}
	switch packet[1] {
	case opSASLList:
		return Answer(packet, 0, []byte("PLAIN")), true
	case opSASLAuth, opHello, opNoop:
		return Answer(packet, 0, nil), true
	}
	return nil, false
}

// Answer returns the response to a request: its opcode and opaque, a status and
// a value.
func Answer(request []byte, status uint16, value []byte) []byte {
	b := make([]byte, headerLen, headerLen+len(value))
	b[0], b[1] = magicResponse, request[1]
	binary.BigEndian.PutUint16(b[6:], status)
	binary.BigEndian.PutUint32(b[8:], uint32(len(value)))
	copy(b[12:16], request[12:16])
	return append(b, value...)
}

// inbox collects what a connection receives, in a goroutine that ends when the
// connection does.
type inbox struct {
	mu      sync.Mutex
	stream  []byte
	err     error         // why reading ended; io.EOF for a close
	changed chan struct{} // closed and replaced at every change
	done    chan struct{}
}

func newInbox(conn net.Conn) *inbox {
	in := &inbox{changed: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(in.done)
		buf := make([]byte, 32<<10)
		for {
			n, err := conn.Read(buf)
			in.mu.Lock()
			in.stream = append(in.stream, buf[:n]...)
			in.err = err
			close(in.changed)
			in.changed = make(chan struct{})
			in.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return in
}

// take removes the next packet; ok is false when none is whole yet.
func (in *inbox) take() (packet []byte, ok bool, changed <-chan struct{}, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if n, whole := packetLen(in.stream); whole {
		packet = in.stream[:n:n]
		in.stream = in.stream[n:]
		return packet, true, nil, nil
	}
	return nil, false, in.changed, in.err
}

// next waits for a packet. It returns io.EOF when the peer closed.
func (in *inbox) next(ctx context.Context) ([]byte, error) {
	for {
		packet, ok, changed, err := in.take()
		if ok || err != nil {
			return packet, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (in *inbox) rest() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.stream) == 0 {
		return nil
	}
	return in.stream
}

// guard makes blocked reads and writes of conn fail once ctx is done.
func guard(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
}

// ServeConn plays the server's side of c on a connection, and closes it. Where
// the server closed, it ends its own direction and waits for the client to close
// too, so that the client sees a FIN and never a reset. It returns an error when
// the client closed early, when Compare refused a packet, or when ctx was done.
func ServeConn(ctx context.Context, conn net.Conn, c *Capture, o ServeOptions) error {
	defer guard(ctx, conn)()
	in := newInbox(conn)
	defer func() {
		_ = conn.Close()
		<-in.done
	}()
	s := &server{conn: conn, in: in, o: o}
	s.recorded, _ = c.Packets(Client)
	if err := s.play(ctx, c); err != nil {
		return fmt.Errorf("play the server of %s: %w", c.Name, err)
	}
	return nil
}

type server struct {
	conn     net.Conn
	in       *inbox
	o        ServeOptions
	recorded [][]byte // the client's packets
	got      int      // how many of the live client's packets have counted
}

func (s *server) play(ctx context.Context, c *Capture) error {
	var sent []byte // by the recorded client until now
	due := 0
	closed := false
	for _, ch := range c.Chunks {
		switch {
		case ch.From == Client && !ch.EOF:
			sent = append(sent, ch.Bytes...)
			whole, rest := Split(sent)
			due, sent = due+len(whole), rest
		case ch.From == Client:
			if err := s.await(ctx, due); err != nil {
				return err
			}
			if err := s.drain(ctx); err != nil {
				return err
			}
		default:
			if err := s.await(ctx, due); err != nil {
				return err
			}
			if ch.EOF {
				closed = true
				if err := closeWrite(s.conn); err != nil {
					return err
				}
				continue
			}
			if _, err := s.conn.Write(ch.Bytes); err != nil {
				return err
			}
		}
	}
	if err := s.await(ctx, due); err != nil && !(closed && errors.Is(err, errClientClosed)) {
		return err
	}
	return s.drain(ctx)
}

var errClientClosed = errors.New("the client closed the connection")

// await takes packets until n of them have counted.
func (s *server) await(ctx context.Context, n int) error {
	for s.got < n {
		err := s.one(ctx)
		// One that closes before it has read everything resets the connection.
		if err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("%w after %d packets, %d are due", errClientClosed, s.got, n)
		}
		if err != nil {
			return fmt.Errorf("wait for packet %d of %d of the client: %w", s.got+1, n, err)
		}
	}
	return nil
}

// drain takes packets until the client closes.
func (s *server) drain(ctx context.Context) error {
	for {
		err := s.one(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for the client to close: %w", err)
		}
	}
}

func (s *server) one(ctx context.Context) error {
	p, err := s.in.next(ctx)
	if err != nil {
		return err
	}
	if s.o.Intercept != nil {
		if reply, handled := s.o.Intercept(p); handled {
			_, err := s.conn.Write(reply)
			return err
		}
	}
	n := s.got
	s.got++
	if s.o.Compare == nil {
		return nil
	}
	var want []byte
	if n < len(s.recorded) {
		want = s.recorded[n]
	}
	return s.o.Compare(n, want, p)
}

// Listener plays servers to whoever connects.
type Listener struct {
	l      net.Listener
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	errs []error
}

// Listen opens a free loopback port. The first connection gets the first
// capture, the second the second; those beyond the last get the last again.
func Listen(o ServeOptions, captures ...*Capture) (*Listener, error) {
	if len(captures) == 0 {
		return nil, errors.New("listen: no capture to play")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Listener{l: l, cancel: cancel}
	s.wg.Go(func() {
		for i := 0; ; i++ {
			conn, err := l.Accept()
			if err != nil {
				return // Close closed it
			}
			c := captures[min(i, len(captures)-1)]
			s.wg.Go(func() {
				if err := ServeConn(ctx, conn, c, o); err != nil && ctx.Err() == nil {
					s.mu.Lock()
					s.errs = append(s.errs, err)
					s.mu.Unlock()
				}
			})
		}
	})
	return s, nil
}

// Addr returns host:port.
func (s *Listener) Addr() string { return s.l.Addr().String() }

// Close stops listening, cuts the connections that are still played, waits for
// them and returns what went wrong in those that had ended by themselves.
func (s *Listener) Close() error {
	_ = s.l.Close()
	s.cancel()
	s.wg.Wait()
	return errors.Join(s.errs...)
}

// PlayOptions say how the client's side is played. The zero value is fine.
type PlayOptions struct {
	// Enough decides whether the server under test has answered enough to go on,
	// given all it sent and what the recorded server had sent by this point. By
	// default packets are counted, but of an answer to STAT only its end, since
	// servers differ in how many statistics they have.
	Enough func(recorded, got [][]byte) bool
}

// Result is what a server under test sent.
type Result struct {
	Packets [][]byte
	Rest    []byte // a piece of a packet, nil if the stream ended between two
	Closed  bool   // the server closed the connection
}

// Play plays the client's side of c on a connection, and closes it. It ends when
// the recording does; where the server had closed there, it waits for the server
// to close. A server that closes earlier is no error: see Result.Closed.
func Play(ctx context.Context, conn net.Conn, c *Capture, o PlayOptions) (Result, error) {
	if o.Enough == nil {
		o.Enough = func(recorded, got [][]byte) bool { return countAnswers(got) >= countAnswers(recorded) }
	}
	defer guard(ctx, conn)()
	in := newInbox(conn)
	p := &player{conn: conn, in: in, o: o}
	err := p.play(ctx, c)
	_ = conn.Close()
	<-in.done
	for {
		packet, ok, _, _ := in.take()
		if !ok {
			break
		}
		p.res.Packets = append(p.res.Packets, packet)
	}
	p.res.Rest = in.rest()
	if err != nil {
		return p.res, fmt.Errorf("play the client of %s: %w", c.Name, err)
	}
	return p.res, nil
}

// PlayAddr connects to addr and plays the client's side of c there.
func PlayAddr(ctx context.Context, addr string, c *Capture, o PlayOptions) (Result, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return Result{}, fmt.Errorf("play the client of %s: %w", c.Name, err)
	}
	return Play(ctx, conn, c, o)
}

type player struct {
	conn net.Conn
	in   *inbox
	o    PlayOptions
	res  Result
}

func (p *player) play(ctx context.Context, c *Capture) error {
	var stream []byte // of the recorded server until now
	for i, ch := range c.Chunks {
		if ch.From == Server && !ch.EOF {
			stream = append(stream, ch.Bytes...)
			continue
		}
		due, _ := Split(stream)
		if err := p.await(ctx, due); err != nil {
			return err
		}
		switch {
		case p.res.Closed:
			return nil
		case ch.From == Client && ch.EOF:
			// The server may answer what it has got, and close.
			if err := closeWrite(p.conn); err != nil {
				return err
			}
			if c.ServerClosed > i {
				return p.drain(ctx)
			}
		case ch.From == Client:
			if _, err := p.conn.Write(ch.Bytes); err != nil {
				// Whether the server closed shows in what it sent before.
				return p.drain(ctx)
			}
		default:
			return p.drain(ctx)
		}
	}
	due, _ := Split(stream)
	return p.await(ctx, due)
}

// await takes packets until there are enough or the server closes.
func (p *player) await(ctx context.Context, due [][]byte) error {
	for !p.res.Closed && !p.o.Enough(due, p.res.Packets) {
		if err := p.one(ctx); err != nil {
			return fmt.Errorf("wait for %d packets of the server, %d have come: %w", len(due), len(p.res.Packets), err)
		}
	}
	return nil
}

func (p *player) drain(ctx context.Context) error {
	for !p.res.Closed {
		if err := p.one(ctx); err != nil {
			return fmt.Errorf("wait for the server to close: %w", err)
		}
	}
	return nil
}

func (p *player) one(ctx context.Context) error {
	packet, err := p.in.next(ctx)
	switch {
	case err == nil:
		p.res.Packets = append(p.res.Packets, packet)
	case ctx.Err() != nil:
		return ctx.Err()
	default: // io.EOF, or a reset
		p.res.Closed = true
	}
	return nil
}

// countAnswers counts packets, but of an answer to STAT only its end.
func countAnswers(packets [][]byte) int {
	n := 0
	for _, p := range packets {
		if p[0] == magicResponse && p[1] == opStat && len(p) > headerLen && binary.BigEndian.Uint16(p[6:]) == 0 {
			continue
		}
		n++
	}
	return n
}
