package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// heldAs are the states in which an owner may be filled.
var heldAs = []mcbp.VBState{mcbp.VBReplica, mcbp.VBPending}

// makePlan reads both clusters. It changes nothing.
func (r *run) makePlan(ctx context.Context) error {
	if err := r.connect(ctx); err != nil {
		return err
	}
	if err := r.comparable(); err != nil {
		return err
	}
	api, missing, err := r.openDialect(ctx)
	if err != nil {
		return err
	}
	r.api = api
	r.publisher, _ = api.(Publisher)
	r.committer, _ = api.(Committer)
	if r.publisher == nil && r.opt.AddNode != "" {
		return &pump.Error{Class: pump.ClassUsage, Code: "no-replace-node", Op: "plan",
			Err: fmt.Errorf("-a and -r: the destination has no call that replaces a node (recovery API %s)", api.Name()),
			Hint: fmt.Sprintf("Fail %s over (hard failover), add %s to the cluster (POST /controller/addNode, or Add Server in the console) and do not rebalance. Then run the command without -a and -r: the new node gets its share of the missing vbuckets.",
				r.opt.RemoveNode, r.opt.AddNode)}
	}
	p := &Plan{
		Dialect: api.Name(),
		Source:  r.src.client.URL(), SourceBucket: r.src.name,
		Destination: r.dst.client.URL(), DestinationBucket: r.dst.name,
		VBuckets: r.dst.bucket.Map.Len(),
		Missing:  missing,
		AddNode:  r.opt.AddNode, RemoveNode: r.opt.RemoveNode,
	}
	for _, vb := range missing {
		if int(vb) >= p.VBuckets {
			return &pump.Error{Code: "bad-answer", Op: "plan",
				Err: fmt.Errorf("the destination misses vbucket %d, but its map has only %d vbuckets", vb, p.VBuckets)}
		}
	}
	scope, err := r.scope(p)
	if err != nil {
		return err
	}
	if err := r.lookAtDestination(ctx, p); err != nil {
		return err
	}
	r.plan = p
	src, dst := r.surveys(ctx)
	if len(missing) > 0 {
		if err := r.lookForRecovery(ctx, p); err != nil {
			return err
		}
		if p.Engine, err = r.chooseEngine(); err != nil {
			return err
		}
		if err := r.makeSteps(p, scope, src, dst); err != nil {
			return err
		}
	} else if err := errors.Join(dst.failed(), src.failed()); err != nil {
		r.warn("not-compared", fmt.Sprintf("nothing is missing, but item counts could not be compared: %v", err),
			"A rebalance after a failover creates missing vbuckets anew, empty. Compare item counts with the source.")
	}
	if err := r.findHoles(ctx, p, src, dst); err != nil {
		return err
	}
	return r.checkSource(ctx, p.With(ActionCreate, ActionResume))
}

// checkSource finds out whether the source can be dumped at all, before the
// destination is changed for it.
func (r *run) checkSource(ctx context.Context, todo []uint16) error {
	if len(todo) == 0 {
		return nil
	}
	source, err := r.openSource(ctx, todo)
	if err != nil {
		return err
	}
	err = pump.Check(ctx, source, nil)
	if cerr := source.Close(); err == nil {
		err = cerr
	}
	return err
}

// comparable refuses two buckets between which vbuckets cannot be copied.
func (r *run) comparable() error {
	for _, s := range []*side{r.src, r.dst} {
		if err := s.bucket.RequireVBuckets(s.role); err != nil {
			return err
		}
	}
	if why, same := sameBucket(r.src, r.dst); same {
		return &pump.Error{Class: pump.ClassUsage, Code: "same-cluster", Op: "recovery",
			Err:  fmt.Errorf("source and destination are the same bucket of the same cluster: %s", why),
			Hint: "Give as restore_from the cluster that still has the data, and as restore_to the one that lost it."}
	}
	if a, b := r.src.bucket.Map.Len(), r.dst.bucket.Map.Len(); a != b {
		return &pump.Error{Class: pump.ClassUsage, Code: "vbucket-count", Op: "recovery",
			Err:  fmt.Errorf("bucket %s of the source has %d vbuckets and bucket %s of the destination %d", r.src.name, a, r.dst.name, b),
			Hint: "The same key lies in different vbuckets then, and copying vbuckets would lose it. Use cbtransfer, which copies by key."}
	}
	if a, b := r.src.bucket, r.dst.bucket; a.LastWriteWins() != b.LastWriteWins() {
		r.warn("conflict-resolution", fmt.Sprintf("bucket %s of the source and bucket %s of the destination resolve conflicts differently, one by revision and one by time", r.src.name, r.dst.name),
			"Documents keep their CAS and revision. Where time decides, a CAS of a bucket that does not can be taken for a time: later changes may lose against it.")
	}
	return nil
}

