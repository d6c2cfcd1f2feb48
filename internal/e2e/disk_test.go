package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a small ext4 on a loop device, which can be made to fail as a disk does.
type disk struct {
	t    *testing.T
	dev  string // /dev/loopN
	path string // where it is mounted
}

// newDisk makes and mounts one at path, with errors=remount-ro, as Debian mounts its
// root. It returns nil, and says so, where there are no loop devices or no ext4.
func newDisk(t *testing.T, path string) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to mount a disk that fails; run the tests as root (CI does)")
	}
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 128<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s; apt-get install e2fsprogs", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Logf("NO LOOP DEVICES HERE (losetup: %v): the disk does not really fail, strace makes system calls fail instead", err)
		return nil
	}
	d := &disk{t: t, dev: strings.TrimSpace(string(out)), path: path}
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", d.dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", d.dev, err, out)
		}
	})
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.mount(); err != nil {
		t.Logf("NO EXT4 HERE (%v): the disk does not really fail, strace makes system calls fail instead", err)
		return nil
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return d
}

func (d *disk) mount() error {
	return os.NewSyscallError("mount "+d.dev, syscall.Mount(d.dev, d.path, "ext4", 0, "errors=remount-ro"))
}

// readOnly makes ext4 find an error in itself, upon which it becomes read-only under
// open files; a remount by hand would be refused, EBUSY.
func (d *disk) readOnly() {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(d.dev), "trigger_fs_error"), []byte("1"), 0); err != nil {
		d.t.Fatal(err)
	}
}

// dies makes every further call fail with EIO, and what was not made durable is gone
// (EXT4_IOC_SHUTDOWN without a flush of the journal, fs/ext4/ioctl.c).
func (d *disk) dies() {
	d.t.Helper()
	const shutdown, noLogFlush = 0x8004587d, 2
	dir, err := os.Open(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), shutdown, noLogFlush); err != nil {
		d.t.Fatalf("EXT4_IOC_SHUTDOWN: %v", err)
	}
}

// repaired checks and mounts the disk again, which nobody may use.
func (d *disk) repaired() {
	d.t.Helper()
	// What looks at each new file system may use this one for a moment.
	waitFor(d.t, patience, func() error { return syscall.Unmount(d.path, 0) })
	waitFor(d.t, patience, func() error {
		cmd := exec.Command("e2fsck", "-f", "-y", d.dev)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode()&^1 != 0 { // 1: errors were corrected
			return fmt.Errorf("e2fsck: %v: %s", cmd.ProcessState, out)
		}
		return nil
	})
	if err := d.mount(); err != nil {
		d.t.Fatal(err)
	}
}

// TestDiskFails has the disk of the buffer become read-only, or die, under a
// running weir that still has everything to deliver: nothing is acked from then on,
// weir stays alive and says why. Once the disk is repaired and weir started on it,
// every event that was acked is delivered once, also if it is sent again.
func TestDiskFails(t *testing.T) {
	for name, c := range map[string]struct {
		fail   func(*disk)
		inject string // where there is no such disk
		want   string
	}{
		"read-only": {(*disk).readOnly, "inject=pwritev,pwrite64:error=EROFS", "read-only file system"},
		"dead":      {(*disk).dies, "inject=pwritev,pwrite64,fdatasync:error=EIO", "input/output error"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := newDisk(t, filepath.Join(dir, "buffer"))
			dead := filepath.Join(dir, "out") // no output takes anything
			if err := os.WriteFile(dead, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			match := strings.Replace(defaultMatch, "path buffer", "path buffer\n    retry_type periodic\n    retry_wait 100ms\n    retry_forever true", 1)
			o := options{dir: dir, source: "health_grace 100ms", match: match}
			w := start(t, o)
			acked := 0
			send := func(first int) error {
				c, err := dial(w.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.conn.Close()
				return c.send("disk", fmt.Sprintf("id-%d", first), first, first+10)
			}
			for range 5 {
				if err := send(acked); err != nil {
					t.Fatal(err)
				}
				acked += 10
			}
			stop := func() string { return "" }
			if d != nil {
				c.fail(d)
			} else {
				stop = w.traced("-e", "trace=pwritev,pwrite64,fdatasync", "-e", c.inject)
			}
			for range 3 {
				if send(acked) == nil {
					t.Error("acked on a disk that takes nothing")
				}
			}
			waitFor(t, patience, func() error {
				if s := w.snapshot(); s.Ready() || !strings.Contains(fmt.Sprint(s.Problems), c.want) {
					return fmt.Errorf("problems %q, want %q", s.Problems, c.want)
				}
				return nil
			})
			w.conserved()
			stop()
			w.kill()
			if d != nil {
				d.repaired()
			}
			if err := os.Remove(dead); err != nil {
				t.Fatal(err)
			}
			o.addr, o.status = w.addr, w.status
			w = start(t, o)
			for n := 0; n <= acked; n += 10 { // one more than was acked
				if err := send(n); err != nil {
					t.Fatalf("chunk %d of %d, on the repaired disk: %v", n/10, acked/10+1, err)
				}
			}
			requireAll(t, w.delivered(), "disk", acked+10)
			w.stop()
		})
	}
}
