package netopt_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/testns"
	"weir/netopt"
)

// setSysctls sets parameters of the namespace, given as name, value.
func setSysctls(t *testing.T, ns *testns.Namespace, values map[string]int) {
	t.Helper()
	for name, v := range values {
		if err := ns.SetSysctl(name, v); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSynQueueCounters: how many half-open connections are kept, and what the SYNs
// beyond them do to the counters.
func TestSynQueueCounters(t *testing.T) {
	const syns = 200
	for _, c := range []struct {
		name                     string
		cookies, maxSyn, backlog int
		kept                     int
		// cookie, full and rule are what becomes of the other SYNs: a cookie, a drop
		// for the backlog, a drop by the rule of three quarters.
		cookie, full, rule bool
	}{
		{name: "cookies on, small tcp_max_syn_backlog", cookies: 1, maxSyn: 16, backlog: 64, kept: 65, cookie: true},
		{name: "cookies on, large tcp_max_syn_backlog", cookies: 1, maxSyn: 4096, backlog: 64, kept: 65, cookie: true},
		{name: "cookies off, the backlog", cookies: 0, maxSyn: 4096, backlog: 64, kept: 65, full: true},
		{name: "cookies off, three quarters of 64", cookies: 0, maxSyn: 64, backlog: 128, kept: 49, rule: true},
		{name: "cookies off, three quarters of 128", cookies: 0, maxSyn: 128, backlog: 128, kept: 97, rule: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns, do := inNamespace(t, 128)
			setSysctls(t, ns, map[string]int{"net.ipv4.tcp_syncookies": c.cookies, "net.ipv4.tcp_max_syn_backlog": c.maxSyn})
			l, k := paused(t, do, c.backlog), kernelIn(t, do)
			if err := ns.SYN(2400, syns); err != nil {
				t.Fatal(err)
			}
			over := uint64(syns - c.kept)
			var want figures
			switch {
			case c.cookie:
				want.TCPReqQFullDoCookies, want.SyncookiesSent = over, over
			case c.full:
				want.drops, want.ListenDrops, want.TCPReqQFullDrop = over, over, over
			case c.rule:
				want.drops, want.ListenDrops = over, over
			}
			requireSYNs(t, l, k, c.kept, want)
			if !c.cookie {
				return
			}
			// A larger backlog ends it, at once.
			do(func() error { _, err := l.Relisten(128); return err })
			if err := ns.SYN(2400, 10); err != nil {
				t.Fatal(err)
			}
			requireSYNs(t, l, k, c.kept+10, want)
		})
	}
}

// requireSYNs waits for that number of half-open connections, and for the counters
// to be those.
func requireSYNs(t *testing.T, l *netopt.Listener, k *netopt.Kernel, halfOpen int, want figures) {
	t.Helper()
	eventually(t, func() error {
		p, err := k.States(at2400)
		if got := readFigures(t, l, k); err != nil || p.SynRecv != halfOpen || got != want {
			return fmt.Errorf("%d half-open, want %d; %+v, want %+v; %v", p.SynRecv, halfOpen, got, want, err)
		}
		return nil
	})
}

// TestProvenPeers: the rule of three quarters of tcp_max_syn_backlog spares senders
// that the kernel knows of connections before (ip-tcp_metrics(8)).
func TestProvenPeers(t *testing.T) {
	ns, do := inNamespace(t, 128)
	setSysctls(t, ns, map[string]int{"net.ipv4.tcp_syncookies": 0, "net.ipv4.tcp_max_syn_backlog": 64, "net.ipv4.tcp_no_metrics_save": 0})
	var l *netopt.Listener
	do(func() (err error) {
		l, err = netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{})
		return err
	})
	defer l.Close()
	k := kernelIn(t, do)
	const known, stranger = "127.0.0.2", "127.0.0.3"
	exchangeFrom(t, do, l, known)
	l.Pause()
	if err := ns.SYN(2400, 100); err != nil {
		t.Fatal(err)
	}
	was := figures{drops: 51, Counters: netopt.Counters{ListenDrops: 51}}
	requireSYNs(t, l, k, 49, was)
	connectFrom := func(from string) (fd int) {
		do(func() (err error) { fd, err = begin(from); return err })
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	connectFrom(known)
	requireDepth(t, l, 1)
	requireGrowth(t, l, k, was, "drops +0, ListenOverflows +0, ListenDrops +0, SyncookiesRecv +0")
	connectFrom(stranger)
	eventually(t, func() error {
		if got := readFigures(t, l, k); got.ListenDrops == was.ListenDrops || got.drops == was.drops {
			return fmt.Errorf("%+v: the stranger's SYN is not dropped", got)
		}
		return nil
	})
	if q, err := l.Queue(); err != nil || q.Depth != 1 {
		t.Errorf("%+v, %v; want the known sender alone", q, err)
	}
}

// exchangeFrom has a whole connection from that address, with data both ways: the
// kernel then has a round-trip time of it.
func exchangeFrom(t *testing.T, do func(func() error), l *netopt.Listener, from string) {
	t.Helper()
	var client net.Conn
	do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		client, err = d.Dial("tcp", l.Addr().String())
		return err
	})
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	b := make([]byte, 4)
	for range 3 {
		for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
			if _, err := pair[0].Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			if _, err := pair[1].Read(b); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// begin begins a connection from that address to 127.0.0.1:2400.
func begin(from string) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return fd, err
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(from).To4())}); err != nil {
		return fd, err
	}
	if err = unix.Connect(fd, &unix.SockaddrInet4{Port: 2400, Addr: [4]byte{127, 0, 0, 1}}); err == unix.EINPROGRESS {
		err = nil
	}
	return fd, err
}

