package compare

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cbpump/cbpump/pump"
)

// The two sides, as indexes.
const (
	sideSource = iota
	sideSink
)

var sideNames = [2]string{"source", "destination"}

// pass is one reading of both sides.
type pass struct {
	*runner
	widths [2]int // of the states of each side
	wanted *bloom // nil: all keys
	lanes  [2][]*lane
	looked bool // the destination is asked for the source's keys
}

// newPass prepares a reading. memory is what the records may take.
func (r *runner) newPass(widths [2]int, wanted *bloom, values bool, memory int64) (*pass, error) {
	p := &pass{runner: r, widths: widths, wanted: wanted, looked: r.cfg.Sink.Look != nil}
	share := memory / int64(2*r.parallel)
	for side := range p.lanes {
		for range r.parallel {
			l := &lane{p: p, side: side, store: newStore(r.dir, partitions, widths[side], share)}
			p.lanes[side] = append(p.lanes[side], l)
			if values && side == sideSource {
				v, err := newValueFile(r.dir)
				if err != nil {
					return p, err
				}
				l.values = v
			}
		}
	}
	return p, nil
}

func (p *pass) close() error {
	var errs []error
	for side := range p.lanes {
		for _, l := range p.lanes[side] {
			errs = append(errs, l.store.close())
			if l.values != nil {
				errs = append(errs, l.values.file.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// laneOf is the lane that has a partition: each belongs to one.
func (r *runner) laneOf(partition int) int { return partition % r.parallel }

// read reads both sides to their ends. The error is nil only if both were read
// whole (invariant 4).
func (p *pass) read(ctx context.Context, sides [2]*opened) error {
	g, gctx := errgroup.WithContext(ctx)
	for side, o := range sides {
		if o.source == nil {
			continue
		}
		set := p.cfg.Settings
		if !p.looked {
			set.Memory /= 2
		}
		g.Go(func() error {
			source := o.source
			o.source = nil // Run closes it
			_, err := pump.Run(gctx, pump.Config{
				Source: source, Sink: &collector{p: p, side: side, looker: sides[sideSink].looker}, Settings: set,
				Filter: p.filter(), Log: p.cfg.Log.Named(sideNames[side]), Stop: p.cfg.Stop, Limits: p.cfg.Limits,
				Progress: func(s pump.Snapshot) { p.progress(side, s) }, ProgressEvery: p.cfg.ProgressEvery,
				Monitor: p.cfg.Monitors[side],
			})
			return unreadable(side, err)
		})
	}
	err := g.Wait()
	if err != nil && ctx.Err() != nil {
		return &pump.Error{Class: pump.ClassInterrupted, Code: "cancelled", Err: errors.New("stopped before both sides were read; nothing is known about whether they are equal")}
	}
	if err != nil {
		return err
	}
	for _, l := range p.lanes[sideSource] {
		if l.values != nil {
			if err := l.values.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// unreadable is the error of a side that was not read whole. One that is partial
// must not look like a difference: whatever was left out was not compared.
func unreadable(side int, err error) error {
	if err == nil {
		return nil
	}
	e := &pump.Error{Class: pump.ClassOf(err), Code: pump.CodeOf(err), Op: "compare: read the " + sideNames[side], Err: err}
	if e.Class == pump.ClassPartial {
		// Not wrapped: its class would count.
		return &pump.Error{Code: "not-whole", Op: e.Op, Err: plainIO(err), Hint: pump.HintOf(err)}
	}
	return e
}

// filter chooses the items of a reading.
func (p *pass) filter() func(*pump.Item) bool {
	given, wanted := p.cfg.Filter, p.wanted
	if wanted == nil {
		return given
	}
	return func(it *pump.Item) bool {
		return (given == nil || given(it)) && wanted.has(p.identity(it))
	}
}

// collector is the sink of a reading. It implements pump.Sink and pump.Router.
type collector struct {
	p      *pass
	side   int
	looker pump.Looker // nil unless the destination is asked for keys
}

// Lanes returns the lanes of the side, whatever their number.
func (c *collector) Lanes(ctx context.Context, _ int) ([]pump.Lane, error) {
	var lanes []pump.Lane
	for i, l := range c.p.lanes[c.side] {
		if c.looker != nil {
			look, err := c.looker.Look(ctx)
			if err != nil {
				return lanes, err
			}
			l.look, l.theirs = look, c.p.lanes[sideSink][i].store
		}
		lanes = append(lanes, l)
	}
	return lanes, nil
}

// Route gives every key the lane of its partition, so that the records of a key
// stay in order (invariant 5).
func (c *collector) Route(it *pump.Item) int {
	return c.p.laneOf(partitionOf(c.p.identity(it)))
}

// TakeDefinitions leaves design documents and indexes alone: they are not compared.
func (c *collector) TakeDefinitions(context.Context, []pump.Definition) ([]pump.Definition, error) {
	return nil, nil
}

func (c *collector) Close() error { return nil }

// identity is what a key is found by on both sides: with its vbucket, where both
// have the same number of them, since a key in the wrong one is found by nobody.
func (r *runner) identity(it *pump.Item) uint64 {
	h := r.seeds.hash(it.Key, it.Collection)
	if r.exact {
		h = mix(h + uint64(it.VBucket))
	}
	return h
}

// lane makes records of items.
type lane struct {
	p      *pass
	side   int
	store  *store
	values *valueFile  // nil: values are not kept
	look   pump.Lookup // nil: the destination is read
	theirs *store      // for what look finds

	state       State
	scratch     []byte
	collections map[*pump.Collection]uint16
}

// Write records the items, and what the destination holds of their keys where it
// has to be asked.
func (l *lane) Write(ctx context.Context, b *pump.Batch) error {
	if l.look != nil {
		var failed error
		err := l.look.Find(ctx, b.Items, func(i int, have *pump.Item) {
			it := &b.Items[i]
			have.Key, have.VBucket, have.Collection = it.Key, it.VBucket, it.Collection
			if err := l.record(l.theirs, sideSink, have); err != nil && failed == nil {
				failed = err
			}
		})
		switch {
		case failed != nil:
			return failed
		case err != nil && ctx.Err() == nil && pump.IsRetryable(err):
			// What was found is found again: the last record of a key counts.
			b.SettleRest(pump.Retry, err)
			return nil
		case err != nil:
			return unreadable(sideSink, err)
		}
	}
	for i := range b.Items {
		if err := l.record(l.store, l.side, &b.Items[i]); err != nil {
			return err
		}
		b.Done(i)
	}
	return nil
}

// Close closes the connection for questions.
func (l *lane) Close() error {
	if l.look == nil {
		return nil
	}
	look := l.look
	l.look = nil
	return look.Close()
}

// record appends the record of an item.
func (l *lane) record(to *store, side int, it *pump.Item) error {
	hash := l.p.identity(it)
	l.scratch = l.p.seeds.stateOf(it, &l.state, l.scratch)
	width := l.p.widths[side]
	if width == digestWidth {
		rec, err := to.add(partitionOf(hash), headSize+width)
		if err != nil {
			return err
		}
		putHead(rec, hash, 0, 0)
		l.p.putDigest(rec[headSize:], hash, &l.state)
		return nil
	}
	collection, err := l.collection(it.Collection)
	if err != nil {
		return err
	}
	rec, err := to.add(partitionOf(hash), headSize+width+len(it.Key))
	if err != nil {
		return err
	}
	putHead(rec, hash, collection, len(it.Key))
	state := rec[headSize : headSize+width]
	clear(state)
	l.state.put(state)
	copy(rec[headSize+width:], it.Key)
	if l.values != nil && width == itemWidth && it.Op == pump.Mutation {
		at, err := l.values.add(it)
		if err != nil {
			return err
		}
		at.file, at.datatype = uint16(l.p.laneOf(partitionOf(hash))), it.Datatype
		at.put(state[fullWidth:])
	}
	return nil
}

// putDigest writes the state of a digest. Deleted items, and those whose time is
// over, count as absent: they add nothing.
func (r *runner) putDigest(p []byte, hash uint64, s *State) {
	rules := r.rules()
	live := rules.live(s)
	var sum uint64
	switch {
	case live:
		sum = digest(hash, s, r.fields)
	case r.cfg.Tombstones && s.Op != pump.Mutation:
		sum = ^digest(hash, s, r.fields&(pump.FieldCAS|pump.FieldRev))
	}
	binary.LittleEndian.PutUint64(p, sum)
	binary.LittleEndian.PutUint16(p[8:], s.VBucket)
	p[10] = 0
	if live {
		p[10] = 1
	}
}

func (l *lane) collection(c *pump.Collection) (uint16, error) {
	if c == nil {
		return 0, nil
	}
	if n, ok := l.collections[c]; ok {
		return n, nil
	}
	n, err := l.p.interned.number(c)
	if err == nil {
		const most = 10000 // sources share values; one that does not must not fill the memory
		if l.collections == nil || len(l.collections) >= most {
			l.collections = make(map[*pump.Collection]uint16)
		}
		l.collections[c] = n
	}
	return n, err
}

// interned numbers the collections of both sides by their names; 0 is the default
// collection.
type interned struct {
	mu    sync.Mutex
	known map[pump.Collection]uint16
	all   []*pump.Collection
}

func (n *interned) number(c *pump.Collection) (uint16, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known == nil {
		n.known = map[pump.Collection]uint16{{Scope: "_default", Name: "_default"}: 0}
		n.all = []*pump.Collection{nil}
	}
	if i, ok := n.known[*c]; ok {
		return i, nil
	}
	if len(n.all) > 1<<16-1 {
		return 0, &pump.Error{Code: "collections", Op: "compare", Err: errors.New("there are more than 65,535 collections")}
	}
	own := *c
	i := uint16(len(n.all))
	n.known[own], n.all = i, append(n.all, &own)
	return i, nil
}

func (n *interned) collection(i uint16) *pump.Collection {
	if i == 0 {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.all[i]
}

// bloom tells keys that are not wanted from those that may be.
type bloom struct {
	bits []uint64
	mask uint64
}

// newBloom returns a filter for n keys of at most most bytes. A fuller one lets
// more keys pass that nobody wants; they cost temporary files, not correctness.
func newBloom(n uint64, most int64) *bloom {
	words := uint64(64)
	for words*64 < n*16 && int64(words)*16 <= most {
		words *= 2
	}
	return &bloom{bits: make([]uint64, words), mask: words*64 - 1}
}

func (b *bloom) add(hash uint64) {
	for range 4 {
		b.bits[hash&b.mask>>6] |= 1 << (hash & 63)
		hash = mix(hash)
	}
}

func (b *bloom) has(hash uint64) bool {
	for range 4 {
		if b.bits[hash&b.mask>>6]&(1<<(hash&63)) == 0 {
			return false
		}
		hash = mix(hash)
	}
	return true
}
