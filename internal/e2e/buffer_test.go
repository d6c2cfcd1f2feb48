package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"weir/buffer"
)

// TestBufferCommands runs testdata/script/buffer.txt on a buffer directory that
// fluentd 1.16 has left behind.
func TestBufferCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/script/buffer.txt"},
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(binary)+":/usr/bin:/bin")
			fluentdBuffer(t, filepath.Join(env.WorkDir, "fluentd"))
			fluentdBuffer(t, filepath.Join(env.WorkDir, "original"))
			const small = "buffer.b660fc6ed5b0f44b930716608dfaedf6d.log"
			chunk := readFile(t, filepath.Join(env.WorkDir, "original", small))
			write := func(name string, p []byte) {
				path := filepath.Join(env.WorkDir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, p, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("v012/buffer.app%2Fweb.b5143dd9ba1c97b50.log", chunk)
			write("v012/buffer.b5143dd9ba1c97b51.log", chunk)
			meta := readFile(t, filepath.Join(env.WorkDir, "original", small+".meta"))
			write("broken/"+small, chunk[:len(chunk)-5])
			write("broken/"+small+".meta", meta)
			write("broken/buffer.q3333.log", chunk)
			write("broken/buffer.q3333.log.meta", meta[:20])
			write("broken/buffer.app.b1111.log", nil)
			write("broken/buffer.app.b2222.log", []byte("2026-11-25T12:00:00Z\tapp\t{}\n"))
			return os.Rename(filepath.Join(env.WorkDir, "broken/buffer.app.b1111.log"), filepath.Join(env.WorkDir, "broken/buffer.b1111.log"))
		},
	})
}

