package forward

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Shutdown stops accepting (connections that the kernel has already queued are
// taken), reads what senders have sent, waits until it is durable, sends the
// acks and closes all connections. When ctx ends first it closes at once and
// returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.drainListeners()
	s.mu.Lock()
	s.draining.Store(true)
	s.stop()
	for ses := range s.sessions {
		ses.kick()
	}
	s.mu.Unlock()
	_ = s.closeListeners() // Close tells of errors
	done := make(chan struct{})
	go func() {
		s.wait.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("forward: connections not finished in time: %w", ctx.Err())
	}
	return errors.Join(err, s.Close())
}

// stop wakes who waits for time to pass. s.mu is held.
func (s *Server) stop() {
	select {
	case <-s.stopping:
	default:
		close(s.stopping)
	}
}

// acceptGrace is how long a listener must have nothing queued before it is
// closed.
const acceptGrace = 20 * time.Millisecond

// drainListeners lets Serve take what the kernel has queued: closing a
// listening socket would reset those connections, and with them what senders
// have already written.
func (s *Server) drainListeners() {
	s.mu.Lock()
	waiting := map[interface{ SetDeadline(time.Time) error }]chan struct{}{}
	for l, ended := range s.listeners {
		if d, ok := l.(interface{ SetDeadline(time.Time) error }); ok {
			waiting[d] = ended
		}
	}
	s.draining.Store(len(waiting) > 0)
	s.mu.Unlock()
	deadline := time.Now().Add(acceptGrace)
	for l := range waiting {
		// Serve returns at the deadline, with the queue empty or nearly so.
		if err := l.SetDeadline(deadline); err != nil {
			delete(waiting, l)
			if !errors.Is(err, os.ErrNoDeadline) {
				s.log.Debug("listener not drained", zap.Error(err))
			}
		}
	}
	if len(waiting) == 0 {
		return
	}
	t := time.NewTimer(drainGrace) // those who go on and on connecting are reset then
	defer t.Stop()
	for _, ended := range waiting {
		select {
		case <-ended:
		case <-t.C:
			return
		}
	}
}

// closeListeners closes all listeners. That waits for what Accept is doing, which
// may need s.mu.
func (s *Server) closeListeners() error {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.listeners))
	s.mu.Unlock()
	var errs []error
	for _, l := range all {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close ends everything at once; messages that are not durable are not acked.
// It waits for every goroutine of the server, and so for Done of what the
// handler holds.
func (s *Server) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.draining.Store(true)
	s.stop()
	var errs []error
	for pc := range s.packets {
		if err := pc.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for ses := range s.sessions {
		ses.conn.Close()
		ses.kick()
	}
	s.mu.Unlock()
	errs = append(errs, s.closeListeners())
	s.cancel()
	s.wait.Wait()
	s.watcher.Wait()
	if first {
		s.acks.close()
		errs = append(errs, s.poller.close())
	}
	<-s.acksDone
	return errors.Join(errs...)
}
