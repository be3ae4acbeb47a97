package fileio

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
		in.stamp = Stamp{uint64(info.Size()), uint64(info.ModTime().UnixNano())}
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

// SkipTo goes to an offset of the decompressed bytes from the beginning of the
// file: at once where the file is not compressed, else by reading.
func (in *Input) SkipTo(ctx context.Context, offset int64) error {
	if in.plain {
		if uint64(offset) > in.stamp.Size {
			return in.shorter(offset)
		}
		if _, err := in.f.Seek(offset, io.SeekStart); err != nil {
			return ReadError("read "+in.name, err)
		}
		return nil
	}
	buf := make([]byte, min(offset, 256<<10))
	for left := offset; left > 0; {
		n, err := in.Read(ctx, buf[:min(left, int64(len(buf)))])
		left -= int64(n)
		switch {
		case err == io.EOF && left > 0:
			return in.shorter(offset)
		case err != nil && err != io.EOF:
			return err
		}
	}
	return nil
}

func (in *Input) shorter(offset int64) error {
	return &pump.Error{Code: "file-mark", Op: "go on reading " + in.name, Err: fmt.Errorf("it has fewer than the %d bytes that were read of it before", offset),
		Hint: "It is not the file that was read before. Start from its beginning."}
}

// Stamp tells this file from its later self.
func (in *Input) Stamp() Stamp { return in.stamp }

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

// stateLen is the length of a mark's state: line, live, size, time.
const stateLen = 4 * 8

// Mark returns the mark of a place; more is what else the format must know.
func (p Place) Mark(s Stamp, more []byte) pump.Mark {
	state := make([]byte, 0, stateLen+len(more))
	for _, n := range [...]uint64{p.Line, p.Live, s.Size, s.ModTime} {
		state = binary.BigEndian.AppendUint64(state, n)
	}
	return pump.Mark{VBucket: pump.NoVBucket, Seqno: p.At, Items: p.Live, State: append(state, more...)}
}

// PlaceOf reads a mark back. It refuses one of a file that has changed.
func PlaceOf(name string, m pump.Mark, s Stamp) (p Place, more []byte, err error) {
	op := "go on reading " + name
	if len(m.State) < stateLen {
		return p, nil, &pump.Error{Code: "file-mark", Op: op, Err: errors.New("the mark is not one of this kind of file")}
	}
	var n [4]uint64
	for i := range n {
		n[i] = binary.BigEndian.Uint64(m.State[8*i:])
	}
	if (Stamp{n[2], n[3]}) != s {
		return p, nil, &pump.Error{Code: "file-changed", Op: op, Err: errors.New("it has changed since"),
			Hint: "Where reading stopped means nothing in the changed file. Start from its beginning."}
	}
	return Place{At: m.Seqno, Line: n[0], Live: n[1]}, m.State[stateLen:], nil
}
