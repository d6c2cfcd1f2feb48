package netopt_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"weir/internal/testns"
	"weir/netopt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, network, address string, c netopt.Config) *netopt.Listener {
	t.Helper()
	l, err := netopt.Listen(t.Context(), network, address, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// exchange sends a line over a new connection and gets it back from Accept's.
func exchange(t *testing.T, l net.Listener, network, address string) (remote net.Addr) {
	t.Helper()
	client, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(server, b); err != nil || string(b) != "ping" {
		t.Fatalf("server read %q, %v", b, err)
	}
	if _, err := server.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if err := server.(*netopt.Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(client)
	if err != nil || string(got) != "pong" {
		t.Fatalf("client read %q, %v", got, err)
	}
	if network != "unix" && server.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("remote address %v, want %v", server.RemoteAddr(), client.LocalAddr())
	}
	return server.RemoteAddr()
}

func TestFamilies(t *testing.T) {
	for _, c := range []struct{ network, address, dial, from string }{
		{"tcp", "127.0.0.1:0", "127.0.0.1", "127.0.0.1"},
		{"tcp4", ":0", "127.0.0.1", "127.0.0.1"},
		{"tcp6", "[::1]:0", "::1", "::1"},
		{"tcp", "[::]:0", "127.0.0.1", "127.0.0.1"},
		{"tcp", ":0", "::1", "::1"},
		{"tcp", "localhost:0", "127.0.0.1", "127.0.0.1"},
	} {
		t.Run(c.network+" "+c.address+" from "+c.from, func(t *testing.T) {
			l := listen(t, c.network, c.address, netopt.Config{})
			_, port, err := net.SplitHostPort(l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			remote := exchange(t, l, "tcp", net.JoinHostPort(c.dial, port))
			if host, _, _ := net.SplitHostPort(remote.String()); host != c.from {
				t.Errorf("remote %v, want host %s", remote, c.from)
			}
			q, err := l.Queue()
			if err != nil {
				t.Fatal(err)
			}
			if q.Accepted != 1 || q.Peak != 1 || q.Depth != 0 {
				t.Errorf("queue %+v, want one accepted and a peak of 1", q)
			}
		})
	}
	l := listen(t, "tcp6", "[::]:0", netopt.Config{})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if c, err := net.Dial("tcp4", "127.0.0.1:"+port); err == nil {
		c.Close()
		t.Error("a tcp6 listener takes IPv4")
	}
}

func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := netopt.Listen(t.Context(), "unix", path, netopt.Config{Backlog: 7, Mode: 0o600})
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	exchange(t, l, "unix", path)
	var clients []net.Conn
	for range 3 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	q, err := l.Queue()
	if err != nil {
		t.Fatal(err)
	}
	if q.Depth != 3 || q.Capacity != 7 {
		t.Errorf("queue %+v, want depth 3 of 7", q)
	}
	if _, err := netopt.Listen(t.Context(), "unix", path, netopt.Config{}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	for _, c := range clients {
		c.Close()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket file is left: %v", err)
	}
	// A stale socket file is replaced, any other file is not.
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	l = listen(t, "unix", path, netopt.Config{})
	exchange(t, l, "unix", path)
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := netopt.Listen(t.Context(), "unix", file, netopt.Config{}); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("over a plain file: %v", err)
	}
}

func TestErrors(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{})
	for _, c := range []struct{ address, want string }{
		{l.Addr().String(), "ss -ltnp"},
		{"192.0.2.1:0", "ip address"},
		{"127.0.0.1", "host:port"},
		{"127.0.0.1:99999", "0 to 65535"},
	} {
		_, err := netopt.Listen(t.Context(), "tcp", c.address, netopt.Config{})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.address) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Listen(%s) = %v, want one line with %q", c.address, err, c.want)
		}
	}
	if _, err := netopt.ListenAll(t.Context(), []string{"127.0.0.1:0", l.Addr().String()}, netopt.Config{}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("ListenAll = %v", err)
	}
	all, err := netopt.ListenAll(t.Context(), []string{"127.0.0.1:0", "[::1]:0", "unix:" + filepath.Join(t.TempDir(), "s")}, netopt.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestCloseEndsAccept(t *testing.T) {
	for _, paused := range []bool{false, true} {
		l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{})
		if paused {
			l.Pause()
		}
		ended := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			ended <- err
		}()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept = %v (paused %v)", err, paused)
		}
	}
}

