package mcbp

import (
	"encoding/binary"
	"fmt"

	"github.com/couchbase/gomemcached"
)

// Opcodes of DCP (3.0 and later) and of what goes with it.
const (
	OpDcpOpen            = gomemcached.UPR_OPEN
	OpDcpAddStream       = gomemcached.UPR_ADDSTREAM
	OpDcpCloseStream     = gomemcached.UPR_CLOSESTREAM
	OpDcpStreamReq       = gomemcached.UPR_STREAMREQ
	OpDcpFailoverLog     = gomemcached.UPR_FAILOVERLOG
	OpDcpStreamEnd       = gomemcached.UPR_STREAMEND
	OpDcpSnapshotMarker  = gomemcached.UPR_SNAPSHOT
	OpDcpMutation        = gomemcached.UPR_MUTATION
	OpDcpDeletion        = gomemcached.UPR_DELETION
	OpDcpExpiration      = gomemcached.UPR_EXPIRATION
	OpDcpFlush           = gomemcached.UPR_FLUSH
	OpDcpSetVBucketState = Opcode(0x5b)
	OpDcpNoop            = gomemcached.UPR_NOOP
	OpDcpBufferAck       = gomemcached.UPR_BUFFERACK
	OpDcpControl         = gomemcached.UPR_CONTROL
	OpDcpSystemEvent     = gomemcached.DCP_SYSTEM_EVENT
	OpDcpPrepare         = Opcode(0x60)
	OpDcpSeqnoAck        = Opcode(0x61)
	OpDcpCommit          = Opcode(0x62)
	OpDcpAbort           = Opcode(0x63)
	OpDcpSeqnoAdvanced   = gomemcached.DCP_SEQNO_ADV
	OpDcpOSOSnapshot     = gomemcached.DCP_OSO_SNAPSHOT

	OpGetAllVBSeqnos   = gomemcached.GET_ALL_VB_SEQNOS
	OpSelectBucket     = gomemcached.SELECT_BUCKET
	OpGetErrorMap      = gomemcached.GET_ERROR_MAP
	OpGetClusterConfig = Opcode(0xb5)
	OpSetManifest      = Opcode(0xb9)
	OpGetManifest      = gomemcached.GET_COLLECTIONS_MANIFEST
	OpGetCollectionID  = gomemcached.COLLECTIONS_GET_CID
	OpGetScopeID       = Opcode(0xbc)
)

// Statuses that only newer servers give.
const (
	StatusRollback          = gomemcached.ROLLBACK
	StatusXattrInvalid      = gomemcached.XATTR_EINVAL
	StatusUnknownCollection = gomemcached.UNKNOWN_COLLECTION
	StatusUnknownScope      = Status(0x8c)
	StatusSyncInProgress    = gomemcached.SYNC_WRITE_IN_PROGRESS
)

// Flags of DCP_OPEN.
const (
	DcpOpenProducer    = 0x01
	DcpOpenXattrs      = 0x04
	DcpOpenNoValue     = 0x08 // may abort a 6.6 server: never asked for
	DcpOpenDeleteTimes = 0x20
)

// Further options of *_WITH_META (design notes, "5.0 and later").
const (
	MetaLWW           uint32 = 0x02 // needed on last-write-wins buckets, refused on others
	MetaRegenerateCAS uint32 = 0x04 // a new CAS; needs MetaForce or MetaSkipConflict
	MetaSkipConflict  uint32 = 0x08 // no conflict resolution, active vbuckets only
)

// Features of HELLO.
const (
	FeatureXattr       = 0x06
	FeatureXerror      = 0x07
	FeatureSelect      = 0x08
	FeatureSnappy      = 0x0a
	FeatureJSON        = 0x0b
	FeatureCollections = 0x12
)

