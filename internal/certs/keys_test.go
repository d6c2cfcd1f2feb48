package certs

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/youmark/pkcs8"
	"go.uber.org/zap"
)

func TestEncryptedKeys(t *testing.T) {
	dir := t.TempDir()
	pair, err := generate("weir.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	key := pair.PrivateKey.(*ecdsa.PrivateKey)
	modern, err := pkcs8.MarshalPrivateKey(key, []byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 the form that is to be read
	old, err := x509.EncryptPEMBlock(rand.Reader, "EC PRIVATE KEY", ec, []byte("secret"), x509.PEMCipherAES256)
	if err != nil {
		t.Fatal(err)
	}
	certPath, keyPath := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write := func(path string, block *pem.Block) {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(certPath, &pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
	for name, block := range map[string]*pem.Block{
		"PKCS #8":       {Type: "ENCRYPTED PRIVATE KEY", Bytes: modern},
		"DEK-Info":      old,
		"not encrypted": {Type: "EC PRIVATE KEY", Bytes: ec},
	} {
		t.Run(name, func(t *testing.T) {
			write(keyPath, block)
			c := Config{CertPath: certPath, KeyPath: keyPath, KeyPassphrase: "secret"}
			if _, err := New(c, zap.NewNop()); err != nil {
				t.Error(err)
			}
			c.KeyPassphrase = "wrong"
			if _, err := New(c, zap.NewNop()); name != "not encrypted" && (err == nil || !strings.Contains(err.Error(), "private_key_passphrase")) {
				t.Errorf("with a wrong passphrase: %v", err)
			}
		})
	}
}

func TestParseCiphers(t *testing.T) {
	const (
		rsa128, rsa256 = tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
		ec128, ec256   = tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
	)
	for text, want := range map[string][]uint16{
		"ALL:!aNULL:!eNULL:!SSLv2":    nil,
		"":                            {},
		"ECDHE-RSA-AES128-GCM-SHA256": {rsa128},
		"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384": {rsa128, rsa256},
		"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384":                   {rsa256},
		"ECDHE+AESGCM":                                            {ec128, ec256, rsa128, rsa256},
		"HIGH:!ECDSA:!CHACHA20:!SHA:!SHA256:@SECLEVEL=2":          {rsa256},
		"!ALL":    {},
		"RC4-MD5": {},
	} {
		got, err := ParseCiphers(text)
		slices.Sort(got)
		slices.Sort(want)
		if want != nil && len(want) == 0 {
			if err == nil || !strings.Contains(err.Error(), "ECDHE-RSA-AES128-GCM-SHA256") {
				t.Errorf("%q: %v, %v", text, got, err)
			}
			continue
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %x, %v; want %x", text, got, err, want)
		}
	}
}
