package pump

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config is one run of the pump.
type Config struct {
	Source   Source   // Run closes it
	Sink     Sink     // Run closes it
	Settings Settings // DefaultSettings, or from AssignOptions
	Threads  int      // lanes that the user asked for; 0 leaves it to the sink

	// Filter leaves an item out when it returns false. It is called concurrently.
	Filter func(*Item) bool
	Log    hclog.Logger // nil: nothing is logged

	// Limits slow the reading down; nil does not. They may be changed in mid-run.
	Limits *Limits

	// Stop, when closed, ends the reading; what was read is still finished
	// (within Settings.DrainTime) and Run returns an error of ClassInterrupted.
	Stop <-chan struct{}
	// Checkpoint, if set, is where the run goes on from and what it is saved to:
	// every Settings.CheckpointEvery and at the end. A sink that is a Committer
	// holds nothing durable before Commit, so its run is saved at the end only.
	Checkpoint Checkpoint
	// Sync, if set, makes durable what OnVerdict recorded. It is called before
	// each save of the checkpoint, and its error keeps the checkpoint where it is.
	Sync func() error
	// KeepGoing lets other streams go on when one has failed. The run ends with
	// that stream's error all the same.
	KeepGoing bool

	// OnVerdict sees every item that ends Skipped or Rejected. It is called
	// concurrently and must not keep the item's bytes.
	OnVerdict func(it *Item, v Verdict, why error)
	// OnRejected is given every rejected item, whole, before it counts and before
	// any mark passes it, to keep it. It is called concurrently and must not keep
	// the item's bytes. An error ends the run at once.
	OnRejected func(it *Item, why error) error
	// StopAtRejected is the number of rejected items with which the reading ends;
	// what was read is finished, but no mark passes the last of these items. 0 is
	// no limit.
	StopAtRejected uint64

	// OnMarks sees the marks of a stream once all items before them have a final
	// verdict, in order; one call at a time per stream.
	OnMarks func(stream string, marks []Mark)

	Progress      func(Snapshot) // called every ProgressEvery and once at the end
	ProgressEvery time.Duration  // 0: one second

	Monitor *Monitor // shows what the run is doing; may be nil

	// Scribble overwrites every arena that is given back, to show that nobody
	// kept an item's bytes. For tests.
	Scribble bool
}

// Run moves every item of the source to the sink. The report is never nil and
// says what is known to have happened, whatever the error. The error is nil only
// when every stream was proven complete (invariant 4) and every item is Done;
// see Class for the others.
//
// Cancelling ctx stops at once and leaves items unfinished; closing Stop drains.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.ProgressEvery <= 0 {
		cfg.ProgressEvery = time.Second
	}
	e := &engine{cfg: cfg, seed: maphash.MakeSeed(), began: time.Now()}
	e.progress = progress{e: e, keep: cfg.Checkpoint}
	err := e.run(ctx)
	report := &Report{Snapshot: e.snapshot()}
	e.ledger.fill(report)
	report.LeftOut, report.Losses, report.Earlier = e.leftOut, e.lost(), e.progress.earlier
	for _, s := range e.streams {
		report.StreamReports = append(report.StreamReports, StreamReport{ID: s.id, Err: s.err})
	}
	if err == nil {
		if err = report.Result(); e.omitted != nil {
			err = errors.Join(err, e.omitted)
		}
	}
	if err != nil && e.read.Load()+e.reopened.Load() > 0 {
		err = Begun(err)
	}
	return report, err
}

type engine struct {
	cfg      Config
	seed     maphash.Seed
	began    time.Time
	lanes    []*laneRun
	streams  []*streamRun
	router   Router
	placer   Placer // nil: the sink is one place
	homes    homes  // of vbuckets, where there are several lanes and no router
	circuit  circuit
	budget   *budget
	copies   copies
	arena    int // bytes of a batch's arena
	ledger   ledger
	progress progress
	saved    atomic.Int64 // when the checkpoint was last saved, Unix nanoseconds; 0: never
	distinct bool         // no key comes twice
	unpack   bool         // the sink does not take compressed values
	leftOut  []Definition
	omitted  error // what the source left out

	estimate                                       Estimate
	read, done, skipped, rejected, filtered        atomic.Uint64
	retried, bytesRead, bytesDone, ended, reopened atomic.Uint64

	stopLanes context.CancelCauseFunc // ends everything at once
	stopRead  context.CancelCauseFunc // ends the reading only
}

