package pump_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/pump"
)

type sourceOptions struct {
	Prefix string `opt:"prefix"`
	Token  string `opt:"token" secret:"true"`
	Limit  int    `opt:"limit" default:"10"`
	Both   string `opt:"both"`
}

type sinkOptions struct {
	Operation string `opt:"operation" default:"set" enum:"set,add"`
	Both      string `opt:"both"`
}

// opened is a source or sink that remembers how it was made.
type opened struct {
	target pump.Target
	source sourceOptions
	sink   sinkOptions
}

func (o *opened) Streams(context.Context) ([]pump.Stream, error)  { return nil, nil }
func (o *opened) Lanes(context.Context, int) ([]pump.Lane, error) { return nil, nil }
func (o *opened) Close() error                                    { return nil }

func newSource(_ context.Context, t pump.Target, so sourceOptions) (pump.Source, error) {
	return &opened{target: t, source: so}, nil
}

func newSink(_ context.Context, t pump.Target, so sinkOptions) (pump.Sink, error) {
	return &opened{target: t, sink: so}, nil
}

func registry(tb testing.TB) *pump.Registry {
	tb.Helper()
	r := &pump.Registry{}
	if err := errors.Join(
		pump.RegisterSource(r, pump.SourcePlugin[sourceOptions]{Schemes: []string{"http", "couchbase"}, Summary: "a cluster", New: newSource}),
		pump.RegisterSource(r, pump.SourcePlugin[sourceOptions]{Schemes: []string{"file"}, New: newSource}),
		pump.RegisterSource(r, pump.SourcePlugin[sourceOptions]{Schemes: []string{"jsonl"}, Extensions: []string{".jsonl", ".jsonl.zst"}, New: newSource}),
		pump.RegisterSource(r, pump.SourcePlugin[sourceOptions]{Schemes: []string{"zst"}, Extensions: []string{".zst"}, New: newSource}),
		pump.RegisterSource(r, pump.SourcePlugin[sourceOptions]{Schemes: []string{"stdin", "-"}, New: newSource}),
		pump.RegisterSink(r, pump.SinkPlugin[sinkOptions]{Schemes: []string{"memcached"}, New: newSink}),
		pump.RegisterSink(r, pump.SinkPlugin[sinkOptions]{Schemes: []string{"null"}, New: newSink}),
	); err != nil {
		tb.Fatal(err)
	}
	return r
}

