package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Limits of one session.
const (
	// maxInFlight is how many messages of one connection may wait for Done.
	maxInFlight = 1024
	// maxUnsent is how many bytes of acks may wait, be it for messages in flight or
	// for a sender that does not read them; then weir reads no more from it.
	maxUnsent = 64 << 10
	// drainGrace is how long a message that has begun may take to arrive whole
	// when the server shuts down.
	drainGrace = time.Second
	// lingerGrace is how long an aged connection waits for its sender to close.
	lingerGrace = 3 * time.Second
	// readAhead is how much is read beyond the known end of a message: its
	// option, and the head of the next one.
	readAhead = 256
)

var (
	errDrained = errors.New("the server shuts down")
	errClosing = errors.New("the connection is closed after a refused message, or because its acks cannot be written")
	errIdle    = errors.New("idle for longer than the limit")
	errAged    = errors.New("older than max_connection_age")
	errQuiet   = errors.New("nothing has come for the moment")
)

// session is one connection: read, scan, Handler, ack.
type session struct {
	*visitor
	conn   net.Conn
	socket net.Conn        // conn, or what lies below its TLS
	raw    syscall.RawConn // nil if the connection has no descriptor (TLS)

	// What follows belongs to the reading goroutine.
	buf       *[]byte // nil while idle
	r, w      int     // buf[r:w] is read and not yet handled
	largest   int     // most bytes in buf since it was taken
	want      int64   // class of the next buffer
	parser    parser
	text      jsonScanner
	isJSON    bool
	heard     bool       // a byte has come
	started   bool       // a byte of a message has come
	begun     time.Time  // when the message that is not whole yet began; else zero
	timed     bool       // a read deadline is set
	retireAt  time.Time  // by Config.MaxConnectionAge; zero for never
	sweeping  bool       // draining: read what is there, wait for nothing
	grace     bool       // draining: wait for the rest of a message
	tag       []byte     // memory of a tag with its prefix
	injection *injection // made with the first message
	readAt    time.Time  // of the last read
	fresh     *Message   // cleared messages
	readFD    func(fd uintptr) bool
	readNowFD func(fd uintptr)
	readN     int
	readErr   error
	starved   bool
	quiet     bool // tryRead found nothing, and the session may wait in the poller
	handed    bool // a message has been handed to the handler
	acked     bool // the sender has asked for an ack
	leaving   bool // it has its age: what is there is read, and no more
	batched   bool // the poller handles it
	whole     int  // so often in a row all that had come was whole messages

	owner      atomic.Int32
	again      atomic.Bool // the sender has done something, see turn
	cut        atomic.Bool // the poller waits for the rest of a message
	descriptor int32       // in the poller's set; of the owner

	closing    atomic.Bool  // a message was refused, or no ack can be written: read no more
	busySince  atomic.Int64 // Unix nanoseconds since when it waits for something else than its sender, or 0
	halfClosed atomic.Bool  // see endIfHalfClosed

	mu       sync.Mutex
	change   sync.Cond // of what mu guards
	head     *Message  // in flight, in order of arrival
	tail     *Message
	inFlight int
	owed     int      // bytes of the acks of what is in flight
	free     *Message // cleared messages for fresh
	resting  bool     // it reads nothing for the moment, and has no buffer
	out      []byte   // acks to be written
	spare    []byte   // the other half of a double buffer
	queued   bool     // the flusher has or will take this session
	writing  bool     // somebody writes to the connection
	dead     bool     // the connection cannot be written to

	// Of whoever has set writing; made once, so that a write allocates nothing.
	writeFD  func(fd uintptr)
	toWrite  []byte
	writeN   int
	writeErr error
}

func newSession(v *visitor, conn net.Conn) *session {
	srv := v.srv
	s := &session{visitor: v, conn: conn, socket: conn, want: minBuffer}
	s.change.L = &s.mu
	s.readFD, s.readNowFD, s.writeFD = s.tryRead, s.readNow, s.writeNow
	s.parser.reset(srv.limits)
	if age := srv.config.MaxConnectionAge; age > 0 {
		spread := time.Duration((rand.Float64() - 0.5) / 5 * float64(age))
		s.retireAt = s.since.Add(age + spread)
	}
	if srv.config.TLS != nil {
		s.conn = tls.Server(conn, srv.config.TLS)
		return s
	}
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			s.raw = raw
		}
	}
	return s
}

// serve runs the connection from its first byte to its last.
func (s *session) serve(ctx context.Context) {
	err := s.readProxyHeader()
	if err == nil {
		err = s.authenticate(ctx)
	}
	s.whole = parkAfter // nothing else is known
	s.run(ctx, err)
}

