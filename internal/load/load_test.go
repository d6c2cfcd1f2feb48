package load

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weir/forward"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a receiver that keeps everything, and loses what spoil tells it to.
type sink struct {
	mu     sync.Mutex
	text   bytes.Buffer // of payloads, plain
	events int
	tags   map[string]int
	modes  map[forward.Mode]int
	refuse func(n int) bool // message number n gets no ack, and its connection ends
	n      int
}

func (s *sink) Handle(_ context.Context, m *forward.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if s.refuse != nil && s.refuse(s.n) {
		m.Done(os.ErrInvalid)
		return
	}
	s.events += m.Events
	s.tags[string(m.Tag)]++
	s.modes[m.Mode]++
	if m.Compression == forward.Gzip {
		z, err := gzip.NewReader(bytes.NewReader(m.Payload[0]))
		if err == nil {
			_, err = s.text.ReadFrom(z)
		}
		if err != nil {
			m.Done(err)
			return
		}
	} else {
		for _, p := range m.Payload {
			s.text.Write(p)
		}
	}
	m.Done(nil)
}

func serve(t *testing.T, s *sink, c forward.Config) string {
	t.Helper()
	s.tags, s.modes = map[string]int{}, map[forward.Mode]int{}
	c.Handler = s
	srv, err := forward.NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func options(addr, mode string) Options {
	o := Options{Address: addr, Mode: mode, Events: 50, Size: 277, Tag: "load", Tags: 1, Ack: true, AckTimeout: 20 * time.Second,
		Connections: 3, KeepAlive: true, Window: 4, Heartbeat: "none", Flush: time.Second, Count: 3000, PID: os.Getpid()}
	if mode == "message" || mode == "json" {
		o.Events, o.Count = 1, 300
	}
	return o
}

func mustRun(t *testing.T, o Options) *Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	rep, err := Run(ctx, o)
	if err != nil {
		t.Fatalf("%v; report: %+v", err, rep)
	}
	return rep
}

// TestModes sends each mode to a server that checks every event, and finds all
// ids in what it received.
func TestModes(t *testing.T) {
	for mode, want := range map[string]forward.Mode{
		"packed": forward.ModePacked, "forward": forward.ModeForward, "message": forward.ModeMessage,
		"gzip": forward.ModeCompressed, "zstd": forward.ModeCompressed, "json": forward.ModeMessage,
	} {
		for _, ack := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/ack=%v", mode, ack), func(t *testing.T) {
				s := &sink{}
				o := options(serve(t, s, forward.Config{}), mode)
				o.Ack, o.Tags, o.CompressEach = ack, 7, mode == "gzip"
				rep := mustRun(t, o)
				deadline := time.Now().Add(time.Minute)
				for {
					s.mu.Lock()
					n := s.events
					s.mu.Unlock()
					if n == int(o.Count) {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("%d events received, want %d", n, o.Count)
					}
					time.Sleep(5 * time.Millisecond)
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				if rep.Events != o.Count || len(s.tags) != 7 || s.modes[want] != s.n {
					t.Errorf("sent %d, tags %v, modes %v of %d", rep.Events, s.tags, s.modes, s.n)
				}
				if ack && (rep.AckedEvents != o.Count || rep.Ack == nil || rep.Ack.Count != int64(rep.Chunks) || rep.ResentChunks != 0) {
					t.Errorf("acks: %+v", rep)
				}
				if mode == "zstd" {
					return // its ids are not unique
				}
				ids := map[string]int{}
				text := s.text.Bytes()
				for i := bytes.Index(text, []byte(rep.Run)); i >= 0; i = bytes.Index(text, []byte(rep.Run)) {
					ids[string(text[i:i+idLen])]++
					text = text[i+idLen:]
				}
				if len(ids) != int(o.Count) {
					t.Errorf("%d different ids, want %d", len(ids), o.Count)
				}
			})
		}
	}
}

