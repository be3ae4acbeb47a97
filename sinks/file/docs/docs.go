// Package docs writes documents as files of their own: json:FOLDER and
// json:FILE.zip, in the layout that sources/file/docs reads: docs/KEY.json and
// design_docs/NAME.json. docs/files.md has the rule for names and says what such
// a folder does not hold.
package docs

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of json: as a sink.
type Options struct {
	NotJSON   string `opt:"not-json" default:"reject" enum:"reject,write" help:"what becomes of values that are not JSON: rejected, or written as they are into a file that ends in .json all the same"`
	Overwrite bool   `opt:"overwrite" default:"no" help:"let a new zip take the place of one of that name, once it is complete; folders are never overwritten"`
}

// Plugin returns the declaration of json: as a sink.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes:    []string{"json"},
		Extensions: []string{".zip"},
		Summary:    "a folder or zip of documents: docs/KEY.json for each",
		Doc: "json:FOLDER, json:FILE.zip, or a path that ends in .zip. The folder must not be there yet, or be empty. " +
			"A deletion removes the document from a folder; a zip has no place for it. Folder and zip have a name ending in .partial until they are complete.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Sink, error) {
			s, err := New(fileio.Path(t), o)
			if err != nil {
				return nil, err
			}
			s.log = t.Log
			return s, nil
		},
	}
}

// New returns a sink that writes a folder or, if the path ends in .zip, a zip.
func New(path string, o Options) (*Sink, error) {
	if path == "" {
		return nil, pump.Usagef("json: names no folder; write json:FOLDER or json:FILE.zip")
	}
	return &Sink{path: path, o: o, zip: strings.EqualFold(filepath.Ext(path), ".zip"), log: hclog.NewNullLogger()}, nil
}

// Sink is a folder or zip of documents that is being written.
type Sink struct {
	path  string
	o     Options
	zip   bool
	log   hclog.Logger
	place place
	items atomic.Uint64

	losses fileio.Losses
}

// loses is what a document that is a file of its own does not have. That it is JSON
// can be seen; any other datatype cannot.
const loses = fileio.VBucket | fileio.Flags | fileio.Expiry | fileio.CAS | fileio.Rev | fileio.Seqno | fileio.Meta | fileio.Gone

// Losses implements pump.Loser.
func (s *Sink) Losses() []pump.Loss { return s.losses.List() }

// place is where documents go. It is used concurrently, but for one key by one
// goroutine at a time.
type place interface {
	// put writes a document in the place of an earlier one.
	put(ctx context.Context, folder string, key, value []byte) error
	// remove removes a document; false says that there is no removing.
	remove(key []byte) (bool, error)
	commit(ctx context.Context) error
	partial() string
	close(keep bool) error
}

// Check implements pump.Checker.
func (s *Sink) Check(context.Context) error {
	if s.zip {
		return fileio.CheckOutput(s.path, s.o.Overwrite)
	}
	return fileio.CheckTree(s.path)
}

// maxLanes bounds how many files are written at once.
const maxLanes = 8

// Lanes creates the folder or zip.
func (s *Sink) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	var err error
	if s.zip {
		s.place, err = createArchive(ctx, s.path, s.o.Overwrite)
	} else {
		s.place, err = createFolder(s.path)
	}
	if err != nil {
		return nil, err
	}
	n := min(2*runtime.GOMAXPROCS(0), maxLanes)
	if want > 0 {
		n = min(want, maxLanes)
	}
	lanes := make([]pump.Lane, n)
	for i := range lanes {
		lanes[i] = lane{s}
	}
	return lanes, nil
}

// TakeDefinitions implements pump.DefinitionTaker: design documents have a place,
// other definitions have none.
func (s *Sink) TakeDefinitions(ctx context.Context, all []pump.Definition) (leftOut []pump.Definition, err error) {
	for _, d := range all {
		taken := false
		if d.Kind == pump.DesignDocuments && s.place != nil {
			if taken, err = s.designs(ctx, d.JSON); err != nil {
				return nil, err
			}
		}
		if !taken {
			leftOut = append(leftOut, d)
		}
	}
	return leftOut, nil
}

