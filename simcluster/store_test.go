package simcluster

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/mcbp"
)

// A copy of a vbucket holds what a plain map would hold, in order of writing.
func TestCopyAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var v vcopy
		model := map[string]*item{}
		for i := range rapid.IntRange(0, 600).Draw(t, "steps") {
			it := &item{
				key:     fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "key")),
				value:   make([]byte, rapid.IntRange(0, 9).Draw(t, "length")),
				cas:     uint64(i + 1),
				rev:     v.nextRev(nil),
				deleted: rapid.IntRange(0, 3).Draw(t, "kind") == 0,
			}
			v.put(it)
			model[it.key] = it
			if rapid.IntRange(0, 300).Draw(t, "reset") == 0 {
				v.reset()
				clear(model)
			}
		}
		all := v.snapshot()
		live, memory := 0, uint64(0)
		for _, it := range all {
			if model[it.key] != it || v.get([]byte(it.key)) != it {
				t.Fatalf("%q is not the newest version", it.key)
			}
			if !it.deleted {
				live++
				memory += it.size()
			}
		}
		if len(all) != len(model) || live != v.live || memory != v.memory {
			t.Fatalf("%d keys, %d live, %d bytes; the copy says %d live, %d bytes", len(model), live, memory, v.live, v.memory)
		}
		if !slices.IsSortedFunc(all, func(a, b *item) int { return int(a.seqno) - int(b.seqno) }) {
			t.Fatal("not in order of writing")
		}
	})
}

func TestCASGoesUp(t *testing.T) {
	for family := 2; family <= 4; family++ {
		g := casClock{family: family}
		var mu sync.Mutex
		seen := map[uint64]bool{}
		var wg errgroup.Group
		for range 4 {
			wg.Go(func() error {
				last := uint64(0)
				for range 2000 {
					cas := g.next()
					if cas <= last {
						return fmt.Errorf("family %d: %d after %d", family, cas, last)
					}
					last = cas
					mu.Lock()
					seen[cas] = true
					mu.Unlock()
				}
				return nil
			})
		}
		if err := wg.Wait(); err != nil {
			t.Error(err)
		}
		if len(seen) != 8000 {
			t.Errorf("family %d: %d of 8000 are different", family, len(seen))
		}
	}
}

// Writers, dumps, statistics, topology and failover at once: nothing that a
// client was told is stored is lost, as long as a replica is there.
func TestEverythingAtOnce(t *testing.T) {
	c := start(t, Config{Nodes: 3, Version: "4.0", Buckets: []BucketConfig{{Name: "default", Replicas: 2}}})
	b := c.Bucket("default")
	nodes := map[string]*Node{}
	for _, n := range c.Nodes() {
		nodes[n.KV()] = n
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var readers errgroup.Group
	for _, n := range c.Nodes() {
		readers.Go(func() error {
			for ctx.Err() == nil {
				nc, err := net.Dial("tcp", n.KV())
				if err != nil {
					return nil // the one that was killed
				}
				_, _ = nc.Write(append(packet(mcbp.OpStat, 0, 0, 0, nil, "vbucket-details", ""), tapConnect(mcbp.TapDump)...))
				r := mcbp.NewReader(nc)
				for {
					if _, err := r.Next(); err != nil {
						break
					}
				}
				nc.Close()
			}
			return nil
		})
	}
	readers.Go(func() error {
		for ctx.Err() == nil {
			_, _, _ = tryCall(c.Nodes()[0], "GET", "/pools/default/buckets/default", "Administrator", "password", "", "")
		}
		return nil
	})
	var writers errgroup.Group
	for w := range 3 {
		writers.Go(func() error {
			conns := map[string]net.Conn{}
			defer func() {
				for _, nc := range conns {
					nc.Close()
				}
			}()
			for i := range 400 {
				key := fmt.Appendf(nil, "w%d-%d", w, i)
				vb := b.VBucketOf(key)
				if w == 0 && i == 150 {
					c.Nodes()[2].Kill()
					if err := c.Failover(c.Nodes()[2]); err != nil {
						return err
					}
				}
				for stored := false; !stored; {
					addr := b.Servers()[max(0, b.Map()[vb][0])]
					nc := conns[addr]
					if nc == nil {
						var err error
						if nc, err = net.Dial("tcp", addr); err != nil {
							continue
						}
						conns[addr] = nc
					}
					_, werr := nc.Write(mcbp.AppendStore(nil, mcbp.OpSet, uint32(i), vb, 0, 0, 0, key, key))
					f, rerr := mcbp.NewReader(nc).Next()
					if werr != nil || rerr != nil {
						nc.Close()
						delete(conns, addr)
						continue
					}
					stored = f.Status() == mcbp.StatusOK
				}
			}
			return nil
		})
	}
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := readers.Wait(); err != nil {
		t.Fatal(err)
	}
	for w := range 3 {
		for i := range 400 {
			key := fmt.Appendf(nil, "w%d-%d", w, i)
			if d, ok := b.Get(key); !ok || string(d.Value) != string(key) {
				t.Fatalf("%s is lost", key)
			}
		}
	}
	for vb, chain := range b.Map() {
		var items []int
		for _, at := range chain {
			if at >= 0 {
				_, n := nodes[b.Servers()[at]].VBucket("default", uint16(vb))
				items = append(items, n)
			}
		}
		if len(items) != 2 || items[0] != items[1] {
			t.Errorf("vbucket %d: copies with %v items", vb, items)
		}
	}
}

func TestWrongConfigurations(t *testing.T) {
	for _, cfg := range []Config{
		{Version: "1.8"}, {Version: "9.0"}, {Version: "x"}, {Nodes: -1}, {VBuckets: 1025}, {Host: "0.0.0.0"}, {Host: "nosuch"},
		{Recovery: true, WithoutRecoveryAPI: true},
		{Buckets: []BucketConfig{{Name: ""}}}, {Buckets: []BucketConfig{{Name: "a"}, {Name: "a"}}},
		{Buckets: []BucketConfig{{Name: "a", Type: "ephemeral"}}}, {Buckets: []BucketConfig{{Name: "a", Replicas: 4}}},
	} {
		if c, err := Start(cfg); err == nil {
			c.Close()
			t.Errorf("%+v is accepted", cfg)
		}
	}
	c := start(t, Config{Version: "3.0.1"})
	if v := c.Nodes()[0].doc(nil).Version; v != "3.0.1" {
		t.Errorf("another version of a known generation is named %q", v)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.NewNode(); err == nil {
		t.Error("a closed cluster starts nodes")
	}
}
