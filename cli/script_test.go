package cli_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/couchbase/gomemcached/client"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/simcluster"
)

// secret is planted as the password in scripts; no output may ever hold it.
const secret = "s3cr3t-pl4nted"

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: withModern(map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":      exits,
			"cluster":    startCluster,
			"newnode":    newNode,
			"cut":        cut,
			"memcached":  startMemcached,
			"http":       startHTTP,
			"closedport": closedPort,
			"tlsport":    startTLS,
			"holds":      holds,
			"same":       same,
			"line":       line,
			"unchanged":  unchanged,
			"bigdoc":     bigDoc,
			"rebalance":  rebalance,
			"leftover":   leftover,
			"heal":       heal,
			"dies":       dies,
			"failover":   failOver,
			"stall":      stall,
			"midrun":     midrun,
			"nonehalf":   noneHalf,
			"plant":      plant,
		}),
		Setup: func(e *testscript.Env) error {
			e.Values[worldKey{}] = &world{clusters: map[string]*simcluster.Cluster{}, servers: map[string]*os.Process{}}
			e.Setenv("SECRET", secret)
			if race, set := os.LookupEnv("GORACE"); set { // for the commands as for the test
				e.Setenv("GORACE", race)
			}
			return nil
		},
	})
}

// world is what a script has started.
type world struct {
	clusters map[string]*simcluster.Cluster
	servers  map[string]*os.Process // memcached, by variable
	heal     []func()               // take faults back
	requests int                    // those of -unchanged's cluster when it was started
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func (w *world) cluster(ts *testscript.TestScript, name string) *simcluster.Cluster {
	c := w.clusters[name]
	if c == nil {
		ts.Fatalf("there is no cluster %s", name)
	}
	return c
}

// settings reads name=value arguments.
func settings(ts *testscript.TestScript, args []string) map[string]string {
	m := map[string]string{}
	for _, a := range args {
		name, v, ok := strings.Cut(a, "=")
		if !ok {
			ts.Fatalf("%q is not name=value", a)
		}
		m[name] = v
	}
	return m
}

func number(ts *testscript.TestScript, text string, otherwise int) int {
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	ts.Check(err)
	return n
}

// exits CODE COMMAND ARGS…: runs a command and checks its exit code, that nothing
// it says holds the planted secret, and that nothing looks like a crash of Go.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want := number(ts, args[0], 0)
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	out, said := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if got != want {
		ts.Fatalf("exit code %d, want %d\nstdout:\n%s\nstderr:\n%s", got, want, out, said)
	}
	encoded := base64.StdEncoding.EncodeToString([]byte("Administrator:" + secret))
	for _, never := range []string{secret, encoded, "panic:", "goroutine ", "dial tcp", "unexpected EOF", ": EOF", "%!", "<nil>", "0x14", "<html", "<body"} {
		if strings.Contains(out+said, never) {
			ts.Fatalf("the output holds %q\nstdout:\n%s\nstderr:\n%s", never, out, said)
		}
	}
	if got != 0 && got != 3 && !strings.Contains(said, ": ") {
		ts.Fatalf("exit code %d without a word of why", got)
	}
}

