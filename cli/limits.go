package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// limitFlags are what the flags say of how fast a run may be.
type limitFlags struct {
	items uint64
	bytes string
	file  string
}

func (c *common) addLimits() {
	c.set.Uint64Var(&c.limits.items, "limit-items", 0, "")
	c.set.StringVar(&c.limits.bytes, "limit-bytes", "", "")
	c.set.StringVar(&c.limits.file, "limits", "", "")
}

// speed is items and bytes a second; 0 is no limit.
type speed struct{ items, bytes uint64 }

// startLimits returns the limits that the flags ask for, nil if none, and looks
// for changes of the file every second until release is called.
func (c *common) startLimits(say *console) (limits *pump.Limits, release func(), err error) {
	now := speed{items: c.limits.items}
	if c.given("limit-bytes") {
		n, err := pump.ParseSize(c.limits.bytes)
		if err != nil {
			return nil, nil, c.usage("--limit-bytes: %w", err)
		}
		now.bytes = uint64(n)
	}
	if c.limits.file == "" {
		if c.given("limits") {
			return nil, nil, c.usage("--limits takes the name of a file")
		}
		if now == (speed{}) {
			return nil, func() {}, nil
		}
		return pump.NewLimits(now.items, now.bytes), func() {}, nil
	}
	w := &limitsWatch{path: c.limits.file, now: now}
	if _, err := w.look(); err != nil {
		return nil, nil, &pump.Error{Class: pump.ClassUsage, Code: "limits", Op: "read the limits", Err: err,
			Hint: "The file has lines such as items=5000 and bytes=20m, a second each; 0 is no limit."}
	}
	limits = pump.NewLimits(w.now.items, w.now.bytes)
	over := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		ticks := time.NewTicker(limitsEvery)
		defer ticks.Stop()
		for {
			select {
			case <-over:
				return
			case <-ticks.C:
				w.follow(say, limits)
			}
		}
	})
	return limits, func() { close(over); watching.Wait() }, nil
}

// follow sets what the file says now, and tells it.
func (w *limitsWatch) follow(say *console, limits *pump.Limits) {
	changed, err := w.look()
	switch {
	case err != nil:
		say.Warn(fmt.Sprintf("the limits stay as they are (%s): %s", w.now, plain(err)))
	case changed:
		limits.Set(w.now.items, w.now.bytes)
		say.Notice("limits are now %s", w.now)
	}
}

// limitsEvery is how often the file of --limits is looked at.
const limitsEvery = time.Second

func (r speed) String() string {
	items, bytes := "any number of items/s", "any number of bytes/s"
	if r.items > 0 {
		items = grouped(r.items) + " items/s"
	}
	if r.bytes > 0 {
		bytes = bytesText(float64(r.bytes)) + "/s"
	}
	return items + ", " + bytes
}

// limitsWatch notices changes of a file.
type limitsWatch struct {
	path string
	now  speed
	seen os.FileInfo // as it was read last; nil: it could not be read
	said string      // the last error, which is not said again
}

// look reads the file if it has changed. An error is told once; the rates stay.
func (w *limitsWatch) look() (changed bool, err error) {
	info, err := os.Stat(w.path)
	if err == nil {
		if w.seen != nil && os.SameFile(info, w.seen) && info.ModTime().Equal(w.seen.ModTime()) && info.Size() == w.seen.Size() {
			return false, nil
		}
		var next speed
		if next, err = readLimits(w.path, w.now); err == nil {
			changed = next != w.now
			w.now, w.seen, w.said = next, info, ""
			return changed, nil
		}
	}
	w.seen = info
	if err.Error() == w.said {
		return false, nil
	}
	w.said = err.Error()
	return false, err
}

// readLimits reads the lines items=N and bytes=SIZE. What no line speaks of stays
// as it was; so a file that is being rewritten and is empty for a moment lifts
// nothing.
func readLimits(path string, was speed) (speed, error) {
	f, err := os.Open(path)
	if err != nil {
		return was, err
	}
	defer f.Close()
	const most = 4096
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return was, err
	}
	if len(text) > most {
		return was, fmt.Errorf("%s is no file of limits: it is too long", path)
	}
	n := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		name, value, _ := strings.Cut(line, "=")
		value = strings.TrimSpace(value)
		var wrong error
		switch strings.TrimSpace(name) {
		case "items":
			was.items, wrong = strconv.ParseUint(value, 10, 62)
		case "bytes":
			var size pump.Size
			size, wrong = pump.ParseSize(value)
			was.bytes = uint64(size)
		default:
			wrong = os.ErrInvalid
		}
		if wrong != nil {
			return was, fmt.Errorf("%s, line %d: items=NUMBER or bytes=SIZE is due", path, n)
		}
	}
	return was, nil
}
