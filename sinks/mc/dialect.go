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
	cfg.Features = Features()
	return cluster.DialKV(ctx, cfg)
}

func (d *metaDialect) FindOwners(context.Context, *CBSink, *cluster.Bucket, []uint16) (map[uint16][]string, error) {
	return nil, nil // a vbucket that the map gives to nobody is active nowhere
}

func (d *metaDialect) Refuse(it *pump.Item, t *Traits) *pump.Error {
	if it.Op != pump.Mutation && d.o.Operation == "add" {
		return errAddDeletes
	}
	if !t.Modern && it.Op != pump.Mutation {
		return nil // its value is not sent
	}
	if why := t.RefuseDatatype(it); why != nil {
		return why
	}
	if it.Datatype&mcbp.DatatypeXattr != 0 && d.plain(it, t) {
		return errPlainXattr
	}
	return nil
}

// plain says that an item goes without metadata. Only active vbuckets take plain
// requests, and a pending one parks them; and they have no extended attributes.
func (d *metaDialect) plain(it *pump.Item, t *Traits) bool {
	if d.replicas {
		return false
	}
	return !d.o.WithMeta || it.CAS == 0 && it.RevSeqno == 0 && it.Datatype&mcbp.DatatypeXattr == 0
}

func (d *metaDialect) Request(it *pump.Item, t *Traits) Request {
	add, del := d.o.Operation == "add", it.Op != pump.Mutation
	switch plain := d.plain(it, t); {
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

// options are those of a *_WITH_META request for an item; 0 needs no more than 24
// bytes of extras.
//
// From 5.0 on a CAS of 0 or all ones is refused with the status that says
// "newer", unless a new one is asked for, which only goes without conflict
// resolution; with it such items are settled by resolve. A bucket with
// last-write-wins wants to be told, except where a new CAS is asked for.
func (d *metaDialect) options(it *pump.Item, t *Traits) uint32 {
	var o uint32
	switch {
	case d.o.ConflictResolution && it.CAS == 0 && it.RevSeqno == 0 && t.Modern:
		o = mcbp.MetaSkipConflict // it has nothing to be compared by, as a plain item
	case d.o.ConflictResolution:
	case d.replicas, !t.Modern:
		o = mcbp.MetaForce
	default:
		o = mcbp.MetaSkipConflict
	}
	switch {
	case t.Modern && o != 0 && badCAS(it.CAS):
		return o | mcbp.MetaRegenerateCAS
	case t.LWW:
		o |= mcbp.MetaLWW
	}
	return o
}

// Append sends what prepare made of an item. Nodes up to 4.x get datatype 0
// always: they find out by themselves whether a value is JSON.
func (d *metaDialect) Append(dst []byte, it *pump.Item, to Sending) []byte {
	switch r := d.Request(it, to.Traits); r {
	case ReqDelete:
		return mcbp.AppendKeyed(dst, mcbp.OpDeleteQ, to.Opaque, it.VBucket, 0, it.Key)
	case ReqAdd:
		return appendStore(dst, mcbp.OpAddQ, it, to.Opaque, 0)
	case ReqSet:
		return appendStore(dst, mcbp.OpSetQ, it, to.Opaque, 0)
	default:
		return appendMeta(dst, r, it, to, d.options(it, to.Traits), 0)
	}
}

func appendStore(dst []byte, op mcbp.Opcode, it *pump.Item, opaque uint32, cas uint64) []byte {
	at := len(dst)
	dst = mcbp.AppendStore(dst, op, opaque, it.VBucket, cas, it.Flags, AbsoluteExpiry(it.Expiry), it.Key, it.Value)
	dst[at+5] = it.Datatype
	return dst
}

func appendMeta(dst []byte, r Request, it *pump.Item, to Sending, options uint32, guard uint64) []byte {
	// Field by field: a literal is made elsewhere and copied, which takes as long as all the rest.
	var w mcbp.WithMeta
	w.Opcode, w.VBucket, w.Opaque, w.Datatype = mcbp.OpSetQWithMeta, it.VBucket, to.Opaque, it.Datatype
	w.HasOptions, w.Options, w.HeaderCAS, w.Key, w.Value = options != 0, options, guard, it.Key, it.Value
	w.Meta.Flags, w.Meta.Expiry, w.Meta.Rev, w.Meta.CAS = it.Flags, it.Expiry, it.RevSeqno, it.CAS
	switch r {
	case ReqDeleteMeta:
		w.Opcode = mcbp.OpDeleteQWithMeta
	case ReqAddMeta:
		w.Opcode = mcbp.OpAddQWithMeta
	}
	if !to.Version.AtLeast(3, 0) && !to.Modern && it.Op == pump.Mutation {
		w.Meta.Expiry = AbsoluteExpiry(w.Meta.Expiry)
	}
	if to.Modern && w.Meta.Rev == 0 {
		w.Meta.Rev = 1 // no document has revision 0
	}
	return w.Append(dst)
}

// badCAS reports a CAS that servers take for none.
func badCAS(cas uint64) bool { return cas == 0 || cas == ^uint64(0) }

// refused says what to do about 0x02 in answer to a *_WITH_META request: a
// ruling, or ok = false when only the destination's own metadata can tell. Without
// conflict resolution it never means "newer": the item was not written.
func (d *metaDialect) refused(it *pump.Item, req Request, t *Traits) (r Ruling, ok bool) {
	switch {
	case req == ReqAddMeta && (!badCAS(it.CAS) || d.options(it, t)&mcbp.MetaRegenerateCAS != 0):
		return Ruling{Verdict: pump.Skipped, Cause: errExists}, true
	case d.o.ConflictResolution:
		return Ruling{}, false
	}
	return Ruling{Verdict: pump.Rejected, Cause: errForced}, true
}

// lastWrite is what is left for an item that the destination neither holds nor
// has anything newer than, and still refuses: a request that gives it a new CAS,
// guarded by what the destination was seen to hold. Up to 4.x that is a plain one,
// from 5.0 on one that keeps revision, datatype and extended attributes.
type lastWrite struct {
	req   Request
	guard uint64
}

// compare decides from the destination's metadata (nil: it has none) what became
// of an item that conflict resolution refused. Without a ruling the last write is
// to be made.
func (d *metaDialect) compare(it *pump.Item, t *Traits, have *mcbp.ItemMeta) (Ruling, lastWrite) {
	live := have != nil && !have.Deleted
	last := func(req Request, guard uint64) lastWrite {
		if t.Modern {
			switch req {
			case ReqSet:
				req = ReqSetMeta
			case ReqAdd:
				req = ReqAddMeta
			case ReqDelete:
				req = ReqDeleteMeta
			}
		}
		return lastWrite{req: req, guard: guard}
	}
	if it.Op != pump.Mutation {
		switch {
		case !live:
			return Ruling{Verdict: pump.Done}, lastWrite{} // it is gone there too
		case newer(&have.Meta, it.RevSeqno, it.CAS, 0, 0, false, t.LWW):
			return Ruling{Verdict: pump.Skipped, Cause: errNewer}, lastWrite{}
		case badCAS(it.CAS):
			return Ruling{}, last(ReqDelete, have.CAS)
		}
		return Ruling{Verdict: pump.Retry, Cause: errChanged}, lastWrite{}
	}
	expiry := it.Expiry
	if !t.Modern && !t.Version.AtLeast(3, 0) {
		expiry = AbsoluteExpiry(expiry)
	}
	switch {
	case live && d.o.Operation == "add":
		return Ruling{Verdict: pump.Skipped, Cause: errExists}, lastWrite{}
	case live && have.Rev == it.RevSeqno && have.CAS == it.CAS && (t.Modern || have.Flags == it.Flags && have.Expiry == expiry):
		// It holds exactly this one, from an earlier run. From 5.5 on a maximum time to
		// live may have given it another expiry.
		return Ruling{Verdict: pump.Done}, lastWrite{}
	case have != nil && newer(&have.Meta, it.RevSeqno, it.CAS, expiry, it.Flags, live, t.LWW):
		return Ruling{Verdict: pump.Skipped, Cause: errNewer}, lastWrite{}
	case !badCAS(it.CAS):
		return Ruling{Verdict: pump.Retry, Cause: errChanged}, lastWrite{}
	case live:
		return Ruling{}, last(ReqSet, have.CAS)
	}
	return Ruling{}, last(ReqAdd, 0)
}

// newer reports that the destination's metadata wins over an item's by the
// servers' rule: revision, then CAS, then expiry, then flags; with lww CAS, then
// revision. Where only the first two are comparable (deletions), and all are equal,
// the destination wins. A CAS that is none says nothing about time, so an item with
// such a one loses against anything in a last-write-wins bucket.
func newer(have *mcbp.Meta, rev, cas uint64, expiry, flags uint32, all, lww bool) bool {
	if lww && badCAS(cas) {
		return true
	}
	switch {
	case lww && have.CAS != cas:
		return have.CAS > cas
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
	errXattr = &pump.Error{Code: "item-xattr", Err: errors.New("the value has extended attributes, which the destination cannot store"),
		Hint: "a source that is read over DCP leaves them out with -x xattrs=no"}
	errPlainXattr      = &pump.Error{Code: "item-xattr", Err: errors.New("the value has extended attributes, which a plain request cannot carry"), Hint: "with-meta=true can"}
	errUnknownDatatype = &pump.Error{Code: "item-datatype", Err: errors.New("the value is of a datatype that this program does not know")}
	errBadXattr        = &pump.Error{Code: "item-xattr", Err: errors.New("the value claims to have extended attributes and they cannot be read")}
	errBadSnappy       = &pump.Error{Code: "item-snappy", Err: errors.New("the value claims to be compressed with snappy and cannot be read")}
)