// DcpMessage is one message of a DCP stream. Key, Value, Meta alias the frame.
type DcpMessage struct {
	Opcode   Opcode
	VBucket  uint16
	Opaque   uint32
	Datatype uint8
	CAS      uint64
	Seqno    uint64 // by_seqno; of a snapshot marker its start
	SnapEnd  uint64 // end of a snapshot
	Rev      uint64
	Flags    uint32 // item flags; of a marker its own; the status of a stream end, the id of a system event, a vbucket's state
	Expiry   uint32 // absolute Unix seconds; of a deletion its delete time, 0 = not told
	Version  uint8  // of a system event
	Key      []byte // with the collection's id in front where collections were negotiated
	Value    []byte
	Meta     []byte
}

// The ids of system events (DcpMessage.Flags).
const (
	EventCreateCollection = 0
	EventDropCollection   = 1
	EventCreateScope      = 3
	EventDropScope        = 4
)

// Reasons in a STREAM_END (DcpMessage.Flags).
const (
	StreamEndOK            = 0 // the end that was asked for; without collections also a dropped default collection
	StreamEndClosed        = 1 // somebody closed the stream
	StreamEndState         = 2 // the vbucket is not active any more: a rebalance or a failover
	StreamEndDisconnected  = 3
	StreamEndSlow          = 4 // the client read too slowly
	StreamEndBackfill      = 5 // the server could not read from disk
	StreamEndRollback      = 6
	StreamEndNoCollections = 7 // all collections of the filter are gone
)

// SystemEvent is a change of the manifest of collections.
type SystemEvent struct {
	Event        uint32 // EventCreateCollection, …
	Version      uint8
	ManifestUID  uint64 // of the manifest that has the change
	Scope        uint32
	Collection   uint32
	MaxTTL       uint32 // seconds, 0 = none or not told
	Name         []byte // of what is created
	IsCollection bool   // the event is about a collection, else about a scope
}

// ParseSystemEvent decodes a SYSTEM_EVENT that Parse has decoded. Events that are
// not known are ErrMalformed. Name aliases the message.
func (m *DcpMessage) ParseSystemEvent() (SystemEvent, error) {
	e := SystemEvent{Event: m.Flags, Version: m.Version, Name: m.Key}
	v := m.Value
	need := 0
	switch e.Event {
	case EventCreateCollection, EventDropCollection:
		e.IsCollection, need = true, 16
		if e.Event == EventCreateCollection && e.Version == 1 {
			need = 20
		}
	case EventCreateScope, EventDropScope:
		need = 12
	}
	if m.Opcode != OpDcpSystemEvent || need == 0 || e.Version > 1 || len(v) != need {
		return SystemEvent{}, fmt.Errorf("%w: system event %d, version %d, with %d bytes", ErrMalformed, m.Flags, m.Version, len(v))
	}
	e.ManifestUID, e.Scope = binary.BigEndian.Uint64(v), binary.BigEndian.Uint32(v[8:])
	if e.IsCollection {
		e.Collection = binary.BigEndian.Uint32(v[12:])
	}
	if need == 20 {
		e.MaxTTL = binary.BigEndian.Uint32(v[16:])
	}
	return e, nil
}

// AppendValue appends the value of the event's message; its key is Name, and its
// version must be 1 if there is a MaxTTL and 0 if not.
func (e *SystemEvent) AppendValue(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, e.ManifestUID)
	dst = binary.BigEndian.AppendUint32(dst, e.Scope)
	if e.Event == EventCreateCollection || e.Event == EventDropCollection {
		dst = binary.BigEndian.AppendUint32(dst, e.Collection)
	}
	if e.Event == EventCreateCollection && e.Version == 1 {
		dst = binary.BigEndian.AppendUint32(dst, e.MaxTTL)
	}
	return dst
}

// IsDcp reports that an opcode belongs to a DCP stream.
func IsDcp(op Opcode) bool { return op >= OpDcpOpen && op <= OpDcpOSOSnapshot }

