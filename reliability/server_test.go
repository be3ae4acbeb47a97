package reliability

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// reached waits until something is so.
func reached(t *testing.T, what func() bool) {
	t.Helper()
	for tick := time.NewTicker(time.Millisecond); !what(); {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("it never came about")
		}
	}
}

// TestMemcachedKilled: memcached holds everything in memory, so what was confirmed is
// gone with it. Neither the run under way nor a resumed one may call that complete; a
// copy from the start is.
func TestMemcachedKilled(t *testing.T) {
	s := realmc.Start(t, "-m", "16", "-t", "1")
	src := &Source{Name: "gen", Spec: "gen:?max-items=1500&min-value-size=100"}
	if err := src.learn(t.Context()); err != nil {
		t.Fatal(err)
	}
	to := &Destination{Spec: "memcached://" + s.Addr, Live: func() (map[string]pump.Item, bool, error) {
		items, err := MemcachedItems(s.Addr)
		return items, true, err
	}}
	keep := filepath.Join(t.TempDir(), "c")
	cmd, out, said := command(t, orders{}, copyArgs(src, to, keep, "--limit-items", "300")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reached(t, func() bool { _, err := os.Stat(filepath.Join(keep, "checkpoint")); return err == nil })
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if e := ending(t, cmd, out, said); e.code == 0 || e.code == 3 {
		t.Errorf("memcached was killed in mid-copy, and the run ended with %d: %s", e.code, e.said)
	}
	if e := runChild(t, orders{}, copyArgs(src, to, keep, "--resume")...); e.code != 2 || !strings.Contains(e.said, "from the start") {
		t.Errorf("gone on with: exit code %d: %s", e.code, e.said)
	}
	if e := runChild(t, orders{}, copyArgs(src, to, keep+"2")...); e.code != 0 {
		t.Errorf("begun anew: exit code %d: %s", e.code, e.said)
	}
	k := &killing{src: src}
	if err := k.same(to); err != nil {
		t.Error(err)
	}
}

// TestNodeKilled: a node of the source dies in mid-copy. The run says so, unless it
// had got everything; after the failover the resumed one ends with everything.
func TestNodeKilled(t *testing.T) {
	for _, protocol := range []string{"dcp", "tap"} {
		t.Run(protocol, func(t *testing.T) {
			c, err := simcluster.Start(simcluster.Config{Version: "4.6", Nodes: 2, VBuckets: 8})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			src := &Source{Name: protocol, Spec: c.URL() + "?protocol=" + protocol, History: map[string][]pump.Item{}}
			for _, it := range Items(1500, false) {
				if err := c.Bucket("default").Store(simcluster.Doc{Key: it.Key, Value: it.Value}); err != nil {
					t.Fatal(err)
				}
				src.History[string(it.Key)] = []pump.Item{it}
			}
			sinks, release, err := Sinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(release)
			to := held(t, sinks[0])
			keep := filepath.Join(t.TempDir(), "c")
			args := copyArgs(src, to, keep, "-x", "retry-time=200ms")
			cmd, out, said := command(t, orders{}, append(args, "--limit-items", "300")...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			reached(t, func() bool { _, err := os.Stat(filepath.Join(keep, "checkpoint")); return err == nil })
			dead := c.Nodes()[1]
			dead.Kill()
			e := ending(t, cmd, out, said)
			k := &killing{src: src}
			if e.code == 0 { // the sockets held the rest of it already: then nothing may be missing
				if err := k.same(to); err != nil {
					t.Errorf("a node was killed in mid-copy, and the run ended with 0: %v", err)
				}
				return
			}
			if e.code == 3 || e.code == 2 {
				t.Fatalf("a node was killed in mid-copy, and the run ended with %d: %s", e.code, e.said)
			}
			if err := c.Failover(dead); err != nil {
				t.Fatal(err)
			}
			if e = runChild(t, orders{}, append(args, "--resume")...); e.code != 0 {
				t.Fatalf("after the failover: exit code %d: %s", e.code, e.said)
			}
			if err := k.same(to); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRecoveryKilled: cbrecovery is killed at random and run again, until it ends.
// Then every vbucket that was missing has what the source has, and the others were
// not touched.
func TestRecoveryKilled(t *testing.T) {
	source, err := simcluster.Start(simcluster.Config{Version: "4.6", Nodes: 1, VBuckets: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = source.Close() })
	for n := range 4 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dest, err := simcluster.Start(simcluster.Config{Version: "4.6", Nodes: 3, VBuckets: 16, Recovery: true, Buckets: []simcluster.BucketConfig{{Name: "default"}}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = dest.Close() })
			want := map[string]string{}
			for _, it := range Items(600, false) {
				for _, c := range []*simcluster.Cluster{source, dest} {
					d := simcluster.Doc{Key: it.Key, Value: it.Value, CAS: it.CAS, Rev: it.RevSeqno}
					if err := c.Bucket("default").Store(d); err != nil {
						t.Fatal(err)
					}
				}
				want[string(it.Key)] = string(it.Value)
			}
			if err := dest.Failover(dest.Nodes()[2]); err != nil {
				t.Fatal(err)
			}
			keep := filepath.Join(t.TempDir(), "c")
			args := []string{source.URL(), dest.URL(), "-u", "Administrator", "-p", "password", "-U", "Administrator", "-P", "password", "--checkpoint", keep}
			killed := 0
			for i := 0; ; i++ {
				o := orders{Recovery: true}
				if i < 6 {
					o.Die = time.Duration(i*i+n+1) * 4 * time.Millisecond
				}
				e := runChild(t, o, args...)
				if e.killed {
					killed++
					continue
				}
				if e.code != 0 && i < 12 {
					continue // such as: the recovery that was killed is still running there
				}
				if e.code != 0 {
					t.Fatalf("exit code %d: %s", e.code, e.said)
				}
				break
			}
			if missing := dest.Bucket("default").Missing(); len(missing) != 0 {
				t.Errorf("vbuckets %v are missing still", missing)
			}
			have := ClusterItems(dest)
			for k, v := range want {
				if string(have[k].Value) != v {
					t.Errorf("key %s is %q", k, have[k].Value)
					break
				}
			}
			if len(have) != len(want) {
				t.Errorf("%d items for %d", len(have), len(want))
			}
			t.Logf("killed %d times", killed)
		})
	}
}
