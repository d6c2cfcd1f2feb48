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

// KernelCounters reads the counters of the calling thread's namespace.
func KernelCounters() (c Counters, err error) {
	const file = "/proc/thread-self/net/netstat"
	b, err := os.ReadFile(file)
	if err != nil {
		return c, fmt.Errorf("kernel counters: %w", err)
	}
	want := map[string]*uint64{
		"ListenOverflows": &c.ListenOverflows, "ListenDrops": &c.ListenDrops,
		"TCPReqQFullDoCookies": &c.TCPReqQFullDoCookies, "TCPReqQFullDrop": &c.TCPReqQFullDrop,
		"SyncookiesSent": &c.SyncookiesSent, "SyncookiesRecv": &c.SyncookiesRecv, "SyncookiesFailed": &c.SyncookiesFailed,
	}
	// A line of names, then a line of values.
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i := 1; i < len(f) && i < len(names); i++ {
			if p := want[names[i]]; p != nil {
				if *p, err = strconv.ParseUint(f[i], 10, 64); err != nil {
					return c, fmt.Errorf("kernel counters: %s %s: %w", file, names[i], err)
				}
			}
		}
		return c, nil
	}
	return c, fmt.Errorf("kernel counters: no TcpExt in %s", file)
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
