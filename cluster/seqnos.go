package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// HighSeqnos returns the high seqno of each wanted vbucket (GET_ALL_VB_SEQNOS,
// 3.0.2 and later; before, the statistics of each), of those in one state or, with
// mcbp.VBAbsent, in any.
//
// What it means depends on the connection: with mcbp.FeatureCollections it is the
// vbucket's, without it is that of the default collection on servers from 7.0 on.
// A stream that is to end there must run on a connection of the same kind, or it
// may never end.
//
// A node that warms up answers with an empty list, and a vbucket may be on its way:
// HighSeqnos asks again until all wanted ones are there, for limit at most; then it
// is an error with code seqnos-missing (retryable). It never returns less than
// was wanted: "not there yet" must not be read as "nothing to copy" (invariant 4).
func (c *Conn) HighSeqnos(ctx context.Context, want []uint16, state mcbp.VBState, limit time.Duration) (map[uint16]uint64, error) {
	var x []byte
	if state != mcbp.VBAbsent {
		x = binary.BigEndian.AppendUint32(nil, uint32(state))
	}
	return c.highSeqnos(ctx, want, x, limit)
}

// CollectionHighSeqnos is HighSeqnos of one collection in active vbuckets (7.0 and
// later, on a connection with mcbp.FeatureCollections): the seqno of its last
// change, 0 where it never had one.
func (c *Conn) CollectionHighSeqnos(ctx context.Context, want []uint16, collection uint32, limit time.Duration) (map[uint16]uint64, error) {
	if !c.Has(mcbp.FeatureCollections) {
		return nil, c.misuse("high seqnos of a collection", "collections were not negotiated on this connection") // the id would be ignored
	}
	x := binary.BigEndian.AppendUint32(nil, uint32(mcbp.VBActive))
	return c.highSeqnos(ctx, want, binary.BigEndian.AppendUint32(x, collection), limit)
}

func (c *Conn) misuse(op, why string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: "usage", Op: c.name() + ": " + op, Err: errors.New(why)}
}

func (c *Conn) highSeqnos(ctx context.Context, want []uint16, extras []byte, limit time.Duration) (map[uint16]uint64, error) {
	const op = "high seqnos"
	pauseFor, start := 10*time.Millisecond, c.clock.now()
	for {
		f, err := c.ask(ctx, mcbp.OpGetAllVBSeqnos, 0, extras, nil, nil)
		if err != nil {
			return nil, err
		}
		var all map[uint16]uint64
		switch f.Status() {
		case mcbp.StatusOK:
			if all, err = mcbp.ParseAllVBSeqnos(f.Value()); err != nil {
				return nil, c.Explain(ctx, op, err)
			}
		case mcbp.StatusTmpFail, mcbp.StatusBusy:
		case mcbp.StatusUnknown, mcbp.StatusNotSupported:
			if c.Has(mcbp.FeatureXerror) { // a newer server knows it
				return nil, c.Refused(op, &f)
			}
			if all, err = c.seqnosOneByOne(ctx, want); err != nil {
				return nil, err
			}
		default:
			return nil, c.Refused(op, &f)
		}
		var missing []uint16
		wanted := make(map[uint16]uint64, len(want))
		for _, vb := range want {
			if seqno, ok := all[vb]; ok {
				wanted[vb] = seqno
			} else {
				missing = append(missing, vb)
			}
		}
		if len(missing) == 0 {
			return wanted, nil
		}
		waited := c.clock.now().Sub(start)
		if waited >= limit {
			return nil, &pump.Error{
				Code: "seqnos-missing", Op: c.name() + ": " + op, Retry: true,
				Err:  fmt.Errorf("after %v the node still does not tell that of %d of %d vbuckets, such as %d; it lists %d", limit, len(missing), len(want), missing[0], len(all)),
				Hint: "Does the node still load its data (warm up), or has a rebalance moved the vbuckets?",
			}
		}
		if err := c.clock.pause(ctx, min(pauseFor, limit-waited)); err != nil {
			return nil, c.Explain(ctx, op, err)
		}
		pauseFor = min(2*pauseFor, time.Second)
	}
}

// seqnosOneByOne asks for the high seqnos of servers that cannot tell them all; those
// that are not there are left out.
func (c *Conn) seqnosOneByOne(ctx context.Context, want []uint16) (map[uint16]uint64, error) {
	all := make(map[uint16]uint64, len(want))
	for _, vb := range want {
		s, err := c.VBucketSeqno(ctx, vb)
		switch {
		case err == nil:
			all[vb] = s.High
		case !isStatus(err, mcbp.StatusNotMyVBucket):
			return nil, err
		}
	}
	return all, nil
}