func TestRegister(t *testing.T) {
	r := registry(t)
	if got := strings.Join(r.Schemes(pump.RoleSource), " "); got != "- couchbase file http jsonl stdin zst" {
		t.Errorf("schemes: %s", got)
	}
	if p := r.Plugins(pump.RoleSource)[0]; p.Role != pump.RoleSource || p.Summary != "a cluster" || len(p.Options) != 4 {
		t.Errorf("%+v", p)
	}
	for want, err := range map[string]error{
		"has no scheme":               pump.RegisterSink(r, pump.SinkPlugin[sinkOptions]{New: newSink}),
		`"null": the scheme is taken`: pump.RegisterSink(r, pump.SinkPlugin[sinkOptions]{Schemes: []string{"new", "null"}, New: newSink}),
		`"x": option "y"`: pump.RegisterSink(r, pump.SinkPlugin[struct {
			Y []string `opt:"y"`
		}]{Schemes: []string{"x"}}),
		`option "n" is not a whole number`: pump.RegisterSource(r, pump.SourcePlugin[struct {
			N int `opt:"n" default:"ten"`
		}]{Schemes: []string{"x"}}),
		`option "e" is not one of a, b`: pump.RegisterSource(r, pump.SourcePlugin[struct {
			E string `opt:"e" default:"c" enum:"a,b"`
		}]{Schemes: []string{"x"}}),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	// What was refused is not there; the same scheme in the other role may be.
	if strings.Contains(strings.Join(r.Schemes(pump.RoleSink), " "), "new") {
		t.Error("a refused plugin was registered")
	}
	if err := pump.RegisterSink(r, pump.SinkPlugin[sinkOptions]{Schemes: []string{"http"}, New: newSink}); err != nil {
		t.Error(err)
	}
}

func TestResolve(t *testing.T) {
	r := registry(t)
	env := pump.Env{Username: "envuser", Password: "envpass"}
	for _, tc := range []struct {
		spec                       string
		scheme, rest, host, plugin string
		user, pass                 string
		source                     sourceOptions
	}{
		{spec: "http://host:8091", scheme: "http", rest: "//host:8091", host: "host:8091", plugin: "http"},
		{spec: "HTTP://Host:8091/", scheme: "http", rest: "//Host:8091/", host: "Host:8091", plugin: "http"},
		{spec: "couchbase://[::1]:8091/path?limit=5", scheme: "couchbase", rest: "//[::1]:8091/path", host: "[::1]:8091", plugin: "http", source: sourceOptions{Limit: 5}},
		{spec: "http://Admin:pa%2Fss%40%3F%3A%20w@[fe80::1]:8091/x", scheme: "http", rest: "//[fe80::1]:8091/x", host: "[fe80::1]:8091", plugin: "http", user: "Admin", pass: "pa/ss@?: w"},
		{spec: "http://Admin:a:b@c@host", scheme: "http", rest: "//host", host: "host", plugin: "http", user: "Admin", pass: "a:b@c"},
		{spec: "http://Admin@host?prefix=p", scheme: "http", rest: "//host", host: "host", plugin: "http", user: "Admin", pass: "envpass", source: sourceOptions{Prefix: "p"}},
		{spec: "http://:secret@host", scheme: "http", rest: "//host", host: "host", plugin: "http", user: "envuser", pass: "secret"},
		{spec: "http://Admin:@host", scheme: "http", rest: "//host", host: "host", plugin: "http", user: "Admin", pass: ""},
		{spec: "http://@host", scheme: "http", rest: "//host", host: "host", plugin: "http"},
		{spec: "http://host?prefix=a%26b%3Dc+d&limit=1&limit=2&token=a%40b", scheme: "http", rest: "//host", host: "host", plugin: "http", source: sourceOptions{Prefix: "a&b=c d", Limit: 2, Token: "a@b"}},
		{spec: "http://host?", scheme: "http", rest: "//host", host: "host", plugin: "http"},
		{spec: "http://host?prefix=", scheme: "http", rest: "//host", host: "host", plugin: "http"},
		{spec: "-", scheme: "-", plugin: "stdin"},
		{spec: "stdin:", scheme: "stdin", plugin: "stdin"},
		{spec: "jsonl:/a/b@c.txt?limit=3", scheme: "jsonl", rest: "/a/b@c.txt", plugin: "jsonl", source: sourceOptions{Limit: 3}},
		{spec: "file:///a/b@c", scheme: "file", rest: "///a/b@c", plugin: "file"},
		{spec: "file:x/a.jsonl", scheme: "file", rest: "x/a.jsonl", plugin: "jsonl"},
		{spec: "/data/backup", scheme: "file", rest: "/data/backup", plugin: "file"},
		{spec: "backup", scheme: "file", rest: "backup", plugin: "file"},
		{spec: "", scheme: "file", rest: "", plugin: "file"},
		{spec: `C:\data\backup`, scheme: "file", rest: `C:\data\backup`, plugin: "file"},
		{spec: `C:\a@b.jsonl`, scheme: "file", rest: `C:\a@b.jsonl`, plugin: "jsonl"},
		{spec: "/data/12:30@noon.jsonl", scheme: "file", rest: "/data/12:30@noon.jsonl", plugin: "jsonl"},
		{spec: "./12:30@noon", scheme: "file", rest: "./12:30@noon", plugin: "file"},
		{spec: "2026-01-02T15:04", scheme: "file", rest: "2026-01-02T15:04", plugin: "file"},
		{spec: "a.JSONL", scheme: "file", rest: "a.JSONL", plugin: "jsonl"},
		{spec: "x/a.jsonl.zst", scheme: "file", rest: "x/a.jsonl.zst", plugin: "jsonl"},
		{spec: "x/a.csv.zst", scheme: "file", rest: "x/a.csv.zst", plugin: "zst"},
		{spec: "what?.jsonl", scheme: "file", rest: "what?.jsonl", plugin: "jsonl"},
	} {
		if tc.user == "" && tc.pass == "" {
			tc.user, tc.pass = env.Username, env.Password
		}
		if tc.source.Limit == 0 {
			tc.source.Limit = 10
		}
		res, err := r.Resolve(pump.RoleSource, tc.spec, env)
		if err != nil {
			t.Errorf("%q: %v", tc.spec, err)
			continue
		}
		if got := res.Target; got.Scheme != tc.scheme || got.Rest != tc.rest || got.Username != tc.user || got.Password != tc.pass ||
			got.Bucket != "default" || got.Log == nil || got.Role != pump.RoleSource || res.Plugin.Schemes[0] != tc.plugin {
			t.Errorf("%q: plugin %s, %+v", tc.spec, res.Plugin.Schemes[0], got)
		}
		if tc.host != "" && res.Target.Host() != tc.host {
			t.Errorf("%q: host %q", tc.spec, res.Target.Host())
		}
		s, err := res.OpenSource(t.Context())
		if err != nil || s.(*opened).source != tc.source {
			t.Errorf("%q: %+v, %v", tc.spec, s, err)
		}
		if _, err := res.OpenSink(t.Context()); err == nil {
			t.Errorf("%q: a source opened as a sink", tc.spec)
		}
	}
}

func TestTargetName(t *testing.T) {
	r := registry(t)
	for spec, want := range map[string]string{
		"http://u:" + planted + "@host:8091/p?token=" + planted: "http://host:8091/p",
		"/data/backup": "/data/backup",
		"-":            "-:",
	} {
		res, err := r.Resolve(pump.RoleSource, spec, pump.Env{})
		if err != nil || res.Target.Name() != want {
			t.Errorf("%q: %q, %v", spec, res.Target.Name(), err)
		}
	}
}

func TestResolveErrors(t *testing.T) {
	r := registry(t)
	for _, tc := range []struct {
		role pump.Role
		spec string
		want string
	}{
		{pump.RoleSource, "htp://u:" + planted + "@host", `unknown source scheme "htp"; this build has -, couchbase, file, http, jsonl, stdin, zst; did you mean "http"?`},
		{pump.RoleSink, "memcahed://host", `unknown sink scheme "memcahed"; this build has memcached, null; did you mean "memcached"?`},
		{pump.RoleSink, "localhost:8091", `unknown sink scheme "localhost"`},
		{pump.RoleSink, "/data/backup", `"/data/backup" is a file or folder, and this build has no sink for files; it has memcached, null`},
		{pump.RoleSink, "10.0.0.1:11211", "cluster addresses begin with http://"},
		{pump.RoleSource, "http://u:" + planted + "%zz@host", "the password in the source is not URL-escaped"},
		{pump.RoleSource, "http://" + planted + "%zz:p@host", "the user name in the source is not URL-escaped"},
		{pump.RoleSource, "http://u:" + planted + "/x@host", "cannot be told from its user info"},
		{pump.RoleSource, "http://u:" + planted + "?x=y@host", "cannot be told from its user info"},
		{pump.RoleSource, "http:/u:" + planted + "@host", "cannot be told from its user info"},
		{pump.RoleSource, "http://host?token=a&" + planted, "not of the form name=value"},
		{pump.RoleSource, "http://host?token=" + planted + ";x=y", "not of the form name=value"},
		{pump.RoleSource, "http://host?token=" + planted + "%zz", "not of the form name=value"},
		{pump.RoleSource, "http://host?=" + planted, "not of the form name=value"},
		{pump.RoleSource, "us_er:" + planted + "@host:8091", "the source is neither a path nor an address"},
		{pump.RoleSource, "9ttp://u:" + planted + "@host", "the source is neither a path nor an address"},
		{pump.RoleSource, "user:" + planted + "@host", `unknown source scheme "user"`},
	} {
		_, err := r.Resolve(tc.role, tc.spec, pump.Env{})
		if pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %q", tc.spec, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), planted) {
			t.Errorf("%q: the secret is shown: %v", tc.spec, err)
		}
	}
	// Options are looked at when the plugin is opened.
	for spec, want := range map[string]string{
		"http://host?limitt=" + planted: `source http has no option "limitt"; did you mean "limit"?`,
		"http://host?limit=" + planted:  `source http: option "limit" is not a whole number`,
	} {
		_, err := r.Source(t.Context(), spec, pump.Env{})
		if pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), planted) {
			t.Errorf("%q: %v", spec, err)
		}
	}
	if _, err := r.Sink(t.Context(), "null:?operation="+planted, pump.Env{}); err == nil || strings.Contains(err.Error(), planted) {
		t.Errorf("%v", err)
	}
	if _, err := r.Source(t.Context(), "nothing:", pump.Env{}); pump.ClassOf(err) != pump.ClassUsage {
		t.Error(err)
	}
	if _, err := r.Sink(t.Context(), "nothing:", pump.Env{}); pump.ClassOf(err) != pump.ClassUsage {
		t.Error(err)
	}
}

