package forward

import (
	"bufio"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// SenderConfig is how a Sender reaches a receiver.
type SenderConfig struct {
	// Address is host:port, or unix:/path.
	Address string
	// TLS asks for TLS; nil for a plain connection.
	TLS *tls.Config
	// SharedKey asks for the handshake, if it is not empty; Username and Password
	// are for receivers with user_auth.
	SharedKey, Username, Password string
	// Hostname is the name in the handshake; the host's if it is empty.
	Hostname string
	// Timeout bounds each of dialling, the handshake and a wait for an ack; 0 for
	// 60 s.
	Timeout time.Duration
}

// Sender sends messages over one connection and waits for their acks, one
// after the other. It is for few messages: it batches nothing.
type Sender struct {
	conn    net.Conn
	r       *bufio.Reader
	timeout time.Duration
}

// Dial connects and does the handshake.
func Dial(ctx context.Context, c SenderConfig) (*Sender, error) {
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	network, address := "tcp", c.Address
	if path, ok := cutUnix(address); ok {
		network, address = "unix", path
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	if c.TLS != nil {
		secure := tls.Client(conn, c.TLS)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("forward: TLS with %s: %w", c.Address, err), conn.Close())
		}
		conn = secure
	}
	cl := &Sender{conn: conn, r: bufio.NewReader(conn), timeout: c.Timeout}
	if c.SharedKey != "" {
		if err := cl.handshake(c); err != nil {
			return nil, errors.Join(fmt.Errorf("forward: handshake with %s: %w", c.Address, err), conn.Close())
		}
	}
	return cl, nil
}

func cutUnix(address string) (path string, ok bool) {
	if len(address) > 5 && address[:5] == "unix:" {
		return address[5:], true
	}
	return "", false
}

// handshake plays the sender's part: HELO, PING, PONG.
func (cl *Sender) handshake(c SenderConfig) error {
	if err := cl.conn.SetDeadline(time.Now().Add(cl.timeout)); err != nil {
		return err
	}
	if c.Hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		c.Hostname = name
	}
	dec := msgpack.NewDecoder(cl.r)
	var helo struct {
		_msgpack struct{} `msgpack:",as_array"` // read by msgpack
		Name     string
		Options  struct {
			Nonce []byte `msgpack:"nonce"`
			Auth  []byte `msgpack:"auth"`
		}
	}
	if err := dec.Decode(&helo); err != nil || helo.Name != "HELO" {
		return fmt.Errorf("no HELO came: is <security> configured there? %w", err)
	}
	salt := make([]byte, nonceLen)
	randomBytes(salt)
	nonce, key := helo.Options.Nonce, []byte(c.SharedKey)
	digest := hexDigest(salt, []byte(c.Hostname), nonce, key)
	password := []byte{}
	if len(helo.Options.Auth) > 0 {
		password = hexDigest(helo.Options.Auth, []byte(c.Username), []byte(c.Password))
	}
	ping, err := msgpack.Marshal([]any{"PING", c.Hostname, salt, string(digest), c.Username, string(password)})
	if err != nil {
		return err
	}
	if _, err := cl.conn.Write(ping); err != nil {
		return err
	}
	var pong struct {
		_msgpack         struct{} `msgpack:",as_array"` // read by msgpack
		Name             string
		OK               bool
		Reason           string
		Hostname, Digest string
	}
	switch err := dec.Decode(&pong); {
	case err != nil:
		return fmt.Errorf("no PONG came: %w", err)
	case !pong.OK:
		return fmt.Errorf("refused: %s", pong.Reason)
	case subtle.ConstantTimeCompare([]byte(pong.Digest), hexDigest(salt, []byte(pong.Hostname), nonce, key)) != 1:
		return errors.New("the receiver does not know the shared key")
	}
	return cl.conn.SetDeadline(time.Time{})
}

// Send writes one message, msgpack or JSON, that carries the chunk id, and
// waits for its ack.
func (cl *Sender) Send(message []byte, chunk string) error {
	if err := cl.conn.SetDeadline(time.Now().Add(cl.timeout)); err != nil {
		return err
	}
	if _, err := cl.conn.Write(message); err != nil {
		return fmt.Errorf("forward: send: %w", err)
	}
	var ack struct {
		Ack string `msgpack:"ack" json:"ack"`
	}
	var err error
	if message[0] == '[' {
		err = json.NewDecoder(cl.r).Decode(&ack)
	} else {
		err = msgpack.NewDecoder(cl.r).Decode(&ack)
	}
	switch {
	case err != nil:
		return fmt.Errorf("forward: no ack came: %w", err)
	case ack.Ack != chunk:
		return fmt.Errorf("forward: ack of %q instead of %q", ack.Ack, chunk)
	}
	return nil
}

// Close closes the connection.
func (cl *Sender) Close() error { return cl.conn.Close() }
