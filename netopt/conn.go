package netopt

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is an accepted connection. Its descriptor gets into the runtime's poller only
// once somebody waits on it, by Read, Write, a deadline, or Read and Write of its
// syscall.RawConn: who waits by other means, such as an epoll set of his own, pays
// nothing for that.
type Conn struct {
	local  net.Addr
	remote net.Addr

	mu   sync.RWMutex    // held while fd is used without file
	fd   int             // -1 once closed
	file *os.File        // owns fd; nil until somebody waits
	raw  syscall.RawConn // of file
}

var _ interface {
	net.Conn
	syscall.Conn
} = (*Conn)(nil)

func newConn(fd int, remote, listener net.Addr) *Conn {
	return &Conn{fd: fd, local: listener, remote: remote}
}

// polled is the connection in the runtime's poller. It wraps the descriptor without
// the system calls that net.FileConn makes to find out what accept(2) has told.
func (c *Conn) polled() (*os.File, syscall.RawConn, error) {
	c.mu.RLock()
	fd, file, raw := c.fd, c.file, c.raw
	c.mu.RUnlock()
	if fd >= 0 && file != nil {
		return file, raw, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil, nil, net.ErrClosed
	}
	if c.file == nil {
		c.file = os.NewFile(uintptr(c.fd), "connection")
		var err error
		if c.raw, err = c.file.SyscallConn(); err != nil {
			return nil, nil, unwrap(err)
		}
	}
	return c.file, c.raw, nil
}

// Read reads into p; see net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	file, _, err := c.polled()
	if err != nil {
		return 0, err
	}
	n, err := file.Read(p)
	return n, c.failure(err)
}

// Write writes p; see net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	file, _, err := c.polled()
	if err != nil {
		return 0, err
	}
	n, err := file.Write(p)
	return n, c.failure(err)
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	fd, file := c.fd, c.file
	c.fd = -1
	c.mu.Unlock()
	switch {
	case fd < 0:
		return net.ErrClosed
	case file != nil:
		return unwrap(file.Close())
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

// CloseWrite ends the sending direction (shutdown(2)).
func (c *Conn) CloseWrite() error {
	var errno error
	err := (*rawConn)(c).Control(func(fd uintptr) { errno = os.NewSyscallError("shutdown", unix.Shutdown(int(fd), unix.SHUT_WR)) })
	return errors.Join(err, errno)
}

// LocalAddr returns the listener's address, which is a wildcard where the
// listener is bound to one.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the sender's address.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines; see net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline((*os.File).SetDeadline, t) }

// SetReadDeadline sets the deadline of Read; see net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.setDeadline((*os.File).SetReadDeadline, t)
}

// SetWriteDeadline sets the deadline of Write; see net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline((*os.File).SetWriteDeadline, t)
}

func (c *Conn) setDeadline(set func(*os.File, time.Time) error, t time.Time) error {
	file, _, err := c.polled()
	if err != nil {
		return err
	}
	return c.failure(set(file, t))
}

// SyscallConn gives access to the descriptor, for readiness and options.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return (*rawConn)(c), nil }

// rawConn is a Conn as a syscall.RawConn.
type rawConn Conn

// Control implements syscall.RawConn.
func (r *rawConn) Control(f func(fd uintptr)) error {
	c := (*Conn)(r)
	c.mu.RLock()
	if c.file == nil {
		defer c.mu.RUnlock() // Close waits, or the descriptor might be another one's
		if c.fd < 0 {
			return net.ErrClosed
		}
		f(uintptr(c.fd))
		return nil
	}
	raw := c.raw
	c.mu.RUnlock()
	return c.failure(raw.Control(f))
}

// Read implements syscall.RawConn.
func (r *rawConn) Read(f func(fd uintptr) (done bool)) error {
	_, raw, err := (*Conn)(r).polled()
	if err != nil {
		return err
	}
	return (*Conn)(r).failure(raw.Read(f))
}

// Write implements syscall.RawConn.
func (r *rawConn) Write(f func(fd uintptr) (done bool)) error {
	_, raw, err := (*Conn)(r).polled()
	if err != nil {
		return err
	}
	return (*Conn)(r).failure(raw.Write(f))
}

// failure is unwrap for what fails once the connection is closed, for which the
// file has errors of its own.
func (c *Conn) failure(err error) error {
	if err == nil {
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.fd < 0 {
		return net.ErrClosed
	}
	return unwrap(err)
}

// unwrap turns the file's errors into those of a connection.
func unwrap(err error) error {
	var pathErr *os.PathError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return net.ErrClosed
	case errors.As(err, &pathErr):
		if errno, ok := pathErr.Err.(syscall.Errno); ok {
			return os.NewSyscallError(pathErr.Op, errno)
		}
		return pathErr.Err
	}
	return err
}
