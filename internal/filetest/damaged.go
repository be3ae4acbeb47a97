package filetest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

// Damaged cuts a file of one line for each item, behind a first line, and changes
// single bits of it. A cut is an error unless it is exactly behind a line end, and a
// changed bit neither changes what comes before it nor makes items disappear without
// an error.
func Damaged(t *testing.T, whole string, want []pump.Item, read func(text string) ([]pump.Item, error)) {
	t.Helper()
	prefix := func(what string, items []pump.Item, n int) {
		t.Helper()
		if len(items) < n {
			t.Fatalf("%s: %d of the %d items before it were read", what, len(items), n)
		}
		for i := range n {
			if err := Same(&want[i], &items[i]); err != nil {
				t.Fatalf("%s: item %d: %v", what, i, err)
			}
		}
	}
	cuts := map[int]bool{}
	for n := 0; n < len(whole); n += 4096 {
		end := n + strings.IndexByte(whole[n:], '\n') + 1
		for _, cut := range []int{n, end - 2, end - 1, end, end + 1} {
			cuts[min(max(cut, 0), len(whole)-1)] = true
		}
	}
	for n := range cuts {
		items, err := read(whole[:n])
		rows := strings.Count(whole[:n], "\n") - 1
		if atEnd := n > 0 && whole[n-1] == '\n'; atEnd != (err == nil) {
			t.Errorf("cut to %d bytes, at a line end: %t: %v", n, atEnd, err)
		}
		if err == nil && len(items) != rows {
			t.Errorf("cut to %d bytes: %d items of %d rows", n, len(items), rows)
		}
		prefix(fmt.Sprintf("cut to %d bytes", n), items, max(rows, 0))
	}
	flipped := []byte(whole)
	for at := 0; at < len(whole); at += 61 {
		bit := byte(1) << (at % 8)
		flipped[at] ^= bit
		items, err := read(string(flipped))
		what := fmt.Sprintf("byte %d changed from %#x to %#x", at, whole[at], flipped[at])
		flipped[at] ^= bit
		if err == nil && len(items) != len(want) {
			t.Errorf("%s: %d of %d items and no error", what, len(items), len(want))
		}
		prefix(what, items, max(strings.Count(whole[:at], "\n")-1, 0))
	}
}
