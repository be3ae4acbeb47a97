package tap

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// endless is a node that dumps vbucket 7 for ever.
func endless(t testing.TB, valueSize int) pump.Stream {
	s := new(script).begin(7)
	head := s.out
	s.out = nil
	value := make([]byte, valueSize)
	for i := range 1000 {
		m := mcbp.TapMessage{Opcode: mcbp.OpTapMutation, VBucket: 7, MsgFlags: mcbp.TapMsgNetworkOrder, Key: []byte("key-0123456789"), Value: value}
		if i == 999 {
			m.MsgFlags |= mcbp.TapMsgAck
		}
		s.send(m)
	}
	f := startFake(t, map[uint16]cluster.VBInfo{7: active(1)}, func(_ int, _ mcbp.TapConnect, c net.Conn, r *mcbp.Reader) error {
		go func() { _, _ = io.Copy(io.Discard, c) }() // the acknowledgements; ends with the connection
		if _, err := c.Write(head); err != nil {
			return err
		}
		for {
			if _, err := c.Write(s.out); err != nil {
				return errAbrupt
			}
		}
	})
	stream := one(t, f, nil, 7)
	if err := stream.Open(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Close() })
	return stream
}

// TestNoAllocationPerItem: what a Read allocates is for the batch (a guard of
// the connection), whatever the number of items.
func TestNoAllocationPerItem(t *testing.T) {
	s := endless(t, 256)
	b := pump.NewBatch(256 << 10)
	items, runs := 0, 0
	read := func() {
		b.Reset()
		if err := s.Read(context.Background(), b); err != nil {
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
	b.ReportAllocs()
	b.SetBytes(256 + 14)
	b.ResetTimer()
	for n := 0; n < b.N; n += batch.Len() {
		batch.Reset()
		if err := s.Read(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
	}
}
