// Package backup is the source that reads backup folders, of our own and of the
// Python tools: all versions of data files, both layouts, chains of full, diff
// and accu parts. docs/backup.md says what is read and what is checked.
package backup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"sync"

	"github.com/cbpump/cbpump/internal/cbb"
	"github.com/cbpump/cbpump/pump"
)

// Options of reading a backup folder. Their help texts are the documentation.
type Options struct {
	Run         string `opt:"run" default:"" help:"which run of a backup folder to read, by the name of its folder (2006-01-02T150405Z); empty is the newest"`
	Streams     int    `opt:"streams" default:"2" help:"how many streams read a backup folder in parallel: 1, 2, 4, 8 or 16"`
	FollowLinks bool   `opt:"follow-links" default:"false" help:"read through symbolic links that lead out of the backup folder"`
	Gaps        bool   `opt:"gaps" default:"false" help:"read data files with rows missing, or without the last files of a node, where somebody took them away"`
}

// Source reads the backup of one bucket. It implements pump.Source, pump.Checker,
// pump.Estimator and pump.Definer.
type Source struct {
	dir   string
	env   pump.Env
	o     Options
	chain *cbb.Backup // nil until it was looked for
	files []*cbb.DataFile

	mu     sync.Mutex
	trails [][sha256.Size]byte // see trail
}

// New returns a source for a folder. Nothing is read before Check or Streams.
func New(dir string, env pump.Env, o Options) (*Source, error) {
	if o.Streams < 1 || o.Streams > cbb.Slots || bits.OnesCount(uint(o.Streams)) != 1 {
		return nil, pump.Usagef("backup folder: streams is 1, 2, 4, 8 or %d", cbb.Slots)
	}
	return &Source{dir: dir, env: env, o: o}, nil
}

// find looks for the chain and at every data file of it from outside, so that
// what is missing is found before anything moves.
func (s *Source) find(ctx context.Context) error {
	if s.chain != nil {
		return nil
	}
	chain, err := cbb.Find(s.dir, cbb.FindOptions{Bucket: s.env.Bucket, Run: s.o.Run, FollowLinks: s.o.FollowLinks})
	if err != nil {
		return err
	}
	files := chain.Files()
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := f.Check(); err != nil {
			return err
		}
	}
	if s.env.Log != nil {
		for _, note := range chain.Notes {
			s.env.Log.Info(note, "backup", s.dir)
		}
		for _, warning := range chain.Warnings {
			s.env.Log.Warn(warning, "backup", s.dir)
		}
		for _, left := range chain.Unfinished {
			s.env.Log.Warn("a run that did not come to its end left this; it is not read", "folder", left)
		}
	}
	s.chain, s.files = chain, files
	return nil
}

// Check finds the chain and looks at every data file.
func (s *Source) Check(ctx context.Context) error { return s.find(ctx) }

// Streams returns the streams. Each reads all data files in order, and of them
// the rows of its slots; so each key is in one stream, however the files were cut.
func (s *Source) Streams(ctx context.Context) ([]pump.Stream, error) {
	if err := s.find(ctx); err != nil {
		return nil, err
	}
	out := make([]pump.Stream, s.o.Streams)
	for i := range out {
		st := &stream{src: s, index: i}
		for slot := i; slot < cbb.Slots; slot += s.o.Streams {
			st.mine |= 1 << slot
		}
		if s.env.VBuckets != nil {
			st.only = s.env.VBuckets
		}
		out[i] = st
	}
	return out, nil
}

// stateLen is the length of a mark's state: the place of its file, and the trail.
const stateLen = 8 + sha256.Size

// trail returns a hash of names and stamps of the files up to one.
func (s *Source) trail(at int) ([sha256.Size]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.trails); i <= at; i++ {
		stamp, err := s.files[i].Stamp()
		if err != nil {
			return stamp, err
		}
		h := sha256.New()
		if i > 0 {
			_, _ = h.Write(s.trails[i-1][:]) // a hash takes everything
		}
		_, _ = h.Write(stamp[:])
		_, _ = io.WriteString(h, s.files[i].Name)
		s.trails = append(s.trails, [sha256.Size]byte(h.Sum(nil)))
	}
	return s.trails[at], nil
}

// Estimate returns the number of rows, and the size of the data files.
func (s *Source) Estimate(ctx context.Context) (pump.Estimate, error) {
	if err := s.find(ctx); err != nil {
		return pump.Estimate{}, err
	}
	var e pump.Estimate
	for _, f := range s.files {
		if err := ctx.Err(); err != nil {
			return pump.Estimate{}, err
		}
		r, err := cbb.OpenReader(f.Path)
		if err != nil {
			return pump.Estimate{}, err
		}
		last, err := r.Last()
		if cerr := r.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return pump.Estimate{}, err
		}
		e.Items += uint64(max(0, last))
		e.Bytes += uint64(f.Size)
	}
	return e, nil
}

// Definitions returns design documents and index definitions of the newest part.
func (s *Source) Definitions(ctx context.Context) ([]pump.Definition, error) {
	if err := s.find(ctx); err != nil {
		return nil, err
	}
	return s.chain.Definitions()
}

// Close has nothing to release.
func (s *Source) Close() error { return nil }

// stream reads the rows of some slots.
type stream struct {
	src   *Source
	index int
	mine  uint32   // bit s: slot s is this stream's
	only  []uint16 // sorted vbuckets to give; nil: all

	at    int // index of the file that is read, or comes next
	row   int64
	r     *cbb.Reader
	split bool // the file has rows of other streams too
	state []byte
	held  bool // the reader stands on a row that did not fit the last batch
}

