package simcluster

import (
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/mcbp"
)

// Errors that callers may want to tell apart.
var (
	ErrNoActive  = errors.New("the vbucket has no active copy")
	ErrNoCopy    = errors.New("the node has no copy of the vbucket")
	ErrNotMember = errors.New("the node is not an active member of the cluster")
	ErrMember    = errors.New("the node is in the cluster already")
	ErrLastNode  = errors.New("the last active node cannot be failed over")
	ErrNodeDown  = errors.New("the node does not run")
	ErrNoBucket  = errors.New("there is no such bucket")
)

// Cluster is a running cluster. Its methods may be called from any goroutine.
type Cluster struct {
	cfg       Config
	rel       release
	family    int    // major version: whose quirks
	version   string // "2.5.1-1083-rel-enterprise"
	uuid      string
	cas       casClock
	log       hclog.Logger
	accounts  map[string]*account // from 5.0 on
	authority *authority          // nil without TLS
	wg        sync.WaitGroup      // every goroutine of every node

	mu       sync.Mutex
	closed   bool
	rev      int           // of the topology
	changed  chan struct{} // closed when rev grows
	universe []*Node       // all nodes ever, members or not
	members  []*Node       // in the cluster's list, in order
	replaced map[*Node]*Node
	buckets  map[string]*Bucket
	names    []string // of buckets, in order
	journal  []Request

	recovery       *recoveryRun
	recoveryFaults []*armedRecovery
	rebalancing    bool
}

// Bucket is one bucket of a cluster.
type Bucket struct {
	c    *Cluster
	cfg  BucketConfig
	uuid string
	vbs  []*vbucket

	collMu   sync.Mutex // of changes of the manifest
	manifest atomic.Pointer[Manifest]
	lastID   uint32 // guarded by collMu

	heldAny atomic.Int32 // number of keys in held: 0 costs the hot path nothing
	heldMu  sync.Mutex
	held    map[collKey]int

	// nodes are the nodes that serve the bucket, in the order of the server list.
	// Guarded by the cluster's lock.
	nodes []*nodeBucket
	terse map[*Node]terseCache // guarded by the cluster's lock
}

// terseCache is a terse document as one node gives it, good for one revision of
// the topology: NOT_MY_VBUCKET answers may carry it thousands of times.
type terseCache struct {
	rev int
	doc []byte
}

const memcachedType = "memcached"

func (b *Bucket) memcached() bool { return b.cfg.Type == memcachedType }

// Start starts a cluster and returns when all its ports listen.
func Start(cfg Config) (*Cluster, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	rel, version, err := parseVersion(cfg.Version)
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		cfg: cfg, rel: rel, family: rel.major(), version: version, log: cfg.Log,
		cas:      casClock{family: rel.major(), start: time.Now()},
		changed:  make(chan struct{}),
		replaced: make(map[*Node]*Node),
		buckets:  make(map[string]*Bucket),
	}
	if err := c.makeAccounts(); err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		if c.authority, err = newAuthority(&cfg); err != nil {
			return nil, err
		}
	}
	c.uuid = newUUID()
	for range cfg.Nodes {
		n, err := c.startNode()
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		n.membership = memberActive
		c.members = append(c.members, n)
	}
	for _, bc := range cfg.Buckets {
		c.createBucket(bc)
	}
	return c, nil
}

