package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// Check is a vbucket that was found to be like the source.
type Check struct {
	VBucket     uint16
	Items       uint64 // live items at the destination
	Source      cluster.KVConfig
	Destination cluster.KVConfig // its owner; the vbucket is replica there, and active only if an earlier run activated it
}

// Verifier looks at a vbucket beyond Options.Verify. It opens its own
// connections and changes nothing. An error keeps the vbucket from being
// activated, and is its outcome.
type Verifier interface {
	Verify(ctx context.Context, c Check) error
}

// verify compares the item counts of the transferred vbuckets, and of those that
// an earlier run left active but unpublished. What agrees goes to r.verified or
// r.publish (invariant 6).
func (r *run) verify(ctx context.Context, good []uint16) error {
	published := r.plan.With(ActionPublish)
	open := slices.Concat(good, published)
	slices.Sort(open)
	reasons := make(map[uint16]error)
	first := true
	// Memory is updated with the answer to the push, but statistics may come
	// from a node that is busy, and at a live source counts move: both are given
	// a little time to agree.
	_, err := r.again.poll(ctx, r.opt.Timing.VerifyFor, func() (bool, error) {
		var src, dst *survey
		if first && len(published) == 0 {
			dst = r.dst.survey(ctx)
		} else {
			src, dst = r.surveys(ctx)
		}
		first = false
		open = slices.DeleteFunc(open, func(vb uint16) bool {
			reasons[vb] = r.compare(vb, src, dst)
			return reasons[vb] == nil
		})
		return len(open) == 0, nil
	})
	if err != nil {
		return err
	}
	if len(open) > 0 {
		if err := r.checkForgotten(ctx); err != nil {
			return err
		}
	}
	var agree []uint16
	for _, vb := range slices.Sorted(slices.Values(slices.Concat(good, published))) {
		if reasons[vb] != nil {
			r.fail(PhaseVerify, vb, reasons[vb])
		} else {
			agree = append(agree, vb)
		}
	}
	r.accept(ctx, agree)
	if ctx.Err() != nil {
		return r.interrupted()
	}
	if r.publisher != nil {
		r.keepUnproven()
		// What is committed at once cannot wait for the disk: it is lost when the
		// recovery stops before.
		r.waitForDisk(ctx, r.verified)
	}
	return nil
}

// accept passes on the vbuckets whose counts agree, unless they are found to differ
// or the Verifier objects (invariant 6).
func (r *run) accept(ctx context.Context, vbs []uint16) {
	bad := r.examine(ctx, vbs, false)
	for _, vb := range vbs {
		err := bad[vb]
		if err == nil {
			err = r.inspect(ctx, vb)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.fail(PhaseVerify, vb, err)
			continue
		}
		if o := r.out[vb]; o.State == StateActive {
			r.publish = append(r.publish, vb)
		} else {
			r.verified = append(r.verified, vb)
		}
		r.step(PhaseVerify, vb, StepVerified)
	}
}

// inspect asks the Verifier about a vbucket.
func (r *run) inspect(ctx context.Context, vb uint16) error {
	if r.opt.Verifier == nil {
		return nil
	}
	o := r.out[vb]
	return r.opt.Verifier.Verify(ctx, Check{VBucket: vb, Items: o.DestinationItems,
		Source: r.src.client.KV(r.src.bucket, o.Source), Destination: r.dst.client.KV(r.dst.bucket, o.Destination)})
}

