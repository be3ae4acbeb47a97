package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// Run recovers the missing vbuckets of the destination. The result is never nil
// and says what is known, whatever the error. The error is nil only if every
// vbucket of the plan is recovered or nothing was missing. Its class is that of
// wrong use, of an endpoint that cannot be reached or denies access, of an
// interruption, and ClassFailed when vbuckets are left.
//
// Cancelling ctx stops at once; closing Options.Stop stops in order.
func Run(ctx context.Context, opt Options) (*Result, error) {
	r := &run{opt: opt, res: &Result{}, out: make(map[uint16]*Outcome), meter: newMeter(time.Now)}
	err := r.all(cluster.WithTrace(ctx, r.meter.wait))
	r.res.Spent = r.meter.read()
	for _, vb := range sortedKeys(r.out) {
		r.res.Outcomes = append(r.res.Outcomes, *r.out[vb])
	}
	return r.res, err
}

// run is one recovery under way. One goroutine goes through the phases; the
// transfer's callbacks come from others and touch nothing but tally and emit.
type run struct {
	opt   Options
	res   *Result
	again repeater
	meter *meter

	src, dst  *side
	api       Dialect
	publisher Publisher // api, if it is one
	committer Committer // api, if it is one
	adopted   bool      // owners are of a recovery that the run goes on with
	begun     bool      // there is something to End
	unsure    bool      // the answer to a commit was lost
	shared    bool      // another run goes on with the same recovery
	plan      *Plan
	out       map[uint16]*Outcome
	todo      []uint16          // to be transferred
	owners    map[uint16]string // named by the dialect
	tally     *tally
	verified  []uint16        // may be activated (invariant 6)
	told      map[string]bool // warnings about vbuckets that cannot be read, each once
	publish   []uint16        // active at their owners and verified

	journal *journal // nil: none is kept

	emitting sync.Mutex
}

func (r *run) all(ctx context.Context) error {
	if err := r.opt.check(); err != nil {
		return err
	}
	t := r.opt.Timing
	r.again = repeater{tries: t.Tries, min: t.RetryMin, max: t.RetryMax, log: r.opt.Log}
	defer r.disconnect()
	if err := r.phase(PhasePlan, 0, func() error { return r.makePlan(ctx) }, nil); err != nil {
		return err
	}
	r.res.Plan = r.plan
	r.emit(Planned{r.plan})
	if r.plan.Nothing() || r.opt.DryRun {
		return r.left()
	}
	if r.plan.Running != "" && !r.adopted {
		return alreadyRunning(&Running{Bucket: r.plan.RunningBucket, UUID: r.plan.Running}, r.dst.name)
	}
	if r.stopped() {
		return r.interrupted()
	}
	if len(r.plan.With(ActionCreate, ActionResume, ActionPublish)) == 0 {
		return r.left() // nodes are replaced to recover something, not for nothing
	}
	err := r.openJournal()
	if err == nil {
		err = r.carryOut(ctx)
	}
	if err == nil {
		err = r.left()
	}
	return r.closeJournal(ctx, err)
}

// carryOut is everything that changes the destination.
func (r *run) carryOut(ctx context.Context) (err error) {
	defer func() {
		if eerr := r.end(ctx); err == nil {
			err = eerr
		}
	}()
	todo := r.plan.With(ActionCreate, ActionResume)
	for start := 1; ; start++ {
		err := r.attempt(ctx, todo)
		if r.committer == nil || err == nil || ctx.Err() != nil {
			return err
		}
		if pump.CodeOf(err) != codeForgotten {
			return errors.Join(err, r.finish(ctx)) // what an earlier start has committed
		}
		open := r.forget(todo)
		if start == maxStarts || r.stopped() || len(open) == 0 {
			for _, vb := range open {
				r.fail(PhaseCommit, vb, err)
			}
			return r.finish(ctx)
		}
		r.warn(codeForgotten, fmt.Sprintf("the destination has forgotten the recovery; it is started again for vbucket %s", pump.FormatVBuckets(open)),
			"The cluster has a new master, or somebody has stopped the recovery. What is committed stays; the rest is transferred anew.")
		todo = open
	}
}

// maxStarts is how often a recovery that the destination forgets is started.
const maxStarts = 3

