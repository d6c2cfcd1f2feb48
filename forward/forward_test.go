package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/vmihailenco/msgpack/v5"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a server under test.
type running struct {
	*Server
	t    *testing.T
	addr string
}

func serve(t *testing.T, c Config) *running {
	t.Helper()
	return serveOn(t, listen(t, "tcp"), c)
}

func serveOn(t *testing.T, l net.Listener, c Config) *running {
	t.Helper()
	if c.Log == nil {
		c.Log = zaptest.NewLogger(t)
	}
	if c.busyGrace == 0 { // talk closes its side at once, and the machine may be slow
		c.busyGrace = 15 * time.Second
	}
	srv, err := NewServer(c)
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
	return &running{srv, t, l.Addr().String()}
}

// talk sends p on a new connection, ends it, and returns all answers.
func (r *running) talk(p []byte) []byte {
	r.t.Helper()
	others := r.Stats().Open
	conn := r.dial()
	// The server may turn the sender away before it has sent everything.
	if _, err := conn.Write(p); err == nil {
		_ = conn.CloseWrite()
	}
	got, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		r.t.Fatal(err)
	}
	// The sender's end of the connection may be closed while the handler still
	// works, see watchHalfClosed.
	eventually(r.t, "the session is over", func() bool { return r.Stats().Open <= others })
	return got
}

func (r *running) dial() *net.TCPConn {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// patience is how long tests wait for what must come, on a machine that others
// keep busy as well.
const patience = time.Minute

// eventually polls until check is true.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !check() {
		if time.Now().After(deadline) {
			t.Fatal("still not so: " + what)
		}
		time.Sleep(time.Millisecond)
	}
}