func (cfg *Config) fill() error {
	if cfg.Recovery && cfg.WithoutRecoveryAPI {
		return errors.New("simcluster: Recovery and WithoutRecoveryAPI contradict each other")
	}
	if cfg.Nodes == 0 {
		cfg.Nodes = 2
	}
	if cfg.VBuckets == 0 {
		cfg.VBuckets = 64
	}
	if cfg.Nodes < 0 || cfg.VBuckets < 0 || cfg.VBuckets > 1024 {
		return fmt.Errorf("simcluster: %d nodes and %d vbuckets is not a cluster", cfg.Nodes, cfg.VBuckets)
	}
	if cfg.Version == "" {
		cfg.Version = "2.5.1"
	}
	if cfg.Username == "" {
		cfg.Username = "Administrator"
	}
	if cfg.Password == "" {
		cfg.Password = "password"
	}
	if cfg.Host == "" {
		cfg.Host = "127.0.0.1"
	}
	if ip := net.ParseIP(cfg.Host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("simcluster: %q is no loopback address", cfg.Host)
	}
	if cfg.TapWindow == 0 {
		cfg.TapWindow = 10_000
	}
	if cfg.TapAckInterval == 0 {
		cfg.TapAckInterval = 1_000
	}
	if cfg.TapNoop == 0 {
		cfg.TapNoop = 200 * time.Second
	}
	if cfg.TapBackoff == 0 {
		cfg.TapBackoff = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if len(cfg.Buckets) == 0 {
		cfg.Buckets = []BucketConfig{{Name: "default", Replicas: 1}}
	}
	cfg.Buckets = slices.Clone(cfg.Buckets)
	seen := make(map[string]bool)
	for i := range cfg.Buckets {
		b := &cfg.Buckets[i]
		switch b.Type {
		case "", "membase", "couchbase":
			b.Type = "membase"
		case memcachedType:
		default:
			return fmt.Errorf("simcluster: unknown bucket type %q", b.Type)
		}
		if b.Name == "" || seen[b.Name] {
			return fmt.Errorf("simcluster: bucket name %q is empty or there twice", b.Name)
		}
		if b.Replicas < 0 || b.Replicas > 3 {
			return fmt.Errorf("simcluster: bucket %q with %d replicas", b.Name, b.Replicas)
		}
		seen[b.Name] = true
	}
	return nil
}

// shortVersion is the version without build number and edition.
func (c *Cluster) shortVersion() string {
	v, _, _ := strings.Cut(c.version, "-")
	return v
}

// Close stops all nodes and waits for every goroutine. It may be called twice.
func (c *Cluster) Close() error {
	c.mu.Lock()
	c.closed = true
	nodes := slices.Clone(c.universe)
	c.mu.Unlock()
	for _, n := range nodes {
		n.Kill()
	}
	c.wg.Wait()
	return nil
}

// URL is the REST address of the first node.
func (c *Cluster) URL() string { return "http://" + c.Nodes()[0].REST() }

// Nodes returns the nodes in the cluster's list, failed over ones included.
func (c *Cluster) Nodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.members)
}

// NewNode starts a node that is in no cluster yet.
func (c *Cluster) NewNode() (*Node, error) { return c.startNode() }

// Bucket returns a bucket, or nil if there is none of that name.
func (c *Cluster) Bucket(name string) *Bucket {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buckets[name]
}

// Requests returns the REST requests so far that may have changed state.
func (c *Cluster) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.journal)
}

// touch says that the topology changed. The lock is held.
func (c *Cluster) touch() {
	c.rev++
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Cluster) stampDeletion(it *item) {
	if c.family >= 4 {
		it.deletedAt = uint32(time.Now().Unix())
	}
	it.told = c.rel.hasUsers()
}

func (c *Cluster) createBucket(bc BucketConfig) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := &Bucket{c: c, cfg: bc, uuid: newUUID(), terse: make(map[*Node]terseCache)}
	first := firstManifest()
	b.manifest.Store(&first)
	n := c.cfg.VBuckets
	if b.memcached() {
		n = 1
	}
	b.vbs = make([]*vbucket, n)
	for vb := range b.vbs {
		b.vbs[vb] = &vbucket{changed: make(chan struct{})}
	}
	for _, node := range c.members {
		b.join(node)
	}
	for vb := range b.vbs {
		b.spread(vb)
	}
	c.buckets[bc.Name] = b
	c.names = append(c.names, bc.Name)
	c.touch()
}

// DeleteBucket takes a bucket away, as DELETE /pools/default/buckets/NAME does: its
// connections close, and nobody finds it any more.
func (c *Cluster) DeleteBucket(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.buckets[name]
	if b == nil {
		return fmt.Errorf("delete bucket %s: %w", name, ErrNoBucket)
	}
	delete(c.buckets, name)
	c.names = slices.DeleteFunc(c.names, func(n string) bool { return n == name })
	for _, nb := range slices.Clone(b.nodes) {
		b.leave(nb)
	}
	c.touch()
	return nil
}

