package mc

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// benchBatch returns a batch as the engine makes it of 8 MiB of items at most.
func benchBatch(size int) *pump.Batch {
	n := min(32768, (8<<20)/(size+10))
	b := pump.NewBatch(0)
	b.Items = items("key-", n, size)
	b.StartWrite()
	return b
}

func report(b *testing.B, batch *pump.Batch) {
	b.ReportMetric(float64(b.N*batch.Len())/b.Elapsed().Seconds(), "items/s")
}

// BenchmarkSink writes into a real memcached. BenchmarkRaw is the mark to reach:
// a client that does nothing but write the same bytes.
func BenchmarkSink(b *testing.B) {
	for _, size := range []int{16, 256, 4096, 16384, 65536} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			srv := startMemcached(b, "-m", "256")
			l := sinktest.Lane(b, openSink(b, srv.addr, Options{}))
			batch := benchBatch(size)
			b.SetBytes(int64(batch.Len() * (size + 10)))
			b.ReportAllocs()
			for b.Loop() {
				batch.StartWrite()
				if err := l.Write(context.Background(), batch); err != nil || batch.Verdict(0) != pump.Done {
					b.Fatal(err, batch.Cause(0))
				}
			}
			report(b, batch)
		})
	}
}

func BenchmarkRaw(b *testing.B) {
	for _, size := range []int{16, 256, 4096, 16384, 65536} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			srv := startMemcached(b, "-m", "256")
			batch := benchBatch(size)
			var out []byte
			for i := range batch.Items {
				it := &batch.Items[i]
				out = mcbp.AppendStore(out, mcbp.OpSetQ, uint32(i), 0, 0, it.Flags, it.Expiry, it.Key, it.Value)
			}
			out = mcbp.AppendNoop(out, 1)
			c, err := net.Dial("tcp", srv.addr)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			answer := make([]byte, mcbp.HeaderLen)
			b.SetBytes(int64(batch.Len() * (size + 10)))
			for b.Loop() {
				for rest := out; len(rest) > 0; {
					n, err := c.Write(rest[:min(len(rest), 256<<10)])
					if err != nil {
						b.Fatal(err)
					}
					rest = rest[n:]
				}
				if n, err := c.Read(answer); err != nil || n != len(answer) {
					b.Fatal(n, err)
				}
			}
			report(b, batch)
		})
	}
}

// BenchmarkCBSink writes with metadata into a simulated cluster; the second and
// later rounds are refused by conflict resolution unless it is off.
func BenchmarkCBSink(b *testing.B) {
	c := sinktest.Cluster(b, simcluster.Config{Nodes: 1})
	l := sinktest.Lane(b, openCB(b, c, func(cfg *CBConfig) { cfg.Options.ConflictResolution = false }))
	batch := benchBatch(256)
	batch.Items = batch.Items[:8192]
	for i := range batch.Items {
		batch.Items[i].CAS, batch.Items[i].RevSeqno = 1<<40, 5
	}
	b.ReportAllocs() // those of the cluster count too
	for b.Loop() {
		batch.StartWrite()
		if err := l.Write(context.Background(), batch); err != nil || batch.Verdict(0) != pump.Done {
			b.Fatal(err, batch.Cause(0))
		}
	}
	report(b, batch)
}
