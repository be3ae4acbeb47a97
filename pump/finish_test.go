package pump_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// definer is a source with definitions.
type definer struct {
	pumptest.MemSource
	defs []pump.Definition
	err  error
}

func (d *definer) Definitions(context.Context) ([]pump.Definition, error) { return d.defs, d.err }

// finisher is a sink that notes in which order it is finished.
type finisher struct {
	pumptest.MemSink
	said []string
	left []pump.Definition
	fail map[string]error
}

func (f *finisher) note(what string) error {
	f.said = append(f.said, what)
	return f.fail[what]
}

func (f *finisher) Lanes(ctx context.Context, want int) ([]pump.Lane, error) {
	lanes, err := f.MemSink.Lanes(ctx, want)
	for i, l := range lanes {
		lanes[i] = finishedLane{l, f}
	}
	return lanes, err
}

type finishedLane struct {
	pump.Lane
	f *finisher
}

func (l finishedLane) Close() error { return l.f.note("lane") }

func (f *finisher) Close() error { return f.note("close") }

func (f *finisher) Commit(context.Context) error { return f.note("commit") }

func (f *finisher) TakeDefinitions(_ context.Context, all []pump.Definition) ([]pump.Definition, error) {
	return f.left, f.note(fmt.Sprint("take ", len(all)))
}

func TestCommitComesLastAndOnlyAfterSuccess(t *testing.T) {
	boom := errors.New("boom")
	defs := []pump.Definition{{Kind: pump.DesignDocuments, JSON: []byte("[]")}, {Kind: pump.Indexes, JSON: []byte("[]")}}
	items := [][]pump.Item{{{Key: []byte("a")}, {Key: []byte("b")}}}
	for name, c := range map[string]*struct {
		source  definer
		sink    finisher
		verdict pump.Verdict
		want    string
		fails   bool
		leftOut int
	}{
		"no definitions":         {want: "lane commit close"},
		"with definitions":       {source: definer{defs: defs}, want: "lane take 2 commit close"},
		"some have no place":     {source: definer{defs: defs}, sink: finisher{left: defs[1:]}, want: "lane take 2 commit close", leftOut: 1},
		"rejected items":         {verdict: pump.Rejected, want: "lane commit close", fails: true},
		"definitions unreadable": {source: definer{err: boom}, want: "lane close", fails: true},
		"definitions refused":    {source: definer{defs: defs}, sink: finisher{fail: map[string]error{"take 2": boom}}, want: "lane take 2 close", fails: true},
		"a lane fails to close":  {sink: finisher{fail: map[string]error{"lane": boom}}, want: "lane close", fails: true},
		"the commit fails":       {sink: finisher{fail: map[string]error{"commit": boom}}, want: "lane commit close", fails: true},
		"a stream breaks": {source: definer{MemSource: pumptest.MemSource{Fail: func(int, int) error { return boom }}},
			want: "lane close", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			source, sink := &c.source, &c.sink
			source.Parts = items
			if c.verdict != 0 {
				sink.Verdict = func(int, *pump.Item) (pump.Verdict, error) { return c.verdict, boom }
			}
			report, err := pump.Run(t.Context(), pump.Config{Source: source, Sink: sink, Settings: pump.DefaultSettings()})
			if (err != nil) != c.fails {
				t.Errorf("Run: %v", err)
			}
			if got := strings.Join(sink.said, " "); got != c.want {
				t.Errorf("the sink was asked %q, want %q", got, c.want)
			}
			if len(report.LeftOut) != c.leftOut {
				t.Errorf("left out %v", report.LeftOut)
			}
		})
	}
}

// omitter is a source that left something out.
type omitter struct {
	pumptest.MemSource
	err error
}

func (o *omitter) Omitted() error { return o.err }

