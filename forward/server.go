package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Defaults of Config, used for fields that are 0.
const (
	DefaultMemory                 = 1 << 30
	DefaultMaxConnections         = 65536
	DefaultMessageSizeLimit       = 256 << 20
	DefaultDecompressionSizeLimit = 256 << 20
	DefaultDecompressionRatio     = 500
	DefaultMaxDepth               = 128
	DefaultHandshakeTimeout       = 10 * time.Second
	DefaultStallTimeout           = 60 * time.Second
	DefaultMemoryWait             = 10 * time.Second
	DefaultMinRate                = 1 << 10
)

// Config is the configuration of a Server. Handler must be set; a 0 elsewhere
// stands for the default, a negative duration for no limit.
type Config struct {
	Handler Handler
	// Log gets what operators must know; nil for nothing.
	Log *zap.Logger
	// Memory is the budget in bytes over all connections: read buffers and
	// messages that are not durable yet.
	Memory int64
	// MaxConnections is how many connections may be open; one more is closed at
	// once.
	MaxConnections int
	// MaxConnectionsPerClient is how many of them one address may have open; 0
	// for no limit.
	MaxConnectionsPerClient int
	// Tag replaces the tag of every message, if it is not empty; TagPrefix and a
	// dot are put before it (tag, add_tag_prefix).
	Tag, TagPrefix string
	// SourceAddressKey and SourceHostnameKey, if not empty, name fields that are
	// put into every record: the sender's address, and its name as the resolver
	// tells it.
	SourceAddressKey, SourceHostnameKey string
	// Healthy reports whether messages can be stored; while they cannot, UDP
	// heartbeats go unanswered, so that senders turn to another server. nil for
	// always.
	Healthy func() bool
	// MessageSizeLimit is the longest message in bytes (chunk_size_limit).
	MessageSizeLimit int64
	// MessageSizeWarn logs messages longer than this, if not 0
	// (chunk_size_warn_limit).
	MessageSizeWarn int64
	// DecompressionSizeLimit is the most bytes that a compressed payload may
	// decompress to.
	DecompressionSizeLimit int64
	// DecompressionRatioLimit is how many times its size a payload may decompress
	// to, once that is over 1 MiB.
	DecompressionRatioLimit int64
	// MaxDepth is how deep msgpack and JSON may nest.
	MaxDepth int
	// Quarantine hands messages that can never be taken to the Handler, with
	// what is valid of them as Payload and the rest as Message.Invalid, where
	// else they are refused.
	Quarantine bool
	// QuarantineWhole makes a message with one invalid event invalid as a whole
	// (skip_invalid_event false).
	QuarantineWhole bool
	// Security asks for the handshake of the protocol; nil for none.
	Security *Security
	// TLS makes every connection one of TLS; nil for plain ones.
	TLS *tls.Config
	// HandshakeTimeout bounds the whole handshake, that of TLS included, and
	// before it the PROXY header.
	HandshakeTimeout time.Duration
	// IdleTimeout closes a connection on which no message has begun for so long;
	// 0 for never.
	IdleTimeout time.Duration
	// MaxConnectionAge closes a connection that is older, give or take a tenth,
	// once all its messages are acked and no other has begun, so that senders
	// behind a load balancer find new servers; 0 for never.
	MaxConnectionAge time.Duration
	// StallTimeout refuses a message that has begun and of which nothing comes.
	StallTimeout time.Duration
	// MinRate is how many bytes a second must come of a message that has begun,
	// beside one StallTimeout.
	MinRate int64
	// ProxyNetworks are the load balancers: a connection from one of them begins
	// with a PROXY header, version 1 or 2, that names the sender.
	ProxyNetworks []netip.Prefix
	// MemoryWait is how long a message that has begun may wait for the budget.
	MemoryWait time.Duration
	// DenyKeepalive closes each connection after its first message, once that is
	// acked (deny_keepalive).
	DenyKeepalive bool

	busyGrace  time.Duration // see halfclosed.go
	ackTimeout time.Duration // see acks.go
}

