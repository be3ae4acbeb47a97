package pump

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// Role tells the two ends of a pump apart.
type Role uint8

// The two roles.
const (
	RoleSource Role = iota
	RoleSink
)

func (r Role) String() string {
	if r == RoleSink {
		return "sink"
	}
	return "source"
}

// Env is what a frontend hands to every plugin beside its options: what the
// common flags say.
type Env struct {
	Bucket   string // "default" if the user said nothing
	Username string
	Password string // a secret: never printed
	// VBuckets restricts a source to these; nil means all. Sorted, no repeats.
	VBuckets []uint16
	// SingleNode restricts a cluster to the one node that the spec names.
	SingleNode bool
	// Threads is the parallelism that the user asked for; 0 leaves it open.
	Threads int
	// Security says how clusters are reached.
	Security Security
	Log      hclog.Logger // never nil once a plugin sees it
}

// Security says how connections to clusters are secured, where their address asks
// for TLS, and by which of their addresses nodes are reached. Package cluster has
// the meaning of each.
type Security struct {
	CACert, ClientCert, ClientKey string // PEM files
	NoVerify                      bool   // trust any certificate
	Network                       string // auto ("" too), default or external
}

// Target is a spec taken apart: what a plugin's New is asked to open.
type Target struct {
	Env
	Role   Role
	Scheme string // in lower case; "file" for a bare path
	Rest   string // what follows "scheme:", without the options and without user info
}

// Name returns the target for messages: no user info, no options (invariant 9).
func (t *Target) Name() string {
	if t.Scheme == "file" {
		return t.Rest
	}
	return t.Scheme + ":" + t.Rest
}

// Host returns host and port of a target of the form //host[:port][/…].
func (t *Target) Host() string {
	rest := strings.TrimPrefix(t.Rest, "//")
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		rest = rest[:i]
	}
	return rest
}

// SourcePlugin declares a kind of source. O is the struct that declares its options.
type SourcePlugin[O any] struct {
	Schemes    []string // URL schemes, in lower case
	Extensions []string // bare paths that end so belong to this plugin: ".csv"
	Summary    string   // one line
	Doc        string   // paragraphs for the documentation, may be empty
	New        func(ctx context.Context, t Target, options O) (Source, error)
}

// SinkPlugin declares a kind of sink.
type SinkPlugin[O any] struct {
	Schemes    []string
	Extensions []string
	Summary    string
	Doc        string
	New        func(ctx context.Context, t Target, options O) (Sink, error)
}

// Plugin describes a registered source or sink.
type Plugin struct {
	Role       Role
	Schemes    []string
	Extensions []string
	Summary    string
	Doc        string
	Options    []Option

	newSource func(context.Context, Target, map[string]string) (Source, error)
	newSink   func(context.Context, Target, map[string]string) (Sink, error)
}

// Registry resolves specs to sources and sinks by URL scheme. It is a value:
// each frontend registers what it wants.
type Registry struct {
	plugins [2][]*Plugin
}

// RegisterSource adds a kind of source. It fails if a scheme is taken or an
// option cannot be declared so.
func RegisterSource[O any](r *Registry, p SourcePlugin[O]) error {
	return register[O](r, &Plugin{
		Role: RoleSource, Schemes: p.Schemes, Extensions: p.Extensions, Summary: p.Summary, Doc: p.Doc,
		newSource: func(ctx context.Context, t Target, values map[string]string) (Source, error) {
			var o O
			if err := DecodeOptions("source "+t.Scheme, values, &o); err != nil {
				return nil, err
			}
			return p.New(ctx, t, o)
		},
	})
}

// RegisterSink adds a kind of sink, as RegisterSource does.
func RegisterSink[O any](r *Registry, p SinkPlugin[O]) error {
	return register[O](r, &Plugin{
		Role: RoleSink, Schemes: p.Schemes, Extensions: p.Extensions, Summary: p.Summary, Doc: p.Doc,
		newSink: func(ctx context.Context, t Target, values map[string]string) (Sink, error) {
			var o O
			if err := DecodeOptions("sink "+t.Scheme, values, &o); err != nil {
				return nil, err
			}
			return p.New(ctx, t, o)
		},
	})
}