// errStopped is why reading ended when the user asked for it.
var errStopped = &Error{Class: ClassInterrupted, Code: "interrupted", Err: errors.New("stopped before the end; what had been read was finished")}

func (e *engine) run(ctx context.Context) (err error) {
	closeEnds := sync.OnceValue(e.closeEnds)
	defer func() {
		if cerr := closeEnds(); err == nil {
			err = cerr
		}
	}()
	laneCtx, stopLanes := context.WithCancelCause(ctx)
	readCtx, stopRead := context.WithCancelCause(laneCtx)
	e.stopLanes, e.stopRead = stopLanes, stopRead
	defer stopLanes(nil)
	defer stopRead(nil)
	finished := make(chan struct{})
	var helpers sync.WaitGroup
	endHelpers := sync.OnceFunc(func() {
		close(finished)
		helpers.Wait()
	})
	defer endHelpers()
	helpers.Go(func() { e.watchStop(finished) })

	lanes, err := e.prepare(readCtx)
	defer func() {
		for _, l := range lanes {
			if cerr := l.Close(); cerr != nil && err == nil {
				err = fmt.Errorf("finish writing: %w", cerr)
			}
		}
	}()
	if err != nil {
		if readCtx.Err() != nil {
			return e.outcome(ctx, laneCtx, readCtx)
		}
		return err
	}
	if e.cfg.Progress != nil {
		helpers.Go(func() { e.showProgress(finished) })
	}
	_, whole := As[Committer](e.cfg.Sink)
	if e.cfg.Checkpoint != nil && !whole {
		helpers.Go(func() { e.progress.run(readCtx, finished) })
	}
	helpers.Go(func() { e.tune(finished) })
	var writing sync.WaitGroup
	for _, l := range e.lanes {
		writing.Go(func() {
			if err := l.run(laneCtx); err != nil {
				stopLanes(err)
			}
		})
	}
	e.readAll(readCtx)
	for _, l := range e.lanes {
		l.close()
	}
	writing.Wait()
	e.blame()
	endHelpers()
	err = e.outcome(ctx, laneCtx, readCtx)
	if err == nil {
		closing := lanes
		lanes = nil
		if err = e.finish(ctx, closing); err == nil {
			// A destination that cannot be closed may not have kept what it confirmed.
			err = closeEnds()
		}
	}
	if e.cfg.Checkpoint == nil || err != nil && whole {
		return err
	}
	// What is known to be done is worth saving however the run ended.
	if serr := e.progress.save(context.WithoutCancel(ctx), err == nil); serr != nil && !errors.Is(err, serr) {
		err = errors.Join(err, serr)
	}
	return err
}

func (e *engine) closeEnds() error {
	serr, derr := e.cfg.Source.Close(), e.cfg.Sink.Close()
	switch {
	case serr != nil:
		return fmt.Errorf("close the source: %w", serr)
	case derr != nil:
		return fmt.Errorf("close the destination: %w", derr)
	}
	return nil
}

// prepare checks both ends and opens streams and lanes. The lanes that it
// returns are to be closed whatever the error.
func (e *engine) prepare(ctx context.Context) ([]Lane, error) {
	if err := Check(ctx, e.cfg.Source, e.cfg.Sink); err != nil {
		return nil, err
	}
	if err := e.agree(ctx); err != nil {
		return nil, err
	}
	streams, err := e.cfg.Source.Streams(ctx)
	if err != nil {
		return nil, err
	}
	if e.cfg.Progress != nil {
		if est, ok := As[Estimator](e.cfg.Source); ok {
			if e.estimate, err = est.Estimate(ctx); err != nil {
				e.cfg.Log.Debug("the source gives no estimate", "reason", err)
			}
		}
	}
	lanes, err := e.cfg.Sink.Lanes(ctx, e.cfg.Threads)
	if err != nil {
		return lanes, err
	}
	if len(lanes) == 0 {
		return nil, &Error{Code: "no-lanes", Err: errors.New("the sink gave no lane to write to")}
	}
	e.router, _ = As[Router](e.cfg.Sink)
	e.placer, _ = As[Placer](e.cfg.Sink)
	e.layOut(streams, lanes)
	if e.cfg.Monitor != nil {
		e.cfg.Monitor.run.Store(e)
	}
	return lanes, e.resume()
}