// designs writes the design documents of a backup's design.json; false says that
// it is not of that form.
func (s *Sink) designs(ctx context.Context, text []byte) (bool, error) {
	var rows []struct {
		Doc struct {
			JSON map[string]json.RawMessage `json:"json"`
			Meta struct {
				ID  string `json:"id"`
				Rev string `json:"rev"`
			} `json:"meta"`
		} `json:"doc"`
	}
	if json.Unmarshal(text, &rows) != nil {
		return false, nil
	}
	for _, r := range rows {
		if r.Doc.JSON == nil || r.Doc.Meta.ID == "" {
			return false, nil
		}
	}
	for _, r := range rows {
		fields := map[string]any{"_id": r.Doc.Meta.ID}
		if r.Doc.Meta.Rev != "" {
			fields["_rev"] = r.Doc.Meta.Rev
		}
		for name, value := range r.Doc.JSON {
			fields[name] = value
		}
		doc, err := json.Marshal(fields)
		if err != nil {
			return false, err
		}
		key := strings.TrimPrefix(r.Doc.Meta.ID, "_design/")
		if err := s.place.put(ctx, fileio.DesignDocs, []byte(key), append(doc, '\n')); err != nil {
			return false, err
		}
	}
	return true, nil
}

// Commit implements pump.Committer.
func (s *Sink) Commit(ctx context.Context) error {
	if s.place == nil {
		return nil
	}
	return s.place.commit(ctx)
}

// Close lets go of the folder or zip. One that was not committed keeps its name
// ending in ".partial", or goes if nothing is in it.
func (s *Sink) Close() error {
	if s.place == nil {
		return nil
	}
	partial, items := s.place.partial(), s.items.Load()
	keep := partial != "" && items > 0
	if keep {
		s.log.Warn("the documents are incomplete and have not got their name", "path", partial, "items", items)
	}
	err := s.place.close(keep)
	s.place = nil
	if err != nil {
		return fileio.WriteError("close "+s.path, partial, err)
	}
	return nil
}

type lane struct{ sink *Sink }

// Datatypes: a file holds a plain value.
func (s *Sink) Datatypes(context.Context) (uint8, error) { return pump.DatatypeJSON, nil }

var (
	errNoKey      = errors.New("a folder of documents holds no document without a key")
	errCollection = errors.New("a folder of documents has no place for the collection of an item")
	errNotJSON    = errors.New("the value is not JSON; -x not-json=write writes it all the same")
	errDatatype   = errors.New("the value has extended attributes, is compressed or of an unknown datatype: it is no document that can be a file")
	errDeletion   = errors.New("a zip of documents has no place for deletions; a folder has")
)

// Write writes each document.
func (l lane) Write(ctx context.Context, b *pump.Batch) error {
	s := l.sink
	for i := range b.Items {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		it := &b.Items[i]
		lost := loses
		isJSON := it.Op == pump.Mutation && json.Valid(it.Value) && utf8.Valid(it.Value)
		if !isJSON || it.Datatype != pump.DatatypeJSON {
			lost |= fileio.Datatype
		}
		switch {
		case len(it.Key) == 0:
			b.Settle(i, pump.Rejected, errNoKey)
			continue
		case it.Collection != nil && (it.Collection.Scope != "_default" || it.Collection.Name != "_default"):
			b.Settle(i, pump.Rejected, errCollection)
			continue
		case it.Op != pump.Mutation:
			removed, err := s.place.remove(it.Key)
			if err != nil {
				return err
			}
			if !removed {
				b.Settle(i, pump.Rejected, errDeletion)
				continue
			}
		case it.Datatype&^pump.DatatypeJSON != 0:
			b.Settle(i, pump.Rejected, errDatatype)
			continue
		case s.o.NotJSON != "write" && !isJSON:
			b.Settle(i, pump.Rejected, errNotJSON)
			continue
		default:
			s.items.Add(1)
			if err := s.place.put(ctx, fileio.Docs, it.Key, it.Value); err != nil {
				return err
			}
		}
		s.losses.Note(it, lost)
		b.Done(i)
	}
	return nil
}

// Close has nothing of its own to release.
func (l lane) Close() error { return nil }

// folder is a place in a folder.
type folder struct{ tree *fileio.Tree }

func createFolder(path string) (place, error) {
	t, err := fileio.CreateTree(path)
	if err != nil {
		return nil, err
	}
	f := folder{t}
	// An empty copy is a folder of documents too.
	// The marker comes first: by it the next run knows what this one may leave.
	if err := errors.Join(t.Write([]string{fileio.NamesMarker}, []byte(fileio.NamesText)), t.Folder(fileio.Docs)); err != nil {
		return nil, errors.Join(err, t.Close(false))
	}
	return f, nil
}

func (f folder) path(in string, key []byte) []string {
	return append([]string{in}, fileio.SpreadName(fileio.EscapeName(key, f.tree.Fold))...)
}

func (f folder) put(_ context.Context, in string, key, value []byte) error {
	return f.tree.Write(f.path(in, key), value)
}

func (f folder) remove(key []byte) (bool, error) {
	return true, f.tree.Remove(f.path(fileio.Docs, key))
}

func (f folder) commit(context.Context) error { return f.tree.Commit() }

func (f folder) partial() string { return f.tree.Partial() }

func (f folder) close(keep bool) error { return f.tree.Close(keep) }
