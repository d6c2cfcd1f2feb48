package load

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// fleet runs senders as out_forward does: a heartbeat by the clock, and one
// chunk at every flush, each sender at a phase of its own.
func (r *run) fleet(ctx, work context.Context) {
	r.templates.New = func() any { return r.maker.template() }
	var wg sync.WaitGroup
	for i := range r.o.Senders {
		s := r.newSender(uint32(i), 1)
		wg.Go(func() { s.flushes(ctx, work) })
		if r.o.Heartbeat != "none" {
			wg.Go(func() { r.beat(ctx, work) })
		}
	}
	wg.Wait()
}

// flushes sends one chunk every Flush.
func (s *sender) flushes(ctx, work context.Context) {
	due := s.r.start.Add(time.Duration(rand.Int64N(int64(s.r.o.Flush))))
	for ; sleep(work, due); due = due.Add(s.r.o.Flush) {
		if s.r.ticket(1) == 0 {
			break
		}
		s.t = s.r.templates.Get().(*template)
		s.window = append(s.window, flight{s.next, due, time.Now()})
		ok := s.send(ctx, 1)
		for ok && s.r.o.Ack && len(s.window) > 0 {
			ok = s.readAcks(ctx, time.Now().Add(s.r.o.AckTimeout))
		}
		s.r.templates.Put(s.t)
		s.t = nil
		if !ok {
			break
		}
	}
	if !s.r.o.Ack {
		s.settle(ctx)
	}
	s.drop(nil)
}

// leastBeatWait is how long the answer to a UDP heartbeat may take at least.
const leastBeatWait = time.Second

// beat sends heartbeats of one sender until work ends: connections that are closed
// at once, or datagrams that are answered.
func (r *run) beat(ctx, work context.Context) {
	every := r.o.HeartbeatEvery
	due := r.start.Add(time.Duration(rand.Int64N(int64(every))))
	var udp net.Conn
	defer func() {
		if udp != nil {
			udp.Close()
		}
	}()
	for ; sleep(work, due); due = due.Add(every) {
		r.heartbeats.Add(1)
		var err error
		if r.o.Heartbeat == "tcp" {
			err = r.touch(ctx, due, &r.beatWaited)
		} else {
			if udp == nil {
				udp, err = net.Dial("udp", r.o.Address) // waits for nothing
			}
			if err == nil {
				// From now, not from when it was due: what this process is late is no loss.
				err = ping(udp, time.Now().Add(max(every, leastBeatWait)))
			}
			if err == nil {
				r.beatWaited.observe(time.Since(due))
			} else if udp != nil { // an answer that is late must not pass for the next one's
				udp.Close()
				udp = nil
			}
		}
		if err != nil && ctx.Err() == nil {
			r.heartbeatsLost.Add(1)
			r.note(err)
		}
	}
}

// ping sends a datagram and waits for its answer.
func ping(udp net.Conn, limit time.Time) error {
	if err := udp.SetDeadline(limit); err != nil {
		return err
	}
	b := []byte{0}
	if _, err := udp.Write(b); err != nil {
		return err
	}
	if _, err := udp.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("a UDP heartbeat had no answer")
	} else if err != nil {
		return err
	}
	return nil
}