// Server receives messages on any number of listeners.
type Server struct {
	config     Config
	limits     parserLimits
	log        *zap.Logger
	memory     budget
	buffers    buffers
	inflater   inflater
	counters   counters
	names      names
	refusals   logLimiter
	penalties  penalties
	senders    senderTable
	acks       ackQueue
	poller     *poller
	flusher    Flusher // the handler, if it is one
	halfClosed halfClosedWatch
	nonce      func(b []byte) // fills b with random bytes
	tag        []byte         // replaces tags, if not empty
	tagPrefix  []byte         // with its dot

	ctx      context.Context // of handlers and waits
	cancel   context.CancelFunc
	draining atomic.Bool
	wait     sync.WaitGroup // Serve, sessions and slow writers
	watcher  sync.WaitGroup // of watchHalfClosed
	acksDone chan struct{}
	stopping chan struct{} // closed once the server shuts down

	mu        sync.Mutex
	sessions  map[*session]struct{}
	open      int                            // connections: sessions, and visitors without one
	clients   map[netip.Addr]int             // open connections, if there is a limit of them
	listeners map[net.Listener]chan struct{} // closed when its Serve has ended
	packets   map[net.PacketConn]struct{}
	peak      int
	closed    bool
}

// NewServer returns a Server; Close or Shutdown must be called in the end. It
// fails if the configuration contradicts itself.
func NewServer(c Config) (*Server, error) {
	if c.Handler == nil {
		return nil, errors.New("forward: Config.Handler is not set")
	}
	c.setDefaults()
	if c.MaxDepth > maxTrustedDepth {
		return nil, fmt.Errorf("forward: MaxDepth %d is over %d", c.MaxDepth, maxTrustedDepth)
	}
	if c.Security != nil {
		if err := c.Security.check(); err != nil {
			return nil, err
		}
	}
	s := &Server{
		config: c,
		limits: parserLimits{depth: c.MaxDepth, message: c.MessageSizeLimit, inflated: c.DecompressionSizeLimit,
			ratio: c.DecompressionRatioLimit, setAside: c.Quarantine},
		log:       c.Log,
		memory:    budget{limit: c.Memory},
		inflater:  newInflater(),
		nonce:     randomBytes,
		names:     names{resolve: net.DefaultResolver.LookupAddr},
		acksDone:  make(chan struct{}),
		stopping:  make(chan struct{}),
		sessions:  map[*session]struct{}{},
		clients:   map[netip.Addr]int{},
		listeners: map[net.Listener]chan struct{}{},
		packets:   map[net.PacketConn]struct{}{},
	}
	s.tag = []byte(c.Tag)
	if c.TagPrefix != "" {
		s.tagPrefix = []byte(c.TagPrefix + ".")
	}
	s.flusher, _ = c.Handler.(Flusher)
	var err error
	if s.poller, err = newPoller(s); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.acks.init()
	go func() {
		defer close(s.acksDone)
		s.acks.run()
	}()
	s.halfClosed.timer = time.NewTimer(watchInterval)
	s.halfClosed.on.Store(true)
	s.watcher.Go(s.watchHalfClosed)
	return s, nil
}

