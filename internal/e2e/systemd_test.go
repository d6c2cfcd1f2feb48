package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestUnitsVerify lets systemd read the units as they are shipped, but for the
// path of the binary.
func TestUnitsVerify(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"weir.service", "weir.socket"} {
		b, err := os.ReadFile(filepath.Join("../../deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "/usr/bin/weir", binary)
		if name == "weir.service" && text == string(b) {
			t.Fatal("weir.service does not start /usr/bin/weir")
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := run(t, "systemd-analyze", "verify", "--man=no", filepath.Join(dir, "weir.service"), filepath.Join(dir, "weir.socket"))
	if strings.TrimSpace(out) != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	// The exposure that systemd computes: 10 is a unit without any hardening.
	run(t, "systemd-analyze", "security", "--offline=true", "--threshold=25", filepath.Join(dir, "weir.service"))
}

// TestShippedConfigChecks reads the configuration that the unit starts with.
func TestShippedConfigChecks(t *testing.T) {
	out := run(t, binary, "check", "-c", "../../deploy/weir.conf")
	if !strings.Contains(out, "/var/log/weir") {
		t.Errorf("weir check does not show the output path:\n%s", out)
	}
}

// TestInheritedSocketIsMended starts weir by systemd-socket-activate, whose
// socket has the small backlog that the kernel allowed then, and expects weir
// to raise it by a second listen(2).
func TestInheritedSocketIsMended(t *testing.T) {
	const before, after = 64, 2048
	ns := newNetns(t, before)
	w := launch(t, options{
		source: fmt.Sprintf("backlog %d", after),
		run:    ns.Do,
		client: ns.client(),
		prepare: func(cmd *exec.Cmd) {
			activate, err := exec.LookPath("systemd-socket-activate")
			if err != nil {
				t.Fatal(err)
			}
			listen := forwardAddr(t, cmd.Args[len(cmd.Args)-1])
			cmd.Args = append([]string{activate, "--listen=" + listen, "--fdname=forward"}, cmd.Args...)
			cmd.Path = activate
		},
	})
	// The socket is made under the small limit; then the limit is raised, and
	// the first connection makes systemd-socket-activate start weir.
	var c net.Conn
	waitFor(t, patience, func() error { return ns.Do(func() error { return listening(w.addr) }) })
	if err := ns.SetSomaxconn(2 * after); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", w.addr, patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := fmt.Sprintf("weir_listener_backlog_granted{name=%q} %d\n", w.addr, after)
	waitFor(t, patience, func() error {
		r, err := ns.client().Get("http://" + w.status + "/readyz")
		if err != nil {
			return err
		}
		r.Body.Close()
		return nil
	})
	if got := ns.get(t, "http://"+w.status+"/metrics"); !strings.Contains(got, want) {
		t.Errorf("metrics lack %s", want)
	}
	// The connection that waited in the inherited queue is served.
	msg, err := packed("inherited", "id", 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 64)); err != nil || n == 0 {
		t.Errorf("no ack over the inherited socket: %v", err)
	}
}

// forwardAddr reads bind and port of the forward source from a file that
// launch wrote.
func forwardAddr(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var host, port string
	if _, err := fmt.Sscanf(string(b), "<source>\n  @type forward\n  bind %s\n  port %s\n", &host, &port); err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(host, port)
}

// listening returns nil once a socket of the calling thread's namespace listens
// at the IPv4 address addr.
func listening(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", n)) {
			return nil
		}
	}
	return fmt.Errorf("nobody listens at %s", addr)
}

// TestNotify plays systemd's side of Type=notify: READY=1 comes once weir
// accepts, WATCHDOG=1 as often as asked, RELOADING=1 on SIGHUP, STOPPING=1 on
// SIGTERM.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	expect := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		l.SetReadDeadline(time.Now().Add(patience))
		for {
			n, err := l.Read(b)
			if err != nil {
				t.Fatalf("no %s: %v", want, err)
			}
			for line := range strings.Lines(string(b[:n])) {
				if strings.TrimSpace(line) == want {
					return
				}
			}
		}
	}
	w := launch(t, options{prepare: func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=200000")
	}})
	expect("READY=1")
	c, err := dial(w.addr)
	if err != nil {
		t.Fatalf("ready, but: %v", err)
	}
	c.conn.Close()
	expect("WATCHDOG=1")
	w.signal(syscall.SIGHUP)
	expect("RELOADING=1")
	expect("READY=1")
	expect("WATCHDOG=1")
	w.signal(syscall.SIGTERM)
	expect("STOPPING=1")
	<-w.waited
	if w.err != nil {
		t.Errorf("weir ended with %v", w.err)
	}
}
