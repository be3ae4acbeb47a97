package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// controller is the dialect that Couchbase Server serves from 2.1 on. A recovery
// has a uuid from startRecovery until the last commitVBucket or stopRecovery, and
// a cluster has one at a time. The bucket's map keeps -1 until a vbucket is
// committed, so that nothing but the recovery map names its owner.
type controller struct {
	client controllerClient
	side   *side
	log    hclog.Logger

	uuid string // of the recovery under way that is ours; "" when there is none
	// unsure: startRecovery was sent and nobody knows what became of it.
	unsure bool
}

// controllerClient is what the controller needs of *cluster.Client.
type controllerClient interface {
	rester
	Nodes(ctx context.Context) ([]cluster.Node, error)
}

// The calls of the controller, as the last part of their path.
const (
	callStart  = "controller/startRecovery"
	callStatus = "recoveryStatus"
	callCommit = "controller/commitVBucket"
	callStop   = "controller/stopRecovery"
)

// recoveryAnswer is the body of every answer of the controller.
type recoveryAnswer struct {
	UUID        string             `json:"uuid"`
	Code        string             `json:"code"`
	Map         *[]recoveryMapNode `json:"recoveryMap"`
	FailedNodes []string           `json:"failedNodes"`
}

type recoveryMapNode struct {
	Node     string `json:"node"` // an otpNode name, not an address
	VBuckets []int  `json:"vbuckets"`
}

func (c *controller) Name() string { return APIController }

// Missing reads the bucket's map: this API has no call for it that changes
// nothing.
func (c *controller) Missing(ctx context.Context) ([]uint16, error) {
	if err := c.side.refresh(ctx); err != nil {
		return nil, err
	}
	return c.side.bucket.Map.Missing(), nil
}

// Begin starts a recovery of all missing vbuckets, whatever is asked for: the API
// has no narrower one. What is not committed is deleted by End.
func (c *controller) Begin(ctx context.Context, _ []uint16) (map[uint16]string, error) {
	op := fmt.Sprintf("start the recovery of bucket %s at %s", c.side.name, c.client.URL())
	c.unsure = true
	a, err := c.ask(ctx, op, http.MethodPost, callStart, nil)
	if err != nil {
		// Only a definite refusal says that nothing was started.
		c.unsure = pump.IsRetryable(err)
		return nil, err
	}
	if a.UUID == "" {
		return nil, badAnswer(op, errors.New("it has no uuid"))
	}
	c.uuid, c.unsure = a.UUID, false
	return c.owners(ctx, op, a)
}

// RecoveryID implements Committer.
func (c *controller) RecoveryID() string { return c.uuid }

func (c *controller) Adopt(ctx context.Context, uuid string) (map[uint16]string, error) {
	op := fmt.Sprintf("read the state of recovery %s of bucket %s at %s", quote(uuid), c.side.name, c.client.URL())
	was := c.uuid
	c.uuid = uuid
	a, err := c.ask(ctx, op, http.MethodGet, callStatus, nil)
	if err != nil {
		c.uuid = was
		return nil, err
	}
	c.unsure = false
	return c.owners(ctx, op, a)
}

func (c *controller) Uncommitted(ctx context.Context) (map[uint16]bool, error) {
	op := fmt.Sprintf("read what is not committed yet of bucket %s at %s", c.side.name, c.client.URL())
	if c.uuid == "" { // the last commit ended it
		return nil, &pump.Error{Code: codeForgotten, Op: op, Err: errors.New("the recovery has ended")}
	}
	a, err := c.ask(ctx, op, http.MethodGet, callStatus, nil)
	if err != nil {
		return nil, err
	}
	open := make(map[uint16]bool)
	err = a.each(op, func(vb uint16, _ string) error {
		open[vb] = true
		return nil
	})
	return open, err
}

func (c *controller) Commit(ctx context.Context, vb uint16) error {
	op := fmt.Sprintf("commit vbucket %d of bucket %s at %s", vb, c.side.name, c.client.URL())
	if c.uuid == "" {
		return &pump.Error{Code: codeForgotten, Op: op, Err: errors.New("the recovery has ended")}
	}
	a, err := c.ask(ctx, op, http.MethodPost, callCommit, url.Values{"vbucket": {strconv.Itoa(int(vb))}})
	if err != nil {
		return err
	}
	if a.Code == "recovery_completed" {
		c.uuid = "" // it is dead from now on
	}
	return nil
}

