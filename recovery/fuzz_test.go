package recovery

import (
	"strings"
	"testing"
)

// FuzzPermissions: whatever a node answers with its refusal, what is shown of it is
// text of one line.
func FuzzPermissions(f *testing.F) {
	f.Add([]byte(`{"message":"Forbidden. User needs the following permissions","permissions":["cluster.admin!write"]}`))
	f.Add([]byte(`{}`))
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if s := permissions(body); strings.ContainsAny(s, "\n\r\x1b") {
			t.Errorf("%q is shown as %q", body, s)
		}
	})
}
