package netopt_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"weir/netopt"
)

// openStorm is a lobby for which connections that only close are a storm however
// slowly they come, and for how long ever.
func openStorm(t *testing.T) *lobby {
	l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{})
	l.SetStormPace(time.Hour)
	return openLobbyOn(t, l, 2*patience)
}

// beat connects and closes once, and waits until that is done with.
func (b *lobby) beat() {
	b.t.Helper()
	c := b.dial()
	c.Close()
	n := b.guest(c)
	b.await("leaving", func() bool { return b.left[n] })
}

func (b *lobby) moderated() uint64 {
	b.t.Helper()
	q, err := b.l.Queue()
	if err != nil {
		b.t.Fatal(err)
	}
	return q.Moderated
}

// rage beats until new connections are left in the queue once more.
func (b *lobby) rage() {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for from := b.moderated(); b.moderated() == from; {
		if time.Now().After(deadline) {
			b.t.Fatal("no storm")
		}
		b.beat()
	}
}

// pause pauses the listener and waits until nothing is accepted any more, which is so
// once it has returned whom it held.
func (b *lobby) pause() {
	b.t.Helper()
	held := b.dial()
	b.guest(held)
	b.l.Pause()
	b.conn(held)
}

// TestStorm: in a storm whoever speaks is returned, whoever closes has left and sees
// a clean end, and none is lost.
func TestStorm(t *testing.T) {
	b := openStorm(t)
	for range 60 { // fewer are no storm
		if n := b.moderated(); n != 0 {
			t.Fatalf("%d waits", n)
		}
		b.beat()
	}
	for range 5 {
		b.rage()
		speaks, late, ends := b.dial(), b.dial(), b.dial()
		speaks.Write([]byte("hello"))
		b.conn(speaks)
		ends.CloseWrite()
		ends.SetReadDeadline(time.Now().Add(patience))
		if _, err := ends.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read: %v", err)
		}
		b.guest(late)
		late.Write([]byte("hello"))
		b.conn(late)
	}
	q, err := b.l.Queue()
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if int(q.Accepted) != len(b.left)+len(b.returned) || len(b.returned) != 10 || q.Depth != 0 || q.Peak == 0 {
		t.Errorf("%+v, %d left and %d returned", q, len(b.left), len(b.returned))
	}
}

// TestStormWait: what comes in a wait stays in the queue, but no longer than until
// something else wakes the listener.
func TestStormWait(t *testing.T) {
	for name, end := range map[string]func(l *netopt.Listener) error{
		"deadline": func(l *netopt.Listener) error { return l.SetDeadline(time.Now()) },
		"pause":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{})
			l.SetStormPace(time.Hour)
			l.SetStormWait(time.Hour)
			b := openLobbyOn(t, l, 2*patience)
			held, total := b.dial(), 1
			b.guest(held)
			for ; b.moderated() == 0; total++ {
				if total > 1000 {
					t.Fatal("no storm")
				}
				b.dial().Close()
			}
			// Those that had not ended when they were looked at wake it once more.
			stay := func() bool {
				from, err := b.l.Queue()
				if err != nil {
					t.Fatal(err)
				}
				for range 20 {
					b.dial()
					total++
				}
				time.Sleep(50 * time.Millisecond)
				q, err := b.l.Queue()
				return err == nil && q.Accepted == from.Accepted && q.Depth >= 20
			}
			for try := 0; !stay(); try++ {
				if try == 50 {
					t.Fatal("what comes is accepted")
				}
			}
			if end != nil {
				if err := end(b.l); err != nil {
					t.Fatal(err)
				}
			} else {
				b.l.Pause()
				b.conn(held) // it has ended AcceptSpeaking
				b.l.Resume()
			}
			b.await("all", func() bool { return b.arrived == total })
		})
	}
}

// TestStormIsNone: where too many speak, or the backlog is small, nothing is left in
// the queue.
func TestStormIsNone(t *testing.T) {
	for name, c := range map[string]struct{ backlog, speaks int }{
		"a tenth speaks": {4096, 10},
		"small backlog":  {100, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{Backlog: c.backlog, AllowShort: true})
			l.SetStormPace(time.Hour)
			b := openLobbyOn(t, l, 2*patience)
			for i := range 150 {
				if i%c.speaks > 0 {
					b.beat()
					continue
				}
				s := b.dial()
				s.Write([]byte("x"))
				b.conn(s)
			}
			if n := b.moderated(); n != 0 {
				t.Errorf("%d waits", n)
			}
		})
	}
}

// TestStormSpeakers: once more than a few speak it is no storm any more.
func TestStormSpeakers(t *testing.T) {
	b := openStorm(t)
	b.rage()
	for range 5 {
		s := b.dial()
		s.Write([]byte("x"))
		b.conn(s)
	}
	b.beat() // it ends before the next wait, which this one has seen
	from := b.moderated()
	for range 40 {
		b.beat()
	}
	if n := b.moderated(); n != from {
		t.Errorf("%d waits more", n-from)
	}
}

