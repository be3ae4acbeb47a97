package mcbp

import (
	"crypto/hmac"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
)

// Options in the last four bytes of the 28-byte *_WITH_META extras.
const (
	// MetaForce writes without conflict resolution and also to replica and
	// pending vbuckets ("skip conflict resolution" up to 4.x, "force" from 5.0).
	MetaForce uint32 = 0x01
)

// Meta is what a *_WITH_META request keeps of an item besides key and value.
type Meta struct {
	Flags  uint32
	Expiry uint32 // absolute Unix seconds, 0 = never
	Rev    uint64
	CAS    uint64
}

// WithMeta is a SET, ADD or DELETE_WITH_META request, quiet or not.
type WithMeta struct {
	Opcode     Opcode
	VBucket    uint16
	Opaque     uint32
	Datatype   uint8
	HasOptions bool   // 28 bytes of extras instead of 24
	Options    uint32 // MetaForce …
	Meta       Meta
	HeaderCAS  uint64 // compare-and-swap against the destination, 0 = none
	Key, Value []byte
}

// Append appends the request to dst. It allocates nothing beyond dst.
func (w *WithMeta) Append(dst []byte) []byte {
	ext := 24
	if w.HasOptions {
		ext = 28
	}
	at, n := len(dst), HeaderLen+ext+len(w.Key)+len(w.Value)
	dst = slices.Grow(dst, n)[:at+n]
	b := dst[at:]
	putRequest(b, w.Opcode, len(w.Key), ext, n, w.VBucket, w.Opaque, w.HeaderCAS)
	b[5] = w.Datatype
	x := b[HeaderLen:]
	binary.BigEndian.PutUint32(x, w.Meta.Flags)
	binary.BigEndian.PutUint32(x[4:], w.Meta.Expiry)
	binary.BigEndian.PutUint64(x[8:], w.Meta.Rev)
	binary.BigEndian.PutUint64(x[16:], w.Meta.CAS)
	if w.HasOptions {
		binary.BigEndian.PutUint32(x[24:], w.Options)
	}
	copy(x[ext:], w.Key)
	copy(x[ext+len(w.Key):], w.Value)
	return dst
}

// Parse decodes a *_WITH_META request of 24 or 28 bytes of extras.
func (w *WithMeta) Parse(f *Frame) error {
	if f.ExtLen != 24 && f.ExtLen != 28 {
		return fmt.Errorf("%w: %s with %d bytes of extras", ErrMalformed, OpcodeName(f.Opcode), f.ExtLen)
	}
	x := f.Extras()
	*w = WithMeta{
		Opcode: f.Opcode, VBucket: f.VBucket, Opaque: f.Opaque, Datatype: f.Datatype,
		Meta: Meta{
			Flags:  binary.BigEndian.Uint32(x),
			Expiry: binary.BigEndian.Uint32(x[4:]),
			Rev:    binary.BigEndian.Uint64(x[8:]),
			CAS:    binary.BigEndian.Uint64(x[16:]),
		},
		HeaderCAS: f.CAS, Key: f.Key(), Value: f.Value(),
	}
	if len(x) == 28 {
		w.HasOptions, w.Options = true, binary.BigEndian.Uint32(x[24:])
	}
	return nil
}

// ItemMeta is the answer to GET_META.
type ItemMeta struct {
	Meta
	Deleted bool
}

// AppendGetMeta appends a GET_META request for key.
func AppendGetMeta(dst []byte, opaque uint32, vb uint16, key []byte) []byte {
	return AppendFrame(dst, Header{Magic: MagicRequest, Opcode: OpGetMeta, Opaque: opaque, VBucket: vb}, nil, key, nil)
}

// ParseGetMeta decodes a successful answer to GET_META (20 bytes of extras, or
// 21 with a datatype on newer servers).
func ParseGetMeta(f *Frame) (ItemMeta, error) {
	if f.ExtLen < 20 {
		return ItemMeta{}, fmt.Errorf("%w: GET_META answered with %d bytes of extras", ErrMalformed, f.ExtLen)
	}
	x := f.Extras()
	return ItemMeta{
		Deleted: binary.BigEndian.Uint32(x) != 0,
		Meta: Meta{
			Flags:  binary.BigEndian.Uint32(x[4:]),
			Expiry: binary.BigEndian.Uint32(x[8:]),
			Rev:    binary.BigEndian.Uint64(x[12:]),
			CAS:    f.CAS,
		},
	}, nil
}

