package forward

import (
	"net"
	"sync/atomic"
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
	// slowInterval is that with manyOpen connections and more, to look at which takes
	// 0.7 ms for each 10,000.
	slowInterval = 500 * time.Millisecond
	manyOpen     = 5000
	// busyGrace is how long a session may be busy before it is looked at: time
	// for the acks of a sender that has sent its last message.
	busyGrace = 500 * time.Millisecond
)

// halfClosedWatch looks at the connections while any session is busy; while none
// is, it does not wake.
type halfClosedWatch struct {
	sessions atomic.Int64 // that are busy
	begun    atomic.Bool  // a session has become busy since the last look
	on       atomic.Bool  // timer will fire
	timer    *time.Timer
}

// watchHalfClosed ends weir's side of connections whose sender has closed and whose session is
// busy. What the sender has sent stays readable; what is not acked by then cannot
// be, and is sent again.
func (s *Server) watchHalfClosed() {
	w := &s.halfClosed
	defer w.timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-w.timer.C:
			begun := w.begun.Swap(false)
			open := 0
			s.poller.relieve()
			if w.sessions.Load() > 0 {
				open = s.endHalfClosed(now)
			} else if !begun && !s.poller.working.Load() {
				w.on.Store(false)
				if w.sessions.Load() == 0 { // else one has become busy before on was false
					continue
				}
				w.on.Store(true)
			}
			interval := watchInterval
			if open >= manyOpen {
				interval = slowInterval
			}
			w.timer.Reset(interval)
		}
	}
}

// endHalfClosed looks at every busy session once; it returns how many are open.
func (s *Server) endHalfClosed(now time.Time) (open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ses := range s.sessions {
		if since := ses.busySince.Load(); since > 0 && now.UnixNano()-since > int64(s.config.busyGrace) {
			ses.endIfHalfClosed()
		}
	}
	return len(s.sessions)
}

// busy notes that the session waits for something else than its sender.
func (s *session) busy(at time.Time) {
	if s.busySince.Swap(at.UnixNano()) != 0 {
		return
	}
	w := &s.srv.halfClosed
	w.sessions.Add(1)
	if !w.begun.Load() {
		w.begun.Store(true)
	}
	if !w.on.Load() && w.on.CompareAndSwap(false, true) {
		w.timer.Reset(watchInterval)
	}
}

func (s *session) idle() {
	if s.busySince.Swap(0) != 0 {
		s.srv.halfClosed.sessions.Add(-1)
	}
}

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