// end ends what was begun at the destination, even if the run was cut. What is not
// committed is deleted by a destination that has to be told.
func (r *run) end(ctx context.Context) error {
	if !r.begun {
		return nil
	}
	if r.shared {
		r.warn("recovery-shared", "another cbrecovery commits vbuckets of the same recovery; it is not stopped",
			"When the other one is over, run the command again: it does only what is left.")
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opt.Timing.Request)
	defer cancel()
	var deletes bool
	err := r.again.call(ctx, func() (err error) {
		deletes, err = r.api.End(ctx)
		return err
	}, nil)
	if err != nil {
		r.res.NotStopped = true
		r.warn("recovery-not-stopped", fmt.Sprintf("the recovery could not be stopped: %v", err),
			"It goes on at the destination without anybody filling its vbuckets. Run the command again with --resume.")
		return &pump.Error{Class: pump.ClassOf(err), Code: "recovery-not-stopped", Op: "stop the recovery", Err: err,
			Hint: "Run the command again with --resume."}
	}
	if !deletes {
		return nil
	}
	var gone []uint16
	for _, vb := range sortedKeys(r.out) {
		if o := r.out[vb]; o.State == StateReplica {
			o.State = StateMissing
			gone = append(gone, vb)
		}
	}
	if len(gone) > 0 {
		r.warn("recovery-stopped", fmt.Sprintf("the recovery is stopped; the destination deletes what was not committed: vbucket %s", pump.FormatVBuckets(gone)),
			"What was committed stays. The next run transfers the others anew.")
	}
	return nil
}

// attempt goes through everything that changes the destination, once.
func (r *run) attempt(ctx context.Context, todo []uint16) error {
	err := r.phase(PhasePrepare, len(todo), func() error { return r.prepare(ctx, todo) }, func() int { return len(r.todo) })
	if err != nil {
		return err
	}
	if err := r.recall(ctx); err != nil {
		return err
	}
	if len(r.todo) > 0 && !r.stopped() {
		err := r.phase(PhaseTransfer, len(r.todo), func() error { return r.transfer(ctx) }, r.proven)
		if err != nil {
			return err
		}
	}
	good := r.transferred()
	if n := len(good) + len(r.plan.With(ActionPublish)); n > 0 {
		before := len(r.verified) + len(r.publish)
		err := r.phase(PhaseVerify, n, func() error { return r.verify(ctx, good) }, func() int { return max(0, len(r.verified)+len(r.publish)-before) })
		if err != nil {
			return err
		}
	}
	if n := len(r.verified); n > 0 && r.committer != nil {
		before := len(r.publish)
		err := r.phase(PhaseCommit, n, func() error { return r.commit(ctx, r.again) }, func() int { return len(r.publish) - before })
		if err != nil {
			return err
		}
	} else if n > 0 {
		before := len(r.publish)
		err := r.phase(PhaseActivate, len(r.verified), func() error { return r.activate(ctx) }, func() int { return len(r.publish) - before })
		if err != nil {
			return err
		}
	}
	return r.finish(ctx)
}

// finish makes the map name what is active, and sees that it does.
func (r *run) finish(ctx context.Context) error {
	if len(r.publish) == 0 {
		return nil
	}
	publish := r.publishMap
	if r.committer != nil {
		publish = r.readMap
		r.waitForDisk(ctx, r.publish)
	}
	before := r.recovered()
	return r.phase(PhasePublish, len(r.publish), func() error { return publish(ctx) }, func() int { return r.recovered() - before })
}

// phase runs one phase between its two events. n is how many vbuckets it is
// about; done tells afterwards how many got through.
func (r *run) phase(p Phase, n int, f func() error, done func() int) error {
	r.emit(PhaseStarted{p, n})
	began := time.Now()
	err := f()
	e := PhaseEnded{Phase: p, Elapsed: time.Since(began), Err: err}
	if done != nil {
		e.Done = done()
		e.Left = n - e.Done
	}
	r.emit(e)
	return err
}

func (r *run) recovered() int {
	n := 0
	for _, o := range r.out {
		if o.State == StateRecovered {
			n++
		}
	}
	return n
}

func (r *run) emit(e Event) {
	r.emitting.Lock()
	defer r.emitting.Unlock()
	if _, ok := e.(Progress); !ok {
		r.opt.Log.Debug(e.String())
	}
	if r.opt.OnEvent != nil {
		r.opt.OnEvent(e)
	}
}

func (r *run) warn(code, text, hint string) {
	if r.opt.OnEvent == nil { // else who shows events shows this one
		r.opt.Log.Warn(text)
	}
	r.emit(Warning{Code: code, Text: text, Hint: hint})
}

// fail names the reason why a vbucket does not get further. The first counts.
func (r *run) fail(p Phase, vb uint16, err error) {
	o := r.out[vb]
	if o.Err != nil {
		return
	}
	o.Err = err
	r.emit(VBucketEvent{Step: StepFailed, Phase: p, Outcome: *o})
}

