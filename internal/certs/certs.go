// Package certs makes the TLS configuration of a <transport tls> section:
// certificates from files, read again when the files change, or generated.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Config is a <transport tls> section.
type Config struct {
	// CertPath and KeyPath are PEM files: the chain, and its private key.
	CertPath, KeyPath string
	// CACertPath and CAKeyPath are a CA that signs a certificate made at start,
	// instead of CertPath.
	CACertPath, CAKeyPath string
	// SelfSigned makes a certificate that nobody has signed (insecure true).
	SelfSigned bool
	// ClientCAPath holds the CAs of clients; with RequireClient a client must have
	// a certificate of one of them.
	ClientCAPath  string
	RequireClient bool
	// KeyPassphrase and CAKeyPassphrase decrypt the keys, if they are encrypted.
	KeyPassphrase, CAKeyPassphrase string
	// Ciphers are the suites of TLS 1.2; nil for Go's choice.
	Ciphers []uint16
	// MinVersion and MaxVersion are tls.VersionTLS12 and the like.
	MinVersion, MaxVersion uint16
	// Hostname is the name in a certificate that is made.
	Hostname string
}

// checkEvery is how often a handshake looks whether the files have changed.
const checkEvery = time.Second

// validFor is how long a certificate lives that is made at start.
const validFor = 10 * 365 * 24 * time.Hour

// Store holds the certificates in use.
type Store struct {
	c   Config
	log *zap.Logger

	mu      sync.Mutex
	current *tls.Config
	first   *x509.Certificate // of current's chain, the one that ends first
	stamp   string            // of the files that current was made of
	checked time.Time
}

// New reads or makes the certificates.
func New(c Config, log *zap.Logger) (*Store, error) {
	s := &Store{c: c, log: log}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// TLS is the configuration of a server; each handshake gets the certificates
// of the moment, connections that are open keep theirs.
func (s *Store) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: s.c.MinVersion, MaxVersion: s.c.MaxVersion,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.fresh(), nil },
	}
}

// Reload reads the files again; after an error the certificates before stay in
// use.
func (s *Store) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load(s.filesStamp())
}

// fresh is the present configuration, read again if the files have changed.
func (s *Store) fresh() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.checked) >= checkEvery {
		s.checked = now
		if stamp := s.filesStamp(); stamp != s.stamp {
			if err := s.load(stamp); err != nil {
				s.stamp = stamp // one line for each change
				s.log.Error("certificates not reloaded: those before stay in use", zap.Error(err))
			} else {
				s.log.Info("certificates reloaded", zap.String("file", s.c.CertPath))
			}
		}
	}
	return s.current
}

// Expires tells which certificate of the chain in use ends first, by its subject,
// and when.
func (s *Store) Expires() (subject string, at time.Time) {
	s.fresh()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first.Subject.String(), s.first.NotAfter
}

// filesStamp changes when one of the files does.
func (s *Store) filesStamp() string {
	stamp := ""
	for _, path := range []string{s.c.CertPath, s.c.KeyPath, s.c.CACertPath, s.c.CAKeyPath, s.c.ClientCAPath} {
		if path == "" {
			continue
		}
		if fi, err := os.Stat(path); err == nil {
			stamp += fmt.Sprintf("%s %d %d;", path, fi.Size(), fi.ModTime().UnixNano())
		}
	}
	return stamp
}

// load makes current. s.mu is held.
func (s *Store) load(stamp string) error {
	cert, err := s.certificate()
	if err != nil {
		return err
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, CipherSuites: s.c.Ciphers, MinVersion: s.c.MinVersion, MaxVersion: s.c.MaxVersion}
	if s.c.ClientCAPath != "" {
		b, err := os.ReadFile(s.c.ClientCAPath)
		if err != nil {
			return fmt.Errorf("ca_path: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(b) {
			return fmt.Errorf("ca_path: %s holds no certificate in PEM", s.c.ClientCAPath)
		}
	}
	if s.c.RequireClient {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	first, err := endsFirst(cert.Certificate)
	if err != nil {
		return err
	}
	s.current, s.first, s.stamp = c, first, stamp
	return nil
}

func endsFirst(chain [][]byte) (first *x509.Certificate, err error) {
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("a certificate of the chain: %w", err)
		}
		if first == nil || c.NotAfter.Before(first.NotAfter) {
			first = c
		}
	}
	return first, nil
}

func (s *Store) certificate() (tls.Certificate, error) {
	switch {
	case s.c.CertPath != "":
		cert, err := loadPair(s.c.CertPath, s.c.KeyPath, s.c.KeyPassphrase)
		if err != nil {
			return cert, fmt.Errorf("cert_path %s, private_key_path %s: %w", s.c.CertPath, s.c.KeyPath, err)
		}
		return cert, nil
	case s.c.CACertPath != "":
		ca, err := loadPair(s.c.CACertPath, s.c.CAKeyPath, s.c.CAKeyPassphrase)
		if err != nil {
			return ca, fmt.Errorf("ca_cert_path %s, ca_private_key_path %s: %w", s.c.CACertPath, s.c.CAKeyPath, err)
		}
		return generate(s.c.Hostname, &ca)
	case s.c.SelfSigned:
		return generate(s.c.Hostname, nil)
	}
	return tls.Certificate{}, errors.New("<transport tls> needs cert_path and private_key_path, ca_cert_path and ca_private_key_path, or insecure true")
}

// generate makes a key and a certificate for hostname, signed by ca or by
// itself.
func generate(hostname string, ca *tls.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("generate a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("generate a serial number: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: hostname}, DNSNames: []string{hostname},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validFor),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	parent, signer := template, any(key)
	if ca != nil {
		if parent, err = x509.ParseCertificate(ca.Certificate[0]); err != nil {
			return tls.Certificate{}, fmt.Errorf("ca_cert_path: %w", err)
		}
		signer = ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("generate a certificate: %w", err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	if ca != nil {
		cert.Certificate = append(cert.Certificate, ca.Certificate...)
	}
	return cert, nil
}
