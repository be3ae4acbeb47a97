// Package places is what the sources of clusters share: where vbuckets are active,
// which of them are wanted, and how they are dealt out to streams.
package places

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// Role is the side of a transfer that errors of package cluster name.
const Role = "source"

// Kind is what differs between the sources.
type Kind struct {
	Scheme string // tap: of one node's address, of stream IDs, and of codes ("tap-missing")
	Verb   string // what is done to a vbucket: dump
	Past   string // dumped
	Only   string // a sentence: which vbuckets are
	// Accept refuses a node of a version (the zero one: not known) that does not
	// speak the protocol.
	Accept func(addr string, v cluster.Version) error
}

// Places finds out where vbuckets are active and how to get there.
type Places interface {
	// Locate asks the servers; each call asks anew.
	Locate(ctx context.Context) (*Layout, error)
	// KV says how to reach a node.
	KV(l *Layout, addr string) cluster.KVConfig
	Close()
}

// Layout is where the vbuckets are active. It does not change once made.
type Layout struct {
	Kind     *Kind
	Where    string                     // the address that was asked, for messages
	Bucket   *cluster.Bucket            // nil for one node
	Count    int                        // vbuckets of the bucket; 0 where only a node was asked
	Active   map[uint16]string          // the node each is active on, of those that may be read
	Not      map[uint16]string          // why others may not: "is replica on 10.0.0.1:11210"
	Versions map[string]cluster.Version // of nodes, as far as they are known
	Open     bool                       // one node: the bucket is entered without a password
}

// OfNode is the layout of one node.
func OfNode(k *Kind, addr string, have map[uint16]cluster.VBInfo) *Layout {
	l := &Layout{Kind: k, Where: addr, Active: map[uint16]string{}, Not: map[uint16]string{}, Versions: map[string]cluster.Version{}}
	for vb, info := range have {
		if info.State == mcbp.VBActive {
			l.Active[vb] = addr
		} else {
			l.Not[vb] = fmt.Sprintf("is %s on %s", info.State, addr)
		}
	}
	return l
}

// Pick returns the vbuckets to read, sorted: those listed, or all.
func (l *Layout) Pick(list []uint16) ([]uint16, error) {
	if list == nil {
		for vb := range uint16(l.Count) {
			if _, ok := l.Active[vb]; !ok && l.Not[vb] == "" {
				return nil, l.missing(vb)
			}
		}
		out := make([]uint16, 0, len(l.Active))
		for vb := range l.Active {
			out = append(out, vb)
		}
		slices.Sort(out)
		if len(out) == 0 {
			return nil, l.error("nothing", "source "+l.Where, "",
				errors.New("no vbucket of the bucket is active there, so there is nothing to "+l.Kind.Verb))
		}
		return out, nil
	}
	if len(list) == 0 {
		return nil, pump.Usagef("the list of vbuckets is empty")
	}
	for _, vb := range list {
		if err := l.Refuse(vb); err != nil {
			return nil, err
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(list))), nil
}

// Refuse returns why a vbucket cannot be read, or nil.
func (l *Layout) Refuse(vb uint16) error {
	if _, ok := l.Active[vb]; ok {
		return nil
	}
	cannot := func(why string) error { return fmt.Errorf("vbucket %d cannot be %s: it %s", vb, l.Kind.Past, why) }
	switch {
	case l.Count > 0 && int(vb) >= l.Count:
		return &pump.Error{Class: pump.ClassUsage, Code: l.Kind.Scheme + "-no-vbucket", Op: fmt.Sprintf("source %s: vbucket %d", l.Where, vb),
			Err: fmt.Errorf("bucket %q has %d vbuckets, 0 to %d", l.Bucket.Name, l.Count, l.Count-1)}
	case l.Not[vb] != "":
		return l.error("not-active", "source "+l.Where,
			l.Kind.Only+" Name the node where it is active, or give a cluster address without --single-node.", cannot(l.Not[vb]))
	case l.Bucket == nil:
		return l.error("not-active", "source "+l.Where,
			"Give the node where it is active, or a cluster address (http://host:8091).", cannot("is not on this node"))
	}
	return l.missing(vb)
}

