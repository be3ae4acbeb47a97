// Package capture reads the recorded exchanges in testdata/captures and plays
// either side of one over a connection. It is for tests only.
//
//	c, err := capture.Load("../testdata/captures/4.0-tap-dump-ack.capture")
//	c, err := capture.Open("4.0-tap-dump-ack")   // finds the folder by itself
//	all, err := capture.Select(func(name string) bool { … })
//
// What was recorded: c.Items and c.Replies (what a correct decoder must yield),
// c.Chunks (the bytes, in the order in which the proxy between the two read
// them), c.Stream and c.Packets (one side's bytes whole, or cut into packets)
// and c.Reader (one side's bytes as an io.Reader that keeps the chunks).
//
// Playing the server to a client under test: ServeConn for one connection, or
//
//	srv, err := capture.Listen(capture.ServeOptions{Intercept: capture.AcceptLogin}, c)
//	… let the client talk to srv.Addr() …
//	err = srv.Close()
//
// It sends what the server sent as soon as as many packets of the client have
// come as the recorded server had got by then; what is in them is compared only
// by the Compare callback. Packets that Intercept takes are answered by it and
// do not count: logins, statistics and what else the recording does not have.
//
// Playing the client to a server under test:
//
//	res, err := capture.Play(ctx, conn, c, capture.PlayOptions{})
//
// It sends the client's chunks, each when the server has answered as much as
// the recorded one had by then, and returns the server's packets.
//
// The package knows nothing of the protocol but the length of a packet, so that
// the codec (mcbp) can be tested against it. The file format is described in
// testdata/captures/README.md.
package capture

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Side is one end of a recorded connection.
type Side uint8

// The two ends.
const (
	Client Side = iota
	Server
)

func (s Side) String() string {
	if s == Server {
		return "server"
	}
	return "client"
}

// Capture is one recorded exchange.
type Capture struct {
	Name     string   // the file's name without its folder and extension
	Comments []string // the # lines before the first data line, without "# "
	Items    []Item
	Replies  []Reply
	Chunks   []Chunk

	// ClientClosed and ServerClosed are the indices in Chunks at which that side
	// closed the connection, -1 if it did not do so while it was recorded.
	ClientClosed, ServerClosed int
}

// Chunk is what the proxy read at once from one side: several packets, one, or
// a piece of one.
type Chunk struct {
	From     Side
	Bytes    []byte   // nil where EOF is set
	EOF      bool     // the side closed its connection
	Comments []string // # lines between the previous chunk and this one
}

// Item is one #item line: what a correct decoder must yield, or what the server
// held afterwards.
type Item struct {
	Op       string // "mutation", "deletion", and in captures of 7.0 others
	VB       uint16
	Key      []byte
	Value    []byte // nil unless recorded in full; see CheckValue
	Flags    uint32
	Expiry   uint32 // absolute Unix seconds, 0 = never
	CAS      uint64
	Rev      uint64
	Seqno    uint64
	Datatype uint8
	Note     string

	Fields // every field as it was recorded
}

// Reply is one #reply line: an answer of the server.
type Reply struct {
	Opcode   uint8
	Opaque   uint32
	Status   uint16
	CAS      uint64
	Datatype uint8
	Extras   []byte
	Key      []byte
	Value    []byte // nil unless recorded in full; see CheckValue
	Body     []byte

	Fields
}

// Fields are the fields of an #item or #reply line under their recorded names.
type Fields map[string]json.RawMessage

// Has reports that a field was recorded; what was not recorded is not known.
func (f Fields) Has(name string) bool { _, ok := f[name]; return ok }

// Text returns a recorded string, or "".
func (f Fields) Text(name string) string {
	var s string
	if json.Unmarshal(f[name], &s) != nil {
		return ""
	}
	return s
}

