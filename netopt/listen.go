package netopt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Config says how to listen. The zero value takes what the kernel allows.
type Config struct {
	// Backlog is the accept queue to ask listen(2) for; 0 asks for what the
	// kernel allows now, net.core.somaxconn.
	Backlog int
	// AllowShort accepts a smaller backlog than asked for; Listener.Mismatch
	// tells of it. Otherwise that is a *BacklogError.
	AllowShort bool
	// ReusePort sets SO_REUSEPORT (socket(7)): several listeners share the port,
	// each with a queue of its own; a full one drops although others have room.
	ReusePort bool
	// NoKeepAlive leaves SO_KEEPALIVE off on accepted connections. TCP_NODELAY is
	// always on; both are inherited from the listener (tcp(7)).
	NoKeepAlive bool
	// Mode is the permission of a unix socket's file, 0 for what umask leaves.
	Mode os.FileMode
}

// BacklogError says that the kernel granted a smaller backlog than asked for.
type BacklogError struct {
	Addr           string
	Asked, Granted int
	// Sysctl is the limit that applied.
	Sysctl string
}

// Mend is the command that raises the limit.
func (e *BacklogError) Mend() string { return fmt.Sprintf("sysctl -w %s=%d", e.Sysctl, e.Asked) }

// Error is one line with both numbers, the limit, and what to do.
func (e *BacklogError) Error() string {
	return fmt.Sprintf("listen on %s: asked the kernel for a backlog of %d and got %d, limited by %s; raise it with: %s, or set on_backlog_mismatch warn to start all the same",
		e.Addr, e.Asked, e.Granted, e.Sysctl, e.Mend())
}

// somaxconnName is the sysctl that caps every backlog (listen(2)).
const somaxconnName = "net.core.somaxconn"

// Listen makes a listening socket. network is "tcp" (both families where the
// address is a wildcard or absent), "tcp4", "tcp6" or "unix"; address is
// host:port, or the path of a unix socket.
func Listen(ctx context.Context, network, address string, c Config) (*Listener, error) {
	fd, name, err := socket(ctx, network, address, c)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return listenOn(fd, name, c)
}

