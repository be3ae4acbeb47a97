package mc

import (
	"context"
	"errors"
	"fmt"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/internal/pipe"
)

// cbLane writes to whichever nodes have the vbuckets of its items.
type cbLane struct {
	sink  *CBSink
	view  *view
	nodes []*node // by index in view.addrs

	// The write that is under way.
	to     []int // by item: index of its node, or settled
	follow []int // items that conflict resolution refused
	stale  bool  // the map proved wrong
	stop   error // what ends the run
}

const settled = -1

// node is a lane's connection to one node.
type node struct {
	addr    string
	conn    *cluster.Conn // nil when not connected
	pipe    *pipe.Pipe
	version cluster.Version
	rulings *Rulings
	// states is what the node said when the connection was made; it is asked
	// again when that forbids a write.
	states []mcbp.VBState

	// The write that is under way.
	asked bool // for the states
	bad   map[uint16]*pump.Error
	share int // items for this node
	last  int // index of the last of them
	lost  error
}

func (n *node) close() error {
	if n.pipe == nil {
		return nil
	}
	err := n.pipe.Close()
	n.pipe = nil
	if e := n.conn.Close(); err == nil {
		err = e
	}
	n.conn = nil
	return err
}

// Write sends each item to its node, to all nodes before it waits for any, and
// settles what they answer. Items of one vbucket keep their order on one
// connection (invariant 5).
func (l *cbLane) Write(ctx context.Context, b *pump.Batch) error {
	if b.Len() == 0 {
		return nil
	}
	l.follow, l.stale, l.stop = l.follow[:0], false, nil
	if err := l.place(ctx, b); err != nil {
		return err
	}
	if err := l.ready(ctx, b); err != nil {
		return err
	}
	l.send(ctx, b)
	for i, n := range l.nodes {
		if n != nil && n.share > 0 {
			l.settleShare(ctx, b, i, n)
		}
	}
	if l.stop == nil && len(l.follow) > 0 && ctx.Err() == nil {
		l.resolve(ctx, b)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if l.stop != nil {
		return l.stop
	}
	if l.stale {
		// Once for the whole write; a failure shows again when the items do.
		if _, err := l.sink.refresh(ctx, l.view); err != nil && !mayRetry(err) {
			return err
		}
	}
	return nil
}

// place finds the node of each item and rejects what cannot be sent.
func (l *cbLane) place(ctx context.Context, b *pump.Batch) error {
	v, err := l.sink.current(ctx)
	if err != nil {
		return l.lostAll(ctx, b, err)
	}
	rehash, vbuckets := l.sink.cfg.Options.Rehash, len(v.owner)
	l.to = l.to[:0]
	for i := range b.Items {
		it := &b.Items[i]
		l.to = append(l.to, settled)
		if len(it.Key) == 0 || len(it.Key) > MaxKey {
			b.Settle(i, pump.Rejected, errKey)
			continue
		}
		if len(it.Value) > maxValue {
			b.Settle(i, pump.Rejected, errHuge)
			continue
		}
		if why := l.sink.dialect.Refuse(it); why != nil {
			verdict := pump.Rejected
			if why == errAddDeletes {
				verdict = pump.Skipped
			}
			b.Settle(i, verdict, why)
			continue
		}
		vb := cluster.VBucketOf(it.Key, vbuckets)
		if it.VBucket == pump.NoVBucket || rehash {
			it.VBucket = vb
		}
		if it.VBucket != vb {
			return &pump.Error{Class: pump.ClassUsage, Code: "vbucket-mismatch", Op: l.sink.op("write"),
				Err:  fmt.Errorf("an item of vbucket %d belongs into vbucket %d of the destination, which has %d", it.VBucket, vb, vbuckets),
				Hint: "source and destination have different numbers of vbuckets: use -x rehash=true"}
		}
		if v.owner[vb] < 0 {
			if v, err = l.sink.locate(ctx, vb, v); err != nil {
				return l.lostAll(ctx, b, err)
			}
		}
		l.to[i] = v.owner[vb]
	}
	l.view = v
	for len(l.nodes) < len(v.addrs) {
		l.nodes = append(l.nodes, nil)
	}
	return nil
}

// lostAll settles everything when the map cannot be had for the moment.
func (l *cbLane) lostAll(ctx context.Context, b *pump.Batch, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !mayRetry(err) {
		return err
	}
	b.SettleRest(pump.Retry, err)
	l.to = l.to[:0]
	for range b.Items {
		l.to = append(l.to, settled)
	}
	return nil
}

func mayRetry(err error) bool {
	return pump.IsRetryable(err) || pump.ClassOf(err) == pump.ClassUnreachable
}

// ready connects to the nodes that have items, asks for the states of their
// vbuckets, and keeps items from vbuckets that must not be written: a pending
// one would park the request for ever, and a dead one swallows a TAP deletion.
func (l *cbLane) ready(ctx context.Context, b *pump.Batch) error {
	for _, n := range l.nodes {
		if n != nil {
			n.share, n.asked, n.bad, n.lost = 0, false, nil, nil
		}
	}
	for i, to := range l.to {
		if to == settled {
			continue
		}
		n := l.nodes[to]
		if n == nil {
			addr := l.view.addrs[to]
			n = &node{addr: addr, rulings: NewRulings(role + " node " + addr)}
			l.nodes[to] = n
		}
		if n.pipe == nil && n.lost == nil {
			n.lost = l.connect(ctx, n)
		}
		if n.lost != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !mayRetry(n.lost) {
				return n.lost
			}
			l.stale = true
			l.settle(b, i, pump.Retry, n.lost)
			continue
		}
		vb := b.Items[i].VBucket
		if !l.sink.dialect.AllowState(n.states[vb]) {
			if !n.asked {
				n.asked = true
				states, err := l.sink.states(ctx, l.view, n.addr)
				switch {
				case err == nil:
					n.states = states
				case ctx.Err() != nil:
					return ctx.Err()
				case !mayRetry(err):
					return err
				}
			}
			if !l.sink.dialect.AllowState(n.states[vb]) {
				l.stale = true
				if n.bad == nil {
					n.bad = map[uint16]*pump.Error{}
				}
				if n.bad[vb] == nil {
					n.bad[vb] = l.sink.badState(n.addr, vb, n.states[vb], 0)
				}
				l.settle(b, i, pump.Retry, n.bad[vb])
				continue
			}
		}
		n.share++
		n.last = i
	}
	return nil
}

