package cbb

import (
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// TimeFormat is the form of a run's time in the names of folders, in UTC.
const TimeFormat = "2006-01-02T150405Z"

// Mode says what a part of a chain holds.
type Mode string

// The modes of a part.
const (
	Full Mode = "full" // everything
	Diff Mode = "diff" // what changed since the part before
	Accu Mode = "accu" // what changed since the full part
)

// Staging is what the name of a folder begins with that holds a backup which is
// not complete. UnfinishedPart is the name of the part in it until it is complete.
//
// The Python tools read the folder of a backup that was changed last, whatever its
// name, and in it the part with "full" in its name. So that they never take what is
// not complete, the part has another name, and the folder around it an old time.
const (
	Staging        = ".incomplete-"
	UnfinishedPart = "unfinished"
)

// Names of the files in the folder of a node and of a bucket.
const (
	MetaFile     = "meta.json"
	SeqnoFile    = "seqno.json"
	FailoverFile = "failover.json"
	SnapshotFile = "snapshot_markers.json"
	SumsFile     = "SHA256SUMS"
	// ChainFile is of cbpump alone and names the earlier parts. MetaFile is the
	// tools' place for that, but they never write anything into it: where there is
	// something, they read what it leads to in place of the parts that are there.
	ChainFile = "cbpump.json"

	DesignFile   = "design.json"
	IndexFile    = "index.json"
	FullTextFile = "fts_index.json"
)

const (
	bucketPrefix = "bucket-"
	nodePrefix   = "node-"
)

var (
	runName  = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}T\d{6}Z$`)
	partName = regexp.MustCompile(`^(\d{4}-\d{2}-\d{2}T\d{6}Z)-(full|diff|accu)$`)
	dataName = regexp.MustCompile(`^data-(\d{4,9})\.cbb$`)
)

// Quote writes a name of a bucket or node as it stands in the name of its folder.
func Quote(name string) string { return strings.ReplaceAll(url.QueryEscape(name), "~", "%7E") }

// unquote is the opposite of Quote; a name that was not quoted stays as it is.
func unquote(name string) string {
	if plain, err := url.QueryUnescape(name); err == nil {
		return plain
	}
	return name
}

// BucketFolder and NodeFolder return the names of the folders of a bucket and a node.
func BucketFolder(bucket string) string { return bucketPrefix + Quote(bucket) }

// NodeFolder returns the name of the folder of a node.
func NodeFolder(node string) string { return nodePrefix + Quote(node) }

// DataName returns the name of data file number n of a node.
func DataName(n int) string {
	digits := strconv.Itoa(n)
	return "data-" + strings.Repeat("0", max(0, 4-len(digits))) + digits + ".cbb"
}

// PartFolder returns the name of the folder of a part.
func PartFolder(t time.Time, m Mode) string { return t.UTC().Format(TimeFormat) + "-" + string(m) }

// appendVBuckets writes {"0": v, "1": v} with the vbuckets in order, spaced as
// the Python tools space it.
func appendVBuckets(b []byte, value map[uint16]uint64) []byte {
	vbs := make([]uint16, 0, len(value))
	for vb := range value {
		vbs = append(vbs, vb)
	}
	slices.Sort(vbs)
	b = append(b, '{')
	for i, vb := range vbs {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, '"')
		b = strconv.AppendUint(b, uint64(vb), 10)
		b = append(b, `": `...)
		b = strconv.AppendUint(b, value[vb], 10)
	}
	return append(b, '}')
}

// SeqnoJSON returns the contents of seqno.json: the highest sequence number of
// each vbucket.
func SeqnoJSON(highest map[uint16]uint64) []byte { return appendVBuckets(nil, highest) }

// MetaJSON returns the contents of a file that names the earlier parts.
func MetaJSON(pred []string) []byte {
	b := []byte(`{"pred": [`)
	for i, p := range pred {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendQuote(b, p) // the names of parts are plain ASCII
	}
	return append(b, "]}"...)
}

// IsFull reports whether the name of a part is that of a full backup.
func IsFull(part string) bool { return strings.HasSuffix(part, "-"+string(Full)) }

// About returns the rows of cbb_meta that describe where a data file comes from,
// under the keys of the Python tools. Theirs copy the cluster's answers, and
// source_map.json the user and password of the command line; ours hold names.
func About(bucket, node string, began time.Time) []Entry {
	name := func(s string) string { // a JSON string
		b, _ := json.Marshal(s) // a string always has a JSON form
		return string(b)
	}
	source := `{"name": ` + name(bucket) + `, "nodes": [{"hostname": ` + name(node) + `}]}`
	return []Entry{
		{"source_bucket.json", source},
		{"source_node.json", `{"buckets": [` + source + `]}`}, // from 3.0 on; up to 2.x it was the node alone
		{"source_map.json", `{"buckets": [` + source + `]}`},
		{"start.datetime", began.UTC().Format("2006/01/02-15:04:05")},
	}
}
