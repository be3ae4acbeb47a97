package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// row is what was measured of one pair and one size. Every number is the median
// of the rounds.
type row struct {
	Pair  string  `json:"pair"`
	Size  int     `json:"value_bytes"`
	Items int     `json:"items"`
	Goal  float64 `json:"goal"`

	Limit float64 `json:"limit_items_per_s"`
	Pump  float64 `json:"pump_items_per_s"`
	Ratio float64 `json:"ratio"` // of rounds, not of medians
	Least float64 `json:"ratio_min"`
	Most  float64 `json:"ratio_max"`

	LimitCPU    float64 `json:"limit_cpu_ns_per_item"`
	User        float64 `json:"pump_user_ns_per_item"`
	Sys         float64 `json:"pump_sys_ns_per_item"`
	LimitServer float64 `json:"limit_servers_cpu_ns_per_item"`
	PumpServer  float64 `json:"pump_servers_cpu_ns_per_item"`
	Peak        int64   `json:"pump_peak_bytes"`
	Rounds      int     `json:"rounds"`

	When time.Time `json:"when"`
}

type report struct {
	When    time.Time `json:"when"`
	Machine string    `json:"machine"`
	Load    string    `json:"load_before"`
	Rows    []row     `json:"rows"`
	Control []row     `json:"control"` // a pair against itself

	Far       []row     `json:"far"` // with a longer round trip, against none
	Scale     []scaled  `json:"scale"`
	ScaleWhen time.Time `json:"scale_when"`
	Profiles  []profile `json:"profiles"`
}

// profile is where one pair's pump spends its CPU time.
type profile struct {
	Pair string `json:"pair"`
	Top  string `json:"top"`
}

type benchOptions struct {
	rounds  int
	sizes   []int
	delays  []time.Duration
	scaling bool
	pairs   string
	scale   float64
	command string
	out     string
	add     bool
}

func benchMain(ctx context.Context, args []string, out, errOut io.Writer) error {
	var o benchOptions
	f := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.SetOutput(errOut)
	f.IntVar(&o.rounds, "rounds", 5, "rounds of each pair and its limit")
	f.IntSliceVar(&o.sizes, "sizes", []int{256, 16, 4096}, "bytes of a value")
	f.StringVar(&o.pairs, "pairs", "", "only pairs whose name holds this, such as \"TAP to\"")
	f.DurationSliceVar(&o.delays, "delays", []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}, "round trips to add, the first to compare with; only one: do not")
	f.BoolVar(&o.scaling, "scaling", true, "measure clusters of many nodes and vbuckets")
	f.Float64Var(&o.scale, "scale", 1, "longer or shorter runs; 1 is about three seconds each")
	f.StringVar(&o.command, "cbtransfer", "bin/cbtransfer", "the command to measure")
	f.BoolVar(&o.add, "add", false, "keep what was written to --out before and is not measured now")
	f.StringVar(&o.out, "out", "", "folder to write performance.md, .json and .svg to; none: print only")
	if err := f.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cbpump-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := report{When: time.Now().UTC().Truncate(time.Second), Machine: machine(), Load: loadAverage()}
	for _, size := range o.sizes {
		if err := measureSize(ctx, &o, dir, size, &r, out); err != nil {
			return err
		}
		if err := r.save(&o); err != nil { // what there is, in case the rest fails
			return err
		}
	}
	if len(r.Rows) == 0 {
		return errors.New("no pair has such a name")
	}
	if len(o.delays) > 1 && strings.Contains(pairs[0].name, o.pairs) {
		s := &stores{command: o.command, dir: dir, sources: map[string]*child{}, at: map[string]served{}}
		if err := measureDelays(ctx, &o, s, &r, out); err != nil {
			return err
		}
	}
	if o.scaling && o.pairs == "" {
		if err := measureScale(ctx, &o, &r, out); err != nil {
			return err
		}
	}
	return r.save(&o)
}

// save writes the report where it was asked for.
func (r *report) save(o *benchOptions) error {
	if o.out == "" || len(r.Rows) == 0 {
		return nil
	}
	all := *r
	if o.add {
		if err := all.keep(o.out); err != nil {
			return err
		}
	}
	return all.write(o.out)
}

