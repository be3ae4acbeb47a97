//go:build unix

package textproto_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/internal/filetest"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/sinks/file/textproto"
	source "github.com/cbpump/cbpump/sources/file/textproto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	var path string
	pumptest.TestSink(t, pumptest.SinkSuite{
		New: func(t *testing.T) pump.Sink {
			path = filepath.Join(t.TempDir(), "x")
			return textproto.New(path, textproto.Options{Keys: "any"})
		},
		Read: func(t *testing.T) map[string]pump.Item {
			held := map[string]pump.Item{}
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return held // it was not committed
			}
			s, err := source.New(path, source.Options{Keys: "any", MaxRecord: 1 << 20}, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			items, err := filetest.ReadAll(t, s, 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range items {
				held[string(it.Key)] = it
				if it.Op != pump.Mutation {
					delete(held, string(it.Key))
				}
			}
			return held
		},
	})
}

func TestWhatTheProtocolDoesNotHold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	report, err := filetest.WriteAll(t, textproto.New(path, textproto.Options{}), []pump.Item{
		{Key: []byte("plain")}, {Key: []byte("sp ace")}, {Key: []byte("line\nend")}, {Key: make([]byte, 251)}, {},
		{Key: []byte("snappy"), Datatype: 2}, {Key: []byte("xattr"), Datatype: 5}, {Key: []byte("c"), Collection: &pump.Collection{Scope: "a", Name: "b"}},
		{Key: []byte("gone"), Op: pump.Expiration},
	})
	text, rerr := os.ReadFile(path)
	if pump.ExitCode(err, 0) != 3 || report.Rejected != 7 || rerr != nil || string(text) != "set plain 0 0 0\r\n\r\ndelete gone\r\n" {
		t.Errorf("%d rejected, %v, %q, %v", report.Rejected, err, text, rerr)
	}
}

// TestClosedPipe: nobody reads any more; that is no failure to talk about.
func TestClosedPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader := make(chan error, 1)
	go func() {
		f, err := os.Open(path)
		if err == nil {
			_, err = f.Read(make([]byte, 10))
			err = errors.Join(err, f.Close())
		}
		reader <- err
	}()
	var items []pump.Item
	for range 1000 {
		items = append(items, pump.Item{Key: []byte("key"), Value: make([]byte, 1000)})
	}
	_, err := filetest.WriteAll(t, textproto.New(path, textproto.Options{}), items)
	if err := <-reader; err != nil {
		t.Fatal(err)
	}
	if pump.CodeOf(err) != "closed-pipe" || pump.ExitCode(err, syscall.SIGPIPE) != 141 {
		t.Errorf("Run: %v", err)
	}
}
