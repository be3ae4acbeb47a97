package pump

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxVBucket is the largest number that names a vbucket: the next one is
// NoVBucket.
const maxVBucket = NoVBucket - 1

// ParseVBuckets reads a list of vbuckets as people and servers write it: numbers
// and ranges, between commas or spaces, in brackets or not: "500,612",
// "500-520", "[500, 612]", "0-3 17". The result is sorted and names each vbucket
// once. Numbers go up to 65534; whether a bucket has them is for CheckVBuckets.
// Errors have class usage and name the position (bytes, from 1) and the piece.
func ParseVBuckets(text string) ([]uint16, error) {
	p := vbParser{text: text}
	return p.list()
}

type vbParser struct {
	text string
	at   int
}

func (p *vbParser) list() ([]uint16, error) {
	p.space()
	bracket := p.take('[')
	named := make([]bool, int(maxVBucket)+1)
	for some := false; ; some = true {
		p.space()
		if some {
			start := p.at
			comma := p.take(',')
			p.space()
			if p.done() && comma {
				return nil, p.wrong(start, ",", "nothing comes after it")
			}
		}
		if p.done() {
			if !some {
				return nil, p.wrong(p.at, "", "no vbucket is named")
			}
			break
		}
		lo, hi, err := p.span()
		if err != nil {
			return nil, err
		}
		for vb := int(lo); vb <= int(hi); vb++ {
			named[vb] = true
		}
	}
	if bracket && !p.take(']') {
		return nil, p.wrong(p.at, "", "a ] is missing")
	}
	p.space()
	if p.at < len(p.text) {
		return nil, p.wrong(p.at, p.piece(), "nothing may come after the list")
	}
	var list []uint16
	for vb, is := range named {
		if is {
			list = append(list, uint16(vb))
		}
	}
	return list, nil
}

// span reads a number or a range.
func (p *vbParser) span() (lo, hi uint16, err error) {
	start := p.at
	if lo, err = p.number(); err != nil {
		return 0, 0, err
	}
	end := p.at
	p.space()
	if !p.take('-') {
		p.at = end
		return lo, lo, nil
	}
	p.space()
	if hi, err = p.number(); err != nil {
		return 0, 0, err
	}
	if hi < lo {
		return 0, 0, p.wrong(start, p.text[start:p.at], "the range runs backwards")
	}
	return lo, hi, nil
}

func (p *vbParser) number() (uint16, error) {
	start := p.at
	for p.at < len(p.text) && '0' <= p.text[p.at] && p.text[p.at] <= '9' {
		p.at++
	}
	digits := p.text[start:p.at]
	if digits == "" {
		return 0, p.wrong(start, p.piece(), "a vbucket number is expected")
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || uint16(n) > maxVBucket {
		return 0, p.wrong(start, digits, fmt.Sprintf("vbuckets go from 0 to %d at most", maxVBucket))
	}
	return uint16(n), nil
}

func (p *vbParser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

func (p *vbParser) take(b byte) bool {
	if p.at < len(p.text) && p.text[p.at] == b {
		p.at++
		return true
	}
	return false
}

// done reports that the list is over: the end of the text or a bracket.
func (p *vbParser) done() bool { return p.at == len(p.text) || p.text[p.at] == ']' }

// piece is what stands at the current position, up to the next separator.
func (p *vbParser) piece() string {
	rest := p.text[p.at:]
	if i := strings.IndexAny(rest, ", \t\r\n]"); i > 0 {
		rest = rest[:i]
	} else if i == 0 {
		rest = rest[:1]
	}
	return rest
}

func (p *vbParser) wrong(at int, piece, why string) error {
	const most = 40
	if len(piece) > most {
		piece = piece[:most] + "…"
	}
	if piece == "" {
		return Usagef("vbucket list, at its end (position %d): %s", at+1, why)
	}
	return Usagef("vbucket list, position %d: %q: %s", at+1, piece, why)
}

// CheckVBuckets returns an error of class usage naming the vbuckets of the list
// that a bucket with n vbuckets does not have.
func CheckVBuckets(list []uint16, n int) error {
	var wrong []uint16
	for _, vb := range list {
		if int(vb) >= n {
			wrong = append(wrong, vb)
		}
	}
	switch {
	case len(wrong) == 0:
		return nil
	case n <= 0:
		return Usagef("vbucket %s: the bucket has no vbuckets", FormatVBuckets(wrong))
	}
	verb := "vbucket %s does not exist"
	if len(wrong) > 1 {
		verb = "vbuckets %s do not exist"
	}
	return Usagef(verb+": the bucket has %d vbuckets, 0 to %d", FormatVBuckets(wrong), n, n-1)
}

// FormatVBuckets writes a list in order, each once, neighbours as a range:
// "0-3,17". ParseVBuckets reads it back. An empty list is "".
func FormatVBuckets(list []uint16) string {
	list = slices.Compact(slices.Sorted(slices.Values(list)))
	var b []byte
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(list[i]), 10)
		if j > i {
			b = append(b, '-')
			b = strconv.AppendUint(b, uint64(list[j]), 10)
		}
		i = j + 1
	}
	return string(b)
}
