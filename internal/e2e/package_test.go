package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackages builds the deb and the rpm, installs the deb with dpkg below a
// directory, lets systemd read the units there, and removes it again.
func TestPackages(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to install a package; run the tests as root (CI does)")
	}
	repo := copyRepo(t)
	run(t, "make", "-C", repo, "packages", "VERSION=v1.2.3-4-gabcdef0")
	one := func(pattern string) string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(repo, "bin", pattern))
		if err != nil || len(files) != 1 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		return files[0]
	}
	deb, rpm := one("*.deb"), one("*.rpm")

	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg/updates", "var/lib/dpkg/info", "var/lib/dpkg/triggers"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"status", "available"} {
		if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg", file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// There is no shell below root: the scripts run outside, and look at DPKG_ROOT.
	dpkg := func(args ...string) string {
		t.Helper()
		return run(t, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-not-root", "--log=/dev/null"}, args...)...)
	}
	has := func(want bool, paths ...string) {
		t.Helper()
		for _, p := range paths {
			if _, err := os.Stat(filepath.Join(root, p)); (err == nil) != want {
				t.Errorf("%s: there %v, want %v", p, err == nil, want)
			}
		}
	}
	data := filepath.Join(root, "var/lib/weir/chunk.1.weir")
	conf := filepath.Join(root, "etc/weir/weir.conf")

	dpkg("--install", deb)
	files := []string{"usr/bin/weir", "usr/lib/systemd/system/weir.service", "usr/lib/systemd/system/weir.socket", "usr/share/man/man1/weir.1",
		"usr/share/man/man1/weir-doctor.1", "usr/share/bash-completion/completions/weir", "usr/share/doc/weir/copyright", "usr/share/doc/weir/docs/doctor.md"}
	has(true, append(files, "etc/weir/weir.conf")...)
	if out := run(t, filepath.Join(root, "usr/bin/weir"), "version"); !strings.HasPrefix(out, "weir v1.2.3-4-gabcdef0\n") {
		t.Errorf("weir version: %s", out)
	}
	run(t, filepath.Join(root, "usr/bin/weir"), "check", "-c", conf)
	// ExecReload is of another package.
	kill := filepath.Join(root, "bin/kill")
	if err := os.MkdirAll(filepath.Dir(kill), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kill, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	out := run(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "--root="+root, "weir.service", "weir.socket")
	if strings.Contains(out, "weir") {
		t.Errorf("systemd-analyze verify: %s", out)
	}

	// What the operator has changed, and what weir has stored, outlives an upgrade
	// and a removal.
	if err := os.WriteFile(conf, []byte("# changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(data), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(data, []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	dpkg("--install", deb)
	if b, err := os.ReadFile(conf); err != nil || string(b) != "# changed\n" {
		t.Errorf("the configuration after an upgrade: %q, %v", b, err)
	}
	dpkg("--remove", "weir")
	has(false, files...)
	has(true, "etc/weir/weir.conf", "var/lib/weir/chunk.1.weir")
	dpkg("--purge", "weir")
	has(false, "etc/weir/weir.conf")
	has(true, "var/lib/weir/chunk.1.weir")

	list := run(t, "rpm", "-qp", "--list", rpm)
	for _, f := range append(files, "etc/weir/weir.conf") {
		if !strings.Contains(list, "/"+f+"\n") {
			t.Errorf("the rpm lacks %s", f)
		}
	}
	if got := run(t, "rpm", "-qp", "--queryformat", "%{NAME} %{VERSION} %{LICENSE}", rpm); got != "weir 1.2.3.4.gabcdef0 Apache-2.0" {
		t.Errorf("the rpm is %q", got)
	}
	if got := run(t, "rpm", "-qp", "--configfiles", rpm); strings.TrimSpace(got) != "/etc/weir/weir.conf" {
		t.Errorf("configuration of the rpm: %q", got)
	}
	for _, script := range []string{"postinstall.sh", "preremove.sh", "postremove.sh"} {
		if out, err := exec.Command("sh", "-n", filepath.Join(repo, "deploy/scripts", script)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}
