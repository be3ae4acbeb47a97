package simcluster

import (
	"fmt"
	"net"
	"testing"

	"github.com/cbpump/cbpump/mcbp"
)

// One connection streams 64 vbuckets; the reader only counts bytes, so that the
// sending side is what is measured.
func BenchmarkDCPStream(b *testing.B) {
	c, err := Start(Config{Nodes: 1, Version: "3.0.3"})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	bk := c.Bucket("default")
	const items = 200_000
	value := make([]byte, 256)
	for i := range items {
		if err := bk.Store(Doc{Key: fmt.Appendf(nil, "doc-%08d", i), Value: value}); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, 1<<20)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		nc, err := net.Dial("tcp", c.Nodes()[0].KV())
		if err != nil {
			b.Fatal(err)
		}
		out := mcbp.AppendDcpOpen(nil, 1, "bench", mcbp.DcpOpenProducer)
		want := mcbp.HeaderLen
		for vb := range uint16(64) {
			end := bk.HighSeqno(vb)
			r := mcbp.StreamReq{VBucket: vb, Opaque: uint32(vb), End: end}
			out = r.Append(out)
			want += mcbp.HeaderLen + 16 + mcbp.HeaderLen + 20 + mcbp.HeaderLen + 4 + int(end)*(mcbp.HeaderLen+31+12+256)
		}
		if _, err := nc.Write(out); err != nil {
			b.Fatal(err)
		}
		for want > 0 {
			n, err := nc.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			want -= n
		}
		nc.Close()
	}
	b.ReportMetric(float64(items)*float64(b.N)/b.Elapsed().Seconds(), "items/s")
}
