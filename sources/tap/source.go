package tap

import (
	"context"
	"fmt"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// DumpSource dumps vbuckets over TAP. It implements pump.Source, pump.Checker
// and pump.Estimator.
type DumpSource struct {
	cfg Config
	at  places.Finder
}

// Close releases what is held beside the streams' connections.
func (s *DumpSource) Close() error {
	s.at.Places.Close()
	return nil
}

// VBucketCount returns how many vbuckets the bucket has, 0 where one node was asked.
func (s *DumpSource) VBucketCount(ctx context.Context) (int, error) {
	l, err := s.at.Locate(ctx, false)
	if err != nil {
		return 0, err
	}
	return l.Count, nil
}

// Identity says which bucket is read.
func (s *DumpSource) Identity(ctx context.Context) (pump.Identity, error) {
	return s.at.Identity(ctx, s.cfg.Bucket)
}

// Streams finds the wanted vbuckets and splits them into streams. It fails when
// a listed vbucket does not exist or cannot be dumped, when without a list some
// vbucket has no active copy, and when the bucket is none that TAP can dump.
func (s *DumpSource) Streams(ctx context.Context) ([]pump.Stream, error) {
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

// Check finds out without starting a dump whether every wanted vbucket can be
// dumped: the map, the credentials, and each vbucket's state on its node.
func (s *DumpSource) Check(ctx context.Context) error {
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
		err = s.at.Counts(ctx, l, vbs, func(vb uint16, addr string, info cluster.VBInfo) {
			if info.State != mcbp.VBActive && wrong == nil {
				wrong = notActive(vb, addr, info.State)
			}
		})
		if err != nil || wrong == nil {
			return err
		}
	}
	return wrong
}

func notActive(vb uint16, addr string, state mcbp.VBState) error {
	return &pump.Error{Code: codeNotActive, Op: fmt.Sprintf("dump vbucket %d from %s", vb, addr),
		Err:   fmt.Errorf("the vbucket is %s there, and TAP dumps active ones only", state),
		Hint:  "The cluster's map names that node. If a rebalance or failover is running, wait for its end.",
		Retry: true}
}

// Estimate sums the item counts of the wanted vbuckets. Bytes are unknown.
func (s *DumpSource) Estimate(ctx context.Context) (pump.Estimate, error) {
	l, err := s.at.Locate(ctx, false)
	if err != nil {
		return pump.Estimate{}, err
	}
	vbs, err := l.Pick(s.cfg.VBuckets)
	if err != nil {
		return pump.Estimate{}, err
	}
	var e pump.Estimate
	err = s.at.Counts(ctx, l, vbs, func(_ uint16, _ string, info cluster.VBInfo) { e.Items += info.Items })
	return e, err
}