func TestRedactSpec(t *testing.T) {
	for spec, want := range map[string]string{
		"http://host:8091":                      "http://host:8091",
		"http://u:p@host:8091/x":                "http://host:8091/x",
		"HTTP://u:p@[::1]:8091?token=s&limit=5": "HTTP://[::1]:8091?token=…&limit=…",
		"http://host?token=s&rest-of-s":         "http://host?token=…&=…",
		"http://u:p/q@host":                     "http:…",
		"http://u:p?q=r@host":                   "http:…",
		"http:/u:p@host":                        "http:…",
		"user:p@host:8091":                      "user:…",
		"us_er:p@host:8091":                     "…",
		"9ttp://u:p@host":                       "…",
		"gen:?prefix=a@b":                       "gen:…",
		"csv:/data/ab.csv?x=y":                  "csv:/data/ab.csv?x=…", "csv:/data/a@b.csv": "csv:…",
		"/data/12:30@noon":                     "/data/12:30@noon",
		"memcached://host:11211?operation=add": "memcached://host:11211?operation=…",
		"-":                                    "-",
		"":                                     "",
		`C:\data`:                              `C:\data`,
		"file:///a/b":                          "file:///a/b",
		"//u:p@host":                           "…",
	} {
		if got := pump.RedactSpec(spec); got != want {
			t.Errorf("%q: %q, want %q", spec, got, want)
		}
	}
}