// ID names the stream; it holds what decides which rows it gives.
func (s *stream) ID() string {
	return fmt.Sprintf("backup:bucket=%s:run=%s:stream=%d/%d", cbb.Quote(s.src.chain.Bucket), s.src.chain.Run, s.index, s.src.o.Streams)
}

// Open begins at the first file, or behind the row that the last mark names. The
// mark must be one of these files: its state holds a hash of all files up to its
// own, in which nothing may have changed, and the place of its own among them.
func (s *stream) Open(_ context.Context, from []pump.Mark) error {
	if err := s.Close(); err != nil {
		return err
	}
	s.at, s.row = 0, 0
	for _, m := range from {
		if len(m.State) != stateLen {
			return s.badMark("is not one of a backup")
		}
		i := binary.BigEndian.Uint64(m.State)
		if i >= uint64(len(s.src.files)) {
			return s.badMark("is in a data file that is not there any more")
		}
		now, err := s.src.trail(int(i))
		if err != nil {
			return err
		}
		if [sha256.Size]byte(m.State[8:]) != now {
			return s.badMark("is in a data file that has changed since, or others came before it")
		}
		s.at, s.row = int(i), int64(m.Seqno)
	}
	return nil
}

func (s *stream) badMark(why string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: "backup-mark", Op: "go on reading " + s.src.dir, Err: errors.New("the place where reading ended " + why),
		Hint: "Put back the files that were read before, or start from the beginning."}
}

// Close closes the file that is being read.
func (s *stream) Close() error {
	if s.r == nil {
		return nil
	}
	r := s.r
	s.r, s.held = nil, false
	return r.Close()
}

// Read fills the batch's arena, across files, and sets a mark behind its last
// row. The end is proven by the end of every file's table.
func (s *stream) Read(ctx context.Context, b *pump.Batch) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if s.r == nil {
			if s.at == len(s.src.files) {
				if err := s.mark(b, true); err != nil {
					return err
				}
				return io.EOF
			}
			skip, err := s.open(ctx)
			if err != nil {
				return err
			}
			if skip {
				s.at, s.row = s.at+1, 0
				continue
			}
		}
		full, err := s.fill(b)
		if err != nil {
			return err
		}
		if full {
			return s.mark(b, false)
		}
		if err := s.r.Unchanged(); err != nil {
			return err
		}
		if err := s.mark(b, false); err != nil {
			return err
		}
		if err := s.Close(); err != nil {
			return err
		}
		s.at, s.row = s.at+1, 0
		if b.Len() > 0 {
			return nil
		}
		b.Marks = b.Marks[:0]
	}
}

// open opens the next file; skip says that it has nothing for this stream.
func (s *stream) open(ctx context.Context) (skip bool, err error) {
	f := s.src.files[s.at]
	if err := f.Verify(ctx, s.src.o.Gaps); err != nil {
		return false, err
	}
	r, err := cbb.OpenReader(f.Path)
	if err != nil {
		return false, err
	}
	slots := r.Slots()
	if slots != 0 && slots&s.mine == 0 {
		return true, r.Close()
	}
	s.split = slots == 0 || slots&^s.mine != 0
	if err := r.Begin(s.row, s.src.o.Gaps); err != nil {
		_ = r.Close()
		return false, err
	}
	s.r = r
	return false, nil
}

// looksAt is how many rows are looked at before Read returns even if none is
// for this stream, so that a cancelled run does not wait for the end of a file.
const looksAt = 1 << 14

// fill adds rows until the arena is full; false means that the file has ended.
func (s *stream) fill(b *pump.Batch) (full bool, err error) {
	for range looksAt {
		if !s.held {
			more, err := s.r.Next()
			if err != nil || !more {
				return false, err
			}
		}
		s.held = false
		keyLen, valueLen, err := s.r.Sizes()
		if err != nil {
			return false, err
		}
		if s.split && s.mine&(1<<cbb.Slot(s.r.Key())) == 0 {
			s.row = s.r.Row()
			continue
		}
		if keyLen+valueLen > b.Free() && b.Len() > 0 {
			s.held = true
			return true, nil
		}
		if err := s.take(b, keyLen, valueLen); err != nil {
			return false, err
		}
		s.row = s.r.Row()
	}
	return true, nil
}

// take adds the current row to the batch.
func (s *stream) take(b *pump.Batch, keyLen, valueLen int) error {
	if slots := s.r.Slots(); slots != 0 && slots&(1<<cbb.Slot(s.r.Key())) == 0 {
		return s.r.Misplaced()
	}
	mem := b.Alloc(keyLen + valueLen)
	it := b.Append()
	err := s.r.Item(it, mem, keyLen)
	if err == nil && s.only != nil {
		if _, wanted := slices.BinarySearch(s.only, it.VBucket); wanted {
			return nil
		}
	} else if err == nil {
		return nil
	}
	b.Items = b.Items[:len(b.Items)-1]
	return err
}

// mark says how far the stream is: behind row s.row of the file that is open, or
// behind the last row of the last file.
func (s *stream) mark(b *pump.Batch, complete bool) error {
	at, row := s.at, uint64(s.row)
	if complete {
		at, row = at-1, math.MaxInt64
	}
	trail, err := s.src.trail(at)
	if err != nil {
		return err
	}
	s.state = append(binary.BigEndian.AppendUint64(s.state[:0], uint64(at)), trail[:]...)
	b.Marks = append(b.Marks, pump.Mark{VBucket: pump.NoVBucket, Seqno: row, State: s.state, Complete: complete})
	return nil
}
