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

// account is who logs in, and how an error names it.
type account struct {
	user     string
	password secret
	op       string // "log in to bucket x", "log in as user x"
	hint     string // what to look at when the login is refused
}

// bucketAccount is the bucket itself, which servers up to 4.x know as a user.
func bucketAccount(cfg *KVConfig) account {
	return account{
		user: cfg.Bucket, password: newSecret(cfg.Password), op: "log in to bucket " + quote(cfg.Bucket),
		hint: "Up to 4.x the password is the bucket's own, not the administrator's. Does the user see it, and has the bucket just been created or changed?",
	}
}

// userAccount is the user of servers from 5.0 on. Where none was given it is the
// user with the bucket's name, which upgrades from 4.x leave behind.
func userAccount(cfg *KVConfig) account {
	a := account{user: cfg.Username, password: newSecret(cfg.UserPassword)}
	if a.user == "" && cfg.Bucket != "" {
		a.user, a.password = cfg.Bucket, newSecret(cfg.Password)
	}
	a.op = "log in as user " + quote(a.user)
	a.hint = "Check the user and the password" + optionsOf(cfg.Role) + "."
	return a
}

// optionsOf names the options that give a side's credentials.
func optionsOf(role string) string {
	switch role {
	case "source":
		return " (-u, -p)"
	case "destination":
		return " (-U, -P)"
	}
	return ""
}

// authenticator is one way to log in. It returns errMechanism when the server
// does not know it after all, before it was given anything secret.
type authenticator struct {
	mechanism string
	login     func(ctx context.Context, c *Conn, a account) error
}

// authenticators are the ways up to 4.x, the better ones first.
var authenticators = []authenticator{
	{"CRAM-MD5", loginCramMD5},
	{"PLAIN", loginPlain},
}

// scramMechanisms are the ways from 5.0 on, the better ones first.
var scramMechanisms = []string{"SCRAM-SHA512", "SCRAM-SHA256", "SCRAM-SHA1"}

var errMechanism = errors.New("the server does not know the mechanism")

// onlyScram recognises servers from 5.0 on: they offer SCRAM and no CRAM-MD5.
// They want a user instead of a bucket.
func onlyScram(offered []string) bool {
	scram := slices.ContainsFunc(offered, func(m string) bool { return strings.HasPrefix(m, "SCRAM-") })
	return scram && !slices.Contains(offered, "CRAM-MD5")
}

// loginOld logs in to a server up to 4.x with the first way that it offers and knows.
func (c *Conn) loginOld(ctx context.Context, a account, offered []string) error {
	for _, w := range authenticators {
		if !slices.Contains(offered, w.mechanism) {
			continue
		}
		err := w.login(ctx, c, a)
		if !errors.Is(err, errMechanism) {
			return err
		}
		c.log.Debug("login mechanism is not known after all", "node", c.addr, "mechanism", w.mechanism)
	}
	return c.noLogin(a, offered)
}

// loginUser logs in to a server from 5.0 on: SCRAM, in which no password leaves
// this process and the node proves itself; PLAIN only inside TLS, for users that
// the server knows by an outside service (LDAP, PAM) and so cannot check by SCRAM.
func (c *Conn) loginUser(ctx context.Context, a account, offered []string) error {
	plain := c.tls && slices.Contains(offered, "PLAIN")
	for _, m := range scramMechanisms {
		if !slices.Contains(offered, m) {
			continue
		}
		err := c.loginScram(ctx, m, a)
		switch {
		case errors.Is(err, errMechanism):
			c.log.Debug("login mechanism is not known after all", "node", c.addr, "mechanism", m)
			continue
		case plain && isStatus(err, mcbp.StatusAuthError):
			return loginPlain(ctx, c, a)
		}
		return err
	}
	if plain {
		return loginPlain(ctx, c, a)
	}
	if slices.Contains(offered, "PLAIN") {
		return &pump.Error{
			Class: pump.ClassDenied, Code: "kv-plain-refused", Op: c.name() + ": " + a.op,
			Err:  errors.New("the node offers only PLAIN, which would send the password in clear text"),
			Hint: "Use TLS: https:// or couchbases://.",
		}
	}
	return c.noLogin(a, offered)
}

