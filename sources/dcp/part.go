package dcp

import (
	"fmt"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// chaseMargin is how far beyond the high seqno a leg ends that chases a vbucket
// which is written to faster than its legs can be proven. Such a leg is closed as
// soon as a snapshot has come whole.
const chaseMargin = 1 << 20

// part is one vbucket of a stream: how far it has come, on which branch of the
// vbucket's history, and what came of it.
type part struct {
	vb uint16

	// The position, as a STREAM_REQ wants it.
	seqno              uint64
	snapStart, snapEnd uint64 // the snapshot that seqno is in
	log                []mcbp.FailoverEntry

	// What came since seqno 0.
	live, gone uint64 // mutations; deletions and expirations
	counted    bool   // that is all of it: nothing was rolled back
	cover      uint64 // up to here no key came twice: it was one snapshot
	orphans    uint64 // items of collections that were dropped meanwhile, left out
	drops      bool   // a collection was dropped: the node's counts may include it still

	// The leg under way.
	end    uint64 // high seqno when it began
	before uint64 // live items that the node counted then
	exact  bool   // before was counted at end, not a little earlier
	legs   int    // that came to their end since the part was last proven
	starts int    // how often it was streamed anew because the counts did not agree

	// The stream under way.
	opaque                 uint32
	streaming, accepted    bool
	chase, closing         bool   // see chaseMargin; we have asked for its end
	requested              uint64 // its end
	markerStart, markerEnd uint64
	sealed                 bool // a snapshot came whole that holds the leg's end
	reason                 uint32
	failed                 error // why it ended before its end

	proven  bool
	touched bool   // has items in the batch
	state   []byte // memory of its mark
	highest uint64 // seqno it ever came to, for Progress
}

func newPart(vb uint16) *part { return &part{vb: vb, counted: true} }

// restart forgets everything that came.
func (p *part) restart() {
	p.seqno, p.snapStart, p.snapEnd, p.log = 0, 0, 0, nil
	p.live, p.gone, p.counted, p.cover, p.orphans, p.drops = 0, 0, true, 0, 0, false
	p.legs = 0
}

// streamReq is the request for what comes behind the position. It never is
// without an end: force-written vbuckets of 6.0 kill their node then, and streams
// without collections may stay open for ever on 7.0.
func (p *part) streamReq() mcbp.StreamReq {
	p.requested = max(p.end, p.seqno)
	if p.chase {
		p.requested += chaseMargin
	}
	r := mcbp.StreamReq{
		VBucket: p.vb, Opaque: p.opaque,
		Start: p.seqno, End: p.requested, SnapStart: p.snapStart, SnapEnd: p.snapEnd,
	}
	if p.seqno > 0 && len(p.log) > 0 {
		r.UUID = p.log[0].UUID
	}
	return r
}

// rollback goes back to where the node's history parts from the one that was
// copied. Of the branches known here, the newest that began at or before that
// point is the one the position is on.
func (p *part) rollback(to uint64) {
	if to >= p.seqno {
		// No way back at all: the node does not know the branch. Everything anew.
		to = 0
	}
	log := p.log
	for len(log) > 0 && log[0].Seqno > to {
		log = log[1:]
	}
	if to == 0 || len(log) == 0 {
		p.restart()
		return
	}
	p.seqno, p.snapStart, p.snapEnd, p.log = to, to, to, log
	p.counted, p.cover = false, 0
	p.highest = min(p.highest, to)
}

// marker begins a snapshot. The position is in it only from its first item on.
func (p *part) marker(start, end uint64) error {
	if end < start || end < p.seqno {
		return fmt.Errorf("a snapshot %d to %d behind seqno %d", start, end, p.seqno)
	}
	switch {
	case p.seqno == 0 && p.markerEnd == 0:
		p.cover = end // the first snapshot
	case end < p.cover:
		p.cover = p.seqno // it goes on in several, which may repeat a key
	}
	p.markerStart, p.markerEnd = start, end
	return nil
}

// follows says whether a seqno can come next. Seqnos only grow: a copy that went on
// from an order of another kind would have holes.
func (p *part) follows(seqno uint64) error {
	if seqno <= p.seqno || seqno > p.markerEnd {
		return fmt.Errorf("seqno %d came behind %d, in a snapshot %d to %d", seqno, p.seqno, p.markerStart, p.markerEnd)
	}
	return nil
}

// move moves the position, once what is there has been passed on: a mark never covers
// an item that could not be read (invariant 2). Behind the last item of a snapshot everything that the
// vbucket held at its end has come. A snapshot that ends just where the stream
// does may have been cut there, and does not count.
func (p *part) move(seqno uint64) {
	p.seqno, p.snapStart, p.snapEnd = seqno, min(p.markerStart, seqno), p.markerEnd
	if seqno == p.markerEnd && seqno != p.requested && seqno >= p.end {
		p.sealed = true
	}
}

// pass moves the position over what the stream does not show.
func (p *part) pass(seqno uint64) error {
	switch {
	case seqno < p.seqno:
		return fmt.Errorf("SEQNO_ADVANCED to %d behind seqno %d", seqno, p.seqno)
	case seqno > p.markerEnd:
		p.markerStart, p.markerEnd = seqno, seqno
	}
	p.move(seqno)
	return nil
}

// ended judges a STREAM_END; nil means that the leg's end was reached.
func (p *part) ended(addr string) error {
	op := fmt.Sprintf("copy vbucket %d from %s", p.vb, addr)
	e := &pump.Error{Code: codeEnded, Op: op, Retry: true}
	switch p.reason {
	case mcbp.StreamEndOK:
		// Nothing visible may be between the last item and the snapshot's end.
		if p.seqno >= p.end || p.markerEnd >= p.end {
			return nil
		}
		e.Code, e.Err = codeIncomplete, fmt.Errorf("the node ended the stream at seqno %d, but said before that the vbucket goes to %d", p.seqno, p.end)
		e.Hint = "Was a collection dropped, or the bucket flushed? Run the same command again."
	case mcbp.StreamEndState:
		e.Code, e.Err = codeNotActive, fmt.Errorf("the vbucket is not active there any more (stream end %d)", p.reason)
		e.Hint = "A rebalance or a failover moves it; it is looked for on its new node."
	case mcbp.StreamEndNoCollections:
		e.Retry = false
		e.Code, e.Err = codeNoCollection, fmt.Errorf("the collection was dropped while it was copied (stream end %d)", p.reason)
		e.Hint = "What had come of it may be at the destination."
	case mcbp.StreamEndClosed:
		if p.closing {
			return nil
		}
		e.Err = fmt.Errorf("somebody closed the stream (stream end %d)", p.reason)
	case mcbp.StreamEndDisconnected:
		e.Err = fmt.Errorf("the node is closing the connection (stream end %d)", p.reason)
	case mcbp.StreamEndSlow:
		e.Err = fmt.Errorf("the node gave the stream up as too slow (stream end %d)", p.reason)
		e.Hint = "The destination does not keep up; -x buffer-size=1m lets fewer items wait."
	case mcbp.StreamEndBackfill:
		e.Err = fmt.Errorf("the node cannot read the vbucket from its disk (stream end %d)", p.reason)
		e.Hint = "Its log says more. A replica may still be whole: fail that node over and copy again."
	case mcbp.StreamEndRollback:
		e.Err = fmt.Errorf("the vbucket was rolled back meanwhile (stream end %d)", p.reason)
	default:
		e.Err = fmt.Errorf("the node ended the stream for the unknown reason %d", p.reason)
	}
	return e
}
