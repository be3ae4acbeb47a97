package pipe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/mcbp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a pipe to a peer that runs serve. net.Pipe has no buffers at all:
// whoever does not read while writing hangs.
func open(t testing.TB, timeout time.Duration, serve func(net.Conn, *mcbp.Reader)) *Pipe {
	t.Helper()
	client, server := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer server.Close()
		serve(server, mcbp.NewReader(server))
	})
	p := New(client, mcbp.NewReader(client), timeout)
	t.Cleanup(func() { p.Close(); wg.Wait() })
	return p
}

func answer(dst []byte, f *mcbp.Frame, s mcbp.Status, extras []byte) []byte {
	return mcbp.AppendFrame(dst, mcbp.Header{Magic: mcbp.MagicResponse, Opcode: f.Opcode, Opaque: f.Opaque, VBucket: uint16(s)}, extras, nil, nil)
}

// oneRound sends n SETQ requests with values of size bytes, and a fence.
func oneRound(p *Pipe, ctx context.Context, n, size int) error {
	p.Begin(ctx, n, n)
	value := make([]byte, size)
	for i := range n {
		p.Out = mcbp.AppendStore(p.Out, mcbp.OpSetQ, p.Opaque(i), 0, 0, 0, 0, []byte("k"), value)
		p.Sent()
	}
	p.End()
	return p.Wait()
}

// each answers requests with serve until the connection ends, and every NOOP.
func each(serve func(net.Conn, *mcbp.Frame)) func(net.Conn, *mcbp.Reader) {
	return func(c net.Conn, rd *mcbp.Reader) {
		for {
			f, err := rd.Next()
			if err != nil {
				return
			}
			if f.Opcode == mcbp.OpNoop {
				_, _ = c.Write(answer(nil, &f, mcbp.StatusOK, nil))
				continue
			}
			serve(c, &f)
		}
	}
}

// TestReadsWhileWriting: the peer answers every request before it reads the next
// one, and nothing is buffered in between.
func TestReadsWhileWriting(t *testing.T) {
	p := open(t, 10*time.Second, each(func(c net.Conn, f *mcbp.Frame) {
		_, _ = c.Write(answer(nil, f, mcbp.StatusTooBig, []byte("extra")))
	}))
	for range 3 {
		if err := oneRound(p, t.Context(), 2000, 1000); err != nil {
			t.Fatal(err)
		}
		if len(p.Answers()) != 2000 {
			t.Fatalf("%d answers", len(p.Answers()))
		}
		for i := range p.Answers() {
			a := &p.Answers()[i]
			if f := p.Frame(a); a.Index != i || a.Header.Status() != mcbp.StatusTooBig || string(f.Extras()) != "extra" {
				t.Fatalf("answer %d: %+v", i, a)
			}
		}
	}
}

// TestAnswersProperty: whichever requests fail, in however many pieces the
// answers come, exactly those are reported.
func TestAnswersProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(0, 50).Draw(rt, "n")
		fails := make([]bool, n)
		for i := range fails {
			fails[i] = rapid.Bool().Draw(rt, "fails")
		}
		piece := rapid.IntRange(1, 60).Draw(rt, "piece")
		lastIsFence := n > 0 && rapid.Bool().Draw(rt, "fence")
		client, server := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			rd := mcbp.NewReader(server)
			for i := 0; ; i++ {
				f, err := rd.Next()
				if err != nil {
					return
				}
				var out []byte
				switch {
				case i < n && fails[i]:
					out = answer(nil, &f, mcbp.StatusTmpFail, nil)
				case i == n, i == n-1 && lastIsFence:
					out = answer(nil, &f, mcbp.StatusOK, nil)
				}
				for part := range slices.Chunk(out, piece) {
					if _, err := server.Write(part); err != nil {
						return
					}
				}
			}
		}()
		p := New(client, mcbp.NewReader(client), 10*time.Second)
		fence := n
		if lastIsFence {
			fence = n - 1
		}
		p.Begin(context.Background(), n, fence)
		for i := range n {
			p.Out = mcbp.AppendKeyed(p.Out, mcbp.OpDeleteQ, p.Opaque(i), 0, 0, []byte("k"))
			p.Sent()
		}
		p.End()
		if err := p.Wait(); err != nil {
			rt.Fatal(err)
		}
		got := make([]bool, n)
		for i := range p.Answers() {
			if a := &p.Answers()[i]; a.Header.Status() != mcbp.StatusOK {
				got[a.Index] = true
			}
		}
		if !slices.Equal(got, fails) {
			rt.Fatalf("failures %v, want %v", got, fails)
		}
		p.Close()
		server.Close()
		<-done
	})
}

