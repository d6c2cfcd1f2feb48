package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weir/internal/testns"
)

// netns is a namespace in which weir runs and is asked for its status.
type netns struct{ *testns.Namespace }

func newNetns(t *testing.T, somaxconn int) *netns {
	t.Helper()
	return &netns{testns.New(t, somaxconn)}
}

// client makes HTTP requests from within the namespace.
func (n *netns) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, addr string) (c net.Conn, err error) {
			err = n.Do(func() error {
				c, err = net.DialTimeout(network, addr, patience)
				return err
			})
			return c, err
		},
	}}
}

func (n *netns) get(t *testing.T, url string) string {
	t.Helper()
	r, err := n.client().Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestBacklogMismatchRefusesToStart(t *testing.T) {
	ns := newNetns(t, 128)
	w := launch(t, options{source: "backlog 2048", run: ns.Do})
	<-w.waited
	if w.cmd.ProcessState.ExitCode() == 0 {
		t.Error("weir ended with exit code 0")
	}
	for _, want := range []string{"2048", "128", "net.core.somaxconn", "sysctl -w net.core.somaxconn=2048", "on_backlog_mismatch warn"} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the error lacks %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", w.log)
	}
}

func TestBacklogMismatchWarns(t *testing.T) {
	ns := newNetns(t, 128)
	w := start(t, options{source: "backlog 2048\non_backlog_mismatch warn", run: ns.Do, client: ns.client()})
	metrics := ns.get(t, "http://"+w.status+"/metrics")
	for _, want := range []string{
		fmt.Sprintf("weir_listener_backlog_asked{name=%q} 2048\n", w.addr),
		fmt.Sprintf("weir_listener_backlog_granted{name=%q} 128\n", w.addr),
		fmt.Sprintf("weir_queue_capacity{name=%q,queue=\"accept\"} 128\n", w.addr),
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command(binary, "status", "-c", w.dir+"/weir.conf").CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("weir status: %v\n%s", err, out)
	}
	for _, text := range []string{string(out), w.log.String()} {
		for _, want := range []string{"2048", "128", "sysctl -w net.core.somaxconn=2048"} {
			if !strings.Contains(text, want) {
				t.Errorf("lacks %q:\n%s", want, text)
			}
		}
	}
}

// TestBurstIsSeen stops the process, so that nothing is accepted, lets 500
// connections come at a backlog of 128 and expects the peak and the drops that
// the kernel counted.
func TestBurstIsSeen(t *testing.T) {
	ns := newNetns(t, 128)
	w := start(t, options{source: "backlog 128", run: ns.Do, client: ns.client()})
	w.halt()
	const burst = 500
	var conns []*os.File
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err := ns.Do(func() (err error) {
		conns, err = connectAll(w.addr, burst)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// Overflow is counted when the SYNs arrive: wait until the kernel has seen
	// the whole burst, then let weir go on.
	var overflows uint64
	waitFor(t, patience, func() error {
		return ns.Do(func() (err error) {
			if overflows, err = listenOverflows(); err == nil && overflows < burst-129 {
				err = fmt.Errorf("%d overflows", overflows)
			}
			return err
		})
	})
	w.signal(syscall.SIGCONT)
	var metrics string
	waitFor(t, patience, func() error {
		metrics = ns.get(t, "http://"+w.status+"/metrics")
		peak := metric(metrics, fmt.Sprintf("weir_queue_peak{name=%q,queue=\"accept\"}", w.addr))
		if peak != 129 {
			return fmt.Errorf("peak %v, want 129 (the backlog and one more)", peak)
		}
		return nil
	})
	drops := metric(metrics, fmt.Sprintf("weir_queue_dropped_total{name=%q,queue=\"accept\"}", w.addr))
	if drops < burst-129 {
		t.Errorf("dropped %v, want at least %d", drops, burst-129)
	}
	if got := metric(metrics, `weir_kernel_total{counter="ListenOverflows"}`); got < float64(overflows) {
		t.Errorf("ListenOverflows in metrics %v, kernel said %d", got, overflows)
	}
}

// halt stops the process with SIGSTOP and waits until it has: signals are
// delivered to a thread at a time.
func (w *weir) halt() {
	w.t.Helper()
	w.signal(syscall.SIGSTOP)
	waitFor(w.t, patience, w.halted)
}

// halted is nil once every thread of weir has stopped.
func (w *weir) halted() error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", w.cmd.Process.Pid))
	if err != nil {
		return err
	}
	for _, task := range tasks {
		stat, err := os.ReadFile(task)
		if err != nil {
			return err
		}
		// proc_pid_stat(5): the state follows the name in parentheses.
		if _, after, ok := strings.Cut(string(stat), ") "); !ok || after[0] != 'T' {
			return fmt.Errorf("a thread goes on: %s", stat)
		}
	}
	return nil
}

// connected waits until each connection of connectAll is established.
func connected(t *testing.T, conns []*os.File) {
	t.Helper()
	for _, c := range conns {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, patience, func() (err error) {
			p := []unix.PollFd{{Events: unix.POLLOUT}}
			if ctlErr := raw.Control(func(fd uintptr) {
				p[0].Fd = int32(fd)
				if _, err = unix.Poll(p, 0); err == nil && p[0].Revents != unix.POLLOUT {
					err = fmt.Errorf("not connected: events %#x", p[0].Revents)
				}
			}); ctlErr != nil {
				t.Fatal(ctlErr)
			}
			return err
		})
	}
}

// connectAll begins n connections without waiting for any to be established.
func connectAll(addr string, n int) (conns []*os.File, err error) {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	sa := &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return conns, fmt.Errorf("socket: %w", err)
		}
		if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
			unix.Close(fd)
			return conns, fmt.Errorf("connect: %w", err)
		}
		conns = append(conns, os.NewFile(uintptr(fd), "burst"))
	}
	return conns, nil
}

// listenOverflows reads the counter of the calling thread's namespace.
func listenOverflows() (uint64, error) {
	b, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names {
			if name == "ListenOverflows" {
				var v uint64
				_, err := fmt.Sscan(f[i], &v)
				return v, err
			}
		}
	}
	return 0, fmt.Errorf("no ListenOverflows in /proc/thread-self/net/netstat")
}

// metric is the value of one line of the Prometheus text format, -1 if absent.
func metric(text, series string) float64 {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, series+" "); ok {
			var f float64
			if _, err := fmt.Sscan(v, &f); err == nil {
				return f
			}
		}
	}
	return -1
}
