package mc

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
	"github.com/cbpump/cbpump/sources/dcp"
)

// TestDeadNode: one of three nodes dies in mid-copy and does not come back. What is
// for the others is copied whole and marked; the run names the node and what is
// missing.
func TestDeadNode(t *testing.T) {
	for _, c := range []struct {
		name    string
		which   int
		version string
		threads int
	}{
		{"the node that was named", 0, "4.0", 0},
		{"another", 1, "7.0.5", 0},
		{"with one lane for all", 2, "6.6.5", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			const docs = 3000
			from := sinktest.Cluster(t, simcluster.Config{Version: c.version, Nodes: 2, VBuckets: 64})
			to := sinktest.Cluster(t, simcluster.Config{Version: c.version, Nodes: 3, VBuckets: 64})
			for i := range docs {
				if err := from.Bucket("default").Store(simcluster.Doc{Key: fmt.Appendf(nil, "doc-%d", i), Value: make([]byte, 1000), CAS: 1 << 40, Rev: 3}); err != nil {
					t.Fatal(err)
				}
			}
			victim := to.Nodes()[c.which]
			victim.Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpSetQWithMeta, mcbp.OpSetWithMeta}, VBucket: -1, After: 50, Action: simcluster.Die})

			var cfg dcp.Config
			cfg.URL, cfg.Options = from.URL(), dcp.DefaultOptions()
			cfg.Username, cfg.Password = "Administrator", "password"
			source, err := dcp.New(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			set := pump.DefaultSettings()
			set.RetryTime, set.RetryMax, set.Memory = 200*time.Millisecond, 20*time.Millisecond, 1<<20
			var mu sync.Mutex
			complete := map[uint16]bool{}
			report, err := pump.Run(t.Context(), pump.Config{
				Source: source, Sink: openCB(t, to, nil), Settings: set, Threads: c.threads, KeepGoing: true, Scribble: true,
				OnMarks: func(_ string, marks []pump.Mark) {
					mu.Lock()
					defer mu.Unlock()
					for _, m := range marks {
						complete[m.VBucket] = complete[m.VBucket] || m.Complete
					}
				},
			})
			if pump.ExitCode(err, 0) != 4 || pump.CodeOf(err) != "place-given-up" {
				t.Fatalf("error %v", err)
			}
			dead := map[uint16]bool{}
			for vb, chain := range to.Bucket("default").Map() {
				dead[uint16(vb)] = to.Bucket("default").Servers()[chain[0]] == victim.KV()
			}
			missing := map[uint16]int{}
			for i := range docs {
				key := fmt.Appendf(nil, "doc-%d", i)
				if _, ok := to.Bucket("default").Get(key); !ok {
					missing[to.Bucket("default").VBucketOf(key)]++
				}
			}
			for vb := range uint16(64) {
				// What the node had confirmed whole before it died is marked too.
				if whole := missing[vb] == 0; !dead[vb] && !(whole && complete[vb]) || !whole && complete[vb] || complete[vb] == (pump.ErrorOf(err, vb) != nil) {
					t.Errorf("vbucket %d: its node is dead: %t; %d items missing; marked complete: %t; the error says %v", vb, dead[vb], missing[vb], complete[vb], pump.ErrorOf(err, vb))
				}
			}
			if len(missing) == 0 || report.Pending() == 0 || report.Done+report.Pending() != docs {
				t.Errorf("missing by vbucket: %v, %+v", missing, report.Snapshot)
			}
		})
	}
}
