package recovery_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
	"github.com/cbpump/cbpump/simcluster"
)

// real is a cluster that serves what real servers do.
func real(c *simcluster.Config) { c.WithoutRecoveryAPI = true }

// realPair is a pair whose destination serves the controller's API.
func realPair(t *testing.T, sh shape) *pair {
	t.Helper()
	change := sh.dst
	sh.dst = func(c *simcluster.Config) {
		real(c)
		if change != nil {
			change(c)
		}
	}
	return newPair(t, sh)
}

// sent counts the calls of the controller that the destination has had, by what
// they did: "startRecovery", "stopRecovery", "commitVBucket 5".
func (p *pair) sent() map[string]int {
	out := make(map[string]int)
	for _, r := range p.posts() {
		call, form, _ := strings.Cut(r, "?")
		out[strings.TrimSpace(call+" "+strings.TrimPrefix(form, "vbucket="))]++
	}
	return out
}

// over checks that no recovery is left running.
func (p *pair) over() {
	p.t.Helper()
	if b, uuid := p.dst.RecoveryRunning(); uuid != "" {
		p.t.Errorf("recovery %s of %s is still running", uuid, b)
	}
}

// TestController recovers from and to every generation of servers.
func TestController(t *testing.T) {
	for _, version := range []string{"2.5.1", "3.0.3", "4.0", "4.6", "6.0.4", "6.6.5", "7.0.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			p := realPair(t, shape{version: version, docs: 1000})
			res, ev, err := p.run(nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			p.whole()
			p.over()
			if !slices.Equal(res.Recovered(), p.missing) || res.Plan.Dialect != recovery.APIController {
				t.Errorf("recovered %v of %v by %s", res.Recovered(), p.missing, res.Plan.Dialect)
			}
			want := map[string]int{"startRecovery": 1}
			for _, vb := range p.missing {
				want[fmt.Sprint("commitVBucket ", vb)] = 1
			}
			if got := p.sent(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("sent %v, want %v", got, want)
			}
			if got := ev.phases(); !slices.Equal(got[:3], phases[:3]) || got[len(got)-1] != "publish" {
				t.Errorf("phases %v", got)
			}
			for _, r := range p.src.Requests() {
				t.Errorf("the source was sent %s %s", r.Method, r.Path)
			}
			for _, e := range ev.all {
				if e, ok := e.(recovery.PhaseEnded); ok && (e.Left != 0 || e.Done < 0) {
					t.Errorf("%s", e)
				}
			}
			n := len(p.posts())
			if res, _, err := p.run(nil, nil); err != nil || !res.Plan.Nothing() || len(p.posts()) != n {
				t.Errorf("second run: %v, %+v", err, res.Plan)
			}
		})
	}
}

// TestCommitsOverlap: while one vbucket hangs the others are committed, so that
// stopping the recovery loses nothing but that one.
func TestCommitsOverlap(t *testing.T) {
	for _, version := range []string{"2.5.1", "6.6.5"} {
		t.Run(version, func(t *testing.T) {
			p := realPair(t, shape{version: version, vbuckets: 16, docs: 500})
			bad := p.missing[1]
			remove := sender(p.src, bad).Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpTapMutation, mcbp.OpDcpMutation},
				VBucket: int(bad), After: 1, Action: simcluster.Stall})
			stop := make(chan struct{})
			committed := 0
			res, ev, err := p.run(func(o *recovery.Options) { o.Stop, o.Threads = stop, len(p.missing) }, func(e recovery.Event) {
				if v, ok := e.(recovery.VBucketEvent); ok && v.Step == recovery.StepCommitted {
					if committed++; committed == len(p.missing)-1 {
						close(stop)
					}
				}
			})
			wants(t, err, pump.ClassInterrupted, "interrupted")
			p.over()
			if !slices.Equal(res.Remaining(), []uint16{bad}) || !slices.Equal(p.dst.Bucket(bucket).Missing(), []uint16{bad}) {
				t.Errorf("remaining %v, missing %v, want %d", res.Remaining(), p.dst.Bucket(bucket).Missing(), bad)
			}
			if o := outcome(t, res, bad); o.State != recovery.StateMissing || !ev.warned("recovery-stopped") || p.sent()["stopRecovery"] != 1 {
				t.Errorf("outcome %+v, sent %v", o, p.sent())
			}
			if s := p.states(bad); len(s) != 0 {
				t.Errorf("vbucket %d is %v", bad, s)
			}
			remove()
			if _, _, err := p.run(nil, nil); err != nil {
				t.Fatal(err)
			}
			p.whole()
		})
	}
}

