package fileio

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cbpump/cbpump/pump"
)

// Compression is how a file is compressed.
type Compression uint8

// The kinds, by the ending of the name: .gz and .zst.
const (
	None Compression = iota
	Gzip
	Zstd
)

// CompressionOf tells by the ending of a name.
func CompressionOf(path string) Compression {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".gz":
		return Gzip
	case ".zst":
		return Zstd
	}
	return None
}

// maxZstdWindow bounds what a zstd file can make its reader hold: the window of
// zstd --ultra -22.
const maxZstdWindow = 128 << 20

// Stamp tells a file from another of the same name, and from its later self. It
// is zero for pipes.
type Stamp struct {
	Size    uint64
	ModTime uint64 // nanoseconds since 1970
	First   uint64 // a hash of the first bytes of a file that is not empty
}

// stampBytes is how many bytes at the beginning of a file its stamp depends on.
const stampBytes = 4096

// StampOf returns the stamp of an open regular file.
func StampOf(f *os.File, info os.FileInfo) (Stamp, error) {
	first := make([]byte, stampBytes)
	n, err := f.ReadAt(first, 0)
	if err != nil && err != io.EOF {
		return Stamp{}, err
	}
	h := fnv.New64a()
	_, _ = h.Write(first[:n]) // a hash takes everything
	return Stamp{uint64(info.Size()), uint64(info.ModTime().UnixNano()), h.Sum64()}, nil
}

// Input is a file, or standard input, that is being read, decompressed as its
// name says. One goroutine uses it.
type Input struct {
	name  string
	f     *os.File
	r     io.Reader
	plain bool // the bytes are the file's own and it can seek
	stamp Stamp
	close []func() error
	wake  *waker
}

// CheckPartial refuses to read what has the name of something unfinished: nothing
// in it would say that the rest is missing.
func CheckPartial(path string) error {
	name, partial := strings.CutSuffix(filepath.Clean(path), PartialEnding)
	if !partial {
		return nil
	}
	return &pump.Error{Class: pump.ClassUsage, Code: "file-partial", Op: "read " + path,
		Err:  errors.New("a run that did not come to its end left it, or one is writing it: it is not whole"),
		Hint: "Take " + name + " once it is there. To read what there is all the same, give it another name."}
}

// Open opens a file; "-" is standard input.
func Open(name string) (*Input, error) {
	in := &Input{name: name}
	if err := in.open(); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return in, nil
}

func (in *Input) open() (err error) {
	op := "read " + in.name
	if in.name == Stdio {
		if wasClosed(os.Stdin) {
			return &pump.Error{Class: pump.ClassUsage, Code: "stdin-closed", Op: "read standard input", Err: errors.New("it is closed, so nothing can come from it"),
				Hint: "Give it a file or a pipe: cbtransfer - … < FILE."}
		}
		in.f = os.Stdin
	} else {
		if in.f, err = os.Open(in.name); err != nil {
			return ReadError(op, err)
		}
		in.close = append(in.close, in.f.Close)
	}
	info, err := in.f.Stat()
	if err != nil {
		return ReadError(op, err)
	}
	if info.IsDir() {
		return &pump.Error{Class: pump.ClassUsage, Code: "is-folder", Op: op, Err: errors.New("that is a folder, and a file is due")}
	}
	regular := info.Mode().IsRegular()
	if regular && in.name != Stdio {
		if in.stamp, err = StampOf(in.f, info); err != nil {
			return ReadError(op, err)
		}
	}
	in.r = in.f
	if !regular {
		if in.wake, err = newWaker(); err != nil {
			return ReadError(op, err)
		}
		in.close = append(in.close, in.wake.close)
		in.r = pipeReader{in}
	}
	switch CompressionOf(in.name) {
	case None:
		in.plain = regular && in.name != Stdio
	case Gzip:
		z, err := gzip.NewReader(bufio.NewReaderSize(in.r, 64<<10))
		if err != nil {
			return unpackError(op, err)
		}
		in.r = z
		// It would only repeat what Read has said.
		in.close = append(in.close, func() error { _ = z.Close(); return nil })
	case Zstd:
		options := []zstd.DOption{zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true)}
		if !regular {
			// Reads of a pipe depend on the context of the call: none may be ahead.
			options = append(options, zstd.WithDecoderConcurrency(1))
		}
		z, err := zstd.NewReader(in.r, options...)
		if err != nil {
			return unpackError(op, err)
		}
		in.r = z
		in.close = append(in.close, func() error { z.Close(); return nil })
	}
	return nil
}

