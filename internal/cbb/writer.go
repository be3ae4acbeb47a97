package cbb

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"

	"zombiezen.com/go/sqlite"

	"github.com/cbpump/cbpump/pump"
)

// hintPartial is what to do about a backup that could not be written.
const hintPartial = "The unfinished backup stays where it is, for what it is worth; it never counts as a backup. Mend the cause and run the same command again."

// hintNothing is what to do when not even the folder could be prepared.
const hintNothing = "No backup was begun. Mend the cause and run the same command again."

// hintGone is what to do when what was written has vanished.
const hintGone = "Something removed it while the backup was written, so there is no backup. See to it that nothing does, and run the same command again."

// WriteError returns an error about something of a backup that could not be
// written. It is an error of its own class whatever the system said: a folder
// that may not be written to is no endpoint that refuses access.
func WriteError(path string, err error) error { return writeError(path, err, hintPartial) }

// PrepareError is WriteError for what comes before the first data file, when
// there is no unfinished backup that the user would have to know of.
func PrepareError(path string, err error) error { return writeError(path, err, hintNothing) }

func writeError(path string, err error, hint string) error {
	if _, known := errors.AsType[*pump.Error](err); known {
		return err
	}
	code := "backup-write"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = "disk-full"
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok && hint == hintPartial && errors.Is(p, fs.ErrNotExist) {
		hint = hintGone
	}
	return &pump.Error{Code: code, Op: "write " + path, Err: errors.New(plain(err).Error()), Hint: hint}
}

// Writer writes one data file of version 2015. One goroutine uses it. The file
// is nothing that SQLite would open until Finish has returned.
type Writer struct {
	path      string
	conn      *sqlite.Conn
	one, many *sqlite.Stmt // insert one row, rowsAtOnce rows
	rows      int64
	bytes     int64 // of the file, about
	slots     uint32
	text      [20]byte
	failure   error
}

// rowsAtOnce rows go in with one statement: what a statement costs beside its
// rows is about a fifth of the whole at one row.
const rowsAtOnce = 4

// largeRow is the size from which rows go in one by one, so that no more than
// one large value is held twice.
const largeRow = 256 << 10

// rowOverhead is what a row takes in the file beside key and value, about.
const rowOverhead = 50

// Entry is a row of cbb_meta.
type Entry struct{ Key, Val string }

// Create makes a data file that must not exist.
func Create(path string, about []Entry) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return nil, WriteError(path, err)
	}
	if err := f.Close(); err != nil {
		return nil, WriteError(path, err)
	}
	w := &Writer{path: path}
	if w.conn, err = connect(path, sqlite.OpenReadWrite); err != nil {
		return nil, w.failed(err)
	}
	if err := w.begin(about); err != nil {
		w.Abandon()
		return nil, err
	}
	return w, nil
}

func (w *Writer) begin(about []Entry) error {
	// One transaction without a journal: what a crash leaves is thrown away as a
	// whole, since the file gets its final name only after Finish.
	for _, query := range []string{
		"PRAGMA page_size=16384", "PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA locking_mode=EXCLUSIVE",
		"PRAGMA cache_size=-4096", "PRAGMA user_version=" + strconv.Itoa(Version2015),
		"BEGIN EXCLUSIVE", createMsg, createMeta,
	} {
		if err := run(w.conn, query, nil); err != nil {
			return w.failed(err)
		}
	}
	for _, e := range about {
		if err := w.note(e); err != nil {
			return err
		}
	}
	row := "(?,?,?,?,?,CAST(? AS TEXT),?,?,?,?,?,?)"
	var err error
	if w.one, err = w.conn.Prepare("INSERT INTO cbb_msg VALUES " + row); err != nil {
		return w.failed(err)
	}
	if w.many, err = w.conn.Prepare("INSERT INTO cbb_msg VALUES " + row + strings.Repeat(","+row, rowsAtOnce-1)); err != nil {
		return w.failed(err)
	}
	return nil
}

func (w *Writer) note(e Entry) error {
	stmt, _, err := w.conn.PrepareTransient("INSERT INTO cbb_meta VALUES (?, ?)")
	if err != nil {
		return w.failed(err)
	}
	defer stmt.Finalize()
	stmt.BindText(1, e.Key)
	stmt.BindText(2, e.Val)
	if _, err := stmt.Step(); err != nil {
		return w.failed(err)
	}
	return nil
}

// Path returns the path of the file.
func (w *Writer) Path() string { return w.path }

// Bytes returns about how large the file is.
func (w *Writer) Bytes() int64 { return w.bytes }

