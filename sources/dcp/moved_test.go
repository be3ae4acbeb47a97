package dcp

import (
	"io"
	"testing"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
)

// TestMovesBetweenQuestions: the vbucket is taken away after the node has said that
// it is active and before it tells its seqno. Its new node is not kept waiting.
func TestMovesBetweenQuestions(t *testing.T) {
	for name, question := range map[string]int{"before the first": 1, "before the second": 2} {
		t.Run(name, func(t *testing.T) {
			second := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(6)}, map[uint16]uint64{7: 6}, whole)
			first := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(6)}, map[uint16]uint64{7: 6}, whole)
			// A wait of that length would not end within the test.
			s := from(t, func(c *Config) { c.Options.MapWait = time.Hour }, map[uint16]*fakeNode{7: first}, 7)
			at := s.src.at.Places.(*fakePlaces)
			at.nodes[second.l.Addr().String()] = second
			asked := 0
			first.onSeqnos = func() {
				if asked++; asked == question {
					delete(first.high, 7)
					first.onAsk = func(int) { first.vbs[7] = cluster.VBInfo{State: mcbp.VBDead} }
				}
			}
			at.onAsk = func(p *fakePlaces, n int) {
				if n > 1 {
					p.active[7] = second.l.Addr().String()
				}
			}
			if got := readOnce(t, s, 4096); got.err != io.EOF || len(got.items) != 6 || got.complete(7).Items != 6 {
				t.Errorf("%v, %+v", got.err, got.items)
			}
			if len(first.seen()) != 0 || len(second.seen()) != 1 {
				t.Errorf("%d streams of the old node, %d of the new one", len(first.seen()), len(second.seen()))
			}
		})
	}
}
