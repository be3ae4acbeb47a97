package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/cbpump/cbpump/pump"
)

// stopper turns signals into the two ways to stop: the first one closes Stop, so
// that what was read is finished; the second cancels the context.
type stopper struct {
	Stop <-chan struct{}

	say    *console
	stop   chan struct{}
	cancel context.CancelFunc

	mu     sync.Mutex
	sig    syscall.Signal // the first signal, 0 if none
	status func() string  // what the run is doing
}

// guard watches signals until release is called. The returned context is the one
// to work with.
func guard(ctx context.Context, p *Process, say *console) (work context.Context, s *stopper, release func()) {
	work, cancel := context.WithCancel(ctx)
	s = &stopper{say: say, stop: make(chan struct{}), cancel: cancel}
	s.Stop = s.stop
	say.mu.Lock()
	say.broken = func() { s.on(syscall.SIGPIPE) }
	say.mu.Unlock()
	signals, unsubscribe := p.Signals, func() {}
	if signals == nil {
		// Room for a signal of each kind, so that none is lost while one is handled.
		ch := make(chan os.Signal, 8)
		wanted := append([]os.Signal{syscall.SIGTERM, syscall.SIGPIPE}, statusSignals...)
		for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
			if !signal.Ignored(sig) { // by nohup, or by a shell for its background jobs
				wanted = append(wanted, sig)
			}
		}
		signal.Notify(ch, wanted...)
		signals, unsubscribe = ch, func() { signal.Stop(ch) }
	}
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				// SIGPIPE comes for connections that broke too, so it says nothing of
				// our output; the failed write does. It is taken so that it does not
				// end the process.
				if slices.Contains(statusSignals, sig) {
					s.tell()
				} else if sig, ok := sig.(syscall.Signal); ok && sig != syscall.SIGPIPE {
					s.on(sig)
				}
			}
		}
	})
	return work, s, func() {
		close(done)
		watcher.Wait()
		unsubscribe()
		cancel()
	}
}

var signalName = map[syscall.Signal]string{
	syscall.SIGINT: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP", syscall.SIGPIPE: "SIGPIPE",
}

func (s *stopper) on(sig syscall.Signal) {
	s.mu.Lock()
	first := s.sig == 0
	if first {
		s.sig = sig
	}
	s.mu.Unlock()
	switch {
	case first:
		close(s.stop)
		if sig != syscall.SIGPIPE {
			s.say.Notice("%s: stopping; what was read is being finished. Once more stops at once.", signalName[sig])
		}
	case sig != syscall.SIGPIPE:
		s.say.Notice("%s again: stopping at once.", signalName[sig])
		s.cancel()
	}
}

// signal returns the signal that stopped the run, 0 if none.
func (s *stopper) signal() syscall.Signal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sig
}

// nobodyReads says whether a run ended because the reader of its destination,
// standard output, has closed it.
func nobodyReads(err error) bool { return pump.CodeOf(err) == "closed-pipe" }

// finish says how a run ended and returns its exit code. result makes the JSON
// line that comes last; nil means that there is none.
func finish(say *console, err error, sig syscall.Signal, result func(code int) any) int {
	say.Clear()
	if nobodyReads(err) {
		// The signal that comes with it may be on its way still.
		sig = syscall.SIGPIPE
	}
	code := pump.ExitCode(err, sig)
	if err != nil && sig != syscall.SIGPIPE {
		say.Error(err)
	}
	if result != nil {
		say.Emit(result(code))
	}
	if lost := say.outFailed(); lost != nil {
		say.Error(lost)
		if code == 0 || code == 3 {
			code = pump.ExitCode(lost, 0)
		}
	}
	return code
}

// Error says an error: one paragraph with what, where and why, then the hint.
func (c *console) Error(err error) {
	message, hints := plain(err), hintsOf(err)
	shown := message
	if !c.full {
		shown = c.short(shortAnswers(message, err), shortError)
	}
	fmt.Fprintf(c, "%s: %s\n", c.name, shown)
	for _, hint := range hints {
		fmt.Fprintf(c, "hint: %s\n", hint)
	}
	c.Emit(errorLine{"error", className[pump.ClassOf(err)], pump.CodeOf(err), message, strings.Join(hints, " ")})
}

// Notice prints one line for people unless --silent asks for none.
func (c *console) Notice(format string, args ...any) {
	if !c.silent {
		fmt.Fprintf(c, "%s: %s\n", c.name, fmt.Sprintf(format, args...))
	}
}

// printed prints what was asked for and returns the exit code.
func printed(say *console, p *Process, text string) int {
	_, err := io.WriteString(p.Stdout, text)
	if err != nil {
		err = outputError(err)
	}
	return finish(say, err, 0, nil)
}

// begin parses the arguments and does what needs no work: --help, --version and
// wrong flags. over says that the command has ended with code.
func begin(p *Process, c *common, r *pump.Registry, help string) (say *console, over bool, code int) {
	err := c.parse(p.Args)
	p.hide(c.secrets(r))
	say = newConsole(p, c)
	switch {
	case err == nil && c.help:
		return say, true, printed(say, p, help)
	case err == nil && c.version:
		return say, true, printed(say, p, p.Name+" "+version()+"\n")
	case err != nil:
		return say, true, finish(say, err, 0, nil)
	}
	return say, false, 0
}
