package mcbp

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/couchbase/gomemcached"
)

// TapFlags are the flags of TAP_CONNECT.
type TapFlags uint32

// Flags of TAP_CONNECT (design notes, "TAP source").
const (
	TapBackfill         = TapFlags(gomemcached.BACKFILL)
	TapDump             = TapFlags(gomemcached.DUMP)
	TapListVBuckets     = TapFlags(gomemcached.LIST_VBUCKETS)
	TapTakeover         = TapFlags(gomemcached.TAKEOVER_VBUCKETS)
	TapSupportAck       = TapFlags(gomemcached.SUPPORT_ACK)
	TapKeysOnly         = TapFlags(gomemcached.REQUEST_KEYS_ONLY)
	TapCheckpoint       = TapFlags(gomemcached.CHECKPOINT)
	TapRegistered       = TapFlags(gomemcached.REGISTERED_CLIENT)
	TapFixFlagByteorder = TapFlags(gomemcached.FIX_FLAG_BYTEORDER)
)

// Flags of a TAP message.
const (
	TapMsgAck          = gomemcached.TAP_ACK                     // please acknowledge
	TapMsgNoValue      = gomemcached.TAP_NO_VALUE                // keys only
	TapMsgNetworkOrder = gomemcached.TAP_FLAG_NETWORK_BYTE_ORDER // item flags are big endian
)

// Commands inside TAP_OPAQUE.
const (
	TapOpaqueInitialStream = gomemcached.TAP_OPAQUE_INITIAL_VBUCKET_STREAM
	TapOpaqueCloseBackfill = gomemcached.TAP_OPAQUE_CLOSE_BACKFILL
)

// TapTTL is the hop count that pushes carry. Zero would be dropped by servers.
const TapTTL = 0xff

const (
	tapExtLen         = 8
	tapMutationExtLen = 16
)

// TapConnect is the request that starts a dump.
type TapConnect struct {
	Name     string
	Flags    TapFlags
	Backfill uint64   // only with TapBackfill
	VBuckets []uint16 // only with TapListVBuckets
}

// Append appends the request to dst.
func (c *TapConnect) Append(dst []byte) []byte {
	var extras [4]byte
	binary.BigEndian.PutUint32(extras[:], uint32(c.Flags))
	var value []byte
	if c.Flags&TapBackfill != 0 {
		value = binary.BigEndian.AppendUint64(value, c.Backfill)
	}
	if c.Flags&TapListVBuckets != 0 {
		value = binary.BigEndian.AppendUint16(value, uint16(len(c.VBuckets)))
		for _, vb := range c.VBuckets {
			value = binary.BigEndian.AppendUint16(value, vb)
		}
	}
	return AppendFrame(dst, Header{Magic: MagicRequest, Opcode: OpTapConnect}, extras[:], []byte(c.Name), value)
}

// ParseTapConnect decodes a TAP_CONNECT request.
func ParseTapConnect(f Frame) (TapConnect, error) {
	var c TapConnect
	if f.Opcode != OpTapConnect {
		return c, fmt.Errorf("%w: %s is not TAP_CONNECT", ErrMalformed, OpcodeName(f.Opcode))
	}
	if f.ExtLen != 4 {
		return c, fmt.Errorf("%w: TAP_CONNECT with %d bytes of extras", ErrMalformed, f.ExtLen)
	}
	c.Name = string(f.Key())
	c.Flags = TapFlags(binary.BigEndian.Uint32(f.Extras()))
	v := f.Value()
	if c.Flags&TapBackfill != 0 {
		if len(v) < 8 {
			return c, fmt.Errorf("%w: TAP_CONNECT without its backfill age", ErrMalformed)
		}
		c.Backfill, v = binary.BigEndian.Uint64(v), v[8:]
	}
	if c.Flags&TapListVBuckets != 0 {
		if len(v) < 2 {
			return c, fmt.Errorf("%w: TAP_CONNECT without its vbucket list", ErrMalformed)
		}
		n := int(binary.BigEndian.Uint16(v))
		v = v[2:]
		if len(v) < 2*n {
			return c, fmt.Errorf("%w: TAP_CONNECT announces %d vbuckets in %d bytes", ErrMalformed, n, len(v))
		}
		c.VBuckets = make([]uint16, n)
		for i := range c.VBuckets {
			c.VBuckets[i] = binary.BigEndian.Uint16(v[2*i:])
		}
	}
	return c, nil
}