// cluster NAME [nodes= vbuckets= host= replicas= version= docs= bucket= type= failover= api=controller tls=yes]: starts a
// cluster with the documents doc-0000 …; $NAME is its address, $NAME_KV that of
// its first node, $NAME_NODE1 the address of the second, $NAME_LOST that of the failed-over one. The administrator is
// Administrator with the planted secret.
func startCluster(ts *testscript.TestScript, _ bool, args []string) {
	name, o := args[0], settings(ts, args[1:])
	bucket := o["bucket"]
	if bucket == "" {
		bucket = "default"
	}
	var secure *simcluster.TLSConfig
	if o["tls"] != "" {
		secure = &simcluster.TLSConfig{}
	}
	cfg := simcluster.Config{
		TLS: secure, WithoutRecoveryAPI: o["api"] == "controller",
		Nodes: number(ts, o["nodes"], 2), VBuckets: number(ts, o["vbuckets"], 64), Version: o["version"],
		Username: "Administrator", Password: secret, Host: o["host"],
		Buckets: []simcluster.BucketConfig{{Name: bucket, Type: o["type"], Replicas: number(ts, o["replicas"], 0)}},
	}
	configure(&cfg, o)
	c, err := simcluster.Start(cfg)
	ts.Check(err)
	ts.Defer(func() { ts.Check(c.Close()) })
	for i := range number(ts, o["docs"], 0) {
		ts.Check(c.Bucket(bucket).Store(simcluster.Doc{
			Key: fmt.Appendf(nil, "doc-%04d", i), Value: fmt.Appendf(nil, `{"n":%d}`, i), Flags: uint32(i),
			CAS: 1<<40 + uint64(i), Rev: 7,
		}))
	}
	alive := c.Nodes()[0]
	if at := o["failover"]; at != "" {
		n := c.Nodes()[number(ts, at, 0)]
		ts.Setenv(name+"_LOST", n.REST())
		n.Kill()
		ts.Check(c.Failover(n))
		if n == alive {
			alive = c.Nodes()[1]
		}
	}
	ts.Setenv(name, "http://"+alive.REST())
	ts.Setenv(name+"_KV", alive.KV())
	if nodes := c.Nodes(); len(nodes) > 1 {
		ts.Setenv(name+"_NODE1", "http://"+nodes[1].REST())
		ts.Setenv(name+"_NODE1_REST", nodes[1].REST())
	}
	if secure != nil {
		ts.Setenv(name+"_TLS", "https://"+alive.RESTTLS())
		file := filepath.Join(ts.Getenv("WORK"), name+".pem")
		ts.Check(os.WriteFile(file, c.CACert(), 0o600))
		ts.Setenv(name+"_CA", file)
	}
	worldOf(ts).clusters[name] = c
	worldOf(ts).requests = len(c.Requests())
}

// newnode CLUSTER VAR: starts a node that is in no cluster yet.
func newNode(ts *testscript.TestScript, _ bool, args []string) {
	n, err := worldOf(ts).cluster(ts, args[0]).NewNode()
	ts.Check(err)
	ts.Setenv(args[1], n.REST())
}

// cut CLUSTER BYTES: from now on every dump of the cluster is cut after so many bytes.
func cut(ts *testscript.TestScript, _ bool, args []string) {
	for _, n := range worldOf(ts).cluster(ts, args[0]).Nodes() {
		inject(ts, n, simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpTapMutation}, VBucket: -1, Action: simcluster.CutMidFrame, CutAt: number(ts, args[1], 0)})
	}
}

func inject(ts *testscript.TestScript, n *simcluster.Node, f simcluster.Fault) {
	w := worldOf(ts)
	w.heal = append(w.heal, n.Inject(f))
}

// stall CLUSTER N: from now on every node's dumps fall silent after N items.
func stall(ts *testscript.TestScript, _ bool, args []string) {
	for _, n := range worldOf(ts).cluster(ts, args[0]).Nodes() {
		inject(ts, n, simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpTapMutation, mcbp.OpDcpMutation}, VBucket: -1, After: number(ts, args[1], 0), Action: simcluster.Stall})
	}
}

// dies CLUSTER NODE N: the node (from 0) dies at the N-th item that is written to it.
func dies(ts *testscript.TestScript, _ bool, args []string) {
	n := worldOf(ts).cluster(ts, args[0]).Nodes()[number(ts, args[1], 0)]
	n.Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpSetQWithMeta, mcbp.OpSetWithMeta}, VBucket: -1, After: number(ts, args[2], 0), Action: simcluster.Die})
}

// failover CLUSTER NODE: fails the node over.
func failOver(ts *testscript.TestScript, _ bool, args []string) {
	c := worldOf(ts).cluster(ts, args[0])
	ts.Check(c.Failover(c.Nodes()[number(ts, args[1], 0)]))
}

// heal: takes all faults back.
func heal(ts *testscript.TestScript, _ bool, _ []string) {
	w := worldOf(ts)
	for _, undo := range w.heal {
		undo()
	}
	w.heal = nil
}

