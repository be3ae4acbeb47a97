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
	nodes []*node // by index in view.addrs

	// known caches where collections go; nil stands for the default collection.
	known    map[*pump.Collection]target
	knownGen uint64

	*cbWrite            // the write that is being looked after
	under    []*cbWrite // begun and not finished, the oldest first
	spare    []*cbWrite

	wire  pump.Item // the item that is being sent, as the node takes it
	key   []byte    // of wire
	plain []byte    // its unpacked value
}

// cbWrite is one write.
type cbWrite struct {
	batch  *pump.Batch
	view   *view
	to     []int    // by item: index of its node, or settled
	coll   []uint32 // by item: the id of its collection
	went   []went   // by index of the node
	heard  bool     // everything was answered, or is lost
	follow []int    // items that conflict resolution refused
	stale  bool     // the map proved wrong
	lost   bool     // a collection was not known
	newer  *cluster.Map
	stop   error // what ends the run
}

// went is what a node was sent of a write.
type went struct {
	some bool
	pipe *pipe.Pipe // nil if it went over a link
}

// cbAhead is a cbLane whose writes may follow each other before they are confirmed.
type cbAhead struct{ *cbLane }

// Begin sends the batch.
func (l cbAhead) Begin(ctx context.Context, b *pump.Batch) error { return l.begin(ctx, b) }

// Finish waits for what was begun first.
func (l cbAhead) Finish(ctx context.Context, _ *pump.Batch) error { return l.finish(ctx) }

const settled = -1

// node is a lane's connection to one node.
type node struct {
	addr    string
	conn    *cluster.Conn // nil when not connected
	pipe    *pipe.Pipe
	link    Link // in place of the two, where the dialect has its own
	traits  Traits
	rulings *Rulings
	// states is what the node said when the connection was made; it is asked
	// again when that forbids a write.
	states []mcbp.VBState

	// The write that is under way.
	asked bool // for the states
	bad   map[uint16]*pump.Error
	share int      // items for this node
	last  int      // index of the last of them
	vbs   []uint16 // of these items, for a link
	in    []bool   // by vbucket: it is in vbs
	lost  error
}

func (n *node) close() error {
	if n.link != nil {
		err := n.link.Close()
		n.link = nil
		return err
	}
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
	if err := l.begin(ctx, b); err != nil {
		return err
	}
	return l.finish(ctx)
}

// begin sends the batch to the nodes.
func (l *cbLane) begin(ctx context.Context, b *pump.Batch) error {
	w := &cbWrite{}
	if n := len(l.spare) - 1; n >= 0 {
		w, l.spare = l.spare[n], l.spare[:n]
	}
	*w = cbWrite{batch: b, to: w.to[:0], coll: w.coll[:0], went: w.went[:0], follow: w.follow[:0]}
	l.cbWrite = w
	if b.Len() > 0 {
		if err := l.place(ctx, b); err != nil {
			return err
		}
		if err := l.ready(ctx, b); err != nil {
			return err
		}
		l.send(ctx, b)
	}
	l.under = append(l.under, w)
	return nil
}

