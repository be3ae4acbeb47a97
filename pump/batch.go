package pump

// Batch carries items from a source to a sink, and the sink's verdicts back.
//
// A batch that a source fills owns one arena, and its items' bytes lie in it. A
// batch that a lane writes may hold items of several such arenas; the engine
// keeps them alive until Write has returned. Nothing may keep an item's bytes
// after that: pumptest overwrites arenas to prove it.
//
// The zero Batch is ready to use and has no arena; NewBatch gives it one.
type Batch struct {
	// Items are in the order of the source. Sinks do not reorder them.
	Items []Item
	// Marks are positions of the stream that are reached once every item of
	// this batch and of all batches before it is confirmed. Only sources set them.
	Marks []Mark

	verdicts []Verdict
	causes   map[int]error
	arena    []byte
	used     int
	beyond   int         // bytes that Alloc gave beside the arena
	grow     func(n int) // waits until there is memory for n bytes more; may be nil
}

// Mark is a position of a stream from which it can go on, and the proof that a
// part of it is complete.
type Mark struct {
	// VBucket is the part of the stream that the mark is about; NoVBucket for
	// streams that have no such parts.
	VBucket uint16
	// Seqno is the position in that part: a sequence number, a row, an offset.
	Seqno uint64
	// Complete says that the source proved the part to have been read whole.
	Complete bool
	// Items is the number of live items (mutations) in a complete part.
	Items uint64
	// Lost is set by the engine, for Acknowledger alone, where the run has disposed
	// of what is before the mark and not all of it was written.
	Lost bool
	// State is what else the source needs to go on; opaque to the engine.
	State []byte
}

// NewBatch returns a batch whose arena has size bytes.
func NewBatch(size int) *Batch { return &Batch{arena: make([]byte, size)} }

// Reset forgets items, marks and verdicts and makes the arena free again.
func (b *Batch) Reset() {
	b.Items, b.Marks, b.used, b.beyond = b.Items[:0], b.Marks[:0], 0, 0
	b.verdicts = b.verdicts[:0]
	clear(b.causes)
}

// Len returns the number of items.
func (b *Batch) Len() int { return len(b.Items) }

// Arena returns the whole arena, for sources that read packets straight into
// it. Sources use either Arena or Alloc and Copy for one batch, not both.
func (b *Batch) Arena() []byte { return b.arena }

// GrowArena gives an empty batch an arena of at least n bytes, for the one item
// that is larger than the usual arena. It must not be called once items are in.
func (b *Batch) GrowArena(n int) {
	if n > len(b.arena) {
		if b.grow != nil {
			b.grow(n - len(b.arena))
		}
		b.arena = make([]byte, n)
		b.used = 0
	}
}

// Free returns how many bytes Alloc can still give without growing.
func (b *Batch) Free() int { return len(b.arena) - b.used }

// Alloc returns n bytes of the arena. Where it does not fit it returns fresh
// memory, so that a single item of any size can be carried; sources look at
// Free and return the batch before that happens for ordinary items.
func (b *Batch) Alloc(n int) []byte {
	if n > b.Free() {
		if b.grow != nil {
			b.grow(n)
		}
		b.beyond += n
		return make([]byte, n)
	}
	p := b.arena[b.used : b.used+n : b.used+n]
	b.used += n
	return p
}

// Copy returns a copy of p in the arena.
func (b *Batch) Copy(p []byte) []byte {
	c := b.Alloc(len(p))
	copy(c, p)
	return c
}

// Append adds an item whose bytes the caller has placed in the arena, and
// returns it to be filled in.
func (b *Batch) Append() *Item {
	if len(b.Items) < cap(b.Items) {
		b.Items = b.Items[:len(b.Items)+1]
		b.Items[len(b.Items)-1] = Item{}
	} else {
		b.Items = append(b.Items, Item{})
	}
	return &b.Items[len(b.Items)-1]
}

// StartWrite makes every verdict Unconfirmed. The engine calls it before
// Lane.Write; a program that drives a sink by hand must do the same.
func (b *Batch) StartWrite() {
	if cap(b.verdicts) < len(b.Items) {
		b.verdicts = make([]Verdict, len(b.Items), max(len(b.Items), cap(b.Items)))
	} else {
		b.verdicts = b.verdicts[:len(b.Items)]
		clear(b.verdicts)
	}
	clear(b.causes)
}

// join adds the verdicts of o, whose items were put behind b's first n.
func (b *Batch) join(o *Batch, n int) {
	b.verdicts = append(b.verdicts, o.verdicts...)
	for i, why := range o.causes {
		b.Settle(n+i, o.verdicts[i], why)
	}
}

// Verdict returns the verdict on item i.
func (b *Batch) Verdict(i int) Verdict { return b.verdicts[i] }

// Cause returns why item i is not Done, or nil.
func (b *Batch) Cause(i int) error { return b.causes[i] }

// Done confirms item i: the destination said that it holds it.
func (b *Batch) Done(i int) {
	b.verdicts[i] = Done
	if len(b.causes) > 0 {
		delete(b.causes, i)
	}
}

// Settle gives item i any verdict, and the reason. An item may be settled again
// within a Write; the last word counts.
func (b *Batch) Settle(i int, v Verdict, why error) {
	b.verdicts[i] = v
	if why == nil {
		delete(b.causes, i)
		return
	}
	if b.causes == nil {
		b.causes = make(map[int]error)
	}
	b.causes[i] = why
}

// SettleRest gives every item that is still Unconfirmed the same verdict.
func (b *Batch) SettleRest(v Verdict, why error) {
	for i, have := range b.verdicts {
		if have == Unconfirmed {
			if why == nil {
				b.verdicts[i] = v
			} else {
				b.Settle(i, v, why)
			}
		}
	}
}
