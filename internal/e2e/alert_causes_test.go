package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/internal/alert"
	"weir/internal/queue"
	"weir/netopt"
)

// causes drives one weir through the causes of alerts and checks that those are
// on that should be, and no others.
type causes struct {
	*weir
	// noise are alerts that the machine may raise by itself: a full disk, or one
	// that others keep busy.
	noise []string
}

func newCauses(t *testing.T, o options) *causes {
	c := &causes{weir: start(t, o), noise: []string{alert.DiskLow, alert.CommitSlow}}
	c.requireOn(t)
	return c
}

// requireOn waits until exactly these alerts are on. again is done meanwhile,
// over and over, for causes that must last.
func (c *causes) requireOn(t *testing.T, want ...string) {
	t.Helper()
	c.requireOnWhile(t, func() {}, want...)
}

func (c *causes) requireOnWhile(t *testing.T, again func(), want ...string) {
	t.Helper()
	slices.Sort(want)
	waitFor(t, patience, func() error {
		again()
		got := []string{}
		for _, a := range c.snapshot().Alerts {
			if a.Until == nil && !slices.Contains(c.noise, a.Name) && !slices.Contains(got, a.Name) {
				got = append(got, a.Name)
			}
		}
		for _, name := range got {
			if !slices.Contains(want, name) && len(want) > 0 {
				t.Errorf("alert %s without its cause; want %v", name, want)
			}
		}
		if !slices.Equal(got, want) {
			time.Sleep(100 * time.Millisecond)
			return fmt.Errorf("alerts %v, want %v", got, want)
		}
		return nil
	})
}

// requireOver waits until nothing is on any more, and for the log's lines.
func (c *causes) requireOver(t *testing.T, ended ...string) {
	t.Helper()
	c.requireOn(t)
	for _, name := range ended {
		for _, msg := range []string{"alert", "alert over"} {
			found := false
			for line := range strings.Lines(c.log.String()) {
				found = found || strings.Contains(line, fmt.Sprintf("%q:%q", "msg", msg)) && strings.Contains(line, fmt.Sprintf("%q:%q", "alert", name))
			}
			if !found {
				t.Errorf("the log lacks %q of %s", msg, name)
			}
		}
	}
}

// TestAlertCauses makes each cause happen on the built binary: its alert comes,
// no other does, and it is over once the cause is.
func TestAlertCauses(t *testing.T) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for name, test := range map[string]func(t *testing.T){
		"accept":      causeAcceptQueue,
		"connections": causeConnections,
		"no match":    causeNoMatch,
		"output":      causeOutput,
		"memory":      causeMemory,
		"descriptors": causeDescriptors,
		"certificate": causeCertificate,
		"disk full":   causeDiskFull,
		"disk stalls": causeDiskStalls,
	} {
		// All at once, however many processors there are: they wait for "over".
		wg.Go(func() { t.Run(name, test) })
	}
}

