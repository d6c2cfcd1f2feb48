package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStopDrains: on SIGTERM weir stores and acks what was sent, flushes it, and
// accepts no more.
func TestStopDrains(t *testing.T) {
	w := start(t, options{})
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const messages = 50
	var all []byte
	for n := range messages {
		msg, err := packed("drain", fmt.Sprintf("%02d", n), n*10, n*10+10)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, msg...)
	}
	// And half of one more, which must not be stored.
	if _, err := conn.Write(append(all, all[:20]...)); err != nil {
		t.Fatal(err)
	}
	w.signal(syscall.SIGTERM)
	conn.SetReadDeadline(time.Now().Add(patience))
	acks, _ := io.ReadAll(conn) // ends with a reset: half a message is unread
	if n := bytes.Count(acks, []byte("\xa3ack")); n != messages {
		t.Errorf("%d of %d messages acked", n, messages)
	}
	<-w.waited
	if w.err != nil {
		t.Errorf("weir ended with %v", w.err)
	}
	requireAll(t, readEvents(t, w.dir), "drain", messages*10)
	if _, err := net.DialTimeout("tcp", w.addr, time.Second); err == nil {
		t.Error("somebody still listens")
	}
}

// TestSecondSignalStopsAtOnce: an output that cannot deliver, and a sender that
// holds its connection, do not keep weir from ending.
func TestSecondSignalStopsAtOnce(t *testing.T) {
	dir := t.TempDir()
	w := start(t, options{dir: dir, match: strings.Replace(defaultMatch, "path buffer", "path buffer\n    overflow_action block\n    total_limit_size 64k", 1)})
	if err := os.WriteFile(filepath.Join(dir, "out"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Fill the buffer, so that the handler blocks.
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	msg, err := packed("block", "id", 0, 2000)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := conn.Write(msg); err != nil {
				return
			}
		}
	}()
	waitFor(t, patience, func() error {
		for _, q := range w.snapshot().Queues {
			if q.Name == "memory" && q.Depth > int64(len(msg)) {
				return nil
			}
		}
		return fmt.Errorf("no message waits")
	})
	w.signal(syscall.SIGTERM)
	waitFor(t, patience, func() error {
		if !strings.Contains(w.log.String(), "stopping") {
			return fmt.Errorf("not stopping")
		}
		return nil
	})
	w.signal(syscall.SIGTERM)
	select {
	case <-w.waited:
	case <-time.After(patience):
		t.Fatal("weir goes on after a second SIGTERM")
	}
	if w.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(w.log.String(), "stopped at once") {
		t.Errorf("exit code %d\n%s", w.cmd.ProcessState.ExitCode(), w.log)
	}
}

