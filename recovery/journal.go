package recovery

import (
	"context"
	"fmt"
	"slices"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/checkpoint"
	"github.com/cbpump/cbpump/pump/compare"
)

// journal keeps in a folder which vbuckets were transferred whole, and to whom, so
// that a run that was killed before it could verify and activate them need not
// transfer them again. Nothing is believed because it says so: what it names is
// verified anew first (invariant 6).
//
// It implements pump.Checkpoint for the transfer, which it lets begin at the start
// of every vbucket that it is asked to transfer.
type journal struct {
	r      *run
	folder *checkpoint.Folder
	before map[uint16]pump.Mark // of the earlier runs
	states map[uint16][]byte    // of the transfer under way; outcomes change meanwhile
}

// openJournal opens the journal once both buckets are known. A journal of an
// earlier run of the same recovery is gone on with, whether that was asked for or
// not: it can only save work.
func (r *run) openJournal() error {
	if r.opt.Checkpoint == "" {
		return nil
	}
	belongs := []checkpoint.Field{bucketField("the source", r.src), bucketField("the destination", r.dst)}
	folder, err := checkpoint.Open(r.opt.Checkpoint, belongs, checkpoint.There(r.opt.Checkpoint))
	if err != nil {
		return err
	}
	r.journal = &journal{r: r, folder: folder, before: make(map[uint16]pump.Mark)}
	from, _, err := folder.Start([]string{""})
	for _, m := range from[""] {
		r.journal.before[m.VBucket] = m
	}
	return err
}

func bucketField(name string, s *side) checkpoint.Field {
	id := s.bucket.Identity(s.client.URL())
	f := checkpoint.Field{Name: name, Value: "bucket uuid " + id.UUID, Shown: id.Name}
	if id.UUID == "" {
		f.Value = fmt.Sprintf("bucket %q at %v", id.Bucket, id.KV)
	}
	return f
}

// closeJournal says in it how the run ended. err is that end.
func (r *run) closeJournal(ctx context.Context, err error) error {
	if r.journal == nil {
		return err
	}
	defer r.journal.folder.Close() // the lock; what was saved is durable
	if err != nil {
		return err
	}
	return r.journal.folder.Save(context.WithoutCancel(ctx), nil, pump.Counts{}, true)
}

// Start implements pump.Checkpoint: what the transfer is asked for begins anew.
func (j *journal) Start([]string) (map[string][]pump.Mark, pump.Counts, error) {
	return nil, pump.Counts{}, nil
}

// Save implements pump.Checkpoint. It keeps the vbuckets that are complete and of
// which no item was refused.
func (j *journal) Save(ctx context.Context, reached map[string][]pump.Mark, counts pump.Counts, _ bool) error {
	var whole []pump.Mark
	for _, marks := range reached {
		for _, m := range marks {
			if m.Complete && m.VBucket != pump.NoVBucket && !j.r.tally.wasRefused(m.VBucket) {
				whole = append(whole, pump.Mark{VBucket: m.VBucket, Complete: true, Items: m.Items, State: j.states[m.VBucket]})
			}
		}
	}
	return j.folder.Save(ctx, map[string][]pump.Mark{"": whole}, counts, false)
}

// state says where a vbucket is, and in which recovery it became a replica there:
// in another one it is another vbucket.
func (r *run) journalState(vb uint16) []byte {
	id := ""
	if r.committer != nil {
		id = r.committer.RecoveryID()
	}
	return fmt.Appendf(nil, "%s\n%s", r.out[vb].Destination, id)
}

// keep returns the journal for a transfer of r.todo, nil if there is none.
func (r *run) keep() pump.Checkpoint {
	if r.journal == nil {
		return nil
	}
	r.journal.states = make(map[uint16][]byte)
	for _, vb := range r.todo {
		r.journal.states[vb] = r.journalState(vb)
	}
	return r.journal
}

// recall takes out of r.todo what an earlier run has transferred and what is still
// at its owner just as the source has it.
func (r *run) recall(ctx context.Context) error {
	// The source may have been written to since then: counts alone would not tell.
	if r.journal == nil || len(r.journal.before) == 0 || r.opt.Verify == compare.Count && r.opt.Verifier == nil {
		return nil
	}
	src, dst := r.src.survey(ctx), r.dst.survey(ctx)
	var open, same []uint16
	for _, vb := range r.todo {
		m, known := r.journal.before[vb]
		if !known || string(m.State) != string(r.journalState(vb)) || r.compare(vb, src, dst) != nil {
			open = append(open, vb)
			continue
		}
		same = append(same, vb)
	}
	bad := r.examine(ctx, same, true)
	for _, vb := range same {
		o, err := r.out[vb], bad[vb]
		if err == nil {
			err = r.inspect(ctx, vb)
		}
		if ctx.Err() != nil {
			return r.interrupted()
		}
		if err != nil {
			r.opt.Log.Info("what an earlier run transferred is not like the source any more and is transferred again", "vbucket", vb, "reason", err)
			open = append(open, vb)
			continue
		}
		o.proven = true
		r.step(PhaseTransfer, vb, StepTransferred)
		r.verified = append(r.verified, vb)
		r.step(PhaseVerify, vb, StepVerified)
	}
	if n := len(r.todo) - len(open); n > 0 {
		r.warn("recalled", fmt.Sprintf("%s came whole in an earlier run, still like the source: not transferred again", count(n, "vbucket")), "")
	}
	slices.Sort(open)
	r.todo = open
	return nil
}
