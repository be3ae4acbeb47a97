package recovery_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
	"github.com/cbpump/cbpump/simcluster"
)

var phases = []string{"plan", "prepare", "transfer", "verify", "activate", "publish"}

// TestRecover is the specification's main control function from end to end.
func TestRecover(t *testing.T) {
	for _, version := range []string{"2.5.1", "3.0.3", "4.0", "6.6.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			p := newPair(t, shape{version: version, docs: 1000})
			res, ev, err := p.run(nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			p.whole()
			if !slices.Equal(res.Recovered(), p.missing) || len(res.Remaining()) != 0 {
				t.Errorf("recovered %v, remaining %v, missing were %v", res.Recovered(), res.Remaining(), p.missing)
			}
			if got := ev.phases(); !slices.Equal(got, phases) {
				t.Errorf("phases %v", got)
			}
			want := []string{form(p.missing, "replica"), form(p.missing, "active"), "updateVbucketMap?"}
			if got := p.posts(); !slices.Equal(got, want) {
				t.Errorf("requests\n%v, want\n%v", got, want)
			}
			for _, r := range p.src.Requests() {
				t.Errorf("the source was sent %s %s", r.Method, r.Path)
			}
			for _, o := range res.Outcomes {
				if o.SourceItems != o.DestinationItems || o.Source == "" || o.Destination == "" {
					t.Errorf("outcome %+v", o)
				}
			}
			if res.Transfer == nil || res.Transfer.Read != res.Transfer.Done {
				t.Errorf("transfer %+v", res.Transfer)
			}

			// A second run has nothing to do and does nothing.
			res, ev, err = p.run(nil, nil)
			if err != nil || !res.Plan.Nothing() || len(p.posts()) != len(want) {
				t.Errorf("second run: %v, %+v, %v", err, res.Plan, p.posts())
			}
			if !ev.warned("failed-over-nothing-missing") {
				t.Error("a failed-over node with nothing missing was not warned of")
			}
		})
	}
}

