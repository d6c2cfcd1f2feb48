package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// visitor is an open connection as far as it is counted: before it has a session,
// and with it.
type visitor struct {
	srv     *Server
	remote  net.Addr
	since   time.Time
	peer    *peer      // in the table of senders; nil before the PROXY header
	proxied bool       // a PROXY header comes first; guarded by Server.mu once served
	counted netip.Addr // under which Server.clients counts it; guarded by Server.mu
}

// speakingListener is a listener that can hold connections until something comes
// on them, as netopt.Listener does: heartbeats then need no session. arrive is
// asked for each connection that was accepted, leave is told of those whose client
// has closed them without a byte. Before it fails it returns those that it still
// holds.
type speakingListener interface {
	AcceptSpeaking(arrive func(remote net.Addr) (guest any, ok bool), leave func(guest any)) (conn net.Conn, guest any, err error)
}

// Serve accepts connections from l until Shutdown or Close, and closes l. It
// returns nil then, else the error of Accept. If l has a method AcceptSpeaking as
// that of netopt.Listener, connections get a goroutine only once they speak.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed || s.draining.Load() {
		s.mu.Unlock()
		return errors.Join(net.ErrClosed, l.Close())
	}
	ended := make(chan struct{})
	defer close(ended)
	s.listeners[l] = ended
	s.wait.Add(1)
	s.mu.Unlock()
	defer s.wait.Done()
	defer l.Close()
	accept := s.acceptFrom(l)
	for {
		conn, v, err := accept()
		if err != nil {
			if s.draining.Load() || s.isClosed() {
				return nil
			}
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		s.admit(conn, v)
	}
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// acceptFrom is how connections are taken from l.
func (s *Server) acceptFrom(l net.Listener) func() (net.Conn, *visitor, error) {
	// Where weir speaks first, every connection needs its session at once.
	if sl, ok := l.(speakingListener); ok && s.config.TLS == nil && s.config.Security == nil {
		arrive := func(remote net.Addr) (any, bool) { return s.arrive(remote) }
		leave := func(guest any) { s.leftSilently(guest.(*visitor)) }
		return func() (net.Conn, *visitor, error) {
			conn, guest, err := sl.AcceptSpeaking(arrive, leave)
			if err != nil {
				return nil, nil, err
			}
			return conn, guest.(*visitor), nil
		}
	}
	return func() (net.Conn, *visitor, error) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return nil, nil, err
			}
			if v, ok := s.arrive(conn.RemoteAddr()); ok {
				return conn, v, nil
			}
			conn.Close()
		}
	}
}

// arrive counts a connection; it is false if that is refused.
func (s *Server) arrive(remote net.Addr) (v *visitor, ok bool) {
	s.counters.accepted.Add(1)
	v = &visitor{srv: s, remote: remote, since: time.Now(), proxied: s.trusts(remote)}
	if !v.proxied { // else its header tells who it is
		v.meet(v.since)
	}
	client := clientOf(remote)
	s.mu.Lock()
	limit := s.overLimit(client)
	open := s.open
	if ok = limit == "" && !s.closed; ok {
		s.countClient(v, client)
		s.open++
		s.peak = max(s.peak, s.open)
	}
	s.mu.Unlock()
	if ok {
		return v, true
	}
	s.counters.refused.Add(1)
	if ok, muted := s.refusals.allow(time.Now()); ok && limit != "" {
		s.log.Warn("connection refused: a limit is reached",
			zap.Stringer("sender", remote), zap.String("limit", limit), zap.Int("open", open), zap.Uint64("not_logged", muted))
	}
	v.leave(time.Now())
	return nil, false
}

// depart ends what arrive began.
func (s *Server) depart(v *visitor, ses *session) {
	v.leave(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	delete(s.sessions, ses)
	if v.counted.IsValid() {
		if s.clients[v.counted]--; s.clients[v.counted] == 0 {
			delete(s.clients, v.counted)
		}
	}
}

// leftSilently counts a connection that ended without a word and without a
// session.
func (s *Server) leftSilently(v *visitor) {
	v.beat()
	s.depart(v, nil)
}

// beat counts what connected and closed (or was reset) without a word: a heartbeat
// of heartbeat_type transport or tcp, or a load balancer's check.
func (v *visitor) beat() {
	v.srv.counters.connectBeats.Add(1)
	v.known().beat(&v.known().connectBeats, time.Now())
}

// admit starts the session of a visitor.
func (s *Server) admit(conn net.Conn, v *visitor) {
	ses := newSession(v, conn)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		conn.Close()
		s.depart(v, nil)
		return
	}
	s.sessions[ses] = struct{}{}
	s.wait.Add(1)
	s.mu.Unlock()
	if !v.proxied && s.config.Security == nil && ses.mayPark() {
		s.poller.park(ses)
		return
	}
	go ses.serve(s.ctx)
}

// countClient counts an open connection of the client, unless its PROXY header
// is still to tell who that is. s.mu is held.
func (s *Server) countClient(v *visitor, client netip.Addr) {
	if s.config.MaxConnectionsPerClient > 0 && client.IsValid() && !v.proxied {
		s.clients[client]++
		v.counted = client
	}
}

// adopt gives a visitor the sender that its PROXY header names, nil for the
// balancer itself.
func (s *Server) adopt(v *visitor, sender net.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sender != nil {
		v.remote = sender
	}
	client := clientOf(v.remote)
	v.proxied = false
	v.meet(time.Now())
	if sender != nil {
		v.peer.uses(featureProxy)
	}
	if per := s.config.MaxConnectionsPerClient; per > 0 && s.clients[client] >= per {
		s.counters.refused.Add(1)
		return refuse(ReasonConnections, fmt.Errorf("max_connections_per_client %d is reached", per))
	}
	s.countClient(v, client)
	return nil
}

// overLimit names the limit that one more connection of the client would pass,
// empty if there is none. s.mu is held.
func (s *Server) overLimit(client netip.Addr) string {
	switch per := s.config.MaxConnectionsPerClient; {
	case s.open >= s.config.MaxConnections:
		return fmt.Sprintf("max_connections %d", s.config.MaxConnections)
	case per > 0 && s.clients[client] >= per: // a balancer's own address is not counted
		return fmt.Sprintf("max_connections_per_client %d", per)
	}
	return ""
}

// clientOf is the address that the limit by client counts; all senders of unix
// sockets are one.
func clientOf(sender net.Addr) netip.Addr {
	if tcp, ok := sender.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
