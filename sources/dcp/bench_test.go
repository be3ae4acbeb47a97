package dcp

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// endless is a node that streams vbucket 7 for ever, and a stream of it.
func endless(t testing.TB, valueSize int) *stream {
	const perWrite = 1000
	value := make([]byte, valueSize)
	var writing sync.WaitGroup
	f := startFake(t, v70, map[uint16]cluster.VBInfo{7: activeVB(1)}, map[uint16]uint64{7: 1 << 60}, nil)
	f.stream = func(_ int, req mcbp.StreamReq, c net.Conn) ([]byte, error) {
		s := accept(req).marker(0, 1<<60)
		head := s.out
		s.out = nil
		for n := range uint64(perWrite) {
			s.send(mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, Seqno: n, Key: []byte("\x00key-0123456789"), Value: value})
		}
		each := len(s.out) / perWrite
		writing.Go(func() { // acknowledgements are read meanwhile
			if _, err := c.Write(head); err != nil {
				return
			}
			for seqno := uint64(1); ; {
				for i := range perWrite {
					x := s.out[i*each+mcbp.HeaderLen:]
					for j := range 8 {
						x[j] = byte(seqno >> (56 - 8*j))
					}
					seqno++
				}
				if _, err := c.Write(s.out); err != nil {
					return
				}
			}
		})
		return nil, nil
	}
	t.Cleanup(func() { f.close(); writing.Wait() })
	st := one(t, f, nil, 7)
	if err := st.Open(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// TestNoAllocationPerItem: what a Read and its confirmation allocate is for the
// batch (a guard of the connection), whatever the number of items.
func TestNoAllocationPerItem(t *testing.T) {
	s := endless(t, 256)
	b := pump.NewBatch(256 << 10)
	items, runs := 0, 0
	ctx := context.Background()
	read := func() {
		b.Reset()
		if err := s.Read(ctx, b); err != nil {
			t.Fatal(err)
		}
		if err := s.Acknowledge(ctx, b.Marks); err != nil {
			t.Fatal(err)
		}
		items += b.Len()
		runs++
	}
	for range 20 {
		read()
	}
	items, runs = 0, 0
	const most = 8 // per batch
	if n := testing.AllocsPerRun(300, read); n > most {
		t.Errorf("%v allocations per batch of %d items, at most %d are due", n, items/runs, most)
	}
	if items/runs < 10*most {
		t.Errorf("batches of %d items only prove little", items/runs)
	}
}

func BenchmarkRead(b *testing.B) {
	s := endless(b, 256)
	batch := pump.NewBatch(256 << 10)
	ctx := context.Background()
	b.ReportAllocs()
	b.SetBytes(256 + 14)
	b.ResetTimer()
	for n := 0; n < b.N; n += batch.Len() {
		batch.Reset()
		if err := s.Read(ctx, batch); err != nil {
			b.Fatal(err)
		}
		if err := s.Acknowledge(ctx, batch.Marks); err != nil {
			b.Fatal(err)
		}
	}
}

// decoder is a feed of vbuckets 7 and 20 without a connection.
func decoder(r *mcbp.Reader, collections bool) *feed {
	d := &feed{op: "copy", addr: "node", r: r, flow: &flow{}, parts: make([]*part, 101), warn: func(string, ...any) {}}
	if collections {
		d.names = newNames()
		for id, name := range map[uint32]string{8: "items", 9: "orders", 0x1234: "big"} {
			d.names.add("shop", id, name)
		}
	}
	for i, vb := range []uint16{7, 20, 100} {
		p := newPart(vb)
		p.streaming, p.accepted, p.opaque, p.end = true, true, uint32(i+1), 1<<60
		d.parts[vb] = p
		d.running++
	}
	return d
}

// BenchmarkDecode is the decoding alone, without a connection.
func BenchmarkDecode(b *testing.B) {
	const items = 800
	s := &script{vb: 7, oq: 1}
	value := make([]byte, 256)
	s.marker(0, 1<<60)
	head := len(s.out)
	for n := range uint64(items) {
		s.send(mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, Seqno: n + 1, Key: []byte("\x00key-0123456789"), Value: value})
	}
	src := &refill{head: s.out[:head], body: s.out[head:]}
	d := decoder(mcbp.NewReader(src), true)
	batch := pump.NewBatch(len(s.out) + mcbp.HeaderLen)
	b.ReportAllocs()
	b.SetBytes(256 + 14)
	b.ResetTimer()
	for n := 0; n < b.N; n += items {
		batch.Reset()
		d.r.Attach(batch.Arena())
		src.at = 0
		d.parts[7].seqno = 0
		for batch.Len() < items {
			if err := d.r.Fill(); err != nil {
				b.Fatal(err)
			}
			if _, err := d.decode(batch); err != nil {
				b.Fatal(err)
			}
		}
		d.r.Detach()
		d.hand(batch)
		if err := d.flow.confirm(len(batch.Marks)); err != nil {
			b.Fatal(err)
		}
	}
}

// refill gives the same bytes again and again, the head only once.
type refill struct {
	head, body []byte
	at         int
}

func (r *refill) Read(p []byte) (int, error) {
	if len(r.head) > 0 {
		n := copy(p, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	n := copy(p, r.body[r.at:])
	r.at += n
	return n, nil
}
