// Package cluster is a Couchbase cluster as a client sees it: REST topology and
// vbucket map, credentials, and authenticated KV connections.
//
// A Client asks one node's REST port, with TLS where its address says so. Bucket
// gives the bucket with its nodes and vbucket map, KV says how to reach a node's
// data port, and DialKV connects there, logs in and selects the bucket, each in
// the way of the node's version. Addresses in the documents are put right on the
// way in ($HOST, loopback, TLS ports, external addresses), so everything that
// leaves this package can be dialled.
//
// What a connection may do was negotiated (Conn.Has), and what makes real servers
// close or park a connection is not sent: features and flags that a version does
// not know, PLAIN outside TLS, failover logs on connections that are not DCP.
//
// Every error names the role (source or destination), the node and what was
// asked, and never a secret (invariant 9).
package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/pump"
)

const (
	defaultTimeout = 30 * time.Second
	maxDocument    = 64 << 20 // bytes of one REST answer that are read
	maxRedirects   = 3
)

// Config says how to talk to a cluster. It prints without its password.
type Config struct {
	Role     string // "source" or "destination": named in errors
	Username string
	Password string
	Timeout  time.Duration // one REST request, or one KV connect and login; 0 = 30s
	Log      hclog.Logger

	// TLS is used where the address is https:// or couchbases://.
	TLS TLS
	// Network is NetworkAuto (also ""), NetworkDefault or NetworkExternal: by which
	// of their addresses data nodes are reached.
	Network string

	// MapWait is how long Bucket waits for the vbucket map of a bucket that was
	// just created; 0 = 30s.
	MapWait time.Duration
}

// Client asks the REST port of one node of a cluster. It is safe for concurrent use.
type Client struct {
	base     *url.URL
	role     string
	user     string
	password secret
	timeout  time.Duration
	mapWait  time.Duration
	log      hclog.Logger
	http     *http.Client
	clock    clock
	tls      *tls.Config // nil without TLS
	view     view
}

// NewClient returns a client of the node at rawURL: http://host[:port],
// couchbase://host or host[:port], IPv6 in brackets, port 8091 by default; https
// and couchbases speak TLS to REST and data ports, port 18091 by default. User
// info in the URL takes the place of the configured credentials. It reads the
// files of cfg.TLS and makes no connection. Errors have class usage.
func NewClient(rawURL string, cfg Config) (*Client, error) {
	base, info, err := parseAddress(rawURL)
	if err != nil {
		var e *pump.Error
		if errors.As(err, &e) {
			e.Op = cfg.Role
		}
		return nil, err
	}
	c := &Client{
		base: base, role: cfg.Role, user: cfg.Username, password: newSecret(cfg.Password),
		timeout: cfg.Timeout, mapWait: cfg.MapWait, log: cfg.Log, clock: realClock,
	}
	if c.role == "" {
		c.role = "cluster"
	}
	if info != nil {
		c.user = info.Username()
		if pw, ok := info.Password(); ok {
			c.password = newSecret(pw)
		}
	}
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	if c.mapWait <= 0 {
		c.mapWait = defaultTimeout
	}
	if c.log == nil {
		c.log = hclog.NewNullLogger()
	}
	if err := c.secure(cfg.TLS); err != nil {
		return nil, err
	}
	c.view = view{base: base.Host, tls: c.tls != nil, network: cfg.Network}
	switch c.view.network {
	case "":
		c.view.network = NetworkAuto
	case NetworkAuto, NetworkDefault, NetworkExternal:
	default:
		return nil, pump.Usagef("%s: the network is %q; it can be auto, default or external", c.role, clip(cfg.Network, 40))
	}
	dialer := &net.Dialer{Timeout: c.timeout}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &sniffConn{Conn: nc}, nil
	}
	c.http = &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			// No proxy: nodes are asked directly, and what is sent carries a password.
			DialContext: dial,
			DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				ctx, cancel := context.WithTimeout(ctx, c.timeout)
				defer cancel()
				tc := tls.Client(nc, forHost(c.tls, addr))
				if err := tc.HandshakeContext(ctx); err != nil {
					_ = nc.Close()
					return nil, &handshakeError{err: err, begin: nc.(*sniffConn).begin()}
				}
				return tc, nil
			},
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 1 << 20,
		},
	}
	return c, nil
}

// secure prepares TLS where the address asks for it.
func (c *Client) secure(t TLS) error {
	if c.base.Scheme != "https" {
		if t.given() {
			c.log.Warn("certificates and TLS options are not used: the address does not ask for TLS", "role", c.role, "url", c.URL(), "hint", "https:// or couchbases:// does")
		}
		return nil
	}
	cfg, err := t.Config()
	if err != nil {
		var e *pump.Error
		if errors.As(err, &e) {
			e.Op = c.role
		}
		return err
	}
	if t.InsecureSkipVerify {
		c.log.Warn("certificates are not verified: whoever sits between can read and change everything", "role", c.role, "url", c.URL())
	}
	c.tls = cfg
	return nil
}

