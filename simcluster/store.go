package simcluster

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

const (
	maxKeyLen  = 250
	maxItem    = 20 << 20 // ep_max_item_size in bytes
	thirtyDays = 30 * 24 * 60 * 60
)

// item is one version of a key. It never changes once it is in a vbucket, so
// that dumps read it without a lock and replicas share it.
type item struct {
	key       string
	value     []byte
	flags     uint32
	expiry    uint32
	deletedAt uint32 // Unix seconds, tombstones of 4.0 only
	cas       uint64
	rev       uint64
	seqno     uint64
	at        int64 // when it was written, Unix nanoseconds
	datatype  uint8
	deleted   bool
	told      bool // clients can learn deletedAt and byExpiry: from 5.0 on
	byExpiry  bool // a tombstone of an item whose time was over
	coll      uint32
	event     *systemEvent // a change of the collections; such an item has no key
}

func (it *item) expired(now int64) bool {
	return !it.deleted && it.expiry != 0 && int64(it.expiry) <= now
}

// size is what the item takes in a server's memory, in bytes.
func (it *item) size() uint64 { return uint64(len(it.key) + len(it.value) + 56) }

func (it *item) doc() Doc {
	d := Doc{
		Key: []byte(it.key), Value: bytes.Clone(it.value), Flags: it.flags, Expiry: it.expiry,
		CAS: it.cas, Rev: it.rev, Datatype: it.datatype, Deleted: it.deleted, Seqno: it.seqno,
		Collection: it.coll,
	}
	if it.told {
		d.DeleteTime, d.Expired = it.deletedAt, it.byExpiry
	}
	return d
}

// vcopy is one node's copy of a vbucket. The vbucket's lock guards it.
type vcopy struct {
	state  mcbp.VBState
	uuid   uint64               // of the newest branch
	flog   []mcbp.FailoverEntry // branches of its history, newest first
	ready  bool                 // was active, or got a snapshot: a checkpoint is open
	forced bool                 // 6.0 only: written by force before it was ever active
	life   int                  // grows with each change of state, which ends streams
	watch  []*wakeup            // streams that wait for the next item
	colls  *collections         // what the copy knows of scopes and collections; nil = the default collection
	index  map[string]int32     // place in log, of the default collection's keys
	named  map[collKey]int32    // the same of all other collections
	log    []*item              // in order of writing; nil where a newer version came
	holes  int
	high   uint64 // highest seqno
	// defHigh is the highest seqno of the default collection, lastWrite the time of
	// the last write in Unix nanoseconds.
	defHigh   uint64
	lastWrite int64
	// unordered: StoreAt was given seqnos that do not grow.
	unordered bool
	live      int
	// maxDeletedRev is where the revisions of new keys go on from, so that a key
	// that was purged and comes again never has a lower one.
	maxDeletedRev             uint64
	maxCAS                    uint64
	memory                    uint64 // of live items, in bytes
	creates, updates, deletes uint64
}

// collKey is a key in a named collection.
type collKey struct {
	coll uint32
	key  string
}

// reset empties the copy and keeps its state and history.
func (v *vcopy) reset() {
	*v = vcopy{state: v.state, uuid: v.uuid, flog: v.flog, watch: v.watch}
	v.wake()
}

// wake tells the streams of the copy that there is something new.
func (v *vcopy) wake() {
	for _, w := range v.watch {
		w.wake()
	}
}

// get returns the newest version of a key of the default collection.
func (v *vcopy) get(key []byte) *item { return v.find(0, key) }

// find returns the newest version of a key of a collection.
func (v *vcopy) find(coll uint32, key []byte) *item {
	i, ok := v.index[string(key)]
	if coll != 0 {
		i, ok = v.named[collKey{coll, string(key)}]
	}
	if !ok {
		return nil
	}
	return v.log[i]
}

func (v *vcopy) place(it *item) (int32, bool) {
	if it.event != nil {
		return 0, false
	}
	if it.coll != 0 {
		i, ok := v.named[collKey{it.coll, it.key}]
		return i, ok
	}
	i, ok := v.index[it.key]
	return i, ok
}

