package netopt_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/testns"
	"weir/netopt"
)

// figures are the counters that a full queue moves: the listener's own and those of
// its namespace.
type figures struct {
	drops uint64
	netopt.Counters
}

func readFigures(t *testing.T, l *netopt.Listener, k *netopt.Kernel) figures {
	t.Helper()
	q, err := l.Queue()
	c, kerr := k.Counters()
	if err := errors.Join(err, kerr); err != nil {
		t.Fatal(err)
	}
	return figures{q.Drops, c}
}

// growth is by how much the counters of the listener's drops grew.
func (f figures) growth(was figures) string {
	return fmt.Sprintf("drops +%d, ListenOverflows +%d, ListenDrops +%d, SyncookiesRecv +%d", f.drops-was.drops,
		f.ListenOverflows-was.ListenOverflows, f.ListenDrops-was.ListenDrops, f.SyncookiesRecv-was.SyncookiesRecv)
}

// requireGrowth waits until the counters have grown by what is wanted. They move
// when the kernel has handled a segment, which is at once.
func requireGrowth(t *testing.T, l *netopt.Listener, k *netopt.Kernel, was figures, want string) {
	t.Helper()
	eventually(t, func() error {
		if got := readFigures(t, l, k).growth(was); got != want {
			return fmt.Errorf("%s; want %s", got, want)
		}
		return nil
	})
}

func requireDepth(t *testing.T, l *netopt.Listener, want int) {
	t.Helper()
	eventually(t, func() error {
		if q, err := l.Queue(); err != nil || q.Depth != want {
			return fmt.Errorf("%+v, %v; want a depth of %d", q, err, want)
		}
		return nil
	})
}

// fill makes as many connections as the paused listener's queue takes; none is
// tried twice.
func fill(t *testing.T, do func(func() error), l *netopt.Listener, n int) {
	t.Helper()
	var fds []int
	do(func() (err error) { fds, err = burst(n, 2400); return err })
	t.Cleanup(func() { closeAll(fds) })
	requireDepth(t, l, n)
}

// TestFullQueueCounters: what each kind of segment does to the counters when it
// finds the accept queue full.
func TestFullQueueCounters(t *testing.T) {
	const backlog, dropped = 4, "drops +%d, ListenOverflows +%d, ListenDrops +%d, SyncookiesRecv +%d"
	t.Run("SYN", func(t *testing.T) {
		ns, do := inNamespace(t, 128)
		l, k := paused(t, do, backlog), kernelIn(t, do)
		fill(t, do, l, backlog+1)
		was := readFigures(t, l, k)
		if err := ns.SYN(2400, 50); err != nil {
			t.Fatal(err)
		}
		requireGrowth(t, l, k, was, fmt.Sprintf(dropped, 50, 50, 50, 0))
	})
	for _, abort := range []int{0, 1} {
		t.Run(fmt.Sprintf("final ACK, tcp_abort_on_overflow %d", abort), func(t *testing.T) {
			ns, do := inNamespace(t, 128)
			if err := errors.Join(ns.SetSysctl("net.ipv4.tcp_abort_on_overflow", abort)); err != nil {
				t.Fatal(err)
			}
			l, k := paused(t, do, backlog), kernelIn(t, do)
			peer := newPeer(t, ns, 1)
			fill(t, do, l, backlog+1)
			was := readFigures(t, l, k)
			if err := peer.Acknowledge(); err != nil {
				t.Fatal(err)
			}
			requireGrowth(t, l, k, was, fmt.Sprintf(dropped, 2, 1, 1, 0)) // twice at the socket
			if abort == 1 {
				if err := peer.RequireReset(); err != nil {
					t.Error(err)
				}
				return
			}
			// It stays half-open, and its next ACK is one more.
			if p, err := k.States(at2400); err != nil || p.SynRecv != 1 {
				t.Errorf("%+v, %v; want one half-open", p, err)
			}
			if err := peer.Acknowledge(); err != nil {
				t.Fatal(err)
			}
			requireGrowth(t, l, k, was, fmt.Sprintf(dropped, 4, 2, 2, 0))
			// With room it is a connection.
			l.Resume()
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			l.Pause()
			requireDepth(t, l, backlog)
			if err := peer.Acknowledge(); err != nil {
				t.Fatal(err)
			}
			requireDepth(t, l, backlog+1)
		})
	}
	t.Run("ACK of a cookie", func(t *testing.T) {
		ns, do := inNamespace(t, 128)
		if err := ns.SetSysctl("net.ipv4.tcp_syncookies", 2); err != nil {
			t.Fatal(err)
		}
		l, k := paused(t, do, backlog), kernelIn(t, do)
		peer := newPeer(t, ns, 1)
		fill(t, do, l, backlog+1)
		was := readFigures(t, l, k)
		if err := peer.Acknowledge(); err != nil {
			t.Fatal(err)
		}
		requireGrowth(t, l, k, was, fmt.Sprintf(dropped, 1, 1, 1, 1))
	})
}

