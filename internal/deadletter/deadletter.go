// Package deadletter keeps the items that a destination refused, each with the
// reason, in a file in cbpump's jsonl form. The file is a source itself: reading
// it repeats the items (docs/cbtransfer.md, docs/files.md).
package deadletter

import (
	"fmt"
	"sync"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/file/jsonl"
)

// File is where rejected items go. It is safe for concurrent use.
type File struct {
	path  string
	names func() string // of a file that is made with the first item; nil: it is there
	mu    sync.Mutex
	out   output
	buf   []byte
	n     uint64
	dirty bool  // written, not synced
	err   error // the first failure: nothing counts as kept after it
}

// output is a fileio.Appendable.
type output interface {
	Empty() bool
	Write(lines []byte) (int, error)
	Sync() error
	Close() error
}

// Open makes the file, so that a name that cannot be written shows before the
// run. One that is there already must be empty, or with resume a file of an
// earlier run, which is gone on with. A file without items is removed by Close.
func Open(path string, resume bool) (*File, error) {
	out, err := fileio.OpenAppendable(path, []byte(jsonl.Header), resume)
	if err != nil {
		return nil, fmt.Errorf("keep rejected items: %w", err)
	}
	return &File{path: path, out: out}, nil
}

// Later returns a file that is made with the first item, under the first of names
// that is free; names is asked for another one as long as none is.
func Later(names func() string) *File { return &File{names: names} }

// Path is where the items are, "" as long as there is no file.
func (f *File) Path() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.path
}

// Len returns how many items this run has put into the file.
func (f *File) Len() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// bufferBytes is what is collected before it is written.
const bufferBytes = 64 << 10

// Write adds an item. It is durable after the next Sync. After an error, of this
// or an earlier call, the item is not kept.
func (f *File) Write(it *pump.Item, why error) error {
	reason, code := "no reason given", "rejected"
	if why != nil {
		reason, code = why.Error(), pump.CodeOf(why)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if f.err = f.open(); f.err != nil {
		return f.err
	}
	if len(f.buf) == 0 && f.out.Empty() {
		f.buf = append(f.buf, jsonl.Header...)
	}
	var err error
	if f.buf, err = jsonl.AppendRejected(f.buf, it, reason, code); err != nil {
		f.err = &pump.Error{Code: "dead-letter", Op: "keep a rejected item in " + f.path, Err: fmt.Errorf("%w; it was rejected since: %s", err, reason),
			Hint: "--dead-letters none keeps no rejected items."}
		return f.err
	}
	f.n++
	if len(f.buf) >= bufferBytes {
		return f.flush()
	}
	return nil
}

// open makes the file that was to be made with the first item.
func (f *File) open() error {
	const tries = 100
	for i := 0; f.out == nil; i++ {
		path := f.names()
		out, err := fileio.OpenAppendable(path, []byte(jsonl.Header), false)
		switch code := pump.CodeOf(err); {
		case err == nil:
			f.path, f.out = path, out
		case i < tries && (code == "file-exists" || code == "file-busy"):
		default:
			return &pump.Error{Class: pump.ClassOf(err), Code: code, Op: "keep a rejected item", Err: err,
				Hint: "--dead-letters FILE keeps rejected items elsewhere; --dead-letters none does not keep them."}
		}
	}
	return nil
}

func (f *File) flush() error {
	if f.err != nil || len(f.buf) == 0 {
		return f.err
	}
	if _, f.err = f.out.Write(f.buf); f.err != nil {
		f.err = fmt.Errorf("keep rejected items: %w", f.err)
		return f.err
	}
	f.dirty = true
	if f.buf = f.buf[:0]; cap(f.buf) > 16*bufferBytes {
		f.buf = nil // it grew for a large item
	}
	return nil
}

// Sync makes every item durable that was written. No checkpoint may pass an item
// before (invariant 3).
func (f *File) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sync()
}

func (f *File) sync() error {
	if err := f.flush(); err != nil || !f.dirty {
		return err
	}
	if err := f.out.Sync(); err != nil {
		f.err = fmt.Errorf("keep rejected items: %w", err)
		return f.err
	}
	f.dirty = false
	return nil
}

// Close syncs and closes the file.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.sync()
	if f.out != nil {
		if cerr := f.out.Close(); err == nil {
			err = cerr
		}
	}
	return err
}
