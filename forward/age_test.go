package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// TestMaxConnectionAge: an old connection ends between two messages, once the
// last one is acked; one that is idle ends as well.
func TestMaxConnectionAge(t *testing.T) {
	const age = time.Second // for the first write on a busy machine
	h := &keeper{}
	r := serve(t, Config{Handler: h, MaxConnectionAge: age})
	begin := time.Now()
	idle, busy := r.dial(), r.dial()
	if _, err := busy.Write(pack([]any{"t", stream(1), dict{"chunk": "id"}})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "in flight", func() bool { return h.count() == 1 })
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the idle connection: %v", err)
	}
	if d := time.Since(begin); d < age*8/10 {
		t.Errorf("closed after %v", d)
	}
	h.held[0].Done(nil) // long after its age
	if got, err := io.ReadAll(busy); err != nil || string(got) != ackOfID {
		t.Errorf("%q, %v", got, err)
	}
	if st := r.Stats(); st.Aged != 2 {
		t.Errorf("%d connections counted as aged", st.Aged)
	}
}

// TestMaxConnectionAgeUnderLoad: senders find their connections closed again and
// again. Those that ask for acks, one message at a time or many, lose nothing and
// have nothing to repeat that was stored; those that do not ask lose nothing that
// weir's side had.
func TestMaxConnectionAgeUnderLoad(t *testing.T) {
	const senders, connections, window = 6, 4, 16
	h := &received{}
	r := serve(t, Config{Handler: h, MaxConnectionAge: 30 * time.Millisecond})
	var wg sync.WaitGroup
	var sum atomic.Int64
	for i := range senders {
		wg.Go(func() {
			size := 1
			if i%2 == 1 {
				size = window
			}
			sent := 0
			for range connections {
				n, err := acked(r.addr, fmt.Sprintf("s%d-", i), sent, size)
				if err != nil {
					t.Error(err)
					return
				}
				sent = n
			}
			sum.Add(int64(sent))
		})
	}
	wg.Wait()
	chunks := map[string]int{}
	for _, m := range h.all() {
		chunks[m.chunk]++
	}
	if sent := int(sum.Load()); len(chunks) != sent || sent == 0 {
		t.Errorf("%d messages, %d acked", len(chunks), sent)
	}
	for chunk, n := range chunks {
		if n > 1 {
			t.Errorf("message %s came %d times", chunk, n)
		}
	}
	eventually(t, "the connections are gone", func() bool { return r.Stats().Open == 0 })
	if st := r.Stats(); st.Aged != senders*connections {
		t.Errorf("%d connections had their age", st.Aged)
	}
}

// acked sends messages from one on, on a connection of its own, at most window of
// them without their acks, until the server ends it. It returns the first that is
// not acked.
func acked(addr, prefix string, from, window int) (int, error) {
	first := from
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return from, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return from, err
	}
	dec := msgpack.NewDecoder(conn)
	for next := from; ; {
		for next < from+window {
			if _, err := conn.Write(pack([]any{"t", stream(1), dict{"chunk": prefix + fmt.Sprint(next)}})); err != nil {
				break // the acks that came are still to be read
			}
			next++
		}
		var ack map[string]string
		if err := dec.Decode(&ack); err != nil {
			// A connection may have its age before its sender has begun: its first
			// message finds it closed. Later a reset would lose acks under way.
			if errors.Is(err, io.EOF) || from == first && errors.Is(err, syscall.ECONNRESET) {
				return from, nil
			}
			return from, err
		}
		if want := prefix + fmt.Sprint(from); ack["ack"] != want {
			return from, fmt.Errorf("ack %v, want %s", ack, want)
		}
		from++
	}
}

// TestMaxConnectionAgeWithoutAcks: what a sender has written before its
// connection has its age is taken, though nobody has read it yet.
func TestMaxConnectionAgeWithoutAcks(t *testing.T) {
	const age = 2 * time.Second // for a handshake and the writes on a busy machine
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			h := &blocking{begun: make(chan struct{}, 1), release: make(chan struct{})}
			c := Config{Handler: h, MaxConnectionAge: age}
			if secure {
				c.TLS = serverTLS(t)
			}
			r := serve(t, c)
			conn := r.dial()
			eventually(t, "the connection is accepted", func() bool { return r.Stats().Open == 1 })
			accepted := time.Now()
			w := io.Writer(conn)
			if secure {
				w = tlsClient(t, conn)
			}
			message := pack([]any{"t", stream(100)})
			for range 20 {
				if _, err := w.Write(message); err != nil {
					t.Fatal(err)
				}
			}
			<-h.begun
			time.Sleep(time.Until(accepted.Add(age + age/8))) // it has its age, and is blocked
			close(h.release)
			eventually(t, "the connection is gone", func() bool { st := r.Stats(); return st.Open == 0 && st.Aged == 1 })
			if h.events != 20*100 {
				t.Errorf("%d events", h.events)
			}
		})
	}
}