// ListenAll listens on every address, "unix:/path" or host:port, or on none.
func ListenAll(ctx context.Context, addresses []string, c Config) ([]*Listener, error) {
	var all []*Listener
	for _, a := range addresses {
		network := "tcp"
		if path, ok := strings.CutPrefix(a, "unix:"); ok {
			network, a = "unix", path
		}
		l, err := Listen(ctx, network, a, c)
		if err != nil {
			for _, l := range all {
				err = errors.Join(err, l.Close())
			}
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// FromFile takes over a listening socket that another process has made
// (sd_listen_fds(3)) and closes f. Its backlog is that of its maker until
// listen(2) is called again, which FromFile does; nothing queued is lost by it.
func FromFile(f *os.File, c Config) (*Listener, error) {
	defer f.Close()
	name := f.Name()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("inherited socket %s: %w", name, err)
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening == 0 {
		unix.Close(fd)
		return nil, errors.Join(fmt.Errorf("inherited descriptor %s is not a listening stream socket; use ListenStream= in the socket unit", name), err)
	}
	// The maker's flags and options may differ from Listen's.
	if err := errors.Join(unix.SetNonblock(fd, true), inheritedOptions(fd, c)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("inherited socket %s: %w", name, err)
	}
	return listenOn(fd, "", c)
}

// inheritedOptions sets on the listener what its connections shall have.
func inheritedOptions(fd int, c Config) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || family == unix.AF_UNIX {
		return err
	}
	keep := 1
	if c.NoKeepAlive {
		keep = 0
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, keep))
}

// listenOn calls listen(2), reads the backlog back and wraps the socket, which
// it owns from here on.
func listenOn(fd int, path string, c Config) (*Listener, error) {
	l, err := newListener(fd, path, c.Backlog)
	if err == nil {
		_, err = l.Relisten(c.Backlog)
	}
	if err == nil && !c.AllowShort {
		if m := l.Mismatch(); m != nil {
			err = m
		}
	}
	if err != nil {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
		return nil, err
	}
	return l, nil
}

// socket makes a bound socket. path is that of a unix socket.
func socket(ctx context.Context, network, address string, c Config) (fd int, path string, err error) {
	if network == "unix" {
		fd, err := unixSocket(address, c.Mode)
		return fd, address, err
	}
	family, sa, dual, err := resolve(ctx, network, address)
	if err != nil {
		return -1, "", err
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, "", os.NewSyscallError("socket", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if c.ReusePort {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	if family == unix.AF_INET6 {
		only := 1
		if dual {
			only = 0
		}
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only))
	}
	if err = errors.Join(err, inheritedOptions(fd, c)); err != nil {
		unix.Close(fd)
		return -1, "", os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return -1, "", bindError(address, err)
	}
	return fd, "", nil
}

// bindError adds to an error of bind(2) what to do about it.
func bindError(address string, err error) error {
	_, port, _ := net.SplitHostPort(address)
	hint := ""
	switch err {
	case unix.EADDRINUSE:
		hint = fmt.Sprintf("another process has the port: find it with ss -ltnp 'sport = :%s', stop it, or choose another port", port)
	case unix.EACCES:
		hint = "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE: choose a higher port, or set AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit"
	case unix.EADDRNOTAVAIL:
		hint = "no interface of this host has the address: see ip address, or bind 0.0.0.0"
	}
	e := os.NewSyscallError("bind", err)
	if hint == "" {
		return e
	}
	return fmt.Errorf("%w; %s", e, hint)
}

// resolve turns an address into what bind(2) takes. dual asks for a socket of
// both families.
func resolve(ctx context.Context, network, address string) (family int, sa unix.Sockaddr, dual bool, err error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return 0, nil, false, fmt.Errorf("%w; the form is host:port, with an IPv6 host in brackets", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return 0, nil, false, fmt.Errorf("port %q is not a number from 0 to 65535", portText)
	}
	ip, err := hostIP(ctx, network, host)
	if err != nil {
		return 0, nil, false, err
	}
	if ip.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}, false, nil
	}
	sa6 := &unix.SockaddrInet6{Port: int(port), Addr: ip.As16()}
	if zone := ip.Zone(); zone != "" {
		ifi, err := net.InterfaceByName(zone)
		if err != nil {
			return 0, nil, false, fmt.Errorf("interface %q: %w", zone, err)
		}
		sa6.ZoneId = uint32(ifi.Index)
	}
	return unix.AF_INET6, sa6, network == "tcp" && ip.IsUnspecified(), nil
}

// hostIP is the address to bind to.
func hostIP(ctx context.Context, network, host string) (netip.Addr, error) {
	switch {
	case host == "" && (network == "tcp4" || network == "tcp" && !haveIPv6()):
		return netip.IPv4Unspecified(), nil
	case host == "":
		return netip.IPv6Unspecified(), nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		if network == "tcp4" && !ip.Is4() || network == "tcp6" && ip.Is4() {
			return ip, fmt.Errorf("%s is not an address of %s", host, network)
		}
		return ip, nil
	}
	lookup := map[string]string{"tcp": "ip", "tcp4": "ip4", "tcp6": "ip6"}[network]
	if lookup == "" {
		return netip.Addr{}, fmt.Errorf("network %q is none of tcp, tcp4, tcp6 and unix", network)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, lookup, host)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%w; bind an IP address, or mend the name", err)
	}
	// An IPv4 address first, as net.Listen prefers it.
	for _, ip := range ips {
		if ip.Unmap().Is4() {
			return ip.Unmap(), nil
		}
	}
	return ips[0], nil
}

// haveIPv6 reports whether the kernel makes IPv6 sockets.
func haveIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// unixSocket makes a bound unix socket. A socket file that nobody listens on is
// left from an earlier run and removed; any other file is an error.
func unixSocket(path string, mode os.FileMode) (int, error) {
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != fs.ModeSocket {
			return -1, errors.New("the path is taken by a file that is no socket; remove it, or choose another path")
		}
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return -1, fmt.Errorf("%w; another process listens there: stop it, or choose another path", os.NewSyscallError("bind", unix.EADDRINUSE))
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			return -1, err
		}
		if err := os.Remove(path); err != nil {
			return -1, err
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	if err == nil && mode != 0 {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
