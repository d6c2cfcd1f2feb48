package testns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a Peer waits for a segment.
const patience = time.Minute

// Peer is a sender that acts segment by segment: the test decides when its
// handshake ends. Its methods run on the namespace's thread.
type Peer struct {
	ns   *Namespace
	addr [4]byte
	port int    // of the listener
	seen uint32 // sequence number of the SYN-ACK
	fd   int    // of the packets on loopback
}

// Peer connects one to the port at 127.0.0.1 up to its SYN-ACK; n, from 0 to 255,
// tells it from others. Close must be called in the end.
func (n *Namespace) Peer(port, number int) (*Peer, error) {
	p := &Peer{ns: n, addr: [4]byte{198, 18, 255, byte(number)}, port: port, fd: -1}
	err := n.Do(func() error {
		if err := routeSilent(); err != nil {
			return err
		}
		var err error
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(bigEndian(unix.ETH_P_IP))); err != nil {
			return os.NewSyscallError("socket AF_PACKET", err)
		}
		return p.send(peerSeq, 0, SYN)
	})
	if err == nil {
		p.seen, err = p.receive(SYN | ACK)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("peer %d: %w", number, err), p.Close())
	}
	return p, nil
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }

// Acknowledge sends the final ACK of the handshake.
func (p *Peer) Acknowledge() error {
	return p.ns.Do(func() error { return p.send(peerSeq+1, p.seen+1, ACK) })
}

// RequireReset waits for the segment that resets the connection.
func (p *Peer) RequireReset() error {
	_, err := p.receive(RST)
	return err
}

// Close ends the peer, without a word to the listener.
func (p *Peer) Close() error {
	if p.fd < 0 {
		return nil
	}
	return os.NewSyscallError("close", unix.Close(p.fd))
}

func (p *Peer) send(seq, ack uint32, flags byte) error {
	return sending(func(send func(b []byte) error) error { return send(segment(p.addr, p.port, seq, ack, flags, nil)) })
}

// receive waits for a segment to the peer with all of the flags; it returns the
// sequence number.
func (p *Peer) receive(flags byte) (seq uint32, err error) {
	deadline := time.Now().Add(patience)
	b := make([]byte, 256)
	for {
		left := unix.NsecToTimeval(max(int64(time.Until(deadline)), 1000))
		if err := unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &left); err != nil {
			return 0, os.NewSyscallError("setsockopt SO_RCVTIMEO", err)
		}
		n, _, err := unix.Recvfrom(p.fd, b, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, fmt.Errorf("no segment with flags %#x within %v: %w", flags, patience, os.NewSyscallError("recvfrom", err))
		case n < ipLen+tcpLen || b[9] != unix.IPPROTO_TCP || [4]byte(b[16:20]) != p.addr:
			continue
		}
		t := b[int(b[0]&0xf)*4 : n]
		if len(t) >= tcpLen && int(binary.BigEndian.Uint16(t)) == p.port && t[13]&flags == flags {
			return binary.BigEndian.Uint32(t[4:]), nil
		}
	}
}
