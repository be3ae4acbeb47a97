package reliability

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/couchbase/gomemcached"
	memcached "github.com/couchbase/gomemcached/client"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/plugins"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

// Source is a built-in source that can be opened again and again on the same data.
type Source struct {
	Name string
	Spec string
	// History holds the states of each key in the order in which the source gives
	// them; the last one is what a destination must end with.
	History map[string][]pump.Item
}

// Sink is a destination that Open makes empty.
type Sink struct {
	Name string
	Open func() (*Destination, error)
}

// Destination is an empty place to write to and the way to see what is in it.
type Destination struct {
	Spec string
	// Whole says that the destination counts only as a whole, once it is committed.
	Whole bool
	// Live returns the live items, or that there is nothing to be taken for a whole
	// (ok false). It is asked after the run. Nil: the destination keeps nothing.
	Live  func() (items map[string]pump.Item, ok bool, err error)
	Close func()
}

// envFor is what a frontend hands to plugins: simcluster's credentials.
func envFor(spec string) pump.Env {
	if strings.HasPrefix(spec, "memcached:") { // Debian's has no logins
		return pump.Env{}
	}
	return pump.Env{Bucket: "default", Username: "Administrator", Password: "password"}
}

// OpenSource opens a source.
func OpenSource(ctx context.Context, spec string) (pump.Source, error) {
	r, err := plugins.Transfer()
	if err != nil {
		return nil, err
	}
	return r.Source(ctx, spec, envFor(spec))
}

// OpenSink opens a sink.
func OpenSink(ctx context.Context, spec string) (pump.Sink, error) {
	r, err := plugins.Transfer()
	if err != nil {
		return nil, err
	}
	return r.Sink(ctx, spec, envFor(spec))
}

// Items returns n items that every format can hold. With updates every key comes
// three times, the last of some as a deletion.
func Items(n int, updates bool) (out []pump.Item) {
	state := func(i, rev int) pump.Item {
		return pump.Item{Key: fmt.Appendf(nil, "key-%04d", i), Value: fmt.Appendf(nil, `{"n":%d,"rev":%d,"fill":"%0*d"}`, i, rev, 40+i%300, i),
			VBucket: pump.NoVBucket, Datatype: 1, CAS: uint64(rev+1)<<32 | uint64(i+1), RevSeqno: uint64(rev + 1)}
	}
	if !updates {
		for i := range n {
			out = append(out, state(i, 0))
		}
		return out
	}
	for rev := range 3 {
		for i := range n / 3 {
			it := state(i, rev)
			if rev == 2 && i%5 == 0 {
				it.Op, it.Value = pump.Deletion, nil
			}
			out = append(out, it)
		}
	}
	return out
}

// Fill writes items into a new file or folder through its own sink.
func Fill(ctx context.Context, spec string, items []pump.Item) error {
	sink, err := OpenSink(ctx, spec)
	if err != nil {
		return err
	}
	_, err = pump.Run(ctx, pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items}}, Sink: sink, Settings: pump.DefaultSettings()})
	return err
}

// Sources makes all kinds of sources in a folder, or only those of the given names, of
// n items each. release ends what they need.
func Sources(ctx context.Context, dir string, n int, only ...string) (sources []*Source, release func(), err error) {
	c, err := simcluster.Start(simcluster.Config{Version: "4.6", Nodes: 2, VBuckets: 8})
	if err != nil {
		return nil, nil, err
	}
	release = func() { _ = c.Close() }
	defer func() {
		if err != nil {
			release()
		}
	}()
	for i, it := range Items(n, false) {
		d := simcluster.Doc{Key: it.Key, Value: it.Value, Flags: uint32(i)}
		if err := c.Bucket("default").Store(d); err != nil {
			return nil, nil, err
		}
		if i%9 == 4 {
			if err := c.Bucket("default").Delete(it.Key); err != nil {
				return nil, nil, err
			}
		}
	}
	sources = []*Source{
		{Name: "gen", Spec: fmt.Sprintf("gen:?max-items=%d&min-value-size=60&max-value-size=400&json=true&ratio-sets=0.9", n)},
		{Name: "jsonl", Spec: "jsonl:" + filepath.Join(dir, "in.jsonl")},
		{Name: "csv", Spec: "csv:" + filepath.Join(dir, "in.csv")},
		{Name: "backup", Spec: filepath.Join(dir, "backup")},
		{Name: "docs", Spec: "json:" + filepath.Join(dir, "docs")},
		{Name: "tap", Spec: c.URL() + "?protocol=tap"},
		{Name: "dcp", Spec: c.URL() + "?protocol=dcp"},
	}
	if len(only) > 0 {
		sources = slices.DeleteFunc(sources, func(s *Source) bool { return !slices.Contains(only, s.Name) })
	}
	for _, s := range sources {
		switch s.Name {
		case "jsonl", "backup":
			err = Fill(ctx, s.Spec, Items(n, true))
		case "csv", "docs":
			err = Fill(ctx, s.Spec, Items(n, false))
		}
		if err != nil {
			return nil, nil, fmt.Errorf("fill %s: %w", s.Spec, err)
		}
		if err = s.learn(ctx); err != nil {
			return nil, nil, err
		}
	}
	return sources, release, nil
}

