package main_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// run copies source to sink with the built-in plugins and returns the report.
func run(tb testing.TB, source, sink string) *pump.Report {
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
	dst, err := reg.Sink(tb.Context(), sink, pump.Env{})
	if err != nil {
		tb.Fatal(err)
	}
	report, err := pump.Run(tb.Context(), pump.Config{Source: src, Sink: dst, Settings: pump.DefaultSettings()})
	if err != nil {
		tb.Fatalf("%s to %s: %v", source, sink, err)
	}
	return report
}

func genSpec(items int) string {
	return fmt.Sprintf("gen:?max-items=%d&min-value-size=256", items)
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
	report := run(t, c.URL(), "memcached://"+mc.Addr)
	if report.Read != docs || report.Done != docs {
		t.Errorf("read %d, done %d", report.Read, report.Done)
	}
	if n, err := mc.Count("curr_items"); err != nil || n != docs {
		t.Errorf("memcached holds %d items (%v)", n, err)
	}
}

// TestNoAllocationPerItem compares two runs that differ only in the number of
// items: what the longer one allocates more, per item, is the steady state.
func TestNoAllocationPerItem(t *testing.T) {
	mc := realmc.Start(t, "-m", "512")
	small, large := tapNode(t, 20_000), tapNode(t, 120_000)
	smallDCP, largeDCP := dcpNode(t, 20_000), dcpNode(t, 120_000)
	for _, c := range []struct {
		name         string
		short, long  string
		sink         string
		most         float64
		itemsBetween float64
	}{
		{"gen to null", genSpec(100_000), genSpec(1_100_000), "null:", 0.01, 1e6},
		{"gen to memcached", genSpec(100_000), genSpec(600_000), "memcached://" + mc.Addr, 0.01, 5e5},
		// The simulator runs in this process and counts too; what is left is by batch.
		{"TAP to null", small.URL(), large.URL(), "null:", 0.1, 1e5},
		{"DCP to null", smallDCP.URL(), largeDCP.URL(), "null:", 0.1, 1e5},
		{"TAP to memcached", small.URL(), large.URL(), "memcached://" + mc.Addr, 0.1, 1e5},
	} {
		t.Run(c.name, func(t *testing.T) {
			mallocs := func(source string) float64 {
				run(t, source, c.sink) // warm
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				run(t, source, c.sink)
				runtime.ReadMemStats(&after)
				return float64(after.Mallocs - before.Mallocs)
			}
			perItem := (mallocs(c.long) - mallocs(c.short)) / c.itemsBetween
			t.Logf("%.5f allocations per item", perItem)
			if perItem > c.most {
				t.Errorf("%.5f allocations per item", perItem)
			}
		})
	}
}

// The benchmarks below run whole transfers through the engine; b.N is items.

func report(b *testing.B, items uint64) {
	b.ReportMetric(float64(items)/b.Elapsed().Seconds(), "items/s")
}

func BenchmarkGenToNull(b *testing.B) {
	b.ReportAllocs()
	r := run(b, genSpec(b.N), "null:")
	report(b, r.Done)
}

func BenchmarkGenToMemcached(b *testing.B) {
	mc := realmc.Start(b, "-m", "512")
	b.ReportAllocs()
	b.ResetTimer()
	r := run(b, genSpec(b.N), "memcached://"+mc.Addr)
	report(b, r.Done)
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
		done += run(b, c.URL(), sink).Done
	}
	report(b, done)
}
