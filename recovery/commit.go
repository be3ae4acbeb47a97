package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// activate makes the verified vbuckets active, and no other (invariant 6). It
// believes the nodes, not the answer.
func (r *run) activate(ctx context.Context) error {
	open := slices.Clone(r.verified)
	look := func() error {
		v := r.dst.survey(ctx)
		open = slices.DeleteFunc(open, func(vb uint16) bool {
			o := r.out[vb]
			info, ok := v.at(o.Destination, vb)
			if ok && info.State == mcbp.VBActive {
				o.State = StateActive
			}
			return o.State == StateActive
		})
		return v.failed()
	}
	err := r.again.call(ctx,
		func() error { return r.publisher.Activate(ctx, open) },
		func() (bool, error) {
			err := look()
			return len(open) == 0, err
		})
	if ctx.Err() != nil {
		return r.interrupted()
	}
	var refused *refusedError
	accepted := err == nil || errors.As(err, &refused)
	if refused != nil {
		for _, vb := range refused.vbs {
			r.fail(PhaseActivate, vb, refused.errs[vb])
		}
		open = slices.DeleteFunc(open, func(vb uint16) bool { return r.out[vb].Err != nil })
	}
	if !accepted {
		// Some may be active all the same; one look tells.
		if lerr := look(); lerr != nil {
			err = errors.Join(err, lerr)
		}
	} else {
		_, perr := r.again.poll(ctx, r.opt.Timing.Settle, func() (bool, error) {
			err := look()
			return len(open) == 0, err
		})
		if ctx.Err() != nil {
			return r.interrupted()
		}
		err = &pump.Error{Class: pump.ClassOf(perr), Code: "not-activated", Op: "activate",
			Err:  fmt.Errorf("the destination accepted it, but after %s the owner does not hold it active%s", r.opt.Timing.Settle, because(perr)),
			Hint: "Look at the destination's log, then run the command again."}
	}
	for _, vb := range r.verified {
		switch {
		case r.out[vb].State == StateActive:
			r.publish = append(r.publish, vb)
			r.step(PhaseActivate, vb, StepActivated)
		case r.out[vb].Err == nil:
			r.fail(PhaseActivate, vb, err)
		}
	}
	slices.Sort(r.publish)
	return nil
}

// publishMap makes the cluster's map name the active vbuckets, and reads it back.
func (r *run) publishMap(ctx context.Context) error {
	// Repeating is harmless: it publishes what is active, once more.
	if err := r.again.call(ctx, func() error { return r.publisher.Publish(ctx) }, nil); err != nil {
		if ctx.Err() != nil {
			return r.interrupted()
		}
		for _, vb := range r.publish {
			r.fail(PhasePublish, vb, err)
		}
		return nil
	}
	return r.readMap(ctx)
}

// readMap waits until the cluster's map names what was published at its owner.
func (r *run) readMap(ctx context.Context) error {
	open := slices.Clone(r.publish)
	reasons := make(map[uint16]error)
	_, err := r.again.poll(ctx, r.opt.Timing.Settle, func() (bool, error) {
		if err := r.dst.refresh(ctx); err != nil {
			return false, err
		}
		missing, err := r.api.Missing(ctx)
		if err != nil {
			return false, err
		}
		open = slices.DeleteFunc(open, func(vb uint16) bool {
			reasons[vb] = r.published(vb, missing)
			if reasons[vb] == nil {
				r.out[vb].State = StateRecovered
				r.step(PhasePublish, vb, StepRecovered)
			}
			return reasons[vb] == nil
		})
		return len(open) == 0, nil
	})
	if ctx.Err() != nil {
		return r.interrupted()
	}
	for _, vb := range open {
		why := reasons[vb]
		if err != nil {
			why = err
		}
		hint := "It is active at its owner, but clients do not find it there yet. Look at the destination's log, then run the command again: it only publishes."
		if r.committer != nil {
			hint = "The destination says that it is committed, but clients do not find it there yet. Look at the destination's log and at the map, then run the command again."
		}
		r.fail(PhasePublish, vb, &pump.Error{Class: pump.ClassOf(why), Code: "not-published", Op: fmt.Sprintf("publish vbucket %d", vb), Err: why, Hint: hint})
	}
	return nil
}

// published returns nil if the map that was read back names vb at its owner.
func (r *run) published(vb uint16, missing []uint16) error {
	addr, ok := r.dst.bucket.Map.Active(vb)
	owner := r.out[vb].Destination
	switch {
	case !ok:
		return errors.New("the update was accepted, but the map still names no node for it")
	case !sameAddr(addr, owner):
		return fmt.Errorf("the map names %s, but its data is at %s", addr, owner)
	case slices.Contains(missing, vb):
		return errors.New("the map names its node, but the destination still lists it as missing")
	}
	return nil
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}