// learn reads the source undisturbed.
func (s *Source) learn(ctx context.Context) error {
	src, err := OpenSource(ctx, s.Spec)
	if err != nil {
		return err
	}
	mem := &pumptest.MemSink{}
	if _, err := pump.Run(ctx, pump.Config{Source: src, Sink: mem, Settings: pump.DefaultSettings()}); err != nil {
		return fmt.Errorf("read %s undisturbed: %w", s.Spec, err)
	}
	s.History = map[string][]pump.Item{}
	for _, it := range mem.Log() {
		s.History[string(it.Key)] = append(s.History[string(it.Key)], it)
	}
	return nil
}

// Sinks lists all kinds of sinks; files are made in folders of dir. release ends what
// they need. Each is opened by one user at a time.
func Sinks(dir string) (sinks []Sink, release func(), err error) {
	mc, err := realmc.Launch("-m", "64", "-t", "1")
	if err != nil {
		return nil, nil, err
	}
	alone, err := aloneAt(mc.Addr)
	if err != nil {
		mc.Close()
		return nil, nil, err
	}
	return []Sink{
		{"memcached", func() (*Destination, error) { return openMemcached(mc, alone) }},
		{"couchbase", func() (*Destination, error) { return openCluster("%s", false) }},
		{"tap", func() (*Destination, error) { return openCluster("tap:%s", false) }},
		{"dcp", func() (*Destination, error) { return openCluster("dcp:%s", true) }},
		{"backup", func() (*Destination, error) { return openFile(dir, "%s/backup") }},
		{"jsonl", func() (*Destination, error) { return openFile(dir, "jsonl:%s/out.jsonl") }},
		{"csv", func() (*Destination, error) { return openFile(dir, "csv:%s/out.csv?deletions=skip") }},
		{"docs", func() (*Destination, error) { return openFile(dir, "json:%s/docs") }},
		{"null", func() (*Destination, error) { return &Destination{Spec: "null:", Close: func() {}}, nil }},
	}, mc.Close, nil
}

// aloneAt is what memcached counts as connections when it has one client.
func aloneAt(addr string) (int, error) {
	c, err := memcached.Connect("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	n, err := connections(c)
	return n, err
}

// openMemcached empties a memcached that one pair at a time uses.
func openMemcached(s *realmc.Server, alone int) (*Destination, error) {
	c, err := memcached.Connect("tcp", s.Addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// What a run that gave up had sent may still be on its way in.
	for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
		n, err := connections(c)
		if err != nil {
			return nil, err
		}
		if n <= alone {
			break
		}
	}
	keys, err := MemcachedKeys(s.Addr)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if _, err := c.Del(0, k); err != nil && !gomemcached.IsNotFound(err) {
			return nil, fmt.Errorf("delete %s: %w", k, err)
		}
	}
	return &Destination{Spec: "memcached://" + s.Addr, Close: func() {},
		Live: func() (map[string]pump.Item, bool, error) {
			items, err := MemcachedItems(s.Addr)
			return items, true, err
		}}, nil
}

// connections is what memcached counts as connections: its own, and its clients, the
// one that asks among them.
func connections(c *memcached.Client) (int, error) {
	all, err := c.StatsMap("")
	if err != nil {
		return 0, fmt.Errorf("connections of memcached: %w", err)
	}
	return strconv.Atoi(all["curr_connections"])
}

// MemcachedKeys lists what memcached holds. Its list is no snapshot, is not answered at
// all now and then, and passes by items that are moved meanwhile; so it is asked for until
// it is as long as memcached counts items, and every key counts that was listed once.
func MemcachedKeys(addr string) (keys []string, err error) {
	c, err := memcached.Connect("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	seen := map[string]bool{}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 10 { // not for ever: items whose time is over are counted and not listed
		stats, err := c.StatsMap("")
		if err != nil {
			return nil, err
		}
		if n, err := strconv.Atoi(stats["curr_items"]); err != nil || len(seen) >= n {
			return slices.Collect(maps.Keys(seen)), err
		}
		if err := listKeys(addr, seen); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
		<-tick.C // it may be busy with the list of somebody else
	}
	return slices.Collect(maps.Keys(seen)), nil
}