func newPeer(t *testing.T, ns *testns.Namespace, number int) *testns.Peer {
	t.Helper()
	p, err := ns.Peer(2400, number)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestDroppedSYNComesAgain: a sender whose SYN was dropped hears nothing and tries
// again, not before a second is over.
func TestDroppedSYNComesAgain(t *testing.T) {
	_, do := inNamespace(t, 128)
	l, k := paused(t, do, 1), kernelIn(t, do)
	fill(t, do, l, 2)
	begin := time.Now()
	var fds []int
	do(func() (err error) { fds, err = burst(1, 2400); return err })
	defer func() { closeAll(fds) }()
	eventually(t, func() error {
		if c, err := k.Counters(); err != nil || c.ListenOverflows < 2 {
			return fmt.Errorf("%+v, %v; want a second try", c, err)
		}
		return nil
	})
	if after := time.Since(begin); after < 900*time.Millisecond {
		t.Errorf("the second try came after %v", after)
	}
	l.Resume()
	for range 3 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// TestStrays: the socket's counter grows by segments that are no loss, those of the
// namespace do not; and connections that end in a reset move neither.
func TestStrays(t *testing.T) {
	ns, do := inNamespace(t, 128)
	var l *netopt.Listener
	do(func() (err error) {
		l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{})
		return err
	})
	defer l.Close()
	k := kernelIn(t, do)
	was := readFigures(t, l, k)
	for i := range 60 {
		var c net.Conn
		do(func() (err error) { c, err = net.Dial("tcp", "127.0.0.1:2400"); return err })
		if i%3 == 0 {
			if err := c.(*net.TCPConn).SetLinger(0); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
	}
	if got, want := readFigures(t, l, k).growth(was), (figures{}).growth(figures{}); got != want {
		t.Errorf("connections: %s", got)
	}
	for _, stray := range []struct {
		flags byte
		data  string
	}{{testns.RST, ""}, {testns.FIN, ""}, {0, "data"}} {
		was := readFigures(t, l, k)
		if err := ns.Stray(2400, 20, stray.flags, []byte(stray.data)); err != nil {
			t.Fatal(err)
		}
		requireGrowth(t, l, k, was, "drops +20, ListenOverflows +0, ListenDrops +0, SyncookiesRecv +0")
	}
}

// TestGoneInTheQueue: connections that are reset or closed while they wait stay in
// the queue and are accepted; CLOSE_WAIT counts those that are closed.
func TestGoneInTheQueue(t *testing.T) {
	_, do := inNamespace(t, 128)
	l, k := paused(t, do, 128), kernelIn(t, do)
	var conns []*net.TCPConn
	do(func() error {
		for range 3 {
			c, err := net.Dial("tcp", "127.0.0.1:2400")
			if err != nil {
				return err
			}
			conns = append(conns, c.(*net.TCPConn))
		}
		return nil
	})
	defer conns[2].Close()
	if err := errors.Join(conns[0].SetLinger(0), conns[0].Close(), conns[1].Close()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		p, err := k.States(at2400)
		w, werr := k.Waiting(l.Addr().(*net.TCPAddr))
		if err := errors.Join(err, werr); err != nil || p.CloseWait != 1 || w.CloseWait != 1 {
			return fmt.Errorf("%+v, %+v, %v; want one in CLOSE_WAIT", p, w, err)
		}
		return nil
	})
	requireDepth(t, l, 3)
	l.Resume()
	for i, want := range []error{unix.ECONNRESET, io.EOF, nil} {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if want == nil {
			continue
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("connection %d: %v, want %v", i, err, want)
		}
	}
}

// TestCloseResetsQueue: what waits in the queue of the last listener of a port is
// reset when it is closed.
func TestCloseResetsQueue(t *testing.T) {
	_, do := inNamespace(t, 128)
	l := paused(t, do, 128)
	var c net.Conn
	do(func() (err error) { c, err = net.Dial("tcp", "127.0.0.1:2400"); return err })
	defer c.Close()
	requireDepth(t, l, 1)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}
