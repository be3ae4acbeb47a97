package pump_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

type counted struct {
	n   int
	err error
}

func (c counted) VBucketCount(context.Context) (int, error) { return c.n, c.err }

type (
	countedSource struct {
		pump.Source
		counted
	}
	countedSink struct {
		pump.Sink
		counted
	}
)

func TestCheckLayout(t *testing.T) {
	broken := errors.New("no answer")
	for name, q := range map[string]struct {
		from, to counted
		class    pump.Class
		err      bool
	}{
		"same":           {from: counted{n: 64}, to: counted{n: 64}},
		"other":          {from: counted{n: 1024}, to: counted{n: 64}, class: pump.ClassUsage, err: true},
		"source silent":  {to: counted{n: 64}},
		"sink rehashes":  {from: counted{n: 1024}},
		"source's error": {from: counted{err: broken}, to: counted{n: 64}, err: true},
		"sink's error":   {from: counted{n: 64}, to: counted{err: broken}, err: true},
	} {
		t.Run(name, func(t *testing.T) {
			err := pump.Check(t.Context(), countedSource{counted: q.from}, countedSink{counted: q.to})
			if (err != nil) != q.err || pump.ClassOf(err) != q.class {
				t.Errorf("%v, class %d", err, pump.ClassOf(err))
			}
		})
	}
	if err := pump.Check(t.Context(), nil, countedSink{counted: counted{n: 64}}); err != nil {
		t.Error(err)
	}
	if err := pump.Check(t.Context(), countedSource{counted: counted{n: 64}}, nil); err != nil {
		t.Error(err)
	}
}
