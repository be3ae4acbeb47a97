package pump_test

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

// planted stands in places where a secret may be; no error may ever show it
// (invariant 9).
const planted = "pl4nted-s3cret"

type common struct {
	Idle time.Duration `opt:"idle-timeout" default:"60s" help:"silence after which a connection is given up"`
}

type everyKind struct {
	common
	Text   string     `opt:"text"`
	Enum   string     `opt:"operation" default:"set" enum:"set,add,get" help:"what to do"`
	Bool   bool       `opt:"bool"`
	On     bool       `opt:"on" default:"yes"`
	Int    int        `opt:"int" default:"-3"`
	I8     int8       `opt:"i8"`
	I16    int16      `opt:"i16"`
	I32    int32      `opt:"i32"`
	I64    int64      `opt:"i64"`
	Uint   uint       `opt:"uint"`
	U8     uint8      `opt:"u8"`
	U16    uint16     `opt:"u16" default:"65535"`
	U32    uint32     `opt:"u32"`
	U64    uint64     `opt:"u64"`
	Float  float64    `opt:"float" default:"0.5"`
	Size   pump.Size  `opt:"size" default:"8m"`
	Token  string     `opt:"token" secret:"true" help:"access token"`
	Named  namedText  `opt:"named"`
	Not    string     // not an option
	Hidden []struct{} // nor this
}

type namedText string

