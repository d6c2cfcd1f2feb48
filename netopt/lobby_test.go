package netopt_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"weir/netopt"
)

// lobby calls AcceptSpeaking until it fails.
type lobby struct {
	t *testing.T
	l *netopt.Listener

	mu       sync.Mutex
	refuse   bool
	arrived  int              // how many; the guests are numbered from 1
	guests   map[string][]int // by remote address, which may be used again
	nth      map[net.Conn]int // which one of its address a client is, from 0
	dials    map[string]int   // how many of an address there were
	left     map[int]bool
	returned map[int]net.Conn
	err      error
	ended    chan struct{}
}

// openLobby is one that holds connections for so long, or, with 0, as it does by itself.
func openLobby(t *testing.T, hold time.Duration) *lobby {
	return openLobbyOn(t, listen(t, "tcp", "127.0.0.1:0", netopt.Config{}), hold)
}

func openLobbyOn(t *testing.T, l *netopt.Listener, hold time.Duration) *lobby {
	b := &lobby{t: t, l: l, guests: map[string][]int{}, nth: map[net.Conn]int{}, dials: map[string]int{}, left: map[int]bool{}, returned: map[int]net.Conn{}, ended: make(chan struct{})}
	if hold > 0 {
		b.l.SetPatience(hold)
	}
	go func() {
		defer close(b.ended)
		for {
			conn, guest, err := b.l.AcceptSpeaking(b.arrive, b.leave)
			b.mu.Lock()
			if err != nil {
				b.err = err
				b.mu.Unlock()
				return
			}
			if b.returned[guest.(int)] != nil || b.left[guest.(int)] {
				t.Errorf("guest %v came twice", guest)
			}
			b.returned[guest.(int)] = conn
			b.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		b.l.Close()
		<-b.ended
		for _, c := range b.returned {
			c.Close()
		}
	})
	return b
}

func (b *lobby) arrive(remote net.Addr) (any, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuse {
		return nil, false
	}
	b.arrived++
	b.guests[remote.String()] = append(b.guests[remote.String()], b.arrived)
	return b.arrived, true
}

func (b *lobby) leave(guest any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := guest.(int)
	if b.left[n] || b.returned[n] != nil {
		b.t.Errorf("guest %d left twice", n)
	}
	b.left[n] = true
}

func (b *lobby) dial() *net.TCPConn {
	b.t.Helper()
	c, err := net.Dial("tcp", b.l.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	b.nth[c] = b.dials[c.LocalAddr().String()]
	b.dials[c.LocalAddr().String()]++
	return c.(*net.TCPConn)
}

// await waits until the lobby is as it should be.
func (b *lobby) await(what string, is func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		ok := is()
		state := fmt.Sprintf("%d arrived, %d left, %d returned", b.arrived, len(b.left), len(b.returned))
		b.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: not so (%s)", what, state)
		}
	}
}

// guest is the number of a client, which must have arrived.
func (b *lobby) guest(c net.Conn) (n int) {
	b.t.Helper()
	b.await("arrival", func() bool {
		guests := b.guests[c.LocalAddr().String()]
		if len(guests) <= b.nth[c] {
			return false
		}
		n = guests[b.nth[c]]
		return true
	})
	return n
}

// conn is what AcceptSpeaking returned for a client.
func (b *lobby) conn(c net.Conn) (conn net.Conn) {
	b.t.Helper()
	n := b.guest(c)
	b.await("return", func() bool { conn = b.returned[n]; return conn != nil })
	return conn
}

