package dcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// TestCutAtEveryByte cuts recorded streams at every byte: none of them may end in
// io.EOF (invariant 4), and every item before the cut must have come.
func TestCutAtEveryByte(t *testing.T) {
	for name, step := range map[string]int{"3.0.3-dcp-stream-noflow": 1, "6.6-dcp-stream-expiry-opcode": 5, "7.0-dcp-collections": 7} {
		t.Run(name, func(t *testing.T) {
			c := load(t, name)
			r, _ := recordedStream(t, c)
			stream := r.bytes(1)
			f := captureNode(t, c, r, 0)
			f.manifest = manifest
			play := f.stream
			var cut int
			f.stream = func(n int, req mcbp.StreamReq, c net.Conn) ([]byte, error) {
				_, _ = play(n, req, c)
				return r.bytes(req.Opaque)[:cut], errAbrupt
			}
			for cut = range len(stream) {
				if cut > 120 && cut%step != 0 {
					continue
				}
				got := readOnce(t, one(t, f, nil, r.req.VBucket), 4<<10)
				if code := pump.CodeOf(got.err); code != codeCut || !pump.IsRetryable(got.err) {
					t.Fatalf("a stream cut after %d of %d bytes ended with %v", cut, len(stream), got.err)
				}
				whole, _ := capture.Split(stream[:cut])
				due := 0
				for _, p := range whole {
					if p[0] == mcbp.MagicRequest && p[1] >= 0x57 && p[1] <= 0x59 {
						due++
					}
				}
				if len(got.items) != due {
					t.Fatalf("%d items before the cut at %d, %d came", due, cut, len(got.items))
				}
			}
		})
	}
}

// TestGoesOnBehindACut: what came before a cut does not come again, in the same
// stream and in another one that is given the marks.
func TestGoesOnBehindACut(t *testing.T) {
	play := func(n int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		s := accept(req, mcbp.FailoverEntry{UUID: 7, Seqno: 3}, mcbp.FailoverEntry{UUID: 6})
		switch req.Start {
		case 0:
			return s.marker(0, 10).items(1, 6).out, errAbrupt
		case 6:
			if req.UUID != 7 || req.SnapStart != 0 || req.SnapEnd != 10 || req.End != 10 {
				return nil, fmt.Errorf("STREAM_REQ %+v", req)
			}
			return s.marker(6, 10).items(7, 10).end(mcbp.StreamEndOK).out, nil
		}
		return nil, fmt.Errorf("STREAM_REQ %+v", req)
	}
	f := startFake(t, v60, map[uint16]cluster.VBInfo{5: activeVB(10)}, map[uint16]uint64{5: 10}, play)
	s := one(t, f, nil, 5)
	first := readOnce(t, s, 8<<10)
	want(t, first.err, codeCut, "vbucket 5")
	second := readOnce(t, s, 8<<10)
	if len(first.items) != 6 || len(second.items) != 4 || second.err != io.EOF || second.complete(5) == nil || second.complete(5).Items != 10 {
		t.Fatalf("%d and %d items, %v", len(first.items), len(second.items), second.err)
	}
	if s.Progress() < 3 {
		t.Errorf("progress %d", s.Progress())
	}
	other := one(t, f, nil, 5)
	if other.ID() != s.ID() {
		t.Errorf("two names: %s, %s", s.ID(), other.ID())
	}
	third := readOnce(t, other, 8<<10, first.marks...)
	if len(third.items) != 4 || third.err != io.EOF || third.complete(5).Items != 10 {
		t.Fatalf("%d items, %v", len(third.items), third.err)
	}
	// Behind the mark of a complete vbucket nothing is left, and nobody is asked.
	before := len(f.seen())
	if again := readOnce(t, one(t, f, nil, 5), 8<<10, third.marks...); again.err != io.EOF || len(again.items) > 0 || len(f.seen()) != before {
		t.Errorf("%d items, %v", len(again.items), again.err)
	}
	for i, damage := range [][]byte{nil, {1}, []byte(strings.Repeat("x", 60)), first.marks[0].State[:len(first.marks[0].State)-1]} {
		m := first.marks[0]
		m.State = damage
		want(t, readOnce(t, one(t, f, nil, 5), 8<<10, m).err, codeBadMark, "vbucket 5")
		_ = i
	}
}

