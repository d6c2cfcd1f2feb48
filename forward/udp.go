package forward

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// maxHeartbeat is more than any heartbeat packet has: fluentd sends one zero
// byte, older ones a nil.
const maxHeartbeat = 128

// ServeUDP answers UDP heartbeats (heartbeat_type udp) on pc until Shutdown or
// Close, and closes pc: each packet gets one zero byte back. It returns nil
// then, else the error of reading.
func (s *Server) ServeUDP(pc net.PacketConn) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.Join(net.ErrClosed, pc.Close())
	}
	s.packets[pc] = struct{}{}
	s.mu.Unlock()
	defer pc.Close()
	answer := []byte{0}
	buf := make([]byte, maxHeartbeat)
	for {
		_, sender, err := pc.ReadFrom(buf)
		if err != nil {
			if s.isClosed() {
				return nil
			}
			return fmt.Errorf("heartbeats on %s: %w", pc.LocalAddr(), err)
		}
		now := time.Now()
		s.counters.udpBeats.Add(1)
		p := s.senders.get(packetSender(sender), now)
		p.beat(&p.udpBeats, now)
		if s.draining.Load() || s.config.Healthy != nil && !s.config.Healthy() {
			s.counters.unanswered.Add(1)
			continue // unanswered, senders turn to another server
		}
		// A lost answer is a lost heartbeat, as on any network.
		_, _ = pc.WriteTo(answer, sender)
	}
}
