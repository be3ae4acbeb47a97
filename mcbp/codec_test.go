package mcbp_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// decodeOne decodes a stream that must be exactly one packet.
func decodeOne(t interface{ Fatalf(string, ...any) }, b []byte) mcbp.Frame {
	h, err := mcbp.ParseHeader(b)
	if err != nil || len(b) != mcbp.HeaderLen+int(h.BodyLen) {
		t.Fatalf("an encoder wrote %x: %v", b, err)
	}
	return mcbp.Frame{Header: h, Body: b[mcbp.HeaderLen:]}
}

var (
	keys   = rapid.SliceOfN(rapid.Byte(), 0, 250)
	values = rapid.SliceOfN(rapid.Byte(), 0, 2000)
)

func TestTapMessageRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := mcbp.TapMessage{
			Opcode:  mcbp.Opcode(rapid.Uint8Range(uint8(mcbp.OpTapMutation), uint8(mcbp.OpTapCheckpointEnd)).Draw(t, "opcode")),
			VBucket: rapid.Uint16().Draw(t, "vb"), Opaque: rapid.Uint32().Draw(t, "opaque"),
			MsgFlags: rapid.Uint16().Draw(t, "msgflags"), TTL: rapid.Uint8().Draw(t, "ttl"),
			Datatype: rapid.Uint8().Draw(t, "datatype"), CAS: rapid.Uint64().Draw(t, "cas"),
			Key: keys.Draw(t, "key"), Value: values.Draw(t, "value"),
		}
		switch m.Opcode {
		case mcbp.OpTapMutation:
			m.Flags, m.Expiry = rapid.Uint32().Draw(t, "flags"), rapid.Uint32().Draw(t, "expiry")
			fallthrough
		case mcbp.OpTapDelete:
			m.Rev = rapid.Uint64().Draw(t, "rev")
		default:
			m.Engine = rapid.SliceOfN(rapid.Byte(), 0, 12).Draw(t, "engine")
		}
		prefix := rapid.SliceOfN(rapid.Byte(), 0, 5).Draw(t, "prefix")
		b := m.Append(prefix)
		if !bytes.HasPrefix(b, prefix) {
			t.Fatalf("what was in the buffer is gone")
		}
		f := decodeOne(t, b[len(prefix):])
		var got mcbp.TapMessage
		if err := got.Parse(&f); err != nil {
			t.Fatal(err)
		}
		if m.Opcode == mcbp.OpTapMutation || m.Opcode == mcbp.OpTapDelete {
			got.Engine = nil
		}
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("%+v came back as %+v", m, got)
		}
	})
}

func TestTapConnectRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := mcbp.TapConnect{
			Name:  rapid.StringN(0, 50, 200).Draw(t, "name"),
			Flags: mcbp.TapFlags(rapid.Uint32().Draw(t, "flags")),
		}
		if c.Flags&mcbp.TapBackfill != 0 {
			c.Backfill = rapid.Uint64().Draw(t, "backfill")
		}
		if c.Flags&mcbp.TapListVBuckets != 0 {
			c.VBuckets = rapid.SliceOfN(rapid.Uint16(), 0, 1024).Draw(t, "vbuckets")
		}
		got, err := mcbp.ParseTapConnect(decodeOne(t, c.Append(nil)))
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("%+v came back as %+v, %v", c, got, err)
		}
	})
}

func TestWithMetaRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := mcbp.WithMeta{
			Opcode:  rapid.SampledFrom([]mcbp.Opcode{mcbp.OpSetWithMeta, mcbp.OpAddQWithMeta, mcbp.OpDeleteWithMeta}).Draw(t, "opcode"),
			VBucket: rapid.Uint16().Draw(t, "vb"), Opaque: rapid.Uint32().Draw(t, "opaque"),
			Datatype: rapid.Uint8().Draw(t, "datatype"), HasOptions: rapid.Bool().Draw(t, "has options"),
			Meta: mcbp.Meta{
				Flags: rapid.Uint32().Draw(t, "flags"), Expiry: rapid.Uint32().Draw(t, "expiry"),
				Rev: rapid.Uint64().Draw(t, "rev"), CAS: rapid.Uint64().Draw(t, "cas"),
			},
			HeaderCAS: rapid.Uint64().Draw(t, "header cas"),
			Key:       keys.Draw(t, "key"), Value: values.Draw(t, "value"),
		}
		if w.HasOptions {
			w.Options = rapid.Uint32().Draw(t, "options")
		}
		f := decodeOne(t, w.Append(nil))
		var got mcbp.WithMeta
		if err := got.Parse(&f); err != nil || !reflect.DeepEqual(got, w) {
			t.Fatalf("%+v came back as %+v, %v", w, got, err)
		}
	})
}