func TestDeadline(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{})
	if err := l.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Accept = %v", err)
	}
	c, err := l.Accept()
	if err == nil {
		c.Close()
		t.Error("Accept after the deadline")
	}
	// What is queued comes first: whoever drains a listener loses nothing of it.
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	eventually(t, func() error {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		return err
	})
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Accept = %v", err)
	}
	if err := l.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	exchange(t, l, "tcp", l.Addr().String())
}

// TestAcceptOutOfDescriptors: accept(2) fails with EMFILE; the connection stays
// queued and is served once there are descriptors again.
func TestAcceptOutOfDescriptors(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{})
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
	}
	defer restore()
	accepted := make(chan error, 1)
	begun := time.Now()
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	for starved(t, l) == 0 && time.Since(begun) < patience {
		time.Sleep(time.Millisecond)
	}
	if n := starved(t, l); n == 0 || n > 1+uint64(time.Since(begun)/(40*time.Millisecond)) {
		t.Errorf("accept failed %d times in %v, want it to try again with pauses", n, time.Since(begun))
	}
	restore()
	if err := <-accepted; err != nil {
		t.Errorf("Accept = %v", err)
	}
}

func starved(t *testing.T, l *netopt.Listener) uint64 {
	q, err := l.Queue()
	if err != nil {
		t.Fatal(err)
	}
	return q.Starved
}

// The tests below change limits of the kernel in a namespace of their own.

func inNamespace(t *testing.T, somaxconn int) (ns *testns.Namespace, do func(func() error)) {
	t.Helper()
	ns = testns.New(t, somaxconn)
	return ns, func(f func() error) {
		t.Helper()
		if err := ns.Do(f); err != nil {
			t.Fatal(err)
		}
	}
}

// at2400 is where most listeners of these tests are.
var at2400 = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2400}

// kernelIn opens what reads the namespace's ports and counters.
func kernelIn(t *testing.T, do func(func() error)) *netopt.Kernel {
	t.Helper()
	var k *netopt.Kernel
	do(func() (err error) { k, err = netopt.OpenKernel(); return err })
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func TestBacklogMismatch(t *testing.T) {
	ns, do := inNamespace(t, 128)
	do(func() error {
		_, err := netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{Backlog: 2048})
		var short *netopt.BacklogError
		if !errors.As(err, &short) {
			return fmt.Errorf("Listen = %v, want a BacklogError", err)
		}
		const want = "listen on 127.0.0.1:2400: asked the kernel for a backlog of 2048 and got 128, limited by net.core.somaxconn; " +
			"raise it with: sysctl -w net.core.somaxconn=2048, or set on_backlog_mismatch warn to start all the same"
		if err.Error() != want {
			t.Errorf("error\n%s, want\n%s", err, want)
		}
		return nil
	})
	var l *netopt.Listener
	do(func() (err error) {
		l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{Backlog: 2048, AllowShort: true})
		return err
	})
	defer l.Close()
	requireBacklog(t, l, 2048, 128)
	if l.Mismatch() == nil {
		t.Error("no mismatch is told")
	}
	// A raised somaxconn changes nothing until listen(2) is called again.
	if err := ns.SetSomaxconn(4096); err != nil {
		t.Fatal(err)
	}
	if q, err := l.Queue(); err != nil || q.Capacity != 128 {
		t.Errorf("queue %+v, %v", q, err)
	}
	do(func() error { _, err := l.Relisten(2048); return err })
	requireBacklog(t, l, 2048, 2048)
	if m := l.Mismatch(); m != nil {
		t.Errorf("mismatch %v", m)
	}
	do(func() error { _, err := l.Relisten(0); return err })
	requireBacklog(t, l, 4096, 4096)
}