// TapMessage is one message of a TAP stream. Engine, Key and Value alias the frame.
type TapMessage struct {
	Opcode   Opcode
	VBucket  uint16
	Opaque   uint32
	MsgFlags uint16 // TapMsgAck, TapMsgNoValue, TapMsgNetworkOrder
	TTL      uint8
	Datatype uint8
	CAS      uint64
	Flags    uint32 // item flags as a client sees them, whatever their order on the wire
	Expiry   uint32 // absolute Unix seconds, 0 = never
	Rev      uint64 // 0 where the server sent none
	Engine   []byte // the engine-specific bytes
	Key      []byte
	Value    []byte
}

// WantsAck reports that the sender asks for an acknowledgement.
func (m *TapMessage) WantsAck() bool { return m.MsgFlags&TapMsgAck != 0 }

// IsTap reports that a packet is a message of a TAP stream.
func IsTap(op Opcode) bool { return op >= OpTapMutation && op <= OpTapCheckpointEnd }

// Parse decodes a TAP message. Item flags are put right by the message's own
// flag (TapMsgNetworkOrder), never by a version. It allocates nothing.
func (m *TapMessage) Parse(f *Frame) error {
	if !IsTap(f.Opcode) {
		return fmt.Errorf("%w: %s is no TAP message", ErrMalformed, OpcodeName(f.Opcode))
	}
	want := tapExtLen
	if f.Opcode == OpTapMutation {
		want = tapMutationExtLen
	}
	if int(f.ExtLen) != want {
		return fmt.Errorf("%w: %s with %d bytes of extras, %d are due", ErrMalformed, OpcodeName(f.Opcode), f.ExtLen, want)
	}
	x := f.Body[:want]
	engine := int(binary.BigEndian.Uint16(x))
	keyAt := want + engine
	valueAt := keyAt + int(f.KeyLen)
	if valueAt > len(f.Body) {
		return fmt.Errorf("%w: %s has %d engine bytes and %d of key in a body of %d",
			ErrLength, OpcodeName(f.Opcode), engine, f.KeyLen, len(f.Body))
	}
	m.Opcode, m.VBucket, m.Opaque = f.Opcode, f.VBucket, f.Opaque
	m.MsgFlags = binary.BigEndian.Uint16(x[2:])
	m.TTL = x[4]
	m.Datatype, m.CAS = f.Datatype, f.CAS
	m.Flags, m.Expiry, m.Rev = 0, 0, 0
	if f.Opcode == OpTapMutation {
		m.Flags = binary.BigEndian.Uint32(x[8:])
		if m.MsgFlags&TapMsgNetworkOrder == 0 {
			m.Flags = bits.ReverseBytes32(m.Flags)
		}
		m.Expiry = binary.BigEndian.Uint32(x[12:])
	}
	m.Engine = f.Body[want:keyAt:keyAt]
	if engine >= 8 && (f.Opcode == OpTapMutation || f.Opcode == OpTapDelete) {
		m.Rev = binary.BigEndian.Uint64(m.Engine)
	}
	m.Key = f.Body[keyAt:valueAt:valueAt]
	m.Value = f.Body[valueAt:]
	return nil
}

