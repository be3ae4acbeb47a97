package simcluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/mcbp"
)

// call makes one REST request; user "" sends no credentials.
func call(t *testing.T, n *Node, method, path, user, password, contentType, body string) (*http.Response, string) {
	t.Helper()
	resp, text, err := tryCall(n, method, path, user, password, contentType, body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, text
}

func tryCall(n *Node, method, path, user, password, contentType, body string) (*http.Response, string, error) {
	req, err := http.NewRequest(method, "http://"+n.REST()+path, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func get(t *testing.T, n *Node, path string) string {
	t.Helper()
	resp, body := call(t, n, "GET", path, "Administrator", "password", "", "")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %s", path, resp.Status, body)
	}
	return body
}

func post(t *testing.T, n *Node, path, form string) int {
	t.Helper()
	resp, _ := call(t, n, "POST", path, "Administrator", "password", formType, form)
	return resp.StatusCode
}

func getJSON[T any](t *testing.T, n *Node, path string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(get(t, n, path)), &v); err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return v
}

func TestAuthentication(t *testing.T) {
	c := start(t, Config{Buckets: []BucketConfig{{Name: "default"}, {Name: "beer", Password: "beerpw"}}})
	n := c.Nodes()[0]
	const bucket = "/pools/default/buckets/beer"
	for _, tt := range []struct {
		path, user, password string
		status               int
	}{
		{"/pools", "", "", 200},
		{"/pools", "Administrator", "wrong", 401},
		{"/pools/default", "", "", 401},
		{"/pools/default", "Administrator", "password", 200},
		{"/pools/default", "beer", "beerpw", 200},
		{"/pools/default/buckets", "beer", "beerpw", 401},
		{"/pools/default/buckets", "Administrator", "password", 200},
		{bucket, "", "", 401},
		{bucket, "beer", "beerpw", 200},
		{bucket, "beer", "", 401},
		{bucket, "default", "", 401},
		{bucket, "Administrator", "password", 200},
		{"/pools/default/b/beer", "beer", "beerpw", 200},
		{bucket + "/vbucketsMissing", "", "", 401},
		{bucket + "/vbucketsMissing", "beer", "beerpw", 401},
		{bucket + "/vbucketsMissing", "Administrator", "password", 200},
		{"/pools/default/buckets/nosuch", "Administrator", "password", 404},
		{"/pools/default/buckets/nosuch/vbucketsMissing", "Administrator", "password", 404},
		{bucket + "/nosuch", "Administrator", "password", 404},
		{"/nosuch", "", "", 401},
		{"/nosuch", "Administrator", "password", 404},
	} {
		resp, _ := call(t, n, "GET", tt.path, tt.user, tt.password, "", "")
		if resp.StatusCode != tt.status {
			t.Errorf("GET %s as %q:%q answers %d, not %d", tt.path, tt.user, tt.password, resp.StatusCode, tt.status)
		}
		if challenged := resp.Header.Get("WWW-Authenticate") != ""; challenged != (tt.status == 401) {
			t.Errorf("GET %s as %q: WWW-Authenticate %v with status %d", tt.path, tt.user, challenged, resp.StatusCode)
		}
	}
}

func TestTopologyDocuments(t *testing.T) {
	for _, tt := range []struct {
		version, release string
		services, otp    bool
	}{
		{"2.5.1", "2.5.1-1083-rel-enterprise", false, false},
		{"3.0.3", "3.0.3-1716-rel-enterprise", true, true},
		{"4.0", "4.0.0-4051-enterprise", true, true},
	} {
		t.Run(tt.version, func(t *testing.T) {
			c := start(t, Config{Version: tt.version, Nodes: 3, Buckets: []BucketConfig{{Name: "beer", Password: "beerpw", Replicas: 1}, {Name: "cache", Type: "memcached"}}})
			n := c.Nodes()[1]
			if p := getJSON[poolsDoc](t, n, "/pools"); p.ImplementationVersion != tt.release || len(p.Pools) != 1 || !p.IsAdminCreds {
				t.Errorf("/pools: %+v", p)
			}
			pool := getJSON[poolDoc](t, n, "/pools/default")
			if len(pool.Nodes) != 3 || !pool.Nodes[1].ThisNode || pool.Nodes[0].ThisNode || pool.Nodes[2].OTPNode != c.Nodes()[2].OTP() {
				t.Errorf("/pools/default: %+v", pool.Nodes)
			}
			for i, d := range pool.Nodes {
				_, kv, err := net.SplitHostPort(c.Nodes()[i].KV())
				if err != nil {
					t.Fatal(err)
				}
				if d.Hostname != c.Nodes()[i].REST() || fmt.Sprint(d.Ports["direct"]) != kv || d.Version != tt.release || d.Status != "healthy" || d.ClusterMembership != "active" {
					t.Errorf("node %d: %+v", i, d)
				}
			}
			if all := getJSON[[]bucketDoc](t, n, "/pools/default/buckets"); len(all) != 2 || all[0].Name != "beer" || all[1].BucketType != "memcached" {
				t.Errorf("buckets: %+v", all)
			}
			b := getJSON[bucketDoc](t, n, "/pools/default/buckets/beer")
			if b.SASLPassword == nil || *b.SASLPassword != "beerpw" || b.UUID == "" || b.NodeLocator != "vbucket" || len(b.Nodes) != 3 || (b.Nodes[0].OTPNode != "") != tt.otp {
				t.Errorf("bucket: %+v", b)
			}
			if m := b.VBucketServerMap; m.HashAlgorithm != "CRC" || m.NumReplicas != 1 || len(m.VBucketMap) != 64 || m.VBucketMapForward != nil || m.ServerList[2] != c.Nodes()[2].KV() {
				t.Errorf("map: %+v", m)
			}
			for vb, chain := range b.VBucketServerMap.VBucketMap {
				if len(chain) != 2 || chain[0] == chain[1] || chain[0] < 0 || chain[1] < 0 {
					t.Errorf("vbucket %d is on %v", vb, chain)
				}
			}
			if m := getJSON[bucketDoc](t, n, "/pools/default/buckets/cache"); m.VBucketServerMap != nil || m.NodeLocator != "ketama" || m.ReplicaNumber != nil {
				t.Errorf("memcached bucket: %+v", m)
			}
			terse := getJSON[terseDoc](t, n, "/pools/default/b/beer")
			if !strings.HasPrefix(terse.VBucketServerMap.ServerList[0], "$HOST:") || (len(terse.NodesExt) == 3) != tt.services {
				t.Errorf("terse: %+v", terse)
			}
			resp, body := call(t, n, "GET", "/pools/default/nodeServices", "Administrator", "password", "", "")
			if (resp.StatusCode == 200) != tt.services {
				t.Errorf("nodeServices: %s %s", resp.Status, body)
			}
		})
	}
}

func TestHostNames(t *testing.T) {
	c := start(t, Config{Host: "::1", Nodes: 1})
	n := c.Nodes()[0]
	if !strings.HasPrefix(n.REST(), "[::1]:") || !strings.HasPrefix(c.URL(), "http://[::1]:") {
		t.Errorf("IPv6 addresses without brackets: %s, %s", n.REST(), c.URL())
	}
	b := getJSON[bucketDoc](t, n, "/pools/default/buckets/default")
	if b.Nodes[0].Hostname != n.REST() || b.VBucketServerMap.ServerList[0] != n.KV() {
		t.Errorf("documents name %s and %s", b.Nodes[0].Hostname, b.VBucketServerMap.ServerList[0])
	}
	c = start(t, Config{AdvertiseHost: "localhost", Nodes: 1})
	b = getJSON[bucketDoc](t, c.Nodes()[0], "/pools/default/buckets/default")
	terse := getJSON[terseDoc](t, c.Nodes()[0], "/pools/default/b/default")
	for _, name := range []string{b.Nodes[0].Hostname, b.VBucketServerMap.ServerList[0], terse.Nodes[0].Hostname} {
		if !strings.HasPrefix(name, "localhost:") {
			t.Errorf("a document names %s", name)
		}
	}
}

func TestStreamingDocuments(t *testing.T) {
	c := start(t, Config{Nodes: 3})
	for _, path := range []string{"/pools/default/bucketsStreaming/default", "/pools/default/bs/default"} {
		req, err := http.NewRequest("GET", c.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("Administrator", "password")
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(resp.Body)
		next := func() (d terseDoc) {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if b, err := r.ReadByte(); err != nil || b != '\n' {
					t.Fatalf("%q %v between documents, not a newline", b, err)
				}
			}
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				t.Fatal(err)
			}
			return d
		}
		before := len(next().VBucketServerMap.ServerList)
		if err := c.Failover(c.Nodes()[before-1]); err != nil {
			t.Fatal(err)
		}
		if after := len(next().VBucketServerMap.ServerList); after != before-1 {
			t.Errorf("%d servers before, %d after the failover", before, after)
		}
		resp.Body.Close()
	}
}

