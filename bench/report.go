package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The tables stand between these lines of the note; what is around them is
// written by hand and stays.
const (
	tableBegin = "<!-- measured: written by make bench -->\n"
	tableEnd   = "<!-- end of what make bench writes -->\n"
	minute     = "2006-01-02 15:04"
)

// write writes the numbers and the plot into dir, and the tables into its
// performance.md.
func (r *report) write(dir string) error {
	note := filepath.Join(dir, "performance.md")
	old, err := os.ReadFile(note)
	if err != nil {
		return err
	}
	head, rest, ok := bytes.Cut(old, []byte(tableBegin))
	_, tail, ok2 := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s: the lines between which the tables go are missing", note)
	}
	numbers, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	text := string(head) + tableBegin + "\n" + r.markdown() + "\n" + tableEnd + string(tail)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "performance.json"), append(numbers, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "performance.svg"), []byte(r.svg()), 0o644),
		os.WriteFile(note, []byte(text), 0o644),
	)
}

// keep takes over from the numbers in dir what was not measured now.
func (r *report) keep(dir string) error {
	file := filepath.Join(dir, "performance.json")
	numbers, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var old report
	if err := json.Unmarshal(numbers, &old); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r.Rows, r.Control, r.Far = kept(r.Rows, old.Rows), kept(r.Control, old.Control), kept(r.Far, old.Far)
	if len(r.Scale) == 0 {
		r.Scale, r.ScaleWhen = old.Scale, old.ScaleWhen
	}
	for _, p := range old.Profiles {
		if !slices.ContainsFunc(r.Profiles, func(own profile) bool { return own.Pair == p.Pair }) {
			r.Profiles = append(r.Profiles, p)
		}
	}
	return nil
}

// kept is the old rows with the new ones in their places, and what is new behind them.
func kept(rows, old []row) []row {
	out := slices.Clone(old)
	for _, l := range rows {
		same := func(o row) bool { return o.Pair == l.Pair && o.Size == l.Size }
		if i := slices.IndexFunc(out, same); i >= 0 {
			out[i] = l
		} else {
			out = append(out, l)
		}
	}
	return out
}

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; %s; load before: %s.\n\n", r.When.Format("2006-01-02 15:04 MST"), r.Machine, r.Load)
	fmt.Fprintf(&b, "| pair | value | limit, items/s | pump, items/s | ratio (least–most) | by CPU time | goal | pump CPU, ns/item (user + sys) | limit CPU | servers' CPU beside pump / limit | pump's peak memory | measured |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, l := range r.Rows {
		b.WriteString(l.markdown(fmt.Sprintf("%.2f", l.Goal)))
	}
	for _, l := range r.Control {
		b.WriteString(l.markdown("control"))
	}
	b.WriteString("\n![ratio to the limit, by pair and size of values](performance.svg)\n")
	if len(r.Far) > 0 {
		b.WriteString("\nThe destination farther away: round trips added by a proxy, in turn with the same proxy that adds none.\n\n" +
			"| pair | items/s without | items/s | ratio (least–most) | goal | peak memory | measured |\n|---|--:|--:|--:|--:|--:|--:|\n")
	}
	for _, l := range r.Far {
		fmt.Fprintf(&b, "| %s | %s | %s | **%.2f** (%.2f–%.2f) | %.2f | %.0f MiB | %s |\n",
			l.Pair, thousands(l.Limit), thousands(l.Pump), l.Ratio, l.Least, l.Most, l.Goal, float64(l.Peak)/(1<<20), l.When.Format(minute))
	}
	if len(r.Scale) > 0 {
		b.WriteString("\nClusters of many nodes and of small vbuckets, 100 items of 256 bytes in each, into null: the best of the rounds, from the\n" +
			"start of the process to its end; connections and goroutines are the most at once. Measured " + r.ScaleWhen.Format(minute) + ".\n\n" +
			"| protocol | nodes | vbuckets | items | time | time per vbucket | CPU per vbucket | connections | goroutines | peak memory |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	}
	for i := range r.Scale {
		b.WriteString(r.Scale[i].markdown() + "\n")
	}
	if len(r.Profiles) > 0 {
		fmt.Fprintf(&b, "\nThe ten functions that took most CPU time, of a run of each pair with `--pprof` (values of %d bytes):\n", r.Rows[0].Size)
	}
	for _, p := range r.Profiles {
		fmt.Fprintf(&b, "\n%s\n\n```\n%s```\n", p.Pair, p.Top)
	}
	return b.String()
}

func (l *row) markdown(goal string) string {
	return fmt.Sprintf("| %s | %d B | %s | %s | **%.2f** (%.2f–%.2f) | %.2f | %s | %.0f + %.0f | %.0f | %.0f / %.0f | %.0f MiB | %s |\n",
		l.Pair, l.Size, thousands(l.Limit), thousands(l.Pump), l.Ratio, l.Least, l.Most, l.byCPU(), goal,
		l.User, l.Sys, l.LimitCPU, l.PumpServer, l.LimitServer, float64(l.Peak)/(1<<20), l.When.Format(minute))
}

// byCPU is the ratio of the CPU time that limit and pump take for an item, servers
// included. It does not depend on what else the machine does, and knows nothing of
// processors that stand idle.
func (l *row) byCPU() float64 {
	return (l.LimitCPU + l.LimitServer) / (l.User + l.Sys + l.PumpServer)
}

// thousands writes a rate in thousands.
func thousands(n float64) string { return fmt.Sprintf("%.0f k", n/1000) }

// svg draws the ratios as bars, with the goals.
func (r *report) svg() string {
	const (
		left, top, bar, gap, scale = 250, 40, 18, 10, 420.0 // pixels; scale is for a ratio of 1
		most                       = 1.2
	)
	rows := append(append([]row(nil), r.Rows...), r.Control...)
	height := top + len(rows)*(bar+gap) + 30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", int(left+most*scale)+40, height)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	fmt.Fprintf(&b, `<text x="10" y="20" font-size="14">Throughput as a share of the limit; line: least to most of %d rounds; red: goal</text>`+"\n", rows[0].Rounds)
	for i := range 7 {
		x := left + float64(i)*0.2*scale
		fmt.Fprintf(&b, `<line x1="%.0f" y1="%d" x2="%.0f" y2="%d" stroke="#ddd"/><text x="%.0f" y="%d" text-anchor="middle">%.1f</text>`+"\n", x, top-8, x, height-24, x, height-8, float64(i)*0.2)
	}
	for i, l := range rows {
		y := top + i*(bar+gap)
		at := func(v float64) float64 { return left + min(v, most)*scale }
		colour := "#4878a8"
		if i >= len(r.Rows) {
			colour = "#999"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s, %d B</text>`, left-8, y+bar-5, l.Pair, l.Size)
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left, y, at(l.Ratio)-left, bar, colour)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="black"/>`, at(l.Least), y+bar/2, at(l.Most), y+bar/2)
		if i < len(r.Rows) {
			fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="red" stroke-width="2"/>`, at(l.Goal), y-2, at(l.Goal), y+bar+2)
		}
		b.WriteString("\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}