// TestManyVBuckets has vbucket 0 among the missing and goes through one request
// for all.
func TestManyVBuckets(t *testing.T) {
	p := newPair(t, shape{vbuckets: 1024, docs: 3000})
	// Vbucket 0 is a vbucket: take one from the node that has it.
	if !slices.Contains(p.missing, 0) {
		if err := p.dst.Failover(sender(p.dst, 0)); err != nil {
			t.Fatal(err)
		}
		p.missing = p.dst.Bucket(bucket).Missing()
	}
	if len(p.missing) < 300 || p.missing[0] != 0 {
		t.Fatalf("missing: %v", p.missing)
	}
	if _, _, err := p.run(func(o *recovery.Options) { o.Threads = 4 }, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

func TestReplaceNode(t *testing.T) {
	p := newPair(t, shape{})
	fresh, err := p.dst.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	nodes := func(o *recovery.Options) { o.AddNode, o.RemoveNode = fresh.REST(), p.lost.REST() }
	res, _, err := p.run(nodes, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.whole()
	if !res.Replaced {
		t.Error("the result does not say that the node was replaced")
	}
	for _, o := range res.Outcomes {
		if o.Destination != fresh.KV() {
			t.Errorf("vbucket %d went to %s, not to the new node %s", o.VBucket, o.Destination, fresh.KV())
		}
	}
	got := p.posts()
	if len(got) != 4 || !strings.HasPrefix(got[0], "replaceNode?add=") {
		t.Errorf("requests %v", got)
	}
}

// TestReplaceAgain: the second run with the same -a and -r does not replace.
func TestReplaceAgain(t *testing.T) {
	p := newPair(t, shape{})
	fresh, err := p.dst.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	nodes := func(o *recovery.Options) { o.AddNode, o.RemoveNode, o.Stop = fresh.REST(), p.lost.REST(), stop }
	res, _, err := p.run(nodes, func(e recovery.Event) {
		if _, ok := e.(recovery.Replaced); ok {
			close(stop)
		}
	})
	wants(t, err, pump.ClassInterrupted, "interrupted")
	if !res.Replaced || !res.Interrupted {
		t.Errorf("result %+v", res)
	}
	stop = nil
	if _, _, err := p.run(nodes, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
	n := 0
	for _, r := range p.posts() {
		if strings.HasPrefix(r, "replaceNode") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("replaceNode was sent %d times", n)
	}
}

func TestReplaceRefused(t *testing.T) {
	p := newPair(t, shape{})
	fresh, err := p.dst.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	member := p.dst.Nodes()[1]
	for _, c := range []struct{ add, remove, code string }{
		{fresh.REST(), "127.0.0.1:1", "node-not-found"},
		{member.REST(), p.lost.REST(), "node-exists"},
		{fresh.REST(), member.REST(), "node-active"},
	} {
		_, _, err := p.run(func(o *recovery.Options) { o.AddNode, o.RemoveNode = c.add, c.remove }, nil)
		wants(t, err, pump.ClassFailed, c.code)
		if pump.HintOf(err) == "" {
			t.Errorf("%s has no hint", c.code)
		}
	}
	for _, r := range p.posts() {
		if !strings.HasPrefix(r, "replaceNode") {
			t.Errorf("%s was sent after replaceNode was refused", r)
		}
	}
}

func TestDryRun(t *testing.T) {
	p := newPair(t, shape{})
	fresh, err := p.dst.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	res, ev, err := p.run(func(o *recovery.Options) {
		o.DryRun, o.AddNode, o.RemoveNode = true, fresh.REST(), p.lost.REST()
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := ev.phases(); !slices.Equal(got, []string{"plan"}) {
		t.Errorf("phases %v", got)
	}
	if !slices.Equal(res.Plan.With(recovery.ActionCreate), p.missing) || res.Plan.Items() == 0 {
		t.Errorf("plan %+v", res.Plan)
	}
	for name, c := range map[string]*simcluster.Cluster{"source": p.src, "destination": p.dst} {
		for _, r := range c.Requests() {
			t.Errorf("a dry run sent the %s %s %s", name, r.Method, r.Path)
		}
		for _, n := range c.Nodes() {
			if n.Writes() != 0 {
				// The documents of the test were not written over the wire.
				t.Errorf("a dry run wrote to the %s", name)
			}
		}
	}
	if got := p.dst.Bucket(bucket).Missing(); !slices.Equal(got, p.missing) {
		t.Errorf("missing %v, were %v", got, p.missing)
	}
}

func TestVBucketList(t *testing.T) {
	p := newPair(t, shape{})
	first, rest := p.missing[:1], p.missing[1:]
	var present uint16
	for slices.Contains(p.missing, present) {
		present++
	}
	before := p.docs(p.dst)
	res, ev, err := p.run(func(o *recovery.Options) { o.VBuckets = []uint16{present, first[0], first[0]} }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !ev.warned("not-missing") || !slices.Equal(res.Plan.NotMissing, []uint16{present}) || !slices.Equal(res.Plan.NotAsked, rest) {
		t.Errorf("plan %+v", res.Plan)
	}
	if got := p.dst.Bucket(bucket).Missing(); !slices.Equal(got, rest) || !slices.Equal(res.Recovered(), first) {
		t.Errorf("missing %v, recovered %v", got, res.Recovered())
	}
	for id, d := range before {
		if now := p.docs(p.dst)[id]; now.CAS != d.CAS {
			t.Errorf("%s was touched", id)
		}
	}
	n := len(p.posts())
	// Only vbuckets that are not missing: nothing to do.
	if res, _, err = p.run(func(o *recovery.Options) { o.VBuckets = []uint16{present} }, nil); err != nil || !res.Plan.Nothing() {
		t.Errorf("%v, %+v", err, res.Plan)
	}
	_, _, err = p.run(func(o *recovery.Options) { o.VBuckets = []uint16{first[0], 16} }, nil)
	wants(t, err, pump.ClassUsage, "")
	if len(p.posts()) != n {
		t.Errorf("something was sent: %v", p.posts()[n:])
	}
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

// TestCutForEver: the stream of one vbucket never ends. It stays replica and is
// named, the others are recovered, and a second run does only it.
func TestCutForEver(t *testing.T) {
	for _, version := range []string{"2.5.1", "3.0.3", "4.0", "6.6.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			p := newPair(t, shape{version: version})
			bad := p.missing[1]
			remove := sender(p.src, bad).Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpTapMutation, mcbp.OpDcpMutation}, VBucket: int(bad), After: 2, Action: simcluster.CutMidFrame})
			res, _, err := p.run(nil, nil)
			wants(t, err, pump.ClassFailed, "vbuckets-left")
			if err != nil && !strings.Contains(err.Error(), fmt.Sprint(bad)) {
				t.Errorf("%v does not name vbucket %d", err, bad)
			}
			if !slices.Equal(res.Remaining(), []uint16{bad}) {
				t.Errorf("remaining %v, want %d", res.Remaining(), bad)
			}
			o := outcome(t, res, bad)
			if o.State != recovery.StateReplica || o.Err == nil || pump.HintOf(o.Err) == "" {
				t.Errorf("outcome %+v", o)
			}
			if s := p.states(bad); s[mcbp.VBReplica] != 1 || len(s) != 1 {
				t.Errorf("vbucket %d is %v at the destination", bad, s)
			}
			if got := p.dst.Bucket(bucket).Missing(); !slices.Equal(got, []uint16{bad}) {
				t.Errorf("missing %v", got)
			}

			remove()
			n := len(p.posts())
			if _, _, err = p.run(nil, nil); err != nil {
				t.Fatal(err)
			}
			p.whole()
			// It was a replica already: nothing to create.
			if got, want := p.posts()[n:], []string{form([]uint16{bad}, "active"), "updateVbucketMap?"}; !slices.Equal(got, want) {
				t.Errorf("the second run sent %v, want %v", got, want)
			}
		})
	}
}

// TestInterrupted stops a run at every phase. Nothing half is ever active, and
// running again completes it.
func TestInterrupted(t *testing.T) {
	for _, phase := range phases {
		t.Run(phase, func(t *testing.T) {
			p := newPair(t, shape{})
			stop := make(chan struct{})
			res, ev, err := p.run(func(o *recovery.Options) { o.Stop = stop }, func(e recovery.Event) {
				if s, ok := e.(recovery.PhaseStarted); ok && string(s.Phase) == phase {
					close(stop)
				}
			})
			switch phase {
			case "plan", "prepare", "transfer":
				wants(t, err, pump.ClassInterrupted, "interrupted")
				if !res.Interrupted || len(res.Remaining()) == 0 {
					t.Errorf("result %+v", res)
				}
				if last := ev.phases(); phase != "transfer" && last[len(last)-1] != phase {
					t.Errorf("stopped in %s, but went on: %v", phase, last)
				}
			default: // what is whole is still brought to its end
				if err != nil {
					t.Error(err)
				}
			}
			for _, o := range res.Outcomes {
				if s := p.states(o.VBucket); o.State != recovery.StateRecovered && s[mcbp.VBActive] != 0 {
					t.Errorf("vbucket %d is %v, outcome %+v", o.VBucket, s, o)
				}
			}
			if _, _, err := p.run(nil, nil); err != nil {
				t.Fatal(err)
			}
			p.whole()
		})
	}
}

// TestCutBetweenActivateAndPublish: what an earlier run left active is not
// pushed into again and not made a replica again, only verified and published.
func TestCutBetweenActivateAndPublish(t *testing.T) {
	p := newPair(t, shape{})
	remove := p.dst.Nodes()[0].InjectREST(simcluster.RESTFault{Method: http.MethodPost, Path: "/pools/default/buckets/default/updateVbucketMap", Status: http.StatusGone})
	res, _, err := p.run(nil, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	for _, o := range res.Outcomes {
		if o.State != recovery.StateActive || pump.CodeOf(o.Err) != "map-update-failed" {
			t.Errorf("outcome %+v", o)
		}
	}
	remove()
	n, writes := len(p.posts()), nodeWrites(p.dst)
	res, ev, err := p.run(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.whole()
	if !slices.Equal(res.Plan.With(recovery.ActionPublish), p.missing) || !slices.Equal(ev.phases(), []string{"plan", "prepare", "verify", "publish"}) {
		t.Errorf("plan %+v, phases %v", res.Plan, ev.phases())
	}
	if got := p.posts()[n:]; !slices.Equal(got, []string{"updateVbucketMap?"}) {
		t.Errorf("the second run sent %v", got)
	}
	if now := nodeWrites(p.dst); now != writes {
		t.Errorf("%d writes went into active vbuckets", now-writes)
	}
}

// TestUnverifiedActive: a vbucket that is active but not like the source must
// not be published along with the good ones.
func TestUnverifiedActive(t *testing.T) {
	p := newPair(t, shape{})
	bad := p.missing[0]
	p.dst.Nodes()[0].SetVBucket(bucket, bad, mcbp.VBActive) // empty
	res, _, err := p.run(func(o *recovery.Options) { o.VBuckets = p.missing[1:] }, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if got := p.dst.Bucket(bucket).Missing(); !slices.Equal(got, p.missing) {
		t.Errorf("missing %v, want all of %v", got, p.missing)
	}
	if o := outcome(t, res, bad); pump.CodeOf(o.Err) != "count-differs" || o.State != recovery.StateActive || !strings.Contains(pump.HintOf(o.Err), "set it dead") {
		t.Errorf("outcome %+v", o)
	}
	for _, vb := range p.missing[1:] {
		if o := outcome(t, res, vb); pump.CodeOf(o.Err) != "map-held-back" || o.State != recovery.StateReplica {
			t.Errorf("outcome %+v", o)
		}
	}
	// The hint's way out: set it dead, run again.
	p.dst.Nodes()[0].SetVBucket(bucket, bad, mcbp.VBDead)
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

func TestMissingAtSourceToo(t *testing.T) {
	p := newPair(t, shape{src: func(c *simcluster.Config) {
		c.Nodes, c.Buckets = 4, []simcluster.BucketConfig{{Name: bucket}}
	}})
	gone := p.src.Nodes()[3]
	if err := p.src.Failover(gone); err != nil {
		t.Fatal(err)
	}
	both := slices.DeleteFunc(slices.Clone(p.missing), func(vb uint16) bool { return !slices.Contains(p.src.Bucket(bucket).Missing(), vb) })
	if len(both) == 0 || len(both) == len(p.missing) {
		t.Fatalf("%v of %v are missing at the source too", both, p.missing)
	}
	res, _, err := p.run(nil, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if !slices.Equal(res.Remaining(), both) {
		t.Errorf("remaining %v, want %v", res.Remaining(), both)
	}
	for _, vb := range both {
		if o := outcome(t, res, vb); pump.CodeOf(o.Err) != "missing-at-source" || o.State != recovery.StateMissing {
			t.Errorf("outcome %+v", o)
		}
	}
	if got := p.dst.Bucket(bucket).Missing(); !slices.Equal(got, both) {
		t.Errorf("missing %v", got)
	}
	// Only such vbuckets are left: nothing is sent any more.
	n := len(p.posts())
	_, _, err = p.run(nil, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	_, _, err = p.run(func(o *recovery.Options) { o.DryRun = true }, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if len(p.posts()) != n {
		t.Errorf("sent %v", p.posts()[n:])
	}
}

// TestDestinationBusy: temporary failures of the owners are ridden out.
func TestDestinationBusy(t *testing.T) {
	p := newPair(t, shape{})
	for _, n := range p.dst.Nodes() {
		n.Inject(simcluster.Fault{Op: mcbp.OpTapMutation, VBucket: -1, After: 3, Times: 5, Action: simcluster.AnswerStatus, Status: mcbp.StatusTmpFail})
	}
	res, _, err := p.run(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.whole()
	if res.Transfer.Retried == 0 {
		t.Error("nothing was sent again")
	}
}

// TestRejectedItem: a vbucket of which the destination refuses one document is
// not whole and is not activated.
func TestRejectedItem(t *testing.T) {
	p := newPair(t, shape{})
	bad := p.missing[0]
	var removes []func()
	for _, n := range p.dst.Nodes() {
		removes = append(removes, n.Inject(simcluster.Fault{Op: mcbp.OpTapMutation, VBucket: int(bad), After: 1, Times: 1, Action: simcluster.AnswerStatus, Status: mcbp.StatusTooBig}))
	}
	res, _, err := p.run(nil, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	o := outcome(t, res, bad)
	if pump.CodeOf(o.Err) != "items-refused" || o.State != recovery.StateReplica || !slices.Equal(res.Remaining(), []uint16{bad}) {
		t.Errorf("outcome %+v, remaining %v", o, res.Remaining())
	}
	for _, remove := range removes {
		remove()
	}
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

// TestCountDiffers: a document that vanishes at the owner keeps the vbucket from
// being activated.
func TestCountDiffers(t *testing.T) {
	p := newPair(t, shape{})
	bad := p.missing[1]
	res, _, err := p.run(nil, func(e recovery.Event) {
		if v, ok := e.(recovery.VBucketEvent); ok && v.Step == recovery.StepTransferred && v.Outcome.VBucket == bad {
			for _, n := range p.dst.Nodes() {
				if n.KV() == v.Outcome.Destination {
					n.SetVBucket(bucket, bad, mcbp.VBAbsent)
					n.SetVBucket(bucket, bad, mcbp.VBReplica) // an empty one
				}
			}
		}
	})
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	o := outcome(t, res, bad)
	if pump.CodeOf(o.Err) != "count-differs" || o.State != recovery.StateReplica || !slices.Equal(res.Remaining(), []uint16{bad}) {
		t.Errorf("outcome %+v, remaining %v", o, res.Remaining())
	}
	if s := p.states(bad); s[mcbp.VBActive] != 0 {
		t.Errorf("vbucket %d is %v", bad, s)
	}
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

// TestCountHigher: an earlier run brought a document that the source has deleted
// since.
func TestCountHigher(t *testing.T) {
	p := newPair(t, shape{})
	bad, at := p.missing[0], p.dst.Nodes()[1]
	at.SetVBucket(bucket, bad, mcbp.VBReplica)
	if err := at.StoreAt(bucket, bad, simcluster.Doc{Key: []byte("deleted since"), Value: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	res, _, err := p.run(nil, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	o := outcome(t, res, bad)
	if pump.CodeOf(o.Err) != "count-higher" || o.State != recovery.StateReplica || o.DestinationItems != o.SourceItems+1 {
		t.Errorf("outcome %+v", o)
	}
	// The hint's way out.
	at.SetVBucket(bucket, bad, mcbp.VBAbsent)
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

// TestSourceChanges: a count that differs only because the source has changed
// meanwhile is accepted once both sides agree.
func TestSourceChanges(t *testing.T) {
	p := newPair(t, shape{})
	vb := p.missing[0]
	var victim []byte
	sender(p.src, vb).EachDoc(bucket, vb, func(d simcluster.Doc) bool {
		if !d.Deleted {
			victim = slices.Clone(d.Key)
		}
		return victim == nil
	})
	_, _, err := p.run(nil, func(e recovery.Event) {
		v, ok := e.(recovery.VBucketEvent)
		if !ok || v.Step != recovery.StepTransferred || v.Outcome.VBucket != vb {
			return
		}
		// The document goes on both sides: it expired.
		if err := p.src.Bucket(bucket).Delete(victim); err != nil {
			t.Error(err)
		}
		for _, n := range p.dst.Nodes() {
			if n.KV() == v.Outcome.Destination {
				deleteAt(t, n, vb, victim)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.dst.Bucket(bucket).Missing(); len(got) != 0 {
		t.Errorf("missing %v", got)
	}
}

// TestVerifier: a stronger check decides too.
func TestVerifier(t *testing.T) {
	p := newPair(t, shape{})
	bad := p.missing[1]
	v := &digest{bad: bad}
	res, _, err := p.run(func(o *recovery.Options) { o.Verifier = v }, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if !slices.Equal(res.Remaining(), []uint16{bad}) || !slices.Equal(v.seen, p.missing) {
		t.Errorf("remaining %v, seen %v", res.Remaining(), v.seen)
	}
	if o := outcome(t, res, bad); !errors.Is(o.Err, errDigest) || o.State != recovery.StateReplica {
		t.Errorf("outcome %+v", o)
	}
}

// TestRequestsFail goes through failures of every call: before and after its
// effect, for a while and for ever.
func TestRequestsFail(t *testing.T) {
	const base = "/pools/default/buckets/default/"
	for _, call := range []string{"vbucketsMissing", "changeVbucketStates", "updateVbucketMap"} {
		for name, f := range map[string]simcluster.RESTFault{
			"503":         {Status: 503, Body: "<html>busy</html>"},
			"500":         {Status: 500},
			"lost before": {Close: true},
			"lost after":  {Close: true, AfterEffect: true},
			"500 after":   {Status: 500, AfterEffect: true},
		} {
			t.Run(call+" "+name, func(t *testing.T) {
				p := newPair(t, shape{docs: 100})
				f.Path, f.Times = base+call, 2
				p.dst.Nodes()[0].InjectREST(f)
				if _, _, err := p.run(nil, nil); err != nil {
					t.Fatal(err)
				}
				p.whole()
			})
		}
		t.Run(call+" for ever", func(t *testing.T) {
			p := newPair(t, shape{docs: 100})
			remove := p.dst.Nodes()[0].InjectREST(simcluster.RESTFault{Path: base + call, Status: 503, Body: "<html>busy</html>"})
			res, _, err := p.run(nil, nil)
			if err == nil || pump.ClassOf(err) != pump.ClassFailed {
				t.Errorf("got %v", err)
			}
			if len(res.Recovered()) != 0 {
				t.Errorf("recovered %v", res.Recovered())
			}
			remove()
			if _, _, err := p.run(nil, nil); err != nil {
				t.Fatal(err)
			}
			p.whole()
		})
	}
}

// TestLostReplyIsReadBack: after a lost reply the state is read, and a change
// that took effect is not asked for again.
func TestLostReplyIsReadBack(t *testing.T) {
	p := newPair(t, shape{docs: 100})
	fresh, err := p.dst.NewNode()
	if err != nil {
		t.Fatal(err)
	}
	const base = "/pools/default/buckets/default/"
	for _, call := range []string{"replaceNode", "changeVbucketStates"} {
		p.dst.Nodes()[0].InjectREST(simcluster.RESTFault{Path: base + call, Close: true, AfterEffect: true, Times: 1})
	}
	if _, _, err := p.run(func(o *recovery.Options) { o.AddNode, o.RemoveNode = fresh.REST(), p.lost.REST() }, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
	seen := map[string]int{}
	for _, r := range p.posts() {
		seen[r]++
		if seen[r] > 1 {
			t.Errorf("%s was sent %d times", r, seen[r])
		}
	}
}

func TestWrongUse(t *testing.T) {
	p := newPair(t, shape{docs: 50, dst: func(c *simcluster.Config) {
		c.Buckets = []simcluster.BucketConfig{{Name: bucket}, {Name: "cache", Type: "memcached"}}
	}})
	other := p.start(simcluster.Config{Nodes: 1, VBuckets: 64}, nil)
	bare := p.start(simcluster.Config{Nodes: 1, VBuckets: 16, WithoutRecoveryAPI: true}, nil)
	for name, c := range map[string]struct {
		change func(*recovery.Options)
		class  pump.Class
		code   string
	}{
		"no source":        {func(o *recovery.Options) { o.Source.URL = "" }, pump.ClassUsage, ""},
		"no destination":   {func(o *recovery.Options) { o.Destination.URL = "" }, pump.ClassUsage, ""},
		"bad address":      {func(o *recovery.Options) { o.Source.URL = "ftp://x" }, pump.ClassUsage, ""},
		"-a alone":         {func(o *recovery.Options) { o.AddNode = "10.0.0.1:8091" }, pump.ClassUsage, ""},
		"-r alone":         {func(o *recovery.Options) { o.RemoveNode = "10.0.0.1:8091" }, pump.ClassUsage, ""},
		"-a is -r":         {func(o *recovery.Options) { o.AddNode, o.RemoveNode = "localhost:8091", "127.0.0.1:8091" }, pump.ClassUsage, ""},
		"-a is a URL":      {func(o *recovery.Options) { o.AddNode, o.RemoveNode = "http://a:8091", "b:8091" }, pump.ClassUsage, ""},
		"empty list":       {func(o *recovery.Options) { o.VBuckets = []uint16{} }, pump.ClassUsage, ""},
		"vbucket too high": {func(o *recovery.Options) { o.VBuckets = []uint16{1024} }, pump.ClassUsage, ""},
		"unknown API":      {func(o *recovery.Options) { o.API = "soap" }, pump.ClassUsage, ""},
		"unknown transfer": {func(o *recovery.Options) { o.Transfer = "ftp" }, pump.ClassUsage, ""},
		"DCP from 2.5.1":   {func(o *recovery.Options) { o.SourceOptions.Protocol = "dcp" }, pump.ClassUsage, "transfer-unsupported"},
		"no source bucket": {func(o *recovery.Options) { o.Source.Bucket = "nope" }, pump.ClassUsage, ""},
		"no dest. bucket":  {func(o *recovery.Options) { o.Destination.Bucket = "nope" }, pump.ClassUsage, ""},
		"memcached bucket": {func(o *recovery.Options) { o.Destination.Bucket = "cache" }, pump.ClassUsage, "bucket-type"},
		"same cluster":     {func(o *recovery.Options) { o.Source = o.Destination }, pump.ClassUsage, "same-cluster"},
		"same, other node": {func(o *recovery.Options) {
			o.Source = o.Destination
			o.Source.URL = "http://" + p.dst.Nodes()[1].REST()
		}, pump.ClassUsage, "same-cluster"},
		"same, localhost": {func(o *recovery.Options) {
			o.Source = o.Destination
			o.Source.URL = strings.Replace(p.dst.URL(), "127.0.0.1", "localhost", 1)
		}, pump.ClassUsage, "same-cluster"},
		"other vbuckets":    {func(o *recovery.Options) { o.Source.URL = other.URL() }, pump.ClassUsage, "vbucket-count"},
		"no recovery API":   {func(o *recovery.Options) { o.Destination.URL, o.API = bare.URL(), recovery.APIProposal }, pump.ClassFailed, "no-recovery-api"},
		"closed port":       {func(o *recovery.Options) { o.Source.URL = "http://127.0.0.1:1" }, pump.ClassUnreachable, ""},
		"closed port, dest": {func(o *recovery.Options) { o.Destination.URL = "http://127.0.0.1:1" }, pump.ClassUnreachable, ""},
		"password":          {func(o *recovery.Options) { o.Source.Password = "wrong" }, pump.ClassDenied, ""},
		"password, dest.":   {func(o *recovery.Options) { o.Destination.Password = "wrong" }, pump.ClassDenied, ""},
		"data port":         {func(o *recovery.Options) { o.Source.URL = "http://" + p.src.Nodes()[0].KV() }, pump.ClassUnreachable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := p.run(c.change, nil)
			wants(t, err, c.class, c.code)
		})
	}
	if got := p.posts(); len(got) != 0 {
		t.Errorf("wrong use has changed something: %v", got)
	}
	if len(other.Requests())+len(bare.Requests())+len(p.src.Requests()) != 0 {
		t.Error("wrong use has changed another cluster")
	}
}

// TestSeveralActive: a vbucket that is active twice cannot be decided, and
// nothing is published as long as it is so.
func TestSeveralActive(t *testing.T) {
	p := newPair(t, shape{})
	bad := p.missing[0]
	for _, n := range p.dst.Nodes()[:2] {
		n.SetVBucket(bucket, bad, mcbp.VBActive)
	}
	res, _, err := p.run(nil, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if o := outcome(t, res, bad); pump.CodeOf(o.Err) != "several-owners" || o.State != recovery.StateActive {
		t.Errorf("outcome %+v", o)
	}
	if len(res.Recovered()) != 0 || slices.Contains(p.posts(), "updateVbucketMap?") {
		t.Errorf("recovered %v, sent %v", res.Recovered(), p.posts())
	}
}

// TestUnknownVBucketAtActivation: the owner holds it, but the cluster does not
// know it (410). The others are recovered.
func TestUnknownVBucketAtActivation(t *testing.T) {
	p := newPair(t, shape{})
	a, bad := p.dst.Nodes()[0], p.missing[0]
	a.SetVBucket(bucket, bad, mcbp.VBPending) // behind the cluster's back
	res, _, err := p.run(nil, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	o := outcome(t, res, bad)
	if pump.CodeOf(o.Err) != "vbucket-not-found" || o.State != recovery.StateReplica || o.Destination != a.KV() || o.DestinationItems != o.SourceItems {
		t.Errorf("outcome %+v", o)
	}
	if !slices.Equal(res.Remaining(), []uint16{bad}) {
		t.Errorf("remaining %v", res.Remaining())
	}
}

// TestRefusedAtCreation: the cluster knows none of the vbuckets (410), or refuses
// only the group.
func TestRefusedAtCreation(t *testing.T) {
	p := newPair(t, shape{docs: 100})
	path := bucketPath + "/changeVbucketStates"
	remove := p.dst.Nodes()[0].InjectREST(simcluster.RESTFault{Method: http.MethodPost, Path: path, Status: http.StatusGone})
	res, ev, err := p.run(nil, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	for _, o := range res.Outcomes {
		if pump.CodeOf(o.Err) != "vbucket-not-found" || o.State != recovery.StateMissing {
			t.Errorf("outcome %+v", o)
		}
	}
	if got := ev.phases(); !slices.Equal(got, phases[:2]) {
		t.Errorf("phases %v", got)
	}
	remove()
	p.dst.Nodes()[0].InjectREST(simcluster.RESTFault{Method: http.MethodPost, Path: path, Status: http.StatusGone, Times: 1})
	if _, _, err = p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

// TestBecameActive: somebody else activates a vbucket behind the plan's back. It
// is neither made a replica again nor written to.
func TestBecameActive(t *testing.T) {
	p := newPair(t, shape{})
	bad, at := p.missing[0], p.dst.Nodes()[0]
	res, _, err := p.run(nil, func(e recovery.Event) {
		if s, ok := e.(recovery.PhaseStarted); ok && s.Phase == recovery.PhasePrepare {
			at.SetVBucket(bucket, bad, mcbp.VBActive)
		}
	})
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if o := outcome(t, res, bad); pump.CodeOf(o.Err) != "became-active" || o.State != recovery.StateActive {
		t.Errorf("outcome %+v", o)
	}
	if state, items := at.VBucket(bucket, bad); state != mcbp.VBActive || items != 0 {
		t.Errorf("it is %s with %d items", state, items)
	}
	if got := p.posts(); len(got) != 1 || got[0] != form(p.missing[1:], "replica") {
		t.Errorf("sent %v", got)
	}
}

// TestStalled: Ctrl-C while one node is silent. What is whole is activated.
func TestStalled(t *testing.T) {
	p := newPair(t, shape{vbuckets: 64, docs: 2000})
	bad := p.missing[len(p.missing)-1]
	remove := sender(p.src, bad).Inject(simcluster.Fault{Op: mcbp.OpTapMutation, VBucket: int(bad), After: 1, Action: simcluster.Stall})
	stop := make(chan struct{})
	closed := false
	res, _, err := p.run(func(o *recovery.Options) {
		o.Stop, o.Threads = stop, len(p.missing)
		o.Timing.ProgressBy = time.Millisecond
	}, func(e recovery.Event) {
		if g, ok := e.(recovery.Progress); ok && !closed && g.Snapshot.StreamsDone > 2 {
			closed = true
			close(stop)
		}
	})
	wants(t, err, pump.ClassInterrupted, "interrupted")
	if !slices.Contains(res.Remaining(), bad) || len(res.Recovered()) < 3 || !res.Interrupted {
		t.Errorf("remaining %v, recovered %v", res.Remaining(), res.Recovered())
	}
	if got := p.dst.Bucket(bucket).Missing(); !slices.Equal(got, res.Remaining()) {
		t.Errorf("missing %v, remaining %v", got, res.Remaining())
	}
	for _, vb := range res.Remaining() {
		if s := p.states(vb); s[mcbp.VBActive] != 0 || s[mcbp.VBReplica] != 1 {
			t.Errorf("vbucket %d is %v", vb, s)
		}
	}
	remove()
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}

// TestCancelled cuts the run at every phase without any order, as a crash would.
func TestCancelled(t *testing.T) {
	for _, phase := range phases {
		t.Run(phase, func(t *testing.T) {
			p := newPair(t, shape{})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			opt := p.options()
			opt.OnEvent = func(e recovery.Event) {
				if s, ok := e.(recovery.PhaseStarted); ok && string(s.Phase) == phase {
					cancel()
				}
			}
			res, err := recovery.Run(ctx, opt)
			wants(t, err, pump.ClassInterrupted, "")
			if len(res.Recovered()) != 0 {
				t.Errorf("recovered %v", res.Recovered())
			}
			for _, vb := range p.missing {
				if s := p.states(vb); phase != "publish" && s[mcbp.VBActive] != 0 {
					t.Errorf("vbucket %d is %v", vb, s)
				}
			}
			if _, _, err := p.run(nil, nil); err != nil {
				t.Fatal(err)
			}
			p.whole()
		})
	}
}

// TestExpired: documents whose time is over come as deletions; the counts agree
// all the same.
func TestExpired(t *testing.T) {
	for _, version := range []string{"2.5.1", "3.0.3", "4.0"} {
		t.Run(version, func(t *testing.T) {
			p := newPair(t, shape{version: version})
			b := p.src.Bucket(bucket)
			for i := range 100 {
				err := b.Store(simcluster.Doc{Key: fmt.Appendf(nil, "old-%d", i), Value: []byte("gone"), CAS: 0x15_0000_0000_0000 + uint64(i), Rev: 3, Expiry: 1_400_000_000})
				if err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := p.run(nil, nil); err != nil {
				t.Fatal(err)
			}
			for _, vb := range p.missing {
				for _, n := range p.dst.Nodes() {
					n.EachDoc(bucket, vb, func(d simcluster.Doc) bool {
						// DCP sends what is over and not reaped yet as it is.
						if strings.HasPrefix(string(d.Key), "old-") && !d.Deleted && version == "2.5.1" {
							t.Errorf("%s lives in vbucket %d", d.Key, vb)
						}
						return true
					})
				}
			}
			if left := p.dst.Bucket(bucket).Missing(); len(left) != 0 {
				t.Errorf("missing %v", left)
			}
		})
	}
}

// TestSlowDisk: servers from 3.0 on dump from disk, and owners answer before
// they have written.
func TestSlowDisk(t *testing.T) {
	slow := func(c *simcluster.Config) { c.FlushDelay = 30 * time.Millisecond }
	p := newPair(t, shape{version: "4.0", src: slow, dst: slow})
	_, ev, err := p.run(nil, nil)
	if err != nil || ev.warned("not-on-disk") {
		t.Errorf("%v, warned %v", err, ev.warned("not-on-disk"))
	}
	p.whole()

	never := func(c *simcluster.Config) { c.FlushDelay = time.Hour }
	p = newPair(t, shape{version: "4.0", dst: never})
	_, ev, err = p.run(func(o *recovery.Options) { o.Timing.FlushFor = time.Millisecond }, nil)
	if err != nil || !ev.warned("not-on-disk") {
		t.Errorf("%v, warned %v", err, ev.warned("not-on-disk"))
	}
	p.whole()
}

// TestSourceNodeDies: its vbuckets are left and named, the others recovered.
func TestSourceNodeDies(t *testing.T) {
	p := newPair(t, shape{src: func(c *simcluster.Config) {
		c.Nodes, c.Buckets = 4, []simcluster.BucketConfig{{Name: bucket}}
	}})
	victim := p.src.Nodes()[3]
	victim.Inject(simcluster.Fault{Op: mcbp.OpTapMutation, VBucket: -1, Action: simcluster.Die})
	res, _, err := p.run(func(o *recovery.Options) { o.Settings.RetryTime = 50 * time.Millisecond }, nil)
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if len(res.Recovered()) == 0 || len(res.Remaining()) == 0 {
		t.Fatalf("recovered %v, remaining %v", res.Recovered(), res.Remaining())
	}
	for _, o := range res.Outcomes {
		if died := o.Source == victim.KV(); died != (o.State == recovery.StateReplica) || died != (o.Err != nil) {
			t.Errorf("outcome %+v", o)
		}
	}
	// The next run cannot reach the node at all: that is what it says.
	res, _, err = p.run(nil, nil)
	wants(t, err, pump.ClassUnreachable, "vbuckets-left")
	for _, o := range res.Outcomes {
		if pump.CodeOf(o.Err) != "source-node" {
			t.Errorf("outcome %+v", o)
		}
	}
}

// TestUnreachableNode: a destination node that does not say what it holds ends
// the run before anything is changed.
func TestUnreachableNode(t *testing.T) {
	p := newPair(t, shape{docs: 50})
	p.dst.Nodes()[1].Kill()
	_, _, err := p.run(nil, nil)
	wants(t, err, pump.ClassUnreachable, "survey")
	if got := p.posts(); len(got) != 0 {
		t.Errorf("sent %v", got)
	}
}

// TestOwnerDies: a node that dies in mid-transfer leaves its vbuckets replica or
// worse, and the run says so.
func TestOwnerDies(t *testing.T) {
	for _, version := range []string{"2.5.1", "6.6.5"} { // by TAP, by DCP
		t.Run(version, func(t *testing.T) { ownerDies(t, version) })
	}
}

func ownerDies(t *testing.T, version string) {
	p := newPair(t, shape{version: version})
	victim := p.dst.Nodes()[1]
	victim.Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpTapMutation, mcbp.OpDcpMutation}, VBucket: -1, After: 5, Action: simcluster.Die})
	res, _, err := p.run(func(o *recovery.Options) {
		o.Settings.RetryTime = 100 * time.Millisecond
	}, nil)
	if err == nil {
		t.Fatal("no error")
	}
	lost := 0
	for _, o := range res.Outcomes {
		if o.Destination != victim.KV() && o.State != recovery.StateRecovered && o.State != recovery.StateActive {
			t.Errorf("a vbucket of a living node is left: %+v", o)
		}
		if o.Destination == victim.KV() {
			lost++
			if o.State == recovery.StateRecovered || o.State == recovery.StateActive || o.Err == nil {
				t.Errorf("outcome %+v", o)
			}
		}
	}
	if lost == 0 {
		t.Error("the node owned nothing")
	}
}

// digest is a Verifier that does not like one vbucket.
type digest struct {
	bad  uint16
	seen []uint16
}

var errDigest = errors.New("the digests differ")

func (d *digest) Verify(_ context.Context, c recovery.Check) error {
	d.seen = append(d.seen, c.VBucket)
	if c.VBucket == d.bad {
		return &pump.Error{Code: "digest-differs", Err: errDigest}
	}
	return nil
}
