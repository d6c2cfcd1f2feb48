package forward

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// maxHelo bounds what a receiver may say in the handshake or in one ack.
const maxHelo = 16 << 10

// SenderConfig is how a Sender reaches a receiver. Address must be set.
type SenderConfig struct {
	// Address is host:port, or unix:/path.
	Address string
	// TLS asks for TLS; nil for a plain connection. An empty ServerName becomes
	// the host of Address.
	TLS *tls.Config
	// SharedKey asks for the handshake, if it is not empty; Username and Password
	// are for receivers with user_auth.
	SharedKey, Username, Password string
	// Hostname is the name in the handshake; the host's if it is empty.
	Hostname string
	// Timeout bounds connecting with all handshakes, and each Send; 0 for 60 s.
	Timeout time.Duration
}

// Sender is one connection to a receiver of the Forward protocol. Send is for
// few messages, one after the other; the other methods are for many at a time.
// It is not safe for concurrent use, but for one goroutine that writes beside
// one that reads acks.
type Sender struct {
	conn    net.Conn
	timeout time.Duration
	in      []byte // of acks; in[r:w] is not yet consumed
	r, w    int
	// KeepAlive is what the receiver said in its HELO: whether the connection may
	// stay open after a message. It is true without a handshake.
	KeepAlive bool
}

// Dial connects, and plays the handshakes of TLS and of the protocol
// (Forward-Protocol-Specification-v1, "Handshake messages"). Its errors name
// the address.
func Dial(ctx context.Context, c SenderConfig) (*Sender, error) {
	setDefault(&c.Timeout, time.Minute)
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	network, address := "tcp", c.Address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err) // names operation and address
	}
	s := &Sender{conn: conn, timeout: c.Timeout, KeepAlive: true}
	if err := s.greet(ctx, c); err != nil {
		return nil, errors.Join(fmt.Errorf("forward: %s: %w", c.Address, err), conn.Close())
	}
	return s, nil
}

// greet plays the handshakes.
func (s *Sender) greet(ctx context.Context, c SenderConfig) error {
	if c.TLS == nil && c.SharedKey == "" {
		return nil
	}
	deadline, _ := ctx.Deadline()
	if err := s.conn.SetDeadline(deadline); err != nil {
		return err
	}
	if c.TLS != nil {
		t := c.TLS
		if t.ServerName == "" {
			t = t.Clone()
			host, _, err := net.SplitHostPort(c.Address)
			if err != nil {
				host = "localhost" // a unix socket
			}
			t.ServerName = host
		}
		tc := tls.Client(s.conn, t)
		if err := tc.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		s.conn = tc
	}
	if c.SharedKey != "" {
		if c.Hostname == "" {
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			c.Hostname = name
		}
		if err := s.handshake(c); err != nil {
			return fmt.Errorf("handshake: %w", err)
		}
	}
	return s.conn.SetDeadline(time.Time{})
}

// handshake answers HELO with PING and checks the receiver's PONG.
func (s *Sender) handshake(c SenderConfig) error {
	p, err := s.object()
	if err != nil {
		return fmt.Errorf("no HELO came, is <security> configured there? %w", err)
	}
	nonce, auth, keepAlive, err := decodeHelo(p)
	if err != nil {
		return err
	}
	s.KeepAlive = keepAlive
	salt := make([]byte, nonceLen)
	randomBytes(salt)
	name, key := []byte(c.Hostname), []byte(c.SharedKey)
	digest := hexDigest(salt, name, nonce, key)
	user, password := "", ""
	if len(auth) > 0 {
		user, password = c.Username, string(hexDigest(auth, []byte(c.Username), []byte(c.Password)))
	}
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	must(enc.EncodeArrayLen(6), enc.EncodeString("PING"), enc.EncodeString(c.Hostname), enc.EncodeBytes(salt),
		enc.EncodeString(string(digest)), enc.EncodeString(user), enc.EncodeString(password))
	if _, err := s.conn.Write(b.Bytes()); err != nil {
		return err
	}
	if p, err = s.object(); err != nil {
		return fmt.Errorf("no PONG came: %w", err)
	}
	dec := msgpack.NewDecoder(bytes.NewReader(p))
	n, err := dec.DecodeArrayLen()
	if err != nil || n != 5 {
		return fmt.Errorf("the answer to PING is no PONG: an array of %d: %w", n, err)
	}
	kind, err1 := dec.DecodeString()
	ok, err2 := dec.DecodeBool()
	reason, err3 := dec.DecodeString()
	server, err4 := dec.DecodeString()
	got, err5 := dec.DecodeString()
	switch err := errors.Join(err1, err2, err3, err4, err5); {
	case err != nil:
		return fmt.Errorf("the answer to PING is no PONG: %w", err)
	case kind != "PONG":
		return fmt.Errorf("the answer to PING is %.10q", kind)
	case !ok:
		return fmt.Errorf("refused: %s", reason)
	case subtle.ConstantTimeCompare(hexDigest(salt, []byte(server), nonce, key), []byte(got)) != 1:
		return errors.New("the receiver does not know the shared key")
	}
	return nil
}

