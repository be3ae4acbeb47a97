package simcluster

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cbpump/cbpump/mcbp"
)

// Node is one server of a cluster. Its methods may be called from any goroutine.
type Node struct {
	c              *Cluster
	number         int
	rest, kv       net.Listener
	restTLS, kvTLS net.Listener // nil without TLS
	http           *http.Server
	done           chan struct{} // closed by Kill

	membership memberLabel // guarded by the cluster's lock

	mu       sync.Mutex
	dead     bool
	conns    map[*conn]struct{}
	dcpNames map[dcpName]*conn
	buckets  map[string]*nodeBucket

	faults faults
}

func (c *Cluster) startNode() (*Node, error) {
	n := &Node{c: c, done: make(chan struct{}), conns: make(map[*conn]struct{}), buckets: make(map[string]*nodeBucket)}
	listeners := []*net.Listener{&n.rest, &n.kv}
	if c.authority != nil {
		listeners = append(listeners, &n.restTLS, &n.kvTLS)
	}
	for _, l := range listeners {
		var err error
		if *l, err = net.Listen("tcp", net.JoinHostPort(c.cfg.Host, "0")); err != nil {
			return nil, errors.Join(fmt.Errorf("simcluster: open a port: %w", err), n.closePorts())
		}
	}
	n.http = &http.Server{
		Handler:  n.restHandler(),
		ErrorLog: c.log.StandardLogger(nil),
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s { // so that Close waits for the handlers too
			case http.StateNew:
				c.wg.Add(1)
			case http.StateClosed, http.StateHijacked:
				c.wg.Done()
			}
		},
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errors.Join(errors.New("simcluster: the cluster is closed"), n.closePorts())
	}
	n.number = len(c.universe)
	c.universe = append(c.universe, n)
	c.wg.Add(len(listeners))
	c.mu.Unlock()
	serve := func(l net.Listener) {
		defer c.wg.Done()
		if err := n.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("REST port", "node", n.OTP(), "error", err)
		}
	}
	accept := func(l net.Listener) {
		defer c.wg.Done()
		n.accept(l)
	}
	go serve(n.rest)
	go accept(n.kv)
	if c.authority != nil {
		go serve(tls.NewListener(n.restTLS, c.authority.node))
		go accept(tls.NewListener(n.kvTLS, c.authority.node))
	}
	return n, nil
}

// closePorts closes the listeners that are open.
func (n *Node) closePorts() error {
	var errs []error
	for _, l := range []net.Listener{n.rest, n.kv, n.restTLS, n.kvTLS} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// REST is the node's REST address, host:port.
func (n *Node) REST() string { return n.rest.Addr().String() }

// KV is the node's KV address, host:port.
func (n *Node) KV() string { return n.kv.Addr().String() }

// OTP is the node's name inside the cluster, such as "n_0@127.0.0.1".
func (n *Node) OTP() string { return fmt.Sprintf("n_%d@%s", n.number, n.c.cfg.Host) }

// Dead reports that the node was killed or died.
func (n *Node) Dead() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dead
}

// Kill ends the node at once, as kill -9 does: listeners and connections close
// and nothing answers any more. The cluster still lists it until a failover.
func (n *Node) Kill() {
	n.mu.Lock()
	if n.dead {
		n.mu.Unlock()
		return
	}
	n.dead = true
	close(n.done)
	conns := make([]*conn, 0, len(n.conns))
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	n.kv.Close()
	if n.kvTLS != nil {
		n.kvTLS.Close()
	}
	n.http.Close()
	for _, c := range conns {
		c.close()
	}
	n.c.mu.Lock()
	if slices.Contains(n.c.members, n) {
		n.c.touch()
	}
	n.c.mu.Unlock()
	n.c.log.Debug("node is down", "node", n.OTP())
}

