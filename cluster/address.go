package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cbpump/cbpump/pump"
)

// The REST ports that are meant where none is given.
const (
	defaultRESTPort = "8091"
	defaultTLSPort  = "18091"
)

// parseAddress reads the address of a cluster: http://host[:port],
// couchbase://host or a bare host[:port]; https and couchbases mean TLS. Errors
// print no user info.
func parseAddress(raw string) (base *url.URL, user *url.Userinfo, err error) {
	wrong := func(format string, args ...any) (*url.URL, *url.Userinfo, error) {
		return nil, nil, pump.Usagef("cluster address %s: %w", showAddress(raw), fmt.Errorf(format, args...))
	}
	full := raw
	if !strings.Contains(raw, "://") {
		if net.ParseIP(raw) != nil && strings.Contains(raw, ":") {
			return wrong("an IPv6 address goes in brackets, such as [::1]:8091")
		}
		full = "http://" + raw
	}
	u, perr := url.Parse(full)
	if perr != nil {
		if strings.Contains(raw, "@") {
			// The parser's message may quote a part of the password.
			return wrong("this is no URL; in user and password, write characters such as / ? # @ : %% percent-encoded")
		}
		var inner *url.Error
		if errors.As(perr, &inner) {
			perr = inner.Err
		}
		return wrong("this is no URL: %w", perr)
	}
	scheme, port := "http", defaultRESTPort
	switch strings.ToLower(u.Scheme) {
	case "http", "couchbase":
	case "https", "couchbases":
		scheme, port = "https", defaultTLSPort
	default:
		return wrong("a cluster is http://host:8091, https://host:18091, couchbase://host or couchbases://host, not %s://", u.Scheme)
	}
	if strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
		return wrong("an @ behind the host: in user and password, write characters such as / ? # @ : %% percent-encoded")
	}
	switch strings.TrimRight(u.Path, "/") {
	case "", "/pools", "/pools/default", "/index.html", "/ui", "/ui/index.html": // what people copy from elsewhere
	default:
		return wrong("the path %q is not part of a cluster's address; buckets are named with options", clip(u.Path, 60))
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return wrong("a query or fragment is not part of a cluster's address")
	}
	host := u.Hostname()
	if u.Port() != "" {
		port = u.Port()
	}
	switch {
	case host == "":
		return wrong("the host is missing")
	case strings.Contains(host, ","):
		return wrong("give one node of the cluster; the others are found through it")
	case strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == '"' || r == '\\' || r == 0x7f }):
		return wrong("the host has characters that no host has")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return wrong("port %s is not between 1 and 65535", port)
	}
	return &url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)}, u.User, nil
}

// showAddress is an address as it may be printed: without user info, and short.
func showAddress(raw string) string {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		scheme, rest = "", raw
	} else {
		scheme += "://"
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = rest[at+1:]
	}
	if rest, _, ok = strings.Cut(rest, "?"); ok {
		rest += "?…"
	}
	return strconv.Quote(clip(scheme+rest, 120))
}

// splitAddr splits host:port as topology documents write it: old servers know
// no brackets, so the port is what follows the last colon.
func splitAddr(addr string) (host, port string, err error) {
	if host, port, err = net.SplitHostPort(addr); err != nil {
		colon := strings.LastIndexByte(addr, ':')
		if colon < 0 || net.ParseIP(addr[:colon]) == nil {
			return "", "", fmt.Errorf("%q is not host:port", clip(addr, 80))
		}
		host, port = addr[:colon], addr[colon+1:]
	}
	if n, perr := strconv.ParseUint(port, 10, 16); perr != nil || n == 0 {
		return "", "", fmt.Errorf("%q has no port between 1 and 65535", clip(addr, 80))
	}
	return host, port, nil
}

// seenFrom puts right a host that a node gave for itself: $HOST, a loopback
// address or nothing mean the host that was asked, unless that is this machine.
func seenFrom(asked, host string) string {
	switch {
	case host == "" || host == "$HOST":
		return asked
	case isLoopback(host) && !isLoopback(asked):
		return asked
	}
	return host
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// sameAddr reports that two host:port texts name the same endpoint as far as
// that can be said without asking a name server.
func sameAddr(a, b string) bool {
	if a == b {
		return true
	}
	ah, ap, aerr := splitAddr(a)
	bh, bp, berr := splitAddr(b)
	if aerr != nil || berr != nil || ap != bp {
		return false
	}
	if strings.EqualFold(ah, bh) || isLoopback(ah) && isLoopback(bh) {
		return true
	}
	ai, bi := net.ParseIP(ah), net.ParseIP(bh)
	return ai != nil && bi != nil && ai.Equal(bi)
}

// listNames writes names for a message: sorted, quoted, not endless.
func listNames(names []string) string {
	const most = 20
	names = slices.Sorted(slices.Values(names))
	var b strings.Builder
	for i, n := range names {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(names)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(clip(n, 100)))
	}
	return b.String()
}