func TestFailover(t *testing.T) {
	c := start(t, Config{Nodes: 3, Buckets: []BucketConfig{{Name: "default", Replicas: 1}, {Name: "bare"}}})
	nodes := c.Nodes()
	b, bare := c.Bucket("default"), c.Bucket("bare")
	for i := range 600 {
		for _, x := range []*Bucket{b, bare} {
			if err := x.Store(Doc{Key: fmt.Appendf(nil, "k%d", i), Value: []byte("v")}); err != nil {
				t.Fatal(err)
			}
		}
	}
	lost := 0
	for _, chain := range bare.Map() {
		if chain[0] == 1 {
			lost++
		}
	}
	if post(t, nodes[0], "/controller/failOver", "otpNode=nosuch") != 400 {
		t.Error("failover of an unknown node is not refused")
	}
	nodes[1].Kill()
	if got := post(t, nodes[0], "/controller/failOver", url.Values{"otpNode": {nodes[1].OTP()}}.Encode()); got != 200 {
		t.Fatalf("failover answers %d", got)
	}
	if post(t, nodes[0], "/controller/failOver", url.Values{"otpNode": {nodes[1].OTP()}}.Encode()) != 400 {
		t.Error("a second failover is not refused")
	}
	if len(b.Missing()) != 0 || len(bare.Missing()) != lost || lost == 0 {
		t.Errorf("missing: %d with a replica, %d of %d without", len(b.Missing()), len(bare.Missing()), lost)
	}
	for i := range 600 {
		if _, ok := b.Get(fmt.Appendf(nil, "k%d", i)); !ok {
			t.Fatalf("k%d is gone though it had a replica", i)
		}
	}
	if err := bare.Store(Doc{Key: keyIn(bare, bare.Missing()[0])}); !errors.Is(err, ErrNoActive) {
		t.Errorf("store into a missing vbucket: %v", err)
	}
	pool := getJSON[poolDoc](t, nodes[0], "/pools/default")
	if d := pool.Nodes[1]; d.ClusterMembership != "inactiveFailed" || d.Status != "unhealthy" || pool.Balanced {
		t.Errorf("the failed over node is listed as %+v", d)
	}
	if got := len(getJSON[bucketDoc](t, nodes[0], "/pools/default/buckets/default").VBucketServerMap.ServerList); got != 2 {
		t.Errorf("%d servers are left in the map", got)
	}
	if err := c.Failover(nodes[2]); err != nil {
		t.Fatal(err)
	}
	if err := c.Failover(nodes[0]); !errors.Is(err, ErrLastNode) {
		t.Errorf("failover of the last node: %v", err)
	}
}

