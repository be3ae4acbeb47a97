// Package auto is the source of whole clusters: it reads over DCP what offers DCP
// (Couchbase Server 3.0 and later) and over TAP what does not. The option protocol
// overrides the choice.
package auto

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/dcp"
	"github.com/cbpump/cbpump/sources/tap"
)

// Values of the option protocol.
const (
	ProtocolAuto = "auto"
	ProtocolTAP  = "tap"
	ProtocolDCP  = "dcp"
)

// Options are those of both sources. What only one of them has does nothing in
// the other, and its help says so.
type Options struct {
	Protocol string `opt:"protocol" default:"auto" enum:"auto,tap,dcp" help:"how the cluster is read; auto: DCP from 3.0 on, TAP before"`
	tap.Options
	dcp.StreamOptions
}

// DefaultOptions returns the declared defaults.
func DefaultOptions() Options {
	var o Options
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = pump.DecodeOptions("auto", nil, &o)
	return o
}

// Plugin returns the declaration of the source for a registry.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes: []string{"http", "https", "couchbase", "couchbases"},
		Summary: "copies a bucket from a cluster (http, couchbase; https and couchbases with TLS): over DCP from 3.0 on, over TAP before",
		Doc: "Every vbucket's end is proven: over DCP by its sequence number and item count, over TAP by the server's end marker and its item count. " +
			"What cannot be proven is read again, and named in the error if it still cannot. The vbucket list restricts the copy to those vbuckets.",
		New: func(ctx context.Context, t pump.Target, o Options) (pump.Source, error) {
			return New(ctx, Config{URL: t.Name(), Env: t.Env, TLS: cluster.TLSOf(t.Security), Network: t.Security.Network, Options: o})
		},
	}
}

// Config says what to copy.
type Config struct {
	URL string // http[s]://host[:8091] or couchbase[s]://host
	pump.Env
	TLS     cluster.TLS // used where URL asks for TLS
	Network string      // cluster.NetworkAuto (also ""), …
	Options Options     // the zero value means DefaultOptions
}