// run reads messages until the connection ends, or may wait in the poller; err
// says why it ends already.
func (s *session) run(ctx context.Context, err error) {
	if err == nil {
		err = s.readMessages(ctx)
	}
	if errors.Is(err, errQuiet) {
		s.srv.poller.park(s)
		return
	}
	s.ended(err)
	s.finish()
	if errors.Is(err, errAged) && s.acked {
		s.linger()
	}
	s.giveBuffer()
	s.conn.Close()
	s.idle()
	s.srv.depart(s.visitor, s)
	s.srv.wait.Done()
}

// mayPark reports whether the poller may wait for the session's sender. It knows no
// deadlines, and cannot wait for a resolver.
func (s *session) mayPark() bool {
	c := &s.srv.config
	return s.raw != nil && c.IdleTimeout <= 0 && c.SourceHostnameKey == "" && s.retireAt.IsZero()
}

// linger ends an aged connection from weir's side and drops what still comes,
// until the sender has closed its own. Closing with bytes unread would reset the
// connection, and the sender might lose acks that it has not read yet: it would
// send again what is stored. What is dropped gets no ack.
func (s *session) linger() {
	for _, c := range []net.Conn{s.conn, s.socket} {
		if half, ok := c.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			return
		}
	}
	if s.socket.SetReadDeadline(time.Now().Add(lingerGrace)) == nil {
		_, _ = io.Copy(io.Discard, s.socket) // however it ends, it is over
	}
}

// readMessages reads until the connection ends, for whatever reason.
func (s *session) readMessages(ctx context.Context) error {
	for {
		for s.w > s.r {
			more, err := s.next(ctx)
			if err != nil {
				return err
			}
			if more {
				s.whole = 0
				if s.begun.IsZero() {
					s.begun = time.Now()
				}
				break
			}
			s.begun = time.Time{}
		}
		if s.r == s.w {
			s.whole++
		}
		if err := s.fill(ctx); err != nil {
			return err
		}
	}
}

// next takes one message off the buffer; more says that it is not whole yet.
func (s *session) next(ctx context.Context) (more bool, err error) {
	p := (*s.buf)[s.r:s.w]
	if !s.started {
		s.started = true
		s.isJSON = p[0] == '{' || p[0] == '['
		if s.isJSON {
			s.peer.uses(featureJSON)
		}
	}
	if s.isJSON {
		return s.nextJSON(ctx, p)
	}
	done, err := s.parser.parse(p)
	if err != nil {
		return false, err
	}
	if !done {
		return true, nil
	}
	p = p[:s.parser.pos]
	if s.parser.heart {
		s.srv.counters.nilBeats.Add(1)
		s.peer.beat(&s.peer.nilBeats, time.Now())
	} else {
		m, err := s.message(ctx, p)
		if err != nil {
			return false, err
		}
		if err := s.hand(ctx, m); err != nil {
			return false, err
		}
	}
	s.consume(len(p))
	s.parser.reset(s.srv.limits)
	return false, nil
}

// consume drops n handled bytes from the buffer.
func (s *session) consume(n int) {
	s.r += n
	if s.r == s.w {
		s.r, s.w = 0, 0
	}
}

// message builds the Message of the whole, parsed bytes p, or of what can be
// taken of them.
func (s *session) message(ctx context.Context, p []byte) (*Message, error) {
	if why := s.parser.invalid; why != nil {
		return s.invalid(ctx, p, why)
	}
	m, err := s.validMessage(p)
	if err == nil {
		return m, nil // why would be allocated
	}
	var why *Refusal
	if errors.As(err, &why) && (s.srv.config.Quarantine && why.canSetAside() || errors.Is(err, errNilRecord)) {
		return s.invalid(ctx, p, why)
	}
	return m, err
}

// validMessage builds the Message of the whole, parsed bytes p.
func (s *session) validMessage(p []byte) (*Message, error) {
	ps := &s.parser
	var o option
	if ps.option.to > 0 {
		var err error
		if o, err = parseOption(ps.option.of(p)); err != nil {
			return nil, err
		}
	}
	m := s.newMessage()
	payload := ps.payload.of(p)
	m.Mode, m.Tag = ps.mode, ps.tag.of(p)
	if o.chunk != nil {
		m.setChunk(o)
	}
	m.pieces[0] = payload
	m.Payload = m.pieces[:1]
	m.Size = len(payload)
	switch ps.mode {
	case ModeMessage:
		m.pieces[0], m.pieces[1] = pairOf, payload
		m.Payload = m.pieces[:2]
		m.Size++
		m.Events = 1
	case ModeForward:
		m.Events = int(ps.entries)
	case ModePacked:
		var err error
		if m.Events, err = s.checkPacked(payload, o.compression); err != nil {
			return nil, err
		}
		if o.compression != Uncompressed {
			m.Mode, m.Compression = ModeCompressed, o.compression
		}
	}
	return m, nil
}