// NextTap decodes the next packet in the buffer if it is a whole and well-formed
// mutation of a TAP stream. Else it takes nothing, and DecodeTo and Parse say what it is.
// It is the two in one pass for what most of a stream consists of.
func (r *Reader) NextTap(m *TapMessage) bool {
	const fixed = HeaderLen + tapMutationExtLen
	b := r.buf[r.start:r.end]
	if r.err != nil || len(b) < fixed || b[0] != MagicRequest || Opcode(b[1]) != OpTapMutation || b[4] != tapMutationExtLen {
		return false
	}
	body := binary.BigEndian.Uint32(b[8:])
	n := HeaderLen + int(body)
	if body > MaxBody || len(b) < n {
		return false
	}
	engine := int(binary.BigEndian.Uint16(b[HeaderLen:]))
	keyAt := fixed + engine
	valueAt := keyAt + int(binary.BigEndian.Uint16(b[2:]))
	if valueAt > n {
		return false
	}
	m.Opcode, m.Datatype, m.TTL = OpTapMutation, b[5], b[HeaderLen+4]
	m.VBucket = binary.BigEndian.Uint16(b[6:])
	m.Opaque = binary.BigEndian.Uint32(b[12:])
	m.CAS = binary.BigEndian.Uint64(b[16:])
	m.MsgFlags = binary.BigEndian.Uint16(b[HeaderLen+2:])
	m.Flags = binary.BigEndian.Uint32(b[HeaderLen+8:])
	if m.MsgFlags&TapMsgNetworkOrder == 0 {
		m.Flags = bits.ReverseBytes32(m.Flags)
	}
	m.Expiry = binary.BigEndian.Uint32(b[HeaderLen+12:])
	m.Rev = 0
	if engine >= 8 {
		m.Rev = binary.BigEndian.Uint64(b[fixed:])
	}
	m.Engine, m.Key, m.Value = b[fixed:keyAt:keyAt], b[keyAt:valueAt:valueAt], b[valueAt:n:n]
	r.start += n
	return true
}

// OpaqueCommand returns the command inside a TAP_OPAQUE message.
func (m *TapMessage) OpaqueCommand() (uint32, bool) {
	if m.Opcode != OpTapOpaque {
		return 0, false
	}
	if len(m.Engine) >= 4 {
		return binary.BigEndian.Uint32(m.Engine), true
	}
	if len(m.Value) >= 4 {
		return binary.BigEndian.Uint32(m.Value), true
	}
	return 0, false
}

// Append appends the message to dst as a server or a pushing client sends it.
// Mutations get 9 engine bytes (rev and a byte that receivers ignore), deletions
// 8; item flags go as Flags says with TapMsgNetworkOrder set, and byte-swapped
// without it. Other opcodes carry Engine and Value as they are.
func (m *TapMessage) Append(dst []byte) []byte {
	extLen, engine := tapExtLen, len(m.Engine)
	switch m.Opcode {
	case OpTapMutation:
		extLen, engine = tapMutationExtLen, 9
	case OpTapDelete:
		engine = 8
	}
	h := Header{
		Magic: MagicRequest, Opcode: m.Opcode, KeyLen: uint16(len(m.Key)), ExtLen: uint8(extLen),
		Datatype: m.Datatype, VBucket: m.VBucket, Opaque: m.Opaque, CAS: m.CAS,
		BodyLen: uint32(extLen + engine + len(m.Key) + len(m.Value)),
	}
	var b [HeaderLen + tapMutationExtLen + 9]byte
	h.put(b[:])
	x := b[HeaderLen:]
	binary.BigEndian.PutUint16(x, uint16(engine))
	binary.BigEndian.PutUint16(x[2:], m.MsgFlags)
	x[4] = m.TTL
	n := HeaderLen + extLen
	switch m.Opcode {
	case OpTapMutation:
		flags := m.Flags
		if m.MsgFlags&TapMsgNetworkOrder == 0 {
			flags = bits.ReverseBytes32(flags)
		}
		binary.BigEndian.PutUint32(x[8:], flags)
		binary.BigEndian.PutUint32(x[12:], m.Expiry)
		binary.BigEndian.PutUint64(b[n:], m.Rev)
		n += 9
	case OpTapDelete:
		binary.BigEndian.PutUint64(b[n:], m.Rev)
		n += 8
	}
	dst = append(dst, b[:n]...)
	if m.Opcode != OpTapMutation && m.Opcode != OpTapDelete {
		dst = append(dst, m.Engine...)
	}
	dst = append(dst, m.Key...)
	return append(dst, m.Value...)
}

// AppendTapAck appends the acknowledgement of a message: same opcode, same
// opaque, no body. It covers all messages before it.
func AppendTapAck(dst []byte, op Opcode, opaque uint32, status Status) []byte {
	h := Header{Magic: MagicResponse, Opcode: op, Opaque: opaque, VBucket: uint16(status)}
	return h.Append(dst)
}
