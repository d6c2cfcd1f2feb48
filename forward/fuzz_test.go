package forward

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
)

// counting is a Handler that reads every event of every message.
type counting struct{ t *testing.T }

func (c counting) Handle(_ context.Context, m *Message) {
	p, err := inflate(bytes.Join(m.Payload, nil), m.Compression)
	if err != nil {
		c.t.Errorf("a payload was let through that does not decompress: %v", err)
	}
	n := 0
	for ; len(p) > 0; n++ {
		_, size, err := NextEvent(p)
		if err != nil {
			c.t.Errorf("a message was let through with a bad event: %v", err)
			break
		}
		p = p[size:]
	}
	if n != m.Events {
		c.t.Errorf("%d events, said to be %d", n, m.Events)
	}
	m.Done(nil)
}

// FuzzScanner: the scanner and msgpack/v5 agree on where an object ends, and the
// scanner finds the same end however its input is split.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{"\xc0", "\x93\x01\xa3abc\x81\xa1k\xc4\x02xy", "\xdd\xff\xff\xff\xff", "\xd7\x00abcdefgh", "\xc9\x00\x00\x00\x01\x05x", "\x91\x91\x91\xc1"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, p []byte, step uint8) {
		n, err := Skip(p)
		if err == nil {
			// Scanned bytes are safe for msgpack/v5 and have the same end for it.
			r := bytes.NewReader(p[:n])
			if skipErr := msgpack.NewDecoder(r).Skip(); skipErr != nil || r.Len() != 0 {
				t.Fatalf("msgpack/v5: %v, %d bytes left of %x", skipErr, r.Len(), p[:n])
			}
		}
		var s Scanner
		s.Reset(1, maxTrustedDepth)
		at, done := 0, false
		var splitErr error
		for end := 0; end < len(p) && !done && splitErr == nil; {
			end = min(end+1+int(step)%7, len(p))
			var m int
			m, done, splitErr = s.Scan(p[at:end])
			at += m
		}
		if done != (err == nil) || done && at != n {
			t.Fatalf("whole: %d, %v; split: %d, %v, %v", n, err, at, done, splitErr)
		}
	})
}

// FuzzShape: what an event is taken for does not depend on the events before it,
// nor on how the stream is split; pieces too short for the quick way tell what is
// right.
func FuzzShape(f *testing.F) {
	f.Add(stream(1), stream(3), uint8(50))
	f.Add(stream(2), []byte("\x92\xd7\x00\x00\x00\x00\x01\x00\x00\x00\x02\x82\xa1k\xc4\x02xy\xa1l\x93\x01\xcd\x01\x00\xc0"), uint8(50))
	f.Add(accessLogs(2), accessLogs(3), uint8(3))
	f.Add(nestedLogs(1), nestedLogs(2), uint8(4))
	f.Add([]byte("\x92\x92\xce\x00\x00\x00\x01\x80\x81\xa1a\xda\x00\x03abc"), []byte("\x92\x92\xce\x00\x00\x00\x01\x80\x81\xa1a\xc1\x00\x03abc"), uint8(9))
	f.Fuzz(func(t *testing.T, first, p []byte, maxDepth uint8) {
		depth := int(maxDepth) + 1
		var whole, split streamScanner
		split.reset(depth)
		whole.reset(depth)
		whole.shape.learn(first)
		n, err := whole.scanEvents(p, noLimit)
		at := 0
		var splitErr error
		for end := 0; end < len(p) && splitErr == nil; {
			end = min(end+1, len(p))
			var m int
			m, splitErr = split.scanEvents(p[at:end], noLimit)
			at += m
		}
		if (err == nil) != (splitErr == nil) || err == nil && (n != at || whole.atBoundary() != split.atBoundary()) || whole.events != split.events {
			t.Fatalf("whole: %d bytes, %d events, %v; split: %d, %d, %v", n, whole.events, err, at, split.events, splitErr)
		}
	})
}

// FuzzSession feeds a hostile stream to a session; what it lets through is
// sound.
func FuzzSession(f *testing.F) {
	f.Add(pack([]any{"t", stream(2), dict{"chunk": "id"}}))
	f.Add(pack([]any{"t", gzipped(stream(2)), dict{"compressed": "gzip"}}))
	f.Add(pack([]any{"t", zstandard(stream(2)), dict{"compressed": "zstd"}}))
	f.Add(pack([]any{"t", []any{[]any{[]any{1, dict{}}, dict{"a": 1}}}}))
	f.Add([]byte(`["t",1,{"a":[1,2]},{"chunk":"x"}]["t",[[1,{}]]]`))
	f.Add([]byte("\xc0\x93\xa1t\xd7\x00\x00\x00\x00\x01\x00\x00\x00\x02\x80"))
	f.Fuzz(func(t *testing.T, p []byte) {
		feed(t, p, Config{})
		feed(t, p, Config{Quarantine: true})
	})
}

