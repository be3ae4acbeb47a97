package simcluster

import (
	"fmt"
	"strconv"
	"strings"
)

// release is a server version as a number that compares: 2.5 is 205, 6.6 is 606.
type release int

// Versions from which on something is different.
const (
	rel30 release = 300
	rel46 release = 406
	rel50 release = 500
	rel55 release = 505
	rel60 release = 600
	rel65 release = 605
	rel66 release = 606
	rel70 release = 700
	rel76 release = 706
)

// releases are the full version strings of the versions that people name.
var releases = map[string]string{
	"2.5.1": "2.5.1-1083-rel-enterprise", "2": "2.5.1-1083-rel-enterprise",
	"3.0.3": "3.0.3-1716-rel-enterprise", "3": "3.0.3-1716-rel-enterprise",
	"4.0": "4.0.0-4051-enterprise", "4.0.0": "4.0.0-4051-enterprise", "4": "4.0.0-4051-enterprise",
	"4.6": "4.6.5-4742-enterprise", "4.6.5": "4.6.5-4742-enterprise",
	"6.0": "6.0.4-3082-enterprise", "6.0.4": "6.0.4-3082-enterprise",
	"6.6": "6.6.5-10080-enterprise", "6.6.5": "6.6.5-10080-enterprise",
	"7.0": "7.0.5-7659-enterprise", "7.0.5": "7.0.5-7659-enterprise",
	"7.6": "7.6.0-2176-enterprise", "7.6.0": "7.6.0-2176-enterprise",
}

// parseVersion finds whose quirks to play and the full version string.
func parseVersion(v string) (rel release, full string, err error) {
	full = releases[v]
	if full == "" {
		full = v
	}
	number, _, _ := strings.Cut(full, "-")
	parts := strings.Split(number, ".")
	major, err := strconv.Atoi(parts[0])
	minor := 0
	if err == nil && len(parts) > 1 {
		minor, err = strconv.Atoi(parts[1])
	}
	if err != nil || major < 2 || major > 8 || minor < 0 || minor > 99 {
		return 0, "", fmt.Errorf("simcluster: version %q is not played; 2.5.1, 3.0.3, 4.0, 4.6, 6.0.4, 6.6.5, 7.0.5 and 7.6 are", v)
	}
	return release(major*100 + minor), full, nil
}

// major is the first number of the version.
func (r release) major() int { return int(r) / 100 }

// compatibility is clusterCompatibility as REST documents give it.
func (r release) compatibility() int {
	if r.major() == 2 {
		return 2<<16 + 5
	}
	return r.major()<<16 + int(r)%100
}

// hasTap: TAP ended with 4.6.
func (r release) hasTap() bool { return r < rel50 }

// hasDCP: DCP began with 3.0.
func (r release) hasDCP() bool { return r >= rel30 }

// hasUsers: accounts with roles in place of a password per bucket.
func (r release) hasUsers() bool { return r >= rel50 }

// hasCollections: scopes and collections.
func (r release) hasCollections() bool { return r >= rel70 }
