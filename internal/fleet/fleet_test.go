package fleet

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var (
	someCosts  = Costs{Accept: 20 * time.Microsecond, Connection: 30 * time.Microsecond, Datagram: 10 * time.Microsecond, Message: 20 * time.Microsecond, Commit: 100 * time.Microsecond, Gigabyte: 2 * time.Second}
	someServer = Server{Cores: 2, CommitTime: 200 * time.Microsecond, DiskBytes: 200e6}
	// The fleet of the story: hundreds of senders with a TCP heartbeat each second.
	someFleet = Fleet{Senders: 400, Heartbeat: TCP, HeartbeatEvery: time.Second, FlushEvery: 5 * time.Second, FlushBytes: 64 << 10, Stall: 500 * time.Millisecond}
)

func simulate(t *testing.T, f Fleet, s Server) *Result {
	t.Helper()
	r, err := Simulate(f, s, someCosts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// near fails unless got is within a part of want.
func near(t *testing.T, what string, got, want, part float64) {
	t.Helper()
	if math.Abs(got-want) > part*want {
		t.Errorf("%s is %v, want about %v", what, got, want)
	}
}

// TestRates checks what can be computed by hand.
func TestRates(t *testing.T) {
	r := simulate(t, someFleet, someServer)
	near(t, "connections", r.Connections, 400+80, 1e-9)
	near(t, "messages", r.Messages, 80, 1e-9)
	near(t, "bytes", r.Bytes, 80*64<<10, 1e-9)
	near(t, "cores", r.Cores, 480*30e-6+80*20e-6+r.Commits*100e-6+80*65536/1e9*2, 1e-9)
	near(t, "accept load", r.AcceptLoad, 480*20e-6, 1e-9)
	near(t, "balancer's ports", float64(r.BalancerPorts), 480*60+400, 1e-9)
	if r.BalancerAddresses != 2 || r.SenderPorts != 73 || r.Conntrack != 480*120+400 || r.Servers != 1 {
		t.Errorf("%+v", r)
	}
	f := someFleet
	f.Keepalive = true
	near(t, "connections that are kept", simulate(t, f, someServer).Connections, 400, 1e-9)
	f.Heartbeat = UDP
	if r := simulate(t, f, someServer); r.Connections != 0 || r.Heartbeats != 400 || r.Cores <= 400*10e-6 {
		t.Errorf("UDP heartbeats and kept connections: %+v", r)
	}
}

// TestCommitRate: with few messages each has a commit of its own, with many the
// commits follow each other.
func TestCommitRate(t *testing.T) {
	near(t, "few", commitRate(10, time.Millisecond), 10, 0.01)
	near(t, "many", commitRate(1e6, time.Millisecond), 1000, 0.001)
	if got := commitRate(0, time.Millisecond); got != 0 {
		t.Errorf("none: %v", got)
	}
	if got := commitRate(1000, time.Millisecond); got >= 1000 || got < 600 {
		t.Errorf("%v commits a second of 1000 messages that take 1 ms each", got)
	}
}

// TestQueueByHand runs the accept loop over arrivals whose outcome is plain.
func TestQueueByHand(t *testing.T) {
	ms := func(all ...int) (d []time.Duration) {
		for _, n := range all {
			d = append(d, time.Duration(n)*time.Millisecond)
		}
		return d
	}
	for _, c := range []struct {
		name              string
		at                []time.Duration
		from, to, service int // ms
		backlog           int
		want              Queue
	}{
		{"none", nil, 0, 0, 1, 0, Queue{}},
		{"one by one", ms(0, 10, 20), 0, 0, 1, 0, Queue{Peak: 1}},
		{"a burst", ms(5, 5, 5, 5), 0, 0, 10, 0, Queue{Peak: 4, Slowest: 30 * time.Millisecond}},
		{"a stall", ms(0, 10, 20, 30, 200), 5, 100, 1, 0, Queue{Peak: 3, Slowest: 90 * time.Millisecond}},
		{"backlog and one more", ms(10, 20, 30, 40), 0, 100, 1, 2, Queue{Peak: 3, Drops: 1, Delayed: 1, Slowest: 1000 * time.Millisecond}},
		{"dropped twice", ms(10, 20), 0, 1500, 1, 0, Queue{Peak: 2, Slowest: 1490 * time.Millisecond}},
		{"each retry again", ms(10, 20, 30), 0, 2500, 1, 1, Queue{Peak: 2, Drops: 3, Delayed: 1, Slowest: 3 * time.Second}},
		{"the sixth retry", ms(10, 20, 30), 0, 6500, 1, 1, Queue{Peak: 2, Drops: 6, Delayed: 1, Slowest: 7 * time.Second}},
		{"the last retry", ms(10, 20, 30), 0, 10500, 1, 1, Queue{Peak: 2, Drops: 7, Delayed: 1, Slowest: 11 * time.Second}},
		{"gave up", ms(10, 20, 30), 0, 20000, 1, 1, Queue{Peak: 2, Drops: 8, Delayed: 1, GaveUp: 1, Slowest: 19990 * time.Millisecond}},
	} {
		m := time.Millisecond
		got := accept(c.at, time.Duration(c.from)*m, time.Duration(c.to)*m, time.Duration(c.service)*m, c.backlog)
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestBacklog: the peak of a stall is what arrives in it, and the backlog that
// is computed holds it without a drop.
func TestBacklog(t *testing.T) {
	for _, f := range []Fleet{
		someFleet,
		{Senders: 5000, Heartbeat: TCP, HeartbeatEvery: time.Second, FlushEvery: 5 * time.Second, Stall: 500 * time.Millisecond},
		{Senders: 200, Heartbeat: None, FlushEvery: time.Second, Stall: 3 * time.Second},
		{Senders: 1, Heartbeat: UDP, HeartbeatEvery: time.Second, FlushEvery: time.Second},
	} {
		r := simulate(t, f, someServer)
		if expect := r.Connections * f.Stall.Seconds(); expect > 50 {
			near(t, "peak of the stall", float64(r.Stalled.Peak), expect, 0.15)
		}
		if r.Backlog&(r.Backlog-1) != 0 || float64(r.Backlog) < margin*float64(max(r.Stalled.Peak, r.Storm.Peak)) {
			t.Errorf("backlog %d for peaks %d and %d", r.Backlog, r.Stalled.Peak, r.Storm.Peak)
		}
		s := someServer
		s.Backlog = r.Backlog
		if r = simulate(t, f, s); r.StalledHere.Drops+r.StormHere.Drops > 0 {
			t.Errorf("drops with the computed backlog: %+v", r)
		}
		s.Backlog = 16
		if r = simulate(t, f, s); f.Senders > 100 && (r.StalledHere.Drops == 0 || r.StalledHere.Peak != 17 || r.StalledHere.Slowest < time.Second || r.StormHere.Drops == 0) {
			t.Errorf("backlog 16: %+v", r.StalledHere)
		}
	}
}

// TestBacklogFor: a quarter more than the peak, as a power of two.
func TestBacklogFor(t *testing.T) {
	for peak, want := range map[int]int{0: 128, 102: 128, 103: 256, 204: 256, 205: 512, 409: 512, 410: 1024, 6000: 8192, 6553: 8192, 6554: 16384} {
		if got := backlogFor(peak); got != want {
			t.Errorf("backlog %d for a peak of %d, want %d", got, peak, want)
		}
	}
}

// TestStorm: all come back within a second, each with a connection for data and, with
// TCP heartbeats, one for these; what waits after a stall of half of it is half of
// them. They are open, and so is the data connection of each sender.
func TestStorm(t *testing.T) {
	for _, c := range []struct {
		heartbeat Heartbeat
		keepalive bool
		peak      float64
	}{{TCP, false, 400}, {TCP, true, 400}, {UDP, false, 200}, {None, true, 200}} {
		f := someFleet
		f.Heartbeat, f.Keepalive = c.heartbeat, c.keepalive
		r := simulate(t, f, someServer)
		near(t, string(c.heartbeat)+": peak when all come back", float64(r.Storm.Peak), c.peak, 0.15)
		if r.Open != 400+max(r.Storm.Peak, r.Stalled.Peak) || r.Descriptors != r.Open+256 {
			t.Errorf("%s: %d open, %d descriptors for peaks of %d and %d", c.heartbeat, r.Open, r.Descriptors, r.Storm.Peak, r.Stalled.Peak)
		}
		near(t, "memory in a stall", float64(r.StallMemory), 0.5*r.Bytes, 1e-6)
		if r.Steady.Peak > 20 {
			t.Errorf("%s: %d wait without a stall", c.heartbeat, r.Steady.Peak)
		}
	}
	if EphemeralPorts != 28232 { // as docs/doctor.md has it
		t.Errorf("%d ports", EphemeralPorts)
	}
}

// TestWorstOfTrials: the result is the worst of five sets of phases, in each figure.
func TestWorstOfTrials(t *testing.T) {
	s := someServer
	s.Backlog = 100
	r := simulate(t, someFleet, s)
	var stalled, here Queue
	differ := false
	for seed := range 5 {
		rng := rand.New(rand.NewPCG(uint64(seed), 24224))
		at := someFleet.steady(rng, 2*stallBegins+someFleet.Stall)
		for into, backlog := range map[*Queue]int{&stalled: 0, &here: s.Backlog} {
			q := accept(at, stallBegins, stallBegins+someFleet.Stall, someCosts.Accept, backlog)
			differ = differ || seed > 0 && q != *into
			into.Peak, into.Slowest = max(into.Peak, q.Peak), max(into.Slowest, q.Slowest)
			into.Drops, into.Delayed, into.GaveUp = max(into.Drops, q.Drops), max(into.Delayed, q.Delayed), max(into.GaveUp, q.GaveUp)
		}
	}
	if r.Stalled != stalled || *r.StalledHere != here || !differ {
		t.Errorf("%+v and %+v, want %+v and %+v", r.Stalled, *r.StalledHere, stalled, here)
	}
}

// TestFifoLetsGo: a queue that is never empty keeps no memory of what has left it.
func TestFifoLetsGo(t *testing.T) {
	var f fifo
	for i := range 1_000_000 {
		f.push(time.Duration(i))
		if f.len() > 100 {
			if got := f.pop(); got != time.Duration(i-100) {
				t.Fatalf("%d came instead of %d", got, i-100)
			}
		}
	}
	if cap(f.items) > 50_000 {
		t.Errorf("memory for %d of 100", cap(f.items))
	}
}

// TestGrow: twice the cores take twice the senders until something else ends.
func TestGrow(t *testing.T) {
	fast := someServer
	fast.DiskBytes = 2e9
	rows, err := Grow(someFleet, fast, someCosts, []int{1, 2, 64})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "two cores", float64(rows[1].Senders), 2*float64(rows[0].Senders), 0.05)
	if rows[0].Bound != "cpu" || rows[2].Bound != "accept loop" {
		t.Errorf("%+v", rows)
	}
	for _, c := range rows {
		for senders, servers := range map[int]int{c.Senders: 1, c.Senders + 1: 2} {
			f, s := someFleet, fast
			f.Senders, f.Stall, s.Cores = senders, 0, float64(c.Cores)
			if r := simulate(t, f, s); r.Servers != servers {
				t.Errorf("%d senders on %d cores take %d servers (load %v), want %d", senders, c.Cores, r.Servers, r.Load, servers)
			}
		}
	}
	if rows, err := Grow(someFleet, someServer, someCosts, []int{64}); err != nil || rows[0].Bound != "disk" {
		t.Errorf("a slow disk: %+v, %v", rows, err)
	}
	huge := someFleet
	huge.FlushBytes = 1e12
	if rows, err := Grow(huge, someServer, someCosts, []int{1}); err != nil || rows[0].Bound != "disk" && rows[0].Bound != "cpu" || rows[0].Senders != 0 || rows[0].Bytes+rows[0].Messages+rows[0].Connections != 0 {
		t.Errorf("not even one sender: %+v, %v", rows, err)
	}
	if _, err := Grow(Fleet{}, someServer, someCosts, []int{1}); err == nil {
		t.Error("no error for an empty fleet")
	}
	var b bytes.Buffer
	if err := WriteCapacity(&b, rows); err != nil || !strings.Contains(b.String(), "accept loop") {
		t.Errorf("%s, %v", &b, err)
	}
}

// TestSame: the same input gives the same result.
func TestSame(t *testing.T) {
	s := someServer
	s.Backlog = 64
	var texts [2]string
	for i := range texts {
		r := simulate(t, someFleet, s)
		j, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := r.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		texts[i] = string(j) + b.String()
	}
	if texts[0] != texts[1] {
		t.Errorf("two runs differ:\n%s\n%s", texts[0], texts[1])
	}
	for _, want := range []string{"400 senders", "backlog", "SYNs dropped", "TIME_WAIT"} {
		if !strings.Contains(texts[0], want) {
			t.Errorf("lacks %q:\n%s", want, texts[0])
		}
	}
}

func TestParseHeartbeat(t *testing.T) {
	for text, want := range map[string]struct {
		kind  Heartbeat
		every time.Duration
	}{
		"tcp:1s": {TCP, time.Second}, "udp:500ms": {UDP, 500 * time.Millisecond}, "tcp": {TCP, time.Second}, "none": {None, 0},
		"": {}, "1s": {}, "tcp:": {}, "tcp:0s": {}, "tcp:-1s": {}, "icmp:1s": {}, "tcp:x": {}, "none:1s": {},
	} {
		kind, every, err := ParseHeartbeat(text)
		if kind != want.kind || every != want.every || (err == nil) != (want.kind != "") {
			t.Errorf("%q: %v %v %v", text, kind, every, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, change := range []func(*Fleet){
		func(f *Fleet) { f.Senders = 0 },
		func(f *Fleet) { f.Senders = maxSenders + 1 },
		func(f *Fleet) { f.Heartbeat = "icmp" },
		func(f *Fleet) { f.HeartbeatEvery = 0 },
		func(f *Fleet) { f.FlushEvery = 0 },
		func(f *Fleet) { f.FlushBytes = -1 },
		func(f *Fleet) { f.Stall = -1 },
		func(f *Fleet) { f.Stall = 2 * time.Hour },
		func(f *Fleet) { f.Senders, f.Stall = 1_000_000, time.Hour },
	} {
		f := someFleet
		change(&f)
		if _, err := Simulate(f, someServer, someCosts); err == nil {
			t.Errorf("no error for %+v", f)
		}
	}
	f := Fleet{Senders: maxSenders, Heartbeat: UDP, HeartbeatEvery: time.Second, FlushEvery: time.Second, Keepalive: true}
	if err := f.Validate(); err != nil {
		t.Errorf("the most senders: %v", err)
	}
	f.Senders++
	if err := f.Validate(); err == nil || !strings.Contains(err.Error(), "senders") || !strings.Contains(err.Error(), "4000000") {
		t.Errorf("one more: %v", err)
	}
}
