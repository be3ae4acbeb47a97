package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// gather is the pause between two rounds of commitEarly: each asks every node of
// the destination for its counts.
const gather = 100 * time.Millisecond

// commitEarly verifies and commits vbuckets while others are still transferred:
// what is not committed is lost when the recovery stops, for whatever reason. It
// goes on until over is closed. What does not agree or cannot be committed at once
// is left to the phases that follow the transfer.
//
// While it runs it is the only one that touches outcomes.
func (r *run) commitEarly(ctx context.Context, over <-chan struct{}) error {
	var open []uint16
	watch := time.NewTicker(r.opt.Timing.Watch)
	defer watch.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-over:
			return nil
		case <-watch.C:
			// Writing into vbuckets that the destination has deleted would go on until
			// the sink gives up.
			if err := r.checkForgotten(ctx); err != nil {
				return err
			}
			continue
		case <-r.tally.wake:
		}
		for vb, items := range r.tally.arrivals() {
			o := r.out[vb]
			if o.Err != nil { // it is somebody else's
				continue
			}
			o.SourceItems, o.proven = items, true
			r.step(PhaseTransfer, vb, StepTransferred)
			open = append(open, vb)
		}
		open = slices.DeleteFunc(open, func(vb uint16) bool { return r.out[vb].Err != nil })
		slices.Sort(open)
		dst := r.dst.survey(ctx)
		good := slices.DeleteFunc(slices.Clone(open), func(vb uint16) bool { return r.compare(vb, nil, dst) != nil })
		r.accept(ctx, good)
		open = slices.DeleteFunc(open, func(vb uint16) bool { return slices.Contains(good, vb) })
		if err := r.commit(ctx, r.again.once()); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		t := time.NewTimer(gather)
		select {
		case <-ctx.Done():
		case <-over:
		case <-t.C:
		}
		t.Stop()
	}
}

// commit commits r.verified one by one and takes out of it what needs no further
// try. With only one try what may be repeated stays in it. The error says that
// the destination has forgotten the recovery.
func (r *run) commit(ctx context.Context, again repeater) error {
	var forgotten error
	look := func() (bool, error) {
		var err error
		forgotten, err = r.reread(ctx)
		return len(r.verified) == 0 || forgotten != nil, err
	}
	send := func() error {
		var last error
		for _, vb := range slices.Clone(r.verified) {
			err := r.committer.Commit(ctx, vb)
			code := pump.CodeOf(err)
			if code == codeNoVBucket || code == codeForgotten {
				if _, lerr := look(); lerr != nil || forgotten != nil {
					return lerr
				}
				if !slices.Contains(r.verified, vb) {
					continue // it had been committed
				}
			}
			switch {
			case err == nil:
				r.settleCommits(func(v uint16) bool { return v == vb })
			case ctx.Err() != nil:
				return err
			case pump.IsRetryable(err):
				last = err
				if code != codeFailedNodes {
					return err // the others would meet the same
				}
			default:
				r.fail(PhaseCommit, vb, err)
				r.verified = slices.DeleteFunc(r.verified, func(v uint16) bool { return v == vb })
			}
		}
		return last
	}
	var err error
	if r.unsure {
		// An earlier call has lost an answer.
		err = again.call(ctx, func() error { _, err := look(); return err }, nil)
	}
	if err == nil && forgotten == nil {
		err = again.call(ctx, send, look)
	}
	r.unsure = pump.IsRetryable(err)
	switch {
	case ctx.Err() != nil:
		return nil // who called sees it too
	case forgotten != nil:
		return forgotten
	case err != nil && again.tries > 1:
		for _, vb := range r.verified {
			r.fail(PhaseCommit, vb, err)
		}
		r.verified = nil
	}
	return nil
}

