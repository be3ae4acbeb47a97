package mc

import (
	"bufio"
	"context"
	"net"
	"strconv"
	"strings"
	"time"
)

// What ends the wait for a connection that the server still lists: it may never learn
// that it is over, but has done with what it received.
const (
	afterLook = 5 * time.Millisecond // between two looks
	idleFor   = 2                    // seconds without a command there, by the server's count …
	watched   = 2 * time.Second      // … for so long: one that stood still counts that time too
)

// awaitEnd waits until the server has done with a connection that was given up. What
// the server had received there it still reads, and another thread of it may come to
// that only after the writes of the next connection: an early value of a key would
// replace a later one (invariant 5). The server has just answered, so that its silence
// here means that it has no list. Such a server, and one that sees our connections under
// other addresses, is not waited for: it does not list next, which is there.
func (s *Sink) awaitEnd(ctx context.Context, old, next net.Addr) error {
	op := "see at " + s.where + " whether the connection before has ended"
	d := net.Dialer{Timeout: s.cfg.Timeout}
	conn, err := d.DialContext(ctx, "tcp", s.cfg.Addr)
	if err != nil {
		return s.lost(op, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	rd := bufio.NewReader(conn)
	var since time.Time // when it was first seen to be idle, zero if it is not
	for {
		if err := conn.SetDeadline(time.Now().Add(s.cfg.Timeout)); err != nil {
			return s.lost(op, err)
		}
		there, idle, err := look(conn, rd, old.String(), next.String())
		now := time.Now()
		switch {
		case !idle:
			since = time.Time{}
		case since.IsZero():
			since = now
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil || !there: // a server without the text protocol hangs up, or says nothing
			return nil
		case idle && now.Sub(since) >= watched:
			return nil
		}
		select {
		case <-time.After(afterLook):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// look asks for the server's connections and reports whether the one from addr is
// among them, and the one from known is there, too; and whether the former had no command
// lately.
func look(conn net.Conn, rd *bufio.Reader, addr, known string) (there, idle bool, err error) {
	// Only the text protocol has the list. What follows the question makes it as long
	// as a header, for a server of the binary protocol alone to refuse.
	if _, err := conn.Write([]byte("stats conns\r\nversion\r\nversion\r\n")); err != nil {
		return false, false, err
	}
	// STAT 27:addr tcp:127.0.0.1:50312
	// STAT 27:secs_since_last_cmd 0
	id, sees := "", false
	for versions := 0; versions < 2; {
		line, err := rd.ReadSlice('\n')
		if err != nil {
			return false, false, err
		}
		word := strings.Fields(string(line))
		if len(word) > 0 && word[0] == "VERSION" {
			versions++
		}
		if len(word) != 3 || word[0] != "STAT" {
			continue
		}
		of, name, _ := strings.Cut(word[1], ":")
		_, from, _ := strings.Cut(word[2], ":")
		switch {
		case name == "addr" && from == addr:
			id, there = of, true
		case name == "addr" && from == known:
			sees = true
		case name == "secs_since_last_cmd" && of == id:
			seconds, err := strconv.Atoi(word[2])
			idle = err == nil && seconds >= idleFor
		}
	}
	return there && sees, idle, nil
}
