package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

func TestPlain(t *testing.T) {
	dial := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("a\nb"), "a; b"},
		{errors.New("a\x1b[31mred"), "a.[31mred"},
		{dial, "cannot connect to 127.0.0.1:1: connection refused"},
		{&url.Error{Op: "Get", URL: "http://127.0.0.1:1/pools", Err: dial}, "cannot connect to 127.0.0.1:1: connection refused"},
		{fmt.Errorf("ask %w", dial), "ask cannot connect to 127.0.0.1:1: connection refused"},
		{&pump.Error{Op: "dump vbucket 5 from n:11210", Err: io.ErrUnexpectedEOF}, "dump vbucket 5 from n:11210: the other side closed the connection in the middle of a message"},
		{&pump.Error{Op: "read", Err: io.EOF}, "read: the other side closed the connection"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), "x: no answer in time"},
		{&net.OpError{Op: "read", Net: "tcp", Addr: dial.Addr, Err: os.ErrDeadlineExceeded}, "connection to 127.0.0.1:1: no answer in time"},
		{&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Name: "nohost", IsNotFound: true}}, `there is no host named "nohost"`},
		{errors.Join(fmt.Errorf("a: %w", io.EOF), fmt.Errorf("b: %w", io.EOF)), "a: the other side closed the connection; b: the other side closed the connection"},
		{&os.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, "/x: no such file or directory"},
	} {
		if got := plain(c.err); got != c.want {
			t.Errorf("plain(%v)\n got %s\nwant %s", c.err, got, c.want)
		}
	}
}

func TestUserData(t *testing.T) {
	for in, want := range map[string]string{
		"key": "<ud>key</ud>", "schlüssel 5": "<ud>schlüssel 5</ud>", "a\xffb": `<ud>a\xffb</ud>`,
		"a\nb\x1b[2J": `<ud>a\x0ab\x1b[2J</ud>`, `a\b`: `<ud>a\\b</ud>`, "</ud>": `<ud>\x3c/ud></ud>`, "\u202e": `<ud>\u202e</ud>`,
	} {
		if got := userData([]byte(in)); got != want {
			t.Errorf("userData(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestUserDataIsOneSafeLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		for _, r := range userData(key) {
			if r < 0x20 || r == 0x7f {
				t.Fatalf("a control character in %q", userData(key))
			}
		}
		if strings.Count(userData(key), "</ud>") != 1 {
			t.Fatalf("the mark is closed more than once in %q", userData(key))
		}
	})
}

func TestNumbers(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", 100000: "100,000"} {
		if got := grouped(n); got != want {
			t.Errorf("grouped(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999949: "999.9 kB", 999999: "1.0 MB", 24.4e6: "24.4 MB", 3e18: "3000.0 PB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%v) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{400 * time.Millisecond: "0:00", 7 * time.Second: "0:07", 725 * time.Second: "12:05", 11045 * time.Second: "3:04:05"} {
		if got := clock(d); got != want {
			t.Errorf("clock(%s) = %s, want %s", d, got, want)
		}
	}
}

func TestProgressText(t *testing.T) {
	half := pump.Snapshot{Elapsed: 2 * time.Second, Read: 600, Done: 490, Skipped: 10, BytesDone: 1e6, Streams: 2, Estimate: pump.Estimate{Items: 1000}}
	unknown, over, end, parked := half, half, half, half
	unknown.Estimate.Items = 0
	over.Done = 5000
	end.Read, end.Done, end.StreamsDone = 1000, 990, 2
	parked.Done, parked.Skipped, parked.BytesDone, parked.Retried = 0, 0, 0, 7
	for _, c := range []struct {
		name string
		s    pump.Snapshot
		want string
	}{
		{"half", half, " 50 %  500 of 1,000 items  250 items/s  500.0 kB/s  ETA 0:02  skipped 10"},
		{"no estimate", unknown, "500 items  250 items/s  500.0 kB/s  skipped 10"},
		{"more than was expected", over, " 99 %  5,010 of 5,010 items  2,505 items/s  500.0 kB/s  skipped 10"},
		{"all", end, "100 %  1,000 of 1,000 items  500 items/s  500.0 kB/s  skipped 10"},
		{"nothing moves", parked, "  0 %  0 of 1,000 items  0 items/s  0 B/s  sent again 7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m meter
			if got := progressText(&c.s, m.feed(&c.s)); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// A rate looks back ten seconds, so that a transfer that stands still shows it.
func TestMeterForgets(t *testing.T) {
	var m meter
	var last rates
	for s := range 60 {
		last = m.feed(&pump.Snapshot{Elapsed: time.Duration(s+1) * time.Second, Done: uint64(min(s, 20) * 100)})
		if s == 20 && (last.items < 80 || last.items > 101) {
			t.Errorf("while it moves at 100 items/s it shows %v", last.items)
		}
	}
	if last.items != 0 {
		t.Errorf("after 40 s of standing still it shows %v items/s", last.items)
	}
}

func TestMeterStaysInBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m meter
		s := pump.Snapshot{Streams: 1, Estimate: pump.Estimate{Items: rapid.Uint64Max(100).Draw(t, "estimate")}}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			s.Elapsed += time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "time"))
			n := rapid.Uint64Max(50).Draw(t, "items")
			s.Read, s.Done = s.Read+n, s.Done+n
			r := m.feed(&s)
			if r.percent > 99 || r.percent < -1 || r.items < 0 || r.eta < 0 {
				t.Fatalf("out of bounds: %+v", r)
			}
		}
		s.StreamsDone = 1
		if r := m.feed(&s); s.Estimate.Items > 0 && r.percent != 100 {
			t.Fatalf("at the end it shows %d %%", r.percent)
		}
	})
}

