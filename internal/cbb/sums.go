package cbb

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// Sums are the SHA-256 sums of the files in a node's folder, by name. SQLite
// keeps no checksums, so a bit that flips within a value would be restored as it
// is; and a data file that is missing at the end would not be missed. The form
// is that of sha256sum, which can check it too.
type Sums map[string][sha256.Size]byte

// Format returns the contents of SHA256SUMS.
func (s Sums) Format() []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(s)) {
		sum := s[name]
		fmt.Fprintf(&b, "%x  %s\n", sum, name)
	}
	return b.Bytes()
}

// ParseSums reads the contents of SHA256SUMS.
func ParseSums(text []byte) (Sums, error) {
	s := Sums{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		digits, name, ok := strings.Cut(lines.Text(), "  ")
		sum, err := hex.DecodeString(digits)
		switch {
		case !ok || err != nil || len(sum) != sha256.Size || hex.EncodeToString(sum) != digits:
			return nil, fmt.Errorf("line %d is not of the form SUM  NAME", n)
		case name == "" || strings.ContainsAny(name, `/\`):
			return nil, fmt.Errorf("line %d names no file of this folder", n)
		}
		if _, twice := s[name]; twice {
			return nil, fmt.Errorf("line %d names %q again", n, name)
		}
		s[name] = [sha256.Size]byte(sum)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(s) == 0 || !bytes.HasSuffix(text, []byte("\n")) {
		return nil, errors.New("it is cut")
	}
	return s, nil
}

// HashFile returns the sum of a file.
func HashFile(ctx context.Context, path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return [sha256.Size]byte(h.Sum(nil)), nil
		}
		if err != nil {
			return sum, err
		}
	}
}

// Add adds the sum of a file with that text.
func (s Sums) Add(name string, text []byte) { s[name] = sha256.Sum256(text) }