// spread gives the copies of a new bucket's vbucket to its nodes. Connections may have
// found the bucket already.
func (b *Bucket) spread(vb int) {
	m := b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	if b.memcached() {
		for _, nb := range b.nodes {
			nb.setState(m, 0, mcbp.VBActive)
		}
		return
	}
	m.chain = make([]*nodeBucket, 1+b.cfg.Replicas)
	// Contiguous runs of vbuckets on each node, as the map generator makes them.
	first := vb * len(b.nodes) / len(b.vbs)
	for i := range m.chain {
		if i >= len(b.nodes) {
			break
		}
		// Replicas of one node's vbuckets are spread over all the others.
		at := first
		if i > 0 {
			others := len(b.nodes) - 1
			at = (first + 1 + (vb+i-1)%others) % len(b.nodes)
		}
		nb := b.nodes[at]
		m.chain[i] = nb
		state := mcbp.VBReplica
		if i == 0 {
			state = mcbp.VBActive
		}
		nb.setState(m, uint16(vb), state)
		if i > 0 { // replicas share the history of the active copy
			from := &m.chain[0].copies[vb]
			nb.copies[vb].flog, nb.copies[vb].uuid, nb.copies[vb].ready = slices.Clone(from.flog), from.uuid, true
		}
	}
}

// join makes a node serve the bucket. The cluster's lock is held.
func (b *Bucket) join(node *Node) *nodeBucket {
	nb := &nodeBucket{b: b, node: node, copies: make([]vcopy, len(b.vbs))}
	b.nodes = append(b.nodes, nb)
	node.setBucket(b.cfg.Name, nb)
	return nb
}

// leave takes a bucket away from a node; its connections close. The cluster's
// lock is held.
func (b *Bucket) leave(nb *nodeBucket) {
	b.nodes = slices.DeleteFunc(b.nodes, func(o *nodeBucket) bool { return o == nb })
	nb.gone.Store(true)
	nb.node.dropBucket(b.cfg.Name, nb)
	for vb, m := range b.vbs {
		m.mu.Lock()
		nb.setState(m, uint16(vb), mcbp.VBAbsent)
		m.mu.Unlock()
	}
}

// Failover fails a node over hard, as POST /controller/failOver does: vbuckets
// with a replica get it promoted, the others are missing from now on. The node
// loses its buckets. It works on dead nodes too.
func (c *Cluster) Failover(n *Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.members, n) || n.membership != memberActive {
		return fmt.Errorf("failover of %s: %w", n.OTP(), ErrNotMember)
	}
	active := 0
	for _, m := range c.members {
		if m.membership == memberActive {
			active++
		}
	}
	if active == 1 {
		return fmt.Errorf("failover of %s: %w", n.OTP(), ErrLastNode)
	}
	n.membership = memberFailed
	for _, name := range c.names {
		b := c.buckets[name]
		var old *nodeBucket
		if i := slices.IndexFunc(b.nodes, func(nb *nodeBucket) bool { return nb.node == n }); i >= 0 {
			old = b.nodes[i]
		}
		for vb, m := range b.vbs {
			m.mu.Lock()
			b.promote(m, uint16(vb), n)
			if old != nil {
				// In the same moment: what it took from here on would be in no replica.
				old.setState(m, uint16(vb), mcbp.VBAbsent)
			}
			m.mu.Unlock()
		}
		if old != nil {
			b.leave(old)
		}
	}
	c.log.Info("failed over", "node", n.OTP())
	c.touch()
	return nil
}

