package netopt

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SomaxConn reads net.core.somaxconn, the largest backlog that listen(2)
// grants in this network namespace.
func SomaxConn() (int, error) { return Sysctl(somaxconnName) }

// Sysctl reads a numeric kernel parameter by its name, such as
// net.ipv4.tcp_syncookies, for the network namespace of the calling thread.
func Sysctl(name string) (int, error) {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", name, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", name, err)
	}
	return n, nil
}

// Counters are what the network namespace counts for all its listeners
// together, since boot (/proc/net/netstat, section TcpExt).
type Counters struct {
	// ListenOverflows: SYNs and final ACKs dropped because an accept queue was
	// full. ListenDrops: these and other drops at listeners.
	ListenOverflows, ListenDrops uint64
	// TCPReqQFullDoCookies: SYNs answered with a cookie because the SYN queue was
	// full. TCPReqQFullDrop: SYNs dropped then, with cookies off.
	TCPReqQFullDoCookies, TCPReqQFullDrop uint64
	// SyncookiesSent: SYNs answered with a cookie. SyncookiesRecv: valid cookies
	// that came back; SyncookiesFailed: ACKs that were none.
	SyncookiesSent, SyncookiesRecv, SyncookiesFailed uint64
}

// socketDrops reads sk_drops of a socket: SO_MEMINFO, element SK_MEMINFO_DROPS.
func socketDrops(fd int) (uint64, error) {
	const drops = 8
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, os.NewSyscallError("getsockopt SO_MEMINFO", errno)
	}
	return uint64(info[drops]), nil
}
