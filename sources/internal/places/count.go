package places

import (
	"context"
	"fmt"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
)

// LiveCounts asks the nodes how many live items each wanted vbucket has (nil: all).
func (f *Finder) LiveCounts(ctx context.Context, wanted []uint16) (map[uint16]uint64, error) {
	var wrong error
	for range 2 { // a map that was just refreshed may be right
		l, err := f.Locate(ctx, wrong != nil)
		if err != nil {
			return nil, err
		}
		vbs, err := l.Pick(wanted)
		if err != nil {
			return nil, err
		}
		wrong = nil
		counts := make(map[uint16]uint64, len(vbs))
		err = f.Counts(ctx, l, vbs, func(vb uint16, addr string, info cluster.VBInfo) {
			if info.State != mcbp.VBActive && wrong == nil {
				wrong = l.error("not-active", "count the items of "+addr, "If a rebalance or failover is running, wait for its end.",
					fmt.Errorf("vbucket %d is %s there", vb, info.State))
			}
			counts[vb] = info.Items
		})
		if err != nil || wrong == nil {
			return counts, err
		}
	}
	return nil, wrong
}