// decodeHelo reads ["HELO", {nonce, auth, keepalive}].
func decodeHelo(p []byte) (nonce, auth []byte, keepAlive bool, err error) {
	dec := msgpack.NewDecoder(bytes.NewReader(p))
	n, err := dec.DecodeArrayLen()
	if err != nil || n != 2 {
		return nil, nil, false, fmt.Errorf("the first message is no HELO: an array of %d: %w", n, err)
	}
	if kind, err := dec.DecodeString(); err != nil || kind != "HELO" {
		return nil, nil, false, fmt.Errorf("the first message is %.10q instead of HELO: %w", kind, err)
	}
	pairs, err := dec.DecodeMapLen()
	keepAlive = true
	for range pairs {
		if err != nil {
			break
		}
		var key string
		if key, err = dec.DecodeString(); err != nil {
			break
		}
		switch key {
		case "nonce":
			nonce, err = dec.DecodeBytes()
		case "auth":
			auth, err = dec.DecodeBytes()
		case "keepalive":
			keepAlive, err = dec.DecodeBool()
		default:
			err = dec.Skip()
		}
	}
	if err != nil {
		return nil, nil, false, fmt.Errorf("HELO: %w", err)
	}
	return nonce, auth, keepAlive, nil
}

// object reads one msgpack object; it is valid until the next read.
func (s *Sender) object() ([]byte, error) {
	for {
		p := s.in[s.r:s.w]
		if len(p) > 0 {
			if n, err := Skip(p); err == nil {
				s.r += n
				return p[:n], nil
			} else if !errors.Is(err, errCut) {
				return nil, err
			}
		}
		if err := s.more(); err != nil {
			return nil, err
		}
	}
}

// more reads what there is.
func (s *Sender) more() error {
	if s.r > 0 {
		copy(s.in, s.in[s.r:s.w])
		s.r, s.w = 0, s.w-s.r
	}
	if s.w == len(s.in) {
		if len(s.in) >= maxHelo {
			return fmt.Errorf("the receiver sends more than %d bytes without an end", maxHelo)
		}
		s.in = append(s.in, make([]byte, max(1<<10, len(s.in)))...)
	}
	n, err := s.conn.Read(s.in[s.w:])
	s.w += n
	if n > 0 {
		return nil
	}
	return err
}

// Conn is the connection below, for its deadlines and addresses; that of TLS if
// there is one.
func (s *Sender) Conn() net.Conn { return s.conn }

// Write writes whole messages that the caller has encoded.
func (s *Sender) Write(p []byte) (int, error) { return s.conn.Write(p) }

// Close closes the connection; acks that are still to come are lost.
func (s *Sender) Close() error { return s.conn.Close() }

// Outgoing is one message to be sent.
type Outgoing struct {
	Mode Mode
	Tag  string
	// Chunk asks for an ack with this id (option "chunk"); nil for none.
	Chunk []byte
	// Events is how many events Payload holds; in ModeMessage it is 1.
	Events int
	// Payload is the event stream: msgpack [time, record] one after the other,
	// compressed as Compression says in ModeCompressed.
	Payload     []byte
	Compression Compression
}

// Send writes one encoded message, msgpack or JSON, that carries the chunk id,
// and waits for its ack.
func (s *Sender) Send(message []byte, chunk string) error {
	if err := s.conn.SetDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	if _, err := s.conn.Write(message); err != nil {
		return fmt.Errorf("forward: send: %w", err)
	}
	got, err := s.ReadAck()
	switch {
	case err != nil:
		return fmt.Errorf("forward: no ack came: %w", err)
	case string(got) != chunk:
		return fmt.Errorf("forward: ack of %q instead of %q", got, chunk)
	}
	return nil
}

// WriteMessage writes one message with one writev(2), its payload without
// copying it, and waits for no ack. In ModeMessage the payload must begin with
// the byte 0x92.
func (s *Sender) WriteMessage(m *Outgoing) error {
	payload := m.Payload
	if m.Mode == ModeMessage {
		if len(payload) == 0 || payload[0] != 0x92 || m.Events != 1 {
			return errors.New("forward: a message in Message mode is one event that begins with an array of 2")
		}
		payload = payload[1:]
	}
	var head [maxTag + 32]byte
	if len(m.Tag) > maxTag {
		return fmt.Errorf("forward: the tag has %d bytes, the limit is %d", len(m.Tag), maxTag)
	}
	bufs := net.Buffers{AppendHead(head[:0], m), payload, AppendOption(nil, m)}
	_, err := bufs.WriteTo(s.conn)
	return err
}

