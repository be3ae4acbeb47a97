// Package textproto reads memcached's text protocol from standard input: set and
// add with a data block, delete. docs/files.md says what it takes.
package textproto

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of stdin: as a source.
type Options struct {
	Keys      string    `opt:"keys" default:"plain" enum:"plain,any" help:"which bytes a key may hold: plain, as memcached takes them, or any but space, as older tools wrote them"`
	MaxRecord pump.Size `opt:"max-record" default:"128m" help:"most bytes of one command with its data block"`
}

// Plugin returns the declaration of stdin: as a source.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes: []string{"stdin", "-"},
		Summary: "memcached text protocol on standard input: set, add, delete",
		Doc: "An expiry of up to 30 days is relative, as in the protocol; it is counted from the moment of reading. " +
			"add is read like set: -x operation=add makes a memcached destination keep what it has.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Source, error) {
			if t.Rest != "" {
				return nil, pump.Usagef("stdin: takes options only; it is not followed by a name")
			}
			return New(fileio.Stdio, o, time.Now)
		},
	}
}

// New returns a source that reads a file or, for "-", standard input. now is
// what relative expiries are counted from.
func New(path string, o Options, now func() time.Time) (*fileio.Source, error) {
	if o.MaxRecord < 1024 {
		return nil, pump.Usagef("stdin: max-record is below 1k")
	}
	return &fileio.Source{
		Format: "stdin", Path: path, Limit: int(o.MaxRecord),
		New: func() fileio.Parser { return &parser{anyKey: o.Keys == "any", now: now, limit: uint64(o.MaxRecord)} },
	}, nil
}

const (
	maxKey = 250 // of memcached and Couchbase alike
	// relative is the longest relative expiry of the protocol: 30 days. What is
	// above it is a time since 1970.
	relative = 30 * 24 * 60 * 60
)

type parser struct {
	anyKey bool
	now    func() time.Time
	limit  uint64
	words  []word
}

// word is a word of a command line, and where it stands.
type word struct {
	text []byte
	at   int
}

// Head has nothing to read: the protocol has no beginning.
func (r *parser) Head([]byte, bool) (int, error) { return 0, nil }

// Next reads one command into the batch.
func (r *parser) Next(p []byte, last bool, b *pump.Batch) (int, error) {
	n, err := r.line(p, last)
	if err != nil {
		return 0, err
	}
	command := r.words[0]
	switch string(command.text) {
	case "set", "add":
		return r.store(p, n, last, b)
	case "delete":
		return n, r.delete(n, b)
	case "quit":
		if len(r.words) > 1 {
			return 0, fileio.Faultf(r.words[1].at, "nothing is due behind quit")
		}
		return n, io.EOF
	}
	return 0, fileio.Faultf(command.at, "the command is none of set, add, delete and quit")
}

// line splits the command line that p begins with into words and returns its
// length with its end.
func (r *parser) line(p []byte, last bool) (int, error) {
	r.words = r.words[:0]
	from := 0
	if r.anyKey {
		// The key is what stands between the first blank and the next one, or
		// the end of a delete, whatever bytes it has.
		end, err := r.oddKey(p, last)
		if err != nil {
			return 0, err
		}
		from = end
	}
	i := bytes.IndexByte(p[from:], '\n')
	if i < 0 {
		if !last {
			return 0, fileio.ErrMore
		}
		return 0, fileio.Faultf(len(p), "the input ends within a command line")
	}
	n := from + i + 1
	line := bytes.TrimSuffix(p[:n-1], []byte{'\r'})
	for at := from; at < len(line); {
		if line[at] == ' ' {
			at++
			continue
		}
		end := bytes.IndexByte(line[at:], ' ')
		if end < 0 {
			end = len(line) - at
		}
		r.words = append(r.words, word{line[at : at+end], at})
		at += end
	}
	if len(r.words) == 0 {
		return 0, fileio.Faultf(0, "the line is empty; a command is due")
	}
	return n, nil
}

// oddKey splits off the command and a key of any bytes but space. It returns
// where the rest of the line begins; 0 if there is no such key.
func (r *parser) oddKey(p []byte, last bool) (int, error) {
	begins := func(p []byte, commands ...string) bool {
		for _, c := range commands {
			if bytes.HasPrefix(p, []byte(c)) {
				return true
			}
		}
		return false
	}
	more := fileio.Need(len(p) + 1)
	if len(p) < len("delete ") && !last {
		if bytes.IndexByte(p, '\n') >= 0 {
			return 0, nil
		}
		return 0, more
	}
	end := -1
	switch {
	case begins(p, "set ", "add "):
		end = bytes.IndexByte(p[4:], ' ')
		if end >= 0 {
			end += 4
		}
		if end < 0 && len(p) <= 4+maxKey && !last {
			return 0, more
		}
		if end < 0 || end == 4 || end > 4+maxKey {
			return 0, nil // the strict rules say what is wrong
		}
		r.words = append(r.words, word{p[:3], 0}, word{p[4:end], 4})
		return end, nil
	case begins(p, "delete "):
		// The key of a delete ends with the first line end behind which another
		// command begins, or nothing.
		for at := 7; at <= 7+maxKey; {
			i := bytes.Index(p[at:], []byte("\r\n"))
			if i < 0 {
				if !last && len(p) <= 7+maxKey+len("\r\ndelete ") {
					return 0, more
				}
				return 0, nil
			}
			end = at + i
			next := p[end+2:]
			if len(next) < len("delete ") && !last {
				return 0, more
			}
			if len(next) == 0 || begins(next, "set ", "add ", "delete ", "quit") {
				if key := p[7:end]; len(key) > 0 && bytes.IndexByte(key, ' ') < 0 {
					r.words = append(r.words, word{p[:6], 0}, word{key, 7})
					return end + 1, nil
				}
				return 0, nil
			}
			at = end + 1
		}
	}
	return 0, nil
}

