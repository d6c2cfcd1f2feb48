package forward

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"go.uber.org/zap"
)

const (
	nonceLen = 16
	// maxPing bounds the sender's PING, which comes before it is known.
	maxPing = 16 << 10
)

// Security asks each sender for the handshake HELO, PING, PONG
// (Forward-Protocol-Specification-v1, "Handshake messages").
type Security struct {
	// SelfHostname is this server's name in the handshake.
	SelfHostname string
	// SharedKey is the secret that both sides must know.
	SharedKey string
	// UserAuth asks for a user name and a password as well.
	UserAuth bool
	// Users maps user names to passwords.
	Users map[string]string
	// DenyAnonymous turns away senders whose address no Client holds.
	DenyAnonymous bool
	// Clients are the senders that have a key or users of their own; the first
	// whose Network holds the address counts.
	Clients []Client
}

// Client is a sender, or a network of them, with rules of its own.
type Client struct {
	Network netip.Prefix
	// SharedKey replaces Security.SharedKey, unless it is empty.
	SharedKey string
	// Users names those of Security.Users that may come from here; all if empty.
	Users []string
}

func (c *Security) check() error {
	if c.SelfHostname == "" || c.SharedKey == "" {
		return errors.New("forward: <security> needs self_hostname and shared_key")
	}
	if c.UserAuth && len(c.Users) == 0 {
		return errors.New("forward: <security> has user_auth true and no <user>")
	}
	if c.DenyAnonymous && len(c.Clients) == 0 {
		return errors.New("forward: <security> has allow_anonymous_source false and no <client>")
	}
	return nil
}

// client finds the rules for a sender's address; the zero Client has none.
func (c *Security) client(sender net.Addr) (rules Client, known bool) {
	tcp, ok := sender.(*net.TCPAddr)
	if !ok {
		return Client{}, false // a unix socket: no address
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	for _, cl := range c.Clients {
		if cl.Network.Contains(ip) {
			return cl, true
		}
	}
	return Client{}, false
}

// Reasons that in_forward gives in a PONG.
const (
	badPing     = "invalid ping message"
	badKey      = "shared_key mismatch"
	badPassword = "username/password mismatch"
)

// errHandshake ends a connection whose handshake failed; it is counted and
// logged where it is found.
var errHandshake = errors.New("handshake failed")

func randomBytes(b []byte) { rand.Read(b) } // never fails: see crypto/rand

// authenticate does the handshakes that are configured. A sender that failed
// before waits first.
func (s *session) authenticate(ctx context.Context) error {
	if s.srv.config.TLS == nil && s.srv.config.Security == nil {
		return nil
	}
	if err := s.servePenalty(ctx); err != nil {
		return err
	}
	deadline := time.Now().Add(s.srv.config.HandshakeTimeout) // of both together
	if err := s.handshakeTLS(ctx, deadline); err != nil {
		return err
	}
	if err := s.handshake(ctx, deadline); err != nil {
		return err
	}
	s.srv.penalties.pass(clientOf(s.remote))
	s.peer.uses(s.secured())
	return nil
}

// secured are the features of the handshakes that the sender has done.
func (s *session) secured() (f feature) {
	if s.srv.config.TLS != nil {
		f |= featureTLS
	}
	if sec := s.srv.config.Security; sec != nil {
		f |= featureSharedKey
		if sec.UserAuth {
			f |= featureUser
		}
	}
	return f
}

// handshakeTLS completes the handshake of TLS, if the connection is one. A
// connection that ends before its first byte is a health check.
func (s *session) handshakeTLS(ctx context.Context, deadline time.Time) error {
	conn, ok := s.conn.(*tls.Conn)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	err := conn.HandshakeContext(ctx)
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return err
	case s.srv.draining.Load():
		return errDrained
	}
	s.heard = true
	return s.handshakeFailed("TLS: " + err.Error())
}

// handshake plays the server's part of the handshake, if it is configured.
func (s *session) handshake(ctx context.Context, deadline time.Time) error {
	sec := s.srv.config.Security
	if sec == nil {
		return nil
	}
	if err := s.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	nonce := make([]byte, nonceLen)
	s.srv.nonce(nonce)
	var auth []byte
	if sec.UserAuth {
		auth = make([]byte, nonceLen)
		s.srv.nonce(auth)
	}
	if _, err := s.conn.Write(encodeHelo(nonce, auth, !s.srv.config.DenyKeepalive)); err != nil {
		return err
	}
	p, err := s.readPing(ctx, deadline)
	if err != nil {
		return err
	}
	ping, err := decodePing(p)
	s.consume(len(p))
	reason := badPing
	if err == nil {
		reason = sec.judge(ping, nonce, auth, s.remote)
	}
	if _, err := s.conn.Write(sec.encodePong(reason, ping, nonce, s.remote)); err != nil {
		return err
	}
	if reason != "" {
		return s.handshakeFailed(reason)
	}
	return s.conn.SetDeadline(time.Time{})
}

// handshakeFailed counts and logs a sender that was turned away.
func (s *session) handshakeFailed(reason string) error {
	s.srv.counters.handshakeFailed.Add(1)
	s.peer.handshakeFailures.Add(1)
	s.srv.penalties.fail(clientOf(s.remote), time.Now())
	if ok, muted := s.srv.refusals.allow(time.Now()); ok {
		s.srv.log.Warn("handshake failed", zap.Stringer("sender", s.remote), zap.String("reason", reason), zap.Uint64("not_logged", muted))
	}
	return errHandshake
}

