package compare

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cbpump/cbpump/pump"
)

const (
	partitionBits = 6
	partitions    = 1 << partitionBits
	// splitBits is by how many bits of the hash a partition is dealt out that is too
	// large to be joined at once.
	splitBits = 4
	maxDepth  = (64 - partitionBits) / splitBits
)

func partitionOf(hash uint64) int { return int(hash >> (64 - partitionBits)) }

// folder makes the temporary files of a comparison. They hold keys and values of
// users: nobody else may read them.
type folder struct{ path string }

// newFolder makes a folder in dir ("": the system's for temporary files).
func newFolder(dir string) (*folder, error) {
	path, err := os.MkdirTemp(dir, "cbpump-compare-")
	if err != nil {
		return nil, spillError("make a folder for temporary files", err)
	}
	return &folder{path}, nil
}

func (f *folder) create() (*os.File, error) {
	file, err := os.CreateTemp(f.path, "part-")
	if err != nil {
		return nil, spillError("make a temporary file", err)
	}
	return file, nil
}

func (f *folder) remove() error {
	if err := os.RemoveAll(f.path); err != nil {
		return spillError("remove the temporary files", err)
	}
	return nil
}

func spillError(op string, err error) error {
	return &pump.Error{Class: pump.ClassFailed, Code: "temporary-files", Op: "compare: " + op, Err: plainIO(err),
		Hint: "What does not fit into memory goes to temporary files. TMPDIR (cbtransfer: also --temp-dir) names a folder with more room."}
}

// plainIO keeps a refused temporary file from looking like a refused login.
func plainIO(err error) error { return errors.New(err.Error()) }

// bucket is a list of records, the older ones in a file and the rest in memory.
type bucket struct {
	file   *os.File // nil: nothing has been moved out
	chunks [][]byte
	bytes  int64 // in all
}

// store keeps records in buckets and moves what exceeds its memory to files. One
// goroutine uses it at a time.
type store struct {
	width   int // of a state
	dir     *folder
	buckets []bucket
	chunk   int // bytes of a chunk
	most    int // chunks in memory
	used    int
	free    [][]byte
	spilled int64 // bytes that were written to files
}

// newStore returns a store of n buckets that keeps about memory bytes.
func newStore(dir *folder, n, width int, memory int64) *store {
	chunk := int(min(64<<10, max(512, memory/int64(4*n))))
	return &store{width: width, dir: dir, buckets: make([]bucket, n), chunk: chunk, most: max(2, int(memory/int64(chunk)))}
}

// add returns size bytes to be filled with a record of bucket i.
func (s *store) add(i, size int) ([]byte, error) {
	b := &s.buckets[i]
	if n := len(b.chunks); n > 0 {
		if last := b.chunks[n-1]; cap(last)-len(last) >= size {
			at := len(last)
			b.chunks[n-1] = last[:at+size]
			b.bytes += int64(size)
			return b.chunks[n-1][at:], nil
		}
	}
	if s.used >= s.most {
		if err := s.spill(); err != nil {
			return nil, err
		}
	}
	var c []byte
	switch n := len(s.free); {
	case size > s.chunk:
		c = make([]byte, 0, size)
	case n > 0:
		c, s.free = s.free[n-1], s.free[:n-1]
	default:
		c = make([]byte, 0, s.chunk)
	}
	s.used += s.weight(c)
	b.chunks = append(b.chunks, c[:size])
	b.bytes += int64(size)
	return c[:size], nil
}

func (s *store) weight(c []byte) int { return max(1, cap(c)/s.chunk) }

// spill moves the bucket that takes most memory to its file.
func (s *store) spill() error {
	largest := 0
	for i := range s.buckets {
		if len(s.buckets[i].chunks) > len(s.buckets[largest].chunks) {
			largest = i
		}
	}
	b := &s.buckets[largest]
	if b.file == nil {
		file, err := s.dir.create()
		if err != nil {
			return err
		}
		b.file = file
	}
	for _, c := range b.chunks {
		if _, err := b.file.Write(c); err != nil {
			return spillError("write a temporary file", err)
		}
		s.spilled += int64(len(c))
	}
	s.release(b)
	return nil
}

// release takes a bucket's memory back.
func (s *store) release(b *bucket) {
	for i, c := range b.chunks {
		s.used -= s.weight(c)
		if cap(c) == s.chunk {
			s.free = append(s.free, c[:0])
		}
		b.chunks[i] = nil
	}
	b.chunks = b.chunks[:0]
}

