package doctor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/internal/config"
)

// TestHost reads this machine: what is not a file of /proc is there, and what
// the probe has written is gone.
func TestHost(t *testing.T) {
	m := Host()
	dir := t.TempDir()
	fs, err := m.FileSystem(filepath.Join(dir, "not", "made", "yet"))
	if err != nil || fs.Path != dir || fs.Total <= 0 || fs.Type == "" || fs.Device == "" || fs.ReadOnly {
		t.Errorf("%+v, %v", fs, err)
	}
	p, err := m.Probe(t.Context(), filepath.Join(dir, "not", "made", "yet"))
	if err != nil || len(p.Writes) != probeWrites || p.Bandwidth <= 0 || p.Direct == (p.DirectError != "") {
		t.Errorf("%+v, %v", p, err)
	}
	for _, w := range p.Writes {
		if w <= 0 {
			t.Errorf("a write took %v", w)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Probe(cancelled, dir); err == nil {
		t.Error("the probe went on after its context had ended")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Probe(t.Context(), file); err == nil {
		t.Error("no error for a directory that is a file")
	}
	if _, err := m.Clock(); err != nil {
		t.Error(err)
	}
	if _, err := m.Sockets(); err != nil {
		t.Error(err)
	}
	// Not allowed for everybody; it must come back in either case.
	done := make(chan error, 1)
	go func() { _, err := m.KernelLog(); done <- err }()
	select {
	case err := <-done:
		if err != nil && !strings.Contains(err.Error(), "/dev/kmsg") {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("reading the kernel log waits for more of it")
	}
}

// TestHostAll makes all checks of this machine: none fails for a reason of the
// doctor's own.
func TestHostAll(t *testing.T) {
	text := "<source>\n@type forward\nbind 127.0.0.1\n</source>\n<match **>\n@type null\n<buffer>\npath " + t.TempDir() + "\n</buffer>\n</match>\n"
	c, err := config.Parse("weir.conf", text, config.OSEnv())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Run(t.Context(), Host(), Target{Config: c}) {
		if strings.HasPrefix(f.Found, "could not be checked") || f.Doc != "docs/doctor.md#"+f.Check || f.Severity.rank() < 0 {
			t.Errorf("%+v", f)
		}
	}
}
