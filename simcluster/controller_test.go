package simcluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/mcbp"
)

// recoverCall calls the recovery interface and returns status and document.
func recoverCall(t *testing.T, n *Node, what, uuid, form string) (int, recoveryDoc) {
	t.Helper()
	method, path := http.MethodPost, "/pools/default/buckets/beer/controller/"+what
	if what == "recoveryStatus" {
		method, path = http.MethodGet, "/pools/default/buckets/beer/"+what
	}
	if uuid != "" {
		path += "?recovery_uuid=" + uuid
	}
	contentType := ""
	if form != "" {
		contentType = formType
	}
	resp, body := call(t, n, method, path, "Administrator", "password", contentType, form)
	var d recoveryDoc
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatalf("%s: %s: %v", what, body, err)
	}
	return resp.StatusCode, d
}

func (d recoveryDoc) vbuckets() (all []uint16) {
	if d.Map != nil {
		for _, r := range *d.Map {
			all = append(all, r.VBuckets...)
		}
	}
	slices.Sort(all)
	return all
}

// The whole way: start, commit one by one, and the rules on the way.
func TestControllerRecovery(t *testing.T) {
	for _, version := range []string{"2.5.1", "4.6", "6.6.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			c, b, failed := broken(t, Config{Version: version})
			n := c.Nodes()[0]
			if n == failed {
				n = c.Nodes()[1]
			}
			missing := b.Missing()
			want := func(what, uuid, form string, status int, code string) recoveryDoc {
				t.Helper()
				got, d := recoverCall(t, n, what, uuid, form)
				if got != status || d.Code != code {
					t.Fatalf("%s answers %d %s, not %d %s", what, got, d.Code, status, code)
				}
				return d
			}
			want("stopRecovery", "", "", 400, "uuid_missing")
			want("recoveryStatus", "abc", "", 404, "bad_recovery")
			c.FailRecovery("startRecovery", "failed_nodes", 1)
			if d := want("startRecovery", "", "", 500, "failed_nodes"); len(d.FailedNodes) != 1 {
				t.Errorf("%v", d)
			}
			c.SetRebalancing(true)
			want("startRecovery", "", "", 503, "rebalance_running")
			c.SetRebalancing(false)

			d := want("startRecovery", "", "", 200, "ok")
			if !slices.Equal(d.vbuckets(), missing) || !slices.Equal(b.Missing(), missing) {
				t.Fatalf("to recover %v, missing %v", d.vbuckets(), b.Missing())
			}
			owners := map[uint16]*Node{}
			for _, r := range *d.Map {
				for _, o := range c.Nodes() {
					if o.OTP() == r.Node {
						for _, vb := range r.VBuckets {
							owners[vb] = o
							if s, items := o.VBucket("beer", vb); s != mcbp.VBReplica || items != 0 {
								t.Errorf("vbucket %d is %s with %d items on its owner", vb, s, items)
							}
						}
					}
				}
			}
			if len(owners) != len(missing) {
				t.Fatalf("%d owners of %d", len(owners), len(missing))
			}
			var tasks []taskDoc
			_, text := call(t, n, "GET", "/pools/default/tasks", "Administrator", "password", "", "")
			if err := json.Unmarshal([]byte(text), &tasks); err != nil || len(tasks) != 2 || tasks[1].Type != "recovery" || tasks[1].UUID != d.UUID || tasks[1].Bucket != "beer" ||
				!strings.HasSuffix(tasks[1].StopURI, "/stopRecovery?recovery_uuid="+d.UUID) {
				t.Errorf("tasks %s: %v", text, err)
			}
			if c.rel <= rel50 {
				if again := want("startRecovery", "", "", 200, "ok"); again.UUID != d.UUID {
					t.Errorf("another uuid: %s", again.UUID)
				}
			} else {
				want("startRecovery", "", "", 400, "recovery_running")
			}
			want("commitVBucket", d.UUID, "", 400, "bad_or_missing_vbucket")
			want("commitVBucket", d.UUID, "vbucket=x", 400, "bad_or_missing_vbucket")
			want("commitVBucket", d.UUID, fmt.Sprintf("vbucket=%d", healthy(b)), 404, "vbucket_not_found")
			c.FailRecovery("commitVBucket", "failed_nodes", 1)
			one := fmt.Sprintf("vbucket=%d", missing[0])
			want("commitVBucket", d.UUID, one, 500, "failed_nodes")
			want("commitVBucket", d.UUID, one, 200, "ok")
			want("commitVBucket", d.UUID, one, 404, "vbucket_not_found")
			if s, _ := owners[missing[0]].VBucket("beer", missing[0]); s != mcbp.VBActive || slices.Contains(b.Missing(), missing[0]) {
				t.Errorf("committed, it is %s", s)
			}
			if left := want("recoveryStatus", d.UUID, "", 200, "ok").vbuckets(); !slices.Equal(left, missing[1:]) {
				t.Errorf("left: %v", left)
			}

			// A stop deletes what was not committed, and kills the uuid.
			want("stopRecovery", d.UUID, "", 200, "ok")
			want("recoveryStatus", d.UUID, "", 404, "bad_recovery")
			if s, _ := owners[missing[1]].VBucket("beer", missing[1]); s != mcbp.VBAbsent || !slices.Equal(b.Missing(), missing[1:]) {
				t.Errorf("not committed, it is %s", s)
			}

			d = want("startRecovery", "", "", 200, "ok")
			c.ForgetRecovery()
			want("commitVBucket", d.UUID, fmt.Sprintf("vbucket=%d", missing[1]), 404, "bad_recovery")
			d = want("startRecovery", "", "", 200, "ok")
			for i, vb := range missing[1:] {
				code := "ok"
				if i == len(missing)-2 {
					code = "recovery_completed"
				}
				want("commitVBucket", d.UUID, fmt.Sprintf("vbucket=%d", vb), 200, code)
			}
			want("recoveryStatus", d.UUID, "", 404, "bad_recovery")
			if len(b.Missing()) != 0 {
				t.Errorf("missing: %v", b.Missing())
			}
			want("startRecovery", "", "", 400, "not_needed")
		})
	}
}

