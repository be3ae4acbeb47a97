package cbb

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cbpump/cbpump/pump"
)

// Backup is what is to be read of a backup folder: the chain of one bucket, in
// the order in which its rows count.
type Backup struct {
	Root   string // as the user named it
	Run    string // name of the run whose chain it is; "" in the layout up to 2.x
	Bucket string
	Parts  []Part
	// Unfinished are folders that a run left which did not come to its end.
	Unfinished []string
	// Notes are things that somebody should know of and that are no errors.
	Notes []string
	// Warnings are things that may mean that the backup is not whole, where its
	// tool left nothing that would tell.
	Warnings []string

	walker *walker
}

// Part is one backup of a chain; the layout up to 2.x has one without a name.
type Part struct {
	Name   string // "2006-01-02T150405Z-full"
	Folder string // of the bucket
	Nodes  []Node
}

// Node is the folder of a node in a part.
type Node struct {
	Folder string
	Files  []*DataFile

	summed bool // it has SHA256SUMS, so it is known what belongs into it
	ours   bool // cbpump wrote it

	highest map[uint16]uint64    // as seqno.json has it
	markers map[uint16][2]uint64 // as snapshot_markers.json has it
}

// DataFile is one data-NNNN.cbb.
type DataFile struct {
	Path string
	Name string // relative to the backup folder, with slashes
	Size int64

	sum   *[sha256.Size]byte // as SHA256SUMS has it; nil: nothing is known
	claim *claim             // of the last file of a node of other tools

	mu       sync.Mutex
	verified bool
}

// claim is what seqno.json of another tool says of a node's data files: the highest
// sequence number of each vbucket. Rows come in the order of sequence numbers, so
// without the last file some vbucket does not reach its number.
type claim struct {
	path    string
	highest map[uint16]uint64 // nil: there is no such file
	files   []*DataFile
}

// Verify compares the file with its checksum. Where there is none, as in the
// backups of other tools, SQLite looks over the structure of all pages, which finds
// rows that got lost but not a bit that flipped within a value; and the last file of
// a node must bring its vbuckets up to what seqno.json says, unless gaps are
// allowed. It reads the whole file, once however often it is called.
func (d *DataFile) Verify(ctx context.Context, gaps bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.verified {
		return nil
	}
	if d.sum == nil {
		err := checkStructure(ctx, d.Path)
		if err == nil && d.claim != nil && !gaps {
			err = d.claim.check(ctx, d)
		}
		d.verified = err == nil
		return err
	}
	sum, err := HashFile(ctx, d.Path)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return unreadable("backup file "+d.Path, err)
	}
	if sum != *d.sum {
		return fail(codeCorrupt, d.Path, fmt.Errorf("its contents do not match the checksum in %s", SumsFile), hintCorrupt)
	}
	d.verified = true
	return nil
}

// check compares the claim with the rows. last is the last file, whose lock the
// caller holds.
func (c *claim) check(ctx context.Context, last *DataFile) error {
	left := maps.Clone(c.highest)
	for _, f := range c.files {
		have, err := highestSeqnos(ctx, f.Path)
		if err != nil {
			return err
		}
		if have == nil {
			return nil // a version without sequence numbers
		}
		if c.highest == nil {
			return fail(codeMissing, c.path, errors.New("is missing; the tools write it when all rows are there, so the backup is unfinished, or being written"),
				"Wait until its tool has ended, or take the backup again. To read what is there all the same, say -x gaps=true.")
		}
		for vb, seqno := range have {
			if seqno >= left[vb] {
				delete(left, vb)
			}
		}
	}
	if len(left) == 0 {
		return nil
	}
	vb, more := slices.Min(slices.Collect(maps.Keys(left))), ""
	if len(left) > 1 {
		more = fmt.Sprintf(" (and so with %d more)", len(left)-1)
	}
	return fail(codeMissing, last.Path, fmt.Errorf("is the node's last data file, and no row brings vbucket %d up to sequence number %d, as %s says%s: the data files behind it are missing, or rows",
		vb, left[vb], c.path, more),
		"Put the missing files back. To read what is there all the same, say -x gaps=true.")
}

