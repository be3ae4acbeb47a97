package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cbpump/cbpump/internal/realmc"
)

// pair is a source and a sink.
type pair struct {
	name   string
	source string  // gen, tap, dcp, backup or jsonl
	sink   string  // memcached, null or cluster
	goal   float64 // share of the limit that is to be reached
}

// pairs are what issue "As fast as the destination can take it" names.
var pairs = []pair{
	{"gen to memcached", "gen", "memcached", 0.90},
	{"TAP to memcached", "tap", "memcached", 0.80},
	{"DCP to memcached", "dcp", "memcached", 0.80},
	{"backup to memcached", "backup", "memcached", 0.60},
	{"jsonl to memcached", "jsonl", "memcached", 0.70},
	{"gen to cluster", "gen", "cluster", 0.80},
	{"TAP to cluster", "tap", "cluster", 0.80},
	{"TAP to null", "tap", "null", 0.70},
	{"DCP to null", "dcp", "null", 0.70},
}

// itemsFor is how many items of a size make a run of about three seconds: long enough
// for the start of a process, its logins and the growing of its memory to be a small
// part of it. Into null, which takes ten times as many a second, and
// into a cluster, memory sets a limit: what a source plays lies there, and what is stored
// (12 GB at the full length).
func itemsFor(p pair, size int, scale float64) int {
	n := 2_000_000
	switch {
	case size >= 4096:
		n = 600_000
	case size >= 1024:
		n = 1_200_000
	}
	switch {
	case size >= 1024:
	case p.sink == "null":
		n *= 6
	case p.sink == "cluster":
		n *= 2
	}
	return max(1000, int(float64(n)*scale))
}

// stage is the servers and files of one pair and one size.
type stage struct {
	command string // cbtransfer
	pair    pair
	items   int
	size    int // of values, in bytes; of JSON documents a little more if they are tiny

	sourceSpec string
	source     *child // of tap and dcp
	mc         *realmc.Server
	cluster    *child
	at         served // of cluster
	limit      *child
	limitArgs  []string
	away       string // address that leads to memcached, "" = its own
	counted    uint64 // writes that memcached had counted before the run
}

// stores keeps what several pairs of one size can use: sources and files.
type stores struct {
	command string
	dir     string
	sources map[string]*child
	at      map[string]served
}

func (s *stores) close() (err error) {
	for _, c := range s.sources {
		err = errors.Join(err, c.Close())
	}
	s.sources, s.at = map[string]*child{}, map[string]served{}
	return err
}

// player returns a source of TAP or DCP.
func (s *stores) player(ctx context.Context, kind string, items, size int) (*child, served, error) {
	if c := s.sources[kind]; c != nil && s.at[kind].Items == items {
		return c, s.at[kind], nil
	}
	for other, c := range s.sources { // what they play fills the memory
		if s.at[other].Items != items {
			delete(s.sources, other)
			if err := c.Close(); err != nil {
				return nil, served{}, err
			}
		}
	}
	version := tapVersion
	if kind == "dcp" {
		version = dcpVersion
	}
	var at served
	c, err := start(ctx, &at, modeServe, "--version", version, "--items", fmt.Sprint(items), "--size", fmt.Sprint(size))
	if err == nil {
		s.sources[kind], s.at[kind] = c, at
	}
	return c, at, err
}

// file returns a backup or a jsonl file of generated documents.
func (s *stores) file(ctx context.Context, kind string, items, size int) (string, error) {
	path := filepath.Join(s.dir, fmt.Sprintf("%d-%d.%s", items, size, kind))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	_, err := transfer(ctx, s.command, genSpec(items, size)+"&json=true", path)
	return path, err
}

func genSpec(items, size int) string {
	return fmt.Sprintf("gen:?max-items=%d&min-value-size=%d&prefix=doc-", items, size)
}

// prepare starts what a pair needs, and its limit.
func (s *stores) prepare(ctx context.Context, p pair, items, size int) (*stage, error) {
	st, err := s.prepareEnds(ctx, p, items, size)
	if err != nil {
		return nil, err
	}
	var ready rawResult
	if st.limit, err = start(ctx, &ready, append([]string{modeRaw}, st.limitArgs...)...); err != nil {
		return nil, errors.Join(err, st.close())
	}
	return st, nil
}