// compare returns nil if the owner holds as many live items as the source. src
// is nil as long as the count that the transfer proved is enough.
func (r *run) compare(vb uint16, src, dst *survey) error {
	o := r.out[vb]
	op := fmt.Sprintf("verify vbucket %d at %s", vb, o.Destination)
	for addr, err := range dst.errs {
		if sameAddr(addr, o.Destination) {
			return &pump.Error{Class: pump.ClassOf(err), Code: "owner-lost", Op: op, Err: err,
				Hint: "It is not activated. When the node is back, run the command again."}
		}
	}
	want := heldAs
	if o.State == StateActive {
		want = []mcbp.VBState{mcbp.VBActive}
	}
	info, ok := dst.at(o.Destination, vb)
	if !ok || !slices.Contains(want, info.State) {
		return &pump.Error{Code: "state-changed", Op: op, Err: fmt.Errorf("it is %s there; it was %s", info.State, o.State),
			Hint: "Somebody else changes vbuckets of this bucket, or the node was started anew. Run the command again when the cluster is quiet."}
	}
	o.DestinationItems = info.Items
	if o.proven && info.Items == o.SourceItems {
		return nil
	}
	now, known := uint64(0), false
	if src != nil {
		if info, ok := src.at(o.Source, vb); ok && info.State == mcbp.VBActive {
			now, known = info.Items, true
		}
	}
	// Documents expire and are written at the source while it is copied: what
	// counts as equal is also the source's count of this moment.
	if known && info.Items == now {
		o.SourceItems = now
		return nil
	}
	if !o.proven {
		if !known {
			return &pump.Error{Code: "count-differs", Op: op, Err: errors.New("the source does not say how many items it holds"),
				Hint: "When all nodes of the source answer, run the command again."}
		}
		o.SourceItems = now
	}
	e := r.differs(op, o)
	if known && now != o.SourceItems {
		e.Err = fmt.Errorf("%w (%d at the end of the transfer, %d now)", e.Err, o.SourceItems, now)
	}
	return e
}

// differs is a vbucket whose counts differ, and what to do about it.
func (r *run) differs(op string, o *Outcome) *pump.Error {
	e := &pump.Error{Code: "count-differs", Op: op,
		Err:  fmt.Errorf("it holds %s, the source %d", count(int(o.DestinationItems), "live item"), o.SourceItems),
		Hint: "It is not activated, since it may not be whole. Stop writing to the source if you can, then run the command again."}
	switch {
	case o.State == StateActive:
		e.Hint = fmt.Sprintf("An earlier run activated it and was cut before the map was updated. If the source has been written to since, that explains the difference: publish it with POST /pools/default/buckets/%s/updateVbucketMap. If not, set it dead with changeVbucketStates and run the command again: it is transferred anew.", r.dst.name)
	case o.DestinationItems > o.SourceItems:
		e.Code = "count-higher"
		e.Hint = "It is not activated: it still holds documents that an earlier run brought and that the source has deleted since. Set it dead with changeVbucketStates and delete it at its owner, then run the command again."
		if r.committer != nil {
			e.Hint = "It is not committed, and the destination deletes it when the recovery stops. Run the command again: it begins with an empty one."
		}
	}
	return e
}

// keepUnproven holds the map back when it would publish a vbucket that is
// active at its owner but not like the source: updateVbucketMap publishes all.
func (r *run) keepUnproven() {
	var unproven []uint16
	for _, vb := range sortedKeys(r.out) {
		if o := r.out[vb]; o.State == StateActive && o.Err != nil {
			unproven = append(unproven, vb)
		}
	}
	if len(unproven) == 0 {
		return
	}
	for _, vb := range slices.Concat(r.verified, r.publish) {
		r.fail(PhaseVerify, vb, &pump.Error{Code: "map-held-back", Op: fmt.Sprintf("vbucket %d", vb),
			Err: fmt.Errorf("it is good, but publishing the map would also publish vbucket %s, which is active at its owner and could not be verified", pump.FormatVBuckets(unproven)),
			Hint: fmt.Sprintf("Look at vbucket %s: if it is right, publish it with POST …/buckets/%s/updateVbucketMap; if not, set it dead with changeVbucketStates. Then run the command again.",
				pump.FormatVBuckets(unproven), r.dst.name)})
	}
	r.verified, r.publish = nil, nil
}

// waitForDisk waits until the owners have written to disk what was pushed: the
// answer to a push means "in memory", and a node that is started anew right
// after its vbuckets were activated would serve them with holes. An owner that
// takes too long is a warning, since the data is at the source all the same.
func (r *run) waitForDisk(ctx context.Context, vbs []uint16) {
	owners := make(map[string]bool)
	for _, vb := range vbs {
		owners[r.out[vb].Destination] = true
	}
	for _, addr := range slices.Sorted(slices.Values(keys(owners))) {
		if err := r.dst.flushed(ctx, addr, r.opt.Timing.FlushFor); err != nil {
			r.warn("not-on-disk", fmt.Sprintf("node %s has not written everything to disk yet: %v", addr, err),
				"Its vbuckets are complete in memory. Keep the source until the node's disk write queue is empty.")
		}
	}
}