// New returns a source. It makes no connection; its errors are of wrong use.
func New(ctx context.Context, cfg Config) (*Source, error) {
	if cfg.Options == (Options{}) {
		cfg.Options = DefaultOptions()
	}
	if cfg.Bucket == "" {
		cfg.Bucket = "default"
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	s := &Source{cfg: cfg}
	o := &cfg.Options
	if !slices.Contains([]string{ProtocolAuto, ProtocolTAP, ProtocolDCP}, o.Protocol) {
		return nil, pump.Usagef("option protocol must be %s, %s or %s", ProtocolAuto, ProtocolTAP, ProtocolDCP)
	}
	if o.Protocol != ProtocolDCP {
		over, err := tap.New(ctx, tap.Config{URL: cfg.URL, Env: cfg.Env, TLS: cfg.TLS, Network: cfg.Network, Options: o.Options})
		if err != nil {
			return nil, err
		}
		s.tap = over
	}
	if o.Protocol != ProtocolTAP {
		over, err := dcp.New(ctx, dcp.Config{URL: cfg.URL, Env: cfg.Env, TLS: cfg.TLS, Network: cfg.Network,
			Options: dcp.Options{IdleTimeout: o.IdleTimeout, StreamOptions: o.StreamOptions}})
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.dcp = over
	}
	switch o.Protocol {
	case ProtocolTAP:
		if err := s.onlyDcp(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.chosen = s.tap
	case ProtocolDCP:
		s.chosen = s.dcp
	}
	return s, nil
}

// Source is a TAP or a DCP source, whichever the cluster calls for. It decides
// when it is first asked for something. It implements pump.Source, pump.Checker
// and pump.Estimator; other abilities are those of the source it became.
type Source struct {
	cfg Config
	tap *tap.DumpSource
	dcp *dcp.Source

	mu     sync.Mutex
	chosen pump.Source // nil until it is decided
}

// choose returns the source to use.
func (s *Source) choose(ctx context.Context) (pump.Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chosen != nil {
		return s.chosen, nil
	}
	client, err := cluster.NewClient(s.cfg.URL, cluster.Config{
		Role: "source", Username: s.cfg.Username, Password: s.cfg.Password, TLS: s.cfg.TLS, Network: s.cfg.Network, Log: s.cfg.Log})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	b, err := client.Bucket(ctx, s.cfg.Bucket)
	if err != nil {
		return nil, err
	}
	protocol, why := decide(b)
	if protocol == ProtocolTAP {
		if err := s.onlyDcp(); err != nil {
			return nil, err
		}
		s.chosen = s.tap
	} else {
		s.chosen = s.dcp
	}
	s.cfg.Log.Info("how the source is read", "protocol", protocol, "reason", why)
	return s.chosen, nil
}

// decide chooses by what all nodes of the bucket can.
func decide(b *cluster.Bucket) (protocol, why string) {
	v := b.MinVersion()
	switch {
	case v.AtLeast(3, 0):
		return ProtocolDCP, fmt.Sprintf("all nodes are of version %s or later", v)
	case v != (cluster.Version{}):
		return ProtocolTAP, fmt.Sprintf("there is a node of version %s, and DCP came with 3.0", v)
	case b.HasCapability("dcp"):
		return ProtocolDCP, "the bucket offers DCP"
	}
	return ProtocolTAP, "the nodes do not tell their versions, and the bucket does not offer DCP"
}

// onlyDcp is the error of options that TAP cannot fulfil.
func (s *Source) onlyDcp() error {
	name := ""
	switch o := &s.cfg.Options; {
	case o.Follow:
		name = "follow"
	case o.Collection != "":
		name = "collection"
	default:
		return nil
	}
	return pump.Usagef("source %s: option %s needs DCP, and the source is read over TAP", s.cfg.URL, name)
}

// Streams returns the streams of the source that was chosen.
func (s *Source) Streams(ctx context.Context) ([]pump.Stream, error) {
	src, err := s.choose(ctx)
	if err != nil {
		return nil, err
	}
	return src.Streams(ctx)
}

// Identity asks the source that was chosen.
func (s *Source) Identity(ctx context.Context) (pump.Identity, error) {
	src, err := s.choose(ctx)
	if err != nil {
		return pump.Identity{}, err
	}
	if i, ok := pump.As[pump.Identifier](src); ok {
		return i.Identity(ctx)
	}
	return pump.Identity{}, nil
}

// ChooseDatatypes passes on what the destination takes. TAP carries plain values.
func (s *Source) ChooseDatatypes(taken uint8) {
	if s.dcp != nil {
		s.dcp.ChooseDatatypes(taken)
	}
}

// Check asks the source that was chosen.
func (s *Source) Check(ctx context.Context) error {
	src, err := s.choose(ctx)
	if err != nil {
		return err
	}
	if c, ok := pump.As[pump.Checker](src); ok {
		return c.Check(ctx)
	}
	return nil
}

// VBucketCount asks the source that was chosen.
func (s *Source) VBucketCount(ctx context.Context) (int, error) {
	src, err := s.choose(ctx)
	if err != nil {
		return 0, err
	}
	if c, ok := pump.As[pump.VBucketCounter](src); ok {
		return c.VBucketCount(ctx)
	}
	return 0, nil
}

// Estimate asks the source that was chosen.
func (s *Source) Estimate(ctx context.Context) (pump.Estimate, error) {
	src, err := s.choose(ctx)
	if err != nil {
		return pump.Estimate{}, err
	}
	if e, ok := pump.As[pump.Estimator](src); ok {
		return e.Estimate(ctx)
	}
	return pump.Estimate{}, nil
}

// Unwrap returns the source that was chosen, nil before.
func (s *Source) Unwrap() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chosen == nil {
		return nil
	}
	return s.chosen
}

// Close closes both sources.
func (s *Source) Close() error {
	var errs []error
	if s.tap != nil {
		errs = append(errs, s.tap.Close())
	}
	if s.dcp != nil {
		errs = append(errs, s.dcp.Close())
	}
	return errors.Join(errs...)
}