func measureSize(ctx context.Context, o *benchOptions, dir string, size int, r *report, out io.Writer) (err error) {
	s := &stores{command: o.command, dir: dir, sources: map[string]*child{}, at: map[string]served{}}
	defer func() { err = errors.Join(err, s.close()) }()
	control := true
	for _, p := range pairs {
		if !strings.Contains(p.name, o.pairs) {
			continue
		}
		st, err := s.prepare(ctx, p, itemsFor(p, size, o.scale), size)
		if err != nil {
			return err
		}
		line, err := alternate(ctx, st, o.rounds, false)
		if err == nil {
			r.Rows = append(r.Rows, line)
			fmt.Fprintln(out, line.String())
		}
		if err == nil && size == o.sizes[0] {
			err = profileOf(ctx, st, r)
		}
		if control && err == nil {
			control = false
			line, err = alternate(ctx, st, o.rounds, true)
			line.Pair += ", twice"
			r.Control = append(r.Control, line)
			fmt.Fprintln(out, line.String())
		}
		if err = errors.Join(err, st.close()); err != nil {
			return err
		}
	}
	return nil
}

// alternate runs limit and pump in turn, the order changing from round to round,
// after one run of each that does not count. With same both are the pump.
func alternate(ctx context.Context, st *stage, rounds int, same bool) (row, error) {
	var limits, pumps []result
	var ratios []float64
	for i := -1; i < rounds; i++ {
		var two [2]result // limit, pump
		for j := range two {
			which := (i + 1 + j) % 2
			var err error
			if two[which], err = st.measure(ctx, same || which == 1); err != nil {
				return row{}, err
			}
		}
		if i < 0 {
			continue
		}
		limits, pumps = append(limits, two[0]), append(pumps, two[1])
		ratios = append(ratios, two[1].Rate/two[0].Rate)
	}
	of := func(runs []result, f func(result) float64) float64 {
		var v []float64
		for _, r := range runs {
			v = append(v, f(r))
		}
		return median(v)
	}
	rate := func(r result) float64 { return r.Rate }
	server := func(r result) float64 { return r.Server }
	line := row{
		Pair: st.pair.name, Size: st.size, Items: st.items, Goal: st.pair.goal, Rounds: rounds,
		When:  time.Now().UTC().Truncate(time.Minute),
		Limit: of(limits, rate), Pump: of(pumps, rate), Ratio: median(ratios), Least: slices.Min(ratios), Most: slices.Max(ratios),
		LimitCPU: of(limits, func(r result) float64 { return r.User + r.Sys }),
		User:     of(pumps, func(r result) float64 { return r.User }), Sys: of(pumps, func(r result) float64 { return r.Sys }),
		LimitServer: of(limits, server), PumpServer: of(pumps, server),
	}
	for _, p := range pumps {
		line.Peak = max(line.Peak, p.Peak)
	}
	return line, nil
}

// profileOf runs the pump once more and keeps the ten functions that took most.
func profileOf(ctx context.Context, st *stage, r *report) error {
	if err := st.before(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cbpump-profile-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "cpu")
	if _, err := transfer(ctx, st.command, "--pprof", file, st.sourceSpec, st.destination()); err != nil {
		return err
	}
	top, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=10", "-nodefraction=0", st.command, file).Output()
	if err != nil {
		return fmt.Errorf("go tool pprof: %w", err)
	}
	_, table, _ := strings.Cut(string(top), "      flat ")
	r.Profiles = append(r.Profiles, profile{st.pair.name, "      flat " + table})
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

func (l *row) String() string {
	return fmt.Sprintf("%-26s %5d B  limit %9.0f/s  pump %9.0f/s  ratio %.2f (%.2f-%.2f) by CPU %.2f goal %.2f  cpu/item: limit %4.0f+%4.0f  pump %4.0f user %4.0f sys +%4.0f ns  peak %.1f MiB",
		l.Pair, l.Size, l.Limit, l.Pump, l.Ratio, l.Least, l.Most, l.byCPU(), l.Goal, l.LimitCPU, l.LimitServer, l.User, l.Sys, l.PumpServer, float64(l.Peak)/(1<<20))
}

func machine() string {
	model := ""
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
			}
		}
	}
	return fmt.Sprintf("%d processors (%s), %s, %s", runtime.NumCPU(), cmp.Or(model, runtime.GOARCH), runtime.GOOS, runtime.Version())
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