// TestRollback: the node has another history from seqno 4 on. Everything of the
// new branch comes, and it is said.
func TestRollback(t *testing.T) {
	old := []mcbp.FailoverEntry{{UUID: 9, Seqno: 6}, {UUID: 8}}
	for name, c := range map[string]struct {
		answers map[uint64]uint64 // start → seqno to go back to
		from    uint64            // where the stream goes on in the end
		uuid    uint64
	}{
		"to a point on the older branch": {map[uint64]uint64{10: 4}, 4, 8},
		"to the branch's beginning":      {map[uint64]uint64{10: 6}, 6, 9},
		"twice":                          {map[uint64]uint64{10: 7, 7: 4}, 4, 8},
		"to 0":                           {map[uint64]uint64{10: 0}, 0, 0},
		"nowhere":                        {map[uint64]uint64{10: 12}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, v66, map[uint16]cluster.VBInfo{5: activeVB(9)}, map[uint16]uint64{5: 12}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
				if to, ok := c.answers[req.Start]; ok {
					return answerReq(req, mcbp.StatusRollback, []byte{0, 0, 0, 0, 0, 0, 0, byte(to)}), nil
				}
				if req.Start != c.from || req.UUID != c.uuid || req.SnapStart != c.from || req.SnapEnd != c.from {
					t.Errorf("STREAM_REQ %+v", req)
				}
				s := accept(req, mcbp.FailoverEntry{UUID: 10, Seqno: 4}, mcbp.FailoverEntry{UUID: 8})
				return s.marker(req.Start, 12).items(req.Start+1, 11).deletion(12, "gone").end(mcbp.StreamEndOK).out, nil
			})
			var log strings.Builder
			s := one(t, f, func(cfg *Config) { cfg.Log = hclog.New(&hclog.LoggerOptions{Output: &log}) }, 5)
			p := newPart(5)
			p.seqno, p.snapStart, p.snapEnd, p.log, p.live, p.cover = 10, 8, 10, old, 10, 10
			got := readOnce(t, s, 8<<10, p.mark(false, 0))
			due := 12 - int(c.from)
			if c.from == 0 {
				// 11 came, the node counts 9: after a whole copy that is a contradiction.
				want(t, got.err, codeIncomplete, "11 live items came, the node counts 9")
			} else if got.err != io.EOF || got.complete(5).Items != 9 {
				t.Fatalf("%v, marks %+v", got.err, got.marks)
			}
			if len(got.items) != due {
				t.Errorf("%d items came, %d are due", len(got.items), due)
			}
			if text := log.String(); !strings.Contains(text, "[WARN]") || !strings.Contains(text, "vbucket=5") || !strings.Contains(text, "another branch") {
				t.Errorf("the log says %q", text)
			}
		})
	}
	t.Run("from the start", func(t *testing.T) {
		f := startFake(t, v66, map[uint16]cluster.VBInfo{5: activeVB(9)}, map[uint16]uint64{5: 12}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
			return answerReq(req, mcbp.StatusRollback, make([]byte, 8)), nil
		})
		want(t, readOnce(t, one(t, f, nil, 5), 8<<10).err, codeProtocol, "from the very start")
	})
}

// TestCounts gives what the node counts and what came.
func TestCounts(t *testing.T) {
	type node struct{ items, high uint64 }
	for name, c := range map[string]struct {
		before, after node
		play          func(s *script, n int) *script // n counts legs
		legs          int
		items         uint64 // of the mark
		bad           string
	}{
		"quiet": {node{5, 5}, node{5, 5}, func(s *script, _ int) *script { return s.marker(0, 5).items(1, 5) }, 1, 5, ""},
		"deletions": {node{3, 5}, node{3, 5}, func(s *script, _ int) *script {
			return s.marker(0, 5).items(1, 3).deletion(4, "a").deletion(5, "b")
		}, 1, 3, ""},
		"empty": {node{0, 0}, node{0, 0}, func(s *script, _ int) *script { return s }, 1, 0, ""},
		"one is missing": {node{5, 6}, node{5, 6}, func(s *script, _ int) *script { return s.marker(0, 6).items(1, 3).items(6, 6) }, 1, 0,
			"4 live items came, the node counts 5"},
		"one too many": {node{5, 6}, node{5, 6}, func(s *script, _ int) *script { return s.marker(0, 6).items(1, 6) }, 1, 0,
			"6 live items came, the node counts 5"},
		"two snapshots repeat a key": {node{5, 6}, node{5, 6}, func(s *script, _ int) *script {
			return s.marker(0, 4).items(1, 4).marker(5, 6).items(5, 6)
		}, 1, 5, ""},
		"two snapshots, one is missing": {node{5, 6}, node{5, 6}, func(s *script, _ int) *script {
			return s.marker(0, 4).items(1, 2).marker(5, 6).items(5, 6)
		}, 1, 0, "4 live items came, the node counts 5"},
		"written to meanwhile, all of the beginning came": {node{5, 5}, node{7, 9}, func(s *script, _ int) *script {
			return s.marker(0, 5).items(1, 5)
		}, 1, 5, ""},
		// Seqno 2's key was written again as 6 before it was read.
		"a key moved behind the end": {node{5, 5}, node{5, 6}, func(s *script, n int) *script {
			if n == 0 {
				return s.marker(0, 5).items(1, 1).items(3, 5)
			}
			return s.marker(6, 6).items(6, 6)
		}, 2, 5, ""},
		"a key moved and is missing all the same": {node{5, 5}, node{6, 6}, func(s *script, n int) *script {
			if n == 0 {
				return s.marker(0, 5).items(1, 1).items(3, 5)
			}
			return s.marker(6, 6).items(6, 6)
		}, 2, 0, "5 live items came, the node counts 6"},
		"the end is not reached": {node{5, 5}, node{5, 5}, func(s *script, _ int) *script { return s.marker(0, 4).items(1, 4) }, 1, 0,
			"ended the stream at seqno 4, but said before that the vbucket goes to 5"},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(c.before.items)}, map[uint16]uint64{7: c.before.high}, nil)
			f.stream = func(n int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
				f.set(7, activeVB(c.after.items), c.after.high)
				return c.play(accept(req), n).end(mcbp.StreamEndOK).out, nil
			}
			got := readOnce(t, one(t, f, nil, 7), 8<<10)
			if n := len(f.seen()); n != c.legs {
				t.Errorf("%d legs, %d are due", n, c.legs)
			}
			if c.bad != "" {
				want(t, got.err, codeIncomplete, "vbucket 7", c.bad)
				return
			}
			if got.err != io.EOF || got.complete(7) == nil || got.complete(7).Items != c.items {
				t.Errorf("%v, marks %+v", got.err, got.marks)
			}
		})
	}
}

