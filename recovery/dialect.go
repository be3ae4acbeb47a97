package recovery

import (
	"context"
	"net/url"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// Dialect is the part of the destination's REST interface that recovery drives.
// The specification's own ("proposal") and that of Couchbase Server 2.1 and
// later ("controller") both fit it.
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
	// ReplaceNode puts the node add (host[:port]) in the place of remove.
	ReplaceNode(ctx context.Context, add, remove string) error
	// Begin makes the destination create the given vbuckets as replicas, each
	// on its owner. It is called with an empty list when there is nothing to
	// create. It returns the KV addresses of owners as far as the answer names
	// them; the others are found by the map and by asking the nodes.
	Begin(ctx context.Context, create []uint16) (owners map[uint16]string, err error)
	// Activate makes vbuckets active. The procedure gives it only vbuckets whose
	// transfer is complete, confirmed and verified (invariant 6).
	Activate(ctx context.Context, vbs []uint16) error
	// Publish makes the cluster's map name every active vbucket. A dialect whose
	// Activate does so already returns nil.
	Publish(ctx context.Context) error
	// End lets go of what Begin started, also after a failure. It is called once
	// if Begin was called, with a context that outlives an interrupted run.
	End(ctx context.Context) error
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

// openDialect finds the dialect that the destination has, by asking it for the
// missing vbuckets, and returns them with it.
func openDialect(ctx context.Context, api string, client rester, bucket string, again repeater) (Dialect, []uint16, error) {
	if api == APIController {
		return nil, nil, pump.Usagef("--recovery-api controller: this version drives the API %q only", APIProposal)
	}
	d := &proposal{client: client, bucket: bucket}
	var missing []uint16
	err := again.call(ctx, func() (err error) {
		missing, err = d.Missing(ctx)
		return err
	}, nil)
	if err != nil {
		return nil, nil, err
	}
	return d, missing, nil
}
