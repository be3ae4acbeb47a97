package pumptest

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

// ResumeSuite says how to test that a source goes on where an earlier process
// stopped.
type ResumeSuite struct {
	// New opens the source, as a new process does.
	New func(t *testing.T) pump.Source
	// Meanwhile happens between the two processes; nil: nothing. It must leave the
	// items as they are: it may move them to other nodes.
	Meanwhile func(t *testing.T)
	// Batches is how many batches each stream gives to the first process.
	Batches int
	// Arena is the size of a batch; small ones make many. 0: 4 KiB.
	Arena int
}

// TestResume stops the reading of every stream after some batches, and lets a new
// source go on behind the marks that it gave. All streams must be found by their
// names, nothing before the marks may come again, and together both processes must
// give each item.
func TestResume(t *testing.T, s ResumeSuite) {
	t.Helper()
	if s.Arena == 0 {
		s.Arena = 4 << 10
	}
	var all []pump.Item
	for _, it := range ReadAll(t, s.New(t), 64<<10) {
		all = append(all, CloneItem(&it))
	}
	first := readStreams(t, s.New(t), nil, s.Arena, s.Batches)
	if s.Meanwhile != nil {
		s.Meanwhile(t)
	}
	second := readStreams(t, s.New(t), first, s.Arena, -1)
	have, due := map[string]bool{}, map[string]bool{}
	for _, run := range []map[string]*reading{first, second} {
		for _, r := range run {
			for i := range r.items {
				have[Describe(&r.items[i], "vbucket", "cas", "rev")] = true
			}
		}
	}
	for i := range all {
		due[Describe(&all[i], "vbucket", "cas", "rev")] = true
	}
	for d := range due {
		if !have[d] {
			t.Errorf("neither process gave\n%s", d)
		}
	}
	for d := range have {
		if !due[d] {
			t.Errorf("there is no such item:\n%s", d)
		}
	}
	for id, r := range second {
		for _, m := range first[id].marks {
			for i := range r.items {
				it := &r.items[i]
				if it.VBucket != m.VBucket {
					continue
				}
				if m.Complete || it.Seqno > 0 && it.Seqno <= m.Seqno {
					t.Fatalf("%s: an item of vbucket %d, seqno %d, came again behind a mark at seqno %d (complete: %v)", id, it.VBucket, it.Seqno, m.Seqno, m.Complete)
				}
			}
		}
	}
}

// reading is what one process read of a stream.
type reading struct {
	items []pump.Item
	marks []pump.Mark // the newest of each vbucket
}

// readStreams reads most batches of each stream, -1 all, behind the marks that an
// earlier process got.
func readStreams(t *testing.T, src pump.Source, earlier map[string]*reading, arena, most int) map[string]*reading {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	defer src.Close()
	streams, err := src.Streams(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*reading{}
	for _, st := range streams {
		var from []pump.Mark
		if earlier != nil {
			before := earlier[st.ID()]
			if before == nil {
				t.Fatalf("stream %s was not there before", st.ID())
			}
			from = before.marks
		}
		r := &reading{}
		out[st.ID()] = r
		if err := st.Open(ctx, from); err != nil {
			t.Fatalf("open %s: %v", st.ID(), err)
		}
		b := pump.NewBatch(arena)
		for n := 0; n != most; n++ {
			b.Reset()
			err := st.Read(ctx, b)
			for i := range b.Items {
				r.items = append(r.items, CloneItem(&b.Items[i]))
			}
			for _, m := range b.Marks {
				m.State = slices.Clone(m.State)
				at := slices.IndexFunc(r.marks, func(have pump.Mark) bool { return have.VBucket == m.VBucket })
				if at < 0 {
					r.marks = append(r.marks, m)
				} else {
					r.marks[at] = m
				}
			}
			if a, ok := pump.As[pump.Acknowledger](st); ok && len(b.Marks) > 0 {
				if err := a.Acknowledge(ctx, b.Marks); err != nil {
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
	if len(out) < len(earlier) {
		t.Fatalf("%d streams, there were %d", len(out), len(earlier))
	}
	return out
}
