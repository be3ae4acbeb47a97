package mcbp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/couchbase/gomemcached"
)

// HeaderLen is the length of every packet's header in bytes.
const HeaderLen = gomemcached.HDR_LEN

// Magic bytes of requests and responses.
const (
	MagicRequest  = 0x80
	MagicResponse = 0x81
)

// MaxBody is the largest packet body in bytes that is believed: servers limit a
// document to 20 MiB, and a length beyond this is a desynchronised stream, not
// a document.
const MaxBody = 64 << 20

// Opcode names what a packet asks for or answers.
type Opcode = gomemcached.CommandCode

// Status is the result in a response.
type Status = gomemcached.Status

// Errors of the framing layer. They are wrapped with what was being read.
var (
	// ErrNeedMore means that the buffered bytes do not hold a whole packet yet.
	ErrNeedMore = errors.New("packet is not complete yet")
	// ErrTruncated means that the stream ended inside a packet.
	ErrTruncated = errors.New("the connection was cut inside a packet")
	// ErrMagic means that a packet does not begin with 0x80 or 0x81: the peer is
	// not a memcached binary server, or the stream is out of step.
	ErrMagic = errors.New("not a memcached binary packet")
	// ErrLength means that the lengths in a header contradict each other.
	ErrLength = errors.New("packet lengths contradict each other")
	// ErrTooLarge means that a body is longer than MaxBody.
	ErrTooLarge = errors.New("packet body is beyond any document")
	// ErrMalformed means that a packet's body does not fit its opcode.
	ErrMalformed = errors.New("malformed packet")
)

// Header is the 24 bytes in front of every packet.
type Header struct {
	Magic    uint8
	Opcode   Opcode
	KeyLen   uint16
	ExtLen   uint8
	Datatype uint8
	VBucket  uint16 // the status in a response
	BodyLen  uint32 // extras, key and value together, in bytes
	Opaque   uint32
	CAS      uint64
}

// Status returns the status of a response.
func (h *Header) Status() Status { return Status(h.VBucket) }

// ParseHeader decodes and checks the header at the start of b.
// It returns ErrNeedMore (fewer than 24 bytes), ErrMagic, ErrLength or ErrTooLarge.
func ParseHeader(b []byte) (Header, error) {
	if len(b) > 0 && b[0] != MagicRequest && b[0] != MagicResponse {
		// Said before the header is complete: a peer that speaks something else
		// (TLS, HTTP) may never send 24 bytes.
		return Header{}, fmt.Errorf("%w: it starts with 0x%02x", ErrMagic, b[0])
	}
	if len(b) < HeaderLen {
		return Header{}, ErrNeedMore
	}
	var h Header
	h.parse(b)
	if h.BodyLen > MaxBody {
		return h, fmt.Errorf("%w: %s announces %d bytes", ErrTooLarge, OpcodeName(h.Opcode), h.BodyLen)
	}
	if uint32(h.KeyLen)+uint32(h.ExtLen) > h.BodyLen {
		return h, fmt.Errorf("%w: %s has %d bytes of extras and %d of key in a body of %d",
			ErrLength, OpcodeName(h.Opcode), h.ExtLen, h.KeyLen, h.BodyLen)
	}
	return h, nil
}

// parse takes a header from 24 bytes, whatever they say.
func (h *Header) parse(b []byte) {
	_ = b[HeaderLen-1]
	h.Magic = b[0]
	h.Opcode = Opcode(b[1])
	h.KeyLen = binary.BigEndian.Uint16(b[2:])
	h.ExtLen = b[4]
	h.Datatype = b[5]
	h.VBucket = binary.BigEndian.Uint16(b[6:])
	h.BodyLen = binary.BigEndian.Uint32(b[8:])
	h.Opaque = binary.BigEndian.Uint32(b[12:])
	h.CAS = binary.BigEndian.Uint64(b[16:])
}

