package compare

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/cbpump/cbpump/pump"
)

// Mode is how closely is compared.
type Mode string

// The modes.
const (
	Count  Mode = "count"  // numbers of live items
	Digest Mode = "digest" // a digest of each vbucket's live items
	Full   Mode = "full"   // key by key
)

// Modes lists them.
func Modes() []Mode { return []Mode{Count, Digest, Full} }

// Side is one of the two things that are compared. It has either Open or, the
// destination only, Look.
type Side struct {
	// Open opens it for reading: those vbuckets that are listed, where it knows
	// vbuckets, or all (nil). It is called again for each reading; Run closes what it
	// returns.
	Open func(ctx context.Context, vbuckets []uint16) (pump.Source, error)
	// Look opens a destination that can only be asked for keys: the sink must have
	// the ability pump.Looker.
	Look func(ctx context.Context) (pump.Sink, error)
	// Fields are those that the side keeps and tells at most; 0 means all. What an
	// opened source says of itself (pump.FieldTeller) counts too.
	Fields pump.Fields
}

// Config is one comparison.
type Config struct {
	Source, Sink Side
	Mode         Mode // Full if empty

	Filter   func(*pump.Item) bool // leaves an item out when it returns false; called concurrently
	Settings pump.Settings         // of both readings, which share its memory
	Limits   *pump.Limits          // of both readings together; nil: none
	Memory   int64                 // bytes for records, beyond those of Settings; 0: 64 MiB
	Dir      string                // for temporary files; "": the system's folder for them
	Threads  int                   // for joining; 0: as many as there are processors

	// Tombstones compares CAS and revision of deletions that both sides tell.
	Tombstones bool
	// Items gives Difference.Item, the source's whole item, for repairs.
	Items bool
	// OnDifference is told each difference; Full only. One call at a time; what it is
	// given is valid until it returns. An error ends the comparison.
	OnDifference func(*Difference) error
	// Excuse says that a difference does not count. One call at a time.
	Excuse func(*Difference) bool

	Log           hclog.Logger    // nil: nothing is logged
	Stop          <-chan struct{} // when closed, ends the comparison with an error of ClassInterrupted
	Progress      func(Progress)  // one call at a time
	ProgressEvery time.Duration
	Monitors      [2]*pump.Monitor // show what the readings of source and destination are doing; may be nil
	Now           func() time.Time // what decides whether an item's time is over; nil: time.Now
}

// Progress is how far a comparison has come.
type Progress struct {
	Second bool // the differing keys are being looked at again
	Sides  [2]pump.Snapshot
}

// Difference is a key that the sides do not agree about.
type Difference struct {
	Kind       Kind
	Fields     pump.Fields // what differs; of a missing one FieldDeleted if the destination says that it is deleted
	VBucket    uint16
	Collection *pump.Collection
	Key        []byte
	// What each side said last, nil: nothing.
	Source, Sink *State
	// Item is the source's item, a deletion where it says so; nil if the source
	// does not have the key, or Config.Items is off.
	Item *pump.Item
}

// Totals are those of one side.
type Totals struct {
	Read uint64 // items, several of one key too; 0 where servers have counted
	Live uint64 // keys with an item that clients can read
}

// VBucket is what was found of one vbucket.
type VBucket struct {
	VBucket                   uint16
	Live                      [2]uint64 // of source and destination
	Missing, Extra, Different uint64    // Full
	Differs                   bool      // Count, Digest
}

// Skipped is something that was not compared.
type Skipped struct {
	Field pump.Fields // one, or 0
	Items uint64      // keys whose field could not be compared; 0: none could
	Why   string
}

// Report is the outcome.
type Report struct {
	Mode    Mode
	Elapsed time.Duration
	Sides   [2]Totals
	Counted bool        // by the servers: nothing was read
	Fields  pump.Fields // that were compared; none with Count
	Skipped []Skipped

	Same, Missing, Extra, Different uint64 // keys; Full
	// Changed are keys that first differed and agreed when they were looked at again,
	// or that Excuse let pass.
	Changed uint64
	ByField [7]uint64 // different keys by field, in the order of the bits of pump.Fields

	// ExtraUnknown: the destination could only be asked for the source's keys, so
	// what it has beyond them is not known.
	ExtraUnknown bool
	// Unequal are the sums that differ where there are no vbuckets to name (Count,
	// Digest).
	Unequal  bool
	VBuckets []VBucket // of which anything is known, in order
	Spilled  int64     // bytes that went through temporary files
}

