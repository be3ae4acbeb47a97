package mc

import (
	"strings"
	"testing"

	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

// TestErrorMap: statuses that came after this program are ruled on by what the server
// says of them.
func TestErrorMap(t *testing.T) {
	for status, due := range map[mcbp.Status]struct {
		verdict pump.Verdict // Unconfirmed: the run stops
		class   pump.Class
		code    string
		text    string
	}{
		0x89: {pump.Retry, pump.ClassFailed, "destination-later", "NO_COLLECTIONS_MANIFEST"},
		0xa4: {pump.Retry, pump.ClassFailed, "destination-later", "SYNC_WRITE_RECOMMIT_IN_PROGRESS"},
		0x1f: {pump.Unconfirmed, pump.ClassDenied, "access-denied", "AUTH_STALE"},
		0xa0: {pump.Rejected, pump.ClassFailed, "item-invalid", "DURABILITY_INVALID_LEVEL"},
		0x80: {pump.Unconfirmed, pump.ClassFailed, "unknown-status", "UNKNOWN_FRAME_INFO"},
		0x7f: {pump.Unconfirmed, pump.ClassFailed, "unknown-status", "does not know"},
	} {
		t.Run(mcbp.StatusName(status), func(t *testing.T) {
			c := sinktest.Cluster(t, simcluster.Config{Version: "7.0.5", Nodes: 1, VBuckets: 4})
			c.Nodes()[0].Inject(simcluster.Fault{Op: mcbp.OpSetQWithMeta, VBucket: -1, Times: 1, Status: status})
			l := sinktest.Lane(t, openCB(t, c, nil))
			b := sinktest.Batch(meta("k", "v", 1, 5))
			err := l.Write(t.Context(), b)
			if due.verdict != pump.Unconfirmed {
				sinktest.Verdicts(t, b, due.verdict)
				err = b.Cause(0)
			}
			if pump.CodeOf(err) != due.code || pump.ClassOf(err) != due.class || !strings.Contains(err.Error(), due.text) {
				t.Errorf("%v (%s)", err, pump.CodeOf(err))
			}
			if due.verdict == pump.Retry {
				sinktest.Verdicts(t, sinktest.Write(t, l, meta("k", "v", 1, 5)), pump.Done)
			}
		})
	}
}