func (l *Layout) missing(vb uint16) error {
	return l.error("missing", "source "+l.Where, "Name the vbuckets to "+l.Kind.Verb+" with --vbucket-list to leave it out.",
		fmt.Errorf("vbucket %d has no active copy: its node was failed over and no replica was left", vb))
}

func (l *Layout) error(code, op, hint string, err error) error {
	return &pump.Error{Code: l.Kind.Scheme + "-" + code, Op: op, Hint: hint, Err: err}
}

// ByNode groups vbuckets by the node they are active on.
func (l *Layout) ByNode(vbs []uint16) map[string][]uint16 {
	out := map[string][]uint16{}
	for _, vb := range vbs {
		out[l.Active[vb]] = append(out[l.Active[vb]], vb)
	}
	return out
}

// Finder remembers where vbuckets were last seen.
type Finder struct {
	Places Places
	layout atomic.Pointer[Layout]
	lookup cluster.Shared[*Layout]
}

// Locate returns where the vbuckets are; fresh asks the servers again. Streams that
// ask at the same time share one answer, so that a cluster that is silent does not
// keep them waiting one after the other.
func (f *Finder) Locate(ctx context.Context, fresh bool) (*Layout, error) {
	if l := f.layout.Load(); l != nil && !fresh {
		return l, nil
	}
	return f.lookup.Do(ctx, func(ctx context.Context) (*Layout, error) {
		l, err := f.Places.Locate(ctx)
		if err != nil {
			return nil, err
		}
		f.layout.Store(l)
		return l, nil
	})
}

// Identity says which bucket is read.
func (f *Finder) Identity(ctx context.Context, bucket string) (pump.Identity, error) {
	l, err := f.Locate(ctx, false)
	switch {
	case err != nil:
		return pump.Identity{}, err
	case l.Bucket != nil:
		return l.Bucket.Identity(l.Where), nil
	}
	return pump.Identity{Name: fmt.Sprintf("bucket %q at %s://%s", bucket, l.Kind.Scheme, l.Where), Bucket: bucket, KV: []string{l.Where}}, nil
}

// Counts asks each node that has some of the vbuckets for its details, and calls
// each with every vbucket's.
func (f *Finder) Counts(ctx context.Context, l *Layout, vbs []uint16, each func(vb uint16, addr string, info cluster.VBInfo)) error {
	for addr, part := range l.ByNode(vbs) {
		conn, err := cluster.DialKV(ctx, f.Places.KV(l, addr))
		if err != nil {
			return err
		}
		have, err := conn.VBucketDetails(ctx)
		_ = conn.Close()
		if err != nil {
			return err
		}
		for _, vb := range part {
			each(vb, addr, have[vb])
		}
	}
	return nil
}

// Gone turns the error of a connection to a node that the map named, but that does
// not have the bucket, into one that another try with a newer map may mend: the
// node was failed over or rebalanced out. Up to 4.x such a node refuses the login,
// since user and password are the bucket's. Whether the bucket is there at all, and
// what its password is, the map's reading tells.
func Gone(err error, addr string) error {
	if pump.CodeOf(err) == "kv-denied" {
		return pump.Retryable(err)
	}
	return Vanished(err, addr)
}

// Vanished is Gone for answers on a connection that is logged in, from which the bucket
// goes away when the node is failed over.
func Vanished(err error, addr string) error {
	switch pump.CodeOf(err) {
	case "no-bucket", "kv-no-bucket":
		return &pump.Error{Code: "node-gone", Op: "copy from " + addr, Err: err, Retry: true,
			Hint: "The cluster's map named that node. Was it failed over or removed in this moment? Look at the cluster, then run the same command again."}
	}
	return err
}