// VBSeqno is what a node says of the history of a vbucket (stats vbucket-seqno).
type VBSeqno struct {
	High      uint64 // seqno of the last change
	UUID      uint64 // of the branch that it is on
	Purged    uint64 // tombstones up to here are gone
	Persisted uint64 // on disk up to here; 0 where the server does not tell
}

// VBucketSeqno returns what the node says of the history of one vbucket (3.0 and
// later), in whatever state it is there. Not there is a StatusError 0x07.
func (c *Conn) VBucketSeqno(ctx context.Context, vb uint16) (VBSeqno, error) {
	group := fmt.Sprintf("vbucket-seqno %d", vb)
	var s VBSeqno
	fields := map[string]*uint64{"high_seqno": &s.High, "uuid": &s.UUID, "purge_seqno": &s.Purged, "last_persisted_seqno": &s.Persisted}
	seen := map[string]bool{}
	prefix := fmt.Sprintf("vb_%d:", vb)
	err := c.Stats(ctx, group, func(name, value string) (err error) {
		name, mine := strings.CutPrefix(name, prefix)
		if into := fields[name]; mine && into != nil {
			if *into, err = strconv.ParseUint(value, 10, 64); err != nil {
				return fmt.Errorf("%w: vbucket %d has %s %s", mcbp.ErrMalformed, vb, name, quote(value))
			}
			seen[name] = true
		}
		return nil
	})
	if err == nil && !(seen["high_seqno"] && seen["uuid"]) {
		err = fmt.Errorf("%w: vbucket %d comes without its high seqno or uuid", mcbp.ErrMalformed, vb)
	}
	if err != nil {
		return VBSeqno{}, c.Explain(ctx, "stats "+group, err)
	}
	return s, nil
}

// VBucketUUIDs returns the uuid of the branch of history that each vbucket is on
// (3.0 and later), in whatever state it is at the node. Vbuckets that are not there
// are left out, and so are all of a server that does not say. All are asked for in
// one go, so that it takes one round trip and not one for each.
func (c *Conn) VBucketUUIDs(ctx context.Context, vbs []uint16) (map[uint16]uint64, error) {
	const op = "stats vbucket-seqno"
	// The questions share an opaque: answers come in the order of questions, and the
	// last of each is told by itself.
	opaque := c.NextOpaque()
	var request []byte
	for _, vb := range vbs {
		request = mcbp.AppendFrame(request, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpStat, Opaque: opaque}, nil,
			fmt.Appendf(nil, "vbucket-seqno %d", vb), nil)
	}
	out := make(map[uint16]uint64, len(vbs))
	open := len(vbs)
	if open == 0 {
		return out, nil
	}
	var result error
	err := c.converse(ctx, request, opaque, func(f mcbp.Frame) (last bool) {
		switch {
		case f.Status() == mcbp.StatusNotMyVBucket, f.Status() == mcbp.StatusNotFound, f.Status() == mcbp.StatusInvalid:
			open--
		case f.Status() != mcbp.StatusOK:
			result = c.Refused(op, &f)
			open--
		case f.KeyLen == 0 && len(f.Value()) == 0:
			open--
		default:
			vb := vbs[len(vbs)-open]
			if string(f.Key()) != fmt.Sprintf("vb_%d:uuid", vb) {
				break
			}
			uuid, err := strconv.ParseUint(string(f.Value()), 10, 64)
			if err != nil && result == nil {
				result = fmt.Errorf("%w: vbucket %d has uuid %s", mcbp.ErrMalformed, vb, quote(string(f.Value())))
			}
			out[vb] = uuid
		}
		return open == 0
	})
	if err == nil {
		err = result
	}
	if err != nil {
		return nil, c.Explain(ctx, op, err)
	}
	return out, nil
}

