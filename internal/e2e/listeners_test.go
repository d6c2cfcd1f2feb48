package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"weir/internal/queue"
	"weir/internal/status"
)

// TestListenersSplit: "listeners 3" gives three accept queues under names of their
// own; each has its own peak and drops, a full one drops although nothing is lost
// elsewhere, a reload re-listens all, and weir says at start and in check what
// this costs.
func TestListenersSplit(t *testing.T) {
	ns := newNetns(t, 4096)
	w := start(t, options{source: "listeners 3\nbacklog 20", run: ns.Do, client: ns.client()})
	parts := func(s *status.Snapshot) (qs []queue.Queue) {
		for _, q := range s.Queues {
			if q.Name == queue.Accept {
				qs = append(qs, q)
			}
		}
		return qs
	}
	names := []string{w.addr, w.addr + "#2", w.addr + "#3"}
	w.halt()
	var conns []*os.File
	if err := ns.Do(func() (err error) { conns, err = connectAll(w.addr, 300); return err }); err != nil {
		t.Fatal(err)
	}
	waitFor(t, patience, func() error {
		return ns.Do(func() error {
			if n, err := listenOverflows(); err != nil || n < 300-3*21 {
				return fmt.Errorf("%d overflows, %v", n, err)
			}
			return nil
		})
	})
	for _, c := range conns {
		c.Close()
	}
	w.signal(syscall.SIGCONT)
	waitFor(t, patience, func() error {
		s := snapshotIn(t, ns, w)
		dropped := map[string]bool{}
		for _, a := range s.Alerts {
			if a.Name == "connections_dropped" {
				dropped[a.Subject] = strings.Contains(a.Message, "one of 3 listeners")
			}
		}
		for i, q := range parts(s) {
			if i > 2 || q.Instance != names[i] || q.Peak != 21 || q.Capacity != 20 || q.Dropped == 0 || !dropped[q.Instance] {
				return fmt.Errorf("%+v, alerts %+v", q, s.Alerts)
			}
		}
		if n := len(parts(s)); n != 3 || len(s.Listeners) != 3 || s.TCPStates["listen"] != 3 {
			return fmt.Errorf("%d accept queues, listeners %+v, states %v", n, s.Listeners, s.TCPStates)
		}
		return nil
	})
	metrics := ns.get(t, "http://"+w.status+"/metrics") // a series given twice would be an error
	for _, name := range names {
		if m := metric(metrics, fmt.Sprintf("weir_queue_peak{name=%q,queue=\"accept\"}", name)); m != 21 {
			t.Errorf("peak of %s in the metrics: %v", name, m)
		}
	}
	for _, want := range []string{`splits the accept queue`, `"mend":"sysctl -w net.ipv4.tcp_migrate_req=1"`} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}

	conf := w.dir + "/weir.conf"
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte(strings.Replace(string(text), "backlog 20", "backlog 77", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func() (out string) {
		if err := ns.Do(func() error {
			b, err := exec.Command(binary, "check", "-c", conf).CombinedOutput()
			out = string(b)
			return err
		}); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	const migrate = "tcp_migrate_req is 0"
	if out := check(); !strings.Contains(out, migrate) || !strings.Contains(out, "splits the accept queue") {
		t.Errorf("check:\n%s", out)
	}
	if err := ns.SetSysctl("net.ipv4.tcp_migrate_req", 1); err != nil {
		t.Fatal(err)
	}
	if out := check(); strings.Contains(out, migrate) {
		t.Errorf("check with tcp_migrate_req 1:\n%s", out)
	}
	w.signal(syscall.SIGHUP)
	waitFor(t, patience, func() error {
		var got []int64
		for _, q := range parts(snapshotIn(t, ns, w)) {
			got = append(got, q.Capacity)
		}
		if !slices.Equal(got, []int64{77, 77, 77}) {
			return fmt.Errorf("backlogs %v after the reload", got)
		}
		return nil
	})
}