func (r *run) step(p Phase, vb uint16, name string) {
	r.emit(VBucketEvent{Step: name, Phase: p, Outcome: *r.out[vb]})
}

func (r *run) stopped() bool {
	select {
	case <-r.opt.Stop: // a nil channel never fires
		return true
	default:
		return false
	}
}

func (r *run) interrupted() error {
	r.res.Interrupted = true
	var left []uint16
	for _, vb := range sortedKeys(r.out) {
		if r.out[vb].State != StateRecovered {
			left = append(left, vb)
		}
	}
	return &pump.Error{Class: pump.ClassInterrupted, Code: "interrupted", Op: "recovery",
		Err:  fmt.Errorf("stopped; %d of %s recovered, left: %s", len(r.out)-len(left), count(len(r.out), "vbucket"), pump.FormatVBuckets(left)),
		Hint: "No vbucket is half active. Run the command again: it does only what is left."}
}

// left is the error of a run that came to its end with vbuckets left over.
func (r *run) left() error {
	var left, open []uint16
	class, same := pump.ClassFailed, true
	var first error
	for _, vb := range sortedKeys(r.out) {
		o := r.out[vb]
		switch {
		case o.Err != nil:
			c := pump.ClassOf(o.Err)
			same = same && (len(left) == 0 || c == class)
			class = c
			if first == nil {
				first = o.Err
			}
			left = append(left, vb)
		case o.State != StateRecovered:
			open = append(open, vb)
		}
	}
	switch {
	case len(open) > 0 && !r.opt.DryRun:
		return r.interrupted()
	case len(left) == 0 && len(r.plan.Holes) > 0:
		return holeError(r.plan.Holes)
	case len(left) == 0:
		return nil
	}
	// The run as a whole has failed, unless nothing got through and one kind of
	// endpoint trouble is the reason for all of it.
	if r.recovered() > 0 || !same || class != pump.ClassUnreachable && class != pump.ClassDenied {
		class = pump.ClassFailed
	}
	what := "not recovered"
	if r.opt.DryRun {
		what = "that cannot be recovered now"
	}
	return &pump.Error{Class: class, Code: "vbuckets-left", Op: "recovery",
		// Not wrapped: a cause's class must not become the run's.
		Err:  fmt.Errorf("%d of %s %s: %s; the first: %v", len(left), count(len(r.out), "vbucket"), what, pump.FormatVBuckets(left), first),
		Hint: "Mend what is named for each vbucket, then run the command again: it does only what is left."}
}

// transferred lists the vbuckets that are to be verified.
func (r *run) transferred() []uint16 {
	var good []uint16
	for _, vb := range r.todo {
		if o := r.out[vb]; o.Err == nil && o.proven && o.State == StateReplica && !slices.Contains(r.verified, vb) {
			good = append(good, vb)
		}
	}
	return good
}

// proven counts the vbuckets that came whole.
func (r *run) proven() int {
	n := 0
	for _, vb := range r.todo {
		if r.out[vb].proven {
			n++
		}
	}
	return n
}

// connect opens both clusters.
func (r *run) connect(ctx context.Context) error {
	for _, s := range []struct {
		role string
		end  Endpoint
		to   **side
	}{{"source", r.opt.Source, &r.src}, {"destination", r.opt.Destination, &r.dst}} {
		client, err := cluster.NewClient(s.end.URL, cluster.Config{
			Role: s.role, Username: s.end.Username, Password: s.end.Password, TLS: s.end.TLS, Network: s.end.Network,
			Timeout: r.opt.Timing.Request, MapWait: r.opt.Timing.Request, Log: r.opt.Log,
		})
		if err != nil {
			return err
		}
		*s.to = &side{role: s.role, client: client, name: s.end.Bucket}
	}
	var wg sync.WaitGroup
	var errs [2]error
	for i, s := range []*side{r.src, r.dst} {
		wg.Go(func() {
			// A wrong address is told at once; only a server in trouble is asked again.
			errs[i] = s.refresh(ctx)
			if errs[i] != nil && pump.ClassOf(errs[i]) != pump.ClassUnreachable {
				errs[i] = r.again.call(ctx, func() error { return s.refresh(ctx) }, nil)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

func (r *run) disconnect() {
	for _, s := range []*side{r.src, r.dst} {
		if s != nil {
			s.close()
		}
	}
}

func sortedKeys[V any](m map[uint16]V) []uint16 {
	out := make([]uint16, 0, len(m))
	for vb := range m {
		out = append(out, vb)
	}
	slices.Sort(out)
	return out
}
