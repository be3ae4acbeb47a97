package dcp

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

// Source streams vbuckets over DCP. It implements pump.Source, pump.Checker and
// pump.Estimator.
type Source struct {
	cfg    Config
	places places

	layout atomic.Pointer[layout] // as last seen
	lookup cluster.Shared[*layout]
}

// Close releases what is held beside the streams' connections.
func (s *Source) Close() error {
	s.places.close()
	return nil
}

// locate returns where the vbuckets are; fresh asks the servers again. Streams that
// ask at the same time share one answer, so that a cluster that is silent does not
// keep them waiting one after the other.
func (s *Source) locate(ctx context.Context, fresh bool) (*layout, error) {
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
func (s *Source) VBucketCount(ctx context.Context) (int, error) {
	l, err := s.locate(ctx, false)
	if err != nil {
		return 0, err
	}
	return l.count, nil
}

// Identity says which bucket is read.
func (s *Source) Identity(ctx context.Context) (pump.Identity, error) {
	l, err := s.locate(ctx, false)
	switch {
	case err != nil:
		return pump.Identity{}, err
	case l.bucket != nil:
		return l.bucket.Identity(l.where), nil
	}
	return pump.Identity{Name: fmt.Sprintf("bucket %q at dcp://%s", s.cfg.Bucket, l.where), Bucket: s.cfg.Bucket, KV: []string{l.where}}, nil
}

// Streams finds the wanted vbuckets and splits them into streams. It fails when
// a listed vbucket does not exist or cannot be streamed, when without a list some
// vbucket has no active copy, and when the bucket is none that DCP can stream.
func (s *Source) Streams(ctx context.Context) ([]pump.Stream, error) {
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

// streamID names a stream by bucket, collection and vbuckets, whatever their node.
func streamID(bucket, collection string, vbs []uint16) string {
	h := fnv.New32a()
	for _, vb := range vbs {
		_, _ = h.Write([]byte{byte(vb >> 8), byte(vb)})
	}
	if collection != "" {
		bucket += "." + collection
	}
	return fmt.Sprintf("dcp:%s:vb%s:%08x", bucket, ranges(vbs), h.Sum32())
}

// byNode groups vbuckets by the node they are active on.
func byNode(l *layout, vbs []uint16) map[string][]uint16 {
	out := map[string][]uint16{}
	for _, vb := range vbs {
		out[l.active[vb]] = append(out[l.active[vb]], vb)
	}
	return out
}

// Check finds out without copying anything whether every wanted vbucket can be
// streamed: the map, the credentials, each vbucket's state on its node, and
// whether the node lets us open a DCP connection.
func (s *Source) Check(ctx context.Context) error {
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
		for addr, group := range byNode(l, vbs) {
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
func (s *Source) checkNode(ctx context.Context, l *layout, addr string, vbs []uint16) (wrong, err error) {
	conn, err := cluster.DialKV(ctx, s.places.kv(l, addr))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	have, err := conn.VBucketDetails(ctx)
	if err != nil {
		return nil, err
	}
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
	l, err := s.locate(ctx, false)
	if err != nil {
		return e, err
	}
	vbs, err := l.pick(s.cfg.VBuckets)
	if err != nil {
		return e, err
	}
	for addr, group := range byNode(l, vbs) {
		conn, err := cluster.DialKV(ctx, s.places.kv(l, addr))
		if err != nil {
			return e, err
		}
		have, err := conn.VBucketDetails(ctx)
		_ = conn.Close()
		if err != nil {
			return e, err
		}
		for _, vb := range group {
			e.Items += have[vb].Items
		}
	}
	return e, nil
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
