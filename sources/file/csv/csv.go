// Package csv reads items from RFC 4180 files whose first row names the columns:
// id, flags, expiration, cas, value, rev, vbid, dtype, in any order; only id and
// value must be there. docs/files.md says what each means.
//
// Text comes back to the byte: nothing is trimmed, guessed or taken for a number.
// What is not exactly CSV in UTF-8 is an error with file, line and column.
package csv

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of csv as a source.
type Options struct {
	Encoding  string    `opt:"encoding" default:"text" enum:"text,base64,raw" help:"what id and value are: text in UTF-8, base64 of any bytes, or raw: the bytes as they stand, which are no UTF-8 in exports of older tools"`
	MaxRecord pump.Size `opt:"max-record" default:"128m" help:"most bytes of one row"`
}

// Plugin returns the declaration of csv as a source.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes:    []string{"csv"},
		Extensions: []string{".csv", ".csv.gz", ".csv.zst"},
		Summary:    "an RFC 4180 file whose first row names the columns id, flags, expiration, cas, value, rev, vbid, dtype",
		Doc:        "csv:FILE, or a path that ends in .csv, .csv.gz or .csv.zst; csv:- is standard input. Columns may be in any order, all but id and value may be missing.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Source, error) {
			return New(fileio.Path(t), o)
		},
	}
}

// New returns a source that reads a file; "-" is standard input.
func New(path string, o Options) (*fileio.Source, error) {
	if path == "" {
		return nil, pump.Usagef("csv: names no file; write csv:FILE, or csv:- for standard input")
	}
	if o.MaxRecord < 1024 {
		return nil, pump.Usagef("csv: max-record is below 1k")
	}
	return &fileio.Source{
		Format: "csv", Path: path, Limit: int(o.MaxRecord),
		New: func() fileio.Parser { return &parser{encoding: o.Encoding} },
	}, nil
}

// column is a column that a file may have.
type column uint8

const (
	cID column = iota
	cFlags
	cExpiration
	cCAS
	cValue
	cRev
	cVBID
	cDtype
	columns
)

var names = [columns]string{"id", "flags", "expiration", "cas", "value", "rev", "vbid", "dtype"}

// limits are the largest numbers of the columns that hold numbers.
var limits = [columns]uint64{
	cFlags: 1<<32 - 1, cExpiration: 1<<32 - 1, cCAS: 1<<64 - 1, cRev: 1<<64 - 1, cVBID: uint64(pump.NoVBucket), cDtype: 255,
}

// cell is a cell as it stands in the row, without its quotes.
type cell struct {
	raw     []byte
	at      int
	doubled bool // quotes stand doubled in it
}

type parser struct {
	encoding string
	order    []column
	cells    []cell
	scratch  []byte
}

const byteOrderMark = "\xef\xbb\xbf"

// Head reads the row that names the columns.
func (r *parser) Head(p []byte, last bool) (int, error) {
	skip := 0
	if len(p) < len(byteOrderMark) && !last {
		return 0, fileio.Need(len(byteOrderMark))
	}
	if bytes.HasPrefix(p, []byte(byteOrderMark)) {
		skip = len(byteOrderMark) // spreadsheets write one
	}
	if len(p) == skip && last {
		return 0, fileio.Faultf(skip, "the file is empty: the row that names the columns is missing")
	}
	n, err := r.row(p, skip, last)
	if err != nil {
		return 0, err
	}
	var have [columns]bool
	for _, c := range r.cells {
		name := string(r.plain(c))
		is := column(0)
		for is < columns && names[is] != name {
			is++
		}
		switch {
		case is == columns:
			const most = 40
			if len(name) > most {
				name = name[:most] + "…"
			}
			return 0, &fileio.Fault{At: c.at, Err: fmt.Errorf("there is no column %q; columns are %s", name, strings.Join(names[:], ", ")), Hint: headHint(name)}
		case have[is]:
			return 0, fileio.Faultf(c.at, "the column %q is there twice", name)
		}
		have[is] = true
		r.order = append(r.order, is)
	}
	for _, must := range []column{cID, cValue} {
		if !have[must] {
			return 0, fileio.Faultf(skip, "the column %q is missing; the first row names the columns", names[must])
		}
	}
	return n, nil
}