// TestControllerAnswers goes through the table of the API: every code that a
// destination can give, once, often and for ever.
func TestControllerAnswers(t *testing.T) {
	for _, c := range []struct {
		call, code string
		times      int
		class      pump.Class
		want       string // code of the error, "" where the run succeeds
		warned     string
	}{
		{"startRecovery", "failed_nodes", 2, 0, "", ""},
		{"startRecovery", "failed_nodes", 100, pump.ClassFailed, "failed-nodes", ""},
		{"startRecovery", "internal_error", 2, 0, "", ""},
		{"startRecovery", "internal_error", 100, pump.ClassFailed, "internal-error", ""},
		{"startRecovery", "rebalance_running", 2, 0, "", "rebalance-running"},
		{"startRecovery", "rebalance_running", 1 << 20, pump.ClassFailed, "rebalance-running", "rebalance-running"},
		{"startRecovery", "in_bucket_hibernation", 2, 0, "", "hibernation"},
		{"startRecovery", "in_bucket_hibernation", 1 << 20, pump.ClassFailed, "hibernation", "hibernation"},
		{"startRecovery", "not_present", 1, pump.ClassFailed, "not-present", ""},
		{"startRecovery", "unsupported", 1, pump.ClassFailed, "unsupported", ""},
		{"startRecovery", "recovery_running", 1, pump.ClassFailed, "recovery-running", ""},
		{"commitVBucket", "failed_nodes", 3, 0, "", ""},
		{"commitVBucket", "failed_nodes", 1 << 20, pump.ClassFailed, "vbuckets-left", "recovery-stopped"},
		{"commitVBucket", "internal_error", 3, 0, "", ""},
		{"commitVBucket", "bad_or_missing_vbucket", 1, pump.ClassFailed, "vbuckets-left", "recovery-stopped"},
		{"commitVBucket", "uuid_missing", 1, pump.ClassFailed, "vbuckets-left", "recovery-stopped"},
	} {
		t.Run(fmt.Sprint(c.call, " ", c.code, " ", c.times), func(t *testing.T) {
			p := realPair(t, shape{docs: 100})
			p.dst.FailRecovery(c.call, c.code, c.times)
			res, ev, err := p.run(func(o *recovery.Options) { o.Timing.Busy = 100 * time.Millisecond }, nil)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				p.whole()
			} else {
				wants(t, err, c.class, c.want)
				if pump.HintOf(err) == "" {
					t.Error("no hint")
				}
			}
			if c.warned != "" && !ev.warned(c.warned) {
				t.Errorf("no warning %s", c.warned)
			}
			for _, o := range res.Outcomes {
				if s := p.states(o.VBucket); (o.State == recovery.StateRecovered) != (s[mcbp.VBActive] == 1) || o.State == recovery.StateReplica {
					t.Errorf("outcome %+v, but it is %v", o, s)
				}
			}
			p.over()
		})
	}
}

// TestControllerRequestsFail loses every request once, before and after its
// effect. Nothing is done twice and nothing is lost.
func TestControllerRequestsFail(t *testing.T) {
	for _, call := range []string{"/controller/startRecovery", "/controller/commitVBucket", "/controller/stopRecovery", "/recoveryStatus", "/pools/default/tasks"} {
		for name, f := range map[string]simcluster.RESTFault{
			"503":         {Status: 503, Body: "<html>busy</html>"},
			"lost before": {Close: true},
			"lost after":  {Close: true, AfterEffect: true},
			"500 after":   {Status: 500, AfterEffect: true},
		} {
			t.Run(call+" "+name, func(t *testing.T) {
				p := realPair(t, shape{version: "6.6.5", docs: 100})
				f.Path, f.Times = bucketPath+call, 2
				if strings.HasPrefix(call, "/pools") {
					f.Path = call
				}
				p.dst.Nodes()[0].InjectREST(f)
				res, _, err := p.run(func(o *recovery.Options) { o.VBuckets = p.missing[1:] }, nil)
				if err != nil {
					t.Fatal(err)
				}
				p.over()
				if !slices.Equal(res.Recovered(), p.missing[1:]) || !slices.Equal(p.dst.Bucket(bucket).Missing(), p.missing[:1]) {
					t.Errorf("recovered %v, missing %v", res.Recovered(), p.dst.Bucket(bucket).Missing())
				}
				if f.AfterEffect && !strings.HasSuffix(call, "stopRecovery") {
					for what, n := range p.sent() {
						if n > 1 {
							t.Errorf("%s was sent %d times", what, n)
						}
					}
				}
				if _, _, err := p.run(nil, nil); err != nil {
					t.Fatal(err)
				}
				p.whole()
				p.over()
			})
		}
	}
}