// broken is a cluster of three nodes that lost one, and no replicas.
func broken(t *testing.T, cfg Config) (c *Cluster, b *Bucket, failed *Node) {
	t.Helper()
	cfg.Nodes, cfg.Buckets = 3, []BucketConfig{{Name: "beer"}}
	c = start(t, cfg)
	failed = c.Nodes()[2]
	failed.Kill()
	if err := c.Failover(failed); err != nil {
		t.Fatal(err)
	}
	return c, c.Bucket("beer"), failed
}

func healthy(b *Bucket) int {
	for vb, chain := range b.Map() {
		if chain[0] >= 0 {
			return vb
		}
	}
	return -1
}

// A node that is added before takes its share; one that dies makes commits fail.
func TestControllerOwners(t *testing.T) {
	c, b, failed := broken(t, Config{Version: "6.6.5"})
	spare, err := c.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddNode(spare); err != nil {
		t.Fatal(err)
	}
	n := c.Nodes()[0]
	if n == failed {
		n = c.Nodes()[1]
	}
	_, d := recoverCall(t, n, "startRecovery", "", "")
	var its []uint16
	for _, r := range *d.Map {
		if r.Node == spare.OTP() {
			its = r.VBuckets
		}
	}
	if len(its) == 0 {
		t.Fatalf("the added node takes nothing: %+v", *d.Map)
	}
	spare.Kill()
	status, got := recoverCall(t, n, "commitVBucket", d.UUID, fmt.Sprintf("vbucket=%d", its[0]))
	if status != 500 || got.Code != "failed_nodes" || !slices.Equal(got.FailedNodes, []string{spare.OTP()}) {
		t.Errorf("%d %+v", status, got)
	}
	if resp, _ := call(t, n, "POST", "/controller/failOver", "Administrator", "password", formType, "otpNode="+spare.OTP()); resp.StatusCode != 503 {
		t.Errorf("failover in a recovery: %d", resp.StatusCode)
	}
	// A rebalance makes the holes empty vbuckets for good.
	c.Rebalance()
	if len(b.Missing()) != 0 {
		t.Errorf("missing after a rebalance: %v", b.Missing())
	}
	if s, _ := recoverCall(t, n, "startRecovery", "", ""); s != 400 {
		t.Errorf("recovery after a rebalance: %d", s)
	}
}

