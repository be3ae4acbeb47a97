package cluster

import "context"

// What a Trace is told of.
const (
	WaitConnect = "connect" // a KV connection is made and logged in
	WaitRequest = "request" // a REST request is sent and answered
)

// Trace is told when a call begins to wait for a server, other than for items, and
// returns what is called when that is over. It is for finding out where time goes.
// It may be called from several goroutines at once.
type Trace func(ctx context.Context, kind string) (over func())

type traceKey struct{}

// WithTrace returns a context that has the trace told of every DialKV and every
// REST request under it.
func WithTrace(ctx context.Context, t Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// trace begins a wait.
func trace(ctx context.Context, kind string) (over func()) {
	if t, ok := ctx.Value(traceKey{}).(Trace); ok && t != nil {
		return t(ctx, kind)
	}
	return func() {}
}
