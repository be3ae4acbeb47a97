// Package dcp pushes items as a replication stream (DCP) into replica and pending
// vbuckets of 3.0 and later: what sinks/tap is for older servers. It is mc.CBSink
// with connections of its own.
//
// The sink opens DCP with the node as consumer and asks it (ADD_STREAM) to stream a
// vbucket from us. The node then sets up the connection, requests the stream, and
// takes what we push: snapshot markers, system events, mutations, deletions and
// expirations, with CAS, revision, flags, expiry, datatype and extended attributes
// as they are. There is no conflict resolution: nothing is ever Skipped.
//
// The node answers only what it refuses, and names the stream, not the item. So a
// refusal in a round of many items makes all of that vbucket's be sent again, then
// one at a time. What counts as Done is proven (invariant 1): a NOOP behind the items
// was answered, and another connection says that the vbucket's high seqno is that of
// the last item and that it holds at least as many live items as there must be: as
// many as the round left with a value, and those of earlier rounds but for what was
// deleted. More cannot be told from a count of one moment, since a mutation may
// replace another; whoever knows all that a vbucket is to hold (package recovery)
// compares the whole. Connections that push carry nothing else.
package dcp

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/mc"
)

// Options of the sink.
type Options struct {
	Rehash            bool          `opt:"rehash" default:"false" help:"compute each item's vbucket from its key instead of taking the source's"`
	MapCollections    string        `opt:"map-collections" help:"where collections go, as a.b=c.d: collection b of scope a into collection d of scope c; several are separated by commas (7.0 and later)"`
	CreateCollections bool          `opt:"create-collections" default:"false" help:"create scopes and collections that the destination does not have (7.0 and later)"`
	Timeout           time.Duration `opt:"timeout" default:"30s" help:"silence of a node after which a connection is given up"`
}

// DefaultOptions returns the declared defaults.
func DefaultOptions() Options {
	var o Options
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = pump.DecodeOptions("dcp", nil, &o)
	return o
}

// Plugin declares the sink as dcp://host[:8091], a cluster's REST address.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes: []string{"dcp"},
		Summary: "pushes a replication stream into replica and pending vbuckets of a cluster from 3.0 on: dcp://host[:8091]",
		Doc: "For recoveries: active vbuckets are not written. CAS, revision, flags, expiry, datatype, extended attributes and collections are kept; an item without a CAS gets a new one. " +
			"There is no conflict resolution: what is pushed replaces what is there, and nothing is skipped. " +
			"A vbucket that the map gives to nobody is looked for in the map that is to come (vBucketMapForward), then on the nodes: the one that holds it as replica or pending gets it. " +
			"The user needs the privilege DcpConsumer, which a full administrator has.",
		New: func(ctx context.Context, t pump.Target, o Options) (pump.Sink, error) {
			if o.Timeout <= 0 { // New takes options that are all zero for the defaults
				return nil, pump.Usagef("sink %s: option timeout must be above 0", t.Name())
			}
			url := t.Name()
			if t.Scheme == "dcp" {
				url = t.Host()
			}
			return New(ctx, Config{URL: url, Env: t.Env, TLS: cluster.TLSOf(t.Security), Network: t.Security.Network, Options: o})
		},
	}
}

// Config says which cluster to push into. Env gives the bucket, the destination's
// credentials and, for Check, the vbuckets that will be written.
type Config struct {
	URL string // http://host[:8091], couchbase://host or host[:8091]; https and couchbases speak TLS
	pump.Env
	Options Options     // the zero value means DefaultOptions
	TLS     cluster.TLS // used where URL asks for TLS
	Network string      // cluster.NetworkAuto (also ""), NetworkDefault or NetworkExternal
	// Owners names the node (KV host:port) of vbuckets whose place the caller knows
	// better than the bucket's map; see mc.CBConfig.
	Owners map[uint16]string
}

// Sink pushes items as a replication stream. It is a CBSink in everything else.
type Sink struct{ *mc.CBSink }

