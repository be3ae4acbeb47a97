package mcbp_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// foreign are recordings whose clients asked for packets of other magic bytes, which
// ours never do (cluster.KVConfig.Features): the codec takes none of them for its own.
var foreign = map[string]bool{"7.0-hello-all": true, "7.0-tracing-replies": true, "7.0-dcp-stream-id": true}

// TestRecordedReplies decodes what every recorded server sent: each answer is as the
// recording tells.
func TestRecordedReplies(t *testing.T) {
	all, err := capture.Select(func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) {
			r := mcbp.NewReader(c.Reader(capture.Server))
			due := c.Replies
			for {
				f, err := r.Next()
				switch {
				case errors.Is(err, mcbp.ErrMagic) && foreign[c.Name]:
					return
				case err == io.EOF && foreign[c.Name]:
					t.Error("packets of other magic bytes were taken")
				case err == io.EOF, errors.Is(err, mcbp.ErrTruncated) && strings.Contains(c.Name, "-truncated-"):
					if len(due) > 0 {
						t.Errorf("%d answers did not come, the first is %+v", len(due), due[0])
					}
					return
				case err != nil:
					t.Fatal(err)
				}
				if f.Magic != mcbp.MagicResponse || len(due) == 0 {
					continue
				}
				want := due[0]
				due = due[1:]
				if f.Opcode != mcbp.Opcode(want.Opcode) || f.Opaque != want.Opaque || f.Status() != mcbp.Status(want.Status) || want.Has("cas") && f.CAS != want.CAS {
					t.Fatalf("answer %+v, recorded %+v", f.Header, want)
				}
				if want.Has("extras_hex") && !bytes.Equal(f.Extras(), want.Extras) || want.Has("key_hex") && !bytes.Equal(f.Key(), want.Key) ||
					want.Has("value_hex") && !bytes.Equal(f.Value(), want.Value) || want.Has("datatype") && f.Datatype != want.Datatype {
					t.Fatalf("answer %+v with %x, recorded %+v", f.Header, f.Body, want)
				}
			}
		})
	}
	capture.Replays(t, "mcbp.TestRecordedReplies", capture.Names(all)...)
}