// finish settles the items of the oldest write.
func (l *cbLane) finish(ctx context.Context) error {
	w := l.under[0]
	l.under = l.under[:copy(l.under, l.under[1:])]
	l.spare = append(l.spare, w)
	b := w.batch
	l.hear(ctx, w)
	if l.stop == nil && len(l.follow) > 0 && ctx.Err() == nil {
		// The questions go over the same connections, in rounds of their own.
		for _, later := range l.under {
			l.hear(ctx, later)
		}
		l.cbWrite = w
		l.resolve(ctx, b)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if l.stop != nil {
		return l.stop
	}
	if l.sink.cfg.Options.Durable {
		if err := l.persist(ctx, b); err != nil {
			return err
		}
	}
	if l.lost {
		l.sink.collections.forget(l.knownGen)
	}
	if l.stale && (l.newer == nil || !l.sink.adopt(l.view, l.newer)) {
		// Once for the whole write; a failure shows again when the items do.
		if _, err := l.sink.refresh(ctx, l.view); err != nil && !mayRetry(err) {
			return err
		}
	}
	return nil
}

// hear waits for the answers to a write and settles its items by them.
func (l *cbLane) hear(ctx context.Context, w *cbWrite) {
	l.cbWrite = w
	if w.heard {
		return
	}
	w.heard = true
	for i := range w.went {
		if w.went[i].some {
			l.settleShare(ctx, w.batch, i, l.nodes[i])
		}
	}
}

// place finds the node of each item and rejects what cannot be sent.
func (l *cbLane) place(ctx context.Context, b *pump.Batch) error {
	v, err := l.sink.current(ctx)
	if err != nil {
		return l.lostAll(ctx, b, err)
	}
	rehash, vbuckets := l.sink.cfg.Options.Rehash, len(v.owner)
	if gen := l.sink.collections.gen.Load(); gen != l.knownGen || l.known == nil {
		l.known, l.knownGen = map[*pump.Collection]target{}, gen
	}
	hash := rehash || l.sink.unsure(vbuckets)
	var where target // of collection in, once found
	var in *pump.Collection
	found := false
	for i := range b.Items {
		it := &b.Items[i]
		l.to, l.coll = append(l.to, settled), append(l.coll, 0)
		if len(it.Key) == 0 || len(it.Key) > MaxKey {
			b.Settle(i, pump.Rejected, errKey)
			continue
		}
		if len(it.Value) > maxValue {
			b.Settle(i, pump.Rejected, errHuge)
			continue
		}
		if !found || it.Collection != in {
			in = it.Collection
			if where, found = l.known[in]; !found {
				if where, err = l.sink.collection(ctx, in); err != nil {
					return l.lostAll(ctx, b, err)
				}
				l.known[in], found = where, true
			}
		}
		if where.named && len(it.Key) > MaxCollectionKey {
			b.Settle(i, pump.Rejected, errCollectionKey)
			continue
		}
		l.coll[i] = where.id
		vb := it.VBucket
		if hash || int(vb) >= vbuckets {
			vb = cluster.VBucketOf(it.Key, vbuckets)
		}
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

// unsure says that vbuckets of items are to be compared with those of their keys,
// since Route has not done it or has found one that differs.
func (s *CBSink) unsure(vbuckets int) bool {
	return !s.routed.Load() || s.astray.Load() || vbuckets != len(s.laneOf)
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
	l.to, l.coll = l.to[:0], l.coll[:0]
	for range b.Items {
		l.to, l.coll = append(l.to, settled), append(l.coll, 0)
	}
	return nil
}

func mayRetry(err error) bool {
	return pump.IsRetryable(err) || pump.ClassOf(err) == pump.ClassUnreachable
}

// goneFrom reports that a node does not have the bucket: it was failed over, or
// rebalanced out, and the map is to be read again. Up to 4.x, where user and
// password are the bucket's, such a node refuses the login. If the bucket itself is
// gone, or its password another one, the REST port says so.
func (l *cbLane) goneFrom(err error) bool {
	switch pump.CodeOf(err) {
	case "no-bucket", "kv-no-bucket":
		return true
	case "kv-denied":
		return !l.view.bucket.MinVersion().AtLeast(5, 0)
	}
	return false
}

// ready connects to the nodes that have items, asks for the states of their
// vbuckets, and keeps items from vbuckets that must not be written: a pending
// one would park the request for ever, and a dead one swallows a TAP deletion.
func (l *cbLane) ready(ctx context.Context, b *pump.Batch) error {
	for _, n := range l.nodes {
		if n != nil {
			for _, vb := range n.vbs {
				n.in[vb] = false
			}
			n.share, n.asked, n.bad, n.lost, n.vbs = 0, false, nil, nil, n.vbs[:0]
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
		if n.pipe == nil && n.link == nil && n.lost == nil {
			n.lost = l.connect(ctx, n)
		}
		if n.lost != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !mayRetry(n.lost) && !l.goneFrom(n.lost) {
				return n.lost
			}
			l.stale = true
			l.settle(b, i, pump.Retry, n.lost)
			continue
		}
		if l.coll[i] != 0 && !n.traits.Collections {
			return &pump.Error{Code: "no-collection", Op: "write to " + role + " node " + n.addr,
				Err:  fmt.Errorf("the node does not know collections, and the items of %s need them", b.Items[i].Collection),
				Hint: "finish the upgrade of all nodes to 7.0 or later first"}
		}
		if why := l.sink.dialect.Refuse(&b.Items[i], &n.traits); why != nil {
			verdict := pump.Rejected
			if why == errAddDeletes {
				verdict = pump.Skipped
			}
			l.settle(b, i, verdict, why)
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
				case !mayRetry(err) && !l.goneFrom(err):
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
		if n.link != nil && !n.in[vb] {
			n.vbs = append(n.vbs, vb)
			n.in[vb] = true
		}
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
	if linker, ok := l.sink.dialect.(Linker); ok {
		if n.link, n.traits, err = linker.Link(ctx, l.sink, l.view.bucket, n.addr); err != nil {
			n.link = nil
			return err
		}
		n.states, n.asked, n.in, n.rulings.known = states, true, make([]bool, len(states)), n.traits.Errors
		return nil
	}
	known, _ := l.view.bucket.NodeByKV(n.addr)
	c, err := l.sink.dialect.FindConn(ctx, l.sink.client.KV(l.view.bucket, n.addr), known.Version)
	if err != nil {
		return err
	}
	said, err := c.ErrorMap(ctx)
	if err != nil {
		_ = c.Close()
		return err
	}
	n.states, n.asked = states, true
	n.conn, n.pipe = c, pipe.New(c.NetConn(), c.Reader(), l.sink.cfg.Options.Timeout)
	if n.traits = TraitsOf(c, l.view.bucket); !n.traits.Modern {
		n.traits.Version = known.Version
	}
	n.traits.Errors, n.rulings.known = said, said
	l.sink.log.Debug("connected", "node", n.addr, "for", l.sink.dialect.Name())
	return nil
}

// send writes the items of all nodes, in the order of the batch.
func (l *cbLane) send(ctx context.Context, b *pump.Batch) {
	d := l.sink.dialect
	for at, n := range l.nodes {
		switch {
		case n == nil || n.share == 0:
		case n.link != nil:
			l.beginLink(ctx, b, at, n)
		default:
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
		it, why := l.prepare(n, &b.Items[i], l.coll[i])
		switch {
		case why != nil:
			l.settle(b, i, pump.Rejected, why)
		case n.link != nil:
			n.link.Append(i, it)
		default:
			n.pipe.Out = d.Append(n.pipe.Out, it, Sending{Opaque: n.pipe.Opaque(i), Last: i == n.last, Traits: &n.traits})
			n.pipe.Sent()
		}
	}
	for _, n := range l.nodes {
		var to went
		if n != nil && n.share > 0 {
			to = went{some: true, pipe: n.pipe}
			if n.link == nil {
				n.pipe.End()
			}
		}
		l.went = append(l.went, to)
	}
}

// beginLink starts a round on a link and leaves out the vbuckets that it refuses.
func (l *cbLane) beginLink(ctx context.Context, b *pump.Batch, at int, n *node) {
	refused, err := n.link.Begin(ctx, n.vbs)
	if err != nil {
		l.lose(ctx, b, at, n, err)
		n.share = 0
		return
	}
	if len(refused) == 0 {
		return
	}
	l.stale = true
	for i, to := range l.to {
		if to != at {
			continue
		}
		vb := b.Items[i].VBucket
		why := refused[vb]
		if why == nil {
			continue
		}
		if !mayRetry(why) && l.stop == nil {
			l.stop = why
		}
		n.states[vb] = mcbp.VBAbsent // ask again before the next write
		l.settle(b, i, pump.Retry, why)
	}
}

// prepare makes of an item what the node takes. It is good until the next call.
func (l *cbLane) prepare(n *node, it *pump.Item, coll uint32) (*pump.Item, *pump.Error) {
	if it.Op == pump.Mutation && it.Datatype == 0 && !n.traits.JSON && !n.traits.Collections {
		return it, nil // it is as nodes up to 4.x take it
	}
	l.wire = *it
	w := &l.wire
	if n.traits.Collections {
		l.key = append(mcbp.AppendCollectionID(l.key[:0], coll), it.Key...)
		w.Key = l.key
	}
	if it.Op != pump.Mutation && (!n.traits.Modern || it.Datatype&mcbp.DatatypeXattr == 0 && it.Seqno == 0) {
		// 3.0 and 4.0 send an expired item's last value with its deletion under TAP. What
		// a tombstone itself holds comes from sources that number their items.
		w.Value, w.Datatype = nil, 0
		return w, nil
	}
	var why *pump.Error
	w.Value, w.Datatype, l.plain, why = n.traits.wireValue(it, l.plain)
	return w, why
}

// settleShare waits for one node and settles its items: what it answered by the
// answers, the rest as done when the fence was answered, else as to be retried.
func (l *cbLane) settleShare(ctx context.Context, b *pump.Batch, at int, n *node) {
	var err error
	if n.link != nil {
		var refusals []Refusal
		refusals, err = n.link.Wait()
		for i := range refusals {
			if r := &refusals[i]; l.to[r.Index] == at {
				if r.Again != nil {
					l.lost = l.lost || r.Status == mcbp.StatusUnknownCollection
					l.settle(b, r.Index, pump.Retry, r.Again)
					continue
				}
				f := mcbp.Frame{Header: mcbp.Header{Magic: mcbp.MagicResponse, VBucket: uint16(r.Status), BodyLen: uint32(len(r.Text))}, Body: r.Text}
				l.apply(b, n, r.Index, &f, n.rulings.Of(ReqDcp, r.Status))
			}
		}
	} else {
		p := l.went[at].pipe
		err = p.Wait()
		if p != n.pipe {
			// It was lost with an earlier write, and what it said after that counts
			// for nothing.
			l.unknown(b, at, n)
			return
		}
		l.settleAnswers(b, at, n)
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

func (l *cbLane) settleAnswers(b *pump.Batch, at int, n *node) {
	answers := n.pipe.Answers()
	for i := range answers {
		a := &answers[i]
		it := &b.Items[a.Index]
		status := a.Header.Status()
		if l.to[a.Index] != at || status == mcbp.StatusOK {
			continue // the fence, or a success that nobody asked for
		}
		req := l.sink.dialect.Request(it, &n.traits)
		r := n.rulings.Of(req, status)
		if meta, ok := l.sink.dialect.(*metaDialect); ok && status == mcbp.StatusExists && req.withMeta() {
			if r, ok = meta.refused(it, req, &n.traits); !ok {
				l.follow = append(l.follow, a.Index)
				l.to[a.Index] = settled
				continue
			}
		}
		f := n.pipe.Frame(a)
		l.apply(b, n, a.Index, &f, r)
	}
	if where := n.pipe.Map(); len(where) > 0 && n.conn != nil {
		if m, err := n.conn.MapFrom(where); err == nil && (l.newer == nil || m.Newer(l.newer)) {
			l.newer = &m
		}
	}
}

// apply settles an item as ruled on the answer f.
func (l *cbLane) apply(b *pump.Batch, n *node, i int, f *mcbp.Frame, r Ruling) {
	vb := b.Items[i].VBucket
	switch f.Status() {
	case mcbp.StatusNotMyVBucket:
		l.stale = true
		n.states[vb] = mcbp.VBAbsent // ask again before the next write
	case mcbp.StatusNoBucket:
		// The node was failed over since it was logged in to: see goneFrom. If the
		// bucket is gone, the reading of the map says so.
		l.stale = true
		n.states[vb] = mcbp.VBAbsent
		r = Ruling{Verdict: pump.Retry, Cause: &pump.Error{Code: "node-gone", Op: r.Cause.Op, Retry: true,
			Err: errors.New("the node does not have the bucket any more (" + mcbp.StatusName(mcbp.StatusNoBucket) + ")")}}
	case mcbp.StatusUnknownCollection:
		l.lost = true
		if n.link == nil && n.states[vb] != mcbp.VBActive {
			r = Ruling{Stop: true, Cause: &pump.Error{Code: "replica-collection", Op: r.Cause.Op,
				Err:  fmt.Errorf("vbucket %d is %s there and does not know collection %s", vb, n.states[vb], b.Items[i].Collection),
				Hint: "such a vbucket learns of collections only from a DCP stream: recover with the DCP engine (dcp://)"}}
		}
	}
	l.to[i] = settled
	switch {
	case r.Stop:
		l.stop = l.named(n, f, r.Cause) // the item stays unconfirmed
	case r.Cause != nil:
		b.Settle(i, r.Verdict, r.Cause)
	default:
		b.Settle(i, r.Verdict, nil)
	}
}

// named adds to a refusal of access which permission is missing, as the node says.
func (l *cbLane) named(n *node, f *mcbp.Frame, cause *pump.Error) error {
	if cause.Class != pump.ClassDenied || !n.traits.Modern {
		return cause
	}
	var said error
	if n.link != nil {
		said = n.link.Explain("write", f)
	} else {
		said = n.conn.Refused("write", f)
	}
	e := *cause
	if hint := pump.HintOf(said); hint != "" {
		e.Hint = hint
	}
	return &e
}

// lose gives up a connection; what it has not confirmed is unknown, not failed.
func (l *cbLane) lose(ctx context.Context, b *pump.Batch, at int, n *node, err error) {
	_ = n.close()
	if ctx.Err() != nil {
		return
	}
	l.stale = true
	var said *pump.Error
	if errors.As(err, &said) && !mayRetry(err) {
		l.stop = err // a link knows why, and that it is final
		return
	}
	lost := &pump.Error{Class: pump.ClassUnreachable, Code: "destination-lost", Retry: true,
		Op: fmt.Sprintf("write to %s node %s", role, n.addr), Err: err}
	if errors.Is(err, mcbp.ErrMagic) || errors.Is(err, mcbp.ErrLength) || errors.Is(err, mcbp.ErrTooLarge) {
		lost.Class, lost.Code, lost.Retry = pump.ClassFailed, "not-memcached", false
		l.stop = lost
		return
	}
	n.lost = lost
	l.unknown(b, at, n)
}

// unknown settles what a lost connection has not confirmed.
func (l *cbLane) unknown(b *pump.Batch, at int, n *node) {
	l.stale = true
	why := n.gone()
	for i, to := range l.to {
		if to == at {
			l.settle(b, i, pump.Retry, why)
		}
	}
}

// gone is why items for the node are to be sent again.
func (n *node) gone() error {
	if n.lost != nil {
		return n.lost
	}
	return &pump.Error{Class: pump.ClassUnreachable, Code: "destination-lost", Retry: true,
		Op: fmt.Sprintf("write to %s node %s", role, n.addr), Err: pipe.ErrClosed}
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