// TestAlwaysWrittenTo: a vbucket that changes all the time is chased for a whole
// snapshot, whatever the counts say; what has none is not complete.
func TestAlwaysWrittenTo(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(3)}, map[uint16]uint64{7: 3}, nil)
		f.growing = true
		f.stream = func(n int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
			s := accept(req)
			if n < maxLegs || !sealed {
				to := min(req.End, req.Start+2)
				return s.marker(req.Start+1, req.End).items(to, to).items(req.End, req.End).end(mcbp.StreamEndOK).out, nil
			}
			if req.End < chaseMargin {
				t.Errorf("leg %d: STREAM_REQ %+v", n, req)
			}
			// What it had sent before it heard CLOSE_STREAM comes, too.
			return s.marker(req.Start+1, req.Start+50).items(req.Start+1, req.Start+50).marker(req.Start+51, req.Start+52).items(req.Start+51, req.Start+51).out, nil
		}
		got := readOnce(t, one(t, f, nil, 7), 8<<10)
		if !sealed {
			want(t, got.err, codeIncomplete, "it is written to all the time")
			if n := len(f.seen()); n != maxLegs+maxChases {
				t.Errorf("%d legs", n)
			}
			continue
		}
		if m := got.complete(7); got.err != io.EOF || m == nil || m.Items != 3 || m.Seqno != got.items[len(got.items)-1].Seqno {
			t.Errorf("%v, %+v", got.err, got.marks)
		}
		if n := len(f.seen()); n != maxLegs+1 || f.closed != 1 {
			t.Errorf("%d legs, %d streams closed", n, f.closed)
		}
	}
}

// TestOvershoot: 6.0 sends a backfill beyond the end that was asked for. That is a
// whole snapshot; what is as many as before is not by that the same.
func TestOvershoot(t *testing.T) {
	f := startFake(t, v60, map[uint16]cluster.VBInfo{7: activeVB(5)}, map[uint16]uint64{7: 5}, nil)
	f.stream = func(n int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		f.set(7, activeVB(6), 9)
		// 2 was written again as 6; 7 is new.
		return accept(req).marker(0, 7).items(1, 1).items(3, 7).end(mcbp.StreamEndOK).out, nil
	}
	got := readOnce(t, one(t, f, nil, 7), 8<<10)
	if m := got.complete(7); got.err != io.EOF || m == nil || m.Items != 6 || m.Seqno != 7 || len(f.seen()) != 1 {
		t.Errorf("%v, %+v", got.err, got.marks)
	}
}

// TestStartsAnewWhatIsNotProven runs a stream as the engine does.
func TestStartsAnewWhatIsNotProven(t *testing.T) {
	f := startFake(t, v66, map[uint16]cluster.VBInfo{1: activeVB(3), 2: activeVB(3)}, map[uint16]uint64{1: 3, 2: 3}, nil)
	f.stream = func(n int, req mcbp.StreamReq, c net.Conn) ([]byte, error) {
		if req.VBucket == 2 {
			return accept(req).marker(0, 3).items(2, 3).end(mcbp.StreamEndOK).out, nil
		}
		return accept(req).marker(0, 3).items(1, 3).end(mcbp.StreamEndOK).out, nil
	}
	s := one(t, f, nil, 1, 2)
	for try := range maxStarts + 1 {
		got := readOnce(t, s, 4096)
		want(t, got.err, codeIncomplete, "vbucket 2", "2 live items came, the node counts 3")
		if pump.IsRetryable(got.err) != (try < maxStarts) {
			t.Errorf("try %d: retryable %v", try, pump.IsRetryable(got.err))
		}
		if (got.complete(1) != nil) != (try == 0) {
			t.Errorf("try %d: marks %+v", try, got.marks)
		}
	}
	if s.Progress() != 1+2 { // vbucket 1 and the first batches of both
		t.Errorf("progress %d", s.Progress())
	}
}

// TestRefusals has STREAM_REQ answered with statuses and the error that is due.
func TestRefusals(t *testing.T) {
	for status, due := range map[mcbp.Status]struct {
		code, text string
		class      pump.Class
		retry      bool
	}{
		mcbp.StatusNotMyVBucket:      {codeNotActive, "vbucket 7 from", pump.ClassFailed, true},
		mcbp.StatusExists:            {codeRefused, "open already", pump.ClassFailed, true},
		mcbp.StatusRange:             {codeRefused, "refuses the position", pump.ClassFailed, false},
		mcbp.StatusAccess:            {"kv-denied", "stream vbucket 7", pump.ClassDenied, false},
		mcbp.StatusTmpFail:           {codeRefused, "stream vbucket 7", pump.ClassFailed, true},
		mcbp.StatusNoBucket:          {"node-gone", "stream vbucket 7", pump.ClassFailed, true}, // failed over in this moment
		mcbp.StatusNotSupported:      {codeRefused, "0x83", pump.ClassFailed, false},
		mcbp.StatusUnknownCollection: {"unknown-collection", "0x88", pump.ClassFailed, false},
	} {
		f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(1)}, map[uint16]uint64{7: 1}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
			return answerReq(req, status, nil), nil
		})
		err := readOnce(t, one(t, f, nil, 7), 4096).err
		want(t, err, due.code, due.text)
		if pump.ClassOf(err) != due.class || pump.IsRetryable(err) != due.retry {
			t.Errorf("%#x: class %d, retryable %v", status, pump.ClassOf(err), pump.IsRetryable(err))
		}
		if status == mcbp.StatusAccess && !strings.Contains(pump.HintOf(err), "DcpProducer") {
			t.Errorf("the hint does not name the privilege: %q", pump.HintOf(err))
		}
	}
}