// Append appends the header's 24 bytes to dst.
func (h *Header) Append(dst []byte) []byte {
	dst = append(dst, make([]byte, HeaderLen)...)
	h.put(dst[len(dst)-HeaderLen:])
	return dst
}

func (h *Header) put(b []byte) {
	_ = b[HeaderLen-1]
	b[0] = h.Magic
	b[1] = uint8(h.Opcode)
	binary.BigEndian.PutUint16(b[2:], h.KeyLen)
	b[4] = h.ExtLen
	b[5] = h.Datatype
	binary.BigEndian.PutUint16(b[6:], h.VBucket)
	binary.BigEndian.PutUint32(b[8:], h.BodyLen)
	binary.BigEndian.PutUint32(b[12:], h.Opaque)
	binary.BigEndian.PutUint64(b[16:], h.CAS)
}

// Frame is one packet. Body aliases the buffer it was decoded from.
type Frame struct {
	Header
	Body []byte
}

// Extras returns the extras of the packet.
func (f *Frame) Extras() []byte { return f.Body[:f.ExtLen:f.ExtLen] }

// Key returns the key of a packet whose key follows its extras (all but TAP).
func (f *Frame) Key() []byte {
	lo, hi := int(f.ExtLen), int(f.ExtLen)+int(f.KeyLen)
	return f.Body[lo:hi:hi]
}

// Value returns what follows extras and key.
func (f *Frame) Value() []byte { return f.Body[int(f.ExtLen)+int(f.KeyLen):] }

// AppendFrame appends one packet to dst. Lengths in h are computed.
func AppendFrame(dst []byte, h Header, extras, key, value []byte) []byte {
	h.ExtLen = uint8(len(extras))
	h.KeyLen = uint16(len(key))
	h.BodyLen = uint32(len(extras) + len(key) + len(value))
	dst = h.Append(dst)
	dst = append(dst, extras...)
	dst = append(dst, key...)
	return append(dst, value...)
}

// OpcodeName returns the name of an opcode, or its number where it has none.
func OpcodeName(op Opcode) string {
	if n, ok := opcodeNames[op]; ok {
		return n
	}
	if n, ok := gomemcached.CommandNames[op]; ok {
		return n
	}
	return fmt.Sprintf("opcode 0x%02x", uint8(op))
}

// StatusName returns a status as number and name, such as "0x07 NOT_MY_VBUCKET".
func StatusName(s Status) string {
	if n, ok := gomemcached.StatusNames[s]; ok {
		return fmt.Sprintf("0x%02x %s", uint16(s), n)
	}
	return fmt.Sprintf("0x%02x", uint16(s))
}

// Reader splits a byte stream into packets inside one buffer. The buffer may be
// the caller's (Attach, Detach), so that packets land where they will stay; a
// Reader that is not attached owns and grows its buffer.
//
// Frames alias the buffer. They stay valid until the next call of Next or Fill
// on a Reader that owns its buffer (it slides its bytes), and for as long as the
// caller keeps the buffer on an attached one (it never moves bytes).
type Reader struct {
	src        io.Reader
	buf        []byte
	start, end int
	attached   bool
	own        []byte // the reader's own buffer while another one is attached
	err        error  // the attached buffer could not hold what had been read
}

// ownBuf is what a reader's own buffer begins with, in bytes.
const ownBuf = 16 << 10

// NewReader returns a Reader of src with a buffer of its own.
func NewReader(src io.Reader) *Reader { return &Reader{src: src} }

// Decode returns the next packet that is already in the buffer, or ErrNeedMore.
func (r *Reader) Decode() (f Frame, err error) {
	err = r.DecodeTo(&f)
	return f, err
}

