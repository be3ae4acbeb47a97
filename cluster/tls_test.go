package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// authority issues certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	var der []byte
	a.key, der = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

func (a *authority) sign(tmpl, parent *x509.Certificate) (*ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	signer := a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, der
}

// issue returns a certificate for hosts and IP addresses.
func (a *authority) issue(change func(*x509.Certificate), hosts ...string) tls.Certificate {
	a.t.Helper()
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "node"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	if change != nil {
		change(tmpl)
	}
	key, der := a.sign(tmpl, a.cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// files writes a certificate and its key as PEM files.
func files(t *testing.T, c tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", c.Certificate[0]), write("key.pem", "PRIVATE KEY", der)
}

// tlsREST is a REST port with TLS.
func tlsREST(t *testing.T, cfg *tls.Config, h http.HandlerFunc) (addr string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = cfg
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// bothTLS asks a REST port and a data port with the same server configuration,
// and gives the errors of both.
func bothTLS(t *testing.T, server *tls.Config, client TLS, host string) (rest, kv error) {
	t.Helper()
	at := func(addr string) string {
		_, port, _ := net.SplitHostPort(addr)
		return net.JoinHostPort(host, port)
	}
	web := tlsREST(t, server, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, `[]`) })
	c, err := NewClient("https://"+at(web), Config{Role: "source", Username: "u", Password: planted, TLS: client, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, rest = c.Buckets(t.Context())
	n := &fakeNode{features: []uint16{7, 8}, mechs: scrams, user: "u", password: planted, bucket: "beer", tls: server}
	kvCfg := c.KV(&Bucket{Name: "beer"}, at(n.start(t)))
	kvCfg.Version = Version{7, 0, 0}
	conn, kv := DialKV(t.Context(), kvCfg)
	if kv == nil {
		defer conn.Close()
		noop(t, conn)
		if conn.NetConn() == nil || conn.Reader() == nil {
			t.Error("accessors")
		}
	}
	return rest, kv
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	good := ca.issue(nil, "127.0.0.1", "localhost")
	expired := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Unix(1e9, 0), time.Unix(1e9+1, 0) }
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	clientCert, clientKey := files(t, ca.issue(nil))
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, ca.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	asks := tls.RequireAndVerifyClientCert
	for name, q := range map[string]struct {
		server *tls.Config
		client TLS
		host   string
		want   *wantError
	}{
		"good":                {&tls.Config{Certificates: []tls.Certificate{good}}, TLS{CACertPEM: ca.pem}, "127.0.0.1", nil},
		"from a file":         {&tls.Config{Certificates: []tls.Certificate{good}}, TLS{CACertFile: caFile}, "localhost", nil},
		"TLS 1.2":             {&tls.Config{Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12}, TLS{CACertPEM: ca.pem}, "127.0.0.1", nil},
		"not verified":        {&tls.Config{Certificates: []tls.Certificate{other.issue(expired, "x")}}, TLS{InsecureSkipVerify: true}, "127.0.0.1", nil},
		"client":              {&tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: asks, ClientCAs: pool}, TLS{CACertPEM: ca.pem, CertFile: clientCert, KeyFile: clientKey}, "127.0.0.1", nil},
		"TLS 1.1":             {&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, TLS{CACertPEM: ca.pem}, "127.0.0.1", &wantError{class: pump.ClassUnreachable, code: "tls-failed", says: []string{"TLS 1.2 or later"}}},
		"other CA":            {&tls.Config{Certificates: []tls.Certificate{other.issue(nil, "127.0.0.1")}}, TLS{CACertPEM: ca.pem}, "127.0.0.1", &wantError{class: pump.ClassUnreachable, code: "tls-unknown-ca", says: []string{"--cacert"}}},
		"system's CAs":        {&tls.Config{Certificates: []tls.Certificate{good}}, TLS{}, "127.0.0.1", &wantError{class: pump.ClassUnreachable, code: "tls-unknown-ca"}},
		"expired":             {&tls.Config{Certificates: []tls.Certificate{ca.issue(expired, "127.0.0.1")}}, TLS{CACertPEM: ca.pem}, "127.0.0.1", &wantError{class: pump.ClassUnreachable, code: "tls-expired", says: []string{"2001-09-09T01:46:40Z", "clock"}}},
		"other name":          {&tls.Config{Certificates: []tls.Certificate{ca.issue(nil, "db.example", "10.0.0.1")}}, TLS{CACertPEM: ca.pem}, "127.0.0.1", &wantError{class: pump.ClassUnreachable, code: "tls-name", says: []string{`not for "127.0.0.1"`, `"10.0.0.1", "db.example"`, "--network"}}},
		"no name":             {&tls.Config{Certificates: []tls.Certificate{ca.issue(nil)}}, TLS{CACertPEM: ca.pem}, "localhost", &wantError{class: pump.ClassUnreachable, code: "tls-name", says: []string{"names no host"}}},
		"for clients":         {&tls.Config{Certificates: []tls.Certificate{ca.issue(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, "127.0.0.1")}}, TLS{CACertPEM: ca.pem}, "127.0.0.1", &wantError{class: pump.ClassUnreachable, code: "tls-certificate"}},
		"client missing":      {&tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: asks, ClientCAs: pool}, TLS{CACertPEM: ca.pem}, "127.0.0.1", &wantError{class: pump.ClassDenied, code: "tls-client-certificate", says: []string{"client certificate and its key"}}},
		"client missing, 1.2": {&tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: asks, ClientCAs: pool, MaxVersion: tls.VersionTLS12}, TLS{CACertPEM: ca.pem}, "127.0.0.1", &wantError{class: pump.ClassUnreachable, code: "tls-failed", says: []string{"want a client certificate"}}},
	} {
		t.Run(name, func(t *testing.T) {
			server := q.server.Clone()
			rest, kv := bothTLS(t, server, q.client, q.host)
			for port, err := range map[string]error{"REST": rest, "data": kv} {
				t.Run(port, func(t *testing.T) {
					if q.want != nil {
						q.want.check(t, err)
					} else if err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// TestTLSToPlainPorts: ports without TLS, each in its own way of being so.
func TestTLSToPlainPorts(t *testing.T) {
	web := httptest.NewServer(nil)
	defer web.Close()
	says := func(text string) string {
		return serve(t, func(nc net.Conn) {
			_, _ = nc.Read(make([]byte, 1))
			_, _ = io.WriteString(nc, text)
			_, _ = io.Copy(io.Discard, nc)
		})
	}
	plain := wantError{class: pump.ClassUnreachable, code: "tls-plain", says: []string{"does not speak TLS"}}
	for name, q := range map[string]struct {
		addr string
		want wantError
	}{
		"HTTP":      {strings.TrimPrefix(web.URL, "http://"), plain},
		"memcached": {says("\x81\x00\x00\x00\x00\x00\x00\x81"), plain},
		"text":      {says("ERROR\r\n"), plain},
		"closes": {serve(t, func(nc net.Conn) {
			_, _ = nc.Read(make([]byte, 1))
			_ = nc.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, nc)
		}), wantError{class: pump.ClassUnreachable, retry: true, says: []string{"with TLS"}}},
		"closed": {closedPort(t), wantError{class: pump.ClassUnreachable, code: "unreachable", retry: true}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := NewClient("couchbases://"+q.addr, Config{Role: "source", Username: "u", Password: planted})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = c.Buckets(t.Context())
			rest, kv := q.want, q.want
			if name == "closes" {
				rest.code, kv.code = "rest-cut", "kv-cut"
			}
			rest.check(t, err)
			_, err = DialKV(t.Context(), c.KV(&Bucket{Name: "beer"}, q.addr))
			kv.check(t, err)
		})
	}
	// And silence.
	reached := make(chan struct{}, 2)
	silent := serve(t, func(nc net.Conn) { reached <- struct{}{}; _, _ = io.Copy(io.Discard, nc) })
	c, err := NewClient("https://"+silent, Config{Role: "source", Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Buckets(t.Context())
	wantError{class: pump.ClassUnreachable, code: "rest-timeout", retry: true}.check(t, err)
	_, err = DialKV(t.Context(), c.KV(&Bucket{Name: "b"}, silent))
	wantError{class: pump.ClassUnreachable, code: "kv-timeout", retry: true}.check(t, err)
	<-reached
	<-reached
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	cfg := c.KV(&Bucket{Name: "b"}, silent)
	cfg.Timeout = time.Hour
	_, err = DialKV(ctx, cfg)
	wantError{class: pump.ClassInterrupted, code: "interrupted"}.check(t, err)
}

// TestPlainToTLSPorts is the other way round; that it is said is in other tests,
// this one is about what to do.
func TestPlainToTLSPorts(t *testing.T) {
	ca := newAuthority(t)
	addr := tlsREST(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(nil, "127.0.0.1")}}, nil)
	c, err := NewClient("http://"+addr, Config{Role: "source", Username: "u", Password: planted})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Buckets(t.Context())
	wantError{class: pump.ClassUnreachable, code: "speaks-tls", says: []string{"speaks TLS", "https://", "18091"}}.check(t, err)
}

func TestTLSOptions(t *testing.T) {
	ca := newAuthority(t)
	cert, key := files(t, ca.issue(nil))
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]struct {
		tls  TLS
		says string
	}{
		"no file":      {TLS{CACertFile: "/nonexistent/ca.pem"}, "read the CA certificate"},
		"no PEM":       {TLS{CACertFile: empty}, "no certificate in PEM form"},
		"no PEM text":  {TLS{CACertPEM: []byte("x")}, "not in PEM form"},
		"half":         {TLS{CertFile: cert}, "belong together"},
		"other half":   {TLS{KeyFile: key}, "belong together"},
		"mixed up":     {TLS{CertFile: key, KeyFile: cert}, "read the client certificate"},
		"no such file": {TLS{CertFile: cert, KeyFile: "/nonexistent/key.pem"}, "read the client certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewClient("https://h", Config{Role: "destination", Password: planted, TLS: q.tls})
			wantError{class: pump.ClassUsage, code: "tls-files", says: []string{"destination", q.says}}.check(t, err)
		})
	}
	var out strings.Builder
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: &out})
	for url, q := range map[string]struct {
		tls  TLS
		says string
	}{
		"https://h":       {TLS{InsecureSkipVerify: true}, "not verified"},
		"http://h":        {TLS{CACertPEM: ca.pem}, "not used"},
		"couchbase://h":   {TLS{InsecureSkipVerify: true}, "not used"},
		"couchbases://h":  {TLS{CACertPEM: ca.pem}, ""},
		"http://h:8091":   {TLS{}, ""},
		"https://h:18091": {TLS{}, ""},
	} {
		out.Reset()
		c, err := NewClient(url, Config{Role: "source", TLS: q.tls, Log: logger})
		if err != nil {
			t.Fatal(err)
		}
		if q.says == "" && out.Len() > 0 || !strings.Contains(out.String(), q.says) {
			t.Errorf("%s: logged %q", url, out.String())
		}
		if cfg := c.KV(&Bucket{}, "h:1").TLS; (cfg != nil) != strings.Contains(url, "s://") || cfg != nil && cfg.MinVersion != tls.VersionTLS12 {
			t.Errorf("%s: %+v", url, cfg)
		}
	}
	if cfg := forHost(&tls.Config{ServerName: "kept", MinVersion: tls.VersionTLS10}, "h:1"); cfg.ServerName != "kept" || cfg.MinVersion != tls.VersionTLS12 {
		t.Errorf("%+v", cfg)
	}
	for addr, want := range map[string]string{"h:1": "h", "[fe80::1%eth0]:1": "fe80::1", "h": "h"} {
		if got := forHost(&tls.Config{}, addr).ServerName; got != want {
			t.Errorf("%s: %s", addr, got)
		}
	}
}

