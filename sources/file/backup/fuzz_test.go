package backup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/internal/cbb"
	"github.com/cbpump/cbpump/pump"
)

// FuzzFolder finds a backup in a folder whose names and small files are anything:
// what comes of it is a named error, or a chain of the files that are there.
// (Package cbb has targets for the data files themselves.)
func FuzzFolder(f *testing.F) {
	metas, err := filepath.Glob(golden + "/*/backup/*/*/*/*/meta.json")
	if err != nil || len(metas) == 0 {
		f.Fatal(metas, err)
	}
	sums := strings.Repeat("0", 64) + "  data-0000.cbb\n"
	for _, path := range metas {
		node := filepath.Dir(path)
		bucket := filepath.Dir(node)
		part := filepath.Dir(bucket)
		var small [3][]byte
		for i, name := range []string{cbb.MetaFile, cbb.SeqnoFile, cbb.FailoverFile} {
			if small[i], err = os.ReadFile(filepath.Join(node, name)); err != nil {
				f.Fatal(err)
			}
		}
		for _, s := range []string{"", sums} {
			f.Add(filepath.Base(filepath.Dir(part)), filepath.Base(part), filepath.Base(bucket), filepath.Base(node), "data-0000.cbb", small[0], small[1], small[2], []byte(s))
		}
	}
	f.Add("2026-01-01T000000Z", "2026-01-01T000000Z-accu", "bucket-%zz", "node-", "data-99999.cbb", []byte("{}"), []byte("{}"), []byte("{}"), []byte(nil))
	f.Fuzz(func(t *testing.T, run, part, bucket, node, data string, meta, seqno, failover, sums []byte) {
		for _, name := range []string{run, part, bucket, node, data} {
			if name == "" || len(name) > 200 || !filepath.IsLocal(name) || name == "." || strings.ContainsAny(name, "/\\\x00") {
				return // no system has such names
			}
		}
		dir := t.TempDir()
		folder := filepath.Join(dir, run, part, bucket, node)
		if err := os.MkdirAll(folder, 0o777); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string][]byte{cbb.MetaFile: meta, cbb.SeqnoFile: seqno, cbb.FailoverFile: failover, cbb.SumsFile: sums, data: nil} {
			if name == cbb.SumsFile && len(sums) == 0 {
				continue
			}
			if err := os.WriteFile(filepath.Join(folder, name), text, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		named := func(err error) {
			t.Helper()
			if known, ok := errors.AsType[*pump.Error](err); !ok || known.Code == "" {
				t.Fatalf("an error without a code: %v", err)
			}
		}
		chain, err := cbb.Find(dir, cbb.FindOptions{Bucket: "default"})
		if err != nil {
			named(err)
			return
		}
		// The names may also make a single part, or the layout up to 2.x.
		files := chain.Files()
		if len(chain.Parts) != 1 || len(files) != 1 || filepath.Base(files[0].Path) != cbb.DataName(0) {
			t.Fatalf("of %s/%s/%s/%s/%s came %+v", run, part, bucket, node, data, chain)
		}
		if rel, err := filepath.Rel(dir, files[0].Path); err != nil || !filepath.IsLocal(rel) || !strings.HasPrefix(folder+"/"+data, files[0].Path) {
			t.Fatalf("%s is none of the files", files[0].Path)
		}
		if err := files[0].Check(); err == nil {
			t.Fatal("an empty data file is right")
		} else {
			named(err)
		}
		if _, err := chain.Definitions(); err != nil {
			named(err)
		}
	})
}
