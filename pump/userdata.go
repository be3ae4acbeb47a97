package pump

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// UserData marks a key, or a name made of one, as data of users, so that what
// prints it can redact it: <ud>key</ud>. What is not printable UTF-8 is escaped,
// so that a key can neither break a line, drive a terminal nor close the mark.
// Every key in an error or a log line is written by it.
func UserData[T ~string | ~[]byte](key T) string {
	const most = 1024
	text, more := string(key), ""
	if len(text) > most {
		text, more = text[:most], "…"
	}
	text = strings.ReplaceAll(Printable(text), "</ud>", `\x3c/ud>`)
	return "<ud>" + text + more + "</ud>"
}

// Printable shows bytes of unknown origin: printable UTF-8 as it is, everything
// else escaped.
func Printable(text string) string {
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
