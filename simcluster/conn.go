package simcluster

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

// What a connection is used for. Real servers keep TAP producers and consumers
// apart from plain connections only by assertions.
const (
	rolePlain = iota
	roleProducer
	roleConsumer
	roleDCPProducer
	roleDCPConsumer
)

// flushAt is how many bytes of answers are gathered before a write, while more
// requests are there to be answered.
const flushAt = 64 << 10

// conn is one KV connection. serve runs in its own goroutine.
type conn struct {
	n      *Node
	nc     net.Conn
	r      *mcbp.Reader
	out    []byte
	bucket atomic.Pointer[nodeBucket] // nil = none selected

	role      int
	datatype  bool // HELLO granted datatypes
	challenge []byte

	features uint64 // granted by HELLO from 5.0 on, one bit each
	user     *account
	scram    *scram
	dcp      *dcpProducer
	consumer *dcpConsumer
	producer atomic.Pointer[dcpProducer] // dcp, for others
	dcpKey   dcpName
	wmu      sync.Mutex // held while writing
	workers  sync.WaitGroup

	tap  atomic.Bool // a dump runs on it
	once sync.Once
	done chan struct{}
}

func newConn(n *Node, nc net.Conn) *conn {
	c := &conn{n: n, nc: nc, r: mcbp.NewReader(nc), done: make(chan struct{})}
	// Who does not log in is in the default bucket, if there is one.
	if nb := n.bucket("default"); nb != nil && !n.c.rel.hasUsers() {
		c.bucket.Store(nb)
	}
	return c
}

func (c *conn) close() {
	c.once.Do(func() {
		close(c.done)
		c.nc.Close()
	})
}

// handshake brings up TLS, where the port has it, and logs in whom a client
// certificate names.
func (c *conn) handshake() bool {
	t, ok := c.nc.(*tls.Conn)
	if !ok {
		return true
	}
	if err := t.Handshake(); err != nil {
		c.n.c.log.Debug("TLS handshake", "node", c.n.OTP(), "error", err)
		return false
	}
	state := t.ConnectionState()
	c.user = c.n.c.certUser(&state)
	return true
}

func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	c.wmu.Lock()
	_, err := c.nc.Write(c.out)
	c.wmu.Unlock()
	c.out = c.out[:0]
	return err
}

// serve answers requests until the connection ends, and closes it.
func (c *conn) serve() {
	defer func() {
		c.close()
		c.workers.Wait()
		c.n.freeName(c)
	}()
	for {
		f, err := c.r.Decode()
		if errors.Is(err, mcbp.ErrNeedMore) {
			if c.flush() != nil || c.r.Fill() != nil {
				return
			}
			continue
		}
		if err != nil {
			// Not this protocol, or a body beyond all limits: servers just close.
			c.flush()
			return
		}
		if !c.request(&f) {
			c.flush()
			return
		}
		if len(c.out) > flushAt && c.flush() != nil {
			return
		}
	}
}

// request serves one packet; false closes the connection.
func (c *conn) request(f *mcbp.Frame) bool {
	if f.Magic == mcbp.MagicResponse {
		switch c.role {
		case roleDCPProducer:
			c.dcp.answered(f)
			return true
		case roleDCPConsumer:
			return c.consumer.answered(f)
		}
		// Only a TAP producer expects answers, and it reads them itself.
		return c.role == roleConsumer
	}
	fault := c.n.faults.strike(f.Opcode, f.VBucket)
	if fault == nil {
		return c.dispatch(f)
	}
	switch fault.Action {
	case Close:
		return false
	case Stall:
		c.stall()
		return false
	case Die:
		c.n.Kill()
		return false
	case CutMidFrame, DropAfterEffect:
		before := len(c.out)
		c.dispatch(f)
		keep := before
		if fault.Action == CutMidFrame {
			keep += (len(c.out) - before) / 2
		}
		c.out = c.out[:min(keep, len(c.out))]
		return false
	}
	c.reply(f, fault.Status, 0, nil, nil, nil)
	// A refused TAP_CONNECT ends the connection.
	return f.Opcode != mcbp.OpTapConnect
}

