package gen

import (
	"testing"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

func TestConformance(t *testing.T) {
	o := options(t, map[string]string{"max-items": "3000", "min-value-size": "5", "max-value-size": "900", "ratio-sets": "0.9", "streams": "3"})
	pumptest.TestSource(t, pumptest.SourceSuite{New: func(t *testing.T) pump.Source {
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}})
}
