package dcp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/mc"
)

const (
	// snapshotBytes is how much of one vbucket is gathered before it is sent as a
	// snapshot.
	snapshotBytes = 64 << 10
	// firstWindow is how much may be unacknowledged before a node says.
	firstWindow = 10 << 20
)

var errSilent = errors.New("no answer in time")

// link pushes into one node. One goroutine of a lane writes; a reader serves what
// the node asks and notes what it says.
type link struct {
	d           *dialect
	manifest    func() *cluster.Manifest
	conn        *cluster.Conn
	admin       *cluster.Conn
	deleteTimes bool
	traits      mc.Traits
	timeout     time.Duration

	wmu  sync.Mutex // writes to conn
	gone chan struct{}
	wake chan struct{} // the reader heard something

	mu          sync.Mutex // the reader's notes, and what streams say is guarded by it
	streams     map[uint16]*stream
	window      int
	unacked     int
	expirations bool
	fence       uint32 // opaque of the last NOOP that was answered
	broken      error  // why the reader ended

	// The writer's own.
	noop     uint32
	cas      uint64
	ctx      context.Context
	unguard  func() bool
	round    []*stream
	refusals []mc.Refusal
	failed   error
	vbs      []uint16
	seed     maphash.Seed
	keys     map[uint64]bool // of the round, by their hashes: it left them with a value
}

func newLink(d *dialect, manifest func() *cluster.Manifest, conn, admin *cluster.Conn, deleteTimes bool, t mc.Traits) *link {
	l := &link{
		d: d, manifest: manifest, conn: conn, admin: admin, deleteTimes: deleteTimes, traits: t, timeout: d.timeout,
		gone: make(chan struct{}), wake: make(chan struct{}, 1), streams: make(map[uint16]*stream), window: firstWindow,
		seed: maphash.MakeSeed(), keys: make(map[uint64]bool),
	}
	go l.read()
	return l
}

func (l *link) Close() error {
	err := errors.Join(l.conn.Close(), l.admin.Close())
	<-l.gone
	return err
}

func (l *link) Explain(op string, f *mcbp.Frame) error {
	asked := *f
	asked.Opcode = mcbp.OpDcpAddStream
	return l.conn.Refused(op, &asked)
}

// Begin adds streams for vbuckets that have none.
func (l *link) Begin(ctx context.Context, vbs []uint16) (map[uint16]*pump.Error, error) {
	l.ctx, l.failed, l.round, l.refusals = ctx, nil, l.round[:0], l.refusals[:0]
	clear(l.keys)
	l.unguard = context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	var added []*stream
	var request []byte
	l.mu.Lock()
	for _, vb := range vbs {
		s := l.streams[vb]
		if s == nil {
			s = &stream{vb: vb}
			l.streams[vb] = s
			added = append(added, s)
			// The answer is known by its vbucket's number.
			request = mcbp.AppendFrame(request, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpDcpAddStream, VBucket: vb, Opaque: uint32(vb)}, make([]byte, 4), nil, nil)
		}
		l.round = append(l.round, s)
	}
	l.mu.Unlock()
	if len(added) > 0 {
		err := l.write(request)
		if err == nil {
			err = l.await(func() bool {
				return !slices.ContainsFunc(added, func(s *stream) bool { return !s.open && s.refusal == 0 })
			})
		}
		if err != nil {
			return nil, l.end(err)
		}
	}
	var refused map[uint16]*pump.Error
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range added {
		if s.open {
			if s.fresh {
				s.manifest = cluster.DefaultManifest()
			} else {
				s.manifest = l.d.recall(s.vb, s.uuid)
			}
			continue
		}
		if refused == nil {
			refused = make(map[uint16]*pump.Error)
		}
		refused[s.vb] = l.streamRefused(s)
		delete(l.streams, s.vb)
	}
	l.round = slices.DeleteFunc(l.round, func(s *stream) bool { return refused[s.vb] != nil })
	for _, s := range l.round {
		s.begin()
	}
	return refused, nil
}

