package docs

import (
	"archive/zip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cbpump/cbpump/internal/fileio"
	"github.com/cbpump/cbpump/pump"
)

const (
	// maxDirectory bounds what a zip's directory may have us hold: some hundred
	// thousand names (invariant 7).
	maxDirectory = 20 << 20
	// suspicious is the size below which no ratio of bytes is an attack.
	suspicious = 1 << 20
	maxMarker  = 100 // bytes of the file that marks a zip of ours
)

// archive is a zip of documents.
type archive struct {
	path   string
	o      *Options
	file   *os.File
	id     fileio.Stamp
	marked bool
	docs   []entry
	design []entry
	rest   []string
	at     int   // index of the next document
	total  int64 // bytes of documents so far
	size   int64
}

type entry struct {
	file *zip.File
	path []string // below the folder
}

// meter bounds how much is read while the directory is.
type meter struct {
	r    io.ReaderAt
	left int64 // negative: no bound any more
}

var errDirectory = errors.New("its directory is too large")

func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	if m.left >= 0 {
		if m.left -= int64(len(p)); m.left < 0 {
			return 0, errDirectory
		}
	}
	return m.r.ReadAt(p, off)
}

func openZip(path string, o *Options) (a *archive, err error) {
	op := "read " + path
	file, err := os.Open(path)
	if err != nil {
		return nil, fileio.ReadError(op, err)
	}
	a = &archive{path: path, o: o, file: file}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	info, err := file.Stat()
	if err != nil {
		return nil, fileio.ReadError(op, err)
	}
	a.size = info.Size()
	if a.id, err = fileio.StampOf(file, info); err != nil {
		return nil, fileio.ReadError(op, err)
	}
	m := &meter{r: file, left: maxDirectory}
	z, err := zip.NewReader(m, a.size)
	switch {
	case errors.Is(err, errDirectory):
		return nil, &pump.Error{Code: "zip-directory", Op: op, Err: fmt.Errorf("%w: more than %s", err, pump.Size(maxDirectory)),
			Hint: "Unpack it and read the folder: json:FOLDER takes any number of documents."}
	case err != nil:
		// Not wrapped: what is below it may be a cut file, which elsewhere is a cut connection.
		return nil, &pump.Error{Code: "json-input", Op: op, Err: fmt.Errorf("it is no zip file, or a damaged one (%v)", err)}
	}
	m.left = -1
	for _, f := range z.File {
		if err := a.sort(f); err != nil {
			return nil, err
		}
	}
	if len(a.docs) == 0 && len(a.design) == 0 && !a.marked {
		return nil, &pump.Error{Class: pump.ClassUsage, Code: "no-docs", Op: op, Err: errors.New("there are no documents in it"),
			Hint: "Documents are files that end in .json, below docs/ or NAME/docs/, or beside no folder."}
	}
	return a, nil
}

// sort finds out what an entry is.
func (a *archive) sort(f *zip.File) error {
	op := a.op(f)
	refuse := func(why string) error {
		return &pump.Error{Code: "zip-entry", Op: op, Err: errors.New(why), Hint: "Such a zip is damaged, or made to do harm. Nothing of it was unpacked."}
	}
	name := strings.TrimSuffix(f.Name, "/")
	parts := strings.Split(name, "/")
	switch {
	case strings.ContainsAny(name, "\\\x00") || len(parts[0]) == 2 && parts[0][1] == ':':
		return refuse("the name holds a backslash, NUL or a drive letter")
	case slices.ContainsFunc(parts, func(p string) bool { return p == "" || p == "." || p == ".." }):
		return refuse("the name leads out of the zip")
	case strings.HasSuffix(f.Name, "/") && f.UncompressedSize64 == 0:
		return a.checkName(f)
	case !f.Mode().IsRegular():
		return refuse("that is no file, and a file is due")
	case f.Flags&1 != 0:
		return refuse("it is encrypted")
	}
	base := parts[len(parts)-1]
	below := func(folder string) []string {
		for i := range min(2, len(parts)-1) {
			if parts[i] == folder {
				return parts[i+1:]
			}
		}
		return nil
	}
	switch {
	case base == fileio.NamesMarker && len(parts) <= 2:
		if f.UncompressedSize64 > maxMarker {
			return refuse("it is too large for what it is")
		}
		text := make([]byte, f.UncompressedSize64)
		if err := a.read(f, text); err != nil {
			return err
		}
		var err error
		a.marked, err = marker(a.path+": "+f.Name, text)
		return err
	case isDocument(base) && below(fileio.Docs) != nil:
		a.docs = append(a.docs, entry{f, below(fileio.Docs)})
	case isDocument(base) && below(fileio.DesignDocs) != nil:
		a.design = append(a.design, entry{f, below(fileio.DesignDocs)})
	case isDocument(base) && len(parts) == 1:
		a.docs = append(a.docs, entry{f, parts})
	default: // perhaps because a bit flipped in its name
		if len(a.rest) < mostNamed {
			a.rest = append(a.rest, f.Name)
		}
		return a.checkName(f)
	}
	return nil
}

