package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
)

// batchOf is n events of 277 bytes.
func batchOf(n int) []byte {
	event := pack([]any{1700000000, dict{
		"message": "GET /api/v1/items/1234?expand=all HTTP/1.1", "status": 200, "method": "GET",
		"host": "www.example.com", "user_agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
		"remote": "203.0.113.17", "bytes": 15321, "took": 0.034, "level": "info", "x": "yyyyyyyyyy",
	}})
	var b []byte
	for range n {
		b = append(b, event...)
	}
	return b
}

// variedBatch is n events with texts of all lengths, so that the processor
// cannot guess what comes.
func variedBatch(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for range n {
		b = append(b, pack([]any{1700000000 + r.IntN(1000), dict{
			"message": strings.Repeat("m", r.IntN(200)), "status": r.IntN(600), "method": "GET", "host": strings.Repeat("h", r.IntN(40)),
			"user_agent": strings.Repeat("u", r.IntN(120)), "bytes": r.IntN(1 << r.IntN(30)), "took": r.Float64(), "level": "info",
		}})...)
	}
	return b
}

// accessLogs is n events as `weir load` sends them: the same keys in the same
// order, values of types and lengths that differ here and there.
func accessLogs(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	one := func(of ...any) any { return of[r.IntN(len(of))] }
	var b []byte
	for i := range n {
		b = append(b, ordered([]any{uint32(1700000000 + i/1000), dict{
			"id": fmt.Sprintf("%032x", r.Uint64()), "host": fmt.Sprintf("www%d.example.com", r.IntN(10)),
			"method": one("GET", "GET", "GET", "POST", "PUT", "DELETE"), "path": fmt.Sprintf("/api/v1/items/%d", r.IntN(10_000)),
			"status": one(200, 200, 200, 201, 304, 404, 500), "level": one("info", "info", "info", "warn", "error"),
			"took": float64(r.IntN(1000)) / 1000, "message": strings.Repeat("m", 60+r.IntN(30)),
		}})...)
	}
	return b
}

// nestedLogs is n events as Fluent Bit's filter kubernetes makes them.
func nestedLogs(n int) []byte {
	r := rand.New(rand.NewPCG(5, 6))
	var b []byte
	for i := range n {
		b = append(b, 0x92, 0xd7, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(1700000000+i/1000))
		b = binary.BigEndian.AppendUint32(b, r.Uint32N(1e9))
		b = append(b, ordered(dict{
			"log": strings.Repeat("l", 20+r.IntN(300)), "stream": "stdout", "time": "2024-05-01T10:00:00.123456789Z",
			"kubernetes": dict{
				"pod_name": fmt.Sprintf("web-%x-%x", r.Uint32(), r.Uint32N(1<<r.IntN(20)+1)), "namespace_name": "default", "pod_id": fmt.Sprintf("%032x", r.Uint64()),
				"labels":      dict{"app": "web", "tier": strings.Repeat("t", r.IntN(12)), "pod-template-hash": fmt.Sprintf("%x", r.Uint32())},
				"annotations": dict{}, "host": fmt.Sprintf("node-%d", r.IntN(300)), "container_name": "web", "container_image": "registry.example.com/team/web:" + fmt.Sprint(r.IntN(2000)),
			},
		})...)
	}
	return b
}

// ordered is pack with the keys of maps in order, as in events of one source.
func ordered(v any) []byte {
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	enc.UseCompactInts(true)
	enc.SetSortMapKeys(true)
	if err := enc.Encode(v); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// scanned is what the benchmarks of the scanner read. It is more than a
// processor can learn by heart.
func scanned() []scannedBatch {
	return []scannedBatch{
		{"same", batchOf(4000)}, {"varied", variedBatch(4000)}, {"access", accessLogs(4000)}, {"nested", nestedLogs(4000)},
	}
}

type scannedBatch struct {
	name string
	p    []byte
}

// BenchmarkScan is the scan of packed payloads of 4000 events.
func BenchmarkScan(b *testing.B) {
	for _, c := range scanned() {
		b.Run(c.name, func(b *testing.B) {
			var s streamScanner
			b.SetBytes(int64(len(c.p)))
			b.ReportAllocs()
			for b.Loop() {
				s.reset(DefaultMaxDepth)
				if n, err := s.scanEvents(c.p, noLimit); err != nil || n != len(c.p) {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// TestScanDoesNotAllocate holds that an event costs no memory of its own.
func TestScanDoesNotAllocate(t *testing.T) {
	var s streamScanner
	for _, c := range scanned() {
		n := testing.AllocsPerRun(20, func() {
			s.reset(DefaultMaxDepth)
			if n, err := s.scanEvents(c.p, noLimit); err != nil || n != len(c.p) {
				t.Fatal(n, err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for 4000 events", c.name, n)
		}
	}
}

// TestSessionAllocations holds that a message costs a bounded number of
// allocations, however many events are in it, from its first byte to its ack.
func TestSessionAllocations(t *testing.T) {
	for _, c := range sessionMessages() {
		t.Run(c.name, func(t *testing.T) {
			most := 1.0 // AllocsPerRun rounds down: less than two
			if c.name == "gzip" {
				most = 8 // under the race detector sync.Pool loses decompressors, as its documentation says
			}
			ask := startSession(t)
			if n := testing.AllocsPerRun(200, func() { ask(c.msg) }); n > most {
				t.Errorf("%v allocations a message, want at most %v", n, most)
			}
		})
	}
}

// nothing is a Handler that stores nothing and says durable.
type nothing struct{}

func (nothing) Handle(_ context.Context, m *Message) { m.Done(nil) }

// sessionMessages are messages with a chunk id of 24 bytes, 1 or 1000 events each.
func sessionMessages() []sessionMessage {
	events := batchOf(1000)
	var entries []any
	for range 1000 {
		entries = append(entries, []any{1700000000, dict{"message": strings.Repeat("m", 230), "n": 1}})
	}
	option := dict{"chunk": "0123456789abcdef01234567"}
	return []sessionMessage{
		{"message", pack([]any{"app.access", 1700000000, dict{"message": strings.Repeat("m", 230), "n": 1}, option})},
		{"packed", pack([]any{"app.access", events, option})},
		{"forward", pack([]any{"app.access", entries, option})},
		{"gzip", pack([]any{"app.access", gzipped(events), dict{"chunk": "0123456789abcdef01234567", "compressed": "gzip"}})},
	}
}

type sessionMessage struct {
	name string
	msg  []byte
}

// startSession connects to a server over a unix socket; ask sends a message of
// sessionMessages and waits for its ack.
func startSession(tb testing.TB) (ask func(msg []byte)) {
	tb.Helper()
	srv, err := NewServer(Config{Handler: nothing{}})
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(tb.TempDir(), "s"))
	if err != nil {
		tb.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		conn.Close()
		if err := srv.Close(); err != nil {
			tb.Error(err)
		}
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	ack := make([]byte, 5+1+24)
	return func(msg []byte) {
		if _, err := conn.Write(msg); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.ReadFull(conn, ack); err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkSession is a message over a unix socket and its ack, one at a time.
func BenchmarkSession(b *testing.B) {
	for _, c := range sessionMessages() {
		b.Run(c.name, func(b *testing.B) {
			ask := startSession(b)
			b.SetBytes(int64(len(c.msg)))
			b.ReportAllocs()
			for b.Loop() {
				ask(c.msg)
			}
		})
	}
}