func (n *Node) accept(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return // closed by Kill
		}
		c := newConn(n, nc)
		n.mu.Lock()
		if n.dead {
			n.mu.Unlock()
			nc.Close()
			return
		}
		n.conns[c] = struct{}{}
		n.c.wg.Add(1)
		n.mu.Unlock()
		go func() {
			defer n.c.wg.Done()
			if c.handshake() {
				c.serve()
			}
			c.close()
			n.mu.Lock()
			delete(n.conns, c)
			n.mu.Unlock()
		}()
	}
}

// Connections is the number of KV connections that are open now.
func (n *Node) Connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

// Writes counts the items that KV clients wrote or deleted on this node, by any
// command, TAP pushes included. What Store and replication wrote is not in it.
func (n *Node) Writes() uint64 { return n.faults.writes.Load() }

func (n *Node) bucket(name string) *nodeBucket {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.buckets[name]
}

func (n *Node) setBucket(name string, nb *nodeBucket) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.buckets[name] = nb
}

func (n *Node) dropBucket(name string, nb *nodeBucket) {
	n.mu.Lock()
	delete(n.buckets, name)
	var conns []*conn
	for c := range n.conns {
		if c.bucket.Load() == nb {
			conns = append(conns, c)
		}
	}
	n.mu.Unlock()
	for _, c := range conns {
		c.close()
	}
}

// at returns a copy of a vbucket with the vbucket locked; ok is false if the
// node does not serve the bucket or the number is beyond it.
func (n *Node) at(bucket string, vb uint16) (nb *nodeBucket, m *vbucket, ok bool) {
	nb = n.bucket(bucket)
	if nb == nil || int(vb) >= len(nb.copies) {
		return nil, nil, false
	}
	m = nb.b.vbs[vb]
	m.mu.Lock()
	return nb, m, true
}

// VBucket returns the state of the node's copy and its number of live items.
func (n *Node) VBucket(bucket string, vb uint16) (state mcbp.VBState, items int) {
	nb, m, ok := n.at(bucket, vb)
	if !ok {
		return mcbp.VBAbsent, 0
	}
	defer m.mu.Unlock()
	return nb.copies[vb].state, nb.copies[vb].live
}

// SetVBucket sets the state of the node's copy, as SET_VBUCKET does; VBAbsent
// deletes it. The published map stays as it is.
func (n *Node) SetVBucket(bucket string, vb uint16, s mcbp.VBState) {
	nb, m, ok := n.at(bucket, vb)
	if !ok {
		return
	}
	defer m.mu.Unlock()
	nb.setState(m, vb, s)
}

// Doc returns the node's version of key in any state of the vbucket; ok as in
// Bucket.Get.
func (n *Node) Doc(bucket string, vb uint16, key []byte) (d Doc, ok bool) {
	nb, m, ok := n.at(bucket, vb)
	if !ok {
		return Doc{}, false
	}
	defer m.mu.Unlock()
	return docOf(nb.copies[vb].get(key))
}

// DocIn is Doc in a collection.
func (n *Node) DocIn(bucket string, vb uint16, coll uint32, key []byte) (d Doc, ok bool) {
	nb, m, ok := n.at(bucket, vb)
	if !ok {
		return Doc{}, false
	}
	defer m.mu.Unlock()
	return docOf(nb.copies[vb].find(coll, key))
}

// HighSeqno is the high seqno of the node's copy of a vbucket.
func (n *Node) HighSeqno(bucket string, vb uint16) uint64 {
	nb, m, ok := n.at(bucket, vb)
	if !ok {
		return 0
	}
	defer m.mu.Unlock()
	return nb.copies[vb].high
}

// EachDoc calls f for all documents and tombstones of the node's copy of a
// vbucket, in order of writing, until f returns false.
func (n *Node) EachDoc(bucket string, vb uint16, f func(d Doc) bool) {
	nb, m, ok := n.at(bucket, vb)
	if !ok {
		return
	}
	all := nb.copies[vb].snapshot()
	m.mu.Unlock()
	for _, it := range all {
		if !f(it.doc()) {
			return
		}
	}
}