// handshakeError is a TLS handshake of the REST port that failed.
type handshakeError struct {
	err   error
	begin string // what the peer sent first
}

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// URL returns the address that is asked, http://host:port, without user info.
func (c *Client) URL() string { return c.base.String() }

// Close closes idle connections. Requests that are under way finish first.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Response is the answer to a REST request, with its whole body.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends one request and returns the answer, whatever its status. path is
// absolute, with escaped parts, and may carry a query; form is sent as the query
// of a GET and as the form-encoded body of anything else.
//
// Errors: the node cannot be reached or stays silent (class unreachable), breaks
// off (retryable), speaks something other than HTTP, sends more than 64 MiB, or
// asks for a login: 401 with a WWW-Authenticate header (class denied). A 401
// without that header is an answer like any other.
func (c *Client) Do(ctx context.Context, method, path string, form url.Values) (*Response, error) {
	op := fmt.Sprintf("%s %s %s", c.role, method, c.at(path))
	target, err := c.base.Parse(path)
	if err != nil || target.Host != c.base.Host || !strings.HasPrefix(path, "/") {
		return nil, &pump.Error{Class: pump.ClassUsage, Code: "rest-path", Op: op, Err: errors.New("the path does not begin with one /")}
	}
	var body io.Reader
	if form != nil {
		if method == http.MethodGet || method == http.MethodHead {
			q := target.Query()
			for k, vs := range form {
				q[k] = append(q[k], vs...)
			}
			target.RawQuery = q.Encode()
		} else {
			body = strings.NewReader(form.Encode())
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, stopped(op, err)
	}
	defer trace(ctx, WaitRequest)()
	rctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var used atomic.Pointer[sniffConn]
	rctx = httptrace.WithClientTrace(rctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			nc := info.Conn
			if tc, ok := nc.(*tls.Conn); ok {
				nc = tc.NetConn()
			}
			if s, ok := nc.(*sniffConn); ok {
				used.Store(s)
			}
		},
	})
	req, err := http.NewRequestWithContext(rctx, method, target.String(), body)
	if err != nil {
		return nil, &pump.Error{Class: pump.ClassUsage, Code: "rest-path", Op: op, Err: errors.New("the request cannot be written down")}
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Accept", "application/json")
	if c.user != "" || c.password != nil {
		req.SetBasicAuth(c.user, c.password.reveal())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failure(ctx, op, err, used.Load())
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, c.failure(ctx, op, err, used.Load())
	}
	if len(got) > maxDocument {
		return nil, &pump.Error{Code: "rest-too-large", Op: op, Err: fmt.Errorf("the answer is larger than %d MiB", maxDocument>>20)}
	}
	if c.log.IsTrace() {
		c.log.Trace("asked", "role", c.role, "method", method, "at", c.at(path), "status", resp.StatusCode, "bytes", len(got))
	}
	r := &Response{Status: resp.StatusCode, Header: resp.Header, Body: got}
	switch {
	case r.Status == http.StatusUnauthorized && r.Header.Get("WWW-Authenticate") != "":
		return nil, c.denied(op)
	case r.Status == http.StatusBadRequest && bytes.Contains(got, []byte("HTTP request to an HTTPS server")):
		e := &pump.Error{Op: op}
		tlsFailure(nil, e, false, tlsAlert, restPorts)
		return nil, e
	}
	return r, nil
}

// Unexpected turns an answer whose status the caller has no use for into an
// error that says what the server said. asked is what was wanted, such as
// "read bucket beer".
func (c *Client) Unexpected(asked string, r *Response) error {
	op := fmt.Sprintf("%s %s: %s", c.role, c.URL(), asked)
	said := fmt.Errorf("the server answers %s", c.said(r))
	switch {
	case r.Status == http.StatusUnauthorized:
		return c.denied(op)
	case r.Status == http.StatusForbidden:
		return &pump.Error{
			Class: pump.ClassDenied, Code: "rest-forbidden", Op: op, Err: said,
			Hint: fmt.Sprintf("User %q lacks a permission on the %s; use another one%s.", c.user, c.role, c.userOptions()),
		}
	case r.Status == http.StatusNotFound:
		return &pump.Error{Code: "rest-not-found", Op: op, Err: said}
	case r.Status == http.StatusTooManyRequests || r.Status >= 500:
		return &pump.Error{Code: "rest-server-error", Op: op, Err: said, Retry: true}
	}
	return &pump.Error{Code: "rest-status", Op: op, Err: said}
}

func (c *Client) said(r *Response) string {
	text := c.readable(r.Body, 300)
	if r.Status >= 300 && r.Status < 400 {
		return fmt.Sprintf("%d and sends us elsewhere, which is not followed", r.Status)
	}
	if text == "" {
		return fmt.Sprintf("%d %s", r.Status, http.StatusText(r.Status))
	}
	return fmt.Sprintf("%d %s: %s", r.Status, http.StatusText(r.Status), text)
}

