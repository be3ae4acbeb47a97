package cli

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/cbpump/cbpump/pump"
)

// redactKeyEnv gives --redact its key, so that the hashes of several runs can be
// compared; without it each run has its own.
const redactKeyEnv = "CBPUMP_REDACT_KEY"

// redactor puts a keyed hash in the place of each key in what is said. What was
// redacted carries another mark, so that passing twice changes nothing more.
type redactor struct{ key []byte }

func newRedactor(p *Process) *redactor {
	if text, ok := p.env(redactKeyEnv); ok && text != "" {
		return &redactor{key: []byte(text)}
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return &redactor{key: key}
}

// hash returns the mark with the hash of a key as pump.UserData shows it.
func (r *redactor) hash(shown string) string {
	m := hmac.New(sha256.New, r.key)
	m.Write([]byte(shown))
	return "<ud-hash>" + hex.EncodeToString(m.Sum(nil)[:8]) + "</ud-hash>"
}

var (
	// A mark that was opened and not closed reaches to the end of the line.
	marked     = regexp.MustCompile(`<ud>(.*?)(?:</ud>|\n|$)`)
	stringJSON = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	// Within a string of JSON a quote is escaped, so this finds fields only.
	keyJSON = regexp.MustCompile(`"(key|key_b64)":"((?:[^"\\]|\\.)*)"`)
)

// text redacts text for people. A nil redactor leaves it as it is.
func (r *redactor) text(text string) string {
	if r == nil {
		return text
	}
	return marked.ReplaceAllStringFunc(text, func(found string) string {
		in := marked.FindStringSubmatch(found)
		out := r.hash(in[1])
		if found[len(found)-1] == '\n' {
			out += "\n"
		}
		return out
	})
}

// line redacts a JSON line.
func (r *redactor) line(line []byte) []byte {
	if r == nil {
		return line
	}
	line = keyJSON.ReplaceAllFunc(line, func(found []byte) []byte {
		in := keyJSON.FindSubmatch(found)
		key := unescape(in[2])
		if string(in[1]) == "key_b64" {
			raw, _ := base64.StdEncoding.DecodeString(key) // we made it
			key = string(raw)
		}
		return quoted("key", r.hash(shownKey(key)))
	})
	return stringJSON.ReplaceAllFunc(line, func(found []byte) []byte {
		text := unescape(found[1 : len(found)-1])
		if !strings.Contains(text, "<ud>") {
			return found
		}
		out, _ := json.Marshal(r.text(text)) // a string always can be
		return out
	})
}

// shownKey is a key as it stands between the marks.
func shownKey(key string) string {
	shown := pump.UserData(key)
	return shown[len("<ud>") : len(shown)-len("</ud>")]
}

func unescape(inner []byte) string {
	var text string
	if json.Unmarshal([]byte(`"`+string(inner)+`"`), &text) != nil {
		return string(inner)
	}
	return text
}

func quoted(name, value string) []byte {
	text, _ := json.Marshal(value)
	return append([]byte(`"`+name+`":`), text...)
}
