package docs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/sinks/file/docs"
	source "github.com/cbpump/cbpump/sources/file/docs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) pump.Source {
	t.Helper()
	var o source.Options
	if err := pump.DecodeOptions("json", nil, &o); err != nil {
		t.Fatal(err)
	}
	s, err := source.New(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	for _, ending := range []string{"", ".zip"} {
		t.Run("docs"+ending, func(t *testing.T) {
			var path string
			pumptest.TestSink(t, pumptest.SinkSuite{
				New: func(t *testing.T) pump.Sink {
					path = filepath.Join(t.TempDir(), "out"+ending)
					s, err := docs.New(path, docs.Options{NotJSON: "write"})
					if err != nil {
						t.Fatal(err)
					}
					return s
				},
				Read: func(t *testing.T) map[string]pump.Item {
					held := map[string]pump.Item{}
					if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
						return held // it was not committed
					}
					items, err := filetest.ReadAll(t, open(t, path), 64<<10)
					if err != nil {
						t.Fatal(err)
					}
					for _, it := range items {
						held[string(it.Key)] = it
					}
					return held
				},
				Compare:     []string{},
				NoDeletions: ending == ".zip",
			})
		})
	}
}

func TestFailedRunLeavesNoFolder(t *testing.T) {
	for _, ending := range []string{"", ".zip"} {
		path := filepath.Join(t.TempDir(), "out"+ending)
		s, err := docs.New(path, docs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		cut := errors.New("cut")
		src := &pumptest.MemSource{Parts: [][]pump.Item{{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("b"), Value: []byte("2")}}}, BatchSize: 1,
			Fail: func(_, given int) error {
				if given == 1 {
					return cut
				}
				return nil
			}}
		if _, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: s, Settings: pump.DefaultSettings()}); !errors.Is(err, cut) {
			t.Fatalf("Run: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has its final name (%v)", path, err)
		}
		if _, err := os.Stat(path + ".partial"); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatAFolderDoesNotHold(t *testing.T) {
	for ending, rejected := range map[string]uint64{"": 5, ".zip": 6} {
		path := filepath.Join(t.TempDir(), "out"+ending)
		s, err := docs.New(path, docs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		report, err := filetest.WriteAll(t, s, []pump.Item{
			{Key: []byte("a"), Value: []byte("{}")}, {Key: []byte("text"), Value: []byte("no json")}, {Key: []byte("empty")}, {},
			{Key: []byte("not UTF-8"), Value: []byte("\"\xff\"")}, {Key: []byte("c"), Value: []byte("{}"), Collection: &pump.Collection{Scope: "a", Name: "b"}},
			{Key: []byte("gone"), Op: pump.Deletion},
		})
		if pump.ExitCode(err, 0) != 3 || report.Rejected != rejected {
			t.Errorf("%s: %d rejected, %v", path, report.Rejected, err)
		}
	}
}

func TestDefinitionsWithoutAPlaceAreGivenBack(t *testing.T) {
	s, err := docs.New(filepath.Join(t.TempDir(), "out"), docs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lanes(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	left, err := s.TakeDefinitions(t.Context(), []pump.Definition{
		{Kind: pump.Indexes, JSON: []byte("[]")}, {Kind: pump.DesignDocuments, JSON: []byte(`{"strange":1}`)},
		{Kind: pump.DesignDocuments, JSON: []byte(`[{"doc":{"json":{"views":{}},"meta":{"rev":"1-x","id":"_design/by_kind"}}}]`)},
	})
	if err != nil || len(left) != 2 || left[0].Kind != pump.Indexes || !strings.Contains(string(left[1].JSON), "strange") {
		t.Errorf("left out %v, %v", left, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
