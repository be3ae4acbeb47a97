// Command cbsim runs an embedded cluster by hand: it prints the addresses and
// serves until Ctrl-C.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/pflag"

	"github.com/cbpump/cbpump/simcluster"
)

// Exit codes: 0 ended by a signal or --run-for, 1 failed, 2 wrong use.
func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

type options struct {
	cluster  simcluster.Config
	bucket   simcluster.BucketConfig
	items    int
	size     int
	spare    int
	failover []int
	tls      bool
	caFile   string
	runFor   time.Duration
	json     bool
	verbose  int
}

// description is what --json prints, on one line.
type description struct {
	Version  string            `json:"version"`
	Username string            `json:"username"`
	Bucket   string            `json:"bucket"`
	Items    int               `json:"items"`
	Missing  []uint16          `json:"missing"`
	Nodes    []nodeDescription `json:"nodes"`
	Spare    []nodeDescription `json:"spare,omitempty"` // in no cluster yet
}

type nodeDescription struct {
	Name string `json:"name"`
	REST string `json:"rest"`
	KV   string `json:"kv"`

	RESTTLS string `json:"restTLS,omitempty"`
	KVTLS   string `json:"kvTLS,omitempty"`
}

func describe(n *simcluster.Node) nodeDescription {
	return nodeDescription{Name: n.OTP(), REST: n.REST(), KV: n.KV(), RESTTLS: n.RESTTLS(), KVTLS: n.KVTLS()}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	o, err := parse(args, errOut)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(errOut, "cbsim:", err)
		return 2
	}
	if err := serve(ctx, o, out, errOut); err != nil {
		fmt.Fprintln(errOut, "cbsim:", err)
		return 1
	}
	return 0
}

// Passwords come from the environment only: arguments show in process lists.
const passwordHelp = `Environment:
  CBSIM_PASSWORD          password of the REST administrator (default "password")
  CBSIM_BUCKET_PASSWORD   password of the bucket (default none)
`

func parse(args []string, errOut io.Writer) (o options, err error) {
	f := pflag.NewFlagSet("cbsim", pflag.ContinueOnError)
	f.SetOutput(errOut)
	f.Usage = func() {
		fmt.Fprintf(errOut, "usage: cbsim [options]\n\nRuns an embedded cluster on loopback until Ctrl-C.\n\n%s\n%s", f.FlagUsages(), passwordHelp)
	}
	f.IntVarP(&o.cluster.Nodes, "nodes", "n", 2, "number of nodes")
	f.IntVar(&o.cluster.VBuckets, "vbuckets", 64, "vbuckets of the bucket, 1 to 1024")
	f.StringVar(&o.cluster.Version, "version", "2.5.1", "server version to play: 2.5.1, 3.0.3, 4.0, 4.6, 6.0.4, 6.6.5, 7.0.5 or 7.6")
	f.StringVar(&o.cluster.Host, "host", "127.0.0.1", "loopback address to listen on: 127.0.0.1 or ::1")
	f.StringVarP(&o.cluster.Username, "username", "u", "Administrator", "REST administrator")
	f.BoolVar(&o.cluster.WithoutRecoveryAPI, "without-recovery-api", false, "answer 404 to the recovery proposal's endpoints, as real servers do; startRecovery … are served anyway")
	f.BoolVar(&o.tls, "tls", false, "listen with TLS too; the CA goes to --ca-file")
	f.StringVar(&o.caFile, "ca-file", "", "where to write the CA's certificate, as PEM")
	f.StringVar(&o.bucket.ConflictResolution, "conflict-resolution", "seqno", "seqno or lww (4.6 and later)")
	f.DurationVar(&o.cluster.FlushDelay, "flush-delay", 0, "how long items stay unflushed (3.0 and later; dumps miss them)")
	f.StringVarP(&o.bucket.Name, "bucket", "b", "default", "name of the bucket")
	f.StringVar(&o.bucket.Type, "bucket-type", "membase", "membase or memcached")
	f.IntVarP(&o.bucket.Replicas, "replicas", "r", 1, "replicas of each vbucket, 0 to 3")
	f.IntVarP(&o.items, "items", "i", 0, "documents to load before serving")
	f.IntVar(&o.size, "item-size", 256, "length of each document in bytes")
	f.IntVar(&o.spare, "spare-nodes", 0, "running nodes that are in no cluster yet (to be named in replaceNode)")
	f.IntSliceVar(&o.failover, "failover", nil, "numbers of nodes to fail over hard after loading, counted from 0")
	f.DurationVar(&o.runFor, "run-for", 0, "end after this time, 0 = at Ctrl-C")
	f.BoolVar(&o.json, "json", false, "print the addresses as one line of JSON")
	f.CountVarP(&o.verbose, "verbose", "v", "log what happens; more v's log more")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.items < 0 || o.size < 0 || o.spare < 0 {
		return o, errors.New("--items, --item-size and --spare-nodes cannot be negative")
	}
	if o.tls {
		o.cluster.TLS = &simcluster.TLSConfig{}
	} else if o.caFile != "" {
		return o, errors.New("--ca-file goes with --tls")
	}
	o.cluster.Password = os.Getenv("CBSIM_PASSWORD")
	o.bucket.Password = os.Getenv("CBSIM_BUCKET_PASSWORD")
	o.cluster.Buckets = []simcluster.BucketConfig{o.bucket}
	level := hclog.Off
	if o.verbose > 0 {
		level = max(hclog.Trace, hclog.Info-hclog.Level(o.verbose-1))
	}
	o.cluster.Log = hclog.New(&hclog.LoggerOptions{Name: "cbsim", Output: errOut, Level: level})
	return o, nil
}

