package forward

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A sender that has closed its side leaves the connection in CLOSE_WAIT until
// weir closes its own. While a session reads, it sees the end of the stream at
// once; while it waits for a commit, for memory or for a full buffer it does
// not, and CLOSE_WAIT would last as long as that.
const (
	watchInterval = 250 * time.Millisecond
	// busyGrace is how long a session may be busy before it is looked at: time
	// for the acks of a sender that has sent its last message.
	busyGrace = 500 * time.Millisecond
)

// watchHalfClosed ends weir's side of connections whose sender has closed and
// whose session is busy. What the sender has sent stays readable; what is not
// acked by then cannot be, and is sent again.
func (s *Server) watchHalfClosed() {
	t := time.NewTicker(watchInterval)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-t.C:
			s.mu.Lock()
			for ses := range s.sessions {
				if since := ses.busySince.Load(); since > 0 && now.UnixNano()-since > int64(s.config.busyGrace) {
					ses.endIfHalfClosed()
				}
			}
			s.mu.Unlock()
		}
	}
}

// busy notes that the session waits for something else than its sender.
func (s *session) busy(at time.Time) { s.busySince.Store(at.UnixNano()) }

func (s *session) idle() { s.busySince.Store(0) }

// endIfHalfClosed shuts the sending side down if the sender has shut its own.
func (s *session) endIfHalfClosed() {
	if _, tcp := s.socket.RemoteAddr().(*net.TCPAddr); !tcp || s.halfClosed.Load() {
		return
	}
	sc, ok := s.socket.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(p, 0); err != nil || n == 0 || p[0].Revents&unix.POLLRDHUP == 0 {
			return
		}
		// Counted before the sender can see it.
		s.halfClosed.Store(true)
		s.srv.counters.halfClosed.Add(1)
		// An error means that the connection is gone altogether.
		_ = unix.Shutdown(int(fd), unix.SHUT_WR)
	})
	if err != nil || !s.halfClosed.Load() {
		return
	}
	s.mu.Lock()
	s.dead = true // no ack can be sent any more
	s.out = nil
	s.change.Broadcast()
	s.mu.Unlock()
}