func (v *vcopy) setPlace(it *item, i int) {
	switch {
	case it.event != nil:
	case it.coll != 0:
		if v.named == nil {
			v.named = make(map[collKey]int32)
		}
		v.named[collKey{it.coll, it.key}] = int32(i)
	default:
		if v.index == nil {
			v.index = make(map[string]int32)
		}
		v.index[it.key] = int32(i)
	}
}

// put makes it the newest version of its key. A seqno of 0 gets the next one.
func (v *vcopy) put(it *item) {
	if it.seqno == 0 {
		it.seqno = v.high + 1
	}
	v.unordered = v.unordered || it.seqno <= v.high
	v.high = max(v.high, it.seqno)
	v.lastWrite = it.at
	switch {
	case it.event != nil:
	case it.coll == 0:
		v.defHigh = max(v.defHigh, it.seqno)
	default:
		if st := v.colls.known[it.coll]; st != nil {
			st.high = max(st.high, it.seqno)
		}
	}
	if i, ok := v.place(it); ok {
		if !v.log[i].deleted {
			v.live--
			v.updates++
			v.memory -= v.log[i].size()
		}
		v.log[i] = nil
		v.holes++
	} else if !it.deleted && it.event == nil {
		v.creates++
	}
	switch {
	case it.event != nil:
	case it.deleted:
		v.deletes++
		v.maxDeletedRev = max(v.maxDeletedRev, it.rev)
	default:
		v.live++
		v.memory += it.size()
	}
	v.maxCAS = max(v.maxCAS, it.cas)
	if v.holes > 64 && v.holes > len(v.log)/2 {
		v.compact()
	}
	v.setPlace(it, len(v.log))
	v.log = append(v.log, it)
	v.wake()
}

func (v *vcopy) compact() {
	kept := make([]*item, 0, len(v.log)-v.holes+64)
	for _, it := range v.log {
		if it != nil {
			v.setPlace(it, len(kept))
			kept = append(kept, it)
		}
	}
	v.log, v.holes = kept, 0
}

// snapshot returns the items that are there now, oldest write first.
func (v *vcopy) snapshot() []*item {
	all := make([]*item, 0, len(v.log)-v.holes)
	for _, it := range v.log {
		if it != nil && it.event == nil {
			all = append(all, it)
		}
	}
	return all
}

// since appends to all what came after a seqno, system events included, in order
// of seqno, up to one that is beyond end.
func (v *vcopy) since(all []*item, seqno, end uint64) []*item {
	from := 0
	if !v.unordered {
		from = v.after(seqno)
	}
	for _, it := range v.log[from:] {
		if it != nil && it.seqno > seqno && it.seqno <= end {
			all = append(all, it)
		}
	}
	if v.unordered {
		slices.SortFunc(all, func(a, b *item) int { return cmp.Compare(a.seqno, b.seqno) })
	}
	return all
}

// after is the place in the log where what is after seqno begins, or earlier.
func (v *vcopy) after(seqno uint64) int {
	lo, hi := 0, len(v.log)
	for lo < hi {
		mid := (lo + hi) / 2
		at := mid
		for at < hi && v.log[at] == nil {
			at++
		}
		switch {
		case at == hi:
			hi = mid
		case v.log[at].seqno <= seqno:
			lo = at + 1
		default:
			hi = mid
		}
	}
	return lo
}

// nextRev is the revision of the next version of a key whose newest one is old.
func (v *vcopy) nextRev(old *item) uint64 {
	if old != nil {
		return old.rev + 1
	}
	return v.maxDeletedRev + 1
}

// vbucket is what all nodes share of one vbucket of one bucket.
type vbucket struct {
	mu      sync.Mutex
	chain   []*nodeBucket // the published copies, active first; nil = missing
	owner   *nodeBucket   // of a missing vbucket that is being recovered
	lost    *Node         // the node whose failover left no copy
	changed chan struct{} // closed when a copy's state changes
}

// stateChanged wakes what is parked on the vbucket. The lock is held.
func (m *vbucket) stateChanged() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// nodeBucket is one node's part of a bucket.
type nodeBucket struct {
	b      *Bucket
	node   *Node
	copies []vcopy // by vbucket, each guarded by the vbucket's lock
	gone   atomic.Bool
}

