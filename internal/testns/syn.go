package testns

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetSysctl writes a kernel parameter of the namespace, such as
// net.ipv4.tcp_syncookies.
func (n *Namespace) SetSysctl(name string, value int) error {
	return n.Do(func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), fmt.Append(nil, value), 0o644)
	})
}

// silent is the network of the senders that SYN plays: nobody is there to answer.
var silent = net.IPNet{IP: net.IPv4(198, 18, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}

// SYN sends n SYN segments to the port at 127.0.0.1, each from another address
// and of a sender that never answers: half-open connections and no more.
func (n *Namespace) SYN(port, count int) error {
	return n.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// What the listener answers goes to loopback, where it is dropped.
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &silent, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route: %w", err)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
		for i := range count {
			if err := unix.Sendto(fd, synPacket([4]byte{198, 18, byte(i >> 8), byte(i)}, to.Addr, port), 0, to); err != nil {
				return os.NewSyscallError("sendto", err)
			}
		}
		return nil
	})
}

// synPacket is an IPv4 packet with a SYN (RFC 791, RFC 9293).
func synPacket(from, to [4]byte, port int) []byte {
	const ipLen, tcpLen = 20, 20
	p := make([]byte, ipLen+tcpLen)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	t := p[ipLen:]
	binary.BigEndian.PutUint16(t, 40000)
	binary.BigEndian.PutUint16(t[2:], uint16(port))
	binary.BigEndian.PutUint32(t[4:], 1)
	t[12], t[13] = tcpLen/4<<4, 2 // SYN
	binary.BigEndian.PutUint16(t[14:], 65535)
	var sum uint32
	add := func(b []byte) {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	add(p[12:20])
	add(t)
	sum += unix.IPPROTO_TCP + tcpLen
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(t[16:], ^uint16(sum))
	return p
}
