package pump_test

import (
	"strings"
	"testing"

	"github.com/cbpump/cbpump/pump"
)

// FuzzOptions: an option's value is taken or refused, never half, and a size comes
// back as it is printed.
func FuzzOptions(f *testing.F) {
	for _, s := range []string{"", "0", "1", "32m", "1024g", "-1", "1e9", "18446744073709551616", "60s", "yes", "0x10", " 1", "1.5m", "9999999999g"} {
		f.Add(s)
	}
	settings, err := pump.DescribeOptions(pump.Settings{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, value string) {
		for _, o := range settings {
			s, untouched := pump.DefaultSettings(), pump.DefaultSettings()
			err := pump.DecodeOptions("engine", map[string]string{o.Name: value}, &s)
			if err != nil && len(value) > 12 && strings.Contains(err.Error(), value) { // invariant 9
				t.Errorf("the error shows the value of %s: %v", o.Name, err)
			}
			if err == nil && value == "" && s != untouched {
				t.Errorf("%s= changes the settings to %+v", o.Name, s)
			}
		}
		size, err := pump.ParseSize(value)
		if err != nil {
			return
		}
		again, err := pump.ParseSize(size.String())
		if size < 0 || err != nil || again != size {
			t.Errorf("%q is %d bytes, printed as %q, which is %d (%v)", value, size, size, again, err)
		}
	})
}
