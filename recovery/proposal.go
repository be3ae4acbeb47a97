package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// proposal is the dialect of the specification ("New REST API proposal for
// cbrecovery tool").
type proposal struct {
	client rester
	bucket string
}

// The calls of the proposal, as the last part of their path.
const (
	callMissing = "vbucketsMissing"
	callReplace = "replaceNode"
	callStates  = "changeVbucketStates"
	callPublish = "updateVbucketMap"
)

func (p *proposal) Name() string { return APIProposal }

func (p *proposal) Missing(ctx context.Context) ([]uint16, error) {
	op := "ask " + p.client.URL() + " for the missing vbuckets of bucket " + p.bucket
	r, err := p.do(ctx, op, http.MethodGet, callMissing, nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	var ids []int
	// "null" would decode as well; it must not pass for "nothing is missing".
	if err := json.Unmarshal(r.Body, &ids); err != nil || ids == nil {
		return nil, &pump.Error{Code: "bad-answer", Op: op,
			Err:  fmt.Errorf("not a list of vbucket numbers such as [500,612]: %w", said(p.client, r)),
			Hint: "Check that the address is that of a cluster node and not of a proxy."}
	}
	out := make([]uint16, 0, len(ids))
	for _, id := range ids {
		if id < 0 || id >= int(pump.NoVBucket) {
			return nil, &pump.Error{Code: "bad-answer", Op: op, Err: fmt.Errorf("the answer names vbucket %d, which cannot be", id)}
		}
		out = append(out, uint16(id))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (p *proposal) ReplaceNode(ctx context.Context, add, remove string) error {
	op := fmt.Sprintf("replace node %s by %s in bucket %s at %s", remove, add, p.bucket, p.client.URL())
	_, err := p.do(ctx, op, http.MethodPost, callReplace, url.Values{"add": {add}, "remove": {remove}}, http.StatusAccepted)
	return err
}

func (p *proposal) Begin(ctx context.Context, create []uint16) (map[uint16]string, error) {
	return nil, p.changeStates(ctx, create, "replica")
}

func (p *proposal) Activate(ctx context.Context, vbs []uint16) error {
	return p.changeStates(ctx, vbs, "active")
}

// changeStates sends all vbuckets in one request: 1,024 of them are a body of
// 13 kB. If the server does not know one of them they are sent one by one, so
// that this one does not hold up the others; what is then still refused comes
// back as a *refusedError.
func (p *proposal) changeStates(ctx context.Context, vbs []uint16, state string) error {
	if len(vbs) == 0 {
		return nil
	}
	err := p.sendStates(ctx, vbs, state)
	if pump.CodeOf(err) != codeNoVBucket {
		return err
	}
	refused := &refusedError{errs: make(map[uint16]error)}
	for _, vb := range vbs {
		if len(vbs) > 1 {
			err = p.sendStates(ctx, []uint16{vb}, state)
		}
		switch {
		case err == nil:
		case pump.CodeOf(err) == codeNoVBucket:
			refused.vbs = append(refused.vbs, vb)
			refused.errs[vb] = err
		default:
			return err
		}
	}
	if len(refused.vbs) == 0 {
		return nil
	}
	return refused
}

func (p *proposal) sendStates(ctx context.Context, vbs []uint16, state string) error {
	form := url.Values{"state": {state}}
	for _, vb := range vbs {
		form.Add("vbucket", strconv.Itoa(int(vb)))
	}
	op := fmt.Sprintf("make vbucket %s of bucket %s at %s %s", pump.FormatVBuckets(vbs), p.bucket, p.client.URL(), state)
	_, err := p.do(ctx, op, http.MethodPost, callStates, form, http.StatusAccepted)
	return err
}

func (p *proposal) Publish(ctx context.Context) error {
	op := "update the vbucket map of bucket " + p.bucket + " at " + p.client.URL()
	_, err := p.do(ctx, op, http.MethodPost, callPublish, url.Values{}, http.StatusAccepted)
	return err
}

// End does nothing: the proposal starts nothing that would have to be stopped.
func (p *proposal) End(context.Context) (deletes bool, err error) { return false, nil }

// refusedError says that some vbuckets of a request were refused; the request
// was carried out for the others.
type refusedError struct {
	vbs  []uint16 // never empty
	errs map[uint16]error
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("vbucket %s refused: %v", pump.FormatVBuckets(e.vbs), e.errs[e.vbs[0]])
}

func (e *refusedError) Unwrap() error { return e.errs[e.vbs[0]] }

// do sends one request and turns every answer but the wanted one into an error.
func (p *proposal) do(ctx context.Context, op, method, call string, form url.Values, want int) (*cluster.Response, error) {
	path := "/pools/default/buckets/" + url.PathEscape(p.bucket) + "/" + call
	r, err := p.client.Do(ctx, method, path, form)
	if err != nil {
		return nil, transportError(ctx, op, err)
	}
	if r.Status == want {
		return r, nil
	}
	return r, statusError(p.client, op, call, r)
}

// transportError is a request without an answer. What the server did is not
// known, so that the caller reads the state back before it repeats.
func transportError(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return &pump.Error{Class: pump.ClassInterrupted, Code: "interrupted", Op: op, Err: context.Cause(ctx)}
	}
	class := pump.ClassOf(err)
	return &pump.Error{Class: class, Code: pump.CodeOf(err), Op: op, Err: err, Hint: pump.HintOf(err),
		Retry: class == pump.ClassUnreachable || pump.IsRetryable(err)}
}

// Codes that the procedure itself looks at.
const (
	codeNoVBucket = "vbucket-not-found"
	codeNoAPI     = "no-recovery-api"
)

// meaning is what a status means in one call of the proposal.
type meaning struct {
	class pump.Class
	code  string
	text  string
	hint  string
	retry bool
}

// meanings are the tables of the specification. What is not in them is HTTP's
// general meaning (generalMeaning).
var meanings = map[string]map[int]meaning{
	callMissing: {
		http.StatusNotFound: {code: codeNoAPI,
			text: "the destination does not serve the recovery API of the proposal (vbucketsMissing)",
			hint: "Couchbase Server 2.1 and later has another one: --recovery-api auto or controller."},
	},
	callReplace: {
		http.StatusUnauthorized: {code: "node-not-found",
			text: "node is not found: the node to remove is not in the cluster, or the node to add cannot be reached by it",
			hint: "Give -r as host:port of the failed-over node as the cluster lists it, and check that the node of -a runs and is reachable from the cluster."},
		http.StatusPaymentRequired: {code: "node-exists",
			text: "node exists already: the node to add is a member of the cluster",
			hint: "If an earlier run added it, leave out -a and -r; else give a node that is not in the cluster."},
		http.StatusForbidden: {code: "node-active",
			text: "the node to remove is still in active mode",
			hint: "Fail it over first (hard failover, and no rebalance afterwards), then run the command again."},
	},
	callStates: {
		http.StatusGone: {code: codeNoVBucket,
			text: "vbucket is not found",
			hint: "The destination has no such vbucket any more: compare the number of vbuckets of both buckets, and run again to read the list of missing vbuckets anew."},
		http.StatusLengthRequired: {code: "bad-state",
			text: "state is not valid, it has to be active, replica, pending or dead",
			hint: "The destination refused a state of the specification: it does not serve this version of the API, or something between changed the request."},
	},
	callPublish: {
		http.StatusGone: {code: "map-update-failed",
			text: "update failure: the cluster did not take the new vbucket map",
			hint: "The vbuckets are active at their nodes but clients do not find them yet. Look at the cluster's log, end a running rebalance, and run the command again: it only publishes."},
	},
}

// statusError turns the answer to a call into an error that says what to do.
// A 401 with a challenge is not among them: the client has already said that
// the login is refused.
func statusError(client rester, op, call string, r *cluster.Response) error {
	perms := ""
	if r.Status == http.StatusForbidden {
		perms = permissions(r.Body)
	}
	m, ok := meanings[call][r.Status]
	var cause error
	switch {
	case perms != "":
		// A 403 that lists permissions is a missing right, whatever the API means by 403.
		m = generalMeaning(r.Status)
		cause = fmt.Errorf("HTTP %d: %s; it needs %s", r.Status, m.text, perms)
	case ok:
		cause = fmt.Errorf("HTTP %d: %s", r.Status, m.text)
	default:
		m = generalMeaning(r.Status)
		cause = fmt.Errorf("%s: %w", m.text, said(client, r))
	}
	return &pump.Error{Class: m.class, Code: m.code, Op: op, Err: cause, Hint: m.hint, Retry: m.retry}
}

// said is what the server answered, as one short line without markup and
// without our credentials, should the server send them back (invariant 9).
func said(client rester, r *cluster.Response) error {
	err := client.Unexpected("", r)
	var e *pump.Error
	if errors.As(err, &e) && e.Err != nil {
		return errors.New(e.Err.Error())
	}
	return fmt.Errorf("the server answers %d", r.Status)
}

func generalMeaning(status int) meaning {
	switch {
	case status == http.StatusBadRequest:
		return meaning{code: "bad-request", text: "the destination does not accept the request",
			hint: "The destination may speak another version of the API; look at its log."}
	case status == http.StatusUnauthorized:
		return meaning{class: pump.ClassDenied, code: "login-refused", text: "the destination refuses the login",
			hint: "Give the destination's administrator with -U and -P."}
	case status == http.StatusForbidden:
		return meaning{class: pump.ClassDenied, code: "no-permission", text: "the user may not do this at the destination",
			hint: "Give a user who is an administrator of the destination with -U and -P."}
	case status == http.StatusNotFound:
		return meaning{code: codeNoAPI, text: "the destination does not know this call",
			hint: "Check that the bucket still exists and that every node of the destination serves the recovery API."}
	case status == http.StatusServiceUnavailable:
		return meaning{code: "busy", text: "the destination cannot do this now", retry: true,
			hint: "Wait until a rebalance or a start of the node is over, then run the command again."}
	case status >= 500:
		return meaning{code: "server-error", text: "the destination failed", retry: true,
			hint: "Look at the destination's log, then run the command again."}
	}
	return meaning{code: "unexpected-status", text: "an answer that the recovery API does not have",
		hint: "Check that the address is that of a cluster node and not of a proxy."}
}

// permissions returns the permissions that a 403 body lists, or "".
func permissions(body []byte) string {
	var doc struct {
		Permissions []string `json:"permissions"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return ""
	}
	return strings.Join(doc.Permissions, ", ")
}
