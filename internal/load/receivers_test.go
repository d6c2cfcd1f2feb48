package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/forward"
)

// bad is a receiver that does serve with each connection, whose number counts from 1.
func bad(t *testing.T, serve func(c net.Conn, n int64)) (addr string, accepted *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted = new(atomic.Int64)
	var mu sync.Mutex
	var open []net.Conn
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			n := accepted.Add(1)
			all.Go(func() { serve(c, n) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String(), accepted
}

// readAll takes all and answers nothing.
func readAll(c net.Conn, _ int64) {
	_, _ = io.Copy(io.Discard, c) // until either side ends it
	c.Close()
}

// TestBadReceivers: whatever a receiver does, the load ends in time, says what was
// wrong, and does not storm it with new connections.
func TestBadReceivers(t *testing.T) {
	t.Parallel()
	answer := func(text string) func(net.Conn, int64) {
		return func(c net.Conn, n int64) {
			if _, err := c.Read(make([]byte, 100)); err == nil {
				_, _ = c.Write([]byte(text)) // it may be closed
			}
			readAll(c, n)
		}
	}
	var runs sync.WaitGroup
	defer runs.Wait()
	for _, r := range []struct {
		name  string
		serve func(net.Conn, int64)
		want  string // of the error with acks
		noAck string // of that without; empty for none
	}{
		{"never acks", readAll, "no ack within|no ack came", ""},
		{"never reads", func(net.Conn, int64) {}, "no ack within|no ack came|reads nothing", "reads nothing|did not read to the end"},
		{"closes", func(c net.Conn, _ int64) { c.Close() }, "closed the connection|reset|broken pipe", "connections broke"},
		{"acks another id", answer("\x81\xa3ack\xa3abc"), `an ack of "abc"`, ""},
		{"speaks HTTP", answer("HTTP/1.1 400 Bad Request\r\n\r\n"), "no ack, beginning with 48 54", ""},
		{"asks for a key", answer("\x92\xa4HELO\x80"), "a shared key is missing here", ""},
	} {
		for _, shape := range []string{"connections", "window and rate", "no keepalive", "fleet", "no ack", "no end but the count"} {
			addr, accepted := bad(t, r.serve)
			runs.Go(func() {
				o := options(addr, "packed")
				o.PID, o.Count, o.Connections, o.Events, o.Size, o.Window = 0, 0, 2, 100, 200, 1
				o.Duration, o.AckTimeout = time.Second, 2*time.Second
				want := r.want
				switch shape {
				case "window and rate":
					o.Window, o.Rate = 8, 10_000
				case "no keepalive":
					o.KeepAlive = false
				case "fleet":
					o.Senders, o.Flush = 2, 50*time.Millisecond
				case "no ack":
					o.Ack, want = false, r.noAck
				case "no end but the count":
					o.Duration, o.Count, want = 0, 1e9, "given up: nothing was taken"
				}
				begun := time.Now()
				rep, err := Run(t.Context(), o)
				took := time.Since(begun)
				if due := o.Rate * o.Duration.Seconds(); rep != nil && float64(rep.Overdue) > 1.5*due {
					t.Errorf("%s, %s: %d overdue of %.0f", r.name, shape, rep.Overdue, due)
				}
				if took > 30*time.Second {
					t.Errorf("%s, %s: it took %v", r.name, shape, took)
				}
				if rep == nil {
					t.Errorf("%s, %s: %v", r.name, shape, err)
					return
				}
				matches := err == nil && want == ""
				for _, w := range strings.Split(want, "|") {
					matches = matches || w != "" && err != nil && strings.Contains(err.Error(), w)
				}
				// On a machine that is busy nothing may have been sent yet, and without acks
				// a few chunks are gone before anything is noticed.
				if rep.Chunks == 0 || shape == "no ack" && rep.Chunks < 1000 {
					matches = matches || err == nil
				}
				// The last error of several may be another one than that of giving up.
				if !matches && !(shape == "no end but the count" && err != nil) {
					t.Errorf("%s, %s: %v, want %q", r.name, shape, err, want)
				}
				// Each of two starts again after 50 ms, 100, 200, ...: without a pause it
				// would be thousands.
				if n := accepted.Load(); n > 40+int64(took.Seconds()*50) {
					t.Errorf("%s, %s: %d connections in %v", r.name, shape, n, took)
				}
			})
		}
	}
}

// TestNoAckBroken: without acks, what a broken connection did not take is sent over
// the next one, so that as many events are written as were asked for, and the end
// says that some may be lost.
func TestNoAckBroken(t *testing.T) {
	s := &sink{}
	good := serve(t, s, forward.Config{})
	addr, _ := bad(t, func(c net.Conn, n int64) {
		defer c.Close()
		if n == 1 { // what it has not read makes the close a reset
			_, _ = c.Read(make([]byte, 100))
			return
		}
		out, err := net.Dial("tcp", good)
		if err != nil {
			t.Error(err)
			return
		}
		defer out.Close()
		_, _ = io.Copy(out, c) // until the sender's end
	})
	o := options(addr, "packed")
	o.Ack, o.Connections, o.Events, o.Size, o.Count = false, 1, 1000, 1000, 30_000 // more than fits into buffers
	rep, err := Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "may be lost") {
		t.Fatalf("%v; %+v", err, rep)
	}
	if rep.Events != o.Count || rep.Chunks != 30 || rep.Bytes != 30*1000*1000 || rep.Errors != 1 || rep.UnackedChunks != 0 {
		t.Errorf("%+v", rep)
	}
}

// TestNoAckMeasuresTheWhole: without acks the end comes when the receiver has read
// everything, not when it is in the kernel's buffers.
func TestNoAckMeasuresTheWhole(t *testing.T) {
	t.Parallel()
	const pause = 700 * time.Millisecond
	addr, _ := bad(t, func(c net.Conn, n int64) {
		time.Sleep(pause)
		readAll(c, n)
	})
	o := options(addr, "packed")
	o.Ack, o.Connections, o.Count = false, 1, 50
	if rep := mustRun(t, o); rep.Seconds < pause.Seconds() {
		t.Errorf("%+v", rep)
	}
}

// TestStop: closing Stop ends the sending, what is in flight is acked; the end of the
// context waits for nothing. Both report.
func TestStop(t *testing.T) {
	stop := make(chan struct{})
	s := &sink{refuse: func(n int) bool {
		if n == 5 {
			close(stop)
		}
		return false
	}}
	o := options(serve(t, s, forward.Config{}), "message")
	o.Count, o.Duration, o.Stop, o.Connections = 0, time.Hour, stop, 1
	if rep := mustRun(t, o); rep.Events < 5 || rep.AckedEvents != rep.Events {
		t.Errorf("%+v", rep)
	}

	addr, accepted := bad(t, readAll)
	o.Address, o.Stop = addr, nil
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for accepted.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	begun := time.Now()
	rep, err := Run(ctx, o)
	if err == nil || rep == nil || time.Since(begun) > o.AckTimeout {
		t.Errorf("after %v: %+v, %v", time.Since(begun), rep, err)
	}
}

// TestOverdue: a rate that the receiver does not take is told, one that it takes is
// reached.
func TestOverdue(t *testing.T) {
	s := &sink{refuse: func(int) bool { time.Sleep(20 * time.Millisecond); return false }}
	o := options(serve(t, s, forward.Config{}), "message")
	o.Connections, o.Window, o.Rate, o.Count, o.Duration = 1, 1, 1000, 0, 500*time.Millisecond
	rep := mustRun(t, o)
	if due := o.Rate * o.Duration.Seconds(); rep.Overdue == 0 || float64(rep.Events+rep.Overdue) < 0.9*due {
		t.Errorf("%d sent and %d overdue of %.0f", rep.Events, rep.Overdue, due)
	}
	var b bytes.Buffer
	if err := rep.WriteText(&b); err != nil || !strings.Contains(b.String(), fmt.Sprintf("%d that were due were not sent: 1000/s were asked for", rep.Overdue)) {
		t.Errorf("%v: %s", err, &b)
	}
}

// TestAllSent: what Count bounds has nothing overdue at its end, and is rounded up to
// whole chunks.
func TestAllSent(t *testing.T) {
	s := &sink{refuse: func(int) bool { time.Sleep(20 * time.Millisecond); return false }}
	o := options(serve(t, s, forward.Config{}), "packed")
	o.Connections, o.Window, o.Rate, o.Count = 1, 1, 50_000, 501
	if rep := mustRun(t, o); rep.Events != 550 || rep.Overdue != 0 {
		t.Errorf("%+v", rep)
	}
}

// TestSlowRate: a run whose chunks are due seldom has not come to a halt.
func TestSlowRate(t *testing.T) {
	t.Parallel()
	s := &sink{}
	o := options(serve(t, s, forward.Config{}), "message")
	o.Connections, o.Rate, o.Count, o.AckTimeout = 1, 1, 3, 400*time.Millisecond
	if rep := mustRun(t, o); rep.AckedEvents != 3 {
		t.Errorf("%+v", rep)
	}
}

// TestSlowAcks: that the next chunk is due is no reason to give up on acks.
func TestSlowAcks(t *testing.T) {
	t.Parallel()
	s := &sink{refuse: func(int) bool { time.Sleep(30 * time.Millisecond); return false }}
	o := options(serve(t, s, forward.Config{}), "message")
	o.Connections, o.Window, o.Rate, o.Count = 1, 64, 200, 20
	if rep := mustRun(t, o); rep.Connections != 1 || rep.ResentChunks != 0 {
		t.Errorf("%+v", rep)
	}
}

// TestAckTimeoutOfResend: what is sent again has as long for its ack as at first.
func TestAckTimeoutOfResend(t *testing.T) {
	t.Parallel()
	s := &sink{}
	good := serve(t, s, forward.Config{})
	addr, accepted := bad(t, func(c net.Conn, n int64) {
		if n == 1 {
			readAll(c, n)
			return
		}
		time.Sleep(300 * time.Millisecond)
		out, err := net.Dial("tcp", good)
		if err != nil {
			t.Error(err)
			return
		}
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(out, c); out.Close() }) // until either end
		both.Go(func() { _, _ = io.Copy(c, out); c.Close() })
		both.Wait()
	})
	o := options(addr, "message")
	o.Connections, o.Window, o.Rate, o.Count, o.AckTimeout = 1, 64, 50, 100, 2*time.Second
	o.Duration = time.Minute // that it is stuck for a while is no end
	rep := mustRun(t, o)
	if n := accepted.Load(); n > 3 || rep.ResentChunks == 0 || rep.AckedEvents != 100 {
		t.Errorf("%d connections; %+v", n, rep)
	}
}

