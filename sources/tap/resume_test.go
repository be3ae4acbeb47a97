package tap

import (
	"fmt"
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

// TestResume: a new process leaves out what was complete, also when the map has
// changed meanwhile.
func TestResume(t *testing.T) {
	for _, c := range []struct {
		version string
		batches int
		moved   bool
	}{{"2.5.1", 8, true}, {"4.0", 0, true}, {"4.0", 8, false}, {"4.0", 8, true}, {"4.0", -1, true}} {
		t.Run(fmt.Sprintf("%s after %d batches, moved %v", c.version, c.batches, c.moved), func(t *testing.T) {
			at3 := sim(t, simcluster.Config{Nodes: 3, VBuckets: 12, Version: c.version,
				Buckets: []simcluster.BucketConfig{{Name: "default", Replicas: 1}}})
			fill(t, at3.Bucket("default"), 200)
			cfg := at(at3)
			cfg.Threads, cfg.Options.DumpVBuckets = 3, 2
			suite := pumptest.ResumeSuite{Batches: c.batches, New: func(t *testing.T) pump.Source { return mustNew(t, cfg) }}
			if c.moved {
				suite.Meanwhile = func(t *testing.T) {
					if err := at3.Failover(at3.Nodes()[2]); err != nil {
						t.Fatal(err)
					}
				}
			}
			pumptest.TestResume(t, suite)
		})
	}
}