func keyIn(b *Bucket, vb uint16) []byte {
	for i := 0; ; i++ {
		if key := fmt.Appendf(nil, "key-%d", i); b.VBucketOf(key) == vb {
			return key
		}
	}
}

func TestAddNode(t *testing.T) {
	c := start(t, Config{})
	n, err := c.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	if resp, body := call(t, n, "GET", "/pools/default", "Administrator", "password", "", ""); resp.StatusCode != 404 || body != `"unknown pool"` {
		t.Errorf("a node in no cluster answers %s %s", resp.Status, body)
	}
	if p := getJSON[poolsDoc](t, n, "/pools"); len(p.Pools) != 0 {
		t.Errorf("a node in no cluster has pools %+v", p.Pools)
	}
	add := func(host string) int {
		return post(t, c.Nodes()[0], "/controller/addNode", url.Values{"hostname": {host}, "user": {"x"}, "password": {"secret"}}.Encode())
	}
	if got := add("127.0.0.1:1"); got != 400 {
		t.Errorf("add of a closed port answers %d", got)
	}
	if got := add(n.REST()); got != 200 {
		t.Errorf("add answers %d", got)
	}
	if got := add(n.REST()); got != 400 {
		t.Errorf("add of a member answers %d", got)
	}
	if d := getJSON[poolDoc](t, n, "/pools/default").Nodes[2]; d.ClusterMembership != "inactiveAdded" || !d.ThisNode {
		t.Errorf("the new node is listed as %+v", d)
	}
	for _, r := range c.Requests() {
		if strings.Contains(r.Form, "secret") {
			t.Errorf("the journal has a password: %+v", r)
		}
	}
	n.Kill()
	dead, err := c.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	dead.Kill()
	if err := c.AddNode(dead); !errors.Is(err, ErrNodeDown) {
		t.Errorf("add of a dead node: %v", err)
	}
}