// Stamp returns what tells the file from another of its name: a hash of its
// checksum; where there is none, of its size, time and first bytes.
func (d *DataFile) Stamp() ([sha256.Size]byte, error) {
	if d.sum != nil {
		return *d.sum, nil
	}
	f, err := os.Open(d.Path)
	if err != nil {
		return [sha256.Size]byte{}, unreadable("backup file "+d.Path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return [sha256.Size]byte{}, unreadable("backup file "+d.Path, err)
	}
	p := make([]byte, 4096)
	n, err := f.ReadAt(p, 0)
	if err != nil && err != io.EOF {
		return [sha256.Size]byte{}, unreadable("backup file "+d.Path, err)
	}
	p = binary.BigEndian.AppendUint64(p[:n], uint64(info.Size()))
	return sha256.Sum256(binary.BigEndian.AppendUint64(p, uint64(info.ModTime().UnixNano()))), nil
}

// Check looks at the file from outside. A file of ours says in cbb_meta that it
// is one; then its folder had SHA256SUMS, and without that nobody can tell
// whether all of its data files are there.
func (d *DataFile) Check() error {
	if err := CheckFile(d.Path); err != nil || d.sum != nil {
		return err
	}
	r, err := OpenReader(d.Path)
	if err != nil {
		return err
	}
	ours := r.ours
	if err := r.Close(); err != nil || !ours {
		return err
	}
	dir := filepath.Dir(d.Path)
	return fail(codeMissing, filepath.Join(dir, SumsFile), fmt.Errorf("is missing; cbpump wrote %s, and always writes it too", filepath.Base(d.Path)),
		"Put it back. If you know by other means that all data files are there, and right, make it anew: cd "+dir+" && sha256sum data-*.cbb > "+SumsFile)
}

// Files returns all data files in the order in which their rows count.
func (b *Backup) Files() []*DataFile {
	var all []*DataFile
	for _, p := range b.Parts {
		for _, n := range p.Nodes {
			all = append(all, n.Files...)
		}
	}
	return all
}

// FindOptions say what to look for.
type FindOptions struct {
	Bucket      string // "default" also means the only one there is
	Run         string // name of a run; "" is the newest that has the bucket
	FollowLinks bool   // symbolic links may lead out of the folder
}

// Errors about the folder as a whole.
const (
	codeNoBackup = "backup-none"
	codeMissing  = "backup-missing"
	codeLink     = "backup-link"
)

// Find finds the chain of a bucket. Every part of it that is missing, or not
// what it should be, is an error that names it; the data files are not opened.
func Find(root string, o FindOptions) (*Backup, error) {
	w, err := newWalker(root, o.FollowLinks)
	if err != nil {
		return nil, err
	}
	names, err := w.list(root)
	if err != nil {
		return nil, err
	}
	b := &Backup{Root: root, walker: w}
	var runs, parts, buckets []string
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, Staging):
			b.Unfinished = append(b.Unfinished, filepath.Join(root, name))
		case runName.MatchString(name):
			runs = append(runs, name)
		case partName.MatchString(name):
			parts = append(parts, name)
		case strings.HasPrefix(name, bucketPrefix):
			buckets = append(buckets, name)
		}
	}
	switch {
	case len(runs) > 0:
		if beside := append(parts, buckets...); len(beside) > 0 {
			b.Warnings = append(b.Warnings, fmt.Sprintf("%s has runs, and beside them %s, which is of another layout and is not read", root, strings.Join(beside, ", ")))
		}
		err = b.findRun(w, runs, o)
	case len(parts) > 0: // the user named a run
		b.Run = filepath.Base(root)
		err = b.findParts(w, root, parts, o.Bucket)
	case len(buckets) > 0: // the layout up to 2.x, or a single part
		err = b.findSingle(w, root, buckets, o.Bucket)
	default:
		hint := ""
		if len(b.Unfinished) > 0 {
			hint = "All there is are folders of runs that did not come to their end: " + strings.Join(b.Unfinished, ", ")
		}
		return nil, &pump.Error{Code: codeNoBackup, Op: "read " + root,
			Err: errors.New("is no backup folder: there is neither a run (2006-01-02T150405Z) nor a bucket-… in it"), Hint: hint}
	}
	if err != nil {
		return nil, err
	}
	b.missingNodes()
	b.missingParts()
	if len(b.Files()) == 0 {
		return nil, &pump.Error{Code: codeMissing, Op: "read " + root, Err: fmt.Errorf("there is no data file for bucket %q", b.Bucket)}
	}
	return b, nil
}