// New returns a sink. It makes no connection.
func New(_ context.Context, cfg Config) (*Sink, error) {
	if cfg.Options == (Options{}) {
		cfg.Options = DefaultOptions()
	}
	o := mc.DefaultCBOptions()
	o.Rehash, o.Timeout = cfg.Options.Rehash, cfg.Options.Timeout
	o.MapCollections, o.CreateCollections = cfg.Options.MapCollections, cfg.Options.CreateCollections
	d := &dialect{timeout: o.Timeout}
	base, err := mc.NewBase(mc.CBConfig{
		URL: cfg.URL, Env: cfg.Env, Options: o, TLS: cfg.TLS, Network: cfg.Network, Owners: cfg.Owners,
	}, d)
	if err != nil {
		return nil, err
	}
	return &Sink{base}, nil
}

// dialect is what differs from CBSink.
type dialect struct {
	timeout time.Duration

	mu sync.Mutex
	// known is what we have told each vbucket of the manifest, for streams that go on
	// after a lost connection.
	known map[uint16]told
}

// told is the manifest that the events pushed into a vbucket add up to.
type told struct {
	uuid     uint64 // of the vbucket's branch then
	manifest *cluster.Manifest
}

func (d *dialect) Name() string { return "DCP push" }

// AllowState: an active vbucket takes no stream.
func (d *dialect) AllowState(s mcbp.VBState) bool { return s == mcbp.VBReplica || s == mcbp.VBPending }

// FindConn opens the connection and makes the node its consumer.
func (d *dialect) FindConn(ctx context.Context, cfg cluster.KVConfig, _ cluster.Version) (*cluster.Conn, error) {
	c, _, err := d.open(ctx, cfg)
	return c, err
}

func (d *dialect) open(ctx context.Context, cfg cluster.KVConfig) (*cluster.Conn, cluster.DcpOpened, error) {
	cfg.Features = mc.Features()
	c, err := cluster.DialKV(ctx, cfg)
	if err != nil {
		return nil, cluster.DcpOpened{}, err
	}
	// A node closes an older connection of the same name.
	opened, err := c.OpenDcp(ctx, cluster.DcpConfig{Name: "cbpump-" + rand.Text(), Consumer: true})
	if err != nil {
		_ = c.Close()
		return nil, opened, err
	}
	return c, opened, nil
}

func (d *dialect) FindOwners(ctx context.Context, s *mc.CBSink, b *cluster.Bucket, missing []uint16) (map[uint16][]string, error) {
	return s.FindHolders(ctx, b, missing)
}

func (d *dialect) Refuse(it *pump.Item, t *mc.Traits) *pump.Error {
	if !t.Modern && it.Op != pump.Mutation {
		return nil // its value is not sent
	}
	return t.RefuseDatatype(it)
}

func (d *dialect) Request(*pump.Item, *mc.Traits) mc.Request            { return mc.ReqDcp }
func (d *dialect) Append(dst []byte, _ *pump.Item, _ mc.Sending) []byte { return dst }
func (d *dialect) Fenced() bool                                         { return false }

// Link connects to a node twice: to push, and to ask how far it got.
func (d *dialect) Link(ctx context.Context, s *mc.CBSink, b *cluster.Bucket, addr string) (mc.Link, mc.Traits, error) {
	cfg := s.KV(b, addr)
	c, opened, err := d.open(ctx, cfg)
	if err != nil {
		return nil, mc.Traits{}, err
	}
	// Without collections a node would tell the default collection's seqno.
	cfg.Features = []uint16{mcbp.FeatureCollections}
	admin, err := cluster.DialKV(ctx, cfg)
	if err != nil {
		_ = c.Close()
		return nil, mc.Traits{}, err
	}
	t := mc.TraitsOf(c, b)
	if t.Errors, err = admin.ErrorMap(ctx); err != nil {
		_, _ = c.Close(), admin.Close()
		return nil, mc.Traits{}, err
	}
	return newLink(d, s.Manifest, c, admin, opened.DeleteTimes, t), t, nil
}

func (d *dialect) recall(vb uint16, uuid uint64) *cluster.Manifest {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k := d.known[vb]; k.uuid == uuid {
		return k.manifest
	}
	return nil
}

func (d *dialect) remember(vb uint16, uuid uint64, m *cluster.Manifest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = make(map[uint16]told)
	}
	d.known[vb] = told{uuid, m}
}
