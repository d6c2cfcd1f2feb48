package status

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
)

func TestPoint(t *testing.T) {
	a, b := example(), example()
	b.Now = a.Now.Add(2 * time.Second)
	b.Traffic.Events = map[string]uint64{"packed": 1100}
	b.Traffic.Connections = map[string]uint64{"accepted": 5, "refused": 2, "half_closed": 1}
	b.Traffic.Heartbeats = map[string]uint64{"udp": 9, "connect": 5}
	b.Queues[0].Dropped += 10
	b.AckLatency = Histogram{Bounds: []float64{0.001, 0.01}, Counts: []uint64{1, 102}, Count: 102}
	p := newPoint(a, b)
	if p.Events != 500 || p.Connections != 2 || p.Heartbeats != 3 || p.Dropped != 5 || p.Messages != 0 {
		t.Errorf("%+v", p)
	}
	if p.Time != float64(b.Now.Unix()) {
		t.Errorf("time %v", p.Time)
	}
	if p.Commit != nil {
		t.Errorf("commit latency %+v of nothing", p.Commit)
	}
	if p.Ack == nil || p.Ack.Count != 100 || math.Abs(p.Ack.P50-0.0055) > 1e-9 {
		t.Errorf("ack latency %+v", p.Ack)
	}
	if newPoint(b, a) != nil {
		t.Error("a point of negative time")
	}
}

func TestQuantile(t *testing.T) {
	bounds := []float64{1, 2, 4}
	for _, c := range []struct {
		counts []uint64
		n      uint64
		q      float64
		want   float64
	}{
		{[]uint64{10, 10, 10}, 10, 0.5, 0.5},
		{[]uint64{0, 10, 10}, 10, 0.5, 1.5},
		{[]uint64{0, 0, 10}, 10, 0.99, 3.98},
		{[]uint64{5, 5, 10}, 10, 0.5, 1},
		{[]uint64{0, 0, 0}, 10, 0.5, 4}, // beyond the last bound
		{[]uint64{9, 9, 9}, 10, 0.99, 4},
	} {
		if got := quantile(bounds, c.counts, c.n, c.q); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%v of %v: %v, want %v", c.q, c.counts, got, c.want)
		}
	}
}

// streaming is a served endpoint whose snapshots are counted.
type streaming struct {
	server    *Server
	url       string
	snapshots atomic.Int64
	served    chan error
}

func serveStream(t *testing.T) *streaming {
	t.Helper()
	// Registered first, so it looks last: after all clients have gone.
	others := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		goleak.VerifyNone(t, others)
	})
	s := &streaming{served: make(chan error, 1)}
	s.server = NewServer(func() *Snapshot {
		s.snapshots.Add(1)
		snap := example()
		snap.Now = time.Now()
		return snap
	}, Options{Senders: exampleSenders}, zaptest.NewLogger(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + l.Addr().String() + "/api/stream"
	go func() { s.served <- s.server.Serve(l) }()
	t.Cleanup(func() { s.shutdown(t) })
	return s
}

func (s *streaming) shutdown(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

func (s *streaming) open(t *testing.T) (*bufio.Reader, io.Closer) {
	t.Helper()
	r, err := http.Get(s.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Body.Close() })
	if r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s, %s", r.Status, r.Header.Get("Content-Type"))
	}
	return bufio.NewReader(r.Body), r.Body
}