// causeAcceptQueue halts weir while connections come: under 80 % of the backlog are
// no alert, more are, and none of them is dropped.
func causeAcceptQueue(t *testing.T) {
	ns := newNetns(t, 128)
	c := newCauses(t, options{run: ns.Do, client: ns.client()})
	burst := func(n int) {
		t.Helper()
		c.signal(syscall.SIGSTOP)
		defer c.signal(syscall.SIGCONT)
		waitFor(t, patience, c.halted)
		for range n {
			var conn net.Conn
			if err := ns.Do(func() (err error) { conn, err = net.Dial("tcp", c.addr); return err }); err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
		// A sender is connected a moment before the listener has the connection.
		waitFor(t, patience, func() error {
			return ns.Do(func() error {
				all, err := netopt.ListenSockets()
				if err == nil && !slices.ContainsFunc(all, func(s netopt.ListenSocket) bool { return s.Depth == n }) {
					err = fmt.Errorf("%+v, want %d in a queue", all, n)
				}
				return err
			})
		})
	}
	burst(100)
	waitFor(t, patience, func() error {
		if q := findQueue(c.snapshot(), queue.Accept); q.Peak != 100 {
			return fmt.Errorf("peak %d, want 100", q.Peak)
		}
		return nil
	})
	time.Sleep(2100 * time.Millisecond) // for a look at it
	c.requireOn(t)
	burst(110)
	c.requireOn(t, alert.AcceptQueueHigh)
	if a := findAlert(c.snapshot(), alert.AcceptQueueHigh); !strings.Contains(a.Message, "110 connections waited for accept(2), over 80% of the backlog of 128") || a.Subject != c.addr {
		t.Errorf("%+v", a)
	}
	c.requireOver(t, alert.AcceptQueueHigh)
}

func causeConnections(t *testing.T) {
	c := newCauses(t, options{source: "max_connections 20"})
	var conns []net.Conn
	connect := func(n int) {
		t.Helper()
		for range n {
			conn, err := net.Dial("tcp", c.addr)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
	}
	connect(18) // not over 90 %
	time.Sleep(1100 * time.Millisecond)
	c.requireOn(t)
	connect(1)
	c.requireOn(t, alert.ConnectionsHigh)
	connect(5)
	c.requireOn(t, alert.ConnectionsHigh, alert.ConnectionsRefused)
	for _, conn := range conns {
		conn.Close()
	}
	c.requireOver(t, alert.ConnectionsHigh, alert.ConnectionsRefused)
}

// sendOne sends a message of n events on a connection of its own.
func (c *causes) sendOne(tag, chunk string, n int) error {
	s, err := dial(c.addr)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	return s.send(tag, chunk, 0, n)
}

func causeNoMatch(t *testing.T) {
	c := newCauses(t, options{match: strings.Replace(defaultMatch, "<match **>", "<match app.**>", 1)})
	if err := c.sendOne("app.web", "one", 3); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	c.requireOn(t)
	if err := c.sendOne("nobody", "two", 3); err != nil {
		t.Fatal(err)
	}
	c.requireOn(t, alert.EventsDropped)
	if a := findAlert(c.snapshot(), alert.EventsDropped); !strings.Contains(a.Message, "3 events lost: no_match 3") {
		t.Errorf("%+v", a)
	}
	c.requireOver(t, alert.EventsDropped)
}

// causeOutput: an output that fails, its buffer that fills, messages refused.
func causeOutput(t *testing.T) {
	const limit = 1 << 20
	dir := t.TempDir()
	dead := filepath.Join(dir, "out")
	if err := os.WriteFile(dead, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCauses(t, options{dir: dir, match: strings.Replace(defaultMatch, "path buffer",
		fmt.Sprintf("path buffer\n    retry_type periodic\n    retry_wait 200ms\n    retry_forever true\n    total_limit_size %d", limit), 1)})
	if err := c.sendOne("x", "first", 1); err != nil {
		t.Fatal(err)
	}
	c.requireOn(t, alert.OutputRetrying)
	s, err := dial(c.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.conn.Close() }()
	fill := func(to int64) error { // messages of about 20 KB
		for n := 0; c.snapshot().Outputs[0].PendingBytes < to; n += 5 {
			if err := s.sendPadded("x", fmt.Sprintf("fill-%d-%d", to, n), n, n+5); err != nil {
				return err
			}
		}
		return nil
	}
	if err := fill(limit * 9 / 10); err != nil {
		t.Fatal(err)
	}
	c.requireOn(t, alert.OutputRetrying, alert.BufferHigh)
	if err := fill(2 * limit); err == nil {
		t.Fatal("a full buffer takes everything")
	}
	c.requireOn(t, alert.OutputRetrying, alert.BufferHigh, alert.BufferRefusing)
	if err := os.Remove(dead); err != nil {
		t.Fatal(err)
	}
	c.requireOver(t, alert.OutputRetrying, alert.BufferHigh, alert.BufferRefusing)
}

// causeMemory: half a message holds the memory that another waits for.
func causeMemory(t *testing.T) {
	c := newCauses(t, options{source: "memory_limit 1m"})
	msg, err := packedStream("x", "large", bytes.Repeat([]byte{0x92, 0, 0x80}, 300_000), 300_000)
	if err != nil {
		t.Fatal(err)
	}
	half, err := net.Dial("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := half.Write(msg[:800_000]); err != nil {
		t.Fatal(err)
	}
	waitFor(t, patience, func() error {
		if q := findQueue(c.snapshot(), "memory"); q.Depth < 500_000 {
			return fmt.Errorf("%+v", q)
		}
		return nil
	})
	time.Sleep(1100 * time.Millisecond)
	c.requireOn(t)
	second, err := net.Dial("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	go second.Write(msg) // blocks: weir does not read on
	c.requireOn(t, alert.MemoryWaits)
	half.Close()
	c.requireOver(t, alert.MemoryWaits)
}

// causeDescriptors takes the descriptors from under a running weir. Nothing is
// accepted meanwhile; senders that then go away stay in CLOSE_WAIT in the accept
// queue.
func causeDescriptors(t *testing.T) {
	// The status endpoint cannot accept either: one connection to it is kept.
	kept := &http.Transport{MaxConnsPerHost: 1}
	defer kept.CloseIdleConnections()
	c := newCauses(t, options{client: &http.Client{Transport: kept, Timeout: patience}})
	var old unix.Rlimit
	set := func(l, was *unix.Rlimit) {
		t.Helper()
		if err := unix.Prlimit(c.cmd.Process.Pid, unix.RLIMIT_NOFILE, l, was); err != nil {
			t.Fatal(err)
		}
	}
	set(nil, &old)
	set(&unix.Rlimit{Cur: 4, Max: old.Max}, nil)
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			conn.Close()
		}
	}()
	connect := func(n int) {
		t.Helper()
		for range n {
			conn, err := net.Dial("tcp", c.addr)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
	}
	connect(12)
	c.requireOn(t, alert.AcceptStarved)
	time.Sleep(2100 * time.Millisecond) // connections that only wait are no CLOSE_WAIT
	c.requireOn(t, alert.AcceptStarved)
	var last time.Time
	c.requireOnWhile(t, func() {
		if time.Since(last) < 400*time.Millisecond {
			return // too many would fill the queue
		}
		for _, conn := range conns {
			conn.Close()
		}
		conns = conns[:0]
		connect(1)
		last = time.Now()
	}, alert.AcceptStarved, alert.CloseWait)
	a := findAlert(c.snapshot(), alert.CloseWait)
	if a.Subject != c.addr || !strings.Contains(a.Message, "has not accepted them") || !strings.Contains(a.Mend, "LimitNOFILE") {
		t.Errorf("%+v", a)
	}
	if n := c.snapshot().TCPStates["close_wait"]; n < 10 {
		t.Errorf("%d connections in CLOSE_WAIT", n)
	}
	set(&old, nil)
	c.requireOver(t, alert.AcceptStarved, alert.CloseWait)
}

// causeCertificate has a certificate that ends soon, and renews it.
func causeCertificate(t *testing.T) {
	const day = 24 * time.Hour
	dir := t.TempDir()
	selfSigned(t, dir, 365*day)
	c := newCauses(t, options{dir: dir, source: "<transport tls>\ncert_path cert.pem\nprivate_key_path key.pem\n</transport>"})
	selfSigned(t, dir, 3*day+time.Hour)
	c.requireOn(t, alert.CertificateExpiring)
	if a := findAlert(c.snapshot(), alert.CertificateExpiring); a.Subject != "cert.pem" || !strings.Contains(a.Message, "CN=weir.example expires in 3 days") || !strings.Contains(a.Mend, "renew cert.pem") {
		t.Errorf("%+v", a)
	}
	if v := metric(c.get("/metrics"), `weir_alert{name="certificate_expiring",subject="cert.pem"}`); v != 1 {
		t.Errorf("weir_alert %v", v)
	}
	if out := run(t, binary, "status", "--address", c.status); !strings.Contains(out, "alert: certificate_expiring, cert.pem: CN=weir.example expires") {
		t.Errorf("weir status lacks it:\n%s", out)
	}
	selfSigned(t, dir, 365*day)
	c.requireOver(t, alert.CertificateExpiring)
}

// causeDiskFull fills the file system of the buffer.
func causeDiskFull(t *testing.T) {
	dir := t.TempDir()
	mounted(t, dir, "64m")
	c := newCauses(t, options{dir: dir, source: "health_grace 100ms", match: strings.Replace(defaultMatch, "path buffer", "path buffer\n    chunk_limit_size 1m", 1)})
	c.noise = []string{alert.CommitSlow}
	ballast := filepath.Join(dir, "buffer", "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); err == nil; _, err = f.Write(block) {
	}
	c.requireOn(t, alert.DiskLow)
	s, err := dial(c.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer s.conn.Close()
	for n := 0; err == nil && n < 5000; n += 50 { // what the present chunk has room for
		err = s.sendPadded("x", fmt.Sprint("fill-", n), n, n+50)
	}
	if err == nil {
		t.Fatal("a full disk takes everything")
	}
	c.requireOnWhile(t, func() { c.heartbeat(200 * time.Millisecond) }, alert.DiskLow, alert.CommitFailing, alert.NotReady, alert.HeartbeatsForgotten)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.Close()
	waitFor(t, patience, func() error { return c.sendOne("x", "after", 1) })
	c.requireOver(t, alert.DiskLow, alert.CommitFailing, alert.NotReady, alert.HeartbeatsForgotten)
}

// causeDiskStalls holds fdatasync up.
func causeDiskStalls(t *testing.T) {
	c := newCauses(t, options{})
	c.noise = []string{alert.DiskLow}
	stop := c.traced("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=4000000")
	sent := make(chan error, 1)
	go func() { sent <- c.sendOne("x", "slow", 1) }()
	c.requireOn(t, alert.CommitSlow)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	stop()
	c.requireOver(t, alert.CommitSlow)
}
