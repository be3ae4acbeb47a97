package mcbp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/mcbp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// header returns 24 bytes with these lengths.
func header(magic byte, key uint16, ext byte, body uint32) []byte {
	b := make([]byte, mcbp.HeaderLen)
	b[0], b[1] = magic, byte(mcbp.OpTapMutation)
	binary.BigEndian.PutUint16(b[2:], key)
	b[4] = ext
	binary.BigEndian.PutUint32(b[8:], body)
	return b
}

func TestParseHeaderErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		in   []byte
		want error
	}{
		"nothing":              {nil, mcbp.ErrNeedMore},
		"one byte":             {[]byte{0x80}, mcbp.ErrNeedMore},
		"23 bytes":             {header(0x80, 0, 0, 0)[:23], mcbp.ErrNeedMore},
		"TLS alert":            {[]byte{0x15, 3, 3, 0, 2}, mcbp.ErrMagic},
		"HTTP":                 {[]byte("HTTP/1.1 400 Bad Request"), mcbp.ErrMagic},
		"flexible framing":     {header(0x18, 0, 0, 0), mcbp.ErrMagic},
		"largest body":         {header(0x80, 0, 0, mcbp.MaxBody), nil},
		"a byte too large":     {header(0x80, 0, 0, mcbp.MaxBody+1), mcbp.ErrTooLarge},
		"4 GiB":                {header(0x81, 0, 0, 0xffffffff), mcbp.ErrTooLarge},
		"key beyond the body":  {header(0x80, 10, 0, 9), mcbp.ErrLength},
		"extras beyond":        {header(0x80, 0, 255, 254), mcbp.ErrLength},
		"both beyond":          {header(0x80, 0xffff, 0xff, 0xffff), mcbp.ErrLength},
		"both fill the body":   {header(0x80, 0xffff, 0xff, 0xffff+0xff), nil},
		"lengths without body": {header(0x80, 0, 1, 0), mcbp.ErrLength},
	} {
		h, err := mcbp.ParseHeader(tc.in)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if err == nil && !bytes.Equal(h.Append(nil), tc.in) {
			t.Errorf("%s: encodes to %x", name, h.Append(nil))
		}
	}
}

func TestReaderEnds(t *testing.T) {
	packet := mcbp.AppendKeyed(nil, mcbp.OpGet, 7, 1, 0, []byte("key"))
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		src    io.Reader
		frames int
		want   error
	}{
		"nothing":       {strings.NewReader(""), 0, io.EOF},
		"whole packet":  {bytes.NewReader(packet), 1, io.EOF},
		"in the header": {bytes.NewReader(append(packet[:len(packet):len(packet)], packet[:1]...)), 1, mcbp.ErrTruncated},
		"in the body":   {bytes.NewReader(packet[:len(packet)-1]), 0, mcbp.ErrTruncated},
		"data with EOF": {iotest.DataErrReader(bytes.NewReader(packet)), 1, io.EOF},
		"other error":   {io.MultiReader(bytes.NewReader(packet), iotest.ErrReader(broken)), 1, broken},
		"wrong magic":   {bytes.NewReader(append(packet[:len(packet):len(packet)], 'H')), 1, mcbp.ErrMagic},
		"4 GiB":         {bytes.NewReader(header(0x80, 0, 0, 0xffffffff)), 0, mcbp.ErrTooLarge},
	} {
		r := mcbp.NewReader(tc.src)
		n := 0
		var err error
		for err == nil {
			if _, err = r.Next(); err == nil {
				n++
			}
		}
		if n != tc.frames || !errors.Is(err, tc.want) {
			t.Errorf("%s: %d frames and %v, want %d and %v", name, n, err, tc.frames, tc.want)
		}
	}
}

