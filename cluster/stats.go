package cluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// ask sends one request with an opaque of its own and returns the answer.
func (c *Conn) ask(ctx context.Context, op mcbp.Opcode, vb uint16, extras, key, value []byte) (mcbp.Frame, error) {
	opaque := c.NextOpaque()
	c.buf = mcbp.AppendFrame(c.buf[:0], mcbp.Header{Magic: mcbp.MagicRequest, Opcode: op, VBucket: vb, Opaque: opaque}, extras, key, value)
	f, err := c.RoundTrip(ctx, c.buf, opaque)
	clear(c.buf) // it may have held a password
	return f, err
}

// Stats asks for a group of statistics ("" is the general one) and gives each to
// the callback. When the callback returns an error the rest is read over, the
// connection stays usable, and that error is returned. An error of the server is
// a StatusError: 2.5.1 answers 0x01 to a group it does not know.
func (c *Conn) Stats(ctx context.Context, group string, each func(name, value string) error) error {
	opaque := c.NextOpaque()
	request := mcbp.AppendFrame(nil, mcbp.Header{Magic: mcbp.MagicRequest, Opcode: mcbp.OpStat, Opaque: opaque}, nil, []byte(group), nil)
	op := strings.TrimSpace("stats " + clip(group, 60))
	var result error
	err := c.converse(ctx, request, opaque, func(f mcbp.Frame) (last bool) {
		if f.Status() != mcbp.StatusOK {
			result = c.Refused(op, &f)
			return true
		}
		if f.KeyLen == 0 && len(f.Value()) == 0 {
			return true
		}
		if result == nil {
			result = each(string(f.Key()), string(f.Value()))
		}
		return false
	})
	if err != nil {
		return err
	}
	return result
}

// VBInfo is what a node says of a vbucket it has.
type VBInfo struct {
	State mcbp.VBState
	Items uint64 // live items
}

// VBucketDetails returns every vbucket that the node has, in whatever state, with
// its number of live items (stats vbucket-details). A bucket of memcached type has
// no such statistics: that is an error of class usage, code bucket-type.
func (c *Conn) VBucketDetails(ctx context.Context) (map[uint16]VBInfo, error) {
	d := vbDetails{}
	if err := c.Stats(ctx, "vbucket-details", d.add); err != nil {
		var status *StatusError
		if errors.As(err, &status) && status.Status == mcbp.StatusNotFound {
			return nil, &pump.Error{
				Class: pump.ClassUsage, Code: "bucket-type", Op: c.name() + ": list the vbuckets", Hint: noVBucketsHint(c.role),
				Err: fmt.Errorf("there are none: the bucket is of memcached type, or this is no node of Couchbase (%w)", status),
			}
		}
		return nil, c.Explain(ctx, "stats vbucket-details", err)
	}
	infos, err := d.done()
	if err != nil {
		return nil, c.Explain(ctx, "stats vbucket-details", err)
	}
	return infos, nil
}

// VBucketInfo is VBucketDetails of one vbucket (3.0 and later). Not there is a
// StatusError 0x07.
func (c *Conn) VBucketInfo(ctx context.Context, vb uint16) (VBInfo, error) {
	d, group := vbDetails{}, fmt.Sprintf("vbucket-details %d", vb)
	err := c.Stats(ctx, group, d.add)
	var infos map[uint16]VBInfo
	if err == nil {
		if infos, err = d.done(); err == nil && infos[vb].State == mcbp.VBAbsent {
			err = fmt.Errorf("%w: vbucket %d does not come", mcbp.ErrMalformed, vb)
		}
	}
	return infos[vb], c.Explain(ctx, "stats "+group, err)
}

// vbDetails collects the lines of vbucket-details: "vb_N" is a state,
// "vb_N:num_items" a number; others are of no interest here.
type vbDetails map[uint16]*vbLine

type vbLine struct {
	VBInfo
	hasState, hasItems bool
}

func (d vbDetails) add(name, value string) error {
	number, ok := strings.CutPrefix(name, "vb_")
	if !ok {
		return nil
	}
	number, field, isField := strings.Cut(number, ":")
	if isField && field != "num_items" {
		return nil
	}
	vb, err := strconv.ParseUint(number, 10, 16)
	if err != nil || strconv.FormatUint(vb, 10) != number || vb >= maxVBuckets {
		if isField || number == "" || strings.Trim(number, "0123456789") != "" {
			return nil // some other statistic whose name only begins alike
		}
		return fmt.Errorf("%w: vbucket %s", mcbp.ErrMalformed, quote(number))
	}
	line := d[uint16(vb)]
	if line == nil {
		line = new(vbLine)
		d[uint16(vb)] = line
	}
	if isField {
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%w: vbucket %d has %s items", mcbp.ErrMalformed, vb, quote(value))
		}
		line.Items, line.hasItems = n, true
		return nil
	}
	state, ok := mcbp.ParseVBState(value)
	if !ok {
		return fmt.Errorf("%w: vbucket %d is in state %s", mcbp.ErrMalformed, vb, quote(value))
	}
	line.State, line.hasState = state, true
	return nil
}