// Rows returns how many rows were added.
func (w *Writer) Rows() int64 { return w.rows }

// Add adds items, all of which Fits found to fit. It returns how many are in the
// file; all of them unless there is an error.
func (w *Writer) Add(items []pump.Item) (int, error) {
	if w.failure != nil {
		return 0, w.failure
	}
	added := 0
	for len(items) > 0 {
		stmt, n := w.one, 1
		if len(items) >= rowsAtOnce && rowsSize(items[:rowsAtOnce]) < largeRow {
			stmt, n = w.many, rowsAtOnce
		}
		size := int64(0)
		for i := range n {
			w.bind(stmt, i*len(columns), &items[i])
			size += int64(items[i].Size()) + rowOverhead
		}
		_, err := stmt.Step()
		if err == nil {
			err = stmt.Reset()
		}
		if err != nil {
			w.failure = w.failed(err)
			return added, w.failure
		}
		if size > largeRow {
			if err := stmt.ClearBindings(); err != nil { // lets go of its copy
				w.failure = w.failed(err)
				return added, w.failure
			}
		}
		w.rows += int64(n)
		w.bytes += size
		added += n
		items = items[n:]
	}
	return added, nil
}

func rowsSize(items []pump.Item) int {
	n := 0
	for i := range items {
		n += items[i].Size()
	}
	return n
}

// bind binds an item to the parameters behind at.
func (w *Writer) bind(stmt *sqlite.Stmt, at int, it *pump.Item) {
	cmd := int64(cmdDcpMutation)
	if it.Op != pump.Mutation {
		cmd = cmdDcpDelete
	}
	w.slots |= 1 << Slot(it.Key)
	stmt.BindInt64(at+1, cmd)
	stmt.BindInt64(at+2, int64(it.VBucket))
	stmt.BindBytes(at+3, it.Key)
	stmt.BindInt64(at+4, int64(it.Flags))
	stmt.BindInt64(at+5, int64(it.Expiry))
	stmt.BindBytes(at+6, strconv.AppendUint(w.text[:0], it.CAS, 10))
	if it.RevSeqno == 0 {
		stmt.BindBytes(at+7, nil) // no revision: the tools write an empty one
	} else {
		stmt.BindBytes(at+7, strconv.AppendUint(w.text[:0], it.RevSeqno, 10))
	}
	stmt.BindBytes(at+8, it.Value)
	stmt.BindInt64(at+9, int64(min(it.Seqno, math.MaxInt64)))
	stmt.BindInt64(at+10, int64(it.Datatype))
	stmt.BindInt64(at+11, metaSize)
	stmt.BindInt64(at+12, 0)
}

// Finish completes the file and makes it durable.
func (w *Writer) Finish() error {
	if w.failure != nil {
		w.Abandon()
		return w.failure
	}
	var slots []uint16
	for s := range uint16(Slots) {
		if w.slots&(1<<s) != 0 {
			slots = append(slots, s)
		}
	}
	// A file without rows has the entry too: it says that the file is ours.
	if err := w.note(Entry{slotsKey, pump.FormatVBuckets(slots)}); err != nil {
		w.Abandon()
		return err
	}
	if err := run(w.conn, "COMMIT", nil); err != nil {
		err = w.failed(err)
		w.Abandon()
		return err
	}
	if err := w.close(); err != nil {
		return w.failed(err)
	}
	f, err := os.OpenFile(w.path, os.O_RDWR, 0)
	if err != nil {
		return WriteError(w.path, err)
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return WriteError(w.path, err)
	}
	return nil
}

// Abandon closes the file as it is. It is safe to call it at any time.
func (w *Writer) Abandon() { _ = w.close() }

func (w *Writer) close() error {
	if w.conn == nil {
		return nil
	}
	conn := w.conn
	w.conn = nil
	for _, stmt := range []*sqlite.Stmt{w.one, w.many} {
		if stmt != nil {
			_ = stmt.Finalize()
		}
	}
	return conn.Close()
}

func (w *Writer) failed(err error) error {
	code := sqlite.ErrCode(err)
	switch code.ToPrimary() {
	case sqlite.ResultFull:
		return &pump.Error{Code: "disk-full", Op: fmt.Sprintf("write %s, row %d", w.path, w.rows+1), Err: errors.New("the disk is full"), Hint: hintPartial}
	case sqlite.ResultIOErr:
		return &pump.Error{Code: "backup-write", Op: fmt.Sprintf("write %s, row %d", w.path, w.rows+1),
			Err: errors.New("the system refuses to write (" + code.String() + ")"), Hint: hintPartial}
	}
	return WriteError(w.path, err)
}