// scope applies the list of vbuckets. It returns what is to be recovered.
func (r *run) scope(p *Plan) ([]uint16, error) {
	if r.opt.VBuckets == nil {
		return p.Missing, nil
	}
	if err := pump.CheckVBuckets(r.opt.VBuckets, p.VBuckets); err != nil {
		return nil, err
	}
	var scope []uint16
	for _, vb := range r.opt.VBuckets {
		if slices.Contains(p.Missing, vb) {
			scope = append(scope, vb)
		} else {
			p.NotMissing = append(p.NotMissing, vb)
		}
	}
	for _, vb := range p.Missing {
		if !slices.Contains(scope, vb) {
			p.NotAsked = append(p.NotAsked, vb)
		}
	}
	if len(p.NotMissing) > 0 {
		r.warn("not-missing", fmt.Sprintf("vbucket %s is not missing at the destination and is left alone", pump.FormatVBuckets(p.NotMissing)),
			"Writing to it would overwrite live data.")
	}
	return scope, nil
}

// lookAtDestination warns of what makes a recovery go wrong, and finds out
// whether the nodes have been replaced already.
func (r *run) lookAtDestination(ctx context.Context, p *Plan) error {
	var c condition
	err := r.again.call(ctx, func() (err error) {
		c, err = r.dst.condition(ctx)
		return err
	}, nil)
	if err != nil {
		return err
	}
	if c.rebalancing {
		r.warn("rebalancing", "the destination is being rebalanced",
			"A rebalance while vbuckets are missing can create them empty, and what they held is then lost for good: stop it and recover first.")
	}
	if nodes := c.failedOver(); len(nodes) > 0 && len(p.Missing) == 0 {
		r.warn("failed-over-nothing-missing", fmt.Sprintf("node %s is failed over, but no vbucket is missing", strings.Join(nodes, ", ")),
			"Either replicas have taken over, or what was missing is recovered, or the cluster was rebalanced after the failover: then the lost vbuckets are there, but empty. Compare item counts with the source.")
	}
	if lost := r.src.bucket.Map.Missing(); len(p.Missing) == 0 && len(lost) > 0 {
		r.warn("source-missing", fmt.Sprintf("nothing is missing at the destination, but %s of bucket %s at the source %s %s", count(len(lost), "vbucket"), r.src.name, r.src.client.URL(), areMissing(len(lost))),
			"Is it the source that is to be recovered? Then give it as restore_to: cbrecovery restore_from restore_to.")
	}
	if r.opt.AddNode != "" {
		p.Replaced = c.hasMember(r.opt.AddNode) && !c.hasMember(r.opt.RemoveNode)
		r.res.Replaced = p.Replaced
	}
	return nil
}

func areMissing(n int) string {
	if n == 1 {
		return "is missing"
	}
	return "are missing"
}

// lookForRecovery finds out whether a recovery is under way at a destination that
// knows of such. With Resume the run goes on with it.
func (r *run) lookForRecovery(ctx context.Context, p *Plan) error {
	if r.committer == nil {
		return nil
	}
	running, err := r.running(ctx)
	if err != nil {
		return err
	}
	if running == nil {
		if r.opt.Resume {
			r.warn("nothing-to-resume", "no recovery is under way at the destination; a new one is started", "")
		}
		return nil
	}
	p.Running, p.RunningBucket = running.UUID, running.Bucket
	if !r.opt.Resume || running.Bucket != r.dst.name {
		e := alreadyRunning(running, r.dst.name)
		r.warn(codeRunning, e.Error(), pump.HintOf(e))
		return nil
	}
	err = r.again.call(ctx, func() (err error) {
		r.owners, err = r.committer.Adopt(ctx, running.UUID)
		return err
	}, nil)
	if pump.CodeOf(err) == codeForgotten { // it has just ended
		p.Running, p.RunningBucket = "", ""
		return nil
	}
	r.adopted = err == nil
	return err
}

