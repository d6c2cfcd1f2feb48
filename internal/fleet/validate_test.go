package fleet

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/testns"
	"weir/netopt"
)

// TestAgainstTheKernel lets real connections come to a real listener that
// accepts nothing for a while, and compares the kernel's queue with the
// simulated one.
func TestAgainstTheKernel(t *testing.T) {
	ns := testns.New(t, 4096)
	for _, c := range []struct {
		backlog int
		senders int
		drops   bool
	}{{4096, 1000, false}, {200, 1000, true}} {
		err := ns.Do(func() error {
			l, err := netopt.Listen(t.Context(), "tcp", "127.0.0.1:0", netopt.Config{Backlog: c.backlog})
			if err != nil {
				return err
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					conn.Close()
				}
			}()
			const every = time.Second
			f := Fleet{Senders: c.senders, Heartbeat: TCP, HeartbeatEvery: every, FlushEvery: time.Hour, Keepalive: true}
			sa := &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
			l.Pause()
			// The moments are those of the simulation's senders; how long the stall
			// is, and when each SYN really went, is measured: the machine is shared.
			const span = 800 * time.Millisecond
			at := f.steady(rand.New(rand.NewPCG(1, 1)), span)
			begin := time.Now()
			var sent []time.Duration
			var fds []int
			defer func() {
				for _, fd := range fds {
					unix.Close(fd)
				}
			}()
			for _, moment := range at {
				time.Sleep(moment - time.Since(begin))
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				fds = append(fds, fd)
				if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
					return fmt.Errorf("connect: %w", err)
				}
				sent = append(sent, time.Since(begin))
			}
			kernel, err := netopt.OpenKernel()
			if err != nil {
				return err
			}
			defer kernel.Close()
			before, err := kernel.Counters()
			if err != nil {
				return err
			}
			stall := time.Since(begin)
			l.Resume()
			want := accept(sent, 0, stall, 20*time.Microsecond, c.backlog)
			if stall < every { // no retry was due within it: the prediction is exact
				f.Stall = span // for which they came, however late the last of them was
				r, err := Simulate(f, Server{Cores: 1, Backlog: c.backlog}, Costs{Accept: 20 * time.Microsecond})
				if err != nil {
					return err
				}
				near(t, "peak of Simulate", float64(r.StalledHere.Peak), float64(want.Peak), 0.15)
			}
			deadline := time.Now().Add(30 * time.Second)
			for {
				q, err := l.Queue()
				if err != nil {
					return err
				}
				// Where some were dropped, the kernel may forget others for ever: with more
				// than half of the backlog half-open it gives up after few retries.
				if int(q.Accepted) == len(sent) || c.drops && q.Depth == 0 && int(q.Accepted) > c.backlog {
					near(t, fmt.Sprintf("peak of the kernel's queue at backlog %d", c.backlog), float64(q.Peak), float64(want.Peak), 0.02)
					if q.Drops > 0 != c.drops || want.Drops > 0 != c.drops || before.ListenOverflows > 0 != c.drops {
						t.Errorf("backlog %d: the listener dropped %d, the kernel counted %d before the end, the simulation %+v", c.backlog, q.Drops, before.ListenOverflows, want)
					}
					if c.drops && stall < every {
						near(t, "drops in the stall", float64(before.ListenOverflows), float64(want.Delayed), 0.02)
					}
					return nil
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("%d connections, and not every one was accepted in the end: %+v", len(sent), q)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
