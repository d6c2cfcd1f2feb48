package netopt

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience is how long a connection stays in the lobby, or up to twice as long.
	// Who says nothing for so long is no heartbeat.
	patience = 500 * time.Millisecond
	// moderation is how long a new connection may wait to be looked at while others
	// come at least as often. Waking up costs about as much as all else that is done
	// for a heartbeat; so one that comes to an end is found when the next one comes. After
	// one that has spoken nobody waits: a sender that connects for each message and
	// waits for its ack would come once in so long.
	moderation = time.Millisecond
	// maxFresh bounds how many wait so.
	maxFresh = 64
	// maxSteps bounds what is done before it is looked whether the listener is
	// closed or paused meanwhile.
	maxSteps = 512
)

// lobby holds connections of which nothing has come yet. Those that only connect
// and close, as heartbeats do, end here: they cost no goroutine and no place in
// the runtime's poller. It belongs to whoever holds Listener.accepting.
type lobby struct {
	step   func(ep uintptr) bool // Listener.step, made once
	socket int                   // that listens; open as long as step may be called
	arrive func(remote net.Addr) (guest any, ok bool)
	leave  func(guest any)

	storm    storm
	queued   int // in the accept queue for certain
	events   [64]unix.EpollEvent
	next, n  int              // events[next:n] are not handled yet
	waiting  map[int32]*guest // by descriptor
	fresh    []*guest         // those of waiting that are not in the epoll set
	ready    []*guest         // to be returned; not in waiting any more
	last     time.Time        // when the last one came
	round    int              // how many came since the last wait
	spoke    bool             // the last guest that did anything has spoken, not left
	swept    time.Time        // when those without patience were last looked for
	patience time.Duration
	timer    int           // timerfd in the epoll set, -1 if there is none
	timed    time.Duration // for how long it was set, 0 if it does not run
	waits    bool          // step has ended with nothing to do
	errno    syscall.Errno // of accept4, which is not called again in this step
}

// guest is a connection in the lobby.
type guest struct {
	fd     int
	polled bool // it is in the epoll set
	seen   bool // it has waited while others came
	since  time.Time
	remote net.Addr
	token  any // what arrive gave
}

// step does what can be done without waiting. It reports whether that is all that
// AcceptSpeaking asked for, or enough for the time being.
func (l *Listener) step(ep uintptr) bool {
	b := &l.lobby
	b.errno = 0
	if b.waits {
		b.waits = false
		l.waiting.Add(-1)
	}
	polled := false
	if b.storm.on {
		b.queued = 1 // nobody tells
	}
	for range maxSteps {
		switch {
		case len(b.ready) > 0:
			return true
		case b.queued > 0 && b.errno == 0:
			l.take(int(ep))
			if len(b.fresh) >= maxFresh {
				b.lookAtFresh(int(ep))
			}
		case b.next < b.n:
			fd := b.events[b.next].Fd
			b.next++
			if int(fd) == b.socket {
				b.queued = 1
			} else if int(fd) == b.timer {
				b.timed = 0
			} else if g := b.waiting[fd]; g != nil {
				b.look(int(ep), g)
			}
		case !polled || b.n == len(b.events):
			polled = true
			b.next = 0
			b.n, _ = epollNow(int(ep), b.events[:]) // EINTR is for calls that wait
		default:
			if b.errno != 0 { // after all else: a guest that leaves gives its descriptor back
				return true
			}
			b.lookAtFresh(int(ep))
			if now := time.Now(); len(b.waiting) > 0 && now.Sub(b.swept) > b.patience {
				b.swept = now
				b.sweep(int(ep), now.Add(-b.patience))
			}
			if len(b.ready) == 0 {
				b.weather(int(ep))
				if b.storm.on {
					l.moderated.Add(1)
				}
				b.round = 0
				b.setTimer()
				b.waits = true
				l.waiting.Add(1)
				return false
			}
		}
	}
	return true
}

