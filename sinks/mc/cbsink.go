package mc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

const role = "destination"

// CBOptions are the options of the cluster sink.
type CBOptions struct {
	Operation          string        `opt:"operation" default:"set" enum:"set,add" help:"set stores each item; add stores only keys that the destination does not have"`
	ConflictResolution bool          `opt:"conflict-resolution" default:"true" help:"keep what the destination holds where that is newer; false overwrites it"`
	WithMeta           bool          `opt:"with-meta" default:"true" help:"keep CAS and revision; false stores plain items, which get a new CAS and revision and overwrite without conflict resolution"`
	Rehash             bool          `opt:"rehash" default:"false" help:"compute each item's vbucket from its key instead of taking the source's: needed where the two clusters have different numbers of vbuckets"`
	MapCollections     string        `opt:"map-collections" help:"where collections go, as a.b=c.d: collection b of scope a into collection d of scope c; several are separated by commas (7.0 and later)"`
	CreateCollections  bool          `opt:"create-collections" default:"false" help:"create scopes and collections that the destination does not have (7.0 and later)"`
	Durable            bool          `opt:"durable" default:"false" help:"count an item as done only when the node has written it to disk, which is slower"`
	Timeout            time.Duration `opt:"timeout" default:"30s" help:"silence of a node after which a connection is given up"`
}

// DefaultCBOptions returns the declared defaults.
func DefaultCBOptions() CBOptions {
	var o CBOptions
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = pump.DecodeOptions("cluster", nil, &o)
	return o
}

// CBConfig says which cluster to write to. Env gives the bucket, the
// destination's credentials and, for Check, the vbuckets that will be written
// (nil means all).
type CBConfig struct {
	URL string // http://host[:8091] or couchbase://host; https and couchbases speak TLS
	pump.Env
	Options CBOptions   // the zero value means DefaultCBOptions
	TLS     cluster.TLS // used where URL asks for TLS
	Network string      // cluster.NetworkAuto (also ""), NetworkDefault or NetworkExternal

	// Owners names the node (KV host:port, as cluster.Node.KV has it) of vbuckets
	// whose place the caller knows better than the bucket's map: during a recovery
	// the map gives a missing vbucket to nobody until it is committed.
	Owners map[uint16]string
	// Force writes whatever the destination holds, and also into vbuckets that are
	// replica or pending. It is for recoveries, and overrules the options
	// conflict-resolution and with-meta: such vbuckets take no plain requests.
	Force bool
}

// CBPlugin declares the cluster sink.
func CBPlugin() pump.SinkPlugin[CBOptions] {
	return pump.SinkPlugin[CBOptions]{
		Schemes: []string{"http", "couchbase", "https", "couchbases"},
		Summary: "a bucket of a Couchbase cluster: http://host[:8091], https://host[:18091] with TLS",
		Doc: "Each item goes to the node that has its vbucket, with its CAS, revision, flags and expiry. What the destination holds is kept where it is newer (skipped), and counts as done where it is the same, so that a copy can be repeated. " +
			"Items that have neither CAS nor revision (generated ones, some files) are stored as plain items.\n\n" +
			"Only vbuckets that are active at their node are written: a pending one would park the request for ever. " +
			"With operation=add nothing that the destination holds is changed, so deletions are skipped. " +
			"Compressed values, extended attributes and datatypes are kept from 5.0 on; servers up to 4.x cannot hold them: compressed values are unpacked, items with extended attributes are rejected, and deletions go there without what is attached to them. " +
			"From 5.0 on servers refuse items without a CAS: they get a new one, and in a last-write-wins bucket lose against what is there. " +
			"From 7.0 on items go to the collection of the same name (map-collections, create-collections); a maximum time to live of the collection changes their expiry. " +
			"Nodes up to 2.5 take an expiry up to 30 days after 1970 for a span from now; such an expiry is stored there as a later one that is over too.",
		New: func(ctx context.Context, t pump.Target, o CBOptions) (pump.Sink, error) {
			return NewCB(ctx, CBConfig{URL: t.Name(), Env: t.Env, TLS: cluster.TLSOf(t.Security), Network: t.Security.Network, Options: o})
		},
	}
}

