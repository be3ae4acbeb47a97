package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// scaled is one run from a cluster of many nodes or vbuckets into null.
type scaled struct {
	Nodes       int     `json:"nodes"`
	VBuckets    int     `json:"vbuckets"`
	Items       int     `json:"items"`
	Protocol    string  `json:"protocol"`
	Seconds     float64 `json:"seconds"`
	CPU         float64 `json:"cpu_seconds"`
	Connections int     `json:"connections"` // at once, REST among them
	Goroutines  int     `json:"goroutines"`
	Peak        int64   `json:"peak_bytes"`
}

// measureScale copies small vbuckets from clusters of several sizes.
func measureScale(ctx context.Context, o *benchOptions, r *report, out io.Writer) error {
	r.ScaleWhen = time.Now().UTC().Truncate(time.Minute)
	const each = 100 // items of a vbucket
	for _, version := range []string{tapVersion, dcpVersion} {
		for _, vbs := range []int{64, 1024} {
			for _, nodes := range []int{1, 4, 16, 64} {
				s := scaled{Nodes: nodes, VBuckets: vbs, Items: each * vbs, Protocol: "TAP"}
				if version == dcpVersion {
					s.Protocol = "DCP"
				}
				if err := s.measure(ctx, o, version); err != nil {
					return err
				}
				r.Scale = append(r.Scale, s)
				fmt.Fprintln(out, s.markdown())
			}
		}
	}
	return nil
}

func (s *scaled) measure(ctx context.Context, o *benchOptions, version string) error {
	var at served
	c, err := start(ctx, &at, modeServe, "--version", version, "--fill", fmt.Sprint(s.Items),
		"--nodes", fmt.Sprint(s.Nodes), "--vbuckets", fmt.Sprint(s.VBuckets))
	if err != nil {
		return err
	}
	defer c.Close()
	for try := range o.rounds {
		one := *s
		took, err := one.look(ctx, o.command, at.REST)
		if err != nil {
			return err
		}
		if took.Done != uint64(s.Items) {
			return fmt.Errorf("%d nodes, %d vbuckets: %d of %d items", s.Nodes, s.VBuckets, took.Done, s.Items)
		}
		one.Seconds, one.CPU, one.Peak = took.Seconds, took.User+took.Sys, took.Peak
		if try == 0 || one.Seconds < s.Seconds {
			*s = one
		}
	}
	return nil
}

// look runs the command and looks at its connections and goroutines meanwhile.
func (s *scaled) look(ctx context.Context, command, source string) (pumped, error) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return pumped{}, err
	}
	addr := probe.Addr().String()
	if err := probe.Close(); err != nil {
		return pumped{}, err
	}
	over, pid := make(chan struct{}), make(chan int, 1)
	var watch sync.WaitGroup
	watch.Go(func() {
		t := time.NewTicker(10 * time.Millisecond)
		defer t.Stop()
		process := <-pid
		for {
			s.Goroutines = max(s.Goroutines, goroutines(addr))
			// The answer's own connection and the listener are not the run's.
			s.Connections = max(s.Connections, sockets(process)-2)
			select {
			case <-over:
				return
			case <-t.C:
			}
		}
	})
	took, err := transferTold(ctx, pid, command, "--pprof", addr, source, "null:")
	close(over)
	watch.Wait()
	return took, err
}

// sockets counts the open sockets of a process.
func sockets(pid int) (n int) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// goroutines asks a process for the number of its goroutines; 0 when it has ended.
func goroutines(addr string) (n int) {
	r, err := http.Get("http://" + addr + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	line, _ := bufio.NewReader(r.Body).ReadString('\n')
	_, _ = fmt.Sscanf(line, "goroutine profile: total %d", &n)
	return n
}

func (s *scaled) markdown() string {
	return fmt.Sprintf("| %s | %d | %d | %s | %.2f s | %.2f ms | %.2f ms | %d | %d | %.0f MiB |",
		s.Protocol, s.Nodes, s.VBuckets, thousands(float64(s.Items)), s.Seconds, s.Seconds/float64(s.VBuckets)*1000, s.CPU/float64(s.VBuckets)*1000,
		s.Connections, s.Goroutines, float64(s.Peak)/(1<<20))
}
