package cbb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// Ground is the folder that a backup is to be written into, as it is before.
type Ground struct {
	Exists bool
	Run    string   // the newest run that has the bucket; "" if there is none
	Parts  []string // its parts that have the bucket, in order
	Nodes  []string // the nodes that its full part has of the bucket
	Newest string   // the latest time in the name of any run or part
	// Unfinished are folders that a run left which did not come to its end.
	Unfinished []string
}

// Survey looks at the folder that a backup of a bucket is to be written into. A
// folder that is not one of backups, from 3.0 on, is an error which names what
// does not belong there.
func Survey(dir, bucket string) (*Ground, error) {
	g := &Ground{}
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Dir(filepath.Clean(dir))); err != nil {
			return nil, PrepareError(dir, fmt.Errorf("the folder it is to be made in: %w", plain(err)))
		}
		return g, nil
	}
	if err != nil {
		return nil, PrepareError(dir, err)
	}
	if !info.IsDir() {
		return nil, refuse(dir, fmt.Sprintf("it is a %s", kindOf(info.Mode())))
	}
	g.Exists = true
	w, err := newWalker(dir, true)
	if err != nil {
		return nil, err
	}
	names, err := w.list(dir)
	if err != nil {
		return nil, err
	}
	folder := BucketFolder(bucket)
	for _, name := range names {
		path := filepath.Join(dir, name)
		switch {
		case strings.HasPrefix(name, Staging):
			g.Unfinished = append(g.Unfinished, path)
		case runName.MatchString(name):
			parts, err := w.parts(path)
			if err != nil {
				return nil, err
			}
			g.Newest = max(g.Newest, name)
			var with []string
			for _, part := range parts {
				g.Newest = max(g.Newest, part[:len(name)])
				buckets, err := w.buckets(filepath.Join(path, part))
				if err != nil {
					return nil, err
				}
				if slices.Contains(buckets, folder) {
					with = append(with, part)
				}
			}
			if len(with) > 0 {
				g.Run, g.Parts = name, with
				if g.Nodes, err = w.nodes(filepath.Join(path, with[0], folder)); err != nil {
					return nil, err
				}
			}
		case strings.HasPrefix(name, bucketPrefix):
			return nil, refuse(dir, fmt.Sprintf("%s is of the layout up to 2.x, which nothing can be added to", name))
		default:
			return nil, refuse(dir, fmt.Sprintf("%s is in it, which is no backup", name))
		}
	}
	return g, nil
}

func refuse(dir, why string) error {
	return &pump.Error{Class: pump.ClassUsage, Code: "backup-not-ours", Op: "write a backup into " + dir, Err: errors.New(why),
		Hint: "Name an empty folder, one that does not exist yet, or one that a backup was written into before."}
}

// Next returns a time for the name of a new part: now, or later than every name
// that is there, since parts count in the order of their names.
func (g *Ground) Next(now time.Time) time.Time {
	now = now.UTC().Truncate(time.Second)
	if newest, err := time.Parse(TimeFormat, g.Newest); err == nil && !now.After(newest) {
		return newest.Add(time.Second)
	}
	return now
}
