package filetest

import (
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// resumeChecks is how many ways of interrupting a stream Resume tries.
const resumeChecks = 12

// Resume is the property test of a source's marks. Each check reads some batches
// of a stream, throws source and stream away as a killed process does, and goes on
// in a source opened anew, several times: what came before and what came after are
// together just what one reading gives, so nothing is lost and nothing comes twice.
func Resume(t testing.TB, open func() pump.Source) {
	t.Helper()
	for at := range len(streamsOf(t, open())) {
		whole, last, err := readSome(open(), at, 64<<10, nil, math.MaxInt)
		if err != nil {
			t.Fatal(err)
		}
		for check := range uint64(resumeChecks) {
			rng := rand.New(rand.NewPCG(check, 1))
			var got []pump.Item
			var marks []pump.Mark
			for left := rng.IntN(4); left >= 0; left-- {
				batches := rng.IntN(12)
				if left == 0 {
					batches = math.MaxInt
				}
				// A batch holds one item at least, so a small arena makes many of them.
				var part []pump.Item
				if part, marks, err = readSome(open(), at, rng.IntN(4000), marks, batches); err != nil {
					t.Fatalf("stream %d, check %d: %v", at, check, err)
				}
				got = append(got, part...)
			}
			if len(got) != len(whole) || len(marks) != len(last) {
				t.Fatalf("stream %d, check %d: %d items and %d marks in parts, %d and %d at once", at, check, len(got), len(marks), len(whole), len(last))
			}
			for i := range whole {
				if err := Same(&whole[i], &got[i]); err != nil {
					t.Fatalf("stream %d, check %d, item %d: %v", at, check, i, err)
				}
			}
			for i, m := range marks {
				if m.Items != last[i].Items || m.Complete != last[i].Complete || m.Seqno != last[i].Seqno {
					t.Fatalf("stream %d, check %d: the last mark is %+v, at once %+v", at, check, m, last[i])
				}
			}
		}
	}
}

// Refused checks that a source does not go on from marks: by an error of wrong use
// that has the code and says what to do.
func Refused(t testing.TB, src pump.Source, marks []pump.Mark, code string) {
	t.Helper()
	st := streamsOf(t, src)[0]
	err := st.Open(t.Context(), marks)
	if pump.CodeOf(err) != code || pump.ExitCode(err, 0) != 2 || pump.HintOf(err) == "" {
		t.Errorf("going on from a mark: code %s, exit %d: %v (%s); the code %s is due", pump.CodeOf(err), pump.ExitCode(err, 0), err, pump.HintOf(err), code)
	}
	if err := errors.Join(st.Close(), src.Close()); err != nil {
		t.Error(err)
	}
}

// ResumeChanged checks that a source does not go on in a file that has changed since:
// in its time or its first bytes alone.
func ResumeChanged(t testing.TB, path string, open func() pump.Source) {
	t.Helper()
	marks := Marks(t, open(), 100, 3)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put := func(text []byte, when time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, text, 0o666), os.Chtimes(path, time.Time{}, when)); err != nil {
			t.Fatal(err)
		}
	}
	put(whole, info.ModTime().Add(time.Second))
	Refused(t, open(), marks, "file-changed")
	other := slices.Clone(whole)
	other[10] ^= 1
	put(other, info.ModTime())
	Refused(t, open(), marks, "file-changed")
	put(whole, info.ModTime())
	st := streamsOf(t, open())[0]
	if err := errors.Join(st.Open(t.Context(), marks), st.Close()); err != nil {
		t.Errorf("in the file that was put back: %v", err)
	}
}

// Marks reads some batches of a source's first stream and returns its marks then.
func Marks(t testing.TB, src pump.Source, arena, batches int) []pump.Mark {
	t.Helper()
	_, marks, err := readSome(src, 0, arena, nil, batches)
	if err != nil || len(marks) == 0 {
		t.Fatalf("%d marks, %v", len(marks), err)
	}
	return marks
}

func streamsOf(t testing.TB, src pump.Source) []pump.Stream {
	t.Helper()
	streams, err := src.Streams(t.Context())
	if err != nil || len(streams) == 0 {
		t.Fatalf("%d streams, %v", len(streams), err)
	}
	return streams
}

// readSome reads up to so many batches of one stream of a source, and returns the
// newest mark of each part as the engine would have it. The end is no error.
func readSome(src pump.Source, at, arena int, from []pump.Mark, batches int) (items []pump.Item, marks []pump.Mark, err error) {
	ctx := context.Background()
	marks = slices.Clone(from)
	streams, err := src.Streams(ctx)
	if err != nil {
		return nil, nil, err
	}
	st := streams[at]
	defer func() { err = errors.Join(err, st.Close(), src.Close()) }()
	if err := st.Open(ctx, from); err != nil {
		return nil, nil, err
	}
	for range batches {
		b := pump.NewBatch(arena)
		err := st.Read(ctx, b)
		for i := range b.Items {
			items = append(items, pumptest.CloneItem(&b.Items[i]))
		}
		for _, m := range b.Marks {
			m.State = slices.Clone(m.State)
			i := slices.IndexFunc(marks, func(have pump.Mark) bool { return have.VBucket == m.VBucket })
			if i < 0 {
				marks = append(marks, m)
			} else {
				marks[i] = m
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return items, marks, err
		}
	}
	return items, marks, nil
}
