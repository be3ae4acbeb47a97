package cli_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/simcluster"
)

// modernCommands are those of scripts about clusters from 3.0 on.
var modernCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"collection": makeCollection,
	"counts":     counts,
	"clientcert": clientCert,
	"follow":     follow,
	"midway":     midway,
	"emptymap":   emptyMap,
	"samedocs":   sameDocs,
	"unrecorded": unrecorded,
	"restfault":  restFault,
}

func withModern(cmds map[string]func(ts *testscript.TestScript, neg bool, args []string)) map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	maps.Copy(cmds, modernCommands)
	return cmds
}

// configure reads the settings of command cluster that only modern servers have:
// resolution=lww password=TEXT users=NAME:ROLE+ROLE external=HOST advertise=HOST expired=yes
// clientcerts=mandatory hosts=NAME.
func configure(cfg *simcluster.Config, o map[string]string) {
	cfg.Buckets[0].ConflictResolution, cfg.Buckets[0].Password = o["resolution"], o["password"]
	cfg.ExternalHost, cfg.AdvertiseHost = o["external"], o["advertise"]
	if name, roles, ok := strings.Cut(o["users"], ":"); ok {
		cfg.Users = []simcluster.User{{Name: name, Password: secret, Roles: strings.Split(roles, "+")}}
	}
	if cfg.TLS != nil {
		cfg.TLS.ClientCerts, cfg.TLS.Expired = o["clientcerts"], o["expired"] != ""
		if o["hosts"] != "" {
			cfg.TLS.Hosts = []string{o["hosts"]}
		}
	}
}

// collection CLUSTER SCOPE.NAME N: makes a collection with N documents col-0000 ….
func makeCollection(ts *testscript.TestScript, _ bool, args []string) {
	b := worldOf(ts).cluster(ts, args[0]).Bucket("default")
	id := collectionOf(ts, b, args[1])
	for i := range number(ts, args[2], 0) {
		ts.Check(b.Store(simcluster.Doc{Collection: id, Key: fmt.Appendf(nil, "col-%04d", i), Value: fmt.Appendf(nil, `{"c":%d}`, i), CAS: 1<<41 + uint64(i), Rev: 3}))
	}
}

// collectionOf returns the id of a collection, which it makes if need be.
func collectionOf(ts *testscript.TestScript, b *simcluster.Bucket, path string) uint32 {
	scope, name, _ := strings.Cut(path, ".")
	for _, s := range b.Manifest().Scopes {
		if s.Name != scope {
			continue
		}
		for _, c := range s.Collections {
			if c.Name == name {
				return c.ID
			}
		}
		id, err := b.CreateCollection(scope, name, 0)
		ts.Check(err)
		return id
	}
	_, err := b.CreateScope(scope)
	ts.Check(err)
	return collectionOf(ts, b, path)
}

// counts CLUSTER SCOPE.NAME N: the collection is there and holds N live documents.
func counts(ts *testscript.TestScript, neg bool, args []string) {
	b := worldOf(ts).cluster(ts, args[0]).Bucket("default")
	held := map[string]int{}
	for _, s := range b.Manifest().Scopes {
		for _, c := range s.Collections {
			n := 0
			b.Each(func(_ uint16, d simcluster.Doc) bool {
				if !d.Deleted && d.Collection == c.ID {
					n++
				}
				return true
			})
			held[s.Name+"."+c.Name] = n
		}
	}
	n, ok := held[args[1]]
	if got := ok && n == number(ts, args[2], 0); got == neg {
		ts.Fatalf("the collections hold %v", held)
	}
}

// clientcert CLUSTER USER: $CLUSTER_CERT and $CLUSTER_KEY are a certificate of the
// user and its key.
func clientCert(ts *testscript.TestScript, _ bool, args []string) {
	cert, key, err := worldOf(ts).cluster(ts, args[0]).ClientCert(args[1])
	ts.Check(err)
	for name, text := range map[string][]byte{"_CERT": cert, "_KEY": key} {
		file := filepath.Join(ts.Getenv("WORK"), args[0]+name+".pem")
		ts.Check(os.WriteFile(file, text, 0o600))
		ts.Setenv(args[0]+name, file)
	}
}

