package netopt

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is an accepted connection. It wraps the descriptor once, without the
// system calls that net.FileConn makes to find out what accept(2) has told.
type Conn struct {
	file   *os.File
	local  net.Addr
	remote net.Addr
}

var _ interface {
	net.Conn
	syscall.Conn
} = (*Conn)(nil)

func newConn(fd int, remote, listener net.Addr) *Conn {
	return &Conn{file: os.NewFile(uintptr(fd), "connection"), local: listener, remote: remote}
}

// Read reads into p; see net.Conn.
func (c *Conn) Read(p []byte) (int, error) { n, err := c.file.Read(p); return n, unwrap(err) }

// Write writes p; see net.Conn.
func (c *Conn) Write(p []byte) (int, error) { n, err := c.file.Write(p); return n, unwrap(err) }

// Close closes the connection.
func (c *Conn) Close() error { return unwrap(c.file.Close()) }

// CloseWrite ends the sending direction (shutdown(2)).
func (c *Conn) CloseWrite() error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return unwrap(err)
	}
	var opErr error
	err = raw.Control(func(fd uintptr) { opErr = os.NewSyscallError("shutdown", unix.Shutdown(int(fd), unix.SHUT_WR)) })
	return errors.Join(unwrap(err), opErr)
}

// LocalAddr returns the listener's address, which is a wildcard where the
// listener is bound to one.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the sender's address.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines; see net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return unwrap(c.file.SetDeadline(t)) }

// SetReadDeadline sets the deadline of Read; see net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return unwrap(c.file.SetReadDeadline(t)) }

// SetWriteDeadline sets the deadline of Write; see net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return unwrap(c.file.SetWriteDeadline(t)) }

// SyscallConn gives access to the descriptor, for readiness and options.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.file.SyscallConn() }

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
