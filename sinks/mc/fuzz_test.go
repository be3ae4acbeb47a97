package mc

import (
	"encoding/binary"
	"strings"
	"testing"
)

// FuzzMapping: what is read of map-collections is what stands there.
func FuzzMapping(f *testing.F) {
	for _, s := range []string{"", "a.b=c.d", "a.b=c.d, e.f=g.h", "a.b=c.d,a.b=e.f", "a=b", "a.b.c=d.e", "_default._default=s.c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMapping(text)
		if err != nil {
			return
		}
		for from, to := range m {
			if !isPath(from) || !isPath(to) || !strings.Contains(text, from+"="+to) {
				t.Errorf("%q gives %q to %q", text, from, to)
			}
		}
		if n := strings.Count(text, "="); n != len(m) {
			t.Errorf("%q gives %d of %d", text, len(m), n)
		}
	})
}

// FuzzObserved: only an answer about the branch that was asked for counts.
func FuzzObserved(f *testing.F) {
	whole := make([]byte, 27)
	binary.BigEndian.PutUint16(whole[1:], 5)
	binary.BigEndian.PutUint64(whole[3:], 77)
	f.Add(whole, uint16(5), uint64(77))
	f.Add(whole[:26], uint16(5), uint64(77))
	f.Fuzz(func(t *testing.T, p []byte, vb uint16, uuid uint64) {
		if _, err := parseObserved(p, vb, uuid); err == nil && (p[0] != 0 || binary.BigEndian.Uint64(p[3:]) != uuid) {
			t.Errorf("%x counts for vbucket %d, %d", p, vb, uuid)
		}
	})
}