// layOut sizes arenas and lanes so that the streams have at least two batches
// each within the memory that was granted, and if there are not too many of them
// within what is in flight at first.
func (e *engine) layOut(streams []Stream, lanes []Lane) {
	s := &e.cfg.Settings
	if s.Memory <= 0 || s.BatchBytes <= 0 || s.LaneItems <= 0 {
		d := DefaultSettings()
		if s.Memory <= 0 {
			s.Memory = d.Memory
		}
		if s.BatchBytes <= 0 {
			s.BatchBytes = d.BatchBytes
		}
		if s.LaneItems <= 0 {
			s.LaneItems = d.LaneItems
		}
	}
	if s.StreamLimit <= 0 {
		s.StreamLimit = max(1, len(streams))
	}
	reading := min(max(1, len(streams)), s.StreamLimit)
	const leastArena, usualArena = 16 << 10, 128 << 10
	share := min(int64(s.Memory)/int64(4*reading), max(usualArena, leastFlight/int64(2*reading)))
	e.arena = int(min(int64(s.BatchBytes), max(leastArena, min(share, e.cfg.Limits.second()))))
	e.budget = newBudget(min(int64(s.Memory), max(leastFlight, int64(2*reading*e.arena))))
	laneBytes := int64(s.LaneBytes)
	if laneBytes <= 0 {
		laneBytes = max(1, int64(s.Memory)/int64(2*len(lanes)))
	}
	for _, l := range lanes {
		e.lanes = append(e.lanes, newLaneRun(e, l, s.LaneItems, laneBytes))
	}
	if e.router == nil && len(lanes) > 1 {
		few := fewVBuckets
		if _, whole := As[Committer](e.cfg.Sink); whole {
			few = 0
		}
		e.homes = newHomes(e.lanes, few)
		if d, ok := As[Distinct](e.cfg.Source); ok {
			e.distinct = d.DistinctKeys()
		}
	}
	for _, st := range streams {
		e.streams = append(e.streams, &streamRun{e: e, stream: st, id: st.ID(), perLane: make([]laneShare, len(lanes))})
	}
}

// resume puts the streams where the checkpoint says.
func (e *engine) resume() error {
	if e.cfg.Checkpoint == nil {
		return nil
	}
	var ids []string
	for _, s := range e.streams {
		ids = append(ids, s.id)
	}
	from, earlier, err := e.cfg.Checkpoint.Start(ids)
	if err != nil {
		return err
	}
	e.progress.earlier = earlier
	if before := earlier.Done + earlier.Skipped + earlier.Rejected; before < e.estimate.Items {
		e.estimate.Items -= before // what is left
	} else {
		e.estimate.Items = 0 // not known
	}
	for _, s := range e.streams {
		for _, m := range from[s.id] {
			s.latest.add(m)
		}
	}
	return nil
}

// watchStop turns a closed Stop into an end of reading, and into an end of
// everything when draining takes too long.
func (e *engine) watchStop(finished <-chan struct{}) {
	select {
	case <-finished:
		return
	case <-e.cfg.Stop: // a nil channel never fires
	}
	e.stopRead(errStopped)
	limit := e.cfg.Settings.DrainTime
	if limit <= 0 {
		limit = DefaultSettings().DrainTime
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-finished:
	case <-t.C:
		e.stopLanes(&Error{Class: ClassInterrupted, Code: "drain-time",
			Err:  fmt.Errorf("stopped; items that had been read could not be finished within %s", limit),
			Hint: "The unfinished items are not counted as done. Run the same command again."})
	}
}

func (e *engine) showProgress(finished <-chan struct{}) {
	t := time.NewTicker(e.cfg.ProgressEvery)
	defer t.Stop()
	for {
		select {
		case <-finished:
			e.cfg.Progress(e.snapshot())
			return
		case <-t.C:
			e.cfg.Progress(e.snapshot())
		}
	}
}

func (e *engine) snapshot() Snapshot {
	// Verdicts are loaded before what was read, so that a snapshot taken in
	// mid-run never shows more verdicts than items.
	s := Snapshot{
		Elapsed: time.Since(e.began),
		Done:    e.done.Load(), Skipped: e.skipped.Load(), Rejected: e.rejected.Load(), BytesDone: e.bytesDone.Load(),
		Retried: e.retried.Load(), StreamsDone: int(e.ended.Load()), Reopened: e.reopened.Load(),
		Streams: len(e.streams), Estimate: e.estimate,
	}
	s.Read, s.BytesRead, s.Filtered = e.read.Load(), e.bytesRead.Load(), e.filtered.Load()
	return s
}

