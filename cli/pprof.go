package cli

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	rpprof "runtime/pprof"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// profiled runs f as --pprof says: with its CPU profile written to a file, or with
// the Go profiles served on an address of this machine.
func (c *common) profiled(f func() error) error {
	if c.pprof == "" {
		return f()
	}
	host, port, err := net.SplitHostPort(c.pprof)
	if err != nil {
		return profileToFile(c.pprof, f)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return c.usage("--pprof: only an address of this machine itself, such as 127.0.0.1:6060: profiles show the inside of the process")
	}
	return serveProfiles(net.JoinHostPort(host, port), f)
}

func profileToFile(path string, f func() error) (err error) {
	fail := func(err error) error {
		return &pump.Error{Code: "pprof", Op: "write the profile (--pprof)", Err: err}
	}
	out, err := os.Create(path)
	if err != nil {
		return fail(err)
	}
	if err := rpprof.StartCPUProfile(out); err != nil {
		return errors.Join(fail(err), out.Close())
	}
	err = f()
	rpprof.StopCPUProfile()
	if cerr := out.Close(); cerr != nil && err == nil {
		err = fail(cerr)
	}
	return err
}

func serveProfiles(addr string, f func() error) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return &pump.Error{Class: pump.ClassUsage, Code: "pprof", Op: "serve profiles (--pprof)", Err: err}
	}
	// Not all that the package has: the command line may hold passwords (invariant 9).
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	for _, p := range rpprof.Profiles() {
		mux.Handle("/debug/pprof/"+p.Name(), pprof.Handler(p.Name()))
	}
	mux.HandleFunc("/debug/pprof/{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "profile and trace (?seconds=10), and these (?debug=1 for text):")
		for _, p := range rpprof.Profiles() {
			fmt.Fprintln(w, p.Name())
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	err = f()
	_ = server.Close() // a profile that is being taken ends with the run
	<-served
	return err
}