// done returns what was collected. A vbucket whose state or count did not come
// is an error: without them nothing can be proven about it (invariant 4).
func (d vbDetails) done() (map[uint16]VBInfo, error) {
	infos := make(map[uint16]VBInfo, len(d))
	for vb, line := range d {
		if !line.hasState || !line.hasItems {
			return nil, fmt.Errorf("%w: vbucket %d comes without its state or its number of items", mcbp.ErrMalformed, vb)
		}
		infos[vb] = line.VBInfo
	}
	return infos, nil
}

// VBucketState asks for the state of one vbucket (GET_VBUCKET); VBAbsent when
// the node does not have it (0x07).
func (c *Conn) VBucketState(ctx context.Context, vb uint16) (mcbp.VBState, error) {
	op := fmt.Sprintf("state of vbucket %d", vb)
	f, err := c.ask(ctx, mcbp.OpGetVBucket, vb, nil, nil, nil)
	if err != nil {
		return mcbp.VBAbsent, err
	}
	switch f.Status() {
	case mcbp.StatusOK:
		s, err := mcbp.ParseVBucketState(&f)
		return s, c.Explain(ctx, op, err)
	case mcbp.StatusNotMyVBucket:
		return mcbp.VBAbsent, nil
	}
	return mcbp.VBAbsent, c.Refused(op, &f)
}

// SetVBucketState creates the vbucket on the node or changes its state
// (SET_VBUCKET). Not on a connection that pushed TAP messages: real servers die.
func (c *Conn) SetVBucketState(ctx context.Context, vb uint16, s mcbp.VBState) error {
	op := fmt.Sprintf("set vbucket %d to %s", vb, s)
	if s < mcbp.VBActive || s > mcbp.VBDead {
		return &pump.Error{Class: pump.ClassUsage, Code: "usage", Op: c.name() + ": " + op, Err: errors.New("not a state that can be set")}
	}
	opaque := c.NextOpaque()
	f, err := c.RoundTrip(ctx, mcbp.AppendSetVBucket(nil, opaque, vb, s), opaque)
	if err != nil {
		return err
	}
	if f.Status() != mcbp.StatusOK {
		return c.Refused(op, &f)
	}
	return nil
}

// The pauses between two looks at the flusher.
const (
	flushPauseMin = 5 * time.Millisecond
	flushPauseMax = 500 * time.Millisecond
)

// WaitFlushed waits until the node has written everything to disk: stats
// ep_queue_size and ep_flusher_todo are both 0. After limit it returns an error
// with the two numbers (code "not-flushed", retryable).
func (c *Conn) WaitFlushed(ctx context.Context, limit time.Duration) error {
	const op = "wait until everything is on disk"
	pauseFor, start := flushPauseMin, c.clock.now()
	for {
		queue, todo, err := c.flusher(ctx)
		if err != nil {
			return c.Explain(ctx, op, err)
		}
		if queue == 0 && todo == 0 {
			return nil
		}
		waited := c.clock.now().Sub(start)
		if waited >= limit {
			return &pump.Error{
				Code: "not-flushed", Op: c.name() + ": " + op, Retry: true,
				Err:  fmt.Errorf("after %v there are still %d items queued and %d being written (ep_queue_size, ep_flusher_todo)", limit, queue, todo),
				Hint: "A dump now would lack them. Stop writing to the node, or wait longer.",
			}
		}
		if err := c.clock.pause(ctx, min(pauseFor, limit-waited)); err != nil {
			return c.Explain(ctx, op, err)
		}
		pauseFor = min(2*pauseFor, flushPauseMax)
	}
}

// flusher returns the two numbers, or an error naming what the node lacks.
func (c *Conn) flusher(ctx context.Context) (queue, todo uint64, err error) {
	var hasQueue, hasTodo bool
	err = c.Stats(ctx, "", func(name, value string) (err error) {
		switch name {
		case "ep_queue_size":
			queue, err = strconv.ParseUint(value, 10, 64)
			hasQueue = true
		case "ep_flusher_todo":
			todo, err = strconv.ParseUint(value, 10, 64)
			hasTodo = true
		}
		if err != nil {
			return fmt.Errorf("%w: %s is %s", mcbp.ErrMalformed, name, quote(value))
		}
		return nil
	})
	if err == nil && !(hasQueue && hasTodo) {
		err = &pump.Error{
			Class: pump.ClassUsage, Code: "no-flusher", Op: c.name() + ": stats",
			Err:  errors.New("the node has no ep_queue_size and ep_flusher_todo: it is no Couchbase data node"),
			Hint: "Is this a plain memcached server? It cannot be dumped.",
		}
	}
	return queue, todo, err
}

// Version asks the node for its version (VERSION 0x0b). Old nodes answer with
// the version of their memcached part, 1.4.x; Node.Version is the cluster's word.
func (c *Conn) Version(ctx context.Context) (Version, error) {
	f, err := c.ask(ctx, mcbp.OpVersion, 0, nil, nil, nil)
	if err != nil {
		return Version{}, err
	}
	if f.Status() != mcbp.StatusOK {
		return Version{}, c.Refused("version", &f)
	}
	v, err := ParseVersion(string(f.Value()))
	return v, c.Explain(ctx, "version", err)
}