// TestPlainInsideTLS: users that the node can only check by PLAIN (LDAP).
func TestPlainInsideTLS(t *testing.T) {
	ca := newAuthority(t)
	server := &tls.Config{Certificates: []tls.Certificate{ca.issue(nil, "127.0.0.1")}}
	trust := TLS{CACertPEM: ca.pem}
	cfg, err := trust.Config()
	if err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]struct {
		mechs, lies, password string
		asked                 string
		want                  *wantError
	}{
		"after scram":    {"SCRAM-SHA256 PLAIN", "", planted, "list,auth SCRAM-SHA256,step SCRAM-SHA256,auth PLAIN", nil},
		"only plain":     {"PLAIN", "", planted, "list,auth PLAIN", nil},
		"wrong":          {"SCRAM-SHA256 PLAIN", "", planted + "x", "list,auth SCRAM-SHA256,step SCRAM-SHA256,auth PLAIN", &denied},
		"not after lies": {"SCRAM-SHA256 PLAIN", "yes at once", planted, "list,auth SCRAM-SHA256", &unproven},
	} {
		t.Run(name, func(t *testing.T) {
			n := &fakeNode{features: []uint16{7, 8}, mechs: q.mechs, user: "ldap", password: "another", plain: planted, lies: q.lies, tls: server}
			c, err := DialKV(t.Context(), KVConfig{Addr: n.start(t), Role: "source", Username: "ldap", UserPassword: q.password, Version: Version{7, 0, 0}, TLS: cfg, Log: testLog(t)})
			if err == nil {
				c.Close()
			}
			if q.want != nil {
				q.want.check(t, err)
			} else if err != nil {
				t.Error(err)
			}
			if got := n.log(); got != "hello00070008,"+q.asked {
				t.Errorf("asked %s", got)
			}
		})
	}
	// Who shows a client certificate needs no other login.
	cert, key := files(t, ca.issue(nil))
	trust.CertFile, trust.KeyFile = cert, key
	if cfg, err = trust.Config(); err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{features: []uint16{7, 8}, bucket: "beer", tls: server}
	c := dial(t, KVConfig{Addr: n.start(t), Bucket: "beer", Version: Version{7, 0, 0}, TLS: cfg})
	noop(t, c)
	if got := n.log(); got != "hello00070008,select beer" {
		t.Errorf("asked %s", got)
	}
}