// AppendStore appends SET, ADD or a quiet form of them: extras are flags and
// expiry, cas 0 is unconditional. It allocates nothing beyond dst.
func AppendStore(dst []byte, op Opcode, opaque uint32, vb uint16, cas uint64, flags, expiry uint32, key, value []byte) []byte {
	const head = HeaderLen + 8
	at, n := len(dst), head+len(key)+len(value)
	dst = slices.Grow(dst, n)[:at+n]
	b := dst[at:]
	putRequest(b, op, len(key), 8, n, vb, opaque, cas)
	binary.BigEndian.PutUint32(b[HeaderLen:], flags)
	binary.BigEndian.PutUint32(b[HeaderLen+4:], expiry)
	copy(b[head:], key)
	copy(b[head+len(key):], value)
	return dst
}

// putRequest puts the header of a request of n bytes in all, with datatype 0, into b. To
// make a Header first and put that costs half as much again as all the rest of a request:
// it is written in pieces and read as a whole, which processors do not like.
func putRequest(b []byte, op Opcode, keyLen, extLen, n int, vb uint16, opaque uint32, cas uint64) {
	_ = b[HeaderLen-1]
	b[0], b[1] = MagicRequest, uint8(op)
	binary.BigEndian.PutUint16(b[2:], uint16(keyLen))
	b[4], b[5] = uint8(extLen), 0
	binary.BigEndian.PutUint16(b[6:], vb)
	binary.BigEndian.PutUint32(b[8:], uint32(n-HeaderLen))
	binary.BigEndian.PutUint32(b[12:], opaque)
	binary.BigEndian.PutUint64(b[16:], cas)
}

// AppendKeyed appends a request of only a key: GET, DELETE and their quiet forms.
func AppendKeyed(dst []byte, op Opcode, opaque uint32, vb uint16, cas uint64, key []byte) []byte {
	var b [HeaderLen]byte
	h := Header{
		Magic: MagicRequest, Opcode: op, KeyLen: uint16(len(key)),
		VBucket: vb, Opaque: opaque, CAS: cas, BodyLen: uint32(len(key)),
	}
	h.put(b[:])
	dst = append(dst, b[:]...)
	return append(dst, key...)
}

// AppendNoop appends a NOOP, the fence behind quiet requests.
func AppendNoop(dst []byte, opaque uint32) []byte {
	return AppendKeyed(dst, OpNoop, opaque, 0, 0, nil)
}

// AppendSetVBucket appends SET_VBUCKET with the state in its extras.
func AppendSetVBucket(dst []byte, opaque uint32, vb uint16, state VBState) []byte {
	var x [4]byte
	binary.BigEndian.PutUint32(x[:], uint32(state))
	return AppendFrame(dst, Header{Magic: MagicRequest, Opcode: OpSetVBucket, Opaque: opaque, VBucket: vb}, x[:], nil, nil)
}

// ParseVBucketState decodes a successful answer to GET_VBUCKET.
func ParseVBucketState(f *Frame) (VBState, error) {
	v := f.Body
	if len(v) != 4 {
		return VBAbsent, fmt.Errorf("%w: GET_VBUCKET answered with %d bytes", ErrMalformed, len(v))
	}
	s := VBState(binary.BigEndian.Uint32(v))
	if s < VBActive || s > VBDead {
		return VBAbsent, fmt.Errorf("%w: GET_VBUCKET answered with state %d", ErrMalformed, uint32(s))
	}
	return s, nil
}

// SASLPlain returns the first message of PLAIN.
func SASLPlain(user, password string) []byte {
	return []byte("\x00" + user + "\x00" + password)
}

// SASLCramMD5 returns the answer to a CRAM-MD5 challenge (RFC 2195).
func SASLCramMD5(user, password string, challenge []byte) []byte {
	mac := hmac.New(md5.New, []byte(password))
	mac.Write(challenge)
	return []byte(user + " " + hex.EncodeToString(mac.Sum(nil)))
}
