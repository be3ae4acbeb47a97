package recovery

import (
	"context"
	"slices"

	"github.com/cbpump/cbpump/pump"
	sinktap "github.com/cbpump/cbpump/sinks/tap"
	sourcetap "github.com/cbpump/cbpump/sources/tap"
)

// The fixed pair of the specification's find_handlers: TAPDumpSource and TapSink.

func (r *run) openSource(ctx context.Context, vbs []uint16) (pump.Source, error) {
	env := r.env(r.opt.Source, vbs)
	if r.opt.OpenSource != nil {
		return r.opt.OpenSource(ctx, env)
	}
	return sourcetap.New(ctx, sourcetap.Config{URL: r.opt.Source.URL, Env: env})
}

func (r *run) openSink(ctx context.Context, vbs []uint16) (pump.Sink, error) {
	env := r.env(r.opt.Destination, vbs)
	if r.opt.OpenSink != nil {
		return r.opt.OpenSink(ctx, env)
	}
	return sinktap.New(ctx, sinktap.Config{URL: r.opt.Destination.URL, Env: env})
}

func (r *run) env(end Endpoint, vbs []uint16) pump.Env {
	return pump.Env{
		Bucket: end.Bucket, Username: end.Username, Password: end.Password,
		VBuckets: slices.Sorted(slices.Values(vbs)), Threads: r.opt.Threads, Log: r.opt.Log,
	}
}
