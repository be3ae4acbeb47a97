package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cbpump/cbpump/pump"
)

const typeMemcached = "memcached"

// Bucket is a bucket as the cluster described it at one moment.
type Bucket struct {
	Name     string
	Type     string // "membase", "couchbase", "memcached", as the server calls it
	UUID     string // "" before 2.0
	Replicas int    // configured copies besides the active one
	Nodes    []Node
	Map      Map // empty in a memcached-type bucket

	// ConflictResolution is ConflictSeqno ("" before 4.6 means it too) or
	// ConflictLWW, which *_WITH_META has to know.
	ConflictResolution string
	Capabilities       []string // bucketCapabilities, nil before 3.0: "dcp", "collections", …
	StorageBackend     string   // "couchstore", "magma", "" where the server does not tell
	ManifestUID        uint64   // collectionsManifestUid, 0 before 7.0 and for a manifest never changed

	password secret // what data connections up to 4.x log in with
}

// How a bucket decides which of two versions of a document wins.
const (
	ConflictSeqno = "seqno" // the higher revision
	ConflictLWW   = "lww"   // the later CAS, which is a time: last write wins
)

// LastWriteWins reports that the bucket resolves conflicts by time.
func (b *Bucket) LastWriteWins() bool { return b.ConflictResolution == ConflictLWW }

// HasCapability reports that the bucket has one of its bucketCapabilities.
func (b *Bucket) HasCapability(name string) bool { return slices.Contains(b.Capabilities, name) }

// MinVersion is the lowest version among the bucket's nodes: what all of them
// can. It is the zero Version when a node's is not known.
func (b *Bucket) MinVersion() Version {
	if len(b.Nodes) == 0 {
		return Version{}
	}
	least := b.Nodes[0].Version
	for _, n := range b.Nodes[1:] {
		if n.Version.less(least) {
			least = n.Version
		}
	}
	return least
}

// Node is a node of a cluster.
type Node struct {
	Host       string // REST host:port
	OTP        string // otpNode; "" where the server did not tell
	KV         string // KV host:port ("direct"); "" for a node without data
	Version    Version
	Compat     Version // what the cluster as a whole speaks (clusterCompatibility); zero before 2.0
	Status     string  // "healthy", …
	Membership string  // "active", "inactiveFailed", …
	Self       bool    // the node that answered
}

// Map says which server has which vbucket.
type Map struct {
	Servers  []string // KV host:port, $HOST and wildcard addresses already put right
	VBuckets [][]int  // [vb][copy] index into Servers, -1 = missing; copy 0 is active
	Forward  [][]int  // vBucketMapForward, nil when there is none

	// Rev counts the maps of a cluster, within RevEpoch; both 0 where the document
	// did not tell (those of Client.Bucket do not).
	RevEpoch, Rev int64
}

// Newer reports that m is a later map than o as far as their revisions tell.
func (m *Map) Newer(o *Map) bool {
	return m.RevEpoch > o.RevEpoch || m.RevEpoch == o.RevEpoch && m.Rev > o.Rev
}

// Len returns the number of vbuckets; 0 means that the bucket has no map.
func (m *Map) Len() int { return len(m.VBuckets) }

// Active returns the server with the active copy of vb; ok is false when the
// copy is missing or there is no such vbucket.
func (m *Map) Active(vb uint16) (addr string, ok bool) { return m.at(m.VBuckets, vb) }

// ForwardActive is Active in the map that is to come, where there is one.
func (m *Map) ForwardActive(vb uint16) (addr string, ok bool) { return m.at(m.Forward, vb) }

func (m *Map) at(rows [][]int, vb uint16) (string, bool) {
	if int(vb) >= len(rows) || len(rows[vb]) == 0 {
		return "", false
	}
	i := rows[vb][0]
	if i < 0 || i >= len(m.Servers) {
		return "", false
	}
	return m.Servers[i], true
}

// Missing returns the vbuckets that have no active copy, in order.
func (m *Map) Missing() []uint16 {
	var missing []uint16
	for vb := range m.VBuckets {
		if _, ok := m.Active(uint16(vb)); !ok {
			missing = append(missing, uint16(vb))
		}
	}
	return missing
}

