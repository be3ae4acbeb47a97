package tap

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"sync/atomic"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// fewStreams is how many streams there are at least when the user did not say
// and the source has few nodes.
const fewStreams = 4

// DumpSource dumps vbuckets over TAP. It implements pump.Source, pump.Checker
// and pump.Estimator.
type DumpSource struct {
	cfg    Config
	places places

	layout atomic.Pointer[layout] // as last seen
	lookup cluster.Shared[*layout]
}

// Close releases what is held beside the streams' connections.
func (s *DumpSource) Close() error {
	s.places.close()
	return nil
}

// locate returns where the vbuckets are; fresh asks the servers again. Streams that
// ask at the same time share one answer, so that a cluster that is silent does not
// keep them waiting one after the other.
func (s *DumpSource) locate(ctx context.Context, fresh bool) (*layout, error) {
	if l := s.layout.Load(); l != nil && !fresh {
		return l, nil
	}
	return s.lookup.Do(ctx, func(ctx context.Context) (*layout, error) {
		l, err := s.places.locate(ctx)
		if err != nil {
			return nil, err
		}
		s.layout.Store(l)
		return l, nil
	})
}

// VBucketCount returns how many vbuckets the bucket has, 0 where one node was asked.
func (s *DumpSource) VBucketCount(ctx context.Context) (int, error) {
	l, err := s.locate(ctx, false)
	if err != nil {
		return 0, err
	}
	return l.count, nil
}

// Identity says which bucket is read.
func (s *DumpSource) Identity(ctx context.Context) (pump.Identity, error) {
	l, err := s.locate(ctx, false)
	switch {
	case err != nil:
		return pump.Identity{}, err
	case l.bucket != nil:
		return l.bucket.Identity(l.where), nil
	}
	return pump.Identity{Name: fmt.Sprintf("bucket %q at tap://%s", s.cfg.Bucket, l.where), Bucket: s.cfg.Bucket, KV: []string{l.where}}, nil
}

// Streams finds the wanted vbuckets and splits them into streams. It fails when
// a listed vbucket does not exist or cannot be dumped, when without a list some
// vbucket has no active copy, and when the bucket is none that TAP can dump.
func (s *DumpSource) Streams(ctx context.Context) ([]pump.Stream, error) {
	l, err := s.locate(ctx, false)
	if err != nil {
		return nil, err
	}
	vbs, err := l.pick(s.cfg.VBuckets)
	if err != nil {
		return nil, err
	}
	var out []pump.Stream
	for _, part := range split(vbs, l.active, s.cfg.Threads) {
		out = append(out, newStream(s, part))
	}
	return out, nil
}

// split deals the vbuckets out to want streams (0: one per node, and a few at
// least), so that each reads from as few nodes as possible and all have about
// equally many. The result depends on nothing but the arguments.
func split(vbs []uint16, active map[uint16]string, want int) [][]uint16 {
	byNode := map[string][]uint16{}
	for _, vb := range vbs {
		byNode[active[vb]] = append(byNode[active[vb]], vb)
	}
	nodes := make([][]uint16, 0, len(byNode))
	for _, part := range byNode {
		nodes = append(nodes, part)
	}
	// The largest first; they are disjoint, so the first vbucket breaks ties.
	slices.SortFunc(nodes, func(a, b []uint16) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a[0], b[0]))
	})
	if want <= 0 {
		want = max(fewStreams, len(nodes))
	}
	want = min(want, len(vbs))
	parts := nodes
	if want < len(nodes) {
		parts = make([][]uint16, want)
		for _, n := range nodes {
			least := 0
			for i := range parts {
				if len(parts[i]) < len(parts[least]) {
					least = i
				}
			}
			parts[least] = append(parts[least], n...)
		}
	}
	for len(parts) < want { // halve the largest
		largest := 0
		for i := range parts {
			if len(parts[i]) > len(parts[largest]) {
				largest = i
			}
		}
		p := parts[largest]
		parts[largest] = p[: len(p)/2 : len(p)/2]
		parts = append(parts, p[len(p)/2:])
	}
	for _, p := range parts {
		slices.Sort(p)
	}
	slices.SortFunc(parts, func(a, b []uint16) int { return cmp.Compare(a[0], b[0]) })
	return parts
}

// streamID names a stream by bucket and vbuckets, whatever their node.
func streamID(bucket string, vbs []uint16) string {
	h := fnv.New32a()
	for _, vb := range vbs {
		_, _ = h.Write([]byte{byte(vb >> 8), byte(vb)})
	}
	return fmt.Sprintf("tap:%s:vb%s:%08x", bucket, ranges(vbs), h.Sum32())
}

// counts asks each node of l that has wanted vbuckets for its details, and
// calls each with every wanted vbucket's.
func (s *DumpSource) counts(ctx context.Context, l *layout, vbs []uint16, each func(vb uint16, addr string, info cluster.VBInfo)) error {
	byNode := map[string][]uint16{}
	for _, vb := range vbs {
		byNode[l.active[vb]] = append(byNode[l.active[vb]], vb)
	}
	for addr, part := range byNode {
		conn, err := cluster.DialKV(ctx, s.places.kv(l, addr))
		if err != nil {
			return err
		}
		have, err := conn.VBucketDetails(ctx)
		conn.Close()
		if err != nil {
			return err
		}
		for _, vb := range part {
			each(vb, addr, have[vb])
		}
	}
	return nil
}

// Check finds out without starting a dump whether every wanted vbucket can be
// dumped: the map, the credentials, and each vbucket's state on its node.
func (s *DumpSource) Check(ctx context.Context) error {
	var wrong error
	for range 2 { // a map that was just refreshed may be right
		l, err := s.locate(ctx, true)
		if err != nil {
			return err
		}
		vbs, err := l.pick(s.cfg.VBuckets)
		if err != nil {
			return err
		}
		wrong = nil
		err = s.counts(ctx, l, vbs, func(vb uint16, addr string, info cluster.VBInfo) {
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
	l, err := s.locate(ctx, false)
	if err != nil {
		return pump.Estimate{}, err
	}
	vbs, err := l.pick(s.cfg.VBuckets)
	if err != nil {
		return pump.Estimate{}, err
	}
	var e pump.Estimate
	err = s.counts(ctx, l, vbs, func(_ uint16, _ string, info cluster.VBInfo) { e.Items += info.Items })
	return e, err
}
