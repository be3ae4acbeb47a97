package recovery

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/compare"
)

// Endpoint is one of the two clusters.
type Endpoint struct {
	URL      string // of any node: http://10.1.2.3:8091
	Bucket   string // "" means "default"
	Username string
	Password string // a secret: never printed

	TLS     cluster.TLS // used where URL asks for TLS
	Network string      // cluster.NetworkAuto (also ""), NetworkDefault or NetworkExternal
}

// Options is one recovery.
type Options struct {
	Source      Endpoint
	Destination Endpoint
	API         string // APIAuto ("" too), APIProposal or APIController
	// Resume goes on with a recovery that is under way at the destination
	// (controller); without it that is an error, since it may be somebody else's.
	Resume bool
	// Transfer is by what vbuckets are pushed: TransferAuto ("" too), TransferTAP,
	// TransferDCP or TransferWithMeta.
	Transfer string

	// VBuckets restricts the recovery to these (sorted or not); nil means all
	// that are missing.
	VBuckets []uint16
	// AddNode and RemoveNode (host:port) go together: the new node takes the
	// place of the failed-over one.
	AddNode, RemoveNode string
	// DryRun ends after Plan. Nothing is changed anywhere: only GET requests
	// and statistics are sent.
	DryRun bool

	// Checkpoint is a folder in which the run keeps which vbuckets have come whole,
	// "" for none. What an earlier run kept there is verified anew and, if it is
	// still like the source, not transferred again; that takes a Verifier.
	Checkpoint string

	Threads  int           // lanes of the transfer; 0 leaves it to the sink
	Settings pump.Settings // of the engine; the zero value means the defaults
	Limits   *pump.Limits  // of the transfer; nil: none
	Monitor  *pump.Monitor // shows what the transfer is doing; may be nil
	// Verify is how closely a vbucket is compared with the source before it is made
	// active: compare.Digest ("" too), compare.Full or compare.Count.
	Verify compare.Mode
	// Verifier is asked too about each vbucket that is found to be like the source; may
	// be nil.
	Verifier Verifier

	// SourceOptions and SinkOptions are those of the two ends of the transfer; the
	// zero values mean the declared defaults.
	SourceOptions SourceOptions
	SinkOptions   SinkOptions

	Log hclog.Logger // nil: nothing is logged
	// OnEvent is told what happens, one event at a time. It must not block.
	OnEvent func(Event)
	// Stop, when closed, ends the recovery in order: what was read is written,
	// vbuckets that are whole are still verified and activated, the rest is not.
	Stop <-chan struct{}

	Timing Timing // the zero value means the defaults
}

// Timing bounds how long recovery waits for the clusters. Zero fields take
// their defaults.
type Timing struct {
	Request    time.Duration // one REST request, or one connect and login; 30 s
	Tries      int           // sends of one REST request; 5
	RetryMin   time.Duration // first pause between them, it doubles; 250 ms
	RetryMax   time.Duration // longest pause; 5 s
	Settle     time.Duration // how long an accepted (202) change may take to be seen; 60 s
	VerifyFor  time.Duration // how long differing counts may take to become equal; 10 s
	Busy       time.Duration // how long to wait for the end of a rebalance that keeps a recovery from starting; 2 min
	Watch      time.Duration // how often a transfer looks whether the destination still knows of the recovery; 2 s
	FlushFor   time.Duration // how long owners may take to write to disk before a warning is given; 60 s
	ProgressBy time.Duration // time between two Progress events; 1 s
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.Request, 30*time.Second)
	def(&t.RetryMin, 250*time.Millisecond)
	def(&t.RetryMax, 5*time.Second)
	def(&t.Settle, time.Minute)
	def(&t.VerifyFor, 10*time.Second)
	def(&t.Busy, 2*time.Minute)
	def(&t.Watch, 2*time.Second)
	def(&t.FlushFor, time.Minute)
	def(&t.ProgressBy, time.Second)
	if t.Tries <= 0 {
		t.Tries = 5
	}
	return t
}

