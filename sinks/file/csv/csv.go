// Package csv writes items as RFC 4180: a row that names the columns, CRLF, text
// in UTF-8. What CSV cannot hold (deletions, other bytes than text, items of
// collections) is rejected by name, never dropped; docs/files.md lists it.
package csv

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strconv"
	"unicode/utf8"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of csv as a sink.
type Options struct {
	Encoding  string `opt:"encoding" default:"text" enum:"text,base64" help:"how id and value are written; text refuses items that are not UTF-8"`
	Deletions string `opt:"deletions" default:"reject" enum:"reject,skip" help:"what becomes of deletions, for which CSV has no place: rejected, or skipped by policy; both are counted"`
	Overwrite bool   `opt:"overwrite" default:"no" help:"let the new file take the place of one of that name, once it is complete"`
}

// Header is the first row of every file.
const Header = "id,flags,expiration,cas,value,rev,vbid,dtype\r\n"

// Plugin returns the declaration of csv as a sink.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes:    []string{"csv"},
		Extensions: []string{".csv", ".csv.gz", ".csv.zst"},
		Summary:    "an RFC 4180 file with the columns id, flags, expiration, cas, value, rev, vbid, dtype",
		Doc: "csv:FILE, or a path that ends in .csv, .csv.gz or .csv.zst; csv:- is standard output. " +
			"Deletions, items of collections and, unless encoding=base64, items that are not UTF-8 are rejected by name. The file is called FILE.partial until it is complete.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Sink, error) {
			s, err := New(fileio.Path(t), o)
			if err != nil {
				return nil, err
			}
			s.Log = t.Log
			return s, nil
		},
	}
}

// New returns a sink that writes a file; "-" is standard output.
func New(path string, o Options) (*fileio.Sink, error) {
	if path == "" {
		return nil, pump.Usagef("csv: names no file; write csv:FILE, or csv:- for standard output")
	}
	return &fileio.Sink{Path: path, Replace: o.Overwrite, Head: []byte(Header), Encode: o.append, Loses: fileio.Seqno | fileio.Meta}, nil
}

var (
	errDeletion   = errors.New("CSV has no place for deletions")
	errCollection = errors.New("CSV has no place for the collection of an item")
	errNoKey      = errors.New("a CSV file holds no item without a key")
	errKey        = errors.New("the key is not UTF-8 or holds NUL, which CSV does not take; -x encoding=base64 writes any bytes")
	errValue      = errors.New("the value is not UTF-8 or holds NUL, which CSV does not take; -x encoding=base64 writes any bytes")
)

func (o Options) append(dst []byte, it *pump.Item) ([]byte, pump.Verdict, error) {
	text := o.Encoding != "base64"
	switch {
	case it.Op != pump.Mutation && o.Deletions == "skip":
		return dst, pump.Skipped, errDeletion
	case it.Op != pump.Mutation:
		return dst, pump.Rejected, errDeletion
	case it.Collection != nil && (it.Collection.Scope != "_default" || it.Collection.Name != "_default"):
		return dst, pump.Rejected, errCollection
	case len(it.Key) == 0:
		return dst, pump.Rejected, errNoKey
	case text && !isText(it.Key):
		return dst, pump.Rejected, errKey
	case text && !isText(it.Value):
		return dst, pump.Rejected, errValue
	}
	dst = o.cell(dst, it.Key)
	for _, n := range [...]uint64{uint64(it.Flags), uint64(it.Expiry), it.CAS} {
		dst = strconv.AppendUint(append(dst, ','), n, 10)
	}
	dst = o.cell(append(dst, ','), it.Value)
	dst = append(strconv.AppendUint(append(dst, ','), it.RevSeqno, 10), ',')
	if it.VBucket != pump.NoVBucket {
		dst = strconv.AppendUint(dst, uint64(it.VBucket), 10)
	}
	dst = strconv.AppendUint(append(dst, ','), uint64(it.Datatype), 10)
	return append(dst, '\r', '\n'), pump.Done, nil
}

func isText(p []byte) bool { return utf8.Valid(p) && bytes.IndexByte(p, 0) < 0 }

// cell appends an id or a value, in quotes where it must be, or where readers
// are known to trim.
func (o Options) cell(dst, p []byte) []byte {
	switch {
	case len(p) == 0:
		return dst
	case o.Encoding == "base64":
		return base64.StdEncoding.AppendEncode(dst, p)
	case !bytes.ContainsAny(p, ",\"\r\n") && p[0] != ' ' && p[0] != '\t' && p[len(p)-1] != ' ' && p[len(p)-1] != '\t':
		return append(dst, p...)
	}
	dst = append(dst, '"')
	for {
		i := bytes.IndexByte(p, '"')
		if i < 0 {
			return append(append(dst, p...), '"')
		}
		dst = append(append(dst, p[:i]...), '"', '"')
		p = p[i+1:]
	}
}
