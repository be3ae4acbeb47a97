package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// transferHere copies source to sink with the built-in plugins and returns the report.
func transferHere(tb testing.TB, source, sink string) *pump.Report {
	tb.Helper()
	reg, err := plugins.Transfer()
	if err != nil {
		tb.Fatal(err)
	}
	env := pump.Env{Username: "Administrator", Password: "password"}
	src, err := reg.Source(tb.Context(), source, env)
	if err != nil {
		tb.Fatal(err)
	}
	if strings.HasPrefix(sink, "memcached:") {
		env = pump.Env{}
	}
	dst, err := reg.Sink(tb.Context(), sink, env)
	if err != nil {
		tb.Fatal(err)
	}
	report, err := pump.Run(tb.Context(), pump.Config{Source: src, Sink: dst, Settings: pump.DefaultSettings()})
	if err != nil {
		tb.Fatalf("%s to %s: %v", source, sink, err)
	}
	return report
}

// tapNode and dcpNode start one node with documents of 256 bytes.
func tapNode(tb testing.TB, docs int) *simcluster.Cluster { return node(tb, "2.5.1", docs) }

func dcpNode(tb testing.TB, docs int) *simcluster.Cluster { return node(tb, "7.0.5", docs) }

func node(tb testing.TB, version string, docs int) *simcluster.Cluster {
	tb.Helper()
	c, err := simcluster.Start(simcluster.Config{Nodes: 1, Version: version, VBuckets: 64, Buckets: []simcluster.BucketConfig{{Name: "default"}}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	value := make([]byte, 256)
	for i := range docs {
		if err := c.Bucket("default").Store(simcluster.Doc{Key: fmt.Appendf(nil, "doc-%09d", i), Value: value}); err != nil {
			tb.Fatal(err)
		}
	}
	return c
}

// TestHundredThousandIntoMemcached moves 100,000 documents from one TAP node
// into a real memcached, in one run, and counts them there.
func TestHundredThousandIntoMemcached(t *testing.T) {
	const docs = 100_000
	c, mc := tapNode(t, docs), realmc.Start(t, "-m", "256")
	report := transferHere(t, c.URL(), "memcached://"+mc.Addr)
	if report.Read != docs || report.Done != docs {
		t.Errorf("read %d, done %d", report.Read, report.Done)
	}
	if n, err := mc.Count("curr_items"); err != nil || n != docs {
		t.Errorf("memcached holds %d items (%v)", n, err)
	}
}

// The benchmarks below run whole transfers through the engine; b.N is items.

func reportRate(b *testing.B, items uint64) {
	b.ReportMetric(float64(items)/b.Elapsed().Seconds(), "items/s")
}

func BenchmarkGenToNull(b *testing.B) {
	b.ReportAllocs()
	r := transferHere(b, genSpec(b.N, 256), "null:")
	reportRate(b, r.Done)
}

func BenchmarkGenToMemcached(b *testing.B) {
	mc := realmc.Start(b, "-m", "512")
	b.ReportAllocs()
	b.ResetTimer()
	r := transferHere(b, genSpec(b.N, 256), "memcached://"+mc.Addr)
	reportRate(b, r.Done)
}

// A dump of 100,000 documents is one op here.

func BenchmarkTapToNull(b *testing.B) { fromCluster(b, tapNode(b, 100_000), "null:") }

func BenchmarkDcpToNull(b *testing.B) { fromCluster(b, dcpNode(b, 100_000), "null:") }

func BenchmarkTapToMemcached(b *testing.B) {
	fromCluster(b, tapNode(b, 100_000), "memcached://"+realmc.Start(b, "-m", "512").Addr)
}

func BenchmarkDcpToMemcached(b *testing.B) {
	fromCluster(b, dcpNode(b, 100_000), "memcached://"+realmc.Start(b, "-m", "512").Addr)
}

func fromCluster(b *testing.B, c *simcluster.Cluster, sink string) {
	b.ReportAllocs()
	var done uint64
	for b.Loop() {
		done += transferHere(b, c.URL(), sink).Done
	}
	reportRate(b, done)
}