// readAll reads the streams, StreamLimit at a time, until all have ended.
func (e *engine) readAll(ctx context.Context) {
	var reading sync.WaitGroup
	slots := make(chan struct{}, e.cfg.Settings.StreamLimit)
	for _, s := range e.streams {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			s.err = context.Cause(ctx)
			continue
		}
		reading.Go(func() {
			defer func() { <-slots }()
			if s.err = s.run(ctx); s.err == nil {
				s.enterState(StreamComplete)
				e.ended.Add(1)
				return
			}
			s.enterState(StreamFailed)
			if !e.cfg.KeepGoing {
				e.stopRead(s.err)
			}
		})
	}
	reading.Wait()
}

// outcome picks the error that explains the end: what stopped the lanes, then
// what stopped the reading, then the streams' own.
func (e *engine) outcome(ctx, laneCtx, readCtx context.Context) error {
	if ctx.Err() != nil {
		return &Error{Class: ClassInterrupted, Code: "cancelled", Err: errors.New("stopped at once; items that had been read may be unfinished"),
			Hint: "Items that are not counted as done are not known to be at the destination. Run the same command again."}
	}
	if laneCtx.Err() != nil {
		if e.circuit.broken.Load() {
			return errors.Join(context.Cause(laneCtx), e.circuit.err())
		}
		return context.Cause(laneCtx)
	}
	var failed []error
	for _, s := range e.streams {
		// Streams that read the same file fail of the same thing: it is said once.
		said := func(f error) bool { return f.Error() == s.err.Error() }
		if s.err != nil && !errors.Is(s.err, errStopped) && !slices.ContainsFunc(failed, said) {
			failed = append(failed, s.err)
		}
	}
	if readCtx.Err() != nil {
		cause := context.Cause(readCtx)
		if !errors.Is(cause, errStopped) {
			return cause
		}
		if len(e.streams) > 0 && e.allComplete() {
			return nil // the signal came when everything had been read
		}
		if len(failed) > 0 {
			return errors.Join(append([]error{cause}, failed...)...)
		}
		return cause
	}
	return errors.Join(failed...)
}

func (e *engine) allComplete() bool {
	for _, s := range e.streams {
		if s.err != nil {
			return false
		}
	}
	return true
}

// Check asks source and sink whether they can be used, without changing
// anything. Either may be nil.
func Check(ctx context.Context, source Source, sink Sink) error {
	var errs [2]error
	var wg sync.WaitGroup
	for i, v := range []any{source, sink} {
		if c, ok := As[Checker](v); ok {
			wg.Go(func() { errs[i] = c.Check(ctx) })
		}
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	return CheckLayout(ctx, source, sink)
}

// route returns the lane of an item: by the sink's own router, else by vbucket,
// else by key, so that a vbucket or key never has two writes in flight
// (invariant 5). Where keys do not come again any lane will do.
func (e *engine) route(p *parcel, it *Item) (int, error) {
	if e.router != nil {
		n := e.router.Route(it)
		if n < 0 || n >= len(e.lanes) {
			return 0, &Error{Code: "route", Err: fmt.Errorf("the sink routed an item to lane %d of %d", n, len(e.lanes))}
		}
		return n, nil
	}
	if len(e.lanes) == 1 {
		return 0, nil
	}
	if e.distinct {
		return e.homes.idlest(p), nil
	}
	if it.VBucket != NoVBucket {
		return e.homes.home(p, it.VBucket), nil
	}
	return int(maphash.Bytes(e.seed, it.Key) % uint64(len(e.lanes))), nil
}

// Spread returns the lane of a vbucket where vbuckets have fixed lanes: the sum of its
// digits to the base of the number of lanes. Neighbours have different lanes, and so have vbuckets that are a
// power of two apart. That matters since several streams begin at such vbuckets and
// go on side by side: by the last digit alone all would keep to the same lane.
func Spread(vb, lanes int) int {
	if lanes == 1 {
		return 0
	}
	sum := 0
	for ; vb > 0; vb /= lanes {
		sum += vb % lanes
	}
	return sum % lanes
}

// streamRun reads one stream.
type streamRun struct {
	e       *engine
	stream  Stream
	id      string
	err     error // set once reading has ended
	state   atomic.Int32
	perLane []laneShare
	latest  markSet           // the newest mark of each part that was read, now or by an earlier run
	open    map[uint16]uint64 // where the parts stand that have a mark of this run and are not complete

	mu      sync.Mutex
	nextSeq uint64          // of the next batch
	firstIn uint64          // sequence number of window[0]
	window  []waiting       // batches that are not settled, in order
	lost    map[uint16]bool // vbuckets of which an item is not written: see circuit
	lostAll bool
	moved   atomic.Bool // the sink changed an item's vbucket
}

// waiting is a batch in the order of its stream, settled or not.
type waiting struct {
	settled bool
	marks   []Mark
}

// run opens and reads the stream until it is complete, opening it again after
// errors that another try may mend.
func (s *streamRun) run(ctx context.Context) error {
	set := &s.e.cfg.Settings
	progress := s.progress()
	pause := backoff{min: set.RetryMin, max: set.RetryMax}
	attempt, reached := 0, time.Now()
	for {
		s.enterState(StreamReading)
		err := s.stream.Open(ctx, s.latest.marks)
		if err == nil {
			err = s.readToEnd(ctx)
		}
		cerr := s.stream.Close()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			return cerr
		}
		if !IsRetryable(err) {
			return err
		}
		if p := s.progress(); p > progress {
			progress, attempt, reached = p, 0, time.Now()
			pause.reset()
		}
		// A node that is down may come back, or be failed over, which takes its
		// time; one that answers and does not deliver will hardly do so later.
		if ClassOf(err) == ClassUnreachable {
			if waited := time.Since(reached); waited >= set.RetryTime {
				return gaveUp(err, "given up after "+waited.Round(time.Millisecond).String())
			}
		} else {
			reached = time.Now()
			if attempt++; attempt >= set.StreamAttempts {
				if attempt > 1 {
					return gaveUp(err, fmt.Sprintf("given up after %d attempts", attempt))
				}
				return err
			}
		}
		s.e.cfg.Log.Warn("a source stream broke and is opened again", "stream", s.id, "attempt", attempt, "reason", err)
		s.e.reopened.Add(1)
		s.enterState(StreamPausing)
		if err := pause.wait(ctx); err != nil {
			return context.Cause(ctx)
		}
	}
}

