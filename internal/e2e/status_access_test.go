package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStatusAccess is the status endpoint with TLS and a password, as clients see
// it: nothing without the password but health, and all of weir's own commands get
// in by the configuration.
func TestStatusAccess(t *testing.T) {
	for _, mode := range []string{"insecure true", "cert_path cert.pem\n    private_key_path key.pem"} {
		t.Run(strings.Fields(mode)[0], func(t *testing.T) {
			t.Parallel()
			statusAccess(t, mode)
		})
	}
}

func statusAccess(t *testing.T, mode string) {
	dir := t.TempDir()
	if strings.HasPrefix(mode, "cert_path") {
		selfSigned(t, dir, 48*time.Hour)
	}
	w := launch(t, options{dir: dir, monitor: fmt.Sprintf("  username ops\n  password s3cret-word\n  <transport tls>\n    %s\n  </transport>\n", mode)})
	addr := w.status
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	ask := func(path, user, password string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, "https://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			r.SetBasicAuth(user, password)
		}
		resp, err := client.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return 0, err.Error()
		}
		return resp.StatusCode, string(b)
	}
	waitFor(t, patience, func() error {
		if code, body := ask("/readyz", "", ""); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	for _, c := range []struct {
		path, user, password string
		want                 int
	}{
		{"/healthz", "", "", 200},
		{"/", "", "", 401},
		{"/metrics", "", "", 401},
		{"/metrics", "ops", "wrong", 401},
		{"/metrics", "ops", "s3cret-word", 200},
		{"/api/queues.json", "", "", 401},
		{"/api/queues.json", "ops", "s3cret-word", 200},
		{"/api/stream", "", "", 401},
		{"/api/plugins.json", "ops", "s3cret-word", 200},
	} {
		code, body := ask(c.path, c.user, c.password)
		if code != c.want || strings.Contains(body, "s3cret-word") {
			t.Errorf("%s as %q: %d, want %d: %.200s", c.path, c.user, code, c.want, body)
		}
	}
	if _, body := ask("/api/plugins.json?@type=monitor_agent", "ops", "s3cret-word"); !strings.Contains(body, `"plugin_category":"input","type":"monitor_agent"`) || !strings.Contains(body, `"password":"xxxxxx"`) {
		t.Errorf("monitor_agent among the inputs: %s", body)
	}
	// Plain HTTP gets no answer of the endpoint.
	if r, err := http.Get("http://" + addr + "/metrics"); err == nil {
		if r.Body.Close(); r.StatusCode != http.StatusBadRequest {
			t.Errorf("plain HTTP: %s", r.Status)
		}
	}

	conf := filepath.Join(dir, "weir.conf")
	weir := func(args ...string) (string, error) {
		cmd := exec.Command(binary, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if c, err := dial(w.addr); err != nil {
		t.Error(err)
	} else {
		if err := c.send("x", "id", 0, 1); err != nil {
			t.Error(err)
		}
		c.conn.Close()
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"status", "-c", conf}, "accept"},
		{[]string{"status", "senders", "--by", "messages", "-c", conf}, "127.0.0.1"},
	} {
		if out, err := weir(c.args...); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("weir %v: %v\n%s", c.args, err, out)
		}
	}
	if out, err := weir("status", "--address", addr); err == nil {
		t.Errorf("weir status without the configuration is let in:\n%s", out)
	}
	term := newTerminal(t, 80, 24, fmt.Sprintf("cd %s && %s top -c weir.conf", dir, binary))
	term.until("ready", "accept")
	term.tmux("send-keys", "q")
	term.until("exit 0")
	w.signal(syscall.SIGTERM)
	<-w.waited
	if strings.Contains(w.log.String(), "s3cret-word") {
		t.Error("the password is in the log")
	}
}

// selfSigned writes cert.pem and key.pem of a name that is not the host's.
func selfSigned(t *testing.T, dir string, valid time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "weir.example"}, DNSNames: []string{"weir.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(valid)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
