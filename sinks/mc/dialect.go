package mc

import (
	"context"
	"errors"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// metaDialect is CBSink's own way to write: *_WITH_META, and plain requests for
// items that have no metadata.
type metaDialect struct {
	o        CBOptions
	replicas bool // replica and pending vbuckets may be written
}

func (d *metaDialect) Name() string { return "with-meta" }
func (d *metaDialect) Fenced() bool { return false }

func (d *metaDialect) AllowState(s mcbp.VBState) bool {
	return s == mcbp.VBActive || d.replicas && (s == mcbp.VBReplica || s == mcbp.VBPending)
}

func (d *metaDialect) FindConn(ctx context.Context, cfg cluster.KVConfig, _ cluster.Version) (*cluster.Conn, error) {
	return cluster.DialKV(ctx, cfg)
}

func (d *metaDialect) FindOwners(context.Context, *CBSink, *cluster.Bucket, []uint16) (map[uint16][]string, error) {
	return nil, nil // a vbucket that the map gives to nobody is active nowhere
}

func (d *metaDialect) Refuse(it *pump.Item) *pump.Error {
	switch {
	case it.Op != pump.Mutation && d.o.Operation == "add":
		return errAddDeletes
	case it.Op == pump.Mutation && it.Datatype&^mcbp.DatatypeJSON != 0:
		return errDatatype
	}
	return nil
}

// plain: only active vbuckets take plain requests, and a pending one parks them.
func (d *metaDialect) plain(it *pump.Item) bool {
	return !d.replicas && (!d.o.WithMeta || it.CAS == 0 && it.RevSeqno == 0)
}

func (d *metaDialect) Request(it *pump.Item) Request {
	add, del := d.o.Operation == "add", it.Op != pump.Mutation
	switch plain := d.plain(it); {
	case plain && del:
		return ReqDelete
	case plain && add:
		return ReqAdd
	case plain:
		return ReqSet
	case del:
		return ReqDeleteMeta
	case add:
		return ReqAddMeta
	}
	return ReqSetMeta
}

// Append sends datatype 0 always: other values need a HELLO, and without one
// servers find out by themselves whether a value is JSON.
func (d *metaDialect) Append(dst []byte, it *pump.Item, to Sending) []byte {
	w := mcbp.WithMeta{
		VBucket: it.VBucket, Opaque: to.Opaque, Key: it.Key, Value: it.Value,
		Meta: mcbp.Meta{Flags: it.Flags, Expiry: it.Expiry, Rev: it.RevSeqno, CAS: it.CAS},
	}
	switch d.Request(it) {
	case ReqDelete:
		return mcbp.AppendKeyed(dst, mcbp.OpDeleteQ, to.Opaque, it.VBucket, 0, it.Key)
	case ReqAdd:
		return mcbp.AppendStore(dst, mcbp.OpAddQ, to.Opaque, it.VBucket, 0, it.Flags, AbsoluteExpiry(it.Expiry), it.Key, it.Value)
	case ReqSet:
		return mcbp.AppendStore(dst, mcbp.OpSetQ, to.Opaque, it.VBucket, 0, it.Flags, AbsoluteExpiry(it.Expiry), it.Key, it.Value)
	case ReqDeleteMeta:
		w.Opcode, w.Value = mcbp.OpDeleteQWithMeta, nil // 3.0 and 4.0 send an expired item's value with its deletion
	case ReqAddMeta:
		w.Opcode = mcbp.OpAddQWithMeta
	default:
		w.Opcode = mcbp.OpSetQWithMeta
	}
	if !to.Version.AtLeast(3, 0) && it.Op == pump.Mutation {
		w.Meta.Expiry = AbsoluteExpiry(w.Meta.Expiry)
	}
	if !d.o.ConflictResolution {
		w.HasOptions, w.Options = true, mcbp.MetaForce
	}
	return w.Append(dst)
}

// badCAS reports a CAS that servers take for none.
func badCAS(cas uint64) bool { return cas == 0 || cas == ^uint64(0) }

// refused says what to do about 0x02 in answer to a *_WITH_META request: a
// ruling, or ok = false when only the destination's own metadata can tell.
func (d *metaDialect) refused(it *pump.Item, req Request) (r Ruling, ok bool) {
	switch {
	case req == ReqAddMeta && !badCAS(it.CAS):
		return Ruling{Verdict: pump.Skipped, Cause: errExists}, true
	case d.o.ConflictResolution:
		return Ruling{}, false
	}
	return Ruling{Verdict: pump.Rejected, Cause: errForced}, true
}

// plainWrite is what is left for an item that the destination neither holds nor
// has anything newer than, and still refuses with its metadata: a plain request,
// guarded by what the destination was seen to hold.
type plainWrite struct {
	op  mcbp.Opcode
	req Request
	cas uint64
}

// compare decides from the destination's metadata (nil: it has none) what became
// of an item that conflict resolution refused. Without a ruling the plain write
// is to be made.
func (d *metaDialect) compare(it *pump.Item, version cluster.Version, have *mcbp.ItemMeta) (Ruling, plainWrite) {
	live := have != nil && !have.Deleted
	if it.Op != pump.Mutation {
		switch {
		case !live:
			return Ruling{Verdict: pump.Done}, plainWrite{} // it is gone there too
		case newer(&have.Meta, it.RevSeqno, it.CAS, 0, 0, false):
			return Ruling{Verdict: pump.Skipped, Cause: errNewer}, plainWrite{}
		case badCAS(it.CAS):
			return Ruling{}, plainWrite{op: mcbp.OpDeleteQ, req: ReqDelete, cas: have.CAS}
		}
		return Ruling{Verdict: pump.Retry, Cause: errChanged}, plainWrite{}
	}
	expiry := it.Expiry
	if !version.AtLeast(3, 0) {
		expiry = AbsoluteExpiry(expiry)
	}
	switch {
	case live && d.o.Operation == "add":
		return Ruling{Verdict: pump.Skipped, Cause: errExists}, plainWrite{}
	case live && have.Rev == it.RevSeqno && have.CAS == it.CAS && have.Flags == it.Flags && have.Expiry == expiry:
		return Ruling{Verdict: pump.Done}, plainWrite{} // it holds exactly this one, from an earlier run
	case have != nil && newer(&have.Meta, it.RevSeqno, it.CAS, expiry, it.Flags, live):
		return Ruling{Verdict: pump.Skipped, Cause: errNewer}, plainWrite{}
	case !badCAS(it.CAS):
		return Ruling{Verdict: pump.Retry, Cause: errChanged}, plainWrite{}
	case live:
		return Ruling{}, plainWrite{op: mcbp.OpSetQ, req: ReqSet, cas: have.CAS}
	}
	return Ruling{}, plainWrite{op: mcbp.OpAddQ, req: ReqAdd}
}

// newer reports that the destination's metadata wins over an item's by the
// servers' rule: revision, then CAS, then expiry, then flags. Where only the
// first two are comparable (deletions), and all are equal, the destination wins.
func newer(have *mcbp.Meta, rev, cas uint64, expiry, flags uint32, all bool) bool {
	switch {
	case have.Rev != rev:
		return have.Rev > rev
	case have.CAS != cas:
		return have.CAS > cas
	case !all:
		return true
	case have.Expiry != expiry:
		return have.Expiry > expiry
	}
	return have.Flags >= flags
}

// Causes of what conflict resolution says.
var (
	errExists  = &pump.Error{Code: "exists", Err: errors.New("the destination has the key already")}
	errNewer   = &pump.Error{Code: "newer", Err: errors.New("the destination holds a newer one")}
	errChanged = &pump.Error{Code: "changed", Retry: true, Err: errors.New("the destination refused the item, yet holds an older one: somebody changes the key at the same time")}
	errForced  = &pump.Error{Code: "item-cas", Err: errors.New("the destination refuses the item although conflict resolution is off: it does not take its CAS"),
		Hint: "conflict-resolution=true or with-meta=false stores such items with a new CAS"}
)