func TestStoreAndKeyed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		opaque, vb, cas := rapid.Uint32().Draw(t, "opaque"), rapid.Uint16().Draw(t, "vb"), rapid.Uint64().Draw(t, "cas")
		key, value := keys.Draw(t, "key"), values.Draw(t, "value")
		f := decodeOne(t, mcbp.AppendStore(nil, mcbp.OpSetQ, opaque, vb, cas, 0x01020304, 0x05060708, key, value))
		if f.Opcode != mcbp.OpSetQ || f.Opaque != opaque || f.VBucket != vb || f.CAS != cas ||
			!bytes.Equal(f.Extras(), []byte{1, 2, 3, 4, 5, 6, 7, 8}) || !bytes.Equal(f.Key(), key) || !bytes.Equal(f.Value(), value) {
			t.Fatalf("store: %+v", f)
		}
		f = decodeOne(t, mcbp.AppendKeyed(nil, mcbp.OpDeleteQ, opaque, vb, cas, key))
		if f.Opcode != mcbp.OpDeleteQ || f.Opaque != opaque || f.VBucket != vb || f.CAS != cas || !bytes.Equal(f.Body, key) {
			t.Fatalf("keyed: %+v", f)
		}
	})
}

func TestVBucketState(t *testing.T) {
	f := decodeOne(t, mcbp.AppendSetVBucket(nil, 5, 1023, mcbp.VBPending))
	if f.Opcode != mcbp.OpSetVBucket || f.VBucket != 1023 || f.Opaque != 5 || f.ExtLen != 4 {
		t.Errorf("%+v", f)
	}
	// GET_VBUCKET answers with the same four bytes.
	if s, err := mcbp.ParseVBucketState(&f); err != nil || s != mcbp.VBPending {
		t.Errorf("%s, %v", s, err)
	}
	for _, body := range [][]byte{nil, {1}, {0, 0, 0, 0}, {0, 0, 0, 5}, {1, 0, 0, 1}, {0, 0, 0, 0, 1}} {
		f := mcbp.Frame{Header: mcbp.Header{BodyLen: uint32(len(body))}, Body: body}
		if s, err := mcbp.ParseVBucketState(&f); !errors.Is(err, mcbp.ErrMalformed) || s != mcbp.VBAbsent {
			t.Errorf("%x: %s, %v", body, s, err)
		}
	}
}

