package cbb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/cbpump/cbpump/pump"
)

// Reader reads the rows of one data file in rowid order. One goroutine uses it.
type Reader struct {
	path    string
	version int
	ours    bool   // cbb_meta says that cbpump wrote it
	slots   uint32 // bit s: the file says that it has rows of slot s; 0: it says nothing
	info    fs.FileInfo
	conn    *sqlite.Conn
	root    uint32 // page of the table's root
	table   *table // nil before Begin
	row     int64  // rowid of the current row
	gaps    bool
}

// OpenReader opens a finished data file. It takes a shared lock as long as rows
// are read, so that a tool that writes the file in the meantime is noticed.
func OpenReader(path string) (*Reader, error) {
	if err := CheckFile(path); err != nil {
		return nil, err
	}
	r := &Reader{path: path}
	var err error
	if r.info, err = os.Stat(path); err != nil {
		return nil, unreadable("backup file "+path, err)
	}
	if r.conn, err = connect(path, sqlite.OpenReadOnly); err != nil {
		return nil, r.failed(err)
	}
	if err := r.prepare(); err != nil {
		_ = r.conn.Close()
		return nil, err
	}
	return r, nil
}

// connect opens a database by an absolute path, which SQLite can take for
// nothing else, and without waiting for anybody's lock.
func connect(path string, flags sqlite.OpenFlags) (*sqlite.Conn, error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	conn, err := sqlite.OpenConn(full, flags)
	if err != nil {
		return nil, err
	}
	conn.SetBusyTimeout(0)
	return conn, nil
}

func run(conn *sqlite.Conn, query string, row func(*sqlite.Stmt)) error {
	stmt, _, err := conn.PrepareTransient(query)
	if err != nil {
		return err
	}
	defer stmt.Finalize()
	for {
		more, err := stmt.Step()
		if err != nil || !more {
			return err
		}
		if row != nil {
			row(stmt)
		}
	}
}

func (r *Reader) prepare() error {
	// A file from elsewhere is not trusted: nothing in its schema may run, and
	// damaged cells are looked for.
	for _, pragma := range []string{"trusted_schema=OFF", "cell_size_check=ON", "query_only=ON", "cache_size=-2048", "mmap_size=0"} {
		if err := run(r.conn, "PRAGMA "+pragma, nil); err != nil {
			return r.failed(err)
		}
	}
	if err := run(r.conn, "PRAGMA user_version", func(s *sqlite.Stmt) { r.version = s.ColumnInt(0) }); err != nil {
		return r.failed(err)
	}
	n := columnCount(r.version)
	if n == 0 {
		return fail(codeVersion, r.path, fmt.Errorf("user_version %d is none of %d, %d, %d", r.version, Version2004, Version2014, Version2015), "")
	}
	for table, want := range map[string]string{msgTable: strings.Join(columns[:n], ","), "cbb_meta": "key,val"} {
		if err := r.checkTable(table, want); err != nil {
			return err
		}
	}
	var list string
	if err := run(r.conn, "SELECT val FROM cbb_meta WHERE key = '"+slotsKey+"'", func(s *sqlite.Stmt) { r.ours, list = true, s.ColumnText(0) }); err != nil {
		return r.failed(err)
	}
	if list != "" {
		slots, err := pump.ParseVBuckets(list)
		if err == nil {
			err = pump.CheckVBuckets(slots, Slots)
		}
		if err != nil {
			return fail(codeCorrupt, r.path, fmt.Errorf("table cbb_meta, %s: not a list of slots", slotsKey), hintCorrupt)
		}
		for _, s := range slots {
			r.slots |= 1 << s
		}
	}
	return nil
}

