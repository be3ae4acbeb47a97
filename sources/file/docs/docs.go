// Package docs reads documents that are files of their own: json:FOLDER and
// json:FILE.zip. The documents are below docs/, the key is the name less .json.
// docs/files.md has the rules.
//
// A folder's documents come in the order of their paths, a zip's in the order of
// its directory. Memory does not depend on how many there are.
package docs

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of json: as a source.
type Options struct {
	Invalid     string    `opt:"invalid" default:"leave-out" enum:"leave-out,load" help:"what to do with files that are not JSON, and documents with a field _id, none of which older tools load: left out they are named and the result is partial"`
	MaxDocument pump.Size `opt:"max-document" default:"64m" help:"most bytes of one document"`
	MaxRatio    int       `opt:"max-ratio" default:"200" help:"most bytes of documents for each byte of a zip; more is taken for an attack"`
	MaxTotal    pump.Size `opt:"max-total" default:"1024g" help:"most bytes of all documents of a zip"`
}

// Plugin returns the declaration of json: as a source.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes:    []string{"json"},
		Extensions: []string{".zip"},
		Summary:    "a folder or zip of documents: each file below docs/ is one, its name less .json is the key",
		Doc:        "json:FOLDER, json:FILE.zip, or a path that ends in .zip. Subfolders are no part of the key. Design documents are in design_docs/.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Source, error) {
			s, err := New(fileio.Path(t), o)
			if err != nil {
				return nil, err
			}
			s.log = t.Log
			return s, nil
		},
	}
}

// New returns a source that reads a folder or a zip file.
func New(path string, o Options) (*Source, error) {
	switch {
	case path == "":
		return nil, pump.Usagef("json: names no folder; write json:FOLDER or json:FILE.zip")
	case o.MaxDocument < 1 || o.MaxRatio < 1 || o.MaxTotal < 1:
		return nil, pump.Usagef("json: max-document, max-ratio and max-total are at least 1")
	}
	return &Source{path: path, o: o, log: hclog.NewNullLogger()}, nil
}

// Source is a folder or zip of documents: one stream.
type Source struct {
	path string
	o    Options
	log  hclog.Logger

	mu     sync.Mutex
	omits  []string // what was left out, with the reason; the first few
	count  uint64   // of them in all
	before uint64   // were left out by the runs that this one goes on from
}

// mostNamed is how many of the things that were left out are named.
const mostNamed = 10

// place is where documents are: a folder or a zip.
type place interface {
	// next returns the next document, io.EOF behind the last.
	next(ctx context.Context) (document, error)
	// mark says where reading goes on, and resume goes there. It refuses to where
	// what was read before is not what is there now.
	mark() []byte
	resume(ctx context.Context, state []byte) error
	stamp() fileio.Stamp
	// escaped says that names are keys with percent escapes.
	escaped() bool
	// others lists files that are not part of the layout; the first few, and
	// once all was read.
	others() []string
	// designs reads the design documents.
	designs(ctx context.Context, f func(name string, text []byte) error) error
	close() error
}

// document is a file that is to be a document.
type document struct {
	name string   // for messages
	path []string // below the folder of documents
	size int64
	read func(p []byte) error // fills p, which has size bytes, and proves that there are no more
}

