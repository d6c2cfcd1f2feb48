package netopt

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Accept waits for a connection. It waits for readiness, reads the depth of the
// queue, and only then accepts, without blocking: that makes the peak exact.
func (l *Listener) Accept() (net.Conn, error) {
	c, _, err := l.AcceptSpeaking(nil, nil)
	return c, err
}

// AcceptSpeaking is Accept for servers whose clients speak first. It returns a
// connection once something has come on it, or after a second or so. Until then
// the listener holds it, which costs neither a goroutine nor a buffer.
//
// arrive is called for each connection as it is taken from the queue; if ok is
// false, it is closed. guest is returned with the connection. If its client closes
// or resets it before it sent anything, it is closed and leave is called instead.
// Both are called by the goroutine that calls AcceptSpeaking, and must not block.
//
// While more than a thousand connections come each second and the last one left
// without a word, the next may be returned up to a millisecond after its first byte.
// In a storm, of over 800 each second of which at most 4 of 64 speak, up to three
// milliseconds after it: connections are then left in the accept queue until about
// eight have come, 4 ms at most, and taken with one wake-up (Queue.Moderated). That is
// never done with a backlog under 128, and ends at once when more than an eighth of it
// has filled, or the queue is deeper than expected. Pause, SetDeadline and Close do not
// wait for it.
//
// Before AcceptSpeaking fails, its calls return the connections that are still held:
// call it until it does.
func (l *Listener) AcceptSpeaking(arrive func(remote net.Addr) (guest any, ok bool), leave func(guest any)) (conn net.Conn, guest any, err error) {
	l.accepting.Lock()
	defer l.accepting.Unlock()
	b := &l.lobby
	b.arrive, b.leave = arrive, leave
	for {
		if len(b.ready) > 0 {
			g := b.ready[0]
			if b.ready = b.ready[1:]; len(b.ready) == 0 {
				b.ready = nil
			}
			return newConn(g.fd, g.remote, l.addr), g.token, nil
		}
		if len(b.waiting) > 0 && l.halted() {
			l.dismissAll()
			continue
		}
		if err := l.whilePaused(); err != nil {
			return nil, nil, err
		}
		err := l.readyRaw.Read(b.step)
		if errors.Is(err, os.ErrDeadlineExceeded) && l.expired() && l.another() {
			err = nil
		}
		if b.waits { // Pause, a deadline or Close has ended it
			b.waits = false
			l.waiting.Add(-1)
		}
		l.watchOn()
		switch {
		case err == nil && (b.errno == 0 || len(b.ready) > 0):
		case errors.Is(err, os.ErrDeadlineExceeded) && !l.expired(): // Pause, which may be over by now
		case err != nil:
			if len(b.waiting) > 0 {
				l.dismissAll()
				continue
			}
			if l.isClosed() {
				err = net.ErrClosed // the file's own error does not say so
			}
			return nil, nil, &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: err}
		case transient(b.errno):
		case exhausted(b.errno):
			// The connection stays queued. Senders wait; weir must not spin.
			l.starved.Add(1)
			select {
			case <-time.After(acceptBackoff):
			case <-l.done:
			}
		default:
			return nil, nil, &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: os.NewSyscallError("accept4", b.errno)}
		}
	}
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

// another is step whatever the deadline: it reports whether there is something.
func (l *Listener) another() (more bool) {
	_ = l.readyRaw.Control(func(ep uintptr) { more = l.lobby.step(ep) }) // fails on a closed listener, which has none
	return more
}

// dismissAll makes all guests connections like any other.
func (l *Listener) dismissAll() {
	later := time.Now().Add(l.lobby.patience)
	if l.readyRaw.Control(func(ep uintptr) { l.lobby.sweep(int(ep), later) }) != nil {
		l.lobby.sweep(-1, later) // closed, and the epoll set is gone
	}
}

// halted reports whether nothing is to be accepted.
func (l *Listener) halted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed || l.resume != nil
}
