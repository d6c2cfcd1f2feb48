package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/internal/queue"
	"weir/internal/status"
	"weir/internal/testns"
)

// snapshotIn asks a weir in a namespace for its snapshot.
func snapshotIn(t *testing.T, ns *netns, w *weir) *status.Snapshot {
	t.Helper()
	var s status.Snapshot
	if err := json.Unmarshal([]byte(ns.get(t, "http://"+w.status+"/api/queues.json")), &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// on lists the names of the alerts that are on, those about the machine's disk
// excepted.
func on(s *status.Snapshot) (names []string) {
	for _, a := range s.Alerts {
		if a.Until == nil && a.Name != "disk_low" && a.Name != "commit_slow" {
			names = append(names, a.Name)
		}
	}
	return names
}

func findAlert(s *status.Snapshot, name string) *status.Alert {
	for i := range s.Alerts {
		if s.Alerts[i].Name == name {
			return &s.Alerts[i]
		}
	}
	return nil
}

func findQueue(s *status.Snapshot, name queue.Name) queue.Queue {
	for _, q := range s.Queues {
		if q.Name == name {
			return q
		}
	}
	return queue.Queue{}
}

func portOf(t *testing.T, addr string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestAlertConnectionsDropped: a burst over a backlog that somaxconn cut short is
// told with both numbers, the limit and what mends it, in log, metrics, JSON and
// on the command line; and it is over once the burst is.
func TestAlertConnectionsDropped(t *testing.T) {
	ns := newNetns(t, 128)
	w := start(t, options{source: "backlog 16384\non_backlog_mismatch warn", run: ns.Do, client: ns.client()})
	waitFor(t, patience, func() error { // a first look has been taken
		if got := on(snapshotIn(t, ns, w)); !slices.Equal(got, []string{"backlog_short"}) {
			return fmt.Errorf("before the burst: %v", got)
		}
		return nil
	})
	w.halt()
	var conns []*os.File
	if err := ns.Do(func() (err error) { conns, err = connectAll(w.addr, 400); return err }); err != nil {
		t.Fatal(err)
	}
	waitFor(t, patience, func() error {
		return ns.Do(func() error {
			if n, err := listenOverflows(); err != nil || n < 400-129 {
				return fmt.Errorf("%d overflows, %v", n, err)
			}
			return nil
		})
	})
	for _, c := range conns {
		c.Close()
	}
	w.signal(syscall.SIGCONT)
	var a *status.Alert
	waitFor(t, patience, func() error {
		s := snapshotIn(t, ns, w)
		if a = findAlert(s, "connections_dropped"); a == nil || findAlert(s, "accept_queue_high") == nil {
			return fmt.Errorf("alerts %v", on(s))
		}
		if findAlert(s, "syn_cookies") != nil || findAlert(s, "syn_dropped") != nil {
			t.Errorf("a full accept queue is told as one of SYNs: %v", on(s))
		}
		if q := findQueue(s, queue.Accept); q.PeakMinute != 129 || q.Peak != 129 {
			t.Errorf("peaks %+v", q)
		}
		return nil
	})
	if !strings.Contains(a.Message, "backlog 128 of 16384 asked, limited by net.core.somaxconn") || a.Mend != "sysctl -w net.core.somaxconn=16384 && systemctl reload weir" || a.Subject != w.addr {
		t.Errorf("%+v", a)
	}
	m := metric(ns.get(t, "http://"+w.status+"/metrics"), fmt.Sprintf("weir_alert{name=\"connections_dropped\",subject=%q}", w.addr))
	if a := findAlert(snapshotIn(t, ns, w), "connections_dropped"); m != 1 && a != nil && a.Until == nil {
		t.Errorf("weir_alert %v", m)
	}
	waitFor(t, patience, func() error {
		if got := on(snapshotIn(t, ns, w)); !slices.Equal(got, []string{"backlog_short"}) {
			return fmt.Errorf("after the burst: %v", got)
		}
		return nil
	})
	for _, want := range []string{`"msg":"alert"`, `"alert":"connections_dropped"`, `"msg":"alert over"`} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

// TestSynQueueLimits: with cookies on, the backlog alone limits the SYN queue,
// and the next SYN gets a cookie; with cookies off it is the smaller of the
// backlog and 3/4 of tcp_max_syn_backlog, and the next SYN is dropped. Each is
// the alert of its own name and of no other.
func TestSynQueueLimits(t *testing.T) {
	for _, c := range []struct {
		name             string
		cookies, maxSyn  int
		depth, capacity  int64
		alert, not, mend string
	}{
		{"cookies on, a small tcp_max_syn_backlog means nothing", 1, 16, 65, 64, "syn_cookies", "syn_dropped", "backlog"},
		{"cookies off, three quarters", 0, 32, 25, 24, "syn_dropped", "syn_cookies", "tcp_syncookies=1"},
		{"cookies off, the backlog", 0, 4096, 65, 64, "syn_dropped", "syn_cookies", "tcp_syncookies=1"},
		{"cookies always, no queue", 2, 4096, 0, 64, "syn_cookies", "syn_dropped", "tcp_syncookies=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := newNetns(t, 64)
			for name, v := range map[string]int{"net.ipv4.tcp_syncookies": c.cookies, "net.ipv4.tcp_max_syn_backlog": c.maxSyn} {
				if err := ns.SetSysctl(name, v); err != nil {
					t.Fatal(err)
				}
			}
			w := start(t, options{run: ns.Do, client: ns.client()})
			waitFor(t, patience, func() error { // the first sample has been taken
				if q := findQueue(snapshotIn(t, ns, w), queue.SYN); q.Capacity != c.capacity {
					return fmt.Errorf("capacity %d, want %d", q.Capacity, c.capacity)
				}
				return nil
			})
			if err := ns.SYN(portOf(t, w.addr), 200); err != nil {
				t.Fatal(err)
			}
			sent := time.Now()
			waitFor(t, patience, func() error {
				if time.Since(sent) > 3*time.Second { // the samples are slow where others have many connections
					if err := ns.SYN(portOf(t, w.addr), 200); err != nil {
						return err
					}
					sent = time.Now()
				}
				s := snapshotIn(t, ns, w)
				q := findQueue(s, queue.SYN)
				a := findAlert(s, c.alert)
				if q.Peak != c.depth || a == nil {
					return fmt.Errorf("queue %+v, alerts %v", q, on(s))
				}
				if !strings.Contains(a.Mend, c.mend) {
					t.Errorf("mend %q", a.Mend)
				}
				if got := on(s); !slices.Equal(got, []string{c.alert}) {
					t.Errorf("alerts %v, want %s alone", got, c.alert)
				}
				cause := map[string]string{"syn_cookies": "cookies_sent", "syn_dropped": "dropped"}[c.alert]
				if n := q.DroppedBy[cause]; n < 200-uint64(c.depth) || q.Dropped != n {
					return fmt.Errorf("dropped %d by %v, want %d %s", q.Dropped, q.DroppedBy, 200-c.depth, cause)
				}
				return nil
			})
		})
	}
}

// TestStraysAreNoAlert: normal connections, ones that end in a reset, and segments of
// no connection raise nothing, although the socket counts the latter as drops.
func TestStraysAreNoAlert(t *testing.T) {
	ns := newNetns(t, 1024)
	w := start(t, options{run: ns.Do, client: ns.client()})
	time.Sleep(1100 * time.Millisecond)
	if err := ns.Do(func() error {
		for i := range 300 {
			c, err := net.Dial("tcp", w.addr)
			if err != nil {
				return err
			}
			if i%3 == 0 {
				if err := c.(*net.TCPConn).SetLinger(0); err != nil {
					return err
				}
			}
			c.Close()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := ns.Stray(portOf(t, w.addr), 50, testns.RST, nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, patience, func() error {
		s := snapshotIn(t, ns, w)
		if n := findQueue(s, queue.Accept).Dropped; n != 50 {
			return fmt.Errorf("%d segments counted at the socket, want 50", n)
		}
		if len(s.Senders) != 1 || s.Senders[0].Heartbeats["connect"] < 300 {
			return fmt.Errorf("senders %+v", s.Senders)
		}
		return nil
	})
	time.Sleep(1100 * time.Millisecond) // one more look
	s := snapshotIn(t, ns, w)
	if got := on(s); len(got) > 0 {
		t.Errorf("alerts %v", got)
	}
	if s.Senders[0].Address != "127.0.0.1" || s.Senders[0].ConnectionsPerSecond == 0 {
		t.Errorf("%+v", s.Senders[0])
	}
}

// TestReloadUnderStorm changes the backlog by SIGHUP while connections come: each
// of them is accepted, and the new value is in log, metrics and status.
func TestReloadUnderStorm(t *testing.T) {
	ns := newNetns(t, 4096)
	w := start(t, options{source: "backlog 200", run: ns.Do, client: ns.client()})
	conf := w.dir + "/weir.conf"
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	const rounds, each = 30, 100
	backlog := 200
	for r := range rounds {
		if r%5 == 4 {
			old := fmt.Sprintf("backlog %d\n", backlog)
			backlog += 300
			text = []byte(strings.Replace(string(text), old, fmt.Sprintf("backlog %d\n", backlog), 1))
			if err := os.WriteFile(conf, text, 0o600); err != nil {
				t.Fatal(err)
			}
			w.signal(syscall.SIGHUP)
		}
		var conns []*os.File
		if err := ns.Do(func() (err error) { conns, err = connectAll(w.addr, each); return err }); err != nil {
			t.Fatal(err)
		}
		connected(t, conns) // or closing one would take it back
		for _, c := range conns {
			c.Close()
		}
		// The backlog holds two rounds, however long weir is kept from the third.
		waitFor(t, patience, func() error {
			if n := snapshotIn(t, ns, w).Traffic.Connections["accepted"]; n < uint64(r*each) {
				return fmt.Errorf("%d connections accepted after round %d", n, r)
			}
			return nil
		})
	}
	waitFor(t, patience, func() error {
		s := snapshotIn(t, ns, w)
		if n := s.Traffic.Connections["accepted"]; n != rounds*each {
			return fmt.Errorf("%d of %d connections accepted", n, rounds*each)
		}
		if l := s.Listeners[0]; l.Asked != backlog || l.Granted != backlog || findQueue(s, queue.Accept).Capacity != int64(backlog) {
			return fmt.Errorf("%+v", l)
		}
		if n := s.Kernel["ListenDrops"]; n > 0 {
			t.Errorf("%d ListenDrops", n)
		}
		return nil
	})
	metrics := ns.get(t, "http://"+w.status+"/metrics")
	if m := metric(metrics, fmt.Sprintf("weir_listener_backlog_granted{name=%q}", w.addr)); m != float64(backlog) {
		t.Errorf("granted %v in the metrics", m)
	}
	if m := metric(metrics, `weir_waits_total{limit="accept"}`); m == 0 {
		t.Error("no storm in the metrics")
	}
	if want := fmt.Sprintf(`"backlog_granted":%d`, backlog); !strings.Contains(w.log.String(), want) {
		t.Errorf("the log lacks %s", want)
	}
}
