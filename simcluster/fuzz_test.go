package simcluster

import (
	"io"
	"net"
	"testing"

	"github.com/cbpump/cbpump/internal/capture"
)

// Whatever a client sends, a node answers, closes or dies as a node: it never
// takes the process with it.
func FuzzKVPort(f *testing.F) {
	all, err := capture.Select(func(name string) bool { return name[0] >= '2' && name[0] <= '4' })
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range all {
		f.Add(c.Stream(capture.Client), c.Name[0] == '2')
	}
	f.Fuzz(func(t *testing.T, stream []byte, old bool) {
		cfg := Config{Nodes: 1, VBuckets: 256, Version: "4.0"}
		if old {
			cfg.Version = "2.5.1"
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
