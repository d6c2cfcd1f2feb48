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
	addr net.Addr
	path string // of a unix socket that Listen made
	unix *diag  // for a unix socket's queue, else nil

	// The socket is in no poller of the runtime: ready is an epoll set of which it
	// is a member, and with it the connections of the lobby, so that one goroutine
	// waits for all of them.
	ready    *os.File
	readyRaw syscall.RawConn

	accepting sync.Mutex // held by Accept and AcceptSpeaking; guards lobby
	lobby     lobby

	fdMu sync.RWMutex // held by who uses fd; Close waits for step by other means
	fd   int          // -1 once closed

	peak     peaks
	accepted atomic.Uint64
	starved  atomic.Uint64 // accept(2) failed for lack of descriptors or memory
	// moderated counts the waits of storms.
	moderated atomic.Uint64

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
	// Moderated counts how often AcceptSpeaking left what comes in the queue for up
	// to four milliseconds, to take it together.
	Moderated uint64
}

// newListener wraps a bound socket, which it owns whether it fails or not.
func newListener(fd int, path string, asked int) (*Listener, error) {
	l := &Listener{fd: fd, path: path, asked: asked, watch: time.NewTimer(sampleEvery), done: make(chan struct{}), sampler: make(chan struct{})}
	l.watching.Store(true)
	var err error
	if l.addr, err = localAddr(fd); err == nil {
		err = l.makeReady()
	}
	if _, unix := l.addr.(*net.UnixAddr); unix && err == nil {
		l.unix, err = openDiag()
	}
	if err != nil {
		return nil, errors.Join(err, l.closeDescriptors())
	}
	go l.sample()
	return l, nil
}

// makeReady makes the epoll set. Edges are enough, since step accepts all that is
// queued at each.
func (l *Listener) makeReady() error {
	l.lobby.step, l.lobby.socket, l.lobby.timer, l.lobby.patience = l.step, l.fd, -1, patience
	l.lobby.storm = newStorm()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err = unix.SetNonblock(ep, true); err != nil { // or os.NewFile would not poll it
		unix.Close(ep)
		return os.NewSyscallError("fcntl", err)
	}
	l.ready = os.NewFile(uintptr(ep), "listener")
	if l.readyRaw, err = l.ready.SyscallConn(); err != nil {
		return err
	}
	if l.lobby.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	for _, fd := range []int{l.fd, l.lobby.timer} {
		if errno := epollSet(ep, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN|unix.EPOLLET); errno != 0 {
			return os.NewSyscallError("epoll_ctl", errno)
		}
	}
	return nil
}

// closeDescriptors closes all that there are; it waits for step.
func (l *Listener) closeDescriptors() (err error) {
	if l.ready != nil {
		err = l.ready.Close()
	}
	if l.lobby.timer >= 0 {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(l.lobby.timer)))
	}
	l.fdMu.Lock()
	defer l.fdMu.Unlock()
	err = errors.Join(err, os.NewSyscallError("close", unix.Close(l.fd)))
	l.fd = -1
	if l.unix != nil { // nobody reads by it any more
		err = errors.Join(err, l.unix.close())
	}
	return err
}

// control calls f with the listening socket, unless it is closed.
func (l *Listener) control(f func(fd int) error) error {
	l.fdMu.RLock()
	defer l.fdMu.RUnlock()
	if l.fd < 0 {
		return net.ErrClosed
	}
	return f(l.fd)
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
	err = l.control(func(fd int) (err error) {
		if err := unix.Listen(fd, backlog); err != nil {
			return os.NewSyscallError("listen", err)
		}
		_, granted, err = l.reading(fd)
		return err
	})
	if err != nil {
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
	depth, backlog, errno := acceptQueue(fd)
	if errno != 0 {
		return 0, 0, os.NewSyscallError("getsockopt TCP_INFO", errno)
	}
	return depth, backlog, nil
}

// Queue reads the accept queue.
func (l *Listener) Queue() (Queue, error) {
	q := Queue{Accepted: l.accepted.Load(), Starved: l.starved.Load(), Moderated: l.moderated.Load()}
	err := l.control(func(fd int) (err error) {
		if q.Depth, q.Capacity, err = l.reading(fd); err == nil && l.unix == nil {
			q.Drops, err = socketDrops(fd)
		}
		return err
	})
	if err != nil {
		return Queue{}, fmt.Errorf("queue of %s: %w", l.addr, err)
	}
	l.peak.note(q.Depth, time.Now())
	q.Peak, q.PeakMinute, q.PeakRecent = l.peak.read(time.Now())
	return q, nil
}

// Pause makes Accept wait until Resume; connections queue in the kernel. The
// queue's readings go on.
func (l *Listener) Pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resume == nil && !l.closed {
		l.resume = make(chan struct{})
		_ = l.ready.SetReadDeadline(time.Unix(1, 0)) // wakes Accept
	}
}

// Resume ends Pause.
func (l *Listener) Resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resume != nil {
		_ = l.ready.SetReadDeadline(l.user) // before Accept goes on
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
	return l.ready.SetReadDeadline(t)
}

// Close closes the socket; the kernel resets what is queued. The file of a unix
// socket that Listen made is removed. Connections that AcceptSpeaking still holds
// are returned by its next calls.
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
	return errors.Join(l.closeDescriptors(), err)
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
			_ = l.control(func(fd int) error { // fails only once closed
				depth, _, err := l.reading(fd)
				if err == nil {
					l.peak.note(depth, now)
				}
				return err
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
