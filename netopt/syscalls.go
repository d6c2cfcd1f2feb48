package netopt

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls here never wait: they are made on descriptors that do not block, and
// each is over in a few microseconds. So they are raw calls, which do not tell
// Go's scheduler. If it is told while all else is idle it wakes its monitor
// thread each time, and that costs more than the call.

// tcpInfoHead is the part of tcp_info (tcp.h) up to the two fields that matter of a
// listening socket.
type tcpInfoHead struct {
	_               [24]byte
	unacked, sacked uint32 // depth and backlog of the accept queue
}

// acceptQueue reads tcpi_unacked and tcpi_sacked of a listening socket.
func acceptQueue(fd int) (depth, backlog int, errno syscall.Errno) {
	var info tcpInfoHead
	size := uint32(unsafe.Sizeof(info))
	_, _, errno = unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return int(info.unacked), int(info.sacked), errno
}

// accept is accept4(2) of a connection that does not block.
func accept(fd int, from *socketAddr) (nfd int, errno syscall.Errno) {
	from.size = uint32(unsafe.Sizeof(from.raw))
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&from.raw)), uintptr(unsafe.Pointer(&from.size)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int(n), errno
}

// peek looks for a byte without taking it; n is 0 at the end of the stream.
func peek(fd int) (n int, errno syscall.Errno) {
	var b [1]byte
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// closeNow is close(2) of a socket that does not linger.
func closeNow(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// epollNow is epoll_wait(2) that does not wait.
func epollNow(ep int, events []unix.EpollEvent) (n int, errno syscall.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// epollSet is epoll_ctl(2).
func epollSet(ep, op, fd int, events uint32) syscall.Errno {
	e := unix.EpollEvent{Events: events, Fd: int32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}

// setTimer is timerfd_settime(2) of a timer that runs once; 0 stops it.
func setTimer(fd int, after time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(after))}
	_, _, _ = unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(fd), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
}

// socketAddr is an address as accept(2) gives it.
type socketAddr struct {
	raw  unix.RawSockaddrAny
	size uint32
}

// addr is the address for users of package net.
func (a *socketAddr) addr() net.Addr {
	switch a.raw.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(in.Port)))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&a.raw))
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), port(in.Port)))
	}
	// unix(7): a path that ends with a 0, or a name in the abstract namespace.
	name := (*[unsafe.Sizeof(a.raw)]byte)(unsafe.Pointer(&a.raw))[unsafe.Sizeof(a.raw.Addr.Family):max(a.size, 2)]
	if len(name) > 0 && name[0] == 0 {
		return &net.UnixAddr{Name: "@" + string(name[1:]), Net: "unix"}
	}
	return &net.UnixAddr{Name: unix.ByteSliceToString(name), Net: "unix"}
}

// port is a port as it lies in a socket address, big-endian.
func port(p uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&p))[:]) }
