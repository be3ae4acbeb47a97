package reliability

import (
	"testing"

	"github.com/cbpump/cbpump/pump/pumptest"
)

// TestBrokenOften: a stream that breaks again and again where it stands, all items
// read and their end not proven, is not taken for one that is written to all the time.
func TestBrokenOften(t *testing.T) {
	sources, release, err := Sources(t.Context(), t.TempDir(), 50)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	open := pumptest.Fault{Call: pumptest.CallOpen, After: true, How: pumptest.Again}
	read := pumptest.Fault{Call: pumptest.CallRead, After: true, How: pumptest.Again}
	strikes := []pumptest.Strike{{Fault: open}, {Fault: open, Nth: 1}, {Fault: open, Nth: 2}, {Fault: read}}
	for _, src := range sources {
		report, err, verdict := run(t, src, null(), &pumptest.Chaos{Plan: pumptest.Exactly(strikes...)})
		if err != nil || verdict != nil || report.Reopened != 4 {
			t.Errorf("%s: %v, %v, opened again %d times", src.Name, err, verdict, report.Reopened)
		}
	}
}

func null() Sink {
	return Sink{"null", func() (*Destination, error) { return &Destination{Spec: "null:", Close: func() {}}, nil }}
}
