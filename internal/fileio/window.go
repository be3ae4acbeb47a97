package fileio

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cbpump/cbpump/pump"
)

// windowSize is how much is read at once.
const windowSize = 256 << 10

// Reader reads like io.Reader, and ends when ctx does.
type Reader interface {
	Read(ctx context.Context, p []byte) (int, error)
}

// Window is a stretch of an input that can be looked at whole. It grows until a
// record fits, but not beyond a limit (invariant 7).
type Window struct {
	r        Reader
	buf      []byte
	from, to int // the unread bytes in buf
	limit    int
	at       uint64 // offset of buf[from] in the input
	ended    bool
}

// NewWindow returns a window on r, whose next byte is at the given offset of
// the input, that grows up to limit bytes.
func NewWindow(r Reader, at uint64, limit int) *Window {
	return &Window{r: r, buf: make([]byte, min(windowSize, limit)), limit: limit, at: at}
}

// Bytes returns the bytes that were read and not passed yet. They stay where
// they are until More.
func (w *Window) Bytes() []byte { return w.buf[w.from:w.to] }

// At returns the offset of the first of Bytes.
func (w *Window) At() uint64 { return w.at }

// Ended reports whether nothing comes after Bytes.
func (w *Window) Ended() bool { return w.ended }

// Pass passes n bytes.
func (w *Window) Pass(n int) {
	w.from += n
	w.at += uint64(n)
}

// errTooLong says that a record does not fit into the largest window.
var errTooLong = errors.New("record too long")

// More reads some more bytes behind those there are, and returns how many.
func (w *Window) More(ctx context.Context) (int, error) {
	if w.ended {
		return 0, io.EOF
	}
	switch have := w.to - w.from; {
	case w.from > 0:
		copy(w.buf, w.buf[w.from:w.to])
		if len(w.buf) > 16*windowSize && have <= windowSize {
			// Grown for one large record: the memory goes back.
			w.buf = append(make([]byte, 0, windowSize), w.buf[:have]...)[:windowSize]
		}
		w.from, w.to = 0, have
	case have == len(w.buf):
		if have >= w.limit {
			return 0, errTooLong
		}
		size := 2 * have
		if 2*size >= w.limit { // so that no third buffer of that order is ever needed
			size = w.limit
		}
		w.buf = append(make([]byte, 0, size), w.buf...)[:size]
	}
	if w.to == len(w.buf) {
		return w.More(ctx)
	}
	for {
		n, err := w.r.Read(ctx, w.buf[w.to:])
		w.to += n
		if err == io.EOF {
			w.ended = true
			if n > 0 {
				err = nil
			}
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// tooLong is the error for a record beyond the limit.
func tooLong(op string, limit int) error {
	return &pump.Error{Code: "record-too-long", Op: op,
		Err:  fmt.Errorf("what begins here does not end within %s", pump.Size(limit)),
		Hint: "Either a line end or a closing quote is missing, or it is no file of this kind. -x max-record=… raises the limit."}
}