// drop forgets a bucket's records.
func (s *store) drop(i int) error {
	b := &s.buckets[i]
	s.release(b)
	b.bytes = 0
	if b.file == nil {
		return nil
	}
	name := b.file.Name()
	err := errors.Join(b.file.Close(), os.Remove(name))
	b.file = nil
	if err != nil {
		return spillError("remove a temporary file", err)
	}
	return nil
}

// close closes the files; their folder goes as a whole.
func (s *store) close() error {
	var errs []error
	for i := range s.buckets {
		if f := s.buckets[i].file; f != nil {
			errs = append(errs, f.Close())
			s.buckets[i].file = nil
		}
	}
	return errors.Join(errs...)
}

// scanner reads buckets; it is reused for its memory.
type scanner struct {
	file *bufio.Reader
	long []byte // a record longer than the reader's buffer
}

// each calls f for the records of a bucket in the order in which they came. They
// are valid until f returns.
func (sc *scanner) each(s *store, i int, f func(rec []byte) error) error {
	b := &s.buckets[i]
	if b.file != nil {
		if _, err := b.file.Seek(0, io.SeekStart); err != nil {
			return spillError("read a temporary file", err)
		}
		if sc.file == nil {
			sc.file = bufio.NewReaderSize(nil, 64<<10)
		}
		sc.file.Reset(b.file)
		for {
			rec, n, err := sc.next(s.width)
			if err == io.EOF {
				break
			}
			if err != nil {
				return spillError("read a temporary file", err)
			}
			if err := f(rec); err != nil {
				return err
			}
			if _, err := sc.file.Discard(n); err != nil {
				return spillError("read a temporary file", err)
			}
		}
	}
	for _, c := range b.chunks {
		for len(c) > 0 {
			n := recordSize(c, s.width)
			if err := f(c[:n:n]); err != nil {
				return err
			}
			c = c[n:]
		}
	}
	return nil
}

// next returns the next record and how much of the reader's buffer it takes.
func (sc *scanner) next(width int) (rec []byte, n int, err error) {
	head, err := sc.file.Peek(headSize)
	if len(head) == 0 && err == io.EOF {
		return nil, 0, io.EOF
	}
	if err != nil {
		return nil, 0, cutShort(err)
	}
	if n = recordSize(head, width); n <= sc.file.Size() {
		if rec, err = sc.file.Peek(n); err != nil {
			return nil, 0, cutShort(err)
		}
		return rec, n, nil
	}
	if cap(sc.long) < n {
		sc.long = make([]byte, n)
	}
	rec = sc.long[:n]
	if _, err := io.ReadFull(sc.file, rec); err != nil {
		return nil, 0, cutShort(err)
	}
	return rec, 0, nil
}

func cutShort(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("it ends in the middle of a record: something else has changed it")
	}
	return err
}

// The parts of a record.

func recordSize(rec []byte, width int) int {
	return headSize + width + int(binary.LittleEndian.Uint32(rec[10:]))
}
func recordHash(rec []byte) uint64       { return binary.LittleEndian.Uint64(rec) }
func recordCollection(rec []byte) uint16 { return binary.LittleEndian.Uint16(rec[8:]) }

func putHead(rec []byte, hash uint64, collection uint16, key int) {
	binary.LittleEndian.PutUint64(rec, hash)
	binary.LittleEndian.PutUint16(rec[8:], collection)
	binary.LittleEndian.PutUint32(rec[10:], uint32(key))
}

// valueFile keeps the values and metas of items. One goroutine writes it; it is
// read once all writing is done.
type valueFile struct {
	file *os.File
	w    *bufio.Writer
	size uint64
}

func newValueFile(dir *folder) (*valueFile, error) {
	f, err := dir.create()
	if err != nil {
		return nil, err
	}
	return &valueFile{file: f, w: bufio.NewWriterSize(f, 64<<10)}, nil
}

func (v *valueFile) add(it *pump.Item) (place, error) {
	at := place{offset: v.size, value: uint32(len(it.Value)), meta: uint32(len(it.Meta))}
	for _, p := range [][]byte{it.Value, it.Meta} {
		if _, err := v.w.Write(p); err != nil {
			return at, spillError("write a temporary file", err)
		}
		v.size += uint64(len(p))
	}
	return at, nil
}

func (v *valueFile) flush() error {
	if err := v.w.Flush(); err != nil {
		return spillError("write a temporary file", err)
	}
	return nil
}

// read returns what lies at a place; buf is used and returned grown.
func (v *valueFile) read(at place, buf []byte) (value, meta, grown []byte, err error) {
	n := int(at.value) + int(at.meta)
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := v.file.ReadAt(buf, int64(at.offset)); err != nil {
		return nil, nil, buf, spillError("read a temporary file", err)
	}
	return buf[:at.value:at.value], buf[at.value:], buf, nil
}
