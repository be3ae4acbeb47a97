package recovery

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// side is one of the two clusters, with its bucket as last read.
type side struct {
	role   string // "source" or "destination"
	client *cluster.Client
	name   string // of the bucket
	bucket *cluster.Bucket

	mu    sync.Mutex
	idle  map[string]*cluster.Conn // by KV address: for questions only
	ended bool
}

// close ends every connection.
func (s *side) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, c := range s.idle {
		_ = c.Close()
	}
	s.idle = nil
	s.client.Close()
}

// refresh reads the bucket's document again.
func (s *side) refresh(ctx context.Context) error {
	b, err := s.client.Bucket(ctx, s.name)
	if err != nil {
		return err
	}
	s.bucket = b
	return nil
}

// nodes are the nodes of the bucket that take part in the cluster.
func (s *side) nodes() []cluster.Node {
	return slices.DeleteFunc(slices.Clone(s.bucket.Nodes), func(n cluster.Node) bool {
		return n.KV == "" || n.Membership != "" && n.Membership != "active"
	})
}

// survey is what the nodes themselves say of their vbuckets.
type survey struct {
	nodes map[string]map[uint16]cluster.VBInfo // by KV address
	errs  map[string]error                     // nodes that did not answer
}

// survey asks every node of the bucket, each on a connection that is used for
// nothing but questions: statistics on a connection that pushes would have to
// wait behind the pushes, and real servers crash when uses are mixed.
func (s *side) survey(ctx context.Context) *survey {
	v := &survey{nodes: make(map[string]map[uint16]cluster.VBInfo), errs: make(map[string]error)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range s.nodes() {
		wg.Go(func() {
			var details map[uint16]cluster.VBInfo
			err := s.admin(ctx, n.KV, func(c *cluster.Conn) (err error) {
				details, err = c.VBucketDetails(ctx)
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				v.errs[n.KV] = fmt.Errorf("ask %s node %s for its vbuckets: %w", s.role, n.KV, err)
				return
			}
			v.nodes[n.KV] = details
		})
	}
	wg.Wait()
	return v
}

// surveys asks both sides at the same time.
func (r *run) surveys(ctx context.Context) (src, dst *survey) {
	var wg sync.WaitGroup
	wg.Go(func() { src = r.src.survey(ctx) })
	dst = r.dst.survey(ctx)
	wg.Wait()
	return src, dst
}

// admin asks a node something. The connection is kept for the next question: a
// recovery asks every node many times, and a login takes longer than an answer.
func (s *side) admin(ctx context.Context, addr string, ask func(*cluster.Conn) error) error {
	s.mu.Lock()
	c := s.idle[addr]
	delete(s.idle, addr)
	s.mu.Unlock()
	if c != nil {
		err := ask(c)
		if err == nil {
			s.keep(addr, c)
			return nil
		}
		_ = c.Close()
		if ctx.Err() != nil || !pump.IsRetryable(err) {
			return err
		}
		// It may have been cut since the last question, which says nothing of the node.
	}
	c, err := cluster.DialKV(ctx, s.client.KV(s.bucket, addr))
	if err != nil {
		return err
	}
	if err := ask(c); err != nil {
		_ = c.Close()
		return err
	}
	s.keep(addr, c)
	return nil
}

// keep keeps a connection for the next question to a node.
func (s *side) keep(addr string, c *cluster.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.idle[addr] != nil {
		_ = c.Close()
		return
	}
	if s.idle == nil {
		s.idle = make(map[string]*cluster.Conn)
	}
	s.idle[addr] = c
}

// flushed waits until the node has written to disk what it has in memory.
func (s *side) flushed(ctx context.Context, addr string, limit time.Duration) error {
	return s.admin(ctx, addr, func(c *cluster.Conn) error { return c.WaitFlushed(ctx, limit) })
}

// failed returns an error if any node did not answer, the one of the first
// address, so that messages do not change from run to run.
func (v *survey) failed() error {
	if len(v.errs) == 0 {
		return nil
	}
	return v.errs[slices.Min(keys(v.errs))]
}

// silent reports that not one node answered.
func (v *survey) silent() bool { return len(v.nodes) == 0 && len(v.errs) > 0 }

// holders lists the nodes that hold vb in one of the states, sorted.
func (v *survey) holders(vb uint16, states ...mcbp.VBState) []string {
	var out []string
	for addr, vbs := range v.nodes {
		if info, ok := vbs[vb]; ok && slices.Contains(states, info.State) {
			out = append(out, addr)
		}
	}
	slices.Sort(out)
	return out
}

// at returns what the node says of vb; the address need not be written exactly
// as the bucket's document writes it.
func (v *survey) at(addr string, vb uint16) (cluster.VBInfo, bool) {
	vbs, ok := v.nodes[addr]
	if !ok {
		for a, m := range v.nodes {
			if sameAddr(a, addr) {
				vbs = m
			}
		}
	}
	info, ok := vbs[vb]
	return info, ok
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

// condition is the state of a cluster as a whole.
type condition struct {
	rebalancing bool
	nodes       []cluster.Node // all, also those that are failed over
}

// condition reads the state of the cluster.
func (s *side) condition(ctx context.Context) (condition, error) {
	var c condition
	op := fmt.Sprintf("read the state of the %s cluster at %s", s.role, s.client.URL())
	r, err := s.client.Do(ctx, http.MethodGet, "/pools/default", nil)
	if err != nil {
		return c, transportError(ctx, op, err)
	}
	if r.Status != http.StatusOK {
		return c, statusError(s.client, op, "", r)
	}
	var doc struct {
		RebalanceStatus string `json:"rebalanceStatus"`
	}
	if err := json.Unmarshal(r.Body, &doc); err != nil {
		return c, &pump.Error{Code: "bad-answer", Op: op, Err: fmt.Errorf("not the document of a cluster: %w", said(s.client, r))}
	}
	c.rebalancing = doc.RebalanceStatus == "running"
	c.nodes, err = s.client.Nodes(ctx)
	return c, err
}

// failedOver lists the nodes that are failed over.
func (c condition) failedOver() []string {
	var out []string
	for _, n := range c.nodes {
		if n.Membership == "inactiveFailed" {
			out = append(out, n.Host)
		}
	}
	return out
}

func (c condition) hasMember(node string) bool {
	return slices.ContainsFunc(c.nodes, func(n cluster.Node) bool { return sameAddr(n.Host, node) })
}

// sameBucket reports that both sides are one and the same bucket, and by what
// it can be told. URLs do not tell: one cluster has many.
func sameBucket(a, b *side) (string, bool) {
	if a.bucket.UUID != "" && a.bucket.UUID == b.bucket.UUID {
		return "both have the bucket uuid " + a.bucket.UUID, true
	}
	if a.name != b.name {
		return "", false
	}
	for _, m := range a.bucket.Nodes {
		for _, n := range b.bucket.Nodes {
			if m.KV != "" && m.KV == n.KV || m.Host != "" && m.Host == n.Host {
				return "node " + m.Host + " belongs to both", true
			}
		}
	}
	return "", false
}

// owner finds where a missing vbucket lives at the destination, before the map
// is published: the forward map names it, or the one node that holds it does.
func (s *side) owner(v *survey, vb uint16, named map[uint16]string, states ...mcbp.VBState) (string, error) {
	addr, ok := named[vb]
	if !ok {
		addr, ok = s.bucket.Map.ForwardActive(vb)
	}
	if ok {
		info, has := v.at(addr, vb)
		if has && slices.Contains(states, info.State) {
			return addr, nil
		}
		state := mcbp.VBAbsent
		if has {
			state = info.State
		}
		return "", &pump.Error{Code: "owner-not-ready", Op: fmt.Sprintf("find the owner of vbucket %d", vb),
			Err:  fmt.Errorf("the destination names %s as its owner, where it is %s", addr, state),
			Hint: "Look at the destination's log, then run the command again."}
	}
	at := v.holders(vb, states...)
	switch len(at) {
	case 1:
		return at[0], nil
	case 0:
		return "", &pump.Error{Code: "no-owner", Op: fmt.Sprintf("find the owner of vbucket %d", vb),
			Err:  fmt.Errorf("no node of the destination holds it as replica or pending"),
			Hint: "The destination accepted to create it but did not do so: look at its log, then run the command again."}
	}
	return "", &pump.Error{Code: "several-owners", Op: fmt.Sprintf("find the owner of vbucket %d", vb),
		Err:  fmt.Errorf("the nodes %v all hold it and the destination's map does not say which is the owner", at),
		Hint: "Set it dead on all nodes but one (changeVbucketStates or the node's own SET_VBUCKET), then run the command again."}
}
