package fileio

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncAll makes everything durable that was written to the file system of an
// open folder: one call for any number of files.
func syncAll(folder *os.File) error { return unix.Syncfs(int(folder.Fd())) }
