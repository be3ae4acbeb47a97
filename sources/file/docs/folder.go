package docs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

const (
	// namesAtOnce is how many names of one folder are held and sorted at once: a
	// folder of more is read several times (invariant 7).
	namesAtOnce = 1 << 18
	maxDepth    = 100 // of folders in folders
)

// folder walks a folder of documents in the order of paths. It holds a few names
// of each folder on the way to the present one.
type folder struct {
	root   string
	o      *Options
	marked bool
	rest   []string // names beside docs/ and design_docs/
	levels []level
	last   string      // the last document, below docs/
	trail  hash.Hash64 // of name, size and time of every document up to it

	atOnce int
}

// level is a folder on the way to the present document.
type level struct {
	path  string // below docs/, "" for docs/ itself
	info  os.FileInfo
	names []string // sorted, those to come
	after string   // the last one that was taken
	more  bool     // there are others behind names
}

func openFolder(path string, o *Options) (*folder, error) {
	f := &folder{root: path, o: o, atOnce: namesAtOnce, trail: fnv.New64a()}
	op := "read " + path
	names, _, err := sortedNames(path, "", 1000)
	if err != nil {
		return nil, fileio.ReadError(op, err)
	}
	for _, name := range names {
		switch name {
		case fileio.Docs, fileio.DesignDocs:
		case fileio.NamesMarker:
			if f.marked, err = isMarker(filepath.Join(path, name)); err != nil {
				return nil, err
			}
		default:
			if len(f.rest) < mostNamed {
				f.rest = append(f.rest, name)
			}
		}
	}
	if f.marked { // without it names mean other keys
		_, _ = f.trail.Write([]byte(fileio.NamesMarker))
	}
	if err := f.enter(""); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, &pump.Error{Class: pump.ClassUsage, Code: "no-docs", Op: op, Err: errors.New("there is no folder docs/ in it"),
				Hint: "Documents are files below docs/ of the folder that is named."}
		}
		return nil, err
	}
	return f, nil
}

func isMarker(path string) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, fileio.ReadError("read "+path, err)
	}
	text, err := io.ReadAll(io.LimitReader(file, 100))
	if err = errors.Join(err, file.Close()); err != nil {
		return false, fileio.ReadError("read "+path, err)
	}
	return marker(path, text)
}

// marker checks what the file that marks a folder of ours says.
func marker(path string, text []byte) (bool, error) {
	if string(text) != fileio.NamesText {
		return false, &pump.Error{Code: "json-input", Op: "read " + path, Err: errors.New("it does not say \"percent 1\": how keys are written as names is not known"),
			Hint: "A newer cbpump reads it. Without this file names are taken for keys as they stand."}
	}
	return true, nil
}