// TestStormEnds: after a storm nobody waits, nothing wakes, and the next connection
// is seen.
func TestStormEnds(t *testing.T) {
	b := openLobby(t, 2*patience)
	deadline := time.Now().Add(patience)
	for round := 0; b.moderated() == 0; round++ {
		if time.Now().After(deadline) {
			t.Fatal("no storm")
		}
		// In one go, so that even a busy machine takes them within milliseconds.
		b.pause()
		for range 100 {
			b.dial().Close()
		}
		b.l.Resume()
		b.await("leaving", func() bool { return len(b.left) == 100*(round+1) })
	}
	eventually(t, func() error {
		from := b.moderated()
		time.Sleep(100 * time.Millisecond)
		if n := b.moderated(); n != from {
			return fmt.Errorf("%d waits within 100 ms", n-from)
		}
		return nil
	})
	from := b.moderated()
	b.beat()
	s := b.dial()
	b.guest(s)
	s.Write([]byte("x"))
	b.conn(s)
	if n := b.moderated(); n != from {
		t.Errorf("%d waits after the storm", n-from)
	}
}

// TestStormInterrupted: whatever ends AcceptSpeaking does so in a storm as well, and
// those that are held are returned.
func TestStormInterrupted(t *testing.T) {
	for name, end := range map[string]func(l *netopt.Listener) error{
		"close":    (*netopt.Listener).Close,
		"deadline": func(l *netopt.Listener) error { return l.SetDeadline(time.Now()) },
		"pause":    func(l *netopt.Listener) error { l.Pause(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := openStorm(t)
			b.rage()
			var all []net.Conn
			for range 5 {
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
			if name != "pause" {
				<-b.ended
				if !errors.Is(b.err, net.ErrClosed) && !errors.Is(b.err, os.ErrDeadlineExceeded) {
					t.Errorf("ended: %v", b.err)
				}
				return
			}
			for range 20 {
				waits, closes := b.dial(), b.dial()
				waits.Write([]byte("x"))
				closes.Close()
				b.l.Resume()
				b.conn(waits)
				n := b.guest(closes)
				b.await("leaving", func() bool { return b.left[n] })
				b.pause()
			}
		})
	}
}

// TestStormRelisten: a backlog that becomes small in a storm is not left to fill, and
// is again when it is large.
func TestStormRelisten(t *testing.T) {
	b := openStorm(t)
	b.rage()
	if _, err := b.l.Relisten(100); err != nil {
		t.Fatal(err)
	}
	b.beat() // is seen with the new backlog
	from := b.moderated()
	for range 20 {
		b.beat()
	}
	if n := b.moderated(); n != from {
		t.Errorf("%d waits with a backlog of 100", n-from)
	}
	if _, err := b.l.Relisten(0); err != nil {
		t.Fatal(err)
	}
	b.rage()
}

// TestStormPeak: the peak is exact in a storm, and one that fills the queue ends it.
func TestStormPeak(t *testing.T) {
	_, do := inNamespace(t, 1024)
	var b *lobby
	do(func() error {
		l, err := netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{})
		if err == nil {
			l.SetStormPace(time.Hour)
			b = openLobbyOn(t, l, 2*patience)
		}
		return err
	})
	before := 0
	beat := func() {
		var fds []int
		do(func() (err error) { fds, err = burst(1, 2400); return err })
		connected(t, fds)
		closeAll(fds)
		before++
		b.await("leaving", func() bool { return len(b.left) == before })
	}
	held := 0
	pause := func() { // as lobby.pause
		var fds []int
		do(func() (err error) { fds, err = burst(1, 2400); return err })
		connected(t, fds)
		defer closeAll(fds)
		b.await("arrival", func() bool { return b.arrived == before+held+1 })
		b.l.Pause()
		held++
		b.await("return", func() bool { return len(b.returned) == held })
	}
	for _, k := range []int{70, 150} {
		for from := b.moderated(); b.moderated() == from; {
			beat()
		}
		pause()
		var fds []int
		do(func() (err error) { fds, err = burst(k, 2400); return err })
		connected(t, fds)
		closeAll(fds)
		eventually(t, func() (err error) { // as in TestSpeakingExactPeak
			do(func() error {
				var all []netopt.ListenSocket
				if all, err = netopt.ListenSockets(); err == nil && (len(all) != 1 || all[0].Depth != k) {
					err = fmt.Errorf("%+v, want %d in the queue", all, k)
				}
				return nil
			})
			return err
		})
		b.l.Resume()
		before += k
		b.await("leaving", func() bool { return len(b.left) == before })
		if q, err := b.l.Queue(); err != nil || q.Peak != k {
			t.Errorf("%+v, %v, want a peak of %d", q, err, k)
		}
		from := b.moderated()
		beat()
		if n := b.moderated(); n != from {
			t.Errorf("%d waits after %d in the queue", n-from, k)
		}
	}
}
