package cli_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/simcluster"
)

// planted is in every secret of these tests. It stands in the middle of each.
const planted = "pl4nt3d"

// forms are what must not be seen: the secret as it is, and within base64, where
// its beginning may lie at three places.
func forms() []string {
	all := []string{planted}
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + planted))
		// The first and the last characters depend on the neighbours.
		all = append(all, strings.TrimRight(text[shift+1:], "=")[:len(planted)])
	}
	return all
}

func clean(t *testing.T, where string, text []byte) {
	t.Helper()
	for _, form := range forms() {
		if at := bytes.Index(text, []byte(form)); at >= 0 {
			t.Errorf("%s holds a secret (as %q): …%q…", where, form, text[max(0, at-60):min(len(text), at+60)])
			return
		}
	}
}

// cleanFiles looks into every file below a folder.
func cleanFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		text, err := os.ReadFile(path)
		clean(t, "file "+path, text)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// stage is two clusters whose passwords are secrets, and a folder with files that
// hold some.
type stage struct {
	src, dst       *simcluster.Cluster
	srcPW, dstPW   string
	bin, out, keys string
	memcached      string
	env            []string
}

func newStage(t *testing.T) *stage {
	s := &stage{srcPW: "a-" + planted + "-src", dstPW: "b+" + planted + "/dst"}
	start := func(pw string, docs int) *simcluster.Cluster {
		c, err := simcluster.Start(simcluster.Config{
			Nodes: 2, VBuckets: 16, Version: "4.0", Username: "Administrator", Password: pw, TLS: &simcluster.TLSConfig{},
			Buckets: []simcluster.BucketConfig{{Name: "default", Password: "c-" + planted + "-bucket"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		for i := range docs {
			if err := c.Bucket("default").Store(simcluster.Doc{Key: fmt.Appendf(nil, "doc-%d", i), Value: []byte(`{"n":1}`), CAS: 1 << 40, Rev: 1}); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	s.src, s.dst = start(s.srcPW, 200), start(s.dstPW, 0)
	if err := s.src.Bucket("default").Store(simcluster.Doc{Key: []byte("big"), Value: make([]byte, 2<<20), CAS: 1 << 40, Rev: 1}); err != nil {
		t.Fatal(err)
	}
	s.memcached = realmc.Start(t).Addr
	s.bin, s.out, s.keys = t.TempDir(), t.TempDir(), t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cbtransfer", "cbrecovery", "panicking"} {
		if err := os.Symlink(self, filepath.Join(s.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	cert, key, err := s.src.ClientCert("Administrator")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"src.pw": s.srcPW + "\n", "dst.pw": s.dstPW + "\n", "wrong.pw": "d-" + planted + "-wrong\n", "ca.pem": string(s.src.CACert()) + string(s.dst.CACert()),
		"cert.pem": string(cert), "key.pem": string(key),
		"broken.pem": "-----BEGIN PRIVATE KEY-----\ne-" + planted + "-key\n-----END PRIVATE KEY-----\n",
	} {
		if err := os.WriteFile(s.key(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.out, "TMPDIR=" + s.out, "GOTRACEBACK=system", "GORACE=" + os.Getenv("GORACE"),
		"HTTP_PROXY=http://u:f-" + planted + "-proxy@127.0.0.1:1", "https_proxy=http://u:f-" + planted + "-proxy@127.0.0.1:1",
		"CBPUMP_REDACT_KEY=g-" + planted + "-redact"}
	return s
}

func (s *stage) key(name string) string { return filepath.Join(s.keys, name) }

// with puts user info into an address.
func with(url, user, pw string) string {
	pw = strings.NewReplacer("+", "%2B", "/", "%2F").Replace(pw)
	return strings.Replace(url, "://", "://"+user+":"+pw+"@", 1)
}

func (s *stage) command(name string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.Env = s.out, append(append([]string{}, s.env...), env...)
	return cmd
}

// Every place where a secret can be given, in runs that succeed and runs that
// fail: what they say and what they write holds none.
func TestSecretsAreNeverSaid(t *testing.T) {
	s := newStage(t)
	src, dst := s.src.URL(), s.dst.URL()
	srcTLS, dstTLS := "https://"+s.src.Nodes()[0].RESTTLS(), "https://"+s.dst.Nodes()[0].RESTTLS()
	mc := "memcached://" + s.memcached
	wrong := "d-" + planted + "-wrong"
	flags := []string{"-u", "Administrator", "-p", s.srcPW, "-U", "Administrator", "-P", s.dstPW}
	files := []string{"-u", "Administrator", "--password-file", s.key("src.pw"), "-U", "Administrator", "--password-destination-file", s.key("dst.pw")}
	for _, c := range []struct {
		name string
		code int
		env  []string
		args []string // the command first
	}{
		{"flags", 0, nil, append([]string{"cbtransfer", src, dst, "--checkpoint", "ck1", "--pprof", "cpu.prof"}, flags...)},
		{"the same again", 0, nil, append([]string{"cbtransfer", src, dst, "--checkpoint", "ck1", "--resume"}, flags...)},
		{"files", 0, nil, append([]string{"cbtransfer", src, dst, "--json"}, files...)},
		{"addresses", 0, nil, []string{"cbtransfer", with(src, "Administrator", s.srcPW), with(dst, "Administrator", s.dstPW), "--verify", "full"}},
		{"environment", 0, []string{"CB_REST_USERNAME=Administrator", "CB_REST_PASSWORD=" + s.srcPW, "CB_REST_USERNAME_DEST=Administrator", "CB_REST_PASSWORD_DEST=" + s.dstPW},
			[]string{"cbtransfer", src, dst}},
		{"TLS and a client certificate", 0, nil, append([]string{"cbtransfer", srcTLS, dstTLS, "--cacert", s.key("ca.pem"), "--client-cert", s.key("cert.pem"), "--client-key", s.key("key.pem")}, flags...)},
		{"a backup", 0, nil, append([]string{"cbtransfer", src, "folder"}, flags[:4]...)},
		{"a comparison", 0, nil, append([]string{"cbtransfer", "compare", src, dst, "--differences", "diff.jsonl"}, flags...)},
		{"rejected items", 3, nil, append([]string{"cbtransfer", src, mc, "--dead-letters", "rejected.jsonl"}, flags[:4]...)},
		{"a dry run", 0, nil, append([]string{"cbtransfer", "-n", src, dst}, flags...)},

		{"wrong password of the source", 4, nil, []string{"cbtransfer", src, dst, "-u", "Administrator", "-p", wrong}},
		{"wrong password of the destination", 4, nil, []string{"cbtransfer", src, dst, "-u", "Administrator", "-p", s.srcPW, "-U", "Administrator", "-P", wrong}},
		{"wrong password in a file", 4, nil, []string{"cbtransfer", src, dst, "-u", "Administrator", "--password-file", s.key("wrong.pw")}},
		{"wrong password in an address", 4, nil, []string{"cbtransfer", with(src, "Administrator", wrong), dst}},
		{"wrong password in the environment", 4, []string{"CB_REST_USERNAME=Administrator", "CB_REST_PASSWORD=" + wrong}, []string{"cbtransfer", src, dst, "--json"}},
		{"two passwords of one side", 2, nil, []string{"cbtransfer", src, dst, "-u", "x", "-p", wrong, "--password-file", s.key("wrong.pw")}},
		{"a broken client key", 2, nil, append([]string{"cbtransfer", srcTLS, dstTLS, "--cacert", s.key("ca.pem"), "--client-cert", s.key("cert.pem"), "--client-key", s.key("broken.pem")}, flags...)},
		{"a key as certificate", 2, nil, append([]string{"cbtransfer", srcTLS, dstTLS, "--cacert", s.key("broken.pem")}, flags...)},
		{"a password file as list of limits", 2, nil, append([]string{"cbtransfer", src, dst, "--limits", s.key("src.pw")}, flags...)},
		{"a password file as source", 1, nil, []string{"cbtransfer", "jsonl:" + s.key("src.pw"), "null:"}},
		{"nobody there", 4, nil, []string{"cbtransfer", with("http://127.0.0.1:1", "Administrator", wrong), "null:"}},
		{"no such host", 4, nil, []string{"cbtransfer", with("http://no-such-host.invalid:8091", "Administrator", wrong), "null:"}},
		{"a bad port", 2, nil, []string{"cbtransfer", with("http://127.0.0.1:port", "Administrator", wrong), "null:"}},
		{"a bad escape", 2, nil, []string{"cbtransfer", "http://Administrator:" + wrong + "%zz@127.0.0.1:8091", "null:"}},
		{"a space", 2, nil, []string{"cbtransfer", "http://Administrator:" + wrong + " x@127.0.0.1:port", "null:"}},
		{"an unknown scheme", 2, nil, []string{"cbtransfer", with("htp://127.0.0.1:8091", "Administrator", wrong), "null:"}},
		{"an unknown option in the address", 2, nil, []string{"cbtransfer", src + "?password=" + wrong, "null:"}},
		{"an unknown option", 2, nil, []string{"cbtransfer", src, "null:", "-x", "password=" + wrong}},
		{"an option of another type", 2, nil, []string{"cbtransfer", src, "null:", "-x", "memory=" + wrong}},
		{"an option without a name", 2, nil, []string{"cbtransfer", src, "null:", "-x", wrong}},
		{"a number", 2, nil, []string{"cbtransfer", src, "null:", "-t", wrong}},
		{"an unknown flag", 2, nil, append([]string{"cbtransfer", src, dst, "--no-such-flag"}, flags...)},
		{"a third word", 2, nil, append([]string{"cbtransfer", src, dst, wrong}, flags...)},
		{"memcached with a login", 4, nil, []string{"cbtransfer", "gen:?max-items=10", with(mc, "bob", wrong)}},
		{"TAP of a node with a wrong password", 4, nil, []string{"cbtransfer", with("tap://"+s.src.Nodes()[0].KV(), "default", wrong), "null:"}},
		{"DCP of a node", 4, nil, []string{"cbtransfer", "dcp://" + s.src.Nodes()[0].KV(), "null:", "-u", "Administrator", "-p", wrong}},
		{"a bucket that is not there", 2, nil, append([]string{"cbtransfer", src, dst, "-b", "nothing"}, flags...)},

		{"nothing to recover", 0, nil, append([]string{"cbrecovery", src, dst, "--checkpoint", "ck2"}, flags...)},
		{"the plan of a recovery", 0, nil, append([]string{"cbrecovery", "-n", "--json", src, dst}, files...)},
		{"recovery, wrong password", 4, nil, []string{"cbrecovery", src, dst, "-u", "Administrator", "-p", wrong, "-U", "Administrator", "-P", s.dstPW}},
		{"recovery, wrong password in the address", 4, nil, []string{"cbrecovery", with(src, "Administrator", wrong), with(dst, "Administrator", s.dstPW)}},
		{"recovery, nobody there", 4, nil, []string{"cbrecovery", with("http://127.0.0.1:1", "Administrator", wrong), dst, "-U", "Administrator", "-P", s.dstPW}},
		{"recovery, unknown option", 2, nil, append([]string{"cbrecovery", src, dst, "-x", "token=" + wrong}, flags...)},

		{"a panic", 2, nil, append([]string{"panicking", "panic:", "null:"}, flags...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := s.command(c.args[0], c.env, append(c.args[1:], "-vvv")...)
			var out, said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &said
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
			if c.args[0] == "panicking" && !strings.Contains(said.String(), "goroutine ") {
				t.Error("it did not panic")
			}
			clean(t, "stdout", out.Bytes())
			clean(t, "stderr", said.Bytes())
			if t.Failed() {
				t.Logf("%.3000s", said.String())
			}
		})
	}
	if n := cleanFiles(t, s.out); n < 5 {
		t.Errorf("only %d files were written: the checkpoints, rejected items and the backup are due", n)
	}
}

// A running process shows no secret to those who look at it from outside, nor does
// it leave one in the stacks that SIGQUIT prints.
func TestSecretsAreNotShownByTheProcess(t *testing.T) {
	s := newStage(t)
	for _, c := range []struct {
		name string
		env  []string
		args []string
	}{
		{"flags", nil, []string{s.src.URL(), "-u", "Administrator", "-p", s.srcPW, "-U", "bob", "--password-destination=" + s.dstPW}},
		{"address", nil, []string{with(s.src.URL(), "Administrator", s.srcPW)}},
		{"environment", []string{"CB_REST_USERNAME=Administrator", "CB_REST_PASSWORD=" + s.srcPW, "CB_REST_PASSWORD_DEST=" + s.dstPW, "LAST=1"}, []string{s.src.URL()}},
		{"file", nil, []string{s.src.URL(), "-u", "Administrator", "--password-file", s.key("src.pw")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := s.command("cbtransfer", c.env, append(c.args, "null:", "--json", "-vv", "--limit-items", "1", "--checkpoint", "ck-"+c.name)...)
			lines, said := begun(t, cmd)
			for lines.Scan() {
				clean(t, "stdout", lines.Bytes())
				if !strings.Contains(lines.Text(), `"progress"`) {
					continue
				}
				for _, file := range []string{"cmdline", "environ", "comm", "status", "stat", "maps"} {
					path := fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, file)
					text, err := os.ReadFile(path)
					if err != nil || len(text) == 0 {
						t.Errorf("%s: %d bytes, %v", path, len(text), err)
					}
					clean(t, path, text)
					if file == "environ" && !bytes.Contains(text, []byte("GOTRACEBACK=system\x00")) {
						t.Errorf("the rest of the environment is not as it was: %q", text)
					}
				}
				if err := errors.Join(cmd.Process.Signal(syscall.SIGUSR1), cmd.Process.Signal(syscall.SIGQUIT)); err != nil {
					t.Error(err)
				}
				break
			}
			for lines.Scan() {
				clean(t, "stdout", lines.Bytes())
			}
			_ = cmd.Wait() // SIGQUIT ends it
			clean(t, "stderr", said.Bytes())
			if !strings.Contains(said.String(), "goroutine ") {
				t.Errorf("no stacks were printed: %.2000s", said.String())
			}
		})
	}
	cleanFiles(t, s.out)
}

// begun starts a command and returns its output, line by line, and what it says on
// stderr until it has ended.
func begun(t *testing.T, cmd *exec.Cmd) (*bufio.Scanner, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return bufio.NewScanner(out), &said
}

// A crash leaves no memory behind, however much the user's limit allows: the
// passwords are in it.
func TestNoCoreOfACrash(t *testing.T) {
	s := newStage(t)
	args := []string{"-c", `ulimit -S -c $(ulimit -H -c); exec "$0" "$@"`, filepath.Join(s.bin, "cbtransfer"),
		s.src.URL(), "null:", "-u", "Administrator", "--password-file", s.key("src.pw"), "--json", "--limit-items", "1"}
	cmd := exec.Command("/bin/sh", args...)
	cmd.Dir, cmd.Env = s.out, append(append([]string{}, s.env...), "GOTRACEBACK=crash")
	lines, said := begun(t, cmd)
	for lines.Scan() && !strings.Contains(lines.Text(), `"progress"`) {
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil || !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
		t.Errorf("%s, %v", limits, err)
	}
	if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
	}
	_ = cmd.Wait() // the state tells
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.CoreDump() {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
	clean(t, "stderr", said.Bytes())
	cleanFiles(t, s.out)
}
