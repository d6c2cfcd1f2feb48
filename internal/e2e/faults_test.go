package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// traced attaches strace to a running weir, which works on any file system and
// needs no device mapper, and waits until it is attached. stop ends it and
// returns what it wrote.
func (w *weir) traced(args ...string) (stop func() string) {
	w.t.Helper()
	if os.Geteuid() != 0 {
		w.t.Skip("SKIPPED: needs root to trace a process; run the tests as root (CI does)")
	}
	log := &syncBuffer{}
	out := filepath.Join(w.t.TempDir(), "strace")
	cmd := exec.Command("strace", append([]string{"-f", "-o", out, "-p", strconv.Itoa(w.cmd.Process.Pid)}, args...)...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		w.t.Fatalf("%v; apt-get install strace", err)
	}
	waitFor(w.t, patience, func() error {
		if !strings.Contains(log.String(), "attached") {
			return fmt.Errorf("strace is not attached: %s", log)
		}
		return nil
	})
	var once sync.Once
	stop = func() string {
		once.Do(func() {
			cmd.Process.Signal(syscall.SIGINT)
			cmd.Wait() // its exit code is the signal's
		})
		p, err := os.ReadFile(out)
		if err != nil {
			w.t.Fatal(err)
		}
		return string(p)
	}
	w.t.Cleanup(func() { stop() })
	return stop
}

// TestAckAfterFdatasync shows the order of system calls for one message: its
// bytes go to the chunk, fdatasync returns, and only then the ack goes out.
func TestAckAfterFdatasync(t *testing.T) {
	w := start(t, options{})
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	if err := c.send("warm", "first", 0, 1); err != nil { // makes the chunk
		t.Fatal(err)
	}
	requireAll(t, w.delivered(), "warm", 1)
	stop := w.traced("-s", "4096", "-y", "-e", "trace=pwritev,pwritev2,pwrite64,fdatasync,write,sendto,sendmsg,writev")
	if err := c.send("order", "chunk-of-the-order", 0, 1); err != nil {
		t.Fatal(err)
	}
	trace := stop()
	var wrote, synced, acked = -1, -1, -1
	pending := map[string]bool{} // threads within an fdatasync of the chunk
	for i, line := range strings.Split(trace, "\n") {
		pid, call, _ := strings.Cut(line, " ")
		call = strings.TrimSpace(call)
		switch {
		case wrote < 0 && strings.HasPrefix(call, "pwrite") && strings.Contains(call, "chunk-of-the-order"):
			wrote = i
		case strings.HasPrefix(call, "fdatasync") && strings.Contains(call, "chunk.") && wrote >= 0 && synced < 0:
			if strings.HasSuffix(call, "= 0") {
				synced = i
			} else {
				pending[pid] = strings.Contains(call, "unfinished")
			}
		case strings.HasPrefix(call, "<... fdatasync resumed") && pending[pid] && synced < 0:
			synced = i
		case acked < 0 && strings.Contains(call, `\243ack`) && strings.Contains(call, "chunk-of-the-order"):
			acked = i
		}
	}
	if wrote < 0 || synced <= wrote || acked <= synced {
		t.Errorf("write in line %d, fdatasync done in %d, ack in %d of:\n%s", wrote, synced, acked, trace)
	}
	w.stop()
}

