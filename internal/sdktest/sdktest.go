// Package sdktest runs the SDKs that tests use as independent clients.
package sdktest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// patience is how long an SDK may take for one call, or for one script.
const patience = 60 * time.Second

// Await runs an asynchronous call of gocbcore.
func Await(t *testing.T, call func(done func(error)) error) error {
	t.Helper()
	result := make(chan error, 1)
	if err := call(func(err error) { result <- err }); err != nil {
		return err
	}
	select {
	case err := <-result:
		return err
	case <-time.After(patience):
		return errors.New("no answer")
	}
}

// Node is the Node.js SDK as scripts/nodesdk.sh has installed it.
type Node struct{ modules string }

// FindNode finds it below the root of this module. Where it is not, the test fails
// if CBPUMP_NODESDK is "required"; else found is false.
func FindNode(t *testing.T, root string) (n Node, found bool) {
	t.Helper()
	modules, err := filepath.Abs(filepath.Join(root, ".cache", "nodesdk", "node_modules"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(modules, "couchbase")); err != nil {
		if os.Getenv("CBPUMP_NODESDK") == "required" {
			t.Fatal("not installed: make setup installs it with scripts/nodesdk.sh")
		}
		return n, false
	}
	return Node{modules}, true
}

// Run runs a script with a connection string as its first argument and returns what
// it prints. ca is the certificate of a node that is reached over TLS, nil without.
func (n Node) Run(t *testing.T, script, addr string, ca []byte, user, password string, args ...string) string {
	t.Helper()
	conn := "couchbase://" + addr
	if ca != nil {
		file := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(file, ca, 0o600); err != nil {
			t.Fatal(err)
		}
		conn = "couchbases://" + addr + "?trust_store_path=" + file
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", append([]string{script, conn}, args...)...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+n.modules, "SDK_USER="+user, "SDK_PASSWORD="+password)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}
