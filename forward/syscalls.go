package forward

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls here never wait, and are over in a few microseconds. So they are raw
// ones, which do not tell Go's scheduler: if it is told while all else is idle it
// wakes its monitor thread each time, and that costs more than the call. netopt has
// two of them as well: neither package knows the other.

// epollNow is epoll_wait(2) that does not wait.
func epollNow(ep int, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 { // EINTR is for calls that wait
		return 0
	}
	return int(n)
}

// epollSet is epoll_ctl(2).
func epollSet(ep, op int, fd int32, events uint32) syscall.Errno {
	e := unix.EpollEvent{Events: events, Fd: fd}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}

// receiveNow is recv(2) that does not wait.
func receiveNow(fd uintptr, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// sendNow is send(2) that does not wait.
func sendNow(fd uintptr, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
