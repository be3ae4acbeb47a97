package cbb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/cbpump/cbpump/pump"
)

// fail returns an error about a file: what is wrong and what to do.
func fail(code, path string, err error, hint string) error {
	return &pump.Error{Code: code, Op: "backup file " + path, Err: err, Hint: hint}
}

// Codes of errors about data files.
const (
	codeUnreadable = "backup-unreadable"
	codeForeign    = "backup-foreign"
	codeVersion    = "backup-version"
	codeCorrupt    = "backup-corrupt"
	codeBusy       = "backup-busy"
)

const hintCorrupt = "The file is damaged. Restore it from another copy of the backup; nothing behind the place that is named was read from it."

const hintBusy = "Wait until it has finished, then run the same command again."

// headerLen is the length of a SQLite file's header.
const headerLen = 100

// CheckFile looks at a data file from outside, before SQLite opens it: that it
// is one, of a version that is known, whole, and in nobody's hands.
func CheckFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return unreadable("backup file "+path, err)
	}
	if !info.Mode().IsRegular() {
		return fail(codeForeign, path, fmt.Errorf("is a %s, a data file is due", kindOf(info.Mode())), "")
	}
	for _, suffix := range []string{"-journal", "-wal"} {
		if j, err := os.Lstat(path + suffix); err == nil && (j.Size() > 0 || !j.Mode().IsRegular()) {
			return fail(codeBusy, path, fmt.Errorf("is being written, or its writer was killed: there is a %s file beside it", suffix[1:]),
				"Wait until its writer has ended. If there is none any more, the file is incomplete: take the backup again.")
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return unreadable("backup file "+path, err)
	}
	defer f.Close()
	if hasWriter(f) {
		return fail(codeBusy, path, errors.New("is being written: another process has locked it to do so"), hintBusy)
	}
	var header [headerLen]byte
	n, err := io.ReadFull(f, header[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return unreadable("backup file "+path, err)
	}
	if code, err := checkHeader(header[:n], info.Size()); err != nil {
		hint := hintCorrupt
		if code == codeForeign {
			hint = ""
		}
		return fail(code, path, err, hint)
	}
	return nil
}

// checkHeader judges the first bytes of a file of that size.
func checkHeader(h []byte, size int64) (code string, err error) {
	const magic = "SQLite format 3\x00"
	switch {
	case size == 0:
		return codeCorrupt, errors.New("is empty")
	case len(h) < len(magic) || string(h[:len(magic)]) != magic:
		return codeForeign, errors.New("byte 0: this is not a SQLite file, as data files are")
	case len(h) < headerLen:
		return codeCorrupt, fmt.Errorf("ends at byte %d, within its header", size)
	}
	page := int64(binary.BigEndian.Uint16(h[16:]))
	if page == 1 {
		page = 64 << 10
	}
	if page < 512 || page&(page-1) != 0 {
		return codeCorrupt, fmt.Errorf("byte 16: a page size of %d does not exist", page)
	}
	if h[18] != 1 || h[19] != 1 {
		if h[18] == 2 && h[19] == 2 {
			return codeBusy, errors.New("byte 18: is in SQLite's WAL mode, which no backup tool leaves a finished file in")
		}
		return codeCorrupt, fmt.Errorf("byte 18: unknown file format %d/%d", h[18], h[19])
	}
	pages := int64(binary.BigEndian.Uint32(h[28:]))
	if binary.BigEndian.Uint32(h[24:]) != binary.BigEndian.Uint32(h[92:]) || pages == 0 {
		// A SQLite of before 2010 wrote it and kept no count of pages.
		if size%page != 0 {
			return codeCorrupt, fmt.Errorf("ends at byte %d, within a page: it was cut", size)
		}
		pages = size / page
	}
	switch want := pages * page; {
	case size < want:
		return codeCorrupt, fmt.Errorf("ends at byte %d of %d: it was cut", size, want)
	case size > want:
		return codeCorrupt, fmt.Errorf("byte %d: the data ends here, but the file goes on to %d", want, size)
	}
	if enc := binary.BigEndian.Uint32(h[56:]); enc != 1 {
		return codeForeign, fmt.Errorf("byte 56: text encoding %d is not that of data files (UTF-8)", enc)
	}
	if version := binary.BigEndian.Uint32(h[60:]); version > 1<<20 || columnCount(int(version)) == 0 {
		return codeVersion, fmt.Errorf("byte 60: user_version %d is none of %d, %d, %d", version, Version2004, Version2014, Version2015)
	}
	return "", nil
}

// kindOf names what stands where a file is due.
func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "folder"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "file of a special kind"
}

// unreadable returns the error of something of a backup that the system does not
// let be read.
func unreadable(op string, err error) error {
	hint := ""
	if errors.Is(err, fs.ErrPermission) {
		hint = "Check the permissions of it and of the folders above it, or run as a user who may read it."
	}
	return &pump.Error{Code: codeUnreadable, Op: op, Err: plain(err), Hint: hint}
}

// plain takes the path out of a file error, since the message names it already,
// and with it what would make it the error of an endpoint that refuses access.
func plain(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return errors.New(p.Err.Error())
	}
	return err
}