// VBucketOf returns the vbucket of a key in a bucket of n vbuckets. n must be
// positive. It allocates nothing.
func VBucketOf(key []byte, n int) uint16 {
	return uint16(int(crc32.ChecksumIEEE(key)>>16&0x7fff) % n)
}

// Identity says which bucket it is. where is the address it was found by.
func (b *Bucket) Identity(where string) pump.Identity {
	id := pump.Identity{Name: fmt.Sprintf("bucket %q at %s", clip(b.Name, 100), where), UUID: b.UUID, Bucket: b.Name, KV: slices.Clone(b.Map.Servers), Resolves: pump.ResolvesRevision}
	if b.LastWriteWins() {
		id.Resolves = pump.ResolvesTime
	}
	for _, n := range b.Nodes {
		if n.KV != "" {
			id.KV = append(id.KV, n.KV)
		}
	}
	return id
}

// RequireVBuckets returns an error of class usage when the bucket is of a type
// that has no vbuckets. role is "source" or "destination".
func (b *Bucket) RequireVBuckets(role string) error {
	if b.Type != typeMemcached && b.Map.Len() > 0 {
		return nil
	}
	return &pump.Error{
		Class: pump.ClassUsage, Code: "bucket-type", Hint: noVBucketsHint(role),
		Err: fmt.Errorf("%s: bucket %q is of type %q and has no vbuckets", role, b.Name, b.Type),
	}
}

func noVBucketsHint(role string) string {
	if role == "source" {
		return "A memcached-type bucket cannot list its keys, so it cannot be a source; as a destination it can be used with memcached://host:port."
	}
	return "A memcached server or bucket can be written to with memcached://host:port."
}

// NodeByKV returns the node whose data port is addr (host:port).
func (b *Bucket) NodeByKV(addr string) (Node, bool) {
	return find(b.Nodes, func(n Node) bool { return n.KV != "" && sameAddr(n.KV, addr) })
}

// NodeByOTP returns the node of an otpNode name such as "n_1@10.0.0.7".
func (b *Bucket) NodeByOTP(otp string) (Node, bool) {
	return find(b.Nodes, func(n Node) bool { return otp != "" && n.OTP == otp })
}

func find(nodes []Node, is func(Node) bool) (Node, bool) {
	if i := slices.IndexFunc(nodes, is); i >= 0 {
		return nodes[i], true
	}
	return Node{}, false
}

// Buckets returns the names of the cluster's buckets, sorted.
func (c *Client) Buckets(ctx context.Context) ([]string, error) {
	const asked = "list the buckets"
	const path = "/pools/default/buckets"
	r, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	switch r.Status {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, c.noPool(ctx, asked, r)
	default:
		return nil, c.Unexpected(asked, r)
	}
	var docs []struct {
		Name string `json:"name"`
	}
	if err := c.decode(asked, path, r, &docs); err != nil {
		return nil, err
	}
	names := make([]string, 0, len(docs))
	for _, d := range docs {
		names = append(names, d.Name)
	}
	slices.Sort(names)
	return names, nil
}

// Nodes returns all nodes of the cluster (/pools/default), also those that are
// failed over: their Membership is "inactiveFailed".
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	nodes, err := c.nodesAsWritten(ctx)
	if err != nil {
		return nil, err
	}
	t, err := c.translate(ctx, nodes)
	if err != nil {
		return nil, err
	}
	if t != nil {
		t.nodes(nodes)
	}
	return nodes, nil
}

// placeBucket puts the data ports of the bucket's nodes and map into those that
// are dialled: TLS, external addresses.
func (c *Client) placeBucket(ctx context.Context, b *Bucket) error {
	t, err := c.translate(ctx, b.Nodes)
	if err != nil || t == nil {
		return err
	}
	t.nodes(b.Nodes)
	if err := t.apply(&b.Map); err != nil {
		return &pump.Error{
			Class: pump.ClassOf(err), Code: pump.CodeOf(err), Hint: pump.HintOf(err),
			Op: fmt.Sprintf("%s %s: read bucket %q", c.role, c.URL(), clip(b.Name, 100)), Err: err,
		}
	}
	return nil
}