// key checks the key, the second word.
func (r *parser) key(n int) ([]byte, error) {
	if len(r.words) < 2 {
		return nil, fileio.Faultf(max(0, n-1), "a key is due")
	}
	k := r.words[1]
	if len(k.text) > maxKey {
		return nil, fileio.Faultf(k.at, "the key has %d bytes; at most %d are due", len(k.text), maxKey)
	}
	for i, c := range k.text {
		if !r.anyKey && (c < ' ' || c == 0x7f) {
			return nil, &fileio.Fault{At: k.at + i, Err: fmt.Errorf("the key holds a control character (0x%02x)", c),
				Hint: "Older tools wrote such keys; -x keys=any reads them."}
		}
	}
	return k.text, nil
}

// noReply says whether the word at i is the last one, and noreply; that it is
// absent is fine too.
func (r *parser) noReply(i int) error {
	switch {
	case len(r.words) <= i:
		return nil
	case string(r.words[i].text) != "noreply":
		return fileio.Faultf(r.words[i].at, "nothing but noreply is due here")
	case len(r.words) > i+1:
		return fileio.Faultf(r.words[i+1].at, "nothing is due behind noreply")
	}
	return nil
}

func (r *parser) delete(n int, b *pump.Batch) error {
	key, err := r.key(n)
	if err != nil {
		return err
	}
	at := 2
	if len(r.words) > 2 && string(r.words[2].text) == "0" {
		at = 3 // older clients send a time of 0
	}
	if err := r.noReply(at); err != nil {
		return err
	}
	if len(b.Items) > 0 && len(key) > b.Free() {
		return fileio.ErrFull
	}
	it := b.Append()
	it.Op, it.VBucket, it.Key = pump.Deletion, pump.NoVBucket, b.Copy(key)
	return nil
}

// store reads set or add; the data block begins at p[n].
func (r *parser) store(p []byte, n int, last bool, b *pump.Batch) (int, error) {
	key, err := r.key(n)
	if err != nil {
		return 0, err
	}
	if len(r.words) < 5 {
		return 0, fileio.Faultf(n-1, "the line ends before key, flags, expiry and number of bytes are all there")
	}
	if err := r.noReply(5); err != nil {
		return 0, err
	}
	flags, ok := fileio.Uint(r.words[2].text, math.MaxUint32)
	if !ok {
		return 0, fileio.Faultf(r.words[2].at, "the flags are not a whole number from 0 to %d", uint32(math.MaxUint32))
	}
	expiry, err := r.expiry(r.words[3])
	if err != nil {
		return 0, err
	}
	size, ok := fileio.Uint(r.words[4].text, math.MaxInt64)
	if !ok {
		return 0, fileio.Faultf(r.words[4].at, "the number of bytes is not a whole number")
	}
	if size > r.limit {
		return 0, &fileio.Fault{At: r.words[4].at, Err: fmt.Errorf("a data block of %d bytes is more than max-record allows", size),
			Hint: "-x max-record=… raises the limit."}
	}
	end := n + int(size)
	if len(p) < end+1 || p[end] == '\r' && len(p) < end+2 {
		if !last {
			return 0, fileio.Need(max(end+1, len(p)+1))
		}
		return 0, fileio.Faultf(len(p), "the input ends within a data block")
	}
	next := end + 1
	if p[end] == '\r' {
		next++
	}
	if p[next-1] != '\n' {
		return 0, &fileio.Fault{At: end, Err: errors.New("the data block is longer than its command says: a line end is due here"),
			Hint: "The number of bytes in the command line is wrong."}
	}
	if len(b.Items) > 0 && len(key)+int(size) > b.Free() {
		return 0, fileio.ErrFull
	}
	it := b.Append()
	it.VBucket, it.Flags, it.Expiry = pump.NoVBucket, uint32(flags), expiry
	it.Key, it.Value = b.Copy(key), b.Copy(p[n:end])
	return next, nil
}

// expiry turns the protocol's expiry into Unix seconds: 0 is never, up to 30
// days counts from now, more is a time, a negative one is over already.
func (r *parser) expiry(w word) (uint32, error) {
	text, negative := strings.CutPrefix(string(w.text), "-")
	v, ok := fileio.Uint([]byte(text), math.MaxUint32)
	if !ok {
		return 0, fileio.Faultf(w.at, "the expiry is not a whole number from 0 to %d, nor negative", uint32(math.MaxUint32))
	}
	switch {
	case v == 0:
		return 0, nil
	case negative:
		v = uint64(r.now().Unix() - 1)
	case v <= relative:
		v += uint64(r.now().Unix())
	}
	return uint32(min(v, math.MaxUint32)), nil
}