// CheckValue compares v with the recorded value, or with its recorded length
// and SHA-256 where the value was too long to be recorded. It returns nil when
// nothing was recorded.
func (f Fields) CheckValue(v []byte) error {
	if f.Has("value_hex") {
		if got := hex.EncodeToString(v); got != f.Text("value_hex") {
			return fmt.Errorf("the value is %s, %s was recorded", got, f.Text("value_hex"))
		}
	}
	if f.Has("value_len") {
		if got := strconv.Itoa(len(v)); got != string(f["value_len"]) {
			return fmt.Errorf("the value has %s bytes, %s were recorded", got, f["value_len"])
		}
		sum := sha256.Sum256(v)
		if got := hex.EncodeToString(sum[:]); got != f.Text("value_sha256") {
			return fmt.Errorf("the value's SHA-256 is %s, %s was recorded", got, f.Text("value_sha256"))
		}
	}
	return nil
}

// Comment returns the text of the first comment of the form "name: text".
func (c *Capture) Comment(name string) (string, bool) {
	for _, line := range c.Comments {
		if text, ok := strings.CutPrefix(line, name+": "); ok {
			return text, true
		}
	}
	return "", false
}

// Stream returns all bytes that one side sent.
func (c *Capture) Stream(from Side) []byte {
	var out []byte
	for _, ch := range c.Chunks {
		if ch.From == from {
			out = append(out, ch.Bytes...)
		}
	}
	return out
}

// Packets returns the whole packets that one side sent, and the piece of a
// packet that its stream ends with (nil if it ends between two packets).
func (c *Capture) Packets(from Side) (packets [][]byte, rest []byte) {
	return Split(c.Stream(from))
}

// Split cuts a stream into packets by the body length in their headers. rest is
// what does not make a whole packet, nil if nothing is left.
func Split(stream []byte) (packets [][]byte, rest []byte) {
	for {
		n, ok := packetLen(stream)
		if !ok {
			if len(stream) == 0 {
				return packets, nil
			}
			return packets, stream
		}
		packets = append(packets, stream[:n:n])
		stream = stream[n:]
	}
}

const headerLen = 24

// packetLen returns the length of the packet that b starts with, and whether b
// holds the whole of it.
func packetLen(b []byte) (int, bool) {
	if len(b) < headerLen {
		return headerLen, false
	}
	n := headerLen + int(binary.BigEndian.Uint32(b[8:]))
	return n, len(b) >= n
}

// Reader returns one side's bytes; a Read never crosses the end of a chunk. It
// ends with io.EOF.
func (c *Capture) Reader(from Side) io.Reader {
	r := &chunkReader{}
	for _, ch := range c.Chunks {
		if ch.From == from && len(ch.Bytes) > 0 {
			r.chunks = append(r.chunks, ch.Bytes)
		}
	}
	return r
}

type chunkReader struct{ chunks [][]byte }

func (r *chunkReader) Read(p []byte) (int, error) {
	if len(r.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.chunks[0])
	if r.chunks[0] = r.chunks[0][n:]; len(r.chunks[0]) == 0 {
		r.chunks = r.chunks[1:]
	}
	return n, nil
}

// Dir finds testdata/captures from the working folder upwards.
func Dir() (string, error) {
	at, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the captures: %w", err)
	}
	for {
		dir := filepath.Join(at, "testdata", "captures")
		if _, err := os.Stat(filepath.Join(dir, "README.md")); err == nil {
			return dir, nil
		}
		if filepath.Dir(at) == at {
			return "", errors.New("find the captures: no testdata/captures here or above")
		}
		at = filepath.Dir(at)
	}
}

// Open loads the capture of that name: "4.0-tap-dump-ack".
func Open(name string) (*Capture, error) {
	dir, err := Dir()
	if err != nil {
		return nil, err
	}
	return Load(filepath.Join(dir, name+".capture"))
}

// Select loads all captures whose name is wanted, in the order of their names.
func Select(want func(name string) bool) ([]*Capture, error) {
	dir, err := Dir()
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.capture"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var out []*Capture
	for _, p := range paths {
		if !want(nameOf(p)) {
			continue
		}
		c, err := Load(p)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func nameOf(path string) string { return strings.TrimSuffix(filepath.Base(path), ".capture") }

// Load reads one capture file. An error names the file and the line.
func Load(path string) (*Capture, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a capture: %w", err)
	}
	c, err := Parse(nameOf(path), text)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	return c, nil
}

// Parse reads the text of a capture file. An error begins with the line number.
func Parse(name string, text []byte) (*Capture, error) {
	c := &Capture{Name: name, ClientClosed: -1, ServerClosed: -1}
	var comments []string // since the last chunk
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if err := c.line(line, &comments); err != nil {
			return nil, fmt.Errorf("%d: %w", i+1, err)
		}
	}
	if len(c.Chunks) == 0 {
		c.Comments = comments
	}
	return c, nil
}