func serve(ctx context.Context, o options, out, errOut io.Writer) (err error) {
	c, err := simcluster.Start(o.cluster)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if o.caFile != "" {
		if err := os.WriteFile(o.caFile, c.CACert(), 0o644); err != nil {
			return fmt.Errorf("write the CA: %w", err)
		}
	}
	b := c.Bucket(o.bucket.Name)
	for i := range o.items {
		if err := b.Store(document(i, o.size)); err != nil {
			return fmt.Errorf("load document %d: %w", i, err)
		}
	}
	d := description{Version: o.cluster.Version, Username: o.cluster.Username, Bucket: o.bucket.Name, Items: o.items}
	nodes := c.Nodes()
	for _, i := range o.failover {
		if i < 0 || i >= len(nodes) {
			return fmt.Errorf("--failover %d: there are %d nodes", i, len(nodes))
		}
		if err := c.Failover(nodes[i]); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		d.Nodes = append(d.Nodes, describe(n))
	}
	for range o.spare {
		n, err := c.NewNode()
		if err != nil {
			return err
		}
		d.Spare = append(d.Spare, describe(n))
	}
	d.Missing = b.Missing()
	if err := d.print(out, o.json); err != nil {
		return err
	}
	if o.runFor > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.runFor)
		defer cancel()
	}
	<-ctx.Done()
	if !o.json {
		fmt.Fprintln(errOut, "cbsim: the cluster has ended")
	}
	return nil
}

// document is the i-th document to load: JSON of the asked length or the next longer one.
func document(i, size int) simcluster.Doc {
	value := fmt.Sprintf(`{"n":%d,"pad":"`, i)
	value += strings.Repeat("x", max(0, size-len(value)-2)) + `"}`
	return simcluster.Doc{Key: fmt.Appendf(nil, "doc-%08d", i), Value: []byte(value), Flags: uint32(i)}
}

func (d description) print(out io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(d)
	}
	var s strings.Builder
	fmt.Fprintf(&s, "server %s, administrator %s (password from CBSIM_PASSWORD, or the default), bucket %s with %d documents\n", d.Version, d.Username, d.Bucket, d.Items)
	if len(d.Missing) > 0 {
		fmt.Fprintf(&s, "missing vbuckets: %d\n", len(d.Missing))
	}
	for _, n := range d.Nodes {
		fmt.Fprintf(&s, "%-16s REST http://%-21s KV %s\n", n.Name, n.REST, n.KV)
	}
	for _, n := range d.Nodes {
		if n.KVTLS != "" {
			fmt.Fprintf(&s, "%-16s REST https://%-20s KV %s  (TLS)\n", n.Name, n.RESTTLS, n.KVTLS)
		}
	}
	for _, n := range d.Spare {
		fmt.Fprintf(&s, "%-16s REST http://%-21s KV %s  (in no cluster)\n", n.Name, n.REST, n.KV)
	}
	fmt.Fprintln(&s, "Ctrl-C ends it")
	_, err := io.WriteString(out, s.String())
	return err
}
