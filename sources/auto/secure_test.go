package auto

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
)

func secure(t *testing.T, version string, cfg simcluster.TLSConfig) *simcluster.Cluster {
	t.Helper()
	c, err := simcluster.Start(simcluster.Config{Nodes: 2, VBuckets: 8, Version: version, TLS: &cfg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range 50 {
		if err := c.Bucket("default").Store(simcluster.Doc{Key: fmt.Appendf(nil, "k%d", i), Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestSchemes: every scheme chooses by what the cluster offers, and those with TLS
// speak nothing else.
func TestSchemes(t *testing.T) {
	for version, protocol := range map[string]string{"2.5.1": ProtocolTAP, "4.6": ProtocolDCP, "7.0.5": ProtocolDCP} {
		c := secure(t, version, simcluster.TLSConfig{})
		n := c.Nodes()[0]
		if version == "2.5.1" { // whose data ports do not speak it
			cfg := at(c)
			cfg.URL, cfg.TLS = "https://"+n.RESTTLS(), cluster.TLS{CACertPEM: c.CACert()}
			s, err := New(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Check(context.Background()); pump.CodeOf(err) != "no-node-services" || pump.ClassOf(err) != pump.ClassUsage || !strings.Contains(pump.HintOf(err), "http://") {
				t.Errorf("TLS with 2.5.1: %v (%s)", err, pump.HintOf(err))
			}
			s.Close()
		}
		urls := []string{"http://" + n.REST(), "couchbase://" + n.REST()}
		if version != "2.5.1" {
			urls = append(urls, "https://"+n.RESTTLS(), "couchbases://"+n.RESTTLS())
		}
		for _, url := range urls {
			t.Run(version+" "+url[:strings.Index(url, ":")], func(t *testing.T) {
				cfg := at(c)
				cfg.URL, cfg.TLS = url, cluster.TLS{CACertPEM: c.CACert()}
				var log strings.Builder
				cfg.Log = hclog.New(&hclog.LoggerOptions{Output: &log})
				s, err := New(context.Background(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				report, err := pump.Run(context.Background(), pump.Config{Source: s, Sink: &pumptest.MemSink{}, Settings: pump.DefaultSettings(), Scribble: true})
				if err != nil || report.Done != 50 {
					t.Errorf("%+v, %v", report.Snapshot, err)
				}
				if !strings.Contains(log.String(), "protocol="+protocol) {
					t.Errorf("the log says %q", log.String())
				}
			})
		}
	}
}

// TestBadCertificates: what is wrong with TLS is named, and nothing is copied.
func TestBadCertificates(t *testing.T) {
	good := secure(t, "7.0.5", simcluster.TLSConfig{})
	for name, c := range map[string]struct {
		tls   simcluster.TLSConfig
		trust func(c *simcluster.Cluster) cluster.TLS
		code  string // "": none
	}{
		"wrong CA":            {simcluster.TLSConfig{}, func(*simcluster.Cluster) cluster.TLS { return cluster.TLS{CACertPEM: good.CACert()} }, "tls-unknown-ca"},
		"expired":             {simcluster.TLSConfig{Expired: true}, func(c *simcluster.Cluster) cluster.TLS { return cluster.TLS{CACertPEM: c.CACert()} }, "tls-expired"},
		"another host":        {simcluster.TLSConfig{Hosts: []string{"db.example"}}, func(c *simcluster.Cluster) cluster.TLS { return cluster.TLS{CACertPEM: c.CACert()} }, "tls-name"},
		"client certificate":  {simcluster.TLSConfig{ClientCerts: "mandatory"}, func(c *simcluster.Cluster) cluster.TLS { return cluster.TLS{CACertPEM: c.CACert()} }, "tls-client-certificate"},
		"all but not checked": {simcluster.TLSConfig{Expired: true, Hosts: []string{"db.example"}}, func(*simcluster.Cluster) cluster.TLS { return cluster.TLS{InsecureSkipVerify: true} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			at, cfg := secure(t, "7.0.5", c.tls), at(good)
			cfg.URL, cfg.TLS = "couchbases://"+at.Nodes()[0].RESTTLS(), c.trust(at)
			s, err := New(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			sink := &pumptest.MemSink{}
			_, err = pump.Run(context.Background(), pump.Config{Source: s, Sink: sink, Settings: pump.DefaultSettings()})
			switch {
			case c.code == "" && err != nil, c.code != "" && (pump.CodeOf(err) != c.code || len(sink.Log()) > 0):
				t.Errorf("%v (%s), %d items", err, pump.CodeOf(err), len(sink.Log()))
			case c.code != "" && pump.ExitCode(err, 0) != 4:
				t.Errorf("exit code %d: %v", pump.ExitCode(err, 0), err)
			}
		})
	}
}
