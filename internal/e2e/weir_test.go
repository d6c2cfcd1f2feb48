package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/internal/status"
)

// binary is the weir that all tests run; TestMain builds it once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weir-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "weir")
	out, err := exec.Command("go", "build", "-o", binary, "weir/cmd/weir").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// weir is one running server and where it keeps its things.
type weir struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string // working directory: config, buffer and output
	addr   string // Forward port
	status string // status endpoint
	log    *syncBuffer
	waited chan struct{}
	err    error // of cmd.Wait, once waited is closed
	client *http.Client
	ready  bool // start has seen it ready
}

// options of start. The zero value gives a server on free loopback ports that
// writes every event as one JSON line with its tag to out/<tag>.log.
type options struct {
	dir     string                         // kept from an earlier run, else new
	source  string                         // lines within the forward source
	monitor string                         // lines within the monitor_agent source
	match   string                         // replaces the default <match>
	addr    string                         // host:port of an earlier run, else a free port
	status  string                         // host:port of an earlier run, else a free port
	bind    string                         // instead of the host of addr
	prepare func(cmd *exec.Cmd)            // changes the command before it starts
	run     func(start func() error) error // runs start elsewhere, e.g. in a network namespace
	client  *http.Client                   // for the status endpoint, default http.DefaultClient
}

const defaultMatch = `
<match **>
  @type file
  @id out
  path out/${tag}
  append true
  add_path_suffix false
  <format>
    @type out_file
  </format>
  <buffer tag>
    path buffer
    flush_interval 0s
  </buffer>
</match>
`

// start runs weir and waits until it is ready.
func start(t *testing.T, o options) *weir {
	t.Helper()
	w := launch(t, o)
	tries := 1
	deadline := time.Now().Add(patience)
	for {
		r, err := w.client.Get("http://" + w.status + "/readyz")
		if err == nil {
			io.Copy(io.Discard, r.Body)
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				w.ready = true
				return w
			}
		}
		select {
		case <-w.waited:
			if strings.Contains(w.log.String(), "address already in use") && o.addr == "" && o.status == "" && tries < 3 {
				// Another process was faster to take a port that was free.
				w = launch(t, o)
				tries++
				continue
			}
			t.Fatalf("weir ended before it was ready: %v\n%s", w.err, w.log)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("weir not ready in time: %v\n%s", err, w.log)
		}
	}
}