func pair(t *testing.T, r *pump.Registry) (source, sink *pump.Resolved) {
	t.Helper()
	source, err := r.Resolve(pump.RoleSource, "http://host?limit=1", pump.Env{})
	if err != nil {
		t.Fatal(err)
	}
	if sink, err = r.Resolve(pump.RoleSink, "null:", pump.Env{}); err != nil {
		t.Fatal(err)
	}
	return source, sink
}

func TestAssignOptions(t *testing.T) {
	r := registry(t)
	source, sink := pair(t, r)
	var set pump.Settings
	err := pump.AssignOptions(map[string]string{
		"memory": "1m", "limit": "7", "operation": "add", "source.both": "a", "sink.both": "b", "source.prefix": "p",
	}, source, sink, &set)
	if err != nil {
		t.Fatal(err)
	}
	want := pump.DefaultSettings()
	want.Memory = 1 << 20
	if set != want {
		t.Errorf("settings %+v", set)
	}
	so, err := source.OpenSource(t.Context())
	if err != nil || so.(*opened).source != (sourceOptions{Prefix: "p", Limit: 7, Both: "a"}) {
		t.Errorf("%+v, %v", so, err)
	}
	si, err := sink.OpenSink(t.Context())
	if err != nil || si.(*opened).sink != (sinkOptions{Operation: "add", Both: "b"}) {
		t.Errorf("%+v, %v", si, err)
	}
	if _, err := sink.OpenSource(t.Context()); err == nil {
		t.Error("a sink opened as a source")
	}

	for name, want := range map[string]string{
		"both":             "write source.both or sink.both",
		"memry":            `has no option "memry"; did you mean "memory"?`,
		"operatoin":        `did you mean "operation"?`,
		"source.operation": `source http has no option "operation"`,
		"sink.limit":       `sink null has no option "limit"`,
		"other.limit":      `has no option "other.limit"`,
		"lane-items":       `engine: option "lane-items" is not a whole number`,
	} {
		source, sink := pair(t, r)
		err := pump.AssignOptions(map[string]string{name: planted}, source, sink, &set)
		if pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), planted) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if err := pump.AssignOptions(nil, source, sink, &set); err != nil || set != pump.DefaultSettings() {
		t.Errorf("%+v, %v", set, err)
	}
}

