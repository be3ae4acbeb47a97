package recovery

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cbpump/cbpump/pump"
)

// maxVBuckets is the largest number of vbuckets that a list may name: vbucket
// ids have 16 bits, and 0xffff stands for "unknown".
const maxVBuckets = 0xffff

// ParseVBuckets reads a vbucket list as users write it: "500,612",
// "500-520,7" or "[500, 612]". The result is sorted and without repeats. An
// empty list is an error of wrong use: left out, -l means all.
func ParseVBuckets(text string) ([]uint16, error) {
	t := strings.TrimSpace(text)
	if strings.HasPrefix(t, "[") != strings.HasSuffix(t, "]") {
		return nil, pump.Usagef("vbucket list %q: a bracket is not closed", text)
	}
	t = strings.TrimSuffix(strings.TrimPrefix(t, "["), "]")
	if strings.TrimSpace(t) == "" {
		return nil, pump.Usagef("vbucket list %q is empty; write it as 500,612 or 500-520", text)
	}
	var out []uint16
	for _, part := range strings.Split(t, ",") {
		lo, hi, ranged := strings.Cut(part, "-")
		from, err := parseVBucket(lo)
		if err != nil {
			return nil, pump.Usagef("vbucket list %q: %w", text, err)
		}
		to := from
		if ranged {
			if to, err = parseVBucket(hi); err != nil {
				return nil, pump.Usagef("vbucket list %q: %w", text, err)
			}
		}
		if to < from {
			return nil, pump.Usagef("vbucket list %q: the range %d-%d runs backwards", text, from, to)
		}
		for vb := int(from); vb <= int(to); vb++ {
			out = append(out, uint16(vb))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func parseVBucket(text string) (uint16, error) {
	t := strings.TrimSpace(text)
	n, err := strconv.ParseUint(t, 10, 16)
	if err != nil || n >= maxVBuckets {
		return 0, fmt.Errorf("%q is not a vbucket number", t)
	}
	return uint16(n), nil
}

// FormatVBuckets writes sorted vbuckets in the form that ParseVBuckets reads:
// "0,500-520,612".
func FormatVBuckets(vbs []uint16) string {
	var b strings.Builder
	for i := 0; i < len(vbs); {
		j := i
		for j+1 < len(vbs) && vbs[j+1] == vbs[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(vbs[i])))
		switch {
		case j == i+1:
			b.WriteByte(',')
			b.WriteString(strconv.Itoa(int(vbs[j])))
		case j > i:
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(vbs[j])))
		}
		i = j + 1
	}
	return b.String()
}
