package recovery_test

import (
	"context"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump/compare"
	"github.com/cbpump/cbpump/recovery"
)

// BenchmarkVerify recovers 64 vbuckets of 1,000 documents with each way to compare
// them before they are activated.
func BenchmarkVerify(b *testing.B) {
	const vbuckets, each = 64, 1000
	for _, version := range []string{"4.6", "7.6"} {
		for _, mode := range compare.Modes() {
			b.Run(version+"/"+string(mode), func(b *testing.B) {
				var verify, total, used time.Duration
				for range b.N {
					src, dst := lostAll(b, version, vbuckets, each)
					opt := recovery.Options{
						Source:      recovery.Endpoint{URL: src.URL(), Bucket: bucket, Username: user, Password: pass},
						Destination: recovery.Endpoint{URL: dst.URL(), Bucket: bucket, Username: user, Password: pass},
						Verify:      mode,
					}
					opt.OnEvent = func(e recovery.Event) {
						if p, ok := e.(recovery.PhaseEnded); ok && p.Phase == recovery.PhaseVerify {
							verify += p.Elapsed
						}
					}
					before, began := cpu(b), time.Now()
					res, err := recovery.Run(context.Background(), opt)
					total += time.Since(began)
					used += cpu(b) - before
					if err != nil || len(res.Recovered()) != vbuckets {
						b.Fatalf("%v: %d recovered", err, len(res.Recovered()))
					}
					if err := src.Close(); err != nil {
						b.Error(err)
					}
					if err := dst.Close(); err != nil {
						b.Error(err)
					}
				}
				n := float64(b.N)
				b.ReportMetric(total.Seconds()/n, "s-in-all")
				b.ReportMetric(verify.Seconds()/n, "s-verify")
				b.ReportMetric(used.Seconds()/n, "cpu-s")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