// End stops the recovery unless the last commit has ended it.
func (c *controller) End(ctx context.Context) (deletes bool, err error) {
	if c.uuid == "" && c.unsure {
		// The answer to startRecovery was lost. None was running just before.
		t, err := c.Running(ctx)
		if err != nil {
			return true, err
		}
		if t != nil && t.Bucket == c.side.name {
			c.uuid = t.UUID
		}
	}
	if c.uuid == "" {
		return true, nil
	}
	op := fmt.Sprintf("stop recovery %s of bucket %s at %s", quote(c.uuid), c.side.name, c.client.URL())
	_, err = c.ask(ctx, op, http.MethodPost, callStop, nil)
	if err != nil && pump.CodeOf(err) != codeForgotten {
		return true, err
	}
	c.uuid, c.unsure = "", false
	return true, nil
}

func (c *controller) Running(ctx context.Context) (*Running, error) {
	op := "ask " + c.client.URL() + " for recoveries under way"
	r, err := c.client.Do(ctx, http.MethodGet, "/pools/default/tasks", nil)
	if err != nil {
		return nil, transportError(ctx, op, err)
	}
	switch r.Status {
	case http.StatusOK:
	case http.StatusForbidden, http.StatusNotFound:
		// startRecovery will tell, except on servers up to 5.0.
		c.log.Warn("the destination does not say whether a recovery is under way", "status", r.Status)
		return nil, nil
	default:
		return nil, statusError(c.client, op, "", r)
	}
	var tasks []struct {
		Type   string `json:"type"`
		Bucket string `json:"bucket"`
		UUID   string `json:"uuid"`
	}
	if err := json.Unmarshal(r.Body, &tasks); err != nil {
		return nil, badAnswer(op, said(c.client, r))
	}
	for _, t := range tasks {
		if t.Type == "recovery" {
			return &Running{Bucket: t.Bucket, UUID: t.UUID}, nil
		}
	}
	return nil, nil
}

// each calls f with every vbucket of a recovery map and the otpNode of its owner.
func (a *recoveryAnswer) each(op string, f func(vb uint16, otp string) error) error {
	if a.Map == nil {
		return badAnswer(op, errors.New("it has no recoveryMap"))
	}
	for _, n := range *a.Map {
		for _, vb := range n.VBuckets {
			if vb < 0 || vb >= int(pump.NoVBucket) {
				return badAnswer(op, fmt.Errorf("its recoveryMap names vbucket %d, which cannot be", vb))
			}
			if err := f(uint16(vb), n.Node); err != nil {
				return err
			}
		}
	}
	return nil
}

// owners turns a recovery map into KV addresses. Nodes that were added just now
// are in the bucket only since the recovery has begun, so it is read again.
func (c *controller) owners(ctx context.Context, op string, a *recoveryAnswer) (map[uint16]string, error) {
	if err := c.side.refresh(ctx); err != nil {
		return nil, err
	}
	owners := make(map[uint16]string)
	at := make(map[string]string) // KV address by otpNode
	err := a.each(op, func(vb uint16, otp string) error {
		addr, known := at[otp]
		if !known {
			var err error
			if addr, err = c.address(ctx, otp); err != nil {
				return err
			}
			at[otp] = addr
		}
		if addr == "" {
			return badAnswer(op, fmt.Errorf("vbucket %d is to be at node %s, which the cluster does not list with a data port", vb, quote(otp)))
		}
		if had, twice := owners[vb]; twice && had != addr {
			return badAnswer(op, fmt.Errorf("vbucket %d is to be at two nodes, %s and %s", vb, had, addr))
		}
		owners[vb] = addr
		return nil
	})
	if err != nil {
		return nil, err
	}
	return owners, nil
}

