package cluster

import (
	"html"
	"strings"
	"unicode"
	"unicode/utf8"
)

// clip makes text of unknown origin safe and short enough for a message: at most
// n runes, no control characters, one line.
func clip(s string, n int) string {
	var b strings.Builder
	space, count := false, 0
	for _, r := range s {
		switch {
		case unicode.IsSpace(r):
			space = b.Len() > 0
			continue
		case r == utf8.RuneError || !unicode.IsPrint(r):
			r = '.'
		}
		if count >= n {
			b.WriteRune('…')
			break
		}
		if space {
			b.WriteByte(' ')
			space = false
			count++
		}
		b.WriteRune(r)
		count++
	}
	return b.String()
}

// textEnough is how many bytes of a page are looked at for its first words.
const textEnough = 16 << 10

// plainText is what a person would read of an HTML page, or the text itself.
func plainText(s string) string {
	if !strings.Contains(s, "<") {
		return s
	}
	lower := lowerASCII(s)
	var b strings.Builder
	for at := 0; at < len(s); {
		lt := strings.IndexByte(s[at:], '<')
		if lt < 0 {
			b.WriteString(s[at:])
			break
		}
		b.WriteString(s[at : at+lt])
		b.WriteByte(' ')
		at += lt
		end := ">"
		switch {
		case strings.HasPrefix(s[at:], "<!--"):
			end = "-->"
		case isTag(lower[at:], "<style"):
			end = "</style>"
		case isTag(lower[at:], "<script"):
			end = "</script>"
		}
		skip := strings.Index(lower[at:], end)
		if skip < 0 {
			break
		}
		at += skip + len(end)
	}
	return html.UnescapeString(b.String())
}

func isTag(s, tag string) bool {
	return strings.HasPrefix(s, tag) && len(s) > len(tag) && strings.IndexByte(" >\t\r\n", s[len(tag)]) >= 0
}

// lowerASCII folds letters and keeps every byte in its place, valid UTF-8 or not.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
