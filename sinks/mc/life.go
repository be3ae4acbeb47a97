package mc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// life is what the sink knows of the server's life. memcached holds everything in
// memory: once it was started anew, what it had confirmed is gone, and no later
// item brings it back. So a new life in mid-run ends the run (invariant 1).
type life struct {
	mu   sync.Mutex
	name string // "" until known; of a server that does not say it stays so
}

// errNewLife says that the server is not the process that it was.
var errNewLife = errors.New("it was started anew in the meantime, and what it held is gone")

// meet compares the server's life with the one that was met first.
func (l *life) meet(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.name == "":
		l.name = name
	case name != l.name:
		return errNewLife
	}
	return nil
}

// Life implements pump.Volatile: memcached's process and when that began.
func (s *Sink) Life(ctx context.Context) (string, error) {
	p, err := s.dial(ctx)
	if err != nil {
		return "", err
	}
	defer p.Close() // nothing was written
	s.life.mu.Lock()
	defer s.life.mu.Unlock()
	return s.life.name, nil
}

// greet asks a server for its life over a connection that is logged in and has
// nothing under way.
func (s *Sink) greet(conn net.Conn, rd *mcbp.Reader) error {
	if s.cfg.Operation == "get" { // nothing is written, so nothing can be lost
		return nil
	}
	op := "ask " + s.where + " how long it has been running"
	if err := conn.SetDeadline(time.Now().Add(s.cfg.Timeout)); err != nil {
		return s.lost(op, err)
	}
	name, err := askLife(conn, rd)
	if err != nil {
		return s.lostAsking(op, err)
	}
	if err := s.life.meet(name); err != nil {
		return &pump.Error{Code: "destination-restarted", Op: "write to " + s.where, Err: err,
			Hint: "Run the command again from the start, without --resume: everything has to be written anew."}
	}
	return conn.SetDeadline(time.Time{})
}

func askLife(conn net.Conn, rd *mcbp.Reader) (string, error) {
	// The NOOP behind ends the answer of a server that says nothing to the question.
	ask := mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpStat}, nil, nil, nil)
	if _, err := conn.Write(mcbp.AppendNoop(ask, 0)); err != nil {
		return "", err
	}
	var pid string
	var now, up uint64
	for {
		f, err := rd.Next()
		if err != nil {
			return "", err
		}
		if f.Opcode == mcbp.OpNoop {
			break
		}
		value := string(f.Value())
		switch string(f.Key()) {
		case "pid":
			pid = value
		case "time":
			now, err = strconv.ParseUint(value, 10, 64)
		case "uptime":
			up, err = strconv.ParseUint(value, 10, 64)
		}
		if err != nil {
			pid = "" // it says something else than memcached does
		}
	}
	if pid == "" || now < up || now == 0 {
		return "", nil
	}
	// memcached counts its uptime on the clock that it tells, so that this is
	// always the same number.
	return fmt.Sprintf("process %s since %d", pid, now-up), nil
}
