package reliability

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/reliability/faultproxy"
	"github.com/cbpump/cbpump/simcluster"
)

var (
	cuts  = flag.Int("cuts", 16, "how many faults at random bytes each direction of a conversation suffers, beside those at its message boundaries")
	every = flag.Int("every", 3, "at which message boundaries the network breaks: 1 is all of them")
)

// conversation is a copy whose data connections go through a proxy.
type conversation struct {
	name string
	// copy moves the items while fault decides the fate of connections.
	copy func(t *testing.T, fault func(n int) faultproxy.Fault, record bool) (p *faultproxy.Proxy, heard []*faultproxy.Conversation, got outcome)
}

type outcome struct {
	err    error
	report *pump.Report
	wrong  error // of Judge
	lost   int   // keys whose last state is not there
	extra  int   // keys or values that the source never gave
}

// TestNetwork: real parts, and a network between them that breaks at every message
// boundary and at random bytes, in both directions.
func TestNetwork(t *testing.T) {
	for _, c := range []conversation{
		{"gen to memcached", toMemcached}, {"cluster over tap", fromCluster("tap")}, {"cluster over dcp", fromCluster("dcp")}, {"gen to cluster", toCluster},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, heard, got := c.copy(t, func(int) faultproxy.Fault { return faultproxy.Fault{After: items} }, true)
			if got.err != nil || got.wrong != nil {
				t.Fatalf("undisturbed: %v, %v", got.err, got.wrong)
			}
			var main *faultproxy.Conversation
			for _, h := range heard {
				if sent := h.Bytes(true); main == nil && items(sent) == 0 {
					main = h
				}
			}
			if main == nil {
				t.Fatalf("none of %d connections carried items", len(heard))
			}
			r := rand.New(rand.NewPCG(1, uint64(len(c.name))))
			struck, failed := 0, 0
			try := func(f faultproxy.Fault) {
				t.Helper()
				var once atomic.Bool
				victim := r.IntN(3)
				p, _, got := c.copy(t, func(n int) faultproxy.Fault {
					if f.After == nil { // while it logs in
						if n == victim {
							return f
						}
						return faultproxy.Fault{}
					}
					own := f
					own.After = func(chunk []byte) int { // the first connection with items
						i := items(chunk)
						if i < 0 || !once.CompareAndSwap(false, true) {
							return -1
						}
						return i
					}
					return own
				}, false)
				struck += p.Struck()
				if got.report.Elapsed > stuck {
					t.Errorf("%s at byte %d, to the server %t: the run hangs", f.Kind, f.At, f.ToServer)
				}
				if got.err != nil && pump.ClassOf(got.err) != pump.ClassPartial {
					failed++
				}
				complete := got.err == nil || pump.ClassOf(got.err) == pump.ClassPartial
				switch {
				case f.Kind == faultproxy.Corrupt:
					// One byte can change one item and nothing in the protocol tells; what
					// frames the items must not break without notice.
					if complete && (got.lost > 1 || got.extra > 1) {
						t.Errorf("%s at byte %d, to the server %t: %v: %d keys lost, %d items are not the source's", f.Kind, f.At, f.ToServer, got.err, got.lost, got.extra)
					}
				case got.wrong != nil:
					t.Errorf("%s at byte %d, to the server %t: %v; the run said %v", f.Kind, f.At, f.ToServer, got.wrong, got.err)
				case got.err != nil && (f.Kind == faultproxy.Bytewise || f.Kind == faultproxy.Latency):
					t.Errorf("%s: %v", f.Kind, got.err)
				}
			}
			for _, toServer := range []bool{true, false} {
				stream := main.Bytes(toServer)
				packets, _ := capture.Split(stream)
				at := int64(0)
				for i, p := range packets {
					if i%*every == 0 {
						kinds := []faultproxy.Kind{faultproxy.Reset, faultproxy.HalfClose}
						try(faultproxy.Fault{Kind: kinds[i/(*every)%2], ToServer: toServer, At: at, After: items})
						try(faultproxy.Fault{Kind: faultproxy.Corrupt, ToServer: toServer, At: at + int64(r.IntN(24)), After: items})
					}
					if i%(8**every) == 0 {
						try(faultproxy.Fault{Kind: faultproxy.Stall, ToServer: toServer, At: at, After: items})
					}
					at += int64(len(p))
				}
				for n := range *cuts {
					f := faultproxy.Fault{Kind: faultproxy.Kinds()[n%4], ToServer: toServer, At: r.Int64N(max(1, int64(len(stream)))), After: items}
					if n%4 < 2 && n%8 < 4 { // silence while it logs in is waited out for half a minute
						f.After, f.At = nil, r.Int64N(150)
					}
					try(f)
				}
				try(faultproxy.Fault{Kind: faultproxy.Bytewise, ToServer: toServer})
				try(faultproxy.Fault{Kind: faultproxy.Latency, ToServer: toServer, Delay: 2 * time.Millisecond})
			}
			t.Logf("%d faults struck; %d runs failed and said so", struck, failed)
			if struck < 20 {
				t.Errorf("only %d faults struck", struck)
			}
		})
	}
}

