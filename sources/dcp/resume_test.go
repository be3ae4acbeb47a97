package dcp

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

// TestResume: a new process goes on behind the marks, also when the map has changed
// meanwhile, and reads no complete vbucket again.
func TestResume(t *testing.T) {
	for _, c := range []struct {
		version string
		batches int
		moved   bool
	}{
		{"3.0.3", 4, true}, {"6.6.5", 1, true}, {"6.6.5", -1, true}, {"7.0.5", 0, true}, {"7.0.5", 9, false}, {"7.0.5", 9, true},
	} {
		t.Run(fmt.Sprintf("%s after %d batches, moved %v", c.version, c.batches, c.moved), func(t *testing.T) {
			at3 := sim(t, simcluster.Config{Nodes: 3, VBuckets: 12, Version: c.version, DCPFromDisk: c.version == "6.6.5",
				Buckets: []simcluster.BucketConfig{{Name: "default", Replicas: 1}}})
			fill(t, at3.Bucket("default"), 400)
			cfg := at(at3)
			cfg.Threads, cfg.Options.OpenVBuckets = 3, 2
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

// TestResumeOnAnotherBranch: between two processes a failover lost the last changes,
// and others were made in their place. The second one brings all of the new branch.
func TestResumeOnAnotherBranch(t *testing.T) {
	for _, version := range []string{"3.0.3", "6.6.5", "7.0.5"} {
		t.Run(version, func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 1, VBuckets: 2, Version: version})
			b := c.Bucket("default")
			fill(t, b, 60)
			cfg := at(c)
			cfg.Threads = 1
			_, _, marks, err := drain(t, cfg, nil)
			if err != nil {
				t.Fatal(err)
			}
			high := map[uint16]uint64{}
			for i := range marks {
				marks[i].Complete = false // it stopped just before that
				high[marks[i].VBucket] = marks[i].Seqno
			}
			fresh := map[uint16]int{}
			for vb := range uint16(2) {
				if err := b.Rollback(vb, high[vb]-5); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 40 { // the new branch goes beyond the old one
				key := fmt.Appendf(nil, "new-%d", i)
				fresh[b.VBucketOf(key)]++
				if err := b.Store(simcluster.Doc{Key: key, Value: []byte("branch")}); err != nil {
					t.Fatal(err)
				}
			}
			var log strings.Builder
			cfg.Log = hclog.New(&hclog.LoggerOptions{Output: &log})
			src := mustNew(t, cfg)
			defer src.Close()
			streams, err := src.Streams(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := readOnce(t, streams[0], 4096, marks...)
			if got.err != io.EOF {
				t.Fatal(got.err)
			}
			came := map[uint16]int{}
			for _, it := range got.items {
				if it.Seqno <= high[it.VBucket]-5 {
					t.Errorf("seqno %d of vbucket %d came again", it.Seqno, it.VBucket)
				}
				if it.Value == "branch" {
					came[it.VBucket]++
				}
			}
			if fmt.Sprint(came) != fmt.Sprint(fresh) {
				t.Errorf("%v items of the new branch came, %v are due", came, fresh)
			}
			for vb := range uint16(2) {
				if m := got.complete(vb); m == nil || m.Seqno != b.HighSeqno(vb) {
					t.Errorf("vbucket %d: %+v", vb, m)
				}
			}
			if n := strings.Count(log.String(), "another branch"); n != 2 {
				t.Errorf("the log says %q", log.String())
			}
		})
	}
}

// TestNames: a server drops the older of two DCP connections of one name, so no two
// of ours have the same; copies at the same time do not disturb each other.
func TestNames(t *testing.T) {
	c := sim(t, simcluster.Config{Nodes: 2, VBuckets: 16, Version: "7.0.5"})
	fill(t, c.Bucket("default"), 300)
	var copies sync.WaitGroup
	for range 4 {
		copies.Go(func() {
			sink, report, _, err := drain(t, at(c), nil)
			if err != nil || report.Reopened != 0 {
				t.Errorf("%v, %+v", err, report.Snapshot)
			}
			holds(t, sink, contents(c.Bucket("default")))
		})
	}
	copies.Wait()
	names := map[string]bool{}
	for range 1000 {
		name := connName()
		if names[name] || len(name) > 200 || !strings.HasPrefix(name, "cbpump-") {
			t.Fatalf("name %q", name)
		}
		names[name] = true
	}
	// Whoever has the name of one of ours cuts it off: it goes on under another.
	var opened []string
	f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(4)}, map[uint16]uint64{7: 4}, nil)
	f.onOpen = func(name string) { opened = append(opened, name) }
	f.stream = func(n int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		s := accept(req).marker(0, 4)
		if n == 0 {
			return s.items(1, 2).out, errAbrupt
		}
		return s.items(req.Start+1, 4).end(mcbp.StreamEndOK).out, nil
	}
	sink := &pumptest.MemSink{}
	report, err := pump.Run(t.Context(), pump.Config{Source: &sourceOf{one(t, f, nil, 7)}, Sink: sink, Settings: pump.DefaultSettings()})
	if err != nil || report.Done != 4 || len(opened) != 2 || opened[0] == opened[1] {
		t.Errorf("%v, %+v, names %q", err, report.Snapshot, opened)
	}
}