// TestMessages sends what a stream must not hold, and what it may.
func TestMessages(t *testing.T) {
	item := func(seqno uint64, key string) mcbp.DcpMessage {
		return mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, Seqno: seqno, Key: []byte(key)}
	}
	for name, c := range map[string]struct {
		play func(s *script) *script
		code string // "": none
		text string
	}{
		"an item without a snapshot": {func(s *script) *script { return s.items(1, 1) }, codeProtocol, "seqno 1 came behind 0"},
		"beyond the snapshot":        {func(s *script) *script { return s.marker(0, 1).items(1, 2) }, codeProtocol, "seqno 2 came behind 1, in a snapshot 0 to 1"},
		"a seqno twice":              {func(s *script) *script { return s.marker(0, 9).items(2, 2).items(2, 2) }, codeProtocol, "seqno 2 came behind 2"},
		"an older snapshot":          {func(s *script) *script { return s.marker(0, 9).items(1, 9).marker(3, 4) }, codeProtocol, "a snapshot 3 to 4 behind seqno 9"},
		"another opaque":             {func(s *script) *script { s.oq++; return s.marker(0, 1) }, codeForeign, "DCP_SNAPSHOT_MARKER of vbucket 7"},
		"another vbucket":            {func(s *script) *script { s.vb = 9; return s.marker(0, 1) }, codeForeign, "vbucket 9"},
		"a vbucket beyond all":       {func(s *script) *script { s.vb = 9999; return s.marker(0, 1) }, codeForeign, "vbucket 9999"},
		"a state":                    {func(s *script) *script { return s.send(mcbp.DcpMessage{Opcode: mcbp.OpDcpSetVBucketState, Flags: 4}) }, codeProtocol, "never asked for"},
		"a flush": {func(s *script) *script {
			s.out = mcbp.AppendFrame(s.out, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpDcpFlush, VBucket: 7}, nil, nil, nil)
			return s
		}, codeFlushed, "vbucket 7 was flushed"},
		"an answer to nothing": {func(s *script) *script {
			s.out = mcbp.AppendFrame(s.out, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpDcpStreamReq, Opaque: 99}, nil, nil, nil)
			return s
		}, codeForeign, "request for a stream that was not made"},
		"a refused acknowledgement": {func(s *script) *script {
			s.out = mcbp.AppendFrame(s.out, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpDcpBufferAck, VBucket: 4}, nil, nil, nil)
			return s
		}, codeProtocol, "0x04"},
		"another protocol":     {func(s *script) *script { s.out = append(s.out, "HTTP/1.1 200"...); return s }, codeProtocol, "not a memcached binary packet"},
		"somebody closed it":   {func(s *script) *script { return s.end(mcbp.StreamEndClosed) }, codeEnded, "somebody closed the stream"},
		"state changed":        {func(s *script) *script { return s.end(mcbp.StreamEndState) }, codeNotActive, "not active there any more"},
		"disconnected":         {func(s *script) *script { return s.end(mcbp.StreamEndDisconnected) }, codeEnded, "closing the connection"},
		"too slow":             {func(s *script) *script { return s.end(mcbp.StreamEndSlow) }, codeEnded, "too slow"},
		"disk":                 {func(s *script) *script { return s.end(mcbp.StreamEndBackfill) }, codeEnded, "from its disk"},
		"rolled back":          {func(s *script) *script { return s.end(mcbp.StreamEndRollback) }, codeEnded, "rolled back"},
		"collections are gone": {func(s *script) *script { return s.end(mcbp.StreamEndNoCollections) }, codeNoCollection, "dropped"},
		"unknown reason":       {func(s *script) *script { return s.end(77) }, codeEnded, "77"},
		"an event without collections": {func(s *script) *script {
			return s.marker(0, 9).event(1, mcbp.SystemEvent{Event: mcbp.EventCreateScope, Name: []byte("s")})
		}, codeProtocol, "system event"},
		"an unknown datatype is passed": {func(s *script) *script {
			m := item(2, "k")
			m.Datatype = 0x40
			return s.marker(0, 2).send(m).end(mcbp.StreamEndOK)
		}, "", ""},
		"SEQNO_ADVANCED": {func(s *script) *script {
			return s.marker(0, 1).items(1, 1).send(mcbp.DcpMessage{Opcode: mcbp.OpDcpSeqnoAdvanced, Seqno: 2}).end(mcbp.StreamEndOK)
		}, "", ""},
		"SEQNO_ADVANCED back": {func(s *script) *script {
			return s.marker(0, 2).items(2, 2).send(mcbp.DcpMessage{Opcode: mcbp.OpDcpSeqnoAdvanced, Seqno: 1})
		}, codeProtocol, "SEQNO_ADVANCED to 1 behind seqno 2"},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(1)}, map[uint16]uint64{7: 2}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
				return c.play(accept(req)).out, nil
			})
			got := readOnce(t, one(t, f, nil, 7), 4096)
			if c.code != "" {
				want(t, got.err, c.code, c.text)
				return
			}
			if got.err != io.EOF {
				t.Errorf("ended with %v", got.err)
			}
			if name == "an unknown datatype is passed" && got.items[0].Datatype != 0x40 {
				t.Errorf("datatype %#x", got.items[0].Datatype)
			}
		})
	}
}