// TestFsyncFails makes fdatasync fail with EIO: nothing is acked that is not on
// disk, weir says so and goes on by itself when the disk is well again.
func TestFsyncFails(t *testing.T) {
	w := start(t, options{source: "health_grace 100ms"})
	acked := 0
	send := func() error {
		c, err := dial(w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.conn.Close()
		if err = c.send("eio", fmt.Sprintf("id-%d", acked), acked, acked+10); err == nil {
			acked += 10
		}
		return err
	}
	for range 5 {
		if err := send(); err != nil {
			t.Fatal(err)
		}
	}
	stop := w.traced("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO")
	for range 3 {
		if send() == nil {
			t.Error("acked although fdatasync fails")
		}
	}
	waitFor(t, patience, func() error {
		if s := w.snapshot(); s.Ready() || !strings.Contains(fmt.Sprint(s.Problems), "input/output error") {
			return fmt.Errorf("problems %q while fdatasync fails", s.Problems)
		}
		return nil
	})
	if trace := stop(); !strings.Contains(trace, "INJECTED") {
		t.Fatalf("no fdatasync was made to fail:\n%s", trace)
	}
	waitFor(t, patience, send)
	waitFor(t, patience, func() error {
		if s := w.snapshot(); !s.Ready() {
			return fmt.Errorf("not ready on a disk that is well: %q", s.Problems)
		}
		return nil
	})
	requireAcked(t, w.delivered(), acked)
	w.stop()
}

// requireAcked fails unless the events 0 to n-1 are all there. Others may be: a
// message that was written but not acked is no loss.
func requireAcked(t *testing.T, events []event, n int) {
	t.Helper()
	seen := map[int]bool{}
	for _, e := range events {
		seen[int(e.record["n"].(float64))] = true
	}
	lost := 0
	for i := range n {
		if !seen[i] {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acked events are lost", lost, n)
	}
}

// TestDiskStalls holds each fdatasync for seconds: acks wait for it, memory
// stays within its budget, and heartbeats of both kinds are answered meanwhile.
func TestDiskStalls(t *testing.T) {
	const limit = 2 << 20
	w := start(t, options{source: "memory_limit 2m"})
	before := w.rss()
	most := before
	const stall = 4 * time.Second
	stop := w.traced("-e", "trace=fdatasync", "-e", fmt.Sprintf("inject=fdatasync:delay_enter=%d", stall.Microseconds()))
	load := &ackedLoad{acked: map[int]bool{}}
	done := make(chan struct{})
	wait := load.run(t, w.addr, 8, done)
	defer wait()
	defer close(done)
	// A sender that pushes without waiting for acks.
	push, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer push.conn.Close()
	msg, err := packed("push", "", 1<<30, 1<<30+3000)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := push.conn.Write(msg); err != nil {
				return
			}
		}
	}()
	begin := time.Now()
	for beats := 0; time.Since(begin) < 3*time.Second; beats++ {
		if !w.heartbeat(stall - stall/4) {
			t.Errorf("UDP heartbeat %d is not answered while the disk stalls", beats)
		}
		at := time.Now()
		conn, err := net.DialTimeout("tcp", w.addr, patience)
		if err != nil {
			t.Fatalf("TCP heartbeat %d after %v: %v", beats, time.Since(at), err)
		}
		conn.Close()
		for _, q := range w.snapshot().Queues {
			if q.Name == "memory" && q.Depth > limit {
				t.Errorf("%d bytes of %d held", q.Depth, limit)
			}
		}
		most = max(most, w.rss())
		time.Sleep(200 * time.Millisecond)
	}
	// Beside memory_limit: a commit's 4 MiB and the one under way, what the
	// heartbeats' connections and readings of the status take, and as much again
	// that the garbage collector has not taken back.
	const allowance = 32 << 20
	t.Logf("RSS %d KiB before, at most %d KiB while the disk stalls", before>>10, most>>10)
	if most > before+limit+allowance {
		t.Errorf("RSS has grown from %d to %d bytes, memory_limit is %d", before, most, limit)
	}
	push.conn.Close()
	stop()
	acks := load.count()
	waitFor(t, patience, func() error {
		if load.count() == acks {
			return errors.New("no ack after the disk went on")
		}
		return nil
	})
}

// TestSmallDiskFills fills a small file system under acked load while no output
// delivers: every ack is an event found in the end, weir stays alive, and goes on
// by itself once the output has made space. Killed and started again on the full
// disk, and once more when all is delivered, it knows what it has acked: nothing is
// stored twice. With 64 MB the disk is full behind a whole chunk, with 24 MB in the
// midst of the first.
func TestSmallDiskFills(t *testing.T) {
	for _, size := range []string{"64m", "24m"} {
		t.Run(size, func(t *testing.T) { fillDisk(t, size) })
	}
}

