package recovery_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
	"github.com/cbpump/cbpump/simcluster"
)

// looker is a Verifier that finds fault with some vbuckets.
type looker struct {
	mu     sync.Mutex
	bad    map[uint16]bool // once
	looked map[uint16]int
}

func (l *looker) Verify(_ context.Context, c recovery.Check) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.looked == nil {
		l.looked = make(map[uint16]int)
	}
	l.looked[c.VBucket]++
	if l.bad[c.VBucket] {
		delete(l.bad, c.VBucket)
		return errors.New("it is not like the source")
	}
	return nil
}

// cut runs a recovery with a journal that ends at an event as if it were killed.
func (p *pair) cut(change func(*recovery.Options), at func(recovery.Event) bool) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opt := p.options()
	change(&opt)
	opt.OnEvent = func(e recovery.Event) {
		if at(e) {
			cancel()
		}
	}
	if _, err := recovery.Run(ctx, opt); pump.ClassOf(err) != pump.ClassInterrupted && pump.CodeOf(err) != "recovery-not-stopped" {
		p.t.Fatalf("the run was not cut: %v", err)
	}
}

func verifying(e recovery.Event) bool {
	s, ok := e.(recovery.PhaseStarted)
	return ok && s.Phase == recovery.PhaseVerify
}

// TestJournal: what came whole before a run was killed is looked at and not
// transferred again; what has changed since is.
func TestJournal(t *testing.T) {
	p := newPair(t, shape{})
	look := &looker{}
	with := func(o *recovery.Options) {
		o.Checkpoint, o.Verifier = filepath.Join(t.TempDir(), "journal"), look
	}
	var kept recovery.Options
	with(&kept)
	use := func(o *recovery.Options) { o.Checkpoint, o.Verifier = kept.Checkpoint, kept.Verifier }
	p.cut(use, verifying)
	if n := len(p.dst.Bucket(bucket).Missing()); n != len(p.missing) {
		t.Fatalf("%d are missing after the cut", n)
	}
	// Of one the source is written to, of another the copy is not like the source.
	changed, bad := p.missing[0], p.missing[1]
	for i := 0; ; i++ {
		d := simcluster.Doc{Key: []byte("later-" + strings.Repeat("x", i)), Value: []byte("new")}
		if p.src.Bucket(bucket).VBucketOf(d.Key) == changed {
			if err := p.src.Bucket(bucket).Store(d); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	look.bad, look.looked = map[uint16]bool{bad: true}, nil
	transferred := map[uint16]bool{}
	res, ev, err := p.run(use, func(e recovery.Event) {
		if s, ok := e.(recovery.PhaseStarted); ok && s.Phase == recovery.PhaseTransfer && s.VBuckets != 2 {
			t.Errorf("%d vbuckets are transferred again", s.VBuckets)
		}
		if v, ok := e.(recovery.VBucketEvent); ok && v.Step == recovery.StepTransferred {
			transferred[v.Outcome.VBucket] = true
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	p.whole()
	if !ev.warned("recalled") || len(transferred) != len(p.missing) || len(res.Remaining()) > 0 {
		t.Errorf("recalled %v, %d reported, remaining %v", ev.warned("recalled"), len(transferred), res.Remaining())
	}
	if look.looked[changed] != 1 || look.looked[bad] != 2 || look.looked[p.missing[2]] != 1 {
		t.Errorf("looked at %v", look.looked)
	}

	// Without a Verifier nothing is believed; another bucket's journal is refused.
	p = newPair(t, shape{})
	_, _, err = p.run(use, nil)
	wants(t, err, pump.ClassUsage, "checkpoint-mismatch")
	only := func(o *recovery.Options) { o.Checkpoint = filepath.Join(filepath.Dir(kept.Checkpoint), "other") }
	p.cut(only, verifying)
	if _, ev, err := p.run(only, nil); err != nil || ev.warned("recalled") {
		t.Errorf("%v, recalled %v", err, ev.warned("recalled"))
	}
	p.whole()
}

// TestJournalOfRecoveryUnderWay: a killed run leaves its recovery running at a real
// server, which --resume goes on with; the journal knows what had come whole. Once
// that recovery is over its vbuckets are others.
func TestJournalOfRecoveryUnderWay(t *testing.T) {
	p := realPair(t, shape{version: "6.6.5", vbuckets: 16, docs: 500})
	look := &looker{}
	dir := filepath.Join(t.TempDir(), "journal")
	use := func(o *recovery.Options) { o.Checkpoint, o.Verifier = dir, look }
	killed := p.tamper(nil, func(r *http.Request, _ url.Values) bool {
		return strings.HasSuffix(r.URL.Path, "/stopRecovery") || strings.HasSuffix(r.URL.Path, "/commitVBucket")
	})
	p.cut(func(o *recovery.Options) {
		use(o)
		killed(o)
		o.Timing.Tries = 1
	}, verifying)
	if _, uuid := p.dst.RecoveryRunning(); uuid == "" {
		t.Fatal("no recovery is running after the cut")
	}
	_, ev, err := p.run(func(o *recovery.Options) {
		use(o)
		o.Resume = true
	}, func(e recovery.Event) {
		if s, ok := e.(recovery.PhaseStarted); ok && s.Phase == recovery.PhaseTransfer {
			t.Errorf("%d vbuckets are transferred again", s.VBuckets)
		}
	})
	if err != nil || !ev.warned("recalled") {
		t.Errorf("%v, recalled %v", err, ev.warned("recalled"))
	}
	p.whole()
	p.over()
}
