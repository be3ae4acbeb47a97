package tap

import (
	"bytes"
	"testing"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// FuzzDecode feeds a dump of vbuckets 7 and 100 with anything: every item that
// is counted must be in the batch, of a vbucket that was asked for, and lie in
// its arena.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"2.5.1-tap-dump-ack", "3.0.3-tap-dump-ack-fix", "4.0-tap-dump-tombstones-only"} {
		f.Add(load(f, name).Stream(capture.Server))
	}
	f.Add(new(script).begin(7).items(7, 3).noop().finish(7).out)
	f.Add(new(script).noop().noop().out)
	f.Fuzz(func(t *testing.T, data []byte) {
		index := make([]int32, 101)
		index[7], index[100] = 1, 2
		d := &dump{op: "dump", vbs: []vbDump{{vb: 7}, {vb: 100}}, index: index, r: mcbp.NewReader(bytes.NewReader(data))}
		b := pump.NewBatch(len(data) + mcbp.HeaderLen)
		d.r.Attach(b.Arena())
		if len(data) > 0 {
			if err := d.r.Fill(); err != nil {
				t.Fatal(err)
			}
		}
		_, err := d.decode(b)
		d.r.Detach()
		var live, gone uint64
		for i := range b.Items {
			it := &b.Items[i]
			if it.Op == pump.Mutation {
				live++
			} else {
				gone++
			}
			if it.VBucket != 7 && it.VBucket != 100 {
				t.Fatalf("an item of vbucket %d", it.VBucket)
			}
			if len(it.Key)+len(it.Value) > len(data) {
				t.Fatal("an item is larger than what came")
			}
		}
		if live != d.vbs[0].live+d.vbs[1].live || gone != d.vbs[0].gone+d.vbs[1].gone {
			t.Fatalf("%d mutations and %d deletions in the batch, counted %+v", live, gone, d.vbs)
		}
		if err == nil && len(data) == 0 && d.any {
			t.Fatal("something came out of nothing")
		}
	})
}
