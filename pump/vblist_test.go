package pump_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

func TestParseVBuckets(t *testing.T) {
	for text, want := range map[string][]uint16{
		"0":                    {0},
		"500,612":              {500, 612},
		"500-503":              {500, 501, 502, 503},
		"[500,612]":            {500, 612},
		"[500, 612, 712]\n":    {500, 612, 712},
		" [ 3 - 5 , 0 ,4 ] ":   {0, 3, 4, 5},
		"7 3-4\t9":             {3, 4, 7, 9},
		"612,500,612,500-501":  {500, 501, 612},
		"5-5":                  {5},
		"007":                  {7},
		"65534":                {65534},
		"65533-65534,0":        {0, 65533, 65534},
		"1 ,2":                 {1, 2},
		"0,0,0-0":              {0},
		"1023,\n1022,\r\n1021": {1021, 1022, 1023},
	} {
		got, err := pump.ParseVBuckets(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	if all, err := pump.ParseVBuckets("0-65534"); err != nil || len(all) != 65535 || all[65534] != 65534 {
		t.Errorf("the full range: %d, %v", len(all), err)
	}
}

func TestParseVBucketsRefuses(t *testing.T) {
	for text, says := range map[string]string{
		"":                        "no vbucket is named",
		"  ":                      "no vbucket is named",
		"[]":                      "no vbucket is named",
		",5":                      `position 1: ",": a vbucket number`,
		"5,":                      `position 2: ",": nothing comes after`,
		"[5,]":                    `position 3: ",": nothing comes after`,
		"5,,6":                    `position 3: ",": a vbucket number`,
		"5,x":                     `position 3: "x": a vbucket number`,
		"abc,5":                   `position 1: "abc"`,
		"-5":                      `position 1: "-5": a vbucket number`,
		"5-":                      "at its end (position 3): a vbucket number",
		"5-x":                     `position 3: "x"`,
		"5--6":                    `position 3: "-6"`,
		"5-6-7":                   `position 4: "-7"`,
		"520-500":                 `position 1: "520-500": the range runs backwards`,
		"1,520 - 500":             `position 3: "520 - 500": the range runs backwards`,
		"65535":                   `position 1: "65535": vbuckets go from 0 to 65534`,
		"0-99999":                 `position 3: "99999"`,
		"99999999999999999999999": "vbuckets go from 0 to 65534",
		"+5":                      `position 1: "+5"`,
		"0x10":                    `position 2: "x10"`,
		"1.5":                     `position 2: ".5"`,
		"[5":                      "a ] is missing",
		"5]":                      `position 2: "]": nothing may come after`,
		"[5]]":                    `position 4: "]": nothing may come after`,
		"[[5]]":                   `position 2: "[5"`,
		"[5],6":                   `position 4: ","`,
		"five":                    `position 1: "five"`,
		"5\x00":                   `position 2: "\x00"`,
		strings.Repeat("x", 900):  `xxx…`,
	} {
		got, err := pump.ParseVBuckets(text)
		if err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
			continue
		}
		if pump.ClassOf(err) != pump.ClassUsage {
			t.Errorf("%q: class %d", text, pump.ClassOf(err))
		}
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %q does not say %q", text, err, says)
		}
	}
}

func TestFormatVBuckets(t *testing.T) {
	for want, list := range map[string][]uint16{
		"":       nil,
		"0":      {0},
		"0-3,17": {17, 0, 1, 2, 3},
		"4-5":    {5, 4, 4},
		"1,3,5":  {5, 3, 1},
	} {
		if got := pump.FormatVBuckets(list); got != want {
			t.Errorf("%v: got %q, want %q", list, got, want)
		}
	}
	list := []uint16{9, 1}
	pump.FormatVBuckets(list)
	if list[0] != 9 {
		t.Error("the caller's list was sorted in place")
	}
}

func TestVBucketListRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.Uint16Range(0, 65534), 1, 200).Draw(t, "list")
		got, err := pump.ParseVBuckets(pump.FormatVBuckets(list))
		want := slices.Compact(slices.Sorted(slices.Values(list)))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
	})
}

func TestCheckVBuckets(t *testing.T) {
	for _, c := range []struct {
		list []uint16
		n    int
		says string
	}{
		{[]uint16{0, 1023}, 1024, ""},
		{nil, 0, ""},
		{[]uint16{5, 1024}, 1024, "vbucket 1024 does not exist: the bucket has 1024 vbuckets, 0 to 1023"},
		{[]uint16{64, 65, 3}, 64, "vbuckets 64-65 do not exist: the bucket has 64 vbuckets, 0 to 63"},
		{[]uint16{1}, 1, "vbucket 1 does not exist"},
		{[]uint16{0}, 0, "the bucket has no vbuckets"},
	} {
		err := pump.CheckVBuckets(c.list, c.n)
		switch {
		case c.says == "" && err != nil, c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%v of %d: got %v, want %q", c.list, c.n, err, c.says)
		case err != nil && pump.ClassOf(err) != pump.ClassUsage:
			t.Errorf("%v of %d: class %d", c.list, c.n, pump.ClassOf(err))
		}
	}
}

func FuzzParseVBuckets(f *testing.F) {
	for _, s := range []string{"500,612", "500-520", "[500, 612]", "", "[", "0-65534", "5--6", "1 2", "65535", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := pump.ParseVBuckets(text)
		if err != nil {
			if list != nil || pump.ClassOf(err) != pump.ClassUsage || len(err.Error()) > 400 {
				t.Fatalf("%v beside %v", list, err)
			}
			return
		}
		if len(list) == 0 || !slices.IsSorted(list) {
			t.Fatalf("%q: %v", text, list)
		}
		again, err := pump.ParseVBuckets(pump.FormatVBuckets(list))
		if err != nil || !slices.Equal(list, again) {
			t.Fatalf("%q: %v came back as %v, %v", text, list, again, err)
		}
	})
}