const recoveryBase = "/pools/default/buckets/default/"

// damaged is a cluster of three nodes without replicas, the last one failed over.
func damaged(t *testing.T, cfg Config) (c *Cluster, b *Bucket, failed *Node) {
	t.Helper()
	cfg.Nodes = 3
	cfg.Buckets = []BucketConfig{{Name: "default"}, {Name: "cache", Type: "memcached"}}
	c = start(t, cfg)
	failed = c.Nodes()[2]
	failed.Kill()
	if err := c.Failover(failed); err != nil {
		t.Fatal(err)
	}
	return c, c.Bucket("default"), failed
}

func TestReplaceNodeStatuses(t *testing.T) {
	c, b, failed := damaged(t, Config{})
	first := c.Nodes()[0]
	spare, err := c.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	down, err := c.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	down.Kill()
	for _, tt := range []struct {
		what, add, remove string
		status            int
	}{
		{"remove is unknown", spare.REST(), "127.0.0.1:1", 401},
		{"remove has no port", spare.REST(), "127.0.0.1", 401},
		{"nothing given", "", "", 401},
		{"remove is still active", spare.REST(), c.Nodes()[1].REST(), 403},
		{"add is a member", c.Nodes()[1].REST(), failed.REST(), 402},
		{"add is the failed node itself", failed.REST(), failed.REST(), 402},
		{"add is unknown", "127.0.0.1:1", failed.REST(), 401},
		{"add does not run", down.REST(), failed.REST(), 401},
		{"good", spare.REST(), failed.REST(), 202},
		{"done already", spare.REST(), failed.REST(), 401},
	} {
		resp, body := call(t, first, "POST", recoveryBase+"replaceNode", "Administrator", "password", formType,
			url.Values{"add": {tt.add}, "remove": {tt.remove}}.Encode())
		if resp.StatusCode != tt.status || resp.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s: %d %q, not %d", tt.what, resp.StatusCode, body, tt.status)
		}
	}
	if nodes := c.Nodes(); len(nodes) != 3 || nodes[2] != spare {
		t.Errorf("the new node is not in the old one's place: %v", nodes)
	}
	if !slices.Contains(b.Servers(), spare.KV()) || slices.Contains(b.Servers(), failed.KV()) {
		t.Errorf("servers of the bucket: %v", b.Servers())
	}
	if state, _ := spare.VBucket("default", b.Missing()[0]); state != mcbp.VBAbsent {
		t.Errorf("replaceNode alone creates vbuckets: %s", state)
	}
	if d := getJSON[poolDoc](t, spare, "/pools/default").Nodes[2]; d.ClusterMembership != "active" {
		t.Errorf("the new node is listed as %+v", d)
	}
}