// missingNodes warns of nodes that one part of the chain has and another has
// not. That may be right, after a rebalance; or somebody lost a folder. A part
// of ours has one node, named as the user liked, and is left out of it. The same
// goes for a node's folder without data files.
func (b *Backup) missingNodes() {
	var all []string
	for _, p := range b.Parts {
		for _, n := range p.Nodes {
			if !n.summed {
				all = append(all, filepath.Base(n.Folder))
			}
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	for _, p := range b.Parts {
		if slices.ContainsFunc(p.Nodes, func(n Node) bool { return n.summed }) {
			continue
		}
		for _, n := range p.Nodes {
			if len(n.Files) == 0 {
				b.Warnings = append(b.Warnings, n.Folder+" has no data file; unless the node had nothing to back up then, its items are missing")
			}
		}
		for _, name := range all {
			if !slices.ContainsFunc(p.Nodes, func(n Node) bool { return filepath.Base(n.Folder) == name }) {
				b.Warnings = append(b.Warnings, fmt.Sprintf("part %s has no folder %s, as other parts of the backup have; unless the node was not in the cluster then, its items are missing", p.Name, name))
			}
		}
	}
}

// missingParts warns of parts that go on with vbuckets from beyond where the parts
// before it end. The tools' meta.json may name no earlier parts at all, so this is
// all there is to show that one between is missing.
func (b *Backup) missingParts() {
	reached := map[uint16]uint64{}
	for i, p := range b.Parts {
		if i > 0 {
			gaps := map[uint16]uint64{}
			for _, n := range p.Nodes {
				for vb, m := range n.markers {
					if m[0] > reached[vb] {
						gaps[vb] = m[0]
					}
				}
			}
			if vbs := slices.Sorted(maps.Keys(gaps)); len(vbs) > 0 {
				b.Warnings = append(b.Warnings, fmt.Sprintf("part %s goes on with vbucket %d from sequence number %d, and the parts before it end at %d (%d vbuckets are like this); a part between may be missing, or something of those before",
					p.Name, vbs[0], gaps[vbs[0]], reached[vbs[0]], len(vbs)))
			}
		}
		for _, n := range p.Nodes {
			for vb, seqno := range n.highest {
				reached[vb] = max(reached[vb], seqno)
			}
			for vb, m := range n.markers {
				reached[vb] = max(reached[vb], m[1])
			}
		}
	}
}

func (b *Backup) findRun(w *walker, runs []string, o FindOptions) error {
	if o.Run != "" {
		if !slices.Contains(runs, o.Run) {
			return pump.Usagef("%s has no run %q; it has %s", b.Root, o.Run, strings.Join(runs, ", "))
		}
		runs = []string{o.Run}
	}
	slices.Reverse(runs)
	var first error
	for _, run := range runs {
		parts, err := w.parts(filepath.Join(b.Root, run))
		if err != nil {
			return err
		}
		b.Run = run
		err = b.findParts(w, filepath.Join(b.Root, run), parts, o.Bucket)
		if err == nil || pump.CodeOf(err) != codeNoBucket {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// codeNoBucket marks that a run is whole but has another bucket.
const codeNoBucket = "backup-bucket"

// findParts reads the parts of one run, whose names are given.
func (b *Backup) findParts(w *walker, dir string, parts []string, bucket string) error {
	if len(parts) == 0 {
		return &pump.Error{Code: codeMissing, Op: "read " + dir, Err: errors.New("has no part (2006-01-02T150405Z-full, -diff, -accu)")}
	}
	perPart := make(map[string][]string)
	var all []string
	for _, part := range parts {
		buckets, err := w.buckets(filepath.Join(dir, part))
		if err != nil {
			return err
		}
		perPart[part] = buckets
		all = append(all, buckets...)
	}
	folder, err := b.pick(dir, all, bucket)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, part := range parts {
		if !slices.Contains(perPart[part], folder) {
			b.Notes = append(b.Notes, fmt.Sprintf("%s has nothing of bucket %q", part, b.Bucket))
			continue
		}
		if len(b.Parts) == 0 && !IsFull(part) {
			return &pump.Error{Code: codeMissing, Op: "read " + dir, Err: fmt.Errorf("the chain begins with %s: its full part is missing", part),
				Hint: "Put the full part back beside it. To read the changes alone, name the folder " + filepath.Join(dir, part) + "."}
		}
		p, pred, err := w.part(part, filepath.Join(dir, part, folder))
		if err != nil {
			return err
		}
		for _, name := range pred {
			if !known[name] {
				return &pump.Error{Code: codeMissing, Op: "read " + p.Folder,
					Err: fmt.Errorf("it builds upon the part %s, which is missing", name), Hint: "Put that part back into " + dir + "."}
			}
		}
		known[part] = true
		b.Parts = append(b.Parts, *p)
	}
	return nil
}

// findSingle reads a folder that has buckets right in it.
func (b *Backup) findSingle(w *walker, dir string, buckets []string, bucket string) error {
	folder, err := b.pick(dir, buckets, bucket)
	if err != nil {
		return err
	}
	p, _, err := w.part("", filepath.Join(dir, folder))
	if err != nil {
		return err
	}
	b.Parts = []Part{*p}
	return nil
}

// pick finds the folder of the bucket among those that there are.
func (b *Backup) pick(dir string, folders []string, bucket string) (string, error) {
	slices.Sort(folders)
	folders = slices.Compact(folders)
	if len(folders) == 1 && bucket == "default" {
		b.Bucket = unquote(strings.TrimPrefix(folders[0], bucketPrefix))
		return folders[0], nil
	}
	var names []string
	for _, f := range folders {
		name := unquote(strings.TrimPrefix(f, bucketPrefix))
		if name == bucket {
			b.Bucket = bucket
			return f, nil
		}
		names = append(names, name)
	}
	err := &pump.Error{Class: pump.ClassUsage, Code: codeNoBucket, Op: "read " + dir, Err: fmt.Errorf("there is no bucket %q", bucket)}
	if len(names) > 0 {
		err.Hint = "It has " + strings.Join(names, ", ") + "; choose one with --bucket-source."
	}
	return "", err
}

// Definitions returns the definitions of the newest part that has them.
func (b *Backup) Definitions() ([]pump.Definition, error) {
	var out []pump.Definition
	for _, d := range definitionFiles {
		for _, p := range slices.Backward(b.Parts) {
			path := filepath.Join(p.Folder, d.file)
			text, ok, err := b.walker.small(path)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			if !json.Valid(text) {
				return nil, fail(codeCorrupt, path, errors.New("is not JSON"), hintCorrupt)
			}
			switch strings.TrimSpace(string(text)) {
			case "[]", "{}", "null", `""`:
			default:
				out = append(out, pump.Definition{Kind: d.kind, JSON: text})
			}
			break
		}
	}
	return out, nil
}

var definitionFiles = [...]struct {
	file string
	kind pump.DefinitionKind
}{{DesignFile, pump.DesignDocuments}, {IndexFile, pump.Indexes}, {FullTextFile, pump.FullTextIndexes}}

// DefinitionFile returns the name of the file for a kind, or "".
func DefinitionFile(kind pump.DefinitionKind) string {
	for _, d := range definitionFiles {
		if d.kind == kind {
			return d.file
		}
	}
	return ""
}

// maxSmall is the most bytes of a file beside the data that is read into memory.
const maxSmall = 64 << 20

// small reads a small file; ok is false when there is none.
func (w *walker) small(path string) (text []byte, ok bool, err error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err := w.check(path); err != nil {
		return nil, false, err
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, false, unreadable("backup file "+path, err)
	case !info.Mode().IsRegular():
		return nil, false, fail(codeForeign, path, fmt.Errorf("is a %s, a file is due", kindOf(info.Mode())), "")
	case info.Size() > maxSmall:
		return nil, false, fail(codeForeign, path, fmt.Errorf("is larger than %s", pump.Size(maxSmall)), "")
	}
	if text, err = os.ReadFile(path); err != nil {
		return nil, false, unreadable("backup file "+path, err)
	}
	return text, true, nil
}

// walker lists folders without leaving the root through symbolic links.
type walker struct {
	root   string // real path
	follow bool
}

func newWalker(root string, follow bool) (*walker, error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, unreadable("read "+root, err)
	}
	if !info.IsDir() {
		return nil, &pump.Error{Code: codeNoBackup, Op: "read " + root, Err: errors.New("is no folder")}
	}
	real, err := filepath.EvalSymlinks(root)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return nil, unreadable("read "+root, err)
	}
	return &walker{root: real, follow: follow}, nil
}

// list returns the names in a folder in order.
func (w *walker) list(dir string) ([]string, error) {
	if err := w.check(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, unreadable("read "+dir, err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// check refuses a symbolic link that leads nowhere, in a circle, or out of the
// backup folder without having been allowed to.
func (w *walker) check(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		if info, lerr := os.Lstat(path); lerr == nil && info.Mode()&fs.ModeSymlink != 0 {
			return &pump.Error{Code: codeLink, Op: "read " + path, Err: errors.New("is a symbolic link that leads nowhere, or in a circle")}
		}
		return unreadable("read "+path, err)
	}
	if rel, err := filepath.Rel(w.root, real); !w.follow && (err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator))) {
		return &pump.Error{Code: codeLink, Op: "read " + path, Err: fmt.Errorf("leads out of the backup folder, to %s", real),
			Hint: "If that is meant to be so, say -x follow-links=true."}
	}
	return nil
}

// folders returns the names in dir that match and are folders; what has such a
// name and is no folder is an error.
func (w *walker) folders(dir string, match func(string) bool) ([]string, error) {
	names, err := w.list(dir)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !match(n) })
	for _, n := range names {
		path := filepath.Join(dir, n)
		if err := w.check(path); err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, unreadable("read "+path, err)
		}
		if !info.IsDir() {
			return nil, &pump.Error{Code: codeForeign, Op: "read " + path, Err: fmt.Errorf("is a %s, a folder is due", kindOf(info.Mode()))}
		}
	}
	return names, nil
}

