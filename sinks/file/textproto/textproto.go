// Package textproto writes memcached's text protocol to standard output: set or
// add with a data block, delete. Everything is handed to the reader before it
// counts as done. docs/files.md says what is not in it.
package textproto

import (
	"bytes"
	"context"
	"errors"
	"strconv"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of stdout: as a sink.
type Options struct {
	Operation string `opt:"operation" default:"set" enum:"set,add" help:"the command for mutations"`
	Keys      string `opt:"keys" default:"plain" enum:"plain,any" help:"which bytes a key may hold: plain, as memcached takes them, or any but space, which -x keys=any reads again"`
}

// Plugin returns the declaration of stdout: as a sink.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes: []string{"stdout", "-"},
		Summary: "memcached text protocol on standard output: set or add, delete",
		Doc:     "Keys that the protocol does not take, items of collections and values with extended attributes are rejected by name. Times in January 1970, long over, are written as -1.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Sink, error) {
			if t.Rest != "" {
				return nil, pump.Usagef("stdout: takes options only; it is not followed by a name")
			}
			return New(fileio.Stdio, o), nil
		},
	}
}

// New returns a sink that writes to a file or, for "-", to standard output.
func New(path string, o Options) *fileio.Sink {
	// One lane: what is said of a key and of all others stays in the order of
	// the source's streams.
	return &fileio.Sink{Path: path, Lane: 1, Encode: o.append, Plain: true, Loses: fileio.VBucket | fileio.CAS | fileio.Rev | fileio.Seqno |
		fileio.Datatype | fileio.Meta | fileio.Expired | fileio.OfDeletion | fileio.LongOver}
}

const (
	maxKey   = 250
	relative = 30 * 24 * 60 * 60 // the protocol takes up to this for a time from now
)

var (
	errKeyLength  = errors.New("the key is empty or longer than 250 bytes, which the text protocol does not take")
	errKey        = errors.New("the key holds a space or a control character, which the text protocol does not take")
	errCollection = errors.New("the text protocol has no place for the collection of an item")
	errOpaque     = errors.New("the value has extended attributes, is compressed or of an unknown datatype, which the text protocol cannot say")
)

func (o Options) append(dst []byte, it *pump.Item) ([]byte, pump.Verdict, error) {
	if len(it.Key) == 0 || len(it.Key) > maxKey {
		return dst, pump.Rejected, errKeyLength
	}
	for _, c := range it.Key {
		if c == ' ' || o.Keys != "any" && (c < ' ' || c == 0x7f) {
			return dst, pump.Rejected, errKey
		}
	}
	if it.Collection != nil && (it.Collection.Scope != "_default" || it.Collection.Name != "_default") {
		return dst, pump.Rejected, errCollection
	}
	if it.Op != pump.Mutation {
		if bytes.Contains(it.Key, []byte("\r\nquit")) {
			return dst, pump.Rejected, errKey // it would read as the end of the key and another command
		}
		dst = append(append(dst, "delete "...), it.Key...)
		return append(dst, '\r', '\n'), pump.Done, nil
	}
	if it.Datatype&^pump.DatatypeJSON != 0 {
		return dst, pump.Rejected, errOpaque
	}
	command := "set "
	if o.Operation == "add" {
		command = "add "
	}
	dst = append(append(append(dst, command...), it.Key...), ' ')
	dst = append(strconv.AppendUint(dst, uint64(it.Flags), 10), ' ')
	if it.Expiry > 0 && it.Expiry <= relative {
		dst = append(dst, '-', '1')
	} else {
		dst = strconv.AppendUint(dst, uint64(it.Expiry), 10)
	}
	dst = append(strconv.AppendUint(append(dst, ' '), uint64(len(it.Value)), 10), '\r', '\n')
	dst = append(dst, it.Value...)
	return append(dst, '\r', '\n'), pump.Done, nil
}
