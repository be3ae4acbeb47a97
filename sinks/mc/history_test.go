package mc

import (
	"strings"
	"testing"

	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// TestNewHistory: a replica that takes over may lack what its active copy had
// confirmed, so a failover in mid-run is no success. Servers before 3.0 do not
// tell. A vbucket that moves keeps its history.
func TestNewHistory(t *testing.T) {
	for version, tells := range map[string]bool{"2.5.1": false, "3.0.3": true, "4.6": true, "6.6.5": true, "7.6": true} {
		t.Run(version, func(t *testing.T) {
			c := sinktest.Cluster(t, simcluster.Config{Version: version, Nodes: 3, VBuckets: 16, Buckets: []simcluster.BucketConfig{{Name: "default", Replicas: 1}}})
			sink := openCB(t, c, nil)
			defer sink.Close()
			lanes, err := sink.Lanes(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			defer lanes[0].Close()
			it := meta("a", "v", 1, 7)
			sink.Route(&it)
			sinktest.Verdicts(t, sinktest.Write(t, lanes[0], it), pump.Done)
			first, err := sink.Life(t.Context())
			if err != nil || (first != "") != tells {
				t.Fatalf("life %q, %v", first, err)
			}
			to := c.Nodes()[0]
			if err := c.Bucket("default").Move(it.VBucket, to); err != nil && !strings.Contains(err.Error(), "already") {
				t.Fatal(err)
			}
			if err := sink.Attest(t.Context()); err != nil {
				t.Fatalf("before the failover: %v", err)
			}
			if again, err := sink.Life(t.Context()); again != first || err != nil {
				t.Fatalf("the same life is %q, then %q (%v)", first, again, err)
			}
			if err := c.Failover(to); err != nil {
				t.Fatal(err)
			}
			err = sink.Attest(t.Context())
			again, lerr := sink.Life(t.Context())
			if !tells {
				if err != nil || again != "" {
					t.Errorf("%v, life %q", err, again)
				}
				return
			}
			if pump.CodeOf(err) != "destination-history" || pump.ClassOf(err) != pump.ClassFailed || !strings.Contains(pump.HintOf(err), "compare") {
				t.Errorf("%v (%s)", err, pump.HintOf(err))
			}
			if again == first || lerr != nil {
				t.Errorf("life %q as before, %v", again, lerr)
			}
		})
	}
}

// TestHistoryCannotBeAsked: a destination that is gone after the last item has
// confirmed it, but nobody knows whether it still holds it.
func TestHistoryCannotBeAsked(t *testing.T) {
	c := sinktest.Cluster(t, simcluster.Config{Version: "7.6", Nodes: 1, VBuckets: 16})
	sink := openCB(t, c, nil)
	defer sink.Close()
	lanes, err := sink.Lanes(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer lanes[0].Close()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sink.Attest(t.Context()); pump.CodeOf(err) != "destination-unknown" || pump.ExitCode(err, 0) != 4 {
		t.Errorf("%v", err)
	}
}