// A plugin that names an option like an engine setting would take it away from
// the engine without a word.
func TestOptionsMayNotHideTheEngines(t *testing.T) {
	r := &pump.Registry{}
	err := pump.RegisterSink(r, pump.SinkPlugin[struct {
		M time.Duration `opt:"memory"`
	}]{Schemes: []string{"x"}})
	if err == nil || !strings.Contains(err.Error(), `option "memory" is the engine's`) {
		t.Error(err)
	}
}

// Wherever a password or an option's value stands, and whatever surrounds it,
// it is in the target's password or nowhere.
func FuzzSpecsKeepSecrets(f *testing.F) {
	f.Add("http", "//", "Admin", "", "", "host:8091/x", "token")
	f.Add("us_er", "", "", "p", "/q", "host", "prefix")
	f.Add("http", "/", "a:b", "?", "#&=@", "[::1]", "limit")
	f.Add("", "//", "u", "\\", "%zz", "@", "a&b")
	f.Add("file", "///", "u", ";", ":", "x/y@z:1", "")
	r := registry(f)
	f.Fuzz(func(t *testing.T, scheme, slashes, user, before, after, host, option string) {
		if strings.Contains(scheme+slashes+user+before+after+host+option, planted[:4]) {
			return
		}
		secret := before + planted + after
		specs := []string{
			// With a value of an option, in the place that options have.
			scheme + ":" + slashes + host + "?" + option + "=" + planted,
		}
		if !strings.ContainsAny(scheme, `/\:@`) && !strings.ContainsAny(user, "/?@") && len(scheme) > 1 {
			// With user info; the password may be unescaped.
			specs = append(specs, scheme+"://"+user+":"+secret+"@host")
			if !slices.Contains(r.Schemes(pump.RoleSource), strings.ToLower(scheme)) {
				specs = append(specs, scheme+":"+secret+"@host") // the user for a scheme
			}
		}
		for i, spec := range specs {
			if i == 0 && (strings.ContainsAny(scheme+host+slashes+option, "?@:&=#") || scheme == "" || slashes == "" || option == "") {
				continue // that is then no option's value
			}
			shown := pump.RedactSpec(spec)
			res, err := r.Resolve(pump.RoleSource, spec, pump.Env{})
			if err == nil {
				shown += " " + res.Target.Name() + " " + res.Target.Rest + " " + res.Target.Host() + " " + res.Target.Scheme
				_, err = res.OpenSource(t.Context())
			}
			if err != nil {
				shown += " " + fmt.Sprintf("%v %+v", err, err)
			}
			if strings.Contains(shown, planted) {
				// A path is shown as it is: nothing in it says that it holds a secret.
				if res != nil && res.Target.Scheme == "file" && i == 0 {
					continue
				}
				t.Fatalf("%q shows the secret: %s", spec, shown)
			}
		}
	})
}

func FuzzResolve(f *testing.F) {
	for _, s := range []string{"", ":", "-", "a:", "http://", "http://@", "http://:@", "//", "x://[", "C:", `C:\`, "?", "http:?", "a b:c", "file:", "ht\x00tp://u:p@h", "é:x@y"} {
		f.Add(s)
	}
	r := registry(f)
	f.Fuzz(func(t *testing.T, spec string) {
		pump.RedactSpec(spec)
		for _, role := range []pump.Role{pump.RoleSource, pump.RoleSink} {
			res, err := r.Resolve(role, spec, pump.Env{})
			if err != nil {
				if pump.ClassOf(err) != pump.ClassUsage {
					t.Fatal(err)
				}
				continue
			}
			res.Target.Host()
			res.Target.Name()
		}
	})
}
