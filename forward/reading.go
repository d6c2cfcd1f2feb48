package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// fill reads more bytes into the buffer, waiting for them as long as it takes.
// An idle connection waits without a buffer.
func (s *session) fill(ctx context.Context) error {
	if err := s.makeRoom(ctx); err != nil {
		return err
	}
	for {
		if err := s.deadline(); err != nil {
			return err
		}
		n, err := s.read(ctx)
		if n > 0 {
			s.got(n)
			return nil
		}
		switch {
		case s.quiet:
			s.quiet = false
			return errQuiet
		case err == nil || errors.Is(err, io.EOF):
			return s.endOfStream()
		case errors.Is(err, syscall.EAGAIN) && s.leaving && !s.srv.draining.Load():
			if s.r == s.w {
				return errAged
			}
			s.sweeping, s.leaving = false, false // until the message is whole
		case errors.Is(err, syscall.EAGAIN): // only when sweeping
			if s.r == s.w || s.grace {
				return errDrained
			}
			s.grace = true
		case errors.Is(err, os.ErrDeadlineExceeded):
			if s.closing.Load() {
				return errClosing
			}
			if s.leaving && s.w > s.r && !s.srv.draining.Load() { // only without a descriptor
				s.sweeping, s.leaving = false, false
				continue
			}
			if !s.srv.draining.Load() {
				return s.timedOut()
			}
			if s.sweeping { // only without a descriptor, see sweep
				if s.r == s.w || s.grace {
					return errDrained
				}
				s.grace = true
			}
			s.sweeping = true
		default:
			return err
		}
	}
}

// got notes n bytes that were read into the buffer.
func (s *session) got(n int) {
	s.heard = true
	s.readAt = time.Now()
	s.w += n
	s.largest = max(s.largest, s.w)
}

// deadline sets how long the next read may take. A kick (a deadline in the
// past) that came before it is not lost: its causes are looked at afterwards.
func (s *session) deadline() error {
	var limit time.Duration
	switch {
	case s.grace:
		limit = drainGrace
	case s.sweeping:
		return s.sweep()
	case s.w > s.r:
		left, err := s.timeLeft()
		if err != nil {
			return err
		}
		limit = left
	default:
		limit = s.srv.config.IdleTimeout
		if !s.retireAt.IsZero() {
			left := time.Until(s.retireAt)
			if left <= 0 {
				if s.acked || left < -drainGrace {
					return errAged
				}
				// Without acks a sender does not learn what was not read.
				s.sweeping, s.leaving = true, true
				return s.sweep()
			}
			if limit <= 0 || left < limit {
				limit = left
			}
		}
	}
	if limit > 0 || s.timed {
		var at time.Time
		if limit > 0 {
			at = time.Now().Add(limit)
		}
		s.timed = limit > 0
		if err := s.conn.SetReadDeadline(at); err != nil {
			return err
		}
	}
	if s.closing.Load() {
		return errClosing
	}
	if s.srv.draining.Load() && !s.grace {
		s.sweeping = true
		return s.sweep()
	}
	return nil
}

// sweep makes reads take what is there and wait for nothing; those of a
// connection without a descriptor can only wait for a short while.
func (s *session) sweep() error {
	var at time.Time
	if s.raw == nil {
		at = time.Now().Add(acceptGrace)
	}
	return s.conn.SetReadDeadline(at)
}

// timeLeft is how long the next bytes of a message that has begun may take.
func (s *session) timeLeft() (time.Duration, error) {
	stall, rate := s.srv.config.StallTimeout, s.srv.config.MinRate
	if rate <= 0 || stall <= 0 || s.begun.IsZero() {
		return stall, nil
	}
	// It has time for a stall, and for each byte that came.
	spent := time.Since(s.begun)
	left := stall + time.Duration(float64(s.w-s.r)/float64(rate)*float64(time.Second)) - spent
	if left <= 0 {
		return 0, s.tooSlow()
	}
	return min(stall, left), nil
}

// tooSlow is the refusal of a message for which there is no time left. What the
// sender did decides whether it drips or stalls, not which of the two limits was
// the nearer one: that depends on when this goroutine came to its read.
func (s *session) tooSlow() error {
	if time.Since(s.readAt) >= s.srv.config.StallTimeout {
		return refuse(ReasonStalled, fmt.Errorf("nothing came for %v in the middle of a message", s.srv.config.StallTimeout))
	}
	return refuse(ReasonSlow, fmt.Errorf("%d bytes of a message came in %v, less than min_rate %d a second", s.w-s.r, time.Since(s.begun).Round(time.Second), s.srv.config.MinRate))
}

func (s *session) timedOut() error {
	if s.w > s.r {
		return s.tooSlow()
	}
	if !s.retireAt.IsZero() && !time.Now().Before(s.retireAt) {
		return errAged
	}
	return errIdle
}

// endOfStream is what the end of the sender's stream means here.
func (s *session) endOfStream() error {
	if s.w > s.r && !s.onlyBlanks() {
		return refuse(ReasonCut, fmt.Errorf("the connection ended after %d bytes of a message", s.w-s.r))
	}
	return io.EOF
}

// read reads once into the free part of the buffer.
func (s *session) read(ctx context.Context) (int, error) {
	if s.raw == nil {
		if s.buf == nil && !s.takeBuffer(ctx) {
			return 0, net.ErrClosed
		}
		return s.conn.Read((*s.buf)[s.w:s.readEnd()])
	}
	for {
		if err := s.raw.Read(s.readFD); err != nil {
			return 0, err
		}
		if !s.starved {
			return s.readN, s.readErr
		}
		if !s.takeBuffer(ctx) {
			return 0, net.ErrClosed
		}
	}
}

// tryRead reads without waiting. When nothing is there it gives the buffer back
// and asks to be called again once something is, unless the poller may as well
// wait for it.
func (s *session) tryRead(fd uintptr) bool {
	s.readNow(fd)
	if s.starved || s.readErr != syscall.EAGAIN {
		return true
	}
	s.parkBuffer()
	s.quiet = s.whole >= parkAfter && s.buf == nil && !s.sweeping && s.mayPark()
	return s.quiet || s.sweeping && !s.grace
}

// readNow reads what is there, into a buffer that it takes if there is none.
func (s *session) readNow(fd uintptr) {
	s.starved = false
	if s.buf == nil {
		if !s.srv.memory.try(s.want) {
			s.starved = true
			return
		}
		s.setBuffer()
	}
	p := (*s.buf)[s.w:s.readEnd()]
	if s.batched {
		s.readN, s.readErr = receiveNow(fd, p)
		return
	}
	for {
		// Long copies are better known to the scheduler.
		s.readN, s.readErr = syscall.Read(int(fd), p)
		if s.readErr != syscall.EINTR {
			s.readN = max(s.readN, 0)
			return
		}
	}
}

// readEnd is how far the buffer is filled by the next read. Where the end of
// the present message is known, reading stops shortly after it, so that the
// next message begins at the front of the buffer and need not be moved.
func (s *session) readEnd() int {
	end := len(*s.buf)
	if !s.isJSON && s.w > s.r {
		if need := s.parser.bodyNeed(); need > 0 && need+readAhead < uint64(end-s.r) && s.r+int(need)+readAhead > s.w {
			return s.r + int(need) + readAhead
		}
	}
	return end
}
