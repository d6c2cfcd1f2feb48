package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/vmihailenco/msgpack/v5"

	"weir/internal/status"
)

// outcome is what becomes of a message, as weir counts it.
type outcome string

const (
	isStored  outcome = "stored"  // as a whole
	isSorted  outcome = "sorted"  // partly stored, the rest in quarantine
	isInvalid outcome = "invalid" // in quarantine as a whole
	isRefused outcome = "refused" // not acked, the connection is closed
)

// hostile is one thing that a hostile or broken client does.
type hostile struct {
	name    string
	stream  []byte
	send    func(conn net.Conn) error // instead of stream
	outcome outcome
	reason  string // as counted
	ack     string // what comes back, msgpack; "" for nothing
	events  int    // stored
}

func pack(v any) []byte {
	b, err := msgpack.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

type dict = map[string]any

// events are n valid ones.
func events(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, pack([]any{1700000000, dict{"n": i}})...)
	}
	return b
}

func zip(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(p); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// hostileCases is everything that field reports and experiments have against
// receivers of the Forward protocol.
func hostileCases() []hostile {
	const ack = "\x81\xa3ack\xa2id"
	option, gz := dict{"chunk": "id"}, dict{"chunk": "id", "compressed": "gzip"}
	packed := func(tag any, payload []byte, option any) []byte { return pack([]any{tag, payload, option}) }
	with := func(good int, bad []byte) []byte { return append(events(good), bad...) }
	deep := append([]byte("\x81\xa1a"), append(bytes.Repeat([]byte{0x91}, 100_000), 0xc0)...)
	flipped := zip(events(1000))
	flipped[len(flipped)-6] ^= 1
	tinyEvents := zip(bytes.Repeat([]byte("\x92\x01\x80"), 10<<20/3))
	zstdZeros := func() []byte {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			panic(err)
		}
		defer w.Close()
		return w.EncodeAll(make([]byte, 64<<20), nil)
	}()
	return []hostile{
		{name: "an array of 4 billion", stream: []byte("\xdd\xff\xff\xff\xff"), outcome: isRefused, reason: "wrong_type"},
		{name: "entries of 4 billion", stream: []byte("\x92\xa1t\xdd\xff\xff\xff\xff\xc0"), outcome: isRefused, reason: "wrong_type"},
		{name: "4 billion entries within a payload", stream: packed("t", []byte("\xdd\xff\xff\xff\xff"), option), outcome: isInvalid, reason: "broken", ack: ack},
		{name: "4 GB claimed, 1 GB sent", send: func(conn net.Conn) error {
			_, err := conn.Write([]byte("\x92\xa1t\xc6\xff\xff\xff\xff"))
			for range 1024 { // or less, if weir closes before that
				if err == nil {
					_, err = conn.Write(make([]byte, 1<<20))
				}
			}
			return err
		}, outcome: isRefused, reason: "too_large"},
		{name: "100,000 deep", stream: append(append([]byte("\x94\xa1t\x01"), deep...), pack(option)...), outcome: isInvalid, reason: "too_deep", ack: ack},
		{name: "100,000 deep within a payload", stream: packed("t", with(3, append([]byte("\x92\x01"), deep...)), option), outcome: isSorted, reason: "too_deep", ack: ack, events: 3},
		{name: "1 MB of gzip in 100 members, 1 GB of tiny events", stream: packed("t", bytes.Repeat(tinyEvents, 100), gz), outcome: isInvalid, reason: "decompressed", ack: ack},
		{name: "4 MB of gzip in 400 members, 4 GB of tiny events", stream: packed("t", bytes.Repeat(tinyEvents, 400), gz), outcome: isInvalid, reason: "decompressed", ack: ack},
		{name: "4 MB of gzip in 400 members, 4 GB of zeros", stream: packed("t", bytes.Repeat(zip(make([]byte, 10<<20)), 400), gz), outcome: isInvalid, reason: "decompressed", ack: ack},
		{name: "zstd of zeros", stream: packed("t", zstdZeros, dict{"chunk": "id", "compressed": "zstd"}), outcome: isInvalid, reason: "ratio", ack: ack},
		{name: "gzip with a flipped byte", stream: packed("t", flipped, gz), outcome: isInvalid, reason: "decompress", ack: ack},
		{name: "gzip cut short", stream: packed("t", zip(events(1000))[:200], gz), outcome: isInvalid, reason: "decompress", ack: ack},
		{name: "not gzip at all", stream: packed("t", events(10), gz), outcome: isInvalid, reason: "decompress", ack: ack},
		{name: "payload cut in mid-event", stream: packed("t", events(10)[:len(events(10))-2], option), outcome: isSorted, reason: "broken", ack: ack, events: 9},
		{name: "entries that are not pairs", stream: packed("t", with(5, []byte{1, 2, 3}), option), outcome: isSorted, reason: "wrong_type", ack: ack, events: 5},
		{name: "a time that is text", stream: packed("t", with(2, pack([]any{"noon", dict{}})), option), outcome: isSorted, reason: "wrong_type", ack: ack, events: 2},
		{name: "a time of u64 max", stream: packed("t", with(2, []byte("\x92\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x80")), option), outcome: isSorted, reason: "wrong_type", ack: ack, events: 2},
		{name: "str of 4 GB as an event", stream: packed("t", with(1, []byte("\xdb\xff\xff\xff\xff")), option), outcome: isSorted, reason: "broken", ack: ack, events: 1},
		{name: "a tag that climbs", stream: packed("../../../etc/x", events(1), option), outcome: isStored, ack: ack, events: 1},
		{name: "a tag of 1 MB", stream: packed(strings.Repeat("t", 1<<20), events(1), option), outcome: isInvalid, reason: "too_large", ack: ack},
		{name: "a chunk id of 1 MB", stream: packed("t", events(1), dict{"chunk": strings.Repeat("c", 1<<20)}), outcome: isRefused, reason: "too_large"},
		{name: "a chunk id of 60 KB", stream: packed("t", events(1), dict{"chunk": strings.Repeat("c", 60_000)}), outcome: isStored, ack: "\x81\xa3ack\xda\xea\x60" + strings.Repeat("c", 60_000), events: 1},
		{name: "an option of 1 MB", stream: packed("t", events(1), dict{"chunk": "id", "x": strings.Repeat("x", 1<<20)}), outcome: isStored, ack: ack, events: 1},
		{name: "4 billion pairs in a record", stream: []byte("\x93\xa1t\x01\xdf\xff\xff\xff\xff"), outcome: isRefused, reason: "cut"},
		{name: "a chunk id that is an int", stream: packed("t", events(1), dict{"chunk": 5}), outcome: isStored, ack: "\x81\xa3ack\x05", events: 1},
		{name: "a chunk id that is a map", stream: packed("t", events(1), dict{"chunk": dict{}}), outcome: isStored, ack: "\x81\xa3ack\x80", events: 1},
		{name: "a chunk id that is nil", stream: packed("t", events(1), dict{"chunk": nil}), outcome: isStored, events: 1},
		{name: "a chunk id that is bin", stream: packed("t", events(1), dict{"chunk": []byte{0, 10}}), outcome: isStored, ack: "\x81\xa3ack\xc4\x02\x00\n", events: 1},
		{name: "300 MB in one message", send: func(conn net.Conn) error {
			_, err := conn.Write([]byte("\x92\xa1t\xc6\x12\xc0\x00\x00"))
			for range 300 {
				if err == nil {
					_, err = conn.Write(bytes.Repeat([]byte("\x92\x01\x80"), 1<<20/3))
				}
			}
			return err
		}, outcome: isRefused, reason: "too_large"},
		{name: "HTTP", stream: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), outcome: isRefused, reason: "not_forward"},
		{name: "TLS on the plain port", stream: []byte("\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"), outcome: isRefused, reason: "not_forward"},
		{name: "garbage", stream: []byte("\xff\xfe\x01\x80 nothing at all"), outcome: isRefused, reason: "not_forward"},
		{name: "a PROXY header that nobody asked for", stream: []byte("PROXY TCP4 203.0.113.7 192.0.2.1 5 24224\r\n"), outcome: isRefused, reason: "not_forward"},
		{name: "half a message", stream: packed("t", events(100), option)[:50], outcome: isRefused, reason: "cut"},
		{name: "JSON that is broken", stream: []byte(`["t",1,{"a":}]`), outcome: isInvalid, reason: "broken"},
		{name: "JSON that nests", stream: []byte(`["t",1,{"a":` + strings.Repeat("[", 100_000)), outcome: isRefused, reason: "too_deep"},
		{name: "JSON records of a shipper for something else", stream: []byte(`{"log":"hello"}`), outcome: isInvalid, reason: "wrong_type"},
	}
}