func TestChangeStatesStatuses(t *testing.T) {
	c, b, _ := damaged(t, Config{})
	first := c.Nodes()[0]
	missing := b.Missing()
	gone, other := missing[0], missing[1]
	healthy := uint16(0)
	if slices.Contains(missing, healthy) {
		t.Fatal("vbucket 0 is to be healthy here")
	}
	change := func(form string) int { return post(t, first, recoveryBase+"changeVbucketStates", form) }
	for _, tt := range []struct {
		what, form string
		status     int
	}{
		{"no state", fmt.Sprintf("vbucket=%d", gone), 411},
		{"unknown state", fmt.Sprintf("vbucket=%d&state=alive", gone), 411},
		{"bad state and bad vbucket", "vbucket=9999&state=alive", 411},
		{"no vbucket", "state=replica", 410},
		{"vbucket out of range", "vbucket=64&state=replica", 410},
		{"vbucket is no number", "vbucket=x&state=replica", 410},
		{"vbucket is not missing", fmt.Sprintf("vbucket=%d&state=replica", healthy), 410},
		{"active before it was created", fmt.Sprintf("vbucket=%d&state=active", gone), 410},
		{"dead before it was created", fmt.Sprintf("vbucket=%d&state=dead", gone), 410},
		{"one of two is not missing", fmt.Sprintf("vbucket=%d&vbucket=%d&state=replica", gone, healthy), 410},
	} {
		if got := change(tt.form); got != tt.status {
			t.Errorf("%s: %d, not %d", tt.what, got, tt.status)
		}
		for _, n := range c.Nodes() {
			if state, _ := n.VBucket("default", gone); state != mcbp.VBAbsent {
				t.Fatalf("%s: vbucket %d is %s on %s", tt.what, gone, state, n.OTP())
			}
		}
	}
	for _, state := range []string{"replica", "pending", "dead", "replica", "replica", "active", "replica"} {
		if got := change(fmt.Sprintf("vbucket=%d&vbucket=%d&state=%s", gone, other, state)); got != 202 {
			t.Errorf("to %s: %d", state, got)
		}
		found := 0
		for _, n := range c.Nodes() {
			if s, _ := n.VBucket("default", gone); s != mcbp.VBAbsent {
				found++
				if s.String() != state {
					t.Errorf("the vbucket is %s, not %s", s, state)
				}
			}
		}
		if found != 1 {
			t.Errorf("%d nodes have the vbucket", found)
		}
		if b.Map()[gone][0] != -1 {
			t.Errorf("the published map names an owner before updateVbucketMap")
		}
	}
	if got := post(t, first, "/pools/default/buckets/cache/changeVbucketStates", "vbucket=0&state=replica"); got != 410 {
		t.Errorf("memcached bucket: %d", got)
	}
}

