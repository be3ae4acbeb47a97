package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// codeHole names a vbucket that a rebalance has created anew, empty.
const codeHole = "hole-permanent"

// hollow reports that vb is active and empty at the destination, while the source
// holds items.
func (r *run) hollow(vb uint16, src, dst *survey) bool {
	to, ok := r.dst.bucket.Map.Active(vb)
	if !ok {
		return false
	}
	from, ok := r.src.bucket.Map.Active(vb)
	if !ok {
		return false
	}
	d, ok := dst.at(to, vb)
	if !ok || d.State != mcbp.VBActive || d.Items > 0 {
		return false
	}
	s, ok := src.at(from, vb)
	return ok && s.State == mcbp.VBActive && s.Items > 0
}

// findHoles looks for vbuckets that are not missing any more and yet are lost: a
// rebalance after the failover creates them anew, empty, and no recovery API
// fills an active vbucket. Only counts can tell. A source that is being written
// to is ahead of its copy: what is only late is given time to arrive.
func (r *run) findHoles(ctx context.Context, p *Plan, src, dst *survey) error {
	suspects := make([]uint16, 0, p.VBuckets)
	for vb := range p.VBuckets {
		if r.opt.VBuckets == nil || slices.Contains(r.opt.VBuckets, uint16(vb)) {
			suspects = append(suspects, uint16(vb))
		}
	}
	first := true
	_, err := r.again.poll(ctx, r.opt.Timing.VerifyFor, func() (bool, error) {
		if !first {
			src, dst = r.surveys(ctx)
		}
		first = false
		suspects = slices.DeleteFunc(suspects, func(vb uint16) bool { return !r.hollow(vb, src, dst) })
		return len(suspects) == 0 || r.stopped(), nil
	})
	if err != nil || len(suspects) == 0 {
		return err
	}
	p.Holes = suspects
	e := holeError(suspects)
	r.warn(e.Code, e.Error(), e.Hint)
	return nil
}

func holeError(vbs []uint16) *pump.Error {
	text := pump.FormatVBuckets(vbs)
	return &pump.Error{Code: codeHole, Op: "vbucket " + text,
		Err: errors.New("active at the destination and empty, while the source holds items: a rebalance after the failover creates missing vbuckets anew"),
		Hint: fmt.Sprintf("No recovery can fill vbucket %s any more. Copy what the source holds, which keeps what is newer at the destination: "+
			"cbtransfer --vbucket-list %s with the same source and destination.", text, text)}
}
