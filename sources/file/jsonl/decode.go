package jsonl

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// field is a bit for each field of a line, to find those that come twice.
type field uint16

const (
	fOp field = 1 << iota
	fVB
	fCollection
	fKey
	fValue
	fFlags
	fExpiry
	fCAS
	fRev
	fSeqno
	fDatatype
	fMeta
	fReason
	fReasonCode
)

// Fields of the first line.
const (
	fFormat field = 1 << iota
	fVersion
)

// text is a JSON string as it stands in the line, without its quotes: where it is
// there, so that it fits into registers. It was found to be valid.
type text struct {
	at, end int // end is 0 where there is none
	escaped bool
	b64     bool
}

func (d *decoder) raw(v text) []byte { return d.line[v.at:v.end] }

// decoder reads lines. It keeps nothing of one but its scratch memory.
type decoder struct {
	line    []byte
	at      int
	scratch []byte
	known   map[string]*pump.Collection
}

// maxCollections bounds what is kept to share one value between the items of a
// collection. No cluster has more.
const maxCollections = 10000

// Head reads the first line.
func (d *decoder) Head(p []byte, last bool) (int, error) {
	if bytes.HasPrefix(p, []byte("\xef\xbb\xbf")) {
		return 0, fileio.Faultf(0, "the file begins with a byte order mark, which JSON lines do not have")
	}
	if d.line, d.at = p, 0; len(p) > 0 {
		d.skipSpace()
		if d.at < len(p) && p[d.at] != '{' {
			return 0, notOurs(d.at)
		}
	}
	n, err := d.cut(p, last)
	if err != nil {
		return 0, err
	}
	var seen field
	d.skipSpace()
	if d.at == len(d.line) {
		return 0, notOurs(d.at)
	}
	err = d.object(func(name []byte, at int) error {
		switch string(name) {
		case "format":
			v, err := d.quoted("format")
			if err == nil && string(d.raw(v)) != "cbpump-jsonl" {
				err = notOurs(v.at)
			}
			if err != nil {
				return err
			}
			return d.once(&seen, fFormat, at, name)
		case "version":
			d.skipSpace()
			vat := d.at
			v, err := d.number("version", 1<<32-1)
			if err == nil && v != 1 {
				err = &fileio.Fault{At: vat, Err: fmt.Errorf("this is version %d of the format, and this program knows version 1", v),
					Hint: "A newer cbpump reads it."}
			}
			if err != nil {
				return err
			}
			return d.once(&seen, fVersion, at, name)
		}
		return d.unknown(name, at)
	})
	if err == nil && seen != fFormat|fVersion {
		err = notOurs(0)
	}
	return n, err
}

func notOurs(at int) error {
	return &fileio.Fault{At: at, Err: errors.New(`the first line is not {"format":"cbpump-jsonl","version":1}`),
		Hint: "This is no file that cbpump wrote, or its first line is missing."}
}

// cut finds the line at the beginning of p, and returns what it takes with its end.
func (d *decoder) cut(p []byte, last bool) (int, error) {
	n := bytes.IndexByte(p, '\n')
	switch {
	case n < 0 && last && len(p) == 0:
		return 0, fileio.Faultf(0, "the file is empty: it has not even its first line")
	case n < 0 && last:
		return 0, &fileio.Fault{At: len(p), Err: errors.New("the last line has no line end: the file is cut off"),
			Hint: "If it is whole all the same, append a line end."}
	case n < 0:
		return 0, fileio.ErrMore
	}
	d.line, d.at = p[:n], 0
	return n + 1, nil
}

// Next reads one line into the batch.
func (d *decoder) Next(p []byte, last bool, b *pump.Batch) (int, error) {
	n, err := d.cut(p, last)
	if err != nil {
		return 0, err
	}
	it := pump.Item{VBucket: pump.NoVBucket}
	var key, value, meta text
	if err := d.item(&it, &key, &value, &meta); err != nil {
		return 0, err
	}
	if len(b.Items) > 0 && key.end-key.at+value.end-value.at+meta.end-meta.at > b.Free() {
		return 0, fileio.ErrFull
	}
	if it.Key, err = d.bytes(key, b); err != nil {
		return 0, err
	}
	if it.Value, err = d.bytes(value, b); err != nil {
		return 0, err
	}
	if it.Meta, err = d.bytes(meta, b); err != nil {
		return 0, err
	}
	if len(it.Key) == 0 {
		return 0, fileio.Faultf(key.at, "the key is empty")
	}
	*b.Append() = it
	return n, nil
}

