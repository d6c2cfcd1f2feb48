package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"weir/forward"
)

// flight is a chunk that waits for its ack.
type flight struct {
	chunk uint64
	due   time.Time // when it was to be sent: latency counts from here
	sent  time.Time // the last time it was sent: its ack is late from here
}

// sender sends chunks, one after the other, over one connection at a time, and
// sends again what was not acked. One goroutine does all of it: while the
// window is full, or nothing is due, it reads acks.
type sender struct {
	r       *run
	number  uint32
	t       *template // a fleet's senders have one while they flush
	batch   int
	conn    *forward.Sender
	writeBy time.Time     // the deadline of its writes
	unwatch func() bool   // ends what closes conn at the end of its context
	pause   time.Duration // before the next connection, if the last one ended badly
	next    uint64        // number of the next chunk
	window  []flight      // in order
	again   int           // how many of the window are to be sent again
}

// Of the pause before a sender connects again.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// newSender makes a sender and enters it into the ledger.
func (r *run) newSender(number uint32, batch int) *sender {
	s := &sender{r: r, number: number, batch: batch}
	r.mu.Lock()
	r.ledger[number] = s
	r.mu.Unlock()
	return s
}

// connect makes a connection, again and again until ctx ends, which closes it as
// well: a receiver that neither reads nor answers must not hold the sender.
func (s *sender) connect(ctx context.Context) bool {
	for {
		if s.pause > 0 && !sleep(ctx, time.Now().Add(s.pause)) {
			return false
		}
		from := time.Now()
		conn, err := forward.Dial(ctx, s.r.target)
		if err == nil {
			s.r.connected.Store(true)
			s.r.connections.Add(1)
			s.r.connectLatency.observe(time.Since(from))
			s.conn, s.writeBy, s.again = conn, time.Time{}, len(s.window)
			s.unwatch = context.AfterFunc(ctx, func() { conn.Close() })
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.failed(err)
		if !s.r.connected.Load() {
			s.r.fail(hint(err))
			return false
		}
	}
}

// hint adds what to look at to an error of the very first connection.
func hint(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%w; does a receiver listen there?", err)
	}
	return err
}

// failed notes an error, and lets the next connection wait, each time longer until
// something goes well.
func (s *sender) failed(err error) {
	s.r.note(err)
	s.pause = min(max(2*s.pause, firstPause), maxPause)
}

// drop closes the connection, because of err if it is not nil.
func (s *sender) drop(err error) {
	if s.conn != nil {
		s.unwatch()
		s.conn.Close()
		s.conn = nil
	}
	if err != nil {
		s.failed(err)
	}
}

// run sends until work ends, then waits for the acks that are missing.
func (s *sender) run(ctx, work context.Context) {
	var interval time.Duration
	due := s.r.start
	if s.r.o.Rate > 0 {
		interval = time.Duration(float64(time.Second) * float64(s.r.o.Events) * float64(s.r.o.Connections) / s.r.o.Rate)
		due = due.Add(interval * time.Duration(s.number) / time.Duration(s.r.o.Connections))
	}
	for work.Err() == nil {
		now := time.Now()
		n := 0
		if room := s.room(); room > 0 && (interval == 0 || !now.Before(due)) {
			n = room
			if interval > 0 {
				n = min(n, 1+int(now.Sub(due)/interval))
			}
			if n = s.r.ticket(n); n == 0 {
				interval = 0 // all are sent, nothing more is due
				break
			}
		}
		if n == 0 {
			if len(s.window) == 0 {
				if !sleep(work, due) {
					break
				}
				continue
			}
			until := now.Add(s.r.o.AckTimeout)
			if interval > 0 && s.room() > 0 && due.Before(until) {
				until = due
			}
			if !s.readAcks(ctx, until) {
				break
			}
			continue
		}
		for i := range n {
			at := now
			if interval > 0 {
				at = due.Add(interval * time.Duration(i))
			}
			s.window = append(s.window, flight{s.next + uint64(i), at, now})
		}
		due = due.Add(interval * time.Duration(n))
		if !s.send(ctx, n) {
			break
		}
	}
	s.r.missed(due, interval)
	s.settle(ctx)
}

// room is how many chunks the next write may hold.
func (s *sender) room() int {
	if !s.r.o.Ack {
		return s.batch
	}
	return min(s.batch, s.r.o.Window-len(s.window))
}

// settle waits for the acks that are missing. Without acks it waits until the
// receiver has read everything, so that what that costs it is measured with it.
func (s *sender) settle(ctx context.Context) {
	limit := time.Now().Add(s.r.o.AckTimeout)
	for s.r.o.Ack && len(s.window) > 0 && time.Now().Before(limit) && s.readAcks(ctx, limit) {
	}
	if !s.r.o.Ack && s.conn != nil && ctx.Err() == nil {
		s.drop(s.finish(limit))
	}
	s.drop(nil)
}

// finish ends the stream and waits until the receiver ends its own: a receiver does
// so when it has read to the end.
func (s *sender) finish(limit time.Time) error {
	c, ok := s.conn.Conn().(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if err := s.conn.Conn().SetReadDeadline(limit); err != nil {
		return err
	}
	for buf := make([]byte, 512); ; {
		switch _, err := s.conn.Conn().Read(buf); {
		case err == nil: // nothing that was asked for
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET): // fluentd closes by a reset (linger_timeout 0)
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("the receiver did not read to the end within %v", s.r.o.AckTimeout)
		default:
			return fmt.Errorf("before the receiver had read to the end: %w", err)
		}
	}
}