// A header that announces the largest body costs memory only as bytes come.
func TestLyingLengthCostsNoMemory(t *testing.T) {
	const sent = 100 << 10
	stream := append(header(0x80, 0, 0, 60<<20), make([]byte, sent)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := mcbp.NewReader(bytes.NewReader(stream)).Next()
	runtime.ReadMemStats(&after)
	if !errors.Is(err, mcbp.ErrTruncated) {
		t.Fatal(err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 8*sent {
		t.Errorf("%d bytes allocated for %d that came", used, sent)
	}
}

func TestReaderTakesLargePackets(t *testing.T) {
	value := bytes.Repeat([]byte("0123456789abcdef"), 20<<16) // 20 MiB
	stream := mcbp.AppendStore(nil, mcbp.OpSetQ, 1, 2, 0, 3, 4, []byte("large"), value)
	stream = mcbp.AppendNoop(stream, 2)
	r := mcbp.NewReader(bytes.NewReader(stream))
	f, err := r.Next()
	if err != nil || !bytes.Equal(f.Value(), value) || string(f.Key()) != "large" {
		t.Fatalf("%v, %d bytes", err, len(f.Body))
	}
	if f, err = r.Next(); err != nil || f.Opcode != mcbp.OpNoop {
		t.Fatal(err)
	}
}

// Bytes are never lost or doubled, whatever is attached and detached in between.
func TestAttachAndDetachKeepTheStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		n := rapid.IntRange(1, 40).Draw(t, "packets")
		for i := range n {
			key := bytes.Repeat([]byte{byte(i)}, rapid.IntRange(0, 300).Draw(t, "key"))
			stream = mcbp.AppendKeyed(stream, mcbp.OpGet, uint32(i), 0, 0, key)
		}
		r := mcbp.NewReader(&choppy{t: t, rest: stream})
		var got []byte
		seen := 0
		for seen < n {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				r.Attach(make([]byte, max(r.Buffered(), r.Need())+rapid.IntRange(0, 100).Draw(t, "spare")))
			case 1:
				r.Detach()
			default:
				f, err := r.Decode()
				if err == mcbp.ErrNeedMore {
					if err = r.Fill(); err == io.ErrShortBuffer && r.Full() {
						continue // the next attached one is larger
					}
					if err == io.EOF {
						t.Fatalf("the stream ended after %d of %d packets", seen, n)
					}
				} else if err == nil {
					if f.Opaque != uint32(seen) {
						t.Fatalf("packet %d came in the place of %d", f.Opaque, seen)
					}
					got = append(f.Header.Append(got), f.Body...)
					seen++
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(got, stream) {
			t.Fatal("the packets are not the stream")
		}
	})
}

// choppy gives a stream in pieces of any length.
type choppy struct {
	t    *rapid.T
	rest []byte
}

func (c *choppy) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.rest[:rapid.IntRange(1, len(c.rest)).Draw(c.t, "piece")])
	c.rest = c.rest[n:]
	return n, nil
}

func TestAttachRefusesToLoseBytes(t *testing.T) {
	packet := mcbp.AppendKeyed(nil, mcbp.OpGet, 1, 0, 0, []byte("key"))
	r := mcbp.NewReader(bytes.NewReader(packet))
	if err := r.Fill(); err != nil {
		t.Fatal(err)
	}
	r.Attach(make([]byte, len(packet)-1))
	if _, err := r.Decode(); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("decode: %v", err)
	}
	if err := r.Fill(); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("fill: %v", err)
	}
}

func TestNames(t *testing.T) {
	for op, want := range map[mcbp.Opcode]string{mcbp.OpGetVBucket: "GET_VBUCKET", mcbp.OpTapMutation: "TAP_MUTATION", 0xee: "opcode 0xee"} {
		if got := mcbp.OpcodeName(op); got != want {
			t.Errorf("0x%02x is %q, want %q", uint8(op), got, want)
		}
	}
	for s, want := range map[mcbp.Status]string{mcbp.StatusNotMyVBucket: "0x07 NOT_MY_VBUCKET", 0xfff0: "0xfff0"} {
		if got := mcbp.StatusName(s); got != want {
			t.Errorf("status is %q, want %q", got, want)
		}
	}
	for _, s := range []mcbp.VBState{mcbp.VBActive, mcbp.VBReplica, mcbp.VBPending, mcbp.VBDead} {
		if back, ok := mcbp.ParseVBState(s.String()); !ok || back != s {
			t.Errorf("%s parses as %s", s, back)
		}
	}
	for _, name := range []string{"absent", "unknown", "", "Active"} {
		if s, ok := mcbp.ParseVBState(name); ok {
			t.Errorf("%q parses as %s", name, s)
		}
	}
}
