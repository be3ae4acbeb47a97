package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// prepare replaces the node, makes the missing vbuckets replicas, and waits
// until each is seen at one owner. It leaves in r.todo what can be filled.
func (r *run) prepare(ctx context.Context, todo []uint16) error {
	if err := r.replaceNode(ctx); err != nil {
		return err
	}
	if len(todo) == 0 {
		return nil
	}
	var err error
	if r.committer != nil {
		err = r.startRecovery(ctx, todo)
	} else {
		err = r.makeReplicas(ctx, todo)
	}
	if err != nil {
		return err
	}
	// 202 means accepted, not done: wait until the owners hold them.
	var last map[uint16]error
	_, err = r.again.poll(ctx, r.opt.Timing.Settle, func() (bool, error) {
		if r.stopped() {
			return true, nil
		}
		v, err := r.lookAgain(ctx)
		if err != nil {
			return false, err
		}
		last = make(map[uint16]error)
		for _, vb := range todo {
			if o := r.out[vb]; o.Err != nil || o.State == StateRecovered {
				continue
			}
			addr, err := r.dst.owner(v, vb, r.owners, heldAs...)
			if err != nil {
				last[vb] = err
				continue
			}
			o := r.out[vb]
			info, _ := v.at(addr, vb)
			o.Destination, o.DestinationItems, o.State = addr, info.Items, StateReplica
		}
		return len(last) == 0, nil
	})
	if err != nil {
		return err
	}
	for _, vb := range todo {
		if err := last[vb]; err != nil && !r.stopped() {
			r.fail(PhasePrepare, vb, err)
		}
		if r.out[vb].Err == nil && r.out[vb].State == StateReplica {
			r.todo = append(r.todo, vb)
		}
	}
	return nil
}

// lookAgain reads the destination's map and asks its nodes.
func (r *run) lookAgain(ctx context.Context) (*survey, error) {
	if err := r.dst.refresh(ctx); err != nil {
		return nil, err
	}
	v := r.dst.survey(ctx)
	return v, v.failed()
}

// replaceNode puts the new node in the old one's place, once.
func (r *run) replaceNode(ctx context.Context) error {
	add, remove := r.opt.AddNode, r.opt.RemoveNode
	if add == "" {
		return nil
	}
	if !r.plan.Replaced {
		err := r.again.call(ctx,
			func() error { return r.publisher.ReplaceNode(ctx, add, remove) },
			func() (bool, error) {
				c, err := r.dst.condition(ctx)
				return c.hasMember(add) && !c.hasMember(remove), err
			})
		if err != nil {
			return err
		}
	}
	// The bucket must have arrived there: vbuckets are created on its nodes.
	ok, err := r.again.poll(ctx, r.opt.Timing.Settle, func() (bool, error) {
		if err := r.dst.refresh(ctx); err != nil {
			return false, err
		}
		for _, n := range r.dst.nodes() {
			if sameAddr(n.Host, add) {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	if !ok {
		return &pump.Error{Code: "node-not-there", Op: fmt.Sprintf("replace node %s by %s", remove, add),
			Err:  fmt.Errorf("the destination accepted it, but after %s the new node still does not serve bucket %s", r.opt.Timing.Settle, r.dst.name),
			Hint: "Look at the log of the new node. When it serves the bucket, run the command again."}
	}
	r.res.Replaced = true
	r.emit(Replaced{Add: add, Remove: remove, Before: r.plan.Replaced})
	return nil
}

// makeReplicas sends the state change for every vbucket that no owner holds
// yet. A vbucket that turns out to be active is never made a replica again: a
// vbucket with live data would stop serving it.
func (r *run) makeReplicas(ctx context.Context, todo []uint16) error {
	var create []uint16
	look := func() error {
		v, err := r.lookAgain(ctx)
		if err != nil {
			return err
		}
		create = create[:0]
		for _, vb := range todo {
			if r.out[vb].Err != nil {
				continue
			}
			if at := v.holders(vb, mcbp.VBActive); len(at) > 0 {
				r.out[vb].State, r.out[vb].Destination = StateActive, at[0]
				r.fail(PhasePrepare, vb, &pump.Error{Code: "became-active", Op: fmt.Sprintf("vbucket %d", vb),
					Err:  fmt.Errorf("it has become active at %v since the plan was made", at),
					Hint: "Somebody else is recovering or rebalancing this bucket. Run the command again when that is over."})
				continue
			}
			if _, err := r.dst.owner(v, vb, r.owners, heldAs...); err != nil {
				create = append(create, vb)
			}
		}
		return nil
	}
	if err := r.again.call(ctx, look, nil); err != nil {
		return err
	}
	r.begun = true
	err := r.again.call(ctx,
		func() error {
			owners, err := r.api.Begin(ctx, create)
			if owners != nil {
				r.owners = owners
			}
			return err
		},
		func() (bool, error) {
			err := look()
			return len(create) == 0, err
		})
	var refused *refusedError
	if errors.As(err, &refused) {
		for _, vb := range refused.vbs {
			if slices.Contains(todo, vb) {
				r.fail(PhasePrepare, vb, refused.errs[vb])
			}
		}
		return nil
	}
	return err
}