// checkStructure has SQLite look over all pages of a file.
func checkStructure(ctx context.Context, path string) error {
	r, err := OpenReader(path)
	if err != nil {
		return err
	}
	r.conn.SetInterrupt(ctx.Done())
	said := ""
	err = run(r.conn, "PRAGMA quick_check(1)", func(s *sqlite.Stmt) { said = s.ColumnText(0) })
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err != nil {
		err = r.failed(err)
	} else if said != "ok" {
		said = strings.TrimPrefix(said, "*** in database main ***\n")
		err = fail(codeCorrupt, path, fmt.Errorf("damaged: %s", strings.ReplaceAll(said, "\n", "; ")), hintCorrupt)
	}
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return err
}

// highestSeqnos returns the highest sequence number of each vbucket's rows; nil if
// the file's version has none.
func highestSeqnos(ctx context.Context, path string) (map[uint16]uint64, error) {
	r, err := OpenReader(path)
	if err != nil {
		return nil, err
	}
	var highest map[uint16]uint64
	if r.version != Version2004 {
		r.conn.SetInterrupt(ctx.Done())
		highest = map[uint16]uint64{}
		err = run(r.conn, "SELECT vbucket_id, seqno FROM cbb_msg NOT INDEXED", func(s *sqlite.Stmt) {
			vb, seqno := uint16(s.ColumnInt64(0)), uint64(max(0, s.ColumnInt64(1)))
			if have, known := highest[vb]; !known || seqno > have {
				highest[vb] = seqno
			}
		})
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if err != nil {
			err = r.failed(err)
		}
	}
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return highest, err
}

// checkTable makes sure that a table is a plain table with just these columns:
// what a view or a generated column would give is made up while it is read.
func (r *Reader) checkTable(table, want string) error {
	kind, root := "", int64(0)
	if err := run(r.conn, "SELECT type, rootpage FROM sqlite_master WHERE name = '"+table+"'", func(s *sqlite.Stmt) {
		kind, root = s.ColumnText(0), s.ColumnInt64(1)
	}); err != nil {
		return r.failed(err)
	}
	if table == msgTable {
		r.root = uint32(min(max(root, 0), math.MaxUint32))
	}
	var have []string
	hidden := false
	if kind == "table" {
		if err := run(r.conn, "PRAGMA table_xinfo("+table+")", func(s *sqlite.Stmt) {
			have = append(have, s.ColumnText(1))
			hidden = hidden || s.ColumnInt(6) != 0
		}); err != nil {
			return r.failed(err)
		}
	}
	if got := strings.Join(have, ","); hidden || got != want {
		return fail(codeForeign, r.path, fmt.Errorf("its table %s has the columns (%s), those of user_version %d are (%s)", table, got, r.version, want), "")
	}
	return nil
}

// Path returns the path that the reader was opened with.
func (r *Reader) Path() string { return r.path }

// Slots returns the slots of which the file has rows, a bit for each, or 0 if it
// does not say so; files of other tools never do.
func (r *Reader) Slots() uint32 { return r.slots }

// Last returns the highest rowid: the number of rows, in files of backup tools.
func (r *Reader) Last() (int64, error) {
	var last int64
	err := run(r.conn, "SELECT max(rowid) FROM cbb_msg", func(s *sqlite.Stmt) { last = s.ColumnInt64(0) })
	if err != nil {
		return 0, r.failed(err)
	}
	return last, nil
}

// Begin makes Next begin at the first row behind a rowid; 0 is the beginning.
// Rows are numbered without gaps by all tools, which only ever add; gaps says
// that a missing number is no error.
func (r *Reader) Begin(after int64, gaps bool) error {
	if r.table == nil {
		// A transaction keeps SQLite's lock, so that no other tool writes meanwhile.
		for _, query := range []string{"BEGIN", "SELECT 1 FROM cbb_meta LIMIT 1"} {
			if err := run(r.conn, query, nil); err != nil {
				return r.failed(err)
			}
		}
		var err error
		if r.table, err = openTable(r.path, columnCount(r.version)); err != nil {
			return r.damaged(err)
		}
	}
	r.row, r.gaps = after, gaps
	if after == 0 {
		after = math.MinInt64 // a rowid below 1 is a damage to be found, not to be passed over
	}
	if err := r.table.begin(r.root, after); err != nil {
		return r.damaged(err)
	}
	return nil
}