// streamRefused explains an ADD_STREAM that was refused.
func (l *link) streamRefused(s *stream) *pump.Error {
	f := mcbp.Frame{Header: mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpDcpAddStream, VBucket: uint16(s.refusal), BodyLen: uint32(len(s.text))}, Body: s.text}
	e := &pump.Error{Code: "stream-refused", Op: fmt.Sprintf("push vbucket %d", s.vb), Err: l.conn.Refused(fmt.Sprintf("push vbucket %d", s.vb), &f), Retry: true}
	switch s.refusal {
	case mcbp.StatusNotMyVBucket:
		e.Code, e.Hint = "vbucket-state", "only replica and pending vbuckets take a stream"
	case mcbp.StatusExists:
		e.Hint = "another stream goes into it: of a connection that was lost, or of another program"
	case mcbp.StatusAccess, mcbp.StatusAuthError, mcbp.StatusNoBucket:
		e.Class, e.Retry = pump.ClassDenied, false
	case mcbp.StatusUnknown, mcbp.StatusNotSupported:
		e.Retry = false
	}
	e.Op = ""
	return e
}

// end ends a round that failed.
func (l *link) end(err error) error {
	l.unguard()
	if l.ctx.Err() != nil {
		return l.ctx.Err()
	}
	return err
}

// Append sends an item of a vbucket that Begin knows.
func (l *link) Append(i int, it *pump.Item) {
	l.mu.Lock()
	s, expirations := l.streams[it.VBucket], l.expirations
	l.mu.Unlock()
	if s == nil || l.failed != nil {
		return
	}
	s.items = append(s.items, i)
	l.tally(s, it)
	l.events(s, it)
	cas := it.CAS
	if badCAS(cas) {
		l.cas = newCAS(l.cas)
		cas = l.cas
	}
	s.add(it, cas, l.deleteTimes, expirations)
	switch {
	case s.suspect:
		if r := l.alone(s); r.Status != mcbp.StatusOK {
			r.Index = i
			s.ignorant = s.ignorant || r.Status == mcbp.StatusUnknownCollection
			l.refusals = append(l.refusals, r)
		}
	case len(s.buf) >= snapshotBytes:
		l.push(s)
	}
}

// tally notes what the item does to the number of live items.
func (l *link) tally(s *stream, it *pump.Item) {
	var h maphash.Hash
	h.SetSeed(l.seed)
	_ = h.WriteByte(byte(s.vb >> 8)) // never fails
	_ = h.WriteByte(byte(s.vb))
	_, _ = h.Write(it.Key)
	key, live := h.Sum64(), it.Op == pump.Mutation
	switch was := l.keys[key]; {
	case live && !was:
		s.live++
	case !live && was:
		s.live--
	}
	if !live {
		s.gone++
	}
	l.keys[key] = live
}

// events tells the vbucket of collections before the first item of one, and again
// when the manifest has changed.
func (l *link) events(s *stream, it *pump.Item) {
	if !l.traits.Collections || len(it.Key) == 0 || it.Key[0] == 0 {
		return // the default collection is known everywhere
	}
	have, want := s.manifest, l.manifest()
	if s.ignorant {
		have = cluster.DefaultManifest()
	}
	if want == nil || have == nil || have.UID >= want.UID {
		return
	}
	for _, e := range changes(have, want) {
		s.event(&e)
		if s.suspect {
			// What a resumed vbucket knows already it refuses to be told again.
			l.alone(s)
		}
	}
	s.manifest, s.ignorant = want, false
}

// alone pushes what is gathered of a suspect stream and returns the node's word on
// it.
func (l *link) alone(s *stream) mc.Refusal {
	goal := s.goal
	l.push(s)
	l.fenced()
	l.mu.Lock()
	defer l.mu.Unlock()
	r := mc.Refusal{Status: s.refusal, Text: s.text}
	if s.refusal != mcbp.StatusOK {
		s.goal = goal
	}
	if itemRefused(s.refusal) {
		s.refusal, s.text = mcbp.StatusOK, nil
	}
	return r
}

