package forward

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

// serverTLS is a configuration with a certificate that nobody has signed.
func serverTLS(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// TestTLS sends messages in pieces over TLS and reads their acks.
func TestTLS(t *testing.T) {
	h := &received{}
	r := serve(t, Config{Handler: h, TLS: serverTLS(t)})
	conn, err := tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	msg := pack([]any{"t", stream(1000), dict{"chunk": "id"}})
	for i := range 3 {
		for p := msg; len(p) > 0; {
			n := min(len(p), 700)
			if _, err := conn.Write(p[:n]); err != nil {
				t.Fatal(err)
			}
			p = p[n:]
		}
		got := make([]byte, len(ackOfID))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != ackOfID {
			t.Fatalf("ack %d: %q, %v", i, got, err)
		}
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(conn); err != nil || len(rest) != 0 {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	for _, m := range h.all() {
		if m.count != 1000 || m.err != nil {
			t.Errorf("%d events, %v", m.count, m.err)
		}
	}
	eventually(t, "the connection is gone", func() bool { s := r.Stats(); return s.Open == 0 && s.MemoryHeld == 0 })
}

// TestTLSBadClients: a plain sender, a health check, one that begins a handshake
// and waits; none holds up the next.
func TestTLSBadClients(t *testing.T) {
	r := serve(t, Config{Handler: &received{}, TLS: serverTLS(t), HandshakeTimeout: 2 * time.Second})
	r.talk(nil)
	eventually(t, "a health check is a heartbeat", func() bool { return r.Stats().Heartbeats["connect"] == 1 })
	r.talk(pack([]any{"t", stream(2), dict{"chunk": "id"}}))
	eventually(t, "a plain sender is turned away", func() bool { return r.Stats().HandshakeFailed == 1 })
	waiting := r.dial()
	if _, err := waiting.Write([]byte("\x16\x03\x01\x02\x00\x01")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, waiting); err != nil {
		t.Errorf("half a handshake is not ended: %v", err)
	}
	eventually(t, "it is counted", func() bool { return r.Stats().HandshakeFailed == 2 })
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", r.addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestTLSShutdown: what was sent over TLS before is acked.
func TestTLSShutdown(t *testing.T) {
	h := &keeper{}
	r := serve(t, Config{Handler: h, TLS: serverTLS(t)})
	conn, err := tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(pack([]any{"t", stream(1), dict{"chunk": "id"}})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "in flight", func() bool { return h.count() == 1 })
	stopped := make(chan error, 1)
	go func() { stopped <- r.Shutdown(t.Context()) }()
	eventually(t, "draining", r.draining.Load)
	h.held[0].Done(nil)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(conn); string(got) != ackOfID {
		t.Errorf("%q, %v", got, err)
	}
}

// tlsClient is a sender's TLS over conn.
func tlsClient(t *testing.T, conn net.Conn) *tls.Conn {
	t.Helper()
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}
