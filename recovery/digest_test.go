package recovery_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/compare"
	"github.com/cbpump/cbpump/recovery"
	"github.com/cbpump/cbpump/simcluster"
)

// corrupt calls change with the owner's copy of a vbucket once it was transferred,
// before it is verified.
func (p *pair) corrupt(vb uint16, change func(n *simcluster.Node, docs []simcluster.Doc)) func(recovery.Event) {
	return func(e recovery.Event) {
		v, ok := e.(recovery.VBucketEvent)
		if !ok || v.Step != recovery.StepTransferred || v.Outcome.VBucket != vb {
			return
		}
		for _, n := range p.dst.Nodes() {
			if n.KV() != v.Outcome.Destination {
				continue
			}
			var docs []simcluster.Doc
			n.EachDoc(bucket, vb, func(d simcluster.Doc) bool {
				if !d.Deleted {
					d.Key, d.Value = bytes.Clone(d.Key), bytes.Clone(d.Value)
					docs = append(docs, d)
				}
				return true
			})
			slices.SortFunc(docs, func(a, b simcluster.Doc) int { return bytes.Compare(a.Key, b.Key) })
			if len(docs) == 0 {
				p.t.Fatalf("vbucket %d is empty", vb)
			}
			change(n, docs)
		}
	}
}

// TestTamperedCopy: one bit of one document at the owner is wrong, and the vbucket
// is not activated, by either interface; the others are. The number of documents is
// right all the time.
func TestTamperedCopy(t *testing.T) {
	store := func(t *testing.T, n *simcluster.Node, vb uint16, d simcluster.Doc) {
		t.Helper()
		if err := n.StoreAt(bucket, vb, d); err != nil {
			t.Error(err)
		}
	}
	for name, c := range map[string]struct {
		change func(d *simcluster.Doc)
		says   string
	}{
		"value":  {func(d *simcluster.Doc) { d.Value = append(d.Value, 0) }, "(value)"},
		"flags":  {func(d *simcluster.Doc) { d.Flags ^= 1 << 7 }, "(flags)"},
		"expiry": {func(d *simcluster.Doc) { d.Expiry ^= 1 << 30 }, "(expiry)"},
		"cas":    {func(d *simcluster.Doc) { d.CAS ^= 1 << 20 }, "(cas)"},
		"rev":    {func(d *simcluster.Doc) { d.Rev ^= 1 << 4 }, "(rev)"},
		"key":    {nil, "missing"},
	} {
		for _, version := range []string{"3.0.3", "4.6", "6.0.4", "7.6"} {
			for _, api := range []struct {
				name  string
				start func(*testing.T, shape) *pair
			}{{"proposal", newPair}, {"controller", realPair}} {
				if api.name == "controller" && name != "value" || version == "6.0.4" && name != "cas" {
					continue // once is enough
				}
				t.Run(name+"/"+version+"/"+api.name, func(t *testing.T) {
					p := api.start(t, shape{version: version})
					bad := p.missing[1]
					res, _, err := p.run(nil, p.corrupt(bad, func(n *simcluster.Node, docs []simcluster.Doc) {
						d := docs[0]
						if c.change != nil {
							c.change(&d)
							store(t, n, bad, d)
							return
						}
						store(t, n, bad, simcluster.Doc{Key: d.Key, Deleted: true, CAS: d.CAS + 1, Rev: d.Rev + 1})
						for i := 0; ; i++ {
							d.Key = fmt.Appendf(nil, "other-%d", i)
							if p.dst.Bucket(bucket).VBucketOf(d.Key) == bad {
								break
							}
						}
						store(t, n, bad, d)
					}))
					wants(t, err, pump.ClassFailed, "vbuckets-left")
					o := outcome(t, res, bad)
					if pump.CodeOf(o.Err) != "digest-differs" || !strings.Contains(fmt.Sprint(o.Err), c.says) || !strings.Contains(fmt.Sprint(o.Err), "<ud>") {
						t.Errorf("%+v", o)
					}
					if !slices.Equal(res.Remaining(), []uint16{bad}) {
						t.Errorf("remaining %v", res.Remaining())
					}
					for _, n := range p.dst.Nodes() {
						if state, _ := n.VBucket(bucket, bad); !n.Dead() && state == mcbp.VBActive {
							t.Errorf("vbucket %d is active on %s", bad, n.KV())
						}
					}
					// The next run transfers it anew.
					if _, _, err := p.run(nil, nil); name != "key" && err != nil {
						t.Fatal(err)
					}
					if name != "key" {
						p.whole()
					}
				})
			}
		}
	}
}

