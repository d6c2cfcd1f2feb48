package forward

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// batches is a Flusher: what is batched is Done by Flush.
type batches struct {
	mu      sync.Mutex
	put     []*Message
	flushes int
	batched int
	block   func(m *Message) // in Handle
}

func (h *batches) Handle(_ context.Context, m *Message) {
	if h.block != nil {
		h.block(m)
	}
	h.mu.Lock()
	if m.Batched {
		h.put = append(h.put, m)
		h.batched++
		h.mu.Unlock()
		return
	}
	h.mu.Unlock()
	m.Done(nil)
}

func (h *batches) Flush() {
	h.mu.Lock()
	put := h.put
	h.put = nil
	h.flushes++
	h.mu.Unlock()
	for _, m := range put {
		m.Done(nil)
	}
}

func (h *batches) counts() (batched, flushes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.batched, h.flushes
}

// ask sends a message and waits for its ack.
func ask(conn net.Conn, id string, record any) error {
	if _, err := conn.Write(pack([]any{"t", 1700000000, record, dict{"chunk": id}})); err != nil {
		return err
	}
	return requireAck(conn, id)
}

func requireAck(conn net.Conn, id string) error {
	want := pack(dict{"ack": id})
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("%q, %w, want the ack %q", got, err, id)
	}
	return nil
}

// parkedSessions is how many sessions nobody runs.
func (r *running) parkedSessions() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		if s.owner.Load() == parked {
			n++
		}
	}
	return n
}

// TestParked: connections that have nothing under way have no goroutine, whether
// they have spoken or not, and what they send is batched.
func TestParked(t *testing.T) {
	const senders, each = 50, 20
	h := &batches{}
	r := serve(t, Config{Handler: h})
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for range senders {
		conns = append(conns, r.dial())
	}
	eventually(t, "all are parked", func() bool { return r.parkedSessions() == senders })
	var wg sync.WaitGroup
	for n, conn := range conns[1:] {
		wg.Go(func() {
			for i := range each {
				if err := ask(conn, fmt.Sprint(n, i), dict{"n": i}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "all are parked again", func() bool { return r.parkedSessions() == senders })
	if more := runtime.NumGoroutine() - before; more > senders/2 {
		t.Errorf("%d goroutines more than before %d connections", more, senders)
	}
	if batched, flushes := h.counts(); batched != (senders-1)*each || flushes == 0 || flushes > batched {
		t.Errorf("%d of %d messages batched, %d flushes", batched, (senders-1)*each, flushes)
	}
	if held, _, _ := r.memory.reading(); held != 0 {
		t.Errorf("%d bytes held by idle connections", held)
	}
}

// TestLeaveAndReturn: messages in pieces, in a row and alone, long and short, on
// many connections: sessions go to goroutines and back to the poller, and every
// message is acked once, in order.
func TestLeaveAndReturn(t *testing.T) {
	const senders, each = 16, 300
	h := &batches{}
	r := serve(t, Config{Handler: h})
	var wg sync.WaitGroup
	for n := range senders {
		conn := r.dial()
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(n), 1))
			var out []byte
			var ids []string
			for i := range each {
				id := fmt.Sprint(n, i)
				ids = append(ids, id)
				size := rnd.IntN(300)
				if rnd.IntN(20) == 0 {
					size = rnd.IntN(30_000)
				}
				out = append(out, pack([]any{"t", 1700000000, dict{"m": string(make([]byte, size))}, dict{"chunk": id}})...)
				if rnd.IntN(4) == 0 {
					out = append(out, 0xc0)
				}
				cut := len(out)
				if i < each-1 && i%8 == 7 { // runs of whole messages in between
					cut = rnd.IntN(len(out))
				}
				if _, err := conn.Write(out[:cut]); err != nil {
					t.Error(err)
					return
				}
				if out = out[cut:]; len(out) > 0 {
					continue // the next one brings the rest
				}
				for _, id := range ids {
					if err := requireAck(conn, id); err != nil {
						t.Error(err)
						return
					}
				}
				ids = nil
			}
		})
	}
	wg.Wait()
	st := r.Stats()
	if n := st.Messages["message"]; n != senders*each || st.Acks != n {
		t.Errorf("%d messages and %d acks, want %d", n, st.Acks, senders*each)
	}
	if batched, _ := h.counts(); batched == 0 || batched == senders*each {
		t.Errorf("%d of %d messages batched: the others went the other way", batched, senders*each)
	}
}

