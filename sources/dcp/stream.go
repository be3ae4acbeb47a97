package dcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// connName is unique: a server drops the older of two connections of one name.
func connName() string { return fmt.Sprintf("cbpump-%016x", rand.Uint64()) }

// lookup finds a collection by its path, scope.collection.
func lookup(m *cluster.Manifest, path string) (cluster.Collection, bool) {
	scope, name, _ := strings.Cut(path, ".")
	return m.Lookup(scope, name)
}

// stream copies its vbuckets, group by group. It remembers how far each has come,
// so that a stream that is opened again goes on there.
type stream struct {
	src   *Source
	id    string
	turn  int      // its number among the source's streams
	vbs   []uint16 // sorted
	parts []*part  // by vbucket
	names *names
	flow  flow
	moved atomic.Int64 // for Progress

	// Since the last Open:
	layout  *places.Layout
	opened  bool             // Open was called at all
	failed  map[uint16]error // why vbuckets are left to the next Open
	errs    []error          // those errors, each once
	asks    map[string]*cluster.Conn
	cur     *feed
	group   []*part // whose legs are under way on cur
	filter  []byte
	chosen  uint32 // id of the one collection that is wanted
	resting bool   // everything is proven, changes are waited for
	waits   int    // how often vbuckets were waited for …
	waiting time.Time
}

func newStream(src *Source, turn int, vbs []uint16) *stream {
	s := &stream{src: src, id: places.StreamID(kind.Scheme, src.cfg.Bucket, src.cfg.Options.Collection, vbs), turn: turn, vbs: vbs, names: newNames()}
	s.parts = make([]*part, int(vbs[len(vbs)-1])+1)
	for _, vb := range vbs {
		s.parts[vb] = newPart(vb)
	}
	return s
}

// ID names bucket, collection and vbuckets.
func (s *stream) ID() string { return s.id }

// Progress grows with each vbucket that is proven complete and each batch that
// came further than ever.
func (s *stream) Progress() int { return int(s.moved.Load()) }

// Acknowledge tells the node that it may send more. Marks must come as Read gave
// them: all, and in order. It is safe beside Read, and after Close.
func (s *stream) Acknowledge(_ context.Context, confirmed []pump.Mark) error {
	return s.flow.confirm(len(confirmed))
}

// Open goes on behind the marks, or where this stream stopped before. When it is
// called again the map is read anew, since vbuckets may have moved.
func (s *stream) Open(ctx context.Context, from []pump.Mark) error {
	if err := s.Close(); err != nil {
		return err
	}
	again := s.opened
	if !again {
		for i := range from {
			if err := s.goOn(&from[i]); err != nil {
				return err
			}
		}
	}
	s.opened = true
	s.failed, s.errs, s.waits = map[uint16]error{}, nil, 0
	l, err := s.src.at.Locate(ctx, again)
	if err != nil {
		return err
	}
	s.layout = l
	return s.begin(ctx)
}

func (s *stream) goOn(m *pump.Mark) error {
	if int(m.VBucket) >= len(s.parts) || s.parts[m.VBucket] == nil {
		return nil
	}
	p := s.parts[m.VBucket]
	if m.Complete && !s.src.cfg.Options.Follow {
		p.proven = true
		s.moved.Add(1)
		return nil
	}
	if m.Seqno == 0 {
		return nil
	}
	if err := p.restore(m); err != nil {
		return err
	}
	p.highest = p.seqno
	return nil
}

// Close ends the connections.
func (s *stream) Close() error {
	s.hangUp()
	for _, conn := range s.asks {
		_ = conn.Close()
	}
	s.asks = nil
	return nil
}

func (s *stream) hangUp() {
	if s.cur == nil {
		return
	}
	s.cur.close()
	s.cur, s.group = nil, nil
	for _, vb := range s.vbs {
		s.parts[vb].streaming, s.parts[vb].accepted, s.parts[vb].touched = false, false, false
	}
}

// Read fills b with items and the marks behind them, or with marks of vbuckets
// that are complete. It returns io.EOF when all are proven (never with Follow),
// and a retryable error when some are not and nothing else is left to try.
func (s *stream) Read(ctx context.Context, b *pump.Batch) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(s.group) == 0 {
			if err := s.begin(ctx); err != nil {
				return err
			}
			if len(s.group) == 0 {
				if err := s.ending(ctx); err != nil {
					return err
				}
				continue
			}
		}
		if err := s.cur.read(ctx, b); err != nil {
			return err
		}
		if b.Len() == 0 {
			if err := s.finish(ctx, b); err != nil {
				return err
			}
			if len(b.Marks) == 0 {
				continue
			}
		}
		s.progress()
		s.cur.hand(b)
		return nil
	}
}

