package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/cbpump/cbpump/pump"
)

// login is what one side is logged into with.
type login struct {
	user, password       string
	userSet, passwordSet bool // said at all: "" may be meant
}

// sides says where the credentials of each side come from.
var sides = [2]struct{ name, userFlag, passwordFlag, fileFlag, userEnv, passwordEnv string }{
	pump.RoleSource: {"source", "username", "password", "password-file", "CB_REST_USERNAME", "CB_REST_PASSWORD"},
	pump.RoleSink: {"destination", "username-destination", "password-destination", "password-destination-file",
		"CB_REST_USERNAME_DEST", "CB_REST_PASSWORD_DEST"},
}

// login gives both ends their credentials, unless their addresses hold some. With
// inherit a destination that is a cluster takes from the source's flags what
// nothing is said about: the user, and the password unless it has a user of its
// own.
func (c *common) login(p *Process, say *console, from, to *pump.Resolved, inherit bool) error {
	ask := &asker{p: p}
	src, err := c.loginOf(ask, say, pump.RoleSource)
	if err != nil {
		return err
	}
	dst, err := c.loginOf(ask, say, pump.RoleSink)
	if err != nil {
		return err
	}
	if inherit && !dst.userSet && serverOf(&to.Target).cluster {
		dst.user = src.user
		if !dst.passwordSet {
			dst.password = src.password
		}
	}
	for role, end := range []struct {
		t *pump.Target
		l login
	}{{&from.Target, src}, {&to.Target, dst}} {
		side, file := sides[role], c.logins[role].file
		switch t := end.t; {
		case t.Username == "" && t.Password == "":
			t.Username, t.Password = end.l.user, end.l.password
		case t.Username != "" && t.Password == "" && file != "" && !end.l.userSet:
			t.Password = end.l.password
		}
		// With tap:// and dcp:// the user may be the bucket, and others' plugins have
		// rules of their own.
		if s := serverOf(end.t); file != "" && end.t.Username == "" && (s.cluster || end.t.Scheme == "memcached") {
			return &pump.Error{
				Class: pump.ClassUsage, Code: "no-user", Err: fmt.Errorf("--%s: there is a password for the %s but no user", side.fileFlag, side.name),
				Hint: fmt.Sprintf("Give --%s NAME too, or set %s.", side.userFlag, side.userEnv),
			}
		}
	}
	return nil
}

// loginOf asks, in this order: flag, file, environment, and a prompt when there
// is a user name and a terminal.
func (c *common) loginOf(ask *asker, say *console, role pump.Role) (l login, err error) {
	side, f := sides[role], c.logins[role]
	if l.user, l.userSet = f.user, c.given(side.userFlag); !l.userSet {
		l.user, l.userSet = ask.p.env(side.userEnv)
	}
	l.passwordSet = true
	switch {
	case c.given(side.passwordFlag) && f.file != "":
		return l, c.usage("--%s and --%s both give the password of the %s", side.passwordFlag, side.fileFlag, side.name)
	case c.given(side.passwordFlag):
		l.password = f.password
		return l, nil
	case f.file != "":
		l.password, err = readPassword("--"+side.fileFlag, f.file, say)
		return l, err
	}
	if l.password, l.passwordSet = ask.p.env(side.passwordEnv); l.passwordSet || l.user == "" {
		return l, nil
	}
	l.password, err = ask.ask(fmt.Sprintf("Password of %s at the %s: ", quoteText(l.user), side.name))
	l.passwordSet = true
	if errors.Is(err, errNoTerminal) {
		return l, &pump.Error{
			Class: pump.ClassUsage, Code: "no-password",
			Err:  fmt.Errorf("there is a user name for the %s but no password, and no terminal to ask on", side.name),
			Hint: fmt.Sprintf("Set %s, or give --%s FILE or --%s (an empty one is '').", side.passwordEnv, side.fileFlag, side.passwordFlag),
		}
	}
	return l, err
}

