package forward

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Who a session belongs to (session.owner).
const (
	ownGoroutine int32 = iota // a goroutine of its own, which runs it
	parked                    // nobody: the poller waits for its sender
	inTurn                    // the poller, which takes what came
)

const (
	// shareFrom is how many senders the poller takes at a time where there are
	// processors to spare: others that are ready get goroutines, which run beside it.
	shareFrom = 64
	// parkAfter is how often in a row nothing but whole messages must have come for a
	// session to be parked again.
	parkAfter = 4
	// Of a batch: so often in a row others get a turn without anything coming, for
	// those that were acked after the last batch and are about to send again, as long
	// as it takes no longer.
	companyTurns = 32
	companyTime  = 100 * time.Microsecond
	// lingerTime is how long a batch waits at most for messages that have begun, for
	// as long at a time as it waits for company.
	lingerTime = time.Millisecond
)

// poller waits for the senders of all sessions that have nothing under way, and
// takes what they send: one goroutine reads, checks and stores the small messages
// of many connections and acks them. They cost little more than the wake-ups of
// those who handle them, and here there is one for all that have come. Whatever
// takes longer gets a goroutine of its own: a message that is not whole soon, a stream
// that fills its buffer, the end of a connection, any error.
//
// A handler that blocks blocks the poller. relieve finds that out: another
// goroutine takes the place then, and until the one that is stuck comes back every
// session gets a goroutine.
type poller struct {
	srv *Server
	// senders is the epoll set of what is parked. The runtime's poller does not wait
	// for it but for bell, a set whose only member it is, and that only while the
	// poller waits: else the runtime would wake a thread for each event of a set that
	// is looked at anyway.
	senders int
	bell    *os.File
	raw     syscall.RawConn         // of bell
	wakeFD  func(bell uintptr) bool // fetchOrArm, made once
	shares  bool                    // there are processors to spare
	wait    sync.WaitGroup

	working atomic.Bool   // it does not wait for events
	steps   atomic.Uint64 // turns and flushes, which tell whether it is stuck
	stuck   atomic.Int64  // goroutines whose place was taken and that have not come back
	seen    uint64        // steps; of relieve

	mu      sync.Mutex
	place   uint64             // changes when it is taken
	parked  map[int32]*session // by descriptor
	armed   bool               // the bell rings at the next event
	events  [2 * shareFrom]unix.EpollEvent
	next, n int // events[next:n] are not handled yet
	company int // messages of the last batch
}

// newPoller starts a poller.
func newPoller(s *Server) (*poller, error) {
	p := &poller{srv: s, parked: map[int32]*session{}, shares: runtime.GOMAXPROCS(0) > 2}
	p.wakeFD = p.fetchOrArm
	bell, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", os.NewSyscallError("epoll_create1", err))
	}
	if p.senders, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("forward: %w", os.NewSyscallError("epoll_create1", err)), unix.Close(bell))
	}
	if err = unix.SetNonblock(bell, true); err == nil { // or os.NewFile would not poll it
		err = unix.EpollCtl(bell, unix.EPOLL_CTL_ADD, p.senders, &unix.EpollEvent{})
	}
	p.bell = os.NewFile(uintptr(bell), "senders")
	if err == nil {
		p.raw, err = p.bell.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("forward: epoll: %w", err), p.bell.Close(), unix.Close(p.senders))
	}
	p.wait.Go(func() { p.run(0) })
	return p, nil
}

// close ends the poller; no session is left by then.
func (p *poller) close() error {
	err := p.bell.Close()
	p.wait.Wait()
	return errors.Join(err, os.NewSyscallError("close", unix.Close(p.senders)))
}

// run handles events as long as place is the poller's.
func (p *poller) run(place uint64) {
	var cut []*session
	for p.batch(place, &cut) {
	}
}