// reread asks the destination what is not committed yet: after a lost answer, or
// where something does not fit. A vbucket that the recovery does not list any more
// is committed. forgotten says that the recovery is gone with vbuckets open.
func (r *run) reread(ctx context.Context) (forgotten, err error) {
	open, err := r.committer.Uncommitted(ctx)
	switch {
	case pump.CodeOf(err) == codeForgotten:
		// Either the last commit has ended it, or it is forgotten: the map tells.
		if rerr := r.dst.refresh(ctx); rerr != nil {
			return nil, rerr
		}
		open = make(map[uint16]bool)
		for _, vb := range r.dst.bucket.Map.Missing() {
			open[vb] = true
		}
		if slices.ContainsFunc(r.todo, func(vb uint16) bool {
			o := r.out[vb]
			return open[vb] && o.Err == nil && o.State == StateReplica
		}) {
			forgotten = err
		}
	case err != nil:
		return nil, err
	}
	r.settleCommits(func(vb uint16) bool { return !open[vb] })
	if forgotten == nil {
		r.leaveToOthers(open)
	}
	return forgotten, nil
}

// leaveToOthers gives up vbuckets that are committed, but not by this run: another
// one goes on with the same recovery (up to 5.0 two that start at the same moment
// get the same uuid). Clients write to them, and what is still being pushed would
// overwrite that.
func (r *run) leaveToOthers(open map[uint16]bool) {
	for _, vb := range r.todo {
		o := r.out[vb]
		if open[vb] || o.Err != nil || o.State != StateReplica {
			continue
		}
		if r.tally != nil {
			r.tally.wanted[vb].Store(false)
		}
		o.State, r.shared = StateActive, true
		r.fail(PhaseTransfer, vb, &pump.Error{Code: "became-active", Op: fmt.Sprintf("vbucket %d", vb),
			Err:  errors.New("somebody else has committed it while it was transferred"),
			Hint: "Another cbrecovery is at work. When it is over, compare item counts with the source; this one does not write to the vbucket any more."})
	}
}

// checkForgotten returns an error if the destination has forgotten the recovery:
// that is then the reason why vbuckets vanish from under a transfer.
func (r *run) checkForgotten(ctx context.Context) error {
	if r.committer == nil {
		return nil
	}
	forgotten, err := r.reread(ctx)
	if err != nil {
		r.opt.Log.Warn("reading the state of the recovery failed", "reason", err)
	}
	return forgotten
}

// settleCommits moves the vbuckets that are committed from r.verified to
// r.publish.
func (r *run) settleCommits(committed func(vb uint16) bool) {
	r.verified = slices.DeleteFunc(r.verified, func(vb uint16) bool {
		if !committed(vb) {
			return false
		}
		r.out[vb].State = StateActive
		r.publish = append(r.publish, vb)
		r.step(PhaseCommit, vb, StepCommitted)
		return true
	})
}

// startRecovery begins the recovery at a destination that has to be told, or
// goes on with one that is under way, and learns the owners.
func (r *run) startRecovery(ctx context.Context, todo []uint16) error {
	if r.adopted {
		// What the plan has read is enough to go on with.
		r.adopted, r.begun = false, true
		return r.haveOwners(todo, r.owners)
	}
	running, err := r.running(ctx)
	if err != nil {
		return err
	}
	if running != nil {
		// Up to 5.0 startRecovery would answer with this one's uuid as if it were new.
		return alreadyRunning(running, r.dst.name)
	}
	r.begun = true
	var owners map[uint16]string
	send := func() (err error) {
		owners, err = r.committer.Begin(ctx, todo)
		return err
	}
	// After a lost answer: none was running just before, so one that is running now
	// is ours.
	took := func() (bool, error) {
		running, err := r.committer.Running(ctx)
		if err != nil || running == nil || running.Bucket != r.dst.name {
			return false, err
		}
		owners, err = r.committer.Adopt(ctx, running.UUID)
		return err == nil, err
	}
	warned := false
	_, perr := r.again.poll(ctx, r.opt.Timing.Busy, func() (bool, error) {
		err = r.again.call(ctx, send, took)
		if !passes(err) || r.stopped() {
			return true, nil
		}
		if !warned {
			warned = true
			r.warn(pump.CodeOf(err), fmt.Sprintf("the recovery cannot be started now: %v; waiting %s at most", err, r.opt.Timing.Busy), pump.HintOf(err))
		}
		return false, err
	})
	switch {
	case ctx.Err() != nil, passes(err) && r.stopped():
		return r.interrupted()
	case perr != nil:
		err = perr
	}
	switch pump.CodeOf(err) {
	case codeNotNeeded:
		return r.notNeeded(ctx, todo, err)
	case codeRunning:
		if running, rerr := r.running(ctx); rerr == nil && running != nil {
			return alreadyRunning(running, r.dst.name)
		}
	}
	if err != nil {
		return err
	}
	return r.haveOwners(todo, owners)
}