// nodesAsWritten is Nodes with the data ports of the document.
func (c *Client) nodesAsWritten(ctx context.Context) ([]Node, error) {
	const asked = "list the nodes"
	const path = "/pools/default"
	r, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	switch r.Status {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, c.noPool(ctx, asked, r)
	default:
		return nil, c.Unexpected(asked, r)
	}
	var doc struct {
		Nodes []nodeDoc `json:"nodes"`
	}
	if err := c.decode(asked, path, r, &doc); err != nil {
		return nil, err
	}
	nodes := make([]Node, 0, len(doc.Nodes))
	for i := range doc.Nodes {
		n, err := doc.Nodes[i].node(c.base.Hostname())
		if err != nil {
			return nil, c.badDocument(asked, path, err)
		}
		nodes = append(nodes, n)
	}
	if len(nodes) == 0 {
		return nil, c.badDocument(asked, path, errors.New("it lists no nodes"))
	}
	c.markSelf(nodes)
	return nodes, nil
}

// Bucket returns the bucket with its nodes and vbucket map. A bucket that was
// just created has no map yet: Bucket waits for it (Config.MapWait). A
// memcached-type bucket comes with an empty Map; see RequireVBuckets.
//
// Errors, besides those of Do: no such bucket (class usage, names the buckets
// there are), a node that is not initialised, access denied, a server error
// (retryable), an answer that is not the document, no map in time (retryable).
func (c *Client) Bucket(ctx context.Context, name string) (*Bucket, error) {
	asked := fmt.Sprintf("read bucket %q", clip(name, 100))
	if name == "" || name == "." || name == ".." {
		return nil, pump.Usagef("%s: %q is not the name of a bucket", c.role, name)
	}
	op := fmt.Sprintf("%s %s: %s", c.role, c.URL(), asked)
	delay, start := 20*time.Millisecond, c.clock.now()
	for {
		b, err := c.bucketOnce(ctx, asked, name)
		if err != nil {
			return nil, err
		}
		if b.Map.Len() > 0 || b.Type == typeMemcached {
			if err := c.completeNodes(ctx, b); err != nil {
				return nil, err
			}
			if err := c.placeBucket(ctx, b); err != nil {
				return nil, err
			}
			return b, nil
		}
		waited := c.clock.now().Sub(start)
		if waited >= c.mapWait {
			return nil, &pump.Error{
				Code: "no-map", Op: op, Retry: true,
				Err:  fmt.Errorf("the bucket still has no vbucket map after %v", c.mapWait),
				Hint: "Was the bucket created only now? Its map comes when all nodes have it.",
			}
		}
		if err := c.clock.pause(ctx, min(delay, c.mapWait-waited)); err != nil {
			return nil, stopped(op, err)
		}
		delay = min(2*delay, time.Second)
	}
}

func (c *Client) bucketOnce(ctx context.Context, asked, name string) (*Bucket, error) {
	path := "/pools/default/buckets/" + url.PathEscape(name)
	r, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	switch r.Status {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, c.noBucket(ctx, asked, name)
	default:
		return nil, c.Unexpected(asked, r)
	}
	var doc bucketDoc
	if err := c.decode(asked, path, r, &doc); err != nil {
		return nil, err
	}
	b, err := doc.bucket(c.base.Hostname())
	if err != nil {
		return nil, c.badDocument(asked, path, err)
	}
	if b.Name != name {
		return nil, c.badDocument(asked, path, fmt.Errorf("it describes another bucket, %q", clip(b.Name, 100)))
	}
	c.markSelf(b.Nodes)
	return b, nil
}

