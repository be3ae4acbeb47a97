package dcp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// The state of a mark (pump.Mark.State), big endian:
//
//	u8  1, the version
//	u8  bits: 1 the counts are of the whole history (never rolled back),
//	    2 a collection was dropped in it
//	u64 snapshot start, u64 snapshot end: around Mark.Seqno
//	u64 mutations, u64 deletions received
//	u64 seqno up to which no key came twice
//	the failover log: u64 uuid, u64 seqno, newest branch first
const (
	markVersion = 1
	markFixed   = 2 + 5*8
	markCounted = 1
	markDrops   = 2
)

// mark appends the part's position to a batch's marks. State is the part's own
// memory and stays as it is until the next batch.
func (p *part) mark(complete bool, items uint64) pump.Mark {
	s := append(p.state[:0], markVersion, 0)
	if p.counted {
		s[1] |= markCounted
	}
	if p.drops {
		s[1] |= markDrops
	}
	for _, n := range [...]uint64{p.snapStart, p.snapEnd, p.live, p.gone, p.cover} {
		s = binary.BigEndian.AppendUint64(s, n)
	}
	p.state = mcbp.AppendFailoverLog(s, p.log)
	return pump.Mark{VBucket: p.vb, Seqno: p.seqno, Complete: complete, Items: items, State: p.state}
}

// restore puts the part where a mark says.
func (p *part) restore(m *pump.Mark) error {
	bad := func(why error) error {
		return &pump.Error{Class: pump.ClassUsage, Code: codeBadMark, Op: fmt.Sprintf("go on with vbucket %d", p.vb), Err: why,
			Hint: "The saved position is damaged or from another program. Start anew without it."}
	}
	s := m.State
	if len(s) < markFixed || s[0] != markVersion {
		return bad(errors.New("the saved position is not one of this source"))
	}
	log, err := mcbp.ParseFailoverLog(s[markFixed:])
	if err != nil {
		return bad(err)
	}
	n := func(i int) uint64 { return binary.BigEndian.Uint64(s[2+8*i:]) }
	if n(0) > m.Seqno || n(1) < m.Seqno {
		return bad(fmt.Errorf("seqno %d is not within its snapshot, %d to %d", m.Seqno, n(0), n(1)))
	}
	p.seqno, p.log = m.Seqno, log
	p.snapStart, p.snapEnd, p.live, p.gone, p.cover = n(0), n(1), n(2), n(3), n(4)
	p.counted, p.drops = s[1]&markCounted != 0, s[1]&markDrops != 0
	return nil
}
