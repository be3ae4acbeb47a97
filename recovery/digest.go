package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/compare"
	sourcedcp "github.com/cbpump/cbpump/sources/dcp"
)

// maxNamedKeys is how many keys of a vbucket that differs are named.
const maxNamedKeys = 3

// VerifyMemory is how many bytes the comparison of vbuckets may take beside
// Settings.Memory.
const VerifyMemory = 32 << 20

// examine compares vbuckets with the source, as closely as Options.Verify says, and
// returns what is wrong with each that differs (invariant 6). All are read at the
// same time, over the same few connections: the source as for a transfer, the
// owners' copies over DCP, which streams replicas too. Owners that cannot be read
// so are passed by their counts alone, with a warning.
//
// strict is for vbuckets that were not transferred just now: nothing is excused
// then, and what cannot be read is left to the Verifier, if there is one, or is not
// passed.
func (r *run) examine(ctx context.Context, vbs []uint16, strict bool) map[uint16]error {
	bad := make(map[uint16]error)
	if r.opt.Verify == compare.Count || len(vbs) == 0 {
		return bad
	}
	readable := r.readable(vbs, strict, bad)
	if len(readable) == 0 {
		return bad
	}
	differ := readable
	if r.opt.Verify == compare.Digest {
		report, err := compare.Run(ctx, r.examination(readable, compare.Digest))
		if err != nil {
			r.unread(readable, err, bad)
			return bad
		}
		if differ = report.Differing(); len(differ) == 0 {
			return bad
		}
		r.opt.Log.Info("digests differ; the keys are compared", "vbuckets", pump.FormatVBuckets(differ))
	}
	// Key by key it is seen which differences count: digests know no exceptions.
	found := make(map[uint16]*finding)
	cfg := r.examination(differ, compare.Full)
	cfg.Excuse = func(d *compare.Difference) bool { return !strict && r.changedSince(d) }
	cfg.OnDifference = func(d *compare.Difference) error {
		f := found[d.VBucket]
		if f == nil {
			f = &finding{}
			found[d.VBucket] = f
		}
		f.note(d)
		return nil
	}
	report, err := compare.Run(ctx, cfg)
	if err != nil {
		r.unread(differ, err, bad)
		return bad
	}
	for i := range report.VBuckets {
		v := &report.VBuckets[i]
		f := found[v.VBucket]
		if f == nil || !strict && r.onlyNew(v) {
			continue
		}
		bad[v.VBucket] = r.unlike(v, f)
	}
	for vb, f := range found { // one that no side is known to have items of
		if bad[vb] == nil && !slices.ContainsFunc(report.VBuckets, func(v compare.VBucket) bool { return v.VBucket == vb }) {
			bad[vb] = r.unlike(&compare.VBucket{VBucket: vb}, f)
		}
	}
	if report.Changed > 0 {
		r.warn("changed-since", fmt.Sprintf("%d documents have changed at the source since they were transferred; the destination has them as they were then", report.Changed),
			"Replication from the source, if it is set up, brings the changes.")
	}
	return bad
}

// finding is what was found of a vbucket.
type finding struct {
	n    int
	keys []string // of the first differences
}

func (f *finding) note(d *compare.Difference) {
	if f.n++; f.n > maxNamedKeys {
		return
	}
	text := fmt.Sprintf("%s %s", d.Kind, pump.UserData(d.Key))
	if d.Fields != 0 {
		text += fmt.Sprintf(" (%s)", d.Fields)
	}
	f.keys = append(f.keys, text)
}

