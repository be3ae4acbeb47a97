package cluster

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is the version of a node; the zero Version is an unknown one.
type Version struct{ Major, Minor, Patch int }

// ParseVersion reads what servers report: "2.5.1-1083-rel-enterprise", "10.0",
// "1.8.0r-55-g80f24f2-enterprise". What follows the numbers is ignored, missing
// numbers are 0.
func ParseVersion(s string) (Version, error) {
	rest := strings.TrimPrefix(strings.TrimSpace(s), "v")
	var v Version
	for i, part := range []*int{&v.Major, &v.Minor, &v.Patch} {
		digits := 0
		for digits < len(rest) && '0' <= rest[digits] && rest[digits] <= '9' {
			digits++
		}
		n, err := strconv.ParseUint(rest[:digits], 10, 31)
		if err != nil {
			return Version{}, fmt.Errorf("%q is not a version number", clip(s, 60))
		}
		*part = int(n)
		rest = rest[digits:]
		dotted := strings.HasPrefix(rest, ".") && len(rest) > 1 && '0' <= rest[1] && rest[1] <= '9'
		if !dotted {
			if i == 0 && rest != "" && rest[0] != '.' && rest[0] != '-' {
				return Version{}, fmt.Errorf("%q is not a version number", clip(s, 60))
			}
			break
		}
		rest = rest[1:]
	}
	return v, nil
}

// AtLeast compares as numbers: 10.0 is at least 2.0.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func (v Version) less(o Version) bool {
	if v.Major != o.Major || v.Minor != o.Minor {
		return !v.AtLeast(o.Major, o.Minor)
	}
	return v.Patch < o.Patch
}

// String returns "2.5.1", or "unknown" for the zero Version.
func (v Version) String() string {
	if v == (Version{}) {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}
