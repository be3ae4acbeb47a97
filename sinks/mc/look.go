package mc

import (
	"context"
	"fmt"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/sinks/internal/pipe"
)

// LookFields: memcached tells value and flags of a key. When it expires it does not
// say, and CAS numbers are its own.
func (s *Sink) LookFields() pump.Fields {
	return pump.FieldValue | pump.FieldFlags | pump.FieldDeleted
}

// Look connects to ask for keys.
func (s *Sink) Look(ctx context.Context) (pump.Lookup, error) {
	p, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &lookup{sink: s, pipe: p, rulings: NewRulings(s.where)}, nil
}

// lookup is one connection for questions.
type lookup struct {
	sink    *Sink
	pipe    *pipe.Pipe // nil when not connected
	rulings *Rulings
}

// Find asks for all keys at once and reads the answers while it still asks. A key
// that memcached cannot have is not there.
func (k *lookup) Find(ctx context.Context, items []pump.Item, found func(i int, have *pump.Item)) error {
	if k.pipe == nil {
		p, err := k.sink.dial(ctx)
		if err != nil {
			return err
		}
		k.pipe = p
	}
	p := k.pipe
	var have pump.Item
	var stop error
	p.Each = func(i int, f *mcbp.Frame) {
		x := f.Extras()
		switch {
		case f.Status() == mcbp.StatusNotFound:
		case f.Status() == mcbp.StatusOK && len(x) == 4:
			have = pump.Item{Flags: uint32(x[0])<<24 | uint32(x[1])<<16 | uint32(x[2])<<8 | uint32(x[3]), CAS: f.CAS, Value: f.Value()}
			found(i, &have)
		case stop == nil:
			stop = k.refused(f.Status())
		}
	}
	p.Begin(ctx, len(items), len(items))
	for i := range items {
		if n := len(items[i].Key); n == 0 || n > MaxKey {
			continue
		}
		p.Out = mcbp.AppendKeyed(p.Out, mcbp.OpGetQ, p.Opaque(i), 0, 0, items[i].Key)
		p.Sent()
	}
	p.End()
	err := p.Wait()
	if err != nil {
		k.pipe = nil
		_ = p.Close()
		err = k.sink.lost("ask "+k.sink.where, err)
	}
	if stop != nil {
		return stop
	}
	return err
}

// refused is the error of an answer that says nothing about a key.
func (k *lookup) refused(s mcbp.Status) error {
	r := k.rulings.Of(ReqGet, s)
	switch {
	case r.Cause == nil:
		return &pump.Error{Code: "lookup", Op: "read from " + k.sink.where, Err: fmt.Errorf("the server answers a question for a key with %s", mcbp.StatusName(s)),
			Hint: "is that memcached?"}
	case r.Verdict == pump.Retry:
		return pump.Retryable(r.Cause)
	}
	return r.Cause
}

// Close closes the connection.
func (k *lookup) Close() error {
	if k.pipe == nil {
		return nil
	}
	p := k.pipe
	k.pipe = nil
	return p.Close()
}