// check finds wrong use that needs no cluster to be seen, and fills in defaults.
func (o *Options) check() error {
	for _, e := range []struct {
		end  *Endpoint
		role string
	}{{&o.Source, "restore_from"}, {&o.Destination, "restore_to"}} {
		if e.end.URL == "" {
			return pump.Usagef("%s: the address of a cluster is missing, such as http://10.1.2.3:8091", e.role)
		}
		if e.end.Bucket == "" {
			e.end.Bucket = "default"
		}
	}
	switch o.API {
	case "":
		o.API = APIAuto
	case APIAuto, APIProposal, APIController:
	default:
		return pump.Usagef("--recovery-api %q: it is %s, %s or %s", o.API, APIAuto, APIProposal, APIController)
	}
	if o.Verify == "" {
		o.Verify = compare.Digest
	}
	if !slices.Contains(compare.Modes(), o.Verify) {
		return pump.Usagef("--verify %q: it is count, digest or full", o.Verify)
	}
	if o.Transfer == "" {
		o.Transfer = TransferAuto
	}
	if all := names(sinkProtocols); !slices.Contains(all, o.Transfer) {
		return pump.Usagef("--transfer %q: it can be %s", o.Transfer, strings.Join(all, ", "))
	}
	if o.SourceOptions == (SourceOptions{}) {
		o.SourceOptions = DefaultSourceOptions()
	}
	if o.SinkOptions == (SinkOptions{}) {
		o.SinkOptions = DefaultSinkOptions()
	}
	if o.SinkOptions.Timeout <= 0 {
		return pump.Usagef("option timeout must be above 0")
	}
	switch {
	case o.AddNode != "" && o.RemoveNode == "":
		return pump.Usagef("-a %s: a node can only be added in the place of another; name the failed-over node with -r", o.AddNode)
	case o.AddNode == "" && o.RemoveNode != "":
		return pump.Usagef("-r %s: a node can only be removed for another; name the new node with -a", o.RemoveNode)
	case o.AddNode != "" && sameAddr(o.AddNode, o.RemoveNode):
		return pump.Usagef("-a and -r name the same node, %s", o.AddNode)
	}
	for _, n := range []struct{ flag, node string }{{"-a", o.AddNode}, {"-r", o.RemoveNode}} {
		if err := checkNode(n.node); err != nil {
			return pump.Usagef("%s: %w", n.flag, err)
		}
	}
	if o.VBuckets != nil {
		if len(o.VBuckets) == 0 {
			return pump.Usagef("the vbucket list is empty; leave it out to recover all")
		}
		o.VBuckets = slices.Compact(slices.Sorted(slices.Values(o.VBuckets)))
	}
	if o.Settings == (pump.Settings{}) {
		o.Settings = pump.DefaultSettings()
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	o.Timing = o.Timing.withDefaults()
	return nil
}

// checkNode refuses what cannot be host[:port], before it is sent to a server.
func checkNode(node string) error {
	if node == "" {
		return nil
	}
	if strings.Contains(node, "://") || strings.ContainsAny(node, "/@? ") {
		return fmt.Errorf("%q is not host:port; write the node as the cluster lists it, such as 10.3.4.5:8091", redactNode(node))
	}
	return nil
}

// redactNode leaves out user info that was put into a node's address.
func redactNode(node string) string { return pump.RedactSpec(node) }

// sameAddr compares two host[:port] addresses; a port is compared only where
// both have one, and every name of the loopback is the same host.
func sameAddr(a, b string) bool {
	ah, ap := splitAddr(a)
	bh, bp := splitAddr(b)
	return ah == bh && (ap == bp || ap == "" || bp == "")
}

func splitAddr(a string) (host, port string) {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		host, port = strings.Trim(a, "[]"), ""
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip := net.ParseIP(host); ip != nil {
		host = ip.String()
		if ip.IsLoopback() {
			host = "localhost"
		}
	}
	return host, port
}