// TestOpening: what is negotiated, in which order, with which version.
func TestOpening(t *testing.T) {
	for _, c := range []struct {
		version  cluster.Version
		flags    uint32
		controls string
	}{
		{v30, 1, "enable_noop=true set_noop_interval=60 connection_buffer_size=4194304"},
		{v60, 0x25, "enable_noop=true set_noop_interval=60 connection_buffer_size=4194304"},
		{v66, 0x25, "enable_noop=true set_noop_interval=60 connection_buffer_size=4194304 enable_expiry_opcode=true"},
	} {
		f := startFake(t, c.version, map[uint16]cluster.VBInfo{7: activeVB(0)}, map[uint16]uint64{7: 0}, whole)
		s := one(t, f, func(cfg *Config) { cfg.Options.IdleTimeout = 180 * time.Second }, 7)
		if got := readOnce(t, s, 4096); got.err != io.EOF {
			t.Errorf("%s: %v", c.version, got.err)
		}
		if have := strings.Join(f.controls, " "); have != c.controls || f.opens[0] != c.flags {
			t.Errorf("%s: flags %#x, controls %s", c.version, f.opens[0], have)
		}
	}
	old := startFake(t, v30, map[uint16]cluster.VBInfo{7: activeVB(0)}, map[uint16]uint64{7: 0}, nil)
	old.refuse[mcbp.OpDcpOpen] = mcbp.StatusUnknown
	err := readOnce(t, one(t, old, nil, 7), 4096).err
	want(t, err, codeUnsupported, "no DCP")
	if pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(pump.HintOf(err), "protocol=tap") {
		t.Errorf("class %d, hint %q", pump.ClassOf(err), pump.HintOf(err))
	}
	denied := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(0)}, map[uint16]uint64{7: 0}, nil)
	denied.refuse[mcbp.OpDcpOpen] = mcbp.StatusAccess
	s := one(t, denied, nil, 7)
	err = s.src.Check(context.Background())
	want(t, err, "kv-denied", denied.l.Addr().String())
	if pump.ClassOf(err) != pump.ClassDenied || !strings.Contains(pump.HintOf(err), "DcpProducer") {
		t.Errorf("class %d, hint %q", pump.ClassOf(err), pump.HintOf(err))
	}
}

// TestFailedOver: a node that has lost the bucket is asked again, and not held to be
// a wrong address, whichever question it refuses.
func TestFailedOver(t *testing.T) {
	for _, op := range []mcbp.Opcode{mcbp.OpStat, mcbp.OpGetAllVBSeqnos, mcbp.OpDcpOpen} {
		f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(1)}, map[uint16]uint64{7: 1}, nil)
		f.refuse[op] = mcbp.StatusNoBucket
		err := readOnce(t, one(t, f, nil, 7), 4096).err
		want(t, err, "node-gone", f.l.Addr().String())
		if !pump.IsRetryable(err) {
			t.Errorf("%s: no other try: %v", mcbp.OpcodeName(op), err)
		}
	}
}

// TestCollections: names come from the manifest and from events; what was dropped
// before its items came is left out, and said.
func TestCollections(t *testing.T) {
	var log strings.Builder
	f := startFake(t, v70, map[uint16]cluster.VBInfo{7: activeVB(5)}, map[uint16]uint64{7: 9}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		s := accept(req).marker(0, 9)
		s.keys = "\x08"
		s.items(1, 1)
		s.keys = "\x00"
		s.items(2, 2)
		s.event(3, mcbp.SystemEvent{Event: mcbp.EventCreateScope, Scope: 0x20, Name: []byte("late")})
		s.event(4, mcbp.SystemEvent{Event: mcbp.EventCreateCollection, Scope: 0x20, Collection: 0x300, Name: []byte("born")})
		s.keys = "\x80\x06"
		s.items(5, 6)
		s.keys = "\x55"
		s.items(7, 7)
		s.event(8, mcbp.SystemEvent{Event: mcbp.EventDropCollection, Scope: 8, Collection: 0x55})
		s.keys = "\x00"
		return s.items(9, 9).end(mcbp.StreamEndOK).out, nil
	})
	f.manifest = manifest
	s := one(t, f, func(cfg *Config) { cfg.Log = hclog.New(&hclog.LoggerOptions{Output: &log}) }, 7)
	got := readOnce(t, s, 8<<10)
	if got.err != io.EOF || got.complete(7).Items != 5 {
		t.Fatalf("%v, %+v", got.err, got.marks)
	}
	var have []string
	for _, it := range got.items {
		have = append(have, fmt.Sprint(it.Collection, " ", it.Key))
	}
	if due := "shop.items key-7-1,_default._default key-7-2,late.born key-7-5,late.born key-7-6,_default._default key-7-9"; strings.Join(have, ",") != due {
		t.Errorf("%v", have)
	}
	if got.items[2].Collection != got.items[3].Collection || got.items[1].Collection != nil {
		t.Error("items of a collection do not share its value")
	}
	if !strings.Contains(log.String(), "dropped meanwhile") {
		t.Errorf("the log says %q", log.String())
	}
	// A key without an id, where ids were negotiated.
	f.stream = func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		s := accept(req).marker(0, 9)
		s.keys = "\xff\xff\xff\xff\xff\xff"
		return s.items(1, 1).out, nil
	}
	want(t, readOnce(t, one(t, f, nil, 7), 8<<10).err, codeProtocol, "collection id")

	want(t, readOnce(t, one(t, f, func(cfg *Config) { cfg.Options.Collection = "shop.nosuch" }, 7), 8<<10).err, codeNoCollection, "shop.nosuch")
	old := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(5)}, map[uint16]uint64{7: 9}, whole)
	want(t, readOnce(t, one(t, old, func(cfg *Config) { cfg.Options.Collection = "shop.items" }, 7), 8<<10).err, codeUnsupported, "no collections")
}

