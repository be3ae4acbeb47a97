package cluster

import (
	"strings"
	"testing"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
)

// FuzzErrorMap: a map of errors is taken whole or refused.
func FuzzErrorMap(f *testing.F) {
	for _, name := range []string{"6.0-errormap", "7.0-errormap"} {
		c, err := capture.Open(name)
		if err != nil {
			f.Fatal(err)
		}
		packets, _ := c.Packets(capture.Server)
		for _, p := range packets {
			if i := strings.IndexByte(string(p), '{'); i >= mcbp.HeaderLen {
				f.Add(p[i:])
			}
		}
	}
	f.Add([]byte(`{"errors":{"0":{"name":"SUCCESS"}}}`))
	f.Add([]byte(`{"errors":{"10000":{}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if m, err := parseErrorMap(body); err == nil && m == nil {
			t.Errorf("%q is a map of nothing", body)
		}
	})
}

// FuzzVersion: a version that is taken is printed as one that is the same.
func FuzzVersion(f *testing.F) {
	for _, s := range []string{"2.5.1-1083-rel-enterprise", "10.0", "7.0.5", "4.6.0", "", "x", "1.2.3.4.5", "99999999999.1", "-1.0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVersion(s)
		if err != nil || v == (Version{}) {
			return
		}
		if again, err := ParseVersion(v.String()); err != nil || again != v {
			t.Errorf("%q is %v, printed as %q, which is %v (%v)", s, v, v.String(), again, err)
		}
	})
}

// FuzzAddress: an address that is taken has a host, and user info never stays in it.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"http://h:8091", "couchbases://a:b@h", "https://[::1]:1/", "http://", "h:8091", "http://u:p@h?x", "http://h:99999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		base, _, err := parseAddress(raw)
		if err != nil {
			return
		}
		if base.Host == "" || base.User != nil {
			t.Errorf("%q is %v", raw, base)
		}
	})
}