// TestLateAnswers: a second answer to a request of an earlier round, and what the
// peer asks of us, belong to no request of this round.
func TestLateAnswers(t *testing.T) {
	var earlier []byte
	p := open(t, 10*time.Second, func(c net.Conn, rd *mcbp.Reader) {
		for {
			f, err := rd.Next()
			if err != nil {
				return
			}
			switch {
			case f.Opcode == mcbp.OpNoop:
				_, _ = c.Write(answer(nil, &f, mcbp.StatusOK, nil))
			case earlier == nil:
				earlier = answer(nil, &f, mcbp.StatusInvalid, nil)
				_, _ = c.Write(earlier)
			default:
				_, _ = c.Write(append(bytes.Clone(earlier), mcbp.AppendNoop(nil, f.Opaque)...))
			}
		}
	})
	for want := 1; want >= 0; want-- {
		if err := oneRound(p, t.Context(), 1, 1); err != nil {
			t.Fatal(err)
		}
		if len(p.Answers()) != want {
			t.Errorf("%d answers, want %d", len(p.Answers()), want)
		}
	}
}

func TestSilence(t *testing.T) {
	for _, reads := range []bool{false, true} {
		hold := make(chan struct{})
		p := open(t, 50*time.Millisecond, func(_ net.Conn, rd *mcbp.Reader) {
			if !reads {
				<-hold
			}
			for {
				if _, err := rd.Next(); err != nil {
					return
				}
			}
		})
		err := oneRound(p, t.Context(), 10, 10)
		close(hold)
		if !errors.Is(err, ErrSilent) {
			t.Errorf("reads %v: %v", reads, err)
		}
		if err := oneRound(p, t.Context(), 1, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("a dead pipe says %v", err)
		}
	}
}

// TestTalkingIsNotSilence: answers that trickle in renew the deadline.
func TestTalkingIsNotSilence(t *testing.T) {
	const timeout = time.Second
	p := open(t, timeout, func(c net.Conn, rd *mcbp.Reader) {
		var out []byte
		for {
			f, err := rd.Next()
			if err != nil {
				return
			}
			out = answer(out, &f, mcbp.StatusOK, nil)
			if f.Opcode == mcbp.OpNoop {
				break
			}
		}
		tick := time.NewTicker(timeout / 8)
		defer tick.Stop()
		for part := range slices.Chunk(out, len(out)/12+1) { // half as long again as the timeout
			<-tick.C
			if _, err := c.Write(part); err != nil {
				return
			}
		}
		_, _ = rd.Next()
	})
	if err := oneRound(p, t.Context(), 20, 1); err != nil {
		t.Error(err)
	}
}

// TestCut: what was answered before the end is kept, whatever the end was.
func TestCut(t *testing.T) {
	for name, last := range map[string][]byte{"between": nil, "inside": {0x81, 0x11, 0}} {
		t.Run(name, func(t *testing.T) {
			p := open(t, 10*time.Second, func(c net.Conn, rd *mcbp.Reader) {
				for range 5 {
					f, err := rd.Next()
					if err != nil {
						return
					}
					if f.Opaque%2 == 1 {
						_, _ = c.Write(answer(nil, &f, mcbp.StatusTooBig, nil))
					}
				}
				_, _ = c.Write(last)
			})
			err := oneRound(p, t.Context(), 1000, 1000)
			if !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
			if n := len(p.Answers()); n != 2 && n != 3 {
				t.Errorf("%d answers are kept", n)
			}
		})
	}
}