// flush has the handler do what it has put off.
func (s *Server) flush() {
	if s.flusher != nil {
		s.flusher.Flush()
	}
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	setDefault(&c.Memory, DefaultMemory)
	setDefault(&c.MaxConnections, DefaultMaxConnections)
	setDefault(&c.MessageSizeLimit, DefaultMessageSizeLimit)
	setDefault(&c.DecompressionSizeLimit, DefaultDecompressionSizeLimit)
	setDefault(&c.DecompressionRatioLimit, DefaultDecompressionRatio)
	setDefault(&c.MaxDepth, DefaultMaxDepth)
	setDefault(&c.HandshakeTimeout, DefaultHandshakeTimeout)
	setDefault(&c.StallTimeout, DefaultStallTimeout)
	setDefault(&c.MemoryWait, DefaultMemoryWait)
	setDefault(&c.MinRate, DefaultMinRate)
	setDefault(&c.busyGrace, busyGrace)
	setDefault(&c.ackTimeout, ackTimeout)
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// newMessage returns a cleared Message. The reading goroutine takes all that
// complete has put back at a time.
func (s *session) newMessage() *Message {
	if s.fresh == nil {
		s.mu.Lock()
		s.fresh, s.free = s.free, nil
		s.resting = false
		s.mu.Unlock()
	}
	m := s.fresh
	if m == nil {
		m = &Message{}
	} else {
		s.fresh, m.next = m.next, nil
	}
	m.session = s
	m.Remote = s.remote
	return m
}

// keptAck is how long the memory of a chunk id may be that is used again: it is
// in no budget.
const keptAck = 256

// recycle takes back a message whose outcome is handled. s.mu is held.
func (s *session) recycle(m *Message) {
	ack := m.ack[:0]
	if cap(ack) > keptAck {
		ack = nil
	}
	*m = Message{ack: ack, next: s.free}
	s.free = m
	if s.resting {
		m.next = nil
	}
}

// refused counts and logs a whole message that the handler refused.
func (s *Server) refused(ses *session, m *Message, err error) {
	r := &Refusal{Reason: ReasonHandler, Err: err}
	errors.As(err, &r)
	s.counters.refusedMessage(r.Reason)
	s.counters.refusedEvents.Add(uint64(m.Events))
	s.logRefusal(ses.remote, r)
}

// logRefusal logs at a bounded rate why a sender's message was not taken.
func (s *Server) logRefusal(sender net.Addr, r *Refusal) {
	if ok, muted := s.refusals.allow(time.Now()); ok {
		s.log.Warn("message refused, not acked", zap.Stringer("sender", sender),
			zap.String("reason", r.Reason), zap.NamedError("cause", r.Err), zap.Uint64("not_logged", muted))
	}
}

// setAside counts and logs a message of which the handler keeps what cannot be
// taken. The message's own bytes are gone by now.
func (s *Server) setAside(m *Message) {
	s.counters.invalidMessage(m.Invalid.Reason)
	s.counters.invalidEvents.Add(uint64(m.Invalid.Events))
	if ok, muted := s.refusals.allow(time.Now()); ok {
		s.log.Warn("message not valid: what can be stored is, the rest is set aside", zap.Stringer("sender", m.Remote),
			zap.String("reason", m.Invalid.Reason), zap.NamedError("cause", m.Invalid.Err),
			zap.Int("stored_events", m.Events), zap.Int("invalid_events", m.Invalid.Events), zap.Uint64("not_logged", muted))
	}
}

// warnSize logs a message over MessageSizeWarn.
func (s *Server) warnSize(sender net.Addr, m *Message) {
	if ok, muted := s.refusals.allow(time.Now()); ok {
		s.log.Warn("message is larger than chunk_size_warn_limit", zap.Stringer("sender", sender), zap.ByteString("tag", m.Tag),
			zap.Int("bytes", m.Size), zap.Int64("chunk_size_warn_limit", s.config.MessageSizeWarn), zap.Uint64("not_logged", muted))
	}
}

// logLimiter lets through a few log lines a second and counts the others.
type logLimiter struct {
	mu     sync.Mutex
	second int64
	n      int
	muted  uint64
}

// logsPerSecond bounds lines about senders, of which there may be thousands.
const logsPerSecond = 10

func (l *logLimiter) allow(now time.Time) (ok bool, muted uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if sec := now.Unix(); sec != l.second {
		l.second, l.n = sec, 0
	}
	if l.n >= logsPerSecond {
		l.muted++
		return false, 0
	}
	l.n++
	muted, l.muted = l.muted, 0
	return true, muted
}
