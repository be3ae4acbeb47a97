package file

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

func registry(t *testing.T) *pump.Registry {
	t.Helper()
	r := &pump.Registry{}
	if err := pump.RegisterSink(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPaths(t *testing.T) {
	r := registry(t)
	for _, prefix := range []string{"", "file:", "file://", "file://localhost"} {
		dir := filepath.Join(t.TempDir(), "backup")
		sink, err := r.Sink(t.Context(), prefix+dir, pump.Env{})
		if err != nil {
			t.Errorf("%s: %v", prefix, err)
			continue
		}
		src := &pumptest.MemSource{Parts: [][]pump.Item{{{Key: []byte("k"), VBucket: 1}}}}
		if _, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: pump.DefaultSettings()}); err != nil {
			t.Errorf("%s: %v", prefix, err)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*/*-full/bucket-default/node-cbpump/data-0000.cbb")); len(files) != 1 {
			t.Errorf("%s: %q", prefix, files)
		}
	}
}

func TestPathsThatCannotBeWritten(t *testing.T) {
	r := registry(t)
	file := filepath.Join(t.TempDir(), "x.parquet")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x.json", "x.jsonl.bz2", "x.TXT", "file:x.gz"} {
		if _, err := r.Sink(t.Context(), name, pump.Env{}); pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(pump.HintOf(err), "For a backup folder of that name write x") {
			t.Errorf("%s: %v (%s)", name, err, pump.HintOf(err))
		}
	}
	for _, name := range []string{"x.json/", "beer.example.com", "v2.5", t.TempDir()} {
		if _, err := r.Sink(t.Context(), name, pump.Env{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for spec, says := range map[string]string{
		file: "x.parquet", filepath.Join(t.TempDir(), "x.CBB"): "a backup is a folder", "file://elsewhere/x": "elsewhere", "file:": "empty", "": "empty", "file:x?cbb_max_mb=0": "cbb_max_mb",
	} {
		if _, err := r.Sink(t.Context(), spec, pump.Env{}); pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", spec, err)
		}
	}
}
