package places

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// Config says which bucket of which cluster is read.
type Config struct {
	URL string // http[s]://host[:8091] or couchbase[s]://host
	pump.Env
	TLS      cluster.TLS
	Network  string
	Features func() []uint16 // what connections to nodes ask for; nil: nothing
}

// Nodes is a cluster behind a REST address.
type Nodes struct {
	kind *Kind
	cfg  Config
	rest cluster.Config

	mu     sync.Mutex
	client *cluster.Client // the node that answered last
	others []string        // REST addresses of the cluster's nodes, as last seen
}

// NewNodes makes no connection; its errors are of wrong use.
func NewNodes(k *Kind, cfg Config) (*Nodes, error) {
	p := &Nodes{kind: k, cfg: cfg, rest: cluster.Config{
		Role: Role, Username: cfg.Username, Password: cfg.Password, TLS: cfg.TLS, Network: cfg.Network, Log: cfg.Log}}
	// User info in the address takes the place of the credentials; other nodes
	// are asked with the same.
	if u, err := url.Parse(cfg.URL); err == nil && u.User != nil {
		p.rest.Username = u.User.Username()
		p.rest.Password, _ = u.User.Password()
	}
	var err error
	p.client, err = cluster.NewClient(cfg.URL, p.rest)
	return p, err
}

// KV says how to reach a node.
func (p *Nodes) KV(l *Layout, addr string) cluster.KVConfig {
	kv := p.asked().KV(l.Bucket, addr)
	if p.cfg.Features != nil {
		kv.Features = p.cfg.Features()
	}
	return kv
}

func (p *Nodes) asked() *cluster.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client
}

// Close closes idle connections.
func (p *Nodes) Close() { p.asked().Close() }

// fetch reads the bucket from the node that was asked last, or from another one
// when that one is gone: after a failover it may be the very node that died. The
// source calls it once at a time. Requests are made without the lock, so that KV
// does not wait for a node that is silent.
func (p *Nodes) fetch(ctx context.Context) (*cluster.Bucket, string, error) {
	p.mu.Lock()
	client, others := p.client, p.others
	p.mu.Unlock()
	b, err := client.Bucket(ctx, p.cfg.Bucket)
	if err != nil && !p.cfg.SingleNode && (pump.IsRetryable(err) || pump.ClassOf(err) == pump.ClassUnreachable) {
		// With TLS as before or without: credentials never go out in plain because
		// a node died.
		scheme, _, _ := strings.Cut(client.URL(), "://")
		for _, host := range others {
			if ctx.Err() != nil {
				break
			}
			other, cerr := cluster.NewClient(scheme+"://"+host, p.rest)
			if cerr != nil || other.URL() == client.URL() {
				continue
			}
			if b2, oerr := other.Bucket(ctx, p.cfg.Bucket); oerr == nil {
				p.cfg.Log.Info("another node is asked for the vbucket map", "node", other.URL(), "instead of", client.URL(), "reason", err)
				client.Close()
				client, b, err = other, b2, nil
				break
			}
			other.Close()
		}
	}
	if err != nil {
		return nil, "", err
	}
	others = make([]string, 0, len(b.Nodes))
	for _, n := range b.Nodes {
		others = append(others, n.Host)
	}
	p.mu.Lock()
	p.client, p.others = client, others
	p.mu.Unlock()
	return b, client.URL(), nil
}

// Locate reads the bucket's map.
func (p *Nodes) Locate(ctx context.Context) (*Layout, error) {
	b, where, err := p.fetch(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.RequireVBuckets(Role); err != nil {
		return nil, err
	}
	l := &Layout{
		Kind: p.kind, Where: where, Bucket: b, Count: b.Map.Len(),
		Active: make(map[uint16]string, b.Map.Len()), Not: map[uint16]string{}, Versions: map[string]cluster.Version{},
	}
	var self string
	for _, n := range b.Nodes {
		if err := p.kind.Accept(n.KV, n.Version); err != nil {
			return nil, err
		}
		l.Versions[n.KV] = n.Version
		if n.Self {
			self = n.KV
		}
	}
	if p.cfg.SingleNode && self == "" {
		return nil, l.error("nothing", fmt.Sprintf("source %s: bucket %q", where, b.Name),
			"Leave out --single-node, or give the address of a node that holds a part of the bucket.",
			errors.New("the node that was asked is not among the bucket's nodes"))
	}
	for vb := range uint16(l.Count) {
		addr, ok := b.Map.Active(vb)
		switch {
		case !ok:
		case p.cfg.SingleNode && addr != self:
			l.Not[vb] = "is active on " + addr
		default:
			l.Active[vb] = addr
		}
	}
	return l, nil
}
