package netopt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sampleEvery is the pace of the watchdog, which reads the queue while nobody
	// waits in Accept.
	sampleEvery = 100 * time.Millisecond
	// acceptBackoff is the pause after accept(2) found no descriptor or memory.
	acceptBackoff = 50 * time.Millisecond
)

// Listener is a net.Listener that knows its accept queue.
type Listener struct {
	file *os.File
	raw  syscall.RawConn
	addr net.Addr
	path string // of a unix socket that Listen made
	unix *diag  // for a unix socket's queue, else nil

	peak     peaks
	accepted atomic.Uint64
	starved  atomic.Uint64 // accept(2) failed for lack of descriptors or memory

	mu      sync.Mutex
	asked   int
	granted int
	resume  chan struct{} // not nil while paused; closed by Resume
	user    time.Time     // SetDeadline
	closed  bool

	// The watchdog: who waits in Accept is woken by the first connection, so that
	// the queue need be watched only while nobody does.
	waiting  atomic.Int64 // calls of Accept that wait for a connection
	watching atomic.Bool  // watch will fire
	watch    *time.Timer
	done     chan struct{}
	sampler  chan struct{} // closed when the watchdog has ended
}

// Queue is one reading of an accept queue, in connections.
type Queue struct {
	// Depth waits for accept(2) now; the kernel holds up to Capacity + 1.
	Depth int
	// Capacity is the effective backlog.
	Capacity int
	// Peak is the largest depth since Listen, PeakMinute that of the last 60 s.
	// Both are exact as long as Accept is called: between two calls the queue
	// only grows, and Accept reads its depth before it takes from it.
	Peak, PeakMinute int
	// PeakRecent is the largest depth of this second and the one before.
	PeakRecent int
	// Drops is this socket's own counter (SO_MEMINFO, socket(7)). It counts each
	// dropped SYN, twice a dropped final ACK, and also what is no loss, such as
	// stray segments: confirm it with Counters.ListenOverflows. It is 0 for unix
	// sockets, where connect(2) waits or fails instead.
	Drops uint64
	// Accepted counts connections taken from the queue.
	Accepted uint64
	// Starved counts how often accept(2) found no descriptor or memory.
	Starved uint64
}

// newListener wraps a bound socket, which it owns whether it fails or not.
func newListener(fd int, path string, asked int) (*Listener, error) {
	l := &Listener{path: path, asked: asked, watch: time.NewTimer(sampleEvery), done: make(chan struct{}), sampler: make(chan struct{})}
	l.watching.Store(true)
	l.file = os.NewFile(uintptr(fd), "listener")
	var err error
	if l.addr, err = localAddr(fd); err == nil {
		l.raw, err = l.file.SyscallConn()
	}
	if _, unix := l.addr.(*net.UnixAddr); unix && err == nil {
		l.unix, err = openDiag()
	}
	if err != nil {
		return nil, errors.Join(err, l.file.Close())
	}
	go l.sample()
	return l, nil
}

func localAddr(fd int) (net.Addr, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, os.NewSyscallError("getsockname", err)
	}
	if u, ok := sa.(*unix.SockaddrUnix); ok {
		return &net.UnixAddr{Name: u.Name, Net: "unix"}, nil
	}
	return net.TCPAddrFromAddrPort(addrPort(sa)), nil
}

// addrPort is the address of an IPv4 or IPv6 socket; IPv4 within IPv6 becomes
// IPv4.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Addr returns the address that the socket is bound to.
func (l *Listener) Addr() net.Addr { return l.addr }

// Backlog returns what listen(2) was last asked for and what the kernel made of
// it.
func (l *Listener) Backlog() (asked, granted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked, l.granted
}

// Mismatch returns the error that a short backlog is, nil if it was granted.
func (l *Listener) Mismatch() *BacklogError {
	asked, granted := l.Backlog()
	if granted >= asked {
		return nil
	}
	return &BacklogError{Addr: l.addr.String(), Asked: asked, Granted: granted, Sysctl: somaxconnName}
}