func (w *walker) parts(run string) ([]string, error) { return w.folders(run, partName.MatchString) }

func (w *walker) buckets(part string) ([]string, error) {
	return w.folders(part, func(n string) bool { return strings.HasPrefix(n, bucketPrefix) })
}

// nodes returns the names of the nodes in the folder of a bucket.
func (w *walker) nodes(bucket string) ([]string, error) {
	folders, err := w.folders(bucket, func(n string) bool { return strings.HasPrefix(n, nodePrefix) })
	for i, f := range folders {
		folders[i] = unquote(strings.TrimPrefix(f, nodePrefix))
	}
	return folders, err
}

// part reads the folder of a bucket in a part, and the parts it builds upon.
func (w *walker) part(name, folder string) (*Part, []string, error) {
	p := &Part{Name: name, Folder: folder}
	nodes, err := w.folders(folder, func(n string) bool { return strings.HasPrefix(n, nodePrefix) })
	if err != nil {
		return nil, nil, err
	}
	if len(nodes) == 0 {
		return nil, nil, &pump.Error{Code: codeMissing, Op: "read " + folder, Err: errors.New("has no folder of a node (node-…)")}
	}
	var pred []string
	for _, n := range nodes {
		node, builds, err := w.node(filepath.Join(folder, n), name != "")
		if err != nil {
			return nil, nil, err
		}
		p.Nodes = append(p.Nodes, *node)
		pred = append(pred, builds...)
	}
	if err := p.strangers(); err != nil {
		return nil, nil, err
	}
	return p, pred, nil
}

