package pump

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mitchellh/mapstructure"
)

// Option is one declared option of a plugin or of the engine. One declaration
// becomes URL parameter, -x name=value, help text and documentation.
//
// Options are declared as fields of a struct:
//
//	type Options struct {
//		Operation string        `opt:"operation" default:"set" enum:"set,add,get" help:"what to do with each item"`
//		Idle      time.Duration `opt:"idle-timeout" default:"60s" help:"silence after which a connection is given up"`
//		Token     string        `opt:"token" secret:"true" help:"access token"`
//	}
//
// Field types are string, bool, the integers, float64, time.Duration (never
// negative) and Size. The fields of an embedded struct count as the struct's own.
type Option struct {
	Name    string
	Type    string // "string", "bool", "int", "duration", "size", "float"
	Default string
	Help    string
	Enum    []string
	Secret  bool
}

// Size is a number of bytes, written as 4096, 64k, 8m or 1g (powers of 1024).
type Size int64

func (s Size) String() string {
	for _, u := range []struct {
		n    Size
		name string
	}{{1 << 30, "g"}, {1 << 20, "m"}, {1 << 10, "k"}} {
		if s != 0 && s%u.n == 0 {
			return strconv.FormatInt(int64(s/u.n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// ParseSize parses a Size. Its errors do not quote the text.
func ParseSize(text string) (Size, error) {
	t := strings.ToLower(strings.TrimSpace(text))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "b"), "i")
	unit := int64(1)
	switch {
	case strings.HasSuffix(t, "k"):
		unit = 1 << 10
	case strings.HasSuffix(t, "m"):
		unit = 1 << 20
	case strings.HasSuffix(t, "g"):
		unit = 1 << 30
	}
	if unit > 1 {
		t = t[:len(t)-1]
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, errors.New("not a size such as 65536, 64k or 8m")
	}
	return Size(n * unit), nil
}

// DescribeOptions lists the options declared by a struct (or pointer to one).
func DescribeOptions(declared any) ([]Option, error) {
	t := reflect.TypeOf(declared)
	if t == nil {
		return nil, nil
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("options are declared by a struct, not by %s", t)
	}
	return describe(t, nil)
}

func describe(t reflect.Type, out []Option) ([]Option, error) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("opt")
		if name == "" {
			if f.Anonymous && f.Type.Kind() == reflect.Struct { // options shared by several plugins
				var err error
				if out, err = describe(f.Type, out); err != nil {
					return nil, err
				}
			}
			continue
		}
		kind, ok := optionType(f.Type)
		switch {
		case !ok:
			return nil, fmt.Errorf("option %q: type %s is not supported", name, f.Type)
		case !f.IsExported():
			return nil, fmt.Errorf("option %q: field %s cannot be set from outside, begin it with a capital", name, f.Name)
		case slices.ContainsFunc(out, func(o Option) bool { return strings.EqualFold(o.Name, name) }):
			return nil, fmt.Errorf("option %q is declared twice", name)
		}
		o := Option{Name: name, Type: kind, Default: f.Tag.Get("default"), Help: f.Tag.Get("help"), Secret: f.Tag.Get("secret") == "true"}
		if e := f.Tag.Get("enum"); e != "" {
			o.Enum = strings.Split(e, ",")
		}
		out = append(out, o)
	}
	return out, nil
}

func optionType(t reflect.Type) (string, bool) {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration", true
	case reflect.TypeFor[Size]():
		return "size", true
	}
	switch t.Kind() {
	case reflect.String:
		return "string", true
	case reflect.Bool:
		return "bool", true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "int", true
	case reflect.Float64:
		return "float", true
	}
	return "", false
}

// example completes "is not …" in messages, so that they need not show a value.
var example = map[string]string{
	"bool":     "a yes or no (true, false, 1, 0, yes, no, on, off)",
	"int":      "a whole number in range",
	"float":    "a number",
	"duration": "a duration such as 500ms, 30s or 5m",
	"size":     "a size such as 65536, 64k or 8m",
	"string":   "a text",
}

// DecodeOptions fills the struct that into points to with its declared defaults
// and then with values. owner names the plugin in errors. An error names the
// option and what it takes, never the value: secrets travel in options.
func DecodeOptions(owner string, values map[string]string, into any) error {
	opts, err := DescribeOptions(into)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.ContainsFunc(opts, func(o Option) bool { return o.Name == name }) {
			return unknownOption(owner, name, opts)
		}
	}
	for _, o := range opts {
		text, given := values[o.Name]
		if !given {
			if text = o.Default; text == "" {
				continue
			}
		}
		if err := decodeOne(o, text, into); err != nil {
			return Usagef("%s: option %q is not %w", owner, o.Name, err)
		}
	}
	return nil
}

func decodeOne(o Option, text string, into any) error {
	what := errors.New(example[o.Type])
	if len(o.Enum) > 0 {
		if !slices.Contains(o.Enum, text) {
			return fmt.Errorf("one of %s", strings.Join(o.Enum, ", "))
		}
	}
	if text == "" && o.Type != "string" {
		return what
	}
	var value any = text
	switch o.Type {
	case "bool":
		switch strings.ToLower(text) {
		case "yes", "on":
			value = true
		case "no", "off":
			value = false
		default:
			b, err := strconv.ParseBool(strings.ToLower(text))
			if err != nil {
				return what
			}
			value = b
		}
	case "int":
		// Read here since mapstructure takes 010 for octal.
		n, ok := new(big.Int).SetString(text, 10)
		if !ok {
			return what
		}
		value = n.String()
	case "float":
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return what
		}
	case "duration":
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return what
		}
		value = d
	case "size":
		n, err := ParseSize(text)
		if err != nil {
			return what
		}
		value = n
	}
	dec, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		TagName:          "opt",
		Result:           into,
		WeaklyTypedInput: true,
		Squash:           true,
	})
	if err != nil {
		return what
	}
	if dec.Decode(map[string]any{o.Name: value}) != nil {
		// The library's error quotes the value, so it goes no further.
		return what
	}
	return nil
}

func unknownOption(owner, name string, opts []Option) error {
	if len(opts) == 0 {
		return Usagef("%s has no option %q; it has none at all", owner, name)
	}
	names := make([]string, len(opts))
	for i, o := range opts {
		names[i] = o.Name
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return Usagef("%s has no option %q%s; it has %s", owner, name, DidYouMean(name, names), strings.Join(names, ", "))
}

// DidYouMean returns `; did you mean "x"?` for the nearest of names, or "" if none is near.
func DidYouMean(name string, names []string) string {
	best, dist := "", 1+max(1, len(name)/3)
	for _, n := range names {
		if d := editDistance(name, n); d < dist {
			best, dist = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Levenshtein's, with a swap of neighbours counted as one.
func editDistance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
