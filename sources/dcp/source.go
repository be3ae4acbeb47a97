package dcp

import (
	"context"
	"fmt"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// Source streams vbuckets over DCP. It implements pump.Source, pump.Checker and
// pump.Estimator.
type Source struct {
	cfg Config
	at  places.Finder
}

// Close releases what is held beside the streams' connections.
func (s *Source) Close() error {
	s.at.Places.Close()
	return nil
}

// VBucketCount returns how many vbuckets the bucket has, 0 where one node was asked.
func (s *Source) VBucketCount(ctx context.Context) (int, error) {
	l, err := s.at.Locate(ctx, false)
	if err != nil {
		return 0, err
	}
	return l.Count, nil
}

// Identity says which bucket is read.
func (s *Source) Identity(ctx context.Context) (pump.Identity, error) {
	return s.at.Identity(ctx, s.cfg.Bucket)
}

// ChooseDatatypes has the servers unpack compressed values where the destination
// does not take them.
func (s *Source) ChooseDatatypes(taken uint8) {
	if taken&pump.DatatypeSnappy == 0 {
		s.cfg.Options.Uncompress = true
	}
}

// Streams finds the wanted vbuckets and splits them into streams. It fails when
// a listed vbucket does not exist or cannot be streamed, when without a list some
// vbucket has no active copy, and when the bucket is none that DCP can stream.
func (s *Source) Streams(ctx context.Context) ([]pump.Stream, error) {
	l, err := s.at.Locate(ctx, false)
	if err != nil {
		return nil, err
	}
	vbs, err := l.Pick(s.cfg.VBuckets)
	if err != nil {
		return nil, err
	}
	var out []pump.Stream
	for i, part := range places.Split(vbs, s.cfg.Threads) {
		out = append(out, newStream(s, i, part))
	}
	return out, nil
}

// Check finds out without copying anything whether every wanted vbucket can be
// streamed: the map, the credentials, each vbucket's state on its node, and
// whether the node lets us open a DCP connection.
func (s *Source) Check(ctx context.Context) error {
	var wrong error
	for range 2 { // a map that was just refreshed may be right
		l, err := s.at.Locate(ctx, true)
		if err != nil {
			return err
		}
		vbs, err := l.Pick(s.cfg.VBuckets)
		if err != nil {
			return err
		}
		wrong = nil
		for addr, group := range l.ByNode(vbs) {
			bad, err := s.checkNode(ctx, l, addr, group)
			if err != nil {
				return err
			}
			if wrong == nil {
				wrong = bad
			}
		}
		if wrong == nil {
			return nil
		}
	}
	return wrong
}

// checkNode returns as wrong what a newer map may mend.
func (s *Source) checkNode(ctx context.Context, l *places.Layout, addr string, vbs []uint16) (wrong, err error) {
	conn, err := cluster.DialKV(ctx, s.at.Places.KV(l, addr))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	have, err := conn.VBucketDetails(ctx)
	if err != nil {
		return nil, err
	}
	s.admit(have)
	for _, vb := range vbs {
		if state := have[vb].State; state != mcbp.VBActive {
			return notActive(vb, addr, state.String()), nil
		}
	}
	if s.cfg.Options.Collection != "" {
		if _, err := s.collection(ctx, conn); err != nil {
			return nil, err
		}
	}
	// The connection ends with this check, so it may become what it likes.
	if _, err := conn.OpenDcp(ctx, cluster.DcpConfig{Name: connName()}); err != nil {
		return nil, refusedOpen(addr, err)
	}
	return nil, nil
}

func notActive(vb uint16, addr, state string) error {
	return &pump.Error{Code: codeNotActive, Op: fmt.Sprintf("copy vbucket %d from %s", vb, addr),
		Err:   fmt.Errorf("the vbucket is %s there, and active ones are copied", state),
		Hint:  "The cluster's map names that node. If a rebalance or failover is running, wait for its end.",
		Retry: true}
}

// Estimate sums the item counts of the wanted vbuckets. Bytes are unknown, and so
// are the items of one collection.
func (s *Source) Estimate(ctx context.Context) (pump.Estimate, error) {
	var e pump.Estimate
	if s.cfg.Options.Collection != "" {
		return e, nil
	}
	l, err := s.at.Locate(ctx, false)
	if err != nil {
		return e, err
	}
	vbs, err := l.Pick(s.cfg.VBuckets)
	if err != nil {
		return e, err
	}
	err = s.at.Counts(ctx, l, vbs, func(_ uint16, _ string, info cluster.VBInfo) { e.Items += info.Items })
	return e, err
}

// collection finds the one collection that is wanted in the node's manifest.
func (s *Source) collection(ctx context.Context, conn *cluster.Conn) (id uint32, err error) {
	path := s.cfg.Options.Collection
	if !conn.Has(mcbp.FeatureCollections) {
		return 0, &pump.Error{Class: pump.ClassUsage, Code: codeUnsupported, Op: "copy collection " + path + " from " + conn.Addr(),
			Err: fmt.Errorf("the node has no collections, which came with Couchbase Server 7.0")}
	}
	m, err := conn.Manifest(ctx)
	if err != nil {
		return 0, err
	}
	c, ok := lookup(m, path)
	if !ok {
		return 0, &pump.Error{Class: pump.ClassUsage, Code: codeNoCollection, Op: "copy collection " + path + " from " + conn.Addr(),
			Err: fmt.Errorf("the bucket has no such collection")}
	}
	return c.ID, nil
}
