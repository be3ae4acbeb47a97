// Package file is the sink of paths: of a backup folder, where a spec has no
// scheme (or file:) and no extension that another sink claims.
package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/file/backup"
)

// Plugin returns the declaration of the sink for a registry.
func Plugin() pump.SinkPlugin[backup.Options] {
	return pump.SinkPlugin[backup.Options]{
		Schemes: []string{"file"},
		Summary: "writes a backup folder (DIR or file:DIR); a path with an extension such as .csv or .jsonl belongs to that format",
		Doc: "The folder is made, or must be one that a backup was written into before: then what is written is added as a diff. " +
			"The Python tools of 3.0 and 4.0 restore it. What has the name of a backup is complete and synced.",
		New: New,
	}
}

// New opens a backup folder for writing.
func New(_ context.Context, t pump.Target, o backup.Options) (pump.Sink, error) {
	path := t.Rest
	if rest, ok := strings.CutPrefix(path, "//"); ok {
		host, _, _ := strings.Cut(rest, "/")
		if host != "" && host != "localhost" {
			return nil, pump.Usagef("file://%s names another machine; a path is written file:PATH, or file:///PATH from the root", host)
		}
		path = strings.TrimPrefix(rest, host)
	}
	if path == "" {
		return nil, pump.Usagef("the path is empty")
	}
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) && strings.EqualFold(filepath.Ext(path), ".cbb") {
		return nil, &pump.Error{Class: pump.ClassUsage, Code: "cbb-is-folder", Op: "write " + path,
			Err:  errors.New("a backup is a folder, and .cbb is the ending of the data files in it"),
			Hint: "Name the folder without .cbb: " + strings.TrimSuffix(path, filepath.Ext(path)) + "."}
	}
	if errors.Is(err, os.ErrNotExist) && namesFile(path) {
		return nil, &pump.Error{Class: pump.ClassUsage, Code: "file-unknown", Op: "write " + path,
			Err:  fmt.Errorf("no sink claims the ending %s, and it is none of a backup folder", filepath.Ext(path)),
			Hint: "Write .jsonl, .csv or .zip (the first two also with .zst or .gz behind it), or say what it is to be: jsonl:" + path + ". For a backup folder of that name write " + path + string(filepath.Separator) + "."}
	}
	if err == nil && !info.IsDir() {
		return nil, &pump.Error{Class: pump.ClassUsage, Code: "file-unknown", Op: "write " + path,
			Err:  errors.New("is a file, and its extension is none that a sink claims"),
			Hint: "Name a folder for a backup, or say what to write: jsonl:" + path + " or csv:" + path + "."}
	}
	return backup.New(path, t.Env, o)
}

// namesFile reports whether nobody gives a folder such a name: what is meant is a
// file, of a kind that there is no sink for.
func namesFile(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".json", ".ndjson", ".txt", ".tsv", ".xml", ".xlsx", ".parquet", ".sqlite", ".db", ".gz", ".zst", ".bz2", ".xz", ".lz4", ".tar", ".tgz", ".7z":
		return true
	}
	return false
}
