package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The cluster serves from the moment it has printed its addresses until the
// context ends.
func TestServesUntilTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	code := make(chan int)
	go func() {
		code <- run(ctx, []string{"--json", "-n", "3", "-r", "0", "-i", "500", "--failover", "1", "--spare-nodes", "1", "--version", "4.0"}, w, io.Discard)
		w.Close()
	}()
	var d description
	if err := json.NewDecoder(r).Decode(&d); err != nil {
		t.Fatal(err)
	}
	if len(d.Nodes) != 3 || len(d.Spare) != 1 || d.Items != 500 || len(d.Missing) == 0 || d.Version != "4.0" {
		t.Errorf("it describes itself as %+v", d)
	}
	resp, err := http.Get("http://" + d.Nodes[0].REST + "/pools")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("GET /pools answers %s", resp.Status)
	}
	nc, err := net.Dial("tcp", d.Nodes[0].KV)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	cancel()
	if c := <-code; c != 0 {
		t.Errorf("exit code %d", c)
	}
	if nc, err := net.Dial("tcp", d.Nodes[0].KV); err == nil {
		nc.Close()
		t.Error("it still listens after the end")
	}
}

func TestPlainText(t *testing.T) {
	var out, errOut bytes.Buffer
	if c := run(context.Background(), []string{"--run-for", "1ns", "-b", "beer"}, &out, &errOut); c != 0 {
		t.Errorf("exit code %d: %s", c, errOut.String())
	}
	for _, want := range []string{"bucket beer", "n_0@127.0.0.1", "REST http://127.0.0.1:", "Ctrl-C"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, out.String())
		}
	}
}

func TestModernWithTLS(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	var out, errOut bytes.Buffer
	if c := run(context.Background(), []string{"--run-for", "1ns", "--version", "7.6", "--tls", "--ca-file", ca}, &out, &errOut); c != 0 {
		t.Fatalf("exit code %d: %s", c, errOut.String())
	}
	text, err := os.ReadFile(ca)
	if err != nil || !strings.Contains(string(text), "BEGIN CERTIFICATE") || !strings.Contains(out.String(), "https://127.0.0.1:") {
		t.Errorf("%q, %v, %s", text, err, out.String())
	}
}

func TestWrongUse(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		say  string
	}{
		{[]string{"--no-such"}, 2, "no-such"},
		{[]string{"extra"}, 2, `unexpected argument "extra"`},
		{[]string{"--items", "-1"}, 2, "negative"},
		{[]string{"--version", "1.8"}, 1, "1.8"},
		{[]string{"--ca-file", "x"}, 2, "--tls"},
		{[]string{"--host", "0.0.0.0"}, 1, "loopback"},
		{[]string{"--failover", "7"}, 1, "there are 2 nodes"},
		{[]string{"-n", "1", "--failover", "0"}, 1, "last active node"},
		{[]string{"--help"}, 0, "usage: cbsim"},
		{[]string{"--help"}, 0, `CBSIM_PASSWORD          password of the REST administrator (default "password")`},
	} {
		var errOut bytes.Buffer
		if c := run(context.Background(), tt.args, io.Discard, &errOut); c != tt.code || !strings.Contains(errOut.String(), tt.say) {
			t.Errorf("%v: exit code %d, %q", tt.args, c, errOut.String())
		}
	}
}