// NextDcp decodes the next packet in the buffer if it is a whole and well-formed mutation
// of a DCP stream, and returns its length in bytes. Else it returns 0 and takes nothing,
// and DecodeTo and Parse say what it is. It is the two in one pass for what most of
// a stream consists of.
func (r *Reader) NextDcp(m *DcpMessage) int {
	const ext = 31
	const fixed = HeaderLen + ext
	b := r.buf[r.start:r.end]
	if r.err != nil || len(b) < fixed || b[0] != MagicRequest || Opcode(b[1]) != OpDcpMutation || b[4] != ext {
		return 0
	}
	body := binary.BigEndian.Uint32(b[8:])
	n := HeaderLen + int(body)
	if body > MaxBody || len(b) < n {
		return 0
	}
	keyEnd := fixed + int(binary.BigEndian.Uint16(b[2:]))
	valueEnd := n - int(binary.BigEndian.Uint16(b[HeaderLen+28:]))
	if keyEnd > valueEnd {
		return 0
	}
	m.Opcode, m.Datatype, m.Version, m.SnapEnd = OpDcpMutation, b[5], 0, 0
	m.VBucket = binary.BigEndian.Uint16(b[6:])
	m.Opaque = binary.BigEndian.Uint32(b[12:])
	m.CAS = binary.BigEndian.Uint64(b[16:])
	m.Seqno, m.Rev = binary.BigEndian.Uint64(b[HeaderLen:]), binary.BigEndian.Uint64(b[HeaderLen+8:])
	m.Flags, m.Expiry = binary.BigEndian.Uint32(b[HeaderLen+16:]), binary.BigEndian.Uint32(b[HeaderLen+20:])
	m.Key, m.Value, m.Meta = b[fixed:keyEnd:keyEnd], b[keyEnd:valueEnd:valueEnd], nil
	if valueEnd < n {
		m.Meta = b[valueEnd:n:n]
	}
	r.start += n
	return n
}

// Parse decodes a message of a DCP stream by its opcode and the length of its
// extras: servers of several versions send several forms. It allocates nothing.
//
// Messages that must be negotiated and never are (PREPARE, COMMIT, ABORT,
// OSO_SNAPSHOT), and those that belong to no stream, are ErrMalformed: what is not
// understood must not be passed over.
func (m *DcpMessage) Parse(f *Frame) error {
	x := f.Extras()
	*m = DcpMessage{Opcode: f.Opcode, VBucket: f.VBucket, Opaque: f.Opaque, Datatype: f.Datatype, CAS: f.CAS, Key: f.Key(), Value: f.Value()}
	bad := func() error {
		return fmt.Errorf("%w: %s with %d bytes of extras", ErrMalformed, OpcodeName(f.Opcode), len(x))
	}
	nmeta := 0
	switch f.Opcode {
	case OpDcpMutation:
		if len(x) != 31 {
			return bad()
		}
		m.Seqno, m.Rev = binary.BigEndian.Uint64(x), binary.BigEndian.Uint64(x[8:])
		m.Flags, m.Expiry = binary.BigEndian.Uint32(x[16:]), binary.BigEndian.Uint32(x[20:])
		nmeta = int(binary.BigEndian.Uint16(x[28:]))
	case OpDcpDeletion, OpDcpExpiration:
		if len(x) < 18 {
			return bad()
		}
		m.Seqno, m.Rev = binary.BigEndian.Uint64(x), binary.BigEndian.Uint64(x[8:])
		switch len(x) {
		case 18:
			nmeta = int(binary.BigEndian.Uint16(x[16:]))
		case 20, 21:
			m.Expiry = binary.BigEndian.Uint32(x[16:])
		default:
			return bad()
		}
	case OpDcpSnapshotMarker:
		switch len(x) {
		case 20:
			m.Seqno, m.SnapEnd = binary.BigEndian.Uint64(x), binary.BigEndian.Uint64(x[8:])
			m.Flags = binary.BigEndian.Uint32(x[16:])
		case 1: // version 2.x: the fields are in the value
			if len(m.Value) < 20 {
				return bad()
			}
			m.Seqno, m.SnapEnd = binary.BigEndian.Uint64(m.Value), binary.BigEndian.Uint64(m.Value[8:])
			m.Flags = binary.BigEndian.Uint32(m.Value[16:])
		default:
			return bad()
		}
	case OpDcpStreamEnd:
		if len(x) != 4 {
			return bad()
		}
		m.Flags = binary.BigEndian.Uint32(x)
	case OpDcpSystemEvent:
		if len(x) != 13 {
			return bad()
		}
		m.Seqno, m.Flags, m.Version = binary.BigEndian.Uint64(x), binary.BigEndian.Uint32(x[8:]), x[12]
	case OpDcpSeqnoAdvanced:
		if len(x) != 8 {
			return bad()
		}
		m.Seqno = binary.BigEndian.Uint64(x)
	case OpDcpSetVBucketState:
		if len(x) != 1 {
			return bad()
		}
		m.Flags = uint32(x[0])
	case OpDcpNoop:
	default:
		return fmt.Errorf("%w: %s in a stream, which was never asked for", ErrMalformed, OpcodeName(f.Opcode))
	}
	if nmeta > 0 {
		if nmeta > len(m.Value) {
			return fmt.Errorf("%w: %s announces %d bytes of extended metadata in %d", ErrLength, OpcodeName(f.Opcode), nmeta, len(m.Value))
		}
		at := len(m.Value) - nmeta
		m.Value, m.Meta = m.Value[:at:at], m.Value[at:]
	}
	return nil
}

