// Package tap is the specification's TapSink: it pushes items as TAP messages
// into the nodes of a cluster, and so writes vbuckets that are replica or pending
// as well as active ones. It is mc.CBSink with another check of vbucket states
// and connections of its own.
//
// There is no conflict resolution under TAP: what is pushed replaces what is
// there, so nothing is ever Skipped. An answer means "in memory", not "on disk".
package tap

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/mc"
)

// Options of the sink.
type Options struct {
	TapConnect bool          `opt:"tap_connect" default:"false" help:"send TAP_CONNECT before the first message, as the specification's findconn does; real servers (2.5.1, 3.0.3, 4.0) abort on TAP_CONNECT followed by a mutation on one connection, and take messages without it, so leave this off"`
	Rehash     bool          `opt:"rehash" default:"false" help:"compute each item's vbucket from its key instead of taking the source's"`
	Timeout    time.Duration `opt:"timeout" default:"30s" help:"silence of a node after which a connection is given up"`
}

// DefaultOptions returns the declared defaults.
func DefaultOptions() Options {
	var o Options
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = pump.DecodeOptions("tap", nil, &o)
	return o
}

// Plugin declares the sink as tap://host[:8091], a cluster's REST address. A
// frontend without CBSink may change Schemes to http and couchbase.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes: []string{"tap"},
		Summary: "pushes TAP messages into a cluster up to 4.6, also into replica and pending vbuckets: tap://host[:8091]",
		Doc: "CAS, revision, flags and expiry are kept. There is no conflict resolution: what is pushed replaces what is there, and nothing is skipped. " +
			"A vbucket that the map gives to nobody is looked for in the map that is to come (vBucketMapForward), then on the nodes: the one that holds it as replica or pending gets it. " +
			"Compressed values are unpacked on the way; values with extended attributes are rejected, unless the source leaves them out (-x xattrs=no of DCP).",
		New: func(ctx context.Context, t pump.Target, o Options) (pump.Sink, error) {
			if o.Timeout <= 0 { // New takes options that are all zero for the defaults
				return nil, pump.Usagef("sink %s: option timeout must be above 0", t.Name())
			}
			url := t.Name()
			if t.Scheme == "tap" {
				url = t.Host()
			}
			return New(ctx, Config{URL: url, Env: t.Env, TLS: cluster.TLSOf(t.Security), Network: t.Security.Network, Options: o})
		},
	}
}

// Config says which cluster to push into. Env gives the bucket, the
// destination's credentials and, for Check, the vbuckets that will be written.
type Config struct {
	URL string // http://host[:8091], couchbase://host or host[:8091]
	pump.Env
	Options Options     // the zero value means DefaultOptions
	TLS     cluster.TLS // used where URL asks for TLS
	Network string      // cluster.NetworkAuto (also ""), NetworkDefault or NetworkExternal
	// Owners names the node (KV host:port) of vbuckets whose place the caller knows
	// better than the bucket's map; see mc.CBConfig.
	Owners map[uint16]string
}

// Sink pushes items as TAP messages. It is a CBSink in everything else.
type Sink struct{ *mc.CBSink }

// New returns a sink. It makes no connection.
func New(_ context.Context, cfg Config) (*Sink, error) {
	if cfg.Options == (Options{}) {
		cfg.Options = DefaultOptions()
	}
	o := mc.DefaultCBOptions()
	o.Rehash, o.Timeout = cfg.Options.Rehash, cfg.Options.Timeout
	base, err := mc.NewBase(mc.CBConfig{
		URL: cfg.URL, Env: cfg.Env, Options: o, TLS: cfg.TLS, Network: cfg.Network, Owners: cfg.Owners,
	}, &dialect{connect: cfg.Options.TapConnect})
	if err != nil {
		return nil, err
	}
	return &Sink{base}, nil
}

// Datatypes: TAP carries plain values. Servers find out by themselves which are JSON.
func (s *Sink) Datatypes(context.Context) (uint8, error) { return pump.DatatypeJSON, nil }

