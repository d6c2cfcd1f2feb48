package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weir/netopt"
)

// Machine is what the checks see of a machine. Host is the one that runs; tests
// make good and bad ones.
type Machine struct {
	// Root is the file system from its root: proc, sys, etc, and what the
	// configuration names. It should know fs.ReadLinkFS.
	Root fs.FS
	// PID is the process that asks; it stands for weir where no weir runs.
	PID int
	// CPUs is the number of logical processors.
	CPUs int
	Now  time.Time
	// Sockets lists the listening TCP sockets of the network namespace.
	Sockets func() ([]netopt.ListenSocket, error)
	// KernelLog returns the kernel's messages, oldest first.
	KernelLog func() ([]string, error)
	// Clock reads the state of the system's clock.
	Clock func() (Clock, error)
	// FileSystem describes the one that holds path, or that would hold it.
	FileSystem func(path string) (FileSystem, error)
	// Probe writes to the file system that holds dir and takes the time.
	Probe func(ctx context.Context, dir string) (Probe, error)
}

// Clock is the state of the system's clock (adjtimex(2)).
type Clock struct {
	// Synchronised: a time service keeps it (no STA_UNSYNC).
	Synchronised bool
	// MaxError is the kernel's bound of the error.
	MaxError time.Duration
	// Stepped is by how much the clock was set, rather than slewed, since Since;
	// zero if nothing has watched it.
	Stepped time.Duration
	Since   time.Time
}

// FileSystem is what statfs(2) tells. Sizes are bytes.
type FileSystem struct {
	// Type is its name, such as ext4, or its magic number.
	Type string
	// Device is equal for paths on one file system.
	Device string
	// Path is the part of the asked path that exists.
	Path        string
	Total, Free int64 // Free is what an unprivileged process gets
	// Files is the number of inodes; 0 where the file system has no such limit.
	Files, FilesFree int64
	ReadOnly         bool
}

// Probe is the outcome of a measurement.
type Probe struct {
	// Direct tells whether O_DIRECT works; DirectError is why not.
	Direct      bool
	DirectError string
	// Writes are the times of single writes of 4 KiB with fdatasync(2).
	Writes []time.Duration
	// Bandwidth is bytes a second of sequential writes of 1 MiB.
	Bandwidth float64
}

// Host is the machine that this process runs on.
func Host() *Machine {
	return &Machine{
		Root: os.DirFS("/"), PID: os.Getpid(), CPUs: runtime.NumCPU(), Now: time.Now(),
		Sockets: netopt.ListenSockets, KernelLog: kernelLog, Clock: clock, FileSystem: fileSystem, Probe: probe,
	}
}

// kernelLog reads /dev/kmsg without waiting (Documentation/ABI/testing/dev-kmsg).
func kernelLog() ([]string, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/kmsg", Err: err}
	}
	defer unix.Close(fd)
	var lines []string
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, record)
		switch {
		case err == unix.EAGAIN:
			return lines, nil
		case err == unix.EPIPE || err == unix.EINTR: // overwritten meanwhile
			continue
		case err != nil:
			return lines, &os.PathError{Op: "read", Path: "/dev/kmsg", Err: err}
		case n == 0:
			return lines, nil
		}
		_, text, _ := strings.Cut(string(record[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		lines = append(lines, text)
	}
}

func clock() (Clock, error) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return Clock{}, os.NewSyscallError("adjtimex", err)
	}
	return Clock{Synchronised: t.Status&unix.STA_UNSYNC == 0, MaxError: time.Duration(t.Maxerror) * time.Microsecond}, nil
}

// fileSystemNames are the magic numbers of statfs(2) that matter to checks, and
// those that are usual.
var fileSystemNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", 0x2fc12fc1: "zfs", unix.F2FS_SUPER_MAGIC: "f2fs",
	unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.NFS_SUPER_MAGIC: "nfs", 0xff534d42: "cifs", unix.SMB2_SUPER_MAGIC: "cifs", unix.FUSE_SUPER_MAGIC: "fuse", unix.V9FS_MAGIC: "9p", 0x00c36400: "ceph",
}

// existing is path or the nearest parent that is there.
func existing(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return path, err
		}
		path = filepath.Dir(path)
	}
}

func fileSystem(path string) (FileSystem, error) {
	path, err := existing(path)
	if err != nil {
		return FileSystem{}, err
	}
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return FileSystem{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return FileSystem{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	name := fileSystemNames[int64(s.Type)]
	if name == "" {
		name = fmt.Sprintf("%#x", s.Type)
	}
	return FileSystem{Type: name, Device: fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), Path: path,
		Total: int64(s.Blocks) * s.Bsize, Free: int64(s.Bavail) * s.Bsize, Files: int64(s.Files), FilesFree: int64(s.Ffree),
		ReadOnly: s.Flags&unix.ST_RDONLY != 0}, nil
}

const (
	probeWrites = 16
	probeBlock  = 4 << 10
	probeChunk  = 1 << 20
	probeChunks = 8
)

// probe writes a small file beside the chunks, with O_DIRECT where that works,
// and removes it.
func probe(ctx context.Context, dir string) (p Probe, err error) {
	dir, err = existing(dir)
	if err != nil {
		return p, err
	}
	f, err := os.CreateTemp(dir, ".weir-doctor-*")
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	// mmap gives memory that is aligned as O_DIRECT wants it.
	block, err := unix.Mmap(-1, 0, probeChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return p, os.NewSyscallError("mmap", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(block)) }()
	fd, directErr := unix.Open(f.Name(), unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if directErr == nil {
		if _, directErr = unix.Pwrite(fd, block[:probeBlock], 0); directErr != nil {
			unix.Close(fd)
		}
	}
	if directErr != nil {
		p.DirectError = directErr.Error()
		fd = int(f.Fd())
	} else {
		p.Direct = true
		defer unix.Close(fd)
	}
	write := func(size, offset int) (time.Duration, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		start := time.Now()
		if _, err := unix.Pwrite(fd, block[:size], int64(offset)); err != nil {
			return 0, &os.PathError{Op: "pwrite", Path: f.Name(), Err: err}
		}
		if err := unix.Fdatasync(fd); err != nil {
			return 0, &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return time.Since(start), nil
	}
	// Allocated first, as weir's chunks are.
	var total time.Duration
	for i := range probeChunks {
		took, err := write(probeChunk, i*probeChunk)
		if err != nil {
			return p, err
		}
		total += took
	}
	p.Bandwidth = probeChunks * probeChunk / total.Seconds()
	for i := range probeWrites {
		took, err := write(probeBlock, i*probeBlock)
		if err != nil {
			return p, err
		}
		p.Writes = append(p.Writes, took)
	}
	return p, nil
}
