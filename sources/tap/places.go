package tap

import (
	"context"
	"fmt"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// kind is TAP among the sources of clusters.
var kind = &places.Kind{
	Scheme: "tap", Verb: "dump", Past: "dumped", Only: "TAP dumps active vbuckets only.",
	Accept: func(addr string, v cluster.Version) error {
		if v.AtLeast(5, 0) {
			return noTap(fmt.Sprintf("dump from %s, version %s", addr, v))
		}
		return nil
	},
}

// knowsFix reports a version that understands FIX_FLAG_BYTEORDER. Where it is
// not asked for, item flags arrive byte-swapped and say so.
func knowsFix(v cluster.Version) bool { return v.AtLeast(2, 0) }

// oneNode is tap://host:port. Nothing but the node's own statistics is asked.
type oneNode struct {
	addr string
	cfg  *Config
}

// kv: the user of a data port is the bucket. A user that is another, such as the
// REST port's from the environment, says nothing about the bucket's password, so it
// is tried without one first: in a bucket that has none, any password is refused.
func (p *oneNode) KV(l *places.Layout, addr string) cluster.KVConfig {
	kv := cluster.KVConfig{Addr: addr, Role: places.Role, Bucket: p.cfg.Bucket, Password: p.cfg.Password, Log: p.cfg.Log}
	if l.Open {
		kv.Password = ""
	}
	return kv
}

// foreignUser reports that the user given is not the bucket.
func (p *oneNode) foreignUser() bool { return p.cfg.Username != "" && p.cfg.Username != p.cfg.Bucket }

// enter logs in and lists the vbuckets; l.Open is as it turns out to be.
func (p *oneNode) enter(ctx context.Context, l *places.Layout) (*cluster.Conn, map[uint16]cluster.VBInfo, error) {
	l.Open = p.foreignUser()
	for {
		conn, err := cluster.DialKV(ctx, p.KV(l, p.addr))
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
		case l.Open && p.cfg.Password != "":
			l.Open = false
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

func (p *oneNode) Locate(ctx context.Context) (*places.Layout, error) {
	var entry places.Layout
	conn, have, err := p.enter(ctx, &entry)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	l := places.OfNode(kind, p.addr, have)
	l.Open = entry.Open
	// What a node says of its own version is often none ("unknown", a commit) or
	// that of another part (1.4.x); then it counts as unknown.
	if v, err := conn.Version(ctx); err == nil {
		if v.AtLeast(5, 0) {
			return nil, noTap("dump from " + p.addr)
		}
		l.Versions[p.addr] = v
	} else if ctx.Err() != nil {
		return nil, err
	}
	return l, nil
}

func (p *oneNode) Close() {}