// progress counts batches that came further than ever.
func (s *stream) progress() {
	for _, p := range s.cur.touched {
		if p.seqno > p.highest {
			p.highest = p.seqno
			s.moved.Add(1)
		}
	}
}

// ending is what Read does when no vbucket is left to try: it returns io.EOF or
// an error, or nil after a pause in which others may have changed.
func (s *stream) ending(ctx context.Context) error {
	if len(s.failed) == 0 {
		if s.src.cfg.Options.Follow {
			s.resting = true
			return pause(ctx, s.src.cfg.Options.FollowInterval)
		}
		return io.EOF // every vbucket is proven (invariant 4)
	}
	for _, err := range s.errs {
		if !pump.IsRetryable(err) {
			return err
		}
	}
	if len(s.errs) == 1 {
		return s.errs[0]
	}
	return &pump.Error{Class: pump.ClassOf(s.errs[0]), Code: pump.CodeOf(s.errs[0]), Hint: pump.HintOf(s.errs[0]),
		Err: errors.Join(s.errs...), Retry: true}
}

// pause waits for d or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// leave leaves vbuckets to the next Open.
func (s *stream) leave(err error, parts ...*part) {
	for _, p := range parts {
		s.failed[p.vb] = err
	}
	s.errs = append(s.errs, err)
}

// next returns the vbuckets to stream next, and all the stream still wants of the
// same node; that of the connection there is, if it has any left.
func (s *stream) next() (addr string, group, all []*part) {
	if s.cur != nil {
		addr = s.cur.addr
	}
	wanted := func(vb uint16) bool { return !s.parts[vb].proven && s.failed[vb] == nil }
	here := func(vb uint16) bool { return s.layout.Active[vb] == addr && wanted(vb) }
	if addr == "" || !slices.ContainsFunc(s.vbs, here) {
		addr = s.layout.First(s.vbs, s.turn, wanted)
	}
	for _, vb := range s.vbs {
		if !wanted(vb) {
			continue
		}
		if _, ok := s.layout.Active[vb]; !ok {
			// The map may change yet: a failover moves it in steps.
			s.leave(pump.Retryable(s.layout.Refuse(vb)), s.parts[vb])
		} else if here(vb) {
			all = append(all, s.parts[vb])
		}
	}
	return addr, all[:min(len(all), s.src.cfg.Options.OpenVBuckets)], all
}

// begin starts the legs of the next group. It leaves s.group empty when no
// vbucket is left to try.
func (s *stream) begin(ctx context.Context) error {
	if s.resting {
		if err := s.look(ctx); err != nil {
			return err
		}
	}
	for len(s.group) == 0 {
		addr, group, all := s.next()
		if len(group) == 0 {
			return nil
		}
		err := s.start(ctx, addr, group, all)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !pump.IsRetryable(err):
			return err
		default:
			// The node as a whole: leave it alone, others may be well.
			s.hangUp()
			s.forget(addr)
			s.leave(err, all...)
		}
	}
	return nil
}

// ask returns the connection for questions to a node.
func (s *stream) ask(ctx context.Context, addr string) (*cluster.Conn, error) {
	if conn := s.asks[addr]; conn != nil {
		return conn, nil
	}
	conn, err := cluster.DialKV(ctx, s.src.at.Places.KV(s.layout, addr))
	if err != nil {
		return nil, places.Gone(err, addr)
	}
	if s.asks == nil {
		s.asks = map[string]*cluster.Conn{}
	}
	s.asks[addr] = conn
	return conn, nil
}

// forget drops the connection for questions to a node, which has failed.
func (s *stream) forget(addr string) {
	if conn := s.asks[addr]; conn != nil {
		_ = conn.Close()
		delete(s.asks, addr)
	}
}

// status is what a node says of vbuckets at one moment.
type status struct {
	info map[uint16]cluster.VBInfo
	high map[uint16]uint64
}