// FuzzSalvage sorts the events of a hostile stream: the good ones are valid, and
// no byte is lost but those of events without a record.
func FuzzSalvage(f *testing.F) {
	f.Add(append(stream(2), "\x92\xa1x\x80\x92\x01\xc0\x92\x01\x80\xdd\xff\xff\xff\xff"...))
	f.Fuzz(func(t *testing.T, p []byte) {
		s := sortEvents(p, 50)
		if len(s.good)+len(s.bad) > len(p) || s.nils == 0 && len(s.good)+len(s.bad) != len(p) || (s.why == nil) != (len(s.bad) == 0) {
			t.Fatalf("%d good and %d bad bytes of %d, %d nils, %v", len(s.good), len(s.bad), len(p), s.nils, s.why)
		}
		var st streamScanner
		st.reset(50)
		if n, err := st.scanEvents(s.good, noLimit); err != nil || n != len(s.good) || !st.atBoundary() || st.events != s.valid {
			t.Fatalf("good: %d of %d bytes, %d of %d events, %v", n, len(s.good), st.events, s.valid, err)
		}
	})
}

// FuzzHandshake does the same before the handshake is done.
func FuzzHandshake(f *testing.F) {
	f.Add(pack([]any{"PING", "host", "salt", "digest", "user", "password"}))
	f.Add([]byte("\x96\xa4PING\xc4\x01h\xdb\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, p []byte) { feed(t, p, Config{Security: security()}) })
}

func feed(t *testing.T, p []byte, c Config) {
	c.Handler = counting{t}
	c.Memory, c.MessageSizeLimit, c.DecompressionSizeLimit, c.MaxDepth = 1<<20, 1<<18, 1<<20, 50
	srv, err := NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	v, ok := srv.arrive(there.RemoteAddr())
	if !ok {
		t.Fatal("refused")
	}
	srv.admit(there, v)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		b := make([]byte, 512)
		for {
			if _, err := here.Read(b); err != nil {
				return
			}
		}
	}()
	here.Write(p)
	here.Close()
	<-answered
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := srv.Stats(); st.MemoryHeld != 0 || st.MemoryPeak > 1<<20 {
		t.Fatalf("memory %+v", st)
	}
}

// FuzzJSON: the scanner's end of a value is that of encoding/json.
func FuzzJSON(f *testing.F) {
	f.Add([]byte(`["a",1,{"b":"]\"}"}]x`))
	f.Add([]byte(`[[[[`))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 || p[0] != '[' && p[0] != '{' {
			return
		}
		var j jsonScanner
		done, err := j.scan(p, 1000)
		dec := json.NewDecoder(bytes.NewReader(p))
		var v json.RawMessage
		if dec.Decode(&v) == nil && (!done || err != nil || j.pos != len(v)) {
			t.Fatalf("encoding/json ends at %d, the scanner at %d, %v, %v", len(v), j.pos, done, err)
		}
	})
}

// FuzzDecompress: whatever a payload decompresses to, checking it fails or
// counts its events.
func FuzzDecompress(f *testing.F) {
	f.Add(gzipped(stream(3)), true)
	f.Add(gzipped(stream(3), stream(2)), true)
	f.Add(zstandard(stream(3)), false)
	in := newInflater()
	f.Fuzz(func(t *testing.T, p []byte, isGzip bool) {
		c := Zstd
		if isGzip {
			c = Gzip
		}
		n, err := in.check(p, c, parserLimits{depth: 100, inflated: 1 << 20, ratio: 500})
		if err != nil {
			return
		}
		m := &Message{Payload: [][]byte{p}, Compression: c, Events: n, session: &session{}}
		got, err := inflate(p, c)
		if err != nil {
			t.Fatal(err)
		}
		for ; len(got) > 0; n-- {
			_, size, err := NextEvent(got)
			if err != nil {
				t.Fatal(err)
			}
			got = got[size:]
		}
		if n != 0 {
			t.Fatalf("%d events too many of %d", n, m.Events)
		}
	})
}
