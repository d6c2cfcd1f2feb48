package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// fleet runs senders as out_forward does: a heartbeat by the clock, and one
// chunk at every flush, each sender at a phase of its own.
func (r *run) fleet(ctx, work context.Context) error {
	r.templates.New = func() any {
		t, err := r.maker.template(1)
		if err != nil {
			r.fail(err)
			return (*template)(nil)
		}
		return t
	}
	var wg sync.WaitGroup
	for i := range r.o.Senders {
		s, err := r.newSender(uint32(i), 0)
		if err != nil {
			return err
		}
		wg.Go(func() { s.flushes(ctx, work) })
		if r.o.Heartbeat != "none" {
			wg.Go(func() { r.beat(work) })
		}
	}
	wg.Wait()
	return nil
}

// flushes sends one chunk every Flush.
func (s *sender) flushes(ctx, work context.Context) {
	due := s.r.start.Add(time.Duration(rand.Int64N(int64(s.r.o.Flush))))
	for ; sleep(work, due); due = due.Add(s.r.o.Flush) {
		if s.r.ticket(1) == 0 {
			break
		}
		s.t = s.r.templates.Get().(*template)
		if s.t == nil {
			return
		}
		s.window = append(s.window, flight{s.next, due})
		ok := s.send(ctx, 1)
		for ok && s.r.o.Ack && len(s.window) > 0 {
			ok = s.readAcks(ctx, due.Add(s.r.o.AckTimeout))
		}
		s.r.templates.Put(s.t)
		if !ok {
			break
		}
	}
	s.drop(nil)
}

// leastBeatWait is how long the answer to a UDP heartbeat may take at least.
const leastBeatWait = time.Second

// beat sends heartbeats of one sender: connections that are closed at once, or
// datagrams that are answered.
func (r *run) beat(ctx context.Context) {
	every := r.o.HeartbeatEvery
	due := r.start.Add(time.Duration(rand.Int64N(int64(every))))
	d := net.Dialer{Timeout: r.o.AckTimeout}
	var udp net.Conn
	if r.o.Heartbeat == "udp" {
		var err error
		if udp, err = d.DialContext(ctx, "udp", r.o.Address); err != nil {
			r.note(err)
			return
		}
		defer udp.Close()
	}
	b := []byte{0}
	for ; sleep(ctx, due); due = due.Add(every) {
		r.heartbeats.Add(1)
		var err error
		if udp != nil {
			if _, err = udp.Write([]byte{0}); err == nil {
				// From now, not from when it was due: what this process is late is no loss.
				err = udp.SetReadDeadline(time.Now().Add(max(every, leastBeatWait)))
			}
			if err == nil {
				_, err = udp.Read(b)
			}
		} else {
			var c net.Conn
			if c, err = d.Dial("tcp", r.o.Address); err == nil {
				err = c.Close()
			}
		}
		if err != nil {
			if ctx.Err() == nil {
				r.heartbeatsLost.Add(1)
				r.note(err)
			}
			continue
		}
		r.beatWaited.observe(time.Since(due))
	}
}

// storm connects and closes by the clock.
func (r *run) storm(ctx context.Context) error {
	interval := time.Duration(float64(time.Second) / r.o.Storm)
	d := net.Dialer{Timeout: r.o.AckTimeout}
	const workers = 256
	var wg sync.WaitGroup
	due := make(chan time.Time)
	for range workers {
		wg.Go(func() {
			for at := range due {
				c, err := d.Dial("tcp", r.o.Address)
				if err != nil {
					r.note(err)
					if !r.connected.Load() {
						r.fail(fmt.Errorf("%w; does a receiver listen there?", err))
					}
					continue
				}
				r.connected.Store(true)
				r.connections.Add(1)
				r.connectLatency.observe(time.Since(at))
				c.Close()
			}
		})
	}
	for at := r.start; sleep(ctx, at); at = at.Add(interval) {
		due <- at
	}
	close(due)
	wg.Wait()
	return nil
}

// burst opens all its connections at once, by non-blocking connects from one
// thread, waits until each is established, and closes them.
func (r *run) burst(ctx context.Context) error {
	addr, err := net.ResolveTCPAddr("tcp", r.o.Address)
	if err != nil {
		return fmt.Errorf("--burst: %w", err)
	}
	var sa unix.Sockaddr
	family := unix.AF_INET
	if ip := addr.IP.To4(); ip != nil {
		sa = &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip)}
	} else {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: addr.Port, Addr: [16]byte(addr.IP.To16())}
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	defer unix.Close(ep)
	began := map[int32]time.Time{}
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for range r.o.Burst {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("--burst: socket: %w; raise the limit of open files (ulimit -n)", err)
		}
		open = append(open, fd)
		began[int32(fd)] = time.Now()
		if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("--burst: connect: %w", err)
		}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(fd)}); err != nil {
			return fmt.Errorf("epoll: %w", err)
		}
	}
	limit := time.Now().Add(r.o.AckTimeout)
	events := make([]unix.EpollEvent, 512)
	for len(began) > 0 && ctx.Err() == nil && time.Now().Before(limit) {
		n, err := unix.EpollWait(ep, events, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		now := time.Now()
		for _, e := range events[:max(n, 0)] {
			at, ok := began[e.Fd]
			if !ok {
				continue
			}
			code, err := unix.GetsockoptInt(int(e.Fd), unix.SOL_SOCKET, unix.SO_ERROR)
			switch {
			case err != nil:
				return fmt.Errorf("getsockopt SO_ERROR: %w", err)
			case code != 0:
				r.note(fmt.Errorf("connect %s: %w", r.o.Address, unix.Errno(code)))
			default:
				r.connections.Add(1)
				r.connectLatency.observe(now.Sub(at))
			}
			delete(began, e.Fd)
			if err := unix.EpollCtl(ep, unix.EPOLL_CTL_DEL, int(e.Fd), nil); err != nil {
				return fmt.Errorf("epoll: %w", err)
			}
		}
	}
	for range began {
		r.note(fmt.Errorf("connect %s: not established within %v", r.o.Address, r.o.AckTimeout))
	}
	return nil
}