// examination is the comparison of some vbuckets.
func (r *run) examination(vbs []uint16, mode compare.Mode) compare.Config {
	list := func(some []uint16) []uint16 {
		if some == nil {
			return vbs
		}
		return some
	}
	open := func(end Endpoint, open func(context.Context, pump.Env) (pump.Source, error)) compare.Side {
		return compare.Side{Open: func(ctx context.Context, some []uint16) (pump.Source, error) {
			env := r.env(end, list(some))
			env.Threads = examineStreams
			source, err := open(ctx, env)
			if err != nil {
				return nil, err
			}
			return unchecked{source, r.meter}, nil
		}}
	}
	return compare.Config{
		Source: open(r.opt.Source, func(ctx context.Context, env pump.Env) (pump.Source, error) {
			return r.plan.Engine.openSource(ctx, r, env)
		}),
		Sink: open(r.opt.Destination, r.openCopies),
		Mode: mode, Settings: r.opt.Settings, Limits: r.opt.Limits, Memory: VerifyMemory,
		// Deletions are pushed as they are, so both sides tell the same of them.
		Tombstones: r.plan.Engine.Source == TransferDCP && r.plan.Engine.Sink == TransferDCP,
		Log:        r.opt.Log.Named("verify"),
	}
}

// examineStreams is over how many streams each side is read: each has connections
// of its own to the nodes, whose logins take longer than a few documents.
const examineStreams = 2

// unchecked is a source that is not asked whether it can be used: the run has just
// used both ends. Reading it counts as moving items.
type unchecked struct {
	pump.Source
	meter *meter
}

func (unchecked) Check(context.Context) error { return nil }
func (u unchecked) Unwrap() any               { return u.Source }

func (u unchecked) Streams(ctx context.Context) ([]pump.Stream, error) {
	return u.meter.streams(u.Source.Streams(ctx))
}

// openCopies opens the owners' copies of vbuckets for reading.
func (r *run) openCopies(ctx context.Context, env pump.Env) (pump.Source, error) {
	d, o := r.opt.Destination, sourcedcp.DefaultOptions()
	s := r.opt.SourceOptions
	o.IdleTimeout, o.BufferSize, o.OpenVBuckets, o.MapWait = s.IdleTimeout, s.BufferSize, s.OpenVBuckets, s.MapWait
	return sourcedcp.New(ctx, sourcedcp.Config{
		URL: d.URL, Env: env, TLS: d.TLS, Network: d.Network, Options: o, Owners: r.destinations(env.VBuckets),
	})
}

// readable lists the vbuckets whose copies can be read at their owners. It warns of
// the others, or, if strict, names them in bad.
func (r *run) readable(vbs []uint16, strict bool, bad map[uint16]error) (good []uint16) {
	whys := make(map[string][]uint16)
	for _, vb := range vbs {
		if r.neverFilled(vb) {
			continue // the counts, 0 on both sides, say it all
		}
		why := r.unreadable(vb)
		if why == "" {
			good = append(good, vb)
			continue
		}
		whys[why] = append(whys[why], vb)
		if strict && r.opt.Verifier == nil {
			bad[vb] = &pump.Error{Code: "unreadable", Op: fmt.Sprintf("verify vbucket %d", vb), Err: errors.New(why)}
		}
	}
	for _, why := range slices.Sorted(slices.Values(keys(whys))) {
		if !strict && !r.told[why] {
			if r.told == nil {
				r.told = make(map[string]bool)
			}
			r.told[why] = true
			r.warn("verified-by-count", fmt.Sprintf("only the counts of vbuckets can be compared before they are made active: %s", why),
				"cbtransfer compare can compare source and destination key by key once they are.")
		}
	}
	return good
}

// versionAt is the version of a vbucket's owner.
func (r *run) versionAt(vb uint16) cluster.Version {
	for _, n := range r.dst.bucket.Nodes {
		if sameAddr(n.KV, r.out[vb].Destination) {
			return n.Version
		}
	}
	return r.dst.bucket.MinVersion()
}

// noSnapshots reports servers that do not stream a replica which never got a
// snapshot (0x86): one that is empty, or was filled by *_WITH_META.
func noSnapshots(v cluster.Version) bool { return v.AtLeast(5, 0) && !v.AtLeast(6, 5) }

// neverFilled reports an empty vbucket whose owner would not stream it.
func (r *run) neverFilled(vb uint16) bool {
	o := r.out[vb]
	return o.SourceItems == 0 && o.DestinationItems == 0 && o.State != StateActive && noSnapshots(r.versionAt(vb))
}

