package tap

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/internal/places"
)

// recount asks the node for its counts after the dump. Before the dump they
// still hold the expired items that the dump itself reaps.
func (d *dump) recount(ctx context.Context) (map[uint16]cluster.VBInfo, error) {
	after, err := d.stats.VBucketDetails(ctx)
	if err == nil || ctx.Err() != nil || !pump.IsRetryable(err) {
		return after, err
	}
	// The connection lay idle during the whole dump; a new one may do.
	_ = d.stats.Close()
	again, derr := cluster.DialKV(ctx, d.kv)
	if derr != nil {
		return nil, places.Gone(derr, d.addr)
	}
	d.stats = again
	return again.VBucketDetails(ctx)
}

// judge decides whether the dump of v is proven complete (invariant 4), and says
// why not if it is not.
func (d *dump) judge(v *vbDump, after map[uint16]cluster.VBInfo, byCount bool) (proven bool, why string) {
	now := after[v.vb]
	if now.State != mcbp.VBActive {
		return false, "is " + now.State.String() + " there by now"
	}
	// Between the count before less what the dump reaped and the count after:
	// without writes meanwhile both are the same.
	was := v.before - min(v.before, v.reaped)
	lo, hi := min(was, now.Items), max(was, now.Items)
	silent := !v.opened && v.live+v.gone == 0
	counts := fmt.Sprintf("%d live items came", v.live)
	if silent {
		counts = "nothing came"
	}
	counts += fmt.Sprintf(", the node counts %d", now.Items)
	if v.before != now.Items {
		counts += fmt.Sprintf(" (%d before the dump)", v.before)
	}
	fits := lo <= v.live && v.live <= hi
	switch {
	case v.closed && fits:
		return true, ""
	case v.closed:
		return false, counts
	case silent:
		// A vbucket that is empty, or holds only old deletions, is not mentioned.
		if d.end.clean() && v.before == 0 && now.Items == 0 {
			return true, ""
		}
		return false, counts
	case fits && byCount && d.end == endClosed && d.asked && d.acked:
		return true, ""
	}
	return false, counts + ", the end marker did not come"
}

// unproven is the error of vbuckets that have to be dumped again. It names the
// first few with their counts, and holds the reason of each.
func (d *dump) unproven(left []uint16, whys map[uint16]string, byCount bool) error {
	const most = 4
	e := &pump.Error{Code: codeIncomplete, Op: d.op, Retry: true, VBuckets: make(map[uint16]error, len(left)),
		Hint: "What was read is at the destination, but this is not known to be all. If the bucket is being written to, stop that; then run the same command again."}
	var shown []string
	for i, vb := range left {
		if i < most {
			shown = append(shown, fmt.Sprintf("vbucket %d: %s", vb, whys[vb]))
		}
	}
	list := strings.Join(shown, "; ")
	if n := len(left) - most; n > 0 {
		list += fmt.Sprintf("; and %d more", n)
	}
	switch d.end {
	case endCut:
		e.Code, e.Err = codeCut, fmt.Errorf("%w; %s", d.cause, list)
	case endBroken:
		e.Code, e.Err = codeCut, fmt.Errorf("the connection broke (%w); %s", d.cause, list)
	case endIdle:
		e.Code, e.Err = codeIdle, fmt.Errorf("the node fell silent for %v in the middle of the dump; %s", d.idle, list)
		e.Hint = "Is the node overloaded or its disk stuck? The option idle-timeout waits longer."
	case endQuiet:
		e.Err = fmt.Errorf("the node has nothing to send, but %s", list)
	default:
		e.Err = fmt.Errorf("the node closed the connection, but the dump is not proven to be complete: %s", list)
	}
	if e.Code == codeIncomplete && !byCount && strings.Contains(list, "end marker") {
		e.Hint += " Where only the end marker is missing and the counts agree, end-proof=count accepts that."
	}
	for _, vb := range left {
		e.VBuckets[vb] = &pump.Error{Code: e.Code, Op: d.ended(), Err: errors.New(whys[vb]), Hint: e.Hint}
	}
	return e
}

// ended says how the connection ended, for the reason of one vbucket.
func (d *dump) ended() string {
	switch d.end {
	case endCut:
		return d.cause.Error()
	case endBroken:
		return fmt.Sprintf("the connection broke (%v)", d.cause)
	case endIdle:
		return fmt.Sprintf("the node fell silent for %v", d.idle)
	case endQuiet:
		return "the node has nothing to send"
	}
	return "the node closed the connection"
}

// refused is the error of a connection that was closed before anything came.
func (d *dump) refused() error {
	return &pump.Error{Code: codeRefused, Op: d.op, Retry: true,
		Err:  errors.New("the node closed the connection right after TAP_CONNECT, without a word"),
		Hint: "Does the bucket exist on that node, with these credentials, and does the server know TAP (up to 4.6)?"}
}
