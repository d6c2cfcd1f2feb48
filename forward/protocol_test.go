package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// helo is what a server says first.
type helo struct {
	Name    string
	Options struct {
		Nonce     []byte `msgpack:"nonce"`
		Auth      []byte `msgpack:"auth"`
		Keepalive bool   `msgpack:"keepalive"`
	}
}

// greeted opens a connection and does the handshake, without a user.
func (r *running) greeted() net.Conn {
	r.t.Helper()
	conn := r.dial()
	dec := msgpack.NewDecoder(conn)
	var h helo
	if err := dec.Decode(&h); err != nil {
		r.t.Fatal(err)
	}
	// As out_forward does it without a user: two empty strings.
	digest := string(hexDigest([]byte("salt"), []byte("host"), h.Options.Nonce, []byte(r.config.Security.SharedKey)))
	if _, err := conn.Write(pack([]any{"PING", "host", "salt", digest, "", ""})); err != nil {
		r.t.Fatal(err)
	}
	var pong []any
	if err := dec.Decode(&pong); err != nil || len(pong) != 5 || pong[1] != true {
		r.t.Fatalf("pong %v, %v", pong, err)
	}
	return conn
}

// TestHelo: a nonce for each connection, a salt only where a user is asked for,
// and whether the connection may be kept.
func TestHelo(t *testing.T) {
	users := map[string]string{"alice": "wonderland"}
	for _, c := range []struct {
		userAuth, denyKeepalive bool
	}{{false, false}, {true, false}, {false, true}} {
		sec := &Security{SelfHostname: "weir", SharedKey: "k", UserAuth: c.userAuth, Users: users}
		r := serve(t, Config{Handler: &received{}, Security: sec, DenyKeepalive: c.denyKeepalive})
		var nonces, salts [2]string
		for i := range nonces {
			var h helo
			if err := msgpack.NewDecoder(r.dial()).Decode(&h); err != nil {
				t.Fatal(err)
			}
			nonces[i], salts[i] = string(h.Options.Nonce), string(h.Options.Auth)
			if h.Name != "HELO" || len(h.Options.Nonce) != nonceLen || (len(h.Options.Auth) > 0) != c.userAuth || h.Options.Keepalive == c.denyKeepalive {
				t.Errorf("%+v: helo %+v", c, h)
			}
		}
		if nonces[0] == nonces[1] || c.userAuth && salts[0] == salts[1] {
			t.Errorf("the nonce or the salt comes again: %q, %q", nonces, salts)
		}
	}
}

// TestModesAfterHandshake: one handshake, and then message after message of each
// mode on the same connection.
func TestModesAfterHandshake(t *testing.T) {
	option := dict{"chunk": "id"}
	for name, in := range map[string][]byte{
		"message":    pack([]any{"t", 1, dict{}, option}),
		"forward":    pack([]any{"t", []any{[]any{1, dict{}}}, option}),
		"packed":     pack([]any{"t", stream(1), option}),
		"compressed": pack([]any{"t", gzipped(stream(1)), dict{"chunk": "id", "compressed": "gzip"}}),
		"JSON":       []byte(`["t",1,{},{"chunk":"id"}]`),
	} {
		t.Run(name, func(t *testing.T) {
			h := &received{}
			r := serve(t, Config{Handler: h, Security: &Security{SelfHostname: "weir", SharedKey: "k"}})
			conn := r.greeted()
			want := ackOfID
			if name == "JSON" {
				want = `{"ack":"id"}`
			}
			for range 3 {
				if _, err := conn.Write(in); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(want))
				if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
					t.Errorf("ack %q, %v", got, err)
				}
			}
			if len(h.all()) != 3 {
				t.Errorf("%d messages", len(h.all()))
			}
		})
	}
}

// TestHandshakeAndNothingElse: a sender that only looks whether its key is right
// (verify_connection_at_startup) fails nothing and is no line of log.
func TestHandshakeAndNothingElse(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	r := serve(t, Config{Handler: &received{}, Security: &Security{SelfHostname: "weir", SharedKey: "k"}, Log: zap.New(core)})
	r.greeted().Close()
	eventually(t, "it is gone", func() bool { return r.Stats().Open == 0 })
	if st := r.Stats(); st.HandshakeFailed != 0 || len(st.RefusedMessages) != 0 || logs.Len() != 0 {
		t.Errorf("%+v, log %v", st, logs.All())
	}
}

// TestConnectionStays: a message without a chunk id gets no answer, and the
// connection is good for the next one.
func TestConnectionStays(t *testing.T) {
	for name, in := range map[string][]byte{
		"message": pack([]any{"t", 1, dict{}}),
		"forward": pack([]any{"t", []any{[]any{1, dict{}}}}),
		"packed":  pack([]any{"t", stream(1), dict{"size": 1}}),
		"JSON":    []byte(`["t",1,{}]` + "\n"),
	} {
		t.Run(name, func(t *testing.T) {
			h := &received{}
			conn := serve(t, Config{Handler: h}).dial()
			for n := 1; n <= 3; n++ {
				if _, err := conn.Write(in); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the message is taken", func() bool { return len(h.all()) == n })
			}
			if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Read(make([]byte, 16)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d bytes of answer, %v", n, err)
			}
		})
	}
}

// TestTags: a tag comes through byte for byte.
func TestTags(t *testing.T) {
	for _, tag := range []any{"app.web", "日本.語", "", []byte("app.\xff"), strings.Repeat("t", maxTag)} {
		h := &received{}
		r := serve(t, Config{Handler: h})
		if got := r.talk(pack([]any{tag, stream(1), dict{"chunk": "id"}})); string(got) != ackOfID {
			t.Errorf("%.20q: answer %q", tag, got)
		}
		want := fmt.Sprintf("%s", tag)
		if all := h.all(); len(all) != 1 || all[0].tag != want {
			t.Errorf("%.20q: %+v", tag, all)
		}
	}
}

// TestJSONEqualKeys: a record with equal keys is taken as it is; whoever reads
// it as a map has the last value.
func TestJSONEqualKeys(t *testing.T) {
	h := &received{}
	r := serve(t, Config{Handler: h})
	r.talk([]byte(`["t",1,{"k":"a","k":"b"}]`))
	if all := h.all(); len(all) != 1 || fmt.Sprint(all[0].events[0].([]any)[1]) != "map[k:b]" {
		t.Errorf("%+v", all)
	}
}

// TestSizeIsNotNeeded: the protocol's size option may be anything.
func TestSizeIsNotNeeded(t *testing.T) {
	for _, size := range []any{nil, -1, "many", uint64(1 << 63), 2.5} {
		h := &received{}
		r := serve(t, Config{Handler: h})
		if got := r.talk(pack([]any{"t", bytes.Clone(stream(2)), dict{"size": size, "chunk": "id"}})); string(got) != ackOfID {
			t.Errorf("size %v: answer %q", size, got)
		}
		if all := h.all(); len(all) != 1 || all[0].count != 2 {
			t.Errorf("size %v: %+v", size, all)
		}
	}
}