func pack(vs ...any) []byte {
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	enc.UseCompactInts(true)
	for _, v := range vs {
		if err := enc.Encode(v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

type dict = map[string]any

// stream is n events with integer times.
func stream(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, pack([]any{1700000000 + i, dict{"n": i}})...)
	}
	return b
}

func gzipped(parts ...[]byte) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		w := gzip.NewWriter(&b)
		if _, err := w.Write(p); err != nil {
			panic(err)
		}
		if err := w.Close(); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func zstandard(p []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return w.EncodeAll(p, nil)
}

const ackOfID = "\x81\xa3ack\xa2id"

func TestModes(t *testing.T) {
	events := []any{[]any{1, dict{"a": 1}}, []any{2, dict{}}}
	option := dict{"chunk": "id"}
	long := strings.Repeat("c", maxChunk)
	withMetadata := pack([]any{[]any{1, dict{"m": 1}}, dict{"a": 1}})
	for _, c := range []struct {
		name   string
		in     []byte
		mode   Mode
		events int
		answer string
	}{
		{"message", pack([]any{"t", 1, dict{"a": 1}}), ModeMessage, 1, ""},
		{"message with option", pack([]any{"t", 1, dict{"a": 1}, option}), ModeMessage, 1, ackOfID},
		{"message, option nil", pack([]any{"t", 1, dict{"a": 1}, nil}), ModeMessage, 1, ""},
		{"message, EventTime", append(append([]byte("\x93\xa1t"), "\xd7\x00\x00\x00\x00\x01\x00\x00\x00\x02"...), 0x80), ModeMessage, 1, ""},
		{"message, ext 8 EventTime", append(append([]byte("\x93\xa1t"), "\xc7\x08\x00\x00\x00\x00\x01\x00\x00\x00\x02"...), 0x80), ModeMessage, 1, ""},
		{"message, float time", pack([]any{"t", 1.5, dict{}}), ModeMessage, 1, ""},
		{"message, no time", pack([]any{"t", nil, dict{}}), ModeMessage, 1, ""},
		{"forward", pack([]any{"t", events}), ModeForward, 2, ""},
		{"forward with option", pack([]any{"t", events, option}), ModeForward, 2, ackOfID},
		{"forward, metadata", pack([]any{"t", []any{[]any{[]any{1, dict{"m": 1}}, dict{"a": 1}}}}), ModeForward, 1, ""},
		{"forward, said to be compressed", pack([]any{"t", events, dict{"compressed": "gzip", "chunk": "id"}}), ModeForward, 2, ackOfID},
		{"forward, empty", pack([]any{"t", []any{}, option}), ModeForward, 0, ackOfID},
		{"packed str", pack([]any{"t", string(stream(3)), option}), ModePacked, 3, ackOfID},
		{"packed bin", pack([]any{"t", stream(3), option}), ModePacked, 3, ackOfID},
		{"packed, tag bin", pack([]any{[]byte("t"), stream(3), option}), ModePacked, 3, ackOfID},
		{"packed, text", pack([]any{"t", stream(3), dict{"compressed": "text", "chunk": "id"}}), ModePacked, 3, ackOfID},
		{"packed, metadata", pack([]any{"t", withMetadata, dict{"fluent_signal": 0}}), ModePacked, 1, ""},
		{"packed, options nobody knows", pack([]any{"t", stream(3), dict{"x": dict{"y": 1}, "chunk": "id"}}), ModePacked, 3, ackOfID},
		{"packed, wrong size", pack([]any{"t", stream(3), dict{"size": 77}}), ModePacked, 3, ""},
		{"packed, empty", pack([]any{"t", []byte{}, option}), ModePacked, 0, ackOfID},
		{"gzip", pack([]any{"t", gzipped(stream(3)), dict{"compressed": "gzip", "chunk": "id"}}), ModeCompressed, 3, ackOfID},
		{"gzip, members", pack([]any{"t", gzipped(stream(3), stream(2)), dict{"compressed": "gzip"}}), ModeCompressed, 5, ""},
		{"gzip, member ends in an event", pack([]any{"t", gzipped(stream(3)[:8], stream(3)[8:]), dict{"compressed": "gzip"}}), ModeCompressed, 3, ""},
		{"gzip, many", pack([]any{"t", gzipped(stream(20000)), dict{"compressed": "gzip"}}), ModeCompressed, 20000, ""},
		{"gzip str", pack([]any{"t", string(gzipped(stream(3))), dict{"compressed": "gzip"}}), ModeCompressed, 3, ""},
		{"gzip, metadata in each of two members", pack([]any{"t", gzipped(withMetadata, withMetadata), dict{"compressed": "gzip", "fluent_signal": 0}}), ModeCompressed, 2, ""},
		{"zstd", pack([]any{"t", zstandard(stream(3)), dict{"compressed": "zstd", "chunk": "id"}}), ModeCompressed, 3, ackOfID},
		{"zstd, frames", pack([]any{"t", append(zstandard(stream(3)), zstandard(stream(2))...), dict{"compressed": "zstd"}}), ModeCompressed, 5, ""},
		{"chunk bin", pack([]any{"t", stream(1), dict{"chunk": []byte("i\x00\n")}}), ModePacked, 1, "\x81\xa3ack\xc4\x03i\x00\n"},
		{"chunk an int", pack([]any{"t", stream(1), dict{"chunk": 5}}), ModePacked, 1, "\x81\xa3ack\x05"},
		{"chunk of nearly 64 KiB", pack([]any{"t", stream(1), dict{"chunk": []byte(long)}}), ModePacked, 1, "\x81\xa3ack\xc5\xff\xff" + long},
		{"chunk a map", pack([]any{"t", stream(1), dict{"chunk": dict{}}}), ModePacked, 1, "\x81\xa3ack\x80"},
		{"JSON message", []byte(`["t",1,{"a":{"b":[1,2.5,null,true,"x"]}}]`), ModeMessage, 1, ""},
		{"JSON message, option", []byte(" \n[\"t\",1,{\"]\":\"\\\"\"},{\"chunk\":\"i\\n\"}]\n"), ModeMessage, 1, ""},
		{"JSON forward", []byte(`["t",[[1,{"a":1}],[2,{}]],{"chunk":"i\n"}]` + "\n"), ModeForward, 2, `{"ack":"i\n"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.HasPrefix(c.name, "JSON message, option") {
				c.in = bytes.TrimSpace(c.in)
				c.answer = `{"ack":"i\n"}`
			}
			h := &received{}
			r := serve(t, Config{Handler: h})
			got := r.talk(c.in)
			if string(got) != c.answer {
				t.Errorf("answer %q, want %q", got, c.answer)
			}
			if c.events == 0 {
				if len(h.all()) != 0 {
					t.Errorf("an empty message is handed over: %+v", h.all())
				}
				return
			}
			if len(h.all()) != 1 {
				t.Fatalf("%d messages", len(h.all()))
			}
			m := h.all()[0]
			if m.err != nil || m.mode != c.mode || m.count != c.events || len(m.events) != c.events || m.tag != "t" {
				t.Errorf("message %+v", m)
			}
		})
	}
}

func TestJSONKeepsValues(t *testing.T) {
	h := &received{}
	r := serve(t, Config{Handler: h})
	record := `{"z":1,"a":{"i":-9223372036854775808,"u":18446744073709551615,"f":1.5,"s":"日本\u0000","l":[[],{},null]}}`
	r.talk([]byte(`["t",1,` + record + `]`))
	if len(h.all()) != 1 {
		t.Fatal("no message")
	}
	if got, want := fmt.Sprint(h.all()[0].events[0].([]any)[1]), fmt.Sprint(fromJSON([]byte(record))); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestRefused: a good message, then one that cannot be taken. The good one is
// acked, nothing of the other is handed over, the connection ends, the reason is
// counted and logged with the sender.
func TestRefused(t *testing.T) {
	option := dict{"chunk": "id"}
	deep := append(append([]byte("\x93\xa1t\x01\x81\xa1a"), bytes.Repeat([]byte{0x91}, 100_000)...), 0xc0)
	flipped := gzipped(stream(1000))
	flipped[len(flipped)/2] ^= 1
	zeros := make([]byte, 1<<20)
	for _, c := range []struct {
		name   string
		in     []byte
		reason string
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), ReasonNotForward},
		{"TLS", []byte("\x16\x03\x01\x02\x00\x01"), ReasonNotForward},
		{"a map", []byte("\x81\xa1a\x01"), ReasonNotForward},
		{"text", pack("broken string"), ReasonNotForward},
		{"an integer", pack(10), ReasonNotForward},
		{"array of 4 billion", []byte("\xdd\xff\xff\xff\xff"), ReasonType},
		{"array of 1", []byte("\x91\xa1t"), ReasonType},
		{"tag is an int", pack([]any{1, 1, dict{}}), ReasonType},
		{"entries of 4 billion", []byte("\x92\xa1t\xdd\xff\xff\xff\xff\xc0"), ReasonType},
		{"entries cut", pack([]any{"t", []any{[]any{1, dict{"a": "b"}}}})[:7], ReasonCut},
		{"4 billion within a packed payload", pack([]any{"t", []byte("\xdd\xff\xff\xff\xff"), option}), ReasonType},
		{"4 GB claimed", []byte("\x92\xa1t\xc6\xff\xff\xff\xff"), ReasonSize},
		{"nested 100,000 deep", deep, ReasonDepth},
		{"nested 100,000 deep within a packed payload", pack([]any{"t", append([]byte("\x92\x01\x81\xa1a"), deep[7:]...), option}), ReasonDepth},
		{"gzip with a flipped byte", pack([]any{"t", flipped, dict{"chunk": "id", "compressed": "gzip"}}), ""},
		{"gzip cut short", pack([]any{"t", gzipped(stream(1000))[:200], dict{"chunk": "id", "compressed": "gzip"}}), ReasonDecompress},
		{"not gzip", pack([]any{"t", stream(10), dict{"chunk": "id", "compressed": "gzip"}}), ReasonDecompress},
		{"not zstd", pack([]any{"t", stream(10), dict{"chunk": "id", "compressed": "zstd"}}), ReasonDecompress},
		{"unknown compression", pack([]any{"t", stream(10), dict{"compressed": "lz4"}}), ReasonType},
		{"gzip bomb", pack([]any{"t", gzipped(bytes.Repeat(stream(1), 300_000)), dict{"compressed": "gzip"}}), ReasonInflated},
		{"gzip bomb of zeros", pack([]any{"t", gzipped(zeros, zeros, zeros), dict{"compressed": "gzip"}}), ReasonType},
		{"packed payload cut in an event", pack([]any{"t", stream(10)[:77], option}), ReasonBroken},
		{"entries that are not pairs", pack([]any{"t", append(stream(5), pack(1, 2, 3)...), option}), ReasonType},
		{"time is a string", pack([]any{"t", []any{[]any{"now", dict{}}}}), ReasonType},
		{"time u64 max", pack([]any{"t", []any{[]any{uint64(1<<64 - 1), dict{}}}}), ReasonType},
		{"time with 2 billion nanoseconds", []byte("\x93\xa1t\xd7\x00\x00\x00\x00\x01\x7f\xff\xff\xff\x80"), ReasonType},
		{"record is an array", pack([]any{"t", 1, []any{}}), ReasonType},
		{"metadata is no map", pack([]any{"t", []any{[]any{[]any{1, 2}, dict{}}}}), ReasonType},
		{"tag of 1 MB", pack([]any{strings.Repeat("t", 1<<20), 1, dict{}}), ReasonSize},
		{"chunk id of 64 KiB", pack([]any{"t", stream(1), dict{"chunk": strings.Repeat("c", maxChunk+1)}}), ReasonSize},
		{"option is a string", pack([]any{"t", stream(1), "x"}), ReasonType},
		{"option of 1 MB", pack([]any{"t", stream(1), dict{"x": strings.Repeat("c", 1<<20)}}), ReasonSize},
		{"reserved byte", []byte("\x93\xa1t\x01\x81\xa1a\xc1"), ReasonBroken},
		{"reserved byte in an event", pack([]any{"t", []byte("\x92\x01\x81\xa1a\xc1")}), ReasonBroken},
		{"JSON object", []byte(`{"a":1}`), ReasonType},
		{"JSON garbage", []byte(`[nonsense]`), ReasonBroken},
		{"JSON with one element", []byte(`["t"]`), ReasonType},
		{"JSON record is a list", []byte(`["t",1,[]]`), ReasonType},
		{"JSON nested deep", []byte(strings.Repeat("[", 100_000)), ReasonDepth},
		{"JSON cut", []byte(`["t",1,{"a":`), ReasonCut},
	} {
		t.Run(c.name, func(t *testing.T) {
			core, logs := observer.New(zap.WarnLevel)
			h := &received{}
			r := serve(t, Config{Handler: h, Log: zap.New(core), DecompressionSizeLimit: 1 << 20})
			first := pack([]any{"t", stream(2), option})
			want := ackOfID
			if c.in[0] == '{' || c.in[0] == '[' { // JSON only from the first byte on
				first, want = nil, ""
			}
			got := r.talk(append(first, c.in...))
			// A sender that still writes may lose the ack to the reset.
			if string(got) != want && !(len(got) == 0 && len(c.in) > 1<<17) {
				t.Errorf("answer %q, want %q", got, want)
			}
			wantMessages := min(1, len(first))
			eventually(t, "the refusal is counted", func() bool { return len(r.Stats().RefusedMessages) > 0 })
			if len(h.all()) != wantMessages {
				t.Errorf("%d messages handed over, want %d", len(h.all()), wantMessages)
			}
			reasons := r.Stats().RefusedMessages
			if c.reason != "" && (reasons[c.reason] != 1 || len(reasons) != 1) {
				t.Errorf("counted %v, want one %s", reasons, c.reason)
			}
			entries := logs.FilterMessage("message refused, not acked").All()
			if len(entries) != 1 || !strings.HasPrefix(fmt.Sprint(entries[0].ContextMap()["sender"]), "127.0.0.1:") {
				t.Errorf("log %+v", entries)
			}
			eventually(t, "all memory is given back", func() bool { s := r.Stats(); return s.MemoryHeld == 0 && s.Open == 0 })
			// Somebody else is served.
			if got := r.talk(pack([]any{"t", stream(2), option})); string(got) != ackOfID {
				t.Errorf("the next sender gets %q", got)
			}
		})
	}
}

// keeper is a Handler that keeps messages until they are released.
type keeper struct {
	mu   sync.Mutex
	held []*Message
}

func (p *keeper) Handle(_ context.Context, m *Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, m)
}

func (p *keeper) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.held)
}

// TestAckOrder: messages become durable in another order than they came; the
// acks leave in the order of arrival, and none before its message is durable.
func TestAckOrder(t *testing.T) {
	h := &keeper{}
	r := serve(t, Config{Handler: h})
	conn := r.dial()
	for i := range 4 {
		if _, err := conn.Write(pack([]any{"t", stream(1), dict{"chunk": fmt.Sprint(i)}})); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "four messages in flight", func() bool { return h.count() == 4 })
	h.held[2].Done(nil)
	h.held[1].Done(nil)
	conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 64)); n != 0 {
		t.Fatalf("%d bytes of acks before the first message is durable, %v", n, err)
	}
	h.held[0].Done(nil)
	conn.SetReadDeadline(time.Now().Add(patience))
	want := "\x81\xa3ack\xa10\x81\xa3ack\xa11\x81\xa3ack\xa12"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v; want %q", got, err, want)
	}
	// The fourth fails: no ack, and the connection ends.
	h.held[3].Done(&Refusal{Reason: "disk", Err: errors.New("full")})
	if rest, err := io.ReadAll(conn); err != nil || len(rest) != 0 {
		t.Errorf("%q, %v after a failed message", rest, err)
	}
	if st := r.Stats(); st.RefusedMessages["disk"] != 1 || st.RefusedEvents != 1 || st.Acks != 3 {
		t.Errorf("stats %+v", st)
	}
}

func TestHeartbeats(t *testing.T) {
	h := &received{}
	core, logs := observer.New(zap.DebugLevel)
	r := serve(t, Config{Handler: h, Log: zap.New(core)})
	r.talk(nil)
	conn := r.dial()
	if err := conn.SetLinger(0); err != nil { // a load balancer's check: reset
		t.Fatal(err)
	}
	conn.Close()
	if got := r.talk(append([]byte{0xc0, 0xc0}, pack([]any{"t", stream(1), dict{"chunk": "id"}})...)); string(got) != ackOfID {
		t.Errorf("after two nils: %q", got)
	}
	eventually(t, "heartbeats counted", func() bool {
		b := r.Stats().Heartbeats
		return b["connect"] == 2 && b["nil"] == 2
	})
	if logs.Len() != 0 {
		t.Errorf("heartbeats are logged: %+v", logs.All())
	}

	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.ServeUDP(pc) }()
	udp, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, beat := range [][]byte{{0}, {0xc0}, bytes.Repeat([]byte("x"), 500)} {
		if _, err := udp.Write(beat); err != nil {
			t.Fatal(err)
		}
		udp.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 16)
		if n, err := udp.Read(b); err != nil || n != 1 || b[0] != 0 {
			t.Errorf("answer %q, %v; want one zero byte", b[:n], err)
		}
	}
	if n := r.Stats().Heartbeats["udp"]; n != 3 {
		t.Errorf("%d UDP heartbeats", n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestMemoryBudget: many senders begin large messages and never end them. The
// budget holds, somebody is refused for it, and a normal sender is served.
func TestMemoryBudget(t *testing.T) {
	const budget, senders = 4 << 20, 16
	h := &received{}
	r := serve(t, Config{Handler: h, Log: zap.NewNop(), Memory: budget, MemoryWait: 50 * time.Millisecond, StallTimeout: 300 * time.Millisecond, MinRate: -1})
	half := append([]byte("\x92\xa1t\xc6\x00\x40\x00\x00"), make([]byte, 1<<20)...) // 1 MB of 4
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			conn, err := net.Dial("tcp", r.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			conn.Write(half)
			io.Copy(io.Discard, conn) // until weir closes it
		})
	}
	wg.Wait()
	st := r.Stats()
	if st.MemoryPeak > budget {
		t.Errorf("peak %d over the budget of %d", st.MemoryPeak, budget)
	}
	if n := st.RefusedMessages[ReasonMemory] + st.RefusedMessages[ReasonStalled]; n != senders {
		t.Errorf("refused %v, want all %d senders", st.RefusedMessages, senders)
	}
	if got := r.talk(pack([]any{"t", stream(2), dict{"chunk": "id"}})); string(got) != ackOfID {
		t.Errorf("a normal sender gets %q", got)
	}
	eventually(t, "all memory is given back", func() bool { return r.Stats().MemoryHeld == 0 })
}

// TestIdleHoldsNothing: a connection between two messages holds no memory.
func TestIdleHoldsNothing(t *testing.T) {
	h := &received{}
	r := serve(t, Config{Handler: h})
	conn := r.dial()
	for range 3 {
		if _, err := conn.Write(pack([]any{"t", stream(100), dict{"chunk": "id"}})); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, len(ackOfID))); err != nil {
			t.Fatal(err)
		}
		eventually(t, "no memory is held", func() bool { return r.Stats().MemoryHeld == 0 })
	}
}

func TestMaxConnections(t *testing.T) {
	r := serve(t, Config{Handler: &received{}, MaxConnections: 2})
	a, b := r.dial(), r.dial()
	eventually(t, "two open", func() bool { return r.Stats().Open == 2 })
	c := r.dial()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the third connection: %v", err)
	}
	if st := r.Stats(); st.Refused != 1 || st.Peak != 2 {
		t.Errorf("stats %+v", st)
	}
	a.Close()
	b.Close()
}

// TestTimeouts: an idle connection, one in the middle of a message, one in the
// middle of the handshake.
func TestTimeouts(t *testing.T) {
	short := 20 * time.Millisecond
	for _, c := range []struct {
		name, send, reason string
		config             Config
	}{
		{"idle", "", "", Config{IdleTimeout: short}},
		{"stalled", "\x92\xa1t", ReasonStalled, Config{StallTimeout: short}},
		{"handshake", "\x96\xa4PING", "", Config{Security: security(), HandshakeTimeout: short}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Handler = &received{}
			r := serve(t, c.config)
			conn := r.dial()
			closed := func(err error) bool { // also before all was written
				return err == nil || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
			}
			if _, err := io.WriteString(conn, c.send); !closed(err) {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); !closed(err) {
				t.Errorf("the connection is not closed in time: %v", err)
			}
			st := r.Stats()
			if c.reason != "" && st.RefusedMessages[c.reason] != 1 || c.config.Security != nil && st.HandshakeFailed != 1 || (st.Idle == 1) != (c.name == "idle") {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

// TestStallTimeoutEndsWithTheMessage: a message that came in two parts leaves no
// deadline behind; the idle connection lives on.
func TestStallTimeoutEndsWithTheMessage(t *testing.T) {
	const stall = 2 * time.Second // longer than the test is ever kept from its next write
	r := serve(t, Config{Handler: &received{}, StallTimeout: stall})
	conn := r.dial()
	eventually(t, "the connection is accepted", func() bool { return r.Stats().Open == 1 })
	msg := pack([]any{"t", stream(1), dict{"chunk": "id"}})
	for range 2 {
		for _, part := range [][]byte{msg[:5], msg[5:]} {
			if _, err := conn.Write(part); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the part is read", func() bool {
				var unread int
				return r.unread(&unread) == nil && unread == 0
			})
		}
		if _, err := io.ReadFull(conn, make([]byte, len(ackOfID))); err != nil {
			t.Fatal(err)
		}
	}
	conn.SetReadDeadline(time.Now().Add(stall + stall/4))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the idle connection: %v", err)
	}
}

// unread is how many bytes the kernel holds for the server's connections.
func (r *running) unread(n *int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		var opErr error
		err := s.raw.Control(func(fd uintptr) {
			var queued int
			queued, opErr = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
			*n += queued
		})
		if err := errors.Join(err, opErr); err != nil {
			return err
		}
	}
	return nil
}

// TestShutdown: what was sent before is handled and acked, half a message is
// not, and the connections are closed.
func TestShutdown(t *testing.T) {
	h := &keeper{}
	srv, err := NewServer(Config{Handler: h, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, "tcp")
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	msg := pack([]any{"t", stream(1), dict{"chunk": "id"}})
	if _, err := conn.Write(append(bytes.Repeat(msg, 3), msg[:5]...)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "three messages in flight", func() bool { return h.count() == 3 })
	stopped := make(chan error, 1)
	go func() { stopped <- srv.Shutdown(t.Context()) }()
	eventually(t, "draining", srv.draining.Load)
	for _, m := range h.held {
		m.Done(nil)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") || string(got) != strings.Repeat(ackOfID, 3) {
		t.Errorf("acks %q, %v", got, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if h.count() != 3 {
		t.Errorf("%d messages", h.count())
	}
}

// slowListener has connections queued and gives them out one by one, slowly, also
// once its deadline has come.
type slowListener struct {
	net.Listener
	queue   chan net.Conn
	expired chan struct{}
}

func (l *slowListener) SetDeadline(time.Time) error { close(l.expired); return nil }

func (l *slowListener) Accept() (net.Conn, error) {
	time.Sleep(2 * acceptGrace)
	for {
		select {
		case c := <-l.queue:
			return c, nil
		default:
		}
		select {
		case c := <-l.queue:
			return c, nil
		case <-l.expired:
			if len(l.queue) == 0 {
				return nil, os.ErrDeadlineExceeded
			}
		}
	}
}

// TestShutdownTakesTheQueue: what waited to be accepted is taken, however long that
// takes, and what it has sent is acked.
func TestShutdownTakesTheQueue(t *testing.T) {
	const queued = 5
	srv, err := NewServer(Config{Handler: &received{}, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	l := &slowListener{Listener: listen(t, "tcp"), queue: make(chan net.Conn, queued), expired: make(chan struct{})}
	var conns []net.Conn
	for range queued {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(pack([]any{"t", stream(1), dict{"chunk": "id"}})); err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		l.queue <- accepted
		conns = append(conns, conn)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	eventually(t, "the first is accepted", func() bool { return srv.Stats().Accepted > 0 })
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	for i, conn := range conns {
		conn.SetReadDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(conn); err != nil || string(got) != ackOfID {
			t.Errorf("connection %d: %q, %v", i, got, err)
		}
	}
}

// TestDenyKeepalive: one message, its ack, and the end.
func TestDenyKeepalive(t *testing.T) {
	r := serve(t, Config{Handler: &received{}, DenyKeepalive: true})
	conn := r.dial()
	if _, err := conn.Write(pack([]any{"t", stream(1), dict{"chunk": "id"}})); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != ackOfID {
		t.Errorf("%q, %v", got, err)
	}
}

// TestInFlightIsBounded: a connection whose messages do not become durable is
// read no further than its limit, and read on once they do.
func TestInFlightIsBounded(t *testing.T) {
	const more = 50
	h := &keeper{}
	r := serve(t, Config{Handler: h})
	conn := r.dial()
	if _, err := conn.Write(bytes.Repeat(pack([]any{"t", stream(1)}), maxInFlight+more)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next message waits", func() bool { return r.Stats().Waits["in_flight"] > 0 })
	time.Sleep(50 * time.Millisecond)
	if n, waits := h.count(), r.Stats().Waits["in_flight"]; n != maxInFlight || waits != 1 {
		t.Errorf("%d messages in flight, %d waits", n, waits)
	}
	for done := range maxInFlight + more {
		eventually(t, "the next one comes", func() bool { return h.count() > done })
		h.mu.Lock()
		m := h.held[done]
		h.mu.Unlock()
		m.Done(nil)
	}
	eventually(t, "all are counted", func() bool { return r.Stats().Events["packed"] == maxInFlight+more })
}

// TestAcksUnread: a sender that reads no acks is not read any further, and holds
// up nobody else.
func TestAcksUnread(t *testing.T) {
	r := serve(t, Config{Handler: &received{}})
	conn := r.dial()
	id := strings.Repeat("i", maxChunk)
	msg := pack([]any{"t", stream(1), dict{"chunk": id}})
	written := make(chan struct{})
	go func() {
		defer close(written)
		for {
			if _, err := conn.Write(msg); err != nil {
				return
			}
		}
	}()
	eventually(t, "the kernel's buffers are full of acks", func() bool { return r.Stats().Waits["unread_acks"] > 0 })
	if got := r.talk(pack([]any{"t", stream(1), dict{"chunk": "id"}})); string(got) != ackOfID {
		t.Errorf("another sender gets %q", got)
	}
	if st := r.Stats(); st.AcksUnread != 0 {
		t.Errorf("%d connections are given up", st.AcksUnread)
	}
	conn.Close()
	<-written
}

// TestAcksUnreadForLong: in the end that sender's connection is given up.
func TestAcksUnreadForLong(t *testing.T) {
	r := serve(t, Config{Handler: &received{}, ackTimeout: 50 * time.Millisecond})
	conn := r.dial()
	msg := pack([]any{"t", stream(1), dict{"chunk": strings.Repeat("i", maxChunk)}})
	for {
		if _, err := conn.Write(msg); err != nil {
			break
		}
	}
	eventually(t, "it is counted and gone", func() bool { st := r.Stats(); return st.AcksUnread == 1 && st.Open == 0 })
}

// TestSizeWarning: a message over chunk_size_warn_limit is taken, and logged.
func TestSizeWarning(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	h := &received{}
	r := serve(t, Config{Handler: h, Log: zap.New(core), MessageSizeWarn: 100})
	for _, n := range []int{1, 50} {
		if got := r.talk(pack([]any{"t", stream(n), dict{"chunk": "id"}})); string(got) != ackOfID {
			t.Errorf("answer %q", got)
		}
	}
	if len(h.all()) != 2 || logs.FilterMessageSnippet("chunk_size_warn_limit").Len() != 1 {
		t.Errorf("%d messages, log %v", len(h.all()), logs.All())
	}
}
