//go:build !linux

package fileio

import (
	"io/fs"
	"os"
	"path/filepath"
)

// syncAll makes the files of a folder durable, one by one.
func syncAll(folder *os.File) error {
	return filepath.WalkDir(folder.Name(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if d.IsDir() {
			return syncFolder(path)
		}
		return f.Sync()
	})
}