// damaged makes an error of one that was met in the pages.
func (r *Reader) damaged(err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return unreadable("backup file "+r.path+": "+r.where(), err)
	}
	return fail(codeCorrupt, r.path, fmt.Errorf("%s: damaged (%w)", r.where(), err), hintCorrupt)
}

func (r *Reader) where() string {
	if r.row > 0 {
		return fmt.Sprintf("behind row %d", r.row)
	}
	return "before the first row"
}

// Indices of columns.
const (
	atCmd = iota
	atVBucket
	atKey
	atFlags
	atExpiry
	atCAS
	atMeta
	atValue
	atSeqno
	atDatatype
)

// Next goes to the next row; false means that the table has ended.
func (r *Reader) Next() (bool, error) {
	more, err := r.table.advance()
	if err != nil {
		return false, r.damaged(err)
	}
	if !more {
		return false, nil
	}
	row := r.table.row
	if row != r.row+1 && (row <= r.row || !r.gaps) {
		return false, fail(codeCorrupt, r.path, fmt.Errorf("row %d follows row %d: rows are missing or out of order", row, r.row),
			"The file is damaged, or rows were taken out of it by hand; in that case -x gaps=true reads what is left.")
	}
	r.row = row
	return true, nil
}

// Row returns the rowid of the current row.
func (r *Reader) Row() int64 { return r.row }

// Sizes returns the length of the key and of the value of the current row.
func (r *Reader) Sizes() (key, value int, err error) {
	k, v := r.table.columns[atKey], r.table.columns[atValue]
	if !k.isBytes() {
		return 0, 0, r.bad("key", "is no key")
	}
	if !v.isBytes() && v.kind != kindNull {
		return 0, 0, r.bad("val", "is a number")
	}
	if key = k.to - k.from; key == 0 || key > math.MaxUint16 {
		return 0, 0, r.bad("key", fmt.Sprintf("has %d bytes", key))
	}
	return key, v.to - v.from, nil
}

// Key returns the key of the current row; it is good until Next.
func (r *Reader) Key() []byte { return r.table.bytes(atKey) }

// Item fills in the current row; its key and value come to lie in mem, which is
// as long as both together.
func (r *Reader) Item(it *pump.Item, mem []byte, keyLen int) error {
	cmd, err := r.integer(atCmd, 255)
	if err != nil {
		return err
	}
	switch cmd {
	case cmdTapMutation, cmdDcpMutation:
		it.Op = pump.Mutation
	case cmdTapDelete, cmdDcpDelete:
		it.Op = pump.Deletion
	default:
		return r.bad("cmd", fmt.Sprintf("%d is none of %d, %d, %d, %d", cmd, cmdTapMutation, cmdTapDelete, cmdDcpMutation, cmdDcpDelete))
	}
	it.VBucket = pump.NoVBucket
	if r.table.columns[atVBucket].kind != kindNull {
		vb, err := r.integer(atVBucket, uint64(pump.NoVBucket))
		if err != nil {
			return err
		}
		it.VBucket = uint16(vb)
	}
	flags, err := r.integer(atFlags, math.MaxUint32)
	if err != nil {
		return err
	}
	expiry, err := r.integer(atExpiry, math.MaxUint32)
	if err != nil {
		return err
	}
	it.Flags, it.Expiry = uint32(flags), uint32(expiry)
	if it.CAS, err = r.number(atCAS, parseCAS); err != nil {
		return err
	}
	if it.RevSeqno, err = r.number(atMeta, parseRev); err != nil {
		return err
	}
	if r.version != Version2004 {
		if it.Seqno, err = r.integer(atSeqno, math.MaxInt64); err != nil {
			return err
		}
		datatype, err := r.integer(atDatatype, math.MaxUint8)
		if err != nil {
			return err
		}
		it.Datatype = uint8(datatype)
	}
	it.Key = mem[:keyLen:keyLen]
	it.Value = mem[keyLen:]
	copy(it.Key, r.table.bytes(atKey))
	copy(it.Value, r.table.bytes(atValue))
	return nil
}

