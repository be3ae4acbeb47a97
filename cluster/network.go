package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// The networks by which nodes can be reached (Config.Network).
const (
	NetworkAuto     = "auto"     // external where the address given is an external one, else default
	NetworkDefault  = "default"  // the addresses by which nodes know each other
	NetworkExternal = "external" // alternateAddresses.external
)

// view is how nodes are seen from here: which of their addresses are dialled.
// The zero view is the default network without TLS.
type view struct {
	base    string // host:port of the REST port that was given
	tls     bool
	network string
}

// servicePorts are ports of a node; 0 = it has none.
type servicePorts struct {
	KV      int `json:"kv"`
	KVSSL   int `json:"kvSSL"`
	Mgmt    int `json:"mgmt"`
	MgmtSSL int `json:"mgmtSSL"`
}

type nodeExtDoc struct {
	Hostname string       `json:"hostname"`
	ThisNode bool         `json:"thisNode"`
	Services servicePorts `json:"services"`
	Others   map[string]struct {
		Hostname string        `json:"hostname"`
		Ports    *servicePorts `json:"ports"`
	} `json:"alternateAddresses"`
}

// place is one node at one network.
type place struct {
	host  string
	ports servicePorts
}

func (p place) addr(port int) string {
	if port <= 0 || port > 65535 {
		return ""
	}
	return net.JoinHostPort(p.host, strconv.Itoa(port))
}

// reachable is a node by both networks.
type reachable struct {
	inside  place
	outside *place // nil where it has no external address
}

// reachables reads nodesExt as answered by the host asked.
func reachables(docs []nodeExtDoc, asked string) []reachable {
	var all []reachable
	for _, d := range docs {
		r := reachable{inside: place{seenFrom(asked, bare(d.Hostname)), d.Services}}
		if o, ok := d.Others[NetworkExternal]; ok && o.Hostname != "" {
			r.outside = &place{bare(o.Hostname), d.Services}
			if o.Ports != nil {
				r.outside.ports = *o.Ports
			}
		}
		all = append(all, r)
	}
	return all
}

// bare is a host without the brackets of an IPv6 address.
func bare(host string) string {
	if n := len(host); n > 2 && host[0] == '[' && host[n-1] == ']' {
		return host[1 : n-1]
	}
	return host
}

// outside reports that nodes are reached by their external addresses. Left to
// itself (auto) it follows the address that was given: what works for one port
// works for the others.
func (v view) outside(all []reachable) bool {
	switch v.network {
	case NetworkExternal:
		return true
	case NetworkAuto:
	default:
		return false
	}
	host, _, err := splitAddr(v.base)
	if err != nil {
		return false
	}
	is := func(p *place, withPort bool) bool {
		if p == nil {
			return false
		}
		if !withPort {
			return sameAddr(net.JoinHostPort(p.host, "1"), net.JoinHostPort(host, "1"))
		}
		return slices.ContainsFunc([]int{p.ports.Mgmt, p.ports.MgmtSSL}, func(port int) bool {
			return p.addr(port) != "" && sameAddr(p.addr(port), v.base)
		})
	}
	for _, withPort := range []bool{true, false} {
		switch {
		case slices.ContainsFunc(all, func(r reachable) bool { return is(&r.inside, withPort) }):
			return false
		case slices.ContainsFunc(all, func(r reachable) bool { return is(r.outside, withPort) }):
			return true
		}
	}
	return false
}

// translation puts the data ports of a document, which are those of the default
// network without TLS, into those to dial.
type translation struct {
	view view
	all  []reachable
	out  bool
}

func (v view) translation(all []reachable) *translation {
	return &translation{view: v, all: all, out: v.outside(all)}
}

// kv returns where to dial the data port that documents call addr.
func (t *translation) kv(addr string) (string, error) {
	if !t.out && !t.view.tls {
		return addr, nil
	}
	at := slices.IndexFunc(t.all, func(r reachable) bool {
		own := r.inside.addr(r.inside.ports.KV)
		return own != "" && sameAddr(own, addr)
	})
	if at < 0 {
		// A cluster that allows TLS only may not name the other port.
		if host, _, err := splitAddr(addr); err == nil {
			var here []int
			for i, r := range t.all {
				if r.inside.ports.KV == 0 && r.inside.ports.KVSSL != 0 && sameAddr(net.JoinHostPort(r.inside.host, "1"), net.JoinHostPort(host, "1")) {
					here = append(here, i)
				}
			}
			if len(here) == 1 {
				at = here[0]
			}
		}
	}
	if at < 0 {
		return "", &pump.Error{Code: "unknown-node", Err: fmt.Errorf("the cluster does not say how to reach its node %s by another address", clip(addr, 100))}
	}
	p := &t.all[at].inside
	if t.out {
		if p = t.all[at].outside; p == nil {
			return "", &pump.Error{
				Class: pump.ClassUsage, Code: "no-external-address", Err: fmt.Errorf("node %s has no external address", clip(addr, 100)),
				Hint: "Use --network default, or give every node an alternate address.",
			}
		}
	}
	port, kind := p.ports.KV, "kv"
	if t.view.tls {
		port, kind = p.ports.KVSSL, "kvSSL"
	}
	if to := p.addr(port); to != "" {
		return to, nil
	}
	return "", &pump.Error{
		Class: pump.ClassUsage, Code: "no-data-port",
		Err: fmt.Errorf("node %s has no data port of the kind that is wanted (%s) at the address %s", clip(addr, 100), kind, clip(p.host, 100)),
	}
}