// batch waits for events, handles them and those that come meanwhile, and has the
// handler store what they brought. It is false once the poller is closed, or its
// place is taken. cut is memory.
func (p *poller) batch(place uint64, cut *[]*session) bool {
	if p.raw.Read(p.wakeFD) != nil {
		return false
	}
	p.working.Store(true)
	messages, turns := 0, 0
	var begin, lingers time.Time
	*cut = (*cut)[:0]
	for {
		t, company := p.pop(place)
		if t.session != nil {
			t.lingers = t.lingers && (lingers.IsZero() || time.Since(lingers) < lingerTime)
			messages += t.session.turn(t)
			if t.session.cut.Load() {
				if len(*cut) == 0 {
					lingers = time.Now()
				}
				*cut = append(*cut, t.session)
			}
			p.steps.Add(1)
			turns = 0
			continue
		}
		if (messages == 0 || messages >= company) && !slices.ContainsFunc(*cut, isCut) || turns == companyTurns {
			break
		}
		if turns == 0 {
			begin = time.Now()
		} else if time.Since(begin) > companyTime {
			break
		}
		turns++
		// It does not block, and cannot fail: the runtime need not be told.
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		p.fetch()
	}
	for _, s := range *cut {
		if s.cut.Load() {
			messages += s.turn(turn{session: s})
			p.steps.Add(1)
		}
	}
	clear(*cut)
	if messages > 0 {
		p.srv.flush()
		p.steps.Add(1)
	}
	return p.rest(place, messages)
}

// rest ends a batch.
func (p *poller) rest(place uint64, messages int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.place != place {
		p.stuck.Add(-1)
		return false
	}
	if messages > 0 {
		p.company = messages
	}
	p.working.Store(false)
	return true
}

// fetchOrArm fetches events. If there are none it arms the bell and reports false.
func (p *poller) fetchOrArm(bell uintptr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed {
		// This disarms it (EPOLLONESHOT), if it has rung.
		var rung [1]unix.EpollEvent
		epollNow(int(bell), rung[:])
		p.armed = false
	}
	if p.fetchLocked() {
		return true
	}
	p.armed = epollSet(int(bell), unix.EPOLL_CTL_MOD, int32(p.senders), unix.EPOLLIN|unix.EPOLLONESHOT) == 0
	return !p.armed
}

// fetch fetches events.
func (p *poller) fetch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetchLocked()
}

func (p *poller) fetchLocked() bool {
	if p.next == p.n {
		p.next, p.n = 0, epollNow(p.senders, p.events[:])
	}
	return p.n > p.next
}

// turn is a session that is ready.
type turn struct {
	session *session
	ended   bool // its sender has closed its side, or the connection is reset
	beside  bool // others are taken first: a goroutine may as well
	lingers bool // the rest of a message may come in another turn
}

// pop takes the next turn, an empty one if there is none or the place is taken, and
// tells how many messages the last batch had, 0 if the place is taken.
func (p *poller) pop(place uint64) (turn, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.place != place {
		return turn{}, 0
	}
	for p.next < p.n {
		e := &p.events[p.next]
		p.next++
		if s := p.parked[e.Fd]; s != nil {
			return turn{session: s, ended: e.Events&^unix.EPOLLIN != 0, beside: p.shares && p.next > shareFrom, lingers: !p.shares}, p.company
		}
	}
	return turn{}, p.company
}

// relieve lets another goroutine take the poller's place if it has got no further
// since the last call. It is called by one goroutine.
func (p *poller) relieve() {
	if steps := p.steps.Load(); !p.working.Load() || steps != p.seen {
		p.seen = steps
		return
	}
	p.mu.Lock()
	if !p.working.Load() { // just now
		p.mu.Unlock()
		return
	}
	p.place++
	place := p.place
	p.stuck.Add(1)
	p.mu.Unlock()
	p.steps.Add(1) // of the new one, which may get stuck in its turn
	p.srv.counters.waitsPoller.Add(1)
	p.wait.Go(func() {
		p.srv.flush()
		if p.rest(place, 0) { // or who waits for events would pass for stuck
			p.run(place)
		}
	})
}