// status asks for the counts and high seqnos of vbuckets, on a connection of the
// same kind as the stream's: others mean other seqnos.
func (s *stream) status(ctx context.Context, addr string, parts []*part) (st status, err error) {
	began := time.Now()
	for again := true; ; {
		had := s.asks[addr] != nil
		var conn *cluster.Conn
		if conn, err = s.ask(ctx, addr); err != nil {
			return st, err
		}
		if st.info, err = conn.VBucketDetails(ctx); err == nil {
			s.src.admit(st.info)
			st.high, err = s.highs(ctx, conn, active(st.info, parts))
		}
		err = places.Vanished(err, addr)
		switch {
		case err == nil || ctx.Err() != nil || !pump.IsRetryable(err):
			return st, err
		case pump.CodeOf(err) == codeSeqnosMissing && time.Since(began) < s.src.cfg.Options.MapWait:
			// It warms up, or a vbucket has moved away between the two questions: then it
			// is not active there any more.
		case had && again:
			again = false
			s.forget(addr) // it lay idle for long; a new one may do
		default:
			return st, err
		}
	}
}

// codeSeqnosMissing is of package cluster: the node does not list all vbuckets.
const codeSeqnosMissing = "seqnos-missing"

// highs asks for the seqnos that legs are to end at. It does not wait for long:
// what the node does not list may not be there any more.
func (s *stream) highs(ctx context.Context, conn *cluster.Conn, vbs []uint16) (map[uint16]uint64, error) {
	wait := min(s.src.cfg.Options.MapWait, 250*time.Millisecond)
	if s.filter != nil {
		return conn.CollectionHighSeqnos(ctx, vbs, s.chosen, wait)
	}
	return conn.HighSeqnos(ctx, vbs, s.src.admitted(), wait)
}

func active(info map[uint16]cluster.VBInfo, parts []*part) (vbs []uint16) {
	for _, p := range parts {
		if info[p.vb].State == mcbp.VBActive {
			vbs = append(vbs, p.vb)
		}
	}
	return vbs
}

// start begins a leg of each part of a group that is active on the node; all are
// those that are wanted of it. It leaves s.group empty when begin has to choose
// anew.
func (s *stream) start(ctx context.Context, addr string, group, all []*part) error {
	conn, err := s.ask(ctx, addr)
	if err != nil {
		return err
	}
	if err := s.learn(ctx, conn); err != nil {
		return err
	}
	began, err := s.status(ctx, addr, group)
	if err != nil {
		return err
	}
	group = slices.DeleteFunc(slices.Clone(group), func(p *part) bool { return began.info[p.vb].State != mcbp.VBActive })
	if len(group) == 0 {
		return s.await(ctx, addr, all, began.info)
	}
	// Asked again, it says whether the counts were of the end or of a little before.
	if conn, err = s.ask(ctx, addr); err != nil {
		return err
	}
	high, err := s.highs(ctx, conn, active(began.info, group))
	if pump.CodeOf(err) == codeSeqnosMissing {
		return nil // one has just moved: begin looks again
	}
	if err != nil {
		return err
	}
	if s.cur != nil && s.cur.addr != addr {
		s.hangUp()
	}
	if s.cur == nil {
		if s.cur, err = openFeed(ctx, s.src.at.Places.KV(s.layout, addr), &s.src.cfg.Options, &s.flow, s.parts); err != nil {
			s.cur = nil
			return places.Gone(err, addr)
		}
		s.cur.warn, s.cur.filter = s.src.cfg.Log.Warn, s.filter
		if s.cur.conn.Has(mcbp.FeatureCollections) {
			s.cur.names = s.names
		}
	}
	for _, p := range group {
		p.end, p.before = high[p.vb], began.info[p.vb].Items
		p.exact = began.high[p.vb] == p.end
		p.failed = nil
		// Nothing comes beyond a position at the end while nobody writes: the stream
		// that was to be closed when it comes would wait for ever.
		p.chase = p.legs >= maxLegs && p.end != p.seqno
		s.cur.request(p)
	}
	s.group = group
	return nil
}

// learn reads the names of the collections, and which one is wanted.
func (s *stream) learn(ctx context.Context, conn *cluster.Conn) error {
	if path := s.src.cfg.Options.Collection; path != "" && s.filter == nil {
		id, err := s.src.collection(ctx, conn)
		if err != nil {
			return err
		}
		s.chosen = id
		s.filter = fmt.Appendf(nil, `{"collections":["%s"]}`, strconv.FormatUint(uint64(id), 16))
	}
	if !conn.Has(mcbp.FeatureCollections) {
		return nil
	}
	m, err := conn.Manifest(ctx)
	if err != nil {
		return err
	}
	s.names.learn(m)
	return nil
}

