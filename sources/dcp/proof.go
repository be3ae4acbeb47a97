package dcp

import (
	"fmt"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
)

// maxLegs is how many legs a vbucket gets that is written to all the time before
// it is chased (chaseMargin), and maxChases how often that is tried.
const (
	maxLegs   = 4
	maxChases = 3
)

// maxStarts is how often a vbucket is streamed anew because counts do not agree.
const maxStarts = 2

// ruling is what is to become of a part whose leg has reached its end.
type ruling uint8

const (
	proven    ruling = iota
	goOn             // it has changed since: another leg
	startNew         // something is missing, and nothing explains it
	elsewhere        // it is not active there any more
)

// whole reports that all came in one snapshot, in which no key is there twice.
func (p *part) whole() bool { return p.counted && p.cover >= p.end }

// atOnce reports a leg that is proven by what the node counted at its beginning:
// as many keys came as there were at that very seqno. A key that had been written
// again before it was read lies behind the end, and would be missing.
func (p *part) atOnce() bool {
	return p.exact && p.whole() && p.seqno <= p.end && p.live == p.before && p.orphans == 0
}

// judge decides whether p is proven complete (invariant 4) when its leg has
// reached its end. now and high are what the node says after it; comparable tells
// whether the node counts the same as we do. items is the number of live items.
func (p *part) judge(now cluster.VBInfo, high uint64, comparable bool) (r ruling, items uint64, why string) {
	if now.State != mcbp.VBActive {
		return elsewhere, 0, "is " + now.State.String() + " there by now"
	}
	still := high == p.end
	counts := fmt.Sprintf("%d live items came, the node counts %d", p.live, now.Items)
	if p.before != now.Items {
		counts += fmt.Sprintf(" (%d before)", p.before)
	}
	switch {
	case still && (!comparable || p.drops):
		return proven, p.live, ""
	case still && p.whole() && p.live != now.Items, still && p.counted && p.live < now.Items:
		return startNew, 0, counts
	case still:
		// Some keys may have come more than once, or before a rollback: the node's
		// count is that of the state that was reached.
		return proven, now.Items, ""
	case p.sealed && (p.counted && p.cover >= p.seqno || !comparable || p.drops):
		return proven, p.live, ""
	case p.sealed:
		return proven, now.Items, "" // as near as it can be told while it changes
	case p.legs < maxLegs+maxChases:
		return goOn, 0, ""
	}
	return startNew, 0, counts + ", and it is written to all the time"
}
