package dcp

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// FuzzDecode feeds streams of vbuckets 7, 20 and 100 with anything: every item
// that is counted must be in the batch, of a vbucket that was asked for, lie in
// its arena, and seqnos must only grow.
func FuzzDecode(f *testing.F) {
	for name, opaque := range map[string]uint32{"7.0-dcp-collections": 2, "7.0-dcp-durable-committed-sync": 2, "6.6-dcp-stream-expiry-opcode": 3, "7.0-dcp-live-manifest": 2} {
		r, _ := recordedStream(f, load(f, name))
		stream := r.bytes(opaque)[len(r.answer):]
		packets, _ := capture.Split(stream)
		for _, p := range packets {
			if binary.BigEndian.Uint16(p[6:]) == 21 { // live-manifest is of vbucket 21
				binary.BigEndian.PutUint16(p[6:], 20)
			}
		}
		f.Add(stream, true)
		f.Add(stream, false)
	}
	s := &script{vb: 7, oq: 1}
	f.Add(s.marker(0, 5).items(1, 3).deletion(4, "gone").end(0).out, false)
	f.Fuzz(func(t *testing.T, data []byte, collections bool) {
		d := decoder(mcbp.NewReader(bytes.NewReader(data)), collections)
		d.uncompress = len(data)%2 == 0
		b := pump.NewBatch(len(data) + mcbp.HeaderLen)
		d.r.Attach(b.Arena())
		if len(data) > 0 {
			if err := d.r.Fill(); err != nil {
				t.Fatal(err)
			}
		}
		_, err := d.decode(b)
		d.r.Detach()
		live, gone := map[uint16]uint64{}, map[uint16]uint64{}
		last := map[uint16]uint64{}
		for i := range b.Items {
			it := &b.Items[i]
			if it.Op == pump.Mutation {
				live[it.VBucket]++
			} else {
				gone[it.VBucket]++
			}
			if it.Seqno <= last[it.VBucket] {
				t.Fatalf("seqno %d behind %d", it.Seqno, last[it.VBucket])
			}
			last[it.VBucket] = it.Seqno
			if len(it.Key) > len(data) {
				t.Fatal("a key is larger than what came")
			}
		}
		open := 0
		for _, p := range d.parts {
			if p == nil {
				continue
			}
			if p.streaming {
				open++
			}
			// A rollback forgets what came.
			if p.counted && p.seqno > 0 && (p.live != live[p.vb] || p.gone != gone[p.vb]) {
				t.Fatalf("vbucket %d: %d mutations and %d deletions in the batch, counted %+v", p.vb, live[p.vb], gone[p.vb], p)
			}
			m := p.mark(false, 0)
			if q := newPart(p.vb); len(p.log) > 0 && q.restore(&m) == nil && q.seqno != p.seqno {
				t.Fatal("a mark does not come back")
			}
		}
		if open != d.running {
			t.Fatalf("%d streams are open, %d are counted", open, d.running)
		}
		d.hand(b)
		if err == nil && len(data) == 0 && b.Len() > 0 {
			t.Fatal("something came out of nothing")
		}
	})
}

// FuzzMark: any saved position is either refused or one that a STREAM_REQ takes.
func FuzzMark(f *testing.F) {
	p := newPart(7)
	p.seqno, p.snapStart, p.snapEnd, p.log = 5, 1, 9, []mcbp.FailoverEntry{{UUID: 3, Seqno: 0}}
	f.Add(uint64(5), p.mark(false, 0).State)
	f.Add(uint64(0), []byte{1})
	f.Fuzz(func(t *testing.T, seqno uint64, state []byte) {
		q := newPart(7)
		if err := q.restore(&pump.Mark{VBucket: 7, Seqno: seqno, State: state}); err != nil {
			if pump.CodeOf(err) != codeBadMark {
				t.Fatal(err)
			}
			return
		}
		r := q.streamReq()
		if r.Start != seqno || r.SnapStart > r.Start || r.SnapEnd < r.Start || r.End < r.Start {
			t.Fatalf("%+v", r)
		}
	})
}
