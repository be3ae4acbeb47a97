package tap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// stream dumps its vbuckets, group by group. It remembers which are proven, so
// that a stream that is opened again dumps only the others.
type stream struct {
	src  *DumpSource
	id   string
	turn int      // its number among the source's streams
	vbs  []uint16 // sorted

	proven map[uint16]bool
	done   atomic.Int64 // len(proven), for Progress

	// Since the last Open:
	layout    *places.Layout
	opened    bool             // Open was called at all
	refreshed bool             // layout is newer than the first one
	blocked   map[uint16]error // why vbuckets are left to the next Open
	errs      []error          // those errors, each once
	cur       *dump            // what is being read
}

func newStream(src *DumpSource, turn int, vbs []uint16) *stream {
	return &stream{src: src, id: places.StreamID(kind.Scheme, src.cfg.Bucket, "", vbs), turn: turn, vbs: vbs, proven: map[uint16]bool{}}
}

// ID names bucket and vbuckets.
func (s *stream) ID() string { return s.id }

// Progress returns the number of vbuckets that are proven complete.
func (s *stream) Progress() int { return int(s.done.Load()) }

// Open starts the first dump. Vbuckets that marks call complete are left out, as
// are those that this stream has proven before. When it is called again the map
// is read anew, since vbuckets may have moved.
func (s *stream) Open(ctx context.Context, from []pump.Mark) error {
	if err := s.Close(); err != nil {
		return err
	}
	for _, m := range from {
		if _, mine := slices.BinarySearch(s.vbs, m.VBucket); m.Complete && mine {
			s.prove(m.VBucket)
		}
	}
	s.blocked, s.errs = map[uint16]error{}, nil
	again := s.opened
	s.opened = true
	l, err := s.src.at.Locate(ctx, again)
	if err != nil {
		return err
	}
	s.layout, s.refreshed = l, again
	s.cur, err = s.begin(ctx)
	return err
}

func (s *stream) prove(vb uint16) {
	s.proven[vb] = true
	s.done.Store(int64(len(s.proven)))
}

// Close ends the dump that is under way.
func (s *stream) Close() error {
	if s.cur != nil {
		s.cur.close()
		s.cur = nil
	}
	return nil
}

// Read fills b with items, or with the marks of vbuckets that are complete. It
// returns io.EOF when all are proven, and a retryable error when some are not
// and nothing else is left to try.
func (s *stream) Read(ctx context.Context, b *pump.Batch) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if s.cur == nil {
			var err error
			if s.cur, err = s.begin(ctx); err != nil {
				return err
			}
			if s.cur == nil {
				return s.ending()
			}
		}
		if err := s.cur.read(ctx, b); err != nil {
			return err
		}
		if b.Len() > 0 {
			return nil
		}
		if err := s.finish(ctx, b); err != nil {
			return err
		}
		if len(b.Marks) > 0 {
			return nil
		}
	}
}

// ending is what Read returns when no vbucket is left to try.
func (s *stream) ending() error {
	if len(s.blocked) == 0 {
		return io.EOF // every vbucket is proven (invariant 4)
	}
	first, retry := s.errs[0], true
	for _, err := range s.errs {
		if !pump.IsRetryable(err) {
			first, retry = err, false
			break
		}
	}
	e := &pump.Error{Class: pump.ClassOf(first), Code: pump.CodeOf(first), Hint: pump.HintOf(first), Err: first, Retry: retry,
		VBuckets: make(map[uint16]error, len(s.blocked))}
	if retry && len(s.errs) > 1 {
		e.Err = errors.Join(s.errs...)
	}
	for vb, err := range s.blocked {
		if own := pump.ErrorOf(err, vb); own != nil {
			err = own
		}
		e.VBuckets[vb] = err
	}
	return e
}

// block leaves vbuckets to the next Open.
func (s *stream) block(err error, vbs ...uint16) {
	for _, vb := range vbs {
		s.blocked[vb] = err
	}
	s.errs = append(s.errs, err)
}

// next returns the vbuckets to dump next, and all the stream still wants of the
// same node.
func (s *stream) next() (addr string, group, all []uint16) {
	wanted := func(vb uint16) bool { return !s.proven[vb] && s.blocked[vb] == nil }
	addr = s.layout.First(s.vbs, s.turn, wanted)
	for _, vb := range s.vbs {
		if !wanted(vb) {
			continue
		}
		at, ok := s.layout.Active[vb]
		if !ok {
			// The map may change yet: a failover moves it in steps.
			s.block(pump.Retryable(s.layout.Refuse(vb)), vb)
		} else if at == addr {
			all = append(all, vb)
		}
	}
	return addr, all[:min(len(all), s.src.cfg.Options.DumpVBuckets)], all
}