// TestHostile does every hostile thing to one weir, a normal sender after each.
// weir stays alive and honest: each message is stored, set aside or refused, as
// counted; memory comes back; no bad event reaches an output.
func TestHostile(t *testing.T) {
	const budget = 64 << 20
	w := start(t, options{source: "memory_limit 64m\n chunk_size_limit 16m\n decompression_size_limit 16m"})
	var want struct {
		stored, sorted, set int
		refused             map[string]uint64
		invalid             map[string]uint64
		events              int
	}
	want.refused, want.invalid = map[string]uint64{}, map[string]uint64{}
	for i, c := range hostileCases() {
		// Each has a chunk id of its own, or it would be a repetition.
		id := fmt.Sprintf("\xa2%02d", i)
		c.stream = bytes.Replace(c.stream, []byte("\xa5chunk\xa2id"), []byte("\xa5chunk"+id), 1)
		c.ack = strings.Replace(c.ack, "\xa2id", id, 1)
		t.Run(c.name, func(t *testing.T) {
			got, err := w.assault(c)
			if err != nil {
				t.Fatal(err)
			}
			// A refusal may come as a reset.
			if got != c.ack && !(c.outcome == isRefused && got == "") {
				t.Errorf("answer %.100q, want %q", got, c.ack)
			}
			sender, err := dial(w.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer sender.conn.Close()
			// With the tag of the bad events, and so in the same file.
			if err := sender.send("t", fmt.Sprintf("good-%d", i), i*10, i*10+10); err != nil {
				t.Errorf("a normal sender: %v", err)
			}
		})
		want.stored++ // the normal sender's
		want.events += c.events
		switch c.outcome {
		case isStored:
			want.stored++
		case isSorted:
			want.stored++
			want.invalid[c.reason]++
		case isInvalid:
			want.invalid[c.reason]++
		case isRefused:
			want.refused[c.reason]++
		}
	}
	good := len(hostileCases()) * 10
	waitFor(t, patience, func() error {
		s := w.snapshot()
		stored := 0
		for _, n := range s.Traffic.Messages {
			stored += int(n)
		}
		if stored != want.stored || !maps.Equal(s.Traffic.Refused, want.refused) || !maps.Equal(s.Traffic.Invalid, want.invalid) {
			return fmt.Errorf("stored %d, refused %v, invalid %v; want %d, %v, %v", stored, s.Traffic.Refused, s.Traffic.Invalid, want.stored, want.refused, want.invalid)
		}
		set := 0
		for _, n := range want.invalid {
			set += int(n)
		}
		if s.Quarantines[0].Items != set && s.Quarantines[0].Items != 0 { // looked at now and then
			return fmt.Errorf("%d in quarantine, want %d", s.Quarantines[0].Items, set)
		}
		for _, q := range s.Queues {
			if q.Name == "memory" && (q.Depth != 0 || q.Peak > budget) {
				return fmt.Errorf("memory %+v", q)
			}
			if q.Name == "connections" && q.Depth != 0 {
				return fmt.Errorf("connections %+v", q)
			}
		}
		return nil
	})
	// All came from one address, whose row has what the totals have.
	var senders status.SenderList
	if err := json.Unmarshal([]byte(w.get("/api/senders.json?by=invalid_events")), &senders); err != nil || len(senders.Senders) != 1 {
		t.Fatalf("%+v, %v", senders, err)
	}
	if got, all := senders.Senders[0].InvalidEvents, w.snapshot().Traffic.InvalidEvents; got != all || all == 0 {
		t.Errorf("%d invalid events of the sender, %d of all", got, all)
	}
	delivered := w.delivered()
	if len(delivered) != good+want.events {
		t.Errorf("%d events delivered, want %d good ones and %d of the others", len(delivered), good, want.events)
	}
	for _, e := range delivered {
		if _, ok := e.record["n"].(float64); !ok || len(e.record) != 1 {
			t.Errorf("a bad event was delivered: %+v", e)
		}
	}
	if escaped, err := filepath.Glob(filepath.Join(w.dir, "*", "etc*")); err != nil || len(escaped) > 0 {
		t.Errorf("a tag has climbed: %q, %v", escaped, err)
	}
	// The budget, and what the process itself takes.
	if rss := w.rss(); rss > budget+80<<20 {
		t.Errorf("%d MiB resident", rss>>20)
	}
	t.Logf("%d MiB resident, %d bytes of log", w.rss()>>20, len(w.log.String()))
	if n := len(w.log.String()); n > 64<<10 {
		t.Errorf("%d bytes of log", n)
	}
	w.stop()
}

// assault does what c says and returns the answer.
func (w *weir) assault(c hostile) (string, error) {
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if c.send != nil {
		err = c.send(conn)
	} else {
		_, err = conn.Write(c.stream)
	}
	// A sender that has closed its side gets no ack from a weir that is busy for
	// long, as it is on a slow machine: so the side stays open until the ack is here.
	acked := make([]byte, len(c.ack))
	if err == nil {
		var n int
		n, err = io.ReadFull(conn, acked)
		acked = acked[:n]
	}
	if err == nil {
		err = conn.(*net.TCPConn).CloseWrite()
	}
	gone := func(err error) bool {
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ENOTCONN)
	}
	if err != nil && !gone(err) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	got, err := io.ReadAll(conn)
	if err != nil && !gone(err) {
		return "", err
	}
	return string(acked) + string(got), nil
}