// Equal reports that no difference was found.
func (r *Report) Equal() bool {
	return r.Missing+r.Extra+r.Different == 0 && !r.Unequal && len(r.Differing()) == 0
}

// Differing lists the vbuckets that differ.
func (r *Report) Differing() []uint16 {
	var out []uint16
	for i := range r.VBuckets {
		if v := &r.VBuckets[i]; v.Differs || v.Missing+v.Extra+v.Different > 0 {
			out = append(out, v.VBucket)
		}
	}
	return out
}

// runner is one comparison under way.
type runner struct {
	cfg      Config
	seeds    seeds
	parallel int // lanes of a side, and joins at a time
	dir      *folder
	interned interned
	fields   pump.Fields
	exact    bool // both sides deal keys out to vbuckets alike
	report   *Report

	mu     sync.Mutex // guards last and calls of Progress
	last   Progress
	calls  sync.Mutex // OnDifference and Excuse
	layout layout
}

// layout is which vbuckets have candidates, and whether both sides have the same.
type layout struct {
	vbs             map[uint16]bool
	agree, disagree bool
}

// opened is a side that is open.
type opened struct {
	source pump.Source // nil once a reading has taken it over
	sink   pump.Sink
	looker pump.Looker
}

func (o *opened) close() error {
	var errs []error
	if o.source != nil {
		errs = append(errs, o.source.Close())
		o.source = nil
	}
	if o.sink != nil {
		errs = append(errs, o.sink.Close())
		o.sink = nil
	}
	return errors.Join(errs...)
}