// itemRefused reports that a status may be about one item; others are about the
// whole vbucket or connection.
func itemRefused(s mcbp.Status) bool {
	switch s {
	case mcbp.StatusOK, mcbp.StatusNotFound, mcbp.StatusRange, mcbp.StatusNotMyVBucket, mcbp.StatusNoBucket, mcbp.StatusAuthError, mcbp.StatusAccess,
		mcbp.StatusUnknown, mcbp.StatusNotSupported, mcbp.StatusNoMemory, mcbp.StatusBusy, mcbp.StatusTmpFail:
		return false
	}
	return true
}

// push sends what is gathered of a vbucket as one snapshot, when the node's window
// has room.
func (l *link) push(s *stream) {
	if len(s.buf) == 0 || l.failed != nil {
		return
	}
	m := mcbp.DcpMessage{Opcode: mcbp.OpDcpSnapshotMarker, VBucket: s.vb, Opaque: s.opaque, Seqno: s.first, SnapEnd: s.seqno, Flags: snapshotLive}
	var room [mcbp.HeaderLen + 20]byte
	marker := m.Append(room[:0], false)
	n := len(marker) + len(s.buf)
	// A node acknowledges when a fifth of the window is taken: half of it never fills
	// up for ever.
	l.failed = l.await(func() bool { return l.unacked+n <= l.window || l.unacked <= l.window/2 })
	if l.failed == nil {
		l.mu.Lock()
		l.unacked += n
		l.mu.Unlock()
		l.failed = l.write(marker, s.buf)
	}
	s.buf, s.first, s.goal = s.buf[:0], 0, s.seqno
	if cap(s.buf) > 8*snapshotBytes { // one huge value must not keep its size for ever
		s.buf = nil
	}
}

// fenced waits until the node has answered a NOOP behind everything.
func (l *link) fenced() {
	if l.failed != nil {
		return
	}
	l.noop++
	n := l.noop
	h := mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpDcpNoop, Opaque: n}
	if l.failed = l.write(h.Append(nil)); l.failed == nil {
		l.failed = l.await(func() bool { return l.fence == n })
	}
}

// Wait sends the rest and proves that the node has it.
func (l *link) Wait() ([]mc.Refusal, error) {
	for _, s := range l.round {
		l.push(s)
	}
	l.fenced()
	if l.failed == nil {
		l.failed = l.judge()
	}
	if l.failed == nil {
		l.failed = l.confirm()
	}
	if l.failed == nil {
		l.failed = l.count()
	}
	if l.failed != nil {
		return l.refusals, l.end(l.failed)
	}
	for _, s := range l.round {
		if s.manifest != nil {
			l.d.remember(s.vb, s.uuid, s.manifest)
		}
	}
	if !l.unguard() {
		return l.refusals, l.ctx.Err()
	}
	return l.refusals, nil
}

// judge turns refusals of streams into those of their items.
func (l *link) judge() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.vbs = l.vbs[:0]
	for _, s := range l.round {
		switch status := s.refusal; {
		case status == mcbp.StatusOK:
			if s.suspect {
				s.live = 0 // some of them may have been refused
			}
			s.suspect = s.suspect && slices.ContainsFunc(l.refusals, func(r mc.Refusal) bool { return slices.Contains(s.items, r.Index) })
			if len(s.items) > 0 {
				l.vbs = append(l.vbs, s.vb)
			}
		case status == mcbp.StatusNotFound || status == mcbp.StatusRange:
			return fmt.Errorf("the node has lost the stream of vbucket %d (%s)", s.vb, mcbp.StatusName(status))
		default:
			s.live = 0 // which of them are there is not known
			s.floor = s.least()
			var again *pump.Error
			if itemRefused(status) {
				again = &pump.Error{Code: "stream-item", Retry: true, Op: fmt.Sprintf("push vbucket %d into node %s", s.vb, l.conn.Addr()),
					Err: fmt.Errorf("the node refuses an item with %s; they are sent one at a time to find it", mcbp.StatusName(status))}
				s.suspect = true
				s.ignorant = s.ignorant || status == mcbp.StatusUnknownCollection
			}
			for _, i := range s.items {
				l.refusals = append(l.refusals, mc.Refusal{Index: i, Status: status, Text: s.text, Again: again})
			}
			if status == mcbp.StatusNotMyVBucket {
				delete(l.streams, s.vb)
			}
			s.refusal, s.text = mcbp.StatusOK, nil
		}
	}
	return nil
}