// check refuses an entry that grows beyond all measure.
func (a *archive) check(f *zip.File) error {
	size, packed, ratio := f.UncompressedSize64, f.CompressedSize64, uint64(a.o.MaxRatio)
	why := ""
	switch {
	case size > uint64(a.o.MaxDocument):
		return &pump.Error{Code: "record-too-long", Op: a.op(f), Err: fmt.Errorf("the document has %d bytes; at most %s are read", size, a.o.MaxDocument),
			Hint: "-x max-document=… raises the limit."}
	case size > suspicious && size/ratio > packed:
		why = fmt.Sprintf("%d bytes are to become %d, more than %d times as many", packed, size, ratio)
	case a.total+int64(size) > int64(a.o.MaxTotal):
		why = fmt.Sprintf("the documents have more than %s in all", a.o.MaxTotal)
	case a.total+int64(size) > suspicious && uint64(a.total+int64(size))/ratio > uint64(a.size):
		why = fmt.Sprintf("the documents up to here have more than %d times the bytes of the zip", ratio)
	}
	if why == "" {
		return nil
	}
	return &pump.Error{Code: "zip-bomb", Op: a.op(f), Err: errors.New(why),
		Hint: "This may be made to fill memory or disks. If it is not, -x max-ratio=… or -x max-total=… raises the limits."}
}

func (a *archive) op(f *zip.File) string { return "read " + a.path + ": " + pump.UserData(f.Name) }

// checkName compares an entry's name in the directory, which no checksum covers,
// with the one that stands before its data: a bit that flipped in either would make
// another key.
func (a *archive) checkName(f *zip.File) error {
	const fixed = 30 // bytes of a local header before the name
	body, err := f.DataOffset()
	if err != nil {
		return &pump.Error{Code: "json-input", Op: a.op(f), Err: fmt.Errorf("it is damaged (%v)", err)}
	}
	// Where the header begins is not told; how long it is stands in itself. Only the
	// extra field, between name and data, has a length that is not known.
	for _, most := range [...]int64{64, 1 << 16} {
		from := max(0, body-fixed-int64(len(f.Name))-most)
		p := make([]byte, body-from)
		if _, err := a.file.ReadAt(p, from); err != nil {
			return fileio.ReadError(a.op(f), err)
		}
		for extra := 0; ; extra++ {
			at := len(p) - extra - len(f.Name) - fixed
			if at < 0 {
				break
			}
			h := p[at:]
			if string(h[:4]) == "PK\x03\x04" && int(binary.LittleEndian.Uint16(h[26:])) == len(f.Name) && int(binary.LittleEndian.Uint16(h[28:])) == extra {
				if name := string(h[fixed : fixed+len(f.Name)]); name != f.Name {
					return &pump.Error{Code: "json-input", Op: a.op(f), Err: fmt.Errorf("it is damaged: its own header calls it %s, the zip's directory %s", pump.UserData(name), pump.UserData(f.Name)),
						Hint: "A bit flipped in one of the two names. Get the zip anew."}
				}
				return nil
			}
		}
	}
	return &pump.Error{Code: "json-input", Op: a.op(f), Err: errors.New("it is damaged: its own header is not that of the zip's directory")}
}

// read fills p with an entry and checks its name and checksum.
func (a *archive) read(f *zip.File, p []byte) error {
	if err := a.checkName(f); err != nil {
		return err
	}
	r, err := f.Open()
	if err != nil {
		return &pump.Error{Code: "json-input", Op: a.op(f), Err: fmt.Errorf("it is damaged (%v)", err)}
	}
	err = readWhole(r, p)
	if errors.Is(err, errChanging) {
		err = errors.New("it has not the size that the zip's directory says")
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return &pump.Error{Code: "json-input", Op: a.op(f), Err: fmt.Errorf("it is damaged (%v)", err)}
	}
	return nil
}

func (a *archive) next(context.Context) (document, error) {
	if a.at == len(a.docs) {
		return document{}, io.EOF
	}
	e := a.docs[a.at]
	if err := a.check(e.file); err != nil {
		return document{}, err
	}
	a.at++
	a.total += int64(e.file.UncompressedSize64)
	return document{
		name: a.path + ": " + pump.UserData(e.file.Name), path: e.path, size: int64(e.file.UncompressedSize64),
		read: func(p []byte) error { return a.read(e.file, p) },
	}, nil
}

func (a *archive) mark() []byte { return binary.BigEndian.AppendUint64(nil, uint64(a.at)) }

func (a *archive) resume(_ context.Context, state []byte) error {
	n := uint64(len(a.docs)) + 1
	if len(state) == 8 {
		n = binary.BigEndian.Uint64(state)
	}
	if n > uint64(len(a.docs)) {
		return fileio.MarkError("file-mark", a.path, "the mark is not one of this zip")
	}
	for ; a.at < int(n); a.at++ {
		a.total += int64(a.docs[a.at].file.UncompressedSize64)
	}
	return nil
}

func (a *archive) stamp() fileio.Stamp { return a.id }

func (a *archive) escaped() bool { return a.marked }

func (a *archive) others() []string { return a.rest }

func (a *archive) designs(ctx context.Context, each func(name string, text []byte) error) error {
	for _, e := range a.design {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := a.check(e.file); err != nil {
			return err
		}
		text := make([]byte, e.file.UncompressedSize64)
		if err := a.read(e.file, text); err != nil {
			return err
		}
		if err := each(path.Base(e.file.Name), text); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) close() error {
	if err := a.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fileio.ReadError("close "+a.path, err)
	}
	return nil
}