func fillDisk(t *testing.T, size string) {
	dir := t.TempDir()
	mounted(t, dir, size)
	dead := filepath.Join(dir, "out") // no output takes anything: the buffer fills
	if err := os.WriteFile(dead, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	match := strings.Replace(defaultMatch, "path buffer", "path buffer\n    retry_type periodic\n    retry_wait 100ms\n    retry_forever true", 1)
	w := start(t, options{dir: dir, match: match})
	acked := 0
	const per = 50 // events, about 200 KB a message
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if err = c.sendPadded("small", fmt.Sprintf("id-%d", acked), acked, acked+per); err != nil {
			break
		}
		acked += per
	}
	c.conn.Close()
	if err == nil {
		t.Fatalf("%s take %d events", size, acked)
	}
	if acked == 0 {
		t.Fatal("nothing was acked on an empty disk")
	}
	if s := w.snapshot(); s.Traffic.Refused["storage"] == 0 && s.Traffic.Refused["buffer_full"] == 0 {
		t.Errorf("nothing refused: %v", s.Traffic.Refused)
	}
	again := func() {
		t.Helper()
		w.kill()
		w = start(t, options{dir: dir, match: match, addr: w.addr, status: w.status})
		c, err := dial(w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.conn.Close()
		for n := 0; n < acked; n += per {
			if err := c.sendPadded("small", fmt.Sprintf("id-%d", n), n, n+per); err != nil {
				t.Fatalf("chunk %d of %d that were acked, again: %v", n/per, acked/per, err)
			}
		}
	}
	again()
	if err := os.Remove(dead); err != nil { // the output empties the buffer: space returns
		t.Fatal(err)
	}
	waitFor(t, patience, func() error {
		if c, err = dial(w.addr); err != nil {
			return err
		}
		if err = c.sendPadded("small", fmt.Sprintf("id-%d", acked), acked, acked+per); err != nil {
			c.conn.Close()
			return err
		}
		acked += per
		return nil
	})
	c.conn.Close()
	w.delivered()
	again()
	events := w.delivered()
	requireAcked(t, events, acked)
	t.Logf("%d events acked, %d found", acked, len(events))
	if len(events) > acked {
		t.Errorf("%d events are there twice, or were not acked", len(events)-acked)
	}
	w.stop()
}

// sendPadded is send with events of 4 KB each.
func (c *client) sendPadded(tag, chunk string, first, last int) error {
	pad := bytes.Repeat([]byte{'x'}, 4000)
	var stream bytes.Buffer
	enc := msgpack.NewEncoder(&stream)
	for n := first; n < last; n++ {
		if err := errors.Join(enc.EncodeArrayLen(2), enc.EncodeInt(1700000000), enc.EncodeMapLen(2),
			enc.EncodeString("n"), enc.EncodeInt(int64(n)), enc.EncodeString("pad"), enc.EncodeBytes(pad)); err != nil {
			return err
		}
	}
	msg, err := packedStream(tag, chunk, stream.Bytes(), last-first)
	if err != nil {
		return err
	}
	return c.sendMessage(msg, chunk)
}

// TestBufferDirectoryVanishes removes the buffer's directory under a running
// weir: from then on nothing is acked, and weir says why.
func TestBufferDirectoryVanishes(t *testing.T) {
	w := start(t, options{source: "health_grace 100ms"})
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.send("gone", "first", 0, 10); err != nil {
		t.Fatal(err)
	}
	c.conn.Close()
	requireAll(t, w.delivered(), "gone", 10)
	if err := os.RemoveAll(filepath.Join(w.dir, "buffer")); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if c, err = dial(w.addr); err != nil {
			t.Fatal(err)
		}
		if c.send("gone", fmt.Sprint("after", i), 10, 20) == nil {
			t.Error("acked although the directory of the buffer is gone")
		}
		c.conn.Close()
	}
	waitFor(t, patience, func() error {
		if s := w.snapshot(); s.Ready() || !regexp.MustCompile(`buffer.*(no such file|removed)`).MatchString(fmt.Sprint(s.Problems)) {
			return fmt.Errorf("problems %q", s.Problems)
		}
		return nil
	})
	w.kill()
}