// AppendHead appends what comes before the payload of m: the header of the
// message, its tag and, but for ModeMessage, the header of the payload.
func AppendHead(b []byte, m *Outgoing) []byte {
	elements := byte(3) // tag, payload, option
	if m.Mode == ModeMessage {
		elements = 4 // tag, time, record, option
	}
	b = appendString(append(b, 0x90|elements), m.Tag)
	switch m.Mode {
	case ModeForward:
		b = binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(m.Events))
	case ModePacked, ModeCompressed:
		b = binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(len(m.Payload)))
	}
	return b
}

// AppendOption appends what comes after the payload of m: the option map with
// size (the number of events), chunk and compressed.
func AppendOption(b []byte, m *Outgoing) []byte {
	pairs := byte(1)
	if m.Chunk != nil {
		pairs++
	}
	if m.Mode == ModeCompressed {
		pairs++
	}
	b = append(appendString(append(b, 0x80|pairs), "size"), 0xce)
	b = binary.BigEndian.AppendUint32(b, uint32(m.Events))
	if m.Mode == ModeCompressed {
		b = appendString(appendString(b, "compressed"), m.Compression.String())
	}
	if m.Chunk != nil {
		b = appendString(appendString(b, "chunk"), string(m.Chunk))
	}
	return b
}

// appendString appends a msgpack str.
func appendString(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n < 1<<8:
		b = append(b, 0xd9, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, s...)
}

// ReadAck waits for the next ack and returns its chunk id, which is valid until
// the next call. Receivers answer JSON messages with JSON: both are read. A
// deadline that passes leaves what came so far in place. At the end of the
// stream the error is io.EOF.
func (s *Sender) ReadAck() ([]byte, error) {
	for {
		if chunk, err := s.BufferedAck(); chunk != nil || err != nil {
			return chunk, err
		}
		if err := s.more(); err != nil {
			if errors.Is(err, io.EOF) && s.w > s.r {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// BufferedAck is ReadAck for what has been read already; it returns nil if that
// is no whole ack.
func (s *Sender) BufferedAck() ([]byte, error) {
	p := s.in[s.r:s.w]
	if len(p) == 0 {
		return nil, nil
	}
	chunk, n, err := parseAck(p)
	if err != nil {
		return nil, fmt.Errorf("an answer that is no ack, beginning with % x: %w", p[:min(len(p), 8)], err)
	}
	s.r += n
	if s.r == s.w {
		s.r, s.w = 0, 0
	}
	return chunk, nil
}

// ackHead is how nearly every ack begins: {"ack": ...}.
var ackHead = []byte{0x81, 0xa3, 'a', 'c', 'k'}

var errNoAck = errors.New("not {\"ack\": id}")

// heloHead is how the receiver's part of the handshake begins: ["HELO", ...].
var heloHead = []byte{0x92, 0xa4, 'H', 'E', 'L', 'O'}

var errHelo = errors.New("it is a HELO: the receiver has <security>, a shared key is missing here")

// parseAck reads one ack at the front of p and gives its id and length; both
// are nil and 0 if p is cut.
func parseAck(p []byte) (chunk []byte, n int, err error) {
	if p[0] == '{' || p[0] == '\n' || p[0] == '\r' || p[0] == ' ' {
		return parseJSONAck(p)
	}
	if !bytes.HasPrefix(p, ackHead) {
		if bytes.HasPrefix(ackHead, p) || bytes.HasPrefix(heloHead, p) {
			return nil, 0, nil
		}
		if bytes.HasPrefix(p, heloHead) {
			return nil, 0, errHelo
		}
		return nil, 0, errNoAck
	}
	size, head, ok := stringHeader(p[len(ackHead):])
	if !ok || size > maxChunk {
		return nil, 0, errNoAck
	}
	from := len(ackHead) + head
	n = from + int(size)
	if head == 0 || n > len(p) {
		return nil, 0, nil
	}
	return p[from:n:n], n, nil
}

// parseJSONAck reads {"ack": "id"}.
func parseJSONAck(p []byte) (chunk []byte, n int, err error) {
	d := json.NewDecoder(bytes.NewReader(p))
	var ack struct {
		Ack *string `json:"ack"`
	}
	switch err := d.Decode(&ack); {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	case ack.Ack == nil:
		return nil, 0, errNoAck
	}
	return []byte(*ack.Ack), int(d.InputOffset()), nil
}