// TestHalfOpenExpires: half-open connections that end unanswered move no counter of
// drops.
func TestHalfOpenExpires(t *testing.T) {
	ns, do := inNamespace(t, 128)
	setSysctls(t, ns, map[string]int{"net.ipv4.tcp_synack_retries": 1}) // they end after three seconds
	l, k := paused(t, do, 128), kernelIn(t, do)
	halfOpen := func() int {
		p, err := k.States(at2400)
		if err != nil {
			t.Fatal(err)
		}
		return p.SynRecv
	}
	// On a machine that stalls they may be gone before the first look.
	eventually(t, func() error {
		if err := ns.SYN(2400, 20); err != nil {
			return err
		}
		for range 20 {
			if halfOpen() >= 20 {
				return nil
			}
			time.Sleep(5 * time.Millisecond)
		}
		return errors.New("not 20 half-open connections")
	})
	eventually(t, func() error {
		if n := halfOpen(); n > 0 {
			return fmt.Errorf("%d half-open, want them gone", n)
		}
		return nil
	})
	if got := readFigures(t, l, k); got != (figures{}) {
		t.Errorf("%+v, want no drops", got)
	}
}

// TestFloodMessage: the kernel tells of the first cookie of a listener, once, and
// not of the next listen(2). A full accept queue alone is not told.
func TestFloodMessage(t *testing.T) {
	ns, do := inNamespace(t, 128)
	log := kernelLog(t)
	const port = 2457 // in no other test, so that the line is this one's
	var l *netopt.Listener
	listen := func() {
		do(func() (err error) {
			l, err = netopt.Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port), netopt.Config{Backlog: 8})
			return err
		})
		l.Pause()
	}
	k := kernelIn(t, do)
	lines := func() (n int) {
		for _, line := range log() {
			if strings.Contains(line, "Possible SYN flooding on port") && strings.Contains(line, fmt.Sprint(port, ". Sending cookies")) {
				n++
			}
		}
		return n
	}
	listen()
	defer func() { l.Close() }()
	var conns []net.Conn
	do(func() error { // one by one: the SYN queue holds no more than the accept queue
		for range 9 {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	})
	requireDepth(t, l, 9)
	if err := ns.SYN(port, 20); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := readFigures(t, l, k); got.ListenOverflows != 20 {
			return fmt.Errorf("%+v, want 20 overflows", got)
		}
		return nil
	})
	if n := lines(); n != 0 {
		t.Errorf("%d lines of a full accept queue", n)
	}
	for _, c := range conns {
		c.Close()
	}
	cookies := func() uint64 {
		c, err := k.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return c.SyncookiesSent
	}
	sendSYNs := func(n int, more uint64) {
		t.Helper()
		before := cookies()
		if err := ns.SYN(port, n); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if now := cookies(); now < before+more {
				return fmt.Errorf("%d cookies, want %d", now-before, more)
			}
			return nil
		})
	}
	// The kernel bounds the pace of such lines, whatever port or process they are
	// of: another socket's first cookie is told if this one's was not.
	told := 0
	for range 20 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		listen()
		sendSYNs(50, 41)
		if told = lines(); told > 0 {
			break
		}
		time.Sleep(time.Second)
	}
	if told != 1 {
		t.Fatalf("%d lines of cookies, want one", told)
	}
	do(func() error { _, err := l.Relisten(16); return err })
	sendSYNs(200, 100)
	if n := lines(); n != 1 {
		t.Errorf("%d lines after listen(2) again, want one", n)
	}
}

// kernelLog gives a reading of what the kernel has logged since (/dev/kmsg).
func kernelLog(t *testing.T) func() []string {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("SKIPPED: /dev/kmsg cannot be read here (%v); a container needs CAP_SYSLOG and the device", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		t.Fatal(err)
	}
	var lines []string
	return func() []string {
		b := make([]byte, 8192)
		for {
			n, err := unix.Read(fd, b)
			switch err {
			case nil:
				lines = append(lines, string(b[:n]))
			case unix.EPIPE, unix.EINTR: // overwritten meanwhile
			case unix.EAGAIN:
				return lines
			default:
				t.Fatalf("/dev/kmsg: %v", err)
			}
		}
	}
}