func TestMalformedBodies(t *testing.T) {
	frame := func(op mcbp.Opcode, extras, key, value []byte) mcbp.Frame {
		return decodeOne(t, mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: op}, extras, key, value))
	}
	engine := func(n uint16, ext int) []byte {
		x := make([]byte, ext)
		x[0], x[1] = byte(n>>8), byte(n)
		return x
	}
	for name, tc := range map[string]struct {
		f    mcbp.Frame
		want error
	}{
		"not TAP":                    {frame(mcbp.OpGet, nil, []byte("k"), nil), mcbp.ErrMalformed},
		"TAP_CONNECT":                {frame(mcbp.OpTapConnect, make([]byte, 4), nil, nil), mcbp.ErrMalformed},
		"mutation with 8 extras":     {frame(mcbp.OpTapMutation, engine(0, 8), nil, nil), mcbp.ErrMalformed},
		"deletion with 16 extras":    {frame(mcbp.OpTapDelete, engine(0, 16), nil, nil), mcbp.ErrMalformed},
		"acknowledgement":            {frame(mcbp.OpTapOpaque, nil, nil, nil), mcbp.ErrMalformed},
		"engine beyond the body":     {frame(mcbp.OpTapMutation, engine(9, 16), nil, make([]byte, 8)), mcbp.ErrLength},
		"engine and key beyond":      {frame(mcbp.OpTapDelete, engine(8, 8), make([]byte, 4), make([]byte, 7)), mcbp.ErrLength},
		"engine of 65535":            {frame(mcbp.OpTapOpaque, engine(0xffff, 8), nil, nil), mcbp.ErrLength},
		"engine and key just fit":    {frame(mcbp.OpTapDelete, engine(8, 8), make([]byte, 4), make([]byte, 8)), nil},
		"mutation without rev":       {frame(mcbp.OpTapMutation, engine(0, 16), []byte("k"), []byte("v")), nil},
		"mutation with ten engine":   {frame(mcbp.OpTapMutation, engine(10, 16), []byte("k"), make([]byte, 10)), nil},
		"deletion with short engine": {frame(mcbp.OpTapDelete, engine(7, 8), []byte("k"), make([]byte, 7)), nil},
	} {
		var m mcbp.TapMessage
		if err := m.Parse(&tc.f); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	for name, f := range map[string]mcbp.Frame{
		"other opcode":    frame(mcbp.OpGet, make([]byte, 4), nil, nil),
		"no extras":       frame(mcbp.OpTapConnect, nil, []byte("n"), nil),
		"no backfill age": frame(mcbp.OpTapConnect, []byte{0, 0, 0, 1}, nil, make([]byte, 7)),
		"no list":         frame(mcbp.OpTapConnect, []byte{0, 0, 0, 4}, nil, []byte{0}),
		"short list":      frame(mcbp.OpTapConnect, []byte{0, 0, 0, 4}, nil, []byte{0xff, 0xff, 0, 1}),
	} {
		if _, err := mcbp.ParseTapConnect(f); !errors.Is(err, mcbp.ErrMalformed) {
			t.Errorf("TAP_CONNECT, %s: %v", name, err)
		}
	}
	for _, n := range []int{0, 8, 23, 25, 27, 29, 255} {
		f := frame(mcbp.OpSetWithMeta, make([]byte, n), []byte("k"), nil)
		var w mcbp.WithMeta
		if err := w.Parse(&f); !errors.Is(err, mcbp.ErrMalformed) {
			t.Errorf("with-meta of %d bytes of extras: %v", n, err)
		}
	}
	short := frame(mcbp.OpGetMeta, make([]byte, 19), nil, nil)
	if _, err := mcbp.ParseGetMeta(&short); !errors.Is(err, mcbp.ErrMalformed) {
		t.Errorf("GET_META: %v", err)
	}
}

func TestOpaqueCommand(t *testing.T) {
	for _, tc := range []struct {
		m    mcbp.TapMessage
		want uint32
		ok   bool
	}{
		{mcbp.TapMessage{Opcode: mcbp.OpTapOpaque, Engine: []byte{0, 0, 0, 8}}, mcbp.TapOpaqueCloseBackfill, true},
		{mcbp.TapMessage{Opcode: mcbp.OpTapOpaque, Value: []byte{0, 0, 0, 1}}, mcbp.TapOpaqueInitialStream, true},
		{mcbp.TapMessage{Opcode: mcbp.OpTapOpaque}, 0, false},
		{mcbp.TapMessage{Opcode: mcbp.OpTapMutation, Engine: []byte{0, 0, 0, 8}}, 0, false},
	} {
		if got, ok := tc.m.OpaqueCommand(); got != tc.want || ok != tc.ok {
			t.Errorf("%+v: %d, %v", tc.m, got, ok)
		}
	}
}

// RFC 2195's own example.
func TestCramMD5(t *testing.T) {
	got := mcbp.SASLCramMD5("tim", "tanstaaftanstaaf", []byte("<1896.697170952@postoffice.reston.mci.net>"))
	if string(got) != "tim b913a602c7eda7a495b4e6e7334d3890" {
		t.Errorf("%s", got)
	}
}

// Hot paths allocate nothing per item.

// loop repeats a stream for ever.
type loop struct {
	stream []byte
	at     int
}

