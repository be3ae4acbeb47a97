package pump_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

func TestClassAndExitCode(t *testing.T) {
	plain := errors.New("plain")
	of := func(c pump.Class) error { return &pump.Error{Class: c, Err: plain} }
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, tc := range []struct {
		name string
		err  error
		sig  syscall.Signal
		want pump.Class
		exit int
	}{
		{"nothing", nil, 0, pump.ClassFailed, 0},
		{"nothing, but a signal that came too late", nil, syscall.SIGTERM, pump.ClassFailed, 0},
		{"plain", plain, 0, pump.ClassFailed, 1},
		{"plain after a signal", plain, syscall.SIGINT, pump.ClassFailed, 1},
		{"failed", of(pump.ClassFailed), 0, pump.ClassFailed, 1},
		{"usage", pump.Usagef("no bucket %q", "x"), 0, pump.ClassUsage, 2},
		{"usage, found while items were moved", fmt.Errorf("run: %w", pump.Begun(pump.Usagef("no bucket"))), 0, pump.ClassFailed, 1},
		{"denied, found while items were moved", pump.Begun(errors.Join(plain, of(pump.ClassDenied))), 0, pump.ClassDenied, 4},
		{"partial", of(pump.ClassPartial), 0, pump.ClassPartial, 3},
		{"unreachable", of(pump.ClassUnreachable), 0, pump.ClassUnreachable, 4},
		{"denied", of(pump.ClassDenied), 0, pump.ClassDenied, 4},
		{"interrupted", of(pump.ClassInterrupted), syscall.SIGTERM, pump.ClassInterrupted, 143},
		{"interrupted", of(pump.ClassInterrupted), syscall.SIGINT, pump.ClassInterrupted, 130},
		{"interrupted without a signal", of(pump.ClassInterrupted), 0, pump.ClassInterrupted, 130},
		{"wrapped", fmt.Errorf("outer: %w", of(pump.ClassDenied)), 0, pump.ClassDenied, 4},
		{"class set inside", &pump.Error{Op: "outer", Err: of(pump.ClassDenied)}, 0, pump.ClassDenied, 4},
		{"the outermost counts", &pump.Error{Class: pump.ClassUsage, Err: of(pump.ClassDenied)}, 0, pump.ClassUsage, 2},
		{"refused", fmt.Errorf("dial: %w", refused), 0, pump.ClassUnreachable, 4},
		{"refused inside an Error", &pump.Error{Op: "dial", Err: refused}, 0, pump.ClassUnreachable, 4},
		{"no route", syscall.EHOSTUNREACH, 0, pump.ClassUnreachable, 4},
		{"no network", syscall.ENETUNREACH, 0, pump.ClassUnreachable, 4},
		{"unknown host", &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "nowhere", IsNotFound: true}}, 0, pump.ClassUnreachable, 4},
		{"no permission", &os.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, 0, pump.ClassDenied, 4},
		{"no file", &os.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, 0, pump.ClassFailed, 1},
		{"cancelled", fmt.Errorf("read: %w", context.Canceled), syscall.SIGINT, pump.ClassInterrupted, 130},
		{"deadline", context.DeadlineExceeded, 0, pump.ClassFailed, 1},
		{"end of file", io.EOF, 0, pump.ClassFailed, 1},
		{"joined: the one that says more", errors.Join(plain, of(pump.ClassDenied)), 0, pump.ClassDenied, 4},
		{"joined: the first of two", errors.Join(of(pump.ClassUnreachable), of(pump.ClassDenied)), 0, pump.ClassUnreachable, 4},
		{"two wrapped", fmt.Errorf("%w: %w", plain, refused), 0, pump.ClassUnreachable, 4},
		{"partial and partial", errors.Join(of(pump.ClassPartial), of(pump.ClassPartial)), 0, pump.ClassPartial, 3},
		{"a failure beside a partial success", errors.Join(of(pump.ClassPartial), plain), 0, pump.ClassFailed, 1},
		{"and the other way round", errors.Join(plain, of(pump.ClassPartial)), 0, pump.ClassFailed, 1},
		{"interrupted beside a failure", errors.Join(of(pump.ClassInterrupted), plain), syscall.SIGINT, pump.ClassInterrupted, 130},
		{"joined, wrapped", &pump.Error{Op: "run", Err: errors.Join(plain, of(pump.ClassUsage))}, 0, pump.ClassUsage, 2},
	} {
		if got := pump.ClassOf(tc.err); got != tc.want {
			t.Errorf("%s: class %d, want %d", tc.name, got, tc.want)
		}
		if got := pump.ExitCode(tc.err, tc.sig); got != tc.exit {
			t.Errorf("%s: exit code %d, want %d", tc.name, got, tc.exit)
		}
	}
}