// Check is CBSink's, and refuses clusters whose nodes do not take TAP any more.
func (s *Sink) Check(ctx context.Context) error {
	b, err := s.Bucket(ctx)
	if err != nil {
		return err
	}
	for _, n := range b.Nodes {
		if n.Version.AtLeast(5, 0) {
			return &pump.Error{Class: pump.ClassUsage, Code: "no-tap", Op: fmt.Sprintf("push into %s, version %s", n.KV, n.Version),
				Err:  errors.New("the server takes no TAP messages (they were removed in Couchbase Server 5.0)"),
				Hint: "Write to the cluster with http://, or push into replica and pending vbuckets with dcp://."}
		}
	}
	return s.CBSink.Check(ctx)
}

// dialect is what differs from CBSink.
type dialect struct{ connect bool }

func (d *dialect) Name() string { return "TAP push" }

// AllowState is the specification's check_base: replica and pending may be
// written too. A dead vbucket may not: it confirms deletions that it drops.
func (d *dialect) AllowState(s mcbp.VBState) bool {
	return s == mcbp.VBActive || s == mcbp.VBReplica || s == mcbp.VBPending
}

// FindConn is the specification's findconn. The connection becomes a TAP
// consumer with its first message; TAP_CONNECT goes before that only by option.
func (d *dialect) FindConn(ctx context.Context, cfg cluster.KVConfig, v cluster.Version) (*cluster.Conn, error) {
	c, err := cluster.DialKV(ctx, cfg)
	if err != nil || !d.connect {
		return c, err
	}
	t := mcbp.TapConnect{Name: "cbpump-" + rand.Text(), Flags: mcbp.TapSupportAck}
	if v.AtLeast(2, 0) {
		t.Flags |= mcbp.TapFixFlagByteorder
	}
	stop := c.Guard(ctx)
	defer stop()
	if err = c.SetIdle(cfg.Timeout); err == nil {
		_, err = c.NetConn().Write(t.Append(nil)) // a good one gets no answer
	}
	if err != nil {
		_ = c.Close()
		return nil, c.Explain(ctx, "TAP_CONNECT", err)
	}
	return c, c.SetIdle(0)
}

// FindOwners: in a recovery the node that holds a missing vbucket as replica or
// pending is to own it.
func (d *dialect) FindOwners(ctx context.Context, s *mc.CBSink, b *cluster.Bucket, missing []uint16) (map[uint16][]string, error) {
	return s.FindHolders(ctx, b, missing)
}

// Refuse: without a HELLO a datatype other than plain closes the connection, and
// servers that speak TAP find JSON by themselves.
func (d *dialect) Refuse(it *pump.Item, _ *mc.Traits) *pump.Error {
	if it.Op == pump.Mutation && it.Datatype&^mcbp.DatatypeJSON != 0 {
		return errDatatype
	}
	return nil
}

var errDatatype = &pump.Error{Code: "item-datatype", Err: errors.New("the value has extended attributes, is compressed or of an unknown datatype, which TAP cannot carry"),
	Hint: "a source that is read over DCP leaves extended attributes out with -x xattrs=no"}

func (d *dialect) Request(*pump.Item, *mc.Traits) mc.Request { return mc.ReqTap }

// Fenced: the last message asks for an acknowledgement, and answers to messages
// come in order.
func (d *dialect) Fenced() bool { return true }

func (d *dialect) Append(dst []byte, it *pump.Item, to mc.Sending) []byte {
	m := mcbp.TapMessage{
		Opcode: mcbp.OpTapMutation, VBucket: it.VBucket, Opaque: to.Opaque,
		MsgFlags: mcbp.TapMsgNetworkOrder, TTL: mcbp.TapTTL, CAS: it.CAS,
		Flags: it.Flags, Expiry: it.Expiry, Rev: max(it.RevSeqno, 1), Key: it.Key, Value: it.Value,
	}
	if it.Op != pump.Mutation {
		// No item flags, so no order of them; servers send an expired item's value
		// with its deletion, and take none.
		m.Opcode, m.Value, m.MsgFlags = mcbp.OpTapDelete, nil, 0
	}
	if to.Last {
		m.MsgFlags |= mcbp.TapMsgAck
	}
	return m.Append(dst)
}