// sortedNames returns the first names of a folder behind one, and whether there
// are more than most.
func sortedNames(path, after string, most int) (names []string, more bool, err error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for {
		some, err := d.Readdirnames(4096)
		for _, name := range some {
			if name > after {
				names = append(names, name)
			}
		}
		if len(names) > 2*most || err == io.EOF {
			slices.Sort(names)
			if len(names) > most {
				names, more = names[:most], true
			}
		}
		if err == io.EOF {
			return slices.Clip(names), more, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
}

func (f *folder) full(path string) string {
	return filepath.Join(f.root, fileio.Docs, filepath.FromSlash(path))
}

// enter goes into a folder.
func (f *folder) enter(path string) error {
	full := f.full(path)
	op := "read " + full
	info, err := os.Stat(full)
	if err != nil {
		return fileio.ReadError(op, err)
	}
	if !info.IsDir() {
		return &pump.Error{Code: "json-input", Op: op, Err: errors.New("that is no folder, and a folder is due")}
	}
	for _, l := range f.levels {
		if os.SameFile(l.info, info) {
			return &pump.Error{Code: "json-loop", Op: op, Err: errors.New("a symbolic link leads back to a folder above it"),
				Hint: "Remove the link: the folder has no end with it."}
		}
	}
	if len(f.levels) >= maxDepth {
		return &pump.Error{Code: "json-loop", Op: op, Err: fmt.Errorf("more than %d folders in each other", maxDepth)}
	}
	l := level{path: path, info: info}
	if l.names, l.more, err = sortedNames(full, "", f.atOnce); err != nil {
		return fileio.ReadError(op, err)
	}
	f.levels = append(f.levels, l)
	return nil
}

func (f *folder) next(ctx context.Context) (document, error) {
	for len(f.levels) > 0 {
		if err := ctx.Err(); err != nil {
			return document{}, context.Cause(ctx)
		}
		l := &f.levels[len(f.levels)-1]
		if len(l.names) == 0 {
			if !l.more {
				f.levels = f.levels[:len(f.levels)-1]
				continue
			}
			var err error
			if l.names, l.more, err = sortedNames(f.full(l.path), l.after, f.atOnce); err != nil {
				return document{}, fileio.ReadError("read "+f.full(l.path), err)
			}
			continue
		}
		name := l.names[0]
		l.names, l.after = l.names[1:], name
		path := name
		if l.path != "" {
			path = l.path + "/" + name
		}
		full := f.full(path)
		shown := f.full("") + "/" + pump.UserData(path) // the name is made of the key
		info, err := os.Stat(full)
		switch {
		case err != nil: // a link to nowhere, or to itself, among others
			return document{}, fileio.ReadError("read "+shown, err)
		case info.IsDir():
			if err := f.enter(path); err != nil {
				return document{}, err
			}
		case !info.Mode().IsRegular():
			return document{}, &pump.Error{Code: "json-input", Op: "read " + shown, Err: errors.New("that is neither a file nor a folder")}
		case !isDocument(name):
			if len(f.rest) < mostNamed {
				f.rest = append(f.rest, fileio.Docs+"/"+path)
			}
		default:
			f.last = path
			f.follow(path, info)
			return document{name: shown, path: strings.Split(path, "/"), size: info.Size(), read: func(p []byte) error { return readFile(shown, full, p) }}, nil
		}
	}
	return document{}, io.EOF
}

// isDocument says whether the name of a file has the ending of documents.
func isDocument(name string) bool {
	return len(name) >= len(fileio.Ending) && strings.EqualFold(name[len(name)-len(fileio.Ending):], fileio.Ending)
}

// readFile fills p with a whole file, which must have just that size. Errors call
// it shown.
func readFile(shown, path string, p []byte) error {
	file, err := os.Open(path)
	if err != nil {
		return fileio.ReadError("read "+shown, err)
	}
	err = readWhole(file, p)
	if err = errors.Join(err, file.Close()); err != nil {
		return fileio.ReadError("read "+shown, err)
	}
	return nil
}

var errChanging = errors.New("it has not the size that it had a moment ago: something is writing it")

func readWhole(r io.Reader, p []byte) error {
	if _, err := io.ReadFull(r, p); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
			return errChanging
		}
		return err
	}
	var beyond [1]byte
	for {
		switch n, err := r.Read(beyond[:]); {
		case n > 0:
			return errChanging
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// follow adds a document to the trail.
func (f *folder) follow(path string, info os.FileInfo) {
	p := append([]byte(path), 0)
	p = binary.BigEndian.AppendUint64(p, uint64(info.Size()))
	p = binary.BigEndian.AppendUint64(p, uint64(info.ModTime().UnixNano()))
	_, _ = f.trail.Write(p) // a hash takes everything
}

func (f *folder) mark() []byte {
	return append(binary.BigEndian.AppendUint64(nil, f.trail.Sum64()), f.last...)
}

// resume walks to the document of the mark without opening any. What was read
// before must be there as it was: a document that came, went or changed in the
// meantime would be missed otherwise.
func (f *folder) resume(ctx context.Context, state []byte) error {
	if len(state) < 8 {
		return fileio.MarkError("file-mark", f.root, "the mark is not one of a folder of documents")
	}
	for last := string(state[8:]); f.last != last; {
		_, err := f.next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if binary.BigEndian.Uint64(state) != f.trail.Sum64() {
		return fileio.MarkError("file-changed", f.root, "documents that were read before have changed since, or others have come or gone")
	}
	return nil
}

// stamp says that it is no pipe; the trail says more than the folder's own time.
func (f *folder) stamp() fileio.Stamp { return fileio.Stamp{Size: 1} }

func (f *folder) escaped() bool { return f.marked }

func (f *folder) others() []string { return f.rest }

func (f *folder) designs(ctx context.Context, each func(name string, text []byte) error) error {
	dir := filepath.Join(f.root, fileio.DesignDocs)
	for after := ""; ; {
		names, more, err := sortedNames(dir, after, f.atOnce)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fileio.ReadError("read "+dir, err)
		}
		for _, name := range names {
			after = name
			full := filepath.Join(dir, name)
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			info, err := os.Stat(full)
			switch {
			case err != nil:
				return fileio.ReadError("read "+full, err)
			case !info.Mode().IsRegular() || !isDocument(name):
				continue
			case info.Size() > int64(f.o.MaxDocument):
				return &pump.Error{Code: "record-too-long", Op: "read " + full, Err: fmt.Errorf("the design document is larger than %s", f.o.MaxDocument)}
			}
			text := make([]byte, info.Size())
			if err := readFile(full, full, text); err != nil {
				return err
			}
			if err := each(name, text); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

func (f *folder) close() error { return nil }
