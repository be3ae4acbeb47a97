// Package file is the source of paths: of a backup folder, where a spec has no
// scheme (or file:) and no extension that another source claims.
package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sources/file/backup"
)

// Plugin returns the declaration of the source for a registry.
func Plugin() pump.SourcePlugin[backup.Options] {
	return pump.SourcePlugin[backup.Options]{
		Schemes: []string{"file"},
		Summary: "reads a backup folder (DIR or file:DIR); a path with an extension such as .csv or .jsonl belongs to that format",
		Doc: "All versions of data files (.cbb) and both layouts are read, chains of full, diff and accu backups in order, " +
			"of our own and of the Python tools. The bucket is the one of --bucket-source, or the only one there is.",
		New: New,
	}
}

// New opens what is at the path.
func New(_ context.Context, t pump.Target, o backup.Options) (pump.Source, error) {
	path, err := pathOf(t)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileio.ReadError("read "+path, err)
	}
	if !info.IsDir() {
		return nil, unknown(path)
	}
	return backup.New(path, t.Env, o)
}

// pathOf returns the path that a target names: all of a bare path, and of
// file:PATH what follows the scheme, with or without //.
func pathOf(t pump.Target) (string, error) {
	path := t.Rest
	if rest, ok := strings.CutPrefix(path, "//"); ok {
		host, _, _ := strings.Cut(rest, "/")
		if host != "" && host != "localhost" {
			return "", pump.Usagef("file://%s names another machine; a path is written file:PATH, or file:///PATH from the root", host)
		}
		path = strings.TrimPrefix(rest, host)
	}
	if path == "" {
		return "", pump.Usagef("the path is empty")
	}
	return path, nil
}

func unknown(path string) error {
	what := "a file without an extension"
	if ext := filepath.Ext(path); ext != "" {
		what = fmt.Sprintf("a file with the extension %s, which no source claims", ext)
	}
	err := &pump.Error{Class: pump.ClassUsage, Code: "file-unknown", Op: "read " + path, Err: errors.New("is " + what),
		Hint: "Say what it is: jsonl:" + path + " or csv:" + path + "."}
	if strings.EqualFold(filepath.Ext(path), ".cbb") {
		err.Hint = "It is one data file of a backup: name the folder of the backup, which may have more."
	}
	return err
}