// makeSteps decides for each vbucket, from what the nodes themselves say.
func (r *run) makeSteps(p *Plan, scope []uint16, src, dst *survey) error {
	if err := dst.failed(); err != nil {
		return &pump.Error{Class: pump.ClassOf(err), Code: "survey", Op: "plan", Err: err,
			Hint: "Every node of the destination has to say which vbuckets it holds, so that none is written over. Bring the node back or fail it over, then run the command again."}
	}
	if src.silent() {
		err := src.failed()
		return &pump.Error{Class: pump.ClassOf(err), Code: pump.CodeOf(err), Op: "plan", Err: err, Hint: pump.HintOf(err)}
	}
	// Publishing the map publishes every vbucket that is active at its owner,
	// also those that were not asked for: they are verified as well (invariant 6).
	for _, vb := range p.NotAsked {
		if r.publisher != nil && len(dst.holders(vb, mcbp.VBActive)) > 0 {
			scope = append(scope, vb)
			r.warn("also-published", fmt.Sprintf("vbucket %d was not asked for, but is active at its owner already and will be published with the others", vb),
				"An earlier run was cut before it published. It is verified like the others.")
		}
	}
	slices.Sort(scope)
	for _, vb := range scope {
		s := r.makeStep(vb, src, dst)
		p.Steps = append(p.Steps, s)
		o := &Outcome{VBucket: vb, Source: s.Source, Destination: s.Destination,
			SourceItems: s.SourceItems, DestinationItems: s.DestinationItems, State: StateMissing}
		switch info, _ := dst.at(s.Destination, vb); {
		case len(dst.holders(vb, mcbp.VBActive)) > 0:
			o.State = StateActive
		case s.Destination == "":
		case slices.Contains(heldAs, info.State):
			o.State = StateReplica
		}
		r.out[vb] = o
		if s.err != nil {
			r.fail(PhasePlan, vb, s.err)
		}
	}
	return nil
}

func (r *run) makeStep(vb uint16, src, dst *survey) Step {
	s := Step{VBucket: vb}
	leave := func(code, hint, format string, args ...any) Step {
		s.Action = ActionLeave
		s.err = &pump.Error{Code: code, Op: fmt.Sprintf("vbucket %d", vb), Err: fmt.Errorf(format, args...), Hint: hint}
		s.Reason = s.err.Error()
		return s
	}

	active := dst.holders(vb, mcbp.VBActive)
	if len(active) > 1 {
		return leave("several-owners", "Find out which of them is right and set it dead on the others, then run the command again.",
			"it is active at the nodes %v of the destination, and in no map", active)
	}
	switch {
	case r.committer != nil && len(active) == 1:
		return leave("active-unpublished", "The destination's cluster manager did not do this. Find out who did, and set it dead there; then run the command again.",
			"it is active at %s, although the map names no node for it", active[0])
	case r.committer != nil:
		s.Action = ActionCreate
		if addr, ok := r.owners[vb]; ok {
			s.Action, s.Destination = ActionResume, addr
		}
	case len(active) == 1:
		s.Action, s.Destination = ActionPublish, active[0]
	default:
		s.Action = ActionCreate
		if addr, err := r.dst.owner(dst, vb, nil, heldAs...); err == nil {
			s.Action, s.Destination = ActionResume, addr
		}
	}
	if s.Destination != "" {
		info, _ := dst.at(s.Destination, vb)
		s.DestinationItems = info.Items
	}

	addr, ok := r.src.bucket.Map.Active(vb)
	if !ok {
		return leave("missing-at-source", "No other cluster of this command has its data. If another one does, recover this vbucket from there with -l.",
			"it is missing at the source too")
	}
	s.Source = addr
	for node, err := range src.errs {
		if sameAddr(node, addr) {
			s.Action, s.err = ActionLeave, &pump.Error{Class: pump.ClassOf(err), Code: "source-node", Op: fmt.Sprintf("vbucket %d", vb), Err: err,
				Hint: "Bring the node back, then run the command again."}
			s.Reason = s.err.Error()
			return s
		}
	}
	info, ok := src.at(addr, vb)
	if !ok || info.State != mcbp.VBActive {
		return leave("not-active-at-source", "Wait until a rebalance or failover of the source is over, then run the command again.",
			"the source's map says that it is at %s, but there it is %s", addr, info.State)
	}
	s.SourceItems = info.Items
	return s
}