// integer reads a column that holds a number from 0 to most; NULL is 0.
func (r *Reader) integer(col int, most uint64) (uint64, error) {
	switch c := r.table.columns[col]; {
	case c.kind == kindNull:
		return 0, nil
	case !c.isInt():
		return 0, r.bad(columns[col], "is not an integer")
	}
	n := r.table.integer(col)
	if n < 0 || uint64(n) > most {
		return 0, r.bad(columns[col], fmt.Sprintf("%d is out of range", n))
	}
	return uint64(n), nil
}

// number reads a column that holds a number as text or bytes.
func (r *Reader) number(col int, parse func([]byte) (uint64, error)) (uint64, error) {
	const most = 24 // bytes, more than any number has
	switch c := r.table.columns[col]; {
	case c.kind == kindNull:
		return 0, nil
	case c.isInt(): // a tool that binds a number; a column without affinity keeps it
		if n := r.table.integer(col); n >= 0 {
			return uint64(n), nil
		}
		return 0, r.bad(columns[col], "is negative")
	case !c.isBytes():
		return 0, r.bad(columns[col], "is not a number")
	}
	p := r.table.bytes(col)
	if len(p) > most {
		return 0, r.bad(columns[col], fmt.Sprintf("has %d bytes, which no number has", len(p)))
	}
	v, err := parse(p)
	if err != nil {
		return 0, r.bad(columns[col], err.Error())
	}
	return v, nil
}

// Misplaced is the error of a row that is in none of the file's slots.
func (r *Reader) Misplaced() error { return r.bad("key", "is not where cbb_meta says") }

func (r *Reader) bad(column, why string) error {
	return fail(codeCorrupt, r.path, fmt.Errorf("row %d, column %s: %s", r.row, column, why), hintCorrupt)
}

// Unchanged returns an error if the file is not the one that was opened, or was
// written since.
func (r *Reader) Unchanged() error {
	now, err := os.Stat(r.path)
	if err != nil {
		return unreadable("backup file "+r.path, err)
	}
	if now.Size() != r.info.Size() || !now.ModTime().Equal(r.info.ModTime()) || !os.SameFile(now, r.info) {
		return fail(codeBusy, r.path, fmt.Errorf("was changed while it was read (%s)", now.ModTime().Format(time.RFC3339)),
			"Let the tool that writes it finish, then run the same command again.")
	}
	return nil
}

// failed makes an error of SQLite's one with file and position.
func (r *Reader) failed(err error) error {
	where := r.where()
	switch code := sqlite.ErrCode(err).ToPrimary(); code {
	case sqlite.ResultBusy, sqlite.ResultLocked:
		return fail(codeBusy, r.path, errors.New("is locked: another tool is writing it"), hintBusy)
	case sqlite.ResultCorrupt, sqlite.ResultNotADB, sqlite.ResultError, sqlite.ResultFormat:
		return fail(codeCorrupt, r.path, fmt.Errorf("%s: damaged (%s)", where, code.Message()), hintCorrupt)
	default:
		return fail(codeUnreadable, r.path, fmt.Errorf("%s: %s", where, sqlite.ErrCode(err).Message()), "")
	}
}

// Close lets go of the file.
func (r *Reader) Close() error {
	if r.conn == nil {
		return nil
	}
	err := r.conn.Close()
	if r.table != nil {
		err = errors.Join(err, r.table.close())
	}
	r.conn, r.table = nil, nil
	if err != nil {
		return fail(codeUnreadable, r.path, err, "")
	}
	return nil
}