func TestForwardMapAndUpdate(t *testing.T) {
	c, b, failed := damaged(t, Config{})
	first := c.Nodes()[0]
	spare, err := c.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	if m := getJSON[bucketDoc](t, first, recoveryBase).VBucketServerMap; m.VBucketMapForward != nil {
		t.Error("a forward map is there before anything was changed")
	}
	if got := post(t, first, recoveryBase+"updateVbucketMap", ""); got != 202 {
		t.Errorf("an update with nothing to publish answers %d", got)
	}
	if got := post(t, first, recoveryBase+"replaceNode", "add="+spare.REST()+"&remove="+failed.REST()); got != 202 {
		t.Fatalf("replaceNode: %d", got)
	}
	missing := getJSON[[]uint16](t, first, recoveryBase+"vbucketsMissing")
	form := url.Values{"state": {"replica"}}
	for _, vb := range missing {
		form.Add("vbucket", fmt.Sprint(vb))
	}
	if got := post(t, first, recoveryBase+"changeVbucketStates", form.Encode()); got != 202 {
		t.Fatalf("changeVbucketStates: %d", got)
	}
	m := getJSON[bucketDoc](t, first, recoveryBase).VBucketServerMap
	place := slices.Index(m.ServerList, spare.KV())
	for _, vb := range missing {
		if m.VBucketMap[vb][0] != -1 || m.VBucketMapForward[vb][0] != place {
			t.Errorf("vbucket %d: map %v, forward %v, the new node is %d", vb, m.VBucketMap[vb], m.VBucketMapForward[vb], place)
		}
		if state, _ := spare.VBucket("default", vb); state != mcbp.VBReplica {
			t.Errorf("vbucket %d is %s on the new node", vb, state)
		}
	}
	if healthy := 0; m.VBucketMapForward[healthy][0] != m.VBucketMap[healthy][0] {
		t.Error("the forward map moves a healthy vbucket")
	}
	// Only the active ones are published; the others stay missing, and forward.
	half := len(missing) / 2
	form = url.Values{"state": {"active"}}
	for _, vb := range missing[:half] {
		form.Add("vbucket", fmt.Sprint(vb))
	}
	if post(t, first, recoveryBase+"changeVbucketStates", form.Encode()) != 202 || post(t, first, recoveryBase+"updateVbucketMap", "") != 202 {
		t.Fatal("not accepted")
	}
	if got := b.Missing(); !slices.Equal(got, missing[half:]) {
		t.Errorf("missing after half of it: %v", got)
	}
	if post(t, first, recoveryBase+"changeVbucketStates", form.Encode()) != 410 {
		t.Error("published vbuckets can still be changed")
	}
	form = url.Values{"state": {"active"}}
	for _, vb := range missing[half:] {
		form.Add("vbucket", fmt.Sprint(vb))
	}
	if post(t, first, recoveryBase+"changeVbucketStates", form.Encode()) != 202 || post(t, first, recoveryBase+"updateVbucketMap", "") != 202 {
		t.Fatal("not accepted")
	}
	m = getJSON[bucketDoc](t, first, recoveryBase).VBucketServerMap
	if m.VBucketMapForward != nil || len(b.Missing()) != 0 {
		t.Errorf("at the end: forward %v, missing %v", m.VBucketMapForward, b.Missing())
	}
	key := keyIn(b, missing[0])
	if err := b.Store(Doc{Key: key, Value: []byte("v")}); err != nil {
		t.Error(err)
	}
	if _, ok := spare.Doc("default", missing[0], key); !ok {
		t.Error("a document of a recovered vbucket is not on the new node")
	}
}

func TestUpdateFailsWhenAnOwnerIsDown(t *testing.T) {
	c, b, failed := damaged(t, Config{})
	first := c.Nodes()[0]
	spare, err := c.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	vb := b.Missing()[0]
	if post(t, first, recoveryBase+"replaceNode", "add="+spare.REST()+"&remove="+failed.REST()) != 202 ||
		post(t, first, recoveryBase+"changeVbucketStates", fmt.Sprintf("vbucket=%d&state=replica", vb)) != 202 {
		t.Fatal("not accepted")
	}
	spare.Kill()
	if got := post(t, first, recoveryBase+"updateVbucketMap", ""); got != 410 {
		t.Errorf("updateVbucketMap with a dead owner answers %d", got)
	}
	if got := post(t, first, recoveryBase+"changeVbucketStates", fmt.Sprintf("vbucket=%d&state=active", vb)); got != 410 {
		t.Errorf("changeVbucketStates with a dead owner answers %d", got)
	}
	if post(t, first, "/pools/default/buckets/cache/updateVbucketMap", "") != 410 {
		t.Error("a memcached bucket has no map to update")
	}
	// Once that owner is failed over too, the others share the load.
	if err := c.Failover(spare); err != nil {
		t.Fatal(err)
	}
	if got := post(t, first, recoveryBase+"changeVbucketStates", fmt.Sprintf("vbucket=%d&state=replica", vb)); got != 202 {
		t.Errorf("after the second failover: %d", got)
	}
}

func TestWithoutReplaceNodeTheOthersShareTheLoad(t *testing.T) {
	c, b, _ := damaged(t, Config{})
	form := url.Values{"state": {"replica"}}
	for _, vb := range b.Missing() {
		form.Add("vbucket", fmt.Sprint(vb))
	}
	if post(t, c.Nodes()[0], recoveryBase+"changeVbucketStates", form.Encode()) != 202 {
		t.Fatal("not accepted")
	}
	share := map[*Node]int{}
	for _, vb := range b.Missing() {
		for _, n := range c.Nodes() {
			if s, _ := n.VBucket("default", vb); s == mcbp.VBReplica {
				share[n]++
			}
		}
	}
	if a, z := share[c.Nodes()[0]], share[c.Nodes()[1]]; a+z != len(b.Missing()) || a-z > 1 || z-a > 1 {
		t.Errorf("%d of %d are shared as %d and %d", a+z, len(b.Missing()), a, z)
	}
}

