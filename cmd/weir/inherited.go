package main

import (
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// socketAddress is the local address of a descriptor that systemd passed,
// host:port or a path; its name if it is no socket.
func socketAddress(f *os.File) string {
	sa, err := unix.Getsockname(int(f.Fd()))
	if err != nil {
		return f.Name()
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		return sa.Name
	}
	return f.Name()
}

// datagram reports whether the socket is one of heartbeats.
func datagram(f *os.File) bool {
	kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	return err == nil && kind == unix.SOCK_DGRAM
}

// sameAddress reports whether a socket bound to have serves what is configured
// as want: the same path, or the same port at the same address, where all
// wildcards are one.
func sameAddress(have, want string) bool {
	if have == want {
		return true
	}
	hostA, portA, errA := net.SplitHostPort(have)
	hostB, portB, errB := net.SplitHostPort(want)
	return errA == nil && errB == nil && portA == portB && wildcard(hostA) && wildcard(hostB)
}

func wildcard(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}
