package recovery_test

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/cbpump/cbpump/recovery"
	"github.com/cbpump/cbpump/simcluster"
)

// lostAll starts a source that holds n documents in each of its vbuckets, and a
// destination of two nodes that has lost all of them.
func lostAll(b *testing.B, version string, vbuckets, n int) (src, dst *simcluster.Cluster) {
	b.Helper()
	start := func(nodes int, change func(*simcluster.Config)) *simcluster.Cluster {
		cfg := simcluster.Config{Nodes: nodes, Version: version, VBuckets: vbuckets, Username: user, Password: pass, Buckets: []simcluster.BucketConfig{{Name: bucket}}}
		if change != nil {
			change(&cfg)
		}
		c, err := simcluster.Start(cfg)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	src = start(2, nil)
	value := make([]byte, 256)
	for i := range value {
		value[i] = byte(i)
	}
	for i := range vbuckets * n {
		if err := src.Bucket(bucket).Store(simcluster.Doc{Key: fmt.Appendf(nil, "doc-%08d", i), Value: value, CAS: 1<<50 + uint64(i), Rev: 3}); err != nil {
			b.Fatal(err)
		}
	}
	dst = start(1, real)
	for range 2 {
		fresh, err := dst.NewNode()
		if err == nil {
			err = dst.AddNode(fresh)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	dst.Rebalance()
	if err := dst.Failover(dst.Nodes()[0]); err != nil {
		b.Fatal(err)
	}
	if got := len(dst.Bucket(bucket).Missing()); got != vbuckets {
		b.Fatalf("%d vbuckets are missing, want %d", got, vbuckets)
	}
	return src, dst
}

// BenchmarkRecovery recovers 1,024 vbuckets of 1,000 documents in one run.
func BenchmarkRecovery(b *testing.B) {
	for _, version := range []string{"2.5.1", "4.6", "6.6.5", "7.6"} {
		b.Run(version, func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				const vbuckets, each = 1024, 1000
				src, dst := lostAll(b, version, vbuckets, each)
				opt := recovery.Options{
					Source:      recovery.Endpoint{URL: src.URL(), Bucket: bucket, Username: user, Password: pass},
					Destination: recovery.Endpoint{URL: dst.URL(), Bucket: bucket, Username: user, Password: pass},
				}
				phases := map[recovery.Phase]time.Duration{}
				opt.OnEvent = func(e recovery.Event) {
					if p, ok := e.(recovery.PhaseEnded); ok {
						phases[p.Phase] += p.Elapsed
					}
				}
				before := cpu(b)
				b.StartTimer()
				began := time.Now()
				res, err := recovery.Run(context.Background(), opt)
				total := time.Since(began)
				b.StopTimer()
				used := cpu(b) - before
				if err != nil || len(res.Recovered()) != vbuckets || res.Transfer.Done != vbuckets*each {
					b.Fatalf("%v: %d recovered, %d items", err, len(res.Recovered()), res.Transfer.Done)
				}
				b.ReportMetric(float64(vbuckets*each)/total.Seconds(), "items/s")
				b.ReportMetric(100*res.Spent.Waiting().Seconds()/res.Spent.Total.Seconds(), "%waiting")
				b.ReportMetric(100*used.Seconds()/total.Seconds()/float64(runtime.GOMAXPROCS(0)), "%cpu")
				b.ReportMetric(used.Seconds(), "cpu-s")
				b.Logf("%+v", res.Spent)
				for p, d := range phases {
					b.Logf("%s %s", p, d.Round(time.Millisecond))
				}
				if err := src.Close(); err != nil {
					b.Error(err)
				}
				if err := dst.Close(); err != nil {
					b.Error(err)
				}
				b.StartTimer()
			}
		})
	}
}

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
