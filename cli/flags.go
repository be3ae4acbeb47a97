package cli

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/cbpump/cbpump/pump"
)

// common are the flags that both commands have.
type common struct {
	set *pflag.FlagSet

	bucketSource      string
	bucketDestination string
	logins            [2]loginFlags // by pump.Role
	vbuckets          string
	security          pump.Security
	threads           int
	extras            []string
	limits            limitFlags
	dryRun            bool
	verbose           int
	silent            bool
	json              bool
	redact            bool
	help              bool
	pprof             string
	version           bool
}

// loginFlags are what the flags say of one side's credentials.
type loginFlags struct{ user, password, file string }

func newCommon(name string) *common {
	c := &common{set: pflag.NewFlagSet(name, pflag.ContinueOnError)}
	c.set.SetOutput(io.Discard)
	c.set.SortFlags = false
	return c
}

// addShared declares the flags of both commands. Help is written by hand (help.go), so that related flags
// stand together; a test holds the two against each other.
func (c *common) addShared() {
	f := c.set
	src, dst := &c.logins[pump.RoleSource], &c.logins[pump.RoleSink]
	f.StringVarP(&src.user, "username", "u", "", "")
	f.StringVarP(&src.password, "password", "p", "", "")
	f.StringVar(&src.file, "password-file", "", "")
	f.StringVarP(&dst.user, "username-destination", "U", "", "")
	f.StringVarP(&dst.password, "password-destination", "P", "", "")
	f.StringVar(&dst.file, "password-destination-file", "", "")
	f.StringVar(&c.security.CACert, "cacert", "", "")
	f.StringVar(&c.security.ClientCert, "client-cert", "", "")
	f.StringVar(&c.security.ClientKey, "client-key", "", "")
	f.BoolVar(&c.security.NoVerify, "no-ssl-verify", false, "")
	f.StringVar(&c.security.Network, "network", "auto", "")
	f.IntVarP(&c.threads, "threads", "t", 0, "")
	f.StringArrayVarP(&c.extras, "extra", "x", nil, "")
	c.addLimits()
	f.BoolVarP(&c.dryRun, "dry-run", "n", false, "")
	f.CountVarP(&c.verbose, "verbose", "v", "")
	f.BoolVarP(&c.silent, "silent", "s", false, "")
	f.BoolVar(&c.json, "json", false, "")
	f.StringVar(&c.pprof, "pprof", "", "")
	f.BoolVar(&c.redact, "redact", false, "")
	f.BoolVar(&c.version, "version", false, "")
	f.BoolVarP(&c.help, "help", "h", false, "")
}

// secure hands what the flags say of TLS and networks to both ends.
func (c *common) secure(say *console, ends ...*pump.Resolved) error {
	s := c.security
	switch {
	case (s.ClientCert == "") != (s.ClientKey == ""):
		return c.usage("--client-cert and --client-key go together: the certificate and its key")
	case !slices.Contains([]string{"auto", "default", "external"}, s.Network):
		return c.usage("--network is auto, default or external")
	}
	safe := false
	for _, end := range ends {
		end.Target.Security = s
		safe = safe || end.Target.Scheme == "https" || end.Target.Scheme == "couchbases"
	}
	given := slices.ContainsFunc([]string{"cacert", "client-cert", "no-ssl-verify"}, c.given)
	switch {
	case given && !safe:
		say.Warn("certificates and TLS are not used: no address asks for TLS (https:// and couchbases:// do)")
	case s.NoVerify:
		say.Warn("--no-ssl-verify: certificates are not verified, so whoever sits between can read and change everything, passwords too")
	}
	return nil
}

// parse reads the arguments; its errors are of wrong use and quote no values.
func (c *common) parse(args []string) error {
	err := c.set.Parse(args)
	if err == nil {
		switch {
		case c.threads < 0:
			return pump.Usagef("-t/--threads cannot be negative")
		case c.threads > maxThreads:
			return pump.Usagef("-t/--threads goes up to %d: more connections are slower, not faster", maxThreads)
		}
		return nil
	}
	var (
		unknown *pflag.NotExistError
		missing *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return c.usage("unknown flag -%s", unknown.GetSpecifiedName())
	case errors.As(err, &unknown):
		var names []string
		c.set.VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
		name := "--" + unknown.GetSpecifiedName()
		return c.usage("unknown flag %s%s", name, pump.DidYouMean(name, names))
	case errors.As(err, &missing):
		return c.usage("%s needs a value", flagName(missing.GetFlag()))
	case errors.As(err, &invalid):
		// The library's text quotes the value; the type says enough.
		return c.usage("%s needs a %s", flagName(invalid.GetFlag()), typeName[invalid.GetFlag().Value.Type()])
	}
	return c.usage("the flags cannot be read: a flag is -f or --flag or --flag=value")
}

var typeName = map[string]string{"int": "whole number", "bool": "true or false", "count": "whole number", "uint64": "whole number", "string": "text"}

func (c *common) usage(format string, args ...any) error {
	return &pump.Error{
		Class: pump.ClassUsage, Code: "usage", Err: fmt.Errorf(format, args...),
		Hint: c.set.Name() + " --help lists the flags.",
	}
}

func flagName(f *pflag.Flag) string {
	if f.Shorthand == "" {
		return "--" + f.Name
	}
	return "-" + f.Shorthand + "/--" + f.Name
}

// given reports whether the user wrote the flag.
func (c *common) given(name string) bool { return c.set.Changed(name) }

// positional returns the two specs.
func (c *common) positional(first, second string) (string, string, error) {
	args := c.set.Args()
	switch {
	case len(args) == 0:
		return "", "", c.usage("%s and %s are missing", first, second)
	case len(args) == 1:
		return "", "", c.usage("%s is missing: %s takes %s and %s", second, c.set.Name(), first, second)
	case len(args) > 2:
		return "", "", c.usage("%s takes %s and %s and nothing else, but %d words stand there", c.set.Name(), first, second, len(args))
	}
	if slices.Contains(args, "") {
		return "", "", c.usage("%s and %s must not be empty", first, second)
	}
	return args[0], args[1], nil
}

// maxThreads keeps a slip of the keyboard from opening thousands of connections.
const maxThreads = 256

// nextPair finds the commas that separate options: a,b=2 goes on after the value
// a only where another name= follows, so that values may hold commas.
var nextPair = regexp.MustCompile(`,\s*[A-Za-z][A-Za-z0-9_.-]*=`)

// parseExtras reads the -x flags: name=value each, or several of them separated
// by commas. They add up; a later one takes the place of an earlier one of the
// same name. Errors do not show values.
func parseExtras(extras []string) (map[string]string, error) {
	values := map[string]string{}
	for _, text := range extras {
		for text != "" {
			pair := text
			if at := nextPair.FindStringIndex(text); at != nil {
				pair, text = text[:at[0]], text[at[0]+1:]
			} else {
				text = ""
			}
			name, value, ok := strings.Cut(pair, "=")
			name = strings.TrimSpace(name)
			if !ok || name == "" {
				return nil, pump.Usagef("-x takes name=value, or a=1,b=2 for several; one of them has no name or no =")
			}
			values[name] = value
		}
	}
	return values, nil
}

// declares reports whether a plugin has an option.
func declares(p *pump.Plugin, name string) bool {
	return slices.ContainsFunc(p.Options, func(o pump.Option) bool { return o.Name == name })
}
