package recovery

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// steer answers as a cluster with two nodes, except to the calls of the recovery
// API, which answer gets.
func steer(t *testing.T, bucket, pool string, answer http.HandlerFunc) *controller {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/pools/default/buckets/beer sample":
			fmt.Fprint(w, bucket)
		case "/pools/default":
			fmt.Fprint(w, pool)
		case "/pools/default/nodeServices":
			w.WriteHeader(http.StatusNotFound) // as up to 2.x; ports are those of the bucket
		default:
			answer(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	client, err := cluster.NewClient(srv.URL, cluster.Config{Role: "destination", Username: "admin", Password: "s3cret-pw", Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &controller{client: client, side: &side{role: "destination", client: client, name: "beer sample"}, log: hclog.NewNullLogger()}
}

const (
	// A cluster of 3.0 and later: the bucket's nodes have otpNode, and ports differ.
	modernBucket = `{"name":"beer sample","bucketType":"membase","nodes":[
		{"hostname":"10.0.0.7:9000","otpNode":"n_0@10.0.0.7","clusterMembership":"active","version":"6.6.5","ports":{"direct":12000}},
		{"hostname":"10.0.0.7:9001","otpNode":"n_1@10.0.0.7","clusterMembership":"active","version":"6.6.5","ports":{"direct":12002}},
		{"hostname":"[fd00::9]:8091","otpNode":"ns_1@fd00::9","clusterMembership":"active","version":"6.6.5","ports":{"direct":11210}}],
		"vBucketServerMap":{"hashAlgorithm":"CRC","numReplicas":0,"serverList":["10.0.0.7:12000"],"vBucketMap":[[0],[-1],[0],[-1]]}}`
	// Up to 2.x only /pools/default knows otpNode.
	oldBucket = `{"name":"beer sample","bucketType":"membase","nodes":[
		{"hostname":"10.0.0.7:9000","clusterMembership":"active","version":"2.5.1","ports":{"direct":12000}},
		{"hostname":"10.0.0.7:9001","clusterMembership":"active","version":"2.5.1","ports":{"direct":12002}}],
		"vBucketServerMap":{"hashAlgorithm":"CRC","numReplicas":0,"serverList":["10.0.0.7:12000"],"vBucketMap":[[0],[-1],[0],[-1]]}}`
	anyPool = `{"nodes":[
		{"hostname":"10.0.0.7:9000","otpNode":"n_0@10.0.0.7","clusterMembership":"active","version":"2.5.1","ports":{"direct":12000}},
		{"hostname":"10.0.0.7:9001","otpNode":"n_1@10.0.0.7","clusterMembership":"active","version":"2.5.1","ports":{"direct":12002}},
		{"hostname":"10.0.0.8:8091","otpNode":"ns_1@10.0.0.8","clusterMembership":"active","version":"2.5.1","ports":{"direct":11210}}]}`
)

// TestControllerRequests fixes what goes over the wire, and owners by otpNode.
func TestControllerRequests(t *testing.T) {
	for name, c := range map[string]struct {
		bucket, rows string
		owners       map[uint16]string
	}{
		"3.0": {modernBucket, `{"node":"n_1@10.0.0.7","vbuckets":[1]},{"node":"ns_1@fd00::9","vbuckets":[3]}`, map[uint16]string{1: "10.0.0.7:12002", 3: "[fd00::9]:11210"}},
		"2.x": {oldBucket, `{"node":"n_1@10.0.0.7","vbuckets":[1]},{"node":"n_0@10.0.0.7","vbuckets":[3]}`, map[uint16]string{1: "10.0.0.7:12002", 3: "10.0.0.7:12000"}},
		// In the cluster, but not in the bucket's list of nodes yet.
		"added":  {modernBucket, `{"node":"ns_1@10.0.0.8","vbuckets":[1,3]}`, map[uint16]string{1: "10.0.0.8:11210", 3: "10.0.0.8:11210"}},
		"nobody": {modernBucket, ``, map[uint16]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			var sent []string
			d := steer(t, c.bucket, anyPool, func(w http.ResponseWriter, r *http.Request) {
				if err := r.ParseForm(); err != nil {
					t.Error(err)
				}
				sent = append(sent, fmt.Sprint(r.Method, " ", r.URL.EscapedPath(), " ", r.URL.RawQuery, " ", r.PostForm.Encode()))
				if strings.HasSuffix(r.URL.Path, "commitVBucket") {
					fmt.Fprint(w, `{"code":"recovery_completed"}`)
					return
				}
				fmt.Fprintf(w, `{"uuid":"8e02/&","code":"ok","recoveryMap":[%s]}`, c.rows)
			})
			ctx := context.Background()
			owners, err := d.Begin(ctx, nil)
			if err != nil || !maps.Equal(owners, c.owners) {
				t.Errorf("owners %v, want %v (%v)", owners, c.owners, err)
			}
			open, err := d.Uncommitted(ctx)
			if err != nil || len(open) != len(c.owners) {
				t.Errorf("open %v: %v", open, err)
			}
			if err := d.Commit(ctx, 3); err != nil {
				t.Error(err)
			}
			// It is completed: nothing may be sent under the dead uuid.
			if err := d.Commit(ctx, 3); pump.CodeOf(err) != codeForgotten {
				t.Error(err)
			}
			if _, err := d.Uncommitted(ctx); pump.CodeOf(err) != codeForgotten {
				t.Error(err)
			}
			if _, err := d.End(ctx); err != nil {
				t.Error(err)
			}
			if owners, err = d.Adopt(ctx, "8e02/&"); err != nil || !maps.Equal(owners, c.owners) {
				t.Errorf("adopted %v: %v", owners, err)
			}
			if _, err := d.End(ctx); err != nil {
				t.Error(err)
			}
			const path, id = " /pools/default/buckets/beer%20sample/", " recovery_uuid=8e02%2F%26 "
			want := []string{
				"POST" + path + "controller/startRecovery  ", "GET" + path + "recoveryStatus" + id,
				"POST" + path + "controller/commitVBucket" + id + "vbucket=3", "GET" + path + "recoveryStatus" + id,
				"POST" + path + "controller/stopRecovery" + id,
			}
			if strings.Join(sent, "\n") != strings.Join(want, "\n") {
				t.Errorf("sent\n%s\nwant\n%s", strings.Join(sent, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestControllerStatuses goes through the table of the API for every call, and
// through answers that are not in it.
func TestControllerStatuses(t *testing.T) {
	calls := map[string]func(*controller) error{
		callStart:  func(d *controller) error { _, err := d.Begin(context.Background(), nil); return err },
		callStatus: func(d *controller) error { _, err := d.Uncommitted(context.Background()); return err },
		callCommit: func(d *controller) error { return d.Commit(context.Background(), 33) },
		callStop:   func(d *controller) error { _, err := d.End(context.Background()); return err },
	}
	for _, c := range []struct {
		status int
		body   string
		calls  string // of the table; "" means all
		class  pump.Class
		code   string
		retry  bool
		text   string
	}{
		{400, `{"code":"not_needed"}`, callStart, 0, "not-needed", false, "nothing is missing"},
		{400, `{"code":"recovery_running"}`, callStart, 0, "recovery-running", false, "under way"},
		{400, `{"code":"uuid_missing"}`, "", 0, "bad-request", false, "uuid_missing"},
		{400, `{"code":"bad_or_missing_vbucket"}`, callCommit, 0, "bad-request", false, "names no vbucket"},
		{400, `{"code":"unsupported"}`, callStart, 0, "unsupported", false, "cannot recover"},
		{404, `{"code":"not_present"}`, callStart, 0, "not-present", false, "no such bucket"},
		{404, "Requested resource not found.\r\n", callStart, 0, "not-present", false, "no such bucket"},
		{404, "Requested resource not found.\r\n", callCommit, 0, "no-recovery-api", false, "not found"},
		{404, `{"code":"bad_recovery"}`, callStatus, 0, "recovery-forgotten", false, "knows nothing"},
		{404, `{"code":"bad_recovery"}`, callCommit, 0, "recovery-forgotten", false, "knows nothing"},
		{404, `{"code":"bad_recovery"}`, callStop, 0, "", false, ""},
		{404, `{"code":"vbucket_not_found"}`, callCommit, 0, "vbucket-not-found", false, "not part of"},
		{500, `{"code":"failed_nodes","failedNodes":["n_1@10.0.0.7","n_2@10.0.0.8"]}`, "", 0, "failed-nodes", true, `"n_1@10.0.0.7", "n_2@10.0.0.8"`},
		{500, `{"code":"internal_error"}`, "", 0, "internal-error", true, "internal_error"},
		{503, `{"code":"rebalance_running"}`, callStart, 0, "rebalance-running", false, "rebalanced"},
		{503, `{"code":"in_bucket_hibernation"}`, callStart, 0, "hibernation", false, "paused"},
		{403, `{"message":"Forbidden.","permissions":["cluster.bucket[b].recovery!write"]}`, "", pump.ClassDenied, "no-permission", false, "cluster.bucket[b].recovery!write"},
		{503, "<html>busy</html>", "", 0, "busy", true, "busy"},
		{500, "s3cret-pw", "", 0, "server-error", true, "500"},
		{400, `{"code":"made_up"}`, "", 0, "bad-request", false, "made_up"},
		{200, `{"code":"made_up"}`, "", 0, "bad-answer", false, "made_up"},
		{200, `null`, "", 0, "bad-answer", false, ""},
		{200, `<html>hello</html>`, "", 0, "bad-answer", false, "hello"},
		{200, `{"code":"recovery_completed"}`, callStatus, 0, "bad-answer", false, ""},
		{200, `{"code":"ok","uuid":"u"}`, callStatus, 0, "bad-answer", false, "no recoveryMap"},
		{200, `{"code":"ok","uuid":"u"}`, callStart, 0, "bad-answer", false, "no recoveryMap"},
		{200, `{"code":"ok","recoveryMap":[]}`, callStart, 0, "bad-answer", false, "no uuid"},
		{200, `{"code":"ok","uuid":"u","recoveryMap":[{"node":"n_0@10.0.0.7","vbuckets":[-1]}]}`, callStart, 0, "bad-answer", false, "vbucket -1"},
		{200, `{"code":"ok","uuid":"u","recoveryMap":[{"node":"n_0@10.0.0.7","vbuckets":[65535]}]}`, callStatus, 0, "bad-answer", false, "vbucket 65535"},
		{200, `{"code":"ok","uuid":"u","recoveryMap":[{"node":"n_9@10.9.9.9","vbuckets":[1]}]}`, callStart, 0, "bad-answer", false, `"n_9@10.9.9.9"`},
		{200, `{"code":"ok","uuid":"u","recoveryMap":[{"node":"n_0@10.0.0.7","vbuckets":[1]},{"node":"n_1@10.0.0.7","vbuckets":[1]}]}`, callStart, 0, "bad-answer", false, "two nodes"},
	} {
		for call, do := range calls {
			if c.calls != "" && c.calls != call {
				continue
			}
			t.Run(fmt.Sprint(c.status, " ", c.body, " ", call), func(t *testing.T) {
				d := steer(t, modernBucket, anyPool, func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(c.status)
					fmt.Fprint(w, c.body)
				})
				if call != callStart {
					d.uuid = "8e02"
				}
				err := do(d)
				if c.code == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if err == nil || pump.CodeOf(err) != c.code || pump.ClassOf(err) != c.class || pump.IsRetryable(err) != c.retry ||
					!strings.Contains(err.Error(), c.text) || pump.HintOf(err) == "" {
					t.Errorf("got %v (code %s, class %d, retry %v, hint %q), want %+v", err, pump.CodeOf(err), pump.ClassOf(err), pump.IsRetryable(err), pump.HintOf(err), c)
				}
				if err != nil && strings.Contains(err.Error(), "s3cret") {
					t.Errorf("the password is in %v", err)
				}
			})
		}
	}
}

// TestRunning reads the list of tasks.
func TestRunning(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   *Running
		code   string
	}{
		{200, `[]`, nil, ""},
		{200, `[{"type":"rebalance","status":"notRunning"},{"type":"recovery","bucket":"b","uuid":"8e02","stopURI":"/x"}]`, &Running{"b", "8e02"}, ""},
		{200, `{"no":"list"}`, nil, "bad-answer"},
		{403, `{"permissions":["cluster.tasks!read"]}`, nil, ""},
		{404, `no`, nil, ""},
		{503, `busy`, nil, "busy"},
	} {
		d := steer(t, modernBucket, anyPool, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || r.URL.Path != "/pools/default/tasks" {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		})
		got, err := d.Running(context.Background())
		if pump.CodeOf(err) != c.code && (err != nil || c.code != "") || (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
}

// TestEndUnsure: the answer to startRecovery was lost for good. What runs is ours
// and is stopped; another bucket's is not.
func TestEndUnsure(t *testing.T) {
	for bucket, stops := range map[string]int{"beer sample": 1, "other": 0} {
		var stopped []url.Values
		d := steer(t, modernBucket, anyPool, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasSuffix(r.URL.Path, "/tasks"):
				fmt.Fprintf(w, `[{"type":"recovery","bucket":%q,"uuid":"8e02"}]`, bucket)
			case strings.HasSuffix(r.URL.Path, "/stopRecovery"):
				stopped = append(stopped, r.URL.Query())
				fmt.Fprint(w, `{"code":"ok"}`)
			default:
				panic(http.ErrAbortHandler)
			}
		})
		if _, err := d.Begin(context.Background(), nil); !pump.IsRetryable(err) {
			t.Fatal(err)
		}
		if _, err := d.End(context.Background()); err != nil || len(stopped) != stops {
			t.Errorf("%s: %v, stopped %v", bucket, err, stopped)
		}
	}
}