// TestOneCollection: the filter goes by id, and the node's count of the whole
// vbucket proves nothing.
func TestOneCollection(t *testing.T) {
	f := startFake(t, v70, map[uint16]cluster.VBInfo{7: activeVB(99)}, map[uint16]uint64{7: 4}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		s := accept(req).marker(0, 4)
		s.keys = "\xb4\x24"
		return s.items(2, 4).end(mcbp.StreamEndOK).out, nil
	})
	f.manifest = manifest
	got := readOnce(t, one(t, f, func(cfg *Config) { cfg.Options.Collection = "shop.big" }, 7), 8<<10)
	if got.err != io.EOF || len(got.items) != 3 || got.items[0].Collection.String() != "shop.big" {
		t.Fatalf("%v, %+v", got.err, got.items)
	}
	if filter := string(f.seen()[0].Filter); filter != `{"collections":["1234"]}` {
		t.Errorf("filter %s", filter)
	}
}

// TestUncompress: snappy is not negotiated, and undone where it comes all the same.
func TestUncompress(t *testing.T) {
	text := strings.Repeat("abc", 500)
	packed := snappy.Encode(nil, []byte(text))
	for _, bad := range []bool{false, true} {
		for _, on := range []bool{true, false} {
			value := packed
			if bad {
				value = []byte("\xff\xff\xff\xff\xff\xff no snappy")
			}
			f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(1)}, map[uint16]uint64{7: 2}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
				return accept(req).marker(0, 2).
					send(mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, Seqno: 1, Datatype: 3, Key: []byte("a"), Value: value}).
					send(mcbp.DcpMessage{Opcode: mcbp.OpDcpDeletion, Seqno: 2, Datatype: 6, Key: []byte("b"), Value: value}).
					end(mcbp.StreamEndOK).out, nil
			})
			got := readOnce(t, one(t, f, func(cfg *Config) { cfg.Options.Uncompress = on }, 7), 8<<10)
			if bad && on {
				want(t, got.err, codeProtocol, "vbucket 7, seqno 1", "compressed value")
				continue
			}
			if got.err != io.EOF || len(got.items) != 2 {
				t.Fatalf("%v", got.err)
			}
			due, types := string(value), [2]uint8{3, 6}
			if on {
				due, types = text, [2]uint8{1, 4}
			}
			for i, it := range got.items {
				if it.Value != due || it.Datatype != types[i] {
					t.Errorf("uncompress=%v: %d bytes of datatype %d", on, len(it.Value), it.Datatype)
				}
			}
		}
	}
}

// TestMarkBeforeWhatCannotBeRead: the mark that comes with the items before an item
// that cannot be read is before that item, or going on there would leave it out.
func TestMarkBeforeWhatCannotBeRead(t *testing.T) {
	f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(3)}, map[uint16]uint64{7: 3}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		return accept(req).marker(0, 3).items(1, 1).
			send(mcbp.DcpMessage{Opcode: mcbp.OpDcpMutation, Seqno: 2, Datatype: 2, Key: []byte("a"), Value: []byte("no snappy")}).
			items(3, 3).end(mcbp.StreamEndOK).out, nil
	})
	got := readOnce(t, one(t, f, func(cfg *Config) { cfg.Options.Uncompress = true }, 7), 8<<10)
	want(t, got.err, codeProtocol, "vbucket 7, seqno 2")
	if len(got.items) != 1 || len(got.marks) != 1 || got.marks[0].Seqno != 1 {
		t.Errorf("%d items, marks %+v", len(got.items), got.marks)
	}
}

// TestMoves: the vbucket is taken away in mid-stream and goes on elsewhere, with
// the position it had.
func TestMoves(t *testing.T) {
	second := startFake(t, v66, map[uint16]cluster.VBInfo{1: {State: mcbp.VBReplica}, 7: activeVB(6)}, map[uint16]uint64{7: 6}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		if req.Start != 4 || req.UUID != 0xabc {
			t.Errorf("STREAM_REQ %+v", req)
		}
		return accept(req).marker(5, 6).items(5, 6).end(mcbp.StreamEndOK).out, nil
	})
	first := startFake(t, v66, map[uint16]cluster.VBInfo{1: activeVB(2), 7: activeVB(6)}, map[uint16]uint64{1: 2, 7: 6}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		if req.VBucket == 1 {
			return accept(req).marker(0, 2).items(1, 2).end(mcbp.StreamEndOK).out, nil
		}
		return accept(req).marker(0, 6).items(1, 4).end(mcbp.StreamEndState).out, nil
	})
	s := from(t, nil, map[uint16]*fakeNode{1: first, 7: first}, 1, 7)
	at := s.src.at.Places.(*fakePlaces)
	at.nodes[second.l.Addr().String()] = second
	got := readOnce(t, s, 4096)
	want(t, got.err, codeNotActive, "vbucket 7", "not active there any more")
	if !pump.IsRetryable(got.err) || got.complete(1) == nil {
		t.Errorf("marks %+v, %v", got.marks, got.err)
	}
	// The node says so before the map does.
	first.mu.Lock()
	first.vbs[7] = cluster.VBInfo{State: mcbp.VBDead}
	delete(first.high, 7)
	first.mu.Unlock()
	asked := at.asked
	at.onAsk = func(p *fakePlaces, n int) {
		if n == asked+2 {
			p.active[7] = second.l.Addr().String()
		}
	}
	if got := readOnce(t, s, 4096); got.err != io.EOF || len(got.items) != 2 || got.complete(7).Items != 6 {
		t.Errorf("%v, %+v", got.err, got.items)
	}
}

