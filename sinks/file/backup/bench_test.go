package backup

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/pump"
	source "github.com/cbpump/cbpump/sources/file/backup"
)

// benchBatch is a batch of items with values of 256 bytes.
func benchBatch(n int) *pump.Batch {
	b := pump.NewBatch(n * 300)
	value := []byte(strings.Repeat("v", 256))
	for i := range n {
		it := b.Append()
		it.Key, it.Value = b.Copy(fmt.Appendf(nil, "gen-%010d", i)), b.Copy(value)
		it.VBucket, it.CAS, it.RevSeqno, it.Seqno = uint16(i%1024), 1795356482939125760, 12, uint64(i)
	}
	return b
}

// BenchmarkWrite is one lane; an operation is an item.
func BenchmarkWrite(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "backup"), nil)
	lanes, err := s.Lanes(b.Context(), 1)
	if err != nil {
		b.Fatal(err)
	}
	batch := benchBatch(1024)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += batch.Len() {
		batch.StartWrite()
		if err := lanes[0].Write(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Commit(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRead is one stream of a backup of ours (whole: it has the files to
// itself; split: it passes over the rows of another); an operation is a row.
func BenchmarkRead(b *testing.B) {
	for name, streams := range map[string]int{"whole": 1, "split": 2} {
		b.Run(name, func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "backup")
			s := open(b, dir, nil)
			lanes, err := s.Lanes(b.Context(), 1)
			if err != nil {
				b.Fatal(err)
			}
			batch := benchBatch(1024)
			for n := 0; n < b.N; n += batch.Len() {
				batch.StartWrite()
				if err := lanes[0].Write(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			if err := errors.Join(s.Commit(b.Context()), s.Close()); err != nil {
				b.Fatal(err)
			}
			src, err := source.New(dir, pump.Env{Bucket: "default"}, source.Options{Streams: streams})
			if err != nil {
				b.Fatal(err)
			}
			all, err := src.Streams(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			into := pump.NewBatch(256 << 10)
			b.ReportAllocs()
			b.ResetTimer()
			if err := all[0].Open(b.Context(), nil); err != nil {
				b.Fatal(err)
			}
			for err = nil; !errors.Is(err, io.EOF); {
				into.Reset()
				if err = all[0].Read(b.Context(), into); err != nil && !errors.Is(err, io.EOF) {
					b.Fatal(err)
				}
			}
			if err := all[0].Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
