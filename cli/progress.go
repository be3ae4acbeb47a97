package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// meter turns snapshots into rates. It looks back over the last ten seconds, so
// that a pause shows, and knows no clock but that of the snapshots.
type meter struct {
	seen []sample
}

type sample struct {
	at           time.Duration
	items, bytes uint64
}

const meterSpan = 10 * time.Second

// settled is how many items have a final verdict or were left out.
func settled(s *pump.Snapshot) uint64 { return s.Done + s.Skipped + s.Rejected }

// rates is what a meter makes of a snapshot.
type rates struct {
	items, bytes float64 // per second
	percent      int     // -1: unknown
	eta          time.Duration
	etaKnown     bool
}

func (m *meter) feed(s *pump.Snapshot) rates {
	now := sample{s.Elapsed, settled(s), s.BytesDone}
	for len(m.seen) > 1 && now.at-m.seen[1].at >= meterSpan {
		m.seen = m.seen[1:]
	}
	var from sample
	if len(m.seen) > 0 {
		from = m.seen[0]
	}
	r := rates{percent: -1}
	// Counters are read one by one, so an older one may be ahead for a moment.
	// The last one may come right behind the one before: it counts from the start.
	if finished := s.Streams > 0 && s.StreamsDone == s.Streams && s.Pending() == 0; finished && now.at-from.at < meterSpan/10 {
		from = sample{}
	}
	if span := (now.at - from.at).Seconds(); span > 0 && now.items >= from.items && now.bytes >= from.bytes {
		r.items = float64(now.items-from.items) / span
		r.bytes = float64(now.bytes-from.bytes) / span
	}
	if len(m.seen) == 0 || now.at-m.seen[len(m.seen)-1].at >= meterSpan/20 {
		m.seen = append(m.seen, now)
	}
	total, past := s.Estimate.Items, settled(s)+s.Filtered
	if total == 0 {
		return r
	}
	finished := s.Streams > 0 && s.StreamsDone == s.Streams && s.Pending() == 0
	switch {
	case finished:
		r.percent = 100
	case past >= total:
		// The estimate was low: more came than was expected, and more may come.
		r.percent = 99
	default:
		r.percent = min(99, int(float64(past)*100/float64(total)))
		if r.items > 0 {
			r.eta = time.Duration(float64(total-past) / r.items * float64(time.Second))
			r.etaKnown = r.eta < 1000*time.Hour
		}
	}
	return r
}

// progressText is the line that shows how far the work has come.
func progressText(s *pump.Snapshot, r rates) string {
	var b strings.Builder
	if r.percent >= 0 {
		fmt.Fprintf(&b, "%3d %%  %s of %s items", r.percent, grouped(settled(s)), grouped(max(s.Estimate.Items, settled(s))))
	} else {
		fmt.Fprintf(&b, "%s items", grouped(settled(s)))
	}
	fmt.Fprintf(&b, "  %s items/s  %s/s", grouped(uint64(r.items)), bytesText(r.bytes))
	if r.etaKnown {
		fmt.Fprintf(&b, "  ETA %s", clock(r.eta))
	}
	for _, n := range []struct {
		what string
		n    uint64
	}{{"skipped", s.Skipped}, {"rejected", s.Rejected}, {"left out", s.Filtered}, {"sent again", s.Retried}} {
		if n.n > 0 {
			fmt.Fprintf(&b, "  %s %s", n.what, grouped(n.n))
		}
	}
	return b.String()
}

func progressOf(s *pump.Snapshot, r rates) progressLine {
	l := progressLine{
		Type: "progress", counters: countersOf(*s), Total: s.Estimate.Items, Streams: s.Streams, StreamsDone: s.StreamsDone,
		ItemsPerSecond: r.items, BytesPerSecond: r.bytes,
	}
	if r.percent >= 0 {
		l.Percent = &r.percent
	}
	if r.etaKnown {
		eta := r.eta.Seconds()
		l.ETA = &eta
	}
	return l
}

// every returns how often progress is shown.
func (c *console) every() time.Duration {
	switch {
	case c.out != nil:
		return time.Second
	case c.live:
		return 250 * time.Millisecond
	}
	return 5 * time.Second
}

// grouped writes a number with thousands apart: 1,234,567.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// bytesText writes a number of bytes in units of 1000.
func bytesText(n float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for n >= 999.95 && i < len(units)-1 {
		n /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

// clock writes a duration as people read it from a clock: 0:07, 12:05, 3:04:05.
func clock(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// countOf writes a number of things: 1 vbucket, 2 vbuckets.
func countOf(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return grouped(uint64(n)) + " " + what
}