func (c *Conn) noLogin(a account, offered []string) error {
	return &pump.Error{
		Class: pump.ClassDenied, Code: "kv-no-login", Op: c.name() + ": " + a.op,
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
	return nil, c.Refused("log in", &f)
}

// unknownMechanism reports that a first message, which held nothing secret, was
// not answered with a challenge because the mechanism is not known.
func unknownMechanism(s mcbp.Status) bool {
	return s == mcbp.StatusUnknown || s == mcbp.StatusNotSupported || s == mcbp.StatusInvalid
}

func loginCramMD5(ctx context.Context, c *Conn, a account) error {
	f, err := c.ask(ctx, mcbp.OpSASLAuth, 0, nil, []byte("CRAM-MD5"), nil)
	if err != nil {
		return err
	}
	switch s := f.Status(); {
	case s == mcbp.StatusAuthContinue:
	case s == mcbp.StatusAuthError || unknownMechanism(s):
		return errMechanism // this is not about the password
	default:
		return c.Refused(a.op, &f)
	}
	answer := mcbp.SASLCramMD5(a.user, a.password.reveal(), f.Value())
	f, err = c.ask(ctx, mcbp.OpSASLStep, 0, nil, []byte("CRAM-MD5"), answer)
	if err != nil {
		return err
	}
	return c.loggedIn(a, &f)
}

func loginPlain(ctx context.Context, c *Conn, a account) error {
	f, err := c.ask(ctx, mcbp.OpSASLAuth, 0, nil, []byte("PLAIN"), mcbp.SASLPlain(a.user, a.password.reveal()))
	if err != nil {
		return err
	}
	return c.loggedIn(a, &f)
}

func (c *Conn) loginScram(ctx context.Context, mechanism string, a account) error {
	s := newScram(mechanism, a.user, a.password, c.nonce())
	f, err := c.ask(ctx, mcbp.OpSASLAuth, 0, nil, []byte(mechanism), s.first())
	if err != nil {
		return err
	}
	switch st := f.Status(); {
	case st == mcbp.StatusAuthContinue:
	case unknownMechanism(st):
		return errMechanism
	case st == mcbp.StatusOK:
		return c.unproven(a) // a yes to a message without any proof
	default:
		return c.loggedIn(a, &f)
	}
	final, err := s.final(f.Value())
	if err != nil {
		return &pump.Error{Class: pump.ClassDenied, Code: "kv-protocol", Op: c.name() + ": " + a.op, Err: err}
	}
	if f, err = c.ask(ctx, mcbp.OpSASLStep, 0, nil, []byte(mechanism), final); err != nil {
		return err
	}
	if err := c.loggedIn(a, &f); err != nil {
		return err
	}
	if s.verify(f.Value()) != nil {
		return c.unproven(a)
	}
	return nil
}

func (c *Conn) unproven(a account) error {
	return &pump.Error{
		Class: pump.ClassDenied, Code: "kv-server-proof", Op: c.name() + ": " + a.op, Err: errServerProof,
		Hint: "Something between here and the node may be posing as the node. Check the address, and use TLS.",
	}
}

// loggedIn judges the last answer of a login. What the server says beside its
// status is not repeated: it may hold what we sent.
func (c *Conn) loggedIn(a account, f *mcbp.Frame) error {
	e := &pump.Error{Class: pump.ClassDenied, Code: "kv-denied", Op: c.name() + ": " + a.op, Err: &StatusError{Status: f.Status()}}
	switch f.Status() {
	case mcbp.StatusOK:
		return nil
	case mcbp.StatusAuthError:
		e.Err = fmt.Errorf("the node refuses the user or the password: %w", e.Err)
		e.Hint = a.hint
	case mcbp.StatusTmpFail, mcbp.StatusBusy, mcbp.StatusNoMemory, mcbp.StatusInternal:
		e.Class, e.Code, e.Retry = pump.ClassFailed, "kv-status", true
	}
	return e
}

func isStatus(err error, want mcbp.Status) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Status == want
}
