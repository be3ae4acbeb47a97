package simcluster

import (
	"io"
	"net"
	"testing"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// Whatever a client sends, a node answers, closes or dies as a node: it never
// takes the process with it.
func FuzzKVPort(f *testing.F) {
	all, err := capture.Select(func(name string) bool { return name[0] >= '2' && name[0] <= '9' })
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range all {
		f.Add(c.Stream(capture.Client), c.Name[0]-'0')
	}
	f.Fuzz(func(t *testing.T, stream []byte, version byte) {
		cfg := Config{Nodes: 1, VBuckets: 256, Version: "4.0"}
		switch version {
		case 2:
			cfg.Version = "2.5.1"
		case 6:
			cfg.Version = "6.0.4"
		case 7:
			cfg.Version = "7.0.5"
		}
		c, err := Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		n := c.Nodes()[0]
		fill(t, n, 101, 3)
		ours, theirs := net.Pipe()
		k := newConn(n, theirs)
		if c.rel.hasUsers() { // as if it had logged in: no fuzzer guesses SCRAM
			k.user = c.account("@admin")
			k.features = 1<<mcbp.FeatureXerror | 1<<mcbp.FeatureJSON | 1<<mcbp.FeatureSnappy | 1<<mcbp.FeatureXattr | 1<<mcbp.FeatureCollections
			k.datatype = true
			k.bucket.Store(n.bucket("default"))
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			k.serve()
			k.close()
		}()
		read := make(chan struct{})
		go func() {
			defer close(read)
			io.Copy(io.Discard, ours)
		}()
		ours.Write(stream) // an error means that the server closed first
		k.close()          // also wakes what is parked
		<-served
		ours.Close()
		<-read
	})
}