func register[O any](r *Registry, p *Plugin) error {
	if len(p.Schemes) == 0 {
		return fmt.Errorf("register a %s: it has no scheme", p.Role)
	}
	for _, s := range p.Schemes {
		if r.find(p.Role, s) != nil {
			return fmt.Errorf("register %s %q: the scheme is taken", p.Role, s)
		}
	}
	var o O
	opts, err := DescribeOptions(&o)
	if err != nil {
		return fmt.Errorf("register %s %q: %w", p.Role, p.Schemes[0], err)
	}
	engine, err := DescribeOptions(Settings{})
	if err != nil {
		return err
	}
	for _, e := range engine {
		if slices.ContainsFunc(opts, func(o Option) bool { return o.Name == e.Name }) {
			return fmt.Errorf("register %s %q: option %q is the engine's", p.Role, p.Schemes[0], e.Name)
		}
	}
	if err := DecodeOptions("declared defaults", nil, &o); err != nil {
		return fmt.Errorf("register %s %q: %w", p.Role, p.Schemes[0], err)
	}
	p.Options = opts
	r.plugins[p.Role] = append(r.plugins[p.Role], p)
	return nil
}

// Plugins lists what is registered for a role, in the order of registration.
func (r *Registry) Plugins(role Role) []*Plugin { return r.plugins[role] }

// Schemes lists the schemes of a role in alphabetical order.
func (r *Registry) Schemes(role Role) []string {
	var out []string
	for _, p := range r.plugins[role] {
		out = append(out, p.Schemes...)
	}
	slices.Sort(out)
	return out
}

func (r *Registry) find(role Role, scheme string) *Plugin {
	for _, p := range r.plugins[role] {
		if slices.Contains(p.Schemes, scheme) {
			return p
		}
	}
	return nil
}

// Resolved is a spec with the plugin that answers for it and its options, not
// yet opened.
type Resolved struct {
	Target Target
	Plugin *Plugin
	values map[string]string

	source Source    // what OpenSource returned last
	from   *Resolved // the source that this sink must not be
}

// Resolve takes a spec apart and finds its plugin. A user name and a password
// in the spec's user info each take the place of the one in env. Its errors show
// neither these nor an option's value (invariant 9).
func (r *Registry) Resolve(role Role, spec string, env Env) (*Resolved, error) {
	scheme, rest, path := splitSpec(spec)
	p := r.find(role, scheme)
	if path {
		if addressLike(spec) {
			return nil, Usagef("the %s is neither a path nor an address: an address begins with its scheme, such as http://, and a file of that name is written ./NAME", role)
		}
		scheme = "file"
		if p = r.byExtension(role, spec); p == nil {
			p = r.find(role, scheme)
		}
	}
	if scheme == "file" && !path { // file:NAME means what the bare path means
		name, _, _ := strings.Cut(rest, "?")
		if by := r.byExtension(role, name); by != nil {
			p = by
		}
	}
	if p == nil {
		names := r.Schemes(role)
		if path {
			return nil, Usagef("%q is a file or folder, and this build has no %s for files; it has %s; cluster addresses begin with http://",
				RedactSpec(spec), role, strings.Join(names, ", "))
		}
		return nil, Usagef("unknown %s scheme %q; this build has %s%s", role, scheme, strings.Join(names, ", "), DidYouMean(scheme, names))
	}
	values := map[string]string{}
	if !path {
		var err error
		if rest, err = takeUserInfo(role, rest, &env); err != nil {
			return nil, err
		}
		var query string
		rest, query, _ = strings.Cut(rest, "?")
		if values, err = parseOptions(role, query); err != nil {
			return nil, err
		}
	}
	if env.Bucket == "" {
		env.Bucket = "default"
	}
	if env.Log == nil {
		env.Log = hclog.NewNullLogger()
	}
	return &Resolved{
		Target: Target{Env: env, Role: role, Scheme: scheme, Rest: rest},
		Plugin: p, values: values,
	}, nil
}

// byExtension finds the plugin with the longest extension that a path ends with.
func (r *Registry) byExtension(role Role, path string) (best *Plugin) {
	path = strings.ToLower(path)
	length := 0
	for _, p := range r.plugins[role] {
		for _, ext := range p.Extensions {
			if len(ext) > length && strings.HasSuffix(path, ext) {
				best, length = p, len(ext)
			}
		}
	}
	return best
}