// Run compares. The report is nil unless both sides were read whole; that they
// differ is no error.
func Run(ctx context.Context, cfg Config) (_ *Report, err error) {
	began := time.Now()
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Mode == "" {
		cfg.Mode = Full
	}
	if !slices.Contains(Modes(), cfg.Mode) {
		return nil, pump.Usagef("compare: the mode %q is none of count, digest and full", cfg.Mode)
	}
	if cfg.Memory <= 0 {
		cfg.Memory = 64 << 20
	}
	if cfg.Settings == (pump.Settings{}) {
		cfg.Settings = pump.DefaultSettings()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &runner{cfg: cfg, seeds: newSeeds(), parallel: cfg.Threads, report: &Report{Mode: cfg.Mode}}
	if r.parallel <= 0 {
		r.parallel = min(8, max(2, runtime.GOMAXPROCS(0)))
	}
	r.parallel = min(r.parallel, partitions)
	if r.dir, err = newFolder(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if rerr := r.dir.remove(); err == nil {
			err = rerr
		}
	}()
	if cfg.Mode == Full {
		err = r.full(ctx)
	} else {
		err = r.sums(ctx)
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(r.report.VBuckets, func(a, b VBucket) int { return cmp.Compare(a.VBucket, b.VBucket) })
	r.report.Elapsed = time.Since(began)
	return r.report, nil
}

func (r *runner) rules() rules {
	return rules{fields: r.fields, tombstones: r.cfg.Tombstones, now: uint32(r.cfg.Now().Unix())}
}

func (r *runner) progress(side int, s pump.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last.Sides[side] = s
	if r.cfg.Progress != nil {
		r.cfg.Progress(r.last)
	}
}

// open opens both sides and finds out which fields can be compared. What it
// returns is to be closed whatever the error.
func (r *runner) open(ctx context.Context, vbs [2][]uint16) (sides [2]*opened, err error) {
	sides = [2]*opened{{}, {}}
	told := [2]pump.Fields{}
	for i, side := range [2]*Side{&r.cfg.Source, &r.cfg.Sink} {
		told[i] = side.Fields
		if told[i] == 0 {
			told[i] = pump.AllFields
		}
		o := sides[i]
		switch {
		case side.Look != nil && i == sideSink:
			if o.sink, err = side.Look(ctx); err != nil {
				return sides, unreadable(i, err)
			}
			looker, ok := pump.As[pump.Looker](o.sink)
			if !ok {
				return sides, pump.Usagef("compare: the destination can neither be read nor be asked for keys")
			}
			if err := pump.Check(ctx, nil, o.sink); err != nil {
				return sides, unreadable(i, err)
			}
			o.looker = looker
			told[i] &= looker.LookFields()
		case side.Open != nil:
			if o.source, err = side.Open(ctx, vbs[i]); err != nil {
				return sides, unreadable(i, err)
			}
			if t, ok := pump.As[pump.FieldTeller](o.source); ok {
				f, err := t.Fields(ctx)
				if err != nil {
					return sides, unreadable(i, err)
				}
				told[i] &= f
			}
		default:
			return sides, errors.New("compare: a side has nothing to open")
		}
	}
	r.fields = told[0] & told[1]
	if r.exact, err = sameLayout(ctx, sides); err != nil {
		return sides, err
	}
	r.report.Skipped = nil
	if r.cfg.Mode == Count {
		r.fields = 0
		return sides, nil
	}
	const ofItems = pump.AllFields &^ pump.FieldDeleted
	for f := pump.FieldValue; f < pump.FieldDeleted; f <<= 1 {
		if r.fields&f != 0 {
			continue
		}
		why := "neither side tells it"
		switch {
		case told[0]&f != 0:
			why = "the destination does not keep or tell it"
		case told[1]&f != 0:
			why = "the source does not tell it"
		}
		r.report.Skipped = append(r.report.Skipped, Skipped{Field: f, Why: why})
	}
	r.report.Fields = r.fields & ofItems
	return sides, nil
}

// sameLayout reports that both sides say how many vbuckets they have, and have as
// many.
func sameLayout(ctx context.Context, sides [2]*opened) (bool, error) {
	var n [2]int
	for i, o := range sides {
		c, ok := pump.As[pump.VBucketCounter](o.source)
		if !ok {
			return false, nil
		}
		var err error
		if n[i], err = c.VBucketCount(ctx); err != nil {
			return false, unreadable(i, err)
		}
	}
	return n[0] == n[1] && n[0] > 0, nil
}

// scan opens both sides and reads them.
func (r *runner) scan(ctx context.Context, p *pass, vbs [2][]uint16) (err error) {
	sides, err := r.open(ctx, vbs)
	defer func() {
		for _, o := range sides {
			if cerr := o.close(); err == nil {
				err = cerr
			}
		}
	}()
	if err != nil {
		return err
	}
	return p.read(ctx, sides)
}

// each calls f for the numbers below n, r.parallel at a time. Calls get the number
// of their worker.
func (r *runner) each(ctx context.Context, n int, f func(worker, i int) error) error {
	g, gctx := errgroup.WithContext(ctx)
	for w := range r.parallel {
		g.Go(func() error {
			// A worker has the partitions of one lane, whose stores one goroutine may use.
			for i := w; i < n; i += r.parallel {
				select {
				case <-r.cfg.Stop:
					return &pump.Error{Class: pump.ClassInterrupted, Code: "interrupted", Err: errors.New("stopped before everything was compared")}
				case <-gctx.Done():
					return context.Cause(gctx)
				default:
				}
				if err := f(w, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// sums compares counts or digests.
func (r *runner) sums(ctx context.Context) error {
	var bins [2]bins
	var vbs [2][]uint16
	// What differs is looked at a second time: a side may have been written to.
	for second := range 2 {
		var err error
		if bins, err = r.binsOf(ctx, vbs); err != nil {
			return err
		}
		if second > 0 {
			break
		}
		differ, named := bins[0].differ(bins[1])
		r.fill(bins)
		if len(differ) == 0 && named || equalBins(bins) && !r.exact {
			return nil
		}
		r.mu.Lock()
		r.last.Second = true
		r.mu.Unlock()
		if named {
			vbs = [2][]uint16{differ, differ}
		}
	}
	first := r.report.VBuckets
	r.fill(bins)
	if vbs[0] == nil {
		return nil
	}
	// The others agreed the first time, and not every side leaves them out.
	r.report.VBuckets = slices.DeleteFunc(r.report.VBuckets, func(v VBucket) bool { return !slices.Contains(vbs[0], v.VBucket) })
	for _, v := range first {
		if !slices.Contains(vbs[0], v.VBucket) {
			r.report.VBuckets = append(r.report.VBuckets, v)
		}
	}
	for side := range r.report.Sides {
		r.report.Sides[side].Live = 0
		for _, v := range r.report.VBuckets {
			r.report.Sides[side].Live += v.Live[side]
		}
	}
	return nil
}

// bins are the sums of one side by vbucket; pump.NoVBucket has what is in none.
type bins map[uint16]bin

type bin struct{ live, sum uint64 }

func (b bins) total() (t bin) {
	for _, x := range b {
		t.live += x.live
		t.sum += x.sum
	}
	return t
}

func equalBins(b [2]bins) bool { return b[0].total() == b[1].total() }

// differ lists the vbuckets whose sums differ; named is false where a side does not
// say in which vbucket its items are.
func (b bins) differ(o bins) (vbs []uint16, named bool) {
	if b[pump.NoVBucket].live+o[pump.NoVBucket].live > 0 {
		return nil, false
	}
	for vb, x := range b {
		if x != o[vb] {
			vbs = append(vbs, vb)
		}
	}
	for vb, x := range o {
		if _, ok := b[vb]; !ok && x != (bin{}) {
			vbs = append(vbs, vb)
		}
	}
	slices.Sort(vbs)
	return vbs, true
}

// fill puts sums into the report.
func (r *runner) fill(b [2]bins) {
	rep := r.report
	rep.VBuckets, rep.Unequal = nil, false
	for side := range b {
		rep.Sides[side].Live = b[side].total().live
	}
	differ, named := b[0].differ(b[1])
	if !named {
		rep.Unequal = !equalBins(b)
		return
	}
	if equalBins(b) && !r.exact {
		differ = nil // the sides deal keys out to different numbers of vbuckets
	}
	seen := map[uint16]bool{}
	for _, side := range b {
		for vb := range side {
			if !seen[vb] {
				seen[vb] = true
				_, d := slices.BinarySearch(differ, vb)
				rep.VBuckets = append(rep.VBuckets, VBucket{VBucket: vb, Live: [2]uint64{b[0][vb].live, b[1][vb].live}, Differs: d})
			}
		}
	}
}

// binsOf makes the sums: with Count by asking the servers, where both sides can be
// asked, else by reading.
func (r *runner) binsOf(ctx context.Context, vbs [2][]uint16) (b [2]bins, err error) {
	p, err := r.newPass([2]int{digestWidth, digestWidth}, nil, false, r.cfg.Memory/2)
	defer func() {
		if cerr := p.close(); err == nil {
			err = cerr
		}
	}()
	if err != nil {
		return b, err
	}
	sides, err := r.open(ctx, vbs)
	defer func() {
		for _, o := range sides {
			if cerr := o.close(); err == nil {
				err = cerr
			}
		}
	}()
	if err != nil {
		return b, err
	}
	if r.cfg.Mode == Count && r.cfg.Filter == nil {
		if b, ok, err := r.counted(ctx, sides); ok || err != nil {
			r.report.Counted = ok
			return b, err
		}
	}
	if err := p.read(ctx, sides); err != nil {
		return b, err
	}
	r.report.ExtraUnknown = p.looked
	for side := range b {
		b[side] = bins{}
		if !r.last.Second {
			r.report.Sides[side].Read = r.last.Sides[side].Read
		}
	}
	var mu sync.Mutex
	joins := r.joins(2, digestWidth)
	err = r.each(ctx, partitions, func(worker, i int) error {
		mine := [2]bins{{}, {}}
		err := joins[worker].run(p.inputs(i), i, func(t *table, at int) error {
			for side := range mine {
				if s := t.state(at, side); s != nil {
					vb := binary.LittleEndian.Uint16(s[8:])
					x := mine[side][vb]
					x.sum += binary.LittleEndian.Uint64(s)
					x.live += uint64(s[10])
					mine[side][vb] = x
				}
			}
			return nil
		})
		mu.Lock()
		defer mu.Unlock()
		for side := range mine {
			for vb, x := range mine[side] {
				y := b[side][vb]
				b[side][vb] = bin{x.live + y.live, x.sum + y.sum}
			}
		}
		return err
	})
	r.addSpilled(p, joins)
	if r.cfg.Mode == Count {
		for side := range b {
			for vb, x := range b[side] {
				b[side][vb] = bin{live: x.live}
			}
		}
	}
	return b, err
}

// counted asks both sides for their counts; ok is false where one cannot be asked.
func (r *runner) counted(ctx context.Context, sides [2]*opened) (b [2]bins, ok bool, err error) {
	var counters [2]pump.LiveCounter
	for side, o := range sides {
		if counters[side], ok = pump.As[pump.LiveCounter](o.source); !ok {
			return b, false, nil
		}
	}
	var g errgroup.Group
	var cannot [2]bool
	for side, c := range counters {
		g.Go(func() error {
			counts, err := c.LiveCounts(ctx)
			if errors.Is(err, errors.ErrUnsupported) {
				cannot[side] = true
				return nil
			}
			if err != nil {
				return unreadable(side, err)
			}
			b[side] = bins{}
			for vb, n := range counts {
				b[side][vb] = bin{live: n}
			}
			return nil
		})
	}
	err = g.Wait()
	return b, !cannot[0] && !cannot[1], err
}

func (r *runner) addSpilled(p *pass, joins []*join) {
	for side := range p.lanes {
		for _, l := range p.lanes[side] {
			r.report.Spilled += l.store.spilled
		}
	}
	for _, j := range joins {
		r.report.Spilled += j.spilled
	}
}

// A state of a candidate: what both sides said the first time.
const candidateWidth = 2*fullWidth + 1

// full compares key by key.
func (r *runner) full(ctx context.Context) (err error) {
	// Of each worker: the keys that differ.
	cands := make([]*store, r.parallel)
	for i := range cands {
		cands[i] = newStore(r.dir, partitions, candidateWidth, r.cfg.Memory/int64(8*r.parallel))
	}
	defer func() {
		for _, s := range cands {
			if cerr := s.close(); err == nil {
				err = cerr
			}
		}
	}()
	n, err := r.first(ctx, cands)
	if err != nil || n == 0 {
		return err
	}
	wanted := newBloom(n, r.cfg.Memory/8)
	var sc scanner
	for _, s := range cands {
		for i := range s.buckets {
			if err := sc.each(s, i, func(rec []byte) error {
				wanted.add(recordHash(rec))
				return nil
			}); err != nil {
				return err
			}
		}
	}
	return r.second(ctx, cands, wanted)
}

// tally is what one worker has found.
type tally struct {
	vbs  map[uint16]*VBucket
	same uint64
	not  skips
	layout
}

func (t *tally) vb(n uint16) *VBucket {
	v := t.vbs[n]
	if v == nil {
		v = &VBucket{VBucket: n}
		t.vbs[n] = v
	}
	return v
}

// first reads both sides whole and collects the keys that differ.
func (r *runner) first(ctx context.Context, cands []*store) (differing uint64, err error) {
	p, err := r.newPass([2]int{fullWidth, fullWidth}, nil, false, r.cfg.Memory/2)
	defer func() {
		if cerr := p.close(); err == nil {
			err = cerr
		}
	}()
	if err != nil {
		return 0, err
	}
	if err := r.scan(ctx, p, [2][]uint16{}); err != nil {
		return 0, err
	}
	r.report.ExtraUnknown = p.looked
	for side := range r.report.Sides {
		r.report.Sides[side].Read = r.last.Sides[side].Read
	}
	joins := r.joins(2, fullWidth)
	tallies := make([]tally, r.parallel)
	found := make([]uint64, r.parallel)
	for i := range tallies {
		tallies[i].vbs, tallies[i].layout.vbs = map[uint16]*VBucket{}, map[uint16]bool{}
	}
	rules := r.rules()
	err = r.each(ctx, partitions, func(worker, i int) error {
		t := &tallies[worker]
		return joins[worker].run(p.inputs(i), i, func(tb *table, at int) error {
			var states [2]State
			var have [2]*State
			for side := range states {
				if s := tb.state(at, side); s != nil {
					states[side].get(s)
					have[side] = &states[side]
				}
			}
			src, dst := have[0], have[1]
			vb := t.vb(vbucketOf(src, dst))
			for side, s := range have {
				if rules.live(s) {
					vb.Live[side]++
				}
			}
			if src != nil && dst != nil {
				t.agree = t.agree || src.VBucket == dst.VBucket
				t.disagree = t.disagree || src.VBucket != dst.VBucket
			}
			kind, _ := rules.judge(src, dst, &t.not)
			if kind == Same {
				if rules.live(src) {
					t.same++
				}
				return nil
			}
			found[worker]++
			t.layout.vbs[vb.VBucket] = true
			key := tb.key(at)
			rec, err := cands[worker].add(i, headSize+candidateWidth+len(key))
			if err != nil {
				return err
			}
			putHead(rec, recordHash(tb.arena[at:]), recordCollection(tb.arena[at:]), len(key))
			putCandidate(rec[headSize:], tb.state(at, 0), tb.state(at, 1))
			copy(rec[headSize+candidateWidth:], key)
			return nil
		})
	})
	r.addSpilled(p, joins)
	if err != nil {
		return 0, err
	}
	r.merge(tallies)
	for i := range found {
		differing += found[i]
	}
	return differing, nil
}

func putCandidate(p, src, dst []byte) {
	clear(p[:candidateWidth])
	if src != nil {
		p[0] |= 1
		copy(p[1:], src[:fullWidth])
	}
	if dst != nil {
		p[0] |= 2
		copy(p[1+fullWidth:], dst[:fullWidth])
	}
}

func vbucketOf(src, dst *State) uint16 {
	if src != nil && src.VBucket != pump.NoVBucket || dst == nil {
		return src.VBucket
	}
	return dst.VBucket
}

// merge puts what the workers have found into the report.
func (r *runner) merge(tallies []tally) {
	all := map[uint16]*VBucket{}
	r.layout = layout{vbs: map[uint16]bool{}}
	var not skips
	for i := range tallies {
		t := &tallies[i]
		for n, v := range t.vbs {
			have := all[n]
			if have == nil {
				have = &VBucket{VBucket: n}
				all[n] = have
			}
			have.Live[0] += v.Live[0]
			have.Live[1] += v.Live[1]
		}
		for n := range t.layout.vbs {
			r.layout.vbs[n] = true
		}
		r.layout.agree, r.layout.disagree = r.layout.agree || t.agree, r.layout.disagree || t.disagree
		r.report.Same += t.same
		not.cas, not.rev, not.datatype = not.cas+t.not.cas, not.rev+t.not.rev, not.datatype+t.not.datatype
	}
	for n, v := range all {
		r.report.Sides[0].Live += v.Live[0]
		r.report.Sides[1].Live += v.Live[1]
		if n != pump.NoVBucket {
			r.report.VBuckets = append(r.report.VBuckets, *v)
		}
	}
	for _, s := range []Skipped{
		{pump.FieldCAS, not.cas, "the source has none"},
		{pump.FieldRev, not.rev, "the source has none"},
		{pump.FieldDatatype, not.datatype, "the source does not know it, and the destination found JSON"},
	} {
		if s.Items > 0 {
			r.report.Skipped = append(r.report.Skipped, s)
		}
	}
}

// again lists the vbuckets to be read a second time; nil means all.
func (r *runner) again() []uint16 {
	if !r.exact && (r.layout.disagree || !r.layout.agree) || r.layout.vbs[pump.NoVBucket] {
		return nil
	}
	var out []uint16
	for vb := range r.layout.vbs {
		out = append(out, vb)
	}
	slices.Sort(out)
	return out
}

// second reads the keys that differed once more, and reports those that still do.
func (r *runner) second(ctx context.Context, cands []*store, wanted *bloom) (err error) {
	r.mu.Lock()
	r.last = Progress{Second: true}
	r.mu.Unlock()
	p, err := r.newPass([2]int{itemWidth, fullWidth}, wanted, r.cfg.Items, r.cfg.Memory/2)
	defer func() {
		if cerr := p.close(); err == nil {
			err = cerr
		}
	}()
	if err != nil {
		return err
	}
	vbs := r.again()
	skipped := r.report.Skipped
	if err := r.scan(ctx, p, [2][]uint16{vbs, vbs}); err != nil {
		return err
	}
	r.report.Skipped = skipped
	at := map[uint16]int{}
	for i := range r.report.VBuckets {
		at[r.report.VBuckets[i].VBucket] = i
	}
	rules := r.rules()
	joins := r.joins(4, itemWidth)
	err = r.each(ctx, partitions, func(worker, i int) error {
		in := append([]input{{store: cands[worker], bucket: i, candidates: true}}, p.inputs(i)...)
		var buf []byte
		return joins[worker].run(in, i, func(tb *table, e int) error {
			d := r.settle(tb, e, &rules)
			if d == nil {
				r.calls.Lock()
				r.report.Changed++
				r.calls.Unlock()
				return nil
			}
			d.Collection = r.interned.collection(recordCollection(tb.arena[e:]))
			d.Key = tb.key(e)
			if d.Source != nil && r.cfg.Items {
				var err error
				if d.Item, buf, err = p.item(d, tb.state(e, sideSource), buf); err != nil {
					return err
				}
			}
			return r.differs(d, at)
		})
	})
	r.addSpilled(p, joins)
	return err
}

// differs reports one difference.
func (r *runner) differs(d *Difference, at map[uint16]int) error {
	r.calls.Lock()
	defer r.calls.Unlock()
	rep := r.report
	if r.cfg.Excuse != nil && r.cfg.Excuse(d) {
		rep.Changed++
		return nil
	}
	var none VBucket
	v := &none
	if i, ok := at[d.VBucket]; ok {
		v = &rep.VBuckets[i]
	}
	switch d.Kind {
	case Missing:
		rep.Missing++
		v.Missing++
	case Extra:
		rep.Extra++
		v.Extra++
	default:
		rep.Different++
		v.Different++
		for i := range rep.ByField {
			if d.Fields&(1<<i) != 0 {
				rep.ByField[i]++
			}
		}
	}
	if r.cfg.OnDifference != nil {
		return r.cfg.OnDifference(d)
	}
	return nil
}

// settle judges a candidate by what both readings say. It returns nil where any
// two states of one side and the other agree: then one of them was only late.
func (r *runner) settle(tb *table, e int, rules *rules) *Difference {
	var states [4]State
	var have [4]*State
	for i := range states {
		if s := tb.state(e, i); s != nil {
			states[i].get(s)
			have[i] = &states[i]
		}
	}
	src, dst, src1, dst1 := have[0], have[1], have[2], have[3]
	var not skips
	kind, fields := rules.judge(src, dst, &not)
	if kind == Same {
		return nil
	}
	// Who changed in between has to have changed on both sides: a destination that
	// stays as it was cannot have come to agree.
	if k, _ := rules.judge(src1, dst, &not); k == Same {
		return nil
	}
	if k, _ := rules.judge(src, dst1, &not); k == Same {
		return nil
	}
	first := src
	if src == nil && dst == nil {
		first = src1
	}
	vb := pump.NoVBucket
	if first != nil || dst != nil {
		vb = vbucketOf(first, dst)
	}
	return &Difference{Kind: kind, Fields: fields, VBucket: vb, Source: src, Sink: dst}
}

// item makes the source's whole item of a difference. buf is used for its value
// and returned grown.
func (p *pass) item(d *Difference, state, buf []byte) (*pump.Item, []byte, error) {
	s := d.Source
	it := &pump.Item{
		Op: s.Op, Datatype: s.Datatype, VBucket: s.VBucket, Flags: s.Flags, Expiry: s.Expiry, CAS: s.CAS, RevSeqno: s.Rev, Seqno: s.Seqno,
		Key: d.Key, Collection: d.Collection,
	}
	if it.Op != pump.Mutation {
		return it, buf, nil
	}
	var at place
	at.get(state[fullWidth:])
	it.Datatype = at.datatype
	var err error
	it.Value, it.Meta, buf, err = p.lanes[sideSource][at.file].values.read(at, buf)
	return it, buf, err
}

// input is a list of records for a join.
type input struct {
	store      *store
	bucket     int
	side       int
	candidates bool // states of both sides from the first reading
}

// inputs are the records of a partition.
func (p *pass) inputs(partition int) []input {
	l := p.laneOf(partition)
	return []input{
		{store: p.lanes[sideSource][l].store, bucket: partition, side: sideSource},
		{store: p.lanes[sideSink][l].store, bucket: partition, side: sideSink},
	}
}

// join joins partitions, one after the other.
type join struct {
	r       *runner
	table   table
	sides   int
	width   int
	memory  int64
	scanner scanner
	splits  []*scanner // by depth: a split reads while the one above it does
	spilled int64
	states  []byte // of one candidate or record, filled up to the table's width
}

func (r *runner) joins(sides, width int) []*join {
	all := make([]*join, r.parallel)
	for i := range all {
		all[i] = &join{r: r, sides: sides, width: width, memory: r.cfg.Memory / int64(4*r.parallel), states: make([]byte, width)}
	}
	return all
}

// run joins the inputs of a partition and calls f for each key.
func (j *join) run(in []input, partition int, f func(t *table, at int) error) error {
	if err := j.at(in, 0, f); err != nil {
		return err
	}
	for _, x := range in {
		if err := x.store.drop(x.bucket); err != nil {
			return err
		}
	}
	return nil
}

// at joins what is at one depth, dealing it out by further bits of the hash as
// long as it is too much for the memory.
func (j *join) at(in []input, depth int, f func(t *table, at int) error) error {
	j.table.sides, j.table.width = j.sides, j.width
	var need int64
	for _, x := range in {
		b := &x.store.buckets[x.bucket]
		need += b.bytes + b.bytes/int64(headSize+x.store.width)*int64(j.table.cost())
	}
	if need > j.memory && depth < maxDepth {
		return j.split(in, depth, f)
	}
	t := &j.table
	t.reset(j.width, j.sides)
	// With candidates only their keys count: the rest passed a filter that is not
	// exact.
	only := in[0].candidates
	for _, x := range in {
		if err := j.scanner.each(x.store, x.bucket, func(rec []byte) error {
			key := rec[headSize+x.store.width:]
			at := t.find(recordHash(rec), recordCollection(rec), key, x.candidates || !only)
			if at < 0 {
				return nil
			}
			state := rec[headSize : headSize+x.store.width]
			if !x.candidates {
				j.set(at, x.side, state)
				return nil
			}
			for side := range 2 {
				if state[0]&(1<<side) != 0 {
					j.set(at, 2+side, state[1+side*fullWidth:1+(side+1)*fullWidth])
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	for at := 0; at < len(t.arena); at += t.size(at) {
		if err := f(t, at); err != nil {
			return err
		}
	}
	return nil
}

// set sets a state that may be narrower than the table's.
func (j *join) set(at, side int, state []byte) {
	clear(j.states[copy(j.states, state):])
	j.table.set(at, side, j.states)
}

// split deals the inputs out and joins the parts.
func (j *join) split(in []input, depth int, f func(t *table, at int) error) (err error) {
	const n = 1 << splitBits
	shift := 64 - partitionBits - splitBits*(depth+1)
	var parts []input
	defer func() {
		for _, x := range parts {
			j.spilled += x.store.spilled
			if cerr := x.store.close(); err == nil {
				err = cerr
			}
		}
	}()
	for len(j.splits) <= depth {
		j.splits = append(j.splits, &scanner{})
	}
	for _, x := range in {
		x.store, x.bucket = j.copyTo(x), 0
		parts = append(parts, x)
	}
	for i, x := range in {
		to := parts[i].store
		if err := j.splits[depth].each(x.store, x.bucket, func(rec []byte) error {
			dst, err := to.add(int(recordHash(rec)>>shift)&(n-1), len(rec))
			copy(dst, rec)
			return err
		}); err != nil {
			return err
		}
	}
	for b := range n {
		for i := range parts {
			parts[i].bucket = b
		}
		if err := j.at(parts, depth+1, f); err != nil {
			return err
		}
		for _, x := range parts {
			if err := x.store.drop(b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *join) copyTo(x input) *store {
	return newStore(j.r.dir, 1<<splitBits, x.store.width, j.memory/4)
}

// String says in a line what was found, for logs.
func (r *Report) String() string {
	if r.Mode == Full {
		return fmt.Sprintf("%d same, %d missing, %d extra, %d different", r.Same, r.Missing, r.Extra, r.Different)
	}
	return fmt.Sprintf("%d and %d items, %d vbuckets differ", r.Sides[0].Live, r.Sides[1].Live, len(r.Differing()))
}