// stall keeps the connection open and silent until the client or the node ends it.
func (c *conn) stall() {
	if c.flush() == nil {
		io.Copy(io.Discard, c.nc)
	}
}

func (c *conn) reply(f *mcbp.Frame, status mcbp.Status, cas uint64, extras, key, value []byte) {
	c.answer(mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, VBucket: uint16(status), Opaque: f.Opaque, CAS: cas}, extras, key, value)
}

// replyTyped is reply with a datatype and a value only.
func (c *conn) replyTyped(f *mcbp.Frame, status mcbp.Status, datatype uint8, value []byte) {
	if c.n.c.rel.hasUsers() && !c.datatype {
		datatype = 0 // the client did not negotiate JSON
	}
	c.answer(mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, VBucket: uint16(status), Opaque: f.Opaque, Datatype: datatype}, nil, nil, value)
}

// answer appends a response. With tracing it carries the time that the server
// took, in a form of its own.
func (c *conn) answer(h mcbp.Header, extras, key, value []byte) {
	start := len(c.out)
	c.out = mcbp.AppendFrame(c.out, h, extras, key, value)
	if !c.has(featTracing) {
		return
	}
	c.out = slices.Insert(c.out, start+mcbp.HeaderLen, 2, 0, 1)
	b := c.out[start:]
	b[0], b[2], b[3] = 0x18, 3, byte(len(key))
	binary.BigEndian.PutUint32(b[8:], binary.BigEndian.Uint32(b[8:])+3)
}

// fail answers a refusal with the body that servers give it.
func (c *conn) fail(f *mcbp.Frame, status mcbp.Status) {
	var body []byte
	switch status {
	case mcbp.StatusNotFound:
		if c.n.c.rel < rel50 {
			body = []byte("Not found")
		}
	case mcbp.StatusNotMyVBucket:
		body = c.kvMap()
		if len(body) > 0 && c.n.c.rel >= rel65 {
			c.replyTyped(f, status, uint8(mcbp.DatatypeJSON), body)
			return
		}
	}
	c.reply(f, status, 0, nil, nil, body)
}

// kvMap is the cluster map that NOT_MY_VBUCKET answers carry.
func (c *conn) kvMap() []byte {
	nb := c.bucket.Load()
	if nb == nil || nb.b.memcached() || c.n.c.cfg.WithoutKVMap {
		return nil
	}
	return nb.b.terseFor(c.n)
}

const (
	opReplace             = mcbp.Opcode(0x03)
	opGetK                = mcbp.Opcode(0x0c)
	opGetKQ               = mcbp.Opcode(0x0d)
	opReplaceQ            = mcbp.Opcode(0x13)
	opQuitQ               = mcbp.Opcode(0x17)
	opObserveSeqno        = mcbp.Opcode(0x91)
	opObserve             = mcbp.Opcode(0x92)
	opGetRandom           = mcbp.Opcode(0xb6)
	opDCPOpen             = mcbp.OpDcpOpen
	opGetConfig           = mcbp.Opcode(0xb5)
	featDatatype   uint16 = 1
	featTCPNoDelay uint16 = 3
)

