package forward

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestHalfClosed: the sender closes its side while its message waits for the
// disk. weir closes its own side soon, the message is stored nevertheless.
func TestHalfClosed(t *testing.T) {
	for _, secure := range []bool{false, true} {
		h := &keeper{}
		c := Config{Handler: h, busyGrace: busyGrace}
		r := serve(t, c)
		if secure {
			c.TLS = serverTLS(t)
			r = serve(t, c)
		}
		requireRest(t, r.Server)
		conn := r.dial()
		w := io.Writer(conn)
		if secure {
			w = tlsClient(t, conn)
		}
		if _, err := w.Write(pack([]any{"t", stream(1), dict{"chunk": "id"}})); err != nil {
			t.Fatal(err)
		}
		eventually(t, "in flight", func() bool { return h.count() == 1 })
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		// The end of weir's side: the connection is not in CLOSE_WAIT any more.
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is counted", func() bool { return r.Stats().HalfClosed == 1 })
		h.held[0].Done(nil)
		eventually(t, "the message is stored and the connection gone", func() bool {
			st := r.Stats()
			return st.Events["packed"] == 1 && st.Open == 0 && st.MemoryHeld == 0
		})
		requireRest(t, r.Server)
	}
}

// requireRest waits until nothing is watched for a half-closed connection: without
// a busy session the server wakes for none.
func requireRest(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, "the watch rests", func() bool { return !s.halfClosed.on.Load() && s.halfClosed.sessions.Load() == 0 })
}

// blocking is a Handler that blocks until it is released, as a full buffer does.
type blocking struct {
	begun   chan struct{}
	release chan struct{}
	mu      sync.Mutex
	events  int
}

func (h *blocking) Handle(ctx context.Context, m *Message) {
	select {
	case h.begun <- struct{}{}:
	default:
	}
	select {
	case <-h.release:
	case <-ctx.Done():
		m.Done(ctx.Err())
		return
	}
	h.mu.Lock()
	h.events += m.Events
	h.mu.Unlock()
	m.Done(nil)
}

// TestHalfClosedUnread: the same while weir does not read at all. What the sender
// has sent without asking for acks is read later, all of it.
func TestHalfClosedUnread(t *testing.T) {
	h := &blocking{begun: make(chan struct{}, 1), release: make(chan struct{})}
	r := serve(t, Config{Handler: h, busyGrace: busyGrace})
	requireRest(t, r.Server)
	conn := r.dial()
	message := pack([]any{"t", stream(100)})
	// More than one read takes, and little enough for the kernel's receive
	// buffer: the end of the stream waits behind what does not fit into that.
	for range 20 {
		if _, err := conn.Write(message); err != nil {
			t.Fatal(err)
		}
	}
	<-h.begun
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Fatal(err)
	}
	close(h.release)
	eventually(t, "all is read", func() bool { return r.Stats().Open == 0 })
	if h.events != 20*100 {
		t.Errorf("%d events", h.events)
	}
}

