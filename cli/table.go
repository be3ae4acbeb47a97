package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cbpump/cbpump/pump"
)

// Lists in the final table are kept short: a screenful helps, a thousand lines
// do not. --json has them all.
const (
	maxTableCauses     = 10
	maxTableRejections = 20
	maxTableParts      = 20
)

// reportText is the table at the end of a run. It reconciles: what was read is
// done, skipped or rejected, and what is not is shown as unfinished. It has no
// newline at its end.
func reportText(r *pump.Report) string {
	var b strings.Builder
	row := func(name string, items uint64, bytes string) {
		fmt.Fprintf(&b, "  %-14s %15s", name, grouped(items))
		if bytes != "" {
			fmt.Fprintf(&b, " %14s", bytes)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "  %-14s %15s %14s\n", "", "items", "bytes")
	row("read", r.Read, bytesText(float64(r.BytesRead)))
	row("  done", r.Done, bytesText(float64(r.BytesDone)))
	row("  skipped", r.Skipped, "")
	causes(&b, r, pump.Skipped)
	row("  rejected", r.Rejected, "")
	causes(&b, r, pump.Rejected)
	if n := r.Pending(); n > 0 {
		row("  unfinished", n, "")
	}
	if e := r.Earlier; e != (pump.Counts{}) {
		row("earlier runs", e.Done+e.Skipped+e.Rejected, "")
		if e.Skipped > 0 {
			row("  skipped", e.Skipped, "")
		}
		if e.Rejected > 0 {
			row("  rejected", e.Rejected, "")
		}
	}
	if r.Filtered > 0 {
		row("left out", r.Filtered, "")
	}
	if r.Retried > 0 {
		row("sent again", r.Retried, "")
	}
	seconds := r.Elapsed.Seconds()
	fmt.Fprintf(&b, "  %.1f s", seconds)
	if seconds > 0 {
		fmt.Fprintf(&b, ", %s items/s, %s/s", grouped(uint64(float64(r.Done)/seconds)), bytesText(float64(r.BytesDone)/seconds))
	}
	b.WriteByte('\n')
	for _, d := range r.LeftOut {
		fmt.Fprintf(&b, "  not written: the source's %s (%s), for which the destination has no place\n", plainText(string(d.Kind)), bytesText(float64(len(d.JSON))))
	}
	for _, l := range r.Losses {
		items := grouped(l.Items) + " items"
		if l.Items == 1 {
			items = "1 item"
		}
		fmt.Fprintf(&b, "  not written: %s of %s, for which the destination has no place\n", plainText(l.Part), items)
	}
	rejections(&b, r)
	return strings.TrimSuffix(b.String(), "\n")
}

func causes(b *strings.Builder, r *pump.Report, v pump.Verdict) {
	shown, rest := 0, uint64(0)
	for _, c := range r.Causes {
		switch {
		case c.Verdict != v:
		case shown == maxTableCauses:
			rest += c.N
		default:
			fmt.Fprintf(b, "  %30s  %s\n", grouped(c.N), plainText(c.Text))
			shown++
		}
	}
	if rest > 0 {
		fmt.Fprintf(b, "  %30s  for other reasons\n", grouped(rest))
	}
}

func rejections(b *strings.Builder, r *pump.Report) {
	for i, x := range r.Rejections {
		if i == maxTableRejections {
			break
		}
		where := ""
		if x.VBucket != pump.NoVBucket {
			where = fmt.Sprintf(" of vbucket %d", x.VBucket)
		}
		fmt.Fprintf(b, "  rejected: %s %s%s: %s\n", x.Op, userData(x.Key), where, plain(x.Cause))
	}
	if shown := uint64(min(len(r.Rejections), maxTableRejections)); r.Rejected > shown {
		fmt.Fprintf(b, "  and %s more; --json lists every one\n", grouped(r.Rejected-shown))
	}
}

// failedStreams lists the parts of the source that were not read to their end,
// unless one reason, which the error at the end says, stopped them all.
func failedStreams(say *console, r *pump.Report) {
	if len(reasons(r)) < 2 {
		return
	}
	shown, rest := 0, uint64(0)
	for _, s := range r.StreamReports {
		switch {
		case s.Err == nil:
		case shown == maxTableParts && !say.full:
			rest++
		default:
			say.Print("  not complete: %s", say.short(plainText(s.ID)+": "+plain(s.Err), shortReason))
			shown++
		}
	}
	if rest > 0 {
		say.Print("  and %s more; -v and --json list every one", grouped(rest))
	}
}

// reasons lists the different reasons for which streams were not read to their end.
func reasons(r *pump.Report) []string {
	var list []string
	for _, s := range r.StreamReports {
		if text := plain(s.Err); s.Err != nil && !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	return list
}

// brief is the error of a run as it is said beneath the table: without what the
// table has listed already, and without the hint that the rest has arrived where
// nothing has.
func (t *transfer) brief(err error) error {
	r := t.report
	switch {
	case pump.CodeOf(err) == "unreconciled" || pump.ClassOf(err) == pump.ClassInterrupted:
		return err
	case pump.ClassOf(err) == pump.ClassPartial:
		return partial(r, err)
	case len(reasons(r)) < 2:
		return err
	}
	failed, first := 0, ""
	for _, s := range r.StreamReports {
		if s.Err != nil {
			if failed == 0 {
				first = plainText(s.ID) + ": " + plain(s.Err)
			}
			failed++
		}
	}
	where := "each is named above with its reason"
	switch {
	case t.say.out != nil:
		where = "the result line names each with its reason"
	case t.say.silent:
		where = "the first is " + first
	case failed > maxTableParts && !t.say.full:
		where = "the first are named above with their reasons"
	}
	return &pump.Error{
		Class: pump.ClassOf(err), Code: pump.CodeOf(err), Hint: strings.Join(ownHints(err), "\n"),
		Err: fmt.Errorf("%d of %d parts of the source are not proven complete; %s", failed, len(r.StreamReports), where),
	}
}

// partial says what a run that came to its end has not written, in the numbers of
// the table.
func partial(r *pump.Report, err error) error {
	were := func(n uint64) string {
		if n == 1 {
			return "1 item was"
		}
		return grouped(n) + " items were"
	}
	var e *pump.Error
	if !errors.As(err, &e) {
		return err
	}
	var text string
	switch e.Code {
	case "partial":
		text = fmt.Sprintf("%s rejected by the destination and %s skipped", were(r.Rejected), were(r.Skipped))
	case "rejected":
		text = were(r.Rejected) + " rejected by the destination"
	case "skipped":
		text = were(r.Skipped) + " skipped"
	default:
		return err
	}
	// What the source left out may be joined to it, and stays beside it.
	said, hint := e.Err.Error(), strings.Join(ownHints(err), "\n")
	if hint == "" && r.Done == 0 {
		hint = "Nothing was written; the reasons stand in the table and in the JSON result."
	}
	return &pump.Error{
		Class: pump.ClassPartial, Code: pump.CodeOf(err), Hint: hint,
		Err: errors.New(strings.Replace(plain(err), said, text, 1)),
	}
}