// TestReload changes the backlog by SIGHUP; the connection and the socket live
// on. A broken configuration changes nothing.
func TestReload(t *testing.T) {
	w := start(t, options{source: "backlog 100"})
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	conf := filepath.Join(w.dir, "weir.conf")
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(backlog string) {
		t.Helper()
		changed := strings.Replace(string(text), "backlog 100", backlog, 1)
		if err := os.WriteFile(conf, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		w.signal(syscall.SIGHUP)
	}
	granted := func(want int, in string) {
		t.Helper()
		waitFor(t, patience, func() error {
			if got := w.snapshot().Listeners[0].Granted; got != want || !strings.Contains(w.log.String(), in) {
				return fmt.Errorf("backlog %d, want %d, and %q in the log", got, want, in)
			}
			return nil
		})
	}
	granted(100, `"backlog_granted":100`)
	rewrite("backlog 200")
	granted(200, `"backlog_granted":200`)
	rewrite("baklog 300")
	granted(200, "unknown parameter baklog")
	rewrite("backlog 300\nmax_connections 7")
	granted(300, "takes effect after a restart only")
	if err := c.send("reload", "id", 0, 5); err != nil {
		t.Errorf("the connection did not survive: %v", err)
	}
	requireAll(t, w.delivered(), "reload", 5)
	w.stop()
}

// TestNoMatch: events that no match takes are dropped as in fluentd, but counted.
func TestNoMatch(t *testing.T) {
	w := start(t, options{match: strings.Replace(defaultMatch, "<match **>", "<match app.**>", 1)})
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	for _, tag := range []string{"other", "app.x"} {
		if err := c.send(tag, "id", 0, 5); err != nil {
			t.Fatal(err)
		}
	}
	// What is not valid of such a message is dropped with the rest of it.
	if _, err := w.assault(hostile{stream: pack([]any{"other", append(events(2), pack([]any{"noon", dict{}})...), dict{"chunk": "bad"}})}); err != nil {
		t.Fatal(err)
	}
	requireAll(t, w.delivered(), "app.x", 5)
	if got := w.get("/metrics"); !strings.Contains(got, `weir_dropped_events_total{cause="no_match"} 8`) {
		t.Error("the metrics do not count them")
	}
	w.stop()
}

// TestCopy: one buffer, two outputs, each with everything; one of them fails and
// does not hold up the other.
func TestCopy(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dead"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := start(t, options{dir: dir, match: `
<match **>
  @type copy
  <buffer>
    path buffer
  </buffer>
  <store>
    @type file
    @id good
    path out/${tag}
    append true
    add_path_suffix false
    <buffer tag>
      flush_interval 0s
    </buffer>
  </store>
  <store>
    @type file
    @id bad
    path dead/${tag}
    <buffer tag>
      retry_type periodic
      retry_wait 50ms
    </buffer>
  </store>
</match>
`})
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	if err := c.send("copy", "id", 0, 5); err != nil {
		t.Fatal(err)
	}
	waitFor(t, patience, func() error {
		s := w.snapshot()
		if len(s.Balance) != 2 || s.Balance[0].Delivered != 5 || s.Balance[1].Buffered != 5 || s.Outputs[1].Retries == 0 {
			return fmt.Errorf("%+v", s.Balance)
		}
		return nil
	})
	if text := w.cli("status"); !strings.Contains(text, "retry ") || !strings.Contains(text, "not a directory") {
		t.Errorf("weir status does not show the retries:\n%s", text)
	}
	if err := os.Remove(filepath.Join(dir, "dead")); err != nil {
		t.Fatal(err)
	}
	requireAll(t, w.delivered(), "copy", 5)
	w.stop()
}

// cli runs weir with the server's configuration and returns what it prints.
func (w *weir) cli(args ...string) string {
	w.t.Helper()
	return run(w.t, binary, append(args, "-c", filepath.Join(w.dir, "weir.conf"))...)
}

func TestStatusCommand(t *testing.T) {
	w := start(t, options{})
	text := w.cli("status")
	for _, want := range []string{"ready", "listening on " + w.addr, "accept", "OUTPUT", "RECOVERED"} {
		if !strings.Contains(text, want) {
			t.Errorf("weir status lacks %q:\n%s", want, text)
		}
	}
	if text := w.cli("status", "--json"); !strings.Contains(text, `"queue": "accept"`) {
		t.Errorf("weir status --json:\n%s", text)
	}
	for _, path := range []string{"/healthz", "/readyz", "/api/plugins.json", "/api/queues.json", "/metrics"} {
		if w.get(path) == "" {
			t.Errorf("%s is empty", path)
		}
	}
	w.stop()
}

// TestUDPHeartbeat: the port answers UDP heartbeats with one zero byte.
func TestUDPHeartbeat(t *testing.T) {
	w := start(t, options{})
	c, err := net.Dial("udp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 8)
	if n, err := c.Read(b); err != nil || n != 1 || b[0] != 0 {
		t.Errorf("answer %q, %v", b[:n], err)
	}
	w.stop()
}

// TestUnixSocketAndAddresses: one source on several addresses.
func TestUnixSocketAndAddresses(t *testing.T) {
	dir := t.TempDir()
	w := start(t, options{dir: dir, bind: "127.0.0.1,::1,unix:" + filepath.Join(dir, "weir.sock")})
	_, port, err := net.SplitHostPort(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range [][2]string{{"tcp", w.addr}, {"tcp", "[::1]:" + port}, {"unix", filepath.Join(dir, "weir.sock")}} {
		conn, err := net.Dial(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := newClient(conn).send("many", fmt.Sprint("id", i), i*5, i*5+5); err != nil {
			t.Fatal(err)
		}
	}
	requireAll(t, w.delivered(), "many", 15)
	w.stop()
}