// running asks for a recovery that is under way, again where that may help.
func (r *run) running(ctx context.Context) (t *Running, err error) {
	err = r.again.call(ctx, func() (err error) {
		t, err = r.committer.Running(ctx)
		return err
	}, nil)
	return t, err
}

// haveOwners takes the owners that the destination named. No other place may be
// written to: what is not part of the recovery has none.
func (r *run) haveOwners(todo []uint16, owners map[uint16]string) error {
	r.owners = owners
	for _, vb := range todo {
		if owners[vb] == "" {
			r.fail(PhasePrepare, vb, &pump.Error{Code: "no-owner", Op: fmt.Sprintf("vbucket %d", vb),
				Err:  errors.New("the recovery that was started does not name it: it is not missing any more, or another run has committed it"),
				Hint: "Run the command again: it reads the map anew."})
		}
	}
	return nil
}

func alreadyRunning(t *Running, bucket string) error {
	e := &pump.Error{Code: codeRunning, Op: "start the recovery", Err: fmt.Errorf("recovery %s of bucket %s is under way at the destination already", quote(t.UUID), t.Bucket)}
	if t.Bucket != bucket {
		e.Hint = "A cluster runs one recovery at a time. Wait until it is over, or stop it."
		return e
	}
	e.Hint = fmt.Sprintf("If it was left by an earlier run, go on with it: --resume. If another cbrecovery is at work, leave it alone. To stop it: POST /pools/default/buckets/%s/controller/stopRecovery?recovery_uuid=%s", bucket, t.UUID)
	return e
}

// notNeeded is the answer that nothing is missing, after the plan saw vbuckets
// missing: either others have recovered them, or a rebalance has created them
// empty.
func (r *run) notNeeded(ctx context.Context, todo []uint16, why error) error {
	r.warn(codeNotNeeded, "the destination says that no vbucket is missing any more", "Somebody else has recovered or rebalanced it since the plan was made.")
	if err := r.again.call(ctx, func() error { return r.dst.refresh(ctx) }, nil); err != nil {
		return err
	}
	src, dst := r.surveys(ctx)
	if err := dst.failed(); err != nil {
		return err
	}
	for _, vb := range todo {
		o := r.out[vb]
		addr, ok := r.dst.bucket.Map.Active(vb)
		if !ok {
			r.fail(PhasePrepare, vb, why)
			continue
		}
		o.Destination = addr
		if r.hollow(vb, src, dst) {
			r.fail(PhasePrepare, vb, holeError([]uint16{vb}))
			continue
		}
		info, _ := dst.at(addr, vb)
		o.DestinationItems, o.State = info.Items, StateRecovered
		r.step(PhasePrepare, vb, StepRecovered)
	}
	return nil
}

// forget prepares the run for starting the recovery again: what is not committed
// is transferred anew. It returns these vbuckets.
func (r *run) forget(todo []uint16) []uint16 {
	var open []uint16
	for _, vb := range todo {
		o := r.out[vb]
		if o.Err == nil && o.State != StateActive && o.State != StateRecovered {
			o.State, o.Destination, o.proven = StateMissing, "", false
			open = append(open, vb)
		}
	}
	r.todo, r.verified, r.owners = nil, nil, nil
	return open
}
