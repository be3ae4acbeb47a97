package dcp

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// Options of the source. Their help texts are the documentation.
type Options struct {
	IdleTimeout time.Duration `opt:"idle-timeout" default:"180s" help:"silence of a node after which its stream is given up; NOOPs do not count as a sign of life"`
	StreamOptions
}

// StreamOptions are those that no other source of clusters has.
type StreamOptions struct {
	Follow         bool          `opt:"follow" default:"no" help:"go on with changes after the copy, until stopped (3.0 and later)"`
	FollowInterval time.Duration `opt:"follow-interval" default:"1s" help:"with follow: how often a quiet source is asked for changes"`
	BufferSize     pump.Size     `opt:"buffer-size" default:"4m" help:"bytes that a node may send ahead of what the destination has confirmed, per connection (3.0 and later)"`
	OpenVBuckets   int           `opt:"open-vbuckets" default:"64" help:"most vbuckets that one connection streams at once (3.0 and later)"`
	MapWait        time.Duration `opt:"map-wait" default:"30s" help:"how long to wait for a vbucket that is on its way (rebalance, failover, warm-up) to be active (3.0 and later)"`
	Collection     string        `opt:"collection" help:"only this collection, written scope.collection (7.0 and later)"`
	Uncompress     bool          `opt:"uncompress" default:"no" help:"undo snappy compression of values also where the destination could store it (5.5 and later)"`
	Xattrs         bool          `opt:"xattrs" default:"yes" help:"no leaves extended attributes out, for destinations that cannot store them and would reject such items (5.0 and later)"`
}

// DefaultOptions returns the declared defaults.
func DefaultOptions() Options {
	var o Options
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = pump.DecodeOptions("dcp", nil, &o)
	return o
}

// Plugin returns the declaration of the source for one node, dcp://host:port.
// Clusters are reached through sources/auto, or with New.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes: []string{"dcp"},
		Summary: "streams the vbuckets that are active on one node over DCP (dcp://host:11210); servers from 3.0 on",
		Doc: "Every vbucket's end is proven by its sequence number and by the node's count of live items. The vbucket list " +
			"restricts the copy to those vbuckets. Up to 4.x the login is that of the bucket, from 5.0 on that of the user given.",
		New: func(ctx context.Context, t pump.Target, o Options) (pump.Source, error) {
			return New(ctx, Config{URL: t.Name(), Env: t.Env, TLS: cluster.TLSOf(t.Security), Network: t.Security.Network, Options: o})
		},
	}
}

// Config says what to stream.
type Config struct {
	URL string // http[s]://host[:8091], couchbase[s]://host or dcp://host[:11210]
	pump.Env
	TLS     cluster.TLS // used where URL asks for TLS
	Network string      // cluster.NetworkAuto (also ""), …
	Options Options     // the zero value means DefaultOptions

	// Owners names the node (KV host:port) of vbuckets that are read there whether
	// they are active or replica, whatever the bucket's map says: a recovery looks at
	// what it has written before it makes it active.
	Owners map[uint16]string
}

// New returns a source. It makes no connection; its errors are of wrong use.
func New(_ context.Context, cfg Config) (*Source, error) {
	if cfg.Options == (Options{}) {
		cfg.Options = DefaultOptions()
	}
	o := &cfg.Options
	switch {
	case o.IdleTimeout <= 0:
		return nil, pump.Usagef("option idle-timeout must be above 0: a node that falls silent would be waited for for ever")
	case o.OpenVBuckets < 1:
		return nil, pump.Usagef("option open-vbuckets must be 1 or more")
	case o.BufferSize < 1<<10 || o.BufferSize > 1<<30:
		return nil, pump.Usagef("option buffer-size must be between 1k and 1g")
	case o.Follow && o.FollowInterval <= 0:
		return nil, pump.Usagef("option follow-interval must be above 0")
	}
	if o.Collection != "" {
		if scope, name, ok := strings.Cut(o.Collection, "."); !ok || scope == "" || name == "" || strings.Contains(name, ".") {
			return nil, pump.Usagef("option collection is not of the form scope.collection")
		}
	}
	if cfg.Bucket == "" {
		cfg.Bucket = "default"
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	s := &Source{cfg: cfg}
	if addr, mine, err := places.NodeAddr(kind.Scheme, cfg.URL); err != nil {
		return nil, err
	} else if mine {
		s.at.Places = &oneNode{addr: addr, cfg: &s.cfg}
		return s, nil
	}
	nodes, err := places.NewNodes(kind, places.Config{URL: cfg.URL, Env: cfg.Env, TLS: cfg.TLS, Network: cfg.Network, Features: s.cfg.features})
	if err != nil {
		return nil, err
	}
	s.at.Places = nodes
	if cfg.Owners != nil {
		s.at.Places = &owned{Places: nodes, owners: maps.Clone(cfg.Owners)}
	}
	return s, nil
}

// Codes of the errors of this package, beside those of package places (dcp-missing,
// dcp-no-vbucket, dcp-nothing). They are stable.
const (
	codeCut          = "dcp-cut"         // the connection was cut or broke in mid-stream
	codeIncomplete   = "dcp-incomplete"  // the streams ended, but a vbucket's end is not proven
	codeIdle         = "dcp-idle"        // the node fell silent
	codeNotActive    = "dcp-not-active"  // a vbucket is not active where it should be
	codeUnsupported  = "dcp-unsupported" // the server has no DCP
	codeRefused      = "dcp-refused"     // the server refused a stream
	codeEnded        = "dcp-ended"       // the server ended a stream before its end
	codeFlushed      = "dcp-flushed"     // the bucket was flushed in mid-stream
	codeProtocol     = "dcp-protocol"    // the peer does not keep to the protocol
	codeForeign      = "dcp-foreign"     // messages of a stream that was not asked for
	codeNoCollection = "dcp-no-collection"
	codeBadMark      = "dcp-bad-mark" // a mark that was handed in cannot be read
)

func noDcp(op string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: codeUnsupported, Op: op,
		Err:  errors.New("the server has no DCP (it came with Couchbase Server 3.0)"),
		Hint: "Older servers are read over TAP: protocol=tap."}
}