// Dialect is what a sink that is built on CBSink does its own way. The
// specification's check_base and findconn are AllowState and FindConn.
type Dialect interface {
	// Name tells the connections apart in messages: "TAP push".
	Name() string
	// AllowState reports whether a vbucket in state s may be written.
	AllowState(s mcbp.VBState) bool
	// FindConn opens a connection that carries this sink's items and nothing else.
	// The version is the node's; the zero one if it is not known.
	FindConn(ctx context.Context, cfg cluster.KVConfig, v cluster.Version) (*cluster.Conn, error)
	// FindOwners names the nodes (KV host:port) that have the given vbuckets,
	// which the bucket's map gives to nobody. An error of it ends the run unless
	// another try may help.
	FindOwners(ctx context.Context, s *CBSink, b *cluster.Bucket, missing []uint16) (map[uint16][]string, error)
	// Refuse returns why an item cannot be sent at all to a node, or nil.
	Refuse(it *pump.Item, t *Traits) *pump.Error
	// Request says which kind of request Append makes of an item.
	Request(it *pump.Item, t *Traits) Request
	// Append appends the request for an item, which Refuse let pass. Its key, value
	// and datatype are as the node takes them.
	Append(dst []byte, it *pump.Item, to Sending) []byte
	// Fenced reports that the last request of a round is answered in any case and
	// so ends it; else a NOOP does.
	Fenced() bool
}

// Sending says how an item is sent.
type Sending struct {
	Opaque uint32
	Last   bool // nothing more follows on this connection in this round
	*Traits
}

// Linker is a Dialect whose items do not travel as single requests: it makes its
// own connections. FindConn, Append and Fenced are not called then.
type Linker interface {
	Link(ctx context.Context, s *CBSink, b *cluster.Bucket, addr string) (Link, Traits, error)
}

// Link is a lane's connection to one node. One goroutine uses it; what it sends
// and waits for in one Write is a round.
type Link interface {
	// Begin starts a round. vbs are the vbuckets of the items that follow, and an
	// entry says which of them cannot be written: their items are left out.
	Begin(ctx context.Context, vbs []uint16) (refused map[uint16]*pump.Error, err error)
	// Append sends an item, whose index in the batch is i and whose key, value and
	// datatype are as the node takes them. Errors are kept for Wait.
	Append(i int, it *pump.Item)
	// Wait ends the round. Without an error every item that is not refused is
	// confirmed (invariant 1); after one the link is of no more use.
	Wait() ([]Refusal, error)
	// Explain is the error of the connection for an answer that ends the run.
	Explain(op string, f *mcbp.Frame) error
	Close() error
}

// Refusal is an item that the node of a Link refused.
type Refusal struct {
	Index  int
	Status mcbp.Status
	Text   []byte // what the node said
	// Again is why the item must be sent again although only one beside it may have
	// been refused: the answer does not say which. nil: Status is about this item.
	Again *pump.Error
}

// CBSink writes to a bucket of a cluster, each item to the node that has its
// vbucket.
type CBSink struct {
	cfg     CBConfig
	client  *cluster.Client
	dialect Dialect
	log     hclog.Logger
	// resolves: the destination may be left to decide which version is newer.
	resolves bool

	view   atomic.Pointer[view]
	laneOf []int // lane of each vbucket; fixed by Lanes
	// Route has compared each item's vbucket with its key's, and found one that differs.
	routed, astray atomic.Bool

	collections collections

	// Who finds the map wrong, or a vbucket without a node, waits for the answer to
	// one question, and no longer than its own context lasts.
	reading cluster.Shared[*view]
	finding cluster.Shared[owners]

	mu  sync.Mutex      // held while the view is replaced, never while somebody is asked
	rev [2]int64        // epoch and revision of the last map that a node sent
	via *cluster.Client // the node that answered last
	// ask returns a client of another node. It is a function so that no printed
	// sink shows the password (invariant 9).
	ask func(addr string) (*cluster.Client, error)

	attests bool              // a new history of a vbucket is an error
	before  map[uint16]uint64 // uuids of vbuckets when lanes were given out
}

// view is the bucket's map at one moment. Indexes of addrs mean the same node in
// every later view.
type view struct {
	bucket *cluster.Bucket
	addrs  []string
	owner  []int // of each vbucket an index in addrs, or -1
	nodes  int   // that own a vbucket
}

// NewCB returns a sink for a cluster. It makes no connection.
func NewCB(_ context.Context, cfg CBConfig) (*CBSink, error) {
	s, err := NewBase(cfg, nil)
	if err != nil {
		return nil, err
	}
	s.dialect, s.resolves = &metaDialect{o: s.cfg.Options, replicas: cfg.Force}, true
	s.attests = !cfg.Force // who forces writes into replicas, and looks after them
	return s, nil
}