// TestSpeaking: who sends something is returned, who closes before that is not.
func TestSpeaking(t *testing.T) {
	b := openLobby(t, 2*patience)
	closes, resets, speaks, both := b.dial(), b.dial(), b.dial(), b.dial()
	for _, c := range []net.Conn{closes, resets, speaks, both} {
		b.guest(c)
	}
	b.mu.Lock()
	if len(b.returned) > 0 {
		t.Error("returned before anything came")
	}
	b.mu.Unlock()
	closes.Close()
	resets.SetLinger(0)
	resets.Close()
	for _, c := range []net.Conn{closes, resets} {
		n := b.guest(c)
		b.await("leaving", func() bool { return b.left[n] })
	}
	speaks.Write([]byte("hello"))
	both.Write([]byte("hello"))
	both.Close()
	for _, c := range []net.Conn{speaks, both} {
		conn := b.conn(c)
		if conn.RemoteAddr().String() != c.LocalAddr().String() {
			t.Errorf("remote %v, want %v", conn.RemoteAddr(), c.LocalAddr())
		}
		p := make([]byte, 5)
		if _, err := io.ReadFull(conn, p); err != nil || string(p) != "hello" {
			t.Errorf("read %q, %v", p, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.left) != 2 || len(b.returned) != 2 {
		t.Errorf("%d left and %d returned of 4", len(b.left), len(b.returned))
	}
}

// TestSpeakingPatience: who says nothing for long waits like any other connection,
// and has lost nothing.
func TestSpeakingPatience(t *testing.T) {
	b := openLobby(t, 0)
	silent := b.dial()
	conn := b.conn(silent)
	silent.Write([]byte("late"))
	p := make([]byte, 4)
	if _, err := io.ReadFull(conn, p); err != nil || string(p) != "late" {
		t.Errorf("read %q, %v", p, err)
	}
}

// TestSpeakingRefused: the client of a connection that is refused sees its end.
func TestSpeakingRefused(t *testing.T) {
	b := openLobby(t, 2*patience)
	b.mu.Lock()
	b.refuse = true
	b.mu.Unlock()
	c := b.dial()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
}

// TestSpeakingDense: many connections within milliseconds, of which a third
// speaks, a third closes and a third does so later. None is lost, and no descriptor.
func TestSpeakingDense(t *testing.T) {
	const n = 600
	before := descriptors(t)
	b := openLobby(t, 2*patience)
	var all []*net.TCPConn
	for i := range n {
		c := b.dial()
		switch i % 3 {
		case 0:
			c.Write([]byte("x"))
		case 1:
			c.Close()
		}
		all = append(all, c)
	}
	for i, c := range all {
		if i%3 == 2 {
			if i%2 == 0 {
				c.Write([]byte("x"))
			}
			c.Close()
		}
	}
	b.await("end", func() bool { return len(b.left) == n/2 && len(b.returned) == n/2 })
	q, err := b.l.Queue()
	if err != nil || q.Accepted != n || q.Depth != 0 {
		t.Errorf("queue %+v, %v", q, err)
	}
	b.l.Close()
	<-b.ended
	for i, c := range all {
		c.Close()
		if conn := b.returned[b.guest(c)]; (conn != nil) != (i%3 == 0 || i%3 == 2 && i%2 == 0) {
			t.Errorf("client %d: %v", i, conn)
		} else if conn != nil {
			conn.Close()
		}
	}
	clear(b.returned)
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestSpeakingEnds: whatever ends AcceptSpeaking, those that are held are returned
// first.
func TestSpeakingEnds(t *testing.T) {
	for name, end := range map[string]func(l *netopt.Listener) error{
		"close":    (*netopt.Listener).Close,
		"deadline": func(l *netopt.Listener) error { return l.SetDeadline(time.Now()) },
		"pause":    func(l *netopt.Listener) error { l.Pause(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := openLobby(t, 2*patience)
			var all []net.Conn
			for range 20 {
				c := b.dial()
				b.guest(c)
				all = append(all, c)
			}
			if err := end(b.l); err != nil {
				t.Fatal(err)
			}
			for _, c := range all {
				b.conn(c)
			}
			if name == "pause" {
				b.l.Resume()
				c := b.dial()
				c.Write([]byte("x"))
				b.conn(c)
				return
			}
			<-b.ended
			if !errors.Is(b.err, net.ErrClosed) && !errors.Is(b.err, os.ErrDeadlineExceeded) {
				t.Errorf("ended: %v", b.err)
			}
		})
	}
}

// TestSpeakingExactPeak: as many as come at once are seen in the queue, also if
// they are closed before they are accepted.
func TestSpeakingExactPeak(t *testing.T) {
	_, do := inNamespace(t, 1024)
	for k := 1; k <= 201; k += 50 {
		var l *netopt.Listener
		do(func() (err error) {
			l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{})
			return err
		})
		l.Pause()
		b := openLobbyOn(t, l, 2*patience)
		var fds []int
		do(func() (err error) { fds, err = burst(k, 2400); return err })
		connected(t, fds)
		closeAll(fds)
		// A sender is connected a moment before the listener has the connection; and
		// Queue would note the depth itself.
		eventually(t, func() (err error) {
			do(func() error {
				var all []netopt.ListenSocket
				if all, err = netopt.ListenSockets(); err == nil && (len(all) != 1 || all[0].Depth != k) {
					err = fmt.Errorf("%+v, want %d in the queue", all, k)
				}
				return nil
			})
			return err
		})
		l.Resume()
		b.await("leaving", func() bool { return len(b.left) == k })
		q, err := l.Queue()
		if err != nil {
			t.Fatal(err)
		}
		if q.Peak != k || q.Accepted != uint64(k) {
			t.Errorf("burst of %d: peak %d, accepted %d", k, q.Peak, q.Accepted)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
