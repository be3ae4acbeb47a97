package simcluster

import (
	"errors"

	"github.com/cbpump/cbpump/mcbp"
)

var errNotYet = errors.New("simcluster: not written yet")

type Cluster struct{}
type Bucket struct{}
type Node struct{}

func Start(cfg Config) (*Cluster, error)      { return nil, errNotYet }
func (c *Cluster) Close() error               { return errNotYet }
func (c *Cluster) URL() string                { return "" }
func (c *Cluster) Nodes() []*Node             { return nil }
func (c *Cluster) NewNode() (*Node, error)    { return nil, errNotYet }
func (c *Cluster) Bucket(name string) *Bucket { return nil }
func (c *Cluster) Failover(n *Node) error     { return errNotYet }
func (c *Cluster) AddNode(n *Node) error      { return errNotYet }
func (c *Cluster) Requests() []Request        { return nil }

func (b *Bucket) Store(d Doc) error                  { return errNotYet }
func (b *Bucket) Delete(key []byte) error            { return errNotYet }
func (b *Bucket) Get(key []byte) (Doc, bool)         { return Doc{}, false }
func (b *Bucket) Each(f func(vb uint16, d Doc) bool) {}
func (b *Bucket) Map() [][]int                       { return nil }
func (b *Bucket) Servers() []string                  { return nil }
func (b *Bucket) Missing() []uint16                  { return nil }

func (n *Node) REST() string { return "" }
func (n *Node) KV() string   { return "" }
func (n *Node) OTP() string  { return "" }
func (n *Node) VBucket(bucket string, vb uint16) (state mcbp.VBState, items int) {
	return mcbp.VBAbsent, 0
}
func (n *Node) SetVBucket(bucket string, vb uint16, s mcbp.VBState)  {}
func (n *Node) Doc(bucket string, vb uint16, key []byte) (Doc, bool) { return Doc{}, false }
func (n *Node) EachDoc(bucket string, vb uint16, f func(d Doc) bool) {}
func (n *Node) Kill()                                                {}
func (n *Node) Inject(f Fault) (remove func())                       { return func() {} }
func (n *Node) InjectREST(f RESTFault) (remove func())               { return func() {} }
func (n *Node) Connections() int                                     { return 0 }
func (n *Node) Writes() uint64                                       { return 0 }
