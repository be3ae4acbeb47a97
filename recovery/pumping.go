package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	sinkdcp "github.com/cbpump/cbpump/sinks/dcp"
	"github.com/cbpump/cbpump/sinks/mc"
	sinktap "github.com/cbpump/cbpump/sinks/tap"
	sourcedcp "github.com/cbpump/cbpump/sources/dcp"
	sourcetap "github.com/cbpump/cbpump/sources/tap"
)

// Engine is by what vbuckets are transferred, and why by that.
type Engine struct {
	Source string `json:"source"` // "tap" or "dcp"
	Sink   string `json:"sink"`   // one of the values of Options.Transfer
	Reason string `json:"reason"`

	openSource func(ctx context.Context, r *run, env pump.Env) (pump.Source, error)
	openSink   func(ctx context.Context, r *run, env pump.Env) (pump.Sink, error)
}

// The values of Options.Transfer and of SourceOptions.Protocol.
const (
	TransferAuto     = "auto"
	TransferTAP      = "tap"       // TAP push: the specification's TapSink
	TransferDCP      = "dcp"       // as a replication stream
	TransferWithMeta = "with-meta" // *_WITH_META, forced into replicas
)

// SourceOptions are the options of the source of a transfer.
type SourceOptions struct {
	Protocol string `opt:"protocol" default:"auto" enum:"auto,tap,dcp" help:"how the source is read; auto: DCP from 3.0 on, TAP before"`

	IdleTimeout  time.Duration `opt:"idle-timeout" default:"180s" help:"silence of a node after which a dump or stream is given up; NOOPs do not count as a sign of life"`
	FlushTimeout time.Duration `opt:"flush-timeout" default:"60s" help:"TAP: how long to wait before a dump until the node has written everything to disk (3.0 and later dump from disk); 0 does not wait"`
	DumpVBuckets int           `opt:"dump-vbuckets" default:"64" help:"TAP: most vbuckets that one connection dumps; a cut costs no more than these"`
	EndProof     string        `opt:"end-proof" default:"marker" enum:"marker,count" help:"TAP: what proves the end of a vbucket beside its item count: the server's end marker, or (count) also its absence where the last message was acknowledged"`
	BufferSize   pump.Size     `opt:"buffer-size" default:"4m" help:"DCP: bytes that a node may send ahead of what the destination has confirmed, per connection"`
	OpenVBuckets int           `opt:"open-vbuckets" default:"64" help:"DCP: most vbuckets that one connection streams at once"`
	MapWait      time.Duration `opt:"map-wait" default:"30s" help:"DCP: how long to wait for a vbucket that is on its way (rebalance, failover, warm-up) to be active"`
}

// SinkOptions are the options of the sink of a transfer.
type SinkOptions struct {
	Timeout    time.Duration `opt:"timeout" default:"30s" help:"silence of a node after which a connection is given up"`
	TapConnect bool          `opt:"tap_connect" default:"false" help:"TAP: send TAP_CONNECT before the first message; real servers abort on it, so leave this off"`

	MapCollections    string `opt:"map-collections" help:"where collections go, as a.b=c.d: collection b of scope a into collection d of scope c; several are separated by commas (7.0 and later)"`
	CreateCollections bool   `opt:"create-collections" default:"false" help:"create scopes and collections that the destination does not have (7.0 and later)"`
}

// DefaultSourceOptions returns the declared defaults.
func DefaultSourceOptions() SourceOptions {
	var o SourceOptions
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = pump.DecodeOptions("source", nil, &o)
	return o
}

// DefaultSinkOptions returns the declared defaults.
func DefaultSinkOptions() SinkOptions {
	var o SinkOptions
	_ = pump.DecodeOptions("sink", nil, &o)
	return o
}

// clusterSchemes are those of whole clusters.
var clusterSchemes = []string{"http", "https", "couchbase", "couchbases"}

// errOpens: the two ends of a recovery are opened by Run, which knows the owners.
var errOpens = errors.New("a recovery opens its source and its destination itself")