// midrun WHAT CODE PATTERN COMMAND ARGS…: runs a command whose stdout is JSON
// lines; at the first line that holds PATTERN it is sent SIGINT or SIGKILL, or the memcached
// of the variable WHAT is killed. Checks the exit code; $WORK/out and $WORK/err
// hold what it said.
func midrun(ts *testscript.TestScript, _ bool, args []string) {
	what, want, pattern := args[0], number(ts, args[1], 0), regexp.MustCompile(args[2])
	path, err := exec.LookPath(filepath.Join(strings.Split(ts.Getenv("PATH"), string(filepath.ListSeparator))[0], args[3]))
	ts.Check(err)
	cmd := exec.Command(path, args[4:]...)
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"))
	var out, said bytes.Buffer
	cmd.Stderr = &said
	pipe, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	struck := false
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintln(&out, lines.Text())
		if struck || !pattern.Match(lines.Bytes()) {
			continue
		}
		struck = true
		if what == "SIGINT" {
			ts.Check(cmd.Process.Signal(os.Interrupt))
		} else if what == "SIGKILL" {
			ts.Check(cmd.Process.Kill())
		} else {
			ts.Check(worldOf(ts).servers[what].Kill())
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		ts.Check(err)
	}
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("WORK"), "out"), out.Bytes(), 0o600))
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("WORK"), "err"), said.Bytes(), 0o600))
	if got := cmd.ProcessState.ExitCode(); !struck || got != want {
		ts.Fatalf("struck: %t, exit code %d, want %d\nstdout:\n%s\nstderr:\n%s", struck, got, want, &out, &said)
	}
	if strings.Contains(out.String()+said.String(), secret) {
		ts.Fatalf("the output holds the secret")
	}
}

// nonehalf SOURCE DESTINATION: every vbucket that is active at the destination
// holds as many items as at the source.
func noneHalf(ts *testscript.TestScript, _ bool, args []string) {
	count := func(name string) map[uint16]int {
		active := map[uint16]int{}
		for _, n := range worldOf(ts).cluster(ts, name).Nodes() {
			for vb := range uint16(64) {
				if state, items := n.VBucket("default", vb); !n.Dead() && state == mcbp.VBActive {
					active[vb] = items
				}
			}
		}
		return active
	}
	from, to := count(args[0]), count(args[1])
	if len(from) != 64 || len(to) == 0 {
		ts.Fatalf("%d vbuckets are active at the source, %d at the destination", len(from), len(to))
	}
	for vb, n := range to {
		if from[vb] != n {
			ts.Fatalf("vbucket %d is active with %d of %d items", vb, n, from[vb])
		}
	}
}

// leftover CLUSTER: starts a recovery by the controller's API, as a run that was
// killed leaves it.
func leftover(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	c := w.cluster(ts, args[0])
	req, err := http.NewRequest(http.MethodPost, c.URL()+"/pools/default/buckets/default/controller/startRecovery", nil)
	ts.Check(err)
	req.SetBasicAuth("Administrator", secret)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("startRecovery answers %d", resp.StatusCode)
	}
	w.requests = len(c.Requests())
}

// rebalance CLUSTER: rebalances it, which makes missing vbuckets anew, empty.
func rebalance(ts *testscript.TestScript, _ bool, args []string) {
	worldOf(ts).cluster(ts, args[0]).Rebalance()
}

// bigdoc CLUSTER SIZE: stores a document of SIZE bytes under the key "too big".
func bigDoc(ts *testscript.TestScript, _ bool, args []string) {
	b := worldOf(ts).cluster(ts, args[0]).Bucket("default")
	ts.Check(b.Store(simcluster.Doc{Key: []byte("too big"), Value: make([]byte, number(ts, args[1], 0)), CAS: 99, Rev: 1}))
}