func TestReportText(t *testing.T) {
	r := &pump.Report{
		Snapshot:      pump.Snapshot{Elapsed: 2 * time.Second, Read: 100000, Done: 99995, Skipped: 1, Rejected: 3, BytesRead: 24.4e6, BytesDone: 24.3e6, Filtered: 7, Retried: 12},
		StreamReports: []pump.StreamReport{{ID: "node a"}, {ID: "node b", Err: io.ErrUnexpectedEOF}, {ID: "node c", Err: errors.New("gone")}},
		Rejections:    []pump.Rejection{{VBucket: 5, Key: []byte("big\xff"), Cause: errors.New("too large")}, {VBucket: pump.NoVBucket, Op: pump.Deletion, Key: []byte("d"), Cause: errors.New("no")}},
		Causes:        []pump.CauseCount{{Verdict: pump.Rejected, Text: "too large", N: 3}, {Verdict: pump.Skipped, Text: "newer there", N: 1}},
	}
	const want = `                           items          bytes
  read                   100,000        24.4 MB
    done                  99,995        24.3 MB
    skipped                    1
                               1  newer there
    rejected                   3
                               3  too large
    unfinished                 1
  left out                     7
  sent again                  12
  2.0 s, 49,997 items/s, 12.2 MB/s
  rejected: mutation <ud>big\xff</ud> of vbucket 5: too large
  rejected: deletion <ud>d</ud>: no
  and 1 more; --json lists every one`
	if got := reportText(r); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestBriefErrorKeepsClassCodeAndHint(t *testing.T) {
	a := &pump.Error{Class: pump.ClassUnreachable, Code: "gone", Err: errors.New("node a is gone"), Hint: "Start it."}
	b := errors.New("node b is cut")
	r := &pump.Report{StreamReports: []pump.StreamReport{{ID: "a", Err: a}, {ID: "b", Err: b}, {ID: "c"}}}
	run := &transfer{say: &console{}, report: r}
	got := run.brief(errors.Join(a, b))
	if plain(got) != "2 of 3 parts of the source are not proven complete; each is named above with its reason" ||
		pump.ExitCode(got, 0) != 4 || pump.CodeOf(got) != "gone" || pump.HintOf(got) != "Start it." {
		t.Errorf("got %#v", got)
	}
	run.say.silent = true
	if text := plain(run.brief(errors.Join(a, b))); !strings.HasSuffix(text, "; the first is a: node a is gone") {
		t.Errorf("silent: %s", text)
	}
	run.say.silent = false
	r.StreamReports[1].Err = a
	if got := run.brief(a); got != error(a) {
		t.Errorf("one reason for all is said as it is; got %v", got)
	}
	// Parts are counted, not reasons.
	r.StreamReports[2].Err = b
	if text := plain(run.brief(errors.Join(a, b))); !strings.HasPrefix(text, "3 of 3 parts ") {
		t.Errorf("got %s", text)
	}
}

// What failed before the first item is named all the same, and a thousand parts
// do not fill the screen.
func TestFailedStreamsAreNamed(t *testing.T) {
	r := &pump.Report{}
	for i := range 1000 {
		r.StreamReports = append(r.StreamReports, pump.StreamReport{ID: fmt.Sprintf("vb%d", i), Err: fmt.Errorf("reason %d", i%2)})
	}
	var said strings.Builder
	failedStreams(&console{err: &said}, r)
	if text := said.String(); !strings.Contains(text, "  not complete: vb0: reason 0\n  not complete: vb1: reason 1\n") ||
		!strings.HasSuffix(text, "  and 980 more; -v and --json list every one\n") || strings.Count(text, "\n") != 21 {
		t.Errorf("said %s", text)
	}
}

func TestPartialSaysTheNumbersOfTheTable(t *testing.T) {
	skipped := &pump.Error{Class: pump.ClassPartial, Code: "skipped", Err: errors.New("2000 items were skipped")}
	left := &pump.Error{Class: pump.ClassPartial, Code: "left-out", Err: errors.New("3 files are no documents"), Hint: "look at them"}
	for _, c := range []struct {
		err  error
		done uint64
		text string
		hint string
	}{
		{skipped, 5, "2,000 items were skipped", "Everything else is at the destination."},
		{skipped, 0, "2,000 items were skipped", "Nothing was written; the reasons stand in the table and in the JSON result."},
		{errors.Join(skipped, left), 5, "2,000 items were skipped; 3 files are no documents", "Look at them"},
		{errors.Join(left), 5, "3 files are no documents", "Look at them"},
	} {
		got := partial(&pump.Report{Snapshot: pump.Snapshot{Done: c.done, Skipped: 2000}}, c.err)
		if plain(got) != c.text || strings.Join(hintsOf(got), "|") != c.hint || pump.ExitCode(got, 0) != 3 {
			t.Errorf("%q, hints %q, exit code %d; want %q, %q", plain(got), hintsOf(got), pump.ExitCode(got, 0), c.text, c.hint)
		}
	}
}

func TestHints(t *testing.T) {
	a := &pump.Error{Err: errors.New("a"), Hint: "check the source"}
	b := &pump.Error{Err: errors.New("b"), Hint: "with-meta=true can"}
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("x: %w", errors.Join(a, b, a)), "Check the source|with-meta=true can"},
		{&pump.Error{Err: errors.Join(a, b), Hint: "for both"}, "For both"},
		{errors.Join(errors.New("no hint"), b), "with-meta=true can"},
		{&pump.Error{Err: a, Class: pump.ClassUnreachable}, "Check the source"},
		{errors.New("x"), ""},
	} {
		if got := strings.Join(hintsOf(c.err), "|"); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

func TestPagesOfServersAreCut(t *testing.T) {
	page := errors.New("the server answers 500 Internal:" + strings.Repeat(" word", 60))
	err := errors.Join(&pump.Error{Op: "read", Err: page}, errors.New("and this"))
	got := shortAnswers(plain(err), err)
	if len(got) > 140 || !strings.Contains(got, "…; and this") || !strings.HasPrefix(got, "read: the server answers 500 Internal: word") {
		t.Errorf("got %q", got)
	}
}

func TestLeftOutDefinitionsAreShown(t *testing.T) {
	r := &pump.Report{LeftOut: []pump.Definition{{Kind: pump.DesignDocuments, JSON: []byte("[12]")}}}
	if text := reportText(r); !strings.Contains(text, "not written: the source's design documents (4 B)") {
		t.Errorf("%s", text)
	}
	run := &transfer{flags: newTransferFlags("x"), report: r}
	if l := run.result(0).(resultLine); len(l.LeftOut) != 1 || l.LeftOut[0].Bytes != 4 {
		t.Errorf("%+v", l)
	}
}

func TestLostPartsAreShown(t *testing.T) {
	r := &pump.Report{Losses: []pump.Loss{{Part: "the CAS", Items: 1200}}}
	if text := reportText(r); !strings.Contains(text, "not written: the CAS of 1,200 items, for which the destination has no place") {
		t.Errorf("%s", text)
	}
	run := &transfer{flags: newTransferFlags("x"), report: r}
	if l := run.result(0).(resultLine); len(l.Losses) != 1 || l.Losses[0] != (lossField{"the CAS", 1200}) {
		t.Errorf("%+v", l)
	}
}
