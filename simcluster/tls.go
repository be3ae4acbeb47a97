package simcluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// TLSConfig makes a cluster listen with TLS too, on ports of their own.
type TLSConfig struct {
	// ClientCerts is "" (not asked for), "enable" (taken where given) or "mandatory".
	// A certificate's common name is the user.
	ClientCerts string
	Expired     bool     // the nodes' certificates ran out yesterday
	Hosts       []string // names in the nodes' certificates in place of the loopback ones
}

// authority signs the certificates of one cluster.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
	node *tls.Config
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
}

func newAuthority(cfg *Config) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("simcluster: make a key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("simcluster: make a serial number: %w", err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Couchbase Server (simulated)"},
		NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(24 * time.Hour * 365),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("simcluster: make a CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("simcluster: make a CA: %w", err)
	}
	a := &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	leaf := &x509.Certificate{
		Subject: pkix.Name{CommonName: "node"}, NotBefore: now.Add(-47 * time.Hour), NotAfter: now.Add(24 * time.Hour * 30),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if cfg.TLS.Expired {
		leaf.NotAfter = now.Add(-24 * time.Hour)
	}
	hosts := cfg.TLS.Hosts
	if len(hosts) == 0 {
		hosts = []string{"127.0.0.1", "::1", "localhost"}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, h)
		}
	}
	certPEM, keyPEM, err := a.sign(leaf)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("simcluster: make a certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	a.node = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	switch cfg.TLS.ClientCerts {
	case "":
	case "enable":
		a.node.ClientAuth = tls.VerifyClientCertIfGiven
	case "mandatory":
		a.node.ClientAuth = tls.RequireAndVerifyClientCert
	default:
		return nil, fmt.Errorf("simcluster: ClientCerts %q is not known", cfg.TLS.ClientCerts)
	}
	return a, nil
}

func (a *authority) sign(tmpl *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("simcluster: make a key: %w", err)
	}
	if tmpl.SerialNumber, err = newSerial(); err != nil {
		return nil, nil, fmt.Errorf("simcluster: make a serial number: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("simcluster: make a certificate: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("simcluster: write a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), nil
}

// CACert is the certificate, as PEM, that clients must trust; nil without TLS.
func (c *Cluster) CACert() []byte {
	if c.authority == nil {
		return nil
	}
	return c.authority.pem
}

// ClientCert makes a certificate, as PEM, that logs in as a user.
func (c *Cluster) ClientCert(user string) (certPEM, keyPEM []byte, err error) {
	if c.authority == nil {
		return nil, nil, errors.New("simcluster: the cluster has no TLS")
	}
	now := time.Now()
	return c.authority.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: user}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	})
}

// RESTTLS is the node's REST address with TLS, host:port, or "".
func (n *Node) RESTTLS() string { return addressOf(n.restTLS) }

// KVTLS is the node's KV address with TLS, host:port, or "".
func (n *Node) KVTLS() string { return addressOf(n.kvTLS) }

func addressOf(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// certUser is the user that a client's certificate names, or nil.
func (c *Cluster) certUser(state *tls.ConnectionState) *account {
	if state == nil || len(state.VerifiedChains) == 0 {
		return nil
	}
	return c.account(state.PeerCertificates[0].Subject.CommonName)
}
