package buffer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// FS is what a Buffer needs of a file system. Names are paths as given to the
// operating system. Tests put an implementation in its place that fails or
// loses power.
type FS interface {
	// MkdirAll is os.MkdirAll.
	MkdirAll(dir string) error
	// ReadDir lists the names in dir in order.
	ReadDir(dir string) ([]string, error)
	// Create makes a new file for reading and writing; it must not exist.
	Create(name string, how Access) (File, error)
	// Open opens a file for reading and writing.
	Open(name string, how Access) (File, error)
	// Direct tells why files in dir cannot be opened with Direct; nil if they can.
	Direct(dir string) error
	// Rename and Remove are durable after SyncDir of their directory.
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
	// Lock takes an exclusive lock that ends with the process; it does not wait.
	Lock(name string) (io.Closer, error)
}

// Access is the way to a file's bytes.
type Access uint8

// The ways.
const (
	// Cached goes through the page cache.
	Cached Access = iota
	// Direct is O_DIRECT (open(2)): offsets, lengths and memory are aligned to
	// BlockSize, and the page cache is passed by.
	Direct
)

// File is an open file of an FS.
type File interface {
	io.ReaderAt
	io.Closer
	// WriteBlocks writes the blocks one after the other from offset off
	// (pwritev(2)). Blocks and offset are aligned to BlockSize.
	WriteBlocks(blocks [][]byte, off int64) error
	// WriteAt writes p at off.
	WriteAt(p []byte, off int64) (int, error)
	// Datasync makes what was written durable (fdatasync(2)).
	Datasync() error
	Truncate(size int64) error
	// Allocate makes the file size bytes long and reserves space for all of them
	// (fallocate(2)); what was not written reads as zeros.
	Allocate(size int64) error
	Size() (int64, error)
}

// osFS is the operating system's file system.
type osFS struct{}

const (
	dirMode  = 0o750
	fileMode = 0o640
)

func (osFS) MkdirAll(dir string) error { return os.MkdirAll(dir, dirMode) }

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (osFS) Create(name string, how Access) (File, error) {
	return openFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, how)
}

func (osFS) Open(name string, how Access) (File, error) { return openFile(name, os.O_RDWR, how) }

func openFile(name string, flags int, how Access) (File, error) {
	if how == Direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(name, flags, fileMode)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Direct writes a block to a file without a name. Only what says that O_DIRECT
// itself is refused counts: other errors will come again where they belong.
func (osFS) Direct(dir string) error {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE|unix.O_DIRECT, fileMode)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) { // no O_TMPFILE
		name := filepath.Join(dir, probeName)
		if f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, fileMode); err == nil {
			err = os.Remove(name)
		} else if rmErr := os.Remove(name); rmErr == nil || errors.Is(rmErr, os.ErrNotExist) {
			// Some file systems make the file before they refuse the flag.
			return refusesDirect(err)
		}
	}
	if err != nil {
		return refusesDirect(err)
	}
	defer f.Close()
	_, err = f.WriteAt(alignedMemory(BlockSize), 0)
	return refusesDirect(err)
}

func refusesDirect(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) Remove(name string) error     { return os.Remove(name) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Lock writes the process id into the file, so that who finds it locked can be
// told by whom.
func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &os.PathError{Op: "flock", Path: name, Err: err}
		}
		holder := make([]byte, 20)
		n, _ := f.ReadAt(holder, 0)
		return nil, &LockedError{Dir: filepath.Dir(name), PID: strings.TrimSpace(string(holder[:n]))}
	}
	// Over the last one's, at the same length: a full disk has no room for more.
	if _, err := fmt.Fprintf(io.NewOffsetWriter(f, 0), "%-18d\n", os.Getpid()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// LockedError says that another process uses a buffer directory.
type LockedError struct {
	Dir string
	PID string // as the holder wrote it, may be empty
}

// Error names the holder and what to do.
func (e *LockedError) Error() string {
	who := "another process"
	if e.PID != "" {
		who = "process " + e.PID
	}
	return fmt.Sprintf("buffer directory %s is in use by %s; stop that one, or give this match a buffer path of its own", e.Dir, who)
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f osFile) Allocate(size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
	}
}

// Datasync also fails for a file that has no name any more: it will be gone when
// it is closed, however durable its blocks are.
func (f osFile) Datasync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			var links uint64
			if links, err = linksOf(int(f.Fd())); err == nil && links == 0 {
				err = unix.ENOENT
			}
			if err == nil {
				return nil
			}
		}
		if err != unix.EINTR {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

// linksOf is how many names a file has. It asks for nothing else: who asks for the
// time of the last change makes the kernel note a finer one with the next write
// (fill_mg_cmtime), and so write the inode with each fdatasync, where without that the
// time, and the inode, changes once a tick.
func linksOf(fd int) (uint64, error) {
	var x unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_NLINK, &x)
	if err == nil {
		return uint64(x.Nlink), nil
	}
	if err != unix.ENOSYS && err != unix.EPERM { // as seccomp(2) filters have it that are older than statx(2)
		return 0, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return uint64(st.Nlink), err
}

// maxIovecs is what one pwritev(2) takes (UIO_MAXIOV is 1024).
const maxIovecs = 512

func (f osFile) WriteBlocks(blocks [][]byte, off int64) error {
	for len(blocks) > 0 {
		batch := blocks[:min(len(blocks), maxIovecs)]
		n, err := unix.Pwritev(int(f.Fd()), batch, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: err}
		}
		if n == 0 {
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: io.ErrShortWrite}
		}
		off += int64(n)
		blocks = advance(blocks, n)
	}
	return nil
}

// advance drops the first n bytes of blocks, without changing what its caller
// holds.
func advance(blocks [][]byte, n int) [][]byte {
	for len(blocks) > 0 && n >= len(blocks[0]) {
		n -= len(blocks[0])
		blocks = blocks[1:]
	}
	if n == 0 {
		return blocks
	}
	rest := append([][]byte(nil), blocks...)
	rest[0] = rest[0][n:]
	return rest
}
