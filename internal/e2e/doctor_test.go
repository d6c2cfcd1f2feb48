package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"weir/internal/doctor"
	"weir/internal/status"
	"weir/internal/testns"
)

// TestCommandLine runs the scripts of the command line.
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "cli"),
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(binary)+string(os.PathListSeparator)+e.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": exitCode},
	})
}

// exitCode is the command code N COMMAND…: it runs weir and requires that exit
// code.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// networkChecks are those that a network namespace of its own decides.
var networkChecks = []string{"port-in-use", "backlog", "accept-queue", "syncookies", "max-syn-backlog", "synack-retries",
	"abort-on-overflow", "tw-reuse", "migrate-req", "port-range", "listen-overflows", "nic", "udp"}

// diagnose runs weir doctor in the namespace and returns what it found of the
// network that is not OK.
func diagnose(t *testing.T, ns *testns.Namespace, args ...string) (bad []doctor.Finding) {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"doctor", "--json"}, args...)...)
	cmd.Dir = t.TempDir()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = cmd.Output()
		return err
	})
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var got struct {
		Worst    doctor.Severity
		Findings []doctor.Finding
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	code := map[doctor.Severity]int{doctor.OK: 0, doctor.Note: 0, doctor.Warning: 1, doctor.Error: 2}[got.Worst]
	if cmd.ProcessState.ExitCode() != code {
		t.Errorf("exit code %d, the worst is %s", cmd.ProcessState.ExitCode(), got.Worst)
	}
	for _, f := range got.Findings {
		if f.Severity != doctor.OK && slices.Contains(networkChecks, f.Check) {
			bad = append(bad, f)
		}
	}
	return bad
}

// TestDoctorFindsSomaxconn: in a namespace whose somaxconn is 128 the doctor
// finds that and nothing else of the network; what --sysctl prints mends it, and
// a reload makes it effective. The running weir finds the same by itself.
func TestDoctorFindsSomaxconn(t *testing.T) {
	ns := newNetns(t, 128)
	w := start(t, options{run: ns.Do, client: ns.client()})
	conf := filepath.Join(w.dir, "weir.conf")
	bad := diagnose(t, ns.Namespace, "-c", conf)
	if len(bad) != 1 || bad[0].Check != "backlog" || bad[0].Severity != doctor.Warning || !strings.Contains(bad[0].Found, "128") || !strings.Contains(bad[0].Mend, "somaxconn=4096") {
		t.Errorf("somaxconn 128: %+v", bad)
	}
	own := func(want int) {
		t.Helper()
		waitFor(t, patience, func() error {
			var s status.Snapshot
			if err := json.Unmarshal([]byte(ns.get(t, "http://"+w.status+"/api/queues.json")), &s); err != nil {
				return err
			}
			n := 0
			for _, f := range s.Findings {
				if f.Check == "backlog" {
					n++
				}
			}
			if n != want {
				return fmt.Errorf("findings %+v, want %d of the backlog", s.Findings, want)
			}
			return nil
		})
	}
	own(1)
	logged := func(want string) {
		t.Helper()
		waitFor(t, patience, func() error {
			for line := range strings.Lines(w.log.String()) {
				if strings.Contains(line, want) && strings.Contains(line, `"check":"backlog"`) {
					return nil
				}
			}
			return fmt.Errorf("the log lacks %q of the backlog", want)
		})
	}
	logged(`"found on this machine"`)

	var file []byte
	if err := ns.Do(func() (err error) {
		file, err = exec.Command(binary, "doctor", "-c", conf, "--sysctl").Output()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	set := 0
	for line := range strings.Lines(string(file)) {
		name, value, isSet := strings.Cut(strings.TrimSpace(line), " = ")
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		if !isSet {
			t.Fatalf("not a line of sysctl.d(5): %q", line)
		}
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.HasPrefix(name, "net.core.somaxconn") || strings.HasPrefix(name, "net.ipv4.") { // those of a namespace
			set++
			if err := ns.Do(func() error { return os.WriteFile(path, []byte(value), 0o644) }); err != nil {
				t.Errorf("%s = %s: %v", name, value, err)
			}
		}
	}
	if set < 3 {
		t.Fatalf("%d values to set:\n%s", set, file)
	}
	bad = diagnose(t, ns.Namespace, "-c", conf)
	if len(bad) != 1 || bad[0].Check != "backlog" || !strings.Contains(bad[0].Found, "4096 now") {
		t.Errorf("before the reload: %+v", bad)
	}
	w.signal(syscall.SIGHUP)
	own(0)
	logged(`"no longer found on this machine"`)
	if bad = diagnose(t, ns.Namespace, "-c", conf); len(bad) != 0 {
		t.Errorf("after the reload: %+v", bad)
	}
	w.stop()
}

// TestDoctorFindsFaults breaks one thing after the other in a namespace.
func TestDoctorFindsFaults(t *testing.T) {
	ns := newNetns(t, 4096)
	conf := filepath.Join(t.TempDir(), "weir.conf")
	if err := os.WriteFile(conf, []byte("<source>\n@type forward\nbind 127.0.0.1\n</source>\n<match **>\n@type null\n</match>\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sysctl := func(name, value string) {
		t.Helper()
		if err := ns.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if bad := diagnose(t, ns.Namespace, "-c", conf); len(bad) != 0 {
		t.Errorf("nothing is broken: %+v", bad)
	}
	for _, c := range []struct{ name, value, restore, check string }{
		{"tcp_syncookies", "2", "1", "syncookies"},
		{"tcp_abort_on_overflow", "1", "0", "abort-on-overflow"},
		{"tcp_synack_retries", "1", "5", "synack-retries"},
		{"ip_local_port_range", "20000 60999", "32768 60999", "port-range"},
	} {
		sysctl(c.name, c.value)
		bad := diagnose(t, ns.Namespace, "-c", conf)
		if len(bad) != 1 || bad[0].Check != c.check {
			t.Errorf("%s %s: %+v", c.name, c.value, bad)
		}
		sysctl(c.name, c.restore)
	}
	// Another process has the port: this one.
	if err := ns.Do(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:24224")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	bad := diagnose(t, ns.Namespace, "-c", conf)
	if len(bad) != 1 || bad[0].Check != "port-in-use" || !strings.Contains(bad[0].Found, fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("the port is taken: %+v", bad)
	}
}