// takeUserInfo moves what stands before the @ of //user:password@host into env.
func takeUserInfo(role Role, rest string, env *Env) (string, error) {
	from, to, ok := userInfo(rest)
	if !ok {
		return "", Usagef("the address in the %s cannot be told from its user info: write / ? # @ in a user name or password as %%2F %%3F %%23 %%40, and an @ behind the address as %%40", role)
	}
	if to == from {
		return rest, nil
	}
	user, pass, hasPass := strings.Cut(rest[from:to-1], ":")
	user, err := url.PathUnescape(user)
	if err != nil {
		return "", Usagef("the user name in the %s is not URL-escaped", role)
	}
	if pass, err = url.PathUnescape(pass); err != nil {
		return "", Usagef("the password in the %s is not URL-escaped", role)
	}
	if user != "" {
		env.Username = user
	}
	if hasPass {
		env.Password = pass
	}
	return rest[:from] + rest[to:], nil
}

// userInfo finds the user info (with its @) in what follows the scheme; from
// and to are equal where there is none. ok is false when a user name or password
// that is not escaped may reach beyond the authority, where it would be taken
// for a host, a path or an option.
func userInfo(rest string) (from, to int, ok bool) {
	if !strings.HasPrefix(rest, "//") {
		path, _, _ := strings.Cut(rest, "?")
		return 0, 0, !colonBeforeAt(path)
	}
	at, end := strings.LastIndexByte(rest, '@'), len(rest)
	if i := strings.IndexAny(rest[2:], "/?"); i >= 0 {
		end = 2 + i
	}
	switch {
	case at < 0:
		return 0, 0, true
	case at < end:
		return 2, at + 1, true
	}
	return 0, 0, end == 2 && !colonBeforeAt(rest) // ///path
}

func colonBeforeAt(s string) bool {
	colon := strings.IndexByte(s, ':')
	return colon >= 0 && colon < strings.LastIndexByte(s, '@')
}

