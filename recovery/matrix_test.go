package recovery_test

import (
	"fmt"
	"testing"

	"github.com/cbpump/cbpump/simcluster"
)

// TestMatrix recovers 64 vbuckets from every version to every version through
// both recovery interfaces, and compares every document.
func TestMatrix(t *testing.T) {
	versions := []string{"2.5.1", "3.0.3", "4.0", "4.6", "6.0.4", "6.6.5", "7.0.5", "7.6"}
	for _, api := range []struct {
		name  string
		start func(*testing.T, shape) *pair
	}{{"proposal", newPair}, {"controller", realPair}} {
		for _, src := range versions {
			for _, dst := range versions {
				t.Run(fmt.Sprintf("%s/%s to %s", api.name, src, dst), func(t *testing.T) {
					p := api.start(t, shape{version: dst, vbuckets: 192, docs: 600, src: func(c *simcluster.Config) { c.Version = src }})
					if len(p.missing) != 64 {
						t.Fatalf("%d vbuckets are missing, want 64", len(p.missing))
					}
					if _, _, err := p.run(nil, nil); err != nil {
						t.Fatal(err)
					}
					p.whole()
				})
			}
		}
	}
}