// Relisten calls listen(2) again, which changes the backlog of a live socket
// and loses nothing queued; a raised somaxconn takes effect only so. backlog 0
// asks for somaxconn. It returns what the kernel granted.
func (l *Listener) Relisten(backlog int) (granted int, err error) {
	if backlog <= 0 {
		if backlog, err = SomaxConn(); err != nil {
			return 0, err
		}
	}
	var opErr error
	err = l.raw.Control(func(fd uintptr) {
		if opErr = os.NewSyscallError("listen", unix.Listen(int(fd), backlog)); opErr != nil {
			return
		}
		_, granted, opErr = l.reading(int(fd))
	})
	if err = errors.Join(err, opErr); err != nil {
		return 0, fmt.Errorf("listen on %s: %w", l.addr, err)
	}
	l.mu.Lock()
	l.asked, l.granted = backlog, granted
	l.mu.Unlock()
	return granted, nil
}

// reading reads depth and effective backlog of the listening socket: for TCP
// tcpi_unacked and tcpi_sacked (tcp_get_info in the kernel), for unix sockets
// the queue lengths of sock_diag(7).
func (l *Listener) reading(fd int) (depth, backlog int, err error) {
	if l.unix != nil {
		return l.unix.unixQueue(fd)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, 0, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	return int(info.Unacked), int(info.Sacked), nil
}

// Queue reads the accept queue.
func (l *Listener) Queue() (Queue, error) {
	q := Queue{Accepted: l.accepted.Load(), Starved: l.starved.Load()}
	var opErr error
	err := l.raw.Control(func(fd uintptr) {
		if q.Depth, q.Capacity, opErr = l.reading(int(fd)); opErr == nil && l.unix == nil {
			q.Drops, opErr = socketDrops(int(fd))
		}
	})
	if err = errors.Join(err, opErr); err != nil {
		return Queue{}, fmt.Errorf("queue of %s: %w", l.addr, err)
	}
	l.peak.note(q.Depth, time.Now())
	q.Peak, q.PeakMinute, q.PeakRecent = l.peak.read(time.Now())
	return q, nil
}

// Accept waits for a connection. It waits for readiness, reads the depth of the
// queue, and only then accepts, without blocking: that makes the peak exact.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		if err := l.whilePaused(); err != nil {
			return nil, err
		}
		var (
			nfd   int
			sa    unix.Sockaddr
			opErr error
		)
		waits := false
		err := l.raw.Read(func(fd uintptr) bool {
			if waits {
				l.waiting.Add(-1)
				waits = false
			}
			if l.unix == nil { // cheap for TCP only
				if depth, _, err := l.reading(int(fd)); err == nil && depth > 0 {
					l.peak.note(depth, time.Now())
				}
			}
			nfd, sa, opErr = unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if waits = opErr == unix.EAGAIN; waits {
				l.waiting.Add(1)
			}
			return !waits
		})
		if waits { // Pause, a deadline or Close has ended it
			l.waiting.Add(-1)
		}
		l.watchOn()
		switch {
		case err != nil:
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if !l.expired() {
					continue // Pause, which may be over by now
				}
				if c := l.queued(); c != nil {
					return c, nil
				}
			}
			if l.isClosed() {
				err = net.ErrClosed // the file's own error does not say so
			}
			return nil, &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: err}
		case opErr == nil:
			l.accepted.Add(1)
			return newConn(nfd, sa, l.addr), nil
		case transient(opErr):
			continue
		case exhausted(opErr):
			// The connection stays queued. Senders wait; weir must not spin.
			l.starved.Add(1)
			select {
			case <-time.After(acceptBackoff):
			case <-l.done:
			}
		default:
			return nil, &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: os.NewSyscallError("accept4", opErr)}
		}
	}
}