func TestPostRules(t *testing.T) {
	c, _, _ := damaged(t, Config{})
	n := c.Nodes()[0]
	for _, what := range []string{"replaceNode", "changeVbucketStates", "updateVbucketMap"} {
		for _, tt := range []struct {
			method, user, contentType string
			status                    int
		}{
			{"GET", "Administrator", "", 405},
			{"PUT", "Administrator", formType, 405},
			{"POST", "", formType, 401},
			{"POST", "Administrator", "application/json", 415},
			{"POST", "Administrator", "", 415},
		} {
			resp, _ := call(t, n, tt.method, recoveryBase+what, tt.user, "password", tt.contentType, "state=x")
			if resp.StatusCode != tt.status {
				t.Errorf("%s %s as %q with %q: %d, not %d", tt.method, what, tt.user, tt.contentType, resp.StatusCode, tt.status)
			}
		}
	}
	if resp, _ := call(t, n, "POST", recoveryBase+"vbucketsMissing", "Administrator", "password", "", ""); resp.StatusCode != 405 {
		t.Errorf("POST vbucketsMissing: %s", resp.Status)
	}
	if got := c.Requests(); len(got) == 0 || got[0] != (Request{n.REST(), "PUT", recoveryBase + "replaceNode", "", 405}) {
		t.Errorf("journal: %+v", got)
	}
}

func TestWithoutRecoveryAPI(t *testing.T) {
	c, _, _ := damaged(t, Config{WithoutRecoveryAPI: true})
	if resp, _ := call(t, c.Nodes()[0], "GET", recoveryBase+"vbucketsMissing", "Administrator", "password", "", ""); resp.StatusCode != 404 {
		t.Errorf("vbucketsMissing: %s", resp.Status)
	}
	if post(t, c.Nodes()[0], recoveryBase+"updateVbucketMap", "") != 404 {
		t.Error("updateVbucketMap is served")
	}
}

func TestRESTFaults(t *testing.T) {
	c, _, _ := damaged(t, Config{})
	n := c.Nodes()[0]
	remove := n.InjectREST(RESTFault{Path: "/pools/default", After: 1, Times: 2, Status: 503, Body: "<html>busy</html>"})
	want := []int{200, 503, 503, 200}
	for i, status := range want {
		resp, body := call(t, n, "GET", "/pools/default", "Administrator", "password", "", "")
		if resp.StatusCode != status || status == 503 && (body != "<html>busy</html>" || resp.Header.Get("Content-Type") != "text/html") {
			t.Errorf("request %d: %s %s", i, resp.Status, body)
		}
	}
	remove()
	remove = n.InjectREST(RESTFault{Status: 200, ContentType: "application/json", Body: "{garbage"})
	if _, body := call(t, n, "GET", "/pools", "", "", "", ""); body != "{garbage" {
		t.Errorf("garbage: %q", body)
	}
	remove()
	remove = n.InjectREST(RESTFault{Close: true})
	if _, _, err := tryCall(n, "GET", "/pools", "", "", "", ""); err == nil {
		t.Error("a closed connection answers")
	}
	remove()
	// The effect happens, the answer is lost.
	remove = n.InjectREST(RESTFault{Method: "POST", Close: true, AfterEffect: true})
	vb := c.Bucket("default").Missing()[0]
	if _, _, err := tryCall(n, "POST", recoveryBase+"changeVbucketStates", "Administrator", "password", formType, fmt.Sprintf("vbucket=%d&state=replica", vb)); err == nil {
		t.Error("a dropped answer came")
	}
	remove()
	if log := c.Requests(); log[len(log)-1].Status != 202 {
		t.Errorf("journal: %+v", log)
	}
	// A stalled request ends with its node.
	n.InjectREST(RESTFault{Stall: true})
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		close(started)
		_, _, err := tryCall(n, "GET", "/pools", "", "", "", "")
		done <- err
	}()
	<-started
	n.Kill()
	if err := <-done; err == nil {
		t.Error("a stalled request was answered")
	}
}