// open finds out what the path is.
func (s *Source) open() (place, error) {
	op := "read " + s.path
	if err := fileio.CheckPartial(s.path); err != nil {
		return nil, err
	}
	info, err := os.Stat(s.path)
	isZip := strings.EqualFold(filepath.Ext(s.path), ".zip")
	switch {
	case err != nil:
		return nil, fileio.ReadError(op, err)
	case isZip && info.IsDir():
		return nil, &pump.Error{Class: pump.ClassUsage, Code: "is-folder", Op: op, Err: errors.New("that is a folder, and a zip file is due")}
	case isZip:
		a, err := openZip(s.path, &s.o)
		if err != nil {
			return nil, err
		}
		return a, nil
	case info.IsDir():
		f, err := openFolder(s.path, &s.o)
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	return nil, &pump.Error{Class: pump.ClassUsage, Code: "no-folder", Op: op, Err: errors.New("that is neither a folder nor a .zip file")}
}

// Check implements pump.Checker.
func (s *Source) Check(context.Context) error {
	p, err := s.open()
	if err != nil {
		return err
	}
	return p.close()
}

// Streams implements pump.Source.
func (s *Source) Streams(context.Context) ([]pump.Stream, error) {
	abs, err := filepath.Abs(s.path)
	if err != nil {
		return nil, fileio.ReadError("read "+s.path, err)
	}
	return []pump.Stream{&stream{src: s, id: "json:" + abs}}, nil
}

// Close implements pump.Source.
func (s *Source) Close() error { return nil }

func (s *Source) omit(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count++; len(s.omits) < mostNamed {
		s.omits = append(s.omits, what)
	}
	s.log.Warn("left out", "file", what)
}

// Omitted implements pump.Omitter.
func (s *Source) Omitted() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count+s.before == 0 {
		return nil
	}
	list := s.omits
	if more := s.count - uint64(len(s.omits)); more > 0 {
		list = append(list[:len(list):len(list)], fmt.Sprintf("and %d more, see the warnings", more))
	}
	if s.before > 0 {
		list = append(list[:len(list):len(list)], fmt.Sprintf("%d before the place from which this run went on, see the warnings of the earlier one", s.before))
	}
	return &pump.Error{Class: pump.ClassPartial, Code: "documents-left-out", Op: "read " + s.path,
		Err:  fmt.Errorf("%d files were left out: %s", s.count+s.before, strings.Join(list, "; ")),
		Hint: "Everything else was read. -x invalid=load gives them as they are."}
}

// Definitions implements pump.Definer: the design documents, in the form of a
// backup's design.json.
func (s *Source) Definitions(ctx context.Context) ([]pump.Definition, error) {
	p, err := s.open()
	if err != nil {
		return nil, err
	}
	var all []row
	err = p.designs(ctx, func(name string, text []byte) error {
		r, derr := designRow(name, text)
		if derr != nil {
			s.omit(fileio.DesignDocs + "/" + name + ": " + derr.Error())
			return nil
		}
		all = append(all, r)
		return nil
	})
	if err = errors.Join(err, p.close()); err != nil || len(all) == 0 {
		return nil, err
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("read the design documents of %s: %w", s.path, err)
	}
	return []pump.Definition{{Kind: pump.DesignDocuments, JSON: text}}, nil
}

// row is a design document in a backup's design.json.
type row struct {
	Doc struct {
		JSON map[string]json.RawMessage `json:"json"`
		Meta struct {
			ID  string `json:"id"`
			Rev string `json:"rev,omitempty"`
		} `json:"meta"`
	} `json:"doc"`
}

func designRow(name string, text []byte) (r row, err error) {
	if err := json.Unmarshal(text, &r.Doc.JSON); err != nil {
		return r, fmt.Errorf("it is no JSON object (%w)", err)
	}
	r.Doc.Meta.ID = "_design/" + strings.TrimSuffix(name, fileio.Ending)
	for field, into := range map[string]*string{"_id": &r.Doc.Meta.ID, "_rev": &r.Doc.Meta.Rev} {
		if raw, ok := r.Doc.JSON[field]; ok {
			if err := json.Unmarshal(raw, into); err != nil {
				return r, fmt.Errorf("its %s is no string", field)
			}
			delete(r.Doc.JSON, field)
		}
	}
	return r, nil
}

type stream struct {
	src     *Source
	id      string
	at      place
	pending *document // did not fit into the last batch
	done    fileio.Place
	omitted uint64 // files that were left out before it
}

func (s *stream) ID() string { return s.id }

