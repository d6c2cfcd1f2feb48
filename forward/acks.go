package forward

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
)

// ackTimeout is how long a sender may leave its acks unread before the
// connection is given up.
const ackTimeout = 30 * time.Second

// complete takes the outcome of a message. Acks leave in the order in which
// the messages came.
func (s *session) complete(m *Message, err error) {
	srv := s.srv
	srv.memory.release(m.charged)
	srv.counters.inFlight.Add(-1)
	took := time.Since(m.Received) // cheaper than time.Now
	srv.counters.observe(took)
	s.peer.done(m, err, m.Received.Add(took))
	if err == nil && m.Duplicate {
		srv.counters.duplicates.Add(1)
	} else if err == nil {
		if m.Events > 0 || m.Invalid == nil {
			srv.counters.messages[m.Mode].Add(1)
			srv.counters.events[m.Mode].Add(uint64(m.Events))
			srv.counters.bytes[m.Mode].Add(uint64(m.Size))
		}
		if m.Invalid != nil {
			srv.setAside(m)
		}
	} else {
		srv.refused(s, m, err)
	}

	s.mu.Lock()
	m.done, m.err = true, err
	for h := s.head; h != nil && h.done; h = s.head {
		s.head = h.next
		if s.head == nil {
			s.tail = nil
		}
		s.inFlight--
		s.owed -= len(h.ack)
		if h.err == nil && h.wantAck && !s.dead {
			s.out = s.appendAck(s.out, h)
			srv.counters.acks.Add(1)
			s.peer.acks.Add(1)
		}
		s.recycle(h)
	}
	wake := len(s.out) > 0 && !s.queued && !s.writing
	if wake {
		s.queued = true
	}
	last := s.inFlight == 0 // no ack can join these
	s.change.Broadcast()
	s.mu.Unlock()

	if err != nil || srv.config.DenyKeepalive {
		s.stopReading()
	}
	switch {
	case wake && last:
		s.flush() // spares the wake-up of a goroutine, which costs as much as the write
	case wake:
		srv.acks.push(s)
	}
}

// stopReading ends the reading of the session; what is in flight is finished.
func (s *session) stopReading() {
	s.closing.Store(true)
	s.kick()
}

// kick wakes a read that waits.
func (s *session) kick() {
	if s.srv.poller.unpark(s) {
		return
	}
	// An error means that the connection is closed, which wakes it as well.
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
}

// appendAck appends the response {"ack": chunk}: the id byte for byte as it
// came, in the sender's own serialization.
func (s *session) appendAck(out []byte, m *Message) []byte {
	if s.isJSON {
		out = append(out, `{"ack":`...)
		out = append(out, m.ack...)
		return append(out, '}')
	}
	out = append(out, 0x81, 0xa3, 'a', 'c', 'k')
	return append(out, m.ack...)
}

// ackQueue is the sessions that have acks to write and more in flight. One
// goroutine writes them all, never waiting for a socket: it collects what became
// durable meanwhile, so that several acks of a session leave in one write.
type ackQueue struct {
	mu     sync.Mutex
	ready  sync.Cond
	dirty  []*session
	closed bool
}

func (q *ackQueue) init() { q.ready.L = &q.mu }

func (q *ackQueue) push(s *session) {
	q.mu.Lock()
	q.dirty = append(q.dirty, s)
	q.mu.Unlock()
	q.ready.Signal()
}

func (q *ackQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.ready.Signal()
}

// run writes acks until close.
func (q *ackQueue) run() {
	var batch []*session
	for {
		q.mu.Lock()
		for len(q.dirty) == 0 && !q.closed {
			q.ready.Wait()
		}
		if len(q.dirty) == 0 {
			q.mu.Unlock()
			return
		}
		batch, q.dirty = q.dirty, batch[:0]
		q.mu.Unlock()
		for i, s := range batch {
			s.flush()
			batch[i] = nil
		}
	}
}

// flush writes the session's acks as far as the socket takes them at once; for
// what is left it starts a goroutine that waits.
func (s *session) flush() {
	s.mu.Lock()
	s.queued = false
	if s.writing || s.dead || len(s.out) == 0 {
		s.mu.Unlock()
		return
	}
	out := s.takeOut()
	s.mu.Unlock()

	written := 0
	var err error
	if s.raw != nil {
		s.toWrite = out
		err = s.raw.Control(s.writeFD)
		s.toWrite = nil
		written = max(s.writeN, 0)
		if err == nil && s.writeErr != syscall.EAGAIN && s.writeErr != syscall.EINTR {
			err = s.writeErr
		}
	}
	if err == nil && written < len(out) {
		s.srv.wait.Go(func() { s.flushSlowly(out, written) })
		return
	}
	s.mu.Lock()
	again := s.wrote(out, err)
	s.mu.Unlock()
	if again {
		s.srv.acks.push(s)
	}
}

// writeNow writes the acks that flush has taken, without waiting.
func (s *session) writeNow(fd uintptr) { s.writeN, s.writeErr = sendNow(fd, s.toWrite) }

// takeOut takes the acks to be written; s.writing keeps others from writing
// until wrote.
func (s *session) takeOut() []byte {
	out := s.out
	s.out = s.spare[:0]
	s.spare = nil
	s.writing = true
	return out
}

// wrote ends what takeOut began. It reports whether more acks came meanwhile,
// and queues the session then.
func (s *session) wrote(out []byte, err error) (again bool) {
	s.writing = false
	if cap(out) <= maxUnsent {
		s.spare = out[:0]
	}
	if err != nil {
		s.dead = true
		s.out = nil
		s.stopReading()
	}
	s.change.Broadcast()
	again = len(s.out) > 0 && !s.queued
	if again {
		s.queued = true
	}
	return again
}

// flushSlowly waits for the socket to take the acks.
func (s *session) flushSlowly(out []byte, from int) {
	for {
		err := s.conn.SetWriteDeadline(time.Now().Add(s.srv.config.ackTimeout))
		if err == nil {
			_, err = s.conn.Write(out[from:])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.srv.counters.acksUnread.Add(1)
		}
		if err == nil { // flush writes without a deadline
			err = s.conn.SetWriteDeadline(time.Time{})
		}
		s.mu.Lock()
		s.wrote(out, err)
		if err != nil || len(s.out) == 0 {
			s.queued = false
			s.mu.Unlock()
			return
		}
		s.queued = false
		out, from = s.takeOut(), 0
		s.mu.Unlock()
	}
}
