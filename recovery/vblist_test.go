package recovery

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

func TestParseVBuckets(t *testing.T) {
	for _, c := range []struct {
		text string
		want []uint16
	}{
		{"500,612", []uint16{500, 612}},
		{"500-503", []uint16{500, 501, 502, 503}},
		{"[500, 612, 712]", []uint16{500, 612, 712}},
		{"0", []uint16{0}},
		{"[0]", []uint16{0}},
		{"7-7", []uint16{7}},
		{" 3 , 1-2 ,3", []uint16{1, 2, 3}},
		{"1023", []uint16{1023}},
	} {
		got, err := ParseVBuckets(c.text)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, %v; want %v", c.text, got, err, c.want)
		}
	}
	for _, bad := range []string{"", "[]", " ", "[1", "1]", "a", "1,", ",1", "1,,2", "5-3", "-1", "1-", "1.5", "65535", "99999999999999999999", "0x10", "1 2", "1-2-3"} {
		got, err := ParseVBuckets(bad)
		if pump.ClassOf(err) != pump.ClassUsage || err == nil {
			t.Errorf("%q: %v, %v; want an error of wrong use", bad, got, err)
		}
	}
}

func TestFormatVBuckets(t *testing.T) {
	for want, vbs := range map[string][]uint16{
		"":                nil,
		"0":               {0},
		"0,1":             {0, 1},
		"0-2":             {0, 1, 2},
		"0-2,5,7,8,10-13": {0, 1, 2, 5, 7, 8, 10, 11, 12, 13},
		"500,612,712":     {500, 612, 712},
		"1020-1023,65534": {1020, 1021, 1022, 1023, 65534},
	} {
		if got := FormatVBuckets(vbs); got != want {
			t.Errorf("%v: %q, want %q", vbs, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		vbs := rapid.SliceOfNDistinct(rapid.Uint16Range(0, maxVBuckets-1), 1, 50, rapid.ID[uint16]).Draw(t, "vbs")
		slices.Sort(vbs)
		got, err := ParseVBuckets(FormatVBuckets(vbs))
		if err != nil || !slices.Equal(got, vbs) {
			t.Fatalf("%v came back as %v, %v", vbs, got, err)
		}
	})
}

func FuzzParseVBuckets(f *testing.F) {
	for _, s := range []string{"500,612", "500-520", "[500,612]", "0", "[", "1-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		vbs, err := ParseVBuckets(s)
		if err != nil {
			return
		}
		again, err := ParseVBuckets(FormatVBuckets(vbs))
		if err != nil || !slices.Equal(again, vbs) {
			t.Fatalf("%q: %v, then %v, %v", s, vbs, again, err)
		}
	})
}
