package dcp

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

// TestStreamEnds has nodes end streams in mid-copy for every reason there is: none of
// them is taken for the end, what came does not come again, and all comes in the end.
func TestStreamEnds(t *testing.T) {
	for reason, code := range map[uint32]string{
		mcbp.StreamEndOK: "", mcbp.StreamEndClosed: "", mcbp.StreamEndState: "", mcbp.StreamEndDisconnected: "",
		mcbp.StreamEndSlow: "", mcbp.StreamEndBackfill: "", mcbp.StreamEndRollback: "", 77: "",
		mcbp.StreamEndNoCollections: codeNoCollection,
	} {
		t.Run(fmt.Sprint(reason), func(t *testing.T) {
			c := sim(t, simcluster.Config{Nodes: 1, VBuckets: 4, Version: "7.0.5"})
			b := c.Bucket("default")
			fill(t, b, 600)
			cfg := at(c)
			cfg.Options.BufferSize = 2 << 10
			var mu sync.Mutex
			ended := 0
			sink := &pumptest.MemSink{Before: func(context.Context, int, *pump.Batch) error {
				mu.Lock()
				defer mu.Unlock()
				for vb := range uint16(4) {
					for _, n := range c.Nodes() {
						if ended < 4 {
							ended += n.EndStreams("default", vb, reason)
						}
					}
				}
				return nil
			}}
			set := pump.DefaultSettings()
			set.RetryMax, set.StreamAttempts = 20*time.Millisecond, 20
			report, err := pump.Run(context.Background(), pump.Config{Source: mustNew(t, cfg), Sink: sink, Settings: set, Scribble: true})
			if ended == 0 {
				t.Fatal("no stream was ended")
			}
			if code != "" {
				want(t, err, code, "dropped")
				return
			}
			if err != nil || report.Reopened == 0 {
				t.Fatalf("%v, %+v", err, report.Snapshot)
			}
			holds(t, sink, contents(b))
			if report.Read > 600+200 {
				t.Errorf("%d items were read for 600", report.Read)
			}
		})
	}
}
