package recovery_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
	"github.com/cbpump/cbpump/simcluster"
)

const (
	bucket = "default"
	user   = "Administrator"
	pass   = "pw-geheim-4711"
)

// pair is a source that holds everything and a destination that lost a node.
type pair struct {
	t        *testing.T
	src, dst *simcluster.Cluster
	lost     *simcluster.Node
	missing  []uint16
}

type shape struct {
	version  string
	vbuckets int
	docs     int
	src, dst func(*simcluster.Config)
}

// newPair starts both clusters with the same documents, as XDCR would have left
// them, and fails one destination node over of which there is no replica.
func newPair(t *testing.T, sh shape) *pair {
	t.Helper()
	if sh.version == "" {
		sh.version = "2.5.1"
	}
	if sh.vbuckets == 0 {
		sh.vbuckets = 16
	}
	if sh.docs == 0 {
		sh.docs = 400
	}
	p := &pair{t: t}
	p.src = p.start(simcluster.Config{Nodes: 2, Version: sh.version, VBuckets: sh.vbuckets}, sh.src)
	p.dst = p.start(simcluster.Config{Nodes: 3, Version: sh.version, VBuckets: sh.vbuckets,
		Buckets: []simcluster.BucketConfig{{Name: bucket}}}, sh.dst)
	for _, c := range []*simcluster.Cluster{p.src, p.dst} {
		p.load(c, sh.docs)
	}
	p.lost = p.dst.Nodes()[2]
	if err := p.dst.Failover(p.lost); err != nil {
		t.Fatal(err)
	}
	p.missing = p.dst.Bucket(bucket).Missing()
	if len(p.missing) < 2 {
		t.Fatalf("only %v are missing after the failover", p.missing)
	}
	return p
}

func (p *pair) start(cfg simcluster.Config, change func(*simcluster.Config)) *simcluster.Cluster {
	p.t.Helper()
	if change != nil {
		change(&cfg)
	}
	cfg.Username, cfg.Password = user, pass
	c, err := simcluster.Start(cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			p.t.Error(err)
		}
	})
	return c
}

