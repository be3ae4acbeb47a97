package pump

import (
	"context"
	"sync"
	"unsafe"
)

// budget bounds the bytes of all batches in flight (invariant 7). A batch is
// charged its arena before it is read into, and what it turned out to hold
// beyond that before it is routed.
type budget struct {
	mu     sync.Mutex
	freed  *sync.Cond
	limit  int64
	used   int64
	routed int  // batches that the lanes have: they come back by themselves
	grown  int  // batches that are being read and took more than their arena
	waited bool // somebody had to wait since waits was called
	idle   []*parcel
	most   int // items that a batch has held
}

// parcel is a batch of a source on its way: the engine's side of it.
type parcel struct {
	batch  *Batch
	stream *streamRun
	seq    uint64    // position in its stream
	open   int32     // lanes that still have items of it, and the router; atomic
	cost   int64     // bytes charged
	which  [][]int32 // by lane, the indices of its items
	grown  bool      // it counts among budget.grown

	vbuckets []uint16 // that have their lanes because of it: see homes
	lane     int      // that they get, -1: not chosen yet

	// ctx is that of the read that is under way: a batch grows within Read.
	ctx context.Context
}

// itemCost is what one item costs beside its bytes: its header in the source's
// batch, its index for a lane, and the copy that the lane writes from, in an array with
// a quarter to spare, with what lanes note of each item.
const itemCost = int64(unsafe.Sizeof(Item{})) + 4 + int64(unsafe.Sizeof(Item{}))*5/4 + 16

func newBudget(limit int64) *budget {
	b := &budget{limit: limit}
	b.freed = sync.NewCond(&b.mu)
	return b
}

func (b *budget) setLimit(limit int64) {
	b.mu.Lock()
	b.limit = limit
	b.freed.Broadcast()
	b.mu.Unlock()
}

// waits reports whether readers have had to wait for memory since the last call.
func (b *budget) waits() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.waited
	b.waited = false
	return w
}

// take waits until a batch with an arena of size bytes may be filled.
func (b *budget) take(ctx context.Context, size int) (*parcel, error) {
	if err := b.wait(ctx, int64(size), func() bool { return b.used == 0 }); err != nil {
		return nil, err
	}
	defer b.mu.Unlock()
	if n := len(b.idle); n > 0 {
		p := b.idle[n-1]
		b.idle = b.idle[:n-1]
		p.cost, p.ctx = int64(size), ctx
		return p, nil
	}
	p := &parcel{batch: NewBatch(size), cost: int64(size), ctx: ctx}
	p.batch.Items = make([]Item, 0, b.most)
	p.batch.grow = func(n int) { b.grow(p, int64(n)) }
	return p, nil
}

// grow waits until a batch may take n bytes beyond its arena, for an item that is
// larger: else each stream would hold one such item, however little memory there
// is. One is let through when nothing else will come back by itself. When the read
// is over anyway it does not wait; Read sees that for itself.
func (b *budget) grow(p *parcel, n int64) {
	others := func() bool { return b.grown == 0 || b.grown == 1 && p.grown }
	if b.wait(p.ctx, n, func() bool { return b.routed == 0 && others() }) != nil {
		return
	}
	p.cost += n
	if !p.grown {
		p.grown = true
		b.grown++
	}
	b.mu.Unlock()
}

// read says, with the lock held, that a batch is not being read any more.
func (b *budget) read(p *parcel) {
	if p.grown {
		p.grown = false
		b.grown--
	}
}

// charge waits until what a filled batch holds beyond its first charge fits.
// One batch is always let through when no other will come back by itself, so
// that an item larger than the whole budget can pass.
func (b *budget) charge(ctx context.Context, p *parcel) error {
	have := int64(len(p.batch.arena)+p.batch.beyond) + itemCost*int64(len(p.batch.Items))
	more := max(0, have-p.cost)
	if err := b.wait(ctx, more, func() bool { return b.routed == 0 }); err != nil {
		return err
	}
	p.cost += more
	b.read(p)
	b.routed++
	b.mu.Unlock()
	return nil
}

// wait returns with the lock held and n bytes charged, or with an error and
// the lock free.
func (b *budget) wait(ctx context.Context, n int64, letThrough func() bool) error {
	b.mu.Lock()
	if n > 0 && b.used+n > b.limit && !letThrough() {
		stop := context.AfterFunc(ctx, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.freed.Broadcast()
		})
		defer stop()
		b.waited = true
		for b.used+n > b.limit && !letThrough() && ctx.Err() == nil {
			b.freed.Wait()
		}
	}
	if err := ctx.Err(); err != nil {
		b.mu.Unlock()
		return context.Cause(ctx)
	}
	b.used += n
	return nil
}

// give takes a batch back. routed says that charge had let it through.
func (b *budget) give(p *parcel, size int, routed, scribble bool) {
	if scribble {
		for i := range p.batch.arena {
			p.batch.arena[i] = 0xdb
		}
	}
	items := len(p.batch.Items)
	keep := len(p.batch.arena) == size
	if keep {
		p.batch.Reset()
		p.stream = nil
	}
	b.mu.Lock()
	b.used -= p.cost
	b.read(p)
	if routed {
		b.routed--
	}
	b.most = max(b.most, items)
	// One that grew for a large item goes, so that memory comes back; so do those
	// that were needed only while the limit was higher.
	if keep && b.used+int64(size)*int64(len(b.idle)) < b.limit {
		b.idle = append(b.idle, p)
	}
	b.freed.Broadcast()
	b.mu.Unlock()
}