func nextEvent(t *testing.T, r *bufio.Reader) Event {
	t.Helper()
	e, err := ReadEvent(r)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestStream(t *testing.T) {
	s := serveStream(t)
	opened := time.Now()
	r, _ := s.open(t)
	if e := nextEvent(t, r); e.Name != "history" || string(e.Data) != "[]" {
		t.Fatalf("first %s %s", e.Name, e.Data)
	}
	var f Frame
	for i := range 3 {
		e := nextEvent(t, r)
		f = Frame{}
		if err := json.Unmarshal(e.Data, &f); err != nil || e.Name != "frame" {
			t.Fatalf("%s %s: %v", e.Name, e.Data, err)
		}
		// A client that is slower than the frames misses some.
		if i > 0 && f.Point == nil || i == 0 && f.Point != nil && time.Since(opened) < streamEvery || f.Snapshot.PID != 42 {
			t.Errorf("frame %d: %+v", i, f)
		}
	}
	// A second client gets what was, and costs no snapshots of its own.
	before, begun := s.snapshots.Load(), time.Now()
	r2, _ := s.open(t)
	var points []Point
	if e := nextEvent(t, r2); json.Unmarshal(e.Data, &points) != nil || len(points) < 2 {
		t.Errorf("history %s", e.Data)
	}
	for range 3 {
		if e := nextEvent(t, r2); e.Name != "frame" {
			t.Errorf("%s", e.Name)
		}
	}
	if n, seconds := s.snapshots.Load()-before, int64(time.Since(begun).Seconds()); n > seconds+2 {
		t.Errorf("%d snapshots in %d s", n, seconds)
	}
	s.shutdown(t)
	for {
		e := nextEvent(t, r)
		if e.Name == "end" {
			break
		}
	}
	if _, err := ReadEvent(r); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestStreamClientsAreBounded(t *testing.T) {
	s := serveStream(t)
	var last io.Closer
	for range streamClients {
		_, last = s.open(t)
	}
	r, err := http.Get(s.url)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("one client too many: %s", r.Status)
	}
	last.Close()
	deadline := time.Now().Add(time.Minute)
	for {
		r, err := http.Get(s.url)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a client that left stays taken")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sampled reports whether snapshots are being taken.
func (s *stream) sampled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// TestStreamCostsNothingUnwatched also covers a new watcher after all had left.
func TestStreamCostsNothingUnwatched(t *testing.T) {
	s := serveStream(t)
	for range 2 {
		r, body := s.open(t)
		nextEvent(t, r)
		nextEvent(t, r)
		body.Close()
		deadline := time.Now().Add(time.Minute)
		for s.server.stream.sampled() {
			if time.Now().After(deadline) {
				t.Fatal("snapshots are taken and nobody watches")
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// blockedWriter is a client that does not read.
type blockedWriter struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (w *blockedWriter) SetReadDeadline(time.Time) error    { return nil }
func (w *blockedWriter) SetWriteDeadline(d time.Time) error { w.deadline = d; return nil }
func (w *blockedWriter) Write([]byte) (int, error)          { return 0, context.DeadlineExceeded }

func TestStreamDropsSlowClients(t *testing.T) {
	s := newStream(example, zaptest.NewLogger(t))
	w := &blockedWriter{ResponseRecorder: httptest.NewRecorder()}
	s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/stream", nil))
	if until := time.Until(w.deadline); until <= 0 || until > streamWrite {
		t.Errorf("write deadline in %v", until)
	}
	s.mu.Lock()
	n := len(s.clients)
	s.mu.Unlock()
	if n != 0 {
		t.Errorf("%d clients left", n)
	}
	s.stop()
}

func TestReadEvent(t *testing.T) {
	r := bufio.NewReader(strings.NewReader(": note\n\nretry: 2000\n\nevent: a\ndata: 1\n\n: note\n\nevent: b\ndata: 2\n\nevent: c\ndata: 3"))
	for _, want := range []string{"a1", "b2"} {
		if e := nextEvent(t, r); e.Name+string(e.Data) != want {
			t.Errorf("%s %s, want %s", e.Name, e.Data, want)
		}
	}
	if e, err := ReadEvent(r); err != io.ErrUnexpectedEOF {
		t.Errorf("half an event: %+v, %v", e, err)
	}
	long := bufio.NewReader(strings.NewReader("data: " + strings.Repeat("x", maxEvent+1)))
	if _, err := ReadEvent(long); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("endless event: %v", err)
	}
}