// Append appends a snapshot marker, mutation, deletion, expiration, system
// event, stream end, seqno advanced or vbucket state as a producer sends it.
// Deletions carry a delete time (21 bytes of extras, expirations 20) when
// deleteTimes says so; that form has no room for Meta, which servers that know it
// do not have any more. The nru byte is 0. It allocates nothing beyond dst.
func (m *DcpMessage) Append(dst []byte, deleteTimes bool) []byte {
	var b [HeaderLen + 31]byte
	x := b[HeaderLen:]
	ext, meta := 0, m.Meta
	switch m.Opcode {
	case OpDcpMutation:
		ext = 31
		binary.BigEndian.PutUint64(x, m.Seqno)
		binary.BigEndian.PutUint64(x[8:], m.Rev)
		binary.BigEndian.PutUint32(x[16:], m.Flags)
		binary.BigEndian.PutUint32(x[20:], m.Expiry)
		binary.BigEndian.PutUint16(x[28:], uint16(len(m.Meta)))
	case OpDcpDeletion, OpDcpExpiration:
		binary.BigEndian.PutUint64(x, m.Seqno)
		binary.BigEndian.PutUint64(x[8:], m.Rev)
		switch {
		case m.Opcode == OpDcpExpiration && deleteTimes:
			ext, meta = 20, nil
			binary.BigEndian.PutUint32(x[16:], m.Expiry)
		case deleteTimes:
			ext, meta = 21, nil
			binary.BigEndian.PutUint32(x[16:], m.Expiry)
		default:
			ext = 18
			binary.BigEndian.PutUint16(x[16:], uint16(len(m.Meta)))
		}
	case OpDcpSnapshotMarker:
		ext = 20
		binary.BigEndian.PutUint64(x, m.Seqno)
		binary.BigEndian.PutUint64(x[8:], m.SnapEnd)
		binary.BigEndian.PutUint32(x[16:], m.Flags)
	case OpDcpStreamEnd:
		ext = 4
		binary.BigEndian.PutUint32(x, m.Flags)
	case OpDcpSystemEvent:
		ext = 13
		binary.BigEndian.PutUint64(x, m.Seqno)
		binary.BigEndian.PutUint32(x[8:], m.Flags)
		x[12] = m.Version
	case OpDcpSeqnoAdvanced:
		ext = 8
		binary.BigEndian.PutUint64(x, m.Seqno)
	case OpDcpSetVBucketState:
		ext = 1
		x[0] = byte(m.Flags)
	}
	h := Header{
		Magic: MagicRequest, Opcode: m.Opcode, KeyLen: uint16(len(m.Key)), ExtLen: uint8(ext), Datatype: m.Datatype,
		VBucket: m.VBucket, Opaque: m.Opaque, CAS: m.CAS, BodyLen: uint32(ext + len(m.Key) + len(m.Value) + len(meta)),
	}
	h.put(b[:])
	dst = append(dst, b[:HeaderLen+ext]...)
	dst = append(dst, m.Key...)
	dst = append(dst, m.Value...)
	return append(dst, meta...)
}

