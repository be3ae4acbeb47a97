// Package backup is the sink that writes backup folders in the layout of 3.0
// and later, with data files of version 2015, for us and for the Python tools.
//
// Everything is written into a folder .incomplete-TIME first. Commit gives it
// its final name, when all files are complete and synced; so what has the name
// of a backup is one.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/internal/cbb"
	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

// Options of writing a backup folder. Their help texts are the documentation.
type Options struct {
	Mode  string `opt:"mode" default:"auto" enum:"auto,full,diff,accu" help:"what is written into a backup folder: full begins a new run, diff and accu add to the newest; auto is full for the first backup of a bucket and diff after that"`
	MaxMB int    `opt:"cbb_max_mb" default:"1024" help:"size of a data file in MiB from which a new one is begun"`
	Node  string `opt:"node" default:"" help:"name of the node that a backup folder names as its source; empty is cbpump or, for a diff or accu, a node that the full part has, since the Python tools read no others"`
	Clean bool   `opt:"clean" default:"false" help:"remove what runs left in the backup folder that did not come to their end"`
}

// defaultNode is the name of the node in a run that begins with a backup of ours.
const defaultNode = "cbpump"

// defaultLanes is how many lanes there are when the user did not say: SQLite
// spends most of the time, and one file is written by one goroutine.
const defaultLanes = 2

// Sink writes one backup of one bucket. It implements pump.Sink, pump.Checker,
// pump.Router, pump.Committer and pump.DefinitionTaker.
type Sink struct {
	dir string
	env pump.Env
	o   Options
	log hclog.Logger
	now func() time.Time

	ground  *cbb.Ground
	lock    *lock
	made    []string // folders that were made, outermost first
	began   time.Time
	mode    cbb.Mode
	staging string // DIR/.incomplete-T
	part    string // STAGING/unfinished
	name    string // what it will be called: T-mode
	bucket  string // PART/bucket-…
	node    string // BUCKET/node-…
	lanes   []*lane
	defs    []pump.Definition
	done    bool

	losses fileio.Losses

	mu    sync.Mutex
	files int // data files begun
	sums  cbb.Sums
}

// loses is what a data file has no column for.
const loses = fileio.Meta | fileio.Expired

// Losses implements pump.Loser.
func (s *Sink) Losses() []pump.Loss { return s.losses.List() }

// New returns a sink for a folder. Nothing is written before Lanes.
func New(dir string, env pump.Env, o Options) (*Sink, error) {
	if o.MaxMB < 1 {
		return nil, pump.Usagef("backup folder: cbb_max_mb is at least 1")
	}
	s := &Sink{dir: dir, env: env, o: o, log: env.Log, now: time.Now, sums: cbb.Sums{}}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	return s, nil
}

// Check looks at the folder without changing anything.
func (s *Sink) Check(context.Context) error {
	g, err := cbb.Survey(s.dir, s.env.Bucket)
	if err != nil {
		return err
	}
	_, err = s.chooseMode(g)
	return err
}

func (s *Sink) chooseMode(g *cbb.Ground) (cbb.Mode, error) {
	switch {
	case s.o.Mode == "auto" && g.Run == "":
		return cbb.Full, nil
	case s.o.Mode == "auto":
		return cbb.Diff, nil
	case s.o.Mode != string(cbb.Full) && g.Run == "":
		return "", pump.Usagef("%s has no full backup of bucket %q that mode=%s could add to", s.dir, s.env.Bucket, s.o.Mode)
	}
	return cbb.Mode(s.o.Mode), nil
}

// Lanes prepares the folder and returns lanes, a power of two of them: each
// writes data files of its own, and a key always goes to the same.
func (s *Sink) Lanes(_ context.Context, want int) ([]pump.Lane, error) {
	if want <= 0 {
		want = defaultLanes
	}
	n := 1 << (bits.Len(uint(min(want, cbb.Slots))) - 1)
	if err := s.prepare(); err != nil {
		return nil, err
	}
	out := make([]pump.Lane, n)
	for i := range out {
		l := &lane{sink: s}
		s.lanes = append(s.lanes, l)
		out[i] = l
	}
	return out, nil
}

