package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// touch connects, observes how long that took from when it was due, and closes.
func (r *run) touch(ctx context.Context, due time.Time, took *latency) error {
	network, address := "tcp", r.o.Address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	d := net.Dialer{Timeout: r.o.AckTimeout}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	took.observe(time.Since(due))
	return c.Close()
}

// stormWorkers is how many connects may be under way at once.
const stormWorkers = 256

// storm connects and closes by the clock until work ends.
func (r *run) storm(ctx, work context.Context) {
	interval := time.Duration(float64(time.Second) / r.o.Storm)
	var wg sync.WaitGroup
	due := make(chan time.Time)
	for range stormWorkers {
		wg.Go(func() {
			for at := range due {
				if err := r.touch(ctx, at, &r.connectLatency); err != nil {
					if ctx.Err() != nil {
						continue
					}
					r.note(err)
					if !r.connected.Load() {
						r.fail(hint(err))
					}
					continue
				}
				r.connected.Store(true)
				r.connections.Add(1)
			}
		})
	}
	at := r.start
	for ; sleep(work, at); at = at.Add(interval) {
		select {
		case due <- at:
			continue
		case <-work.Done():
		}
		break
	}
	r.missed(at, interval)
	close(due)
	wg.Wait()
}

// burst opens all its connections at once, by non-blocking connects from one
// thread, waits until each is established, and closes them.
func (r *run) burst(ctx context.Context) error {
	addr, err := net.ResolveTCPAddr("tcp", r.o.Address)
	if err == nil && addr.IP == nil {
		addr.IP = net.IPv4(127, 0, 0, 1) // ":24224" is this machine, as for net.Dial
	}
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