// dispatch serves one request; false closes the connection.
func (c *conn) dispatch(f *mcbp.Frame) bool {
	rel := c.n.c.rel
	if rel.hasUsers() {
		if !c.datatypeAllowed(f.Datatype) {
			text := "Request datatype invalid"
			if rel < rel65 {
				text = "Invalid datatype provided"
			}
			c.replyTyped(f, mcbp.StatusInvalid, dtJSON, contextBody(text))
			return rel >= rel65
		}
	} else if f.Datatype != 0 && !c.datatype {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return false
	}
	if f.Opcode == mcbp.OpTapConnect || mcbp.IsTap(f.Opcode) {
		if !rel.hasTap() {
			c.reply(f, mcbp.StatusNotSupported, 0, nil, nil, nil)
			return rel < rel65 || rel >= rel70 // 6.6 closes
		}
		if f.Opcode != mcbp.OpTapConnect {
			return c.tapPush(f)
		}
	}
	if c.role == roleConsumer && abortsAfterPush(f.Opcode) {
		c.abort("a request that does not mix with TAP pushes", f)
		return false
	}
	switch f.Opcode {
	case mcbp.OpNoop:
		c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
		return true
	case mcbp.OpVersion:
		c.reply(f, mcbp.StatusOK, 0, nil, nil, []byte(c.n.c.shortVersion()))
		return true
	case mcbp.OpQuit:
		c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
		return false
	case opQuitQ:
		return false
	case mcbp.OpHello:
		c.hello(f)
		return true
	case mcbp.OpSASLList:
		mechs := "CRAM-MD5 PLAIN"
		if rel.hasUsers() {
			mechs = "SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN"
		}
		c.reply(f, mcbp.StatusOK, 0, nil, nil, []byte(mechs))
		return true
	case mcbp.OpSASLAuth, mcbp.OpSASLStep:
		if rel.hasUsers() {
			return c.authModern(f)
		}
		c.sasl(f)
		return true
	case mcbp.OpSelectBucket:
		if rel.hasUsers() {
			return c.selectBucket(f)
		}
	case mcbp.OpGetErrorMap:
		if rel.hasUsers() {
			c.errorMap(f)
			return true
		}
	}
	nb := c.bucket.Load()
	if rel.hasUsers() {
		if f.Opcode == opGetConfig && c.user != nil && (nb == nil || nb.gone.Load()) && rel >= rel65 {
			c.globalConfig(f)
			return true
		}
		if ok, more := c.allowed(nb, f); !ok {
			return more
		}
	}
	if nb == nil || nb.gone.Load() {
		// Without a bucket there is no engine to ask: old servers hang up.
		return false
	}
	if nb.b.memcached() {
		f.VBucket = 0 // has no meaning there
	}
	switch f.Opcode {
	case mcbp.OpGet, mcbp.OpGetQ, opGetK, opGetKQ:
		return c.get(nb, f)
	case mcbp.OpSet, mcbp.OpSetQ, mcbp.OpAdd, mcbp.OpAddQ, opReplace, opReplaceQ:
		return c.store(nb, f)
	case mcbp.OpDelete, mcbp.OpDeleteQ:
		return c.delete(nb, f)
	case mcbp.OpStat:
		c.stat(nb, f)
		return true
	}
	if nb.b.memcached() {
		c.reply(f, mcbp.StatusUnknown, 0, nil, nil, nil)
		return true
	}
	if rel.hasDCP() {
		switch f.Opcode {
		case mcbp.OpGetAllVBSeqnos:
			c.allVBSeqnos(nb, f)
			return true
		case mcbp.OpDcpOpen, mcbp.OpDcpAddStream, mcbp.OpDcpCloseStream, mcbp.OpDcpStreamReq, mcbp.OpDcpFailoverLog,
			mcbp.OpDcpStreamEnd, mcbp.OpDcpSnapshotMarker, mcbp.OpDcpMutation, mcbp.OpDcpDeletion, mcbp.OpDcpExpiration,
			mcbp.OpDcpFlush, mcbp.OpDcpSetVBucketState, mcbp.OpDcpNoop, mcbp.OpDcpBufferAck, mcbp.OpDcpControl,
			mcbp.OpDcpSystemEvent, mcbp.OpDcpSeqnoAdvanced:
			return c.dcpRequest(nb, f)
		}
	}
	if f.Opcode == opObserveSeqno && rel >= 400 {
		c.observeSeqno(nb, f)
		return true
	}
	if rel.hasCollections() {
		switch f.Opcode {
		case mcbp.OpGetManifest, mcbp.OpSetManifest, mcbp.OpGetCollectionID, mcbp.OpGetScopeID:
			c.collectionRequest(nb, f)
			return true
		}
	}
	switch f.Opcode {
	case mcbp.OpGetReplica:
		c.getReplica(nb, f)
	case mcbp.OpGetMeta:
		return c.getMeta(nb, f)
	case mcbp.OpSetWithMeta, mcbp.OpSetQWithMeta, mcbp.OpAddWithMeta, mcbp.OpAddQWithMeta:
		return c.setWithMeta(nb, f)
	case mcbp.OpDeleteWithMeta, mcbp.OpDeleteQWithMeta:
		return c.deleteWithMeta(nb, f)
	case mcbp.OpGetVBucket:
		c.getVBucket(nb, f)
	case mcbp.OpSetVBucket:
		c.setVBucket(nb, f)
	case mcbp.OpDelVBucket:
		c.delVBucket(nb, f)
	case mcbp.OpTapConnect:
		return c.tapConnect(nb, f)
	case opGetConfig:
		if body := c.kvMap(); body != nil && rel.hasUsers() {
			c.replyTyped(f, mcbp.StatusOK, dtJSON, body)
		} else if body != nil {
			c.reply(f, mcbp.StatusOK, 0, nil, nil, body)
		} else {
			c.fail(f, mcbp.StatusNotFound)
		}
	default:
		c.reply(f, mcbp.StatusUnknown, 0, nil, nil, nil)
	}
	return true
}