// unreadable says why the copy of a vbucket cannot be read at its owner, "" if it
// can.
func (r *run) unreadable(vb uint16) string {
	o := r.out[vb]
	v := r.versionAt(vb)
	switch {
	case v == (cluster.Version{}):
		return "the destination does not tell its version"
	case !v.AtLeast(3, 0) || !r.dst.bucket.MinVersion().AtLeast(3, 0):
		return fmt.Sprintf("version %s of the destination streams no replicas (DCP came with 3.0)", v)
	case r.plan.Engine.Sink == TransferWithMeta && o.State != StateActive && noSnapshots(v):
		return fmt.Sprintf("version %s of the destination does not stream a replica that was filled by *_WITH_META", v)
	case r.opt.SinkOptions.MapCollections != "":
		return "collections were written under other names (map-collections)"
	}
	return ""
}

// changedSince reports that a difference is a change at the source that came after
// the transfer, which nobody promised to bring. With sequence numbers that is
// known. Without, a document has changed since if its revision is higher and its CAS
// another one: damage to one of the two does not look like that.
func (r *run) changedSince(d *compare.Difference) bool {
	src, dst := d.Source, d.Sink
	if src == nil {
		return false
	}
	if reached := r.reached(d.VBucket); reached > 0 && src.Seqno > 0 {
		return src.Seqno > reached
	}
	return dst != nil && src.Rev > dst.Rev && src.CAS != dst.CAS
}

// reached is up to which seqno a vbucket was transferred in this run, 0 if that is
// not known.
func (r *run) reached(vb uint16) uint64 {
	if r.tally == nil {
		return 0
	}
	r.tally.mu.Lock()
	defer r.tally.mu.Unlock()
	return r.tally.reached[vb]
}

// onlyNew reports that a vbucket lacks nothing but documents that the source has
// got since, where the source does not number its items: the owner holds as many as
// were transferred, and every one of them is like the source's.
func (r *run) onlyNew(v *compare.VBucket) bool {
	if v.Extra > 0 || v.Different > 0 || r.reached(v.VBucket) > 0 || r.tally == nil {
		return false
	}
	r.tally.mu.Lock()
	defer r.tally.mu.Unlock()
	items, ok := r.tally.complete[v.VBucket]
	return ok && v.Live[1] == items
}

// unlike is the error of a vbucket that is not like the source.
func (r *run) unlike(v *compare.VBucket, f *finding) error {
	o := r.out[v.VBucket]
	more := ""
	if f.n > len(f.keys) {
		more = fmt.Sprintf(" and %d more", f.n-len(f.keys))
	}
	e := &pump.Error{Code: "digest-differs", Op: fmt.Sprintf("verify vbucket %d at %s", v.VBucket, o.Destination),
		Err:  fmt.Errorf("it is not like the source: %s%s", strings.Join(f.keys, ", "), more),
		Hint: "It is not activated. Stop writing to the source if you can, then run the command again: it is transferred anew."}
	if o.State == StateActive {
		e.Hint = fmt.Sprintf("An earlier run activated it and was cut before the map was updated. If the source has been written to since, that explains the difference: publish it with POST /pools/default/buckets/%s/updateVbucketMap. If not, set it dead with changeVbucketStates and run the command again: it is transferred anew.", r.dst.name)
	}
	return e
}

// unread says of vbuckets that they could not be compared.
func (r *run) unread(vbs []uint16, err error, bad map[uint16]error) {
	for _, vb := range vbs {
		why := err
		if own := pump.ErrorOf(err, vb); own != nil {
			why = own
		}
		hint := "It is not activated. Run the command again."
		if h := pump.HintOf(why); h != "" {
			hint = h + " " + hint
		}
		bad[vb] = &pump.Error{Class: pump.ClassOf(why), Code: pump.CodeOf(why), Op: fmt.Sprintf("verify vbucket %d at %s", vb, r.out[vb].Destination), Err: why,
			Hint: hint + " --verify count compares nothing but numbers of documents."}
	}
}