// fluentdBuffer copies the directory of a real fluentd.
func fluentdBuffer(t *testing.T, dir string) {
	t.Helper()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/fluentd-buffer")); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestImportedIsDelivered: what was imported into the buffer of a configuration
// is delivered by the weir that starts on it, and cannot be imported beside it.
func TestImportedIsDelivered(t *testing.T) {
	w := start(t, options{})
	fluentdBuffer(t, filepath.Join(w.dir, "fluentd"))
	conf := filepath.Join(w.dir, "weir.conf")
	import_ := func() (string, error) {
		cmd := exec.Command(binary, "buffer", "import", "fluentd", "-c", conf)
		cmd.Dir = w.dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := import_(); err == nil || !strings.Contains(out, fmt.Sprintf("in use by process %d", w.cmd.Process.Pid)) {
		t.Errorf("import beside a running weir: %v\n%s", err, out)
	}
	w.stop()
	if out, err := import_(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w = start(t, options{dir: w.dir})
	if n := len(w.delivered()); n != 1800 {
		t.Errorf("%d events delivered of 1800 imported", n)
	}
	w.stop()
}

// TestInspectBesideRunningWeir: ls, cat and verify read what a running weir has
// stored and disturb nobody.
func TestInspectBesideRunningWeir(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "out"), nil, 0o600); err != nil { // nothing can be delivered
		t.Fatal(err)
	}
	w := start(t, options{dir: dir})
	c, err := dial(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	for i := range 20 {
		if err := c.send("look", fmt.Sprint(i), i*10, i*10+10); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(w.bufferCLI("cat"), "\n"); n != i*10+10 {
			t.Fatalf("cat shows %d events of %d", n, i*10+10)
		}
	}
	if text := w.bufferCLI("ls"); !strings.Contains(text, fmt.Sprintf("in use by process %d", w.cmd.Process.Pid)) {
		t.Errorf("ls does not name the process:\n%s", text)
	}
	if text := w.bufferCLI("verify"); !strings.Contains(text, "sound, 20 entries with 200 events") {
		t.Errorf("verify: %s", text)
	}
	if n := strings.Count(w.bufferCLI("cat", "--undelivered", "out"), "\n"); n != 200 {
		t.Errorf("%d events undelivered", n)
	}
	w.kill()

	// A byte flipped on disk costs one entry, and is told.
	chunk := filepath.Join(dir, "buffer", "chunk.0000000000000001.weir")
	p := readFile(t, chunk)
	at := bytes.LastIndex(p, []byte("look")) + 20
	p[at] ^= 0xff
	if err := os.WriteFile(chunk, p, 0o600); err != nil {
		t.Fatal(err)
	}
	// As a chunk that is complete: in the newest, its last commit would be torn.
	aside := chunk + ".damaged"
	if err := os.Rename(chunk, aside); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "buffer", "verify", "--json", filepath.Join(dir, "buffer"))
	out, err := cmd.Output()
	var found []struct {
		Events     int
		LostEvents int `json:"lost_events"`
		Damage     []struct{ Offset int64 }
	}
	if jsonErr := json.Unmarshal(out, &found); err == nil || cmd.ProcessState.ExitCode() != 1 || jsonErr != nil ||
		len(found) != 1 || found[0].Events != 190 || found[0].LostEvents != 10 || len(found[0].Damage) != 1 {
		t.Errorf("verify of a damaged chunk: %v, %v\n%s", err, jsonErr, out)
	}

	// What can be read of it comes again.
	if out := run(t, binary, "buffer", "replay", aside); !strings.Contains(out, "190 events in 19 entries put into the buffer again, 10 events cannot be read") {
		t.Errorf("replay: %s", out)
	}
	if _, err := os.Stat(aside); !os.IsNotExist(err) {
		t.Errorf("the replayed chunk is still there: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	w = start(t, options{dir: dir})
	if n := len(w.delivered()); n != 190 {
		t.Errorf("%d events delivered of 190 replayed", n)
	}
	w.stop()
}

// stored is a buffer.Waiter.
type stored chan error

func (s stored) Done(err error) { s <- err }

// TestCatGoesOn: what cannot be decompressed is told with its place, and costs
// nothing else.
func TestCatGoesOn(t *testing.T) {
	dir := t.TempDir()
	b, err := buffer.Open(t.Context(), buffer.Options{Dir: dir, Cursors: []string{"out"}})
	if err != nil {
		t.Fatal(err)
	}
	event := []byte("\x92\x01\x81\xa1n\x07")
	var zip bytes.Buffer
	w := gzip.NewWriter(&zip)
	w.Write(bytes.Repeat(event, 3))
	w.Close()
	put := func(tag string, events int, payload []byte, flags buffer.Flags) {
		done := make(stored, 1)
		if err := b.Append(t.Context(), &buffer.Entry{Tag: []byte(tag), Events: events, Payload: [][]byte{payload}, Flags: flags}, done); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	put("first", 1, event, 0)
	put("cut", 3, zip.Bytes()[:zip.Len()-8], buffer.FlagGzip)
	put("noise", 2, []byte("this is no gzip at all"), buffer.FlagGzip)
	put("zip", 3, zip.Bytes(), buffer.FlagGzip)
	put("last", 1, event, 0)
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, arg := range []string{dir, filepath.Join(dir, "chunk.0000000000000001.weir")} {
		var errs bytes.Buffer
		cmd := exec.Command(binary, "buffer", "cat", arg)
		cmd.Stderr = &errs
		out, _ := cmd.Output()
		if code := cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("exit code %d", code)
		}
		for tag, n := range map[string]int{"first": 1, "noise": 0, "zip": 3, "last": 1} {
			if got := strings.Count(string(out), fmt.Sprintf(`{"tag":%q,"time":1`, tag)); got != n {
				t.Errorf("%d events of %s, want %d:\n%s", got, tag, n, out)
			}
		}
		for _, want := range []string{
			`entry of tag "cut" in chunk 0000000000000001 at byte 8192: only 0 of its 3 events can be read: at byte 24 of 24: unexpected EOF`,
			`entry of tag "noise" in chunk 0000000000000001 at byte 12288: only 0 of its 2 events can be read: at byte 0 of 22: invalid gzip header`,
			"2 entries cannot be read",
		} {
			if !strings.Contains(errs.String(), want) {
				t.Errorf("not told: %s\n%s", want, &errs)
			}
		}
	}
}

// bufferCLI runs weir buffer on the server's buffer.
func (w *weir) bufferCLI(args ...string) string {
	w.t.Helper()
	return run(w.t, binary, append(append([]string{"buffer"}, args...), filepath.Join(w.dir, "buffer"))...)
}