// SourcePlugin declares the source of a recovery for a registry, so that a frontend
// can resolve addresses and options. Run opens it.
func SourcePlugin() pump.SourcePlugin[SourceOptions] {
	return pump.SourcePlugin[SourceOptions]{
		Schemes: clusterSchemes,
		Summary: "the cluster that still has the data, read over TAP or DCP",
		New:     func(context.Context, pump.Target, SourceOptions) (pump.Source, error) { return nil, errOpens },
	}
}

// SinkPlugin declares the destination of a recovery, as SourcePlugin does.
func SinkPlugin() pump.SinkPlugin[SinkOptions] {
	return pump.SinkPlugin[SinkOptions]{
		Schemes: clusterSchemes,
		Summary: "the cluster that lost vbuckets",
		New:     func(context.Context, pump.Target, SinkOptions) (pump.Sink, error) { return nil, errOpens },
	}
}

// protocol is one way to read from a source, or to write to a destination.
type protocol[T any] struct {
	name        string
	says        string
	since, next cluster.Version // servers from since on, and before next (zero: all later ones)
	open        func(ctx context.Context, r *run, env pump.Env) (T, error)
}

func (p *protocol[T]) speaks(v cluster.Version) bool {
	return v.AtLeast(p.since.Major, p.since.Minor) && (p.next == cluster.Version{} || !v.AtLeast(p.next.Major, p.next.Minor))
}

// The slices are tables: nothing changes them.

// sourceProtocols and sinkProtocols are what a transfer can go by, the best first.
var sourceProtocols = []protocol[pump.Source]{
	{TransferDCP, "DCP streams", cluster.Version{Major: 3}, cluster.Version{}, openDCPSource},
	{TransferTAP, "a TAP dump", cluster.Version{}, cluster.Version{Major: 5}, openTAPSource},
}

var sinkProtocols = []protocol[pump.Sink]{
	{TransferTAP, "TAP pushes", cluster.Version{}, cluster.Version{Major: 5}, openTAPSink},
	{TransferDCP, "DCP pushes", cluster.Version{Major: 3}, cluster.Version{}, openDCPSink},
	{TransferWithMeta, "forced *_WITH_META", cluster.Version{}, cluster.Version{}, openMetaSink},
}

func openTAPSource(ctx context.Context, r *run, env pump.Env) (pump.Source, error) {
	o := r.opt.SourceOptions
	return sourcetap.New(ctx, sourcetap.Config{
		URL: r.opt.Source.URL, Env: env, TLS: r.opt.Source.TLS, Network: r.opt.Source.Network,
		Options: sourcetap.Options{FlushTimeout: o.FlushTimeout, IdleTimeout: o.IdleTimeout, DumpVBuckets: o.DumpVBuckets, EndProof: o.EndProof},
	})
}

func openDCPSource(ctx context.Context, r *run, env pump.Env) (pump.Source, error) {
	o, d := r.opt.SourceOptions, sourcedcp.DefaultOptions()
	d.IdleTimeout, d.BufferSize, d.OpenVBuckets, d.MapWait = o.IdleTimeout, o.BufferSize, o.OpenVBuckets, o.MapWait
	d.Uncompress = r.plan.Engine.Sink == TransferTAP // which cannot carry compressed values
	return sourcedcp.New(ctx, sourcedcp.Config{
		URL: r.opt.Source.URL, Env: env, TLS: r.opt.Source.TLS, Network: r.opt.Source.Network, Options: d,
	})
}

func openTAPSink(ctx context.Context, r *run, env pump.Env) (pump.Sink, error) {
	d := r.opt.Destination
	return sinktap.New(ctx, sinktap.Config{
		URL: d.URL, Env: env, TLS: d.TLS, Network: d.Network, Owners: r.destinations(env.VBuckets),
		Options: sinktap.Options{TapConnect: r.opt.SinkOptions.TapConnect, Timeout: r.opt.SinkOptions.Timeout},
	})
}