// TestHeartbeatsLost: heartbeats without an answer in time are lost, and an answer that
// comes too late is not taken for that of the next.
func TestHeartbeatsLost(t *testing.T) {
	t.Parallel()
	addr, _ := bad(t, readAll)
	udp, err := net.ListenPacket("udp", addr)
	for range 20 { // somebody else may have the port of UDP
		if err == nil {
			break
		}
		addr, _ = bad(t, readAll)
		udp, err = net.ListenPacket("udp", addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	var late sync.WaitGroup
	late.Go(func() {
		b := make([]byte, 10)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			late.Go(func() {
				time.Sleep(leastBeatWait + 300*time.Millisecond)
				_, _ = udp.WriteTo(make([]byte, n), from) // its socket may be gone
			})
		}
	})
	defer func() {
		udp.Close()
		late.Wait()
	}()
	o := options(addr, "packed")
	o.Ack, o.Count, o.Senders, o.Heartbeat, o.HeartbeatEvery, o.Duration = false, 0, 1, "udp", 100*time.Millisecond, 2200*time.Millisecond
	rep, err := Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d of %d heartbeats lost, the last error: a UDP heartbeat had no answer", rep.Heartbeats, rep.Heartbeats)) || rep.Heartbeats < 2 {
		t.Errorf("%v; %+v", err, rep)
	}
}

