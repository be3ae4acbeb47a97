package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// TLS says whom to trust and who we are. Whether TLS is spoken is decided by the
// cluster's address: https:// and couchbases:// do.
type TLS struct {
	CACertFile string // PEM file with the authorities to trust in place of the system's
	CACertPEM  []byte // the same as text; both may be given
	CertFile   string // PEM files of a client certificate, both or none
	KeyFile    string
	// InsecureSkipVerify trusts any certificate, which is good for trying things
	// out only: whoever sits between can read and change everything.
	InsecureSkipVerify bool
}

// TLSOf is what a frontend's flags say.
func TLSOf(s pump.Security) TLS {
	return TLS{CACertFile: s.CACert, CertFile: s.ClientCert, KeyFile: s.ClientKey, InsecureSkipVerify: s.NoVerify}
}

func (t *TLS) given() bool {
	return t.CACertFile != "" || len(t.CACertPEM) > 0 || t.CertFile != "" || t.KeyFile != "" || t.InsecureSkipVerify
}

// Config reads the files and returns the configuration for connections: TLS 1.2
// or later, host names verified. Errors have class usage.
func (t *TLS) Config() (*tls.Config, error) {
	wrong := func(err error) error {
		return &pump.Error{Class: pump.ClassUsage, Code: "tls-files", Err: err}
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.InsecureSkipVerify}
	if t.CACertFile != "" || len(t.CACertPEM) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		if t.CACertFile != "" {
			pem, err := os.ReadFile(t.CACertFile)
			if err != nil {
				return nil, wrong(fmt.Errorf("read the CA certificate: %w", err))
			}
			if !cfg.RootCAs.AppendCertsFromPEM(pem) {
				return nil, wrong(fmt.Errorf("%s holds no certificate in PEM form", t.CACertFile))
			}
		}
		if len(t.CACertPEM) > 0 && !cfg.RootCAs.AppendCertsFromPEM(t.CACertPEM) {
			return nil, wrong(errors.New("the CA certificate is not in PEM form"))
		}
	}
	switch {
	case t.CertFile != "" && t.KeyFile != "":
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, wrong(fmt.Errorf("read the client certificate %s and its key %s: %w", t.CertFile, t.KeyFile, err))
		}
		cfg.Certificates = []tls.Certificate{pair}
	case t.CertFile != "" || t.KeyFile != "":
		return nil, wrong(errors.New("a client certificate and its key belong together; only one of them is given"))
	}
	return cfg, nil
}

// forHost is the configuration for a connection to addr.
func forHost(cfg *tls.Config, addr string) *tls.Config {
	cfg = cfg.Clone()
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		host, _, _ = strings.Cut(host, "%") // an IPv6 zone is in no certificate
		cfg.ServerName = host
	}
	if cfg.MinVersion < tls.VersionTLS12 {
		cfg.MinVersion = tls.VersionTLS12
	}
	return cfg
}

// The ports that hints name.
type portHint struct{ name, plain, tls string }

var (
	restPorts = portHint{"REST", "8091", "18091"}
	kvPorts   = portHint{"data", "11210", "11207"}
)

// tlsFailure fills in e and reports true when err is about TLS: on our side
// (using says whether we speak it), or on the other, whose first bytes are begin.
func tlsFailure(err error, e *pump.Error, using bool, begin string, ports portHint) bool {
	if !using {
		if !looksTLS(begin) {
			return false
		}
		e.Class, e.Code, e.Err = pump.ClassUnreachable, "speaks-tls", errors.New("this port speaks TLS, and the address given does not ask for it")
		e.Hint = fmt.Sprintf("Give the cluster's address as https:// or couchbases:// (the %s port with TLS is usually %s, without %s).", ports.name, ports.tls, ports.plain)
		return true
	}
	var record tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var verify *tls.CertificateVerificationError
	var op *net.OpError
	e.Class = pump.ClassUnreachable
	switch {
	case errors.As(err, &record), begin != "" && !looksTLS(begin):
		e.Code, e.Err = "tls-plain", errors.New("this port does not speak TLS")
		e.Hint = fmt.Sprintf("The %s port with TLS is usually %s (%s is the one without); without TLS the address begins with http:// or couchbase://.", ports.name, ports.tls, ports.plain)
	case errors.As(err, &host):
		e.Code = "tls-name"
		e.Err = fmt.Errorf("the certificate is not for %s; %s", quote(host.Host), issuedFor(host.Certificate))
		e.Hint = "Give the node's address as it stands in its certificate, or give the node a certificate with this address. A cluster behind another address may need --network external."
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Code = "tls-expired"
		from, to := invalid.Cert.NotBefore, invalid.Cert.NotAfter
		e.Err = fmt.Errorf("the certificate is valid from %s to %s only", from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
		e.Hint = "Renew the node's certificate, or put this machine's clock right."
	case errors.As(err, &authority):
		e.Code, e.Err = "tls-unknown-ca", errors.New("the certificate was not issued by an authority that is trusted here")
		e.Hint = "Give the cluster's own CA certificate (--cacert); a cluster that made its certificates itself shows it under Security, Certificates."
	case errors.As(err, &verify):
		e.Code, e.Err = "tls-certificate", fmt.Errorf("the certificate is not acceptable: %s", clip(verify.Err.Error(), 200))
	case errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate"):
		e.Class, e.Code = pump.ClassDenied, "tls-client-certificate"
		e.Err = fmt.Errorf("the server does not accept our certificate, or misses one: %s", clip(op.Err.Error(), 100))
		e.Hint = "Give a client certificate and its key that the cluster trusts (--client-cert, --client-key)."
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"), strings.HasPrefix(err.Error(), "tls: "):
		e.Code, e.Err = "tls-failed", fmt.Errorf("no TLS connection: %s", clip(err.Error(), 200))
		e.Hint = "The server must offer TLS 1.2 or later; it may also want a client certificate."
	default:
		e.Class = pump.ClassFailed
		return false
	}
	return true
}

func issuedFor(cert *x509.Certificate) string {
	var names []string
	if cert != nil {
		names = append(names, cert.DNSNames...)
		for _, ip := range cert.IPAddresses {
			names = append(names, ip.String())
		}
	}
	if len(names) == 0 {
		return "it names no host"
	}
	return "it is for " + listNames(names)
}
