package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/cbpump/cbpump/pump"
)

// plain is an error as a person would say it: one line without the words of Go
// and of the operating system's calls.
func plain(err error) string {
	if err == nil {
		return ""
	}
	return plainText(inWords(err))
}

// inWords says err in plain words. What wrappers add around an inner error is
// kept: the inner text is part of the whole text, and its plain words are put in
// its place.
func inWords(err error) string {
	if say := plainOne(err); say != "" {
		return say
	}
	var inner []error
	switch w := err.(type) {
	case interface{ Unwrap() []error }:
		inner = w.Unwrap()
	case interface{ Unwrap() error }:
		inner = []error{w.Unwrap()}
	}
	text := err.Error()
	for _, e := range inner {
		if e != nil && e.Error() != "" {
			text = strings.Replace(text, e.Error(), inWords(e), 1)
		}
	}
	return text
}

// plainOne says one error of the standard library in plain words; "" leaves it.
func plainOne(err error) string {
	switch e := err.(type) {
	case *url.Error:
		return plain(e.Err)
	case *net.OpError:
		return plainNet(e)
	case *net.DNSError:
		if e.IsNotFound {
			return fmt.Sprintf("there is no host named %q", e.Name)
		}
		return fmt.Sprintf("the name %q could not be looked up", e.Name)
	case *fs.PathError:
		return fmt.Sprintf("%s: %s", e.Path, plain(e.Err))
	case *os.LinkError:
		return fmt.Sprintf("%s: %s", e.New, plain(e.Err))
	case *os.SyscallError:
		return plain(e.Err)
	}
	for _, known := range []struct {
		err  error
		text string
	}{
		{io.EOF, "the other side closed the connection"},
		{io.ErrUnexpectedEOF, "the other side closed the connection in the middle of a message"},
		{io.ErrClosedPipe, "the connection is closed"},
		{net.ErrClosed, "the connection is closed"},
		{context.Canceled, "stopped"},
		{context.DeadlineExceeded, "no answer in time"},
		{os.ErrDeadlineExceeded, "no answer in time"},
		{syscall.ECONNRESET, "the other side broke the connection off"},
		{syscall.EPIPE, "the other side closed the connection"},
	} {
		if err == known.err {
			return known.text
		}
	}
	return ""
}

func plainNet(e *net.OpError) string {
	why := plain(e.Err)
	if e.Timeout() {
		why = "no answer in time"
	}
	var dns *net.DNSError
	switch {
	case errors.As(e.Err, &dns):
		return why
	case e.Addr == nil:
		return why
	case e.Op == "dial":
		return fmt.Sprintf("cannot connect to %s: %s", e.Addr, why)
	}
	return fmt.Sprintf("connection to %s: %s", e.Addr, why)
}

// plainText makes a text of any origin safe for a terminal and one line long.
func plainText(text string) string {
	return oneLine(strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "))
}

func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '.'
		}
		return r
	}, text)
}

// hintOf returns what to do about an error: its own hint, or one for its class.
func hintOf(err error) string {
	if h := pump.HintOf(err); h != "" {
		return oneLine(h)
	}
	switch pump.ClassOf(err) {
	case pump.ClassUnreachable:
		return "Check host and port, that the server runs, and that no firewall is between."
	case pump.ClassDenied:
		return "Check user name and password: -u and -p for the source, -U and -P for the destination."
	case pump.ClassPartial:
		return "Everything else is at the destination."
	case pump.ClassInterrupted:
		return "Run the same command again to finish."
	}
	return ""
}

// quoteText shows bytes of unknown origin: printable UTF-8 as it is, everything
// else escaped, so that a key can neither break a line nor drive a terminal.
func quoteText(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case r == '\\':
			b.WriteString(`\\`)
		case !unicode.IsPrint(r) && r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// userData marks a key as data of users, so that logs can be redacted.
func userData(key []byte) string {
	text := quoteText(string(key))
	text = strings.ReplaceAll(text, "</ud>", `\x3c/ud>`)
	return "<ud>" + text + "</ud>"
}
