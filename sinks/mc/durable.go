package mc

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// opObserveSeqno asks how far a vbucket is on disk (4.0 and later).
const opObserveSeqno = mcbp.Opcode(0x91)

// persist waits until what the batch counts as done is on the disks of the nodes
// that took it; what does not get there in time is to be retried (invariant 1).
func (l *cbLane) persist(ctx context.Context, b *pump.Batch) error {
	for at, n := range l.nodes {
		var vbs []uint16
		for i := range b.Items {
			vb := b.Items[i].VBucket
			if b.Verdict(i) == pump.Done && l.view.owner[vb] == at && !slices.Contains(vbs, vb) {
				vbs = append(vbs, vb)
			}
		}
		if n == nil || len(vbs) == 0 {
			continue
		}
		err := l.sink.Ask(ctx, l.view.bucket, n.addr, func(c *cluster.Conn) error {
			return awaitDisk(ctx, c, vbs, l.sink.cfg.Options.Timeout)
		})
		if err == nil {
			continue
		}
		if ctx.Err() != nil || !mayRetry(err) {
			return err
		}
		for i := range b.Items {
			if b.Verdict(i) == pump.Done && l.view.owner[b.Items[i].VBucket] == at {
				b.Settle(i, pump.Retry, err)
			}
		}
	}
	return nil
}

// awaitDisk returns when the node has on disk what it holds of the vbuckets now.
func awaitDisk(ctx context.Context, c *cluster.Conn, vbs []uint16, limit time.Duration) error {
	const op = "wait until the items are on disk"
	pause := time.NewTimer(0)
	defer pause.Stop()
	start, delay := time.Now(), 2*time.Millisecond
	for _, vb := range vbs {
		if !c.NodeVersion().AtLeast(5, 0) {
			return c.WaitFlushed(ctx, limit)
		}
		s, err := c.VBucketSeqno(ctx, vb)
		if err != nil {
			return pump.Retryable(err)
		}
		for s.Persisted < s.High {
			opaque := c.NextOpaque()
			request := mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: opObserveSeqno, VBucket: vb, Opaque: opaque},
				nil, nil, binary.BigEndian.AppendUint64(nil, s.UUID))
			f, err := c.RoundTrip(ctx, request, opaque)
			if err != nil {
				return err
			}
			switch f.Status() {
			case mcbp.StatusOK:
			case mcbp.StatusUnknown, mcbp.StatusNotSupported:
				return c.WaitFlushed(ctx, limit)
			default:
				return pump.Retryable(c.Refused(op, &f))
			}
			on, err := parseObserved(f.Value(), vb, s.UUID)
			if err != nil {
				return pump.Retryable(c.Explain(ctx, op, err))
			}
			if on >= s.High {
				break
			}
			if time.Since(start) >= limit {
				return &pump.Error{Code: "not-persistent", Op: fmt.Sprintf("%s on %s node %s", op, role, c.Addr()), Retry: true,
					Err:  fmt.Errorf("after %v vbucket %d is on disk up to seqno %d of %d", limit, vb, on, s.High),
					Hint: "a bucket without a disk (ephemeral) never gets there: leave out durable=true"}
			}
			pause.Reset(delay)
			select {
			case <-pause.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			delay = min(2*delay, 200*time.Millisecond)
		}
	}
	return nil
}

// parseObserved decodes the answer to OBSERVE_SEQNO: the seqno up to which the
// branch uuid of a vbucket is on disk. Format 1 tells that the branch has ended.
func parseObserved(p []byte, vb uint16, uuid uint64) (persisted uint64, err error) {
	switch {
	case len(p) < 27:
		return 0, fmt.Errorf("%w: OBSERVE_SEQNO answered with %d bytes", mcbp.ErrMalformed, len(p))
	case p[0] != 0 || binary.BigEndian.Uint16(p[1:]) != vb || binary.BigEndian.Uint64(p[3:]) != uuid:
		return 0, fmt.Errorf("vbucket %d was failed over in the meantime", vb)
	}
	return binary.BigEndian.Uint64(p[11:]), nil
}