// abort kills the node as an assertion kills a real server's process.
func (c *conn) abort(why string, f *mcbp.Frame) {
	c.n.c.log.Warn("the server aborts", "node", c.n.OTP(), "why", why, "request", mcbp.OpcodeName(f.Opcode))
	c.n.Kill()
}

func (c *conn) hello(f *mcbp.Frame) {
	if c.n.c.rel.hasUsers() {
		c.helloModern(f)
		return
	}
	if c.n.c.family < 3 {
		c.reply(f, mcbp.StatusUnknown, 0, nil, nil, nil)
		return
	}
	v := f.Value()
	if len(v)%2 != 0 || f.ExtLen != 0 {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return
	}
	c.datatype = false // each HELLO replaces the one before
	var granted []byte
	for ; len(v) > 0; v = v[2:] {
		switch feature := binary.BigEndian.Uint16(v); feature {
		case featDatatype:
			c.datatype = true
			granted = append(granted, v[:2]...)
		case featTCPNoDelay:
			granted = append(granted, v[:2]...)
		}
	}
	c.reply(f, mcbp.StatusOK, 0, nil, nil, granted)
}

// park waits for a vbucket to leave the state pending: real servers answer
// nothing at all meanwhile. m is locked, and unlocked when park returns.
func (c *conn) park(m *vbucket) bool {
	changed := m.changed
	m.mu.Unlock()
	if c.flush() != nil {
		return false
	}
	select {
	case <-changed:
		return true
	case <-c.done:
		return false
	}
}

// verdict on a request by the state of its vbucket.
type verdict int

const (
	serveIt verdict = iota // the vbucket is locked
	refused                // answered, unlocked
	closeIt
)

// enter locks a request's vbucket and lets it in if the copy is active, or if
// forced and it is replica or pending. A pending one parks the connection.
func (c *conn) enter(nb *nodeBucket, f *mcbp.Frame, forced bool, coll uint32) (*vbucket, verdict) {
	if c.n.c.cfg.WarmUp {
		c.fail(f, mcbp.StatusTmpFail)
		return nil, refused
	}
	if int(f.VBucket) >= len(nb.copies) {
		c.fail(f, mcbp.StatusNotMyVBucket)
		return nil, refused
	}
	m := nb.b.vbs[f.VBucket]
	for {
		m.mu.Lock()
		switch s := nb.copies[f.VBucket].state; {
		case s == mcbp.VBActive, forced && (s == mcbp.VBReplica || s == mcbp.VBPending):
			if v := &nb.copies[f.VBucket]; !v.knows(coll) {
				uid := v.manifestUID()
				m.mu.Unlock()
				c.unknownCollection(f, uid)
				return nil, refused
			}
			return m, serveIt
		case s == mcbp.VBPending:
			if !c.park(m) {
				return nil, closeIt
			}
		default:
			m.mu.Unlock()
			c.fail(f, mcbp.StatusNotMyVBucket)
			return nil, refused
		}
	}
}

func badKey(key []byte) bool { return len(key) == 0 || len(key) > maxKeyLen }

const featMutationSeqno = 4

// forgives reports that a malformed request is only refused: 5.0 to 6.0 hang up.
func (c *conn) forgives() bool { return !c.n.c.rel.hasUsers() || c.n.c.rel >= rel65 }

// plainRequest checks the extras and the key of a request; ok is false when it
// was answered.
func (c *conn) plainRequest(f *mcbp.Frame, extras uint8) (coll uint32, key []byte, ok bool) {
	if f.ExtLen != extras || c.n.c.rel < rel65 && badKey(f.Key()) {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return 0, nil, false
	}
	return c.key(f)
}