// memcached VAR [flags]: starts a real memcached; it ends with the script.
func startMemcached(ts *testscript.TestScript, _ bool, args []string) {
	for range 20 {
		addr := freePort(ts)
		_, port, _ := net.SplitHostPort(addr)
		line := []string{"-l", "127.0.0.1", "-p", port, "-U", "0"}
		if os.Getuid() == 0 {
			line = append(line, "-u", "root")
		}
		cmd := exec.Command("/usr/bin/memcached", append(line, args[1:]...)...)
		ts.Check(cmd.Start())
		exited := make(chan struct{})
		go func() { _ = cmd.Wait(); close(exited) }()
		ts.Defer(func() { _ = cmd.Process.Kill(); <-exited })
		if listens(addr, exited) {
			ts.Setenv(args[0], addr)
			worldOf(ts).servers[args[0]] = cmd.Process
			return
		}
	}
	ts.Fatalf("memcached does not start")
}

// listens waits until the address answers; false if the server has exited.
func listens(addr string, exited <-chan struct{}) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return true
		}
		select {
		case <-exited:
			return false
		case <-tick.C:
		}
	}
}

func freePort(ts *testscript.TestScript) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	return l.Addr().String()
}

// closedport VAR: an address on which nothing listens.
func closedPort(ts *testscript.TestScript, _ bool, args []string) { ts.Setenv(args[0], freePort(ts)) }

// http VAR STATUS [text]: a server that answers everything with the status and an HTML page.
func startHTTP(ts *testscript.TestScript, _ bool, args []string) {
	status := number(ts, args[1], 0)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, "<html><head><style>p{}</style></head><body><h1>Page of a proxy</h1><p>%s</p></body></html>\n", r.Header.Get("Authorization"))
	}))
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.URL)
}

// tlsport VAR: a port that speaks TLS only.
func startTLS(ts *testscript.TestScript, _ bool, args []string) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.Listener.Addr().String())
}

// holds ADDRESS N: memcached at the address holds N items.
func holds(ts *testscript.TestScript, _ bool, args []string) {
	c, err := memcached.Connect("tcp", args[0])
	ts.Check(err)
	defer c.Close()
	stats, err := c.StatsMap("")
	ts.Check(err)
	if stats["curr_items"] != args[1] {
		ts.Fatalf("memcached holds %s items, want %s", stats["curr_items"], args[1])
	}
}

// same CLUSTER CLUSTER: both hold the same documents.
func same(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	all := func(name string) []string {
		var docs []string
		w.cluster(ts, name).Bucket("default").Each(func(vb uint16, d simcluster.Doc) bool {
			docs = append(docs, fmt.Sprintf("%d %q %q %d %d %d %d %t", vb, d.Key, d.Value, d.Flags, d.Expiry, d.CAS, d.Rev, d.Deleted))
			return true
		})
		slices.Sort(docs)
		return docs
	}
	a, b := all(args[0]), all(args[1])
	if len(a) == 0 {
		ts.Fatalf("%s is empty", args[0])
	}
	if slices.Equal(a, b) == neg {
		ts.Fatalf("%s holds %d documents, %s %d; equal: %t", args[0], len(a), args[1], len(b), !neg)
	}
}

// unchanged CLUSTER: no REST request that may change something was sent to the
// cluster since the last one was started.
func unchanged(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	if got := w.cluster(ts, args[0]).Requests(); len(got) > w.requests {
		ts.Fatalf("requests were sent: %v", got[w.requests:])
	}
}

// line TYPE [name=value…]: every line of stdout is a JSON object, and one of that
// type has the fields.
func line(ts *testscript.TestScript, neg bool, args []string) {
	var seen []string
	for _, text := range strings.Split(strings.TrimSpace(ts.ReadFile("stdout")), "\n") {
		var doc map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			ts.Fatalf("this line is no JSON object: %s", text)
		}
		if string(doc["type"]) != strconv.Quote(args[0]) {
			continue
		}
		seen = append(seen, text)
		match := true
		for name, want := range settings(ts, args[1:]) {
			have := string(doc[name])
			if s, err := strconv.Unquote(have); err == nil {
				have = s
			}
			match = match && have == want
		}
		if match {
			if neg {
				ts.Fatalf("there is such a line: %s", text)
			}
			return
		}
	}
	if !neg {
		ts.Fatalf("no line %q; of that type there are:\n%s", args, strings.Join(seen, "\n"))
	}
}