func TestDescribeOptions(t *testing.T) {
	opts, err := pump.DescribeOptions(&everyKind{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]pump.Option{}
	for _, o := range opts {
		got[o.Name] = o
	}
	if len(opts) != 19 || len(got) != 19 {
		t.Errorf("%d options: %v", len(opts), opts)
	}
	for _, want := range []pump.Option{
		{Name: "idle-timeout", Type: "duration", Default: "60s", Help: "silence after which a connection is given up"},
		{Name: "operation", Type: "string", Default: "set", Help: "what to do", Enum: []string{"set", "add", "get"}},
		{Name: "token", Type: "string", Help: "access token", Secret: true},
		{Name: "u16", Type: "int", Default: "65535"},
		{Name: "float", Type: "float", Default: "0.5"},
		{Name: "size", Type: "size", Default: "8m"},
		{Name: "on", Type: "bool", Default: "yes"},
		{Name: "named", Type: "string"},
	} {
		if !reflect.DeepEqual(got[want.Name], want) {
			t.Errorf("%+v, want %+v", got[want.Name], want)
		}
	}
	if opts, err := pump.DescribeOptions(nil); opts != nil || err != nil {
		t.Errorf("no declaration: %v, %v", opts, err)
	}
	for name, bad := range map[string]any{
		"is not supported": struct {
			X []string `opt:"x"`
		}{},
		"begin it with a capital": struct {
			x string `opt:"x"`
		}{},
		"declared twice": struct {
			X string `opt:"same"`
			Y string `opt:"Same"`
		}{},
		"not by int":            5,
		"not by map[string]int": &map[string]int{},
	} {
		if _, err := pump.DescribeOptions(bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q, got %v", name, err)
		}
	}
}

func TestDecodeOptions(t *testing.T) {
	defaults := everyKind{common: common{60 * time.Second}, Enum: "set", On: true, Int: -3, U16: 65535, Float: 0.5, Size: 8 << 20}
	var o everyKind
	if err := pump.DecodeOptions("x", nil, &o); err != nil || !reflect.DeepEqual(o, defaults) {
		t.Errorf("defaults: %+v, %v", o, err)
	}
	o = everyKind{Not: "kept"}
	err := pump.DecodeOptions("x", map[string]string{
		"idle-timeout": "1m30s", "text": "", "operation": "get", "bool": "1", "on": "No", "int": "010",
		"i8": "-128", "i16": "-32768", "i32": "-2147483648", "i64": "-9223372036854775808",
		"uint": "+7", "u8": "255", "u16": "0", "u32": "4294967295", "u64": "18446744073709551615",
		"float": "-1.5e3", "size": "64KiB", "token": planted, "named": "héé",
	}, &o)
	want := everyKind{
		common: common{90 * time.Second}, Enum: "get", Bool: true, Int: 10, I8: -128, I16: -32768, I32: math.MinInt32, I64: math.MinInt64,
		Uint: 7, U8: 255, U32: math.MaxUint32, U64: math.MaxUint64, Float: -1500, Size: 64 << 10, Token: planted, Named: "héé", Not: "kept",
	}
	if err != nil || !reflect.DeepEqual(o, want) {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestBadValuesAreNeverShown(t *testing.T) {
	opts, err := pump.DescribeOptions(everyKind{})
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]string{
		"bool":     {planted, "", "maybe", "2", "y"},
		"int":      {planted, "", " 1", "1.5", "0x10", "1_000", "99999999999999999999999", "-99999999999999999999999"},
		"float":    {planted, "", "NaN", "inf", "1e999", "1,5"},
		"duration": {planted, "", "5", "-5s", "5 s", "99999999999h"},
		"size":     {planted, "", "-1", "1.5m", "8t", "9999999999g", "m"},
	}
	example := map[string]string{"bool": "yes or no", "int": "whole number", "float": "a number", "duration": "500ms", "size": "64k"}
	for _, o := range opts {
		values, hint := bad[o.Type], example[o.Type]
		switch {
		case o.Enum != nil:
			values, hint = []string{planted, "", "Set", "set,add"}, "one of set, add, get"
		case o.Type == "string":
			continue
		}
		for _, v := range values {
			var into everyKind
			err := pump.DecodeOptions("sink memcached", map[string]string{o.Name: v}, &into)
			if err == nil {
				t.Errorf("%s=%q is accepted", o.Name, v)
				continue
			}
			text := err.Error() + fmt.Sprintf("%+v %#v", err, err)
			if strings.Contains(text, planted) || len(v) > 6 && strings.Contains(text, v) {
				t.Errorf("%s: the value is shown: %s", o.Name, text)
			}
			if !strings.Contains(text, fmt.Sprintf("%q", o.Name)) || !strings.Contains(text, hint) || !strings.Contains(text, "sink memcached") {
				t.Errorf("%s=%q: %v", o.Name, v, err)
			}
			if pump.ClassOf(err) != pump.ClassUsage {
				t.Errorf("%s: class %d", o.Name, pump.ClassOf(err))
			}
		}
	}
	for name, edge := range map[string]string{"i8": "128", "u8": "256", "u16": "65536", "u32": "-1", "i32": "2147483648", "u64": "18446744073709551616"} {
		var into everyKind
		if err := pump.DecodeOptions("x", map[string]string{name: edge}, &into); err == nil {
			t.Errorf("%s=%s is accepted: %+v", name, edge, into)
		}
	}
}

func TestUnknownOption(t *testing.T) {
	for _, tc := range []struct {
		name string
		into any
		want []string
		not  string
	}{
		{"opperation", &everyKind{}, []string{`source x has no option "opperation"`, `did you mean "operation"?`, "idle-timeout"}, planted},
		{"isze", &everyKind{}, []string{`did you mean "size"?`}, planted},
		{"quite-something-else", &everyKind{}, []string{"it has "}, "did you mean"},
		{"x", &struct{}{}, []string{"it has none at all"}, "did you mean"},
		{"Not", &everyKind{}, []string{`has no option "Not"`}, planted},
		{"Text", &everyKind{}, []string{`did you mean "text"?`}, planted},
	} {
		err := pump.DecodeOptions("source x", map[string]string{tc.name: planted}, tc.into)
		if pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", tc.name, err, want)
			}
		}
		if strings.Contains(err.Error(), tc.not) {
			t.Errorf("%s: %v, want no %q in it", tc.name, err, tc.not)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	names := []string{"memcached", "couchbase", "file", "http"}
	for name, want := range map[string]string{
		"memcahed": "memcached", "memcahced": "memcached", "couchbas": "couchbase", "fiel": "file", "htp": "http", "https": "http", "redis": "", "": "",
	} {
		got := pump.DidYouMean(name, names)
		if want == "" && got != "" || want != "" && !strings.Contains(got, `"`+want+`"`) {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]pump.Size{
		"0": 0, "65536": 65536, "64k": 64 << 10, "64K": 64 << 10, "64kb": 64 << 10, "64KiB": 64 << 10, " 8m ": 8 << 20, "1g": 1 << 30, "10b": 10, "4294967296g": 1 << 62,
	} {
		if got, err := pump.ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "k", "b", "-1k", "1.5g", "4294967297g", "9223372036854775808", "1kk", "0x10", planted} {
		if got, err := pump.ParseSize(text); err == nil || strings.Contains(err.Error(), planted) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := pump.Size(rapid.Int64Range(0, 1<<62).Draw(t, "size"))
		if back, err := pump.ParseSize(s.String()); err != nil || back != s {
			t.Fatalf("%d is written %s and read as %d, %v", s, s, back, err)
		}
	})
}

func TestDefaultSettings(t *testing.T) {
	opts, err := pump.DescribeOptions(pump.Settings{})
	if err != nil || slices.ContainsFunc(opts, func(o pump.Option) bool { return o.Default == "" || o.Help == "" }) {
		t.Errorf("an engine setting without a default or help: %+v, %v", opts, err)
	}
	var s pump.Settings
	if err := pump.DecodeOptions("engine", nil, &s); err != nil || s != pump.DefaultSettings() || s.Memory != 32<<20 {
		t.Errorf("%+v, %v", s, err)
	}
}
