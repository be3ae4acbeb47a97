package mc

import (
	"errors"
	"fmt"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// Request is what was asked of the destination, as far as it decides what a
// status means for the item.
type Request uint8

// The kinds of requests.
const (
	ReqGet Request = iota
	ReqSet
	ReqAdd
	ReqDelete
	ReqSetMeta
	ReqAddMeta
	ReqDeleteMeta
	ReqTap
	ReqDcp
)

func (r Request) deletes() bool  { return r == ReqDelete || r == ReqDeleteMeta }
func (r Request) adds() bool     { return r == ReqAdd || r == ReqAddMeta }
func (r Request) withMeta() bool { return r == ReqSetMeta || r == ReqAddMeta || r == ReqDeleteMeta }

// Ruling is what a status means for an item.
type Ruling struct {
	Verdict pump.Verdict
	Cause   *pump.Error // nil with Done
	Stop    bool        // not the item's fault: the run must stop with Cause
}

// Rulings turns statuses into rulings, one error value per kind of request and
// status, so that a million refused items do not make a million errors.
type Rulings struct {
	where string
	known cluster.ErrorMap // what the server says of its statuses, if it does
	made  map[rulingKey]Ruling
}

type rulingKey struct {
	req    Request
	status mcbp.Status
}

// NewRulings returns the rulings about the destination that where names.
func NewRulings(where string) *Rulings {
	return &Rulings{where: where, made: map[rulingKey]Ruling{}}
}

// Of returns what status s in answer to a request of kind r means.
func (r *Rulings) Of(req Request, s mcbp.Status) Ruling {
	k := rulingKey{req, s}
	if made, ok := r.made[k]; ok {
		return made
	}
	made := rule(req, s)
	if made.Cause == errUnknownStatus {
		made = ruleByMap(r.known, s)
	}
	if made.Cause != nil {
		made.Cause.Op = "write to " + r.where
		if req == ReqGet {
			made.Cause.Op = "read from " + r.where
		}
		made.Cause.Err = fmt.Errorf("%w (%s)", made.Cause.Err, mcbp.StatusName(s))
	}
	r.made[k] = made
	return made
}

// rule is the status table of the design notes ("KV sink", "TAP sink"). Class
// ClassFailed makes a run that never gets past a status exit with 1.
func rule(req Request, s mcbp.Status) Ruling {
	deny := func(code, text, hint string) Ruling {
		return Ruling{Stop: true, Cause: &pump.Error{Class: pump.ClassDenied, Code: code, Err: errors.New(text), Hint: hint}}
	}
	stop := func(code, text, hint string) Ruling {
		return Ruling{Stop: true, Cause: &pump.Error{Code: code, Err: errors.New(text), Hint: hint}}
	}
	item := func(v pump.Verdict, code, text, hint string) Ruling {
		return Ruling{Verdict: v, Cause: &pump.Error{Code: code, Err: errors.New(text), Hint: hint, Retry: v == pump.Retry}}
	}
	switch s {
	case mcbp.StatusOK:
		return Ruling{Verdict: pump.Done}
	case mcbp.StatusNotFound:
		if req.deletes() || req == ReqTap {
			return Ruling{Verdict: pump.Done} // what is to be gone is gone
		}
	case mcbp.StatusExists, mcbp.StatusNotStored:
		switch {
		case req.adds():
			return item(pump.Skipped, "exists", "the destination has the key already", "")
		case req.withMeta():
			return item(pump.Skipped, "newer", "the destination holds a newer one", "")
		case req == ReqTap, req == ReqDcp:
			return item(pump.Rejected, "refused", "the destination refuses the item", "")
		}
		return item(pump.Retry, "locked", "the destination holds the key locked", "")
	case mcbp.StatusTooBig:
		return item(pump.Rejected, "item-too-large", "the destination refuses the item as too large",
			"memcached's limit is its option -I, 1 MiB unless set; Couchbase's is 20 MiB")
	case mcbp.StatusXattrInvalid:
		return item(pump.Rejected, "item-xattr", "the destination refuses the item's extended attributes", "")
	case mcbp.StatusUnknownCollection:
		return item(pump.Retry, "unknown-collection", "the destination does not know the item's collection (any more)", "")
	case mcbp.StatusInvalid, mcbp.StatusRange:
		return item(pump.Rejected, "item-invalid", "the destination refuses the item as invalid", "")
	case mcbp.StatusNoMemory:
		return item(pump.Retry, "destination-full", "the destination is out of memory",
			"give the destination more memory, or let memcached evict (start it without -M), and run again")
	case mcbp.StatusBusy:
		return item(pump.Retry, "destination-busy", "the destination is busy", "")
	case mcbp.StatusTmpFail:
		return item(pump.Retry, "destination-busy", "the destination asks to try later",
			"it may be short of memory or still warming up")
	case mcbp.StatusInternal:
		return item(pump.Retry, "destination-fault", "the destination had an internal error", "")
	case mcbp.StatusLocked, mcbp.StatusSyncInProgress: // a durable write to the key is under way
		return item(pump.Retry, "locked", "the destination holds the key locked", "")
	case mcbp.StatusNotMyVBucket:
		if req.withMeta() || req == ReqTap || req == ReqDcp {
			return item(pump.Retry, "not-my-vbucket", "the node does not have the vbucket in a state that can be written", "")
		}
		return item(pump.Retry, "not-my-vbucket", "the vbucket is not active on the node", "")
	case mcbp.StatusAuthError, mcbp.StatusAccess, mcbp.StatusNoBucket:
		return deny("access-denied", "the destination refuses access",
			"give the destination's user and password (-U and -P, or CB_REST_USERNAME_DEST and CB_REST_PASSWORD_DEST)")
	case mcbp.StatusUnknown, mcbp.StatusNotSupported:
		switch {
		case req.withMeta():
			return stop("no-with-meta", "the destination cannot store items with their CAS and revision",
				"option with-meta=false stores them as plain items; CAS and revision are lost then")
		case req == ReqTap:
			return stop("no-tap", "the destination does not take TAP messages",
				"TAP is gone from 5.0 on; write to the cluster with http:// or couchbase://, and recover with the DCP engine (dcp://)")
		}
		if req == ReqDcp {
			return stop("no-dcp", "the destination does not take DCP messages", "DCP exists from 3.0 on; before, tap:// does it")
		}
		return stop("not-supported", "the destination does not know the request", "")
	}
	return Ruling{Stop: true, Cause: errUnknownStatus}
}

// errUnknownStatus is the cause where the table has no row.
var errUnknownStatus = &pump.Error{Code: "unknown-status", Err: errors.New("the destination gave an answer that this program does not know")}

// ruleByMap rules by the server's own map of errors on statuses that came after this
// program. What the map does not tell either stops the run.
func ruleByMap(m cluster.ErrorMap, s mcbp.Status) Ruling {
	said := fmt.Errorf("the destination gave an answer that this program does not know, and calls it %s: %s", m[s].Name, m[s].Text)
	switch {
	case m[s].Name == "":
		why := *errUnknownStatus
		return Ruling{Stop: true, Cause: &why}
	case m.Is(s, "auth"):
		return Ruling{Stop: true, Cause: &pump.Error{Class: pump.ClassDenied, Code: "access-denied", Err: said}}
	case m.Is(s, "retry-now", "retry-later", "temp", "auto-retry", "item-locked", "fetch-config"):
		return Ruling{Verdict: pump.Retry, Cause: &pump.Error{Code: "destination-later", Err: said, Retry: true}}
	case m.Is(s, "item-only", "invalid-input"):
		return Ruling{Verdict: pump.Rejected, Cause: &pump.Error{Code: "item-invalid", Err: said}}
	}
	return Ruling{Stop: true, Cause: &pump.Error{Code: "unknown-status", Err: said}}
}