// promote takes node out of a vbucket's chain. The vbucket's lock is held.
func (b *Bucket) promote(m *vbucket, vb uint16, node *Node) {
	if m.owner != nil && m.owner.node == node {
		m.owner = nil // whoever recovers must begin again
	}
	wasActive := len(m.chain) > 0 && m.chain[0] != nil && m.chain[0].node == node
	kept := make([]*nodeBucket, 0, len(m.chain))
	for i, nb := range m.chain {
		if nb == nil || nb.node == node {
			continue
		}
		if i > 0 && wasActive && len(kept) == 0 && nb.node.Dead() {
			continue // nothing to promote there
		}
		kept = append(kept, nb)
	}
	if wasActive {
		if len(kept) > 0 {
			kept[0].setState(m, vb, mcbp.VBActive)
		} else {
			m.lost = node
		}
	}
	if len(m.chain) > 0 && m.chain[0] == nil {
		// Already missing: what is left in the chain is no replacement.
		kept = append([]*nodeBucket{nil}, kept...)
	}
	for len(kept) < len(m.chain) {
		kept = append(kept, nil)
	}
	m.chain = kept
}

// AddNode adds a running node to the cluster, as POST /controller/addNode does.
// It serves nothing before a rebalance, which is not played.
func (c *Cluster) AddNode(n *Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.members, n) {
		return fmt.Errorf("add node %s: %w", n.OTP(), ErrMember)
	}
	if n.Dead() {
		return fmt.Errorf("add node %s: %w", n.OTP(), ErrNodeDown)
	}
	n.membership = memberAdded
	c.members = append(c.members, n)
	c.touch()
	return nil
}

// VBucketOf is the vbucket of a key in this bucket.
func (b *Bucket) VBucketOf(key []byte) uint16 {
	return uint16((crc32.ChecksumIEEE(key) >> 16 & 0x7fff) % uint32(len(b.vbs)))
}

// home returns the nodeBucket that holds key's active copy, with the vbucket locked.
func (b *Bucket) home(key []byte) (*nodeBucket, *vbucket, uint16, error) {
	if b.memcached() {
		b.c.mu.Lock()
		nb := b.nodes[int(crc32.ChecksumIEEE(key))%len(b.nodes)]
		b.c.mu.Unlock()
		m := b.vbs[0]
		m.mu.Lock()
		return nb, m, 0, nil
	}
	vb := b.VBucketOf(key)
	m := b.vbs[vb]
	m.mu.Lock()
	nb := m.chain[0]
	if nb == nil || nb.copies[vb].state != mcbp.VBActive {
		m.mu.Unlock()
		return nil, nil, vb, fmt.Errorf("bucket %s vbucket %d: %w", b.cfg.Name, vb, ErrNoActive)
	}
	return nb, m, vb, nil
}

// Name is the bucket's name.
func (b *Bucket) Name() string { return b.cfg.Name }

// Store puts a document or a tombstone straight into the active copy and the
// replicas. CAS and Rev 0 are made by the server; Seqno always is. It returns
// ErrNoActive when the key's vbucket is missing.
func (b *Bucket) Store(d Doc) error {
	nb, m, vb, err := b.home(d.Key)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	if !nb.copies[vb].knows(d.Collection) {
		return fmt.Errorf("bucket %s collection %x: %w", b.cfg.Name, d.Collection, ErrNoCollection)
	}
	nb.write(m, vb, nb.itemOf(vb, d))
	return nil
}

// itemOf is d as the node's copy of a vbucket would hold it: what is 0 is made by
// the server. The vbucket's lock is held.
func (nb *nodeBucket) itemOf(vb uint16, d Doc) *item {
	it := &item{
		key: string(d.Key), value: bytesOf(d.Value), flags: d.Flags, expiry: d.Expiry,
		cas: d.CAS, rev: d.Rev, datatype: d.Datatype, deleted: d.Deleted, coll: d.Collection, byExpiry: d.Deleted && d.Expired,
	}
	if it.cas == 0 {
		it.cas = nb.b.c.cas.next()
	}
	if it.rev == 0 {
		it.rev = nb.copies[vb].nextRev(nb.copies[vb].find(d.Collection, d.Key))
	}
	if it.deleted {
		nb.b.c.stampDeletion(it)
		if d.DeleteTime != 0 {
			it.deletedAt = d.DeleteTime
		}
	}
	return it
}

// bytesOf copies b; an empty value is never nil, a tombstone's may be.
func bytesOf(b []byte) []byte { return append(make([]byte, 0, len(b)), b...) }