// TestPollerBlocked: a handler that blocks on a message holds up its sender, and
// others only until that is found out. What the blocked ones send meanwhile is
// taken afterwards.
func TestPollerBlocked(t *testing.T) {
	release := make(chan struct{})
	var blocked atomic.Int32
	h := &batches{block: func(m *Message) {
		if string(m.Tag) == "block" {
			blocked.Add(1)
			<-release
		}
	}}
	r := serve(t, Config{Handler: h})
	eventuallyParked := func(n int) {
		t.Helper()
		eventually(t, "parked", func() bool { return r.parkedSessions() == n })
	}
	good, bad, worse := r.dial(), r.dial(), r.dial()
	for i, conn := range []net.Conn{good, bad, worse} {
		if err := ask(conn, fmt.Sprint(i), dict{}); err != nil {
			t.Fatal(err)
		}
	}
	eventuallyParked(3)
	stop := func(conn net.Conn, n int32) {
		t.Helper()
		if _, err := conn.Write(pack([]any{"block", 1700000000, dict{}, dict{"chunk": "b1"}})); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the handler blocks", func() bool { return blocked.Load() == n })
		if n == 1 { // without any traffic
			eventually(t, "somebody takes the place of the poller", func() bool { return r.poller.stuck.Load() > 0 })
			time.Sleep(6 * watchInterval)
			if n := r.poller.stuck.Load(); n > 2 { // 1, but for a machine that stands still
				t.Errorf("%d goroutines are stuck after one has blocked: who waits for events is not", n)
			}
		}
		// Not read as long as the one before is handled.
		if _, err := conn.Write(pack([]any{"t", 1700000000, dict{}, dict{"chunk": "b2"}})); err != nil {
			t.Fatal(err)
		}
	}
	stop(bad, 1)
	for i := range 5 {
		if err := ask(good, fmt.Sprint("during", i), dict{}); err != nil {
			t.Fatal(err)
		}
	}
	if r.poller.stuck.Load() == 0 || r.Stats().Waits["poller"] == 0 {
		t.Error("nobody has taken the place of the poller")
	}
	stop(worse, 2) // in a goroutine of its own by now
	if err := ask(good, "during more", dict{}); err != nil {
		t.Fatal(err)
	}
	close(release)
	for _, conn := range []net.Conn{bad, worse} {
		for _, id := range []string{"b1", "b2"} {
			if err := requireAck(conn, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "nobody is stuck", func() bool { return r.poller.stuck.Load() == 0 })
	batched, _ := h.counts()
	for i, conn := range []net.Conn{good, bad, worse} {
		for n := range 2 * parkAfter {
			if err := ask(conn, fmt.Sprint("after", i, n), dict{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventuallyParked(3)
	if now, _ := h.counts(); now == batched {
		t.Error("nothing is batched any more")
	}
}

// TestBeside: where there are processors to spare, senders beyond the first ones
// that are ready at a time get goroutines.
func TestBeside(t *testing.T) {
	const senders = 2 * shareFrom
	release := make(chan struct{})
	var held atomic.Bool
	h := &batches{block: func(m *Message) {
		if string(m.Tag) == "block" {
			held.Store(true)
			<-release
		}
	}}
	r := serve(t, Config{Handler: h})
	r.poller.mu.Lock()
	r.poller.shares = true
	r.poller.mu.Unlock()
	var conns []net.Conn
	for range senders {
		conns = append(conns, r.dial())
	}
	eventually(t, "all are parked", func() bool { return r.parkedSessions() == senders })
	first := r.dial()
	if _, err := first.Write(pack([]any{"block", 1700000000, dict{}})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the handler blocks", held.Load)
	for i, conn := range conns {
		if _, err := conn.Write(pack([]any{"t", 1700000000, dict{}, dict{"chunk": fmt.Sprint(i)}})); err != nil {
			t.Fatal(err)
		}
	}
	close(release) // all are ready now, or soon after
	for i, conn := range conns {
		if err := requireAck(conn, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if batched, _ := h.counts(); batched == 0 || batched > senders-shareFrom/2 {
		t.Errorf("%d of %d batched", batched, senders)
	}
}

// TestEndsWhileParked: Close and Shutdown end sessions that are parked, and those
// that are not.
func TestEndsWhileParked(t *testing.T) {
	for _, end := range []struct {
		name string
		f    func(*Server) error
	}{
		{"Close", (*Server).Close},
		{"Shutdown", func(s *Server) error {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			return s.Shutdown(ctx)
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			r := serve(t, Config{Handler: &batches{}})
			var conns []net.Conn
			for range 20 {
				conns = append(conns, r.dial())
			}
			for i, conn := range conns[:10] {
				if err := ask(conn, fmt.Sprint(i), dict{}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := conns[19].Write([]byte{0x94}); err != nil { // a message that has begun
				t.Fatal(err)
			}
			eventually(t, "all but one are parked", func() bool { return r.parkedSessions() == 19 })
			if err := end.f(r.Server); err != nil {
				t.Fatal(err)
			}
			for i, conn := range conns {
				if _, err := conn.Read(make([]byte, 1)); err == nil {
					t.Errorf("connection %d is open", i)
				}
			}
			if n := r.Stats().Open; n != 0 {
				t.Errorf("%d connections open", n)
			}
		})
	}
}
