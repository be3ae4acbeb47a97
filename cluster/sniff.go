package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// sniffConn remembers the first bytes that a peer sent, so that an error can say
// what it speaks.
type sniffConn struct {
	net.Conn
	mu    sync.Mutex
	first []byte
}

const sniffLen = 24

func (s *sniffConn) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.mu.Lock()
	if room := sniffLen - len(s.first); room > 0 && n > 0 {
		s.first = append(s.first, p[:min(n, room)]...)
	}
	s.mu.Unlock()
	return n, err
}

func (s *sniffConn) begin() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.first)
}

// startsOther reports that something came and that it does not begin with want.
func (s *sniffConn) startsOther(want string) bool {
	b := s.begin()
	n := min(len(b), len(want))
	return n > 0 && b[:n] != want[:n]
}

func (s *sniffConn) shown(scrub func(string) string) string { return clip(scrub(s.begin()), sniffLen) }

// looksTLS recognises a TLS record: an alert or a handshake message, version 3.x.
func looksTLS(b string) bool {
	return len(b) >= 2 && (b[0] == 0x15 || b[0] == 0x16) && b[1] == 3
}

// tlsAlert is how a TLS port begins its answer to something else.
const tlsAlert = "\x15\x03\x01"

// dialFailure fills in e and reports true when err is about making a connection
// or finding the host.
func dialFailure(err error, e *pump.Error) bool {
	var dns *net.DNSError
	var op *net.OpError
	var addr *net.AddrError
	switch {
	case errors.As(err, &dns):
		e.Class, e.Code = pump.ClassUnreachable, "unknown-host"
		e.Err = fmt.Errorf("the host %q cannot be found", clip(dns.Name, 120))
		e.Retry = dns.IsTimeout || dns.IsTemporary
	case errors.As(err, &op) && op.Op == "dial":
		e.Class, e.Code, e.Retry = pump.ClassUnreachable, "unreachable", true
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			e.Err = fmt.Errorf("nothing listens there: %w", syscall.ECONNREFUSED)
		case isTimeout(err):
			e.Err = errors.New("no connection in time")
		case errors.As(err, &addr):
			e.Class, e.Code, e.Retry, e.Err = pump.ClassUsage, "usage", false, addr
		default:
			e.Err = op.Err
		}
	default:
		return false
	}
	return true
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// isCut reports that the peer ended the conversation.
func isCut(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, mcbp.ErrTruncated) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.Contains(err.Error(), "server closed idle connection")
}
