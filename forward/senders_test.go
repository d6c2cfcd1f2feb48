package forward

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func addrOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }

// TestSendersBounded: the sender that was not seen for longest goes first, but
// not one that is connected.
func TestSendersBounded(t *testing.T) {
	table := senderTable{limit: 100}
	now := time.Unix(1_000_000, 0)
	connected := table.get(addrOf(0), now)
	connected.open.Add(1)
	for i := 1; i < 100; i++ {
		table.get(addrOf(i), now)
	}
	again := table.get(addrOf(1), now)
	for i := 100; i < 198; i++ {
		table.get(addrOf(i), now)
	}
	if len(table.byAddr) != 100 || table.order.Len() != 100 {
		t.Fatalf("%d senders, %d in order", len(table.byAddr), table.order.Len())
	}
	if table.byAddr[addrOf(0)] != connected {
		t.Error("a connected sender is gone")
	}
	if table.byAddr[addrOf(1)] != again {
		t.Error("the sender seen again is gone before others")
	}
	for i := 2; i < 100; i++ {
		if table.byAddr[addrOf(i)] != nil {
			t.Errorf("sender %d is still known", i)
		}
	}
	// When all are connected, one of them has to go.
	for _, p := range table.byAddr {
		p.open.Store(1)
	}
	table.get(addrOf(999), now)
	if len(table.byAddr) != 100 {
		t.Errorf("%d senders", len(table.byAddr))
	}
}

func TestRate(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	for _, c := range []struct {
		name   string
		events []float64 // seconds since start
		now    float64
		want   float64
	}{
		{"nothing", nil, 5, 0},
		{"the first second", []float64{0, 0.1, 0.2}, 0.5, 3},
		{"one each second", []float64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 12.9, 1},
		{"three in two seconds", []float64{0, 0.5, 1}, 2.5, 1.5},
		{"the present second does not count", []float64{0, 1, 1, 1, 1}, 1.5, 1},
		{"long ago", []float64{0, 1, 2}, 30, 0},
		{"the window's edge", []float64{0, 1, 2}, 12.1, 0.1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r rate
			for _, e := range c.events {
				r.add(at(e))
			}
			if got := r.perSecond(start, at(c.now)); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// acking makes every message durable at once.
type acking struct{}

func (acking) Handle(_ context.Context, m *Message) { m.Done(nil) }

// TestSenders: what one address does is in its row.
func TestSenders(t *testing.T) {
	srv, err := NewServer(Config{Handler: acking{}, Quarantine: true})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- srv.Serve(l) }()
	go func() { done <- srv.ServeUDP(pc) }()

	cl, err := Dial(t.Context(), SenderConfig{Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	// ["app", 1, {}, {"chunk": "c1"}]
	message := []byte("\x94\xa3app\x01\x80\x81\xa5chunk\xa2c1")
	for range 2 {
		if err := cl.Send(message, "c1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cl.conn.Write([]byte{0xc0}); err != nil { // a nil heartbeat
		t.Fatal(err)
	}
	other, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other.Close() // a heartbeat by connecting
	u, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	bad, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	if _, err := bad.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	var st SenderStats
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		all := srv.Senders(5, func(s *SenderStats) float64 { return float64(s.Messages) })
		if len(all) == 1 {
			// Rates are of whole seconds: the first heartbeat may be in the second after that of the first connection.
			if st = all[0]; st.ConnectBeats == 1 && st.NilBeats == 1 && st.UDPBeats == 1 && st.Invalid == 1 && st.Open == 1 && st.ConnectionsPerSecond > 0 && st.HeartbeatsPerSecond > 0 {
				break
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	if st.Addr != netip.MustParseAddr("127.0.0.1") || st.Open != 1 || st.Accepted != 3 || st.ConnectBeats != 1 || st.NilBeats != 1 || st.UDPBeats != 1 ||
		st.Messages != 2 || st.Events != 2 || st.Bytes == 0 || st.Acks != 2 || st.Invalid != 1 || st.ConnectionsPerSecond == 0 || st.HeartbeatsPerSecond == 0 {
		t.Errorf("%+v", st)
	}
	if want := []string{"message", "ack", "keepalive"}; !slices.Equal(st.Features, want) {
		t.Errorf("features %v, want %v", st.Features, want)
	}
	if n := srv.SendersKnown(); n != 1 {
		t.Errorf("%d senders known", n)
	}
}

// BenchmarkSenders reads a full table, as each second's sample does.
func BenchmarkSenders(b *testing.B) {
	srv, err := NewServer(Config{Handler: acking{}})
	if err != nil {
		b.Fatal(err)
	}
	defer srv.Close()
	for i := range MaxSenders {
		srv.senders.get(addrOf(i), time.Now()).messages.Store(uint64(i))
	}
	for b.Loop() {
		srv.Senders(20, func(s *SenderStats) float64 { return float64(s.Messages) })
	}
}

// BenchmarkMeet is what the table costs a connection.
func BenchmarkMeet(b *testing.B) {
	var table senderTable
	for i := range MaxSenders {
		table.get(addrOf(i), time.Now())
	}
	i := 0
	for b.Loop() {
		p := table.get(addrOf(i%MaxSenders), time.Now())
		p.open.Add(1)
		p.accepted.Add(1)
		p.connections.add(time.Now())
		p.open.Add(-1)
		i++
	}
}