// apply translates the servers of a map.
func (t *translation) apply(m *Map) error {
	for i, s := range m.Servers {
		to, err := t.kv(s)
		if err != nil {
			return err
		}
		m.Servers[i] = to
	}
	return nil
}

// nodes translates the data ports of nodes; a node that the cluster does not
// list among the reachable ones (failed over) is left without one.
func (t *translation) nodes(nodes []Node) {
	for i := range nodes {
		if nodes[i].KV != "" {
			nodes[i].KV, _ = t.kv(nodes[i].KV)
		}
	}
}

// translate returns how data ports are dialled, nil where they are as documents
// have them.
func (c *Client) translate(ctx context.Context, nodes []Node) (*translation, error) {
	must := c.view.tls || c.view.network == NetworkExternal
	// Alternate addresses came with 5.5.
	if !must && (c.view.network != NetworkAuto || !slices.ContainsFunc(nodes, func(n Node) bool { return n.Version.AtLeast(5, 5) })) {
		return nil, nil
	}
	const asked = "read how nodes are reached"
	const path = "/pools/default/nodeServices"
	r, err := c.Do(ctx, http.MethodGet, path, nil)
	if err == nil && r.Status != http.StatusOK {
		err = c.Unexpected(asked, r)
		if r.Status == http.StatusNotFound && must {
			err = &pump.Error{Class: pump.ClassUsage, Code: "no-node-services", Err: err,
				Hint: "Servers before 3.0 do not tell, and have no data ports with TLS: use http:// without --network."}
		}
	}
	var doc struct {
		NodesExt []nodeExtDoc `json:"nodesExt"`
	}
	if err == nil {
		err = c.decode(asked, path, r, &doc)
	}
	switch {
	case err == nil:
		return c.view.translation(reachables(doc.NodesExt, c.base.Hostname())), nil
	case must || ctx.Err() != nil:
		return nil, err
	}
	c.log.Debug("whether nodes have other addresses is not known", "role", c.role, "error", err)
	return nil, nil
}

// terseDoc is the short document of a bucket: what data nodes send with
// NOT_MY_VBUCKET and GET_CLUSTER_CONFIG, and /pools/default/b/B.
type terseDoc struct {
	Rev         int64        `json:"rev"`
	RevEpoch    int64        `json:"revEpoch"`
	Name        string       `json:"name"`
	NodesExt    []nodeExtDoc `json:"nodesExt"`
	NodeLocator string       `json:"nodeLocator"`
	Map         *mapDoc      `json:"vBucketServerMap"`
}

// ErrNoMap means that a node's answer carries no vbucket map.
var ErrNoMap = errors.New("the answer carries no vbucket map")

// parseTerse returns the map of a terse document that came from the host asked.
func parseTerse(body []byte, asked string, v view) (Map, error) {
	if len(body) == 0 {
		return Map{}, ErrNoMap
	}
	var doc terseDoc
	if err := decodeJSON(body, &doc); err != nil {
		return Map{}, fmt.Errorf("the map of the node: %w", err)
	}
	if doc.Map == nil {
		return Map{}, ErrNoMap
	}
	m, err := doc.Map.vbuckets(asked)
	if err != nil {
		return Map{}, fmt.Errorf("the map of the node: %w", err)
	}
	if m.Len() == 0 {
		return Map{}, ErrNoMap
	}
	m.Rev, m.RevEpoch = doc.Rev, doc.RevEpoch
	if err := v.translation(reachables(doc.NodesExt, asked)).apply(&m); err != nil {
		return Map{}, err
	}
	return m, nil
}

// MapFrom reads the vbucket map that a NOT_MY_VBUCKET (0x07) answer of this node
// carries as its value; its servers can be dialled as those of Bucket.Map can.
// ErrNoMap where there is none: up to 4.x, and on nodes that have none yet.
// It makes no request.
func (c *Conn) MapFrom(value []byte) (Map, error) {
	host, _, err := splitAddr(c.addr)
	if err != nil {
		return Map{}, err
	}
	v := c.view
	v.tls = c.tls
	m, err := parseTerse(value, host, v)
	if err != nil && !errors.Is(err, ErrNoMap) {
		return Map{}, &pump.Error{Class: pump.ClassOf(err), Code: "bad-map", Op: c.name() + ": read its map", Err: err, Hint: pump.HintOf(err)}
	}
	return m, err
}

// ClusterMap asks the node for the map of the bucket that the connection is in
// (GET_CLUSTER_CONFIG, 2.5 and later). ErrNoMap where the node has none.
func (c *Conn) ClusterMap(ctx context.Context) (Map, error) {
	const op = "read the vbucket map"
	f, err := c.ask(ctx, mcbp.OpGetClusterConfig, 0, nil, nil, nil)
	if err != nil {
		return Map{}, err
	}
	switch f.Status() {
	case mcbp.StatusOK:
		return c.MapFrom(f.Value())
	case mcbp.StatusNotFound, mcbp.StatusUnknown, mcbp.StatusNotSupported:
		return Map{}, ErrNoMap
	}
	return Map{}, c.Refused(op, &f)
}
