package certs

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/youmark/pkcs8"
)

// loadPair reads a certificate chain and its key, which may be encrypted.
func loadPair(certPath, keyPath, passphrase string) (tls.Certificate, error) {
	if passphrase == "" {
		return tls.LoadX509KeyPair(certPath, keyPath)
	}
	cert, err := os.ReadFile(certPath)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := os.ReadFile(keyPath)
	if err != nil {
		return tls.Certificate{}, err
	}
	if key, err = decryptKey(key, passphrase); err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

// decryptKey turns an encrypted private key in PEM into a plain one: PKCS #8
// (RFC 5958), or the older form with a DEK-Info header (RFC 1421). A key that
// is not encrypted needs no passphrase and stays as it is.
func decryptKey(key []byte, passphrase string) ([]byte, error) {
	block, _ := pem.Decode(key)
	if block == nil {
		return nil, errors.New("the private key is not in PEM")
	}
	var private any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY":
		private, err = pkcs8.ParsePKCS8PrivateKey(block.Bytes, []byte(passphrase))
	case block.Headers["DEK-Info"] != "":
		//lint:ignore SA1019 fluentd's users have such keys; where the file can be read, its weak cipher is no boundary
		der, derErr := x509.DecryptPEMBlock(block, []byte(passphrase))
		if derErr != nil {
			return nil, fmt.Errorf("decrypt the private key with private_key_passphrase: %w", derErr)
		}
		return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}), nil
	default:
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt the private key with private_key_passphrase: %w", err)
	}
	if _, ok := private.(crypto.Signer); !ok {
		return nil, fmt.Errorf("the private key is of a kind that cannot sign, %T", private)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// groups are the words of OpenSSL's cipher lists (ciphers(1)) that stand for
// many ciphers, as far as weir's ciphers can be in them.
var groups = []string{"ALL", "DEFAULT", "HIGH", "COMPLEMENTOFDEFAULT", "SECLEVEL"}

// ParseCiphers turns the value of the parameter ciphers into cipher suites of
// TLS 1.2; nil stands for Go's choice. It takes a list separated by colons,
// commas or spaces of OpenSSL's or IANA's names, a word for a group, and !name
// or -name for one that must not be used. A word that OpenSSL knows and that
// none of the secure suites answers to, such as !aNULL, takes nothing away.
func ParseCiphers(text string) ([]uint16, error) {
	suites := tls.CipherSuites()
	suites = slices.DeleteFunc(suites, func(c *tls.CipherSuite) bool { return !slices.Contains(c.SupportedVersions, tls.VersionTLS12) })
	chosen := map[uint16]bool{}
	all := false
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(":, ", r) }) {
		name, remove := word, false
		if strings.IndexAny(word, "!-") == 0 {
			name, remove = word[1:], true
		}
		name = strings.TrimPrefix(name, "+")
		base, _, _ := strings.Cut(strings.TrimPrefix(name, "@"), "=")
		found := false
		for _, c := range suites {
			if matches(c, name) {
				found = true
				chosen[c.ID] = !remove
			}
		}
		switch {
		case found || remove:
		case slices.Contains(groups, base):
			if !strings.HasPrefix(name, "@") {
				all = true
				for _, c := range suites {
					chosen[c.ID] = true
				}
			}
		default:
			return nil, fmt.Errorf("ciphers: %s is none of those that are secure with TLS 1.2: %s", word, names(suites))
		}
	}
	var ids []uint16
	for _, c := range suites {
		if chosen[c.ID] {
			ids = append(ids, c.ID)
		}
	}
	if len(ids) == len(suites) && all {
		return nil, nil
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("ciphers: %q leaves none; there are %s", text, names(suites))
	}
	return ids, nil
}

// matches reports whether a suite goes by the name: IANA's, OpenSSL's, or one of
// the parts of it, such as AES256, CHACHA20 or ECDSA.
func matches(c *tls.CipherSuite, name string) bool {
	openSSL := openSSLName(c)
	if strings.EqualFold(name, c.Name) || strings.EqualFold(name, openSSL) {
		return true
	}
	for _, part := range strings.Split(name, "+") { // ECDHE+AESGCM
		if part == "AESGCM" {
			if !strings.Contains(openSSL, "AES") || !strings.Contains(openSSL, "GCM") {
				return false
			}
			continue
		}
		if part == "EECDH" {
			part = "ECDHE"
		}
		if part == "AES" && strings.Contains(openSSL, "AES") {
			continue
		}
		if !slices.Contains(strings.Split(openSSL, "-"), part) {
			return false
		}
	}
	return true
}

// openSSLName turns TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 into
// ECDHE-RSA-AES128-GCM-SHA256.
func openSSLName(c *tls.CipherSuite) string {
	name := strings.TrimPrefix(c.Name, "TLS_")
	name = strings.ReplaceAll(name, "_WITH_", "_")
	name = strings.ReplaceAll(name, "AES_128", "AES128")
	name = strings.ReplaceAll(name, "AES_256", "AES256")
	name = strings.ReplaceAll(name, "_CBC_SHA", "_SHA")
	name = strings.ReplaceAll(name, "CHACHA20_POLY1305_SHA256", "CHACHA20_POLY1305")
	return strings.ReplaceAll(name, "_", "-")
}

func names(suites []*tls.CipherSuite) string {
	var all []string
	for _, c := range suites {
		all = append(all, openSSLName(c))
	}
	return strings.Join(all, ", ")
}
