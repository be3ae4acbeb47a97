package pumptest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

// SourceSuite says how to test a source.
type SourceSuite struct {
	// New opens the source. It is called several times; each must see the same data.
	New func(t *testing.T) pump.Source
	// Want is what the source must give, in any order but that of a key; nil
	// leaves only the comparison of two readings with each other.
	Want []pump.Item
	// Compare lists the fields to compare besides op, key and value:
	// "vbucket", "flags", "expiry", "cas", "rev", "datatype". Nil means all.
	Compare []string
	// Drift says that two readings may differ (expiry, generated CAS): only keys
	// are compared between them.
	Drift bool
}

// TestSource checks what the engine relies on in a source.
func TestSource(t *testing.T, s SourceSuite) {
	t.Run("streams have stable names", func(t *testing.T) {
		first, second := streamIDs(t, s.New(t)), streamIDs(t, s.New(t))
		if len(first) == 0 {
			t.Fatal("the source has no stream")
		}
		if fmt.Sprint(first) != fmt.Sprint(second) {
			t.Fatalf("two openings name their streams differently:\n%v\n%v", first, second)
		}
		for i, id := range first {
			if id == "" || i > 0 && id == first[i-1] {
				t.Fatalf("stream names must not be empty nor repeat: %q", first)
			}
		}
	})
	t.Run("everything is read", func(t *testing.T) {
		got := ReadAll(t, s.New(t), 64<<10)
		again := ReadAll(t, s.New(t), 4<<10)
		describe := s.describe
		if s.Drift {
			describe = func(it *pump.Item) string { return string(it.Key) }
		}
		sameItems(t, "two readings with arenas of different size", got, again, describe)
		if s.Want != nil {
			sameItems(t, "what it must give and what it gave", s.Want, got, s.describe)
		}
		for i := range got {
			if len(got[i].Key) == 0 {
				t.Fatal("an item has no key")
			}
			if got[i].Op != pump.Mutation && got[i].Op != pump.Deletion && got[i].Op != pump.Expiration {
				t.Fatalf("item %q has an unknown op", got[i].Key)
			}
		}
	})
	t.Run("distinct keys", func(t *testing.T) {
		src := s.New(t)
		d, ok := pump.As[pump.Distinct](src)
		ok = ok && d.DistinctKeys()
		seen := map[string]struct{}{}
		for _, it := range ReadAll(t, src, 64<<10) {
			key := fmt.Sprint(it.Collection, " ", string(it.Key))
			if _, again := seen[key]; again && ok {
				t.Fatalf("the source says that its keys are distinct, and gives %s twice", key)
			}
			seen[key] = struct{}{}
		}
	})
	t.Run("through the engine", func(t *testing.T) {
		sink := &MemSink{LaneCount: 3}
		report, err := pump.Run(t.Context(), pump.Config{Source: s.New(t), Sink: sink, Settings: pump.DefaultSettings(), Scribble: true})
		if err != nil {
			t.Fatalf("Run: %v", err)
		}
		if report.Read != report.Done || report.Pending() != 0 {
			t.Fatalf("read %d, done %d", report.Read, report.Done)
		}
		if s.Want != nil {
			sameItems(t, "what the engine moved", s.Want, sink.Log(), s.describe)
		}
	})
	t.Run("a cancelled context ends the reading with an error", func(t *testing.T) {
		src := s.New(t)
		defer src.Close()
		ctx, cancel := context.WithCancel(t.Context())
		streams, err := src.Streams(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		for _, st := range streams {
			err := st.Open(ctx, nil)
			b := pump.NewBatch(64 << 10)
			for err == nil {
				b.Reset()
				err = st.Read(ctx, b)
			}
			if errors.Is(err, io.EOF) {
				t.Errorf("stream %s: a cancelled reading claims to be complete", st.ID())
			}
			closeTwice(t, st)
		}
	})
	t.Run("unused streams close", func(t *testing.T) {
		src := s.New(t)
		streams, err := src.Streams(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range streams {
			closeTwice(t, st)
		}
		if err := src.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	})
}

func closeTwice(t *testing.T, st pump.Stream) {
	t.Helper()
	for range 2 {
		if err := st.Close(); err != nil {
			t.Errorf("stream %s: Close: %v", st.ID(), err)
		}
	}
}

func streamIDs(t *testing.T, src pump.Source) []string {
	t.Helper()
	defer src.Close()
	streams, err := src.Streams(t.Context())
	if err != nil {
		t.Fatalf("Streams: %v", err)
	}
	var ids []string
	for _, st := range streams {
		ids = append(ids, st.ID())
		st.Close()
	}
	sort.Strings(ids)
	return ids
}

// ReadAll reads a source to its end, overwriting each arena after its items
// were copied, and closes it.
func ReadAll(t testing.TB, src pump.Source, arena int) []pump.Item {
	t.Helper()
	defer func() {
		if err := src.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	streams, err := src.Streams(t.Context())
	if err != nil {
		t.Fatalf("Streams: %v", err)
	}
	var out []pump.Item
	for _, st := range streams {
		if err := st.Open(t.Context(), nil); err != nil {
			t.Fatalf("open %s: %v", st.ID(), err)
		}
		b := pump.NewBatch(arena)
		for {
			b.Reset()
			err := st.Read(t.Context(), b)
			for i := range b.Items {
				out = append(out, CloneItem(&b.Items[i]))
			}
			if err == nil && b.Len() == 0 && len(b.Marks) == 0 {
				t.Fatalf("%s: Read gave neither an item nor a mark nor an error", st.ID())
			}
			for i := range b.Arena() {
				b.Arena()[i] = 0xdb
			}
			// As the engine does: sources may wait for it before they read on.
			if a, ok := pump.As[pump.Acknowledger](st); ok && len(b.Marks) > 0 {
				if err := a.Acknowledge(t.Context(), b.Marks); err != nil {
					t.Fatalf("%s: Acknowledge: %v", st.ID(), err)
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("read %s: %v", st.ID(), err)
			}
		}
		if err := st.Close(); err != nil {
			t.Fatalf("close %s: %v", st.ID(), err)
		}
	}
	return out
}

func (s *SourceSuite) describe(it *pump.Item) string {
	fields := s.Compare
	if fields == nil {
		fields = []string{"vbucket", "flags", "expiry", "cas", "rev", "datatype"}
	}
	return Describe(it, fields...)
}

// Describe renders an item for comparison: op, key, value and the named fields.
func Describe(it *pump.Item, fields ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s key=%q", it.Op, it.Key)
	if len(it.Value) > 64 {
		fmt.Fprintf(&b, " value=%d bytes, crc of them %x", len(it.Value), checksum(it.Value))
	} else {
		fmt.Fprintf(&b, " value=%q", it.Value)
	}
	for _, f := range fields {
		switch f {
		case "vbucket":
			fmt.Fprintf(&b, " vb=%d", it.VBucket)
		case "flags":
			fmt.Fprintf(&b, " flags=%d", it.Flags)
		case "expiry":
			fmt.Fprintf(&b, " expiry=%d", it.Expiry)
		case "cas":
			fmt.Fprintf(&b, " cas=%d", it.CAS)
		case "rev":
			fmt.Fprintf(&b, " rev=%d", it.RevSeqno)
		case "datatype":
			fmt.Fprintf(&b, " datatype=%d", it.Datatype)
		}
	}
	return b.String()
}

// sameItems compares two readings: the same items, and those of one key in the
// same order.
func sameItems(t *testing.T, what string, want, got []pump.Item, describe func(*pump.Item) string) {
	t.Helper()
	group := func(items []pump.Item) map[string][]string {
		m := map[string][]string{}
		for i := range items {
			k := string(items[i].Key)
			m[k] = append(m[k], describe(&items[i]))
		}
		return m
	}
	w, g := group(want), group(got)
	bad := 0
	for k := range w {
		if fmt.Sprint(w[k]) != fmt.Sprint(g[k]) && bad < 5 {
			t.Errorf("%s differ for key %q:\n%s\n%s", what, k, strings.Join(w[k], "\n"), strings.Join(g[k], "\n"))
			bad++
		}
	}
	for k := range g {
		if _, ok := w[k]; !ok && bad < 5 {
			t.Errorf("%s differ: key %q is only in the second", what, k)
			bad++
		}
	}
	if len(want) != len(got) {
		t.Errorf("%s differ: %d and %d items", what, len(want), len(got))
	}
}