// begin starts the next dump. It returns nil when no vbucket is left to try.
func (s *stream) begin(ctx context.Context) (*dump, error) {
	for {
		addr, group, all := s.next()
		if len(group) == 0 {
			return nil, nil
		}
		d, err := s.start(ctx, addr, group)
		switch {
		case err == nil && d != nil:
			return d, nil
		case err == nil: // the map is another one by now, or the group is blocked
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !pump.IsRetryable(err):
			return nil, err
		default:
			// The node as a whole: leave it alone, others may be well.
			s.block(err, all...)
		}
	}
}

// start prepares a node for the dump of a group and starts it. It returns
// neither dump nor error when begin has to choose anew.
func (s *stream) start(ctx context.Context, addr string, group []uint16) (*dump, error) {
	o := &s.src.cfg.Options
	kv := s.src.at.Places.KV(s.layout, addr)
	stats, err := cluster.DialKV(ctx, kv)
	if err != nil {
		return nil, places.Gone(err, addr)
	}
	kept := false
	defer func() {
		if !kept {
			_ = stats.Close()
		}
	}()
	if o.FlushTimeout > 0 {
		if err := stats.WaitFlushed(ctx, o.FlushTimeout); err != nil {
			return nil, unflushed(err, addr)
		}
	}
	before, err := stats.VBucketDetails(ctx)
	if err != nil {
		return nil, err
	}
	var ready []uint16
	for _, vb := range group {
		state := before[vb].State // absent if the node does not list it
		if state == mcbp.VBActive {
			ready = append(ready, vb)
			continue
		}
		if !s.refreshed {
			if s.layout, err = s.src.at.Locate(ctx, true); err != nil {
				return nil, err
			}
			s.refreshed = true
			return nil, nil
		}
		s.block(notActive(vb, addr, state), vb)
	}
	if len(ready) == 0 {
		return nil, nil
	}
	kept = true
	return newDump(ctx, kv, stats, ready, before, knowsFix(s.layout.Versions[addr]), o.IdleTimeout)
}

// unflushed names the option behind a wait that took too long; waiting the same
// time again would not mend it.
func unflushed(err error, addr string) error {
	var e *pump.Error
	if pump.CodeOf(err) != "not-flushed" || !errors.As(err, &e) {
		return err
	}
	return &pump.Error{Code: codeUnflushed, Op: "dump from " + addr, Err: e.Err,
		Hint: "Servers from 3.0 on dump what is on disk, so a dump now would lack these items. " +
			"Stop writing to the bucket, or wait longer with the option flush-timeout."}
}

// finish judges a dump that has ended: complete vbuckets get their marks in b,
// the others are left to the next Open.
func (s *stream) finish(ctx context.Context, b *pump.Batch) error {
	d := s.cur
	s.cur = nil
	defer d.close()
	_ = d.conn.Close()
	if d.end == endClosed && !d.any {
		s.block(d.refused(), vbuckets(d)...)
		return nil
	}
	after, err := d.recount(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !pump.IsRetryable(err):
		return err
	default:
		cause := "the connection ended"
		if d.end == endCut {
			cause = d.cause.Error()
		}
		s.block(&pump.Error{Code: codeCut, Op: d.op, Retry: true,
			Err:  fmt.Errorf("%s, and the node's item counts cannot be read: %w", cause, err),
			Hint: "Has the node died? After its failover the same command goes on with the node that took over."}, vbuckets(d)...)
		return nil
	}
	byCount := s.src.cfg.Options.EndProof == endProofCount
	var left []uint16
	whys := map[uint16]string{}
	for i := range d.vbs {
		v := &d.vbs[i]
		proven, why := d.judge(v, after, byCount)
		if !proven {
			left = append(left, v.vb)
			whys[v.vb] = why
			continue
		}
		s.prove(v.vb)
		b.Marks = append(b.Marks, pump.Mark{VBucket: v.vb, Complete: true, Items: v.live})
	}
	if len(left) > 0 {
		s.block(d.unproven(left, whys, byCount), left...)
	}
	s.src.cfg.Log.Debug("a dump has ended", "node", d.addr, "complete", len(d.vbs)-len(left), "unproven", len(left))
	return nil
}

func vbuckets(d *dump) []uint16 {
	out := make([]uint16, len(d.vbs))
	for i := range d.vbs {
		out[i] = d.vbs[i].vb
	}
	return out
}
