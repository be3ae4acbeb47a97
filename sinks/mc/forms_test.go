package mc

import (
	"testing"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// TestDatatypesOfNodes: what all nodes store counts; a node of unknown version is asked
// when it is connected to.
func TestDatatypesOfNodes(t *testing.T) {
	for _, c := range []struct {
		versions []cluster.Version
		taken    uint8
	}{
		{[]cluster.Version{{Major: 7}, {Major: 5, Minor: 5}}, 7},
		{[]cluster.Version{{Major: 7}, {Major: 5, Minor: 1}}, 5},
		{[]cluster.Version{{Major: 7}, {Major: 4, Minor: 6}}, 1},
		{[]cluster.Version{{Major: 10}}, 7},
		{[]cluster.Version{{}}, 7},
	} {
		s := &CBSink{}
		b := &cluster.Bucket{}
		for _, v := range c.versions {
			b.Nodes = append(b.Nodes, cluster.Node{Version: v})
		}
		s.view.Store(&view{bucket: b})
		if taken, err := s.Datatypes(t.Context()); err != nil || taken != c.taken {
			t.Errorf("%v: %d, %v", c.versions, taken, err)
		}
	}
	if taken, err := (&Sink{}).Datatypes(t.Context()); err != nil || taken != pump.DatatypeJSON {
		t.Errorf("memcached: %d, %v", taken, err)
	}
}
