// Package filetest is what the tests of the file formats share: items that try
// everything a format may stumble over, and the items that the golden folders
// say they hold.
package filetest

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// Bytes draws text, JSON, or bytes that are no text, up to a length.
func Bytes(least, most int) *rapid.Generator[[]byte] {
	cut := func(p []byte) []byte {
		for len(p) < least {
			p = append(p, 'x')
		}
		return p[:min(len(p), most)]
	}
	text := rapid.Custom(func(t *rapid.T) []byte { return cut([]byte(rapid.StringN(-1, -1, most).Draw(t, "text"))) })
	odd := rapid.Custom(func(t *rapid.T) []byte {
		pieces := []string{"\"", "\\", "\r\n", "\n", "\x00", "\x1f", "\x7f", ",", "\u2028", "\ufffd", "😀", "\xff", "\xed\xa0\x80", "%", "/", "{}", " ", "abcdefgh"}
		var p []byte
		for range rapid.IntRange(0, 12).Draw(t, "pieces") {
			p = append(p, rapid.SampledFrom(pieces).Draw(t, "piece")...)
		}
		return cut(p)
	})
	return rapid.OneOf(rapid.SliceOfN(rapid.Byte(), least, min(most, 64)), text, odd)
}

// Item draws an item with any values in its fields.
func Item() *rapid.Generator[pump.Item] {
	return rapid.Custom(func(t *rapid.T) pump.Item {
		it := pump.Item{
			Op:       pump.Op(rapid.IntRange(0, 2).Draw(t, "op")),
			Datatype: rapid.Uint8().Draw(t, "datatype"),
			VBucket:  rapid.SampledFrom([]uint16{0, 1, 1023, pump.NoVBucket - 1, pump.NoVBucket}).Draw(t, "vbucket"),
			Flags:    rapid.Uint32().Draw(t, "flags"),
			Expiry:   rapid.Uint32().Draw(t, "expiry"),
			CAS:      rapid.Uint64().Draw(t, "cas"),
			RevSeqno: rapid.Uint64().Draw(t, "rev"),
			Seqno:    rapid.Uint64().Draw(t, "seqno"),
			Key:      Bytes(1, 250).Draw(t, "key"),
			Value:    Bytes(0, 2000).Draw(t, "value"),
			Meta:     Bytes(0, 20).Draw(t, "meta"),
		}
		if rapid.Bool().Draw(t, "in a collection") {
			name := rapid.StringMatching(`[A-Za-z0-9_%-]{1,30}`)
			it.Collection = &pump.Collection{Scope: name.Draw(t, "scope"), Name: name.Draw(t, "collection")}
		}
		return it
	})
}

// Same compares two items in all their fields.
func Same(a, b *pump.Item) error {
	describe := func(it *pump.Item) string {
		s := pumptest.Describe(it, "vbucket", "flags", "expiry", "cas", "rev", "datatype")
		return fmt.Sprintf("%s seqno=%d meta=%q collection=%s", s, it.Seqno, it.Meta, it.Collection)
	}
	if x, y := describe(a), describe(b); x != y || string(a.Value) != string(b.Value) {
		return fmt.Errorf("\n%s\n%s", x, y)
	}
	return nil
}

// ReadAll reads a source whose arenas have the given size and returns what it
// gave up to its error; nil is a proven end.
func ReadAll(t testing.TB, src pump.Source, arena int) ([]pump.Item, error) {
	t.Helper()
	items, _, err := ReadFrom(t, src, arena, nil)
	return items, err
}

// ReadFrom is ReadAll behind marks, one batch after another; it returns the last
// mark too.
func ReadFrom(t testing.TB, src pump.Source, arena int, from []pump.Mark) (items []pump.Item, last []pump.Mark, err error) {
	t.Helper()
	streams, err := src.Streams(t.Context())
	if err != nil {
		return nil, nil, err
	}
	for _, st := range streams {
		defer st.Close()
		if err := st.Open(t.Context(), from); err != nil {
			return items, last, err
		}
		for {
			b := pump.NewBatch(arena)
			err := st.Read(t.Context(), b)
			for i := range b.Items {
				items = append(items, pumptest.CloneItem(&b.Items[i]))
			}
			if len(b.Marks) > 0 {
				last = append([]pump.Mark(nil), b.Marks...)
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return items, last, err
			}
		}
	}
	return items, last, src.Close()
}

// WriteAll writes items through the engine and returns its report.
func WriteAll(t testing.TB, sink pump.Sink, items []pump.Item) (*pump.Report, error) {
	t.Helper()
	return pump.Run(t.Context(), pump.Config{
		Source:   &pumptest.MemSource{Parts: [][]pump.Item{items}},
		Sink:     sink,
		Settings: pump.DefaultSettings(), Scribble: true,
	})
}

// number is a JSON number or a string of digits.
type number uint64

func (n *number) UnmarshalJSON(text []byte) error {
	v, err := strconv.ParseUint(strings.Trim(string(text), `"`), 10, 64)
	*n = number(v)
	return err
}

// Golden reads a file of items in the form of the captures' README.
func Golden(t testing.TB, path string) map[string]pump.Item {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]pump.Item{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var l struct {
			Op       string
			VB       uint16
			Key      string `json:"key_hex"`
			Value    string `json:"value_hex"`
			Flags    uint32
			Expiry   uint32
			CAS      number
			Rev      number
			Datatype uint8
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		it := pump.Item{VBucket: l.VB, Flags: l.Flags, Expiry: l.Expiry, CAS: uint64(l.CAS), RevSeqno: uint64(l.Rev), Datatype: l.Datatype}
		if l.Op != "mutation" {
			it.Op = pump.Deletion
		}
		var err1, err2 error
		it.Key, err1 = hex.DecodeString(l.Key)
		it.Value, err2 = hex.DecodeString(l.Value)
		if err := errors.Join(err1, err2, lines.Err()); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		out[string(it.Key)] = it
	}
	if len(out) == 0 {
		t.Fatalf("%s holds nothing", path)
	}
	return out
}
