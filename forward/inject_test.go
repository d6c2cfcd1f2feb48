package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// TestInjection: in every mode each record gets the fields, one of that name is
// replaced, everything else stays as it was.
func TestInjection(t *testing.T) {
	event := []any{1, dict{"a": 1, "addr": "forged", "nested": dict{"addr": "kept"}}}
	packed := append(pack(event), pack([]any{[]any{2, dict{"m": 1}}, dict{}})...)
	big := pack([]any{3, dict{"x": strings.Repeat("y", 3*inflateWindow)}})
	want := "map[a:1 addr:127.0.0.1 name:sender.example nested:map[addr:kept]]"
	for name, msg := range map[string][]byte{
		"message": pack([]any{"t", 1, event[1]}),
		"forward": pack([]any{"t", []any{event}}),
		"packed":  pack([]any{"t", packed}),
		"gzip":    pack([]any{"t", gzipped(packed, big, packed), dict{"compressed": "gzip"}}),
		"zstd":    pack([]any{"t", zstandard(append(append([]byte{}, packed...), big...)), dict{"compressed": "zstd"}}),
		"JSON":    []byte(`["t",1,{"a":1,"addr":"forged","nested":{"addr":"kept"}}]`),
	} {
		t.Run(name, func(t *testing.T) {
			h := &received{}
			r := serve(t, Config{Handler: h, SourceAddressKey: "addr", SourceHostnameKey: "name"})
			r.names.resolve = func(context.Context, string) ([]string, error) { return []string{"sender.example."}, nil }
			for range 2 { // also with used memory
				r.talk(msg)
			}
			for _, m := range h.all() {
				if m.err != nil || len(m.events) != m.count {
					t.Fatalf("%d events of %d, %v", len(m.events), m.count, m.err)
				}
				if got := fmt.Sprint(m.events[0].([]any)[1]); got != want {
					t.Errorf("record %s\nwant   %s", got, want)
				}
				for _, e := range m.events {
					if rec := e.([]any)[1].(map[string]any); rec["addr"] != "127.0.0.1" || rec["name"] != "sender.example" {
						t.Errorf("record %v", rec)
					}
				}
			}
			if n := len(h.all()); n != 2 {
				t.Errorf("%d messages", n)
			}
		})
	}
}

// TestInjectionOfOne: each of the two fields alone.
func TestInjectionOfOne(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{SourceAddressKey: "addr"}, "map[addr:127.0.0.1]"},
		{Config{SourceHostnameKey: "name"}, "map[name:sender.example]"},
	} {
		h := &received{}
		c.config.Handler = h
		r := serve(t, c.config)
		r.names.resolve = func(context.Context, string) ([]string, error) { return []string{"sender.example."}, nil }
		r.talk(append(pack([]any{"t", 1, dict{}}, []any{"t", []any{[]any{1, dict{}}}}), pack([]any{"t", pack([]any{1, dict{}})})...))
		if n := len(h.all()); n != 3 {
			t.Errorf("%d messages", n)
		}
		for _, m := range h.all() {
			if got := fmt.Sprint(m.events[0].([]any)[1]); got != c.want {
				t.Errorf("record %s, want %s", got, c.want)
			}
		}
	}
}

// TestInjectionHoldsToTheBudget: a small payload that decompresses to one large
// event is encoded anew within the memory budget, or refused.
func TestInjectionHoldsToTheBudget(t *testing.T) {
	large := gzipped(pack([]any{3, dict{"x": strings.Repeat("y", 4<<20)}}))
	for _, c := range []struct {
		memory int64
		refuse bool
	}{{64 << 20, false}, {4 << 20, true}} {
		h := &received{}
		r := serve(t, Config{Handler: h, SourceAddressKey: "addr", Memory: c.memory, MemoryWait: 10 * time.Millisecond, DecompressionRatioLimit: 10_000})
		r.talk(pack([]any{"t", large, dict{"compressed": "gzip"}}))
		eventually(t, "no memory is held", func() bool { return r.Stats().MemoryHeld == 0 })
		st := r.Stats()
		if refused := st.RefusedMessages[ReasonMemory] == 1; refused != c.refuse || (len(h.all()) == 1) == c.refuse {
			t.Errorf("budget %d: refused %v, %d messages", c.memory, st.RefusedMessages, len(h.all()))
		}
		if st.MemoryPeak > c.memory {
			t.Errorf("budget %d: peak %d", c.memory, st.MemoryPeak)
		}
	}
}

func TestNames(t *testing.T) {
	calls := 0
	n := &names{resolve: func(context.Context, string) ([]string, error) {
		calls++
		return nil, errors.New("no such name")
	}}
	sender := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5}
	for range 3 {
		if got := n.lookup(t.Context(), sender); got != "192.0.2.1" {
			t.Errorf("name %q", got)
		}
	}
	if calls != 1 {
		t.Errorf("the resolver was asked %d times", calls)
	}
	if got := n.lookup(t.Context(), &net.UnixAddr{Name: "@", Net: "unix"}); got != "@" {
		t.Errorf("name of a unix socket %q", got)
	}
}

// TestUnhealthy: UDP heartbeats go unanswered while Healthy says no.
func TestUnhealthy(t *testing.T) {
	healthy := make(chan bool, 2)
	r := serve(t, Config{Handler: &received{}, Healthy: func() bool { return <-healthy }})
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
	healthy <- false
	healthy <- true
	for _, beat := range []string{"1", "2"} {
		if _, err := udp.Write([]byte(beat)); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 8)
	if _, err := udp.Read(b); err != nil {
		t.Fatal(err)
	}
	if n := r.Stats().Heartbeats["udp"]; n != 2 {
		t.Errorf("answered after %d heartbeats, want the second only", n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