func TestWhatTheSourceOmittedMakesTheResultPartial(t *testing.T) {
	left := &pump.Error{Class: pump.ClassPartial, Code: "left", Err: errors.New("x.json is no document")}
	for name, c := range map[string]struct {
		omitted error
		verdict pump.Verdict
		want    pump.Class
		texts   []string
	}{
		"nothing":                   {},
		"something":                 {omitted: left, want: pump.ClassPartial, texts: []string{"x.json"}},
		"something beside refusals": {omitted: left, verdict: pump.Rejected, want: pump.ClassPartial, texts: []string{"x.json", "rejected"}},
	} {
		t.Run(name, func(t *testing.T) {
			source, sink := &omitter{err: c.omitted}, &finisher{}
			source.Parts = [][]pump.Item{{{Key: []byte("a")}}}
			if c.verdict != 0 {
				sink.Verdict = func(int, *pump.Item) (pump.Verdict, error) { return c.verdict, errors.New("refused") }
			}
			_, err := pump.Run(t.Context(), pump.Config{Source: source, Sink: sink, Settings: pump.DefaultSettings()})
			if (err != nil) != (c.texts != nil) || pump.ClassOf(err) != c.want {
				t.Fatalf("Run: %v", err)
			}
			for _, text := range c.texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%v does not say %q", err, text)
				}
			}
			if got := strings.Join(sink.said, " "); got != "lane commit close" {
				t.Errorf("the sink was asked %q", got)
			}
		})
	}
}

func TestDefinitionsWithoutATakerAreReported(t *testing.T) {
	source := &definer{defs: []pump.Definition{{Kind: pump.DesignDocuments, JSON: []byte("[]")}}}
	source.Parts = [][]pump.Item{{{Key: []byte("a")}}}
	report, err := pump.Run(t.Context(), pump.Config{Source: source, Sink: &pumptest.MemSink{}, Settings: pump.DefaultSettings()})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.LeftOut) != 1 || report.LeftOut[0].Kind != pump.DesignDocuments {
		t.Errorf("left out %v", report.LeftOut)
	}
}

func TestStoppedRunDoesNotCommit(t *testing.T) {
	stop := make(chan struct{})
	source, sink := &definer{}, &finisher{}
	source.Parts, source.BatchSize = [][]pump.Item{{{Key: []byte("a")}, {Key: []byte("b")}}}, 1
	source.Fail = func(_, given int) error {
		if given == 1 {
			close(stop)
			return pump.Retryable(errors.New("broken; the stop is under way"))
		}
		return nil
	}
	set := pump.DefaultSettings()
	set.RetryMin, set.RetryMax = set.DrainTime, set.DrainTime // the stop ends the pause
	_, err := pump.Run(t.Context(), pump.Config{Source: source, Sink: sink, Settings: set, Stop: stop})
	if pump.ClassOf(err) != pump.ClassInterrupted {
		t.Errorf("Run: %v", err)
	}
	if got := strings.Join(sink.said, " "); got != "lane close" {
		t.Errorf("the sink was asked %q", got)
	}
}

// attester is a sink that cannot be asked for a while.
type attester struct {
	pumptest.MemSink
	errs []error // of one call after the other; nil behind the last
}

func (a *attester) Attest(context.Context) error {
	if len(a.errs) == 0 {
		return nil
	}
	err := a.errs[0]
	a.errs = a.errs[1:]
	return err
}

// TestAttestIsAskedAgain: when everything is written, a connection that breaks does not
// fail the run; a destination that has lost it does, and one that stays away, too.
func TestAttestIsAskedAgain(t *testing.T) {
	cut, lost := pump.Retryable(errors.New("cut")), errors.New("all is gone")
	for name, c := range map[string]struct {
		errs []error
		time time.Duration
		want error
	}{
		"at last":    {[]error{cut, cut, cut}, time.Minute, nil},
		"lost":       {[]error{cut, lost}, time.Minute, lost},
		"stays away": {[]error{cut}, time.Nanosecond, cut},
	} {
		set := pump.DefaultSettings()
		set.RetryTime, set.RetryMin, set.RetryMax = c.time, time.Millisecond, time.Millisecond
		sink := &attester{errs: c.errs}
		report, err := pump.Run(t.Context(), pump.Config{
			Source: &pumptest.MemSource{Parts: [][]pump.Item{{{Key: []byte("k")}}}}, Sink: sink, Settings: set})
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || report.Done != 1 || len(sink.errs) != 0 {
			t.Errorf("%s: %v, %d done, %d answers left", name, err, report.Done, len(sink.errs))
		}
	}
}