// await waits a little for vbuckets that are not active where the map says, and
// reads the map anew; begin looks again. What does not come about within MapWait
// of the first time is left to the next Open.
func (s *stream) await(ctx context.Context, addr string, parts []*part, info map[uint16]cluster.VBInfo) error {
	const most = time.Second
	if s.waits == 0 {
		s.waiting = time.Now()
	} else {
		if time.Since(s.waiting) >= s.src.cfg.Options.MapWait {
			for _, p := range parts {
				if state := info[p.vb].State; state != mcbp.VBActive {
					s.leave(notActive(p.vb, addr, state.String()), p)
				}
			}
			return nil
		}
		if err := pause(ctx, min(10*time.Millisecond<<min(s.waits, 10), most)); err != nil {
			return err
		}
	}
	s.waits++
	l, err := s.src.at.Locate(ctx, true)
	if err != nil {
		return err
	}
	s.layout = l
	return nil
}

// finish judges a group whose streams have ended: complete vbuckets get their
// marks in b; those that have changed meanwhile go on; the rest is left to the
// next Open.
func (s *stream) finish(ctx context.Context, b *pump.Batch) error {
	addr, group := s.cur.addr, s.group
	s.group = nil
	var open []*part
	for _, p := range group {
		if p.failed != nil {
			s.leave(p.failed, p)
			continue
		}
		if p.orphans > 0 {
			s.src.cfg.Log.Warn("items of collections that were dropped meanwhile were left out", "node", addr, "vbucket", p.vb, "items", p.orphans)
			p.orphans = 0
		}
		if s.filter == nil && p.atOnce() {
			s.prove(b, p, p.live)
			continue
		}
		open = append(open, p)
	}
	if len(open) == 0 {
		return nil
	}
	now, err := s.status(ctx, addr, open)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !pump.IsRetryable(err):
		return err
	default:
		s.forget(addr)
		s.leave(&pump.Error{Code: codeCut, Op: "copy from " + addr, Retry: true,
			Err:  fmt.Errorf("the streams of %s have ended, but the node's item counts cannot be read: %w", listParts(open), err),
			Hint: "Has the node died? After its failover the same command goes on with the node that took over."}, open...)
		return nil
	}
	for _, p := range open {
		p.legs++
		r, items, why := p.judge(now.info[p.vb], now.high[p.vb], s.filter == nil)
		switch r {
		case proven:
			s.prove(b, p, items)
		case goOn: // begin finds it not proven
		case elsewhere:
			s.leave(notActive(p.vb, addr, now.info[p.vb].State.String()), p)
		default:
			s.unproven(addr, p, why)
		}
	}
	return nil
}

// prove marks a part as complete; with Follow it is so only once.
func (s *stream) prove(b *pump.Batch, p *part, items uint64) {
	p.proven, p.legs, p.starts = true, 0, 0
	s.moved.Add(1)
	b.Marks = append(b.Marks, p.mark(true, items))
}

// unproven has a part streamed anew, or gives it up.
func (s *stream) unproven(addr string, p *part, why string) {
	e := &pump.Error{Code: codeIncomplete, Op: fmt.Sprintf("copy vbucket %d from %s", p.vb, addr),
		Err:  fmt.Errorf("the stream reached its end, seqno %d, but it is not proven to be complete: %s", p.end, why),
		Hint: "What came was passed on, but it is not known to be all. If the bucket is being written to, stop that; then run the same command again."}
	p.starts++
	e.Retry = p.starts <= maxStarts
	p.restart()
	s.leave(e, p)
}

// look finds the vbuckets that have changed since they were proven (Follow).
func (s *stream) look(ctx context.Context) error {
	l, err := s.src.at.Locate(ctx, false)
	if err != nil {
		return err
	}
	s.layout = l
	nodes := map[string][]*part{}
	for _, vb := range s.vbs {
		addr, ok := l.Active[vb]
		if !ok {
			return pump.Retryable(l.Refuse(vb))
		}
		nodes[addr] = append(nodes[addr], s.parts[vb])
	}
	changed := false
	for addr, parts := range nodes {
		now, err := s.status(ctx, addr, parts)
		if err != nil {
			return err
		}
		for _, p := range parts {
			// Not active any more, or another history: the leg finds out.
			p.proven = now.info[p.vb].State == mcbp.VBActive && now.high[p.vb] == p.end
			changed = changed || !p.proven
		}
	}
	s.resting = false
	if !changed {
		s.hangUp() // servers close DCP connections that lie idle
	}
	return nil
}

func listParts(parts []*part) string {
	var vbs []uint16
	for _, p := range parts {
		vbs = append(vbs, p.vb)
	}
	slices.Sort(vbs)
	return places.List(vbs)
}
