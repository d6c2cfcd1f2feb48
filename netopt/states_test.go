package netopt_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weir/netopt"
)

// child runs this test again, in a process of its own within the namespace; it is
// true in that process.
func child(t *testing.T, somaxconn int, attr *syscall.SysProcAttr) bool {
	t.Helper()
	if os.Getenv("NETOPT_CHILD") == t.Name() {
		return true
	}
	_, do := inNamespace(t, somaxconn)
	// By this name the program is reached whatever the directory is that it lies in.
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "NETOPT_CHILD="+t.Name())
	cmd.SysProcAttr = attr
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	do(cmd.Start)
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, &out)
	}
	return false
}

// TestStandardListener: net.Listen takes whatever net.core.somaxconn was when the
// process listened first, and net.FileListener leaves a socket's backlog as it is.
func TestStandardListener(t *testing.T) {
	if !child(t, 77, nil) {
		return
	}
	backlog := func(want int) {
		t.Helper()
		all, err := netopt.ListenSockets()
		if err != nil || len(all) != 1 || all[0].Backlog != want {
			t.Errorf("%+v, %v; want one with backlog %d", all, err, want)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:2400")
	if err != nil {
		t.Fatal(err)
	}
	backlog(77)
	f, err := l.(*net.TCPListener).File()
	if err := errors.Join(err, l.Close(), os.WriteFile("/proc/sys/net/core/somaxconn", []byte("4096"), 0o644)); err != nil {
		t.Fatal(err)
	}
	l, err = net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	backlog(77)
}

// TestLoweredSomaxconn: a lowered somaxconn changes nothing until listen(2) is
// called again.
func TestLoweredSomaxconn(t *testing.T) {
	ns, do := inNamespace(t, 128)
	l := paused(t, do, 128)
	if err := ns.SetSomaxconn(16); err != nil {
		t.Fatal(err)
	}
	if q, err := l.Queue(); err != nil || q.Capacity != 128 {
		t.Errorf("%+v, %v; want 128 as before", q, err)
	}
	do(func() error { _, err := l.Relisten(128); return err })
	if q, err := l.Queue(); err != nil || q.Capacity != 16 {
		t.Errorf("%+v, %v; want 16", q, err)
	}
}

// TestStatesOfBothFamilies: a listener of both families has its IPv4 connections,
// half-open and established, under IPv6; one of IPv4 under its own; and
// /proc/net/tcp counts the same.
func TestStatesOfBothFamilies(t *testing.T) {
	for _, c := range []struct{ address, proc string }{{"[::]:2400", "tcp6"}, {"127.0.0.1:2400", "tcp"}} {
		ns, do := inNamespace(t, 128)
		var l *netopt.Listener
		do(func() (err error) {
			l, err = netopt.Listen(t.Context(), "tcp", c.address, netopt.Config{})
			return err
		})
		defer l.Close()
		l.Pause()
		k := kernelIn(t, do)
		fill(t, do, l, 3)
		if err := ns.SYN(2400, 20); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			w, err := k.Waiting(l.Addr().(*net.TCPAddr))
			p, perr := k.States(l.Addr().(*net.TCPAddr))
			if err := errors.Join(err, perr); err != nil || w.SynRecv != 20 || w.Established != 0 || p.SynRecv != 20 || p.Established != 3 {
				return fmt.Errorf("%s: %+v, %+v, %v; want 20 half-open and 3 established", c.address, w, p, err)
			}
			return nil
		})
		var text []byte
		do(func() (err error) { text, err = os.ReadFile("/proc/thread-self/net/" + c.proc); return err })
		half := 0
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", 2400)) && f[3] == "03" {
				half++
			}
		}
		if half != 20 {
			t.Errorf("%s: %d half-open in /proc/net/%s, want 20", c.address, half, c.proc)
		}
	}
}

// TestStatesByAddress: listeners on one port at different addresses have each their
// own connections.
func TestStatesByAddress(t *testing.T) {
	_, do := inNamespace(t, 128)
	k := kernelIn(t, do)
	for i, address := range []string{"127.0.0.1:2400", "127.0.0.2:2400", "[::1]:2400"} {
		var l *netopt.Listener
		do(func() (err error) {
			if l, err = netopt.Listen(t.Context(), "tcp", address, netopt.Config{}); err != nil {
				return err
			}
			for range i + 1 {
				c, err := net.Dial("tcp", address)
				if err != nil {
					return err
				}
				t.Cleanup(func() { c.Close() })
			}
			return nil
		})
		defer l.Close()
		defer func() {
			p, err := k.States(l.Addr().(*net.TCPAddr))
			if err != nil || p.Established != i+1 {
				t.Errorf("%s: %+v, %v; want %d established", address, p, err, i+1)
			}
		}()
		requireDepth(t, l, i+1)
	}
}

// TestSocketBytes: Unread is what was sent and not read, and one more once the
// sender has ended; Unsent is what was written and not acknowledged.
func TestSocketBytes(t *testing.T) {
	_, do := inNamespace(t, 128)
	l, k := paused(t, do, 128), kernelIn(t, do)
	l.Resume()
	var client net.Conn
	do(func() (err error) { client, err = net.Dial("tcp", "127.0.0.1:2400"); return err })
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	require := func(what string, is func(p netopt.PortStates) bool) {
		t.Helper()
		eventually(t, func() error {
			if p, err := k.States(at2400); err != nil || !is(p) {
				return fmt.Errorf("%s: %+v, %v", what, p, err)
			}
			return nil
		})
	}
	if _, err := client.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	require("1000 bytes unread", func(p netopt.PortStates) bool { return p.Unread == 1000 && p.Unsent == 0 })
	raw, err := server.(*netopt.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var wrote error
	if err := raw.Control(func(fd uintptr) { // until neither side has room
		for block := make([]byte, 1<<20); wrote == nil; _, wrote = unix.Write(int(fd), block) {
		}
	}); err != nil || wrote != unix.EAGAIN {
		t.Fatal(err, wrote)
	}
	require("bytes that the sender does not take", func(p netopt.PortStates) bool { return p.Unsent > 0 })
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	require("the end of the stream", func(p netopt.PortStates) bool { return p.Unread == 1001 && p.CloseWait == 1 })
}

// TestUnprivileged: all readings, and listen(2) again, work for a process without
// any privilege.
func TestUnprivileged(t *testing.T) {
	if !child(t, 128, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}) {
		return
	}
	if os.Getuid() == 0 {
		t.Fatal("still root")
	}
	l, err := netopt.Listen(t.Context(), "tcp", "127.0.0.1:2400", netopt.Config{Backlog: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k, err := netopt.OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	c, err := net.Dial("tcp", "127.0.0.1:2400")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if granted, err := l.Relisten(100); err != nil || granted != 100 {
		t.Errorf("listen again: %d, %v", granted, err)
	}
	eventually(t, func() error {
		q, err := l.Queue()
		p, perr := k.States(at2400)
		if err := errors.Join(err, perr); err != nil || q.Depth != 1 || q.Capacity != 100 || p.Established != 1 {
			return fmt.Errorf("%+v, %+v, %v", q, p, err)
		}
		return nil
	})
	if _, err := k.Counters(); err != nil {
		t.Error(err)
	}
	if all, err := netopt.ListenSockets(); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	for _, name := range []string{"net.core.somaxconn", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_max_syn_backlog"} {
		if _, err := netopt.Sysctl(name); err != nil {
			t.Error(err)
		}
	}
}