func requireBacklog(t *testing.T, l *netopt.Listener, asked, granted int) {
	t.Helper()
	if a, g := l.Backlog(); a != asked || g != granted {
		t.Errorf("backlog asked %d, granted %d; want %d, %d", a, g, asked, granted)
	}
}

// burst begins n connections without waiting for any.
func burst(n, port int) (fds []int, err error) {
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil && err != unix.EINPROGRESS {
			return fds, err
		}
	}
	return fds, nil
}

// connected waits until each of the connections is established.
func connected(t *testing.T, fds []int) {
	t.Helper()
	for _, fd := range fds {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, int(patience.Milliseconds()))
		for err == unix.EINTR {
			n, err = unix.Poll(p, int(patience.Milliseconds()))
		}
		if err != nil || n != 1 || p[0].Revents != unix.POLLOUT {
			t.Fatalf("a connection is not established: %d, %v, events %#x", n, err, p[0].Revents)
		}
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// TestFullQueue: 500 connections come while nobody accepts. The kernel holds
// the backlog and one more, and counts each further SYN as dropped.
func TestFullQueue(t *testing.T) {
	_, do := inNamespace(t, 128)
	var l *netopt.Listener
	do(func() (err error) {
		l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{Backlog: 128})
		return err
	})
	defer l.Close()
	l.Pause()
	var fds []int
	defer func() { closeAll(fds) }()
	do(func() (err error) { fds, err = burst(500, 2400); return err })
	kernel := kernelIn(t, do)
	var k netopt.Counters
	eventually(t, func() (err error) {
		if k, err = kernel.Counters(); err == nil && k.ListenOverflows < 500-129 {
			err = fmt.Errorf("%+v", k)
		}
		return err
	})
	q, err := l.Queue()
	if err != nil {
		t.Fatal(err)
	}
	if q.Depth != 129 || q.Peak != 129 || q.PeakMinute != 129 || q.Capacity != 128 {
		t.Errorf("queue %+v, want 129 of 128", q)
	}
	// No ACK is dropped here, so the socket's count is that of the kernel.
	if q.Drops < 500-129 || k.ListenOverflows < 500-129 || k.ListenDrops < k.ListenOverflows {
		t.Errorf("drops %d, kernel %+v; want at least %d", q.Drops, k, 500-129)
	}
	if states, err := kernel.States(at2400); err != nil || states.Established != 129 {
		t.Errorf("states %+v, %v; want 129 established", states, err)
	}
	// A smaller backlog loses nothing that is queued.
	do(func() error { _, err := l.Relisten(10); return err })
	l.Resume()
	for range 129 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// TestExactPeak: the peak is that of the burst, although Accept runs while it
// comes. A sampler would miss most of it.
func TestExactPeak(t *testing.T) {
	_, do := inNamespace(t, 1024)
	kernel := kernelIn(t, do)
	for k := 1; k <= 301; k += 50 {
		var l *netopt.Listener
		do(func() (err error) {
			l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{})
			return err
		})
		l.Pause()
		var fds []int
		do(func() (err error) { fds, err = burst(k, 2400); return err })
		connected(t, fds)
		// A sender is connected a moment before the listener has the connection.
		eventually(t, func() error {
			p, err := kernel.States(at2400)
			if err == nil && p.Established < k {
				err = fmt.Errorf("%+v, want %d established", p, k)
			}
			return err
		})
		l.Resume()
		for range k {
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		q, err := l.Queue()
		if err != nil {
			t.Fatal(err)
		}
		if q.Peak != k || q.Accepted != uint64(k) {
			t.Errorf("burst of %d: peak %d, accepted %d", k, q.Peak, q.Accepted)
		}
		closeAll(fds)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestPauseAgainAndAgain: Accept outlives every Pause, however short, and returns
// once the deadline of SetDeadline has come.
func TestPauseAgainAndAgain(t *testing.T) {
	l, err := netopt.Listen(t.Context(), "tcp", "127.0.0.1:0", netopt.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	for range 20_000 {
		l.Pause()
		runtime.Gosched()
		l.Resume()
	}
	select {
	case err := <-ended:
		t.Fatalf("Accept has ended: %v", err)
	default:
	}
	if err := l.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want a deadline exceeded", err)
	}
}

// TestWatchdog: the queue is watched while nobody waits in Accept, and only then.
func TestWatchdog(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{})
	watching := func(want bool) {
		t.Helper()
		eventually(t, func() error {
			if got := l.Watching(); got != want {
				return fmt.Errorf("watching %v, want %v", got, want)
			}
			return nil
		})
	}
	connect := func() {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	next, accepted := make(chan struct{}), make(chan error)
	go func() {
		for range next {
			c, err := l.Accept()
			if err == nil {
				c.Close()
			}
			accepted <- err
		}
	}()
	defer close(next)
	for range 3 {
		next <- struct{}{}
		watching(false) // Accept waits
		connect()
		if err := <-accepted; err != nil {
			t.Fatal(err)
		}
		watching(true) // and now nobody does
	}
	next <- struct{}{}
	watching(false)
	l.Pause()
	watching(true)
	l.Resume()
	watching(false)
	connect()
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
}

// TestRelistenUnderStorm changes the backlog again and again while connections
// come: every one of them is accepted.
func TestRelistenUnderStorm(t *testing.T) {
	_, do := inNamespace(t, 4096)
	var l *netopt.Listener
	do(func() (err error) {
		l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{})
		return err
	})
	defer l.Close()
	const rounds, each = 20, 50
	accepted := make(chan error, 1)
	go func() {
		for range rounds * each {
			c, err := l.Accept()
			if err != nil {
				accepted <- err
				return
			}
			c.Close()
		}
		accepted <- nil
	}()
	for r := range rounds {
		var fds []int
		do(func() (err error) { fds, err = burst(each, 2400); return err })
		do(func() error { _, err := l.Relisten(1024 + r); return err })
		connected(t, fds) // or closing one would take it back
		closeAll(fds)
	}
	select {
	case err := <-accepted:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		q, err := l.Queue()
		t.Errorf("connections are missing: %+v, %v", q, err)
	}
}

// TestInherited takes over a socket that the standard library made while
// somaxconn was small, with a connection in its queue.
func TestInherited(t *testing.T) {
	ns, do := inNamespace(t, 64)
	var file *os.File
	var client net.Conn
	do(func() error {
		std, err := net.Listen("tcp", "127.0.0.1:2400")
		if err != nil {
			return err
		}
		defer std.Close()
		if file, err = std.(*net.TCPListener).File(); err != nil {
			return err
		}
		client, err = net.Dial("tcp", "127.0.0.1:2400")
		return err
	})
	defer client.Close()
	if err := ns.SetSomaxconn(4096); err != nil {
		t.Fatal(err)
	}
	var l *netopt.Listener
	do(func() (err error) { l, err = netopt.FromFile(file, netopt.Config{Backlog: 2048}); return err })
	defer l.Close()
	requireBacklog(t, l, 2048, 2048)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	f, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := netopt.FromFile(f, netopt.Config{}); err == nil || !strings.Contains(err.Error(), "ListenStream") {
		t.Errorf("a UDP socket: %v", err)
	}
}

// BenchmarkAccept is a connection that connects and closes, as heartbeats do:
// accepted by this package, and by the standard library.
func BenchmarkAccept(b *testing.B) {
	for _, name := range []string{"netopt", "net"} {
		b.Run(name, func(b *testing.B) {
			var l net.Listener
			var err error
			if name == "net" {
				l, err = net.Listen("tcp", "127.0.0.1:0")
			} else {
				l, err = netopt.Listen(b.Context(), "tcp", "127.0.0.1:0", netopt.Config{})
			}
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			addr := l.Addr().(*net.TCPAddr)
			b.ReportAllocs()
			for b.Loop() {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					b.Fatal(err)
				}
				if err := unix.Connect(fd, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
					b.Fatal(err)
				}
				// Reset, so that no port stays in TIME_WAIT.
				if err := unix.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
					b.Fatal(err)
				}
				unix.Close(fd)
				c, err := l.Accept()
				if err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
