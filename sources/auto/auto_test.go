package auto

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sim(t *testing.T, version string) *simcluster.Cluster {
	t.Helper()
	c, err := simcluster.Start(simcluster.Config{Nodes: 2, VBuckets: 8, Version: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range 100 {
		if err := c.Bucket("default").Store(simcluster.Doc{Key: fmt.Appendf(nil, "k%d", i), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func at(c *simcluster.Cluster) Config {
	cfg := Config{URL: c.URL(), Options: DefaultOptions()}
	cfg.Username, cfg.Password = "Administrator", "password"
	return cfg
}

// TestChoice copies clusters of all generations, and looks at how.
func TestChoice(t *testing.T) {
	for _, c := range []struct{ version, protocol, id string }{
		{"2.5.1", ProtocolAuto, "tap:"}, {"3.0.3", ProtocolAuto, "dcp:"}, {"4.6", ProtocolAuto, "dcp:"}, {"7.0.5", ProtocolAuto, "dcp:"},
		{"4.0", ProtocolTAP, "tap:"}, {"4.0", ProtocolDCP, "dcp:"},
	} {
		t.Run(c.version+" "+c.protocol, func(t *testing.T) {
			cfg := at(sim(t, c.version))
			cfg.Options.Protocol = c.protocol
			var log strings.Builder
			cfg.Log = hclog.New(&hclog.LoggerOptions{Output: &log})
			s, err := New(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if e, err := s.Estimate(context.Background()); err != nil || e.Items != 100 {
				t.Errorf("estimate %+v, %v", e, err)
			}
			if s.Unwrap() == nil {
				t.Error("nothing was chosen")
			}
			streams, err := s.Streams(context.Background())
			if err != nil || !strings.HasPrefix(streams[0].ID(), c.id) {
				t.Errorf("%v, %v", streams, err)
			}
			if said := strings.Contains(log.String(), "how the source is read"); said != (c.protocol == ProtocolAuto) {
				t.Errorf("the log says %q", log.String())
			}
			report, err := pump.Run(context.Background(), pump.Config{Source: s, Sink: &pumptest.MemSink{}, Settings: pump.DefaultSettings(), Scribble: true})
			if err != nil || report.Done != 100 {
				t.Errorf("%+v, %v", report.Snapshot, err)
			}
		})
	}
}

func TestConformance(t *testing.T) {
	for _, version := range []string{"2.5.1", "6.6.5"} {
		cfg := at(sim(t, version))
		pumptest.TestSource(t, pumptest.SourceSuite{New: func(t *testing.T) pump.Source {
			s, err := New(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}})
	}
}

func TestWrongChoice(t *testing.T) {
	old, modern := sim(t, "2.5.1"), sim(t, "7.0.5")
	for name, c := range map[string]struct {
		at     *simcluster.Cluster
		change func(*Config)
		code   string
	}{
		"TAP of 7.0":               {modern, func(c *Config) { c.Options.Protocol = ProtocolTAP }, "tap-unsupported"},
		"DCP of 2.5.1":             {old, func(c *Config) { c.Options.Protocol = ProtocolDCP }, "dcp-unsupported"},
		"follow over TAP, chosen":  {old, func(c *Config) { c.Options.Follow = true }, "usage"},
		"follow over TAP, asked":   {old, func(c *Config) { c.Options.Follow, c.Options.Protocol = true, ProtocolTAP }, "usage"},
		"a collection over TAP":    {old, func(c *Config) { c.Options.Collection = "a.b" }, "usage"},
		"an unknown protocol":      {old, func(c *Config) { c.Options.Protocol = "upr" }, "usage"},
		"a wrong option of DCP":    {modern, func(c *Config) { c.Options.OpenVBuckets = 0 }, "usage"},
		"a wrong option of TAP":    {modern, func(c *Config) { c.Options.DumpVBuckets = 0 }, "usage"},
		"a wrong address":          {modern, func(c *Config) { c.URL = "ftp://host" }, "usage"},
		"no such bucket":           {modern, func(c *Config) { c.Bucket = "nosuch" }, "no-bucket"},
		"a wrong password":         {modern, func(c *Config) { c.Password = "wrong" }, "rest-denied"},
		"nobody is there, in time": {modern, func(c *Config) { c.URL = "http://127.0.0.1:1" }, "unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := at(c.at)
			c.change(&cfg)
			s, err := New(context.Background(), cfg)
			if err == nil {
				defer s.Close()
				err = s.Check(context.Background())
			}
			if c.code == "unreachable" {
				if pump.ClassOf(err) != pump.ClassUnreachable {
					t.Errorf("%v", err)
				}
			} else if pump.CodeOf(err) != c.code {
				t.Errorf("%v has code %s", err, pump.CodeOf(err))
			}
			if err == nil || strings.Contains(err.Error(), "wrong\"") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	node := func(major int) cluster.Node { return cluster.Node{Version: cluster.Version{Major: major}} }
	for name, c := range map[string]struct {
		b    cluster.Bucket
		want string
	}{
		"mixed, 2 and 3":          {cluster.Bucket{Nodes: []cluster.Node{node(3), node(2)}}, ProtocolTAP},
		"mixed, 4 and 5":          {cluster.Bucket{Nodes: []cluster.Node{node(4), node(5)}}, ProtocolDCP},
		"10":                      {cluster.Bucket{Nodes: []cluster.Node{node(10)}}, ProtocolDCP},
		"unknown, with DCP":       {cluster.Bucket{Nodes: []cluster.Node{{}}, Capabilities: []string{"dcp"}}, ProtocolDCP},
		"unknown, without a word": {cluster.Bucket{Nodes: []cluster.Node{{}}}, ProtocolTAP},
	} {
		if got, why := decide(&c.b); got != c.want || why == "" {
			t.Errorf("%s: %s, %s", name, got, why)
		}
	}
}

func TestPluginDecodes(t *testing.T) {
	r := &pump.Registry{}
	if err := pump.RegisterSource(r, Plugin()); err != nil {
		t.Fatal(err)
	}
	o := DefaultOptions()
	if o.Protocol != ProtocolAuto || o.IdleTimeout == 0 || o.OpenVBuckets == 0 || o.DumpVBuckets == 0 || o.EndProof == "" {
		t.Errorf("%+v", o)
	}
}
