package tap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// Options of the source. Their help texts are the documentation.
type Options struct {
	FlushTimeout time.Duration `opt:"flush-timeout" default:"60s" help:"how long to wait before a dump until the node has written everything to disk (3.0 and later dump from disk); 0 does not wait"`
	IdleTimeout  time.Duration `opt:"idle-timeout" default:"180s" help:"silence of a node after which a dump is given up; NOOPs do not count as a sign of life"`
	DumpVBuckets int           `opt:"dump-vbuckets" default:"64" help:"most vbuckets that one connection dumps; a cut costs no more than these"`
	EndProof     string        `opt:"end-proof" default:"marker" enum:"marker,count" help:"what proves the end of a vbucket beside its item count: the server's end marker, or (count) also its absence where the last message was acknowledged"`
}

// DefaultOptions returns the declared defaults.
func DefaultOptions() Options {
	var o Options
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = pump.DecodeOptions("tap", nil, &o)
	return o
}

// Values of the option end-proof.
const (
	endProofMarker = "marker"
	endProofCount  = "count"
)

// Plugin returns the declaration of the source for a registry: http and
// couchbase for clusters, tap for one node. A frontend that wants only some of
// the schemes changes Schemes before it registers.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes: []string{"http", "couchbase", "tap"},
		Summary: "dumps a bucket over TAP from a cluster (http, couchbase) or from one node (tap://host:11210); servers up to 4.6",
		Doc: "Every vbucket's end is proven by the server's end marker and its item count; what cannot be proven is dumped again, " +
			"and named in the error if it still cannot. The vbucket list restricts the dump to those vbuckets. " +
			"With tap:// the vbuckets that are active on that node are dumped. It logs in as the bucket (-b) with the bucket's own password (-p); " +
			"another user, such as the REST port's from CB_REST_USERNAME, is not used: then the bucket is tried without a password first.",
		New: func(ctx context.Context, t pump.Target, o Options) (pump.Source, error) {
			return New(ctx, Config{URL: t.Name(), Env: t.Env, TLS: cluster.TLSOf(t.Security), Network: t.Security.Network, Options: o})
		},
	}
}

// Config says what to dump.
type Config struct {
	URL string // http://host[:8091], couchbase://host or tap://host[:11210]
	pump.Env
	TLS     cluster.TLS // used where URL asks for TLS
	Network string      // cluster.NetworkAuto (also ""), …
	Options Options     // the zero value means DefaultOptions
}

// New returns a source. It makes no connection; its errors are of wrong use.
func New(_ context.Context, cfg Config) (*DumpSource, error) {
	if cfg.Options == (Options{}) {
		cfg.Options = DefaultOptions()
	}
	o := &cfg.Options
	switch {
	case o.FlushTimeout < 0:
		return nil, pump.Usagef("option flush-timeout is negative")
	case o.IdleTimeout <= 0:
		return nil, pump.Usagef("option idle-timeout must be above 0: a node that falls silent would be waited for for ever")
	case o.DumpVBuckets < 1:
		return nil, pump.Usagef("option dump-vbuckets must be 1 or more")
	case o.EndProof != endProofMarker && o.EndProof != endProofCount:
		return nil, pump.Usagef("option end-proof must be %s or %s", endProofMarker, endProofCount)
	}
	if cfg.Bucket == "" {
		cfg.Bucket = "default"
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	s := &DumpSource{cfg: cfg}
	if scheme, rest, ok := strings.Cut(cfg.URL, "://"); ok && strings.EqualFold(scheme, "tap") {
		addr, err := nodeAddr(rest)
		if err != nil {
			return nil, err
		}
		s.places = &oneNode{addr: addr, cfg: &s.cfg}
		return s, nil
	}
	places, err := newManyNodes(&s.cfg)
	if err != nil {
		return nil, err
	}
	s.places = places
	return s, nil
}

// nodeAddr completes the host[:port] behind tap://.
func nodeAddr(rest string) (string, error) {
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		return "", pump.Usagef("tap://: give user and password as options, not in the address")
	}
	rest = strings.TrimSuffix(rest, "/")
	host, port, err := net.SplitHostPort(rest)
	var missing *net.AddrError
	if errors.As(err, &missing) && missing.Err == "missing port in address" {
		host, port, err = strings.Trim(rest, "[]"), strconv.Itoa(defaultKVPort), nil
	}
	if err != nil || host == "" || strings.ContainsAny(host, "/?#,") {
		return "", pump.Usagef("tap://%s: one node is tap://host:%d, with an IPv6 address in brackets", rest, defaultKVPort)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", pump.Usagef("tap://%s: the port is not between 1 and 65535", rest)
	}
	return net.JoinHostPort(host, port), nil
}

const defaultKVPort = 11210

// Codes of the errors of this package. They are stable.
const (
	codeCut         = "tap-cut"         // the connection was cut or broke in mid-dump
	codeIncomplete  = "tap-incomplete"  // the dump ended, but a vbucket's end is not proven
	codeIdle        = "tap-idle"        // the node fell silent
	codeNotActive   = "tap-not-active"  // a vbucket is not active where it should be
	codeMissing     = "tap-missing"     // a vbucket has no active copy at all
	codeNoVBucket   = "tap-no-vbucket"  // the bucket has no such vbucket
	codeNothing     = "tap-nothing"     // the node has no active vbucket
	codeUnflushed   = "tap-unflushed"   // the node's disk queue does not get empty
	codeUnsupported = "tap-unsupported" // the server has no TAP
	codeRefused     = "tap-refused"     // the server refused the dump
	codeFlushed     = "tap-flushed"     // the bucket was flushed in mid-dump
	codeProtocol    = "tap-protocol"    // the peer does not speak TAP
	codeForeign     = "tap-foreign"     // messages of a vbucket that was not asked for
)

var errNoTap = errors.New("the server has no TAP (it was removed in Couchbase Server 5.0)")

func noTap(op string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: codeUnsupported, Op: op, Err: errNoTap,
		Hint: "This source reads servers up to 4.6; newer ones are read over DCP."}
}

// listVBuckets writes vbuckets for a message or a name: "vbucket 5",
// "vbuckets 0-31,40". The list must be sorted.
func listVBuckets(vbs []uint16) string {
	if len(vbs) == 1 {
		return "vbucket " + strconv.Itoa(int(vbs[0]))
	}
	return "vbuckets " + ranges(vbs)
}

// ranges writes a sorted list as "0-31,40"; long ones are cut short.
func ranges(vbs []uint16) string {
	const most = 8
	var b strings.Builder
	for i, n := 0, 0; i < len(vbs); n++ {
		j := i
		for j+1 < len(vbs) && vbs[j+1] == vbs[j]+1 {
			j++
		}
		if n == most {
			fmt.Fprintf(&b, " and %d more", len(vbs)-i)
			break
		}
		if n > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(vbs[i])))
		if j > i {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(vbs[j])))
		}
		i = j + 1
	}
	return b.String()
}