// TestDoesNotBecomeActive: the wait for a vbucket ends with a named error, and the
// others are copied.
func TestDoesNotBecomeActive(t *testing.T) {
	f := startFake(t, v66, map[uint16]cluster.VBInfo{1: activeVB(2), 7: {State: mcbp.VBPending}}, map[uint16]uint64{1: 2}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		return accept(req).marker(0, 2).items(1, 2).end(mcbp.StreamEndOK).out, nil
	})
	got := readOnce(t, one(t, f, nil, 1, 7), 4096)
	want(t, got.err, codeNotActive, "vbucket 7", "pending")
	if got.complete(1) == nil || !pump.IsRetryable(got.err) {
		t.Errorf("%v, %+v", got.err, got.marks)
	}
}

// TestWarmUp: an empty list of seqnos is not "nothing to copy".
func TestWarmUp(t *testing.T) {
	f := startFake(t, v70, map[uint16]cluster.VBInfo{7: activeVB(0)}, map[uint16]uint64{}, whole)
	got := readOnce(t, one(t, f, nil, 7), 4096)
	want(t, got.err, "seqnos-missing", "still does not tell")
	f.set(7, activeVB(3), 3)
	if got := readOnce(t, one(t, f, nil, 7), 4096); got.err != io.EOF || len(got.items) != 3 {
		t.Errorf("%v", got.err)
	}
}

// TestGroups: no more streams at once than allowed, on one connection.
func TestGroups(t *testing.T) {
	vbs, high := map[uint16]cluster.VBInfo{}, map[uint16]uint64{}
	var list []uint16
	for vb := range uint16(10) {
		vbs[vb], high[vb] = activeVB(uint64(vb)), uint64(vb)
		list = append(list, vb)
	}
	f := startFake(t, v70, vbs, high, whole)
	got := readOnce(t, one(t, f, func(cfg *Config) { cfg.Options.OpenVBuckets = 4 }, list...), 4096)
	if got.err != io.EOF || len(got.items) != 45 {
		t.Fatalf("%d items, %v", len(got.items), got.err)
	}
	for _, vb := range list {
		if m := got.complete(vb); m == nil || m.Items != uint64(vb) {
			t.Errorf("vbucket %d: %+v", vb, m)
		}
	}
	if len(f.opens) != 1 || f.asked != 3 {
		t.Errorf("%d DCP connections, details were asked %d times", len(f.opens), f.asked)
	}
}

// TestFlowControl: a destination that confirms nothing stops the node at its
// window, its silence is not held against it, and confirmations set it going.
func TestFlowControl(t *testing.T) {
	const size, total = 4096, 400
	var mu sync.Mutex
	sent, acked, most := 0, 0, 0
	woken := make(chan struct{}, 1)
	f := startFake(t, v70, map[uint16]cluster.VBInfo{7: activeVB(total)}, map[uint16]uint64{7: total}, nil)
	f.onAck = func(n uint32) {
		mu.Lock()
		acked += int(n)
		mu.Unlock()
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	var writing sync.WaitGroup
	f.stream = func(_ int, req mcbp.StreamReq, c net.Conn) ([]byte, error) {
		s := accept(req).marker(0, total)
		head := s.out
		s.out = nil
		s.keys = "\x00"
		s.items(1, total).end(mcbp.StreamEndOK)
		packets, _ := capture.Split(s.out)
		writing.Go(func() { // acknowledgements are read meanwhile
			if _, err := c.Write(head); err != nil {
				return
			}
			for _, p := range packets {
				for {
					mu.Lock()
					full := sent-acked >= size
					if !full {
						sent += len(p)
						most = max(most, sent-acked)
					}
					mu.Unlock()
					if !full {
						break
					}
					if _, ok := <-woken; !ok {
						return
					}
				}
				if _, err := c.Write(p); err != nil {
					return
				}
			}
		})
		return nil, nil
	}
	t.Cleanup(func() { f.close(); close(woken); writing.Wait() })
	s := one(t, f, func(cfg *Config) {
		cfg.Options.BufferSize = size
		cfg.Options.IdleTimeout = 400 * time.Millisecond // far less than the destination takes
	}, 7)
	blocked, release := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(blocked) })
	sink := &pumptest.MemSink{Before: func(context.Context, int, *pump.Batch) error {
		once()
		<-release
		return nil
	}}
	go func() {
		<-blocked
		// The node has used up its window and is silent for much longer than the limit.
		time.AfterFunc(time.Second, func() {
			mu.Lock()
			defer mu.Unlock()
			if acked > 100 { // the marker, but no item: nothing is confirmed yet
				t.Errorf("%d bytes were acknowledged before the destination confirmed anything", acked)
			}
			close(release)
		})
	}()
	report, err := pump.Run(context.Background(), pump.Config{Source: &sourceOf{s}, Sink: sink, Settings: pump.DefaultSettings(), Scribble: true})
	if err != nil || report.Done != total || report.Reopened != 0 {
		t.Fatalf("%+v, %v", report.Snapshot, err)
	}
	if most > size+200 {
		t.Errorf("%d bytes were under way with a window of %d", most, size)
	}
}

