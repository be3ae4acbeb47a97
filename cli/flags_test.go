package cli

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
)

func TestParseExtras(t *testing.T) {
	for _, c := range []struct {
		name   string
		extras []string
		want   map[string]string // nil: an error
	}{
		{"none", nil, map[string]string{}},
		{"one", []string{"memory=8m"}, map[string]string{"memory": "8m"}},
		{"they add up", []string{"a=1", "b=2"}, map[string]string{"a": "1", "b": "2"}},
		{"a later one of the same name counts", []string{"a=1", "a=2"}, map[string]string{"a": "2"}},
		{"several in one", []string{"a=1,b=2", "c=3"}, map[string]string{"a": "1", "b": "2", "c": "3"}},
		{"a comma in a value", []string{"list=1,2,3,b=4"}, map[string]string{"list": "1,2,3", "b": "4"}},
		{"an equals sign in a value", []string{"a=b=c"}, map[string]string{"a": "b=c"}},
		{"an empty value", []string{"a="}, map[string]string{"a": ""}},
		{"sides", []string{"source.idle-timeout=1s, sink.timeout=2s"}, map[string]string{"source.idle-timeout": "1s", "sink.timeout": "2s"}},
		{"no equals sign", []string{"s3cret"}, nil},
		{"no name", []string{"=s3cret"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseExtras(c.extras)
			if c.want == nil {
				if err == nil || pump.ExitCode(err, 0) != 2 || strings.Contains(err.Error(), "s3cret") {
					t.Fatalf("got %v, want an error of wrong use that does not quote the value", err)
				}
				return
			}
			if err != nil || !maps.Equal(got, c.want) {
				t.Fatalf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
}

func TestWrongFlagsAreExplained(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--bucket-sorce x", `unknown flag --bucket-sorce; did you mean "--bucket-source"?`},
		{"--nonsense", "unknown flag --nonsense"},
		{"-vZs3cret", "unknown flag -Z"},
		{"-b", "-b/--bucket-source needs a value"},
		{"--threads=s3cret", "-t/--threads needs a whole number"},
		{"-t -3", "-t/--threads cannot be negative"},
		{"--json=s3cret", "--json needs a true or false"},
		{"--=s3cret", "the flags cannot be read: a flag is -f or --flag or --flag=value"},
	} {
		t.Run(c.args, func(t *testing.T) {
			err := newTransferFlags("cbtransfer").parse(strings.Fields(c.args))
			if err == nil || err.Error() != c.want || pump.ExitCode(err, 0) != 2 {
				t.Fatalf("got %v, want %q and exit 2", err, c.want)
			}
		})
	}
}

func TestSpecifiedFlagsOfRecovery(t *testing.T) {
	f := newRecoveryFlags("cbrecovery")
	if f.bucketSource != "default" || f.bucketDestination != "default" {
		t.Errorf("the buckets default to %q and %q", f.bucketSource, f.bucketDestination)
	}
	for short, long := range map[string]string{
		"b": "bucket-source", "B": "bucket-destination", "u": "username", "p": "password", "U": "username-destination",
		"P": "password-destination", "l": "vbucket-list", "a": "add-node", "r": "remove-node", "v": "verbose",
	} {
		g := f.set.ShorthandLookup(short)
		if g == nil || g.Name != long {
			t.Errorf("-%s is not --%s", short, long)
		}
	}
	if err := f.parse(strings.Fields("from -b s -v to -B d -vv -u a -U b -l 0 -a n:1 -r o:1")); err != nil {
		t.Fatal(err)
	}
	from, to, err := f.positional("restore_from", "restore_to")
	if err != nil || from != "from" || to != "to" {
		t.Errorf("positional: %q, %q, %v", from, to, err)
	}
	if f.verbose != 3 || f.bucketSource != "s" || f.bucketDestination != "d" || f.vbuckets != "0" || f.addNode != "n:1" || f.removeNode != "o:1" {
		t.Errorf("parsed as %+v", f)
	}
}

// The help is written by hand; this holds it against the flags there are.
func TestHelpNamesEveryFlag(t *testing.T) {
	for _, c := range []struct {
		set  *pflag.FlagSet
		help string
	}{{newTransferFlags("cbtransfer").set, transferHelp}, {newRecoveryFlags("cbrecovery").set, recoveryHelp}} {
		declared := map[string]bool{}
		c.set.VisitAll(func(f *pflag.Flag) {
			want := "      --" + f.Name
			if f.Shorthand != "" {
				want = "  -" + f.Shorthand + ", --" + f.Name
			}
			declared[want] = true
			if !strings.Contains(c.help, "\n"+want+" ") {
				t.Errorf("%s: the help lacks %q", c.set.Name(), want)
			}
		})
		for _, line := range strings.Split(c.help, "\n") {
			if len([]rune(line)) > 90 {
				t.Errorf("%s: this line of the help is long: %q", c.set.Name(), line)
			}
			if dashes := strings.Index(line, "--"); strings.HasPrefix(line, "  ") && dashes == 6 {
				if end := strings.IndexByte(line[6:], ' '); end > 0 && !declared[line[:6+end]] {
					t.Errorf("%s: the help names %q, which is no flag", c.set.Name(), line[:6+end])
				}
			}
		}
	}
}

func TestPositional(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "source and destination are missing"},
		{[]string{"gen:"}, "destination is missing: cbtransfer takes source and destination"},
		{[]string{"a", "b", "s3cret"}, "cbtransfer takes source and destination and nothing else, but 3 words stand there"},
		{[]string{"a", ""}, "source and destination must not be empty"},
	} {
		f := newTransferFlags("cbtransfer")
		if err := f.parse(c.args); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.positional("source", "destination"); err == nil || err.Error() != c.want {
			t.Errorf("%q: got %v, want %q", c.args, err, c.want)
		}
	}
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pw")
	if err := os.WriteFile(file, []byte("from file\r\nsecond line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const cluster, memcached = "http://b:1", "memcached://b:1"
	type creds [4]string // source user and password, destination user and password
	for _, c := range []struct {
		name    string
		args    []string
		env     map[string]string
		to      string
		own     bool // a destination does not inherit
		want    creds
		failure string
	}{
		{"nothing", nil, nil, cluster, false, creds{}, ""},
		{"both sides", []string{"-u", "a", "-p", "x"}, nil, cluster, false, creds{"a", "x", "a", "x"}, ""},
		{"never from one cluster to another in cbrecovery", []string{"-u", "a", "-p", "x"}, nil, cluster, true, creds{"a", "x", "", ""}, ""},
		{"never to what is no cluster", []string{"-u", "a", "-p", "x"}, nil, memcached, false, creds{"a", "x", "", ""}, ""},
		{"own", []string{"-u", "a", "-p", "x", "-U", "b", "-P", "y"}, nil, cluster, false, creds{"a", "x", "b", "y"}, ""},
		{"own password, same user", []string{"-u", "a", "-p", "x", "-P", "y"}, nil, cluster, false, creds{"a", "x", "a", "y"}, ""},
		{"own user that is empty", []string{"-u", "a", "-p", "x", "-U", ""}, nil, cluster, false, creds{"a", "x", "", ""}, ""},
		{"empty password", []string{"-u", "a", "-p", ""}, nil, cluster, false, creds{"a", "", "a", ""}, ""},
		{"environment", nil, map[string]string{"CB_REST_USERNAME": "a", "CB_REST_PASSWORD": "x", "CB_REST_USERNAME_DEST": "b", "CB_REST_PASSWORD_DEST": "y"},
			cluster, false, creds{"a", "x", "b", "y"}, ""},
		{"flag before environment", []string{"-u", "a", "-p", "x"}, map[string]string{"CB_REST_USERNAME": "c", "CB_REST_PASSWORD": "z"},
			cluster, false, creds{"a", "x", "a", "x"}, ""},
		{"file", []string{"-u", "a", "--password-file", file}, nil, cluster, false, creds{"a", "from file", "a", "from file"}, ""},
		{"file of the destination", []string{"-U", "b", "--password-destination-file", file}, nil, cluster, false, creds{"", "", "b", "from file"}, ""},
		{"file and flag", []string{"-p", "x", "--password-file", file}, nil, cluster, false, creds{}, "--password and --password-file both give the password of the source"},
		{"no such file", []string{"--password-file", dir + "/none"}, nil, cluster, false, creds{}, "read the password for --password-file"},
		{"no password and no terminal", []string{"-u", "a"}, nil, cluster, false, creds{}, "no terminal to ask on"},
		{"address before flag", []string{"-U", "b", "-P", "y"}, nil, "http://c:z@b:1", false, creds{"", "", "c", "z"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &pump.Registry{}
			null := func(schemes ...string) {
				if err := errors.Join(pump.RegisterSource(r, pump.SourcePlugin[struct{}]{Schemes: schemes}),
					pump.RegisterSink(r, pump.SinkPlugin[struct{}]{Schemes: schemes})); err != nil {
					t.Fatal(err)
				}
			}
			null("http")
			null("memcached")
			f := newTransferFlags("cbtransfer")
			if err := f.parse(c.args); err != nil {
				t.Fatal(err)
			}
			p := &Process{Name: "cbtransfer", Stdin: strings.NewReader(""), Stderr: io.Discard,
				LookupEnv: func(name string) (string, bool) { v, ok := c.env[name]; return v, ok }}
			from, err1 := r.Resolve(pump.RoleSource, "http://a:1", pump.Env{})
			to, err2 := r.Resolve(pump.RoleSink, c.to, pump.Env{})
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			err := f.login(p, newConsole(p, f.common), from, to, !c.own)
			if c.failure != "" {
				if err == nil || !strings.Contains(err.Error(), c.failure) || pump.ExitCode(err, 0) != 2 {
					t.Fatalf("got %v, want %q and exit 2", err, c.failure)
				}
				return
			}
			got := creds{from.Target.Username, from.Target.Password, to.Target.Username, to.Target.Password}
			if err != nil || got != c.want {
				t.Fatalf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{
		"http://a:8091": "http://a:8091", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'",
		"[500,612]": "'[500,612]'", "gen:?a=…": "'gen:?a=…'",
	} {
		if got := shellWord(in); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestRefuseSame(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "a.jsonl"), filepath.Join(dir, "b.jsonl")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	r := &pump.Registry{}
	for _, s := range []string{"http", "couchbase", "tap", "memcached", "file", "null"} {
		if err := errors.Join(pump.RegisterSource(r, pump.SourcePlugin[struct{}]{Schemes: []string{s}}),
			pump.RegisterSink(r, pump.SinkPlugin[struct{}]{Schemes: []string{s}})); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		from, to, bucket string
		same             bool
	}{
		{"http://a:8091", "http://a:8091", "default", true},
		{"http://a", "http://A:8091/", "default", true},
		{"http://a", "couchbase://a", "default", true},
		{"http://localhost:8091", "http://127.0.0.1:8091", "default", true},
		{"http://[::1]:8091", "http://localhost", "default", true},
		{"http://[fe80::1]", "http://[FE80:0::1]:8091", "default", true},
		{"http://u:p@a", "http://a", "default", true},
		{"tap://a:11210", "memcached://a:11210", "default", true},
		{"http://a:8091", "http://a:8091", "other", false},
		{"http://a:8091", "http://a:8092", "default", false},
		{"http://a", "memcached://a", "default", false},
		{file, file, "default", true},
		{file, link, "default", true},
		{file, filepath.Join(dir, "x", "..", "a.jsonl"), "default", true},
		{filepath.Join(dir, "none"), filepath.Join(dir, ".", "none"), "default", true},
		{file, filepath.Join(dir, "none"), "default", false},
		{"null:", "null:", "default", false},
	} {
		from, err1 := r.Resolve(pump.RoleSource, c.from, pump.Env{})
		to, err2 := r.Resolve(pump.RoleSink, c.to, pump.Env{Bucket: c.bucket})
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		err := refuseSame(from, to)
		if (err != nil) != c.same || err != nil && pump.ExitCode(err, 0) != 2 {
			t.Errorf("%s to %s (bucket %s): %v", c.from, c.to, c.bucket, err)
		}
	}
}

func TestFailuresArePutTogether(t *testing.T) {
	outcome := func(vb uint16, text string) recovery.Outcome {
		o := recovery.Outcome{VBucket: vb}
		if text != "" {
			o.Err = errors.New(text)
		}
		return o
	}
	got := failures([]recovery.Outcome{
		outcome(1, "transfer vbucket 1 from a to b: cut"), outcome(2, "transfer vbucket 2 from a to b: cut"),
		outcome(3, ""), outcome(4, "vbucket 4: counts differ"), outcome(5, "transfer vbucket 5 from a to b: cut"),
	})
	want := []string{"left: 1-2,5: transfer from a to b: cut", "left: 4: counts differ"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