// Who may not is told which permission is needed.
func TestForbidden(t *testing.T) {
	c := start(t, Config{Nodes: 1, Version: "7.0.5", Buckets: []BucketConfig{{Name: "beer"}},
		Users: []User{{Name: "ro", Password: "ropw", Roles: []string{"data_reader[beer]"}}, {Name: "full", Password: "fullpw", Roles: []string{"bucket_full[beer]"}}}})
	n := c.Nodes()[0]
	resp, body := call(t, n, "POST", "/pools/default/buckets/beer/controller/startRecovery", "ro", "ropw", "", "")
	if resp.StatusCode != 403 || !strings.Contains(body, "cluster.bucket[beer].recovery!write") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := call(t, n, "GET", "/pools/default/buckets/beer", "ro", "ropw", "", ""); resp.StatusCode != 200 {
		t.Errorf("its own bucket: %d", resp.StatusCode)
	}
	if resp, _ := call(t, n, "GET", "/pools/default/buckets/beer", "ro", "wrong", "", ""); resp.StatusCode != 401 {
		t.Errorf("a wrong password: %d", resp.StatusCode)
	}
	k := dial(t, n)
	k.status(mcbp.AppendHello(nil, 1, "test", mcbp.FeatureXerror, mcbp.FeatureSelect), mcbp.StatusOK)
	k.status(packet(mcbp.OpSASLAuth, 0, 0, 0, nil, "PLAIN", string(mcbp.SASLPlain("full", "fullpw"))), mcbp.StatusOK)
	k.status(keyed(mcbp.OpSelectBucket, 0, "beer"), mcbp.StatusOK)
	if f := k.status(mcbp.AppendDcpOpen(nil, 1, "push", 0), mcbp.StatusAccess); !strings.Contains(string(f.Value()), "DcpConsumer") {
		t.Errorf("%s", f.Value())
	}
	k.status(mcbp.AppendDcpOpen(nil, 1, "read", mcbp.DcpOpenProducer), mcbp.StatusOK)
	if _, err := Start(Config{Version: "7.0.5", Users: []User{{Name: "x", Roles: []string{"nosuch"}}}}); err == nil {
		t.Error("an unknown role is accepted")
	}
}