// headHint is what to do about a first row with a name that is none of a column.
func headHint(name string) string {
	plain := strings.ToLower(strings.TrimSpace(name))
	switch {
	case strings.ContainsAny(name, ";\t"), strings.HasPrefix(plain, "sep="):
		return "Cells are separated by commas: save the table with them, and without a line in front of the names."
	case slices.Contains(names[:], plain):
		return "Write it " + plain + ", in small letters and without spaces."
	case plain == "":
		return "Remove the empty column."
	}
	return "A table with a column for each field of a document holds no items: it does not say which of its texts are numbers."
}

// numberHint is what to do about a cell that is no number as we write it.
func numberHint(cell []byte) string {
	if _, err := strconv.ParseFloat(string(cell[:min(len(cell), 64)]), 64); err == nil && bytes.ContainsAny(cell, ".eE") {
		return "A spreadsheet has rounded it. Load the column as text when you open the file, and save it anew."
	}
	return ""
}

// Next reads one row into the batch.
func (r *parser) Next(p []byte, last bool, b *pump.Batch) (int, error) {
	n, err := r.row(p, 0, last)
	if err != nil {
		return 0, err
	}
	if len(r.cells) == 1 && len(r.cells[0].raw) == 0 && n <= len("\r\n") {
		return 0, fileio.Faultf(0, "the line is empty; a row is due")
	}
	if len(r.cells) != len(r.order) {
		at := r.cells[len(r.cells)-1].at
		if len(r.cells) > len(r.order) {
			at = r.cells[len(r.order)].at
		}
		return 0, fileio.Faultf(at, "the row has %d cells, and there are %d columns", len(r.cells), len(r.order))
	}
	it := pump.Item{VBucket: pump.NoVBucket}
	var id, value cell
	for i, c := range r.cells {
		is := r.order[i]
		switch is {
		case cID:
			id = c
			continue
		case cValue:
			value = c
			continue
		}
		if len(c.raw) == 0 {
			continue // not known
		}
		v, ok := fileio.Uint(c.raw, limits[is])
		if !ok {
			return 0, &fileio.Fault{At: c.at, Err: fmt.Errorf("%s is not a whole number from 0 to %d", names[is], limits[is]), Hint: numberHint(c.raw)}
		}
		switch is {
		case cFlags:
			it.Flags = uint32(v)
		case cExpiration:
			it.Expiry = uint32(v)
		case cCAS:
			it.CAS = v
		case cRev:
			it.RevSeqno = v
		case cVBID:
			it.VBucket = uint16(v)
		case cDtype:
			it.Datatype = uint8(v)
		}
	}
	if len(id.raw) == 0 {
		return 0, fileio.Faultf(id.at, "the id is empty")
	}
	if len(b.Items) > 0 && len(id.raw)+len(value.raw) > b.Free() {
		return 0, fileio.ErrFull
	}
	if it.Key, err = r.bytes(id, b); err != nil {
		return 0, err
	}
	if it.Value, err = r.bytes(value, b); err != nil {
		return 0, err
	}
	*b.Append() = it
	return n, nil
}