// prepare makes the folder, sees to it that nobody else writes into it, and
// makes the folder for this run.
func (s *Sink) prepare() error {
	if _, err := cbb.Survey(s.dir, s.env.Bucket); err != nil {
		return err // before anything is changed
	}
	if _, err := os.Stat(s.dir); err != nil {
		if err := s.mkdir(s.dir); err != nil {
			return err
		}
	}
	var err error
	if s.lock, err = acquire(s.dir); err != nil {
		return err
	}
	if s.ground, err = cbb.Survey(s.dir, s.env.Bucket); err != nil {
		return err
	}
	for _, left := range s.ground.Unfinished {
		if err := s.leftover(left); err != nil {
			return err
		}
	}
	if s.mode, err = s.chooseMode(s.ground); err != nil {
		return err
	}
	s.began = s.ground.Next(s.now())
	s.staging = filepath.Join(s.dir, cbb.Staging+s.began.Format(cbb.TimeFormat))
	for slices.Contains(s.ground.Unfinished, s.staging) && !s.o.Clean {
		s.began = s.began.Add(time.Second)
		s.staging = filepath.Join(s.dir, cbb.Staging+s.began.Format(cbb.TimeFormat))
	}
	s.part, s.name = filepath.Join(s.staging, cbb.UnfinishedPart), cbb.PartFolder(s.began, s.mode)
	s.bucket = filepath.Join(s.part, cbb.BucketFolder(s.env.Bucket))
	s.node = filepath.Join(s.bucket, cbb.NodeFolder(s.chooseNode()))
	for _, dir := range []string{s.staging, s.part, s.bucket, s.node} {
		if err := s.mkdir(dir); err != nil {
			return err
		}
	}
	// An old time, so that the Python tools do not take it for the newest backup.
	if err := os.Chtimes(s.staging, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
		return cbb.PrepareError(s.staging, err)
	}
	return nil
}

// chooseNode returns the name of the node. Of a chain the Python tools read the
// nodes that its full part has, and no others.
func (s *Sink) chooseNode() string {
	there := s.ground.Nodes
	if s.mode == cbb.Full {
		there = nil
	}
	switch {
	case s.o.Node != "":
		if len(there) > 0 && !slices.Contains(there, s.o.Node) {
			s.log.Warn("the full part has no node of this name; cbpump reads the new part, but the Python tools will not", "node", s.o.Node, "nodes of the full part", strings.Join(there, ", "))
		}
	case len(there) > 0 && !slices.Contains(there, defaultNode):
		s.o.Node = there[0]
	default:
		s.o.Node = defaultNode
	}
	return s.o.Node
}

func (s *Sink) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o777); err != nil {
		return cbb.PrepareError(dir, err)
	}
	s.made = append(s.made, dir)
	return nil
}

// leftover deals with the folder of a run that did not come to its end. It may
// be the only copy of something, so it is only removed when the user says so;
// and only when the lock proves that nobody is writing it.
func (s *Sink) leftover(path string) error {
	if !s.o.Clean {
		s.log.Warn("an earlier run did not come to its end and left this; it is no backup, -x clean=true removes it", "folder", path)
		return nil
	}
	if !s.lock.proven {
		return &pump.Error{Code: "backup-leftover", Op: "remove " + path,
			Err:  errors.New("this system cannot tell whether another run is writing it"),
			Hint: "If none is, remove the folder by hand."}
	}
	if err := os.RemoveAll(path); err != nil {
		return cbb.PrepareError(path, err)
	}
	s.log.Info("removed what an earlier run left", "folder", path)
	return nil
}

// Route returns the lane of an item: by the slot of its key (invariant 5).
func (s *Sink) Route(it *pump.Item) int { return cbb.Slot(it.Key) % len(s.lanes) }