// launch runs weir and does not wait for it.
func launch(t *testing.T, o options) *weir {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	if o.addr == "" {
		o.addr = freeAddr(t)
	}
	if o.status == "" {
		o.status = freeAddr(t)
	}
	if o.match == "" {
		o.match = defaultMatch
	}
	w := &weir{t: t, dir: o.dir, addr: o.addr, status: o.status, log: &syncBuffer{}, waited: make(chan struct{}), client: o.client}
	if w.client == nil {
		w.client = http.DefaultClient
	}
	host, port, err := net.SplitHostPort(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	if o.bind != "" {
		host = o.bind
	}
	_, statusPort, err := net.SplitHostPort(w.status)
	if err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("<source>\n  @type forward\n  bind %s\n  port %s\n%s\n</source>\n"+
		"<source>\n  @type monitor_agent\n  bind 127.0.0.1\n  port %s\n%s</source>\n%s", host, port, o.source, statusPort, o.monitor, o.match)
	confPath := filepath.Join(o.dir, "weir.conf")
	if err := os.WriteFile(confPath, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	w.cmd = exec.Command(binary, "-c", confPath)
	w.cmd.Dir = o.dir
	w.cmd.Stdout, w.cmd.Stderr = w.log, w.log
	if o.prepare != nil {
		o.prepare(w.cmd)
	}
	run := o.run
	if run == nil {
		run = func(start func() error) error { return start() }
	}
	if err := run(w.cmd.Start); err != nil {
		t.Fatal(err)
	}
	go func() {
		w.err = w.cmd.Wait()
		close(w.waited)
	}()
	t.Cleanup(func() {
		select {
		case <-w.waited:
		default:
			if w.ready && !t.Failed() { // the test did not stop it itself
				w.conserved()
			}
		}
		w.cmd.Process.Kill()
		<-w.waited
		if t.Failed() {
			t.Logf("log of weir:\n%s", w.log)
		}
	})
	return w
}

// conserved requires promise P5 once weir is quiet: every event that came is
// delivered, buffered, or dropped with a cause. It is called before weir is
// stopped, so that no test can forget it; a kill in the midst of a load is the
// one end without a quiet moment.
func (w *weir) conserved() {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		var off []status.Balance
		for _, b := range w.snapshot().Balance {
			if !b.Holds() {
				off = append(off, b)
			}
		}
		if len(off) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Errorf("events are not accounted for: %+v", off)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stop checks the sum of promise P5, sends SIGTERM, waits and requires a clean
// end.
func (w *weir) stop() {
	w.t.Helper()
	w.conserved()
	w.signal(syscall.SIGTERM)
	select {
	case <-w.waited:
	case <-time.After(patience):
		w.t.Fatalf("weir did not end 30 s after SIGTERM")
	}
	if w.err != nil {
		w.t.Fatalf("weir ended with %v", w.err)
	}
}

// kill sends SIGKILL and waits.
func (w *weir) kill() {
	w.t.Helper()
	w.signal(syscall.SIGKILL)
	<-w.waited
}

func (w *weir) signal(s syscall.Signal) {
	w.t.Helper()
	if err := w.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		w.t.Fatal(err)
	}
}

// snapshot reads /api/queues.json.
func (w *weir) snapshot() *status.Snapshot {
	w.t.Helper()
	var s status.Snapshot
	if err := json.Unmarshal([]byte(w.get("/api/queues.json")), &s); err != nil {
		w.t.Fatal(err)
	}
	return &s
}

// get reads one path of the status endpoint.
func (w *weir) get(path string) string {
	w.t.Helper()
	r, err := w.client.Get("http://" + w.status + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if r.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %s: %s", path, r.Status, b)
	}
	return string(b)
}

// event is one line of the default output.
type event struct {
	time   string
	tag    string
	record map[string]any
}

// delivered waits until every stored event has been delivered, checks the sum
// of promise P5 and returns the lines of the default output.
func (w *weir) delivered() []event {
	w.t.Helper()
	waitFor(w.t, patience, func() error {
		for _, b := range w.snapshot().Balance {
			if b.Buffered != 0 || !b.Holds() {
				return fmt.Errorf("not drained: %+v", b)
			}
		}
		return nil
	})
	return readEvents(w.t, w.dir)
}

// readEvents reads every line below dir/out.
func readEvents(t *testing.T, dir string) []event {
	t.Helper()
	var events []event
	files, err := filepath.Glob(filepath.Join(dir, "out", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			time, rest, ok1 := strings.Cut(string(line), "\t")
			tag, text, ok2 := strings.Cut(rest, "\t")
			if !ok1 || !ok2 || !strings.HasSuffix(text, "\n") {
				t.Fatalf("%s: half a line: %q", f, line)
			}
			e := event{time: time, tag: tag}
			if err := json.Unmarshal([]byte(text), &e.record); err != nil {
				t.Fatalf("%s: %v: %q", f, err, line)
			}
			events = append(events, e)
		}
	}
	return events
}

// patience is how long tests wait for what must come: the machine may be busy
// with other packages' tests, and its disk slow.
const patience = 2 * time.Minute

// waitFor polls until check gives nil, and fails with its last error.
func waitFor(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still so after %v: %v", limit, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// freeAddr is a loopback address whose port was free a moment ago, below the
// ephemeral range so that no outgoing connection takes it meanwhile.
func freeAddr(t *testing.T) string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 10000 {
		ports.next++
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+(ports.base+ports.next)%20000)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", addr)
		l.Close()
		if err != nil {
			continue
		}
		u.Close()
		return addr
	}
	t.Fatal("no free port")
	return ""
}

// ports hands out ports in turn, starting at a place that differs by process.
var ports = struct {
	sync.Mutex
	base, next int
}{base: os.Getpid() * 97}

// run executes a command and fails unless it succeeds. One that hangs is ended;
// building a package on a busy machine takes minutes.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// syncBuffer is a bytes.Buffer for concurrent use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
