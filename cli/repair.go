package cli

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/compare"
)

// repairFile is a jsonl file with what the source has of keys that differ. It is a
// source itself, and has its name only once it is complete.
type repairFile struct {
	sink  pump.Sink
	lane  pump.Lane
	batch pump.Batch
	bytes int
	n     int // items so far
}

// What is gathered before it is written.
const (
	repairItems = 256
	repairBytes = 1 << 20
)

func openRepair(ctx context.Context, r *pump.Registry, path string, log hclog.Logger) (*repairFile, error) {
	spec := path
	if !slices.ContainsFunc([]string{".jsonl", ".jsonl.gz", ".jsonl.zst"}, func(ext string) bool { return strings.HasSuffix(path, ext) }) {
		spec = "jsonl:" + path
	}
	res, err := r.Resolve(pump.RoleSink, spec, pump.Env{Log: log})
	if err != nil {
		return nil, err
	}
	f := &repairFile{}
	if f.sink, err = res.OpenSink(ctx); err != nil {
		return nil, err
	}
	err = pump.Check(ctx, nil, f.sink)
	var lanes []pump.Lane
	if err == nil {
		lanes, err = f.sink.Lanes(ctx, 1)
	}
	if err != nil {
		return nil, errors.Join(err, f.sink.Close())
	}
	f.lane = lanes[0]
	return f, nil
}

// add keeps what makes the destination like the source: the source's item, or
// where it has none, and only if that is wanted, a deletion.
func (f *repairFile) add(ctx context.Context, d *compare.Difference, deleteExtra bool) error {
	it := d.Item
	if it == nil {
		if !deleteExtra {
			return nil
		}
		it = &pump.Item{Op: pump.Deletion, VBucket: d.VBucket, Key: d.Key, Collection: d.Collection}
	}
	own := f.batch.Append()
	*own = *it
	own.Key, own.Value, own.Meta = bytes.Clone(it.Key), bytes.Clone(it.Value), bytes.Clone(it.Meta)
	f.n++
	if f.bytes += it.Size(); len(f.batch.Items) >= repairItems || f.bytes >= repairBytes {
		return f.flush(ctx)
	}
	return nil
}

func (f *repairFile) flush(ctx context.Context) error {
	if f.batch.Len() == 0 {
		return nil
	}
	f.batch.StartWrite()
	if err := f.lane.Write(ctx, &f.batch); err != nil {
		return err
	}
	for i := range f.batch.Items {
		if v := f.batch.Verdict(i); v != pump.Done {
			return &pump.Error{Code: "differences", Op: "write the differences", Err: errors.Join(errors.New("an item was "+v.String()), f.batch.Cause(i))}
		}
	}
	f.batch.Reset()
	f.bytes = 0
	return nil
}

// close completes the file if the comparison came to its end.
func (f *repairFile) close(ctx context.Context, whole bool) error {
	var err error
	if whole {
		err = f.flush(ctx)
	}
	err = errors.Join(err, f.lane.Close())
	if c, ok := pump.As[pump.Committer](f.sink); ok && whole && err == nil {
		err = c.Commit(ctx)
	}
	return errors.Join(err, f.sink.Close())
}
