package netopt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// TCP states as the kernel numbers them (include/net/tcp_states.h).
const (
	stateEstablished = 1
	stateSynRecv     = 3
	stateFinWait1    = 4
	stateFinWait2    = 5
	stateTimeWait    = 6
	stateCloseWait   = 8
	stateLastAck     = 9
	stateClosing     = 11
	stateNewSynRecv  = 12
)

// PortStates counts the connections of a TCP listener by state.
type PortStates struct {
	SynRecv, Established, CloseWait, TimeWait int
	// The states of connections that weir closes, or closed first.
	FinWait1, FinWait2, LastAck, Closing int
	// Unread is bytes in receive buffers that weir has not read, Unsent bytes
	// written and not acknowledged by the peer.
	Unread, Unsent int64
}

// States that are asked for, as idiag_states of sock_diag(7) has them.
const (
	statesOfPort = 1<<stateEstablished | 1<<stateSynRecv | 1<<stateFinWait1 | 1<<stateFinWait2 |
		1<<stateTimeWait | 1<<stateCloseWait | 1<<stateLastAck | 1<<stateClosing | 1<<stateNewSynRecv
	statesWaiting = 1<<stateSynRecv | 1<<stateNewSynRecv | 1<<stateCloseWait
)

// Sizes of struct inet_diag_req_v2, inet_diag_msg (linux/inet_diag.h),
// unix_diag_req and unix_diag_msg (linux/unix_diag.h).
const (
	inetReqLen  = 56
	inetMsgLen  = 72
	unixReqLen  = 24
	unixMsgLen  = 16
	netlinkRoom = 64 << 10
)

// dump adds up the connections of a listener in those states.
func (d *diag) dump(listener *net.TCPAddr, states uint32, p *PortStates) error {
	family, at, port := uint8(unix.AF_INET6), listener.IP.To16(), uint16(listener.Port)
	if v4 := listener.IP.To4(); v4 != nil {
		family, at = unix.AF_INET, v4
	}
	if listener.IP.IsUnspecified() {
		at = nil // any
	}
	req := make([]byte, inetReqLen)
	req[0], req[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[4:], states)
	binary.BigEndian.PutUint16(req[8:], port) // id.idiag_sport
	err := d.ask(req, unix.NLM_F_DUMP, func(m []byte) {
		if len(m) < inetMsgLen || binary.BigEndian.Uint16(m[4:]) != port || !bytes.Equal(m[8:8+len(at)], at) { // id.idiag_src
			return
		}
		switch m[1] {
		case stateSynRecv, stateNewSynRecv:
			p.SynRecv++
		case stateEstablished:
			p.Established++
		case stateCloseWait:
			p.CloseWait++
		case stateTimeWait:
			p.TimeWait++
		case stateFinWait1:
			p.FinWait1++
		case stateFinWait2:
			p.FinWait2++
		case stateLastAck:
			p.LastAck++
		case stateClosing:
			p.Closing++
		}
		p.Unread += int64(binary.NativeEndian.Uint32(m[56:]))
		p.Unsent += int64(binary.NativeEndian.Uint32(m[60:]))
	})
	if errors.Is(err, unix.ENOENT) { // no such family in this kernel
		return nil
	}
	return err
}

// unixQueue reads the accept queue of a listening unix socket.
func (d *diag) unixQueue(fd int) (depth, backlog int, err error) {
	const (
		showRqlen  = 0x10 // UDIAG_SHOW_RQLEN
		attrRqlen  = 4    // UNIX_DIAG_RQLEN
		attrHeader = 4
	)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, 0, os.NewSyscallError("fstat", err)
	}
	req := make([]byte, unixReqLen)
	req[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(req[4:], 1<<10) // TCP_LISTEN
	binary.NativeEndian.PutUint32(req[8:], uint32(st.Ino))
	binary.NativeEndian.PutUint32(req[12:], showRqlen)
	for i := 16; i < unixReqLen; i++ {
		req[i] = 0xff // any cookie
	}
	found := false
	err = d.ask(req, 0, func(m []byte) {
		for a := m[min(unixMsgLen, len(m)):]; len(a) >= attrHeader; {
			n := int(binary.NativeEndian.Uint16(a))
			if n < attrHeader || n > len(a) {
				return
			}
			if binary.NativeEndian.Uint16(a[2:]) == attrRqlen && n >= attrHeader+8 {
				depth = int(binary.NativeEndian.Uint32(a[attrHeader:]))
				backlog = int(binary.NativeEndian.Uint32(a[attrHeader+4:]))
				found = true
			}
			a = a[min((n+3)&^3, len(a)):]
		}
	})
	if err == nil && !found {
		err = errors.New("the kernel tells nothing of it")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("sock_diag of a unix socket: %w", err)
	}
	return depth, backlog, nil
}

// diag is a socket for sock_diag(7). It belongs to the network namespace of the
// thread that opened it.
type diag struct {
	fd int

	mu  sync.Mutex // one request at a time
	seq uint32
	buf []byte // of answers
}

func openDiag() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket NETLINK_INET_DIAG", err)
	}
	return &diag{fd: fd}, nil
}

func (d *diag) close() error { return os.NewSyscallError("close", unix.Close(d.fd)) }

// ask sends one request and calls each with the body of every answer.
func (d *diag) ask(req []byte, flags uint16, each func(m []byte)) error {
	const sockDiagByFamily = 20
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	msg := make([]byte, unix.NLMSG_HDRLEN+len(req))
	ne := binary.NativeEndian
	ne.PutUint32(msg, uint32(len(msg)))
	ne.PutUint16(msg[4:], sockDiagByFamily)
	ne.PutUint16(msg[6:], unix.NLM_F_REQUEST|flags)
	ne.PutUint32(msg[8:], d.seq)
	copy(msg[unix.NLMSG_HDRLEN:], req)
	if err := unix.Sendto(d.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	if d.buf == nil {
		d.buf = make([]byte, netlinkRoom)
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		mine := false
		for p := d.buf[:n]; len(p) >= unix.NLMSG_HDRLEN; {
			size := int(ne.Uint32(p))
			if size < unix.NLMSG_HDRLEN || size > len(p) {
				return errors.New("netlink: a cut answer")
			}
			body, seq := p[unix.NLMSG_HDRLEN:size], ne.Uint32(p[8:])
			kind := ne.Uint16(p[4:])
			p = p[min((size+3)&^3, len(p)):]
			if seq != d.seq { // what is left of a request that failed
				continue
			}
			mine = true
			switch kind {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(body) < 4 {
					return errors.New("netlink: a cut error")
				}
				if errno := int32(ne.Uint32(body)); errno != 0 {
					return os.NewSyscallError("sock_diag", unix.Errno(-errno))
				}
				return nil
			case sockDiagByFamily:
				each(body)
			}
		}
		if mine && flags&unix.NLM_F_DUMP == 0 {
			return nil
		}
	}
}
