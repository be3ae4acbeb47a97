package recovery

import (
	"context"
	"fmt"
	"net/url"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// Dialect is the part of the destination's REST interface that recovery drives:
// the specification's own ("proposal"), which is also a Publisher, or that of
// Couchbase Server 2.1 and later ("controller"), which is also a Committer.
//
// Methods do one attempt each. They return a *pump.Error; one that is marked
// Retry may be repeated, but only for those vbuckets that the procedure has
// found unchanged: after a lost reply nobody knows what the server did.
type Dialect interface {
	// Name is "proposal" or "controller".
	Name() string
	// Missing lists the vbuckets of which the destination has no active copy,
	// sorted. It changes nothing.
	Missing(ctx context.Context) ([]uint16, error)
	// Begin makes the destination create the given vbuckets as replicas, each
	// on its owner. It is called with an empty list when there is nothing to
	// create. It returns the KV addresses of owners as far as the answer names
	// them; the others are found by the map and by asking the nodes.
	Begin(ctx context.Context, create []uint16) (owners map[uint16]string, err error)
	// End lets go of what Begin started, also after a failure. It is called once
	// if Begin was called, with a context that outlives an interrupted run. It
	// reports whether the destination deletes what was not recovered.
	End(ctx context.Context) (deletes bool, err error)
}

// Publisher is a dialect that makes vbuckets active at their owners and then
// publishes all of them with the cluster's map.
type Publisher interface {
	Dialect
	// ReplaceNode puts the node add (host[:port]) in the place of remove.
	ReplaceNode(ctx context.Context, add, remove string) error
	// Activate makes vbuckets active. The procedure gives it only vbuckets whose
	// transfer is complete, confirmed and verified (invariant 6).
	Activate(ctx context.Context, vbs []uint16) error
	// Publish makes the cluster's map name every active vbucket.
	Publish(ctx context.Context) error
}

// Committer is a dialect that makes vbuckets active and publishes them one by
// one, while others are still transferred. The destination knows of a recovery
// under way and deletes what is not committed when it is stopped.
type Committer interface {
	Dialect
	// Running returns the recovery that is under way at the destination, of
	// whatever bucket, or nil.
	Running(ctx context.Context) (*Running, error)
	// Adopt goes on with a recovery that is under way. It returns the owners of
	// what is not committed yet.
	Adopt(ctx context.Context, uuid string) (owners map[uint16]string, err error)
	// Commit makes a vbucket active and has the map name it. The procedure gives
	// it only vbuckets whose transfer is complete, confirmed and verified
	// (invariant 6).
	Commit(ctx context.Context, vb uint16) error
	// RecoveryID is the uuid of the recovery that is under way for this run, "" when
	// there is none.
	RecoveryID() string
	// Uncommitted lists what is not committed yet.
	Uncommitted(ctx context.Context) (map[uint16]bool, error)
}

// Running is a recovery that is under way at the destination.
type Running struct {
	Bucket string
	UUID   string
}

// The values of Options.API.
const (
	APIAuto       = "auto"
	APIProposal   = "proposal"
	APIController = "controller"
)

// rester is what a dialect needs of *cluster.Client.
type rester interface {
	URL() string
	Do(ctx context.Context, method, path string, form url.Values) (*cluster.Response, error)
	Unexpected(asked string, r *cluster.Response) error
}

// openDialect finds the dialect that the destination has, and returns the missing
// vbuckets with it. It only reads: a cluster that answers 404 to the proposal's
// list of missing vbuckets is one of the controller.
func (r *run) openDialect(ctx context.Context) (Dialect, []uint16, error) {
	list := func(d Dialect) (missing []uint16, err error) {
		err = r.again.call(ctx, func() (err error) {
			missing, err = d.Missing(ctx)
			return err
		}, nil)
		return missing, err
	}
	if r.opt.API != APIController {
		d := &proposal{client: r.dst.client, bucket: r.dst.name}
		missing, err := list(d)
		if err == nil || r.opt.API == APIProposal || pump.CodeOf(err) != codeNoAPI {
			return d, missing, err
		}
	}
	d := &controller{client: r.dst.client, side: r.dst, log: r.opt.Log}
	if v := r.dst.bucket.MinVersion(); v != (cluster.Version{}) && !v.AtLeast(2, 1) {
		return nil, nil, &pump.Error{Code: codeNoAPI, Op: "plan",
			Err:  fmt.Errorf("the destination runs %s and serves neither of the recovery APIs", v),
			Hint: "Couchbase Server has one from 2.1 on. Upgrade the destination, or copy with cbtransfer."}
	}
	missing, err := list(d)
	return d, missing, err
}
