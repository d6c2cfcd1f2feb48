package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"go.uber.org/zap"

	"weir/internal/config"
	"weir/netopt"
)

// listener is a listening socket of a <source>. With "listeners N" an address
// has N of them, each with a queue of its own.
type listener struct {
	*netopt.Listener
	// part counts the sockets of one address from 0, of is how many there are.
	part, of int
}

// name is the address, with #2 and so on for the further sockets of one.
func (l *listener) name() string {
	if l.part == 0 {
		return l.Addr().String()
	}
	return fmt.Sprintf("%s#%d", l.Addr(), l.part+1)
}

// tcp is the address of a TCP listener, nil for the others. What the kernel
// tells by port is of all sockets of an address: first is the one to list it for.
func (l *listener) tcp() (addr *net.TCPAddr, first bool) {
	addr, _ = l.Addr().(*net.TCPAddr)
	return addr, l.part == 0
}

// listen opens the source's sockets, first those that systemd passed; it
// returns what is left of these.
func (src *source) listen(ctx context.Context, inherited []*os.File) (rest []*os.File, err error) {
	c := netopt.Config{Backlog: src.config.Backlog, AllowShort: src.config.AllowShortBacklog, NoKeepAlive: !src.config.SendKeepalive}
	for _, address := range src.config.Addresses {
		network, want := "tcp", src.config.Listeners
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address, want = "unix", path, 1
		}
		c.ReusePort = want > 1
		var of []*netopt.Listener
		// Whatever was opened is the source's, which closes it if weir does not start.
		add := func(l *netopt.Listener) {
			src.listeners = append(src.listeners, &listener{Listener: l, part: len(of), of: want})
			of = append(of, l)
		}
		var pc net.PacketConn
		for i := 0; i < len(inherited); i++ {
			f := inherited[i]
			if !sameAddress(socketAddress(f), address) {
				continue
			}
			if datagram(f) {
				pc, err = net.FilePacketConn(f)
				f.Close()
			} else if l, lerr := netopt.FromFile(f, c); lerr == nil {
				add(l)
			} else {
				err = lerr
			}
			if err != nil {
				return nil, err
			}
			inherited = append(inherited[:i:i], inherited[i+1:]...)
			i--
		}
		if len(of) > 0 && len(of) != want {
			return nil, fmt.Errorf("systemd passed %d sockets for %s, and listeners is %d: make listeners %d, or the socket unit pass as many (ListenStream= once for each, with ReusePort=yes)", len(of), address, want, len(of))
		}
		for at := address; len(of) < want; at = of[0].Addr().String() { // port 0 is chosen by the first
			l, err := netopt.Listen(ctx, network, at, c)
			if err != nil {
				return nil, err
			}
			add(l)
		}
		if pc == nil && network == "tcp" {
			// Port 0 is chosen by the kernel: heartbeats go where messages go.
			if pc, err = netopt.ListenPacket(ctx, of[0].Addr().String()); err != nil {
				return nil, err
			}
		}
		if pc != nil {
			src.packets = append(src.packets, pc)
		}
	}
	return inherited, nil
}

// logListener says what the kernel made of the listener.
func (s *server) logListener(l *listener) {
	asked, granted := l.Backlog()
	fields := []zap.Field{zap.String("address", l.name()), zap.Int("backlog_asked", asked), zap.Int("backlog_granted", granted)}
	if m := l.Mismatch(); m != nil {
		s.log.Warn("listening with a smaller backlog than asked for: connections may be dropped in a burst",
			append(fields, zap.String("limited_by", m.Sysctl), zap.String("mend", m.Mend()))...)
		return
	}
	s.log.Info("listening", fields...)
}

// migrateSysctl decides what becomes of the queue of one of several listeners
// that closes (tcp_migrate_req in the kernel's ip-sysctl).
const migrateSysctl = "net.ipv4.tcp_migrate_req"

// logSplit warns of what several listeners on one address cost. Closing one is
// what an operator does not see coming: weir does it when it stops.
func (s *server) logSplit(src *source) {
	if src.config.Listeners < 2 {
		return
	}
	n, err := netopt.Sysctl(migrateSysctl)
	if err != nil || n != 0 {
		return
	}
	s.log.Warn("several listeners share an address: when one of them closes, the connections in its queue are reset and do not move to the others",
		zap.String("source", src.config.ID), zap.Int("listeners", src.config.Listeners), zap.Int(migrateSysctl, n), zap.String("mend", "sysctl -w "+migrateSysctl+"=1"))
}

// relisten calls listen(2) again with the configured backlog: that changes the
// live socket, and a somaxconn that was raised meanwhile takes effect only so.
func (s *server) relisten(src *source, c *config.Source) {
	for _, l := range src.listeners {
		if _, err := l.Relisten(c.Backlog); err != nil {
			s.log.Error("backlog not changed", zap.String("address", l.name()), zap.Error(err))
			continue
		}
		if m := l.Mismatch(); m != nil && !c.AllowShortBacklog {
			s.log.Error("backlog not granted: weir goes on with what the kernel gives", zap.Error(m))
		}
		s.logListener(l)
	}
}