// rss is the resident memory in bytes.
func (w *weir) rss() int64 {
	w.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", w.cmd.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		w.t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// TestManyOpenConnections: two thousand connections that sent a byte each and
// say no more; a normal sender is served.
func TestManyOpenConnections(t *testing.T) {
	w := start(t, options{source: "memory_limit 16m\n stall_timeout 2s"})
	conns := openMany(t, w.addr, 2000)
	for i, c := range conns {
		if _, err := c.Write([]byte{0x93}); err != nil {
			t.Fatal(i, err)
		}
	}
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.send("good", "x", 0, 10); err != nil {
		t.Error(err)
	}
	c.conn.Close()
	// They are turned out by the stall timeout.
	waitFor(t, patience, func() error {
		if n := w.snapshot().Traffic.Refused["stalled"]; n != 2000 {
			return fmt.Errorf("%d stalled", n)
		}
		return nil
	})
	requireAll(t, w.delivered(), "good", 10)
	w.stop()
}

func openMany(t *testing.T, addr string, n int) []net.Conn {
	t.Helper()
	var conns []net.Conn
	t.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	for range n {
		c, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			t.Fatalf("connection %d: %v", len(conns), err)
		}
		conns = append(conns, c)
	}
	return conns
}

// TestOutOfDescriptors: weir has descriptors for a thousand connections and gets
// two thousand. It does not spin, logs a line and not a flood, keeps those it has, and
// recovers.
func TestOutOfDescriptors(t *testing.T) {
	const limit = 1024
	w := start(t, options{source: "max_connections 4000\n backlog 4096\n on_backlog_mismatch warn", prepare: func(cmd *exec.Cmd) {
		// The limit of the process is set by a shell: Go raises its own soft limit.
		cmd.Args = []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, limit), cmd.Path, cmd.Args[1], cmd.Args[2]}
		cmd.Path = "/bin/sh"
	}})
	before, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer before.conn.Close()
	if err := before.send("good", "a", 0, 10); err != nil {
		t.Fatal(err)
	}
	conns := openMany(t, w.addr, 2000)
	waitFor(t, patience, func() error {
		if !strings.Contains(w.log.String(), "descriptors") {
			return errors.New("the log does not say so")
		}
		return nil
	})
	waitFor(t, patience, func() error { // what the connections took may still be worked off
		cpu := w.cpu()
		time.Sleep(500 * time.Millisecond)
		if spent := w.cpu() - cpu; spent > 250*time.Millisecond {
			return fmt.Errorf("%v of CPU in half a second: it spins", spent)
		}
		return nil
	})
	if err := before.send("good", "b", 10, 20); err != nil {
		t.Errorf("a connection that was there: %v", err)
	}
	if n := strings.Count(w.log.String(), "descriptors"); n > 5 {
		t.Errorf("%d lines of log", n)
	}
	for _, c := range conns {
		c.Close()
	}
	waitFor(t, patience, func() error {
		c, err := dial(w.addr)
		if err != nil {
			return err
		}
		defer c.conn.Close()
		return c.send("good", "c", 20, 30)
	})
	requireAll(t, w.delivered(), "good", 30)
	w.stop()
}