// TestResetInTheMiddle: a sender that dies in the middle of a message is counted,
// and nothing of the message is handed over.
func TestResetInTheMiddle(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	h := &received{}
	r := serve(t, Config{Handler: h, Log: zap.New(core)})
	conn := r.dial()
	if _, err := conn.Write(pack([]any{"t", stream(100)})[:100]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the beginning is read", func() bool { return r.Stats().MemoryHeld > 0 })
	if err := conn.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	eventually(t, "counted and logged", func() bool { return r.Stats().RefusedMessages[ReasonCut] == 1 && logs.Len() > 0 })
	if len(h.all()) != 0 || logs.Len() != 1 {
		t.Errorf("%v, log %v", h.all(), logs.All())
	}
}

// TestMinRate: a sender that drips is refused, one that is merely slow is not.
func TestMinRate(t *testing.T) {
	h := &received{}
	r := serve(t, Config{Handler: h, StallTimeout: 2 * time.Second, MinRate: 1000})
	message := pack([]any{"t", stream(200), dict{"chunk": "id"}})
	drip := func(n int) error {
		conn := r.dial()
		done := make(chan struct{})
		defer func() { <-done }()
		go func() {
			defer close(done)
			for p := message; len(p) > 0; {
				k := min(n, len(p))
				if _, err := conn.Write(p[:k]); err != nil {
					return
				}
				p = p[k:]
				time.Sleep(20 * time.Millisecond)
			}
		}()
		_, err := io.ReadFull(conn, make([]byte, len(ackOfID)))
		conn.Close()
		return err
	}
	if err := drip(1); err == nil {
		t.Error("50 bytes a second are taken")
	}
	if st := r.Stats(); st.RefusedMessages[ReasonSlow] != 1 || len(h.all()) != 0 {
		t.Errorf("stats %+v", st.RefusedMessages)
	}
	if err := drip(200); err != nil {
		t.Errorf("10,000 bytes a second: %v", err)
	}
}

// TestLateRead: whether a sender drips or stalls is told by when its last bytes
// came, however late the session looks.
func TestLateRead(t *testing.T) {
	s := &session{visitor: &visitor{srv: &Server{config: Config{StallTimeout: time.Minute, MinRate: 1000}}}, w: 1}
	for _, c := range []struct {
		silent time.Duration
		want   string
	}{{61 * time.Second, ReasonStalled}, {59 * time.Second, ReasonSlow}} {
		s.begun, s.readAt = time.Now().Add(-2*time.Minute), time.Now().Add(-c.silent)
		_, err := s.timeLeft()
		for _, err := range []error{err, s.timedOut()} {
			var r *Refusal
			if !errors.As(err, &r) || r.Reason != c.want {
				t.Errorf("nothing came for %v: %v, want %s", c.silent, err, c.want)
			}
		}
	}
}

// TestPenalties: each failed handshake makes the next one of that address wait
// longer, up to a limit; a good one forgets them.
func TestPenalties(t *testing.T) {
	var p penalties
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now := time.Now()
	for _, want := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		if d := p.delay(a, now); d != want {
			t.Errorf("delay %v, want %v", d, want)
		}
		p.fail(a, now)
	}
	for range 100 {
		p.fail(a, now)
	}
	if d := p.delay(a, now); d != penaltyMax {
		t.Errorf("delay %v after many", d)
	}
	if d := p.delay(b, now); d != 0 {
		t.Errorf("another address waits %v", d)
	}
	if d := p.delay(a, now.Add(penaltyMemory+time.Second)); d != 0 {
		t.Errorf("delay %v after a long time", d)
	}
	p.pass(a)
	if d := p.delay(a, now); d != 0 {
		t.Errorf("delay %v after a good handshake", d)
	}
	p.fail(b, now.Add(-time.Second))
	for i := range maxPenalties {
		p.fail(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now)
	}
	if len(p.failed) != maxPenalties || p.delay(b, now) != 0 {
		t.Errorf("%d addresses, the oldest among them: %v", len(p.failed), p.delay(b, now))
	}
}

// TestFailedHandshakesOfASender: they are in the sender's row with its address,
// each makes the next attempt wait longer, and a good one ends that.
func TestFailedHandshakesOfASender(t *testing.T) {
	r := serve(t, Config{Handler: &received{}, Security: &Security{SelfHostname: "weir", SharedKey: "k"}})
	for i := range 4 {
		begin := time.Now()
		if ok, reason := r.shake("wrong", "", ""); ok || reason != badKey {
			t.Fatalf("ok %v, %q", ok, reason)
		}
		// The first comes at once; then 100, 200 and 400 ms.
		if least := penaltyFirst << i / 2; i > 0 && time.Since(begin) < least {
			t.Errorf("attempt %d took %v, less than %v", i+1, time.Since(begin), least)
		}
	}
	if ok, reason := r.shake("k", "", ""); !ok {
		t.Errorf("with the right key: %q", reason)
	}
	rows := r.Senders(0, func(s *SenderStats) float64 { return float64(s.HandshakeFailures) })
	if len(rows) != 1 || rows[0].Addr != netip.MustParseAddr("127.0.0.1") || rows[0].HandshakeFailures != 4 || rows[0].Accepted != 5 {
		t.Errorf("%+v", rows)
	}
	if d := r.penalties.delay(rows[0].Addr, time.Now()); d != 0 {
		t.Errorf("it still waits %v", d)
	}
}

// TestPenaltyEndsWithTheServer: who waits for a handshake does not hold a
// shutdown up.
func TestPenaltyEndsWithTheServer(t *testing.T) {
	r := serve(t, Config{Handler: &received{}, Security: security()})
	local := netip.MustParseAddr("127.0.0.1")
	for range 20 {
		r.penalties.fail(local, time.Now())
	}
	conn := r.dial()
	eventually(t, "the connection is there", func() bool { return r.Stats().Open == 1 })
	if err := r.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}
