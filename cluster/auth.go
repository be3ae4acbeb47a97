package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// authenticator is one way to log in. It returns errMechanism when the server
// does not know it after all, before it was given anything secret.
type authenticator struct {
	mechanism string
	login     func(ctx context.Context, c *Conn, user string, password secret) error
}

// authenticators are the ways we know, the better ones first.
var authenticators = []authenticator{
	{"CRAM-MD5", loginCramMD5},
	{"PLAIN", loginPlain},
}

var errMechanism = errors.New("the server does not know the mechanism")

// login logs in with the first way that the server offers and knows.
func (c *Conn) login(ctx context.Context, user string, password secret) error {
	offered, err := c.mechanisms(ctx)
	if err != nil {
		return err
	}
	// SCRAM without CRAM-MD5 is what servers from 5.0 on offer. They want a user
	// instead of a bucket, so PLAIN with the bucket's name is not tried.
	scram := slices.ContainsFunc(offered, func(m string) bool { return strings.HasPrefix(m, "SCRAM-") })
	if scram && !slices.Contains(offered, "CRAM-MD5") {
		return c.tooNew("log in to bucket "+quote(user), "")
	}
	for _, a := range authenticators {
		if !slices.Contains(offered, a.mechanism) {
			continue
		}
		err := a.login(ctx, c, user, password)
		if !errors.Is(err, errMechanism) {
			return err
		}
		c.log.Debug("login mechanism is not known after all", "node", c.addr, "mechanism", a.mechanism)
	}
	return &pump.Error{
		Class: pump.ClassDenied, Code: "kv-no-login", Op: c.name() + ": log in to bucket " + quote(user),
		Err: fmt.Errorf("the node offers no way to log in that we know; it offers %s", clip(strings.Join(offered, " "), 100)),
	}
}

func (c *Conn) mechanisms(ctx context.Context) ([]string, error) {
	f, err := c.ask(ctx, mcbp.OpSASLList, 0, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	switch f.Status() {
	case mcbp.StatusOK:
		return strings.Fields(string(f.Value())), nil
	case mcbp.StatusUnknown, mcbp.StatusNotSupported:
		return nil, &pump.Error{
			Class: pump.ClassDenied, Code: "kv-no-login", Op: c.name() + ": log in",
			Err:  errors.New("the node knows no login, so a bucket cannot be chosen"),
			Hint: "Is this a plain memcached server? It is used with memcached://host:port.",
		}
	}
	return nil, c.refused("log in", &f)
}

func loginCramMD5(ctx context.Context, c *Conn, user string, password secret) error {
	f, err := c.ask(ctx, mcbp.OpSASLAuth, 0, nil, []byte("CRAM-MD5"), nil)
	if err != nil {
		return err
	}
	switch f.Status() {
	case mcbp.StatusAuthContinue:
	case mcbp.StatusAuthError, mcbp.StatusUnknown, mcbp.StatusNotSupported, mcbp.StatusInvalid:
		return errMechanism // nothing secret was sent: this is not about the password
	default:
		return c.refused("log in to bucket "+quote(user), &f)
	}
	answer := mcbp.SASLCramMD5(user, password.reveal(), f.Value())
	f, err = c.ask(ctx, mcbp.OpSASLStep, 0, nil, []byte("CRAM-MD5"), answer)
	if err != nil {
		return err
	}
	return c.loggedIn(user, &f)
}

func loginPlain(ctx context.Context, c *Conn, user string, password secret) error {
	f, err := c.ask(ctx, mcbp.OpSASLAuth, 0, nil, []byte("PLAIN"), mcbp.SASLPlain(user, password.reveal()))
	if err != nil {
		return err
	}
	return c.loggedIn(user, &f)
}

// loggedIn judges the last answer of a login. What the server says beside its
// status is not repeated: it may hold what we sent.
func (c *Conn) loggedIn(user string, f *mcbp.Frame) error {
	op := c.name() + ": log in to bucket " + quote(user)
	switch f.Status() {
	case mcbp.StatusOK:
		return nil
	case mcbp.StatusAuthError:
		return &pump.Error{
			Class: pump.ClassDenied, Code: "kv-denied", Op: op,
			Err:  errors.New("the node refuses the login with the bucket's password (0x20)"),
			Hint: "Up to 4.x the password is the bucket's own, not the administrator's. Does the user see it, and has the bucket just been created or changed?",
		}
	case mcbp.StatusTmpFail, mcbp.StatusBusy, mcbp.StatusNoMemory, mcbp.StatusInternal:
		return &pump.Error{Code: "kv-status", Op: op, Err: &StatusError{Status: f.Status()}, Retry: true}
	}
	return &pump.Error{Class: pump.ClassDenied, Code: "kv-denied", Op: op, Err: &StatusError{Status: f.Status()}}
}

func (c *Conn) tooNew(op, version string) error {
	what := "this node is Couchbase Server 5.0 or later (it offers SCRAM logins only)"
	if version != "" {
		what = "this node is Couchbase Server " + version
	}
	return &pump.Error{
		Class: pump.ClassUsage, Code: "version-unsupported", Op: c.name() + ": " + op,
		Err: errors.New(what + "; this version of cbpump supports 1.8 to 4.x"),
	}
}
