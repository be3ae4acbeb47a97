package pump

// Op says what happened to a key.
type Op uint8

// What an item reports of its key. The zero value is a mutation.
const (
	Mutation   Op = iota // the key has this value
	Deletion             // the key was deleted
	Expiration           // the key's time was over
)

func (o Op) String() string {
	switch o {
	case Mutation:
		return "mutation"
	case Deletion:
		return "deletion"
	case Expiration:
		return "expiration"
	}
	return "unknown"
}

// NoVBucket is the vbucket of an item whose source does not know it.
const NoVBucket uint16 = 0xffff

// Item is the state of one key as a source reported it.
//
// Key, Value and Meta alias the arena of the batch that carries the item:
// whoever wants to keep bytes after returning the batch copies them.
type Item struct {
	Op       Op
	Datatype uint8  // bits: 1 JSON, 2 snappy, 4 xattr
	VBucket  uint16 // NoVBucket when the source does not know
	Flags    uint32 // client flags
	Expiry   uint32 // absolute Unix seconds, 0 = never; of a deletion its time, 0 = not known
	CAS      uint64 // 0 = the source has none
	RevSeqno uint64 // revision of the key, 0 = the source has none
	Seqno    uint64 // position in the vbucket, 0 = unknown
	Key      []byte
	Value    []byte
	Meta     []byte // opaque to the pump: what a format carries beside the fields above

	// Collection is where the key lives; nil is the default collection. Sources
	// share one value between all items of a collection.
	Collection *Collection
}

// Collection names a collection (7.0 and later).
type Collection struct{ Scope, Name string }

func (c *Collection) String() string {
	if c == nil {
		return "_default._default"
	}
	return c.Scope + "." + c.Name
}

// Size returns the bytes of key, value and meta.
func (it *Item) Size() int { return len(it.Key) + len(it.Value) + len(it.Meta) }

// Verdict is what became of an item at the destination.
type Verdict uint8

// The zero value means "not confirmed", so that a sink that forgets to report
// can never look successful (invariant 1).
const (
	Unconfirmed Verdict = iota
	Done                // the destination confirmed that it holds the item
	Skipped             // the destination holds a newer one, or policy left the item out
	Retry               // not stored, or not known to be: send it again
	Rejected            // the destination refuses this item for ever; others go on
)

func (v Verdict) String() string {
	switch v {
	case Unconfirmed:
		return "unconfirmed"
	case Done:
		return "done"
	case Skipped:
		return "skipped"
	case Retry:
		return "retry"
	case Rejected:
		return "rejected"
	}
	return "unknown"
}