// confirm waits until the node says that it has processed everything: what it has
// read it may still hold in a queue (invariant 1).
func (l *link) confirm() error {
	if len(l.vbs) == 0 {
		return nil
	}
	timer := time.NewTimer(l.timeout)
	defer timer.Stop()
	limit, delay := time.Now().Add(l.timeout), time.Millisecond
	best := uint64(0)
	for {
		high, err := l.admin.HighSeqnos(l.ctx, l.vbs, mcbp.VBAbsent, l.timeout)
		if err != nil {
			return err
		}
		sum, behind := uint64(0), (*stream)(nil)
		for _, vb := range l.vbs {
			sum += high[vb]
			if s := l.streams[vb]; high[vb] < s.goal {
				behind = s
			}
		}
		if behind == nil {
			return nil
		}
		if sum > best {
			best, limit = sum, time.Now().Add(l.timeout)
		} else if time.Now().After(limit) {
			return fmt.Errorf("%w: vbucket %d stays at seqno %d and was sent up to %d", errSilent, behind.vb, high[behind.vb], behind.goal)
		}
		timer.Reset(delay)
		select {
		case <-timer.C:
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
		delay = min(2*delay, 100*time.Millisecond)
	}
}

// count waits until the node counts as many live items as there must be. A node
// that keeps only some in memory counts those that are on its disk, a little later.
func (l *link) count() error {
	limit := time.Now().Add(l.timeout)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for delay := time.Millisecond; ; delay = min(2*delay, 200*time.Millisecond) {
		counts, err := l.counts()
		if err != nil {
			return err
		}
		short := -1
		for i, vb := range l.vbs {
			if counts[vb].Items < l.streams[vb].least() {
				short = i
			}
		}
		if short < 0 {
			for _, vb := range l.vbs {
				s := l.streams[vb]
				s.floor = s.least()
			}
			return nil
		}
		if time.Now().After(limit) {
			vb := l.vbs[short]
			return &pump.Error{Code: "items-missing", Op: fmt.Sprintf("push vbucket %d into node %s", vb, l.conn.Addr()), Retry: true,
				Err:  fmt.Errorf("it took everything, and %v later it counts %d live items, while there must be %d or more", l.timeout, counts[vb].Items, l.streams[vb].least()),
				Hint: "is somebody else writing to, or deleting from, that vbucket?"}
		}
		pause.Reset(delay)
		select {
		case <-pause.C:
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
}

// counts asks for the vbuckets of the round: one by one, or all of the node's when
// that is shorter.
func (l *link) counts() (map[uint16]cluster.VBInfo, error) {
	const few = 16
	if len(l.vbs) > few {
		return l.admin.VBucketDetails(l.ctx)
	}
	counts := make(map[uint16]cluster.VBInfo, len(l.vbs))
	for _, vb := range l.vbs {
		info, err := l.admin.VBucketInfo(l.ctx, vb)
		if err != nil {
			return nil, err
		}
		counts[vb] = info
	}
	return counts, nil
}

// write sends packets. The reader writes too: its answers go in between.
func (l *link) write(parts ...[]byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	for _, p := range parts {
		for len(p) > 0 { // a slow node is not a silent one
			n := min(len(p), 256<<10)
			if err := l.conn.NetConn().SetWriteDeadline(time.Now().Add(l.timeout)); err != nil {
				return err
			}
			if _, err := l.conn.NetConn().Write(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return nil
}

// await waits until cond, which is called with the lock held, is true. A node that
// says nothing at all for the timeout is given up.
func (l *link) await(cond func() bool) error {
	var timer *time.Timer
	for {
		l.mu.Lock()
		ok, broken := cond(), l.broken
		l.mu.Unlock()
		if ok {
			return nil
		}
		if broken != nil {
			return broken
		}
		if timer == nil {
			timer = time.NewTimer(l.timeout)
			defer timer.Stop()
		} else {
			timer.Reset(l.timeout)
		}
		select {
		case <-l.wake:
		case <-timer.C:
			return fmt.Errorf("%w (%s)", errSilent, l.timeout)
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
}

// read serves the node until the connection ends.
func (l *link) read() {
	defer close(l.gone)
	for {
		f, err := l.conn.Reader().Next()
		if err == nil {
			err = l.serve(&f)
		}
		if err != nil {
			l.mu.Lock()
			l.broken = err
			l.mu.Unlock()
		}
		select {
		case l.wake <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (l *link) serve(f *mcbp.Frame) error {
	if f.Magic == mcbp.MagicRequest {
		return l.request(f)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch f.Opcode {
	case mcbp.OpDcpNoop:
		l.fence = f.Opaque
	case mcbp.OpDcpAddStream:
		if s := l.streams[uint16(f.Opaque)]; s != nil && !s.open {
			s.open, s.refusal, s.text = f.Status() == mcbp.StatusOK, f.Status(), bytes.Clone(f.Value())
		}
	case mcbp.OpDcpSnapshotMarker, mcbp.OpDcpSystemEvent, mcbp.OpDcpMutation, mcbp.OpDcpDeletion, mcbp.OpDcpExpiration:
		if f.Status() == mcbp.StatusOK {
			break
		}
		for _, s := range l.streams {
			if s.open && s.opaque == f.Opaque && s.refusal == mcbp.StatusOK {
				s.refusal, s.text = f.Status(), bytes.Clone(f.Value()[:min(len(f.Value()), 1<<10)])
			}
		}
	}
	return nil
}

// promises are CONTROLs that would oblige us to what we do not do.
var promises = []string{"enable_sync_writes", "enable_stream_id", "enable_out_of_order_snapshots"}

// request answers what the node asks.
func (l *link) request(f *mcbp.Frame) error {
	status, value := mcbp.StatusOK, []byte(nil)
	l.mu.Lock()
	switch f.Opcode {
	case mcbp.OpDcpControl:
		switch key, text := string(f.Key()), string(f.Value()); {
		case key == "connection_buffer_size":
			if n, err := strconv.Atoi(text); err == nil && n > 0 {
				l.window = n
			}
		case key == "enable_expiry_opcode":
			l.expirations = text == "true"
		case slices.Contains(promises, key):
			status = mcbp.StatusInvalid
		}
	case mcbp.OpGetErrorMap:
		value = []byte(`{"version":1}`)
	case mcbp.OpDcpStreamReq:
		status, value = l.streamRequest(f)
	case mcbp.OpDcpNoop, mcbp.OpNoop:
	case mcbp.OpDcpBufferAck:
		if x := f.Extras(); len(x) == 4 {
			l.unacked = max(0, l.unacked-int(binary.BigEndian.Uint32(x)))
		}
		l.mu.Unlock()
		return nil // it is not answered
	case mcbp.OpDcpCloseStream:
		if s := l.streams[f.VBucket]; s != nil && s.open && s.refusal == mcbp.StatusOK {
			s.refusal = mcbp.StatusNotFound
		}
	default:
		status = mcbp.StatusUnknown
	}
	l.mu.Unlock()
	h := mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque, VBucket: uint16(status)}
	return l.write(mcbp.AppendFrame(nil, h, nil, nil, value))
}

// streamRequest answers the node's STREAM_REQ with a failover log. An empty vbucket
// gets a history of its own; one that we or others have filled goes on with its own.
func (l *link) streamRequest(f *mcbp.Frame) (mcbp.Status, []byte) {
	var r mcbp.StreamReq
	if err := r.Parse(f); err != nil {
		return mcbp.StatusInvalid, nil
	}
	s := l.streams[r.VBucket]
	if s == nil || s.open {
		return mcbp.StatusNotMyVBucket, nil
	}
	s.opaque, s.seqno, s.uuid, s.fresh = r.Opaque, r.Start, r.UUID, r.Start == 0
	if s.fresh || s.uuid == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		s.uuid = binary.BigEndian.Uint64(b[:])>>16 | 1
	}
	return mcbp.StatusOK, mcbp.AppendFailoverLog(nil, []mcbp.FailoverEntry{{UUID: s.uuid}})
}
