package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/term"

	"github.com/cbpump/cbpump/pump"
)

// console is the way out of everything that a command says: text for people on
// stderr, below it a live line when stderr is a terminal, and with --json one
// object per line on stdout. It is safe for concurrent use.
type console struct {
	name   string
	silent bool      // say nothing but errors
	full   bool      // say long reasons whole (-v)
	redact *redactor // nil: keys are said as they are

	mu     sync.Mutex
	err    io.Writer
	live   bool       // stderr is a terminal
	width  func() int // of that terminal
	line   string     // the live line that stands there now
	out    io.Writer  // nil: no JSON
	broken func()     // called once when nobody reads out any more
	outErr error      // why out takes no more
}

func newConsole(p *Process, c *common) *console {
	say := &console{name: p.Name, silent: c.silent, full: c.verbose > 0, err: p.Stderr, width: func() int { return 80 }}
	if c.json {
		say.out = p.Stdout
	}
	if c.redact {
		say.redact = newRedactor(p)
	}
	if f, ok := p.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		say.live = true
		say.width = func() int {
			if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
				return w
			}
			return 80
		}
	}
	return say
}

// Write prints text for people above the live line. It is hclog's output too.
func (c *console) Write(text []byte) (int, error) {
	said := []byte(c.redact.text(string(text)))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line == "" {
		_, _ = c.err.Write(said)
		return len(text), nil
	}
	var b bytes.Buffer
	b.WriteString("\r\x1b[K")
	b.Write(said)
	b.WriteString(c.line)
	_, _ = c.err.Write(b.Bytes())
	return len(text), nil
}

// Print prints one line for people unless --silent or --json asks for none.
func (c *console) Print(format string, args ...any) {
	if !c.silent && c.out == nil {
		fmt.Fprintf(c, format+"\n", args...)
	}
}

// Warn prints a warning, with --json on both outputs.
func (c *console) Warn(text string) { c.warn(warningLine{Type: "warning", Message: text}) }

func (c *console) warn(w warningLine) {
	if c.silent {
		return
	}
	hint := ""
	if w.Hint != "" {
		hint = ". " + sentence(w.Hint)
	}
	fmt.Fprintf(c, "%s: warning: %s%s\n", c.name, oneLine(w.Message), oneLine(hint))
	c.Emit(w)
}

// Status shows how far the work has come: in the live line on a terminal, as a
// line of its own elsewhere.
func (c *console) Status(line string) {
	if c.silent || c.out != nil {
		return
	}
	if !c.live {
		fmt.Fprintln(c, line)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := []rune(line); len(r) >= c.width() {
		line = string(r[:max(0, c.width()-1)])
	}
	c.line = line
	_, _ = io.WriteString(c.err, "\r\x1b[K"+line)
}

// Clear takes the live line away.
func (c *console) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line != "" {
		c.line = ""
		_, _ = io.WriteString(c.err, "\r\x1b[K")
	}
}

// Emit writes one JSON line; without --json it does nothing.
func (c *console) Emit(line any) {
	if c.out == nil {
		return
	}
	text, err := json.Marshal(line)
	if err != nil {
		// Lines are made of strings and numbers; a failure here is a defect, and
		// silence would hide it.
		text = []byte(`{"type":"error","code":"defect","message":"a line could not be written as JSON"}`)
	}
	text = c.redact.line(text)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outErr != nil {
		return
	}
	if _, c.outErr = c.out.Write(append(text, '\n')); closedPipe(c.outErr) && c.broken != nil {
		c.broken()
	}
}

// closedPipe says whether a write failed because nobody reads any more.
func closedPipe(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}

// outFailed is the error of an output that took no more although somebody reads
// it, such as a file on a full disk. What it lacks is not said again: the run's
// own work went on.
func (c *console) outFailed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outErr == nil || closedPipe(c.outErr) {
		return nil
	}
	return outputError(c.outErr)
}

func outputError(err error) error {
	return &pump.Error{
		Class: pump.ClassFailed, Code: "output", Op: "write to standard output", Err: err,
		Hint: "What was printed there is not complete.",
	}
}

// logger is what engine, plugins and recovery log to.
func (c *console) logger(verbose int) hclog.Logger {
	level := hclog.Warn
	switch {
	case c.silent:
		level = hclog.Error
	case verbose >= 3:
		level = hclog.Trace
	case verbose == 2:
		level = hclog.Debug
	case verbose == 1:
		level = hclog.Info
	}
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: c.name, Level: level, Output: logWriter{c}})
	if c.out != nil && !c.silent {
		l.RegisterSink(logLines{c})
	}
	return l
}

// short cuts a text that is longer than people read, unless -v asks for all of
// it. --json has it whole in any case.
func (c *console) short(text string, most int) string {
	text = c.redact.text(text) // before a mark is cut off
	if r := []rune(text); !c.full && len(r) > most {
		return string(r[:most]) + "… (-v shows all)"
	}
	return text
}

// How much is shown of one reason, and of the error at the end.
const (
	shortReason = 240
	shortError  = 500
)

// logWriter keeps log lines short.
type logWriter struct{ c *console }

func (w logWriter) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	if _, err := io.WriteString(w.c, w.c.short(text, shortReason)+"\n"); err != nil {
		return 0, err
	}
	return len(line), nil
}

// logLines turns warnings and errors of the log into JSON lines.
type logLines struct{ c *console }

// Accept implements hclog.SinkAdapter.
func (s logLines) Accept(name string, level hclog.Level, msg string, args ...any) {
	if level < hclog.Warn {
		return
	}
	fields := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		fields[fmt.Sprint(args[i])] = fmt.Sprint(args[i+1])
	}
	s.c.Emit(warningLine{Type: "warning", Message: msg, Logger: name, Fields: fields})
}