// TestLastCommitLost: the answer to the commit that ends the recovery is lost, and
// its uuid is dead: the map tells.
func TestLastCommitLost(t *testing.T) {
	p := realPair(t, shape{docs: 100})
	p.dst.Nodes()[0].InjectREST(simcluster.RESTFault{Path: bucketPath + "/controller/commitVBucket", After: len(p.missing) - 1, Times: 1, Close: true, AfterEffect: true})
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
	if n := p.sent()["startRecovery"]; n != 1 {
		t.Errorf("started %d times", n)
	}
}

// TestForgotten: the cluster has a new master and knows nothing of the recovery.
// It is started again; what is committed stays, the rest is sent again.
func TestForgotten(t *testing.T) {
	for _, version := range []string{"2.5.1", "6.6.5"} {
		for _, at := range []string{recovery.StepTransferred, recovery.StepVerified, recovery.StepCommitted} {
			t.Run(version+" "+at, func(t *testing.T) {
				p := realPair(t, shape{version: version, docs: 300})
				done := false
				_, ev, err := p.run(nil, func(e recovery.Event) {
					if v, ok := e.(recovery.VBucketEvent); ok && v.Step == at && !done {
						done = true
						p.dst.ForgetRecovery()
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				p.whole()
				p.over()
				if n := p.sent()["startRecovery"]; n != 2 || !ev.warned("recovery-forgotten") {
					t.Errorf("started %d times", n)
				}
			})
		}
	}
	t.Run("again and again", func(t *testing.T) {
		p := realPair(t, shape{docs: 100})
		res, _, err := p.run(nil, func(e recovery.Event) {
			if v, ok := e.(recovery.VBucketEvent); ok && v.Step == recovery.StepVerified {
				p.dst.ForgetRecovery()
			}
		})
		wants(t, err, pump.ClassFailed, "vbuckets-left")
		for _, o := range res.Outcomes {
			if pump.CodeOf(o.Err) != "recovery-forgotten" || o.State != recovery.StateMissing {
				t.Errorf("outcome %+v", o)
			}
		}
		p.over()
		if n := p.sent()["startRecovery"]; n != 3 {
			t.Errorf("started %d times", n)
		}
	})
}

// TestControllerInterrupted stops the run in order at every phase, and cuts it
// there: no recovery is left running, and the next run does what is left.
func TestControllerInterrupted(t *testing.T) {
	for _, phase := range []string{"plan", "prepare", "transfer", "verify", "commit", "publish"} {
		for _, how := range []string{"stop", "cancel"} {
			t.Run(phase+" "+how, func(t *testing.T) {
				p := realPair(t, shape{version: "6.6.5"})
				stop, closed := make(chan struct{}), false
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				opt := p.options()
				opt.Stop = stop
				opt.OnEvent = func(e recovery.Event) {
					if s, ok := e.(recovery.PhaseStarted); ok && string(s.Phase) == phase && !closed {
						closed = true
						if how == "stop" {
							close(stop)
						} else {
							cancel()
						}
					}
				}
				res, err := recovery.Run(ctx, opt)
				if err != nil {
					wants(t, err, pump.ClassInterrupted, "")
				}
				p.over()
				for _, o := range res.Outcomes {
					s := p.states(o.VBucket)
					if s[mcbp.VBReplica] != 0 || o.State == recovery.StateRecovered && s[mcbp.VBActive] != 1 || o.State == recovery.StateMissing && len(s) != 0 {
						t.Errorf("outcome %+v, but it is %v", o, s)
					}
				}
				if _, _, err := p.run(nil, nil); err != nil {
					t.Fatal(err)
				}
				p.whole()
				p.over()
			})
		}
	}
}

// startElsewhere starts a recovery as another client would.
func (p *pair) startElsewhere(name string) {
	p.t.Helper()
	p.postElsewhere("/pools/default/buckets/"+name+"/controller/startRecovery", nil)
}

// postElsewhere sends a request to the destination as another client would.
func (p *pair) postElsewhere(path string, form url.Values) {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodPost, p.dst.URL()+path, strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Error(err)
		return
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(user, pass)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Error(err)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p.t.Errorf("%s answers %d", path, resp.StatusCode)
	}
}

// TestRunningAlready: a recovery that is under way is shown and left alone, also
// where the server would answer as if it were new (up to 5.0); with Resume it is
// gone on with.
func TestRunningAlready(t *testing.T) {
	for _, version := range []string{"4.0", "6.6.5"} {
		t.Run(version, func(t *testing.T) {
			p := realPair(t, shape{version: version, docs: 200})
			p.startElsewhere(bucket)
			_, uuid := p.dst.RecoveryRunning()
			n := len(p.posts())
			for _, dry := range []bool{false, true} {
				res, ev, err := p.run(func(o *recovery.Options) { o.DryRun = dry }, nil)
				if dry && err != nil || !dry && (pump.CodeOf(err) != "recovery-running" || !strings.Contains(err.Error(), uuid)) {
					t.Errorf("dry %v: %v", dry, err)
				}
				if res.Plan.Running != uuid || !ev.warned("recovery-running") {
					t.Errorf("plan %+v", res.Plan)
				}
			}
			if _, now := p.dst.RecoveryRunning(); now != uuid || len(p.posts()) != n {
				t.Errorf("the recovery was disturbed: %v", p.posts()[n:])
			}
			res, _, err := p.run(func(o *recovery.Options) { o.Resume = true }, nil)
			if err != nil {
				t.Fatal(err)
			}
			p.whole()
			p.over()
			if !slices.Equal(res.Plan.With(recovery.ActionResume), p.missing) || p.sent()["startRecovery"] != 1 {
				t.Errorf("plan %+v, sent %v", res.Plan, p.sent())
			}
		})
	}
	t.Run("nothing to resume", func(t *testing.T) {
		p := realPair(t, shape{docs: 50})
		_, ev, err := p.run(func(o *recovery.Options) { o.Resume = true }, nil)
		if err != nil || !ev.warned("nothing-to-resume") {
			t.Error(err)
		}
		p.whole()
	})
	t.Run("started since the plan", func(t *testing.T) {
		p := realPair(t, shape{version: "4.0", docs: 50})
		res, _, err := p.run(nil, func(e recovery.Event) {
			if _, ok := e.(recovery.Planned); ok {
				p.startElsewhere(bucket)
			}
		})
		wants(t, err, pump.ClassFailed, "recovery-running")
		if _, uuid := p.dst.RecoveryRunning(); uuid == "" || p.sent()["startRecovery"] != 1 || len(res.Recovered()) != 0 {
			t.Errorf("somebody else's recovery was taken: %v", p.sent())
		}
	})
	t.Run("of another bucket", func(t *testing.T) {
		p := realPair(t, shape{docs: 50, dst: func(c *simcluster.Config) {
			c.Buckets = []simcluster.BucketConfig{{Name: "other"}, {Name: bucket}}
		}})
		p.startElsewhere("other")
		for _, resume := range []bool{false, true} {
			_, _, err := p.run(func(o *recovery.Options) { o.Resume = resume }, nil)
			wants(t, err, pump.ClassFailed, "recovery-running")
			if err != nil && !strings.Contains(err.Error(), "bucket other") {
				t.Error(err)
			}
		}
	})
}

// TestSharedRecovery: two runs that start at the same moment get the same uuid up to
// 5.0. What the other one commits is not written to any more, and its recovery is
// not stopped.
func TestSharedRecovery(t *testing.T) {
	for _, version := range []string{"2.5.1", "4.0"} {
		t.Run(version, func(t *testing.T) {
			p := realPair(t, shape{version: version, docs: 1000})
			foreign := p.missing[1]
			p.midway(foreign, func() {
				_, uuid := p.dst.RecoveryRunning()
				p.postElsewhere(bucketPath+"/controller/commitVBucket?recovery_uuid="+uuid, url.Values{"vbucket": {fmt.Sprint(foreign)}})
			})
			res, ev, err := p.run(nil, nil)
			wants(t, err, pump.ClassFailed, "vbuckets-left")
			if o := outcome(t, res, foreign); pump.CodeOf(o.Err) != "became-active" || o.State != recovery.StateActive {
				t.Errorf("outcome %+v", o)
			}
			if !ev.warned("recovery-shared") || p.sent()["stopRecovery"] != 0 {
				t.Errorf("sent %v", p.sent())
			}
			if want := slices.DeleteFunc(slices.Clone(p.missing), func(vb uint16) bool { return vb == foreign }); !slices.Equal(res.Recovered(), want) {
				t.Errorf("recovered %v, want %v", res.Recovered(), want)
			}
		})
	}
}

// TestNotStopped: the destination cannot be told to stop. The result says that the
// next run has to go on with the recovery, and it does.
func TestNotStopped(t *testing.T) {
	p := realPair(t, shape{version: "6.6.5", docs: 200})
	remove := p.dst.Nodes()[0].InjectREST(simcluster.RESTFault{Path: bucketPath + "/controller/stopRecovery", Close: true})
	res, ev, err := p.run(func(o *recovery.Options) { o.VBuckets = p.missing[1:] }, nil)
	if err == nil || pump.CodeOf(err) != "recovery-not-stopped" || !ev.warned("recovery-not-stopped") || !res.NotStopped {
		t.Errorf("%v, %+v", err, res)
	}
	remove()
	if _, _, err := p.run(nil, nil); pump.CodeOf(err) != "recovery-running" {
		t.Error(err)
	}
	if res, _, err := p.run(func(o *recovery.Options) { o.Resume = true }, nil); err != nil || res.NotStopped {
		t.Error(err)
	}
	p.whole()
	p.over()
}

// TestSwapped: the damaged cluster was given as the source.
func TestSwapped(t *testing.T) {
	p := realPair(t, shape{version: "6.6.5", docs: 100})
	_, ev, err := p.run(func(o *recovery.Options) { o.Source.URL, o.Destination.URL = o.Destination.URL, o.Source.URL }, nil)
	if err != nil || !ev.warned("source-missing") {
		t.Errorf("no warning, %v", err)
	}
}

// TestNotNeeded: somebody else recovers or rebalances between plan and start.
func TestNotNeeded(t *testing.T) {
	t.Run("recovered", func(t *testing.T) {
		p := realPair(t, shape{docs: 200})
		res, ev, err := p.run(nil, func(e recovery.Event) {
			if _, ok := e.(recovery.Planned); ok {
				if _, err := recovery.Run(context.Background(), p.options()); err != nil {
					t.Error(err)
				}
			}
		})
		if err != nil || !ev.warned("not-needed") || len(res.Remaining()) != 0 {
			t.Errorf("%v, remaining %v", err, res.Remaining())
		}
		p.whole()
	})
	t.Run("rebalanced", func(t *testing.T) {
		p := realPair(t, shape{docs: 200})
		res, _, err := p.run(nil, func(e recovery.Event) {
			if _, ok := e.(recovery.Planned); ok {
				p.dst.Rebalance()
			}
		})
		wants(t, err, pump.ClassFailed, "vbuckets-left")
		for _, o := range res.Outcomes {
			if pump.CodeOf(o.Err) != "hole-permanent" {
				t.Errorf("outcome %+v", o)
			}
		}
	})
}

// TestHoles: a rebalance has created the missing vbuckets anew, empty. They are
// named, and the exit code is not 0.
func TestHoles(t *testing.T) {
	for _, change := range []func(*simcluster.Config){nil, real} {
		p := newPair(t, shape{docs: 400, dst: change})
		p.dst.Rebalance()
		if left := p.dst.Bucket(bucket).Missing(); len(left) != 0 {
			t.Fatalf("missing %v", left)
		}
		for _, dry := range []bool{true, false} {
			res, ev, err := p.run(func(o *recovery.Options) { o.DryRun = dry }, nil)
			wants(t, err, pump.ClassFailed, "hole-permanent")
			if !slices.Equal(res.Plan.Holes, p.missing) || !ev.warned("hole-permanent") || !strings.Contains(pump.HintOf(err), "cbtransfer") {
				t.Errorf("holes %v, want %v: %v", res.Plan.Holes, p.missing, err)
			}
		}
		res, _, err := p.run(func(o *recovery.Options) { o.VBuckets = p.missing[:1] }, nil)
		wants(t, err, pump.ClassFailed, "hole-permanent")
		if !slices.Equal(res.Plan.Holes, p.missing[:1]) {
			t.Errorf("holes %v", res.Plan.Holes)
		}
		if len(p.posts()) != 0 {
			t.Errorf("sent %v", p.posts())
		}
		// What the hint says. The source is only ahead: no hole.
		for id, d := range p.docs(p.src) {
			var vb uint16
			fmt.Sscanf(id, "%d/", &vb)
			if slices.Contains(p.missing, vb) {
				if err := p.dst.Bucket(bucket).Store(d); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, _, err := p.run(nil, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestControllerDryRun leaves the cluster as it was: startRecovery changes it, so
// the plan is made from the map.
func TestControllerDryRun(t *testing.T) {
	p := realPair(t, shape{version: "6.6.5"})
	res, _, err := p.run(func(o *recovery.Options) { o.DryRun = true }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(res.Plan.With(recovery.ActionCreate), p.missing) || res.Plan.Items() == 0 || res.Plan.Engine == nil {
		t.Errorf("plan %+v", res.Plan)
	}
	if len(p.posts()) != 0 || !slices.Equal(p.dst.Bucket(bucket).Missing(), p.missing) {
		t.Errorf("sent %v", p.posts())
	}
}

// TestAddedNode: a node that was added after the failover gets its share; -a and
// -r are refused before anything is changed, since there is no such call.
func TestAddedNode(t *testing.T) {
	p := realPair(t, shape{version: "6.6.5"})
	fresh, err := p.dst.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = p.run(func(o *recovery.Options) { o.AddNode, o.RemoveNode = fresh.REST(), p.lost.REST() }, nil)
	wants(t, err, pump.ClassUsage, "no-replace-node")
	if err != nil && !strings.Contains(pump.HintOf(err), fresh.REST()) || len(p.posts()) != 0 {
		t.Errorf("%v, sent %v", pump.HintOf(err), p.posts())
	}
	if err := p.dst.AddNode(fresh); err != nil {
		t.Fatal(err)
	}
	res, _, err := p.run(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.whole()
	if !slices.ContainsFunc(res.Outcomes, func(o recovery.Outcome) bool { return o.Destination == fresh.KV() }) {
		t.Errorf("nothing went to the new node: %+v", res.Outcomes)
	}
}

// TestTransfers: every way to read from a source goes with every way to write.
func TestTransfers(t *testing.T) {
	for _, c := range []struct{ src, dst, protocol, transfer, wantSrc, wantSink string }{
		{"2.5.1", "2.5.1", "auto", "auto", "tap", "tap"},
		{"2.5.1", "4.0", "auto", "auto", "tap", "tap"},
		{"2.5.1", "6.6.5", "auto", "with-meta", "tap", "with-meta"},
		{"4.0", "4.0", "auto", "auto", "dcp", "tap"},
		{"4.0", "4.0", "tap", "with-meta", "tap", "with-meta"},
		{"4.6", "2.5.1", "dcp", "tap", "dcp", "tap"},
		{"6.6.5", "2.5.1", "auto", "auto", "dcp", "tap"},
		{"6.6.5", "4.0", "auto", "with-meta", "dcp", "with-meta"},
		{"7.6", "6.6.5", "auto", "with-meta", "dcp", "with-meta"},
		{"2.5.1", "6.6.5", "auto", "auto", "tap", "dcp"},
		{"2.5.1", "4.6", "auto", "dcp", "tap", "dcp"},
		{"4.6", "3.0.3", "tap", "dcp", "tap", "dcp"},
		{"7.6", "7.0.5", "auto", "auto", "dcp", "dcp"},
		{"6.6.5", "4.0", "auto", "dcp", "dcp", "dcp"},
		{"7.6", "2.5.1", "auto", "auto", "dcp", "tap"},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			p := realPair(t, shape{version: c.dst, src: func(cfg *simcluster.Config) { cfg.Version = c.src }})
			res, _, err := p.run(func(o *recovery.Options) { o.SourceOptions.Protocol, o.Transfer = c.protocol, c.transfer }, nil)
			if err != nil {
				t.Fatal(err)
			}
			p.whole()
			if e := res.Plan.Engine; e.Source != c.wantSrc || e.Sink != c.wantSink || e.Reason == "" {
				t.Errorf("engine %+v", e)
			}
		})
	}
}

// TestCollections: a replica knows no named collection unless the push tells it.
// The ids differ on the two sides.
func TestCollections(t *testing.T) {
	p := &pair{t: t}
	one := []simcluster.BucketConfig{{Name: bucket}}
	p.src = p.start(simcluster.Config{Nodes: 2, Version: "7.6", VBuckets: 16, Buckets: one}, nil)
	p.dst = p.start(simcluster.Config{Nodes: 3, Version: "7.6", VBuckets: 16, Buckets: one}, real)
	if _, err := p.dst.Bucket(bucket).CreateCollection("_default", "first", 0); err != nil {
		t.Fatal(err) // so that the next id is another one
	}
	ids := make(map[*simcluster.Cluster]uint32)
	for _, c := range []*simcluster.Cluster{p.src, p.dst} {
		p.load(c, 200)
		b := c.Bucket(bucket)
		if _, err := b.CreateScope("shop"); err != nil {
			t.Fatal(err)
		}
		id, err := b.CreateCollection("shop", "orders", 0)
		if err != nil {
			t.Fatal(err)
		}
		ids[c] = id
		for i := range 200 {
			d := simcluster.Doc{Key: fmt.Appendf(nil, "order-%d", i), Collection: id, Value: []byte(`{"n":1}`), CAS: 1<<50 + uint64(i), Rev: 2}
			if err := b.Store(d); err != nil {
				t.Fatal(err)
			}
		}
	}
	if ids[p.src] == ids[p.dst] {
		t.Fatalf("both ids are %d", ids[p.src])
	}
	p.lost = p.dst.Nodes()[2]
	if err := p.dst.Failover(p.lost); err != nil {
		t.Fatal(err)
	}
	p.missing = p.dst.Bucket(bucket).Missing()
	res, _, err := p.run(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(res.Recovered(), p.missing) || res.Plan.Engine.Sink != recovery.TransferDCP {
		t.Errorf("recovered %v by %+v", res.Recovered(), res.Plan.Engine)
	}
	for i := range 200 {
		if d, ok := p.dst.Bucket(bucket).GetIn(ids[p.dst], fmt.Appendf(nil, "order-%d", i)); !ok || d.CAS != 1<<50+uint64(i) {
			t.Errorf("order-%d: %+v %v", i, d, ok)
		}
	}
}

// TestPermission: a user who may not recover is told what is needed.
func TestPermission(t *testing.T) {
	p := realPair(t, shape{version: "6.6.5", docs: 50, dst: func(c *simcluster.Config) {
		c.Users = []simcluster.User{{Name: "reader", Password: pass, Roles: []string{"ro_admin", "bucket_full_access[*]"}}}
	}})
	_, _, err := p.run(func(o *recovery.Options) { o.Destination.Username = "reader" }, nil)
	wants(t, err, pump.ClassDenied, "no-permission")
	if err != nil && !strings.Contains(err.Error(), "recovery!write") {
		t.Error(err)
	}
	p.over()
}

// TestSecureAndBadInput: TLS on both sides, what is wrong with it, and clusters
// that are not what they seem.
func TestSecureAndBadInput(t *testing.T) {
	secure := func(c *simcluster.Config) { c.TLS = &simcluster.TLSConfig{} }
	p := realPair(t, shape{version: "6.6.5", docs: 200, src: secure, dst: secure})
	expired := p.start(simcluster.Config{Nodes: 1, Version: "6.6.5", VBuckets: 16, TLS: &simcluster.TLSConfig{Expired: true}}, nil)
	misnamed := p.start(simcluster.Config{Nodes: 1, Version: "6.6.5", VBuckets: 16, TLS: &simcluster.TLSConfig{Hosts: []string{"db.example"}}}, nil)
	lww := p.start(simcluster.Config{Nodes: 1, Version: "6.6.5", VBuckets: 16, Buckets: []simcluster.BucketConfig{{Name: bucket, ConflictResolution: "lww"}}}, nil)
	host := p.start(simcluster.Config{Nodes: 1, Version: "6.6.5", VBuckets: 16, AdvertiseHost: "$HOST"}, nil)
	p.load(host, 200)
	fresh, err := p.dst.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	over := func(e *recovery.Endpoint, c *simcluster.Cluster, ca []byte) {
		e.URL, e.TLS.CACertPEM = "https://"+c.Nodes()[0].RESTTLS(), ca
	}
	for _, c := range []struct {
		name   string
		change func(*recovery.Options)
		class  pump.Class
		code   string
		warned string
	}{
		{"unknown CA", func(o *recovery.Options) { over(&o.Destination, p.dst, nil) }, pump.ClassUnreachable, "tls-unknown-ca", ""},
		{"CA of the other", func(o *recovery.Options) { over(&o.Source, p.src, p.dst.CACert()) }, pump.ClassUnreachable, "tls-unknown-ca", ""},
		{"expired", func(o *recovery.Options) { over(&o.Source, expired, expired.CACert()) }, pump.ClassUnreachable, "tls-expired", ""},
		{"other name", func(o *recovery.Options) { over(&o.Source, misnamed, misnamed.CACert()) }, pump.ClassUnreachable, "tls-name", ""},
		{"TLS to a port without", func(o *recovery.Options) { o.Source.URL = strings.Replace(p.src.URL(), "http:", "https:", 1) }, pump.ClassUnreachable, "tls-plain", ""},
		{"wrong password", func(o *recovery.Options) {
			over(&o.Destination, p.dst, p.dst.CACert())
			o.Destination.Password = "wrong"
		}, pump.ClassDenied, "rest-denied", ""},
		{"not initialised", func(o *recovery.Options) { o.Destination.URL = "http://" + fresh.REST() }, pump.ClassFailed, "not-initialised", ""},
		{"mixed conflict resolution", func(o *recovery.Options) { o.Source.URL, o.DryRun = lww.URL(), true }, 0, "", "conflict-resolution"},
		{"$HOST", func(o *recovery.Options) { o.Source.URL, o.VBuckets = host.URL(), p.missing[:1] }, 0, "", ""},
		{"both over TLS", func(o *recovery.Options) {
			over(&o.Source, p.src, p.src.CACert())
			over(&o.Destination, p.dst, p.dst.CACert())
		}, 0, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, ev, err := p.run(c.change, nil)
			if c.code != "" {
				wants(t, err, c.class, c.code)
			} else if err != nil {
				t.Error(err)
			}
			if c.warned != "" && !ev.warned(c.warned) {
				t.Errorf("no warning %s", c.warned)
			}
			p.over()
		})
	}
	p.whole()
}

// TestSourceFailsOver: the source loses a node, and its replicas take over,
// while it is read.
func TestSourceFailsOver(t *testing.T) {
	p := realPair(t, shape{version: "6.6.5", docs: 600, src: func(c *simcluster.Config) {
		c.Nodes, c.Buckets = 3, []simcluster.BucketConfig{{Name: bucket, Replicas: 1}}
	}})
	victim := sender(p.src, p.missing[0])
	done := false
	victim.Inject(simcluster.Fault{Op: mcbp.OpDcpMutation, VBucket: int(p.missing[0]), After: 1, Times: 1, Action: simcluster.CutMidFrame})
	res, _, err := p.run(nil, func(e recovery.Event) {
		if s, ok := e.(recovery.PhaseStarted); ok && s.Phase == recovery.PhaseTransfer && !done {
			done = true
			if err := p.src.Failover(victim); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatalf("%v, remaining %v", err, res.Remaining())
	}
	p.whole()
	p.over()
}
