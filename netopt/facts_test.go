package netopt_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/netopt"
)

// patience is how long tests wait for what must come, on a machine that others
// keep busy as well.
const patience = time.Minute

// eventually waits for what the kernel does by itself.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	err := check()
	for ; err != nil && time.Now().Before(deadline); err = check() {
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		t.Error(err)
	}
}

// paused listens at 127.0.0.1:2400 of a namespace and accepts nothing.
func paused(t *testing.T, do func(func() error), backlog int) *netopt.Listener {
	t.Helper()
	var l *netopt.Listener
	do(func() (err error) {
		l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{Backlog: backlog})
		return err
	})
	t.Cleanup(func() { l.Close() })
	l.Pause()
	return l
}

// TestCookiesAlways: with tcp_syncookies 2 every SYN gets a cookie, no half-open
// connection is kept, and the kernel counts it as if the SYN queue were full.
func TestCookiesAlways(t *testing.T) {
	ns, do := inNamespace(t, 128)
	if err := ns.SetSysctl("net.ipv4.tcp_syncookies", 2); err != nil {
		t.Fatal(err)
	}
	l, kernel := paused(t, do, 128), kernelIn(t, do)
	if err := ns.SYN(2400, 50); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		k, err := kernel.Counters()
		if err != nil || k.SyncookiesSent < 50 || k.TCPReqQFullDoCookies < 50 || k.ListenDrops != 0 {
			return fmt.Errorf("%+v, %v, want 50 cookies", k, err)
		}
		return nil
	})
	p, err := kernel.States(at2400)
	q, qerr := l.Queue()
	if err := errors.Join(err, qerr); err != nil || p.SynRecv != 0 || q.Drops != 0 {
		t.Errorf("%+v, %+v, %v", p, q, err)
	}
	// Connections are made all the same.
	var fds []int
	do(func() (err error) { fds, err = burst(3, 2400); return err })
	defer func() { closeAll(fds) }()
	eventually(t, func() error {
		if q, err := l.Queue(); err != nil || q.Depth != 3 {
			return fmt.Errorf("%+v, %v", q, err)
		}
		return nil
	})
}

// TestAbortOnOverflow: tcp_abort_on_overflow does nothing for a SYN that finds the
// accept queue full: it is dropped in silence, and its sender waits.
func TestAbortOnOverflow(t *testing.T) {
	ns, do := inNamespace(t, 4)
	if err := ns.SetSysctl("net.ipv4.tcp_abort_on_overflow", 1); err != nil {
		t.Fatal(err)
	}
	l := paused(t, do, 4)
	var fds []int
	do(func() (err error) { fds, err = burst(30, 2400); return err })
	defer func() { closeAll(fds) }()
	eventually(t, func() error {
		q, err := l.Queue()
		if err != nil || q.Depth != 5 || q.Drops < 25 {
			return fmt.Errorf("%+v, %v", q, err)
		}
		return nil
	})
	for _, fd := range fds {
		if e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || e != 0 {
			t.Errorf("a sender was told: %v, %v", unix.Errno(e), err)
		}
	}
}

// TestShrinkUnderQueue: a backlog below what is queued drops nothing; new SYNs
// find the queue full until it is below the new backlog.
func TestShrinkUnderQueue(t *testing.T) {
	_, do := inNamespace(t, 128)
	l := paused(t, do, 128)
	var fds []int
	do(func() (err error) { fds, err = burst(40, 2400); return err })
	defer func() { closeAll(fds) }()
	depth := func(want, capacity int) {
		t.Helper()
		eventually(t, func() error {
			if q, err := l.Queue(); err != nil || q.Depth != want || q.Capacity != capacity {
				return fmt.Errorf("%+v, %v; want %d of %d", q, err, want, capacity)
			}
			return nil
		})
	}
	depth(40, 128)
	do(func() error { _, err := l.Relisten(10); return err })
	depth(40, 10)
	var late []int
	do(func() (err error) { late, err = burst(1, 2400); return err })
	defer func() { closeAll(late) }()
	eventually(t, func() error {
		if q, err := l.Queue(); err != nil || q.Depth != 40 || q.Drops == 0 {
			return fmt.Errorf("%+v, %v: the SYN over the new backlog is not dropped", q, err)
		}
		return nil
	})
	l.Resume()
	for range 41 { // the late one comes again after a second
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// TestQueueSurvivesExec: the queues of an inherited listener live in the socket: its
// maker may end, and a process that is started with it finds all of them, with the
// half-open connections.
func TestQueueSurvivesExec(t *testing.T) {
	if os.Getenv("NETOPT_INHERITED") == "1" {
		inherited(t)
		return
	}
	ns, do := inNamespace(t, 64)
	var f *os.File
	var fds []int
	do(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:2400")
		if err != nil {
			return err
		}
		defer l.Close() // the maker's own descriptor goes
		if f, err = l.(*net.TCPListener).File(); err != nil {
			return err
		}
		fds, err = burst(20, 2400)
		return err
	})
	defer func() { closeAll(fds) }()
	cmd := exec.Command(os.Args[0], "-test.run=^TestQueueSurvivesExec$", "-test.v")
	cmd.Env = append(os.Environ(), "NETOPT_INHERITED=1")
	cmd.ExtraFiles = []*os.File{f}
	if err := ns.SYN(2400, 5); err != nil {
		t.Fatal(err)
	}
	var out []byte
	var err error
	do(func() error { out, err = cmd.CombinedOutput(); return nil })
	if err = errors.Join(err, f.Close()); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// inherited is the process that is started with the listener as descriptor 3.
func inherited(t *testing.T) {
	l, err := netopt.FromFile(os.NewFile(3, "inherited"), netopt.Config{Backlog: 32})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	eventually(t, func() error {
		if q, err := l.Queue(); err != nil || q.Depth != 20 || q.Capacity != 32 {
			return fmt.Errorf("%+v, %v; want 20 of 32", q, err)
		}
		return nil
	})
	k, err := netopt.OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	eventually(t, func() error {
		if p, err := k.Waiting(l.Addr().(*net.TCPAddr)); err != nil || p.SynRecv != 5 {
			return fmt.Errorf("%+v, %v; want 5 half-open", p, err)
		}
		return nil
	})
	for range 20 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}
