package cbb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// table reads the rows of a table of a SQLite file in rowid order, from the pages
// themselves (https://www.sqlite.org/fileformat2.html). SQLite's own way costs a call
// for each column's type, length and value, four times what it takes to find them
// here. Whatever is not as the format says is an error; nothing is written. SQLite
// has opened the file before and keeps it locked meanwhile.
type table struct {
	f        *os.File
	pageSize int
	usable   int // bytes of a page without what is reserved at its end
	pages    uint32

	window []byte // some pages, read at once
	first  uint32 // number of the first of them

	path     []inner // from the root to the parent of leaf
	leaf     []byte  // the page of the present row; lies in window
	leafBase int     // where its header begins: behind the file's on page 1
	next     int     // index of the next cell of leaf
	cells    int     // of leaf

	row     int64
	payload []byte // of the present row; lies in leaf, or in spill
	spill   []byte
	columns []column
}

// inner is a page that leads to others.
type inner struct {
	page  []byte
	base  int
	next  int // index of the child to read next
	cells int // there is one child more than cells
}

// column is a value of a row, by its serial type and where it lies in the payload.
type column struct {
	kind     uint64
	from, to int
}

// Kinds of values.
const (
	kindNull  = 0
	kindReal  = 7
	kindZero  = 8
	kindOne   = 9
	kindBytes = 12 // and above: blobs are even, texts odd
)

const (
	// windowBytes is how much is read at once: leaves mostly lie one behind the other.
	windowBytes = 256 << 10
	// mostDepth is more than any tree has: 2^32 pages, at least four children each.
	mostDepth = 20
	// keptSpill is the largest buffer for a row of several pages that is kept.
	keptSpill = 1 << 20
)

const (
	pageInner = 5
	pageLeaf  = 13
)