// setState changes the state of a copy and wakes parked requests. The lock is held.
func (nb *nodeBucket) setState(m *vbucket, vb uint16, s mcbp.VBState) {
	v := &nb.copies[vb]
	switch {
	case s == mcbp.VBAbsent:
		*v = vcopy{watch: v.watch, life: v.life}
	case v.state == mcbp.VBAbsent:
		nb.branch(v)
	case s == mcbp.VBActive && v.state != mcbp.VBActive:
		nb.branch(v) // whoever becomes active begins a branch of its own
	}
	v.ready = v.ready || s == mcbp.VBActive
	if v.state != s {
		v.life++
	}
	v.state = s
	if s == mcbp.VBActive && nb.b.c.rel.hasCollections() && !nb.b.memcached() {
		nb.learn(m, vb)
	}
	v.wake()
	m.stateChanged()
}

// branch begins a new branch of a copy's history at its high seqno.
func (nb *nodeBucket) branch(v *vcopy) {
	v.uuid = rand.Uint64()&0xffffffffffff | 1
	v.flog = append([]mcbp.FailoverEntry{{UUID: v.uuid, Seqno: v.high}}, v.flog...)
}

// write stores it in the node's copy and, if that is the published active copy,
// in the replicas. The lock is held.
func (nb *nodeBucket) write(m *vbucket, vb uint16, it *item) {
	it.at = time.Now().UnixNano()
	nb.copies[vb].put(it)
	if len(m.chain) == 0 || m.chain[0] != nb {
		return
	}
	for _, r := range m.chain[1:] {
		if r != nil && r != nb && r.copies[vb].state == mcbp.VBReplica {
			r.copies[vb].ready = true
			r.copies[vb].put(it)
		}
	}
}

// tombstone writes a deletion made by the server itself. The lock is held.
func (nb *nodeBucket) tombstone(m *vbucket, vb uint16, old *item) *item {
	it := &item{key: old.key, coll: old.coll, cas: nb.b.c.cas.next(), rev: old.rev + 1, deleted: true}
	nb.b.c.stampDeletion(it)
	nb.write(m, vb, it)
	return it
}

// lookup finds a live item and reaps it if its time is over, as any access does.
// The lock is held.
func (nb *nodeBucket) lookup(m *vbucket, vb uint16, coll uint32, key []byte) *item {
	it := nb.copies[vb].find(coll, key)
	if it == nil || it.deleted {
		return nil
	}
	if it.expired(time.Now().Unix()) {
		if nb.copies[vb].state == mcbp.VBActive {
			nb.tombstone(m, vb, it).byExpiry = true
		}
		return nil
	}
	return it
}

// absoluteExpiry is the rule for expiry times that clients send.
func absoluteExpiry(exp uint32) uint32 {
	if exp == 0 || exp > thirtyDays {
		return exp
	}
	return uint32(time.Now().Unix()) + exp
}

// looksJSON is the server's own test when the client did not negotiate
// datatypes: an object or an array.
func looksJSON(value []byte) bool {
	t := bytes.TrimLeft(value, " \t\r\n")
	return len(t) > 0 && (t[0] == '{' || t[0] == '[') && json.Valid(value)
}

// newUUID names a cluster, a bucket or a recovery. It is random: clusters that are
// started at the same moment must not take each other for the same.
func newUUID() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

// casClock makes CAS values in the manner of a server generation.
type casClock struct {
	family int // 2, 3 or 4
	last   atomic.Uint64
	start  time.Time
}

func (g *casClock) next() uint64 {
	for {
		var now uint64
		switch g.family {
		case 2: // nanoseconds of a clock that begins with the machine
			now = uint64(time.Since(g.start)) + uint64(time.Hour)
		case 3: // nanoseconds since 1970
			now = uint64(time.Now().UnixNano())
		default: // a hybrid logical clock: the lowest 16 bits count
			now = uint64(time.Now().UnixNano()) &^ 0xffff
		}
		last := g.last.Load()
		if now <= last {
			now = last + 1
		}
		if g.last.CompareAndSwap(last, now) {
			return now
		}
	}
}