// park lets the poller wait for the session's sender. The caller must be done with
// the session, which may go on at once.
func (p *poller) park(s *session) {
	var errno syscall.Errno
	err := s.raw.Control(func(fd uintptr) {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.descriptor = int32(fd)
		s.cut.Store(false)
		s.owner.Store(parked)
		p.parked[s.descriptor] = s
		errno = epollSet(p.senders, unix.EPOLL_CTL_ADD, s.descriptor, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET)
	})
	if err != nil { // it is closed
		s.owner.Store(parked)
	}
	if err != nil || errno != 0 || s.wanted() {
		p.unpark(s)
	}
}

// unpark gives a parked session a goroutine. It is false if it was not parked.
func (p *poller) unpark(s *session) bool {
	if !s.owner.CompareAndSwap(parked, ownGoroutine) {
		return false
	}
	p.leave(s, nil)
	return true
}

// leave gives a session that belongs to the caller a goroutine; err is why it ends,
// if it does.
func (p *poller) leave(s *session, err error) {
	p.mu.Lock()
	if p.parked[s.descriptor] == s {
		delete(p.parked, s.descriptor)
	}
	p.mu.Unlock()
	// On a closed connection, whose descriptor may be another one's, it fails.
	_ = s.raw.Control(func(uintptr) { epollSet(p.senders, unix.EPOLL_CTL_DEL, s.descriptor, 0) })
	go s.run(s.srv.ctx, err)
}

// turn takes what has come, in the poller. It returns how many messages that were.
func (s *session) turn(t turn) (messages int) {
	p := s.srv.poller
	s.again.Store(true)
	for s.again.Load() || s.wanted() {
		if !s.owner.CompareAndSwap(parked, inTurn) {
			break // a goroutine has it; one of the poller's looks at again afterwards
		}
		s.again.Store(false)
		n, ok, err := 0, false, error(nil)
		if !t.beside && p.stuck.Load() == 0 && !s.wanted() {
			s.batched = true
			n, ok, err = s.take(t)
			s.batched = false
		}
		messages += n
		s.cut.Store(ok && s.w > s.r)
		if !ok {
			s.owner.Store(ownGoroutine)
			p.leave(s, err)
			break
		}
		s.owner.Store(parked)
	}
	return messages
}

// wanted reports whether the session must look at something else than its sender.
func (s *session) wanted() bool { return s.closing.Load() || s.srv.draining.Load() }

// isCut reports whether the poller waits for the rest of a message of s.
func isCut(s *session) bool { return s.cut.Load() }

// take reads and handles what has come, without waiting for the sender. It is not ok
// if the session needs a goroutine, to wait or to end with err.
func (s *session) take(t turn) (messages int, ok bool, err error) {
	for {
		if s.raw.Control(s.readNowFD) != nil || s.starved {
			return messages, false, nil
		}
		switch {
		case s.readErr == syscall.EAGAIN:
			return messages, s.pause(t), nil
		case s.readErr != nil:
			return messages, false, os.NewSyscallError("read", s.readErr)
		case s.readN == 0:
			return messages, false, s.endOfStream()
		}
		full := s.w+s.readN == s.readEnd()
		s.got(s.readN)
		for s.w > s.r {
			more, err := s.next(s.srv.ctx)
			if err != nil {
				s.whole = 0
				return messages, false, err
			}
			if more {
				if s.begun.IsZero() {
					s.begun = time.Now()
				}
				break
			}
			s.begun = time.Time{}
			messages++
		}
		if full { // a stream
			s.whole = 0
			return messages, false, nil
		}
		if !t.ended {
			// What comes after a read that did not fill its buffer is another event.
			return messages, s.pause(t), nil
		}
	}
}

// pause reports whether the poller may go on waiting for the sender, of which
// nothing more is there.
func (s *session) pause(t turn) bool {
	if s.w == s.r {
		s.parkBuffer()
		return true
	}
	if !t.lingers {
		s.whole = 0
	}
	return t.lingers
}
