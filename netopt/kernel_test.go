package netopt_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/netopt"
)

// TestReusePortSplits: of two listeners on one port a full one drops although the
// other has room; net.ipv4.tcp_migrate_req decides what becomes of the queue of
// one that closes.
func TestReusePortSplits(t *testing.T) {
	for _, migrate := range []int{0, 1} {
		ns, do := inNamespace(t, 4096)
		if err := ns.SetSysctl("net.ipv4.tcp_migrate_req", migrate); err != nil {
			t.Fatal(err)
		}
		var small, large *netopt.Listener
		do(func() (err error) {
			if small, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{Backlog: 5, ReusePort: true}); err != nil {
				return err
			}
			large, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{Backlog: 1000, ReusePort: true})
			return err
		})
		defer large.Close()
		small.Pause()
		large.Pause()
		var fds []int
		do(func() (err error) { fds, err = burst(200, 2400); return err })
		defer func() { closeAll(fds) }()
		var s, l netopt.Queue
		eventually(t, func() (err error) {
			if s, err = small.Queue(); err != nil {
				return err
			}
			if l, err = large.Queue(); err != nil {
				return err
			}
			if s.Depth != 6 || s.Drops == 0 || l.Drops != 0 || l.Depth < 50 || s.Depth+int(s.Drops)+l.Depth < len(fds) {
				return fmt.Errorf("the small one %+v, the large one %+v", s, l)
			}
			return nil
		})
		// Those whose SYN was dropped would come again, and to the large one.
		fds = slices.DeleteFunc(fds, func(fd int) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0)
			dropped := err == nil && n == 0
			if dropped {
				unix.Close(fd)
			}
			return dropped
		})
		var err error
		if l, err = large.Queue(); err != nil {
			t.Fatal(err)
		}
		if err := small.Close(); err != nil {
			t.Fatal(err)
		}
		q, err := large.Queue()
		if err != nil {
			t.Fatal(err)
		}
		if want := l.Depth + 6*migrate; q.Depth != want {
			t.Errorf("tcp_migrate_req %d: %d wait, want %d", migrate, q.Depth, want)
		}
	}
}

// TestSomaxconnTakesListen: listen(2) with the smallest backlog still holds two
// connections, and a raised somaxconn takes effect at the next listen(2) only.
func TestSomaxconnTakesListen(t *testing.T) {
	ns, do := inNamespace(t, 1)
	var l *netopt.Listener
	do(func() (err error) {
		l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{Backlog: 512, AllowShort: true})
		return err
	})
	defer l.Close()
	l.Pause()
	var fds []int
	do(func() (err error) { fds, err = burst(10, 2400); return err })
	defer func() { closeAll(fds) }()
	requireDepth := func(capacity, depth int) {
		t.Helper()
		q, err := l.Queue()
		for deadline := time.Now().Add(patience); err == nil && q.Depth != depth && time.Now().Before(deadline); q, err = l.Queue() {
			time.Sleep(time.Millisecond)
		}
		if err != nil || q.Depth != depth || q.Capacity != capacity {
			t.Errorf("%+v, %v; want %d of %d", q, err, depth, capacity)
		}
	}
	requireDepth(1, 2)
	if err := ns.SetSomaxconn(4096); err != nil {
		t.Fatal(err)
	}
	requireDepth(1, 2)
	do(func() error { _, err := l.Relisten(512); return err })
	requireDepth(512, 10) // the others' SYNs come again after a second
}