// address finds a node's KV address by its otpNode: among the nodes of the bucket,
// each with its own port, then among all of the cluster. "" is an unknown node.
func (c *controller) address(ctx context.Context, otp string) (string, error) {
	if n, ok := c.side.bucket.NodeByOTP(otp); ok && n.KV != "" {
		return n.KV, nil
	}
	all, err := c.client.Nodes(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range all {
		if otp != "" && n.OTP == otp {
			return n.KV, nil
		}
	}
	return "", nil
}

// ask sends one request and turns every answer but success into an error.
func (c *controller) ask(ctx context.Context, op, method, call string, form url.Values) (*recoveryAnswer, error) {
	path := "/pools/default/buckets/" + url.PathEscape(c.side.name) + "/" + call
	if call != callStart {
		path += "?recovery_uuid=" + url.QueryEscape(c.uuid)
	}
	r, err := c.client.Do(ctx, method, path, form)
	if err != nil {
		return nil, transportError(ctx, op, err)
	}
	var a recoveryAnswer
	decoded := json.Unmarshal(r.Body, &a) == nil
	if r.Status == http.StatusOK {
		if !decoded || a.Code != "ok" && (a.Code != "recovery_completed" || call != callCommit) {
			return nil, badAnswer(op, said(c.client, r))
		}
		return &a, nil
	}
	m, known := codeMeanings[a.Code]
	switch {
	case decoded && known:
	case r.Status == http.StatusNotFound && call == callStart:
		m = codeMeanings["not_present"]
		return nil, &pump.Error{Class: m.class, Code: m.code, Op: op, Err: fmt.Errorf("HTTP %d: %s", r.Status, m.text), Hint: m.hint}
	default:
		return nil, statusError(c.client, op, "", r)
	}
	text := m.text
	if len(a.FailedNodes) > 0 {
		var names []string
		for _, n := range a.FailedNodes {
			names = append(names, quote(n))
		}
		text += ": " + strings.Join(names, ", ")
	}
	return nil, &pump.Error{Class: m.class, Code: m.code, Op: op, Err: fmt.Errorf("HTTP %d, %s: %s", r.Status, a.Code, text), Hint: m.hint, Retry: m.retry}
}

// Codes of the controller that the procedure itself looks at.
const (
	codeNotNeeded   = "not-needed"
	codeRunning     = "recovery-running"
	codeForgotten   = "recovery-forgotten"
	codeFailedNodes = "failed-nodes"
	codeRebalance   = "rebalance-running"
	codeHibernation = "hibernation"
)

// codeMeanings is the table of the API (design/rest.md §2).
var codeMeanings = map[string]meaning{
	"not_needed": {code: codeNotNeeded, text: "nothing is missing",
		hint: "The destination's map names a node for every vbucket now."},
	"recovery_running": {code: codeRunning, text: "a recovery is under way already",
		hint: "Go on with it with --resume, or stop it first."},
	"uuid_missing": {code: "bad-request", text: "the request names no recovery",
		hint: "This should not happen; the destination may serve another version of the API."},
	"bad_or_missing_vbucket": {code: "bad-request", text: "the request names no vbucket that there is",
		hint: "This should not happen; the destination may serve another version of the API."},
	"unsupported": {code: "unsupported", text: "the cluster cannot recover vbuckets",
		hint: "All nodes of the destination have to run Couchbase Server 2.1 or later."},
	"not_present": {code: "not-present", text: "the destination has no such bucket, or is too old to recover vbuckets",
		hint: "Check that the bucket still exists. The API came with Couchbase Server 2.1."},
	"bad_recovery": {code: codeForgotten, text: "the destination knows nothing of this recovery any more",
		hint: "It was stopped by somebody else, or the cluster has a new master. Run the command again: what is committed stays."},
	"vbucket_not_found": {code: codeNoVBucket, text: "the vbucket is not part of the recovery",
		hint: "Somebody else may have committed it. Run the command again: it reads the map anew."},
	"failed_nodes": {code: codeFailedNodes, retry: true, text: "nodes of the destination did not do their part",
		hint: "Nothing was changed. Bring these nodes back or fail them over, then run the command again."},
	"internal_error": {code: "internal-error", retry: true, text: "the destination failed",
		hint: "Look at the destination's log, then run the command again."},
	"rebalance_running": {code: codeRebalance, text: "the destination is being rebalanced",
		hint: "Stop the rebalance: when it ends, the missing vbuckets are there, but empty. Then run the command again."},
	"in_bucket_hibernation": {code: codeHibernation, text: "a bucket of the destination is being paused or resumed",
		hint: "Wait until that is over, then run the command again."},
}

// passes reports a refusal that ends by itself.
func passes(err error) bool {
	code := pump.CodeOf(err)
	return code == codeRebalance || code == codeHibernation
}

func badAnswer(op string, err error) error {
	return &pump.Error{Code: "bad-answer", Op: op, Err: fmt.Errorf("the answer is not one of the recovery API: %w", err),
		Hint: "Check that the address is that of a cluster node and not of a proxy."}
}

// quote is a name that a server gave, fit for a message.
func quote(name string) string {
	const most = 80
	if len(name) > most {
		return fmt.Sprintf("%q…", name[:most])
	}
	return fmt.Sprintf("%q", name)
}