// AppendDcpOpen appends DCP_OPEN.
func AppendDcpOpen(dst []byte, opaque uint32, name string, flags uint32) []byte {
	var x [8]byte
	binary.BigEndian.PutUint32(x[4:], flags)
	return AppendFrame(dst, Header{Magic: MagicRequest, Opcode: OpDcpOpen, Opaque: opaque}, x[:], []byte(name), nil)
}

// AppendDcpControl appends a CONTROL of a key and a value.
func AppendDcpControl(dst []byte, opaque uint32, key, value string) []byte {
	return AppendFrame(dst, Header{Magic: MagicRequest, Opcode: OpDcpControl, Opaque: opaque}, nil, []byte(key), []byte(value))
}

// AppendDcpBufferAck appends a BUFFER_ACK of n bytes of whole packets.
func AppendDcpBufferAck(dst []byte, n uint32) []byte {
	var x [4]byte
	binary.BigEndian.PutUint32(x[:], n)
	return AppendFrame(dst, Header{Magic: MagicRequest, Opcode: OpDcpBufferAck}, x[:], nil, nil)
}

// StreamReq is the request for one vbucket's stream.
type StreamReq struct {
	VBucket            uint16
	Opaque             uint32
	Flags              uint32
	Start, End         uint64 // seqnos: what comes after Start, to End
	UUID               uint64 // of the branch that Start is on
	SnapStart, SnapEnd uint64
	Filter             []byte // JSON, only with collections
}

// Append appends the request.
func (r *StreamReq) Append(dst []byte) []byte {
	var x [48]byte
	binary.BigEndian.PutUint32(x[:], r.Flags)
	binary.BigEndian.PutUint64(x[8:], r.Start)
	binary.BigEndian.PutUint64(x[16:], r.End)
	binary.BigEndian.PutUint64(x[24:], r.UUID)
	binary.BigEndian.PutUint64(x[32:], r.SnapStart)
	binary.BigEndian.PutUint64(x[40:], r.SnapEnd)
	return AppendFrame(dst, Header{Magic: MagicRequest, Opcode: OpDcpStreamReq, Opaque: r.Opaque, VBucket: r.VBucket}, x[:], nil, r.Filter)
}

// Parse decodes a STREAM_REQ.
func (r *StreamReq) Parse(f *Frame) error {
	if f.ExtLen != 48 {
		return fmt.Errorf("%w: DCP_STREAM_REQ with %d bytes of extras", ErrMalformed, f.ExtLen)
	}
	x := f.Extras()
	*r = StreamReq{
		VBucket: f.VBucket, Opaque: f.Opaque, Flags: binary.BigEndian.Uint32(x),
		Start: binary.BigEndian.Uint64(x[8:]), End: binary.BigEndian.Uint64(x[16:]), UUID: binary.BigEndian.Uint64(x[24:]),
		SnapStart: binary.BigEndian.Uint64(x[32:]), SnapEnd: binary.BigEndian.Uint64(x[40:]), Filter: f.Value(),
	}
	return nil
}

// FailoverEntry is one branch of a vbucket's history: from Seqno on it is UUID.
type FailoverEntry struct{ UUID, Seqno uint64 }

