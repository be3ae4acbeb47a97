package cli

import (
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
	for _, s := range r.StreamReports {
		if s.Err != nil {
			say.Print("  not complete: %s", say.short(plainText(s.ID)+": "+plain(s.Err), shortReason))
		}
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

// brief is the error of a run, without what the table has listed already.
func brief(r *pump.Report, err error) error {
	n := len(reasons(r))
	if n < 2 || pump.ClassOf(err) == pump.ClassInterrupted {
		return err
	}
	return &pump.Error{
		Class: pump.ClassOf(err), Code: pump.CodeOf(err), Hint: pump.HintOf(err),
		Err: fmt.Errorf("%d of %d parts of the source are not proven complete; each is named with its reason", n, len(r.StreamReports)),
	}
}