// strangers refuses a part of ours, which has one node, in which there are others.
// The Python tools put what is newer into our full part, as a node that it has not,
// where it would be read before what is older.
func (p *Part) strangers() error {
	ours := slices.IndexFunc(p.Nodes, func(n Node) bool { return n.ours })
	if ours < 0 || len(p.Nodes) == 1 {
		return nil
	}
	other := slices.IndexFunc(p.Nodes, func(n Node) bool { return !n.ours })
	if other < 0 {
		other = (ours + 1) % len(p.Nodes)
	}
	folder := p.Nodes[other].Folder
	return fail(codeForeign, folder, fmt.Errorf("was put into a part that cbpump wrote, beside %s; which of them has the newer items cannot be told", filepath.Base(p.Nodes[ours].Folder)),
		"If another tool added it later, move it to NEW/"+filepath.Base(p.Folder)+"/"+filepath.Base(folder)+" and load that folder NEW after this one.")
}

// node reads the folder of a node. part says that it belongs to a part of a
// chain, so that JSON files are due beside the data.
func (w *walker) node(folder string, part bool) (*Node, []string, error) {
	names, err := w.list(folder)
	if err != nil {
		return nil, nil, err
	}
	n := &Node{Folder: folder}
	var numbers []int
	for _, name := range names {
		m := dataName.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		number, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, nil, fail(codeForeign, filepath.Join(folder, name), err, "")
		}
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	for i, number := range numbers {
		if number != i {
			return nil, nil, fail(codeMissing, filepath.Join(folder, DataName(i)), errors.New("is missing"), "Put it back; without it the backup is not whole.")
		}
		file, err := w.dataFile(filepath.Join(folder, DataName(number)))
		if err != nil {
			return nil, nil, err
		}
		n.Files = append(n.Files, file)
	}
	if err := w.sums(n); err != nil {
		return nil, nil, err
	}
	var pred []string
	holds := !part // the layout up to 2.x makes no folder for a node without data
	if part {
		if pred, err = w.pred(n); err != nil {
			return nil, nil, err
		}
		path := filepath.Join(folder, SeqnoFile)
		if n.highest, err = w.seqnos(path); err != nil {
			return nil, nil, err
		}
		holds = len(n.highest) > 0
		if n.markers, err = w.markers(filepath.Join(folder, SnapshotFile)); err != nil {
			return nil, nil, err
		}
		if last := len(n.Files) - 1; last >= 0 && !n.summed {
			n.Files[last].claim = &claim{path: path, highest: n.highest, files: n.Files}
		}
	}
	if len(n.Files) == 0 && holds {
		return nil, nil, fail(codeMissing, filepath.Join(folder, DataName(0)), errors.New("is missing"), "Put it back; without it the backup is not whole.")
	}
	return n, pred, nil
}