// ParseFailoverLog decodes a failover log, newest branch first.
func ParseFailoverLog(p []byte) ([]FailoverEntry, error) {
	if len(p)%16 != 0 || len(p) == 0 {
		return nil, fmt.Errorf("%w: a failover log of %d bytes", ErrMalformed, len(p))
	}
	log := make([]FailoverEntry, len(p)/16)
	for i := range log {
		log[i] = FailoverEntry{binary.BigEndian.Uint64(p[16*i:]), binary.BigEndian.Uint64(p[16*i+8:])}
	}
	return log, nil
}

// ParseRollback decodes the value of a STREAM_REQ answered with StatusRollback: the
// seqno to go back to.
func ParseRollback(p []byte) (uint64, error) {
	if len(p) != 8 {
		return 0, fmt.Errorf("%w: a rollback of %d bytes", ErrMalformed, len(p))
	}
	return binary.BigEndian.Uint64(p), nil
}

// AppendFailoverLog is the inverse of ParseFailoverLog.
func AppendFailoverLog(dst []byte, log []FailoverEntry) []byte {
	for _, e := range log {
		dst = binary.BigEndian.AppendUint64(dst, e.UUID)
		dst = binary.BigEndian.AppendUint64(dst, e.Seqno)
	}
	return dst
}

// ParseAllVBSeqnos decodes the answer to GET_ALL_VB_SEQNOS. An empty list is no
// error here: a server that is warming up gives one.
func ParseAllVBSeqnos(p []byte) (map[uint16]uint64, error) {
	if len(p)%10 != 0 {
		return nil, fmt.Errorf("%w: a list of sequence numbers of %d bytes", ErrMalformed, len(p))
	}
	out := make(map[uint16]uint64, len(p)/10)
	for ; len(p) > 0; p = p[10:] {
		vb := binary.BigEndian.Uint16(p)
		if _, twice := out[vb]; twice {
			return nil, fmt.Errorf("%w: vbucket %d is listed twice", ErrMalformed, vb)
		}
		out[vb] = binary.BigEndian.Uint64(p[2:])
	}
	return out, nil
}

// AppendHello appends HELLO with the features asked for.
func AppendHello(dst []byte, opaque uint32, agent string, features ...uint16) []byte {
	var value []byte
	for _, f := range features {
		value = binary.BigEndian.AppendUint16(value, f)
	}
	return AppendFrame(dst, Header{Magic: MagicRequest, Opcode: OpHello, Opaque: opaque}, nil, []byte(agent), value)
}

// ParseHello decodes the list of granted features.
func ParseHello(p []byte) ([]uint16, error) {
	if len(p)%2 != 0 {
		return nil, fmt.Errorf("%w: HELLO answered with %d bytes", ErrMalformed, len(p))
	}
	out := make([]uint16, len(p)/2)
	for i := range out {
		out[i] = binary.BigEndian.Uint16(p[2*i:])
	}
	return out, nil
}

// SplitCollectionKey takes the collection's id (LEB128) from the front of a key.
// As servers do it refuses an id that is written longer than it must be.
func SplitCollectionKey(p []byte) (id uint32, key []byte, err error) {
	if len(p) > 0 && p[0] < 0x80 { // nearly always
		return uint32(p[0]), p[1:], nil
	}
	var v uint64
	for i, b := range p {
		if i == 5 {
			break
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			if v > 1<<32-1 || b == 0 && i > 0 {
				break
			}
			return uint32(v), p[i+1:], nil
		}
	}
	return 0, nil, fmt.Errorf("%w: a key without a collection id", ErrMalformed)
}

// AppendCollectionID appends a collection's id as keys carry it.
func AppendCollectionID(dst []byte, id uint32) []byte {
	for id >= 0x80 {
		dst = append(dst, byte(id)|0x80)
		id >>= 7
	}
	return append(dst, byte(id))
}