// items finds where a client begins to ask for items or to send them.
func items(chunk []byte) int {
	for _, op := range []mcbp.Opcode{mcbp.OpTapConnect, mcbp.OpDcpStreamReq, mcbp.OpSetWithMeta, mcbp.OpSetQWithMeta, mcbp.OpSet, mcbp.OpSetQ} {
		if i := bytes.Index(chunk, []byte{0x80, byte(op), 0}); i >= 0 {
			return i
		}
	}
	return -1
}

// patience is how long a silent connection is waited for; tests of stalls wait it out.
const patience = "300ms"

// judged runs a copy and holds it against a destination.
func judged(t *testing.T, src *Source, from pump.Source, into pump.Sink, live func() (map[string]pump.Item, bool, error)) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stuck)
	defer cancel()
	set := fast()
	set.LaneItems = 8
	ledger := &Ledger{Sink: into}
	report, err := pump.Run(ctx, pump.Config{Source: from, Sink: ledger, Settings: set, Threads: 1, Scribble: true})
	got := outcome{err: err, report: report, wrong: Judge(src, &Destination{Live: live}, ledger, report, err)}
	if live == nil {
		return got
	}
	items, _, lerr := live()
	if lerr != nil {
		t.Fatal(lerr)
	}
	for k, states := range src.History {
		last := states[len(states)-1]
		have, there := items[k]
		if (last.Op == pump.Mutation) != there || there && !bytes.Equal(have.Value, last.Value) {
			got.lost++
		}
		if there && !bytes.Equal(have.Value, last.Value) {
			got.extra++
		}
	}
	for k := range items {
		if len(src.History[k]) == 0 {
			got.extra++
		}
	}
	return got
}

func genSource(t *testing.T) (*Source, pump.Source) {
	t.Helper()
	src := &Source{Name: "gen", Spec: "gen:?max-items=24&min-value-size=30&streams=1"}
	if err := src.learn(t.Context()); err != nil {
		t.Fatal(err)
	}
	from, err := OpenSource(t.Context(), src.Spec)
	if err != nil {
		t.Fatal(err)
	}
	return src, from
}

func open(t *testing.T, spec string) pump.Sink {
	t.Helper()
	s, err := OpenSink(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func toMemcached(t *testing.T, fault func(n int) faultproxy.Fault, record bool) (*faultproxy.Proxy, []*faultproxy.Conversation, outcome) {
	t.Helper()
	s, err := realmc.Launch("-m", "8", "-t", "1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := faultproxy.Start(s.Addr, fault)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	heard := p.Record()
	src, from := genSource(t)
	got := judged(t, src, from, open(t, "memcached://"+p.Addr()+"?timeout="+patience), func() (map[string]pump.Item, bool, error) {
		items, err := MemcachedItems(s.Addr)
		return items, true, err
	})
	return p, heard(), got
}

// cluster starts a small cluster behind a proxy.
func front(t *testing.T, fault func(n int) faultproxy.Fault) (*simcluster.Cluster, *Front) {
	t.Helper()
	c, err := simcluster.Start(simcluster.Config{Version: "4.6", Nodes: 1, VBuckets: 2, Buckets: []simcluster.BucketConfig{{Name: "default"}}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewFront(c, fault)
	if err != nil {
		t.Fatal(err)
	}
	return c, f
}

func toCluster(t *testing.T, fault func(n int) faultproxy.Fault, record bool) (*faultproxy.Proxy, []*faultproxy.Conversation, outcome) {
	t.Helper()
	c, f := front(t, fault)
	defer c.Close()
	defer f.Close()
	heard := f.Proxy.Record()
	src, from := genSource(t)
	got := judged(t, src, from, open(t, f.URL+"?rehash=true&timeout="+patience), func() (map[string]pump.Item, bool, error) { return ClusterItems(c), true, nil })
	return f.Proxy, heard(), got
}

func fromCluster(protocol string) func(t *testing.T, fault func(n int) faultproxy.Fault, record bool) (*faultproxy.Proxy, []*faultproxy.Conversation, outcome) {
	return func(t *testing.T, fault func(n int) faultproxy.Fault, record bool) (*faultproxy.Proxy, []*faultproxy.Conversation, outcome) {
		t.Helper()
		c, f := front(t, fault)
		defer c.Close()
		defer f.Close()
		src := &Source{Name: protocol, History: map[string][]pump.Item{}}
		for i, it := range Items(24, false) {
			if err := c.Bucket("default").Store(simcluster.Doc{Key: it.Key, Value: it.Value, Flags: uint32(i)}); err != nil {
				t.Fatal(err)
			}
			src.History[string(it.Key)] = []pump.Item{it}
		}
		heard := f.Proxy.Record()
		from, err := OpenSource(t.Context(), fmt.Sprintf("%s?protocol=%s&idle-timeout=%s", f.URL, protocol, patience))
		if err != nil {
			t.Fatal(err)
		}
		into := &pumptest.MemSink{}
		got := judged(t, src, from, into, func() (map[string]pump.Item, bool, error) {
			items := into.Items()
			for k, it := range items {
				if it.Op != pump.Mutation {
					delete(items, k)
				}
			}
			return items, true, nil
		})
		return f.Proxy, heard(), got
	}
}