func (s *streamRun) enterState(st StreamState) { s.state.Store(int32(st)) }

func gaveUp(err error, after string) error {
	return &Error{Class: ClassOf(err), Code: CodeOf(err), Hint: HintOf(err), Err: fmt.Errorf("%s: %w", after, err)}
}

func (s *streamRun) progress() int {
	if p, ok := As[Progresser](s.stream); ok {
		return p.Progress()
	}
	return 0
}

func (s *streamRun) readToEnd(ctx context.Context) error {
	for {
		p, err := s.e.budget.take(ctx, s.e.arena)
		if err != nil {
			return err
		}
		err = s.stream.Read(ctx, p.batch)
		if rerr := s.pass(ctx, p); rerr != nil {
			return rerr
		}
		// Only io.EOF itself is the proven end: what wraps it is a connection or a
		// file that ended too early (invariant 4).
		if err == io.EOF {
			return s.proven()
		}
		if err != nil {
			return err
		}
	}
}

// proven refuses an end of the stream at which a part has a mark and is not complete
// (invariant 4). Marks of earlier runs may be of parts that another stream has now.
func (s *streamRun) proven() error {
	for vb, at := range s.open {
		return &Error{Code: "early-end", Op: "read " + s.id, Err: fmt.Errorf("the source ended at %d of %s, which it had not proven to be complete", at, partName(vb)),
			Hint: "This is a defect of the source."}
	}
	return nil
}

func partName(vb uint16) string {
	if vb == NoVBucket {
		return "its items"
	}
	return fmt.Sprintf("vbucket %d", vb)
}

// pass routes what was read to the lanes.
func (s *streamRun) pass(ctx context.Context, p *parcel) error {
	e, b := s.e, p.batch
	if len(b.Items) == 0 && len(b.Marks) == 0 {
		e.budget.give(p, e.arena, false, e.cfg.Scribble)
		return nil
	}
	if e.unpack {
		b.Unpack()
	}
	if err := e.budget.charge(ctx, p); err != nil {
		e.budget.give(p, e.arena, false, e.cfg.Scribble)
		return err
	}
	s.enter(p)
	for rest := b.Items; len(rest) > 0; {
		n, err := e.cfg.Limits.wait(ctx, rest)
		if err != nil {
			// The run ends. What has not passed the limits was not read, so no mark
			// may pass this batch: it stays unsettled.
			return err
		}
		if err := s.route(p, len(b.Items)-len(rest), n); err != nil {
			s.settle(p)
			return err
		}
		rest = rest[n:]
	}
	s.settle(p)
	return nil
}