// FailoverLog returns the branches of a vbucket's history, newest first. The
// connection must be a DCP one (OpenDcp): 6.6 closes any other.
func (c *Conn) FailoverLog(ctx context.Context, vb uint16) ([]mcbp.FailoverEntry, error) {
	op := fmt.Sprintf("failover log of vbucket %d", vb)
	if !c.dcp {
		return nil, c.misuse(op, "the connection is not a DCP connection")
	}
	f, err := c.ask(ctx, mcbp.OpDcpFailoverLog, vb, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	if f.Status() != mcbp.StatusOK {
		return nil, c.Refused(op, &f)
	}
	log, err := mcbp.ParseFailoverLog(f.Value())
	return log, c.Explain(ctx, op, err)
}

// DcpConfig says how to open a DCP connection.
type DcpConfig struct {
	// Name is the connection's name, at most 200 bytes. The server closes another
	// connection with the same name: make it unique.
	Name string
	// Consumer makes the node the consumer, into which is pushed.
	Consumer bool

	// The rest is for producers.

	BufferSize   uint32        // bytes that may be unacknowledged; 0 = no flow control
	NoopInterval time.Duration // how often an idle node sends NOOP, in whole seconds; 0 = not, unless the server insists
}

// DcpOpened is what the node agreed to; of a consumer only DeleteTimes.
type DcpOpened struct {
	Xattrs      bool // values with extended attributes come whole
	DeleteTimes bool // deletions carry their time (21 bytes of extras), also those that are pushed
	Expirations bool // expired documents come as EXPIRATION
	Noop        bool // NOOPs come and must be answered
	FlowControl bool // BUFFER_ACKs are needed
}

// OpenDcp makes a connection a DCP connection: DCP_OPEN and, for a producer, the
// CONTROLs in the order that servers need (NOOP before any stream, or streams with
// extended attributes or collections are refused). It asks only for what the
// node's version is known to have: an unknown flag closes the connection.
//
// Once streams are open only Reader and NetConn may be used: methods that ask the
// node drop what does not answer them.
func (c *Conn) OpenDcp(ctx context.Context, cfg DcpConfig) (DcpOpened, error) {
	op := "open a DCP connection"
	var got DcpOpened
	switch {
	case cfg.Name == "" || len(cfg.Name) > 200:
		return got, c.misuse(op, "the name of a DCP connection has 1 to 200 bytes")
	case c.dcp:
		return got, c.misuse(op, "it is one already")
	}
	var flags uint32
	if got.DeleteTimes = c.version.AtLeast(5, 5); got.DeleteTimes {
		flags |= mcbp.DcpOpenDeleteTimes
	}
	if !cfg.Consumer {
		flags |= mcbp.DcpOpenProducer
		if got.Xattrs = c.Has(mcbp.FeatureXattr); got.Xattrs {
			flags |= mcbp.DcpOpenXattrs
		}
	}
	opaque := c.NextOpaque()
	f, err := c.RoundTrip(ctx, mcbp.AppendDcpOpen(nil, opaque, cfg.Name, flags), opaque)
	if err != nil {
		return DcpOpened{}, err
	}
	switch f.Status() {
	case mcbp.StatusOK:
	case mcbp.StatusUnknown, mcbp.StatusNotSupported:
		return DcpOpened{}, &pump.Error{
			Class: pump.ClassUsage, Code: "no-dcp", Op: c.name() + ": " + op, Err: &StatusError{Status: f.Status()},
			Hint: "DCP exists from Couchbase Server 3.0 on; before, TAP does (protocol=tap).",
		}
	default:
		return DcpOpened{}, c.Refused(op, &f)
	}
	c.dcp = true
	if cfg.Consumer {
		return got, nil
	}
	noop := got.Xattrs || c.Has(mcbp.FeatureCollections) // else every stream is refused
	controls := []struct {
		key, value string
		granted    *bool
		wanted     bool
		must       bool
	}{
		{"enable_noop", "true", &got.Noop, noop || cfg.NoopInterval > 0, noop},
		{"set_noop_interval", strconv.Itoa(int(cfg.NoopInterval / time.Second)), nil, cfg.NoopInterval >= time.Second, false},
		{"connection_buffer_size", strconv.FormatUint(uint64(cfg.BufferSize), 10), &got.FlowControl, cfg.BufferSize > 0, true},
		{"enable_expiry_opcode", "true", &got.Expirations, c.version.AtLeast(6, 5), false},
	}
	for _, ctl := range controls {
		if !ctl.wanted {
			continue
		}
		opaque := c.NextOpaque()
		f, err := c.RoundTrip(ctx, mcbp.AppendDcpControl(nil, opaque, ctl.key, ctl.value), opaque)
		if err != nil {
			return DcpOpened{}, err
		}
		ok := f.Status() == mcbp.StatusOK
		if !ok && ctl.must {
			return DcpOpened{}, c.Refused("set DCP "+ctl.key, &f)
		}
		if ctl.granted != nil {
			*ctl.granted = ok
		}
	}
	return got, nil
}
