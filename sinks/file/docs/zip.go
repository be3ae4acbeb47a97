package docs

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/flate"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// maxDirectory bounds a zip's directory, which is held until the end; it is less
// than what the source takes.
const maxDirectory = 16 << 20

// utf8Names is the flag of an entry that says that its name is UTF-8.
const utf8Names = 0x800

// archive is a place in a zip. Documents are compressed by the lanes, and written
// one after another.
type archive struct {
	path string
	root string // folder that everything in the zip is in
	pool sync.Pool

	mu   sync.Mutex
	out  *fileio.Output
	w    *zip.Writer
	to   *output
	dir  int // bytes of the directory so far
	when time.Time
}

// output hands the zip's bytes to the file, with the context of the call.
type output struct {
	out *fileio.Output
	ctx context.Context
}

func (o *output) Write(p []byte) (int, error) {
	if err := o.out.Write(o.ctx, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// packer compresses one document at a time.
type packer struct {
	buf bytes.Buffer
	w   *flate.Writer
}

func createArchive(ctx context.Context, path string, replace bool) (place, error) {
	out, err := fileio.Create(path, replace)
	if err != nil {
		return nil, err
	}
	base := filepath.Base(path)
	a := &archive{path: path, root: base[:len(base)-len(".zip")], out: out, to: &output{out, ctx}, when: time.Now()}
	if strings.ContainsAny(a.root, `\:`) || a.root == "" || a.root == "." || a.root == ".." {
		a.root = "documents"
	}
	a.w = zip.NewWriter(a.to)
	if err := a.add(ctx, a.root+"/"+fileio.NamesMarker, []byte(fileio.NamesText)); err != nil {
		return nil, errors.Join(err, out.Close(false))
	}
	return a, nil
}

func (a *archive) put(ctx context.Context, folder string, key, value []byte) error {
	return a.add(ctx, a.root+"/"+folder+"/"+fileio.EscapeName(key, false)+fileio.Ending, value)
}

func (a *archive) add(ctx context.Context, name string, value []byte) error {
	p, _ := a.pool.Get().(*packer)
	if p == nil {
		p = &packer{}
		var err error
		if p.w, err = flate.NewWriter(&p.buf, flate.DefaultCompression); err != nil {
			return fmt.Errorf("write %s: %w", a.path, err)
		}
	}
	p.buf.Reset()
	p.w.Reset(&p.buf)
	_, err := p.w.Write(value)
	if err = errors.Join(err, p.w.Close()); err != nil {
		return fmt.Errorf("write %s: %w", a.path, err)
	}
	header := &zip.FileHeader{
		Name: name, Flags: utf8Names, Method: zip.Deflate, CRC32: crc32.ChecksumIEEE(value),
		CompressedSize64: uint64(p.buf.Len()), UncompressedSize64: uint64(len(value)),
	}
	//lint:ignore SA1019 CreateRaw takes no other time.
	header.SetModTime(a.when)
	header.SetMode(0o666)
	data := p.buf.Bytes()
	if len(data) >= len(value) {
		header.Method, header.CompressedSize64, data = zip.Store, uint64(len(value)), value
	}
	err = a.write(ctx, header, data)
	const most = 1 << 20 // beyond it, one large document would hold its memory for ever
	if p.buf.Cap() <= most {
		a.pool.Put(p)
	}
	return err
}

func (a *archive) write(ctx context.Context, header *zip.FileHeader, data []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.to.ctx = ctx
	if a.dir += 46 + len(header.Name); a.dir > maxDirectory {
		return &pump.Error{Code: "zip-full", Op: "write " + a.path, Err: errors.New("there are too many documents for one zip: its directory would be too large"),
			Hint: "Write a folder, json:FOLDER, which takes any number. What was written so far is incomplete and is in " + a.out.Partial() + "; it can be removed."}
	}
	w, err := a.w.CreateRaw(header)
	if err != nil {
		return fileio.WriteError("write "+a.path, a.out.Partial(), err)
	}
	if _, err := w.Write(data); err != nil {
		return fileio.WriteError("write "+a.path, a.out.Partial(), err)
	}
	return nil
}

func (a *archive) remove([]byte) (bool, error) { return false, nil }

func (a *archive) commit(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.to.ctx = ctx
	if err := a.w.Close(); err != nil {
		return fileio.WriteError("complete "+a.path, a.out.Partial(), err)
	}
	return a.out.Commit()
}

func (a *archive) partial() string { return a.out.Partial() }

func (a *archive) close(keep bool) error { return a.out.Close(keep) }
