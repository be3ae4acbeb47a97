package mcbp_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// seed adds packets of the recordings, and lies about their lengths, to the
// corpus of a fuzz target.
func seed(f *testing.F, add func(packet []byte)) {
	f.Helper()
	for _, name := range []string{
		"2.5.1-tap-dump-ack", "4.0-tap-dump-noack", "2.5.1-tap-push-pending", "4.0-tap-push-replica",
		"4.0-setwithmeta-refused", "3.0.3-delwithmeta-force-replica", "4.0-getmeta", "2.5.1-sasl-cram-md5-good",
	} {
		c, err := capture.Open(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, side := range []capture.Side{capture.Client, capture.Server} {
			packets, _ := c.Packets(side)
			for _, p := range packets {
				if len(p) <= 300 {
					add(p)
				}
			}
		}
	}
	add(nil)
	add(header(0x80, 0, 0, 0xffffffff))
	add(header(0x81, 0, 0, mcbp.MaxBody))
	add(header(0x80, 0xffff, 0xff, 10))
	add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	add(decoded("813e00000000000000000004000000110000000000000000" + "00000003"))
}

func decoded(hexText string) []byte {
	c, err := capture.Parse("seed", []byte("> "+hexText))
	if err != nil {
		return nil
	}
	return c.Stream(capture.Client)
}

// oneFrame decodes the first packet of b; anything but a whole one is skipped.
func oneFrame(b []byte) (mcbp.Frame, bool) {
	f, err := mcbp.NewReader(bytes.NewReader(b)).Next()
	return f, err == nil
}

// holding returns a reader that has b in its buffer.
func holding(b []byte) *mcbp.Reader {
	r := mcbp.NewReader(bytes.NewReader(b))
	r.Attach(make([]byte, len(b)+1))
	_ = r.Fill() // of nothing it is the end
	return r
}

var framing = []error{mcbp.ErrTruncated, mcbp.ErrMagic, mcbp.ErrLength, mcbp.ErrTooLarge, mcbp.ErrMalformed, mcbp.ErrNeedMore, io.EOF}

func named(err error) bool {
	for _, known := range framing {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

func FuzzParseHeader(f *testing.F) {
	seed(f, func(p []byte) { f.Add(p) })
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := mcbp.ParseHeader(b)
		if err != nil {
			if !named(err) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(h.Append(nil), b[:mcbp.HeaderLen]) {
			t.Fatalf("%x encodes to %x", b[:mcbp.HeaderLen], h.Append(nil))
		}
	})
}

// pieces gives a stream in pieces of the given lengths, again and again.
type pieces struct {
	rest, sizes []byte
	i           int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := len(p.rest)
	if len(p.sizes) > 0 {
		n = min(n, 1+int(p.sizes[p.i%len(p.sizes)]))
		p.i++
	}
	n = copy(b, p.rest[:n])
	p.rest = p.rest[n:]
	return n, nil
}

// However a stream is cut into pieces and arenas, it yields the same packets
// and the same end.
func FuzzReader(f *testing.F) {
	seed(f, func(p []byte) {
		f.Add(p, []byte{0}, uint16(1))
		f.Add(append(append([]byte{}, p...), p...), []byte{23, 0, 60}, uint16(64))
	})
	f.Fuzz(func(t *testing.T, stream, sizes []byte, arena uint16) {
		read := func(r *mcbp.Reader) (out []byte, err error) {
			for {
				fr, err := r.Next()
				if err != nil {
					return out, err
				}
				out = append(fr.Header.Append(out), fr.Body...)
			}
		}
		want, wantErr := read(mcbp.NewReader(bytes.NewReader(stream)))
		if !named(wantErr) {
			t.Fatal(wantErr)
		}
		if !bytes.HasPrefix(stream, want) {
			t.Fatal("the packets are not the stream's beginning")
		}
		if wantErr == io.EOF && len(want) != len(stream) {
			t.Fatal("a clean end, but bytes are left")
		}
		got, err := read(mcbp.NewReader(&pieces{rest: stream, sizes: sizes}))
		if !bytes.Equal(got, want) || err.Error() != wantErr.Error() && !errors.Is(err, mcbp.ErrMagic) {
			t.Fatalf("in pieces: %d bytes and %v, whole: %d bytes and %v", len(got), err, len(want), wantErr)
		}

		r := mcbp.NewReader(&pieces{rest: stream, sizes: sizes})
		got = got[:0]
		for err = nil; err == nil; {
			if r.Need() > 1<<20 {
				return // a source would take a larger arena as a whole
			}
			r.Attach(make([]byte, max(int(arena), r.Need(), r.Buffered())))
			for err == nil {
				var fr mcbp.Frame
				if fr, err = r.Decode(); err == nil {
					got = append(fr.Header.Append(got), fr.Body...)
				} else if err == mcbp.ErrNeedMore && !r.Full() {
					err = r.Fill()
				}
			}
			r.Detach()
			if err == mcbp.ErrNeedMore {
				err = nil
			}
		}
		if !bytes.Equal(got, want) || !named(err) || (err == io.EOF) != (wantErr == io.EOF) {
			t.Fatalf("in arenas: %d bytes and %v, whole: %d bytes and %v", len(got), err, len(want), wantErr)
		}
	})
}

func FuzzTapConnect(f *testing.F) {
	seed(f, func(p []byte) { f.Add(p) })
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, ok := oneFrame(b)
		if !ok {
			return
		}
		c, err := mcbp.ParseTapConnect(fr)
		if err != nil {
			if !named(err) {
				t.Fatal(err)
			}
			return
		}
		again, err := mcbp.ParseTapConnect(decodeOne(t, c.Append(nil)))
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

func FuzzTapMessage(f *testing.F) {
	seed(f, func(p []byte) { f.Add(p) })
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, ok := oneFrame(b)
		var m, again, quick mcbp.TapMessage
		var err error
		if ok {
			err = m.Parse(&fr)
		}
		r := holding(b)
		taken := r.NextTap(&quick)
		if due := ok && err == nil && m.Opcode == mcbp.OpTapMutation && fr.Magic == mcbp.MagicRequest; taken != due {
			t.Fatalf("a mutation in one pass: %v, by steps: %v", taken, due)
		}
		switch {
		case taken && (!reflect.DeepEqual(quick, m) || r.Buffered() != len(b)-mcbp.HeaderLen-len(fr.Body)):
			t.Fatalf("%+v in one pass, by steps %+v; %d bytes are left", quick, m, r.Buffered())
		case !taken && r.Buffered() != len(b):
			t.Fatal("what was not decoded was taken")
		case !ok:
			return
		case err != nil:
			if !named(err) {
				t.Fatal(err)
			}
			return
		}
		if len(m.Engine)+len(m.Key)+len(m.Value)+int(fr.ExtLen) != len(fr.Body) {
			t.Fatal("the parts do not make the body")
		}
		m.OpaqueCommand()
		g := decodeOne(t, m.Append(nil))
		if err := again.Parse(&g); err != nil {
			t.Fatal(err)
		}
		if m.Opcode == mcbp.OpTapMutation || m.Opcode == mcbp.OpTapDelete {
			m.Engine, again.Engine = nil, nil
		}
		if !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v came back as %+v", m, again)
		}
	})
}

