package tap

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// Options of the source. Their help texts are the documentation.
type Options struct {
	FlushTimeout time.Duration `opt:"flush-timeout" default:"60s" help:"how long to wait before a dump until the node has written everything to disk (3.0 and later dump from disk); 0 does not wait"`
	IdleTimeout  time.Duration `opt:"idle-timeout" default:"180s" help:"silence of a node after which a dump is given up; NOOPs do not count as a sign of life"`
	DumpVBuckets int           `opt:"dump-vbuckets" default:"64" help:"most vbuckets that one connection dumps; a cut costs no more than these"`
	EndProof     string        `opt:"end-proof" default:"marker" enum:"marker,count" help:"what proves the end of a vbucket beside its item count: the server's end marker, or (count) also its absence where the last message was acknowledged"`
}

// DefaultOptions returns the declared defaults.
func DefaultOptions() Options {
	var o Options
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = pump.DecodeOptions("tap", nil, &o)
	return o
}

// Values of the option end-proof.
const (
	endProofMarker = "marker"
	endProofCount  = "count"
)

// Plugin returns the declaration of the source for a registry: http and
// couchbase for clusters, tap for one node. A frontend that wants only some of
// the schemes changes Schemes before it registers.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes: []string{"http", "couchbase", "tap"},
		Summary: "dumps a bucket over TAP from a cluster (http, couchbase) or from one node (tap://host:11210); servers up to 4.6",
		Doc: "Every vbucket's end is proven by the server's end marker and its item count; what cannot be proven is dumped again, " +
			"and named in the error if it still cannot. The vbucket list restricts the dump to those vbuckets. " +
			"With tap:// the vbuckets that are active on that node are dumped. It logs in as the bucket (-b) with the bucket's own password (-p); " +
			"another user, such as the REST port's from CB_REST_USERNAME, is not used: then the bucket is tried without a password first.",
		New: func(ctx context.Context, t pump.Target, o Options) (pump.Source, error) {
			return New(ctx, Config{URL: t.Name(), Env: t.Env, TLS: cluster.TLSOf(t.Security), Network: t.Security.Network, Options: o})
		},
	}
}

// Config says what to dump.
type Config struct {
	URL string // http://host[:8091], couchbase://host or tap://host[:11210]
	pump.Env
	TLS     cluster.TLS // used where URL asks for TLS
	Network string      // cluster.NetworkAuto (also ""), …
	Options Options     // the zero value means DefaultOptions
}

// New returns a source. It makes no connection; its errors are of wrong use.
func New(_ context.Context, cfg Config) (*DumpSource, error) {
	if cfg.Options == (Options{}) {
		cfg.Options = DefaultOptions()
	}
	o := &cfg.Options
	switch {
	case o.FlushTimeout < 0:
		return nil, pump.Usagef("option flush-timeout is negative")
	case o.IdleTimeout <= 0:
		return nil, pump.Usagef("option idle-timeout must be above 0: a node that falls silent would be waited for for ever")
	case o.DumpVBuckets < 1:
		return nil, pump.Usagef("option dump-vbuckets must be 1 or more")
	case o.EndProof != endProofMarker && o.EndProof != endProofCount:
		return nil, pump.Usagef("option end-proof must be %s or %s", endProofMarker, endProofCount)
	}
	if cfg.Bucket == "" {
		cfg.Bucket = "default"
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	s := &DumpSource{cfg: cfg}
	if addr, mine, err := places.NodeAddr(kind.Scheme, cfg.URL); err != nil {
		return nil, err
	} else if mine {
		s.at.Places = &oneNode{addr: addr, cfg: &s.cfg}
		return s, nil
	}
	nodes, err := places.NewNodes(kind, places.Config{URL: cfg.URL, Env: cfg.Env, TLS: cfg.TLS, Network: cfg.Network})
	if err != nil {
		return nil, err
	}
	s.at.Places = nodes
	return s, nil
}

// Codes of the errors of this package, beside those of package places (tap-missing,
// tap-no-vbucket, tap-nothing). They are stable.
const (
	codeCut         = "tap-cut"         // the connection was cut or broke in mid-dump
	codeIncomplete  = "tap-incomplete"  // the dump ended, but a vbucket's end is not proven
	codeIdle        = "tap-idle"        // the node fell silent
	codeNotActive   = "tap-not-active"  // a vbucket is not active where it should be
	codeUnflushed   = "tap-unflushed"   // the node's disk queue does not get empty
	codeUnsupported = "tap-unsupported" // the server has no TAP
	codeRefused     = "tap-refused"     // the server refused the dump
	codeFlushed     = "tap-flushed"     // the bucket was flushed in mid-dump
	codeProtocol    = "tap-protocol"    // the peer does not speak TAP
	codeForeign     = "tap-foreign"     // messages of a vbucket that was not asked for
)

var errNoTap = errors.New("the server has no TAP (it was removed in Couchbase Server 5.0)")

func noTap(op string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: codeUnsupported, Op: op, Err: errNoTap,
		Hint: "This source reads servers up to 4.6; newer ones are read over DCP."}
}