// queued accepts a connection if one is queued, whatever the deadline.
func (l *Listener) queued() net.Conn {
	var c net.Conn
	_ = l.raw.Control(func(fd uintptr) { // fails on a closed listener, which has none
		if nfd, sa, err := unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
			l.accepted.Add(1)
			c = newConn(nfd, sa, l.addr)
		}
	})
	return c
}

// transient reports errors of a connection that died in the queue (accept(2)).
func transient(err error) bool {
	switch err {
	case unix.EINTR, unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN, unix.ENOPROTOOPT,
		unix.EHOSTDOWN, unix.ENONET, unix.EHOSTUNREACH, unix.EOPNOTSUPP, unix.ENETUNREACH, unix.EPERM:
		return true
	}
	return false
}

// exhausted reports that the process or the system lacks something.
func exhausted(err error) bool {
	switch err {
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return true
	}
	return false
}

// Pause makes Accept wait until Resume; connections queue in the kernel. The
// queue's readings go on.
func (l *Listener) Pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resume == nil && !l.closed {
		l.resume = make(chan struct{})
		_ = l.file.SetReadDeadline(time.Unix(1, 0)) // wakes Accept
	}
}

// Resume ends Pause.
func (l *Listener) Resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resume != nil {
		_ = l.file.SetReadDeadline(l.user) // before Accept goes on
		close(l.resume)
		l.resume = nil
	}
}

// expired reports whether the deadline of SetDeadline has come.
func (l *Listener) expired() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.resume == nil && !l.user.IsZero() && !time.Now().Before(l.user)
}

func (l *Listener) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

func (l *Listener) whilePaused() error {
	l.mu.Lock()
	resume := l.resume
	l.mu.Unlock()
	if resume == nil {
		return nil
	}
	select {
	case <-resume:
		return nil
	case <-l.done:
		return net.ErrClosed
	}
}

// SetDeadline makes Accept fail with os.ErrDeadlineExceeded once t has come and
// nothing is queued; the zero time ends that.
func (l *Listener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.user = t
	if l.resume != nil {
		return nil
	}
	return l.file.SetReadDeadline(t)
}

// Close closes the socket; the kernel resets what is queued. The file of a unix
// socket that Listen made is removed.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.closed = true
	l.mu.Unlock()
	close(l.done)
	<-l.sampler
	var err error
	if l.path != "" {
		if err = os.Remove(l.path); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	err = errors.Join(l.file.Close(), err)
	if l.unix != nil { // nobody reads by it any more
		err = errors.Join(err, l.unix.close())
	}
	return err
}

// sample is the watchdog.
func (l *Listener) sample() {
	defer close(l.sampler)
	defer l.watch.Stop()
	for {
		seen := l.accepted.Load()
		select {
		case <-l.done:
			return
		case now := <-l.watch.C:
			_ = l.raw.Control(func(fd uintptr) { // fails only once closed
				if depth, _, err := l.reading(int(fd)); err == nil {
					l.peak.note(depth, now)
				}
			})
			if l.waiting.Load() == 0 || l.accepted.Load() != seen {
				l.watch.Reset(sampleEvery)
				continue
			}
			// Accept waits: until it returns there is nothing to see, and a process
			// at rest need not wake.
			l.watching.Store(false)
			if l.waiting.Load() == 0 { // it has returned meanwhile, maybe before watching was false
				l.watchOn()
			}
		}
	}
}

// watchOn lets the watchdog look again.
func (l *Listener) watchOn() {
	if !l.watching.Load() && l.watching.CompareAndSwap(false, true) {
		l.watch.Reset(sampleEvery)
	}
}

// ListenPacket opens the UDP socket of heartbeats at the listener's address.
func ListenPacket(ctx context.Context, address string) (net.PacketConn, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", address)
	if err == nil {
		return pc, nil
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return nil, fmt.Errorf("UDP heartbeats on %s: %w", address, bindError(address, errno))
	}
	return nil, fmt.Errorf("UDP heartbeats on %s: %w", address, err)
}