// take accepts one connection. The depth is read before each: between two accepts
// the queue only grows, so that the largest reading is the peak.
func (l *Listener) take(ep int) {
	b := &l.lobby
	now := time.Now()
	if l.unix == nil { // whose depth is not cheap: they are accepted until there is none
		depth, backlog, errno := acceptQueue(b.socket)
		if errno == 0 {
			if b.round == 0 {
				b.storm.reading(depth, backlog)
			}
			if b.queued = depth; depth == 0 {
				return
			}
			l.peak.note(depth, now)
		}
	}
	var from socketAddr
	fd, errno := accept(b.socket, &from)
	switch {
	case errno == unix.EAGAIN:
		b.queued = 0
		return
	case errno != 0:
		b.errno = errno
		return
	case l.unix == nil:
		b.queued--
	}
	l.accepted.Add(1)
	g := &guest{fd: fd, since: now, remote: from.addr()}
	if b.arrive == nil {
		b.ready = append(b.ready, g)
		return
	}
	var ok bool
	if g.token, ok = b.arrive(g.remote); !ok {
		closeNow(fd)
		return
	}
	if b.waiting == nil {
		b.waiting = map[int32]*guest{}
	}
	b.waiting[int32(fd)] = g
	b.round++
	b.storm.came(now)
	dense := now.Sub(b.last) < moderation
	b.last = now
	switch {
	case b.storm.on: // it is looked at when all have been taken
		b.fresh = append(b.fresh, g)
	case b.spoke && b.look(ep, g): // as the one before, which may have come just so
	case dense && !b.spoke:
		b.fresh = append(b.fresh, g)
	default:
		b.poll(ep, g)
	}
}

// poll puts the guest into the epoll set, which tells of what is there already.
func (b *lobby) poll(ep int, g *guest) {
	if g.polled = epollSet(ep, unix.EPOLL_CTL_ADD, g.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET) == 0; !g.polled {
		b.dismiss(ep, g) // no memory for it
	}
}

// look finds out what a guest has done, and reports whether that is anything.
func (b *lobby) look(ep int, g *guest) bool {
	n, errno := peek(g.fd)
	switch {
	case n > 0:
		b.spoke = true
		b.storm.did(true)
		b.dismiss(ep, g)
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return false
	default: // its end, or a reset
		b.spoke = false
		b.storm.did(false)
		b.forget(g)
		closeNow(g.fd)
		if b.leave != nil {
			b.leave(g.token)
		}
	}
	return true
}

// lookAtFresh looks at those that have waited while others came, and those that
// came with others: they may have ended in the queue. Who is still there then is
// waited for.
func (b *lobby) lookAtFresh(ep int) {
	kept := b.fresh[:0]
	for _, g := range b.fresh {
		if (g.seen || b.round > 1 || b.storm.on) && b.look(ep, g) {
			continue
		}
		if g.seen {
			b.poll(ep, g)
			continue
		}
		g.seen = true
		kept = append(kept, g)
	}
	clear(b.fresh[len(kept):])
	b.fresh = kept
}

// weather lets the listening socket wake nobody in a storm, and again when it is over:
// epoll_ctl(2) then tells of what has come meanwhile. It cannot fail, the set has the
// socket.
func (b *lobby) weather(ep int) {
	on := b.arrive != nil && b.storm.rages(time.Now())
	if on == b.storm.on {
		return
	}
	events := uint32(unix.EPOLLIN | unix.EPOLLET)
	if on {
		events = 0
	}
	epollSet(ep, unix.EPOLL_CTL_MOD, b.socket, events)
	b.storm.on = on
}

// setTimer sees to it that nothing in the queue waits for longer than a storm's
// wait, and no guest for longer than moderation, if it is fresh, or patience. A
// deadline of the runtime would cost more than the wake-ups that it spares: it
// starts a thread to wait for each that is earlier than the last.
func (b *lobby) setTimer() {
	var after time.Duration
	switch {
	case b.storm.on:
		after = b.storm.wait()
	case len(b.fresh) > 0:
		after = moderation
	case b.timed == moderation && len(b.waiting) == 0:
		// It stops.
	case b.timed != b.patience && len(b.waiting) > 0:
		after = b.patience
	default: // it may run out in vain; that is cheaper than to set it for each guest
		return
	}
	b.timed = after
	setTimer(b.timer, after)
}

// dismiss makes a guest a connection like any other.
func (b *lobby) dismiss(ep int, g *guest) {
	if g.polled {
		epollSet(ep, unix.EPOLL_CTL_DEL, g.fd, 0)
	}
	b.forget(g)
	b.ready = append(b.ready, g)
}

func (b *lobby) forget(g *guest) {
	delete(b.waiting, int32(g.fd))
}

// sweep dismisses all that came before a time.
func (b *lobby) sweep(ep int, before time.Time) {
	for _, g := range b.waiting {
		if g.since.Before(before) {
			b.dismiss(ep, g)
		}
	}
	kept := b.fresh[:0]
	for _, g := range b.fresh {
		if !g.since.Before(before) {
			kept = append(kept, g)
		}
	}
	clear(b.fresh[len(kept):])
	b.fresh = kept
}
