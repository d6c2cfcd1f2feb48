package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"weir/forward"
)

// flight is a chunk that waits for its ack.
type flight struct {
	chunk uint32
	due   time.Time // when it was to be sent: latency counts from here
}

// sender sends chunks, one after the other, over one connection at a time, and
// sends again what was not acked. One goroutine does all of it: while the
// window is full, or nothing is due, it reads acks.
type sender struct {
	r      *run
	number uint32
	t      *template
	batch  int
	conn   *forward.Sender
	next   uint32   // number of the next chunk
	window []flight // in order
	again  int      // how many of the window are to be sent again
}

// newSender makes a sender and enters it into the ledger; its template is made
// here if batch is not 0.
func (r *run) newSender(number uint32, batch int) (*sender, error) {
	s := &sender{r: r, number: number, batch: batch}
	if batch > 0 {
		var err error
		if s.t, err = r.maker.template(batch); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	r.ledger[number] = s
	r.mu.Unlock()
	return s, nil
}

// connect makes a connection, again and again until ctx ends.
func (s *sender) connect(ctx context.Context) bool {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		from := time.Now()
		conn, err := forward.Dial(ctx, s.r.target)
		if err == nil {
			s.r.connected.Store(true)
			s.r.connections.Add(1)
			s.r.connectLatency.observe(time.Since(from))
			s.conn = conn
			s.again = len(s.window)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.r.note(err)
		if !s.r.connected.Load() {
			s.r.fail(fmt.Errorf("%w; does a receiver listen there?", err))
			return false
		}
		if !sleep(ctx, time.Now().Add(wait)) {
			return false
		}
	}
}

// drop closes the connection.
func (s *sender) drop(err error) {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	s.r.note(err)
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
				break // all are sent
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
			if interval > 0 && s.room() > 0 {
				until = due
			}
			if !s.readAcks(ctx, until) {
				return
			}
			continue
		}
		for i := range n {
			at := now
			if interval > 0 {
				at = due.Add(interval * time.Duration(i))
			}
			s.window = append(s.window, flight{s.next + uint32(i), at})
		}
		due = due.Add(interval * time.Duration(n))
		if !s.send(ctx, n) {
			return
		}
	}
	s.settle(ctx)
}

// room is how many chunks the next write may hold.
func (s *sender) room() int {
	if !s.r.o.Ack {
		return s.batch
	}
	return min(s.batch, s.r.o.Window-len(s.window))
}

// settle waits for the acks that are missing.
func (s *sender) settle(ctx context.Context) {
	limit := time.Now().Add(s.r.o.AckTimeout)
	ctx, cancel := context.WithDeadline(ctx, limit)
	defer cancel()
	for len(s.window) > 0 && time.Now().Before(limit) && ctx.Err() == nil {
		if !s.readAcks(ctx, limit) {
			break
		}
	}
	s.drop(nil)
}

// send writes n new chunks, which are the last of the window, connecting first
// if need be. It is false when the run is over.
func (s *sender) send(ctx context.Context, n int) bool {
	s.next += uint32(n)
	s.r.inFlight.Add(int64(n))
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
		err = s.write(s.next-uint32(n), n)
	}
	s.count(n)
	if !s.r.o.Ack {
		s.window = s.window[:0]
		s.r.inFlight.Add(-int64(n))
	}
	if err != nil {
		s.drop(err)
	}
	if !s.r.o.KeepAlive {
		if s.r.o.Ack && len(s.window) > 0 && !s.readAcks(ctx, time.Now().Add(s.r.o.AckTimeout)) {
			return false
		}
		s.drop(nil)
	}
	return true
}

func (s *sender) count(n int) {
	s.r.sentChunks.Add(uint64(n))
	s.r.sentEvents.Add(uint64(n * s.t.events))
	s.r.sentBytes.Add(uint64(n * s.t.payload))
}

// write writes n chunks from number from on.
func (s *sender) write(from uint32, n int) error {
	p, err := s.t.message(s.number, from, n, time.Now().Unix())
	if err == nil {
		_, err = s.conn.Write(p)
	}
	return err
}

// resend writes what was in flight when a connection broke.
func (s *sender) resend(ctx context.Context) error {
	for i := range s.window {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.write(s.window[i].chunk, 1); err != nil {
			return err
		}
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
	if err := s.conn.Conn().SetReadDeadline(until); err != nil {
		s.drop(err)
		return true
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
		if len(s.window) > 0 && time.Since(s.window[0].due) >= s.r.o.AckTimeout {
			s.drop(fmt.Errorf("no ack within %v", s.r.o.AckTimeout))
		}
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
			s.r.ackedChunks.Add(1)
			s.r.ackedEvents.Add(uint64(s.r.o.Events))
			s.r.inFlight.Add(-1)
			return nil
		}
	}
	return nil // acked before: the ack of a chunk that was sent again
}
