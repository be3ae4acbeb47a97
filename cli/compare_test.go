package cli_test

import (
	"bytes"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cbpump/cbpump/simcluster"
)

// plant CLUSTER KEY FIELD: changes one bit of a document, or removes it (gone), or
// makes one (new).
func plant(ts *testscript.TestScript, _ bool, args []string) {
	b := worldOf(ts).cluster(ts, args[0]).Bucket("default")
	key := []byte(args[1])
	var d simcluster.Doc
	found := false
	b.Each(func(_ uint16, have simcluster.Doc) bool {
		if bytes.Equal(have.Key, key) && !have.Deleted {
			d, found = have, true
			d.Key, d.Value = bytes.Clone(have.Key), bytes.Clone(have.Value)
		}
		return true
	})
	if found == (args[2] == "new") {
		ts.Fatalf("key %q: found %v", key, found)
	}
	switch args[2] {
	case "value":
		d.Value[len(d.Value)-2] ^= 1
	case "flags":
		d.Flags ^= 1 << 31
	case "expiry":
		d.Expiry = 0x7fff_0001
	case "cas":
		d.CAS ^= 1
	case "rev":
		d.Rev ^= 1
	case "datatype":
		d.Datatype ^= 1
	case "gone":
		ts.Check(b.Delete(key))
		return
	case "new":
		d = simcluster.Doc{Key: key, Value: []byte("new"), CAS: 4711, Rev: 1}
	default:
		ts.Fatalf("there is no field %s", args[2])
	}
	ts.Check(b.Store(d))
}
