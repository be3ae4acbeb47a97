package recovery

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/pump"
)

// repeater sends a request again where that may help and cannot harm.
type repeater struct {
	tries    int
	min, max time.Duration
	log      hclog.Logger
}

// once is r without repetitions.
func (r repeater) once() repeater {
	r.tries = 1
	return r
}

// call runs send until it succeeds, fails for good, or was tried often enough.
// Before each repetition done reads back whether the lost attempt took effect
// after all; nil means that repeating is harmless. Where the state cannot be
// read nothing is sent: that would be guessing.
func (r repeater) call(ctx context.Context, send func() error, done func() (bool, error)) error {
	pause := r.min
	var err error
	for try := 1; ; try++ {
		if done == nil || try == 1 {
			err = send()
		} else if ok, derr := done(); ok {
			r.log.Info("the request had taken effect although its answer was lost")
			return nil
		} else if derr == nil {
			err = send()
		} else {
			r.log.Warn("reading back what a request did failed", "reason", derr)
			if !pump.IsRetryable(derr) {
				return err
			}
		}
		if err == nil || !pump.IsRetryable(err) || try >= r.tries {
			return err
		}
		r.log.Warn("a request failed and is repeated", "try", try, "reason", err)
		if werr := sleep(ctx, pause); werr != nil {
			return werr
		}
		pause = min(2*pause, r.max)
	}
}

// poll runs check until it reports true or limit is over; it returns the last
// error of check, if any, when time is over. The first check is made at once.
func (r repeater) poll(ctx context.Context, limit time.Duration, check func() (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTimeOver)
	defer cancel()
	pause := min(50*time.Millisecond, r.min)
	for {
		ok, err := check()
		if ok {
			return true, nil
		}
		if werr := sleep(ctx, pause); werr != nil {
			if context.Cause(ctx) == errTimeOver {
				return false, err
			}
			return false, werr
		}
		pause = min(2*pause, max(time.Second, r.min))
	}
}

// errTimeOver marks the end of a poll; it does not leave this file.
var errTimeOver = &pump.Error{Code: "time-over"}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return &pump.Error{Class: pump.ClassInterrupted, Code: "interrupted", Op: "recovery", Err: context.Cause(ctx)}
	case <-t.C:
		return nil
	}
}
