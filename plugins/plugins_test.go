package plugins

import (
	"slices"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

func TestBuiltIns(t *testing.T) {
	transfer, err := Transfer()
	if err != nil {
		t.Fatal(err)
	}
	recovery, err := Recovery()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		got, want []string
	}{
		{"sources of cbtransfer", transfer.Schemes(pump.RoleSource), []string{"-", "couchbase", "couchbases", "csv", "dcp", "file", "gen", "http", "https", "json", "jsonl", "stdin", "tap"}},
		{"sinks of cbtransfer", transfer.Schemes(pump.RoleSink), []string{"-", "couchbase", "couchbases", "csv", "dcp", "file", "http", "https", "json", "jsonl", "memcached", "null", "stdout", "tap"}},
		{"sources of cbrecovery", recovery.Schemes(pump.RoleSource), []string{"couchbase", "couchbases", "http", "https"}},
		{"sinks of cbrecovery", recovery.Schemes(pump.RoleSink), []string{"couchbase", "couchbases", "http", "https"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
	// What cbrecovery pushes with has the options of the TAP sink.
	if o := recovery.Plugins(pump.RoleSink)[0].Options; !slices.ContainsFunc(o, func(o pump.Option) bool { return o.Name == "tap_connect" }) {
		t.Errorf("the sink of cbrecovery has the options %v", o)
	}
}
