package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// client is a Forward sender that waits for each ack, as out_forward does with
// require_ack_response.
type client struct {
	conn net.Conn
	dec  *msgpack.Decoder
}

func dial(addr string) (*client, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	return newClient(conn), nil
}

func newClient(conn net.Conn) *client {
	return &client{conn: conn, dec: msgpack.NewDecoder(conn)}
}

// packed encodes a PackedForward message whose events are {"n": first…last-1}.
func packed(tag, chunk string, first, last int) ([]byte, error) {
	var stream bytes.Buffer
	enc := msgpack.NewEncoder(&stream)
	for n := first; n < last; n++ {
		if err := errors.Join(enc.EncodeArrayLen(2), enc.EncodeInt(1700000000), enc.EncodeMap(map[string]any{"n": n})); err != nil {
			return nil, err
		}
	}
	return packedStream(tag, chunk, stream.Bytes(), last-first)
}

// packedStream encodes a PackedForward message of an event stream.
func packedStream(tag, chunk string, stream []byte, events int) ([]byte, error) {
	var msg bytes.Buffer
	enc := msgpack.NewEncoder(&msg)
	err := errors.Join(enc.EncodeArrayLen(3), enc.EncodeString(tag), enc.EncodeBytes(stream),
		enc.EncodeMap(map[string]any{"chunk": chunk, "size": events}))
	return msg.Bytes(), err
}

// send writes one message and waits for its ack; nil means it was acked.
func (c *client) send(tag, chunk string, first, last int) error {
	msg, err := packed(tag, chunk, first, last)
	if err != nil {
		return err
	}
	return c.sendMessage(msg, chunk)
}

// sendMessage writes an encoded message and waits for the ack of its chunk.
func (c *client) sendMessage(msg []byte, chunk string) error {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.conn.Write(msg); err != nil {
		return err
	}
	var ack struct {
		Ack string `msgpack:"ack"`
	}
	if err := c.dec.Decode(&ack); err != nil {
		return err
	}
	if ack.Ack != chunk {
		return fmt.Errorf("ack %q for chunk %q", ack.Ack, chunk)
	}
	return nil
}

// ackedLoad sends numbered events from several connections until stop is
// closed or the server goes away, and remembers what was acked.
type ackedLoad struct {
	mu    sync.Mutex
	next  int
	acked map[int]bool
}

const eventsPerMessage = 20

func (l *ackedLoad) run(t *testing.T, addr string, senders int, stop <-chan struct{}) (wait func()) {
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			c, err := dial(addr)
			if err != nil {
				t.Errorf("sender %d: %v", s, err)
				return
			}
			defer c.conn.Close()
			for {
				select {
				case <-stop:
					return
				default:
				}
				l.mu.Lock()
				first := l.next
				l.next += eventsPerMessage
				l.mu.Unlock()
				if c.send("load", fmt.Sprintf("chunk-%d", first), first, first+eventsPerMessage) != nil {
					return // killed: not acked
				}
				l.mu.Lock()
				for n := first; n < first+eventsPerMessage; n++ {
					l.acked[n] = true
				}
				l.mu.Unlock()
			}
		})
	}
	return wg.Wait
}

func (l *ackedLoad) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}