func (c *conn) get(nb *nodeBucket, f *mcbp.Frame) bool {
	coll, key, ok := c.plainRequest(f, 0)
	if !ok {
		return c.forgives()
	}
	m, v := c.enter(nb, f, false, coll)
	if v != serveIt {
		return v == refused
	}
	it := nb.lookup(m, f.VBucket, coll, key)
	m.mu.Unlock()
	if it == nil {
		if f.Opcode != mcbp.OpGetQ && f.Opcode != opGetKQ {
			c.fail(f, mcbp.StatusNotFound)
		}
		return true
	}
	key = nil
	if f.Opcode == opGetK || f.Opcode == opGetKQ {
		key = f.Key()
	}
	c.replyItem(f, it, key)
	return true
}

func (c *conn) replyItem(f *mcbp.Frame, it *item, key []byte) {
	h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque, CAS: it.cas}
	value := it.value
	if c.n.c.rel.hasUsers() {
		value, h.Datatype = c.readable(it)
	} else if c.datatype {
		h.Datatype = it.datatype
	}
	var flags [4]byte
	binary.BigEndian.PutUint32(flags[:], it.flags)
	c.answer(h, flags[:], key, value)
}

func (c *conn) getReplica(nb *nodeBucket, f *mcbp.Frame) {
	if int(f.VBucket) >= len(nb.copies) {
		c.fail(f, mcbp.StatusNotMyVBucket)
		return
	}
	coll, key, ok := c.plainRequest(f, 0)
	if !ok {
		return
	}
	m := nb.b.vbs[f.VBucket]
	m.mu.Lock()
	state := nb.copies[f.VBucket].state
	known, uid := nb.copies[f.VBucket].knows(coll), nb.copies[f.VBucket].manifestUID()
	it := nb.lookup(m, f.VBucket, coll, key)
	m.mu.Unlock()
	switch {
	case state == mcbp.VBReplica && !known:
		c.unknownCollection(f, uid)
	case state != mcbp.VBReplica:
		c.fail(f, mcbp.StatusNotMyVBucket)
	case it == nil:
		c.fail(f, mcbp.StatusNotFound)
	case c.n.c.rel >= rel65 && !c.has(mcbp.FeatureCollections):
		c.replyItem(f, it, append([]byte{0}, key...)) // the id shows all the same
	default:
		c.replyItem(f, it, f.Key())
	}
}

func quiet(op mcbp.Opcode) bool {
	switch op {
	case mcbp.OpSetQ, mcbp.OpAddQ, opReplaceQ, mcbp.OpDeleteQ,
		mcbp.OpSetQWithMeta, mcbp.OpAddQWithMeta, mcbp.OpDeleteQWithMeta:
		return true
	}
	return false
}

// datatypeOf is the datatype byte that an item is stored with.
func (c *conn) datatypeOf(f *mcbp.Frame, value []byte) uint8 {
	if c.datatype {
		return f.Datatype
	}
	if c.n.c.family >= 3 && looksJSON(value) {
		return uint8(mcbp.DatatypeJSON)
	}
	return 0
}

