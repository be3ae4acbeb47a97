package fileio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/cbpump/cbpump/pump"
)

// MaxRecord is the default limit of one record: a document of 20 MiB, the most
// that any server takes, in which every byte is written as \u0001.
const MaxRecord = 128 << 20

// Parser reads one format. It gets the bytes that are there and says how many
// of them it took. One goroutine uses it.
type Parser interface {
	// Head reads what comes before the first record.
	Head(p []byte, last bool) (n int, err error)
	// Next reads one record into the batch. last says that nothing comes after p.
	// ErrMore asks for more bytes than p, up to another line end at least, and Need
	// for a number of bytes; ErrFull asks for an emptier batch; io.EOF ends the input
	// before its last byte. A *Fault is at a place in p. In all these cases nothing
	// was added to the batch.
	Next(p []byte, last bool, b *pump.Batch) (n int, err error)
}

// What a Parser asks for.
var (
	ErrMore = errors.New("more bytes are needed")
	ErrFull = errors.New("the batch is full")
)

// Need asks for that many bytes in all, or for the end of the input.
type Need int

func (n Need) Error() string { return fmt.Sprintf("%d bytes are needed", int(n)) }

// Fault is an error at a byte of what a Parser was given.
type Fault struct {
	At   int
	Err  error
	Hint string
}

func (f *Fault) Error() string { return f.Err.Error() }

func (f *Fault) Unwrap() error { return f.Err }

// Faultf returns a Fault without a hint.
func Faultf(at int, format string, args ...any) error {
	return &Fault{At: at, Err: fmt.Errorf(format, args...)}
}

// Source is a file, or standard input, read by a Parser: one stream.
type Source struct {
	Format string // "jsonl": begins the stream's name and the error codes
	Path   string // "-" is standard input
	Limit  int    // most bytes of one record; 0 means MaxRecord
	New    func() Parser

	// OpenInput is Open; tests put in others.
	OpenInput func(path string) (*Input, error)
}

// Streams implements pump.Source.
func (s *Source) Streams(context.Context) ([]pump.Stream, error) {
	name := s.Path
	if name != Stdio {
		abs, err := filepath.Abs(name)
		if err != nil {
			return nil, ReadError("read "+name, err)
		}
		name = abs
	}
	if s.Limit <= 0 {
		s.Limit = MaxRecord
	}
	return []pump.Stream{&stream{src: s, id: s.Format + ":" + name}}, nil
}

// Close implements pump.Source.
func (s *Source) Close() error { return nil }

// Check opens the file and reads what comes before the first record. Of a pipe
// nothing is read before its time.
func (s *Source) Check(ctx context.Context) error {
	in, err := s.open()
	if err != nil {
		return err
	}
	if in.stamp != (Stamp{}) {
		st := &stream{src: s, in: in, w: NewWindow(in, 0, min(MaxRecord, 1<<20)), parser: s.New()}
		err = st.head(ctx)
	}
	return errors.Join(err, in.Close())
}

func (s *Source) open() (*Input, error) {
	if err := CheckPartial(s.Path); err != nil {
		return nil, err
	}
	if s.OpenInput != nil {
		return s.OpenInput(s.Path)
	}
	return Open(s.Path)
}

type stream struct {
	src    *Source
	id     string
	in     *Input
	w      *Window
	parser Parser
	place  Place
	ended  bool
}

func (s *stream) ID() string { return s.id }

// Open goes on where the mark says.
func (s *stream) Open(ctx context.Context, from []pump.Mark) (err error) {
	if err := s.Close(); err != nil {
		return err
	}
	if s.in, err = s.src.open(); err != nil {
		return err
	}
	var to Place
	if len(from) > 0 {
		// Before anything is read: of a pipe it would be gone.
		if to, _, err = PlaceOf(s.src.Path, from[len(from)-1], s.in.stamp); err != nil {
			return err
		}
	}
	s.parser, s.place, s.ended = s.src.New(), Place{}, false
	s.w = NewWindow(s.in, 0, s.src.Limit)
	if err := s.head(ctx); err != nil {
		return err
	}
	if len(from) == 0 {
		return nil
	}
	return s.skip(ctx, to)
}

// skip goes on to a place behind the head.
func (s *stream) skip(ctx context.Context, to Place) error {
	switch read := s.w.At() + uint64(len(s.w.Bytes())); {
	case to.At < s.w.At():
		return s.in.shorter(to.At) // a mark within the head is none of ours
	case to.At <= read:
		s.w.Pass(int(to.At - s.w.At()))
	case s.in.plain:
		if err := s.in.seek(to.At); err != nil {
			return err
		}
		s.w = NewWindow(s.in, to.At, s.src.Limit)
	default:
		s.w.Pass(len(s.w.Bytes()))
		for s.w.At() < to.At {
			_, err := s.w.More(ctx)
			if err == io.EOF {
				return s.in.shorter(to.At)
			}
			if err != nil {
				return err
			}
			s.w.Pass(int(min(uint64(len(s.w.Bytes())), to.At-s.w.At())))
		}
	}
	s.place = to
	return nil
}