// completeNodes adds what servers before 3.0 tell only in /pools/default.
func (c *Client) completeNodes(ctx context.Context, b *Bucket) error {
	if !slices.ContainsFunc(b.Nodes, func(n Node) bool { return n.OTP == "" }) {
		return nil
	}
	all, err := c.nodesAsWritten(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		// A user who may read only the bucket can go on without these names;
		// recovery, which needs them, says so itself.
		c.log.Debug("the cluster's node names are not known", "role", c.role, "bucket", b.Name, "error", err)
		return nil
	}
	for i := range b.Nodes {
		n := &b.Nodes[i]
		if more, ok := find(all, func(o Node) bool { return sameAddr(o.Host, n.Host) }); ok {
			n.OTP = orElse(n.OTP, more.OTP)
			n.Membership = orElse(n.Membership, more.Membership)
			n.KV = orElse(n.KV, more.KV)
		}
	}
	return nil
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

func (c *Client) markSelf(nodes []Node) {
	if slices.ContainsFunc(nodes, func(n Node) bool { return n.Self }) {
		return
	}
	for i := range nodes {
		nodes[i].Self = sameAddr(nodes[i].Host, c.base.Host)
	}
}

// noBucket finds out why there is no document of the bucket.
func (c *Client) noBucket(ctx context.Context, asked, name string) error {
	names, err := c.Buckets(ctx)
	if err != nil {
		return err
	}
	e := &pump.Error{
		Class: pump.ClassUsage, Code: "no-bucket",
		Op:  fmt.Sprintf("%s %s: %s", c.role, c.URL(), asked),
		Err: errors.New("there is no such bucket, and no other either"),
	}
	switch {
	case slices.Contains(names, name):
		// Created, or deleted, between the two questions.
		e.Class, e.Retry = pump.ClassFailed, true
		e.Err = errors.New("the server listed the bucket but did not find it")
	case len(names) > 0:
		e.Err = fmt.Errorf("there is no such bucket; there are: %s", listNames(names))
	}
	return e
}

// noPool finds out why a node has no /pools/default: it is not initialised, or
// it is no such server.
func (c *Client) noPool(ctx context.Context, asked string, was *Response) error {
	op := fmt.Sprintf("%s %s: %s", c.role, c.URL(), asked)
	r, err := c.Do(ctx, http.MethodGet, "/pools", nil)
	if err != nil {
		return err
	}
	var pools struct {
		Pools []struct {
			Name string `json:"name"`
		} `json:"pools"`
	}
	decoded := r.Status == http.StatusOK && decodeJSON(r.Body, &pools) == nil && pools.Pools != nil
	if decoded && len(pools.Pools) == 0 || !decoded && saysUnknownPool(was) {
		return &pump.Error{
			Code: "not-initialised", Op: op,
			Err:  errors.New("the node is not initialised: it belongs to no cluster"),
			Hint: "Give the address of a node of the cluster, or set this one up first.",
		}
	}
	if !decoded {
		return &pump.Error{
			Class: pump.ClassUnreachable, Code: "no-couchbase", Op: op,
			Err:  fmt.Errorf("this is not a Couchbase server: it answers %s", c.said(was)),
			Hint: "The REST port of a node is 8091.",
		}
	}
	return c.Unexpected(asked, was)
}

func (c *Client) decode(asked, path string, r *Response, into any) error {
	err := decodeJSON(r.Body, into)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNotJSON): // something else listens there
		begins := c.readable(r.Body, 80)
		if begins == "" {
			err = fmt.Errorf("it is not JSON: %d bytes without any text", len(r.Body))
		} else {
			err = fmt.Errorf("it is not JSON; it begins with %q", begins)
		}
		e := c.badDocument(asked, path, err)
		e.Class = pump.ClassUnreachable
		return e
	}
	return c.badDocument(asked, path, err)
}

func (c *Client) badDocument(asked, path string, err error) *pump.Error {
	return &pump.Error{
		Code: "bad-document", Op: fmt.Sprintf("%s %s: %s", c.role, c.URL(), asked),
		Err:  fmt.Errorf("the answer of %s is not usable: %w", path, err),
		Hint: "Is this the REST port of a Couchbase node, without a proxy in front of it?",
	}
}

// saysUnknownPool recognises what a node answers that belongs to no cluster.
func saysUnknownPool(r *Response) bool {
	return strings.Contains(lowerASCII(string(r.Body[:min(len(r.Body), 200)])), "unknown pool")
}