func (l *cbLane) settle(b *pump.Batch, i int, v pump.Verdict, why error) {
	b.Settle(i, v, why)
	l.to[i] = settled
}

func (l *cbLane) connect(ctx context.Context, n *node) error {
	states, err := l.sink.states(ctx, l.view, n.addr)
	if err != nil {
		return err
	}
	known, _ := l.view.bucket.NodeByKV(n.addr)
	c, err := l.sink.dialect.FindConn(ctx, l.sink.client.KV(l.view.bucket, n.addr), known.Version)
	if err != nil {
		return err
	}
	n.states, n.asked = states, true
	n.conn, n.pipe = c, pipe.New(c.NetConn(), c.Reader(), l.sink.cfg.Options.Timeout)
	n.version = known.Version
	l.sink.log.Debug("connected", "node", n.addr, "for", l.sink.dialect.Name())
	return nil
}

// send writes the items of all nodes, in the order of the batch.
func (l *cbLane) send(ctx context.Context, b *pump.Batch) {
	d := l.sink.dialect
	for _, n := range l.nodes {
		if n != nil && n.share > 0 {
			fence := b.Len()
			if d.Fenced() {
				fence = n.last
			}
			n.pipe.Begin(ctx, b.Len(), fence)
		}
	}
	for i, to := range l.to {
		if to == settled {
			continue
		}
		n := l.nodes[to]
		if n.share == 0 || n.lost != nil {
			continue
		}
		n.pipe.Out = d.Append(n.pipe.Out, &b.Items[i], Sending{Opaque: n.pipe.Opaque(i), Last: i == n.last, Version: n.version})
		n.pipe.Sent()
	}
	for _, n := range l.nodes {
		if n != nil && n.share > 0 {
			n.pipe.End()
		}
	}
}

// settleShare waits for one node and settles its items: what it answered by the
// answers, the rest as done when the fence was answered, else as to be retried.
func (l *cbLane) settleShare(ctx context.Context, b *pump.Batch, at int, n *node) {
	err := n.pipe.Wait()
	answers := n.pipe.Answers()
	for i := range answers {
		a := &answers[i]
		it := &b.Items[a.Index]
		status := a.Header.Status()
		if l.to[a.Index] != at || status == mcbp.StatusOK {
			continue // the fence, or a success that nobody asked for
		}
		req := l.sink.dialect.Request(it)
		r := n.rulings.Of(req, status)
		if meta, ok := l.sink.dialect.(*metaDialect); ok && status == mcbp.StatusExists && req.withMeta() {
			if r, ok = meta.refused(it, req); !ok {
				l.follow = append(l.follow, a.Index)
				l.to[a.Index] = settled
				continue
			}
		}
		l.apply(b, n, a.Index, status, r)
	}
	if err != nil {
		l.lose(ctx, b, at, n, err)
		return
	}
	for i, to := range l.to {
		if to == at {
			b.Done(i)
		}
	}
}

// apply settles an item as ruled.
func (l *cbLane) apply(b *pump.Batch, n *node, i int, status mcbp.Status, r Ruling) {
	if status == mcbp.StatusNotMyVBucket {
		l.stale = true
		n.states[b.Items[i].VBucket] = mcbp.VBAbsent // ask again before the next write
	}
	l.to[i] = settled
	switch {
	case r.Stop:
		l.stop = r.Cause // the item stays unconfirmed
	case r.Cause != nil:
		b.Settle(i, r.Verdict, r.Cause)
	default:
		b.Settle(i, r.Verdict, nil)
	}
}

// lose gives up a connection; what it has not confirmed is unknown, not failed.
func (l *cbLane) lose(ctx context.Context, b *pump.Batch, at int, n *node, err error) {
	_ = n.close()
	if ctx.Err() != nil {
		return
	}
	l.stale = true
	lost := &pump.Error{Class: pump.ClassUnreachable, Code: "destination-lost", Retry: true,
		Op: fmt.Sprintf("write to %s node %s", role, n.addr), Err: err}
	if errors.Is(err, mcbp.ErrMagic) || errors.Is(err, mcbp.ErrLength) || errors.Is(err, mcbp.ErrTooLarge) {
		lost.Class, lost.Code, lost.Retry = pump.ClassFailed, "not-memcached", false
		l.stop = lost
		return
	}
	n.lost = lost
	for i, to := range l.to {
		if to == at {
			l.settle(b, i, pump.Retry, lost)
		}
	}
}

// Close closes the lane's connections.
func (l *cbLane) Close() error {
	var err error
	for _, n := range l.nodes {
		if n != nil {
			err = errors.Join(err, n.close())
		}
	}
	return err
}