// openTable returns a reader of a file whose header checkHeader has found right.
// columns is how many each row must have.
func openTable(path string, columns int) (*table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var h [headerLen]byte
	info, err := f.Stat()
	if err == nil {
		_, err = f.ReadAt(h[:], 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	t := &table{f: f, pageSize: int(binary.BigEndian.Uint16(h[16:])), columns: make([]column, columns)}
	if t.pageSize == 1 {
		t.pageSize = 64 << 10
	}
	t.usable = t.pageSize - int(h[20])
	if t.pageSize < 512 || t.usable < 480 {
		return nil, errors.Join(fmt.Errorf("a page of %d bytes, %d of them reserved", t.pageSize, h[20]), f.Close())
	}
	t.pages = uint32(min(info.Size()/int64(t.pageSize), math.MaxUint32))
	t.window = make([]byte, 0, max(windowBytes, t.pageSize))
	return t, nil
}

func (t *table) close() error { return t.f.Close() }

// page returns a page, and where its header begins. It is good until the next call.
func (t *table) page(n uint32) (p []byte, base int, err error) {
	if n == 0 || n > t.pages {
		return nil, 0, fmt.Errorf("there is no page %d", n)
	}
	if n < t.first || int64(n) >= int64(t.first)+int64(len(t.window)/t.pageSize) {
		want := min(int64(cap(t.window)/t.pageSize), int64(t.pages)-int64(n)+1)
		t.window, t.first = t.window[:want*int64(t.pageSize)], n
		if _, err := t.f.ReadAt(t.window, int64(n-1)*int64(t.pageSize)); err != nil {
			t.window = t.window[:0]
			return nil, 0, short(err)
		}
	}
	at := int(n-t.first) * t.pageSize
	if n == 1 {
		base = headerLen
	}
	return t.window[at : at+t.usable : at+t.usable], base, nil
}

// short makes of an end of the file, which would be taken for the end of the rows,
// another error.
func short(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errors.New("the file has become shorter")
	}
	return err
}

// begin goes to the first row behind a rowid of the table whose root is that page.
func (t *table) begin(root uint32, after int64) error {
	t.path, t.leaf = t.path[:0], nil
	return t.descend(root, after)
}

// descend goes down from a page to the leaf with the first row behind a rowid.
func (t *table) descend(n uint32, after int64) error {
	for len(t.path) < mostDepth {
		p, base, err := t.page(n)
		if err != nil {
			return err
		}
		cells, head := int(binary.BigEndian.Uint16(p[base+3:])), 8
		if p[base] == pageInner {
			head = 12
		}
		if base+head+2*cells > len(p) {
			return fmt.Errorf("page %d has %d cells, for which it has no room", n, cells)
		}
		switch p[base] {
		case pageLeaf:
			t.leaf, t.leafBase, t.next, t.cells = p, base, 0, cells
			if cells == 0 && len(t.path) > 0 {
				return fmt.Errorf("page %d is empty", n)
			}
			return t.skip(after)
		case pageInner:
			// Its place in the window may be taken by its children.
			in := inner{base: base, cells: cells}
			if len(t.path) < cap(t.path) {
				in.page = t.path[:len(t.path)+1][len(t.path)].page
			}
			in.page = append(in.page[:0], p...)
			for in.next < cells {
				_, key, err := in.child(in.next)
				if err != nil {
					return fmt.Errorf("page %d: %w", n, err)
				}
				if key > after {
					break
				}
				in.next++
			}
			child, _, err := in.child(in.next)
			if err != nil {
				return fmt.Errorf("page %d: %w", n, err)
			}
			in.next++
			t.path = append(t.path, in)
			n = child
		default:
			return fmt.Errorf("page %d is of kind %d, which no page of a table is", n, p[base])
		}
	}
	return errors.New("the tree of pages has no end")
}

// child returns the number of a child's page, and the highest rowid in it.
func (in *inner) child(i int) (n uint32, key int64, err error) {
	if i == in.cells {
		return binary.BigEndian.Uint32(in.page[in.base+8:]), math.MaxInt64, nil
	}
	at := int(binary.BigEndian.Uint16(in.page[in.base+12+2*i:]))
	if at+4 > len(in.page) {
		return 0, 0, fmt.Errorf("cell %d lies outside", i)
	}
	v, size := varint(in.page[at+4:])
	if size == 0 {
		return 0, 0, fmt.Errorf("cell %d is cut", i)
	}
	return binary.BigEndian.Uint32(in.page[at:]), int64(v), nil
}

// skip passes over the rows of the leaf up to a rowid.
func (t *table) skip(after int64) error {
	for t.next < t.cells {
		_, row, _, err := t.cell(t.next)
		if err != nil {
			return err
		}
		if row > after {
			return nil
		}
		t.next++
	}
	return nil
}

// cell returns the length of a row's payload, its rowid, and what comes behind.
func (t *table) cell(i int) (size uint64, row int64, rest []byte, err error) {
	at := int(binary.BigEndian.Uint16(t.leaf[t.leafBase+8+2*i:]))
	if at < t.leafBase+8 || at >= len(t.leaf) {
		return 0, 0, nil, fmt.Errorf("cell %d lies outside its page", i)
	}
	p := t.leaf[at:]
	size, n := varint(p)
	v, m := varint(p[n:])
	if n == 0 || m == 0 {
		return 0, 0, nil, fmt.Errorf("cell %d is cut", i)
	}
	return size, int64(v), p[n+m:], nil
}

// advance goes to the next row; false means that there is none.
func (t *table) advance() (bool, error) {
	for t.next >= t.cells {
		for len(t.path) > 0 && t.path[len(t.path)-1].next > t.path[len(t.path)-1].cells {
			t.path = t.path[:len(t.path)-1]
		}
		if len(t.path) == 0 {
			return false, nil
		}
		in := &t.path[len(t.path)-1]
		child, _, err := in.child(in.next)
		if err != nil {
			return false, err
		}
		in.next++
		if err := t.descend(child, math.MinInt64); err != nil {
			return false, err
		}
	}
	size, row, rest, err := t.cell(t.next)
	if err != nil {
		return false, err
	}
	t.next++
	t.row = row
	if err := t.load(size, rest); err != nil {
		return false, fmt.Errorf("row %d: %w", row, err)
	}
	return true, t.split()
}

// load makes payload the row's, of which only the beginning may be in the leaf.
func (t *table) load(size uint64, rest []byte) error {
	if size > uint64(t.pages)*uint64(t.pageSize) {
		return fmt.Errorf("it has %d bytes, more than the file", size)
	}
	local := int(size)
	if most := t.usable - 35; local > most {
		least := (t.usable-12)*32/255 - 23
		if local = least + (int(size)-least)%(t.usable-4); local > most {
			local = least
		}
	}
	if local == int(size) {
		if local > len(rest) {
			return errors.New("it is cut by the end of its page")
		}
		t.payload = rest[:local]
		return nil
	}
	if local+4 > len(rest) {
		return errors.New("it is cut by the end of its page")
	}
	if cap(t.spill) < int(size) || cap(t.spill) > keptSpill {
		t.spill = make([]byte, 0, size)
	}
	t.spill = append(t.spill[:0], rest[:local]...)
	next := binary.BigEndian.Uint32(rest[local:])
	for len(t.spill) < int(size) {
		if next == 0 || next > t.pages {
			return fmt.Errorf("it goes on in page %d, which does not exist", next)
		}
		n := min(int(size)-len(t.spill), t.usable-4)
		// The link to the next page comes before the bytes: both are read into the
		// place of the bytes, and these moved over the link.
		at := len(t.spill)
		var link [4]byte
		offset := int64(next-1) * int64(t.pageSize)
		if _, err := t.f.ReadAt(link[:], offset); err != nil {
			return short(err)
		}
		t.spill = t.spill[:at+n]
		if _, err := t.f.ReadAt(t.spill[at:], offset+4); err != nil {
			return short(err)
		}
		next = binary.BigEndian.Uint32(link[:])
	}
	t.payload = t.spill
	return nil
}

// split finds the columns in the payload.
func (t *table) split() error {
	p := t.payload
	head, n := varint(p)
	if n == 0 || head > uint64(len(p)) || int(head) < n {
		return fmt.Errorf("row %d: its header does not fit into it", t.row)
	}
	at := int(head)
	for i := range t.columns {
		kind, m := varint(p[n:head])
		if m == 0 {
			return fmt.Errorf("row %d has %d columns, %d are due", t.row, i, len(t.columns))
		}
		n += m
		size := uint64(0)
		switch {
		case kind >= kindBytes:
			size = (kind - kindBytes) / 2
		case kind <= 4:
			size = kind
		case kind == 5:
			size = 6
		case kind == 6, kind == kindReal:
			size = 8
		case kind == kindZero, kind == kindOne:
		default:
			return fmt.Errorf("row %d: a value of kind %d, which does not exist", t.row, kind)
		}
		if size > uint64(len(p)-at) {
			return fmt.Errorf("row %d: its values are longer than it is", t.row)
		}
		t.columns[i] = column{kind, at, at + int(size)}
		at += int(size)
	}
	if n != int(head) {
		return fmt.Errorf("row %d has more columns than the %d that are due", t.row, len(t.columns))
	}
	return nil
}

// isBytes reports whether a column is a text or a blob, and isInt that it is a whole
// number.
func (c column) isBytes() bool { return c.kind >= kindBytes }
func (c column) isInt() bool   { return c.kind >= 1 && c.kind <= kindOne && c.kind != kindReal }

// bytes returns a text or blob; it lies in the row.
func (t *table) bytes(i int) []byte { return t.payload[t.columns[i].from:t.columns[i].to] }

// integer returns a whole number.
func (t *table) integer(i int) int64 {
	c := t.columns[i]
	if c.kind >= kindZero {
		return int64(c.kind - kindZero)
	}
	p := t.payload[c.from:c.to]
	v := uint64(int64(int8(p[0])))
	for _, b := range p[1:] {
		v = v<<8 | uint64(b)
	}
	return int64(v)
}

// varint reads one of SQLite's numbers of one to nine bytes, and returns its length,
// 0 if it is cut.
func varint(p []byte) (v uint64, n int) {
	for i, b := range p {
		if i == 8 {
			return v<<8 | uint64(b), 9
		}
		v = v<<7 | uint64(b&0x7f)
		if b < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}