func (c *conn) store(nb *nodeBucket, f *mcbp.Frame) bool {
	coll, key, ok := c.plainRequest(f, 8)
	if !ok {
		return c.forgives()
	}
	if len(f.Value()) > maxItem {
		c.reply(f, mcbp.StatusTooBig, 0, nil, nil, []byte("Too large."))
		return true
	}
	x := f.Extras()
	it := &item{
		key: string(key), coll: coll, value: bytesOf(f.Value()), datatype: c.datatypeOf(f, f.Value()),
		flags: binary.BigEndian.Uint32(x), expiry: absoluteExpiry(binary.BigEndian.Uint32(x[4:])),
	}
	if c.n.c.rel.hasUsers() {
		var more bool
		if it.datatype, ok, more = c.checkValue(f, it.value, false); !ok {
			return more
		}
	}
	m, v := c.enter(nb, f, false, coll)
	if v != serveIt {
		return v == refused
	}
	// An expired item counts as absent here, but only reads and deletions reap it.
	newest := nb.copies[f.VBucket].find(coll, key)
	it.expiry = nb.copies[f.VBucket].limitTTL(coll, it.expiry)
	old := newest
	if old != nil && (old.deleted || old.expired(time.Now().Unix())) {
		old = nil
	}
	status := mcbp.StatusOK
	if nb.b.inProgress(coll, key) {
		status = mcbp.StatusSyncInProgress
	}
	switch f.Opcode {
	case mcbp.OpAdd, mcbp.OpAddQ:
		if old != nil {
			status = mcbp.StatusExists
		}
	case opReplace, opReplaceQ:
		if old == nil {
			status = mcbp.StatusNotFound
		}
	}
	if status == mcbp.StatusOK && f.CAS != 0 {
		status = casCheck(old, f.CAS)
	}
	if status == mcbp.StatusOK {
		it.cas = c.n.c.cas.next()
		it.rev = nb.copies[f.VBucket].nextRev(newest)
		nb.write(m, f.VBucket, it)
	}
	uuid, seqno := nb.copies[f.VBucket].uuid, it.seqno
	m.mu.Unlock()
	c.written(f, status, it.cas, uuid, seqno)
	return true
}

func casCheck(old *item, cas uint64) mcbp.Status {
	switch {
	case old == nil:
		return mcbp.StatusNotFound
	case old.cas != cas:
		return mcbp.StatusExists
	}
	return mcbp.StatusOK
}

// written answers a write: quiet requests hear of failures only.
// From 5.0 on they tell where in the history the write is, if asked to.
func (c *conn) written(f *mcbp.Frame, status mcbp.Status, cas, uuid, seqno uint64) {
	if status != mcbp.StatusOK {
		c.fail(f, status)
		return
	}
	c.n.faults.writes.Add(1)
	if quiet(f.Opcode) {
		return
	}
	if c.has(featMutationSeqno) {
		x := binary.BigEndian.AppendUint64(nil, uuid)
		c.reply(f, status, cas, binary.BigEndian.AppendUint64(x, seqno), nil, nil)
		return
	}
	c.reply(f, status, cas, nil, nil, nil)
}

func (c *conn) delete(nb *nodeBucket, f *mcbp.Frame) bool {
	coll, key, ok := c.plainRequest(f, 0)
	if !ok {
		return c.forgives()
	}
	m, v := c.enter(nb, f, false, coll)
	if v != serveIt {
		return v == refused
	}
	old := nb.lookup(m, f.VBucket, coll, key)
	status := mcbp.StatusOK
	if nb.b.inProgress(coll, key) {
		status = mcbp.StatusSyncInProgress
	} else if old == nil {
		status = mcbp.StatusNotFound
	} else if f.CAS != 0 {
		status = casCheck(old, f.CAS)
	}
	var cas, seqno uint64
	if status == mcbp.StatusOK {
		tomb := nb.tombstone(m, f.VBucket, old)
		cas, seqno = tomb.cas, tomb.seqno
	}
	uuid := nb.copies[f.VBucket].uuid
	m.mu.Unlock()
	c.written(f, status, cas, uuid, seqno)
	return true
}

func (c *conn) getVBucket(nb *nodeBucket, f *mcbp.Frame) {
	state := mcbp.VBAbsent
	if int(f.VBucket) < len(nb.copies) {
		m := nb.b.vbs[f.VBucket]
		m.mu.Lock()
		state = nb.copies[f.VBucket].state
		m.mu.Unlock()
	}
	if state == mcbp.VBAbsent && c.n.c.rel.hasUsers() {
		c.fail(f, mcbp.StatusNotMyVBucket)
		return
	}
	if state == mcbp.VBAbsent {
		c.reply(f, mcbp.StatusNotMyVBucket, 0, nil, nil, nil)
		return
	}
	c.reply(f, mcbp.StatusOK, 0, nil, nil, binary.BigEndian.AppendUint32(nil, uint32(state)))
}