// NewBase returns a CBSink that writes the way the dialect says, for sinks that
// embed it.
func NewBase(cfg CBConfig, d Dialect) (*CBSink, error) {
	if cfg.Options == (CBOptions{}) {
		cfg.Options = DefaultCBOptions()
	}
	if cfg.Options.Timeout <= 0 {
		return nil, pump.Usagef("%s: option timeout must be above 0", role)
	}
	if cfg.Force {
		cfg.Options.ConflictResolution = false
	}
	if cfg.Bucket == "" {
		cfg.Bucket = "default"
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	cfg.Owners = maps.Clone(cfg.Owners)
	rest := cluster.Config{
		Role: role, Username: cfg.Username, Password: cfg.Password, Timeout: cfg.Options.Timeout, Log: cfg.Log,
		TLS: cfg.TLS, Network: cfg.Network,
	}
	ask := func(addr string) (*cluster.Client, error) { return cluster.NewClient(addr, rest) }
	client, err := ask(cfg.URL)
	if err != nil {
		return nil, err
	}
	cfg.Password = ""
	mapping, err := parseMapping(cfg.Options.MapCollections)
	if err != nil {
		return nil, pump.Usagef("%s: option map-collections %w", role, err)
	}
	return &CBSink{
		collections: collections{mapping: mapping, asking: make(chan struct{}, 1)},
		cfg:         cfg, client: client, dialect: d, log: cfg.Log, via: client, ask: ask,
	}, nil
}

// Client returns the client of the destination's REST port.
func (s *CBSink) Client() *cluster.Client { return s.client }

// Close closes idle connections; lanes own the others.
func (s *CBSink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.Close()
	s.via.Close()
	return nil
}

// Bucket returns the bucket's description as it was last read.
func (s *CBSink) Bucket(ctx context.Context) (*cluster.Bucket, error) {
	v, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	return v.bucket, nil
}

// Datatypes returns the forms of values that all nodes store, as far as their
// versions tell. A node that turns out to be another gets what it takes all the same.
func (s *CBSink) Datatypes(ctx context.Context) (uint8, error) {
	v, err := s.current(ctx)
	if err != nil {
		return 0, err
	}
	taken := pump.DatatypeJSON | pump.DatatypeSnappy | pump.DatatypeXattr
	for _, n := range v.bucket.Nodes {
		switch {
		case n.Version == cluster.Version{}, n.Version.AtLeast(5, 5):
		case n.Version.AtLeast(5, 0):
			taken &^= pump.DatatypeSnappy
		default:
			taken &^= pump.DatatypeSnappy | pump.DatatypeXattr
		}
	}
	return taken, nil
}

// Identity says which bucket is written.
func (s *CBSink) Identity(ctx context.Context) (pump.Identity, error) {
	v, err := s.current(ctx)
	if err != nil {
		return pump.Identity{}, err
	}
	id := v.bucket.Identity(s.client.URL())
	if o := &s.cfg.Options; !s.resolves || !o.ConflictResolution || !o.WithMeta || o.Operation == "add" {
		id.Resolves = ""
	}
	return id, nil
}

// current returns the map, asking for it the first time.
func (s *CBSink) current(ctx context.Context) (*view, error) {
	if v := s.view.Load(); v != nil {
		return v, nil
	}
	return s.refresh(ctx, nil)
}

// refresh replaces the view that the caller found wrong. Of several lanes that
// do so at the same time one asks.
func (s *CBSink) refresh(ctx context.Context, wrong *view) (*view, error) {
	for {
		if v := s.view.Load(); v != wrong {
			return v, nil
		}
		// The answer may be that to a lane which found an older view wrong.
		if v, err := s.reading.Do(ctx, s.read); err != nil || v != wrong {
			return v, err
		}
	}
}

// read asks for the map and makes it the view.
func (s *CBSink) read(ctx context.Context) (*view, error) {
	old := s.view.Load()
	b, err := s.describe(ctx, old)
	if err != nil {
		return nil, err
	}
	if err := b.RequireVBuckets(role); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.view.Load(); v != old {
		return v, nil // a node sent a newer map meanwhile
	}
	v := s.newView(b, old)
	if old != nil {
		if len(old.owner) != len(v.owner) {
			return nil, &pump.Error{Code: "vbucket-count", Op: s.op("read its map"),
				Err:  fmt.Errorf("the bucket had %d vbuckets and now has %d", len(old.owner), len(v.owner)),
				Hint: "somebody deleted the bucket and made it again; find out who, then run again"}
		}
		s.log.Debug("read the vbucket map again", "bucket", b.Name)
	}
	s.view.Store(v)
	return v, nil
}

func (s *CBSink) newView(b *cluster.Bucket, old *view) *view {
	v := &view{bucket: b, owner: make([]int, b.Map.Len())}
	if old != nil {
		v.addrs = slices.Clone(old.addrs)
	}
	for vb := range v.owner {
		v.owner[vb] = -1
		if addr, ok := s.cfg.Owners[uint16(vb)]; ok {
			v.own(vb, addr)
		} else if addr, ok := b.Map.Active(uint16(vb)); ok {
			v.own(vb, addr)
		}
	}
	return v
}

// adopt takes the map that a node sent with a NOT_MY_VBUCKET answer in place of
// the one that the caller found wrong. A map that is older than one seen before, or
// that changes nothing, does not help: the REST port must be asked.
func (s *CBSink) adopt(wrong *view, m *cluster.Map) (helped bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.view.Load()
	if old != wrong {
		return true
	}
	if m.Len() != len(old.owner) || m.RevEpoch < s.rev[0] || m.RevEpoch == s.rev[0] && m.Rev <= s.rev[1] {
		return false
	}
	s.rev = [2]int64{m.RevEpoch, m.Rev}
	b := *old.bucket
	b.Map = *m
	v := s.newView(&b, old)
	if slices.Equal(v.owner, old.owner) {
		return false
	}
	s.view.Store(v)
	s.log.Debug("took the vbucket map of a node", "bucket", b.Name, "revision", m.Rev)
	return true
}

// describe reads the bucket's description from the node that gave it last, and
// from the others when that one has died: after a failover it is these that know
// where the vbuckets are.
func (s *CBSink) describe(ctx context.Context, old *view) (*cluster.Bucket, error) {
	via := s.rest()
	b, err := via.Bucket(ctx, s.cfg.Bucket)
	if err == nil || old == nil || !mayRetry(err) {
		return b, err
	}
	for _, n := range old.bucket.Nodes {
		if ctx.Err() != nil {
			break
		}
		other, e := s.ask(n.Host)
		if e != nil {
			continue
		}
		if b, e = other.Bucket(ctx, s.cfg.Bucket); e != nil {
			other.Close()
			continue
		}
		s.log.Warn("the cluster is asked through another node", "node", n.Host, "because", err)
		s.mu.Lock()
		s.via = other
		s.mu.Unlock()
		via.Close()
		return b, nil
	}
	return nil, err
}

func (v *view) own(vb int, addr string) {
	i := slices.Index(v.addrs, addr)
	if i < 0 {
		i = len(v.addrs)
		v.addrs = append(v.addrs, addr)
	}
	if v.owner[vb] != i && !slices.Contains(v.owner, i) {
		v.nodes++
	}
	v.owner[vb] = i
}

// owners is what FindOwners found of the vbuckets that were missing.
type owners struct {
	missing []uint16
	at      map[uint16][]string
}

// locate finds the owner of a vbucket that the map gives to nobody: in a new
// map, or as the dialect does.
func (s *CBSink) locate(ctx context.Context, vb uint16, v *view) (*view, error) {
	v, err := s.refresh(ctx, v)
	if err != nil || v.owner[vb] >= 0 {
		return v, err
	}
	for {
		if v = s.view.Load(); v.owner[vb] >= 0 {
			return v, nil // another lane found it
		}
		found, err := s.finding.Do(ctx, s.find)
		if err != nil {
			return nil, err
		}
		if v = s.view.Load(); v.owner[vb] >= 0 {
			return v, nil
		}
		if !slices.Contains(found.missing, vb) {
			continue // it was asked for others
		}
		at := found.at[vb]
		if len(at) == 0 {
			return nil, s.noOwner(fmt.Errorf("vbucket %d has no node", vb))
		}
		at = slices.Sorted(slices.Values(at))
		return nil, &pump.Error{Code: "several-owners", Op: s.op("find vbucket " + fmt.Sprint(vb)),
			Err:  fmt.Errorf("the map gives it to nobody, and more than one node holds it: %v", at),
			Hint: "find out which node is to have it, and delete it on the others"}
	}
}

// find asks the dialect for the owners of all vbuckets that have none, and makes
// those that it names the view.
func (s *CBSink) find(ctx context.Context) (found owners, err error) {
	v := s.view.Load()
	for n, o := range v.owner {
		if o < 0 {
			found.missing = append(found.missing, uint16(n))
		}
	}
	if found.at, err = s.dialect.FindOwners(ctx, s, v.bucket, found.missing); err != nil {
		return found, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v = s.view.Load()
	next := &view{bucket: v.bucket, addrs: slices.Clone(v.addrs), owner: slices.Clone(v.owner), nodes: v.nodes}
	for n, at := range found.at {
		if len(at) == 1 && int(n) < len(next.owner) && next.owner[n] < 0 {
			next.own(int(n), at[0])
		}
	}
	s.view.Store(next)
	return found, nil
}

func (s *CBSink) noOwner(why error) error {
	return &pump.Error{Code: "no-owner", Op: s.op("find the node of each vbucket"), Err: why,
		Hint: "a node was failed over and no replica was left: recover these vbuckets with cbrecovery, or leave them out with --vbucket-list"}
}

func (s *CBSink) op(what string) string {
	return fmt.Sprintf("%s %s, bucket %q: %s", role, s.client.URL(), s.cfg.Bucket, what)
}

// Lanes reads the map and returns want lanes; with want 0 as many for each node
// as make at least 8. A lane's vbuckets are of one node as long as the map stays
// as it is.
func (s *CBSink) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	v, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	nodes := max(1, len(v.addrs))
	_, answers := s.dialect.(*metaDialect)
	ahead := answers && !s.cfg.Options.Durable
	if want <= 0 {
		const least = 8
		want = nodes * ((least + nodes - 1) / nodes)
	}
	want = min(want, max(1, len(v.owner)))
	s.laneOf = make([]int, len(v.owner))
	of := make([]int, nodes) // how many vbuckets each node has, of those before
	for vb, o := range v.owner {
		if o < 0 {
			s.laneOf[vb] = vb % want
			continue
		}
		if want <= nodes {
			s.laneOf[vb] = o % want
			continue
		}
		// Lanes o, o+nodes, o+2·nodes … are this node's.
		s.laneOf[vb] = o + nodes*pump.Spread(of[o], (want-o+nodes-1)/nodes)
		of[o]++
	}
	s.remember(ctx, v)
	lanes := make([]pump.Lane, want)
	for i := range lanes {
		l := &cbLane{sink: s}
		if lanes[i] = l; ahead {
			lanes[i] = cbAhead{l}
		}
	}
	return lanes, nil
}

// Route fills in the vbucket of an item that has none, or of every item with
// option rehash, and returns its lane. It sees an item while its key is still in the
// cache, so the hash is compared here and not once more when it is written.
func (s *CBSink) Route(it *pump.Item) int {
	n := len(s.laneOf)
	if n == 0 {
		return 0
	}
	switch vb := cluster.VBucketOf(it.Key, n); {
	case it.VBucket == pump.NoVBucket || s.cfg.Options.Rehash:
		it.VBucket = vb
	case it.VBucket != vb:
		s.astray.Store(true)
	}
	if !s.routed.Load() {
		s.routed.Store(true)
	}
	return s.laneOf[int(it.VBucket)%n]
}

// Place names the node that has an item's vbucket, and says how many nodes there
// are that have some.
func (s *CBSink) Place(it *pump.Item) (string, int) {
	v := s.view.Load()
	if v == nil || int(it.VBucket) >= len(v.owner) || v.owner[it.VBucket] < 0 {
		return "", 0
	}
	return v.addrs[v.owner[it.VBucket]], v.nodes
}

// VBucketCount returns how many vbuckets the bucket has, 0 with option rehash.
func (s *CBSink) VBucketCount(ctx context.Context) (int, error) {
	if s.cfg.Options.Rehash {
		return 0, nil
	}
	v, err := s.current(ctx)
	if err != nil {
		return 0, err
	}
	return len(v.owner), nil
}

// Check logs in to every node of the map and asks it for its vbuckets: those
// that are to be written must be in a state that can be.
func (s *CBSink) Check(ctx context.Context) error {
	v, err := s.current(ctx)
	if err != nil {
		return err
	}
	want := s.cfg.VBuckets
	if want == nil || s.cfg.Options.Rehash {
		want = make([]uint16, len(v.owner))
		for vb := range want {
			want[vb] = uint16(vb)
		}
	}
	var lost []uint16
	for _, vb := range want {
		switch {
		case int(vb) >= len(v.owner):
			return &pump.Error{Class: pump.ClassUsage, Code: "no-vbucket", Op: s.op("check"),
				Err: fmt.Errorf("there is no vbucket %d: the bucket has %d", vb, len(v.owner))}
		case v.owner[vb] < 0:
			next, err := s.locate(ctx, vb, v)
			if pump.CodeOf(err) == "no-owner" {
				lost = append(lost, vb)
				continue
			}
			if err != nil {
				return err
			}
			v = next
		}
	}
	if len(lost) > 0 {
		return s.noOwner(fmt.Errorf("no node has vbuckets %s", list(lost)))
	}
	for i, addr := range v.addrs {
		mine := slices.DeleteFunc(slices.Clone(want), func(vb uint16) bool { return v.owner[vb] != i })
		states, err := s.states(ctx, v, addr)
		if err != nil {
			return err
		}
		bad := slices.DeleteFunc(mine, func(vb uint16) bool { return s.dialect.AllowState(states[vb]) })
		if len(bad) > 0 {
			return s.badState(addr, bad[0], states[bad[0]], len(bad)-1)
		}
	}
	return nil
}

func (s *CBSink) badState(addr string, vb uint16, state mcbp.VBState, more int) *pump.Error {
	text := fmt.Sprintf("vbucket %d is %s there", vb, state)
	if more > 0 {
		text += fmt.Sprintf(", and %d more cannot be written either", more)
	}
	e := &pump.Error{Code: "vbucket-state", Op: fmt.Sprintf("write to %s node %s", role, addr), Err: errors.New(text), Retry: true,
		Hint: "wait until a rebalance or warm-up is over"}
	if state == mcbp.VBReplica || state == mcbp.VBPending {
		e.Hint = "a recovery writes to such vbuckets (cbrecovery); a copy waits until they are active"
	}
	return e
}

// list prints vbuckets, the first of many.
func list(vbs []uint16) string {
	if len(vbs) > 8 {
		return fmt.Sprintf("%v and %d more", vbs[:8], len(vbs)-8)
	}
	return fmt.Sprint(vbs)
}

// states asks a node for the states of its vbuckets, on a connection of its own:
// nothing but pushes may travel where TAP messages are pushed.
func (s *CBSink) states(ctx context.Context, v *view, addr string) ([]mcbp.VBState, error) {
	states := make([]mcbp.VBState, len(v.owner))
	err := s.Ask(ctx, v.bucket, addr, func(c *cluster.Conn) error {
		details, err := c.VBucketDetails(ctx)
		for vb, info := range details {
			if int(vb) < len(states) {
				states[vb] = info.State
			}
		}
		return err
	})
	return states, err
}

// Ask connects to a node, lets ask put its questions, and closes the connection.
func (s *CBSink) Ask(ctx context.Context, b *cluster.Bucket, addr string, ask func(*cluster.Conn) error) error {
	c, err := cluster.DialKV(ctx, s.client.KV(b, addr))
	if err != nil {
		return err
	}
	defer c.Close()
	return ask(c)
}

// KV says how to reach a node of the bucket.
func (s *CBSink) KV(b *cluster.Bucket, addr string) cluster.KVConfig { return s.client.KV(b, addr) }

// FindHolders is Dialect.FindOwners of sinks that write replica and pending
// vbuckets: it looks in the map that is to come, then asks the nodes.
func (s *CBSink) FindHolders(ctx context.Context, b *cluster.Bucket, missing []uint16) (map[uint16][]string, error) {
	found := make(map[uint16][]string)
	var unknown []uint16
	for _, vb := range missing {
		if addr, ok := b.Map.ForwardActive(vb); ok {
			found[vb] = []string{addr}
		} else {
			unknown = append(unknown, vb)
		}
	}
	if len(unknown) == 0 {
		return found, nil
	}
	addrs := slices.Clone(b.Map.Servers)
	for _, n := range b.Nodes {
		if n.KV != "" && !slices.Contains(addrs, n.KV) {
			addrs = append(addrs, n.KV)
		}
	}
	var failed error
	for _, addr := range addrs {
		err := s.Ask(ctx, b, addr, func(c *cluster.Conn) error {
			details, err := c.VBucketDetails(ctx)
			for _, vb := range unknown {
				if s := details[vb].State; s == mcbp.VBReplica || s == mcbp.VBPending {
					found[vb] = append(found[vb], addr)
				}
			}
			return err
		})
		failed = errors.Join(failed, err)
	}
	switch {
	case failed == nil:
		return found, nil
	case pump.ClassOf(failed) == pump.ClassDenied:
		return nil, failed
	}
	// A node that was not heard may hold any of them.
	return nil, pump.Retryable(failed)
}
