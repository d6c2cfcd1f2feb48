package forward

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"testing"
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

// BenchmarkScan is the scan of a packed payload of 1000 events.
func BenchmarkScan(b *testing.B) {
	for _, c := range []struct {
		name string
		p    []byte
	}{{"same", batchOf(1000)}, {"varied", variedBatch(1000)}} {
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

// nothing is a Handler that stores nothing and says durable.
type nothing struct{}

func (nothing) Handle(_ context.Context, m *Message) { m.Done(nil) }

// BenchmarkSession is a message over a unix socket and its ack, one at a time.
func BenchmarkSession(b *testing.B) {
	events := batchOf(1000)
	var entries []any
	for range 1000 {
		entries = append(entries, []any{1700000000, dict{"message": strings.Repeat("m", 230), "n": 1}})
	}
	option := dict{"chunk": "0123456789abcdef01234567"}
	for _, c := range []struct {
		name string
		msg  []byte
	}{
		{"message", pack([]any{"app.access", 1700000000, dict{"message": strings.Repeat("m", 230), "n": 1}, option})},
		{"packed", pack([]any{"app.access", events, option})},
		{"forward", pack([]any{"app.access", entries, option})},
		{"gzip", pack([]any{"app.access", gzipped(events), dict{"chunk": "0123456789abcdef01234567", "compressed": "gzip"}})},
	} {
		b.Run(c.name, func(b *testing.B) {
			srv, err := NewServer(Config{Handler: nothing{}})
			if err != nil {
				b.Fatal(err)
			}
			l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
			if err != nil {
				b.Fatal(err)
			}
			served := make(chan error, 1)
			go func() { served <- srv.Serve(l) }()
			conn, err := net.Dial("unix", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			ack := make([]byte, 5+1+24)
			b.SetBytes(int64(len(c.msg)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(c.msg); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(conn, ack); err != nil {
					b.Fatal(err)
				}
			}
			conn.Close()
			if err := srv.Close(); err != nil {
				b.Error(err)
			}
			if err := <-served; err != nil {
				b.Error(err)
			}
		})
	}
}
