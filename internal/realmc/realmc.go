// Package realmc starts Debian's memcached on a free loopback port: the real
// destination of tests and benchmarks.
package realmc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/couchbase/gomemcached/client"
)

// Server is a memcached process that this package started.
type Server struct {
	Addr string // host:port

	args   []string
	cmd    *exec.Cmd
	kill   *sync.Once
	exited chan struct{}
}

// Start starts memcached with further arguments and ends it with the test.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	s, err := Launch(args...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Launch starts memcached with further arguments. Close ends it.
func Launch(args ...string) (*Server, error) {
	var last error
	for range 20 { // the port may be taken between the probe and the start
		probe, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		addr := probe.Addr().String()
		port := strconv.Itoa(probe.Addr().(*net.TCPAddr).Port)
		if err := probe.Close(); err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		line := []string{"-l", "127.0.0.1", "-p", port, "-U", "0"}
		if os.Getuid() == 0 {
			line = append(line, "-u", "root")
		}
		s := &Server{Addr: addr, args: append(line, args...)}
		if last = s.start(); last == nil {
			return s, nil
		}
		if errors.Is(last, exec.ErrNotFound) {
			break
		}
	}
	return nil, fmt.Errorf("memcached does not start (make setup installs it): %w", last)
}

func (s *Server) start() error {
	s.cmd, s.exited, s.kill = exec.Command("memcached", s.args...), make(chan struct{}), new(sync.Once)
	s.cmd.Stderr = io.Discard
	if err := s.cmd.Start(); err != nil {
		return err
	}
	cmd, exited := s.cmd, s.exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	if err := s.ready(); err != nil {
		s.Close()
		return err
	}
	return nil
}

// Restart kills the process and starts an empty one at the same address. Nothing
// else may use the Server meanwhile.
func (s *Server) Restart() error {
	s.Kill()
	var last error
	for range 20 { // somebody else may have got the port for a moment
		if last = s.start(); last == nil {
			return nil
		}
	}
	return fmt.Errorf("memcached does not start again: %w", last)
}

// ready waits until memcached listens or has exited. Another process may have got the
// port between the probe and the start, and answer in its place.
func (s *Server) ready() error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if pid, err := s.Stat("pid"); err == nil && pid == strconv.Itoa(s.PID()) {
			return nil
		}
		select {
		case <-s.exited:
			return errors.New("it exited at once")
		case <-tick.C:
		}
	}
}

// Kill kills the process with SIGKILL and waits for its end.
func (s *Server) Kill() {
	s.kill.Do(func() { _ = s.cmd.Process.Kill() })
	<-s.exited
}

// Stop makes the process stand still and returns when all its threads do; Continue
// lets it go on.
func (s *Server) Stop() error {
	if err := syscall.Kill(s.PID(), syscall.SIGSTOP); err != nil {
		return err
	}
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(s.PID(), &status, syscall.WUNTRACED, nil); err != syscall.EINTR {
			return err
		}
	}
}

// Continue lets a stopped process go on.
func (s *Server) Continue() error { return syscall.Kill(s.PID(), syscall.SIGCONT) }

// Close ends the process.
func (s *Server) Close() { s.Kill() }

// PID returns the process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// silence is how long a peer may take that may not be memcached at all.
const silence = 10 * time.Second

// Stat asks memcached for one of its statistics, with an independent client.
func (s *Server) Stat(name string) (string, error) {
	c, err := memcached.Connect("tcp", s.Addr)
	if err != nil {
		return "", fmt.Errorf("connect to memcached: %w", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(silence))
	all, err := c.StatsMap("")
	if err != nil {
		return "", fmt.Errorf("statistics of memcached: %w", err)
	}
	v, ok := all[name]
	if !ok {
		return "", fmt.Errorf("memcached has no statistic %q", name)
	}
	return v, nil
}

// Count is Stat for a number.
func (s *Server) Count(name string) (uint64, error) {
	v, err := s.Stat(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(v, 10, 64)
}