// DecodeTo is Decode for loops over many packets: f is the caller's, and set only
// when there is no error.
func (r *Reader) DecodeTo(f *Frame) error {
	b := r.buf[r.start:r.end]
	if r.err == nil && len(b) >= HeaderLen && (b[0] == MagicRequest || b[0] == MagicResponse) {
		body := binary.BigEndian.Uint32(b[8:])
		n := HeaderLen + int(body)
		if body <= MaxBody && len(b) >= n && uint32(binary.BigEndian.Uint16(b[2:]))+uint32(b[4]) <= body {
			f.Header.parse(b)
			f.Body = b[HeaderLen:n:n]
			r.start += n
			return nil
		}
	}
	if r.err != nil {
		return r.err
	}
	if _, err := ParseHeader(b); err != nil {
		return err
	}
	return ErrNeedMore
}

// Buffered returns the number of undecoded bytes.
func (r *Reader) Buffered() int { return r.end - r.start }

// Need returns how many bytes of buffer the next packet takes as a whole, as
// far as its header is known, and 24 if it is not.
func (r *Reader) Need() int {
	h, err := ParseHeader(r.buf[r.start:r.end])
	if err != nil {
		return HeaderLen
	}
	return HeaderLen + int(h.BodyLen)
}

// Full reports that an attached buffer has no room for the next packet: the
// caller must go on in another one.
func (r *Reader) Full() bool { return r.start+r.Need() > len(r.buf) }

// Fill reads once from the source into the free end of the buffer.
// It returns io.EOF when the source ended between two packets and ErrTruncated
// when it ended inside one.
func (r *Reader) Fill() error {
	if r.err != nil {
		return r.err
	}
	if !r.attached {
		r.room()
	}
	if r.end == len(r.buf) {
		return io.ErrShortBuffer
	}
	n, err := r.src.Read(r.buf[r.end:])
	r.end += n
	if n > 0 {
		return nil // an error comes again with the next call
	}
	if err == nil {
		return nil
	}
	if err == io.EOF && r.end > r.start {
		return fmt.Errorf("%w: %d of %d bytes had come", ErrTruncated, r.end-r.start, r.Need())
	}
	return err
}

// room makes space in the reader's own buffer. The buffer grows with the bytes
// that have come, at most to twice their number, and never by what a header
// announces: a peer that lies about a length costs nothing (invariant 7).
func (r *Reader) room() {
	if r.start == r.end {
		r.start, r.end = 0, 0
	}
	if r.end < len(r.buf) {
		return
	}
	to := r.buf
	if need := r.Need(); need > len(r.buf) {
		to = make([]byte, max(ownBuf, min(need, 2*len(r.buf))))
	}
	r.end = copy(to, r.buf[r.start:r.end])
	r.start, r.buf = 0, to
}

// Next returns the next packet, reading as needed. A frame is valid until the
// next call. It is for control conversations; hot paths use Decode and Fill.
func (r *Reader) Next() (Frame, error) {
	for {
		f, err := r.Decode()
		if err != ErrNeedMore {
			return f, err
		}
		if err := r.Fill(); err != nil {
			return Frame{}, err
		}
	}
}

// Attach makes buf (its length, not its capacity) the reader's buffer, beginning
// with the bytes that are not decoded yet. buf must hold at least Buffered
// bytes; if it does not, Decode and Fill return io.ErrShortBuffer from then on,
// since the stream is out of step.
func (r *Reader) Attach(buf []byte) {
	tail := r.buf[r.start:r.end]
	if len(tail) > len(buf) {
		r.err = fmt.Errorf("attach a buffer of %d bytes to a reader that holds %d: %w", len(buf), len(tail), io.ErrShortBuffer)
	}
	if !r.attached {
		r.own = r.buf
	}
	r.start, r.end = 0, copy(buf, tail)
	r.buf, r.attached = buf, true
}

// Detach lets go of an attached buffer and keeps the undecoded tail.
func (r *Reader) Detach() {
	if !r.attached {
		return
	}
	tail := r.buf[r.start:r.end]
	if len(tail) > len(r.own) {
		r.own = make([]byte, max(ownBuf, len(tail)))
	}
	r.start, r.end = 0, copy(r.own, tail)
	r.buf, r.own, r.attached = r.own, nil, false
}
