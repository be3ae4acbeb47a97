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
	if err := pump.RegisterSource(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPaths(t *testing.T) {
	r := registry(t)
	rel := "../../testdata/backups/4.0/backup"
	abs, err := filepath.Abs(rel)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{rel, abs, "file:" + rel, "file:" + abs, "file://" + abs, "file://localhost" + abs, "file:" + rel + "?streams=4"} {
		src, err := r.Source(t.Context(), spec, pump.Env{})
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		if n := len(pumptest.ReadAll(t, src, 16<<10)); n != 203 {
			t.Errorf("%s: %d items", spec, n)
		}
	}
}

func TestPathsThatAreNoBackup(t *testing.T) {
	r := registry(t)
	dir := t.TempDir()
	for _, name := range []string{"x.parquet", "noext", "data-0000.cbb"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for spec, c := range map[string]struct {
		class pump.Class
		says  string
	}{
		filepath.Join(dir, "x.parquet"):     {pump.ClassUsage, ".parquet"},
		filepath.Join(dir, "noext"):         {pump.ClassUsage, "without an extension"},
		filepath.Join(dir, "data-0000.cbb"): {pump.ClassUsage, ".cbb"},
		filepath.Join(dir, "nothing"):       {pump.ClassUsage, "nothing"},
		"file://elsewhere/x":                {pump.ClassUsage, "elsewhere"},
		"file:":                             {pump.ClassUsage, "empty"},
		"":                                  {pump.ClassUsage, "empty"},
		dir + "/":                           {pump.ClassFailed, "no backup folder"},
	} {
		src, err := r.Source(t.Context(), spec, pump.Env{})
		if err == nil {
			err = pump.Check(t.Context(), src, nil)
		}
		if err == nil || pump.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: class %d, %v", spec, pump.ClassOf(err), err)
		}
	}
}
