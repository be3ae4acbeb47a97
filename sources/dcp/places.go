package dcp

import (
	"context"
	"fmt"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// kind is DCP among the sources of clusters.
var kind = &places.Kind{
	Scheme: "dcp", Verb: "copy", Past: "copied", Only: "Active vbuckets are copied.",
	Accept: func(addr string, v cluster.Version) error {
		if v != (cluster.Version{}) && !v.AtLeast(3, 0) {
			return noDcp(fmt.Sprintf("copy from %s, version %s", addr, v))
		}
		return nil
	},
}

// features are what the items are to come with. Compressed values are the
// server's to inflate where nobody wants them.
func (c *Config) features() []uint16 {
	f := []uint16{mcbp.FeatureJSON, mcbp.FeatureCollections}
	if c.Options.Xattrs {
		f = append(f, mcbp.FeatureXattr)
	}
	if !c.Options.Uncompress {
		f = append(f, mcbp.FeatureSnappy)
	}
	return f
}

// oneNode is dcp://host:port. Nothing but the node's own statistics is asked.
type oneNode struct {
	addr string
	cfg  *Config
}

func (p *oneNode) KV(_ *places.Layout, addr string) cluster.KVConfig {
	return cluster.KVConfig{
		Addr: addr, Role: places.Role, Bucket: p.cfg.Bucket, Password: p.cfg.Password,
		Username: p.cfg.Username, UserPassword: p.cfg.Password, Features: p.cfg.features(), Log: p.cfg.Log,
	}
}

func (p *oneNode) Locate(ctx context.Context) (*places.Layout, error) {
	conn, err := cluster.DialKV(ctx, p.KV(nil, p.addr))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	have, err := conn.VBucketDetails(ctx)
	if err != nil {
		return nil, err
	}
	return places.OfNode(kind, p.addr, have), nil
}

func (p *oneNode) Close() {}

// owned is a cluster of whose vbuckets the caller says where they are (Config.Owners).
type owned struct {
	places.Places
	owners map[uint16]string
}

func (p *owned) Locate(ctx context.Context) (*places.Layout, error) {
	l, err := p.Places.Locate(ctx)
	if err != nil {
		return nil, err
	}
	own := *l
	own.Active, own.Not = p.owners, map[uint16]string{}
	return &own, nil
}

// admit counts replicas that are to be read as they are among the active ones.
func (s *Source) admit(have map[uint16]cluster.VBInfo) {
	for vb := range s.cfg.Owners {
		if info, ok := have[vb]; ok && info.State == mcbp.VBReplica {
			info.State = mcbp.VBActive
			have[vb] = info
		}
	}
}

// admitted is the state of the vbuckets that are asked about; mcbp.VBAbsent is any.
func (s *Source) admitted() mcbp.VBState {
	if s.cfg.Owners != nil {
		return mcbp.VBAbsent
	}
	return mcbp.VBActive
}