// sourceOf is a source of streams that are there already.
type sourceOf struct{ s pump.Stream }

func (s *sourceOf) Streams(context.Context) ([]pump.Stream, error) { return []pump.Stream{s.s}, nil }
func (s *sourceOf) Close() error                                   { return nil }

// TestNoops are answered, and are no sign of life.
func TestNoops(t *testing.T) {
	f := startFake(t, v70, map[uint16]cluster.VBInfo{7: activeVB(2)}, map[uint16]uint64{7: 2}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		s := accept(req)
		for range 5 {
			s.out = mcbp.AppendFrame(s.out, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpDcpNoop, Opaque: 1}, nil, nil, nil)
		}
		return s.out, nil
	})
	got := readOnce(t, one(t, f, func(cfg *Config) { cfg.Options.IdleTimeout = 50 * time.Millisecond }, 7), 4096)
	want(t, got.err, codeIdle, "vbucket 7", "50ms")
	f.finish()
	if f.answered != 5 {
		t.Errorf("%d NOOPs were answered", f.answered)
	}
}

// TestFollow goes on with changes, marks each, and stops when told to.
func TestFollow(t *testing.T) {
	f := startFake(t, v66, map[uint16]cluster.VBInfo{1: activeVB(2), 7: activeVB(3)}, map[uint16]uint64{1: 2, 7: 3}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		s := accept(req)
		if req.End > req.Start {
			s.marker(req.Start+1, req.End).items(req.Start+1, req.End)
		}
		return s.end(mcbp.StreamEndOK).out, nil
	})
	s := one(t, f, func(cfg *Config) { cfg.Options.Follow, cfg.Options.FollowInterval = true, time.Millisecond }, 1, 7)
	sink := &pumptest.MemSink{}
	stop := make(chan struct{})
	var once sync.Once
	seen := map[uint64]bool{}
	report, err := pump.Run(context.Background(), pump.Config{Source: &sourceOf{s}, Sink: sink, Settings: pump.DefaultSettings(), Stop: stop,
		OnMarks: func(_ string, marks []pump.Mark) {
			for _, m := range marks {
				if m.VBucket != 7 || !m.Complete {
					continue
				}
				seen[m.Seqno] = true
				switch m.Seqno {
				case 3: // the copy is complete: more is written
					f.set(7, activeVB(5), 5)
				case 5:
					f.set(7, activeVB(6), 6)
				case 6:
					once.Do(func() { close(stop) })
				}
			}
		}})
	if pump.ClassOf(err) != pump.ClassInterrupted {
		t.Fatalf("ended with %v", err)
	}
	if report.Done != 8 || report.Pending() != 0 || !seen[3] || !seen[5] || !seen[6] || report.Reopened != 0 {
		t.Errorf("%+v, marks at %v", report.Snapshot, seen)
	}
	for _, req := range f.seen() {
		if req.End > 6 {
			t.Errorf("a stream without an end: %+v", req)
		}
	}
}

// TestEngine: cuts, rollbacks and moves are mended by the engine's retries.
func TestEngine(t *testing.T) {
	const total = 300
	f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(total)}, map[uint16]uint64{7: total}, func(n int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		s := accept(req).marker(0, total)
		if to := req.Start + 20; to < total { // cut again and again
			return s.items(req.Start+1, to).out, errAbrupt
		}
		return s.items(req.Start+1, total).end(mcbp.StreamEndOK).out, nil
	})
	sink := &pumptest.MemSink{}
	set := pump.DefaultSettings()
	set.StreamAttempts, set.RetryMin, set.RetryMax = 2, time.Millisecond, time.Millisecond
	report, err := pump.Run(context.Background(), pump.Config{Source: &sourceOf{one(t, f, nil, 7)}, Sink: sink, Settings: set, Scribble: true})
	if err != nil || report.Done != total || len(sink.Items()) != total {
		t.Fatalf("%+v, %v", report.Snapshot, err)
	}
}

func TestCancel(t *testing.T) {
	f := startFake(t, v66, map[uint16]cluster.VBInfo{7: activeVB(2)}, map[uint16]uint64{7: 2}, func(_ int, req mcbp.StreamReq, _ net.Conn) ([]byte, error) {
		return accept(req).marker(0, 2).out, nil // and nothing more
	})
	s := one(t, f, nil, 7)
	defer s.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	if err := s.Open(ctx, nil); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(stop) })
	if err := s.Read(ctx, pump.NewBatch(4096)); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

// TestUsage has wrong options and addresses.
func TestUsage(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.Options.IdleTimeout = 0 },
		func(c *Config) { c.Options.OpenVBuckets = 0 },
		func(c *Config) { c.Options.BufferSize = 5 },
		func(c *Config) { c.Options.Follow, c.Options.FollowInterval = true, 0 },
		func(c *Config) { c.Options.Collection = "nodot" },
		func(c *Config) { c.Options.Collection = "a.b.c" },
		func(c *Config) { c.URL = "dcp://" },
		func(c *Config) { c.URL = "dcp://a@b" },
		func(c *Config) { c.URL = "dcp://host:0" },
		func(c *Config) { c.URL = "dcp://a,b" },
		func(c *Config) { c.URL = "ftp://host" },
	} {
		cfg := Config{URL: "dcp://host", Options: DefaultOptions()}
		change(&cfg)
		if _, err := New(context.Background(), cfg); pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%q, %+v: %v", cfg.URL, cfg.Options, err)
		}
	}
}
