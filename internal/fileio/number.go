package fileio

import "math"

// Uint reads a decimal number that is at most limit: digits only, no sign, no
// zero in front.
func Uint(p []byte, limit uint64) (uint64, bool) {
	if len(p) == 0 || len(p) > 20 || p[0] == '0' && len(p) > 1 {
		return 0, false
	}
	n := uint64(0)
	for _, c := range p {
		d := uint64(c - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, n <= limit
}
