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

// silent is the network of the senders that SYN and Peer play: nobody is there to
// answer.
var silent = net.IPNet{IP: net.IPv4(198, 18, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}

// host is the address that the played senders talk to.
var host = [4]byte{127, 0, 0, 1}

// Flags of a TCP segment (RFC 9293, section 3.1).
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	ACK = 0x10
)

const (
	ipLen, tcpLen = 20, 20
	peerPort      = 40000
	peerSeq       = 1 // of a played sender's SYN
)

// routeSilent sends what is for the played senders to loopback, where it is
// dropped.
func routeSilent() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &silent, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("route: %w", err)
	}
	return nil
}

// SYN sends n SYN segments to the port at 127.0.0.1, each from another address
// and of a sender that never answers: half-open connections and no more.
func (n *Namespace) SYN(port, count int) error { return n.Stray(port, count, SYN, nil) }

// Stray sends count segments with those flags and that data to the port at
// 127.0.0.1, each from an address that was in no call before.
func (n *Namespace) Stray(port, count int, flags byte, data []byte) error {
	return n.Do(func() error {
		if err := routeSilent(); err != nil {
			return err
		}
		return sending(func(send func(p []byte) error) error {
			for range count {
				from := [4]byte{198, 18, byte(n.strays >> 8 % 255), byte(n.strays)}
				n.strays++
				if err := send(segment(from, port, peerSeq, 0, flags, data)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// sending gives f a way to send IPv4 packets of its own making.
func sending(f func(send func(p []byte) error) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Addr: host}
	return f(func(p []byte) error { return os.NewSyscallError("sendto", unix.Sendto(fd, p, 0, to)) })
}

// segment is an IPv4 packet with a TCP segment to the host (RFC 791, RFC 9293).
func segment(from [4]byte, port int, seq, ack uint32, flags byte, data []byte) []byte {
	p := make([]byte, ipLen+tcpLen, ipLen+tcpLen+len(data)+1)
	p = append(p, data...)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], from[:])
	copy(p[16:], host[:])
	t := p[ipLen:]
	binary.BigEndian.PutUint16(t, peerPort)
	binary.BigEndian.PutUint16(t[2:], uint16(port))
	binary.BigEndian.PutUint32(t[4:], seq)
	binary.BigEndian.PutUint32(t[8:], ack)
	t[12], t[13] = tcpLen/4<<4, flags
	binary.BigEndian.PutUint16(t[14:], 65535)
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	add(p[12:20])
	add(t)
	sum += unix.IPPROTO_TCP + uint32(len(t))
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(t[16:], ^uint16(sum))
	return p
}
