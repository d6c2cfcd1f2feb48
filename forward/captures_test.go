package forward

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/vmihailenco/msgpack/v5"
	"go.uber.org/zap/zaptest"
)

// received is a Handler that keeps copies of everything and says durable.
type received struct {
	mu       sync.Mutex
	messages []kept
}

type kept struct {
	mode   Mode
	tag    string
	chunk  string
	events []any // decoded as decoded.json has them
	count  int
	err    error
}

func (r *received) Handle(_ context.Context, m *Message) {
	stream, err := inflate(bytes.Join(m.Payload, nil), m.Compression)
	k := kept{mode: m.Mode, tag: string(m.Tag), chunk: string(m.Chunk), count: m.Events, err: err}
	for len(stream) > 0 && k.err == nil {
		var n int
		_, n, k.err = NextEvent(stream)
		if k.err == nil {
			k.events = append(k.events, decode(stream[:n]))
			stream = stream[n:]
		}
	}
	r.mu.Lock()
	r.messages = append(r.messages, k)
	r.mu.Unlock()
	m.Done(nil)
}

// all is what was received so far.
func (r *received) all() []kept {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

func inflate(p []byte, c Compression) ([]byte, error) {
	switch c {
	case Gzip:
		r, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	case Zstd:
		r, err := zstd.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	return p, nil
}

// decode turns one event into the shapes of decoded.json: an EventTime becomes
// {"$time": [sec, nsec]}, bin becomes a string, numbers become json.Number.
func decode(p []byte) any {
	dec := msgpack.NewDecoder(bytes.NewReader(p))
	v, err := decodeValue(dec)
	if err != nil {
		return err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return fromJSON(b)
}

func fromJSON(b []byte) (v any) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return err
	}
	return v
}

func decodeValue(dec *msgpack.Decoder) (any, error) {
	c, err := dec.PeekCode()
	if err != nil {
		return nil, err
	}
	switch {
	case c&0xf0 == 0x90 || c == 0xdc || c == 0xdd:
		n, err := dec.DecodeArrayLen()
		if err != nil {
			return nil, err
		}
		list := make([]any, 0, n)
		for range n {
			v, err := decodeValue(dec)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case c&0xf0 == 0x80 || c == 0xde || c == 0xdf:
		n, err := dec.DecodeMapLen()
		if err != nil {
			return nil, err
		}
		m := map[string]any{}
		for range n {
			k, err := decodeValue(dec)
			if err != nil {
				return nil, err
			}
			v, err := decodeValue(dec)
			if err != nil {
				return nil, err
			}
			m[fmt.Sprint(k)] = v
		}
		return m, nil
	case c == 0xd7 || c == 0xc7:
		_, n, err := dec.DecodeExtHeader()
		if err != nil {
			return nil, err
		}
		b := make([]byte, n)
		if err := dec.ReadFull(b); err != nil {
			return nil, err
		}
		sec, nsec, err := parseTime(append([]byte{0xd7, 0}, b...))
		return map[string]any{"$time": []any{sec, nsec}}, err
	case c >= 0xc4 && c <= 0xc6:
		b, err := dec.DecodeBytes()
		return string(b), err
	}
	return dec.DecodeInterface()
}

// recording is one connection of a capture.
type recording struct {
	name     string
	sent     []byte
	answered []byte
	want     []kept
	secure   bool
	badKey   bool
}

func recordings(t *testing.T) []recording {
	t.Helper()
	files, err := filepath.Glob("../testdata/captures/*/*.c2s.bin")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 30 {
		t.Fatalf("only %d captures in testdata", len(files))
	}
	var all []recording
	for _, f := range files {
		dir, base := filepath.Split(f)
		r := recording{name: filepath.Join(filepath.Base(dir), base), secure: strings.Contains(dir, "secure"), badKey: strings.Contains(dir, "badkey")}
		r.sent = mustRead(t, f)
		r.answered = mustRead(t, strings.Replace(f, ".c2s.", ".s2c.", 1))
		var decoded map[string]struct {
			Client []struct {
				Mode, Tag string
				Option    struct{ Chunk string }
				Events    []json.RawMessage
			}
		}
		if err := json.Unmarshal(mustRead(t, filepath.Join(dir, "decoded.json")), &decoded); err != nil {
			t.Fatal(err)
		}
		d, ok := decoded[base]
		if !ok && len(r.sent) > 0 {
			t.Fatalf("%s: not in decoded.json", r.name)
		}
		for _, m := range d.Client {
			if m.Mode == "" {
				continue // a handshake
			}
			k := kept{tag: m.Tag, chunk: m.Option.Chunk, count: len(m.Events)}
			switch m.Mode {
			case "Message":
				k.mode = ModeMessage
			case "Forward":
				k.mode = ModeForward
			case "PackedForward":
				k.mode = ModePacked
			case "CompressedPackedForward":
				k.mode = ModeCompressed
			default:
				t.Fatalf("%s: mode %q", r.name, m.Mode)
			}
			for _, e := range m.Events {
				k.events = append(k.events, fromJSON(e))
			}
			r.want = append(r.want, k)
		}
		all = append(all, r)
	}
	return all
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// security is what the recorded servers were configured with.
func security() *Security {
	return &Security{SelfHostname: "receiver.example.com", SharedKey: "s3cr3t-key",
		UserAuth: true, Users: map[string]string{"alice": "wonderland"}}
}

// nonces gives out the nonce and then the auth salt of a recorded HELO.
func (r *recording) nonces(t *testing.T) func([]byte) {
	t.Helper()
	dec := msgpack.NewDecoder(bytes.NewReader(r.answered))
	var helo struct {
		_msgpack struct{} `msgpack:",as_array"`
		Name     string
		Options  struct {
			Nonce []byte `msgpack:"nonce"`
			Auth  []byte `msgpack:"auth"`
		}
	}
	if err := dec.Decode(&helo); err != nil {
		t.Fatal(err)
	}
	give := [][]byte{helo.Options.Nonce, helo.Options.Auth}
	return func(b []byte) {
		copy(b, give[0])
		give = append(give[1:], give[0])
	}
}

// replay sends the recording in pieces of the given sizes and checks what the
// handler got and what the server answered.
func (r *recording) replay(t *testing.T, network string, sizes func() int) {
	t.Helper()
	h := &received{}
	c := Config{Handler: h, Log: zaptest.NewLogger(t)}
	if r.secure {
		c.Security = security()
	}
	srv, err := NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	if r.secure {
		srv.nonce = r.nonces(t)
	}
	l := listen(t, network)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	conn, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(conn)
		answers <- b
	}()
	for p := r.sent; len(p) > 0; {
		n := min(sizes(), len(p))
		if _, err := conn.Write(p[:n]); err != nil {
			if r.badKey {
				break
			}
			t.Fatal(err)
		}
		p = p[n:]
	}
	if cw, ok := conn.(interface{ CloseWrite() error }); ok && !r.badKey {
		if err := cw.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	var got []byte
	select {
	case got = <-answers:
	case <-time.After(patience):
		t.Fatal("the server does not end the connection")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	want := r.answered
	if r.secure && !bytes.Equal(got, want) {
		// Fluent Bit's server writes its HELO otherwise: compare from the PONG on.
		got, want = fromPong(got), fromPong(want)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("answered\n%q, want\n%q", got, want)
	}
	if len(h.all()) != len(r.want) {
		t.Fatalf("%d messages, want %d", len(h.all()), len(r.want))
	}
	for i, m := range h.all() {
		if !reflect.DeepEqual(m, r.want[i]) {
			t.Errorf("message %d:\n got %+v\nwant %+v", i, m, r.want[i])
		}
	}
	if st := srv.Stats(); st.MemoryHeld != 0 || st.Open != 0 || st.InFlight != 0 {
		t.Errorf("after the end: %+v", st)
	}
}

func fromPong(p []byte) []byte {
	_, rest, found := bytes.Cut(p, []byte("\x95\xa4PONG"))
	if !found {
		return p
	}
	return rest
}

func listen(t *testing.T, network string) net.Listener {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCapturesWhole(t *testing.T) {
	for _, r := range recordings(t) {
		t.Run(r.name, func(t *testing.T) { r.replay(t, "tcp", func() int { return 1 << 20 }) })
	}
}

func TestCapturesByteByByte(t *testing.T) {
	for _, r := range recordings(t) {
		t.Run(r.name, func(t *testing.T) { r.replay(t, "unix", func() int { return 1 }) })
	}
}

func TestCapturesRandomSplits(t *testing.T) {
	for _, r := range recordings(t) {
		t.Run(r.name, func(t *testing.T) {
			for seed := range uint64(8) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				r.replay(t, "unix", func() int { return 1 + rnd.IntN(64) })
			}
		})
	}
}

// TestCapturesEverySplit cuts each recording in two at every byte, through the
// parser alone.
func TestCapturesEverySplit(t *testing.T) {
	for _, r := range recordings(t) {
		if r.secure || len(r.sent) == 0 {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			for cut := range r.sent {
				if err := parseInTwo(r.sent, cut, len(r.want)); err != nil {
					t.Fatalf("cut at %d: %v", cut, err)
				}
			}
		})
	}
}

// parseInTwo parses all messages of p while only p[:cut] is there, then the
// rest.
func parseInTwo(p []byte, cut, want int) error {
	var ps parser
	limits := parserLimits{depth: DefaultMaxDepth, message: DefaultMessageSizeLimit}
	ps.reset(limits)
	start, messages := 0, 0
	for _, end := range []int{cut, len(p)} {
		for start < end {
			done, err := ps.parse(p[start:end])
			if err != nil {
				return err
			}
			if !done {
				break
			}
			messages++
			start += ps.pos
			ps.reset(limits)
		}
	}
	if messages != want || start != len(p) {
		return errors.New("not all messages found")
	}
	return nil
}