// listKeys adds the keys that memcached lists. It walks the hash table.
func listKeys(addr string, seen map[string]bool) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "lru_crawler metadump hash\r\n"); err != nil {
		return err
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		key, _, listed := strings.Cut(strings.TrimPrefix(line, "key="), " ")
		switch {
		case line == "END", strings.HasPrefix(line, "BUSY"):
			return nil
		case !listed:
			return fmt.Errorf("among the keys of memcached: %q", line)
		}
		if key, err = url.QueryUnescape(key); err != nil {
			return err
		}
		seen[key] = true
	}
	return fmt.Errorf("the list of keys has no end: %w", cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
}

// MemcachedItems returns what memcached holds.
func MemcachedItems(addr string) (map[string]pump.Item, error) {
	keys, err := MemcachedKeys(addr)
	if err != nil {
		return nil, err
	}
	c, err := memcached.Connect("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	items := map[string]pump.Item{}
	for _, k := range keys {
		r, err := c.Get(0, k)
		if gomemcached.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("get %s: %w", k, err)
		}
		items[k] = pump.Item{Key: []byte(k), Value: r.Body}
	}
	all, err := c.StatsMap("")
	if err == nil && all["evictions"] != "0" {
		err = fmt.Errorf("memcached threw out %s items for want of memory, so what is there shows nothing", all["evictions"])
	}
	return items, err
}

func openCluster(format string, replicas bool) (*Destination, error) {
	c, err := simcluster.Start(simcluster.Config{Version: "4.6", Nodes: 2, VBuckets: 8})
	if err != nil {
		return nil, err
	}
	if replicas { // a replication stream is pushed into these only
		for _, n := range c.Nodes() {
			for vb := range c.Bucket("default").Map() {
				if s, _ := n.VBucket("default", uint16(vb)); s == mcbp.VBActive {
					n.SetVBucket("default", uint16(vb), mcbp.VBReplica)
				}
			}
		}
	}
	url := c.URL()
	if format != "%s" {
		url = url[len("http:"):]
	}
	return &Destination{Spec: fmt.Sprintf(format, url) + "?rehash=true", Close: func() { _ = c.Close() },
		Live: func() (map[string]pump.Item, bool, error) { return ClusterItems(c), true, nil }}, nil
}

// ClusterItems returns the live items of the copies that the cluster's map names.
func ClusterItems(c *simcluster.Cluster) map[string]pump.Item {
	items := map[string]pump.Item{}
	b := c.Bucket("default")
	for vb, chain := range b.Map() {
		for _, n := range c.Nodes() {
			if chain[0] < 0 || n.KV() != b.Servers()[chain[0]] {
				continue
			}
			n.EachDoc("default", uint16(vb), func(d simcluster.Doc) bool {
				if !d.Deleted {
					items[string(d.Key)] = pump.Item{Key: d.Key, Value: d.Value, Flags: d.Flags, CAS: d.CAS, RevSeqno: d.Rev}
				}
				return true
			})
		}
	}
	return items
}

func openFile(dir, format string) (*Destination, error) {
	at, err := os.MkdirTemp(dir, "to-")
	if err != nil {
		return nil, err
	}
	spec := fmt.Sprintf(format, at)
	return &Destination{Spec: spec, Whole: true, Close: func() { _ = os.RemoveAll(at) },
		Live: func() (map[string]pump.Item, bool, error) { return FileItems(spec) }}, nil
}

// FileItems reads a file or folder that a sink of the same spec wrote. ok is false
// where nothing is that could be taken for a whole one.
func FileItems(spec string) (items map[string]pump.Item, ok bool, err error) {
	spec, _, _ = strings.Cut(spec, "?")
	ctx := context.Background()
	src, err := OpenSource(ctx, spec)
	if err != nil {
		return nil, false, nil
	}
	mem := &pumptest.MemSink{}
	if _, err := pump.Run(ctx, pump.Config{Source: src, Sink: mem, Settings: pump.DefaultSettings()}); err != nil {
		return nil, false, nil
	}
	items = mem.Items()
	for k, it := range items {
		if it.Op != pump.Mutation {
			delete(items, k)
		}
	}
	return items, true, nil
}
