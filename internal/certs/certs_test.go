package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
)

// files writes a certificate and its key as PEM.
func files(t *testing.T, dir, name string, cert tls.Certificate) (certPath, keyPath string) {
	t.Helper()
	certPath, keyPath = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	if err := errors.Join(os.WriteFile(certPath, chain, 0o600),
		os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)); err != nil {
		t.Fatal(err)
	}
	return certPath, keyPath
}

func made(t *testing.T, name string, ca *tls.Certificate) tls.Certificate {
	t.Helper()
	cert, err := generate(name, ca)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// authority makes a CA.
func authority(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// shake makes a handshake and returns the server's certificate.
func shake(t *testing.T, s *Store, client *tls.Config) (*x509.Certificate, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err == nil {
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(time.Minute))
			err = tls.Server(raw, s.TLS()).Handshake()
		}
		served <- err
	}()
	raw, err := net.DialTimeout("tcp", l.Addr().String(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(time.Minute))
	conn := tls.Client(raw, client)
	err = conn.Handshake()
	raw.Close()
	if serverErr := <-served; err == nil {
		err = serverErr // the server judges a client's certificate last
	}
	if err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

func base() Config {
	return Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13, Hostname: "weir.example"}
}

func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	ca := authority(t, "ca")
	c := base()
	c.CACertPath, c.CAKeyPath = files(t, dir, "ca", ca)
	signed, err := New(c, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := shake(t, signed, &tls.Config{InsecureSkipVerify: true})
	if err != nil || cert.Subject.CommonName != "weir.example" || cert.Issuer.CommonName != "ca" {
		t.Errorf("signed: %v, %v", cert, err)
	}
	c = base()
	c.SelfSigned = true
	self, err := New(c, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shake(t, self, &tls.Config{InsecureSkipVerify: true}); err != nil {
		t.Error(err)
	}
	if _, err := shake(t, self, &tls.Config{ServerName: "weir.example"}); err == nil {
		t.Error("a certificate that nobody has signed is trusted")
	}
}

func TestFilesAndReload(t *testing.T) {
	dir := t.TempDir()
	c := base()
	c.CertPath, c.KeyPath = files(t, dir, "cert", made(t, "one", nil))
	s, err := New(c, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		t.Helper()
		cert, err := shake(t, s, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		return cert.Subject.CommonName
	}
	if got := name(); got != "one" {
		t.Errorf("certificate %s", got)
	}
	// Rubbish in the file: the certificate before stays.
	if err := os.WriteFile(c.CertPath, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.checked = time.Time{}
	if got := name(); got != "one" {
		t.Errorf("certificate %s with a broken file", got)
	}
	if err := s.Reload(); err == nil || !strings.Contains(err.Error(), c.CertPath) {
		t.Errorf("Reload = %v", err)
	}
	// The file changes: the next handshake after a moment has the new one.
	files(t, dir, "cert", made(t, "two", nil))
	s.checked = time.Time{}
	if got := name(); got != "two" {
		t.Errorf("certificate %s after the files have changed", got)
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	ca, other := authority(t, "ca"), authority(t, "other")
	c := base()
	c.CertPath, c.KeyPath = files(t, dir, "cert", made(t, "weir.example", nil))
	c.ClientCAPath, _ = files(t, dir, "ca", ca)
	c.RequireClient = true
	s, err := New(c, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	client := func(signer *tls.Certificate) *tls.Config {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if signer != nil {
			cfg.Certificates = []tls.Certificate{made(t, "client", signer)}
		}
		return cfg
	}
	if _, err := shake(t, s, client(&ca)); err != nil {
		t.Errorf("a client of the CA: %v", err)
	}
	if _, err := shake(t, s, client(nil)); err == nil {
		t.Error("a client without a certificate is let in")
	}
	if _, err := shake(t, s, client(&other)); err == nil {
		t.Error("a client of another CA is let in")
	}
}

func TestVersions(t *testing.T) {
	c := base()
	c.SelfSigned, c.MinVersion = true, tls.VersionTLS13
	s, err := New(c, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shake(t, s, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is taken, although the least is 1.3")
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []Config{
		{}, {CertPath: "/nowhere", KeyPath: "/nowhere"}, {CACertPath: "/nowhere", CAKeyPath: "/nowhere"}, {SelfSigned: true, ClientCAPath: "/nowhere"},
	} {
		if _, err := New(c, zap.NewNop()); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("New(%+v) = %v", c, err)
		}
	}
}