func openMetaSink(ctx context.Context, r *run, env pump.Env) (pump.Sink, error) {
	d, o := r.opt.Destination, mc.DefaultCBOptions()
	s := r.opt.SinkOptions
	o.Timeout, o.MapCollections, o.CreateCollections = s.Timeout, s.MapCollections, s.CreateCollections
	return mc.NewCB(ctx, mc.CBConfig{
		URL: d.URL, Env: env, TLS: d.TLS, Network: d.Network, Owners: r.destinations(env.VBuckets), Force: true, Options: o,
	})
}

func openDCPSink(ctx context.Context, r *run, env pump.Env) (pump.Sink, error) {
	d, o := r.opt.Destination, r.opt.SinkOptions
	return sinkdcp.New(ctx, sinkdcp.Config{
		URL: d.URL, Env: env, TLS: d.TLS, Network: d.Network, Owners: r.destinations(env.VBuckets),
		Options: sinkdcp.Options{Timeout: o.Timeout, MapCollections: o.MapCollections, CreateCollections: o.CreateCollections},
	})
}

// destinations are the KV addresses of the vbuckets' owners.
func (r *run) destinations(vbs []uint16) map[uint16]string {
	owners := make(map[uint16]string, len(vbs))
	for _, vb := range vbs {
		owners[vb] = r.out[vb].Destination
	}
	return owners
}

// chooseEngine finds what both sides speak, or checks what the user wants.
func (r *run) chooseEngine() (*Engine, error) {
	src, dst := r.src.bucket.MinVersion(), r.dst.bucket.MinVersion()
	from, why, err := choose(sourceProtocols, r.opt.SourceOptions.Protocol, "-x protocol", "source", src)
	if err != nil {
		return nil, err
	}
	to, whyTo, err := choose(sinkProtocols, r.opt.Transfer, "--transfer", "destination", dst)
	if err != nil {
		return nil, err
	}
	e := &Engine{Source: from.name, Sink: to.name, openSource: from.open, openSink: to.open,
		Reason: fmt.Sprintf("%s, since %s; %s, since %s", from.says, why, to.says, whyTo)}
	r.opt.Log.Info("transfer chosen", "from", e.Source, "to", e.Sink, "reason", e.Reason)
	return e, nil
}

// choose takes the best protocol that the servers of one side speak, or the
// wanted one.
func choose[T any](all []protocol[T], wanted, flag, role string, v cluster.Version) (*protocol[T], string, error) {
	for i := range all {
		p := &all[i]
		switch {
		case wanted != TransferAuto && p.name != wanted:
		case p.speaks(v):
			if wanted != TransferAuto {
				return p, flag + " says so", nil
			}
			return p, fmt.Sprintf("the %s runs %s", role, v), nil
		case wanted != TransferAuto:
			return nil, "", &pump.Error{Class: pump.ClassUsage, Code: "transfer-unsupported", Op: "choose the transfer",
				Err:  fmt.Errorf("%s %s: the %s runs %s, which does not speak it", flag, wanted, role, v),
				Hint: fmt.Sprintf("Leave %s out.", flag)}
		}
	}
	return nil, "", pump.Usagef("%s %q: it is %s", flag, wanted, strings.Join(names(all), ", "))
}

// names lists what an option takes.
func names[T any](all []protocol[T]) []string {
	out := []string{TransferAuto}
	for i := range all {
		out = append(out, all[i].name)
	}
	return out
}

func (r *run) openSource(ctx context.Context, vbs []uint16) (pump.Source, error) {
	return r.plan.Engine.openSource(ctx, r, r.env(r.opt.Source, vbs))
}

func (r *run) openSink(ctx context.Context, vbs []uint16) (pump.Sink, error) {
	return r.plan.Engine.openSink(ctx, r, r.env(r.opt.Destination, vbs))
}

func (r *run) env(end Endpoint, vbs []uint16) pump.Env {
	return pump.Env{
		Bucket: end.Bucket, Username: end.Username, Password: end.Password,
		VBuckets: slices.Sorted(slices.Values(vbs)), Threads: r.opt.Threads, Log: r.opt.Log,
	}
}
