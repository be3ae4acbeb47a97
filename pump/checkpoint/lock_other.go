//go:build !unix

package checkpoint

import (
	"errors"
	"io/fs"
	"os"
)

const noFollow = 0

// lock refuses: without a lock that ends with the process two runs could save to
// one folder.
func lock(*os.File) (bool, error) {
	return false, errors.New("this system has no file locks that checkpoints could use")
}

func own(fs.FileInfo) bool { return true }

func isLink(error) bool { return false }