func (w *walker) dataFile(path string) (*DataFile, error) {
	if err := w.check(path); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, unreadable("backup file "+path, err)
	}
	real, err := filepath.Abs(path)
	if err != nil {
		return nil, fail(codeUnreadable, path, err, "")
	}
	d := &DataFile{Path: path, Name: path, Size: info.Size()}
	// Named relative to the root as the user sees it, so that the name is the
	// same wherever the backup lies.
	if full, err := filepath.EvalSymlinks(filepath.Dir(real)); err == nil {
		if rel, err := filepath.Rel(w.root, filepath.Join(full, filepath.Base(real))); err == nil {
			d.Name = filepath.ToSlash(rel)
		}
	}
	return d, nil
}

// sums reads SHA256SUMS, which only backups of ours have, and checks everything
// in it but the data files, which are checked when it is their turn.
func (w *walker) sums(n *Node) error {
	path := filepath.Join(n.Folder, SumsFile)
	text, ok, err := w.small(path)
	if err != nil || !ok {
		return err
	}
	sums, err := ParseSums(text)
	if err != nil {
		return fail(codeCorrupt, path, err, "If you know by other means that all data files are there, and right, make it anew: cd "+n.Folder+" && sha256sum data-*.cbb > "+SumsFile)
	}
	n.summed = true
	for _, f := range n.Files {
		name := filepath.Base(f.Path)
		sum, ok := sums[name]
		if !ok {
			return fail(codeForeign, f.Path, fmt.Errorf("is not in %s: it was put here later", SumsFile), "")
		}
		f.sum = &sum
		delete(sums, name)
	}
	for name, sum := range sums {
		path := filepath.Join(n.Folder, name)
		text, ok, err := w.small(path)
		switch {
		case err != nil:
			return err
		case !ok:
			return fail(codeMissing, path, fmt.Errorf("is missing; %s names it", SumsFile), "Put it back; without it the backup is not whole.")
		case sha256.Sum256(text) != sum:
			return fail(codeCorrupt, path, fmt.Errorf("its contents do not match the checksum in %s", SumsFile), hintCorrupt)
		}
	}
	return nil
}