// follow CLUSTER N CODE COMMAND ARGS…: runs a command that follows the changes of a
// cluster and prints JSON lines. When it has written the first N documents, another
// N and a deletion are made; when it has written these it is sent SIGINT.
func follow(ts *testscript.TestScript, _ bool, args []string) {
	b, n, want := worldOf(ts).cluster(ts, args[0]).Bucket("default"), number(ts, args[1], 0), number(ts, args[2], 0)
	path, err := exec.LookPath(filepath.Join(strings.Split(ts.Getenv("PATH"), string(filepath.ListSeparator))[0], args[3]))
	ts.Check(err)
	cmd := exec.Command(path, args[4:]...)
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"))
	var said bytes.Buffer
	cmd.Stderr = &said
	pipe, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	defer func() { _ = cmd.Process.Kill() }()
	var last string
	changed, stopped := false, false
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		last = lines.Text()
		var at struct {
			Type string
			Done int
		}
		if json.Unmarshal(lines.Bytes(), &at) != nil || at.Type != "progress" {
			continue
		}
		switch {
		case !changed && at.Done >= n:
			changed = true
			for i := range n {
				ts.Check(b.Store(simcluster.Doc{Key: fmt.Appendf(nil, "late-%04d", i), Value: []byte(`{"late":true}`), CAS: 1<<42 + uint64(i), Rev: 2}))
			}
			ts.Check(b.Delete([]byte("doc-0000")))
		case changed && !stopped && at.Done >= 2*n+1:
			stopped = true
			ts.Check(cmd.Process.Signal(os.Interrupt))
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		ts.Check(err)
	}
	if got := cmd.ProcessState.ExitCode(); !stopped || got != want {
		ts.Fatalf("stopped: %t, exit code %d, want %d\n%s\n%s", stopped, got, want, last, &said)
	}
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("WORK"), "err"), said.Bytes(), 0o600))
}

// midway CLUSTER WHAT: when a node of the cluster has sent or taken 50 documents,
// WHAT happens: "rebalance" moves every vbucket to the other of two nodes,
// "failover" fails the node over, "delete" deletes the bucket, "drop SCOPE.NAME" drops a collection, "create
// SCOPE.NAME" makes one with documents.
func midway(ts *testscript.TestScript, _ bool, args []string) {
	c := worldOf(ts).cluster(ts, args[0])
	b, nodes := c.Bucket("default"), c.Nodes()
	n := nodes[0]
	do := map[string]func(){
		"rebalance": func() {
			for vb, chain := range b.Map() {
				ts.Check(b.Move(uint16(vb), nodes[1-chain[0]]))
			}
		},
		"failover": func() { ts.Check(c.Failover(n)) },
		"delete":   func() { ts.Check(c.DeleteBucket("default")) },
		"drop": func() {
			scope, name, _ := strings.Cut(args[2], ".")
			ts.Check(b.DropCollection(scope, name))
		},
		"create": func() { makeCollection(ts, false, []string{args[0], args[2], "50"}) },
	}[args[1]]
	if do == nil {
		ts.Fatalf("midway %s: unknown", args[1])
	}
	inject(ts, n, simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpTapMutation, mcbp.OpDcpMutation, mcbp.OpSetQWithMeta}, VBucket: -1, After: 50, Times: 1, Do: do, Action: simcluster.Continue})
}

// emptymap CLUSTER N: the first N answers about the bucket have an empty map, as
// right after its creation; 0 is for ever.
func emptyMap(ts *testscript.TestScript, _ bool, args []string) {
	n := worldOf(ts).cluster(ts, args[0]).Nodes()[0]
	doc := fmt.Sprintf(`{"name":"default","bucketType":"membase","uuid":"0123","nodeLocator":"vbucket","nodes":[{"hostname":%q,"otpNode":"n_0@127.0.0.1","ports":{"direct":1},"clusterMembership":"active","version":"6.6.5"}],"vBucketServerMap":{"hashAlgorithm":"CRC","numReplicas":0,"serverList":[],"vBucketMap":[]}}`, n.REST())
	w := worldOf(ts)
	w.heal = append(w.heal, n.InjectREST(simcluster.RESTFault{Path: "/pools/default/buckets/default", Times: number(ts, args[1], 0), Status: 200, ContentType: "application/json", Body: doc}))
}

// samedocs CLUSTER CLUSTER: both hold the same live documents of the default
// collection, in whatever vbucket.
func sameDocs(ts *testscript.TestScript, neg bool, args []string) {
	all := func(name string) map[string]string {
		docs := map[string]string{}
		worldOf(ts).cluster(ts, name).Bucket("default").Each(func(_ uint16, d simcluster.Doc) bool {
			if !d.Deleted && d.Collection == 0 {
				docs[string(d.Key)] = fmt.Sprintf("%q %d %d %d %d", d.Value, d.Flags, d.Expiry, d.CAS, d.Rev)
			}
			return true
		})
		return docs
	}
	a, b := all(args[0]), all(args[1])
	equal := len(a) == len(b) && len(a) > 0
	for k, v := range a {
		equal = equal && b[k] == v
	}
	if equal == neg {
		ts.Fatalf("%s holds %d documents, %s %d; equal: %t", args[0], len(a), args[1], len(b), equal)
	}
}

// unrecorded CLUSTER: what was sent to the cluster so far is no matter of unchanged.
func unrecorded(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	w.requests = len(w.cluster(ts, args[0]).Requests())
}

// restfault CLUSTER PATH: from now on requests of that path to the first node are cut.
func restFault(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	w.heal = append(w.heal, w.cluster(ts, args[0]).Nodes()[0].InjectREST(simcluster.RESTFault{Path: args[1], Close: true}))
}