// readable is the text of a body without markup and without our credentials,
// which may stand in the markup and in the text.
func (c *Client) readable(body []byte, n int) string {
	raw := c.scrub(string(body[:min(len(body), textEnough)]))
	return clip(c.scrub(plainText(raw)), n)
}

// scrub takes the client's own credentials out of what a server sent back.
func (c *Client) scrub(text string) string {
	pw := c.password.reveal()
	if pw == "" {
		return text
	}
	return scrub(text, pw, url.QueryEscape(pw), url.PathEscape(pw), base64.StdEncoding.EncodeToString([]byte(c.user+":"+pw)))
}

// at is a path's place as it may be printed: the query may hold anything.
func (c *Client) at(path string) string {
	path, _, _ = strings.Cut(path, "?")
	return c.URL() + clip(path, 200)
}

// userOptions names the options that give this side's credentials.
func (c *Client) userOptions() string { return optionsOf(c.role) }

func (c *Client) denied(op string) error {
	e := &pump.Error{Class: pump.ClassDenied, Code: "rest-denied", Op: op}
	if c.user == "" && c.password == nil {
		e.Err = errors.New("access denied: the server wants a user and a password, and none was given")
		e.Hint = fmt.Sprintf("Give the user and the password of the %s%s.", c.role, c.userOptions())
		return e
	}
	e.Err = fmt.Errorf("access denied: the server refuses user %q or the password", c.user)
	e.Hint = fmt.Sprintf("Check the user and the password of the %s%s.", c.role, c.userOptions())
	return e
}

// failure explains why no answer came.
func (c *Client) failure(ctx context.Context, op string, err error, used *sniffConn) error {
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err // its text repeats method and URL
	}
	e := &pump.Error{Code: "rest-failed", Op: op, Err: err}
	var redirect *redirectError
	begin := ""
	if used != nil {
		begin = used.begin()
	}
	var shake *handshakeError
	if errors.As(err, &shake) {
		begin = shake.begin
	}
	switch {
	case ctx.Err() != nil:
		return stopped(op, ctx.Err())
	case errors.As(err, &redirect):
		e.Code = "rest-redirect"
		e.Hint = "Give the address of a node of the cluster itself."
	case tlsFailure(err, e, c.tls != nil, begin, restPorts):
	case dialFailure(err, e):
	case isTimeout(err):
		e.Class, e.Code, e.Retry = pump.ClassUnreachable, "rest-timeout", true
		e.Err = fmt.Errorf("no answer within %v", c.timeout)
	case c.tls == nil && used != nil && used.startsOther("HTTP/"):
		e.Class, e.Code = pump.ClassUnreachable, "not-http"
		e.Err = fmt.Errorf("this port does not speak HTTP; its answer begins with %q", used.shown(c.scrub))
		e.Hint = "The REST port of a node is 8091; 11210 and 11211 are data ports."
	case isCut(err):
		e.Code, e.Retry = "rest-cut", true
		e.Err = errors.New("the server closed the connection before its answer was complete")
		switch {
		case begin != "":
		case c.tls != nil:
			e.Class, e.Hint = pump.ClassUnreachable, "Is this the REST port with TLS (18091)?"
		default:
			e.Class = pump.ClassUnreachable
			e.Hint = "Is this the REST port (8091), and not a data port? A port that speaks TLS may close without a word too: then give the address as https:// or couchbases:// (usually port 18091)."
		}
	default:
		e.Err = errors.New(clip(c.scrub(err.Error()), 300))
		e.Retry = true
	}
	return e
}

type redirectError struct{ to string }

func (e *redirectError) Error() string {
	return "the server sends us to " + e.to + ", where credentials do not go"
}

// checkRedirect follows a GET within one host and port and nothing else:
// elsewhere the credentials are not for, and a redirected POST becomes a GET
// whose success would mean nothing.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0]
	if req.URL.Host != first.URL.Host || req.URL.Scheme != first.URL.Scheme {
		to := url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host}
		return &redirectError{to: clip(to.String(), 120)}
	}
	if first.Method != http.MethodGet || len(via) > maxRedirects {
		return http.ErrUseLastResponse
	}
	return nil
}

// stopped is the error of what the caller's context ended.
func stopped(op string, err error) error {
	code := "interrupted"
	if errors.Is(err, context.DeadlineExceeded) {
		code = "time-limit"
	}
	return &pump.Error{Code: code, Op: op, Err: err}
}

// clock is time as waiting loops see it; tests have one of their own.
type clock struct {
	now   func() time.Time
	pause func(ctx context.Context, d time.Duration) error
}

var realClock = clock{now: time.Now, pause: pause}

// pause waits for d or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
