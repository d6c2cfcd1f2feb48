package forward

import (
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestCutMessage: a message of which only a part has come stays with the poller while
// that lingers, and goes to a goroutine, which knows deadlines, when it does not.
func TestCutMessage(t *testing.T) {
	h := &batches{}
	r := serve(t, Config{Handler: h, StallTimeout: 100 * time.Millisecond})
	p := r.poller
	conn := r.dial()
	if err := ask(conn, "first", dict{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "parked", func() bool { return r.parkedSessions() == 1 })
	// The test takes the poller's place, who finds that out at the next event.
	p.mu.Lock()
	p.place++
	place := p.place
	p.mu.Unlock()
	p.stuck.Add(1)

	var s *session
	r.mu.Lock()
	for each := range r.sessions {
		s = each
	}
	r.mu.Unlock()
	turns := func(lingers bool, done func(messages int) bool) {
		t.Helper()
		messages := 0
		eventually(t, "the session's turn", func() bool {
			messages += s.turn(turn{session: s, lingers: lingers})
			return done(messages)
		})
	}
	message := pack([]any{"t", 1700000000, dict{"m": "half of it"}, dict{"chunk": "second"}})
	half := len(message) / 2
	write := func(p []byte) {
		t.Helper()
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	write(message[:half])
	eventually(t, "the poller has given up its place", func() bool { return p.stuck.Load() == 0 })
	turns(true, func(int) bool { return s.cut.Load() })
	if s.owner.Load() != parked {
		t.Error("cut, and not the poller's any more")
	}
	write(message[half:])
	turns(true, func(messages int) bool { return messages == 1 })
	if s.cut.Load() || s.owner.Load() != parked {
		t.Errorf("cut: %v, owner: %d after the whole message", s.cut.Load(), s.owner.Load())
	}
	r.flush()
	if err := requireAck(conn, "second"); err != nil {
		t.Fatal(err)
	}
	if batched, _ := h.counts(); batched != 2 {
		t.Errorf("%d messages batched, want 2", batched)
	}

	write(message[:half])
	turns(true, func(int) bool { return s.cut.Load() })
	turns(false, func(int) bool { return s.owner.Load() != parked })
	if s.cut.Load() {
		t.Error("cut in a goroutine")
	}
	eventually(t, "the sender has stalled", func() bool { return r.Stats().RefusedMessages[ReasonStalled] == 1 })
	p.wait.Go(func() { p.run(place) })
}

// TestLingersNotForever: a sender that goes on with its message in small pieces does
// not keep the poller from storing what others have sent.
func TestLingersNotForever(t *testing.T) {
	const atMost = maxInFlight - 24 // each takes some microseconds; all fit into the smallest buffer
	var r *running
	var drip, good net.Conn
	var left atomic.Int64
	message := pack([]any{"t", 1700000000, dict{}})
	h := &batches{}
	h.block = func(m *Message) {
		if left.Add(-1) < 0 {
			return
		}
		// There is something to do at all times, as long as the batch lasts.
		for conn, p := range map[net.Conn][]byte{drip: {'a'}, good: message} {
			if _, err := conn.Write(p); err != nil {
				t.Error(err)
			}
		}
		if _, flushes := h.counts(); flushes > 0 {
			left.Store(0)
		}
	}
	r = serve(t, Config{Handler: h})
	r.poller.mu.Lock()
	r.poller.shares = false
	r.poller.mu.Unlock()
	drip, good = r.dial(), r.dial()
	eventually(t, "parked", func() bool { return r.parkedSessions() == 2 })
	left.Store(atMost)
	long := pack([]any{"t", 1700000000, dict{"m": string(make([]byte, minBuffer-100))}})
	if _, err := drip.Write(long[:50]); err != nil {
		t.Fatal(err)
	}
	if _, err := good.Write(message); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the batch is stored", func() bool {
		_, flushes := h.counts()
		return flushes > 0
	})
	eventually(t, "no more is sent", func() bool { return left.Load() <= 0 })
	if st := r.Stats(); st.Messages["message"] >= atMost {
		t.Errorf("%d messages came before the first of them was stored", st.Messages["message"])
	}
}
