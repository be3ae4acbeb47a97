package cli

import (
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/cbpump/cbpump/pump"
)

// server is what this package knows of a built-in scheme that names a server.
type server struct {
	port    string // where none is given
	cluster bool   // a REST address: inherits credentials
	bucket  bool   // -b and -B choose a bucket
}

var (
	restServer     = server{"8091", true, true}
	restServerTLS  = server{"18091", true, true}
	clusterSchemes = map[string]server{
		"http": restServer, "couchbase": restServer, "https": restServerTLS, "couchbases": restServerTLS,
	}
)

// serverOf returns what is known of a target's scheme; nothing for others'
// plugins.
func serverOf(t *pump.Target) server {
	switch {
	case t.Scheme == "tap" && t.Role == pump.RoleSink:
		return restServer // pushes into a cluster
	case t.Scheme == "tap":
		return server{"11210", false, true} // dumps one node
	case t.Scheme == "memcached":
		return server{"11211", false, false}
	}
	return clusterSchemes[t.Scheme]
}

// refuseSame refuses a transfer onto itself: here as far as the addresses show it,
// the same server and bucket or the same file, and when the ends are checked by what
// they turn out to be.
func refuseSame(src, dst *pump.Resolved) error {
	a, b := &src.Target, &dst.Target
	same := false
	switch aNet, bNet := strings.HasPrefix(a.Rest, "//"), strings.HasPrefix(b.Rest, "//"); {
	case aNet && bNet:
		same = a.Bucket == b.Bucket && endpoint(a) != "" && endpoint(a) == endpoint(b)
	case !aNet && !bNet:
		same = sameFile(a.Rest, b.Rest)
	}
	if !same {
		dst.Apart(src)
		return nil
	}
	what := "file " + a.Rest
	if strings.HasPrefix(a.Rest, "//") {
		what = "bucket " + a.Bucket + " at " + a.Host()
	}
	return &pump.Error{
		Class: pump.ClassUsage, Code: "same-ends",
		Op:   "source and destination are the same: " + what,
		Hint: "Name another bucket with -B, or another destination.",
	}
}

// endpoint is host and port in one spelling.
func endpoint(t *pump.Target) string {
	host, port, err := net.SplitHostPort(t.Host())
	if err != nil {
		host, port = strings.Trim(t.Host(), "[]"), serverOf(t).port
	}
	if ip := net.ParseIP(host); strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback() {
		host = "localhost"
	} else if ip != nil {
		host = ip.String()
	}
	return net.JoinHostPort(strings.ToLower(host), port)
}

func sameFile(a, b string) bool {
	if a == "" || b == "" {
		return false // gen:, null: and the like
	}
	if x, err := os.Stat(a); err == nil {
		if y, err := os.Stat(b); err == nil {
			return os.SameFile(x, y)
		}
		return false
	}
	x, err1 := filepath.Abs(a)
	y, err2 := filepath.Abs(b)
	return err1 == nil && err2 == nil && x == y
}
