// Package cluster is a Couchbase cluster as a client sees it: REST topology and
// vbucket map, credentials, and authenticated KV connections.
package cluster

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/mcbp"
)

var errStub = errors.New("not written yet")

type Config struct {
	Role     string // "source" or "destination": named in errors
	Username string
	Password string
	Timeout  time.Duration // one REST request, or one KV connect and login; 0 = 30s
	Log      hclog.Logger
}

type Client struct{}

func NewClient(rawURL string, cfg Config) (*Client, error)                 { return nil, errStub }
func (c *Client) URL() string                                              { return "" }
func (c *Client) Buckets(ctx context.Context) ([]string, error)            { return nil, errStub }
func (c *Client) Bucket(ctx context.Context, name string) (*Bucket, error) { return nil, errStub }
func (c *Client) Do(ctx context.Context, method, path string, form url.Values) (*Response, error) {
	return nil, errStub
}
func (c *Client) Close() {}

type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

type Bucket struct {
	Name, Type, UUID string
	Replicas         int
	Nodes            []Node
	Map              Map
}

type Node struct {
	Host       string // REST host:port
	OTP        string // otpNode
	KV         string // KV host:port ("direct")
	Version    Version
	Status     string // "healthy", …
	Membership string // "active", "inactiveFailed", …
	Self       bool   // the node that answered
}

type Map struct {
	Servers  []string // KV host:port, $HOST and wildcard addresses already put right
	VBuckets [][]int  // [vb][copy] index into Servers, -1 = missing; copy 0 is active
	Forward  [][]int  // vBucketMapForward, nil when there is none
}

func (m *Map) Len() int                                       { return len(m.VBuckets) }
func (m *Map) Active(vb uint16) (addr string, ok bool)        { return "", false }
func (m *Map) ForwardActive(vb uint16) (addr string, ok bool) { return "", false }
func (m *Map) Missing() []uint16                              { return nil }

func VBucketOf(key []byte, n int) uint16 { return 0 }

type Version struct{ Major, Minor, Patch int }

func ParseVersion(s string) (Version, error)    { return Version{}, errStub }
func (v Version) AtLeast(major, minor int) bool { return false }
func (v Version) String() string                { return "" }

type KVConfig struct {
	Addr     string
	Role     string
	Bucket   string // SASL user up to 4.x
	Password string // the bucket's password
	Timeout  time.Duration
	Log      hclog.Logger
}

// KV returns how to reach a node of the bucket, with the bucket's credentials.
func (c *Client) KV(b *Bucket, addr string) KVConfig { return KVConfig{} }

type Conn struct{}

// DialKV connects and logs in (CRAM-MD5, then PLAIN); 0x20 is fatal.
func DialKV(ctx context.Context, cfg KVConfig) (*Conn, error) { return nil, errStub }
func (c *Conn) Addr() string                                  { return "" }
func (c *Conn) Close() error                                  { return nil }
func (c *Conn) NetConn() net.Conn                             { return nil } // for hot paths
func (c *Conn) Reader() *mcbp.Reader                          { return nil } // for hot paths
// Guard makes blocked reads and writes return when ctx is done, until stop is called.
func (c *Conn) Guard(ctx context.Context) (stop func()) { return func() {} }

// RoundTrip sends one encoded request and returns the answer with its opaque (others are dropped).
func (c *Conn) RoundTrip(ctx context.Context, request []byte, opaque uint32) (mcbp.Frame, error) {
	return mcbp.Frame{}, errStub
}
func (c *Conn) Stats(ctx context.Context, group string, each func(name, value string) error) error {
	return errStub
}

type VBInfo struct {
	State mcbp.VBState
	Items uint64 // live items
}

func (c *Conn) VBucketDetails(ctx context.Context) (map[uint16]VBInfo, error)        { return nil, errStub }
func (c *Conn) VBucketState(ctx context.Context, vb uint16) (mcbp.VBState, error)    { return 0, errStub } // VBAbsent for 0x07
func (c *Conn) SetVBucketState(ctx context.Context, vb uint16, s mcbp.VBState) error { return errStub }

// WaitFlushed waits until ep_queue_size and ep_flusher_todo are 0.
func (c *Conn) WaitFlushed(ctx context.Context, limit time.Duration) error { return errStub }

// Version asks the node for its version (VERSION 0x0b).
func (c *Conn) Version(ctx context.Context) (Version, error) { return Version{}, errStub }