func (s *stream) head(ctx context.Context) error {
	for {
		n, err := s.parser.Head(s.w.Bytes(), s.w.Ended())
		if err == nil {
			s.pass(n)
			return nil
		}
		need, ok := asksMore(err)
		if !ok {
			if known := foreign(s.w.Bytes(), s.src.Path == Stdio); known != nil {
				err = known
			}
			return s.fault(err)
		}
		if err := s.more(ctx, need); err != nil {
			return err
		}
	}
}

// foreign says what a file that is not of its format is, where its first bytes tell.
func foreign(p []byte, piped bool) *Fault {
	for _, k := range [...]struct{ first, what, unpack, ending string }{
		{"\x1f\x8b", "gzip", "gzip -dc", ".gz"},
		{"\x28\xb5\x2f\xfd", "zstd", "zstd -dc", ".zst"},
	} {
		if !bytes.HasPrefix(p, []byte(k.first)) {
			continue
		}
		f := &Fault{Err: fmt.Errorf("it is compressed with %s", k.what), Hint: "Give it a name that ends in " + k.ending + "."}
		if piped {
			f.Hint = "Unpack it on the way: " + k.unpack + " FILE | cbtransfer …"
		}
		return f
	}
	switch {
	case bytes.HasPrefix(p, []byte("PK\x03\x04")):
		return &Fault{Err: errors.New("it is a zip, as the files of spreadsheets are"), Hint: "Save the table as CSV; a zip of documents is read as json:FILE.zip."}
	case bytes.HasPrefix(p, []byte("\xff\xfe")), bytes.HasPrefix(p, []byte("\xfe\xff")):
		return &Fault{Err: errors.New("it is UTF-16, and UTF-8 is due"), Hint: "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW."}
	}
	return nil
}

// asksMore returns how many bytes a parser needs; 0 if it needs a line end.
func asksMore(err error) (int, bool) {
	if err == ErrMore {
		return 0, true
	}
	need, ok := err.(Need)
	return int(need), ok
}

func (s *stream) pass(n int) {
	s.place.Line += uint64(bytes.Count(s.w.Bytes()[:n], newline))
	s.w.Pass(n)
	s.place.At = s.w.At()
}

var newline = []byte{'\n'}

// more reads on until there are that many bytes or, for 0, another line end,
// before which no record ends.
func (s *stream) more(ctx context.Context, need int) error {
	for {
		n, err := s.w.More(ctx)
		have := s.w.Bytes()
		switch {
		case errors.Is(err, errTooLong):
			return tooLong(s.op(0), s.w.limit)
		case err == io.EOF:
			return nil // the parser hears that there is no more
		case err != nil:
			return err
		case s.w.Ended(), need > 0 && len(have) >= need, need == 0 && bytes.IndexByte(have[len(have)-n:], '\n') >= 0:
			return nil
		}
	}
}

// Read gives what is there, and waits only while it has nothing to give.
func (s *stream) Read(ctx context.Context, b *pump.Batch) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err := s.fill(ctx, b)
	if len(b.Items) > 0 || err == io.EOF {
		mark := s.place.Mark(s.in.stamp, nil)
		mark.Complete = err == io.EOF
		b.Marks = append(b.Marks, mark)
	}
	return err
}

func (s *stream) fill(ctx context.Context, b *pump.Batch) error {
	for {
		p := s.w.Bytes()
		if len(p) == 0 && s.w.Ended() || s.ended {
			return io.EOF
		}
		n, err := 0, error(Need(1))
		if len(p) > 0 {
			n, err = s.parser.Next(p, s.w.Ended(), b)
		}
		switch {
		case err == nil:
			s.pass(n)
			if i := len(b.Items) - 1; i >= 0 && b.Items[i].Op == pump.Mutation {
				s.place.Live++
			}
		case errors.Is(err, ErrFull):
			return nil
		case errors.Is(err, io.EOF):
			s.pass(n)
			s.ended = true
			return io.EOF
		default:
			need, ok := asksMore(err)
			switch {
			case !ok:
				return s.fault(err)
			case len(b.Items) > 0:
				return nil
			case s.w.Ended():
				return s.fault(&Fault{At: len(p), Err: errors.New("the file ends in the middle of a record")})
			}
			if err := s.more(ctx, need); err != nil {
				return err
			}
		}
	}
}

// op names a place of the window for messages: file:line:column, from 1. Columns
// are bytes.
func (s *stream) op(at int) string {
	p := s.w.Bytes()
	at = min(at, len(p))
	line := s.place.Line + 1 + uint64(bytes.Count(p[:at], newline))
	column := at - bytes.LastIndexByte(p[:at], '\n')
	name := s.src.Path
	if name == Stdio {
		name = "standard input"
	}
	return fmt.Sprintf("read %s:%d:%d", name, line, column)
}

func (s *stream) fault(err error) error {
	var f *Fault
	if !errors.As(err, &f) {
		return err
	}
	return &pump.Error{Code: s.src.Format + "-input", Op: s.op(f.At), Err: f.Err, Hint: f.Hint}
}

// Close lets go of the file. It is safe to call it twice.
func (s *stream) Close() error {
	if s.in == nil {
		return nil
	}
	err := s.in.Close()
	if err != nil {
		err = ReadError("close "+s.src.Path, err)
	}
	return err
}
