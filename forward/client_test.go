package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// tallying is a Handler that counts events by mode and keeps chunk ids.
type tallying struct {
	mu     sync.Mutex
	events map[Mode]int
	chunks []string
}

func (c *tallying) Handle(_ context.Context, m *Message) {
	c.mu.Lock()
	c.events[m.Mode] += m.Events
	c.chunks = append(c.chunks, string(m.Chunk))
	c.mu.Unlock()
	m.Done(nil)
}

// TestSenderWritesEachMode sends messages of every mode without waiting, then
// reads their acks in order.
func TestSenderWritesEachMode(t *testing.T) {
	h := &tallying{events: map[Mode]int{}}
	r := serve(t, Config{Handler: h})
	s, err := Dial(t.Context(), SenderConfig{Address: r.addr, Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	events := stream(3)
	one := stream(1)
	messages := []Outgoing{
		{Mode: ModeMessage, Events: 1, Payload: one},
		{Mode: ModeForward, Events: 3, Payload: events},
		{Mode: ModePacked, Events: 3, Payload: events},
		{Mode: ModeCompressed, Events: 3, Payload: gzipped(events), Compression: Gzip},
	}
	ids := []string{"short", strings.Repeat("m", 40), strings.Repeat("l", 300), "z"}
	for i := range messages {
		m := &messages[i]
		m.Tag, m.Chunk = strings.Repeat("t", 20*(i+1)), []byte(ids[i])
		if err := s.WriteMessage(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Conn().SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for _, want := range ids {
		if got, err := s.ReadAck(); err != nil || string(got) != want {
			t.Fatalf("ack %q, %v; want %q", got, err, want)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.events[ModeMessage] != 1 || h.events[ModeForward] != 3 || h.events[ModePacked] != 3 || h.events[ModeCompressed] != 3 {
		t.Errorf("events by mode: %v", h.events)
	}
	for _, bad := range []Outgoing{
		{Mode: ModeMessage, Events: 2, Payload: stream(2)},
		{Mode: ModeMessage, Events: 1},
		{Mode: ModePacked, Events: 3, Payload: events, Tag: strings.Repeat("t", maxTag+1)},
	} {
		if err := s.WriteMessage(&bad); err == nil {
			t.Errorf("%v with tag %.5q was sent", bad.Mode, bad.Tag)
		}
	}
}

// TestReadAck gives a Sender answers, whole and byte by byte.
func TestReadAck(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   []string
		err    error // nil for any that is no end of the stream
	}{
		"str":        {"\x81\xa3ack\xa2id", []string{"id"}, io.EOF},
		"two":        {"\x81\xa3ack\xa2id\x81\xa3ack\xd9\x03abc", []string{"id", "abc"}, io.EOF},
		"bin":        {"\x81\xa3ack\xc4\x02\x00\xff", []string{"\x00\xff"}, io.EOF},
		"JSON":       {`{"ack":"a"}` + "\n" + `{ "ack" : "b}\"" }`, []string{"a", `b}"`}, io.EOF},
		"cut":        {"\x81\xa3ack\xa2i", nil, io.ErrUnexpectedEOF},
		"other map":  {"\x81\xa3nak\xa2id", nil, nil},
		"a number":   {"\x81\xa3ack\x07", nil, nil},
		"too long":   {"\x81\xa3ack\xdb\xff\xff\xff\xff", nil, nil},
		"HTTP":       {"HTTP/1.1 400 Bad Request", nil, nil},
		"HELO":       {"\x92\xa4HELO\x81\xa5nonce\xa1x", nil, errHelo},
		"JSON error": {`{"error":"no"}`, nil, nil},
	} {
		for _, piece := range []int{len(c.answer), 1} {
			t.Run(name, func(t *testing.T) {
				near, far := net.Pipe()
				var wrote sync.WaitGroup
				wrote.Go(func() {
					defer far.Close()
					for from := 0; from < len(c.answer); from += piece {
						if _, err := io.WriteString(far, c.answer[from:from+piece]); err != nil {
							return // the reader has seen enough
						}
					}
				})
				s := &Sender{conn: near}
				var got []string
				var err error
				for {
					var id []byte
					if id, err = s.ReadAck(); err != nil {
						break
					}
					got = append(got, string(id))
				}
				near.Close()
				wrote.Wait()
				if strings.Join(got, "|") != strings.Join(c.want, "|") {
					t.Errorf("acks %q, want %q", got, c.want)
				}
				if c.err != nil && !errors.Is(err, c.err) || c.err == nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
					t.Errorf("ended with %v", err)
				}
			})
		}
	}
}