// send writes n new chunks, which are the last of the window, connecting first
// if need be. It is false when the run is over.
func (s *sender) send(ctx context.Context, n int) bool {
	if !s.r.o.Ack {
		s.window = s.window[:0]
		return s.sendAll(ctx, n)
	}
	s.next += uint64(n)
	s.r.inFlight.Add(int64(n))
	s.r.sentChunks.Add(uint64(n))
	s.r.sentEvents.Add(uint64(n * s.r.o.Events))
	s.r.sentBytes.Add(uint64(s.t.payload(s.number, s.next-uint64(n), n)))
	if s.conn == nil {
		if !s.connect(ctx) {
			return false
		}
		s.again -= n // the new ones were never sent
	}
	var err error
	if s.again > 0 {
		err = s.resend(ctx) // sends these as well
	} else {
		_, err = s.write(s.next-uint64(n), n)
	}
	if err != nil {
		s.drop(err)
	}
	if !s.r.o.KeepAlive {
		for len(s.window) > 0 {
			if !s.readAcks(ctx, time.Now().Add(s.r.o.AckTimeout)) {
				return false
			}
		}
		s.drop(nil)
	}
	return ctx.Err() == nil
}

// sendAll writes n new chunks that get no ack. Those that a write which failed did
// not take whole are written again; what it took, and was under way, may be lost.
func (s *sender) sendAll(ctx context.Context, n int) bool {
	s.r.inFlight.Add(int64(n))
	defer func() { s.r.inFlight.Add(-int64(n)) }() // they were never sent
	for n > 0 {
		if s.conn == nil && !s.connect(ctx) {
			return false
		}
		size, err := s.write(s.next, n)
		if err == nil {
			size, s.pause = all, 0
		}
		whole, payload := s.t.written(s.number, s.next, n, size)
		n -= whole
		s.r.inFlight.Add(-int64(whole))
		s.next += uint64(whole)
		s.r.sentChunks.Add(uint64(whole))
		s.r.sentEvents.Add(uint64(whole * s.r.o.Events))
		s.r.sentBytes.Add(uint64(payload))
		if err != nil {
			s.drop(err)
		} else if !s.r.o.KeepAlive {
			s.drop(nil)
		}
	}
	return ctx.Err() == nil
}

// write writes n chunks from number from on, and returns how many bytes the
// connection took.
func (s *sender) write(from uint64, n int) (int, error) {
	now := time.Now()
	p, err := s.t.message(s.number, from, n, now.Unix())
	if err != nil {
		return 0, err
	}
	// A deadline costs a twentieth of a small write: it is moved now and then, further
	// than it must be.
	if timeout := s.r.o.AckTimeout; s.writeBy.Before(now.Add(timeout)) {
		s.writeBy = now.Add(timeout + timeout/4)
		if err := s.conn.Conn().SetWriteDeadline(s.writeBy); err != nil {
			return 0, err
		}
	}
	size, err := s.conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the receiver reads nothing for %v", s.r.o.AckTimeout)
	}
	return size, err
}

// resend writes what was in flight when a connection broke.
func (s *sender) resend(ctx context.Context) error {
	for i := range s.window {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := s.write(s.window[i].chunk, 1); err != nil {
			return err
		}
		s.window[i].sent = time.Now()
		if i < s.again {
			s.r.resent.Add(1)
		}
	}
	s.again = 0
	return nil
}

// readAcks reads at least one ack, or until the time; it connects and sends
// again what a broken connection left. It is false when the run is over.
func (s *sender) readAcks(ctx context.Context, until time.Time) bool {
	if s.conn == nil {
		if !s.connect(ctx) {
			return false
		}
		if err := s.resend(ctx); err != nil {
			s.drop(err)
			return ctx.Err() == nil
		}
	}
	if len(s.window) > 0 { // the oldest is late first
		if late := s.window[0].sent.Add(s.r.o.AckTimeout); late.Before(until) {
			until = late
		}
	}
	if err := s.conn.Conn().SetReadDeadline(until); err != nil {
		s.drop(err)
		return ctx.Err() == nil
	}
	id, err := s.conn.ReadAck()
	for err == nil && id != nil {
		if err = s.acked(id); err == nil {
			id, err = s.conn.BufferedAck()
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		if len(s.window) > 0 && time.Since(s.window[0].sent) >= s.r.o.AckTimeout {
			s.drop(fmt.Errorf("no ack within %v", s.r.o.AckTimeout))
		}
	case ctx.Err() != nil:
	case errors.Is(err, io.EOF):
		s.drop(errors.New("the receiver closed the connection before its acks"))
	default:
		s.drop(err)
	}
	return ctx.Err() == nil
}

// acked takes an ack off the window.
func (s *sender) acked(id []byte) error {
	number, ok := chunkNumber(id)
	if !ok {
		return fmt.Errorf("an ack of %q, which was never sent", id)
	}
	for i, f := range s.window {
		if f.chunk == number {
			s.r.ackLatency.observe(time.Since(f.due))
			s.window = append(s.window[:i], s.window[i+1:]...)
			s.again = min(s.again, len(s.window))
			s.pause = 0
			s.r.ackedChunks.Add(1)
			s.r.ackedEvents.Add(uint64(s.r.o.Events))
			s.r.inFlight.Add(-1)
			return nil
		}
	}
	return nil // acked before: the ack of a chunk that was sent again
}
