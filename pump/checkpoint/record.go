package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// format is the version of the file. A program reads only the one that it writes.
const format = 1

// The first line: magic, version, CRC-32C of what follows in hexadecimal digits,
// its length in bytes.
const (
	magic      = "cbpump-checkpoint"
	headFormat = magic + " %d %08x %d\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Field is one thing that decides what is copied where.
type Field struct {
	Name  string `json:"name"`            // "source", "option rehash"
	Value string `json:"value"`           // what must be the same: a uuid, an address; never a secret
	Shown string `json:"shown,omitempty"` // how a message shows it; "" shows nothing but the name
}

// record is the content of a checkpoint.
type record struct {
	Written  time.Time   `json:"written"` // for people; nothing depends on it
	Runs     int         `json:"runs"`
	Finished bool        `json:"finished"`
	Counts   pump.Counts `json:"counts"`
	Belongs  []Field     `json:"belongs_to"`
	VBuckets []mark      `json:"vbuckets,omitempty"` // in ascending order
	Streams  []mark      `json:"streams,omitempty"`  // by their names
}

// mark is a pump.Mark.
type mark struct {
	// Stream is the stream's ID as a Go string literal in ASCII, "" in the list of
	// vbuckets: an ID may hold any bytes, since it may hold the name of a file.
	Stream   string `json:"stream,omitempty"`
	VBucket  uint16 `json:"vbucket"`
	Seqno    uint64 `json:"seqno"`
	Complete bool   `json:"complete,omitempty"`
	Items    uint64 `json:"items,omitempty"`
	State    []byte `json:"state,omitempty"`
}

func (m *mark) mark() pump.Mark {
	return pump.Mark{VBucket: m.VBucket, Seqno: m.Seqno, Complete: m.Complete, Items: m.Items, State: m.State}
}

func markOf(stream string, m pump.Mark) mark {
	out := mark{VBucket: m.VBucket, Seqno: m.Seqno, Complete: m.Complete, Items: m.Items, State: m.State}
	if m.VBucket == pump.NoVBucket {
		out.Stream = strconv.QuoteToASCII(stream)
	}
	return out
}

// progress is what a checkpoint says of streams and vbuckets.
type progress struct {
	vbuckets map[uint16]pump.Mark
	streams  map[string]pump.Mark
}

func newProgress() progress {
	return progress{vbuckets: make(map[uint16]pump.Mark), streams: make(map[string]pump.Mark)}
}

// any reports whether there is something to go on from.
func (p *progress) any() bool { return len(p.vbuckets)+len(p.streams) > 0 }

func (p *progress) add(stream string, m pump.Mark) {
	if m.VBucket == pump.NoVBucket {
		p.streams[stream] = m
	} else {
		p.vbuckets[m.VBucket] = m
	}
}

// encode returns the content of the file.
func encode(r record, p *progress) ([]byte, error) {
	for _, vb := range slices.Sorted(maps.Keys(p.vbuckets)) {
		r.VBuckets = append(r.VBuckets, markOf("", p.vbuckets[vb]))
	}
	for _, id := range slices.Sorted(maps.Keys(p.streams)) {
		r.Streams = append(r.Streams, markOf(id, p.streams[id]))
	}
	body, err := json.Marshal(&r)
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	head := fmt.Sprintf(headFormat, format, crc32.Checksum(body, castagnoli), len(body))
	return append([]byte(head), body...), nil
}

// What is wrong with a file that is no checkpoint of this program. The texts hold
// nothing of the file.
var (
	errForeign   = errors.New("it is no checkpoint")
	errTruncated = errors.New("it is cut off")
	errDamaged   = errors.New("it is damaged: its checksum does not agree with its content")
)

type versionError struct{ found int }

func (v versionError) Error() string {
	return fmt.Sprintf("it has format %d, and this program reads format %d", v.found, format)
}

// decode is the opposite of encode.
func decode(data []byte) (r record, p progress, err error) {
	line, body, ok := bytes.Cut(data, []byte("\n"))
	var version, length int
	var sum uint32
	if !ok {
		if bytes.HasPrefix(data, []byte(magic)) || bytes.HasPrefix([]byte(magic), data) {
			return r, p, errTruncated
		}
		return r, p, errForeign
	}
	if n, _ := fmt.Sscanf(string(line)+"\n", magic+" %d ", &version); n != 1 {
		return r, p, errForeign
	}
	if version != format {
		return r, p, versionError{version}
	}
	n, err := fmt.Sscanf(string(line)+"\n", headFormat, &version, &sum, &length)
	switch {
	// Only the one spelling is taken, so that a flipped bit never goes unseen.
	case err != nil || n != 3 || string(line)+"\n" != fmt.Sprintf(headFormat, version, sum, length):
		return r, p, errDamaged
	case len(body) < length:
		return r, p, errTruncated
	case len(body) > length || crc32.Checksum(body, castagnoli) != sum:
		return r, p, errDamaged
	}
	in := json.NewDecoder(bytes.NewReader(body))
	in.DisallowUnknownFields()
	if err := in.Decode(&r); err != nil {
		return record{}, p, errDamaged
	}
	p = newProgress()
	for _, m := range r.VBuckets {
		if m.VBucket == pump.NoVBucket {
			return record{}, p, errDamaged
		}
		p.add("", m.mark())
	}
	for _, m := range r.Streams {
		id, err := strconv.Unquote(m.Stream)
		if err != nil || m.VBucket != pump.NoVBucket {
			return record{}, p, errDamaged
		}
		p.add(id, m.mark())
	}
	r.VBuckets, r.Streams = nil, nil
	return r, p, nil
}
