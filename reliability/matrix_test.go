package reliability

import (
	"context"
	"flag"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

var (
	seeds = flag.Int("seeds", 1, "how many seeds of each fault the matrix tries for each pair")
	share = flag.Int("share", 3, "which part of the faults the matrix tries for each pair: one in so many, another one for each pair")
)

// fast are settings that make many small batches of little data, and whose pauses do
// not slow the tests.
func fast() pump.Settings {
	s := pump.DefaultSettings()
	s.Memory, s.BatchBytes, s.LaneItems = 96<<10, 16<<10, 24
	s.RetryMin, s.RetryMax, s.RetryTime = time.Millisecond, 5*time.Millisecond, 2*time.Second
	return s
}

// TestMatrix is {source} × {sink} × {fault} × {seed}: one fault at a call that the
// seed chooses, and a few others at random.
func TestMatrix(t *testing.T) {
	dir := t.TempDir()
	sources, release, err := Sources(t.Context(), dir, 150)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	for i, src := range sources {
		sinks, release, err := Sinks(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(release)
		for j, sink := range sinks {
			t.Run(src.Name+" to "+sink.Name, func(t *testing.T) {
				t.Parallel()
				undisturbed(t, src, sink)
				for k, fault := range pumptest.Faults() {
					if (i+j+k)%*share != 0 {
						continue
					}
					for seed := range uint64(*seeds) {
						disturbed(t, src, sink, fault, seed+1000*uint64(k))
					}
				}
			})
		}
	}
}

// stuck is how long a run may take that should take milliseconds; it is shorter than
// the 30 seconds after which a silent connection is given up.
const stuck = 25 * time.Second

// run moves src to an empty sink and judges.
func run(t *testing.T, src *Source, sink Sink, chaos *pumptest.Chaos) (*pump.Report, error, error) {
	t.Helper()
	to, err := sink.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, err := OpenSource(t.Context(), src.Spec)
	if err != nil {
		t.Fatal(err)
	}
	into, err := OpenSink(t.Context(), to.Spec)
	if err != nil {
		t.Fatal(err)
	}
	ledger := &Ledger{Sink: chaos.Sink(into)}
	ctx, cancel := context.WithTimeout(t.Context(), stuck)
	defer cancel()
	report, err := pump.Run(ctx, pump.Config{Source: chaos.Source(from), Sink: ledger, Settings: fast(), Threads: 2, Scribble: true})
	if ctx.Err() != nil {
		t.Errorf("the run hangs; what struck: %v", chaos.Struck())
	}
	return report, err, Judge(src, to, ledger, report, err)
}

func undisturbed(t *testing.T, src *Source, sink Sink) {
	t.Helper()
	report, err, verdict := run(t, src, sink, &pumptest.Chaos{})
	if verdict != nil || err != nil && pump.ClassOf(err) != pump.ClassPartial {
		t.Fatalf("undisturbed: %v, %v, %+v", err, verdict, report.Snapshot)
	}
}

func disturbed(t *testing.T, src *Source, sink Sink, fault pumptest.Fault, seed uint64) {
	t.Helper()
	first := pumptest.Strike{Fault: fault, Part: int(seed>>1) % 2, Nth: int(seed) % 2}
	switch fault.Call {
	case pumptest.CallRead, pumptest.CallWrite, pumptest.CallAcknowledge:
	case pumptest.CallOpen, pumptest.CallCloseStream, pumptest.CallCloseLane:
		first.Nth = 0
	default:
		first.Part, first.Nth = 0, 0
	}
	var mended []pumptest.Fault
	for _, f := range pumptest.Faults() {
		if f.How == pumptest.Again || f.How == pumptest.Some {
			mended = append(mended, f)
		}
	}
	plans := []pumptest.Plan{pumptest.Exactly(first), pumptest.Random(seed, 0.25, mended...), pumptest.Random(seed, 0.01, pumptest.Faults()...)}
	chaos := &pumptest.Chaos{Plan: func(c pumptest.Call, part, nth int) (f pumptest.Fault, ok bool) {
		for _, plan := range plans {
			if f, ok = plan(c, part, nth); ok {
				break
			}
		}
		return f, ok
	}}
	report, err, verdict := run(t, src, sink, chaos)
	if verdict != nil {
		t.Errorf("seed %d: %v\nwhat struck: %v\nthe run said: %v\n%+v", seed, verdict, chaos.Struck(), err, report.Snapshot)
	}
	fatal := false
	for _, s := range chaos.Struck() {
		// A stream's Close counts only at its end; after its last Read nobody asks
		// whether an acknowledgement got through.
		fatal = fatal || s.How == pumptest.Fail && s.Call != pumptest.CallAcknowledge && s.Call != pumptest.CallCloseStream
	}
	if fatal && err == nil {
		t.Errorf("seed %d: success in spite of %v", seed, chaos.Struck())
	}
}
