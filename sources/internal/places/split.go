package places

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"strconv"
	"strings"

	"github.com/cbpump/cbpump/pump"
)

// usualStreams is how many streams there are when the user did not say.
const usualStreams = 8

// Split deals vbuckets, which are sorted, out to want streams (0: as many as
// usual). It depends on nothing but their numbers: streams are called by their
// vbuckets, and a copy that goes on must find its streams again although vbuckets
// have moved to other nodes meanwhile. Neighbours stay together, since clusters
// place them so.
func Split(vbs []uint16, want int) [][]uint16 {
	if want <= 0 {
		want = usualStreams
	}
	want = min(want, len(vbs))
	parts := make([][]uint16, want)
	for i := range parts {
		from, to := i*len(vbs)/want, (i+1)*len(vbs)/want
		parts[i] = vbs[from:to:to]
	}
	return parts
}

// StreamID names a stream by scheme, bucket, collection ("" = all) and vbuckets,
// whatever their nodes.
func StreamID(scheme, bucket, collection string, vbs []uint16) string {
	h := fnv.New32a()
	for _, vb := range vbs {
		_, _ = h.Write([]byte{byte(vb >> 8), byte(vb)})
	}
	if collection != "" {
		bucket += "." + collection
	}
	return fmt.Sprintf("%s:%s:vb%s:%08x", scheme, bucket, Ranges(vbs), h.Sum32())
}

// First returns the node that a stream is to begin with, "" where none of its
// vbuckets is both wanted and active. Streams that have vbuckets on several nodes
// begin with different ones: turn is the stream's number.
func (l *Layout) First(vbs []uint16, turn int, wanted func(vb uint16) bool) string {
	for i := range vbs {
		vb := vbs[(i+turn)%len(vbs)]
		if addr, ok := l.Active[vb]; ok && wanted(vb) {
			return addr
		}
	}
	return ""
}

// List writes vbuckets for a message: "vbucket 5", "vbuckets 0-31,40". They must be
// sorted.
func List(vbs []uint16) string {
	if len(vbs) == 1 {
		return "vbucket " + strconv.Itoa(int(vbs[0]))
	}
	return "vbuckets " + Ranges(vbs)
}

// Ranges writes a sorted list as "0-31,40"; long ones are cut short.
func Ranges(vbs []uint16) string {
	const most = 8
	var b strings.Builder
	for i, n := 0, 0; i < len(vbs); n++ {
		j := i
		for j+1 < len(vbs) && vbs[j+1] == vbs[j]+1 {
			j++
		}
		if n == most {
			fmt.Fprintf(&b, " and %d more", len(vbs)-i)
			break
		}
		if n > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(vbs[i])))
		if j > i {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(vbs[j])))
		}
		i = j + 1
	}
	return b.String()
}

// kvPort is where nodes listen.
const kvPort = 11210

// NodeAddr completes the host[:port] of one node's address, scheme://host[:port].
// mine is false for an address of another scheme.
func NodeAddr(scheme, address string) (addr string, mine bool, err error) {
	have, rest, ok := strings.Cut(address, "://")
	if !ok || !strings.EqualFold(have, scheme) {
		return "", false, nil
	}
	if strings.ContainsRune(rest, '@') {
		return "", true, pump.Usagef("%s://: give user and password as options, not in the address", scheme)
	}
	rest = strings.TrimSuffix(rest, "/")
	host, port, err := net.SplitHostPort(rest)
	var missing *net.AddrError
	if errors.As(err, &missing) && missing.Err == "missing port in address" {
		host, port, err = strings.Trim(rest, "[]"), strconv.Itoa(kvPort), nil
	}
	if err != nil || host == "" || strings.ContainsAny(host, "/?#,") {
		return "", true, pump.Usagef("%s://%s: one node is %s://host:%d, with an IPv6 address in brackets", scheme, rest, scheme, kvPort)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", true, pump.Usagef("%s://%s: the port is not between 1 and 65535", scheme, rest)
	}
	return net.JoinHostPort(host, port), true, nil
}