// TestTLSWholeWay goes from https:// to documents through both ports.
func TestTLSWholeWay(t *testing.T) {
	ca := newAuthority(t)
	server := &tls.Config{Certificates: []tls.Certificate{ca.issue(nil, "127.0.0.1")}}
	n := &fakeNode{features: []uint16{7, 8, 0x12}, mechs: scrams, user: "Administrator", password: planted, bucket: "beer", tls: server,
		answer: func(f mcbp.Frame) []byte { return reply(f, 0, "", "", manifestDoc) }}
	_, kvSSL, _ := net.SplitHostPort(n.start(t))
	var plain atomic.Int32
	_, kv, _ := net.SplitHostPort(serve(t, func(nc net.Conn) { plain.Add(1) }))
	rest := tlsREST(t, server, func(w http.ResponseWriter, r *http.Request) {
		host, mgmtSSL, _ := net.SplitHostPort(r.Host)
		switch r.URL.Path {
		case "/pools/default/buckets/beer":
			fmt.Fprintf(w, `{"name":"beer","bucketType":"membase","nodes":[{"hostname":"%s:8091","otpNode":"n","version":"7.0.5-1-enterprise","thisNode":true,"ports":{"direct":%s}}],
				"vBucketServerMap":{"hashAlgorithm":"CRC","serverList":["%s:%s"],"vBucketMap":[[0],[0]]}}`, host, kv, host, kv)
		case "/pools/default/nodeServices":
			fmt.Fprintf(w, `{"rev":1,"nodesExt":[{"services":{"mgmt":8091,"mgmtSSL":%s,"kv":%s,"kvSSL":%s},"thisNode":true}]}`, mgmtSSL, kv, kvSSL)
		}
	})
	c, err := NewClient("couchbases://"+rest, Config{Role: "source", Username: "Administrator", Password: planted, TLS: TLS{CACertPEM: ca.pem}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := c.Bucket(t.Context(), "beer")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := b.Map.Active(1)
	cfg := c.KV(b, addr)
	cfg.Features = []uint16{mcbp.FeatureCollections}
	conn := dial(t, cfg)
	if m, err := conn.Manifest(t.Context()); err != nil || m.UID != 0x1a || !conn.Has(mcbp.FeatureCollections) {
		t.Errorf("%+v, %v", m, err)
	}
	if plain.Load() != 0 {
		t.Error("the port without TLS was used")
	}
	// A guard frees a read that is blocked inside TLS.
	ctx, cancel := context.WithCancel(t.Context())
	stop := conn.Guard(ctx)
	cancel()
	_, err = conn.Reader().Next()
	wantError{class: pump.ClassInterrupted, code: "interrupted"}.check(t, conn.Explain(ctx, "read on", err))
	stop()
}
