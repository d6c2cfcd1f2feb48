package forward

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
)

// shake plays a sender's part of the handshake and returns the PONG.
func (r *running) shake(key, user, password string) (ok bool, reason string) {
	r.t.Helper()
	conn := r.dial()
	dec := msgpack.NewDecoder(conn)
	var helo struct {
		_msgpack struct{} `msgpack:",as_array"`
		Name     string
		Options  struct {
			Nonce []byte `msgpack:"nonce"`
			Auth  []byte `msgpack:"auth"`
		}
	}
	if err := dec.Decode(&helo); err != nil {
		r.t.Fatal(err)
	}
	salt := []byte("salt")
	ping := pack([]any{"PING", "host", salt, string(hexDigest(salt, []byte("host"), helo.Options.Nonce, []byte(key))),
		user, string(hexDigest(helo.Options.Auth, []byte(user), []byte(password)))})
	if _, err := conn.Write(ping); err != nil {
		r.t.Fatal(err)
	}
	var pong struct {
		_msgpack         struct{} `msgpack:",as_array"`
		Name             string
		OK               bool
		Reason           string
		Hostname, Digest string
	}
	if err := dec.Decode(&pong); err != nil {
		r.t.Fatal(err)
	}
	if !pong.OK {
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			r.t.Errorf("after a refusal: %v", err)
		}
		return false, pong.Reason
	}
	if want := string(hexDigest(salt, []byte(pong.Hostname), helo.Options.Nonce, []byte(key))); pong.Digest != want {
		r.t.Errorf("the server's digest is %s, want %s", pong.Digest, want)
	}
	// The connection is good for messages.
	if _, err := conn.Write(pack([]any{"t", stream(1), dict{"chunk": "id"}})); err != nil {
		r.t.Fatal(err)
	}
	got := make([]byte, len(ackOfID))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != ackOfID {
		r.t.Errorf("ack %q, %v", got, err)
	}
	return true, ""
}

func TestHandshakeRules(t *testing.T) {
	local := Client{Network: netip.MustParsePrefix("127.0.0.0/8")}
	elsewhere := Client{Network: netip.MustParsePrefix("192.0.2.0/24"), SharedKey: "elsewhere"}
	with := func(c Client, key string, users ...string) Client {
		c.SharedKey, c.Users = key, users
		return c
	}
	users := map[string]string{"alice": "wonderland", "bob": "builder"}
	for _, c := range []struct {
		name                string
		security            Security
		key, user, password string
		reason              string
	}{
		{"key", Security{}, "k", "", "", ""},
		{"wrong key", Security{}, "x", "", "", badKey},
		{"empty key", Security{}, "", "", "", badKey},
		{"user", Security{UserAuth: true, Users: users}, "k", "alice", "wonderland", ""},
		{"wrong password", Security{UserAuth: true, Users: users}, "k", "alice", "builder", badPassword},
		{"unknown user", Security{UserAuth: true, Users: users}, "k", "eve", "", badPassword},
		{"no user", Security{UserAuth: true, Users: users}, "k", "", "", badPassword},
		{"client's key", Security{Clients: []Client{elsewhere, with(local, "own")}}, "own", "", "", ""},
		{"not the client's key", Security{Clients: []Client{elsewhere, with(local, "own")}}, "k", "", "", badKey},
		{"client without a key", Security{Clients: []Client{local}}, "k", "", "", ""},
		{"client's user", Security{UserAuth: true, Users: users, Clients: []Client{with(local, "", "bob")}}, "k", "bob", "builder", ""},
		{"not the client's user", Security{UserAuth: true, Users: users, Clients: []Client{with(local, "", "bob")}}, "k", "alice", "wonderland", badPassword},
		{"anonymous", Security{DenyAnonymous: true, Clients: []Client{elsewhere}}, "k", "", "", "anonymous source host '127.0.0.1' denied"},
		{"not anonymous", Security{DenyAnonymous: true, Clients: []Client{local}}, "k", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.security.SelfHostname, c.security.SharedKey = "weir", "k"
			r := serve(t, Config{Handler: &received{}, Security: &c.security})
			ok, reason := r.shake(c.key, c.user, c.password)
			if ok != (c.reason == "") || reason != c.reason {
				t.Errorf("ok %v, reason %q; want %q", ok, reason, c.reason)
			}
			if failed := r.Stats().HandshakeFailed; failed == 0 != ok {
				t.Errorf("%d handshakes counted as failed", failed)
			}
		})
	}
}

// TestBadPings: what is no PING is answered with the reason, or not at all.
func TestBadPings(t *testing.T) {
	for name, ping := range map[string][]byte{
		"five fields":      pack([]any{"PING", "h", "s", "d", "u"}),
		"another name":     pack([]any{"PONG", "h", "s", "d", "u", "p"}),
		"numbers":          pack([]any{"PING", 1, 2, 3, 4, 5}),
		"a map":            pack(dict{"PING": 1}),
		"a message":        pack([]any{"t", stream(1)}),
		"too long":         append([]byte("\x96\xa4PING\xda\xff\xff"), bytes.Repeat([]byte("x"), maxPing)...),
		"claims 4 GB":      append([]byte("\x96\xa4PING\xdb\xff\xff\xff\xff"), bytes.Repeat([]byte("x"), maxPing)...),
		"reserved byte":    {0xc1},
		"nested very deep": bytes.Repeat([]byte{0x91}, 1000),
	} {
		t.Run(name, func(t *testing.T) {
			h := &received{}
			r := serve(t, Config{Handler: h, Security: security()})
			r.talk(ping)
			eventually(t, "counted", func() bool { return r.Stats().HandshakeFailed == 1 })
			if len(h.all()) != 0 {
				t.Error("a message came through")
			}
			eventually(t, "all memory is given back", func() bool { s := r.Stats(); return s.MemoryHeld == 0 && s.Open == 0 })
		})
	}
}

func TestTagIsReplaced(t *testing.T) {
	for _, c := range []struct{ tag, prefix, want string }{
		{"", "", "t"}, {"new", "", "new"}, {"", "pre", "pre.t"}, {"new", "pre", "pre.new"},
	} {
		h := &received{}
		r := serve(t, Config{Handler: h, Tag: c.tag, TagPrefix: c.prefix})
		r.talk(append(pack([]any{"t", stream(1)}, []any{"t", 1, dict{}}), pack([]any{"t", []any{[]any{1, dict{}}}})...))
		for _, m := range h.all() {
			if m.tag != c.want {
				t.Errorf("tag %q, want %q", m.tag, c.want)
			}
		}
		if n := len(h.all()); n != 3 {
			t.Errorf("%d messages", n)
		}
	}
}

func TestMaxConnectionsPerClient(t *testing.T) {
	r := serve(t, Config{Handler: &received{}, MaxConnectionsPerClient: 2})
	a := r.dial()
	r.dial()
	eventually(t, "two open", func() bool { return r.Stats().Open == 2 })
	if _, err := r.dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the third connection: %v", err)
	}
	a.Close()
	eventually(t, "one open", func() bool { return r.Stats().Open == 1 })
	if got := r.talk(pack([]any{"t", stream(1), dict{"chunk": "id"}})); string(got) != ackOfID {
		t.Errorf("with one closed: %q", got)
	}
	if st := r.Stats(); st.Refused != 1 {
		t.Errorf("%d refused", st.Refused)
	}
}
