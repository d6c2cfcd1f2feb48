package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/pires/go-proxyproto"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// senders is a Handler that notes who sent.
type senders struct {
	mu  sync.Mutex
	all []string
}

func (h *senders) Handle(_ context.Context, m *Message) {
	h.mu.Lock()
	h.all = append(h.all, m.Remote.String())
	h.mu.Unlock()
	m.Done(nil)
}

func proxyV2(command proxyproto.ProtocolVersionAndCommand, source string, tlvs int) []byte {
	h := &proxyproto.Header{Version: 2, Command: command, TransportProtocol: proxyproto.TCPv4,
		SourceAddr:      net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source)),
		DestinationAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:24224"))}
	if strings.HasPrefix(source, "[") {
		h.TransportProtocol = proxyproto.TCPv6
		h.DestinationAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort("[2001:db8::1]:24224"))
	}
	if tlvs > 0 {
		if err := h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_NOOP, Value: make([]byte, tlvs)}}); err != nil {
			panic(err)
		}
	}
	b, err := h.Format()
	if err != nil {
		panic(err)
	}
	return b
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func TestProxyProtocol(t *testing.T) {
	message := pack([]any{"t", stream(2), dict{"chunk": "id"}})
	for _, c := range []struct {
		name, head, sender string // sender "" for the balancer itself, "-" for none
		answer             string
	}{
		{"v1", "PROXY TCP4 203.0.113.7 192.0.2.1 5555 24224\r\n", "203.0.113.7:5555", ackOfID},
		{"v1, IPv6", "PROXY TCP6 2001:db8::7 2001:db8::1 5555 24224\r\n", "[2001:db8::7]:5555", ackOfID},
		{"v1, unknown", "PROXY UNKNOWN\r\n", "", ackOfID},
		{"v2", string(proxyV2(proxyproto.PROXY, "203.0.113.7:5555", 0)), "203.0.113.7:5555", ackOfID},
		{"v2, IPv6", string(proxyV2(proxyproto.PROXY, "[2001:db8::7]:5555", 0)), "[2001:db8::7]:5555", ackOfID},
		{"v2, TLVs", string(proxyV2(proxyproto.PROXY, "203.0.113.7:5555", 500)), "203.0.113.7:5555", ackOfID},
		{"v2, local", string(proxyV2(proxyproto.LOCAL, "203.0.113.7:5555", 0)), "", ackOfID},
		{"v2, too long", string(proxyV2(proxyproto.PROXY, "203.0.113.7:5555", 5000)), "-", ""},
		{"none", "", "-", ""},
		{"v1, endless", "PROXY TCP4 " + strings.Repeat("1", 200), "-", ""},
		{"v1, nonsense", "PROXY TCP4 here there 1 2\r\n", "-", ""},
		{"v2, cut", string(proxyproto.SIGV2) + "\x21\x11\x00", "-", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			core, logs := observer.New(zap.WarnLevel)
			h := &senders{}
			r := serve(t, Config{Handler: h, ProxyNetworks: loopback, Log: zap.New(core), HandshakeTimeout: patience})
			in := append([]byte(c.head), message...)
			if c.name == "v2, cut" {
				in = []byte(c.head)
			}
			if got := r.talk(in); string(got) != c.answer {
				t.Errorf("answer %q, want %q", got, c.answer)
			}
			if c.sender == "-" {
				if len(h.all) != 0 || r.Stats().RefusedMessages[ReasonProxy] != 1 || logs.Len() != 1 {
					t.Errorf("senders %v, stats %+v, log %v", h.all, r.Stats().RefusedMessages, logs.All())
				}
				return
			}
			if len(h.all) != 1 || c.sender != "" && h.all[0] != c.sender || c.sender == "" && !strings.HasPrefix(h.all[0], "127.0.0.1:") {
				t.Errorf("senders %v, want %s", h.all, c.sender)
			}
		})
	}
}

// TestProxyNotTrusted: a header from elsewhere is no Forward protocol.
func TestProxyNotTrusted(t *testing.T) {
	h := &senders{}
	r := serve(t, Config{Handler: h, ProxyNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if got := r.talk([]byte("PROXY TCP4 203.0.113.7 192.0.2.1 5555 24224\r\n\xc0")); len(got) != 0 || r.Stats().RefusedMessages[ReasonNotForward] != 1 {
		t.Errorf("answer %q, stats %+v", got, r.Stats().RefusedMessages)
	}
	if got := r.talk(pack([]any{"t", stream(1), dict{"chunk": "id"}})); string(got) != ackOfID {
		t.Errorf("a sender without a balancer gets %q", got)
	}
}

// TestProxyHealthCheck: a balancer that connects and closes or resets, with a
// header or without one, is a heartbeat.
func TestProxyHealthCheck(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	r := serve(t, Config{Handler: &senders{}, ProxyNetworks: loopback, Log: zap.New(core)})
	r.talk(nil)
	r.talk(proxyV2(proxyproto.LOCAL, "203.0.113.7:5555", 0))
	reset := r.dial()
	eventually(t, "the connection is accepted", func() bool { return r.Stats().Accepted == 3 })
	if err := reset.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	reset.Close()
	eventually(t, "three heartbeats", func() bool { return r.Stats().Heartbeats["connect"] == 3 })
	if logs.Len() != 0 {
		t.Errorf("log %v", logs.All())
	}
}

// TestProxyMaxConnectionsPerClient: senders behind a balancer are counted by
// their own addresses.
func TestProxyMaxConnectionsPerClient(t *testing.T) {
	r := serve(t, Config{Handler: &senders{}, ProxyNetworks: loopback, MaxConnectionsPerClient: 2})
	open := func(source string) net.Conn {
		conn := r.dial()
		if _, err := conn.Write(append(proxyV2(proxyproto.PROXY, source, 0), pack([]any{"t", stream(1), dict{"chunk": "id"}})...)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	acked := func(conn net.Conn) error {
		_, err := io.ReadFull(conn, make([]byte, len(ackOfID)))
		return err
	}
	for _, source := range []string{"203.0.113.7:1", "203.0.113.7:2", "203.0.113.8:1", "203.0.113.8:2"} {
		if err := acked(open(source)); err != nil {
			t.Fatal(source, err)
		}
	}
	third := open("203.0.113.7:3")
	if err := acked(third); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the third connection: %v", err)
	}
	if st := r.Stats(); st.Refused != 1 || st.RefusedMessages[ReasonConnections] != 1 {
		t.Errorf("stats %+v", st)
	}
}

// FuzzProxyHeader: a header is read without a byte beyond it, whatever it is.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 203.0.113.7 192.0.2.1 5555 24224\r\nrest"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add(append(proxyV2(proxyproto.PROXY, "[2001:db8::7]:5555", 20), "rest"...))
	f.Fuzz(func(t *testing.T, p []byte) {
		r := bytes.NewReader(p)
		head, err := proxyHeader(r)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(p, head) || r.Len() != len(p)-len(head) {
			t.Fatalf("%d bytes of %d read for a header of %d", len(p)-r.Len(), len(p), len(head))
		}
		if sender, err := proxySender(head); err == nil && sender != nil && !clientOf(sender).IsValid() {
			t.Fatalf("sender %v", sender)
		}
	})
}
