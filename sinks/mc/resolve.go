package mc

import (
	"context"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// resolve finds out what became of the items that conflict resolution refused:
// it asks for the destination's metadata in one more round, and writes what is
// left (items whose CAS the server does not take) with a new CAS in another.
func (l *cbLane) resolve(ctx context.Context, b *pump.Batch) {
	d, ok := l.sink.dialect.(*metaDialect)
	if !ok {
		return
	}
	have := make(map[int]*mcbp.ItemMeta, len(l.follow))
	l.round(ctx, b, l.follow, func(n *node, i int) {
		l.wire.Key = b.Items[i].Key
		if n.traits.Collections {
			l.key = append(mcbp.AppendCollectionID(l.key[:0], l.coll[i]), b.Items[i].Key...)
			l.wire.Key = l.key
		}
		n.pipe.Out = mcbp.AppendGetMeta(n.pipe.Out, n.pipe.Opaque(i), b.Items[i].VBucket, l.wire.Key)
	}, func(n *node, i int, f *mcbp.Frame) {
		switch status := f.Status(); status {
		case mcbp.StatusOK:
			m, err := mcbp.ParseGetMeta(f)
			if err != nil {
				l.stop = &pump.Error{Code: "bad-answer", Op: "write to " + role + " node " + n.addr, Err: err}
				return
			}
			have[i] = &m
		case mcbp.StatusNotFound:
			have[i] = nil
		default:
			l.apply(b, n, i, f, n.rulings.Of(ReqGet, status))
		}
	})
	if l.stop != nil || ctx.Err() != nil {
		return
	}
	writes := map[int]lastWrite{}
	var left []int
	for _, i := range l.follow {
		if b.Verdict(i) != pump.Unconfirmed {
			continue
		}
		meta, answered := have[i]
		if !answered {
			b.Settle(i, pump.Retry, errChanged)
			continue
		}
		r, w := d.compare(&b.Items[i], &l.nodes[l.view.owner[b.Items[i].VBucket]].traits, meta)
		switch {
		case r.Cause != nil:
			b.Settle(i, r.Verdict, r.Cause)
		case r.Verdict == pump.Done:
			b.Done(i)
		default:
			writes[i] = w
			left = append(left, i)
		}
	}
	if len(left) == 0 {
		return
	}
	// The metadata was read after the whole batch was sent: a write of an
	// item now would overwrite later states of its key (invariant 5). Such an item
	// shares the fate of the last one.
	type document struct {
		collection uint32
		key        string
	}
	of := func(i int) document { return document{l.coll[i], string(b.Items[i].Key)} }
	last, later := map[document]int{}, map[document]bool{}
	for i := range b.Items {
		if v := b.Verdict(i); v != pump.Rejected {
			last[of(i)] = i
		}
	}
	for _, w := range l.under {
		for i := range w.batch.Items {
			later[document{w.coll[i], string(w.batch.Items[i].Key)}] = true
		}
	}
	var write []int
	for _, i := range left {
		switch {
		case later[of(i)]:
			// A later state was sent behind this write. Both are sent again, in order.
			b.Settle(i, pump.Retry, errChanged)
		case last[of(i)] == i:
			write = append(write, i)
		}
	}
	l.round(ctx, b, write, func(n *node, i int) {
		it, _ := l.prepare(n, &b.Items[i], l.coll[i]) // it was sent before, so it can be read
		w, opaque := writes[i], n.pipe.Opaque(i)
		switch w.req {
		case ReqDelete:
			n.pipe.Out = mcbp.AppendKeyed(n.pipe.Out, mcbp.OpDeleteQ, opaque, it.VBucket, w.guard, it.Key)
		case ReqAdd:
			n.pipe.Out = appendStore(n.pipe.Out, mcbp.OpAddQ, it, opaque, 0)
		case ReqSet:
			n.pipe.Out = appendStore(n.pipe.Out, mcbp.OpSetQ, it, opaque, w.guard)
		default:
			n.pipe.Out = appendMeta(n.pipe.Out, w.req, it, Sending{Opaque: opaque, Traits: &n.traits}, mcbp.MetaSkipConflict|mcbp.MetaRegenerateCAS, w.guard)
		}
	}, func(n *node, i int, f *mcbp.Frame) {
		switch status := f.Status(); {
		case status == mcbp.StatusOK:
		case status == mcbp.StatusExists, status == mcbp.StatusNotFound && !writes[i].req.deletes():
			b.Settle(i, pump.Retry, errChanged)
		default:
			l.apply(b, n, i, f, n.rulings.Of(writes[i].req, status))
		}
	})
	if ctx.Err() != nil || l.stop != nil {
		return
	}
	for _, i := range write {
		if b.Verdict(i) == pump.Unconfirmed {
			b.Done(i)
		}
	}
	for _, i := range left {
		if j := last[of(i)]; j != i {
			b.Settle(i, b.Verdict(j), b.Cause(j))
		}
	}
}

// round sends one request for each of the given items, in order, to the nodes
// that have them, and hands over the answers. Items whose node was lost are
// settled with Retry.
func (l *cbLane) round(ctx context.Context, b *pump.Batch, which []int, request func(*node, int), answer func(*node, int, *mcbp.Frame)) {
	for _, n := range l.nodes {
		if n != nil {
			n.share = 0
		}
	}
	for _, i := range which {
		at := l.view.owner[b.Items[i].VBucket]
		n := l.nodes[at]
		if n.lost != nil || n.pipe == nil {
			b.Settle(i, pump.Retry, n.gone())
			continue
		}
		if n.share == 0 {
			n.pipe.Begin(ctx, b.Len(), b.Len())
		}
		n.share++
		l.to[i] = at
		request(n, i)
		n.pipe.Sent()
	}
	for at, n := range l.nodes {
		if n == nil || n.share == 0 {
			continue
		}
		n.pipe.End()
		err := n.pipe.Wait()
		answers := n.pipe.Answers()
		for j := range answers {
			a := &answers[j]
			if l.to[a.Index] == at {
				f := n.pipe.Frame(a)
				answer(n, a.Index, &f)
			}
		}
		if err != nil {
			l.lose(ctx, b, at, n, err)
			continue
		}
		for i, to := range l.to {
			if to == at {
				l.to[i] = settled
			}
		}
	}
}