// Open goes on behind the document of the mark.
func (s *stream) Open(ctx context.Context, from []pump.Mark) (err error) {
	if err := s.Close(); err != nil {
		return err
	}
	if s.at, err = s.src.open(); err != nil {
		return err
	}
	s.pending, s.done, s.omitted = nil, fileio.Place{}, 0
	if len(from) == 0 {
		return nil
	}
	where, state, err := fileio.PlaceOf(s.src.path, from[len(from)-1], s.at.stamp())
	if err != nil {
		return err
	}
	if len(state) < 8 {
		return fileio.MarkError("file-mark", s.src.path, "the mark is not one of documents")
	}
	s.done, s.omitted = where, binary.BigEndian.Uint64(state)
	s.src.mu.Lock()
	s.src.before = s.omitted
	s.src.mu.Unlock()
	return s.at.resume(ctx, state[8:])
}

// Read fills the batch with documents.
func (s *stream) Read(ctx context.Context, b *pump.Batch) error {
	mark := s.mark()
	err := s.fill(ctx, b, &mark)
	if len(b.Items) > 0 || err == io.EOF {
		m := s.done.Mark(s.at.stamp(), mark)
		m.Complete = err == io.EOF
		b.Marks = append(b.Marks, m)
	}
	if others := s.at.others(); err == io.EOF && len(others) > 0 {
		s.src.log.Warn("these are not part of the layout and were not read", "folder", s.src.path, "files", strings.Join(others, ", "))
	}
	return err
}

// fill adds documents until the batch is full; mark follows them.
func (s *stream) fill(ctx context.Context, b *pump.Batch, mark *[]byte) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		d := s.pending
		if d == nil {
			next, err := s.at.next(ctx)
			if err != nil {
				return err
			}
			d = &next
		}
		if len(b.Items) > 0 && int(d.size)+maxKey > b.Free() {
			s.pending = d
			return nil
		}
		s.pending = nil
		if err := s.add(d, b); err != nil {
			return err
		}
		*mark = s.mark()
	}
}

// mark is how many files were left out, and the place's own mark.
func (s *stream) mark() []byte {
	return append(binary.BigEndian.AppendUint64(nil, s.omitted), s.at.mark()...)
}

func (s *stream) omit(what string) {
	s.omitted++
	s.src.omit(what)
}

// maxKey is room that a key takes, for most keys.
const maxKey = 250

func (s *stream) add(d *document, b *pump.Batch) error {
	op := "read " + d.name
	if d.size > int64(s.src.o.MaxDocument) {
		return &pump.Error{Code: "record-too-long", Op: op, Err: fmt.Errorf("the document has %d bytes; at most %s are read", d.size, s.src.o.MaxDocument),
			Hint: "-x max-document=… raises the limit."}
	}
	key := []byte(d.path[len(d.path)-1])
	key = key[:len(key)-len(fileio.Ending)]
	if s.at.escaped() {
		var err error
		if key, err = fileio.UnescapeName(d.path); err != nil {
			return &pump.Error{Code: "json-input", Op: op, Err: err}
		}
	}
	if len(key) == 0 {
		return &pump.Error{Code: "json-input", Op: op, Err: errors.New("the name is nothing but .json, which is no key")}
	}
	value := b.Alloc(int(d.size))
	if err := d.read(value); err != nil {
		return err
	}
	isJSON := json.Valid(value) && utf8.Valid(value)
	if !s.at.escaped() && s.src.o.Invalid != "load" {
		if !isJSON {
			s.omit(d.name + ": it is not JSON")
			return nil
		}
		if hasID(value) {
			s.omit(d.name + ": it has a field _id")
			return nil
		}
	}
	it := b.Append()
	it.VBucket, it.Key, it.Value = pump.NoVBucket, b.Copy(key), value
	if isJSON {
		it.Datatype = 1
	}
	s.done.At++
	s.done.Live++
	return nil
}

// hasID says whether a JSON document has a field _id.
func hasID(value []byte) bool {
	if !bytes.Contains(value, []byte("_id")) && !bytes.Contains(value, []byte(`\u`)) {
		return false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil {
		return false // no object
	}
	_, has := fields["_id"]
	return has
}

// Close lets go of the folder or file. It is safe to call it twice.
func (s *stream) Close() error {
	if s.at == nil {
		return nil
	}
	err := s.at.close()
	s.at = nil
	return err
}