// row finds the cells of the row that begins at p[at], and returns where the
// next one begins.
func (r *parser) row(p []byte, at int, last bool) (int, error) {
	r.cells = r.cells[:0]
	i := at
	for {
		c := cell{at: i}
		if i < len(p) && p[i] == '"' {
			end, err := quotedEnd(p, i, &c, last)
			if err != nil {
				return 0, err
			}
			i = end
		} else {
			for i < len(p) && p[i] != ',' && p[i] != '\n' && p[i] != '\r' {
				if p[i] == '"' {
					return 0, fileio.Faultf(i, "a quote within a cell that does not begin with one")
				}
				i++
			}
			c.raw = p[c.at:i]
			if i == len(p) {
				if !last {
					return 0, more(p)
				}
				return 0, &fileio.Fault{At: i, Err: errors.New("the last row has no line end: the file is cut off"),
					Hint: "If it is whole all the same, append a line end."}
			}
		}
		r.cells = append(r.cells, c)
		switch {
		case i == len(p): // behind a closing quote
			return i, r.check(p, at, i)
		case p[i] == ',':
			i++
			continue
		case p[i] == '\n':
			return i + 1, r.check(p, at, i)
		case p[i] == '\r' && i+1 < len(p) && p[i+1] == '\n':
			return i + 2, r.check(p, at, i)
		case p[i] == '\r' && i+1 == len(p) && !last:
			return 0, more(p)
		case p[i] == '\r':
			return 0, fileio.Faultf(i, "a carriage return without a line feed, outside quotes")
		}
		return 0, fileio.Faultf(i, "something comes between the closing quote and the comma")
	}
}

// more asks for more bytes of a row. A large one must grow by a part of its size,
// so that looking through it from its beginning again and again stays linear.
func more(p []byte) error {
	if len(p) < 1<<20 {
		return fileio.ErrMore
	}
	return fileio.Need(len(p) + len(p)/8)
}

// quotedEnd fills in the cell whose opening quote is at p[i], and returns what
// follows its closing quote.
func quotedEnd(p []byte, i int, c *cell, last bool) (int, error) {
	c.at = i + 1
	for j := i + 1; ; {
		k := bytes.IndexByte(p[j:], '"')
		switch {
		case k < 0 && last:
			return 0, fileio.Faultf(i, "the quote that opens here is not closed")
		case k < 0, j+k+1 == len(p) && !last: // another quote may follow
			return 0, more(p)
		}
		j += k + 1
		if j == len(p) || p[j] != '"' {
			c.raw = p[c.at : j-1]
			return j, nil
		}
		c.doubled = true
		j++
	}
}

// check refuses bytes that no cell may have.
func (r *parser) check(p []byte, from, to int) error {
	if i := bytes.IndexByte(p[from:to], 0); i >= 0 {
		return fileio.Faultf(from+i, "a NUL byte; CSV is text")
	}
	if r.encoding == "raw" || utf8.Valid(p[from:to]) {
		return nil
	}
	for i := from; ; {
		c, n := utf8.DecodeRune(p[i:to])
		if c == utf8.RuneError && n <= 1 {
			return &fileio.Fault{At: i, Err: errors.New("this is not UTF-8"),
				Hint: "An export of an older tool with such values is read with -x encoding=raw."}
		}
		i += n
	}
}

// plain returns what a cell stands for; valid until the next call.
func (r *parser) plain(c cell) []byte {
	if !c.doubled {
		return c.raw
	}
	r.scratch = undouble(r.scratch[:0], c.raw)
	return r.scratch
}

func undouble(dst, raw []byte) []byte {
	for {
		i := bytes.IndexByte(raw, '"')
		if i < 0 {
			return append(dst, raw...)
		}
		dst = append(dst, raw[:i+1]...)
		raw = raw[i+2:]
	}
}

// bytes puts what a cell stands for into the batch's arena.
func (r *parser) bytes(c cell, b *pump.Batch) ([]byte, error) {
	switch {
	case r.encoding == "base64":
		if i := bytes.IndexAny(c.raw, "\r\n"); i >= 0 { // the library skips them
			return nil, fileio.Faultf(c.at+i, "a line end within base64")
		}
		dst := b.Alloc(base64.StdEncoding.DecodedLen(len(c.raw)))
		n, err := base64.StdEncoding.Strict().Decode(dst, c.raw)
		var wrong base64.CorruptInputError
		if errors.As(err, &wrong) {
			return nil, fileio.Faultf(c.at+int(wrong), "this is not base64 (with + and /, padded with =)")
		}
		return dst[:n:n], err
	case c.doubled:
		return undouble(b.Alloc(len(c.raw))[:0], c.raw), nil
	}
	return b.Copy(c.raw), nil
}