// TakeDefinitions keeps definitions of the kinds that have a file.
func (s *Sink) TakeDefinitions(_ context.Context, all []pump.Definition) (leftOut []pump.Definition, err error) {
	for _, d := range all {
		if cbb.DefinitionFile(d.Kind) == "" {
			leftOut = append(leftOut, d)
			continue
		}
		if !json.Valid(d.JSON) {
			return nil, cbb.WriteError(filepath.Join(s.bucket, cbb.DefinitionFile(d.Kind)), fmt.Errorf("the %s are not JSON", d.Kind))
		}
		s.defs = append(s.defs, d)
	}
	return leftOut, nil
}

// Commit writes what belongs beside the data, syncs everything, and gives the
// backup its name.
func (s *Sink) Commit(ctx context.Context) error {
	for _, l := range s.lanes {
		if err := l.Close(); err != nil {
			return err
		}
	}
	if s.files == 0 { // an empty backup is one all the same
		l := &lane{sink: s}
		if err := l.begin(); err != nil {
			return err
		}
		if err := l.end(ctx); err != nil {
			return err
		}
	}
	if err := s.writeNotes(); err != nil {
		return err
	}
	for _, dir := range []string{s.node, s.bucket, s.part, s.staging} {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	if s.mode == cbb.Full {
		if err := s.rename(s.part, filepath.Join(s.staging, s.name)); err != nil {
			return err
		}
		if err := syncDir(s.staging); err != nil {
			return err
		}
		if err := s.rename(s.staging, filepath.Join(s.dir, s.began.Format(cbb.TimeFormat))); err != nil {
			return err
		}
		s.done = true
		err := syncDir(s.dir)
		if err == nil && s.made[0] == s.dir {
			err = syncDir(filepath.Dir(s.dir))
		}
		return err
	}
	run := filepath.Join(s.dir, s.ground.Run)
	if err := s.rename(s.part, filepath.Join(run, s.name)); err != nil {
		return err
	}
	s.done = true
	if err := os.Remove(s.staging); err != nil {
		return &pump.Error{Code: "backup-write", Op: "remove the empty folder", Err: err,
			Hint: "The backup itself is complete, in " + filepath.Join(run, s.name) + "; remove that folder by hand."}
	}
	return errors.Join(syncDir(run), syncDir(s.dir))
}

// rename gives a folder its final name, which must be free.
func (s *Sink) rename(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return cbb.WriteError(to, errors.New("is there already"))
	}
	if err := os.Rename(from, to); err != nil {
		return cbb.WriteError(to, fmt.Errorf("%w (the backup is in %s)", unlink(err), from))
	}
	return nil
}

// unlink takes the paths out of an error of os.Rename.
func unlink(err error) error {
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return l.Err
	}
	return err
}

// writeNotes writes the JSON files and the checksums.
func (s *Sink) writeNotes() error {
	var pred []string
	switch s.mode {
	case cbb.Diff:
		pred = s.ground.Parts
	case cbb.Accu:
		for _, p := range s.ground.Parts {
			if cbb.IsFull(p) {
				pred = append(pred, p)
			}
		}
	}
	highest := map[uint16]uint64{}
	for _, l := range s.lanes {
		for vb, seqno := range l.highest {
			if seqno > highest[uint16(vb)] {
				highest[uint16(vb)] = seqno
			}
		}
	}
	for _, f := range []struct {
		name string
		text []byte
	}{
		{cbb.MetaFile, cbb.MetaJSON(nil)},
		{cbb.ChainFile, cbb.MetaJSON(pred)},
		{cbb.SeqnoFile, cbb.SeqnoJSON(highest)},
		{cbb.FailoverFile, []byte("{}")},
		{cbb.SnapshotFile, []byte("{}")},
	} {
		path := filepath.Join(s.node, f.name)
		if err := writeFile(path, f.text); err != nil {
			return err
		}
		s.sums.Add(f.name, f.text)
	}
	if err := writeFile(filepath.Join(s.node, cbb.SumsFile), s.sums.Format()); err != nil {
		return err
	}
	for _, d := range s.defs {
		if err := writeFile(filepath.Join(s.bucket, cbb.DefinitionFile(d.Kind)), d.JSON); err != nil {
			return err
		}
	}
	return nil
}

