package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// terminal is a tmux server of this test alone.
type terminal struct {
	t      *testing.T
	socket string
}

func newTerminal(t *testing.T, width, height int, command string) *terminal {
	t.Helper()
	term := &terminal{t, filepath.Join(t.TempDir(), "tmux")}
	t.Cleanup(func() { exec.Command("tmux", "-S", term.socket, "kill-server").Run() }) // it may have ended by itself
	term.tmux("-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), command+"; echo exit $?; sleep 60")
	return term
}

func (x *terminal) tmux(args ...string) string {
	x.t.Helper()
	return run(x.t, "tmux", append([]string{"-S", x.socket}, args...)...)
}

// until waits for the screen to have all of these.
func (x *terminal) until(want ...string) {
	x.t.Helper()
	waitFor(x.t, patience, func() error {
		screen := x.tmux("capture-pane", "-p")
		for _, s := range want {
			if !strings.Contains(screen, s) {
				return fmt.Errorf("the screen lacks %q:\n%s", s, screen)
			}
		}
		return nil
	})
}

// connectFrom connects from an address of this host.
func connectFrom(t *testing.T, to, from string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTop(t *testing.T) {
	o := options{dir: t.TempDir(), source: "backlog 1000000\non_backlog_mismatch warn"}
	w := start(t, o)
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	if err := c.send("top", "chunk", 0, 50); err != nil {
		t.Fatal(err)
	}
	term := newTerminal(t, 80, 24, fmt.Sprintf("%s top -c %s", binary, filepath.Join(w.dir, "weir.conf")))
	term.until("ready", "events/s", "of 1000000 asked", "accept", "buffer", "OUTPUT", "q quit")
	if styled := term.tmux("capture-pane", "-p", "-e"); !strings.Contains(styled, "31m") {
		t.Errorf("no red where a backlog was not granted:\n%q", styled)
	}
	term.tmux("resize-window", "-x", "120", "-y", "40")
	term.until("sysctl -w net.core.somaxconn=1000000", "r resends  a address")
	// One sender of events among more with heartbeats than a frame lists.
	beats := func(n int) {
		for i := range n {
			connectFrom(t, w.addr, fmt.Sprintf("127.0.1.%d", i+1)).Close()
		}
	}
	beats(40)
	sender := newClient(connectFrom(t, w.addr, "127.0.2.1"))
	if err := sender.send("top", "from another address", 0, 500); err != nil {
		t.Fatal(err)
	}
	sender.conn.Close()
	term.until("SENDER by beats", "127.0.1.", "events/s ", "ack p99", "BUFFER", "DOCTOR")
	term.tmux("send-keys", "e")
	term.until("SENDER by events", "127.0.2.1", "and ")
	w.stop()
	term.until("no figures since")
	o.addr, o.status = w.addr, w.status
	w = start(t, o)
	term.until("ready", fmt.Sprintf("pid %d,", w.cmd.Process.Pid))
	term.tmux("send-keys", "q")
	term.until("exit 0")

	term = newTerminal(t, 80, 24, fmt.Sprintf("NO_COLOR=1 %s top --address %s", binary, w.status))
	term.until("ready", "of 1000000 asked")
	if styled := term.tmux("capture-pane", "-p", "-e"); strings.Contains(styled, "31m") || strings.Contains(styled, "34m") {
		t.Errorf("colours although NO_COLOR is set:\n%q", styled)
	}
	term.tmux("send-keys", "C-c")
	term.until("exit 0")
}

func TestTopSaysWhatIsMissing(t *testing.T) {
	address := freeAddr(t)
	out, err := exec.Command(binary, "top", "--address", address).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "weir status prints the same") {
		t.Errorf("without a terminal: %v: %s", err, out)
	}
	term := newTerminal(t, 200, 24, fmt.Sprintf("%s top --address %s", binary, address))
	term.until("no weir answers at "+address, "exit 1")
}