// pred returns the names of the parts that a node's folder says its part builds
// upon: in meta.json, and in a part of ours in a file of its own.
func (w *walker) pred(n *Node) ([]string, error) {
	var all []string
	for _, name := range []string{MetaFile, ChainFile} {
		path := filepath.Join(n.Folder, name)
		text, ok, err := w.small(path)
		if err != nil {
			return nil, err
		}
		if name == ChainFile {
			if n.ours = ok; !ok { // should it be due, SHA256SUMS says so
				continue
			}
		}
		if !ok {
			return nil, fail(codeMissing, path, errors.New("is missing"), `It names the parts that this one builds upon. If there are none or all are here, put {"pred": []} in its place.`)
		}
		pred, err := ParsePred(text)
		if err != nil {
			return nil, fail(codeCorrupt, path, err, hintCorrupt)
		}
		all = append(all, pred...)
	}
	return all, nil
}

// ParsePred reads {"pred": [earlier parts]}. An earlier part is named
// by its folder, with or without the path to it or into it.
func ParsePred(text []byte) ([]string, error) {
	var meta struct {
		Pred *[]string `json:"pred"`
	}
	if err := json.Unmarshal(text, &meta); err != nil {
		return nil, errors.New(`is not of the form {"pred": [names of parts]}`)
	}
	if meta.Pred == nil {
		return nil, errors.New(`has no "pred"`)
	}
	var out []string
	for _, entry := range *meta.Pred {
		name := ""
		for _, piece := range strings.FieldsFunc(entry, func(r rune) bool { return r == '/' || r == '\\' }) {
			if partName.MatchString(piece) {
				name = piece
			}
		}
		if name == "" {
			return nil, fmt.Errorf("%s names no part", quoteShort([]byte(entry)))
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

// seqnos reads seqno.json; without the file nothing is known.
func (w *walker) seqnos(path string) (map[uint16]uint64, error) {
	text, ok, err := w.small(path)
	if err != nil || !ok {
		return nil, err
	}
	highest, err := ParseSeqno(text)
	if err != nil {
		return nil, fail(codeCorrupt, path, err, hintCorrupt)
	}
	return highest, nil // not nil: {} is a map too
}

// markers reads snapshot_markers.json: {"vbucket": [from, to]}. It is read for a
// warning only, so what is not of that form says nothing.
func (w *walker) markers(path string) (map[uint16][2]uint64, error) {
	text, ok, err := w.small(path)
	if err != nil || !ok {
		return nil, err
	}
	var out map[uint16][2]uint64
	if json.Unmarshal(text, &out) != nil {
		return nil, nil
	}
	return out, nil
}

// ParseSeqno reads seqno.json: {"vbucket": highest sequence number}.
func ParseSeqno(text []byte) (map[uint16]uint64, error) {
	var raw map[string]uint64
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, errors.New(`is not of the form {"vbucket": sequence number}`)
	}
	out := make(map[uint16]uint64, len(raw))
	for name, seqno := range raw {
		vb, err := strconv.ParseUint(name, 10, 16)
		if err != nil || strconv.FormatUint(vb, 10) != name {
			return nil, fmt.Errorf("%s is no vbucket", quoteShort([]byte(name)))
		}
		out[uint16(vb)] = seqno
	}
	return out, nil
}