// load stores documents of every kind; the same number gives the same bytes.
func (p *pair) load(c *simcluster.Cluster, docs int) {
	p.t.Helper()
	b := c.Bucket(bucket)
	for i := range docs {
		d := simcluster.Doc{
			Key: fmt.Appendf(nil, "doc-%05d", i), Value: fmt.Appendf(nil, `{"n":%d,"pad":"%s"}`, i, strings.Repeat("x", i%200)),
			CAS: 0x1400_0000_0000_0000 + uint64(i)*4099, Rev: uint64(1 + i%7), Flags: uint32(i) * 0x01000193,
		}
		switch i % 10 {
		case 1:
			d.Value = nil // empty
		case 2:
			d.Value = []byte{0, 0xff, 0xfe, '\r', '\n', 0, byte(i)}
		case 3:
			d.Expiry = uint32(time.Now().Add(24*time.Hour).Unix()) + uint32(i)
		case 4:
			d.Key = append([]byte{0xff, 0x00, ' '}, d.Key...) // no text
		case 5:
			d.Value = bytes.Repeat([]byte{byte(i)}, 5000)
		}
		if i%10 == 3 {
			d.Expiry = 0x7fff_0000 + uint32(i) // the same in both clusters
		}
		if err := b.Store(d); err != nil {
			p.t.Fatal(err)
		}
		if i%10 == 6 {
			if err := b.Delete(d.Key); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

func (p *pair) options() recovery.Options {
	settings := pump.DefaultSettings()
	settings.RetryMax = 5 * time.Millisecond
	return recovery.Options{
		Settings:      settings,
		SourceOptions: recovery.DefaultSourceOptions(), SinkOptions: recovery.DefaultSinkOptions(),
		Source:      recovery.Endpoint{URL: p.src.URL(), Bucket: bucket, Username: user, Password: pass},
		Destination: recovery.Endpoint{URL: p.dst.URL(), Bucket: bucket, Username: user, Password: pass},
		Timing: recovery.Timing{Request: 10 * time.Second, RetryMin: time.Millisecond, RetryMax: 5 * time.Millisecond,
			Settle: 2 * time.Second, VerifyFor: 100 * time.Millisecond, Watch: 20 * time.Millisecond},
	}
}

// events collects what a run says.
type events struct {
	mu  sync.Mutex
	all []recovery.Event
	on  func(recovery.Event)
}

func (e *events) add(ev recovery.Event) {
	e.mu.Lock()
	e.all = append(e.all, ev)
	e.mu.Unlock()
	if e.on != nil {
		e.on(ev)
	}
}

func (e *events) warned(code string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.all, func(ev recovery.Event) bool {
		w, ok := ev.(recovery.Warning)
		return ok && w.Code == code
	})
}

func (e *events) phases() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, ev := range e.all {
		if s, ok := ev.(recovery.PhaseStarted); ok {
			out = append(out, string(s.Phase))
		}
	}
	return out
}

// run recovers and checks what must hold for every run.
func (p *pair) run(change func(*recovery.Options), on func(recovery.Event)) (*recovery.Result, *events, error) {
	p.t.Helper()
	opt := p.options()
	if change != nil {
		change(&opt)
	}
	ev := &events{on: on}
	opt.OnEvent = ev.add
	res, err := recovery.Run(context.Background(), opt)
	if res == nil {
		p.t.Fatal("no result")
	}
	for _, e := range ev.all {
		if s := e.String(); strings.Contains(s, pass) || s == "" {
			p.t.Errorf("%T says %q", e, s)
		}
	}
	if err != nil && strings.Contains(err.Error()+pump.HintOf(err), pass) {
		p.t.Errorf("the password is in %v", err)
	}
	for _, o := range res.Outcomes {
		if o.State == recovery.StateRecovered && o.Err != nil {
			p.t.Errorf("vbucket %d is recovered and has the error %v", o.VBucket, o.Err)
		}
		if err == nil && o.State != recovery.StateRecovered && !opt.DryRun {
			p.t.Errorf("no error, but vbucket %d is %s", o.VBucket, o.State)
		}
	}
	return res, ev, err
}

// whole compares every document of both clusters, bytes and metadata.
func (p *pair) whole() {
	p.t.Helper()
	if left := p.dst.Bucket(bucket).Missing(); len(left) != 0 {
		p.t.Errorf("still missing: %v", left)
	}
	want, got := p.docs(p.src), p.docs(p.dst)
	if len(want) != len(got) {
		p.t.Errorf("%d documents at the source, %d at the destination", len(want), len(got))
	}
	differ := 0
	for id, w := range want {
		g, ok := got[id]
		if ok && bytes.Equal(w.Value, g.Value) && w.Flags == g.Flags && w.Expiry == g.Expiry && w.CAS == g.CAS && w.Rev == g.Rev && w.Deleted == g.Deleted {
			continue
		}
		if differ++; differ <= 5 {
			p.t.Errorf("%s: %+v at the source, %+v (%v) at the destination", id, w, g, ok)
		}
	}
}

// docs are the live documents by vbucket and key.
func (p *pair) docs(c *simcluster.Cluster) map[string]simcluster.Doc {
	return p.held(c, false)
}

// held are the live documents, or the tombstones.
func (p *pair) held(c *simcluster.Cluster, deleted bool) map[string]simcluster.Doc {
	out := make(map[string]simcluster.Doc)
	c.Bucket(bucket).Each(func(vb uint16, d simcluster.Doc) bool {
		if d.Deleted == deleted {
			d.Key, d.Value = bytes.Clone(d.Key), bytes.Clone(d.Value)
			out[fmt.Sprintf("%d/%q", vb, d.Key)] = d
		}
		return true
	})
	return out
}

// states is what the destination's nodes hold of a vbucket.
func (p *pair) states(vb uint16) map[mcbp.VBState]int {
	out := make(map[mcbp.VBState]int)
	for _, n := range p.dst.Nodes() {
		if s, _ := n.VBucket(bucket, vb); n != p.lost && s != mcbp.VBAbsent {
			out[s]++
		}
	}
	return out
}

// posts are the state-changing requests that the destination has had.
func (p *pair) posts() []string {
	var out []string
	for _, r := range p.dst.Requests() {
		if i := strings.LastIndexByte(r.Path, '/'); r.Method == http.MethodPost {
			out = append(out, r.Path[i+1:]+"?"+r.Form)
		}
	}
	return out
}

func form(vbs []uint16, state string) string {
	v := url.Values{"state": {state}}
	for _, vb := range vbs {
		v.Add("vbucket", fmt.Sprint(vb))
	}
	return "changeVbucketStates?" + v.Encode()
}

func outcome(t *testing.T, res *recovery.Result, vb uint16) recovery.Outcome {
	t.Helper()
	for _, o := range res.Outcomes {
		if o.VBucket == vb {
			return o
		}
	}
	t.Fatalf("vbucket %d has no outcome", vb)
	return recovery.Outcome{}
}

// wants checks class and code of a run's error, and that it has a hint.
func wants(t *testing.T, err error, class pump.Class, code string) {
	t.Helper()
	if err == nil || pump.ClassOf(err) != class || code != "" && pump.CodeOf(err) != code {
		t.Errorf("got class %d code %q (%v), want class %d code %q", pump.ClassOf(err), pump.CodeOf(err), err, class, code)
	}
}

func sender(n *simcluster.Cluster, vb uint16) *simcluster.Node {
	for _, node := range n.Nodes() {
		if s, _ := node.VBucket(bucket, vb); s == mcbp.VBActive {
			return node
		}
	}
	return nil
}

// nodeWrites counts the writes that came over the wire.
func nodeWrites(c *simcluster.Cluster) uint64 {
	var n uint64
	for _, node := range c.Nodes() {
		n += node.Writes()
	}
	return n
}

// deleteAt deletes a document at one node, whatever the vbucket's state.
func deleteAt(t *testing.T, n *simcluster.Node, vb uint16, key []byte) {
	t.Helper()
	d, ok := n.Doc(bucket, vb, key)
	if !ok {
		t.Errorf("%q is not at %s", key, n.KV())
	}
	d.Deleted, d.Value, d.Rev, d.CAS = true, nil, d.Rev+1, d.CAS+1
	if err := n.StoreAt(bucket, vb, d); err != nil {
		t.Error(err)
	}
}