func unpackError(op string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &pump.Error{Code: "file-compression", Op: op, Err: errors.New("the file is cut off: its compressed data has no end"),
			Hint: "Get the whole file."}
	}
	return &pump.Error{Code: "file-compression", Op: op, Err: fmt.Errorf("it cannot be decompressed; it is damaged, or not what its name says (%w)", err)}
}

// Read fills p. It returns io.EOF only at the proven end of compressed data.
func (in *Input) Read(ctx context.Context, p []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	if in.wake != nil {
		defer context.AfterFunc(ctx, in.wake.wake)()
	}
	n, err := in.r.Read(p)
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case ctx.Err() != nil:
		return n, context.Cause(ctx)
	case CompressionOf(in.name) != None:
		var path *os.PathError
		if !errors.As(err, &path) {
			return n, unpackError("read "+in.name, err)
		}
	}
	return n, ReadError("read "+in.name, err)
}

// pipeReader waits so that the wait can be ended.
type pipeReader struct{ in *Input }

func (r pipeReader) Read(p []byte) (int, error) {
	woken, err := r.in.wake.wait(r.in.f, false)
	if err != nil {
		return 0, err
	}
	if woken {
		return 0, context.Canceled
	}
	return r.in.f.Read(p)
}

// seek goes to an offset of a file that is not compressed.
func (in *Input) seek(offset uint64) error {
	if offset > in.stamp.Size {
		return in.shorter(offset)
	}
	if _, err := in.f.Seek(int64(offset), io.SeekStart); err != nil {
		return ReadError("read "+in.name, err)
	}
	return nil
}

func (in *Input) shorter(offset uint64) error {
	return MarkError("file-changed", in.name, fmt.Sprintf("it has fewer than the %d bytes that were read of it before", offset))
}

// MarkError is the error of a mark from which a file cannot be read on: wrong use,
// since only the user can say what is to become of what was read before.
func MarkError(code, name, why string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: code, Op: "go on reading " + name, Err: errors.New(why),
		Hint: "Put back the file that was read before, or start from the beginning."}
}

// Close lets go of the file. It is safe to call it twice.
func (in *Input) Close() error {
	var errs []error
	for i := len(in.close) - 1; i >= 0; i-- {
		errs = append(errs, in.close[i]())
	}
	in.close = nil
	return errors.Join(errs...)
}

// Place is how far a stream was read.
type Place struct {
	At   uint64 // offset in decompressed bytes, or number of items
	Line uint64 // lines before it
	Live uint64 // mutations before it
}

// stateLen is the length of a mark's state: line, live, size, time, first bytes.
const stateLen = 5 * 8

// Mark returns the mark of a place; more is what else the format must know.
func (p Place) Mark(s Stamp, more []byte) pump.Mark {
	state := make([]byte, 0, stateLen+len(more))
	for _, n := range [...]uint64{p.Line, p.Live, s.Size, s.ModTime, s.First} {
		state = binary.BigEndian.AppendUint64(state, n)
	}
	return pump.Mark{VBucket: pump.NoVBucket, Seqno: p.At, Items: p.Live, State: append(state, more...)}
}

// PlaceOf reads a mark back. It refuses one of a file that has changed, and any of
// a pipe: nothing proves that a pipe gives again what it gave before.
func PlaceOf(name string, m pump.Mark, s Stamp) (p Place, more []byte, err error) {
	if len(m.State) < stateLen {
		return p, nil, MarkError("file-mark", name, "the mark is not one of this kind of file")
	}
	var n [stateLen / 8]uint64
	for i := range n {
		n[i] = binary.BigEndian.Uint64(m.State[8*i:])
	}
	switch {
	case s == Stamp{}:
		what := "a pipe or device"
		if name == Stdio {
			name, what = "standard input", "standard input"
		}
		return p, nil, &pump.Error{Class: pump.ClassUsage, Code: "not-resumable", Op: "go on reading " + name,
			Err:  fmt.Errorf("%s cannot be read on from where another run left it", what),
			Hint: "Start from the beginning; or save its data to a file, which can be read on."}
	case Stamp{n[2], n[3], n[4]} != s:
		return p, nil, MarkError("file-changed", name, "it has changed since it was read")
	}
	return Place{At: m.Seqno, Line: n[0], Live: n[1]}, m.State[stateLen:], nil
}
