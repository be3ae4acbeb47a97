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
	"slices"
	"strings"
	"syscall"
	"unicode"

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
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
	return oneLine(strings.ReplaceAll(text, `"?; it has `, `"? It has `))
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

// hintsOf returns what to do about an error: its own hints, of each end that
// failed, or one for its class. A hint is a sentence and begins like one.
func hintsOf(err error) []string {
	if list := ownHints(err); len(list) > 0 {
		return list
	}
	switch pump.ClassOf(err) {
	case pump.ClassUnreachable:
		return []string{"Check host and port, that the server runs, and that no firewall is between."}
	case pump.ClassDenied:
		return []string{"Check user name and password: -u and -p for the source, -U and -P for the destination."}
	case pump.ClassPartial:
		return []string{"Everything else is at the destination."}
	case pump.ClassInterrupted:
		return []string{"Run the same command again to finish."}
	}
	return nil
}

// ownHints returns the different hints that an error has; each may be several
// lines, a hint each.
func ownHints(err error) []string {
	var list []string
	for _, one := range leaves(err) {
		for h := range strings.SplitSeq(pump.HintOf(one), "\n") {
			if h = sentence(oneLine(h)); h != "" && !slices.Contains(list, h) {
				list = append(list, h)
			}
		}
	}
	return list
}

// leaves returns the errors that were joined. One whose wrapper has a hint is
// not taken apart: that hint is meant for all of it.
func leaves(err error) []error {
	for at := err; at != nil; {
		if e, ok := at.(*pump.Error); ok && e.Hint != "" {
			return []error{err}
		}
		switch w := at.(type) {
		case interface{ Unwrap() []error }:
			var all []error
			for _, e := range w.Unwrap() {
				all = append(all, leaves(e)...)
			}
			return all
		case interface{ Unwrap() error }:
			at = w.Unwrap()
		default:
			at = nil
		}
	}
	return []error{err}
}

// sentence gives a hint its capital, unless it begins with the name of a command
// or an option.
func sentence(text string) string {
	first, _, _ := strings.Cut(text, " ")
	if first == "" || strings.HasPrefix(first, "cb") || strings.ContainsFunc(first, func(r rune) bool { return (r < 'a' || r > 'z') && r != ',' && r != ':' }) {
		return text
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// shortAnswers cuts the pages that servers answered with, inside the text of err.
func shortAnswers(text string, err error) string {
	const start, most = "the server answers ", 100
	if inner, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range inner.Unwrap() {
			text = shortAnswers(text, e)
		}
		return text
	}
	if e := errors.Unwrap(err); e != nil {
		return shortAnswers(text, e)
	}
	if err == nil || !strings.HasPrefix(err.Error(), start) {
		return text
	}
	if said := []rune(plain(err)); len(said) > len(start)+most {
		text = strings.Replace(text, string(said), strings.TrimSpace(string(said[:len(start)+most]))+"…", 1)
	}
	return text
}

// quoteText shows bytes of unknown origin on a terminal.
func quoteText(text string) string { return pump.Printable(text) }

// userData marks a key as data of users, so that logs can be redacted.
func userData(key []byte) string { return pump.UserData(key) }