// prepareEnds starts the servers of a pair, or finds its files.
func (s *stores) prepareEnds(ctx context.Context, p pair, items, size int) (st *stage, err error) {
	st = &stage{command: s.command, pair: p, items: items, size: size}
	ends := st // what is returned with an error is nil
	defer func() {
		if err != nil {
			err = errors.Join(err, ends.close())
		}
	}()
	limit := []string{"--items", fmt.Sprint(items)}
	switch p.source {
	case "gen":
		st.sourceSpec = genSpec(items, size)
		if p.sink == "cluster" {
			st.sourceSpec += "&meta=true" // else it would be written without metadata
		}
	case "tap", "dcp":
		var at served
		if st.source, at, err = s.player(ctx, p.source, items, size); err != nil {
			return nil, err
		}
		st.sourceSpec = p.source + "://" + at.KV
		limit = append(limit, "--"+p.source, at.KV)
	case "backup", "jsonl":
		if st.sourceSpec, err = s.file(ctx, p.source, items, size); err != nil {
			return nil, err
		}
		if st.size < 24 {
			st.size = 24 // the least JSON document that holds a number of seven digits
		}
		err = filepath.WalkDir(st.sourceSpec, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				limit = append(limit, "--read", path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	limit = append(limit, "--size", fmt.Sprint(st.size))
	switch p.sink {
	case "memcached":
		megabytes := items*(size+120)/4*5>>20 + 128 // its classes of sizes are a quarter apart
		if st.mc, err = realmc.Launch("-m", fmt.Sprint(megabytes)); err != nil {
			return nil, err
		}
		limit = append(limit, "--set", st.mc.Addr)
	case "cluster":
		if st.cluster, err = start(ctx, &st.at, modeServe, "--version", tapVersion); err != nil {
			return nil, err
		}
		limit = append(limit, "--meta")
	}
	st.limitArgs = limit
	return st, nil
}

func (st *stage) close() (err error) {
	if st.mc != nil {
		st.mc.Close()
	}
	for _, c := range []*child{st.cluster, st.limit} {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

// result is one run of the pump or of its limit.
type result struct {
	Rate   float64 // items per second
	User   float64 // nanoseconds of CPU per item, of the process that moves them
	Sys    float64
	Server float64 // the same of the servers together
	Peak   int64   // of the pump
}

func (st *stage) servers() (sum float64, err error) {
	var pids []int
	if st.mc != nil {
		pids = append(pids, st.mc.PID())
	}
	for _, c := range []*child{st.cluster, st.source} {
		if c != nil {
			pids = append(pids, c.cmd.Process.Pid)
		}
	}
	for _, pid := range pids {
		n, err := cpu(pid)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// measure runs once, counts at the destination, and fails if that has not got
// every item.
func (st *stage) measure(ctx context.Context, pump bool) (r result, err error) {
	if err := st.before(); err != nil {
		return r, err
	}
	servers, err := st.servers()
	if err != nil {
		return r, err
	}
	var took pumped
	if pump {
		took, err = transfer(ctx, st.command, st.sourceSpec, st.destination())
	} else {
		err = st.limit.ask(st.at.KV, &took.rawResult)
		took.Done = uint64(st.items)
	}
	if err != nil {
		return r, err
	}
	after, err := st.servers()
	if err != nil {
		return r, err
	}
	if took.Done != uint64(st.items) {
		return r, fmt.Errorf("%s: %d of %d items", st.pair.name, took.Done, st.items)
	}
	if err := st.count(); err != nil {
		return r, err
	}
	n := float64(st.items)
	return result{n / took.Seconds, took.User / n * 1e9, took.Sys / n * 1e9, (after - servers) / n * 1e9, took.Peak}, nil
}

func (st *stage) destination() string {
	switch st.pair.sink {
	case "memcached":
		return "memcached://" + cmp.Or(st.away, st.mc.Addr)
	case "cluster":
		return strings.TrimSuffix(st.at.REST, "/")
	}
	return "null:"
}

// before prepares the destination: an empty cluster, or memcached's counters. Once
// memcached has had every item, all runs replace them.
func (st *stage) before() (err error) {
	if st.cluster != nil {
		return st.cluster.ask("new", &st.at)
	}
	if st.mc != nil {
		st.counted, err = st.mc.Count("cmd_set")
	}
	return err
}

// count asks the destination what it has got. A null sink's items are those that
// the engine counted.
func (st *stage) count() error {
	var written, there uint64
	switch {
	case st.cluster != nil:
		if err := st.cluster.ask("count", &st.at); err != nil {
			return err
		}
		written, there = uint64(st.at.Items), uint64(st.at.Items)
	case st.mc != nil:
		var err error
		if written, err = st.mc.Count("cmd_set"); err != nil {
			return err
		}
		if there, err = st.mc.Count("curr_items"); err != nil {
			return err
		}
		written -= st.counted
	default:
		return nil
	}
	if n := uint64(st.items); written != n || there != n {
		return fmt.Errorf("%s: the destination has taken %d items and holds %d, %d were due", st.pair.name, written, there, n)
	}
	return nil
}
