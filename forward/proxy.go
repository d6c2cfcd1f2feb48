package forward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"
)

// Limits of a PROXY header (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
const (
	proxyV1Max  = 107 // bytes of the text form, section 2.1
	proxyV2Head = 16  // bytes of the binary form before its addresses, section 2.2
	proxyV2Max  = 4096
)

var proxyV2Signature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// trusts reports whether a connection from this address must begin with a PROXY
// header.
func (s *Server) trusts(peer net.Addr) bool {
	ip := clientOf(peer).WithZone("")
	for _, network := range s.config.ProxyNetworks {
		if network.Contains(ip) {
			return true
		}
	}
	return false
}

// readProxyHeader reads the header that a load balancer puts before the stream
// of a sender, and takes the sender's address from it.
func (s *session) readProxyHeader() error {
	if !s.proxied {
		return nil
	}
	if err := s.socket.SetReadDeadline(time.Now().Add(s.srv.config.HandshakeTimeout)); err != nil {
		return err
	}
	if s.srv.draining.Load() {
		return errDrained
	}
	head, err := proxyHeader(s.socket)
	if len(head) > 0 {
		s.heard = true
	}
	var sender net.Addr
	switch {
	case err == nil:
		sender, err = proxySender(head)
	case !s.heard && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)):
		return err // the balancer's own check
	case errors.Is(err, os.ErrDeadlineExceeded) && s.srv.draining.Load():
		return errDrained
	}
	if err != nil {
		return refuse(ReasonProxy, fmt.Errorf("no PROXY header from a network of proxy_protocol_from: %w", err))
	}
	if err := s.socket.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	s.heard = false // a sender that now says nothing is a heartbeat
	return s.srv.adopt(s.visitor, sender)
}

// proxyHeader reads the bytes of a header and none beyond it.
func proxyHeader(r io.Reader) ([]byte, error) {
	b := make([]byte, len(proxyV2Signature), proxyV1Max)
	if n, err := io.ReadFull(r, b); err != nil {
		return b[:n], err
	}
	if bytes.Equal(b, proxyV2Signature) {
		b = b[:proxyV2Head]
		if _, err := io.ReadFull(r, b[len(proxyV2Signature):]); err != nil {
			return b, err
		}
		n := int(binary.BigEndian.Uint16(b[14:]))
		if n > proxyV2Max {
			return b, fmt.Errorf("version 2, %d bytes long, the limit is %d", n, proxyV2Max)
		}
		b = append(b, make([]byte, n)...)
		_, err := io.ReadFull(r, b[proxyV2Head:])
		return b, err
	}
	if !bytes.HasPrefix(b, []byte("PROXY ")) {
		return b, fmt.Errorf("the stream begins with %q", b)
	}
	for b[len(b)-1] != '\n' {
		if len(b) == proxyV1Max {
			return b, fmt.Errorf("version 1, longer than %d bytes", proxyV1Max)
		}
		b = b[:len(b)+1]
		if _, err := io.ReadFull(r, b[len(b)-1:]); err != nil {
			return b, err
		}
	}
	return b, nil
}

// proxySender is the sender's address in a whole header; nil if the header
// stands for the balancer itself (LOCAL, UNKNOWN).
func proxySender(head []byte) (net.Addr, error) {
	h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return nil, err
	}
	tcp, ok := h.SourceAddr.(*net.TCPAddr)
	if !ok || h.Command.IsLocal() {
		return nil, nil
	}
	ip, ok := netip.AddrFromSlice(tcp.IP)
	if !ok {
		return nil, fmt.Errorf("the sender's address %v is none", tcp.IP)
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip.Unmap(), uint16(tcp.Port))), nil
}