func FuzzWithMeta(f *testing.F) {
	seed(f, func(p []byte) { f.Add(p) })
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, ok := oneFrame(b)
		if !ok {
			return
		}
		var w mcbp.WithMeta
		if err := w.Parse(&fr); err != nil {
			if !named(err) {
				t.Fatal(err)
			}
			return
		}
		fr.Magic = mcbp.MagicRequest
		if got := w.Append(nil); !bytes.Equal(got, raw(&fr)) {
			t.Fatalf("%x encodes to %x", raw(&fr), got)
		}
	})
}

func FuzzGetMeta(f *testing.F) {
	seed(f, func(p []byte) { f.Add(p) })
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, ok := oneFrame(b)
		if !ok {
			return
		}
		m, err := mcbp.ParseGetMeta(&fr)
		if err != nil && !named(err) || err == nil && m.CAS != fr.CAS {
			t.Fatal(m, err)
		}
		key := fr.Key()
		if g := decodeOne(t, mcbp.AppendGetMeta(nil, fr.Opaque, fr.VBucket, key)); !bytes.Equal(g.Key(), key) || g.Opaque != fr.Opaque {
			t.Fatalf("GET_META of %q: %+v", key, g)
		}
	})
}

func FuzzVBucketState(f *testing.F) {
	seed(f, func(p []byte) { f.Add(p) })
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, ok := oneFrame(b)
		if !ok {
			return
		}
		s, err := mcbp.ParseVBucketState(&fr)
		if err != nil {
			if !named(err) || s != mcbp.VBAbsent {
				t.Fatal(s, err)
			}
			return
		}
		g := decodeOne(t, mcbp.AppendSetVBucket(nil, fr.Opaque, fr.VBucket, s))
		if back, ok := mcbp.ParseVBState(s.String()); !ok || back != s || !bytes.Equal(g.Body, fr.Body) {
			t.Fatalf("%s, %x", s, g.Body)
		}
	})
}