// TestVerify finds what was lost, repeated and, with a retry, neither.
func TestVerify(t *testing.T) {
	s := &sink{refuse: func(n int) bool { return n == 5 || n == 11 }}
	o := options(serve(t, s, forward.Config{}), "packed")
	o.Window = 1
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	r := mustRun(t, o)
	s.mu.Lock()
	events := s.events
	s.mu.Unlock()
	if r.ResentChunks == 0 || r.AckedEvents != o.Count || events != int(o.Count) {
		t.Fatalf("refused chunks were not sent again: %+v", r)
	}

	id := func(chunk, event int) string { return fmt.Sprintf("%08x%016x%08x", 7, chunk, event) }
	all := func() (lines []string) {
		for c := range 3 {
			for e := range 50 {
				lines = append(lines, `{"id":"`+id(c, e)+`"}`)
			}
		}
		return lines
	}
	for _, c := range []struct {
		name           string
		lines          []string
		lost, repeated uint64
	}{
		{"all", all(), 0, 0},
		{"one lost", all()[1:], 1, 0},
		{"one repeated", append(all(), all()[3]), 0, 1},
		{"none", nil, 150, 0},
		{"other runs", append(all(), strings.Replace(all()[3], "00000007", "00000008", 1)), 0, 0},
		{"what was never sent", append(all(), `{"id":"`+id(3, 0)+`"}`, `{"id":"`+id(0, 50)+`"}`), 0, 0},
		{"cut ids", append(all(), `{"id":"`+id(0, 0)[:31]), 0, 0},
		{"a huge line", []string{strings.Repeat("0000000", 1<<20) + strings.Join(all(), strings.Repeat("x", 100_000))}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(strings.Join(c.lines, "\n")), 0o600); err != nil {
				t.Fatal(err)
			}
			o := options("x:1", "packed")
			o.Verify = []string{filepath.Join(dir, "*")}
			v := &run{o: &o, maker: &maker{run: 7}, ledger: map[uint32]*sender{0: {next: 3}}}
			got, err := v.verifyOnce()
			if err != nil {
				t.Fatal(err)
			}
			if got.Lost != c.lost || got.Repeated != c.repeated || got.Expected != 150 {
				t.Errorf("got %+v, want %d lost, %d repeated", got, c.lost, c.repeated)
			}
			if len(got.LostIDs) != min(int(c.lost), namedIDs) || c.lost > 0 && got.LostIDs[0] != id(0, 0) || c.repeated > 0 && got.RepeatedIDs[0] != id(0, 3) {
				t.Errorf("named: %+v", got)
			}
		})
	}
}

// TestRateCountsFromIntendedTime holds the receiver up once: every chunk that
// was due meanwhile must show the delay.
func TestRateCountsFromIntendedTime(t *testing.T) {
	s := &sink{}
	s.refuse = func(n int) bool {
		if n == 3 {
			time.Sleep(500 * time.Millisecond)
		}
		return false
	}
	o := options(serve(t, s, forward.Config{}), "message")
	o.Connections, o.Window, o.Rate, o.Count = 1, 1, 200, 100
	rep := mustRun(t, o)
	// About 100 chunks are due in the 500 ms; a closed loop would see one delay.
	if rep.Ack.P50 < 20 {
		t.Errorf("p50 %.2f ms: the delay is omitted from chunks that waited behind it", rep.Ack.P50)
	}
}

func TestFleetStormBurst(t *testing.T) {
	s := &sink{}
	addr := serve(t, s, forward.Config{Security: &forward.Security{SelfHostname: "h", SharedKey: "k", UserAuth: true, Users: map[string]string{"u": "p"}}})
	o := options(addr, "packed")
	o.SharedKey, o.Username, o.Password = "k", "u", "p"
	o.Senders, o.Flush, o.Heartbeat, o.HeartbeatEvery, o.Duration, o.Count = 5, 100*time.Millisecond, "tcp", 50*time.Millisecond, time.Second, 0
	if rep := mustRun(t, o); rep.Heartbeats < 10 || rep.HeartbeatsLost > 0 || rep.AckedChunks < 5 || rep.UnackedChunks != 0 {
		t.Errorf("fleet: %+v", rep)
	}
	o.SharedKey = "wrong"
	if _, err := Run(t.Context(), o); err == nil {
		t.Error("a wrong shared key went unnoticed")
	}
	o.Senders, o.Storm, o.Duration = 0, 200, 500*time.Millisecond
	if rep := mustRun(t, o); rep.Connections < 20 || rep.Errors > 0 {
		t.Errorf("storm: %+v", rep)
	}
	o.Storm, o.Burst = 0, 100
	if rep := mustRun(t, o); rep.Connections != 100 || rep.Connect.Count != 100 {
		t.Errorf("burst: %+v", rep)
	}
}

// TestReceiverGoes: a run ends in time, with an error, although its receiver has gone
// for good.
func TestReceiverGoes(t *testing.T) {
	for _, senders := range []int{0, 3} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		taken := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			taken <- errors.Join(err, l.Close(), c.Close())
		}()
		o := options(l.Addr().String(), "packed")
		o.Senders, o.Flush, o.Heartbeat, o.Count, o.Connections, o.Duration, o.AckTimeout = senders, 50*time.Millisecond, "none", 0, 1, 300*time.Millisecond, 500*time.Millisecond
		begin := time.Now()
		rep, err := Run(t.Context(), o)
		if err == nil {
			t.Errorf("%d senders: no error: %+v", senders, rep)
		}
		if took := time.Since(begin); took > time.Minute {
			t.Errorf("%d senders: it took %v", senders, took)
		}
		if err := <-taken; err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkPatch is what one chunk of 1000 events costs before its write(2).
func BenchmarkPatch(b *testing.B) {
	o := options("x:1", "packed")
	o.Events = 1000
	m, err := newMaker(&o, 1)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := m.template()
	b.ReportAllocs()
	b.SetBytes(int64(len(m.shapes[0].msg)))
	for n := uint64(0); b.Loop(); n++ {
		if _, err := tmpl.message(1, n, 1, 1700000000); err != nil {
			b.Fatal(err)
		}
	}
}