// addressLike reports that a spec without a scheme is no path but an address:
// what is before an @ in it may be a secret.
func addressLike(spec string) bool {
	before, _, _ := strings.Cut(spec, ":")
	drive := len(before) == 1 && strings.HasPrefix(spec[1:], `:\`)
	path := drive || strings.ContainsAny(before, `/\`) && !strings.HasPrefix(spec, "//")
	return strings.Contains(spec, "://") || colonBeforeAt(spec) && !path
}

// parseOptions decodes name=value&name=value; of a repeated name the last counts.
func parseOptions(role Role, query string) (map[string]string, error) {
	malformed := Usagef("the options behind ? in the %s are not of the form name=value&name=value (write & ; %% + in a value as %%26 %%3B %%25 %%2B)", role)
	for pair := range strings.SplitSeq(query, "&") {
		// A piece without = may be the rest of a secret that holds a &.
		if pair != "" && strings.IndexByte(pair, '=') < 1 {
			return nil, malformed
		}
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, malformed
	}
	values := map[string]string{}
	for name, v := range q {
		values[name] = v[len(v)-1]
	}
	return values, nil
}

// splitSpec finds the scheme of a spec; path says that it has none.
func splitSpec(spec string) (scheme, rest string, path bool) {
	if spec == "-" {
		return "-", "", false
	}
	i := strings.IndexByte(spec, ':')
	if i < 2 { // one letter is a drive, none is no scheme
		return "", spec, true
	}
	for j, c := range spec[:i] {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (j == 0 || !(c >= '0' && c <= '9' || c == '+' || c == '-' || c == '.')) {
			return "", spec, true
		}
	}
	return strings.ToLower(spec[:i]), spec[i+1:], false
}

// RedactSpec returns a spec without user info and without the values of its
// options, for messages (invariant 9). Where it cannot tell what is an address
// and what a secret, it leaves out both.
func RedactSpec(spec string) string {
	scheme, rest, path := splitSpec(spec)
	prefix := spec[:len(spec)-len(rest)]
	from, to, ok := userInfo(rest)
	address, query, hasQuery := strings.Cut(rest[:from]+rest[to:], "?")
	switch {
	case scheme == "-":
		return spec
	case path && addressLike(spec),
		!path && !ok,
		!path && from == to && strings.Contains(rest, "@"): // user:password@host, with the user for a scheme
		return prefix + "…"
	}
	rest = address
	if hasQuery {
		var names []string
		for _, pair := range strings.Split(query, "&") {
			name, _, isPair := strings.Cut(pair, "=")
			if !isPair {
				name = ""
			}
			names = append(names, name+"=…")
		}
		rest += "?" + strings.Join(names, "&")
	}
	return prefix + rest
}

// Source opens the source that a spec names.
func (r *Registry) Source(ctx context.Context, spec string, env Env) (Source, error) {
	res, err := r.Resolve(RoleSource, spec, env)
	if err != nil {
		return nil, err
	}
	return res.OpenSource(ctx)
}

// Sink opens the sink that a spec names.
func (r *Registry) Sink(ctx context.Context, spec string, env Env) (Sink, error) {
	res, err := r.Resolve(RoleSink, spec, env)
	if err != nil {
		return nil, err
	}
	return res.OpenSink(ctx)
}

// Decode fills the struct that into points to with its declared defaults and the
// options that were given, for frontends that open the end themselves.
func (v *Resolved) Decode(into any) error {
	return DecodeOptions(v.Plugin.Role.String()+" "+v.Target.Scheme, v.values, into)
}

// Set sets an option; it takes the place of one in the spec.
func (v *Resolved) Set(name, value string) { v.values[name] = value }

// Given returns the options that were set to something else than their default,
// by name, without those that are secrets.
func (v *Resolved) Given() map[string]string {
	out := make(map[string]string)
	for _, o := range v.Plugin.Options {
		if value, ok := v.values[o.Name]; ok && !o.Secret && value != o.Default {
			out[o.Name] = value
		}
	}
	return out
}

// OpenSource calls the plugin's New.
func (v *Resolved) OpenSource(ctx context.Context) (Source, error) {
	if v.Plugin.newSource == nil {
		return nil, errors.New("a sink was asked to be a source")
	}
	source, err := v.Plugin.newSource(ctx, v.Target, maps.Clone(v.values))
	v.source = source
	return source, err
}

// Apart makes OpenSink return a sink that refuses to be what src reads. The source
// is to be opened first.
func (v *Resolved) Apart(src *Resolved) { v.from = src }

// OpenSink calls the plugin's New.
func (v *Resolved) OpenSink(ctx context.Context) (Sink, error) {
	if v.Plugin.newSink == nil {
		return nil, errors.New("a source was asked to be a sink")
	}
	if v.from != nil && v.from.source == nil {
		return nil, errors.New("the sink was opened before the source that it must not be")
	}
	sink, err := v.Plugin.newSink(ctx, v.Target, maps.Clone(v.values))
	if err != nil || v.from == nil {
		return sink, err
	}
	return Apart(v.from.source, sink), nil
}

func (v *Resolved) has(name string) bool {
	return slices.ContainsFunc(v.Plugin.Options, func(o Option) bool { return o.Name == name })
}

// AssignOptions gives each -x name=value to the engine, the source or the sink,
// whichever declares it. A name that both source and sink have is written
// source.name or sink.name.
func AssignOptions(values map[string]string, source, sink *Resolved, settings *Settings) error {
	engine, err := DescribeOptions(settings)
	if err != nil {
		return err
	}
	own := map[string]string{}
	for _, full := range slices.Sorted(maps.Keys(values)) {
		value := values[full]
		side, name, dotted := strings.Cut(full, ".")
		if dotted && (side == "source" || side == "sink") {
			to := source
			if side == "sink" {
				to = sink
			}
			if !to.has(name) {
				return unknownOption(side+" "+to.Target.Scheme, name, to.Plugin.Options)
			}
			to.Set(name, value)
			continue
		}
		inEngine := slices.ContainsFunc(engine, func(o Option) bool { return o.Name == full })
		switch {
		case source.has(full) && sink.has(full):
			return Usagef("-x %s: both source %s and sink %s have that option; write source.%s or sink.%s",
				full, source.Target.Scheme, sink.Target.Scheme, full, full)
		case source.has(full):
			source.Set(full, value)
		case sink.has(full):
			sink.Set(full, value)
		case inEngine:
			own[full] = value
		default:
			all := slices.Concat(engine, source.Plugin.Options, sink.Plugin.Options)
			return unknownOption(fmt.Sprintf("-x (engine, source %s, sink %s)", source.Target.Scheme, sink.Target.Scheme), full, all)
		}
	}
	return DecodeOptions("engine", own, settings)
}
