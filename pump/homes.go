package pump

import (
	"slices"
	"sync/atomic"
)

// homes says which lane each vbucket has, where the sink leaves that to the engine. A
// vbucket keeps its lane as long as a batch with items of it is under way, so that it
// never has two writes in flight (invariant 5). After that it may get another one, the
// one that has least to do: by fixed lanes alone streams that go through their vbuckets
// side by side would meet at one lane again and again, with the memory for what is in
// flight all in its queue, while others have nothing to write.
//
// Batches with items of many vbuckets have each lane busy by themselves. Their vbuckets
// have fixed lanes, so that nothing needs to be counted for each item. So have all
// vbuckets at a Committer: what it confirms it need not have put in its place yet, and a
// lane of it may keep that back.
type homes struct {
	lanes []*laneRun
	few   int             // as many vbuckets of a batch may get the lane that has least to do
	at    []atomic.Uint32 // by vbucket: lane, fixed, batches that are under way
}

const (
	homeBatch = 1 // one batch
	homeCount = 1<<15 - 1
	homeFixed = 1 << 15 // the vbucket keeps its lane for the rest of the run
	homeLane  = 16      // shift of the lane
)

// fewVBuckets is homes.few where lanes may change.
const fewVBuckets = 16

func newHomes(lanes []*laneRun, few int) homes {
	return homes{lanes: lanes, few: few, at: make([]atomic.Uint32, int(NoVBucket)+1)}
}

// home returns the lane of a vbucket, which p has items of from now on, until leave.
func (h *homes) home(p *parcel, vb uint16) int {
	at := &h.at[vb]
	for {
		was := at.Load()
		if was&homeFixed != 0 || was&homeCount != 0 && slices.Contains(p.vbuckets, vb) {
			return int(was >> homeLane)
		}
		is := was + homeBatch
		switch {
		case len(p.vbuckets) >= h.few || was&homeCount == homeCount:
			if is = was | homeFixed; was&homeCount == 0 {
				is = uint32(Spread(int(vb), len(h.lanes)))<<homeLane | homeFixed
			}
		case was&homeCount == 0:
			is = uint32(h.idlest(p))<<homeLane | homeBatch
		}
		if at.CompareAndSwap(was, is) {
			if is&homeFixed == 0 {
				p.vbuckets = append(p.vbuckets, vb)
			}
			return int(is >> homeLane)
		}
	}
}

// idlest is the lane that has least to do, the same for a whole batch, so that
// it need not be divided.
func (h *homes) idlest(p *parcel) int {
	if p.lane < 0 {
		p.lane = 0
		least := h.lanes[0].load.Load()
		for i, l := range h.lanes[1:] {
			if n := l.load.Load(); n < least {
				p.lane, least = i+1, n
			}
		}
	}
	return p.lane
}

// leave says that nothing of p is under way any more.
func (h *homes) leave(p *parcel) {
	for _, vb := range p.vbuckets {
		h.at[vb].Add(^uint32(homeBatch - 1))
	}
	p.vbuckets = p.vbuckets[:0]
}

// fix has a vbucket keep its lane for the rest of the run: what became of an item of
// it at the destination is not known for certain, but that it came before whatever
// the lane writes from now on. A batch with that item must be under way.
func (h *homes) fix(vb uint16) {
	if h.at != nil && vb != NoVBucket {
		h.at[vb].Or(homeFixed)
	}
}