func (c *Capture) line(line string, comments *[]string) error {
	kind, rest, _ := strings.Cut(line, " ")
	ch := Chunk{}
	switch kind {
	case "#":
		*comments = append(*comments, rest)
		return nil
	case "#item":
		it, err := parseItem(rest)
		c.Items = append(c.Items, it)
		return err
	case "#reply":
		r, err := parseReply(rest)
		c.Replies = append(c.Replies, r)
		return err
	case ">", "<":
		b, err := hex.DecodeString(rest)
		if err != nil || len(b) == 0 {
			return errors.New("a chunk that is not bytes in hex")
		}
		ch.Bytes = b
	case ">EOF":
		ch.EOF, c.ClientClosed = true, len(c.Chunks)
	case "<EOF":
		ch.EOF, c.ServerClosed = true, len(c.Chunks)
	default:
		return fmt.Errorf("a line of an unknown kind %q", kind)
	}
	if line[0] == '<' {
		ch.From = Server
	}
	if len(c.Chunks) == 0 {
		c.Comments = *comments
	} else {
		ch.Comments = *comments
	}
	*comments = nil
	c.Chunks = append(c.Chunks, ch)
	return nil
}

// decoder takes fields out of a line and keeps the first error.
type decoder struct {
	fields Fields
	err    error
}

func decodeFields(text string) *decoder {
	d := &decoder{}
	if d.err = json.Unmarshal([]byte(text), &d.fields); d.err != nil {
		d.err = fmt.Errorf("not a JSON object: %w", d.err)
	}
	return d
}

func (d *decoder) fail(name string, err error) {
	if d.err == nil && err != nil {
		d.err = fmt.Errorf("field %s: %w", name, err)
	}
}

// number reads a JSON number, or a string of decimal or 0x digits.
func (d *decoder) number(name string, bits int) uint64 {
	raw, ok := d.fields[name]
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(string(bytes.Trim(raw, `"`)), 0, bits)
	d.fail(name, err)
	return n
}

func (d *decoder) bytes(name string) []byte {
	if !d.fields.Has(name) {
		return nil
	}
	b, err := hex.DecodeString(d.fields.Text(name))
	d.fail(name, err)
	return b
}

func parseItem(text string) (Item, error) {
	d := decodeFields(text)
	it := Item{
		Op: d.fields.Text("op"), VB: uint16(d.number("vb", 16)),
		Key: d.bytes("key_hex"), Value: d.bytes("value_hex"),
		Flags: uint32(d.number("flags", 32)), Expiry: uint32(d.number("expiry", 32)),
		CAS: d.number("cas", 64), Rev: d.number("rev", 64), Seqno: d.number("seqno", 64),
		Datatype: uint8(d.number("datatype", 8)), Note: d.fields.Text("note"),
		Fields: d.fields,
	}
	if d.err == nil && it.Op == "" {
		d.err = errors.New("an #item without op")
	}
	return it, d.err
}

func parseReply(text string) (Reply, error) {
	d := decodeFields(text)
	for _, must := range []string{"opcode", "opaque", "status"} {
		if d.err == nil && !d.fields.Has(must) {
			d.err = fmt.Errorf("a #reply without %s", must)
		}
	}
	r := Reply{
		Opcode: uint8(d.number("opcode", 8)), Opaque: uint32(d.number("opaque", 32)),
		Status: uint16(d.number("status", 16)), CAS: d.number("cas", 64),
		Datatype: uint8(d.number("datatype", 8)),
		Extras:   d.bytes("extras_hex"), Key: d.bytes("key_hex"), Value: d.bytes("value_hex"), Body: d.bytes("body_hex"),
		Fields: d.fields,
	}
	return r, d.err
}