func (l *loop) Read(p []byte) (int, error) {
	n := copy(p, l.stream[l.at:])
	l.at = (l.at + n) % len(l.stream)
	return n, nil
}

func tapStream(tb testing.TB) []byte {
	c, err := capture.Open("4.0-tap-dump-ack")
	if err != nil {
		tb.Fatal(err)
	}
	return c.Stream(capture.Server)
}

// tapDecoder returns a function that decodes as many messages as fill an arena,
// as a source does, and gives their number.
func tapDecoder(tb testing.TB) func() int {
	r := mcbp.NewReader(&loop{stream: tapStream(tb)})
	arena := make([]byte, 64<<10)
	var m mcbp.TapMessage
	return func() int {
		r.Attach(arena)
		for n := 0; ; {
			f, err := r.Decode()
			switch {
			case err == nil:
				if err := m.Parse(&f); err != nil {
					tb.Fatal(err)
				}
				n++
			case err == mcbp.ErrNeedMore && !r.Full():
				if err := r.Fill(); err != nil {
					tb.Fatal(err)
				}
			case err == mcbp.ErrNeedMore:
				r.Detach()
				return n
			default:
				tb.Fatal(err)
			}
		}
	}
}

// encoders are the encoders of the hot paths, each appending one packet.
func encoders() map[string]func(dst []byte) []byte {
	key, value := []byte("doc:0000000001"), make([]byte, 256)
	m := mcbp.TapMessage{
		Opcode: mcbp.OpTapMutation, VBucket: 500, Opaque: 1, MsgFlags: mcbp.TapMsgNetworkOrder, TTL: mcbp.TapTTL,
		CAS: 1, Flags: 2, Expiry: 3, Rev: 4, Key: key, Value: value,
	}
	w := mcbp.WithMeta{
		Opcode: mcbp.OpSetWithMeta, VBucket: 500, HasOptions: true, Options: mcbp.MetaForce,
		Meta: mcbp.Meta{Flags: 2, Expiry: 3, Rev: 4, CAS: 1}, Key: key, Value: value,
	}
	h := mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpNoop}
	return map[string]func([]byte) []byte{
		"tap":      func(dst []byte) []byte { return m.Append(dst) },
		"tapack":   func(dst []byte) []byte { return mcbp.AppendTapAck(dst, mcbp.OpTapOpaque, 1, mcbp.StatusOK) },
		"withmeta": func(dst []byte) []byte { return w.Append(dst) },
		"setq": func(dst []byte) []byte {
			return mcbp.AppendStore(dst, mcbp.OpSetQ, 1, 500, 0, 2, 3, key, value)
		},
		"deleteq": func(dst []byte) []byte { return mcbp.AppendKeyed(dst, mcbp.OpDeleteQ, 1, 500, 0, key) },
		"frame":   func(dst []byte) []byte { return mcbp.AppendFrame(dst, h, key[:4], key, value) },
		"header":  func(dst []byte) []byte { return h.Append(dst) },
	}
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	decode := tapDecoder(t)
	decode() // the carry between two arenas gets its memory once
	if n := testing.AllocsPerRun(100, func() { decode() }); n != 0 {
		t.Errorf("TAP decode: %v allocations for an arena of messages", n)
	}
	buf := make([]byte, 0, 4096)
	for name, encode := range encoders() {
		if n := testing.AllocsPerRun(100, func() { buf = encode(buf[:0]) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	stream := tapStream(t)
	src := bytes.NewReader(stream)
	own := mcbp.NewReader(src)
	if n := testing.AllocsPerRun(10, func() {
		src.Reset(stream)
		for {
			if _, err := own.Next(); err == io.EOF {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("a reader with its own buffer: %v allocations for a stream", n)
	}
}

func BenchmarkTapDecode(b *testing.B) {
	decode := tapDecoder(b)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n += decode()
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "items/s")
}

func BenchmarkEncode(b *testing.B) {
	for name, encode := range encoders() {
		b.Run(name, func(b *testing.B) {
			buf := encode(nil)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				buf = encode(buf[:0])
			}
		})
	}
}