// readPing reads one msgpack object into the buffer and returns its bytes; more
// may follow them there.
func (s *session) readPing(ctx context.Context, deadline time.Time) ([]byte, error) {
	s.parser.scan.Reset(1, s.srv.limits.depth)
	scanned := 0
	for {
		if err := s.makeRoom(ctx); err != nil {
			return nil, err
		}
		if err := s.conn.SetReadDeadline(deadline); err != nil {
			return nil, err
		}
		if s.srv.draining.Load() {
			return nil, errDrained
		}
		n, err := s.read(ctx)
		if n == 0 {
			switch {
			case err == nil || errors.Is(err, io.EOF):
				return nil, io.EOF
			case errors.Is(err, os.ErrDeadlineExceeded) && !s.srv.draining.Load():
				return nil, s.handshakeFailed(fmt.Sprintf("no ping within %v", s.srv.config.HandshakeTimeout))
			case errors.Is(err, os.ErrDeadlineExceeded):
				return nil, errDrained
			}
			return nil, err
		}
		s.heard = true
		s.w += n
		s.largest = max(s.largest, s.w)
		n, done, err := s.parser.scan.Scan((*s.buf)[s.r+scanned : s.w])
		scanned += n
		if err != nil || scanned > maxPing || s.w-s.r > maxPing && !done {
			return nil, s.handshakeFailed(badPing)
		}
		if done {
			return (*s.buf)[s.r : s.r+scanned], nil
		}
	}
}

// ping is the sender's half of the handshake.
type ping struct {
	hostname, salt, digest, user, passwordDigest []byte
}

// decodePing reads ["PING", hostname, salt, digest, user, password digest]
// from bytes that the scanner has found whole. The texts may be str or bin.
func decodePing(p []byte) (ping, error) {
	dec := msgpack.NewDecoder(bytes.NewReader(p))
	n, err := dec.DecodeArrayLen()
	if err != nil {
		return ping{}, err
	}
	if n != 6 {
		return ping{}, fmt.Errorf("an array of %d", n)
	}
	var f [6][]byte
	for i := range f {
		if f[i], err = dec.DecodeBytes(); err != nil {
			return ping{}, err
		}
	}
	if string(f[0]) != "PING" {
		return ping{}, fmt.Errorf("%.10q instead of PING", f[0])
	}
	return ping{f[1], f[2], f[3], f[4], f[5]}, nil
}

// judge returns why the sender is turned away, or "". Digests are compared in
// constant time, and an unknown user takes as long as a wrong password.
func (c *Security) judge(p ping, nonce, auth []byte, sender net.Addr) string {
	rules, known := c.client(sender)
	if !known && c.DenyAnonymous {
		return fmt.Sprintf("anonymous source host '%s' denied", hostOf(sender))
	}
	want := hexDigest(p.salt, p.hostname, nonce, []byte(c.key(rules)))
	if subtle.ConstantTimeCompare(want, p.digest) != 1 {
		return badKey
	}
	if !c.UserAuth {
		return ""
	}
	password, exists := c.Users[string(p.user)]
	allowed := len(rules.Users) == 0 || slices.Contains(rules.Users, string(p.user))
	want = hexDigest(auth, p.user, []byte(password))
	if subtle.ConstantTimeCompare(want, p.passwordDigest) != 1 || !exists || !allowed {
		return badPassword
	}
	return ""
}

// key is the shared key that counts for a sender.
func (c *Security) key(rules Client) string {
	if rules.SharedKey != "" {
		return rules.SharedKey
	}
	return c.SharedKey
}

// hostOf is the sender's address without its port, as in_forward names it.
func hostOf(sender net.Addr) string {
	if tcp, ok := sender.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().String()
	}
	return sender.String()
}

// encodeHelo writes ["HELO", {nonce, auth, keepalive}] as in_forward does; auth
// is empty unless users are asked for, or Fluent Bit would demand one.
func encodeHelo(nonce, auth []byte, keepalive bool) []byte {
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	must(enc.EncodeArrayLen(2), enc.EncodeString("HELO"), enc.EncodeMapLen(3),
		enc.EncodeString("nonce"), enc.EncodeBytes(nonce))
	must(enc.EncodeString("auth"))
	if auth == nil {
		must(enc.EncodeString(""))
	} else {
		must(enc.EncodeBytes(auth))
	}
	must(enc.EncodeString("keepalive"), enc.EncodeBool(keepalive))
	return b.Bytes()
}

// encodePong writes ["PONG", ok, reason, hostname, digest].
func (c *Security) encodePong(reason string, p ping, nonce []byte, sender net.Addr) []byte {
	hostname, digest := "", ""
	if reason == "" {
		rules, _ := c.client(sender)
		hostname = c.SelfHostname
		digest = string(hexDigest(p.salt, []byte(hostname), nonce, []byte(c.key(rules))))
	}
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	must(enc.EncodeArrayLen(5), enc.EncodeString("PONG"), enc.EncodeBool(reason == ""),
		enc.EncodeString(reason), enc.EncodeString(hostname), enc.EncodeString(digest))
	return b.Bytes()
}

// must panics on the errors of encoding to memory, which cannot happen.
func must(errs ...error) {
	if err := errors.Join(errs...); err != nil {
		panic(err)
	}
}

// hexDigest is the SHA-512 of the parts, in hexadecimal.
func hexDigest(parts ...[]byte) []byte {
	h := sha512.New()
	for _, p := range parts {
		h.Write(p)
	}
	return []byte(hex.EncodeToString(h.Sum(nil)))
}
