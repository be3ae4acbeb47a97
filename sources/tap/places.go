package tap

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

const role = "source" // in the errors of package cluster

// places finds out where vbuckets are active and how to get there.
type places interface {
	// locate asks the servers; each call asks anew.
	locate(ctx context.Context) (*layout, error)
	// kv says how to reach a node.
	kv(l *layout, addr string) cluster.KVConfig
	close()
}

// layout is where the vbuckets are active. It does not change once made.
type layout struct {
	where  string            // the address that was asked, for messages
	bucket *cluster.Bucket   // nil for one node
	count  int               // vbuckets of the bucket; 0 where only a node was asked
	active map[uint16]string // the node each is active on, of those that may be dumped
	not    map[uint16]string // why others may not: "is replica on 10.0.0.1:11210"
	fix    map[string]bool   // nodes that are known to understand FIX_FLAG_BYTEORDER
	open   bool              // one node: the bucket is entered without a password
}

// pick returns the vbuckets to dump, sorted: those listed, or all.
func (l *layout) pick(list []uint16) ([]uint16, error) {
	if list == nil {
		for vb := range uint16(l.count) {
			if _, ok := l.active[vb]; !ok && l.not[vb] == "" {
				return nil, l.missing(vb)
			}
		}
		out := make([]uint16, 0, len(l.active))
		for vb := range l.active {
			out = append(out, vb)
		}
		slices.Sort(out)
		if len(out) == 0 {
			return nil, &pump.Error{Code: codeNothing, Op: "source " + l.where,
				Err: errors.New("no vbucket of the bucket is active there, so there is nothing to dump")}
		}
		return out, nil
	}
	if len(list) == 0 {
		return nil, pump.Usagef("the list of vbuckets is empty")
	}
	for _, vb := range list {
		if err := l.refuse(vb); err != nil {
			return nil, err
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(list))), nil
}

// refuse returns why a vbucket cannot be dumped, or nil.
func (l *layout) refuse(vb uint16) error {
	if _, ok := l.active[vb]; ok {
		return nil
	}
	switch {
	case l.count > 0 && int(vb) >= l.count:
		return &pump.Error{Class: pump.ClassUsage, Code: codeNoVBucket, Op: fmt.Sprintf("source %s: vbucket %d", l.where, vb),
			Err: fmt.Errorf("bucket %q has %d vbuckets, 0 to %d", l.bucket.Name, l.count, l.count-1)}
	case l.not[vb] != "":
		return &pump.Error{Code: codeNotActive, Op: fmt.Sprintf("source %s", l.where),
			Err:  fmt.Errorf("vbucket %d cannot be dumped: it %s", vb, l.not[vb]),
			Hint: "TAP dumps active vbuckets only. Name the node where it is active, or give a cluster address without --single-node."}
	case l.bucket == nil:
		return &pump.Error{Code: codeNotActive, Op: fmt.Sprintf("source %s", l.where),
			Err:  fmt.Errorf("vbucket %d cannot be dumped: it is not on this node", vb),
			Hint: "Give the node where it is active, or a cluster address (http://host:8091)."}
	}
	return l.missing(vb)
}

func (l *layout) missing(vb uint16) error {
	return &pump.Error{Code: codeMissing, Op: fmt.Sprintf("source %s", l.where),
		Err:  fmt.Errorf("vbucket %d has no active copy: its node was failed over and no replica was left", vb),
		Hint: "Name the vbuckets to dump with --vbucket-list to leave it out."}
}

// oneNode is tap://host:port. Nothing but the node's own statistics is asked.
type oneNode struct {
	addr string
	cfg  *Config
}

// kv: the user of a data port is the bucket. A user that is another, such as the
// REST port's from the environment, says nothing about the bucket's password, so it
// is tried without one first: in a bucket that has none, any password is refused.
func (p *oneNode) kv(l *layout, addr string) cluster.KVConfig {
	kv := cluster.KVConfig{Addr: addr, Role: role, Bucket: p.cfg.Bucket, Password: p.cfg.Password, Log: p.cfg.Log}
	if l.open {
		kv.Password = ""
	}
	return kv
}

// foreignUser reports that the user given is not the bucket.
func (p *oneNode) foreignUser() bool { return p.cfg.Username != "" && p.cfg.Username != p.cfg.Bucket }