func TestForeignPeer(t *testing.T) {
	p := open(t, 10*time.Second, func(c net.Conn, rd *mcbp.Reader) {
		_, _ = rd.Next()
		_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		_, _ = rd.Next()
	})
	if err := oneRound(p, t.Context(), 1, 1); !errors.Is(err, mcbp.ErrMagic) {
		t.Errorf("got %v", err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := open(t, time.Hour, func(_ net.Conn, rd *mcbp.Reader) {
		_, _ = rd.Next()
		cancel()
		for {
			if _, err := rd.Next(); err != nil {
				return
			}
		}
	})
	if err := oneRound(p, ctx, 10, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestAllocs: a round costs a handful of allocations, whatever its size, and
// failures cost none beyond that.
func TestAllocs(t *testing.T) {
	noop := mcbp.Frame{Header: mcbp.Header{Opcode: mcbp.OpNoop}}
	out := make([]byte, 0, 1<<20)
	p := open(t, 10*time.Second, func(c net.Conn, rd *mcbp.Reader) {
		for {
			f, err := rd.Next()
			if err != nil {
				return
			}
			if f.Opcode == noop.Opcode {
				out = answer(out, &f, mcbp.StatusOK, nil)
				_, _ = c.Write(out)
				out = out[:0]
			} else if f.Opaque%10 == 0 {
				out = answer(out, &f, mcbp.StatusTmpFail, nil)
			}
		}
	})
	value, key := make([]byte, 100), []byte("key")
	ctx := t.Context()
	allocs := testing.AllocsPerRun(20, func() {
		p.Begin(ctx, 5000, 5000)
		for i := range 5000 {
			p.Out = mcbp.AppendStore(p.Out, mcbp.OpSetQ, p.Opaque(i), 0, 0, 0, 0, key, value)
			p.Sent()
		}
		p.End()
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 50 { // 5000 items; net.Pipe's deadlines cost some
		t.Errorf("%v allocations in a round of 5000 items", allocs)
	}
}

// TestUnsentBytesAreDropped: what the kernel still holds of a connection that is given
// up is not sent later, behind what the next connection wrote (invariant 5); one that
// has nothing under way ends in the usual way.
func TestUnsentBytesAreDropped(t *testing.T) {
	for _, clean := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		p := New(client, mcbp.NewReader(client), 50*time.Millisecond)
		if !clean {
			if err := oneRound(p, t.Context(), 20, 1<<20); !errors.Is(err, ErrSilent) {
				t.Fatalf("%v from a peer that reads nothing", err)
			}
		}
		_ = p.Close() // of a reset connection it may be an error
		n, err := io.Copy(io.Discard, server)
		if reset := errors.Is(err, syscall.ECONNRESET); reset == clean || n >= 20<<20 {
			t.Errorf("nothing under way: %t; the peer read %d bytes, then %v", clean, n, err)
		}
	}
}

// TestTwoRoundsUnderWay: the answers of each round stay apart although the second was
// sent before the first was answered, and a connection that is lost in the first is
// lost to both.
func TestTwoRoundsUnderWay(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  int // requests after which the peer closes, 0 = never
		ok   [2]bool
	}{
		{"both are answered", 0, [2]bool{true, true}},
		{"it closes in the second", 7, [2]bool{true, false}},
		{"it closes in the first", 2, [2]bool{false, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = 5
			both := make(chan struct{})
			client, server := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer server.Close()
				rd := mcbp.NewReader(server)
				var frames []mcbp.Header
				for range 2 * (n + 1) {
					f, err := rd.Next()
					if err != nil {
						return
					}
					frames = append(frames, f.Header)
				}
				<-both
				for i, h := range frames {
					if c.cut > 0 && i == c.cut {
						return
					}
					f := mcbp.Frame{Header: h}
					s := mcbp.StatusTooBig
					if f.Opcode == mcbp.OpNoop {
						s = mcbp.StatusOK
					} else if i%2 == 0 {
						continue
					}
					if _, err := server.Write(answer(nil, &f, s, nil)); err != nil {
						return
					}
				}
			}()
			p := New(client, mcbp.NewReader(client), 10*time.Second)
			for range 2 {
				p.Begin(t.Context(), n, n)
				for i := range n {
					p.Out = mcbp.AppendKeyed(p.Out, mcbp.OpDeleteQ, p.Opaque(i), 0, 0, []byte("k"))
					p.Sent()
				}
				p.End()
			}
			close(both)
			for round, want := range [2][]int{{1, 3}, {1, 3}} {
				err := p.Wait()
				if (err == nil) != c.ok[round] {
					t.Fatalf("round %d: %v", round, err)
				}
				var got []int
				for i := range p.Answers() {
					got = append(got, p.Answers()[i].Index)
				}
				if err == nil && !slices.Equal(got, want) {
					t.Errorf("round %d: answers %v, want %v", round, got, want)
				}
			}
			_ = p.Close()
			<-done
		})
	}
}

// TestAnswersOutOfOrder: an answer to a request of the second round that comes before
// the fence of the first could be a refusal, and must not get lost.
func TestAnswersOutOfOrder(t *testing.T) {
	p := open(t, 10*time.Second, func(c net.Conn, rd *mcbp.Reader) {
		var frames []mcbp.Header
		for range 4 {
			f, err := rd.Next()
			if err != nil {
				return
			}
			frames = append(frames, f.Header)
		}
		for _, i := range []int{2, 1, 3} {
			f := mcbp.Frame{Header: frames[i]}
			_, _ = c.Write(answer(nil, &f, mcbp.StatusTooBig, nil))
		}
		_, _ = rd.Next()
	})
	for range 2 {
		p.Begin(t.Context(), 1, 1)
		p.Out = mcbp.AppendKeyed(p.Out, mcbp.OpDeleteQ, p.Opaque(0), 0, 0, []byte("k"))
		p.Sent()
		p.End()
	}
	for range 2 {
		if err := p.Wait(); err == nil {
			t.Error("a refusal that came too early is taken for nothing")
		}
	}
}
