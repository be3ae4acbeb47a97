package mc

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// A vbucket of a cluster begins a new branch of its history, with a new uuid, when a
// replica takes over at a failover and when a node comes back that was not shut down
// in order. What its former active copy had confirmed just before may be missing
// then, and nobody says so. A rebalance and an orderly restart keep the uuid. So the
// uuids are compared at the end with those of the beginning (invariant 1).

// histories returns the uuid of every vbucket at its owner, nothing where the
// servers do not say (before 3.0).
func (s *CBSink) histories(ctx context.Context, v *view) (map[uint16]uint64, error) {
	mine := make([][]uint16, len(v.addrs))
	for vb, at := range v.owner {
		if at >= 0 {
			mine[at] = append(mine[at], uint16(vb))
		}
	}
	all := make(map[uint16]uint64, len(v.owner))
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	for at, vbs := range mine {
		if len(vbs) == 0 {
			continue
		}
		g.Go(func() error {
			return s.Ask(ctx, v.bucket, v.addrs[at], func(c *cluster.Conn) error {
				uuids, err := c.VBucketUUIDs(ctx, vbs)
				mu.Lock()
				defer mu.Unlock()
				for vb, uuid := range uuids {
					all[vb] = uuid
				}
				return err
			})
		})
	}
	return all, g.Wait()
}

// remember notes the histories before anything is written. A cluster that does not
// tell is written to all the same.
func (s *CBSink) remember(ctx context.Context, v *view) {
	if !s.attests {
		return
	}
	before, err := s.histories(ctx, v)
	if err != nil {
		s.log.Info("the destination does not tell the history of its vbuckets: a failover in the meantime would not be noticed", "reason", err)
		return
	}
	s.before = before
}

// Attest implements pump.Attester.
func (s *CBSink) Attest(ctx context.Context) error {
	if len(s.before) == 0 {
		return nil
	}
	v, err := s.refresh(ctx, s.view.Load())
	var now map[uint16]uint64
	if err == nil {
		now, err = s.histories(ctx, v)
	}
	if err != nil {
		return &pump.Error{Class: pump.ClassOf(err), Code: "destination-unknown", Op: s.op("make sure that it still holds what it confirmed"), Err: err,
			Hint: "Everything was confirmed. When the destination is well again, compare: cbtransfer compare SOURCE DESTINATION."}
	}
	var other []uint16
	for vb, uuid := range s.before {
		if now[vb] != uuid {
			other = append(other, vb)
		}
	}
	if len(other) == 0 {
		return nil
	}
	slices.Sort(other)
	return &pump.Error{Code: "destination-history", Op: s.op("make sure that it still holds what it confirmed"),
		Err: fmt.Errorf("vbucket %s began a new history meanwhile (a failover, or a node that crashed and came back): what had been confirmed just before may be gone",
			list(other)),
		Hint: "Find out with cbtransfer compare SOURCE DESTINATION, or run the command again from the start."}
}

// Life implements pump.Volatile: it stands for the histories of all vbuckets.
func (s *CBSink) Life(ctx context.Context) (string, error) {
	if !s.attests {
		return "", nil
	}
	v, err := s.current(ctx)
	if err != nil {
		return "", err
	}
	all, err := s.histories(ctx, v)
	if err != nil || len(all) == 0 {
		return "", err
	}
	sum := sha256.New()
	var buf [10]byte
	for vb := range v.owner {
		binary.BigEndian.PutUint16(buf[:], uint16(vb))
		binary.BigEndian.PutUint64(buf[2:], all[uint16(vb)])
		sum.Write(buf[:])
	}
	return fmt.Sprintf("that of the vbucket uuids %x", sum.Sum(nil)[:8]), nil
}