// TestVerifyModes: counts see no damage that leaves them as they are; full does, and
// names up to three keys.
func TestVerifyModes(t *testing.T) {
	for mode, left := range map[compare.Mode]bool{compare.Count: false, compare.Full: true, "": true} {
		p := newPair(t, shape{version: "4.6", docs: 600})
		bad := p.missing[0]
		res, _, err := p.run(func(o *recovery.Options) { o.Verify = mode }, p.corrupt(bad, func(n *simcluster.Node, docs []simcluster.Doc) {
			for _, d := range docs {
				d.Flags ^= 1
				if err := n.StoreAt(bucket, bad, d); err != nil {
					t.Error(err)
				}
			}
		}))
		if (err != nil) != left {
			t.Errorf("%q: %v", mode, err)
			continue
		}
		if !left {
			continue
		}
		text := fmt.Sprint(outcome(t, res, bad).Err)
		if strings.Count(text, "<ud>") != 3 || !strings.Contains(text, " and ") || !strings.Contains(text, " more") {
			t.Errorf("%q: %s", mode, text)
		}
	}
	p := newPair(t, shape{})
	_, _, err := p.run(func(o *recovery.Options) { o.Verify = "some" }, nil)
	wants(t, err, pump.ClassUsage, "usage")
}

// TestOldOwners: replicas of servers before 3.0 cannot be read, and that is said;
// with --verify count nobody asks.
func TestOldOwners(t *testing.T) {
	for mode, warned := range map[compare.Mode]bool{compare.Digest: true, compare.Count: false} {
		p := newPair(t, shape{})
		_, ev, err := p.run(func(o *recovery.Options) { o.Verify = mode }, nil)
		if err != nil || ev.warned("verified-by-count") != warned {
			t.Errorf("%s: %v, warned %v", mode, err, ev.warned("verified-by-count"))
		}
		p.whole()
	}
	p := newPair(t, shape{version: "6.0.4"})
	_, ev, err := p.run(func(o *recovery.Options) { o.Transfer = recovery.TransferWithMeta }, nil)
	if err != nil || !ev.warned("verified-by-count") {
		t.Errorf("%v, warned %v", err, ev.warned("verified-by-count"))
	}
}

// TestSourceGoesOn: what is written to the source after it was transferred is not
// held against the copy, and is said.
func TestSourceGoesOn(t *testing.T) {
	for _, version := range []string{"2.5.1", "6.6.5"} {
		p := newPair(t, shape{version: "4.6", src: func(c *simcluster.Config) { c.Version = version }})
		vb := p.missing[1]
		_, ev, err := p.run(nil, p.corrupt(vb, func(_ *simcluster.Node, docs []simcluster.Doc) {
			b := p.src.Bucket(bucket)
			d := docs[0]
			d.Value, d.CAS, d.Rev = []byte("changed"), d.CAS+1<<40, d.Rev+1
			if err := b.Store(d); err != nil {
				t.Error(err)
			}
			for i := 0; ; i++ {
				d.Key = fmt.Appendf(nil, "later-%d", i)
				if b.VBucketOf(d.Key) == vb {
					break
				}
			}
			if err := b.Store(d); err != nil {
				t.Error(err)
			}
		}))
		if err != nil || !ev.warned("changed-since") {
			t.Errorf("%s: %v, warned %v", version, err, ev.warned("changed-since"))
		}
	}
}

// TestCopyBreaksOff: an owner that cannot be read whole is not activated.
func TestCopyBreaksOff(t *testing.T) {
	p := newPair(t, shape{version: "6.6.5"})
	var undo []func()
	_, _, err := p.run(func(o *recovery.Options) { o.Settings.StreamAttempts = 2 }, func(e recovery.Event) {
		if s, ok := e.(recovery.PhaseStarted); !ok || s.Phase != recovery.PhaseVerify {
			return
		}
		for _, n := range p.dst.Nodes() {
			undo = append(undo, n.Inject(simcluster.Fault{Ops: []mcbp.Opcode{mcbp.OpDcpMutation}, VBucket: -1, Action: simcluster.CutMidFrame, CutAt: 300}))
		}
	})
	wants(t, err, pump.ClassFailed, "vbuckets-left")
	if got := p.dst.Bucket(bucket).Missing(); !slices.Equal(got, p.missing) {
		t.Errorf("missing %v", got)
	}
	for _, f := range undo {
		f()
	}
	if _, _, err := p.run(nil, nil); err != nil {
		t.Fatal(err)
	}
	p.whole()
}
