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
	for _, version := range []string{"2.5.1", "4.0"} {
		for _, batches := range []int{0, 4, 20, -1} {
			for _, moved := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s after %d batches, moved %v", version, batches, moved), func(t *testing.T) {
					c := sim(t, simcluster.Config{Nodes: 3, VBuckets: 24, Version: version,
						Buckets: []simcluster.BucketConfig{{Name: "default", Replicas: 1}}})
					fill(t, c.Bucket("default"), 300)
					cfg := at(c)
					cfg.Threads, cfg.Options.DumpVBuckets = 4, 2
					suite := pumptest.ResumeSuite{Batches: batches, New: func(t *testing.T) pump.Source { return mustNew(t, cfg) }}
					if moved {
						suite.Meanwhile = func(t *testing.T) {
							if err := c.Failover(c.Nodes()[2]); err != nil {
								t.Fatal(err)
							}
						}
					}
					pumptest.TestResume(t, suite)
				})
			}
		}
	}
}
