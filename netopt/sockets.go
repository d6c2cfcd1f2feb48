package netopt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ListenSocket is a TCP socket in state LISTEN, whoever owns it, as sock_diag(7)
// tells of it.
type ListenSocket struct {
	// Addr is what it is bound to; a socket of both families has the IPv6
	// wildcard.
	Addr netip.AddrPort
	// V6Only: it takes no IPv4 (IPV6_V6ONLY, ipv6(7)).
	V6Only bool
	// Depth waits for accept(2), Backlog is the effective backlog.
	Depth, Backlog int
	// Drops is the socket's own counter, see Queue.Drops.
	Drops uint64
	// Inode is the socket's number in /proc/PID/fd, UID its owner.
	Inode, UID uint32
}

// ListenSockets lists the listening TCP sockets of the calling thread's network
// namespace. It needs no privilege.
func ListenSockets() ([]ListenSocket, error) {
	const (
		stateListen = 10
		attrMemInfo = 7  // INET_DIAG_SKMEMINFO
		attrDrops   = 8  // SK_MEMINFO_DROPS, of 32 bits each
		attrV6Only  = 11 // INET_DIAG_SKV6ONLY
		attrHeader  = 4
	)
	ne := binary.NativeEndian
	d, err := openDiag()
	if err != nil {
		return nil, fmt.Errorf("listening sockets: %w", err)
	}
	defer d.close()
	var all []ListenSocket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := make([]byte, inetReqLen)
		req[0], req[1], req[2] = family, unix.IPPROTO_TCP, 1<<(attrMemInfo-1)
		ne.PutUint32(req[4:], 1<<stateListen)
		err := d.ask(req, unix.NLM_F_DUMP, func(m []byte) {
			if len(m) < inetMsgLen {
				return
			}
			ip := netip.AddrFrom16([16]byte(m[8:24]))
			if family == unix.AF_INET {
				ip = netip.AddrFrom4([4]byte(m[8:12]))
			}
			s := ListenSocket{Addr: netip.AddrPortFrom(ip, binary.BigEndian.Uint16(m[4:])),
				Depth: int(ne.Uint32(m[56:])), Backlog: int(ne.Uint32(m[60:])), UID: ne.Uint32(m[64:]), Inode: ne.Uint32(m[68:])}
			for a := m[inetMsgLen:]; len(a) >= attrHeader; {
				n := int(ne.Uint16(a))
				if n < attrHeader || n > len(a) {
					break
				}
				if at := attrHeader + 4*attrDrops; ne.Uint16(a[2:]) == attrMemInfo && n >= at+4 {
					s.Drops = uint64(ne.Uint32(a[at:]))
				}
				if ne.Uint16(a[2:]) == attrV6Only && n > attrHeader {
					s.V6Only = a[attrHeader] != 0
				}
				a = a[min((n+3)&^3, len(a)):]
			}
			all = append(all, s)
		})
		if err != nil && !errors.Is(err, unix.ENOENT) { // no such family in this kernel
			return nil, fmt.Errorf("listening sockets: %w", err)
		}
	}
	return all, nil
}