// The REST interface of collections, and what it does to vbuckets.
func TestCollectionsByREST(t *testing.T) {
	c := start(t, Config{Nodes: 2, Version: "7.6", Buckets: []BucketConfig{{Name: "beer", Replicas: 1}}})
	n := c.Nodes()[0]
	base := "/pools/default/buckets/beer/scopes"
	for _, tt := range []struct {
		method, path, form string
		status             int
	}{
		{"POST", base, "name=shop", 200},
		{"POST", base, "name=shop", 400},
		{"POST", base + "/shop/collections", "name=items&maxTTL=3600", 200},
		{"POST", base + "/nosuch/collections", "name=items", 404},
		{"POST", base + "/shop/collections", "name=gone", 200},
		{"DELETE", base + "/shop/collections/gone", "", 200},
		{"DELETE", base + "/shop/collections/gone", "", 404},
	} {
		contentType := ""
		if tt.form != "" {
			contentType = formType
		}
		if resp, body := call(t, n, tt.method, tt.path, "Administrator", "password", contentType, tt.form); resp.StatusCode != tt.status {
			t.Errorf("%s %s %s: %d %s", tt.method, tt.path, tt.form, resp.StatusCode, body)
		}
	}
	m := getJSON[manifestJSON](t, n, base)
	if m.UID != "4" || len(m.Scopes) != 2 || len(m.Scopes[1].Collections) != 1 || m.Scopes[1].Collections[0] != (collectionJSON{3600, "items", "9"}) {
		t.Errorf("%+v", m)
	}
	// Every vbucket, replicas too, has the five changes.
	for _, n := range c.Nodes() {
		for vb := range uint16(64) {
			if got := n.HighSeqno("beer", vb); got != 3 && got != 4 {
				t.Fatalf("vbucket %d is at %d", vb, got)
			}
		}
	}
	b := c.Bucket("beer")
	if err := b.Store(Doc{Collection: 9, Key: []byte("k"), Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	if err := b.Store(Doc{Collection: 77, Key: []byte("k")}); err == nil {
		t.Error("a collection that does not exist takes a document")
	}
	if _, ok := b.GetIn(9, []byte("k")); !ok {
		t.Error("it is not there")
	}
	if _, ok := b.Get([]byte("k")); ok {
		t.Error("it is in the default collection")
	}
	if err := b.DropScope("shop"); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.GetIn(9, []byte("k")); ok {
		t.Error("it outlives its scope")
	}
}

// TLS ports: the CA is checked, a client certificate logs in, one that ran out is
// refused.
func TestTLS(t *testing.T) {
	c := start(t, Config{Nodes: 1, Version: "7.0.5", TLS: &TLSConfig{ClientCerts: "enable"}, ExternalHost: "localhost"})
	n := c.Nodes()[0]
	get := func(cfg *tls.Config) (int, error) {
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
		defer h.CloseIdleConnections()
		resp, err := h.Get("https://" + n.RESTTLS() + "/pools/default")
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	if _, err := get(&tls.Config{}); err == nil {
		t.Error("an unknown CA is trusted")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.CACert()) {
		t.Fatal("no CA")
	}
	if status, err := get(&tls.Config{RootCAs: pool}); status != 401 || err != nil {
		t.Errorf("%d, %v", status, err)
	}
	certPEM, keyPEM, err := c.ClientCert("Administrator")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	withCert := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
	if status, err := get(withCert); status != 200 || err != nil {
		t.Errorf("with a certificate: %d, %v", status, err)
	}
	nc, err := tls.Dial("tcp", n.KVTLS(), withCert)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	k := &client{t: t, nc: nc, r: mcbp.NewReader(nc)}
	k.status(keyed(mcbp.OpSelectBucket, 0, "default"), mcbp.StatusOK)
	d := getJSON[nodeServicesDoc](t, n, "/pools/default/nodeServices")
	ext := d.NodesExt[0]
	if ext.Services["kvSSL"] == 0 || ext.Services["mgmtSSL"] == 0 || ext.Alternate["external"].Hostname != "localhost" || ext.Alternate["external"].Ports["kv"] != ext.Services["kv"] {
		t.Errorf("%+v", ext)
	}

	old := start(t, Config{Nodes: 1, Version: "6.6.5", TLS: &TLSConfig{Expired: true}})
	pool.AppendCertsFromPEM(old.CACert())
	if nc, err := tls.Dial("tcp", old.Nodes()[0].KVTLS(), &tls.Config{RootCAs: pool}); err == nil {
		nc.Close()
		t.Error("a certificate that ran out is good")
	}
}

// Documents by version.
func TestModernDocuments(t *testing.T) {
	for _, tt := range []struct {
		version       string
		compatibility int
		password      bool
		collections   bool
		proposal      int
	}{
		{"4.6", 0x40006, true, false, 404},
		{"6.0.4", 0x60000, false, false, 404},
		{"7.6", 0x70006, false, true, 404},
	} {
		t.Run(tt.version, func(t *testing.T) {
			c := start(t, Config{Version: tt.version, WithoutRecoveryAPI: true, Buckets: []BucketConfig{{Name: "beer", Password: "pw", ConflictResolution: "lww"}}})
			n := c.Nodes()[0]
			b := getJSON[bucketDoc](t, n, "/pools/default/buckets/beer")
			if (b.SASLPassword != nil) != tt.password || b.ConflictResolution != "lww" || slices.Contains(b.BucketCapabilities, "collections") != tt.collections {
				t.Errorf("%+v", b)
			}
			if p := getJSON[poolDoc](t, n, "/pools/default"); p.Nodes[0].ClusterCompatibility != tt.compatibility {
				t.Errorf("compatibility %x", p.Nodes[0].ClusterCompatibility)
			}
			if resp, _ := call(t, n, "GET", "/pools/default/buckets/beer/vbucketsMissing", "Administrator", "password", "", ""); resp.StatusCode != tt.proposal {
				t.Errorf("the proposal answers %d", resp.StatusCode)
			}
			if s, d := recoverCall(t, n, "startRecovery", "", ""); s != 400 || d.Code != "not_needed" {
				t.Errorf("the controller answers %d %s", s, d.Code)
			}
		})
	}
}