// StoreAt puts a document into the node's copy of a vbucket whatever the key's
// own vbucket and the copy's state are, and into no other copy.
func (n *Node) StoreAt(bucket string, vb uint16, d Doc) error {
	nb, m, ok := n.at(bucket, vb)
	if !ok || nb.copies[vb].state == mcbp.VBAbsent {
		if ok {
			m.mu.Unlock()
		}
		return fmt.Errorf("node %s bucket %s vbucket %d: %w", n.OTP(), bucket, vb, ErrNoCopy)
	}
	defer m.mu.Unlock()
	if !nb.copies[vb].knows(d.Collection) {
		return fmt.Errorf("node %s bucket %s vbucket %d collection %x: %w", n.OTP(), bucket, vb, d.Collection, ErrNoCollection)
	}
	it := nb.itemOf(vb, d)
	it.seqno = d.Seqno
	nb.copies[vb].put(it)
	return nil
}

// counters and faults of a node's KV port.
type faults struct {
	writes atomic.Uint64

	armed atomic.Int32 // number of entries: 0 costs the hot path nothing
	mu    sync.Mutex
	kv    []*armedFault
	rest  []*armedREST
}

type armedFault struct {
	Fault
	seen, struck int
}

type armedREST struct {
	RESTFault
	seen, struck int
}

// Inject arms a fault; remove takes it back and may be called twice.
func (n *Node) Inject(f Fault) (remove func()) {
	a := &armedFault{Fault: f}
	fs := &n.faults
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.kv = append(fs.kv, a)
	fs.armed.Store(int32(len(fs.kv)))
	return func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		fs.kv = slices.DeleteFunc(fs.kv, func(o *armedFault) bool { return o == a })
		fs.armed.Store(int32(len(fs.kv)))
	}
}

// InjectREST arms a fault of the REST port; remove takes it back.
func (n *Node) InjectREST(f RESTFault) (remove func()) {
	a := &armedREST{RESTFault: f}
	fs := &n.faults
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.rest = append(fs.rest, a)
	return func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		fs.rest = slices.DeleteFunc(fs.rest, func(o *armedREST) bool { return o == a })
	}
}

// strike returns the fault that hits a request or message, or nil. Faults of a
// whole dump (CutAt, OmitCloseBackfill) are asked for by strikeStream.
func (fs *faults) strike(op mcbp.Opcode, vb uint16) *Fault {
	if fs.armed.Load() == 0 {
		return nil
	}
	f := fs.find(op, vb)
	if f == nil || f.Do == nil {
		return f
	}
	f.Do()
	if f.Action == Continue {
		return nil
	}
	return f
}

func (fs *faults) find(op mcbp.Opcode, vb uint16) *Fault {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, a := range fs.kv {
		if a.wholeStream() || !a.names(op) || a.VBucket >= 0 && a.VBucket != int(vb) {
			continue
		}
		if a.hits() {
			f := a.Fault
			return &f
		}
	}
	return nil
}

// strikeStream returns the faults that hit a whole dump of these vbuckets.
func (fs *faults) strikeStream(vbs []uint16) (cutAt int, omit8 bool) {
	if fs.armed.Load() == 0 {
		return 0, false
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, a := range fs.kv {
		if !a.wholeStream() || a.VBucket >= 0 && !slices.Contains(vbs, uint16(a.VBucket)) || !a.hits() {
			continue
		}
		if a.Action == OmitCloseBackfill {
			omit8 = true
		} else if cutAt == 0 {
			cutAt = a.CutAt
		}
	}
	return cutAt, omit8
}

func (a *armedFault) wholeStream() bool {
	return a.Action == OmitCloseBackfill || a.Action == CutMidFrame && a.CutAt > 0
}

func (a *armedFault) names(op mcbp.Opcode) bool {
	if len(a.Ops) > 0 {
		return slices.Contains(a.Ops, op)
	}
	return a.Op == 0 || a.Op == op
}

func (a *armedFault) hits() bool {
	a.seen++
	if a.seen <= a.After || a.Times > 0 && a.struck >= a.Times {
		return false
	}
	a.struck++
	return true
}