// pairOf is the header that makes an event of the time and record of a message
// in Message mode.
var pairOf = []byte{0x92}

// checkPacked scans the payload of a packed message and counts its events.
func (s *session) checkPacked(payload []byte, c Compression) (events int, err error) {
	if c != Uncompressed {
		return s.srv.inflater.check(payload, c, s.srv.limits)
	}
	st := &s.parser.stream
	st.reset(s.srv.limits.depth)
	n, err := st.scanEvents(payload, noLimit)
	if err != nil {
		return 0, streamRefusal(err)
	}
	if n < len(payload) || !st.atBoundary() {
		return 0, refuse(ReasonBroken, fmt.Errorf("the packed payload ends in the middle of an event, after %d whole ones", st.events))
	}
	return st.events, nil
}

// hand charges the message to the budget, puts it in line for its ack and gives
// it to the handler.
func (s *session) hand(ctx context.Context, m *Message) error {
	if err := s.inject(ctx, m); err != nil {
		s.uncharge(m)
		return err
	}
	charge := int64(m.Size + len(m.Tag) + len(m.Chunk))
	if m.charged > 0 { // salvage has charged the payload
		charge = 0
	}
	if charge > 0 && !s.srv.memory.acquire(ctx, charge, s.srv.config.MemoryWait) {
		return s.noMemory(charge)
	}
	m.charged += charge
	if s.readAt.IsZero() { // it came with the handshake
		s.readAt = time.Now()
	}
	m.Received, m.Batched = s.readAt, s.batched
	s.rename(m)
	s.acked = s.acked || m.wantAck
	s.mu.Lock()
	if s.inFlight >= maxInFlight {
		s.srv.counters.waitsInFlight.Add(1)
	} else if len(s.out)+s.owed > maxUnsent {
		s.srv.counters.waitsUnread.Add(1)
	}
	for (s.inFlight >= maxInFlight || len(s.out)+s.owed > maxUnsent) && !s.dead {
		s.busy(m.Received)
		s.change.Wait()
	}
	s.inFlight++
	s.owed += len(m.ack)
	if s.tail == nil {
		s.head = m
	} else {
		s.tail.next = m
	}
	s.tail = m
	s.mu.Unlock()
	s.srv.counters.inFlight.Add(1)
	if s.handed {
		s.peer.uses(featureKeepalive)
	}
	s.handed = true
	if warn := s.srv.config.MessageSizeWarn; warn > 0 && int64(m.Size) > warn {
		s.srv.warnSize(s.remote, m)
	}
	if m.Events == 0 && m.Invalid == nil {
		m.Done(nil) // nothing to store
		s.idle()
		return nil
	}
	s.busy(m.Received)
	s.srv.config.Handler.Handle(ctx, m)
	s.idle()
	return nil
}

// noMemory is the refusal of a message for which n bytes were not free in time.
func (s *session) noMemory(n int64) *Refusal {
	return refuse(ReasonMemory, fmt.Errorf("no %d bytes free of the memory limit of %d within %v; raise memory_limit", n, s.srv.memory.limit, s.srv.config.MemoryWait))
}

// rename applies Config.Tag and Config.TagPrefix.
func (s *session) rename(m *Message) {
	if len(s.srv.tag) > 0 {
		m.Tag = s.srv.tag
	}
	if len(s.srv.tagPrefix) > 0 {
		s.tag = append(append(s.tag[:0], s.srv.tagPrefix...), m.Tag...)
		m.Tag = s.tag
	}
}

// ended counts and logs why the connection came to its end.
func (s *session) ended(err error) {
	switch {
	case errors.Is(err, errIdle):
		s.srv.counters.idle.Add(1)
	case errors.Is(err, errAged):
		s.srv.counters.aged.Add(1)
	}
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		s.srv.counters.refusedMessage(refusal.Reason)
		s.broke(refusal)
		s.srv.logRefusal(s.remote, refusal)
	case !s.heard && !errors.Is(err, errDrained) && !errors.Is(err, errIdle) && !errors.Is(err, errAged):
		s.beat()
	case errors.Is(err, io.EOF), errors.Is(err, errDrained), errors.Is(err, errClosing), errors.Is(err, net.ErrClosed):
	case s.w > s.r: // reset in the middle of a message
		s.srv.counters.refusedMessage(ReasonCut)
		s.peer.invalid.Add(1)
		s.srv.logRefusal(s.remote, refuse(ReasonCut, err))
	default:
		s.srv.log.Debug("connection ended", zap.Stringer("sender", s.remote), zap.Error(err))
	}
}

// finish waits until every message of the session is Done and its ack written,
// or cannot be written any more.
func (s *session) finish() {
	s.giveBuffer()
	s.busy(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.inFlight > 0 || !s.dead && (len(s.out) > 0 || s.writing) {
		s.change.Wait()
	}
	s.dead = true
}