// cpu is the CPU time that the process has used.
func (w *weir) cpu() time.Duration {
	w.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.cmd.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

// TestFailedHandshakes: who tries keys is in the table of senders.
func TestFailedHandshakes(t *testing.T) {
	w := start(t, options{source: "<security>\n self_hostname weir.test\n shared_key right\n</security>"})
	for range 2 {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		var helo, pong []any
		dec := msgpack.NewDecoder(c)
		if err := dec.Decode(&helo); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(pack([]any{"PING", "host", "salt", strings.Repeat("0", 128), "", ""})); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode(&pong); err != nil || len(pong) != 5 || pong[1] != false || pong[2] != "shared_key mismatch" {
			t.Fatalf("%v, %v", pong, err)
		}
		c.Close()
	}
	waitFor(t, patience, func() error {
		s := w.snapshot()
		if len(s.Senders) != 1 || s.Senders[0].Address != "127.0.0.1" || s.Senders[0].HandshakeFailures != 2 || s.Traffic.Connections["handshake_failed"] != 2 {
			return fmt.Errorf("senders %+v, connections %v", s.Senders, s.Traffic.Connections)
		}
		return nil
	})
	w.stop()
}

// TestRejectedCommands lists, shows, replays and drops what is in quarantine.
func TestRejectedCommands(t *testing.T) {
	dir := t.TempDir()
	w := start(t, options{dir: dir, source: "nesting_limit 10"})
	conf := filepath.Join(dir, "weir.conf")
	weirOut := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(binary, append([]string{"-c", conf, "buffer", "rejected"}, args...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := weirOut(); out != "the quarantine is empty\n" {
		t.Errorf("%s", out)
	}
	nested := append([]byte("\x92\x01\x81\xa1n"), append(bytes.Repeat([]byte{0x91}, 12), 0x07)...)
	for _, c := range []hostile{
		{stream: pack([]any{"app", append(events(2), nested...), dict{"chunk": "first"}})},
		{stream: pack([]any{"app", append(events(0), pack([]any{"noon", dict{"a": 1}})...), dict{"chunk": "second"}})},
	} {
		if _, err := w.assault(c); err != nil {
			t.Fatal(err)
		}
	}
	out := weirOut("list")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], "too_deep") || !strings.Contains(lines[2], "wrong_type") || !strings.Contains(lines[1], "127.0.0.1:") {
		t.Fatalf("%s", out)
	}
	deepID, badID := strings.Fields(lines[1])[0], strings.Fields(lines[2])[0]
	if out := weirOut("show", badID); !strings.Contains(out, `["noon",{"a":1}]`) || !strings.Contains(out, "wrong_type") || !strings.Contains(out, "app") {
		t.Errorf("%s", out)
	}
	if out := weirOut("show", "--raw", deepID); out != string(nested) {
		t.Errorf("%q", out)
	}
	// With a higher limit the nested one is valid; the other stays what it is.
	w.stop()
	b, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	w = start(t, options{dir: dir})
	if out := weirOut("replay", "all"); out != "2 of 2 sent again and acked\n" {
		t.Errorf("%s", out)
	}
	waitFor(t, patience, func() error {
		if n := len(w.delivered()); n != 3 {
			return fmt.Errorf("%d events", n)
		}
		return nil
	})
	out = weirOut()
	lines = strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], "wrong_type") || strings.Contains(out, badID) {
		t.Fatalf("after the replay:\n%s\n%s", out, b)
	}
	if out := weirOut("drop", "all"); out != "1 dropped\n" {
		t.Errorf("%s", out)
	}
	if out := weirOut(); out != "the quarantine is empty\n" {
		t.Errorf("%s", out)
	}
	w.stop()
}
