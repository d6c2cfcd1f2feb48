package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// killPoint is a step at which a process is killed: as one of its threads begins
// its n-th system call of this name. strace counts them so.
type killPoint struct {
	call string
	n    int
}

// killedAt runs weir and kills it there with SIGKILL. killed is false if it ended
// before.
func killedAt(t *testing.T, at killPoint, dir string, args ...string) (killed bool) {
	t.Helper()
	cmd := exec.Command("strace", append([]string{"-f", "-o", os.DevNull, "-e", "trace=" + at.call,
		"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", at.call, at.n), binary}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1") // few threads, with many calls each
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		return true // strace ends like what it runs
	}
	t.Fatalf("%v; apt-get install strace\n%s", err, out)
	return false
}

// killPoints calls f with every step that changes something on disk, until it
// reports that nothing was killed any more; it fails unless many were found.
// between is true for every fourth.
func killPoints(t *testing.T, f func(at killPoint, between bool) (killed bool)) {
	t.Helper()
	found, runs := 0, 0
	for _, call := range []string{"pwritev", "pwrite64", "write", "fdatasync", "fsync", "renameat", "unlinkat", "ftruncate"} {
		for n := 1; n < 50; n++ {
			runs++
			if !f(killPoint{call, n}, runs%4 == 0) {
				break
			}
			found++
			if t.Failed() {
				t.Fatalf("killed at %s %d", call, n)
			}
		}
	}
	t.Logf("killed at %d points", found)
	if found < 15 {
		t.Errorf("killed at %d points only", found)
	}
}

// noDedupe is a match whose buffer remembers no chunk ids, with small chunks.
var noDedupe = strings.Replace(defaultMatch, "path buffer", "path buffer\n    dedupe_window 0\n    chunk_limit_size 256k", 1)

// inDir runs weir in dir and fails the test if that fails.
func inDir(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// sortedLines compare as sets with multiplicity.
func sortedLines(text string) string {
	lines := strings.SplitAfter(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// sortedEvents likewise.
func sortedEvents(events []event) string {
	var lines []string
	for _, e := range events {
		lines = append(lines, fmt.Sprintf("%+v\n", e))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// deliver runs a weir on dir until its buffer is empty, and no chunk is left that
// was there before: nothing in the buffer tells any more what has been in it.
func deliver(t *testing.T, dir string) (events []event) {
	t.Helper()
	w := start(t, options{dir: dir, match: noDedupe})
	defer w.stop()
	w.delivered()
	for range 2 {
		c, err := dial(w.addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.sendPadded("filler", "filler", 0, 50); err != nil {
			t.Fatal(err)
		}
		c.conn.Close()
	}
	for _, e := range w.delivered() {
		if e.tag != "filler" {
			events = append(events, e)
		}
	}
	return events
}

// TestImportKilled kills an import at each of its steps and imports again, with
// and without a weir in between that delivers: every event is there once, and
// what cannot be read is in quarantine once.
func TestImportKilled(t *testing.T) {
	conf := readConf(t, noDedupe)
	prepare := func() (dir string) {
		dir = t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "weir.conf"), conf, 0o600); err != nil {
			t.Fatal(err)
		}
		copyChunks(t, filepath.Join(dir, "fluentd"), "buffer.b660*", "buffer.q660fc6e7*")
		broken := filepath.Join(dir, "fluentd", "buffer.b660fc6ed5b0f44b930716608dfaedf6d.log")
		p := readFile(t, broken)
		if err := os.WriteFile(broken, p[:len(p)-5], 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	args := []string{"buffer", "import", "fluentd", "-c", "weir.conf"}
	finished := func(dir, how string) {
		t.Helper()
		rejected, _ := filepath.Glob(filepath.Join(dir, "buffer", "rejected", "*.rejected"))
		left, _ := filepath.Glob(filepath.Join(dir, "fluentd", "*.log"))
		if len(rejected) != 1 || len(left) != 0 {
			t.Errorf("%s: %d items in quarantine, want 1; not marked: %q", how, len(rejected), left)
		}
	}

	whole := prepare()
	inDir(t, whole, args...)
	finished(whole, "in one go")
	stored := sortedLines(inDir(t, whole, "buffer", "cat", "-c", "weir.conf"))
	delivered := sortedEvents(deliver(t, whole))
	if n := strings.Count(stored, "\n"); n < 100 || n != strings.Count(delivered, "\n") {
		t.Fatalf("%d events stored, %d delivered", n, strings.Count(delivered, "\n"))
	}

	killPoints(t, func(at killPoint, between bool) bool {
		dir := prepare()
		killed := killedAt(t, at, dir, args...)
		how := fmt.Sprint("killed at ", at)
		if between {
			deliver(t, dir)
			how += " and delivered"
		}
		inDir(t, dir, args...)
		finished(dir, how)
		if !between {
			if got := sortedLines(inDir(t, dir, "buffer", "cat", "-c", "weir.conf")); got != stored {
				t.Errorf("%s: %d events stored, want %d, each once", how, strings.Count(got, "\n"), strings.Count(stored, "\n"))
			}
		} else if got := sortedEvents(deliver(t, dir)); got != delivered {
			t.Errorf("%s: %d events delivered, want %d, each once", how, strings.Count(got, "\n"), strings.Count(delivered, "\n"))
		}
		return killed
	})
}

// copyChunks copies those files of the real fluentd's directory.
func copyChunks(t *testing.T, dir string, patterns ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join("../../testdata/fluentd-buffer", pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), readFile(t, f), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// readConf is the configuration that start would write for this match.
func readConf(t *testing.T, match string) []byte {
	t.Helper()
	w := start(t, options{match: match})
	w.stop()
	return readFile(t, filepath.Join(w.dir, "weir.conf"))
}

// TestReplayKilled is TestImportKilled for a replay, of a chunk with an entry that
// is there twice.
func TestReplayKilled(t *testing.T) {
	blocked := t.TempDir()
	if err := os.WriteFile(filepath.Join(blocked, "out"), nil, 0o600); err != nil { // nothing can be delivered
		t.Fatal(err)
	}
	w := start(t, options{dir: blocked, match: noDedupe})
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := c.send("again", fmt.Sprint(i), i*10, i*10+10); err != nil {
			t.Fatal(err)
		}
	}
	c.conn.Close()
	w.kill()
	const name = "chunk.0000000000000001.weir"
	chunk := readFile(t, filepath.Join(blocked, "buffer", name))
	conf := readFile(t, filepath.Join(blocked, "weir.conf"))
	aside := filepath.Join("buffer", name+".damaged")
	args := []string{"buffer", "replay", aside, "-c", "weir.conf"}
	killPoints(t, func(at killPoint, between bool) bool {
		dir := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "buffer"), 0o755),
			os.WriteFile(filepath.Join(dir, aside), chunk, 0o600), os.WriteFile(filepath.Join(dir, "weir.conf"), conf, 0o600)); err != nil {
			t.Fatal(err)
		}
		killed := killedAt(t, at, dir, args...)
		how := fmt.Sprint("killed at ", at)
		if between {
			deliver(t, dir)
			how += " and delivered"
		}
		if there, err := filepath.Glob(filepath.Join(dir, aside)); err != nil {
			t.Fatal(err)
		} else if len(there) > 0 {
			inDir(t, dir, args...)
		}
		events := deliver(t, dir)
		requireAcked(t, events, 50)
		if len(events) != 50 {
			t.Errorf("%s: %d events delivered, want 50", how, len(events))
		}
		return killed
	})
}
