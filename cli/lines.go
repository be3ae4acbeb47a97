package cli

import (
	"unicode/utf8"

	"github.com/cbpump/cbpump/pump"
)

// The lines of --json. Their fields are documented in docs/cbtransfer.md and
// docs/cbrecovery.md and stay as they are; new ones may be added.

type counters struct {
	Elapsed   float64 `json:"elapsed_s"`
	Read      uint64  `json:"read"`
	Done      uint64  `json:"done"`
	Skipped   uint64  `json:"skipped"`
	Rejected  uint64  `json:"rejected"`
	Pending   uint64  `json:"pending"`
	Filtered  uint64  `json:"filtered"`
	Retried   uint64  `json:"retried"`
	BytesRead uint64  `json:"bytes_read"`
	BytesDone uint64  `json:"bytes_done"`
}

func countersOf(s pump.Snapshot) counters {
	return counters{
		Elapsed: s.Elapsed.Seconds(), Read: s.Read, Done: s.Done, Skipped: s.Skipped, Rejected: s.Rejected,
		Pending: s.Pending(), Filtered: s.Filtered, Retried: s.Retried, BytesRead: s.BytesRead, BytesDone: s.BytesDone,
	}
}

type progressLine struct {
	Type string `json:"type"` // "progress"
	counters
	Total          uint64   `json:"items_total"` // 0: unknown
	Streams        int      `json:"streams"`
	StreamsDone    int      `json:"streams_done"`
	ItemsPerSecond float64  `json:"items_per_s"`
	BytesPerSecond float64  `json:"bytes_per_s"`
	Percent        *int     `json:"percent"` // null: unknown
	ETA            *float64 `json:"eta_s"`   // null: unknown
}

type warningLine struct {
	Type    string            `json:"type"` // "warning"
	Code    string            `json:"code,omitempty"`
	Message string            `json:"message"`
	Hint    string            `json:"hint,omitempty"`
	Logger  string            `json:"logger,omitempty"`
	Fields  map[string]string `json:"fields,omitempty"`
}

type rejectedLine struct {
	Type    string  `json:"type"` // "rejected"
	Op      string  `json:"op"`
	VBucket *uint16 `json:"vbucket"` // null: the source does not say
	keyField
	Reason string `json:"reason"`
}

// keyField holds a key, as text where it is UTF-8.
type keyField struct {
	Key    string `json:"key,omitempty"`
	KeyB64 []byte `json:"key_b64,omitempty"`
}

func keyOf(key []byte) keyField {
	if utf8.Valid(key) {
		return keyField{Key: string(key)}
	}
	return keyField{KeyB64: key}
}

func rejectedOf(op pump.Op, vb uint16, key []byte, why error) rejectedLine {
	l := rejectedLine{Type: "rejected", Op: op.String(), keyField: keyOf(key), Reason: plain(why)}
	if vb != pump.NoVBucket {
		l.VBucket = &vb
	}
	return l
}

type causeField struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	Count   uint64 `json:"count"`
}

func causesOf(r *pump.Report) []causeField {
	list := []causeField{} // [] rather than null
	for _, c := range r.Causes {
		list = append(list, causeField{c.Verdict.String(), plainText(c.Text), c.N})
	}
	return list
}

type streamField struct {
	ID       string `json:"id"`
	Complete bool   `json:"complete"`
	Error    string `json:"error,omitempty"`
}

func streamsOf(r *pump.Report) []streamField {
	list := []streamField{}
	for _, s := range r.StreamReports {
		list = append(list, streamField{s.ID, s.Err == nil, plain(s.Err)})
	}
	return list
}

// leftOutField is what a source defines and the destination has no place for.
type leftOutField struct {
	Kind  string `json:"kind"`
	Bytes int    `json:"bytes"`
}

func leftOutOf(r *pump.Report) []leftOutField {
	list := []leftOutField{}
	for _, d := range r.LeftOut {
		list = append(list, leftOutField{string(d.Kind), len(d.JSON)})
	}
	return list
}

// lossField is a part of items that the destination has no place for.
type lossField struct {
	Part  string `json:"part"`
	Items uint64 `json:"items"`
}

func lossesOf(r *pump.Report) []lossField {
	list := []lossField{}
	for _, l := range r.Losses {
		list = append(list, lossField{l.Part, l.Items})
	}
	return list
}

type errorLine struct {
	Type    string `json:"type"` // "error"
	Class   string `json:"class"`
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

var className = map[pump.Class]string{
	pump.ClassFailed: "failed", pump.ClassUsage: "usage", pump.ClassPartial: "partial",
	pump.ClassUnreachable: "unreachable", pump.ClassDenied: "denied", pump.ClassInterrupted: "interrupted",
}
