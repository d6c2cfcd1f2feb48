package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"weir/internal/load"
)

// TestLoadCommand runs testdata/script/load.txt: flags, exit codes, messages.
func TestLoadCommand(t *testing.T) {
	w := start(t, options{})
	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/script/load.txt"},
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(binary)+":/usr/bin:/bin")
			env.Setenv("ADDR", w.addr)
			env.Setenv("OUT", filepath.Join(w.dir, "out"))
			env.Setenv("PID", fmt.Sprint(w.cmd.Process.Pid))
			return nil
		},
	})
}

// TestLoadTLS uses TLS, the handshake and users.
func TestLoadTLS(t *testing.T) {
	w := start(t, options{source: `
  <transport tls>
    insecure true
  </transport>
  <security>
    self_hostname receiver
    shared_key key
    user_auth true
    <user>
      username u
      password p
    </user>
  </security>`})
	common := []string{"load", w.addr, "--count", "2000", "--tls", "--shared-key", "key"}
	out := run(t, binary, append(common, "--insecure", "--user", "u:p")...)
	if !strings.Contains(out, "2000 events in 2 chunks; 0 chunks not acked") {
		t.Error(out)
	}
	for want, args := range map[string][]string{
		"certificate":            {"--user", "u:p"},
		"username/password mism": {"--insecure", "--user", "u:wrong"},
	} {
		out, err := exec.Command(binary, append(common, args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}

// TestLoadSurvivesKill kills weir under load and starts it again: what was not
// acked is sent again, and nothing that was acked is lost.
func TestLoadSurvivesKill(t *testing.T) {
	w := start(t, options{})
	type outcome struct {
		rep *load.Report
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		rep, err := load.Run(t.Context(), load.Options{Address: w.addr, Mode: "forward", Events: 20, Size: 277, Tag: "killed", Tags: 1, Ack: true,
			AckTimeout: patience, Connections: 3, KeepAlive: true, Window: 2, Heartbeat: "none", Rate: 2000, Duration: 4 * time.Second,
			Verify: []string{filepath.Join(w.dir, "out", "*")}, VerifyWait: patience})
		done <- outcome{rep, err}
	}()
	waitFor(t, patience, func() error {
		files, err := filepath.Glob(filepath.Join(w.dir, "out", "*")) // half a line may be in them
		if err == nil && len(files) == 0 {
			err = fmt.Errorf("nothing came")
		}
		return err
	})
	w.kill()
	start(t, options{dir: w.dir, addr: w.addr})
	o := <-done
	if o.rep == nil || o.rep.Verify == nil {
		t.Fatal(o.err)
	}
	text, err := json.Marshal(o.rep)
	if err != nil {
		t.Fatal(err)
	}
	if o.rep.Verify.Lost > 0 || o.rep.UnackedChunks > 0 || o.rep.Errors == 0 {
		t.Errorf("after a kill: %s", text)
	}
}

// TestLoadInterrupted: at Ctrl-C the load ends as if its time were up, and reports.
func TestLoadInterrupted(t *testing.T) {
	w := start(t, options{})
	var out, progress bytes.Buffer
	cmd := exec.Command(binary, "load", w.addr, "--duration", "1h", "--events", "10", "--rate", "5000", "--progress", "--json")
	cmd.Stdout, cmd.Stderr = &out, &progress
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, patience, func() error {
		files, err := filepath.Glob(filepath.Join(w.dir, "out", "load*"))
		if err == nil && len(files) == 0 {
			err = fmt.Errorf("nothing came")
		}
		return err
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, &progress)
	}
	var rep load.Report
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	if rep.Events == 0 || rep.AckedEvents != rep.Events || rep.UnackedChunks != 0 {
		t.Errorf("%+v", rep)
	}
}