// Close ends a run. What was not committed stays under its name of something
// unfinished, and is named.
func (s *Sink) Close() error {
	for _, l := range s.lanes {
		l.abandon()
	}
	switch {
	case s.done:
	case s.files > 0:
		s.log.Warn("the backup did not come to its end; what was written is no backup", "folder", s.staging)
	default:
		for _, dir := range slices.Backward(s.made) {
			_ = os.Remove(dir) // only what is empty goes
		}
	}
	s.made = nil
	return s.lock.release()
}

// writeFile writes a small file that must not exist, and syncs it.
func writeFile(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return cbb.WriteError(path, err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return cbb.WriteError(path, err)
	}
	return nil
}

// lane writes data files, one after the other.
type lane struct {
	sink    *Sink
	w       *cbb.Writer
	highest []uint64 // by vbucket: the highest sequence number; nil before the first
	failed  error
}

// addsAtOnce is how many items are added before the context and the size of the
// file are looked at.
const addsAtOnce = 64

// Write adds the items to the file. They are durable once the sink has
// committed, which is why Close and Commit report errors of their own.
func (l *lane) Write(ctx context.Context, b *pump.Batch) error {
	for i := 0; i < len(b.Items); {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, why := l.fitting(b.Items[i:min(i+addsAtOnce, len(b.Items))])
		if why != nil && n == 0 {
			b.Settle(i, pump.Rejected, why)
			i++
			continue
		}
		if l.w == nil {
			if err := l.begin(); err != nil {
				return err
			}
		}
		items := b.Items[i : i+n]
		added, err := l.w.Add(items)
		if err != nil {
			l.failed = err
			return err
		}
		for range added {
			l.sink.losses.Note(&b.Items[i], loses)
			b.Done(i)
			i++
		}
		l.note(items)
		if l.w.Bytes() >= int64(l.sink.o.MaxMB)<<20 {
			if err := l.end(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// fitting returns how many items at the beginning fit, and why the next does not.
func (l *lane) fitting(items []pump.Item) (int, error) {
	for i := range items {
		if why := cbb.Fits(&items[i]); why != nil {
			return i, why
		}
	}
	return len(items), nil
}

func (l *lane) note(items []pump.Item) {
	for i := range items {
		it := &items[i]
		if it.Seqno == 0 || it.VBucket == pump.NoVBucket {
			continue
		}
		if l.highest == nil {
			l.highest = make([]uint64, pump.NoVBucket)
		}
		l.highest[it.VBucket] = max(l.highest[it.VBucket], it.Seqno)
	}
}

// begin begins the next data file.
func (l *lane) begin() error {
	s := l.sink
	s.mu.Lock()
	number := s.files
	s.files++
	s.mu.Unlock()
	w, err := cbb.Create(filepath.Join(s.node, cbb.DataName(number)), cbb.About(s.env.Bucket, s.o.Node, s.began))
	if err != nil {
		l.failed = err
		return err
	}
	l.w = w
	return nil
}

// end completes the data file and takes its checksum.
func (l *lane) end(ctx context.Context) error {
	w := l.w
	l.w = nil
	if err := w.Finish(); err != nil {
		l.failed = err
		return err
	}
	sum, err := cbb.HashFile(ctx, w.Path())
	if err != nil {
		l.failed = cbb.WriteError(w.Path(), err)
		return l.failed
	}
	l.sink.mu.Lock()
	l.sink.sums[filepath.Base(w.Path())] = sum
	l.sink.mu.Unlock()
	return nil
}

// Close completes the file that is being written. After a failed Write there is
// nothing to complete.
func (l *lane) Close() error {
	if l.failed != nil {
		l.abandon()
		return l.failed
	}
	if l.w == nil {
		return nil
	}
	return l.end(context.Background())
}

func (l *lane) abandon() {
	if l.w != nil {
		l.w.Abandon()
		l.w = nil
	}
}
