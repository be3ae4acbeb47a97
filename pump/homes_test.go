package pump

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestHomes: while a batch with items of a vbucket is under way the vbucket keeps its
// lane (invariant 5), and for ever once it was fixed; one that is free goes where
// there is least to do.
func TestHomes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lanes := make([]*laneRun, rapid.IntRange(2, 5).Draw(rt, "lanes"))
		for i := range lanes {
			lanes[i] = &laneRun{}
		}
		h := newHomes(lanes, fewVBuckets)
		const vbs = 40
		var open, idle []*parcel
		at := map[*parcel]map[uint16]int{} // where each open batch has its items
		fixed := map[uint16]int{}
		lane := func(vb uint16) (int, bool) {
			for _, has := range at {
				if l, ok := has[vb]; ok {
					return l, true
				}
			}
			l, ok := fixed[vb]
			return l, ok
		}
		rt.Repeat(map[string]func(*rapid.T){
			"read": func(rt *rapid.T) {
				p := &parcel{}
				if n := len(idle) - 1; n >= 0 { // as the budget gives them out again
					p, idle = idle[n], idle[:n]
				}
				p.lane = -1
				open, at[p] = append(open, p), map[uint16]int{}
				for _, l := range lanes {
					l.load.Store(rapid.Int64Range(0, 3).Draw(rt, "load"))
				}
				few := rapid.Bool().Draw(rt, "few")
				n := rapid.IntRange(1, 60).Draw(rt, "items")
				for range n {
					vb := uint16(rapid.IntRange(0, vbs-1).Draw(rt, "vb"))
					if few {
						vb %= 4
					}
					want, bound := lane(vb)
					free := h.at[vb].Load()&homeFixed == 0
					got := h.home(p, vb)
					if got < 0 || got >= len(lanes) {
						rt.Fatalf("vbucket %d has lane %d of %d", vb, got, len(lanes))
					}
					if bound && got != want {
						rt.Fatalf("vbucket %d went to lane %d while it is lane %d's", vb, got, want)
					}
					if !bound && few && free {
						for i, l := range lanes {
							if l.load.Load() < lanes[got].load.Load() {
								rt.Fatalf("lane %d has less to do than %d", i, got)
							}
						}
					}
					at[p][vb] = got
				}
			},
			"settle": func(rt *rapid.T) {
				if len(open) == 0 {
					return
				}
				i := rapid.IntRange(0, len(open)-1).Draw(rt, "which")
				p := open[i]
				open = append(open[:i], open[i+1:]...)
				h.leave(p)
				delete(at, p)
				idle = append(idle, p)
			},
			"reject": func(rt *rapid.T) {
				if len(open) == 0 {
					return
				}
				has := at[open[rapid.IntRange(0, len(open)-1).Draw(rt, "of")]]
				vb := rapid.SampledFrom(slices.Sorted(maps.Keys(has))).Draw(rt, "vb")
				h.fix(vb)
				fixed[vb] = has[vb]
			},
		})
		for _, p := range open {
			h.leave(p)
		}
		for vb := range h.at {
			if n := h.at[vb].Load(); n&homeFixed == 0 && n&homeCount != 0 {
				rt.Fatalf("%d batches of vbucket %d are under way after all of them were settled", n&homeCount, vb)
			}
		}
	})
}