// item reads all fields; the bytes of key, value and meta stay where they are.
func (d *decoder) item(it *pump.Item, key, value, meta *text) error {
	var seen field
	d.skipSpace()
	if d.at == len(d.line) {
		return d.fault("the line is empty")
	}
	if d.line[d.at] != '{' {
		return d.fault("a line is an object: { is due")
	}
	d.at++
	for first := true; ; first = false {
		name, at, more, err := d.name(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if err := d.field(name, at, &seen, it, key, value, meta); err != nil {
			return err
		}
	}
	switch {
	case seen&fOp == 0:
		return d.fault(`the field "op" is missing`)
	case seen&fKey == 0:
		return d.fault(`the field "key" or "key_b64" is missing`)
	}
	return nil
}

func (d *decoder) field(name []byte, at int, seen *field, it *pump.Item, key, value, meta *text) (err error) {
	var is field
	switch string(name) {
	case "op":
		is = fOp
		var v text
		if v, err = d.quoted("op"); err != nil {
			return err
		}
		switch string(d.plain(v)) {
		case "mutation":
			it.Op = pump.Mutation
		case "deletion":
			it.Op = pump.Deletion
		case "expiration":
			it.Op = pump.Expiration
		default:
			return fileio.Faultf(v.at, `"op" is none of "mutation", "deletion" and "expiration"`)
		}
	case "vb":
		is = fVB
		var n uint64
		n, err = d.number("vb", uint64(pump.NoVBucket)-1)
		it.VBucket = uint16(n)
	case "collection":
		is = fCollection
		var v text
		if v, err = d.quoted("collection"); err == nil {
			it.Collection, err = d.collection(v)
		}
	case "key":
		is = fKey
		*key, err = d.quoted("key")
	case "key_b64":
		is = fKey
		*key, err = d.quoted("key_b64")
		key.b64 = true
	case "value":
		is = fValue
		*value, err = d.quoted("value")
	case "value_b64":
		is = fValue
		*value, err = d.quoted("value_b64")
		value.b64 = true
	case "flags":
		is = fFlags
		var n uint64
		n, err = d.number("flags", 1<<32-1)
		it.Flags = uint32(n)
	case "expiry":
		is = fExpiry
		var n uint64
		n, err = d.number("expiry", 1<<32-1)
		it.Expiry = uint32(n)
	case "cas":
		is = fCAS
		it.CAS, err = d.wide("cas")
	case "rev":
		is = fRev
		it.RevSeqno, err = d.wide("rev")
	case "seqno":
		is = fSeqno
		it.Seqno, err = d.wide("seqno")
	case "datatype":
		is = fDatatype
		var n uint64
		n, err = d.number("datatype", 255)
		it.Datatype = uint8(n)
	case "meta_b64":
		is = fMeta
		*meta, err = d.quoted("meta_b64")
		meta.b64 = true
	case "reason": // of a dead letter: why a destination refused the item
		is = fReason
		_, err = d.quoted("reason")
	case "reason_code":
		is = fReasonCode
		_, err = d.quoted("reason_code")
	default:
		return d.unknown(name, at)
	}
	if err != nil {
		return err
	}
	return d.once(seen, is, at, name)
}

func (d *decoder) once(seen *field, is field, at int, name []byte) error {
	if *seen&is != 0 {
		return fileio.Faultf(at, "the field %q, or its twin, is there twice", name)
	}
	*seen |= is
	return nil
}

func (d *decoder) unknown(name []byte, at int) error {
	const most = 40
	if len(name) > most {
		name = name[:most]
	}
	f := &fileio.Fault{At: at, Err: fmt.Errorf("there is no field %q in version 1 of the format", name)}
	if string(name) == "format" { // an item has none
		f.Hint = "If this is the first line of another file, leave it out: where files are put together only one begins with it."
	}
	return f
}

// object reads an object and asks f for the value of each field.
func (d *decoder) object(f func(name []byte, at int) error) error {
	d.at++
	for first := true; ; first = false {
		name, at, more, err := d.name(first)
		if err != nil || !more {
			return err
		}
		if err := f(name, at); err != nil {
			return err
		}
	}
}

// name reads the name of the next field and the colon; more is false at the end
// of the object, behind which nothing may come.
func (d *decoder) name(first bool) (name []byte, at int, more bool, err error) {
	d.skipSpace()
	if d.at < len(d.line) && d.line[d.at] == '}' {
		d.at++
		d.skipSpace()
		if d.at < len(d.line) {
			return nil, 0, false, d.fault("something comes after the object")
		}
		return nil, 0, false, nil
	}
	if !first {
		if d.at == len(d.line) || d.line[d.at] != ',' {
			return nil, 0, false, d.fault("a comma or } is due")
		}
		d.at++
		d.skipSpace()
	}
	if d.at == len(d.line) || d.line[d.at] != '"' {
		return nil, 0, false, d.fault("the name of a field is due, in quotes")
	}
	v, err := d.str()
	if err != nil {
		return nil, 0, false, err
	}
	d.skipSpace()
	if d.at == len(d.line) || d.line[d.at] != ':' {
		return nil, 0, false, d.fault("a colon is due")
	}
	d.at++
	return d.plain(v), v.at, true, nil
}

func (d *decoder) skipSpace() {
	for d.at < len(d.line) {
		if c := d.line[d.at]; c != ' ' && c != '\t' && c != '\r' {
			return
		}
		d.at++
	}
}

func (d *decoder) fault(what string) error { return fileio.Faultf(d.at, "%s", what) }

// number reads a whole number that is at most limit.
func (d *decoder) number(name string, limit uint64) (uint64, error) {
	d.skipSpace()
	from := d.at
	for d.at < len(d.line) && strings.IndexByte(",} \t\r", d.line[d.at]) < 0 {
		d.at++
	}
	n, ok := fileio.Uint(d.line[from:d.at], limit)
	if !ok {
		return 0, fileio.Faultf(from, "%q is not a whole number from 0 to %d", name, limit)
	}
	return n, nil
}

// wide reads a 64-bit number, which is a string of digits.
func (d *decoder) wide(name string) (uint64, error) {
	v, err := d.quoted(name)
	if err != nil {
		return 0, err
	}
	n, ok := fileio.Uint(d.plain(v), 1<<64-1)
	if !ok {
		return 0, fileio.Faultf(v.at, "%q is not a string with a decimal number of 64 bits", name)
	}
	return n, nil
}

// quoted reads the string that is the value of a field.
func (d *decoder) quoted(name string) (text, error) {
	d.skipSpace()
	if d.at == len(d.line) || d.line[d.at] != '"' {
		return text{}, fileio.Faultf(d.at, "%q is not a string", name)
	}
	return d.str()
}

// plain returns a short string without its escapes.
func (d *decoder) plain(v text) []byte {
	if !v.escaped {
		return d.raw(v)
	}
	d.scratch = unescape(d.scratch[:0], d.raw(v))
	return d.scratch
}

// bytes puts what a string stands for into the batch's arena.
func (d *decoder) bytes(v text, b *pump.Batch) ([]byte, error) {
	switch {
	case v.end == 0:
		return nil, nil
	case !v.b64 && !v.escaped:
		return b.Copy(d.raw(v)), nil
	case !v.b64:
		return unescape(b.Alloc(v.end - v.at)[:0], d.raw(v)), nil
	}
	raw := d.plain(v)
	// The library skips line ends within base64.
	if i := bytes.IndexAny(raw, "\r\n"); v.escaped && i >= 0 {
		return nil, fileio.Faultf(v.at, "this is not base64")
	}
	dst := b.Alloc(base64.StdEncoding.DecodedLen(len(raw)))
	n, err := base64.StdEncoding.Strict().Decode(dst, raw)
	var wrong base64.CorruptInputError
	if errors.As(err, &wrong) {
		return nil, fileio.Faultf(v.at+int(wrong), "this is not base64 (with + and /, padded with =)")
	}
	return dst[:n:n], err
}

func (d *decoder) collection(v text) (*pump.Collection, error) {
	raw := d.plain(v)
	if c, ok := d.known[string(raw)]; ok {
		return c, nil
	}
	scope, name, ok := strings.Cut(string(raw), ".")
	if !ok || !collectionName(scope) || !collectionName(name) {
		return nil, fileio.Faultf(v.at, `"collection" is not a scope's name, a dot and a collection's name`)
	}
	if d.known == nil || len(d.known) >= maxCollections {
		d.known = make(map[string]*pump.Collection)
	}
	var c *pump.Collection // nil is the default collection
	if scope != "_default" || name != "_default" {
		c = &pump.Collection{Scope: scope, Name: name}
	}
	d.known[string(raw)] = c
	return c, nil
}

// collectionName says whether a server takes the name: letters, digits, _, - and
// %, at most 251 of them.
func collectionName(s string) bool {
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '%') {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 251
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// odd marks in each byte of w whether it is a quote, a backslash, a control
// character or no ASCII. The lowest mark is right; those above it may be wrong.
func odd(w uint64) uint64 {
	quote, back := w^(ones*'"'), w^(ones*'\\')
	return ((quote-ones)&^quote | (back-ones)&^back | (w - ones*0x20) | w) & highs
}

// str reads a string, whose opening quote is at d.at, and checks all of it: only
// valid UTF-8, no control characters, no escape that stands for no character.
func (d *decoder) str() (text, error) {
	line, i := d.line, d.at+1
	v := text{at: i}
	for {
		for i+8 <= len(line) {
			if m := odd(binary.LittleEndian.Uint64(line[i:])); m != 0 {
				i += bits.TrailingZeros64(m) / 8
				break
			}
			i += 8
		}
		if i >= len(line) {
			return v, fileio.Faultf(i, "the string that begins at column %d has no end", v.at)
		}
		switch c := line[i]; {
		case c == '"':
			v.end, d.at = i, i+1
			return v, nil
		case c == '\\':
			v.escaped = true
			n := escapeLen(line[i:])
			if n == 0 {
				return v, fileio.Faultf(i, "this escape stands for no character")
			}
			i += n
		case c < 0x20:
			return v, fileio.Faultf(i, "a control character is not escaped")
		case c < utf8.RuneSelf:
			i++
		default:
			r, n := utf8.DecodeRune(line[i:])
			if r == utf8.RuneError && n <= 1 {
				return v, fileio.Faultf(i, "this is not UTF-8")
			}
			i += n
		}
	}
}

// escapeLen returns the length of the escape that p begins with; both halves of
// a surrogate pair count as one. 0 says that it stands for no character.
func escapeLen(p []byte) int {
	if len(p) < 2 {
		return 0
	}
	switch p[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	}
	r, ok := hex4(p)
	switch {
	case !ok:
		return 0
	case !utf16.IsSurrogate(r):
		return 6
	}
	low, ok := hex4(p[6:])
	if !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
		return 0
	}
	return 12
}

// hex4 reads \uXXXX.
func hex4(p []byte) (rune, bool) {
	if len(p) < 6 || p[0] != '\\' || p[1] != 'u' {
		return 0, false
	}
	r := rune(0)
	for _, c := range p[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// unescape appends what a string that str has checked stands for.
func unescape(dst, raw []byte) []byte {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(dst, raw...)
		}
		dst = append(dst, raw[:i]...)
		raw = raw[i:]
		switch c := raw[1]; c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r, _ := hex4(raw)
			if utf16.IsSurrogate(r) {
				low, _ := hex4(raw[6:])
				r = utf16.DecodeRune(r, low)
				raw = raw[6:]
			}
			dst = utf8.AppendRune(dst, r)
			raw = raw[4:]
		default:
			dst = append(dst, c)
		}
		raw = raw[2:]
	}
}
