package e2e

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"weir/internal/testns"
)

// TestREADME runs every command of the README in a copy of the repository, in a
// network namespace where the default ports are free.
func TestREADME(t *testing.T) {
	ns := testns.New(t, 4096)
	repo := copyRepo(t)
	commands := readmeCommands(t)
	seen := map[string]bool{}
	env := append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH"))
	command := func(line string) *exec.Cmd {
		cmd := exec.Command("bash", "-euo", "pipefail", "-c", line)
		cmd.Dir, cmd.Env = repo, env
		return cmd
	}
	var log syncBuffer
	for _, line := range commands {
		seen[line] = true
		switch line {
		case "make test":
			continue // which runs this
		case "go run ./cmd/weir":
			cmd := command("exec " + line)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // go run and weir
			cmd.Stdout, cmd.Stderr = &log, &log
			if err := ns.Do(cmd.Start); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
				cmd.Wait()
			})
			waitFor(t, patience, func() error {
				if !strings.Contains(log.String(), "status endpoint") {
					return fmt.Errorf("not started: %s", &log)
				}
				return nil
			})
			continue
		case "cat weir-data/logs/app.hello.*": // "a second later"
			waitFor(t, patience, func() error {
				files, _ := filepath.Glob(filepath.Join(repo, "weir-data/logs/app.hello.*"))
				for _, f := range files { // a new file is empty for a moment
					if strings.HasSuffix(string(readFile(t, f)), "\n") {
						return nil
					}
				}
				return fmt.Errorf("nothing there yet: %s", &log)
			})
		}
		cmd := command(line)
		var out []byte
		err := ns.Do(func() (err error) {
			out, err = cmd.CombinedOutput()
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		for start, want := range map[string]string{
			"cat ":                      `{"from":"python"}`,
			"go run ./cmd/weir status":  "accept",
			"root/usr/bin/weir check -": "total_limit_size 64g",
		} {
			if strings.HasPrefix(line, start) && !strings.Contains(string(out), want) {
				t.Errorf("%s: lacks %q:\n%s", line, want, out)
			}
		}
	}
	for _, must := range []string{"go run ./cmd/weir", "make test"} {
		if !seen[must] {
			t.Errorf("the README does not have %q", must)
		}
	}
}

// readmeCommands are the lines of the README's sh blocks.
func readmeCommands(t *testing.T) (lines []string) {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```sh"
		case inside && line != "":
			lines = append(lines, line)
		}
	}
	return lines
}

// copyRepo copies what a clone would have. Files that go meanwhile are those of
// other packages' tests.
func copyRepo(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "weir")
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	skip := map[string]bool{".git": true, "bin": true, "weir-data": true, "node_modules": true}
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if skip[d.Name()] {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		if err := copyFile(filepath.Join(to, rel), path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fi.Mode())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
