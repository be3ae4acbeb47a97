package pump

import (
	"context"
	"errors"
	"testing"
)

type someSource struct {
	Source
	id  Identity
	err error
}

func (s *someSource) Identity(context.Context) (Identity, error) { return s.id, s.err }

type someSink struct {
	Sink
	id     Identity
	checks int
	lanes  int
}

func (s *someSink) Identity(context.Context) (Identity, error) { return s.id, nil }
func (s *someSink) Check(context.Context) error                { s.checks++; return nil }
func (s *someSink) Lanes(context.Context, int) ([]Lane, error) { s.lanes++; return nil, nil }

func TestApart(t *testing.T) {
	kv := func(addrs ...string) []string { return addrs }
	for name, tc := range map[string]struct {
		from, to Identity
		same     bool
	}{
		"same uuid":             {Identity{UUID: "u", KV: kv("a:1")}, Identity{UUID: "u", KV: kv("b:1")}, true},
		"bucket of one cluster": {Identity{UUID: "u", Bucket: "x", KV: kv("10.0.0.1:1")}, Identity{UUID: "v", Bucket: "y", KV: kv("10.0.0.1:1")}, false},
		"same name elsewhere":   {Identity{Bucket: "x", KV: kv("10.0.0.1:1")}, Identity{UUID: "v", Bucket: "x", KV: kv("10.0.0.2:1")}, false},
		"one node":              {Identity{Bucket: "x", KV: kv("10.0.0.1:1")}, Identity{UUID: "v", Bucket: "x", KV: kv("10.0.0.2:1", "10.0.0.1:1")}, true},
		"one node, other name":  {Identity{Bucket: "x", KV: kv("10.0.0.1:1")}, Identity{Bucket: "y", KV: kv("10.0.0.1:1")}, false},
		"an address":            {Identity{UUID: "u", Bucket: "x", KV: kv("127.0.0.1:1")}, Identity{KV: kv("localhost:1")}, true},
		"another port":          {Identity{UUID: "u", Bucket: "x", KV: kv("127.0.0.1:1")}, Identity{KV: kv("localhost:2")}, false},
		"nothing known":         {Identity{}, Identity{}, false},
	} {
		sink := &someSink{id: tc.to}
		both := Apart(&someSource{id: tc.from}, sink)
		err := Check(t.Context(), nil, both)
		_, lerr := both.Lanes(t.Context(), 1)
		for _, err := range []error{err, lerr} {
			if (err != nil) != tc.same || tc.same && (ExitCode(err, 0) != 2 || CodeOf(err) != "same-ends") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if tc.same == (sink.lanes+sink.checks > 0) {
			t.Errorf("%s: the sink was asked %d times for lanes, %d times to check", name, sink.lanes, sink.checks)
		}
	}
}

// TestApartUnknown: what the ends are must be known before anything is written.
func TestApartUnknown(t *testing.T) {
	broken := errors.New("broken")
	sink := &someSink{}
	both := Apart(&someSource{err: broken}, sink)
	if err := Check(t.Context(), nil, both); err != nil || sink.checks != 1 {
		t.Errorf("the source's error is its own to tell: %v", err)
	}
	if _, err := both.Lanes(t.Context(), 1); !errors.Is(err, broken) || sink.lanes != 0 {
		t.Errorf("lanes: %v, %d", err, sink.lanes)
	}
	if plain := Apart(struct{ Source }{}, sink); plain != Sink(sink) {
		t.Errorf("a source without identity: %T", plain)
	}
	if got, ok := As[*someSink](both); !ok || got != sink {
		t.Errorf("the wrapper hides the sink")
	}
}

// TestApartResolves: of two buckets that decide by different things what is newer
// one is not copied onto the other, unless nothing is left to that decision.
func TestApartResolves(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		refused  bool
	}{
		{"revision", "revision", false}, {"time", "time", false}, {"revision", "time", true}, {"time", "revision", true},
		{"", "time", false}, {"revision", "", false},
	} {
		sink := &someSink{id: Identity{UUID: "a", Resolves: tc.to}}
		both := Apart(&someSource{id: Identity{UUID: "b", Resolves: tc.from}}, sink)
		err := Check(t.Context(), nil, both)
		_, lerr := both.Lanes(t.Context(), 1)
		for _, err := range []error{err, lerr} {
			if (err != nil) != tc.refused || tc.refused && (ExitCode(err, 0) != 2 || CodeOf(err) != "conflict-resolution" || HintOf(err) == "") {
				t.Errorf("%q to %q: %v", tc.from, tc.to, err)
			}
		}
	}
}
