package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/buffer"
)

// refusesToStart runs weir and requires an exit code that is not 0 and, as last
// line, an error that has all the words.
func refusesToStart(t *testing.T, o options, words ...string) {
	t.Helper()
	w := launch(t, o)
	select {
	case <-w.waited:
	case <-time.After(patience):
		t.Fatalf("weir runs:\n%s", w.log)
	}
	if w.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code %d", w.cmd.ProcessState.ExitCode())
	}
	lines := strings.Split(strings.TrimSpace(w.log.String()), "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, "weir: ") {
		t.Errorf("the last line is no error of weir's:\n%s", w.log)
	}
	for _, word := range words {
		if !strings.Contains(last, word) {
			t.Errorf("the error lacks %q:\n%s", word, last)
		}
	}
}

func TestBusyPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, options{addr: addr}, addr, "address already in use", "ss -ltnp 'sport = :"+port+"'")
}

func TestBadConfig(t *testing.T) {
	refusesToStart(t, options{source: "  baklog 5"}, "weir.conf:5:3", `unknown parameter baklog`, `did you mean "backlog"?`)

	dir := t.TempDir()
	missing := filepath.Join(dir, "no.conf")
	out, err := exec.Command(binary, "-c", missing).CombinedOutput()
	if err == nil || !strings.Contains(string(out), missing) || strings.Count(string(out), "\n") != 1 {
		t.Errorf("a missing file: %v\n%s", err, out)
	}
	// A directory cannot be read, not even by root.
	out, err = exec.Command(binary, "check", "-c", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), dir) || strings.Count(string(out), "\n") != 1 {
		t.Errorf("an unreadable file: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"--nonsense"}, {"nonsense"}, {"status", "--address", "127.0.0.1:1"}} {
		out, err := exec.Command(binary, args...).CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "weir: ") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("weir %v: %v\n%s", args, err, out)
		}
	}
}

func TestBufferInUse(t *testing.T) {
	w := start(t, options{})
	refusesToStart(t, options{dir: w.dir}, filepath.Join("buffer"), "in use by process "+fmt.Sprint(w.cmd.Process.Pid))
}

func TestBufferIsAFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "buffer"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, options{dir: dir}, "buffer directory buffer", "choose another path")
}

// mounted mounts a small tmpfs at dir/buffer.
func mounted(t *testing.T, dir, size string) (remount func(flags uintptr)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to mount a small file system; run the tests as root (CI does)")
	}
	path := filepath.Join(dir, "buffer")
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("", path, "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBufferReadOnly(t *testing.T) {
	dir := t.TempDir()
	remount := mounted(t, dir, "1m")
	remount(syscall.MS_RDONLY)
	refusesToStart(t, options{dir: dir}, "buffer directory buffer", "read-only", "remount it")
}

func TestBufferDiskFullAtStart(t *testing.T) {
	dir := t.TempDir()
	mounted(t, dir, "64k")
	if err := os.WriteFile(filepath.Join(dir, "buffer", "ballast"), make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("1 MB fits into 64 KB")
	}
	refusesToStart(t, options{dir: dir}, "buffer directory buffer", "no space left", "free some space")
}

// TestBufferDiskFull fills the file system of the buffer under acked load: what
// cannot be stored is not acked, weir lives, says that it is not ready, and goes
// on by itself once there is space. No acked event is lost.
func TestBufferDiskFull(t *testing.T) {
	dir := t.TempDir()
	mounted(t, dir, "2m")
	ballast := filepath.Join(dir, "buffer", "ballast")
	w := start(t, options{dir: dir, source: "health_grace 100ms"})
	acked := 0
	send := func() error {
		c, err := dial(w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.conn.Close()
		err = c.send("full", fmt.Sprintf("id-%d", acked), acked, acked+10)
		if err == nil {
			acked += 10
		}
		return err
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); err == nil {
		t.Fatal("4 MB fit into 2 MB")
	}
	refused := 0
	for range 2000 { // what is left of the chunk's last pages
		if send() != nil {
			refused++
			if refused == 3 {
				break
			}
		}
	}
	if refused != 3 {
		t.Fatalf("%d messages refused on a full disk, %d events acked", refused, acked)
	}
	waitFor(t, patience, func() error {
		if s := w.snapshot(); s.Ready() || !strings.Contains(fmt.Sprint(s.Problems), "no space left") {
			return fmt.Errorf("problems %q on a full disk", s.Problems)
		}
		return nil
	})
	if w.heartbeat(200 * time.Millisecond) {
		t.Error("a UDP heartbeat is answered although nothing can be stored")
	}
	if s := w.snapshot(); s.Traffic.Refused["storage"] == 0 {
		t.Errorf("refused %v", s.Traffic.Refused)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := send(); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	waitFor(t, patience, func() error {
		if s := w.snapshot(); !s.Ready() || !w.heartbeat(time.Second) {
			return fmt.Errorf("not ready with space again: %q", s.Problems)
		}
		return nil
	})
	requireAll(t, w.delivered(), "full", acked)
	w.stop()
}

// heartbeat sends a UDP heartbeat and reports whether it is answered in time.
func (w *weir) heartbeat(within time.Duration) bool {
	w.t.Helper()
	c, err := net.Dial("udp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte{0}); err != nil {
		w.t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(within))
	_, err = c.Read(make([]byte, 8))
	return err == nil
}

// TestTruncatedChunk cuts the newest chunk: weir starts, what is whole is
// delivered.
func TestTruncatedChunk(t *testing.T) {
	dir := t.TempDir()
	// An output that cannot deliver keeps everything in the buffer.
	if err := os.WriteFile(filepath.Join(dir, "out"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := start(t, options{dir: dir})
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 30; n += 10 {
		if err := c.send("cut", fmt.Sprint(n), n, n+10); err != nil {
			t.Fatal(err)
		}
	}
	c.conn.Close()
	w.kill()
	chunks, err := filepath.Glob(filepath.Join(dir, "buffer", "chunk.*"))
	if err != nil || len(chunks) != 1 {
		t.Fatalf("chunks %q, %v", chunks, err)
	}
	// The file is larger than what is in it.
	in, err := buffer.Inspect(filepath.Join(dir, "buffer"), nil)
	if err != nil || len(in.Chunks) != 1 || in.Chunks[0].Entries != 3 {
		t.Fatalf("%+v, %v", in, err)
	}
	if err := os.Truncate(chunks[0], buffer.BlockSize+in.Chunks[0].Bytes-4000); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	w = start(t, options{dir: dir})
	requireAll(t, w.delivered(), "cut", 20)
	if !strings.Contains(w.log.String(), "unfinished commit left out") {
		t.Error("the log says nothing of it")
	}
	w.stop()
}
