//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package cbb

import "os"

// hasWriter cannot tell here; SQLite itself refuses a file that is locked.
func hasWriter(*os.File) bool { return false }
