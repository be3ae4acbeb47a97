package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cbpump/cbpump/internal/deadletter"
	"github.com/cbpump/cbpump/pump"
)

// noDeadLetters is the value of --dead-letters that keeps no rejected items.
const noDeadLetters = "none"

// addDeadLetters declares the flags about rejected items.
func (f *transferFlags) addDeadLetters() {
	f.set.StringVar(&f.deadLetters, "dead-letters", "", "")
	f.set.Uint64Var(&f.maxRejected, "max-rejected", 10000, "")
}

// openDeadLetters says where rejected items go; nil is nowhere. A file that the
// user named is made now, so that the run does not begin if it cannot be written.
func (t *transfer) openDeadLetters() (*deadletter.File, error) {
	f := t.flags
	switch {
	case f.deadLetters == noDeadLetters:
		return nil, nil
	case f.given("dead-letters"):
		if f.deadLetters == "" {
			return nil, f.usage("--dead-letters takes the name of a file, or %s", noDeadLetters)
		}
		return deadletter.Open(f.deadLetters, f.given("resume"))
	}
	began, n := time.Now().UTC().Format("20060102T150405Z"), 0
	return deadletter.Later(func() string {
		n++
		if n == 1 {
			return "rejected-" + began + ".jsonl"
		}
		return fmt.Sprintf("rejected-%s-%d.jsonl", began, n)
	}), nil
}

// keepRejected has the run keep rejected items and stop at one too many.
func (t *transfer) keepRejected(cfg *pump.Config) {
	if t.dead != nil {
		cfg.OnRejected, cfg.Sync = t.dead.Write, t.dead.Sync
	}
	cfg.StopAtRejected = t.flags.maxRejected + 1 // the largest number wraps to 0: no limit
}

// closeDeadLetters makes what was kept durable; err is how the run ended.
func (t *transfer) closeDeadLetters(err error) error {
	if t.dead == nil {
		return err
	}
	if cerr := t.dead.Close(); cerr != nil && pump.CodeOf(err) != pump.CodeOf(cerr) {
		// A failure beside a partial success is a failure.
		return errors.Join(err, cerr)
	}
	n := t.dead.Len()
	if n == 0 || err == nil {
		return err
	}
	return &pump.Error{Class: pump.ClassOf(err), Code: pump.CodeOf(err), Err: err,
		Hint: strings.Join(append(hintsOf(err), fmt.Sprintf("What was rejected (%s) is in %s with the reasons; once they are mended, %s %s DESTINATION repeats it.",
			countOf(int(n), "item"), t.dead.Path(), t.say.name, shellWord(t.dead.Path()))), "\n")}
}
