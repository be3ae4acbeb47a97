package fileio

import (
	"encoding/hex"
	"errors"
	"strings"
	"unicode/utf8"
)

// Folders of documents that cbpump wrote hold a file of this name and text: it
// says that names are keys with percent escapes. In other folders a name is a key
// as it stands.
const (
	NamesMarker = "cbpump-names"
	NamesText   = "percent 1\n"
)

// Names in a folder of documents.
const (
	Docs       = "docs"
	DesignDocs = "design_docs"
	Ending     = ".json"
)

const (
	maxName  = 255 // bytes of a name that any file system of today takes
	maxPiece = 200 // of a name that is spread over folders
	// goesOn ends the name of a folder that is the beginning of a longer name. A
	// percent sign otherwise has two hexadecimal digits behind it.
	goesOn = "%+"
)

// EscapeName returns the name for a key, without its ending. Bytes that a name
// cannot hold, or not everywhere, become a percent sign and two digits, and so
// does the percent sign: no two keys have the same name. With fold, for file
// systems that take A and a for the same, capitals and letters beyond ASCII are
// escaped too.
func EscapeName(key []byte, fold bool) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, len(key)+8)
	for i := 0; i < len(key); {
		r, n := utf8.DecodeRune(key[i:])
		c := key[i]
		bad := r == utf8.RuneError && n <= 1 || c < ' ' || c == 0x7f || strings.IndexByte(`%/\:*?"<>|`, c) >= 0 ||
			i == 0 && c == '.' || fold && (c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf)
		for _, c := range key[i : i+n] {
			if bad {
				out = append(out, '%', digits[c>>4], digits[c&15])
			} else {
				out = append(out, c)
			}
		}
		i += n
	}
	return string(out)
}

// SpreadName returns the path, below the folder of documents, of a name. One that
// is too long for a file system is spread over folders.
func SpreadName(name string) []string {
	var path []string
	for len(name)+len(Ending) > maxName {
		n := maxPiece
		for !utf8.RuneStart(name[n]) {
			n--
		}
		if i := strings.LastIndexByte(name[:n], '%'); i > n-3 {
			n = i // not within an escape
		}
		path = append(path, name[:n]+goesOn)
		name = name[n:]
	}
	return append(path, name+Ending)
}

var errName = errors.New("the name is not one that cbpump writes: a percent sign needs two hexadecimal digits behind it")

// UnescapeName returns the key that a path below the folder of documents stands
// for, in a folder with NamesMarker.
func UnescapeName(path []string) ([]byte, error) {
	name := ""
	for _, folder := range path[:len(path)-1] {
		piece, ok := strings.CutSuffix(folder, goesOn)
		if !ok {
			return nil, errName
		}
		name += piece
	}
	name += strings.TrimSuffix(path[len(path)-1], Ending)
	key := make([]byte, 0, len(name))
	for i := 0; i < len(name); i++ {
		if name[i] != '%' {
			key = append(key, name[i])
			continue
		}
		if i+3 > len(name) {
			return nil, errName
		}
		b, err := hex.DecodeString(name[i+1 : i+3])
		if err != nil {
			return nil, errName
		}
		key = append(key, b...)
		i += 2
	}
	return key, nil
}
