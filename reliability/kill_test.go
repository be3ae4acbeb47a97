package reliability

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

var kills = flag.Int("kills", 200, "how often a run is killed at random")

// small are settings that make many batches and checkpoints of little data.
var small = []string{"-x", "checkpoint-every=1ms", "-x", "memory=96k", "-x", "batch-bytes=16k", "-x", "lane-items=24", "-t", "2", "-u", "Administrator", "-p", "password"}

// copies are what is copied when it is killed: every kind of position that a
// checkpoint holds, and every kind of destination.
var copies = []struct{ from, to string }{
	{"jsonl", "memcached"}, {"gen", "couchbase"}, {"dcp", "memcached"}, {"tap", "couchbase"}, {"backup", "couchbase"}, {"dcp", "jsonl"},
}

// TestKill: SIGKILL at every call of the contract, before and after its effect, and
// at random; then --resume ends with what an undisturbed run ends with, and does not
// do again what had been confirmed and saved.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	sources, release, err := Sources(t.Context(), dir, 2000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	var points []pumptest.Strike
	for _, f := range pumptest.Faults() {
		if f.How == pumptest.Fail {
			points = append(points, pumptest.Strike{Fault: f})
			if f.Call == pumptest.CallRead || f.Call == pumptest.CallWrite {
				points = append(points, pumptest.Strike{Fault: f, Nth: 9}, pumptest.Strike{Fault: f, Part: 1, Nth: 12})
			}
		}
	}
	for i, c := range copies {
		src, sink := pick(t, sources, dir, c.from, c.to)
		t.Run(c.from+" to "+c.to, func(t *testing.T) {
			t.Parallel()
			k := &killing{src: src, sink: sink, dir: t.TempDir(), rand: rand.New(rand.NewPCG(uint64(i), 7))}
			k.measure(t)
			for j, p := range points {
				if (i+j)%2 == 0 {
					k.try(t, orders{Strike: &p}, p.String())
				}
			}
			named := k.killed
			for n := 0; k.killed-named < *kills/len(copies)+1 && n < *kills; n++ {
				after := time.Duration(k.rand.Int64N(int64(k.takes))) + 1
				k.try(t, orders{After: after}, fmt.Sprintf("number %d, %s after it began to read", n, after))
			}
			t.Logf("killed %d times, %d had ended before; %d times before anything was saved; of %d items that the killed runs were to copy %d were not copied again", k.killed, k.missed, k.early, k.items, k.spared)
			if src.Name != "tap" && sink.Name != "jsonl" && k.spared == 0 {
				t.Error("nothing was spared by any checkpoint")
			}
		})
	}
}

func pick(t *testing.T, sources []*Source, dir, from, to string) (*Source, Sink) {
	t.Helper()
	sinks, release, err := Sinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	for _, src := range sources {
		for _, sink := range sinks {
			if src.Name == from && sink.Name == to {
				return src, sink
			}
		}
	}
	t.Fatalf("no %s or no %s", from, to)
	return nil, Sink{}
}

// killing kills runs of one copy.
type killing struct {
	src   *Source
	sink  Sink
	dir   string
	rand  *rand.Rand
	takes time.Duration // an undisturbed run

	killed, missed, early, items, spared int
}

func (k *killing) measure(t *testing.T) {
	t.Helper()
	k.takes = time.Millisecond + k.try(t, orders{}, "undisturbed")
	k.killed, k.missed, k.early, k.items, k.spared = 0, 0, 0, 0, 0
}

// try runs a copy with orders to be killed, goes on with it and looks at what is there.
// It returns how long the last run took.
func (k *killing) try(t *testing.T, o orders, where string) (took time.Duration) {
	t.Helper()
	to, err := k.sink.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	keep, err := os.MkdirTemp(k.dir, "checkpoint-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(keep)
	args := append([]string{k.src.Spec, to.Spec, "--checkpoint", filepath.Join(keep, "c")}, small...)
	first := runChild(t, o, args...)
	last := first
	switch {
	case !first.killed && first.code != 0:
		t.Fatalf("%s: it failed by itself with %d: %s", where, first.code, first.said)
	case !first.killed:
		k.missed++
		k.takes = max(k.takes*4/5, time.Millisecond) // it was faster than the one that was measured
	default:
		k.killed++
		total := 0
		for _, states := range k.src.History {
			total += len(states)
		}
		k.items += total
		last = runChild(t, orders{}, append(args, "--resume")...)
		if last.code == 2 && strings.Contains(last.said, "there is none to go on from") { // killed before anything was saved
			k.early++
			last = runChild(t, orders{}, args...)
		} else if spared := total - last.number("read"); spared > 0 && last.code != 2 {
			k.spared += spared
		}
	}
	// What had been written and not been saved is there already when it comes again,
	// and a destination that resolves conflicts skips it.
	again := k.sink.Name == "couchbase" && last.code == 3 && last.number("rejected") == 0
	// A file that got its name was complete: it is not overwritten unasked.
	written := to.Whole && last.code == 2 && strings.Contains(last.said, "it exists already")
	if last.code != 0 && !(first.killed && (again || written)) {
		t.Errorf("killed %s: gone on with, it ended with %d: %s", where, last.code, last.said)
		return 0
	}
	if err := k.same(to); err != nil {
		t.Errorf("killed %s: %v", where, err)
	}
	seconds, _ := last.result["elapsed_s"].(float64)
	return time.Duration(seconds * float64(time.Second))
}

// same compares the destination with the last state of every key.
func (k *killing) same(to *Destination) error {
	live, ok, err := to.Live()
	if err != nil || !ok {
		return fmt.Errorf("the destination is there: %t, %w", ok, err)
	}
	want := 0
	for key, states := range k.src.History {
		last := states[len(states)-1]
		if last.Op != pump.Mutation {
			continue
		}
		want++
		if have, there := live[key]; !there || !bytes.Equal(have.Value, last.Value) {
			return fmt.Errorf("key %s is there: %t, with %q for %q", key, there, have.Value, last.Value)
		}
	}
	if len(live) != want {
		return fmt.Errorf("%d items are there for %d", len(live), want)
	}
	return nil
}
