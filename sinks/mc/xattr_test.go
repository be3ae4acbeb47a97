package mc

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/simcluster"
)

func pair(name, value string) []byte {
	p := append(append(append([]byte(name), 0), value...), 0)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...)
}

func block(body string, pairs ...[]byte) []byte {
	all := bytes.Join(pairs, nil)
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(all))), all...), body...)
}

// TestValidXattrs: what servers send is taken, and no cut of it is mistaken for
// something else.
func TestValidXattrs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pairs [][]byte
		for range rapid.IntRange(0, 4).Draw(t, "pairs") {
			pairs = append(pairs, pair(rapid.StringMatching(`_?[a-z]{1,12}`).Draw(t, "name"), rapid.SampledFrom([]string{`{}`, `{"a":[1,2]}`, `"x"`, `7`, `null`}).Draw(t, "value")))
		}
		v := block("", pairs...)
		if !validXattrs(v) || !validXattrs(append(v, "body"...)) {
			t.Fatalf("%x is refused", v)
		}
		if cut := rapid.IntRange(0, len(v)-1).Draw(t, "cut"); validXattrs(v[:cut]) {
			t.Fatalf("%x is taken", v[:cut])
		}
	})
	for _, bad := range [][]byte{
		nil, {0, 0, 0}, {0, 0, 0, 1}, {0xff, 0xff, 0xff, 0xff}, block("", []byte{0, 0, 0}), block("", []byte{0, 0, 0, 0}), block("", []byte{0, 0, 0, 1, 0}),
		block("", pair("", "{}")), block("", pair("a", "")), block("", pair("a", "{")), block("", pair("a", "{}\x00")), []byte(`{"json":1}`),
	} {
		if validXattrs(bad) {
			t.Errorf("%x is taken", bad)
		}
	}
	all, err := capture.Select(func(name string) bool {
		// In others the value was read with GET, which leaves the attributes out.
		return strings.Contains(name, "-dcp-") && !strings.Contains(name, "consumer")
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, c := range all {
		for _, it := range c.Items {
			if it.Datatype&mcbp.DatatypeXattr != 0 && len(it.Value) > 0 {
				if seen++; !validXattrs(it.Value) {
					t.Errorf("%s: %x is refused", c.Name, it.Value)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d recorded values have extended attributes", seen)
	}
}

// TestBadXattrs: servers close the connection on a block that they cannot read, so it
// is rejected before, alone, compressed or not.
func TestBadXattrs(t *testing.T) {
	typed := func(key string, value []byte, datatype uint8) pump.Item {
		it := meta(key, "", 1, 5)
		it.Value, it.Datatype = value, datatype
		return it
	}
	for _, version := range []string{"6.0.4", "7.0.5"} {
		c := sinktest.Cluster(t, simcluster.Config{Version: version})
		bad := typed("bad", []byte(`{"no":"block"}`), 5)
		packed := typed("packed", snappy.Encode(nil, block("", pair("a", "no JSON"))), 6)
		good := typed("good", snappy.Encode(nil, block(`{"x":1}`, pair("_a", "{}"))), 7)
		b := sinktest.Write(t, sinktest.Lane(t, openCB(t, c, nil)), meta("first", "v", 1, 5), bad, packed, good, meta("last", "v", 1, 6))
		sinktest.Verdicts(t, b, pump.Done, pump.Rejected, pump.Rejected, pump.Done, pump.Done)
		for _, i := range []int{1, 2} {
			if pump.CodeOf(b.Cause(i)) != "item-xattr" {
				t.Errorf("cause: %v", b.Cause(i))
			}
		}
		if d := docs(c)["good"]; d.Datatype != 7 || !bytes.Equal(d.Value, good.Value) {
			t.Errorf("good: %+v", d)
		}
	}
}