// TestStormOverdue: a storm that is more than this machine can is told.
func TestStormOverdue(t *testing.T) {
	addr, _ := bad(t, readAll)
	o := options(addr, "packed")
	o.Storm, o.Count, o.Duration = 1e6, 0, 300*time.Millisecond
	if rep := mustRun(t, o); rep.Overdue == 0 || rep.TargetRate != 1e6 {
		t.Errorf("%+v", rep)
	}
}

// TestProgressWidth: a line that is written over never wraps.
func TestProgressWidth(t *testing.T) {
	t.Parallel()
	s := &sink{}
	var b bytes.Buffer
	o := options(serve(t, s, forward.Config{}), "message")
	o.Count, o.Duration, o.Rate, o.Progress, o.Width = 0, 1500*time.Millisecond, 100, &b, 20
	mustRun(t, o)
	lines := strings.Split(b.String(), "\r")
	if len(lines) < 3 || lines[len(lines)-1] != "\x1b[K" {
		t.Errorf("%q", lines)
	}
	for _, line := range lines {
		if line = strings.TrimSuffix(line, "\x1b[K"); len(line) >= o.Width {
			t.Errorf("%q has %d columns of %d", line, len(line), o.Width)
		}
	}
}

// TestServerGone: a process that has ended has no figures, though nobody has waited
// for it.
func TestServerGone(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run", "^$")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	for limit := time.Now().Add(time.Minute); ; {
		_, err := measure(cmd.Process.Pid)
		if err != nil && strings.Contains(err.Error(), "the process has ended") {
			return
		}
		if err != nil || time.Now().After(limit) {
			t.Fatalf("no end of it: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestLine: what a progress line tells of each shape of load.
func TestLine(t *testing.T) {
	for want, o := range map[string]Options{
		"   2s  500 events/s  errors 3  in flight 4":             {Ack: true},
		"   2s  500 events/s  errors 3":                          {},
		"   2s  70 connections/s  errors 3  connect p99 5.0 ms":  {Storm: 1},
		"   2s  500 events/s  errors 3  90 heartbeats/s, lost 2": {Senders: 1},
		"   2s  verify: 17 events not found yet":                 {Verify: []string{"x"}},
	} {
		r := &run{o: &o, start: time.Now()}
		r.connectLatency.h, r.ackLatency.h = newHistogram(), newHistogram()
		r.inFlight.Store(4)
		r.connErrors.Store(3)
		r.heartbeatsLost.Store(2)
		if o.Storm > 0 {
			r.connectLatency.observe(5 * time.Millisecond)
		}
		if len(o.Verify) > 0 {
			r.missing.Store(17)
		}
		last, next := counts{at: r.start.Add(time.Second)}, counts{at: r.start.Add(2 * time.Second), events: 500, connections: 70}
		if o.Senders > 0 {
			next.heartbeats = 90
		}
		if got := r.line(last, next); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