// enter logs in and lists the vbuckets, with l.open as it turns out to be.
func (p *oneNode) enter(ctx context.Context, l *layout) (*cluster.Conn, map[uint16]cluster.VBInfo, error) {
	l.open = p.foreignUser()
	for {
		conn, err := cluster.DialKV(ctx, p.kv(l, p.addr))
		var have map[uint16]cluster.VBInfo
		if err == nil {
			if have, err = conn.VBucketDetails(ctx); err == nil {
				return conn, have, nil
			}
			_ = conn.Close()
		}
		switch {
		case pump.ClassOf(err) != pump.ClassDenied:
			return nil, nil, err
		case l.open && p.cfg.Password != "":
			l.open = false
			continue
		}
		e := &pump.Error{Class: pump.ClassDenied, Code: pump.CodeOf(err), Err: err,
			Hint: fmt.Sprintf("tap:// logs in as the bucket (%q; -b names another) with the bucket's own password: -p, CB_REST_PASSWORD, or tap://BUCKET:PASSWORD@host.", p.cfg.Bucket)}
		if p.foreignUser() {
			e.Hint += fmt.Sprintf(" The user %q (-u, CB_REST_USERNAME) is not used: users are known to the REST port, http://.", p.cfg.Username)
		}
		return nil, nil, e
	}
}

func (p *oneNode) locate(ctx context.Context) (*layout, error) {
	l := &layout{where: p.addr, active: map[uint16]string{}, not: map[uint16]string{}, fix: map[string]bool{}}
	conn, have, err := p.enter(ctx, l)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for vb, info := range have {
		if info.State == mcbp.VBActive {
			l.active[vb] = p.addr
		} else {
			l.not[vb] = fmt.Sprintf("is %s on %s", info.State, p.addr)
		}
	}
	// What a node says of its own version is often none ("unknown", a commit) or
	// that of another part (1.4.x); then it counts as unknown.
	if v, err := conn.Version(ctx); err == nil {
		if v.AtLeast(5, 0) {
			return nil, noTap("dump from " + p.addr)
		}
		l.fix[p.addr] = knowsFix(v)
	} else if ctx.Err() != nil {
		return nil, err
	}
	return l, nil
}

func (p *oneNode) close() {}

// knowsFix reports a version that understands FIX_FLAG_BYTEORDER. Where it is
// not asked for, item flags arrive byte-swapped and say so.
func knowsFix(v cluster.Version) bool { return v.AtLeast(2, 0) }

// manyNodes is a cluster behind a REST address.
type manyNodes struct {
	cfg     *Config
	restCfg cluster.Config

	mu     sync.Mutex
	client *cluster.Client // the node that answered last
	others []string        // REST addresses of the cluster's nodes, as last seen
}

func newManyNodes(cfg *Config) (*manyNodes, error) {
	p := &manyNodes{cfg: cfg, restCfg: cluster.Config{
		Role: role, Username: cfg.Username, Password: cfg.Password, TLS: cfg.TLS, Network: cfg.Network, Log: cfg.Log}}
	// User info in the address takes the place of the credentials; other nodes
	// are asked with the same.
	if u, err := url.Parse(cfg.URL); err == nil && u.User != nil {
		p.restCfg.Username = u.User.Username()
		p.restCfg.Password, _ = u.User.Password()
	}
	var err error
	p.client, err = cluster.NewClient(cfg.URL, p.restCfg)
	return p, err
}

func (p *manyNodes) kv(l *layout, addr string) cluster.KVConfig { return p.asked().KV(l.bucket, addr) }

func (p *manyNodes) asked() *cluster.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client
}

func (p *manyNodes) close() { p.asked().Close() }

// fetch reads the bucket from the node that was asked last, or from another one
// when that one is gone: after a failover it may be the very node that died. The
// source calls it once at a time. Requests are made without the lock, so that kv
// does not wait for a node that is silent.
func (p *manyNodes) fetch(ctx context.Context) (*cluster.Bucket, string, error) {
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
			other, cerr := cluster.NewClient(scheme+"://"+host, p.restCfg)
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

func (p *manyNodes) locate(ctx context.Context) (*layout, error) {
	b, where, err := p.fetch(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.RequireVBuckets(role); err != nil {
		return nil, err
	}
	op := fmt.Sprintf("source %s: bucket %q", where, b.Name)
	l := &layout{
		where: where, bucket: b, count: b.Map.Len(),
		active: make(map[uint16]string, b.Map.Len()), not: map[uint16]string{}, fix: map[string]bool{},
	}
	var self string
	for _, n := range b.Nodes {
		if n.Version.AtLeast(5, 0) {
			return nil, noTap(fmt.Sprintf("dump from %s, version %s", n.KV, n.Version))
		}
		l.fix[n.KV] = knowsFix(n.Version)
		if n.Self {
			self = n.KV
		}
	}
	if p.cfg.SingleNode && self == "" {
		return nil, &pump.Error{Code: codeNothing, Op: op, Err: errors.New("the node that was asked is not among the bucket's nodes"),
			Hint: "Leave out --single-node, or give the address of a node that holds a part of the bucket."}
	}
	for vb := range uint16(l.count) {
		addr, ok := b.Map.Active(vb)
		switch {
		case !ok:
		case p.cfg.SingleNode && addr != self:
			l.not[vb] = "is active on " + addr
		default:
			l.active[vb] = addr
		}
	}
	return l, nil
}