// Delete leaves a tombstone, also for a key that was never there.
func (b *Bucket) Delete(key []byte) error {
	nb, m, vb, err := b.home(key)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	it := &item{key: string(key), deleted: true, cas: b.c.cas.next(), rev: nb.copies[vb].nextRev(nb.copies[vb].get(key))}
	b.c.stampDeletion(it)
	nb.write(m, vb, it)
	return nil
}

// Get returns the active copy's version of key, expired or not. ok is false for
// a tombstone, whose metadata come all the same with Deleted set, and for a key
// that is not there.
func (b *Bucket) Get(key []byte) (d Doc, ok bool) { return b.GetIn(0, key) }

// GetIn is Get in a collection.
func (b *Bucket) GetIn(coll uint32, key []byte) (d Doc, ok bool) {
	nb, m, vb, err := b.home(key)
	if err != nil {
		return Doc{}, false
	}
	defer m.mu.Unlock()
	return docOf(nb.copies[vb].find(coll, key))
}

func docOf(it *item) (Doc, bool) {
	if it == nil {
		return Doc{}, false
	}
	return it.doc(), !it.deleted
}

// Each calls f for all documents and tombstones of the active copies, in order
// of vbucket and then of writing, until f returns false.
func (b *Bucket) Each(f func(vb uint16, d Doc) bool) {
	for vb, m := range b.vbs {
		var all []*item
		m.mu.Lock()
		if b.memcached() {
			m.mu.Unlock()
			b.c.mu.Lock()
			nodes := slices.Clone(b.nodes)
			b.c.mu.Unlock()
			m.mu.Lock()
			for _, nb := range nodes {
				all = append(all, nb.copies[0].snapshot()...)
			}
		} else if nb := m.chain[0]; nb != nil && nb.copies[vb].state == mcbp.VBActive {
			all = nb.copies[vb].snapshot()
		}
		m.mu.Unlock()
		for _, it := range all {
			if !f(uint16(vb), it.doc()) {
				return
			}
		}
	}
}

// Servers returns the KV addresses that the vbucket map's numbers stand for.
func (b *Bucket) Servers() []string {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	out := make([]string, len(b.nodes))
	for i, nb := range b.nodes {
		out[i] = nb.node.KV()
	}
	return out
}

// Map returns the published vbucket map: [vbucket][copy], active first, as
// numbers into Servers; -1 is a missing copy. nil for a memcached bucket.
func (b *Bucket) Map() [][]int {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	published, _ := b.maps()
	return published
}

// Missing returns the vbuckets without a published active copy.
func (b *Bucket) Missing() []uint16 {
	out := []uint16{}
	for vb, chain := range b.Map() {
		if chain[0] < 0 {
			out = append(out, uint16(vb))
		}
	}
	return out
}

// maps returns vBucketMap and vBucketMapForward (nil if no recovery is under
// way). The cluster's lock is held.
func (b *Bucket) maps() (published, forward [][]int) {
	if b.memcached() {
		return nil, nil
	}
	place := make(map[*nodeBucket]int, len(b.nodes))
	for i, nb := range b.nodes {
		place[nb] = i
	}
	published = make([][]int, len(b.vbs))
	next := make([][]int, len(b.vbs))
	recovering := false
	for vb, m := range b.vbs {
		m.mu.Lock()
		row := make([]int, len(m.chain))
		for i, nb := range m.chain {
			row[i] = -1
			if at, ok := place[nb]; ok {
				row[i] = at
			}
		}
		published[vb], next[vb] = row, row
		if m.owner != nil {
			recovering = true
			next[vb] = slices.Clone(row)
			next[vb][0] = place[m.owner]
		}
		m.mu.Unlock()
	}
	if !recovering {
		next = nil
	}
	return published, next
}

// memberLabel is a node's membership in the cluster as REST names it.
type memberLabel string

const (
	memberNone   memberLabel = ""
	memberActive memberLabel = "active"
	memberFailed memberLabel = "inactiveFailed"
	memberAdded  memberLabel = "inactiveAdded"
)
