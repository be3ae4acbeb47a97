// Package jsonl writes cbpump's interchange form: one JSON object a line, every
// field of an item, nothing lost. docs/files.md has the schema.
package jsonl

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of jsonl as a sink.
type Options struct {
	Overwrite bool `opt:"overwrite" default:"no" help:"let the new file take the place of one of that name, once it is complete"`
}

// Header is the first line of every file.
const Header = `{"format":"cbpump-jsonl","version":1}` + "\n"

// Plugin returns the declaration of jsonl as a sink.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes:    []string{"jsonl"},
		Extensions: []string{".jsonl", ".jsonl.gz", ".jsonl.zst"},
		Summary:    "a file with one JSON object a line, every field of an item; .gz and .zst are compressed",
		Doc: "jsonl:FILE, or a path that ends in .jsonl, .jsonl.gz or .jsonl.zst; jsonl:- is standard output. " +
			"The file is called FILE.partial until it is complete.",
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
		return nil, pump.Usagef("jsonl: names no file; write jsonl:FILE, or jsonl:- for standard output")
	}
	return &fileio.Sink{Path: path, Replace: o.Overwrite, Head: []byte(Header), Encode: Append}, nil
}

var (
	errNoKey      = errors.New("a jsonl file holds no item without a key")
	errOp         = errors.New("a jsonl file holds mutations, deletions and expirations only")
	errCollection = errors.New("a jsonl file holds no collection with such a name")
)

// Append appends the line of an item. Fields that are zero are left out, and
// the value of a mutation never is.
func Append(dst []byte, it *pump.Item) ([]byte, pump.Verdict, error) {
	switch {
	case len(it.Key) == 0:
		return dst, pump.Rejected, errNoKey
	case it.Collection != nil && !validCollection(it.Collection):
		return dst, pump.Rejected, errCollection
	}
	switch it.Op {
	case pump.Mutation:
		dst = append(dst, `{"op":"mutation"`...)
	case pump.Deletion:
		dst = append(dst, `{"op":"deletion"`...)
	case pump.Expiration:
		dst = append(dst, `{"op":"expiration"`...)
	default:
		return dst, pump.Rejected, errOp
	}
	if it.VBucket != pump.NoVBucket {
		dst = strconv.AppendUint(append(dst, `,"vb":`...), uint64(it.VBucket), 10)
	}
	if c := it.Collection; c != nil && (c.Scope != "_default" || c.Name != "_default") {
		dst = append(dst, `,"collection":"`...)
		dst = append(dst, c.Scope...)
		dst = append(dst, '.')
		dst = append(dst, c.Name...)
		dst = append(dst, '"')
	}
	dst = appendBytes(append(dst, `,"key`...), it.Key)
	if len(it.Value) > 0 || it.Op == pump.Mutation {
		dst = appendBytes(append(dst, `,"value`...), it.Value)
	}
	if it.Flags != 0 {
		dst = strconv.AppendUint(append(dst, `,"flags":`...), uint64(it.Flags), 10)
	}
	if it.Expiry != 0 {
		dst = strconv.AppendUint(append(dst, `,"expiry":`...), uint64(it.Expiry), 10)
	}
	if it.CAS != 0 {
		dst = append(strconv.AppendUint(append(dst, `,"cas":"`...), it.CAS, 10), '"')
	}
	if it.RevSeqno != 0 {
		dst = append(strconv.AppendUint(append(dst, `,"rev":"`...), it.RevSeqno, 10), '"')
	}
	if it.Seqno != 0 {
		dst = append(strconv.AppendUint(append(dst, `,"seqno":"`...), it.Seqno, 10), '"')
	}
	if it.Datatype != 0 {
		dst = strconv.AppendUint(append(dst, `,"datatype":`...), uint64(it.Datatype), 10)
	}
	if len(it.Meta) > 0 {
		dst = base64.StdEncoding.AppendEncode(append(dst, `,"meta_b64":"`...), it.Meta)
		dst = append(dst, '"')
	}
	return append(dst, '}', '\n'), pump.Done, nil
}

// AppendRejected appends the line of an item that a destination refused: that of
// Append, with the reason and its code (pump.CodeOf) behind it.
func AppendRejected(dst []byte, it *pump.Item, reason, code string) ([]byte, error) {
	out, _, err := Append(dst, it)
	if err != nil {
		return dst, err
	}
	out = out[:len(out)-len("}\n")]
	for _, f := range [...]struct{ name, text string }{{"reason", reason}, {"reason_code", code}} {
		out = append(append(out, `,"`...), f.name...)
		out = appendBytes(out, []byte(strings.ToValidUTF8(f.text, "?")))
	}
	return append(out, '}', '\n'), nil
}

func validCollection(c *pump.Collection) bool {
	for _, name := range [...]string{c.Scope, c.Name} {
		if name == "" || len(name) > 251 || strings.ContainsFunc(name, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' || r == '%')
		}) {
			return false
		}
	}
	return true
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
	hex   = "0123456789abcdef"
)

// appendBytes goes on behind `"name`: with `":"text"` if p is valid UTF-8, else
// with `_b64":"…"`.
func appendBytes(dst, p []byte) []byte {
	i := plainPrefix(p)
	if i < len(p) && !utf8.Valid(p[i:]) {
		dst = base64.StdEncoding.AppendEncode(append(dst, `_b64":"`...), p)
		return append(dst, '"')
	}
	dst = append(dst, `":"`...)
	for {
		dst = append(dst, p[:i]...)
		p = p[i:]
		if len(p) == 0 {
			return append(dst, '"')
		}
		n := 1
		switch c := p[0]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default: // text beyond ASCII, known to be valid
			for n = 1; n < len(p) && p[n] >= utf8.RuneSelf; n++ {
			}
			dst = append(dst, p[:n]...)
		}
		p = p[n:]
		i = plainPrefix(p)
	}
}

// plainPrefix returns how many bytes at the beginning of p stand for themselves
// in JSON: ASCII without quote, backslash and control characters.
func plainPrefix(p []byte) int {
	i := 0
	for ; i+8 <= len(p); i += 8 {
		w := binary.LittleEndian.Uint64(p[i:])
		quote, back := w^(ones*'"'), w^(ones*'\\')
		// The lowest mark is right; those above it may be wrong.
		if m := ((quote-ones)&^quote | (back-ones)&^back | (w - ones*0x20) | w) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	for ; i < len(p); i++ {
		if c := p[i]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return i
}
