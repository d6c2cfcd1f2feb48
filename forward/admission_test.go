package forward

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patientListener holds connections until they speak, as netopt.Listener does.
type patientListener struct {
	net.Listener
	incoming chan net.Conn
	looked   chan looked
	ended    chan struct{} // no more is accepted
	wait     sync.WaitGroup
	held     map[net.Conn]any
}

// looked is a connection on which something has come (or nothing will).
type looked struct {
	conn   net.Conn
	silent bool
}

func listenPatiently(t *testing.T) *patientListener {
	l := &patientListener{Listener: listen(t, "tcp"), incoming: make(chan net.Conn), looked: make(chan looked), ended: make(chan struct{}), held: map[net.Conn]any{}}
	l.wait.Go(func() {
		defer close(l.ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case l.incoming <- c:
			case <-time.After(patience):
				panic("nobody accepts")
			}
		}
	})
	return l
}

func (l *patientListener) AcceptSpeaking(arrive func(net.Addr) (any, bool), leave func(any)) (net.Conn, any, error) {
	for {
		select {
		case <-l.ended:
			for c, guest := range l.held {
				delete(l.held, c)
				return c, guest, nil
			}
			l.wait.Wait()
			return nil, nil, net.ErrClosed
		case c := <-l.incoming:
			guest, ok := arrive(c.RemoteAddr())
			if !ok {
				c.Close()
				continue
			}
			l.held[c] = guest
			l.wait.Go(func() { l.look(c) })
		case k := <-l.looked:
			guest, ok := l.held[k.conn]
			if !ok {
				continue // returned when the listener was closed
			}
			delete(l.held, k.conn)
			if !k.silent {
				return k.conn, guest, nil
			}
			k.conn.Close()
			leave(guest)
		}
	}
}

// look waits for the first byte, unless the listener is closed.
func (l *patientListener) look(c net.Conn) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		panic(err)
	}
	var n int
	var peekErr error
	for peekErr = unix.EAGAIN; peekErr == unix.EAGAIN; time.Sleep(time.Millisecond) {
		if raw.Control(func(fd uintptr) {
			n, _, peekErr = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}) != nil {
			return // returned already, and closed
		}
	}
	select {
	case l.looked <- looked{c, n <= 0}:
	case <-l.ended:
	}
}

// TestSpeakingListener: connections that a listener holds are counted as those that
// have a session, and limited as they are.
func TestSpeakingListener(t *testing.T) {
	r := serveOn(t, listenPatiently(t), Config{Handler: acking{}, MaxConnections: 3})
	var held []*net.TCPConn
	for range 3 {
		held = append(held, r.dial())
	}
	eventually(t, "three are open", func() bool { return r.Stats().Open == 3 })
	if _, err := r.dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the fourth connection: %v", err)
	}
	r.mu.Lock()
	if len(r.sessions) > 0 {
		t.Errorf("%d sessions of connections that have said nothing", len(r.sessions))
	}
	r.mu.Unlock()
	for _, c := range held[1:] {
		c.Close()
	}
	eventually(t, "two are gone", func() bool { return r.Stats().Open == 1 })
	st := r.Stats()
	if st.Accepted != 4 || st.Refused != 1 || st.Peak != 3 || st.Heartbeats["connect"] != 2 {
		t.Errorf("%+v", st)
	}
	senders := r.Senders(0, func(st *SenderStats) float64 { return 0 })
	if len(senders) != 1 || senders[0].Open != 1 || senders[0].Accepted != 4 || senders[0].ConnectBeats != 2 {
		t.Errorf("senders %+v", senders)
	}
	if _, err := held[0].Write(pack([]any{"t", stream(2), dict{"chunk": "id"}})); err != nil {
		t.Fatal(err)
	}
	want := pack(dict{"ack": "id"})
	got := make([]byte, len(want))
	if _, err := io.ReadFull(held[0], got); err != nil || string(got) != string(want) {
		t.Errorf("answer %q, %v, want %q", got, err, want)
	}
	held[0].Close()
	eventually(t, "all are gone", func() bool { return r.Stats().Open == 0 })
	if n := r.Stats().Heartbeats["connect"]; n != 2 {
		t.Errorf("%d heartbeats: one that has spoken is none", n)
	}
}

// TestSpeakingListenerPerClient: the limit of one client counts what is held.
func TestSpeakingListenerPerClient(t *testing.T) {
	r := serveOn(t, listenPatiently(t), Config{Handler: acking{}, MaxConnectionsPerClient: 1})
	first := r.dial()
	eventually(t, "one is open", func() bool { return r.Stats().Open == 1 })
	if _, err := r.dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the second connection: %v", err)
	}
	first.Close()
	eventually(t, "it is gone", func() bool { return r.Stats().Open == 0 })
	r.talk(pack([]any{"t", stream(1)}))
	if n := r.Stats().Events["packed"]; n != 1 {
		t.Errorf("%d events", n)
	}
}

// TestSpeakingListenerShutdown: what has come on a connection that the listener
// still holds is stored and acked.
func TestSpeakingListenerShutdown(t *testing.T) {
	r := serveOn(t, listenPatiently(t), Config{Handler: acking{}})
	var all []*net.TCPConn
	for range 20 {
		all = append(all, r.dial())
	}
	eventually(t, "all are open", func() bool { return r.Stats().Open == len(all) })
	for _, c := range all {
		if _, err := c.Write(pack([]any{"t", stream(2), dict{"chunk": "id"}})); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := pack(dict{"ack": "id"})
	for _, c := range all {
		if got, err := io.ReadAll(c); err != nil || string(got) != string(want) {
			t.Errorf("answer %q, %v, want %q", got, err, want)
		}
	}
	if st := r.Stats(); st.Open != 0 || st.Heartbeats["connect"] != 0 {
		t.Errorf("%+v", st)
	}
}