func (c *conn) setVBucket(nb *nodeBucket, f *mcbp.Frame) {
	if c.n.c.rel.hasUsers() {
		c.setVBucketModern(nb, f)
		return
	}
	x := f.Extras()
	if len(x) == 0 {
		x = f.Value()
	}
	status := mcbp.StatusOK
	var state mcbp.VBState
	switch {
	case len(x) != 4:
		status = mcbp.StatusInvalid
	case int(f.VBucket) >= len(nb.copies):
		status = mcbp.StatusRange
	default:
		state = mcbp.VBState(binary.BigEndian.Uint32(x))
		if state < mcbp.VBActive || state > mcbp.VBDead {
			status = mcbp.StatusInvalid
		}
	}
	if status != mcbp.StatusOK {
		c.reply(f, status, 0, nil, nil, nil)
		if c.n.c.family == 2 {
			c.reply(f, status, 0, nil, nil, nil) // 2.5.1 says it twice
		}
		return
	}
	m := nb.b.vbs[f.VBucket]
	m.mu.Lock()
	nb.setState(m, f.VBucket, state)
	m.mu.Unlock()
	c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
}

// setVBucketModern is setVBucket from 5.0 on: the state is in the extras, in one
// byte from 6.5 on, or in the value.
func (c *conn) setVBucketModern(nb *nodeBucket, f *mcbp.Frame) {
	byteForm := c.n.c.rel >= rel65
	bad := func(status mcbp.Status, text string) { c.replyTyped(f, status, dtJSON, contextBody(text)) }
	x := f.Extras()
	value := f.Value()
	var state uint32
	switch {
	case len(x) == 4:
		state = binary.BigEndian.Uint32(x)
	case len(x) == 0 && len(value) == 4:
		state = binary.BigEndian.Uint32(value)
	case len(x) == 1 && byteForm && len(value) > 0 && f.Datatype&dtJSON == 0:
		bad(mcbp.StatusInvalid, "datatype should be set to JSON")
		return
	case len(x) == 1 && byteForm:
		state = uint32(x[0])
	case byteForm:
		bad(mcbp.StatusInvalid, "Invalid format. Use 1 byte state in extras and an optional JSON value")
		return
	default:
		bad(mcbp.StatusInvalid, "Body too short")
		return
	}
	s := mcbp.VBState(state)
	switch {
	case (s < mcbp.VBActive || s > mcbp.VBDead) && byteForm:
		bad(mcbp.StatusInvalid, "The provided vbucket state is invalid")
		return
	case s < mcbp.VBActive || s > mcbp.VBDead:
		bad(mcbp.StatusInvalid, "Invalid vbucket state")
		return
	case int(f.VBucket) >= len(nb.copies):
		bad(mcbp.StatusRange, "VBucket number too big")
		return
	}
	m := nb.b.vbs[f.VBucket]
	m.mu.Lock()
	nb.setState(m, f.VBucket, s)
	m.mu.Unlock()
	c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
}

func (c *conn) delVBucket(nb *nodeBucket, f *mcbp.Frame) {
	status := mcbp.StatusNotMyVBucket
	if int(f.VBucket) < len(nb.copies) {
		m := nb.b.vbs[f.VBucket]
		m.mu.Lock()
		switch state := nb.copies[f.VBucket].state; {
		case state == mcbp.VBAbsent:
		case state == mcbp.VBDead || c.n.c.rel.hasUsers():
			nb.setState(m, f.VBucket, mcbp.VBAbsent)
			status = mcbp.StatusOK
		default:
			status = mcbp.StatusInvalid // only dead ones may go
		}
		m.mu.Unlock()
	}
	if status == mcbp.StatusNotMyVBucket && c.n.c.rel.hasUsers() {
		c.fail(f, status)
		return
	}
	c.reply(f, status, 0, nil, nil, nil)
}

// abortsAfterPush reports requests that kill a real server on a connection that
// has pushed TAP messages.
func abortsAfterPush(op mcbp.Opcode) bool {
	return slices.Contains([]mcbp.Opcode{
		mcbp.OpTapConnect, mcbp.OpSetVBucket, opDCPOpen,
		mcbp.OpSetWithMeta, mcbp.OpSetQWithMeta, mcbp.OpAddWithMeta, mcbp.OpAddQWithMeta,
		mcbp.OpDeleteWithMeta, mcbp.OpDeleteQWithMeta,
	}, op)
}
