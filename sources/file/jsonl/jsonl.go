// Package jsonl reads cbpump's interchange form: one JSON object a line, every
// field of an item, nothing lost. docs/files.md has the schema. Anything that is
// not exactly that is an error with file, line and column: an unknown version or
// field, a field that comes twice, a wrong type, text that stands for no bytes.
package jsonl

import (
	"context"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of jsonl as a source.
type Options struct {
	MaxRecord pump.Size `opt:"max-record" default:"128m" help:"most bytes of one line"`
}

// extensions are the endings of bare paths that are read and written as jsonl.
var extensions = []string{".jsonl", ".jsonl.gz", ".jsonl.zst"}

// Plugin returns the declaration of jsonl as a source.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes:    []string{"jsonl"},
		Extensions: extensions,
		Summary:    "a file with one JSON object a line, every field of an item; .gz and .zst are decompressed",
		Doc:        "jsonl:FILE, or a path that ends in .jsonl, .jsonl.gz or .jsonl.zst; jsonl:- is standard input.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Source, error) {
			return New(fileio.Path(t), o)
		},
	}
}

// New returns a source that reads a file; "-" is standard input.
func New(path string, o Options) (*fileio.Source, error) {
	if path == "" {
		return nil, pump.Usagef("jsonl: names no file; write jsonl:FILE, or jsonl:- for standard input")
	}
	if o.MaxRecord < 1024 {
		return nil, pump.Usagef("jsonl: max-record is below 1k")
	}
	return &fileio.Source{Format: "jsonl", Path: path, Limit: int(o.MaxRecord), New: func() fileio.Parser { return &decoder{} }}, nil
}