// route queues n items of a batch, from the given one on. The batch is open as
// long as the caller holds its share, so that a fast lane cannot give it back
// while others still get their items.
func (s *streamRun) route(p *parcel, from, n int) error {
	e, b := s.e, p.batch
	for i := range s.perLane {
		s.perLane[i] = laneShare{from: len(p.which[i])}
	}
	broken := e.circuit.broken.Load()
	var bytes, filtered uint64
	lane, laneVB := -1, NoVBucket // the lane of vbucket laneVB, if any
	for i := from; i < from+n; i++ {
		it := &b.Items[i]
		if e.cfg.Filter != nil && !e.cfg.Filter(it) {
			filtered++
			continue
		}
		vb := it.VBucket
		if e.router != nil || vb != laneVB || lane < 0 || vb == NoVBucket && !e.distinct {
			var err error
			if lane, err = e.route(p, it); err != nil {
				e.stopLanes(err)
				return err
			}
			laneVB = vb
		}
		if it.VBucket != vb && !s.moved.Load() {
			s.moved.Store(true)
		}
		bytes += uint64(it.Size())
		if broken && s.dropped(it) {
			continue
		}
		s.perLane[lane].bytes += int64(it.Size())
		p.which[lane] = append(p.which[lane], int32(i))
	}
	e.read.Add(uint64(n) - filtered)
	e.filtered.Add(filtered)
	e.bytesRead.Add(bytes)
	for lane, share := range s.perLane {
		if which := p.which[lane][share.from:]; len(which) > 0 {
			atomic.AddInt32(&p.open, 1)
			e.lanes[lane].enqueue(p, which, share.bytes)
		}
	}
	return nil
}

// enter gives the batch its place in the order of the stream.
func (s *streamRun) enter(p *parcel) {
	w := waiting{}
	for _, m := range p.batch.Marks {
		m.State = append([]byte(nil), m.State...)
		w.marks = append(w.marks, m)
		s.latest.add(m)
		if m.Complete {
			delete(s.open, m.VBucket)
		} else {
			if s.open == nil {
				s.open = make(map[uint16]uint64)
			}
			s.open[m.VBucket] = m.Seqno
		}
	}
	s.mu.Lock()
	p.stream, p.seq = s, s.nextSeq
	s.nextSeq++
	s.window = append(s.window, w)
	s.mu.Unlock()
	p.which = slices.Grow(p.which, len(s.e.lanes))[:len(s.e.lanes)]
	for i := range p.which {
		p.which[i] = p.which[i][:0]
	}
	atomic.StoreInt32(&p.open, 1)
	p.lane = -1
}

// laneShare is what one lane gets of the items that are being routed: of its
// indices in the parcel those from the given one on.
type laneShare struct {
	from  int
	bytes int64
}

// settle gives up one share of a batch. With the last one the batch is settled:
// its memory goes back and the marks of the contiguous settled prefix are
// reported (invariant 2).
func (s *streamRun) settle(p *parcel) {
	if atomic.AddInt32(&p.open, -1) > 0 {
		return
	}
	seq := p.seq
	s.e.homes.leave(p)
	s.e.budget.give(p, s.e.arena, true, s.e.cfg.Scribble)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.window[seq-s.firstIn].settled = true
	n := 0
	var marks []Mark
	for n < len(s.window) && s.window[n].settled {
		marks = append(marks, s.window[n].marks...)
		n++
	}
	if n == 0 {
		return
	}
	s.firstIn += uint64(n)
	s.window = s.window[:copy(s.window, s.window[n:])]
	if len(marks) == 0 {
		return
	}
	reached := s.tellLost(marks)
	if s.e.cfg.OnMarks != nil && len(reached) > 0 {
		s.e.cfg.OnMarks(s.id, reached)
	}
	if s.e.cfg.Checkpoint != nil && len(reached) > 0 {
		s.e.progress.reach(s.id, reached)
	}
	if a, ok := As[Acknowledger](s.stream); ok {
		// An error means that the stream is broken; its Read will say so.
		if err := a.Acknowledge(context.Background(), marks); err != nil {
			s.e.cfg.Log.Debug("acknowledge", "stream", s.id, "reason", err)
		}
	}
}

// backoff is a pause that doubles, with jitter.
type backoff struct {
	min, max, next time.Duration
}

func (b *backoff) reset() { b.next = 0 }

func (b *backoff) wait(ctx context.Context) error {
	if b.next == 0 {
		b.next = max(b.min, time.Millisecond)
	}
	d := b.next/2 + rand.N(b.next/2+1)
	b.next = min(b.next*2, max(b.max, b.min, time.Millisecond))
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