func TestErrorText(t *testing.T) {
	cause := errors.New("refused")
	for want, err := range map[string]*pump.Error{
		"dump vbucket 5: refused": {Op: "dump vbucket 5", Err: cause, Code: "x"},
		"dump vbucket 6":          {Op: "dump vbucket 6", Code: "x"},
		"refused":                 {Err: cause, Code: "x"},
		"tap-cut":                 {Code: "tap-cut"},
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err.Error(), want)
		}
		if errors.Is(err, cause) != (err.Err != nil) {
			t.Errorf("%q does not unwrap", want)
		}
	}
}

func TestCodeAndHint(t *testing.T) {
	inner := &pump.Error{Code: "tap-cut", Hint: "Run it again."}
	for _, tc := range []struct {
		err        error
		code, hint string
	}{
		{nil, "failed", ""},
		{errors.New("x"), "failed", ""},
		{inner, "tap-cut", "Run it again."},
		{fmt.Errorf("x: %w", inner), "tap-cut", "Run it again."},
		{&pump.Error{Op: "outer", Err: inner}, "tap-cut", "Run it again."},
		{&pump.Error{Code: "outer", Err: inner}, "outer", "Run it again."},
		{&pump.Error{Hint: "No.", Err: inner}, "tap-cut", "No."},
		{pump.Usagef("x"), "usage", ""},
	} {
		if c, h := pump.CodeOf(tc.err), pump.HintOf(tc.err); c != tc.code || h != tc.hint {
			t.Errorf("%v: code %q and hint %q, want %q and %q", tc.err, c, h, tc.code, tc.hint)
		}
	}
}

func TestRetryable(t *testing.T) {
	if pump.Retryable(nil) != nil || pump.IsRetryable(nil) {
		t.Error("nothing is retryable")
	}
	denied := &pump.Error{Class: pump.ClassDenied, Code: "denied", Hint: "Ask.", Op: "log in"}
	r := pump.Retryable(denied)
	if !pump.IsRetryable(r) || pump.IsRetryable(denied) || pump.ClassOf(r) != pump.ClassDenied || pump.CodeOf(r) != "denied" ||
		pump.HintOf(r) != "Ask." || r.Error() != denied.Error() || !errors.Is(r, denied) {
		t.Errorf("%#v", r)
	}
	if again := pump.Retryable(r); again != r {
		t.Errorf("marked twice: %#v", again)
	}
	if !pump.IsRetryable(fmt.Errorf("x: %w", &pump.Error{Op: "outer", Err: r})) {
		t.Error("the mark is lost in wrapping")
	}
	if pump.IsRetryable(io.ErrUnexpectedEOF) {
		t.Error("a plain error is retryable")
	}
}

func TestErrorOf(t *testing.T) {
	own, other := errors.New("short"), errors.New("moved")
	err := fmt.Errorf("run: %w", errors.Join(
		errors.New("elsewhere"),
		pump.Retryable(&pump.Error{Op: "dump", Err: errors.New("cut"), VBuckets: map[uint16]error{0: own}}),
		&pump.Error{Err: &pump.Error{VBuckets: map[uint16]error{7: other, 0: other}}},
	))
	for vb, want := range map[uint16]error{0: own, 7: other, 8: nil} {
		if got := pump.ErrorOf(err, vb); got != want {
			t.Errorf("vbucket %d: %v, want %v", vb, got, want)
		}
	}
	if pump.ErrorOf(nil, 0) != nil {
		t.Error("no error has none")
	}
}