// readPassword reads a password file: its first line.
func readPassword(flag, path string, say *console) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", &pump.Error{Class: pump.ClassUsage, Code: "password-file", Op: "read the password for " + flag, Err: err}
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 {
		say.Warn(fmt.Sprintf("%s: every user of this machine can read %s; chmod 600 would keep it secret", flag, path))
	}
	const limit = 4096
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return "", &pump.Error{Class: pump.ClassUsage, Code: "password-file", Op: "read the password for " + flag, Err: err}
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if len(line) > limit {
		return "", pump.Usagef("%s: the first line of %s is too long for a password", flag, path)
	}
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", &pump.Error{
			Class: pump.ClassUsage, Code: "password-file", Err: fmt.Errorf("%s: the first line of %s is empty", flag, path),
			Hint: "The password stands in the first line. An empty password is given by the flag: ''.",
		}
	}
	return line, nil
}

var errNoTerminal = errors.New("no terminal")

// asker asks for passwords on the terminal. Both questions share what was typed
// ahead: two passwords may arrive at once.
type asker struct {
	p    *Process
	keys keys
	t    *term.Terminal
}

// keys reads the terminal and remembers whether Ctrl-C was among what it read:
// to the library it is an end like Ctrl-D.
type keys struct {
	*os.File
	interrupted bool
}

func (k *keys) Read(p []byte) (int, error) {
	n, err := k.File.Read(p)
	k.interrupted = k.interrupted || bytes.IndexByte(p[:n], 0x03) >= 0
	return n, err
}

// ask asks for one password without showing it. The terminal is raw meanwhile,
// so that Ctrl-C arrives as a key and the terminal is put right before the
// command ends.
func (a *asker) ask(text string) (string, error) {
	in, ok := a.p.Stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", errNoTerminal
	}
	state, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return "", errNoTerminal
	}
	defer func() { _ = term.Restore(int(in.Fd()), state) }()
	if a.t == nil {
		a.keys.File = in
		a.t = term.NewTerminal(struct {
			io.Reader
			io.Writer
		}{&a.keys, a.p.Stderr}, "")
	}
	pass, err := a.t.ReadPassword(text)
	switch {
	case err == nil:
		return pass, nil
	case a.keys.interrupted:
		_, _ = io.WriteString(a.p.Stderr, "\r\n")
		return "", &pump.Error{
			Class: pump.ClassInterrupted, Code: "interrupted", Err: errors.New("stopped; no password was entered"),
			Hint: "Nothing was done.",
		}
	}
	_, _ = io.WriteString(a.p.Stderr, "\r\n")
	return "", pump.Usagef("no password was given")
}

// secrets lists what must not stand in the process title: passwords from flags,
// from specs, and the values of secret options.
func (c *common) secrets(r *pump.Registry) []string {
	var found []string
	for _, l := range c.logins {
		found = append(found, l.password)
	}
	if values, err := parseExtras(c.extras); err == nil {
		for name, v := range values {
			if isSecret(r, name) {
				found = append(found, v)
			}
		}
	}
	for _, spec := range c.set.Args() {
		spec, query, _ := strings.Cut(spec, "?")
		if _, rest, ok := strings.Cut(spec, "//"); ok {
			authority, _, _ := strings.Cut(rest, "/")
			if at := strings.LastIndexByte(authority, '@'); at >= 0 {
				_, pass, _ := strings.Cut(authority[:at], ":")
				found = append(found, pass)
			}
		}
		for _, pair := range strings.Split(query, "&") {
			if name, v, _ := strings.Cut(pair, "="); isSecret(r, name) {
				found = append(found, v)
			}
		}
	}
	return found
}

// secretEnv lists the variables of the environment that hold secrets, proxies with
// a password among them.
func secretEnv() []string {
	names := []string{redactKeyEnv}
	for _, s := range sides {
		names = append(names, s.passwordEnv)
	}
	for _, proxy := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		names = append(names, proxy, strings.ToLower(proxy))
	}
	return names
}

// isSecret reports whether any plugin declares the option as a secret.
func isSecret(r *pump.Registry, name string) bool {
	name = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(name), "source."), "sink.")
	for _, role := range []pump.Role{pump.RoleSource, pump.RoleSink} {
		for _, p := range r.Plugins(role) {
			for _, o := range p.Options {
				if o.Secret && o.Name == name {
					return true
				}
			}
		}
	}
	return false
}
