// Package sinktest drives the sinks of clusters and servers in their tests, as the
// engine does.
package sinktest

import (
	"context"
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// Cluster starts a simulated cluster and ends it with the test.
func Cluster(tb testing.TB, cfg simcluster.Config) *simcluster.Cluster {
	tb.Helper()
	c, err := simcluster.Start(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// Lane returns one lane of a sink; it and the sink are closed with the test.
func Lane(tb testing.TB, s pump.Sink) pump.Lane {
	tb.Helper()
	lanes, err := s.Lanes(context.Background(), 1)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, l := range lanes {
			l.Close()
		}
		s.Close()
	})
	return lanes[0]
}

// Batch returns a batch that is ready to be written.
func Batch(items ...pump.Item) *pump.Batch {
	b := pump.NewBatch(0)
	b.Items = items
	b.StartWrite()
	return b
}

// Write writes one batch.
func Write(tb testing.TB, l pump.Lane, items ...pump.Item) *pump.Batch {
	tb.Helper()
	b := Batch(items...)
	if err := l.Write(context.Background(), b); err != nil {
		tb.Fatalf("write: %v", err)
	}
	return b
}

// Verdicts reports items whose verdict is not the one that is due.
func Verdicts(tb testing.TB, b *pump.Batch, due ...pump.Verdict) {
	tb.Helper()
	for i, w := range due {
		if b.Verdict(i) != w {
			tb.Errorf("item %d (%q) is %s (%v), want %s", i, b.Items[i].Key, b.Verdict(i), b.Cause(i), w)
		}
	}
}
